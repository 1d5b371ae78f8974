"""The pages: links that lead somewhere, lengths that one reads, examples that run."""

import csv
import itertools
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from docs.lessons.weights_by_place import mean_weights, places
from docs.models import draw, likeness, on_what_moves
from housekeeping.flags import InputError

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


def so_far(rows: list[dict[str, str]], steps: int) -> tuple[float, float]:
    """Minutes for so many steps at the speed until the last training game that ended by then, without halts of the
    run, and the mean score of those in the last 30,000 steps."""
    games = [(int(row["step"]), float(row["seconds"]), float(row["raw_score"])) for row in rows]
    pace, seconds = games[-1][1] / games[-1][0], 0.0
    games = [game for game in games if game[0] <= steps]
    for (before, begun, _), (after, ended, _) in zip([(0, 0.0, 0.0), *games], games, strict=False):
        halted = ended - begun > max(60, 5 * pace * (after - before))
        seconds += pace * (after - before) if halted else ended - begun
    minutes = seconds / 60 * steps / games[-1][0]
    return minutes, np.mean([score for at, _, score in games if at > steps - 30_000])


def curve_of(path: str) -> list[dict[str, str]]:
    with open(ROOT / "benchmark" / path, newline="") as file:
        return list(csv.DictReader(file))


def test_what_one_sees_after_some_steps():
    """The README's table beside its first commands: from the raw curves that it names."""
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in PAGES[0].read_text().splitlines()
        if re.match(r"\| [\d,]+,000 \|", line)
    ]
    # the number of seeds is a word there
    numbers = [[[float(n.replace(",", "")) for n in re.findall(r"-?[\d,.]*\d", cell)] for cell in row] for row in rows]
    four = [curve_of(f"results/scorers_small/bounded__Pong__{seed}/curve.csv") for seed in (1, 2)]
    on_gpu = [curve_of(f"results/four_models_small/wsa__Pong__{seed}/curve.csv") for seed in (1, 2)]
    light = [curve_of(f"results/models_light_small/new_state__Pong__{seed}/curve.csv") for seed in (1, 2, 3, 4, 5)]
    longer = [curve_of(f"results/claims_light_small/wsa__Pong__{seed}/curve.csv") for seed in (1, 2)]
    pixels = [
        curve_of(f"results/precision_small/e2e_{precision}__Pong__{seed}/curve.csv")
        for precision in ("float32", "bfloat16")
        for seed in (1, 2)
    ]
    pixels.append([row for row in curve_of("pong_learning_curves.csv") if row["label"] == "end to end"])
    assert [row[0] for row in numbers] == [[50_000], [100_000], [150_000], [400_000], [600_000]]
    for (steps,), *columns in numbers:
        pairs = zip(columns[::2], columns[1::2], strict=True)
        # minutes: of a seed that was neither halted nor one of three jobs on two cores
        far = steps > 150_000
        shown = ((longer, 0) if far else (light, 1), (on_gpu if far else four, 0), (pixels, 0))
        for (minutes, scores), (curves, quiet) in zip(pairs, shown, strict=True):
            longest = max(int(curve[-1]["step"]) for curve in curves)
            assert bool(scores) == (steps <= longest * 1.03), "not run"
            if scores:
                found = [so_far(curve, steps) for curve in curves]
                each = [score for _, score in found]
                expected = each if len(each) < 3 else [np.mean(each), min(each), max(each)]
                assert [round(score, 1) for score in expected] == scores
                assert round(found[quiet][0]) == minutes[0]


def table_under(page: Path, header: str) -> list[list[str]]:
    """The cells of the rows below a table's first line."""
    below = page.read_text().split(header + "\n")[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in below]


