"""The pages: links that lead somewhere, lengths that one reads, examples that run."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "benchmark" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What a link may name behind a #: each heading in small letters, without marks, with hyphens."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = prose(page)
    links = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]
    for link in (link for link in links if not link.startswith("http")):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_are_short(page):
    assert len(page.read_text().splitlines()) <= (150 if page == PAGES[0] else 200)


def test_ones_own_way_to_combine():
    """The example of docs/combining.md: its scores are four times cosines, and they depend on the context."""
    code = (ROOT / "docs" / "combining.md").read_text().split("```python\n# my_combiner.py\n")[1].split("```")[0]
    example: dict = {}
    exec(code, example)
    torch.manual_seed(0)
    combiner = example["Cosine"]({"a": (8,), "b": (9,)}, (5, 16, 16), features_dim=6)
    e, c = torch.randn(3, 2, 6), torch.randn(3, 6)
    query = c @ combiner.query.weight.T + combiner.query.bias
    by_hand = 4 * torch.einsum("bnd,bd->bn", e, query) / (e.norm(dim=2) * query.norm(dim=1)[:, None])
    torch.testing.assert_close(combiner.scores(e, c), by_hand)
    state, weights = combiner.state_and_weights(
        {"a": torch.randn(3, 8), "b": torch.randn(3, 9)}, torch.randn(3, 5, 16, 16)
    )
    assert state.shape == (3, 6) and weights.shape == (3, 2)
