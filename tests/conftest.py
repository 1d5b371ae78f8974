"""Shared by the tests: the command line option for slow ones, the folder of the committed models, a program run in this
process."""

import os
import runpy
import sys
from collections import defaultdict
from pathlib import Path

# several tests at a time, so that each one, and what it starts, should keep to one core
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("PYTHONPATH", str(ROOT))


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="run the tests that take more than a minute, too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--run-slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow; run with --run-slow"))


@pytest.fixture(scope="session")
def pretrained_dir() -> str:
    return str(ROOT / "pretrained")


@pytest.fixture(autouse=True, scope="session")
def kept_emulators():
    """Closed Atari games are kept for the next test that wants such ones: at each opening ale-py makes a table of
    colours that nothing here uses, 0.2 s a game. A reset with a seed loads the cartridge anew."""
    opened, kept = gym.make_vec, defaultdict(list)

    def make_vec(env_id, **settings):
        spare = kept[env_id, *sorted(settings.items())]
        envs = spare.pop() if spare else opened(env_id, **settings)
        envs.close = lambda: spare.append(envs) if envs not in spare else None
        return envs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gym, "make_vec", make_vec)
        yield


@pytest.fixture
def program(monkeypatch, capsys):
    """What `python SCRIPT FLAGS` says and its exit status, without the seconds in which a process imports torch."""

    def run(script: str, *flags: str) -> tuple[str | int, str, str]:
        monkeypatch.setattr(sys, "argv", [script, *flags])
        capsys.readouterr()
        status: str | int | None = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as ended:
            status = ended.code
        said = capsys.readouterr()
        # as Python does: a sentence goes to stderr, and the status is 1
        return (1, said.out, f"{said.err}{status}\n") if isinstance(status, str) else (status or 0, *said)

    return run


@pytest.fixture
def clipped(monkeypatch) -> list[int]:
    """How many numbers each call of `clip_grad_norm_` was given."""
    clip, sizes = torch.nn.utils.clip_grad_norm_, []

    def noting(parameters, *rest):
        parameters = list(parameters)
        sizes.append(sum(parameter.numel() for parameter in parameters))
        return clip(parameters, *rest)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noting)
    return sizes


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