def test_scores_at_a_glance():
    """The scores of the README and of docs/results.md: from the raw curves, one number a run."""
    runs_of = {
        "WSA, the paper's four models": "four_models_small/wsa",
        "four models": "four_models_small/wsa",
        "four models, equal weights": "four_models_small/uniform",
        "the four, equal weights": "four_models_small/uniform",
        "four models, random weights in the models": "four_models_small/untrained",
        "the four, random weights in the models": "four_models_small/untrained",
        "four models, published network": "four_models_small/wsa_published",
        "WSA, two light models": "claims_light_small/wsa",
        "light models": "claims_light_small/wsa",
        "light models, published network": "claims_light_small/wsa_published",
        "light models, equal weights": "claims_light_small/uniform",
        "light models, random weights in the models": "claims_light_small/untrained",
        "end to end": "four_models_small/end_to_end",
        "end to end, from pixels": "four_models_small/end_to_end",
    }

    def cell(arm: str, game: str, steps: int) -> str:
        if (arm, game) == ("four_models_small/end_to_end", "Pong"):
            arm = "precision_small/e2e_float32"
        curves = [curve_of(f"results/{arm}__{game}__{seed}/curve.csv") for seed in finished(arm, game)]
        digits = 0 if game == "MsPacman" else 1
        return ", ".join(f"{so_far(curve, steps)[1]:.{digits}f}" for curve in curves)

    def finished(arm: str, game: str) -> list[int]:
        return [n for n in range(1, 10) if (ROOT / "benchmark" / "results" / f"{arm}__{game}__{n}").is_dir()]

    games = ("Pong", "Breakout", "MsPacman")
    readme = table_under(PAGES[0], "| | Pong | Breakout | Ms. Pacman |")
    results = (
        "| | "
        + " | ".join(f"{game}, {n}" for game in ("Pong", "Breakout", "Ms. Pacman") for n in ("100,000", "400,000"))
        + " |"
    )
    page = table_under(ROOT / "docs" / "results.md", results)
    assert len(readme) == 7 and len(page) == 9
    for name, *cells in readme:
        assert cells == [cell(runs_of[name], game, 400_000) for game in games], name
    for name, *cells in page:
        assert cells == [cell(runs_of[name], game, steps) for game in games for steps in (100_000, 400_000)], name


def test_learnt_and_equal_weights_early_in_pong():
    """docs/light_models.md: each seed after 100,000 steps from the raw curves, and how often chance gives such a lead,
    over all divisions of the runs within each comparison."""
    arms = [
        ("models_light_small/new_state", "models_light_small/new_uniform", 5),
        ("models_light_small/wsa", "models_light_small/uniform", 5),
        ("four_models_small/wsa", "four_models_small/uniform", 2),
        ("scorers_small/bounded", "scorers_small/uniform", 2),
    ]
    curves = [
        [[curve_of(f"results/{arm}__Pong__{seed}/curve.csv") for seed in range(1, n + 1)] for arm in (learnt, equal)]
        for learnt, equal, n in arms
    ]

    def scores(steps: int) -> list[tuple[list[float], list[float]]]:
        return [tuple([so_far(curve, steps)[1] for curve in arm] for arm in pair) for pair in curves]

    def chance(pairs: list[tuple[list[float], list[float]]]) -> tuple[list[float], float]:
        """The leads of the first of each pair, and the share of divisions whose leads, together, are as far from 0;
        each run counts as much as any other."""
        sums = np.zeros(1)
        for first, second in pairs:
            both = np.array(first + second)
            ways = itertools.combinations(range(len(both)), len(first))
            sums = np.add.outer(sums, [2 * both[list(way)].sum() - both.sum() for way in ways]).ravel()
        leads = [np.mean(first) - np.mean(second) for first, second in pairs]
        found = sum(lead * len(first) for lead, (first, _) in zip(leads, pairs, strict=True))
        return leads, np.mean(np.abs(sums) >= abs(found) - 1e-9)

    page = ROOT / "docs" / "light_models.md"
    table = table_under(page, "| models | learnt | mean | equal | mean |")
    pairs = scores(100_000)
    for (_, *cells), both in zip(table, pairs, strict=True):
        written = [text for some in both for text in (" ".join(f"{s:.1f}" for s in some), f"{np.mean(some):.1f}")]
        assert cells == written
    leads, share = chance(pairs)
    later, share_later = chance(scores(150_000))
    text = page.read_text()
    assert f"in each of four comparisons, by {min(leads):.1f} to {max(leads):.1f} points" in text
    assert f"in {100 * chance(pairs[:1])[1]:.0f} of 100 random divisions of the ten runs" in text
    assert f"{1000 * share:.0f} in 1,000 give such a lead" in text
    assert f"in all four again, by {min(later):.1f} to {max(later):.1f} ({100 * share_later:.0f} in 100)" in text


def test_speeds_on_a_gpu():
    """docs/speed.md's tables: from benchmark/gpu_h200.csv the lowest and the highest of each machine; from
    benchmark/gpu_h100.csv, and its ratio."""
    rows, page = curve_of("gpu_h200.csv"), (ROOT / "docs" / "speed.md").read_text()
    for what in {row["what"] for row in rows}:
        cells = []
        for machine in "12":
            found = [int(r["steps_per_second"]) for r in rows if (r["what"], r["machine"]) == (what, machine)]
            cells.append(f"{min(found)} to {max(found)}" if min(found) < max(found) else f"{found[0]}")
        name = {"keypoint_features": "Transporter"}.get(what, what.replace("_", " "))
        assert re.search(rf"\| [^|]*{name}[^|]* \| {cells[0]} \| {cells[1]} \|", page), what
    alone, beside = (
        {r["what"]: r["steps_per_second"] for r in curve_of("gpu_h100.csv") if r["at_a_time"] == n} for n in "12"
    )
    table = dict(re.findall(r"^\| (?:WSA, )?([^|(]+?)(?: \(.*\))? \| (\d+) \|$", page, flags=re.MULTILINE))
    assert table == alone
    ratio = int(alone["four models"]) / int(alone["four models, kernel by kernel"])
    both = [int(rate) for rate in beside.values()]
    again = f"{both[0] / both[1]:.2f} times in another ({both[0]} and {both[1]}, at the same time)"
    assert f"{ratio:.2f} times as fast in this pair of runs, {again}." in page


def test_the_weights_follow_the_ball():
    """docs/evaluation.md's table is its raw file's, and that is what the actions played again give."""
    folder, page = ROOT / "benchmark" / "evaluation", (ROOT / "docs" / "evaluation.md").read_text()
    rows = mean_weights(folder / "attention_breakout", "ball_y", 20)
    assert rows == curve_of("evaluation/attention_breakout/ball.csv")
    where = places("Breakout", steps := curve_of("evaluation/attention_breakout/steps.csv"), "ball_y")
    below = [one for one, y in zip(steps, where, strict=True) if 80 <= y < 100]
    by_hand = f"{np.mean([float(one['keypoint_maps']) for one in below]):.3f}"
    assert [row["keypoint_maps"] for row in rows if row["ball_y"] == "80 to 99"] == [by_hand]
    shown = [row for row in rows if rf"| {row['ball_y']} " in page]
    for row in shown:
        numbers = r" \| ".join(list(row.values())[1:])
        assert re.search(rf"\| {row['ball_y']}[^|]* \| {numbers} \|", page)
    left_out = sum(int(row["steps"]) for row in rows if row not in shown)
    assert f"without {left_out} steps in which it is elsewhere" in page and len(shown) == 6
    across = {row["ball_x"]: float(row["autoencoder"]) for row in mean_weights(folder / "attention", "ball_x", 20)}
    left, right = (
        [across[name] for name in names.split(",")]
        for names in ("40 to 59,60 to 79,80 to 99,100 to 119", "160 to 179,180 to 199")
    )
    assert f"It is {min(left):.2f} to {max(left):.2f} while the ball" in page
    assert f"{min(right):.2f} to {max(right):.2f} near the agent's own paddle" in page
    with pytest.raises(InputError, match="enemy_x: not known in Breakout; what is: ball_x, ball_y, player_x"):
        mean_weights(folder / "attention_breakout", "enemy_x", 20)
    with pytest.raises(InputError, match="step 31: the score is 1, in the folder 0: another game"):
        places("Breakout", [row | {"score": "0"} for row in steps], "ball_y")


def test_scores_without_one_model():
    """docs/evaluation.md's row: from benchmark/evaluation/drop_breakout.csv, in its order."""
    rows = curve_of("evaluation/drop_breakout.csv")
    names = [row["agent"].rpartition("without ")[2].replace("_", " ") for row in rows[1:]]
    assert f"| all | without {' | without '.join(names)} |" in (page := (ROOT / "docs" / "evaluation.md").read_text())
    means = " | ".join(f"{float(row['mean']):.1f}" for row in rows)
    assert f"| {means} |" in page


def test_the_lottery_of_the_dead_relu():
    """docs/combining.md's table of dead scores: from docs/lessons/dead_scores.csv."""
    with open(ROOT / "docs" / "lessons" / "dead_scores.csv", newline="") as file:
        found = [row for row in csv.DictReader(file) if row["scorer"] == "published"]
    page = (ROOT / "docs" / "combining.md").read_text()
    for models, name in (("2", "light"), ("4", "the paper's four")):
        for dim, game in (("256", "Pong"), ("128", "Pong"), ("256", "Breakout")):
            rows = [r for r in found if (r["models"], r["features_dim"], r["game"]) == (models, dim, game)]
            if not rows or (models, game) == ("2", "Breakout"):
                continue
            cells = " ".join(
                f"{float(row['dead_scores']):.2f}".replace("0.", ".").replace("1.00", "1.0") for row in rows
            )
            assert f"| {name}, {dim}, {game} | {cells} |" in page


def test_a_class_pools_its_runs(tmp_path, program):
    """Each run counts, also two of one seed; the CSV has the steps that a run has reached."""

    def pool(*folders: str, code: int = 0) -> str:
        status, out, error = program("docs/lessons/pool.py", *folders, "--csv", str(tmp_path / "pooled.csv"))
        assert status == code, error
        return out + error

    for name, score in (("alice/Pong__my__arm__1__10", -10.0), ("bob/Pong__my__arm__1__20", -20.0)):
        with SummaryWriter(str(tmp_path / name)) as writer:
            for step in (30_000, 45_000, 70_000):
                writer.add_scalar("charts/episodic_return", score + step / 10_000, step)
            writer.add_scalar("charts/SPS", 1.0, 75_008)
    assert "1 run,  mean   -4.2: -4.2\n" in pool(str(tmp_path / "alice"))
    said = pool(str(tmp_path / "alice"), str(tmp_path / "bob"))
    assert "Pong my__arm" in said and "2 runs, mean   -9.2: -14.2 -4.2" in said  # at 45,000 and 70,000
    assert "note: seed 1 has 2 runs" in said and "None" not in said
    rows = (tmp_path / "pooled.csv").read_text().splitlines()
    assert rows[1:] == ["Pong,my__arm,1,50000,2,-6.25", "Pong,my__arm,1,50000,2,-16.25"]  # at 30,000 and 45,000
    assert "error: no runs with finished games in" in pool(str(tmp_path / "alice" / "Pong__my__arm__1__10"), code=1)


def test_what_the_models_see_is_drawn(tmp_path):
    """One game of docs/models.png: four columns, two rows, and circles at the keypoints; the last one is on top."""
    draw(tmp_path / "models.png", games=("Pong",))
    picture = plt.imread(tmp_path / "models.png")[..., :3]
    assert picture.shape[1] > picture.shape[0] > 300
    red = np.array([0xD6, 0x27, 0x28]) / 255  # matplotlib's fourth colour
    drawn = (np.abs(picture - red).max(axis=2) < 0.02).nonzero()
    assert len(drawn[0]) > 20 and (drawn[1] < picture.shape[1] / 4).all()


def test_keypoints_and_masks_on_what_moves():
    moved = torch.zeros(2, 84, 84, dtype=torch.bool)
    moved[:, 40, 20] = True  # y, x
    pixels = torch.tensor([[[20, 40], [23, 37], [24, 40]], [[20, 43], [40, 20], [0, 83]]])  # x, y of three keypoints
    assert on_what_moves(pixels / 83 * 2 - 1, moved).tolist() == [1.0, 0.5, 0.0]
    marked = torch.rand(2, 84, 84)
    by_hand = [np.corrcoef(marked[i].flatten(), moved[i].flatten())[0, 1] for i in range(2)]
    assert likeness(marked, moved) == pytest.approx(np.mean(by_hand), abs=1e-5)
    assert likeness(moved, moved) == pytest.approx(1, abs=1e-5)
    assert likeness(~moved, moved) == pytest.approx(-1, abs=1e-5)
