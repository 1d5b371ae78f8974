"""The models that are in the repository: each has learnt something, judged on new games that no model was trained
on."""

import csv
import functools
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from docs.models import measure
from encoders import PRETRAININGS, load_encoder, load_pretraining
from encoders.frames import FrameData, collect_frames
from pretrain_encoders import Args

ROOT = Path(__file__).resolve().parent.parent
PAPER_MODELS = ["state_representation", "keypoint_features", "keypoint_maps", "object_masks", "autoencoder"]
GAMES = ["Pong", "Breakout", "MsPacman"]
SAMPLES = 16


@pytest.fixture(scope="module")
def new_games_of(tmp_path_factory):
    """Random games with seeds of their own; all of them are new to the models."""

    @functools.cache
    def collect(game: str) -> FrameData:
        folder = tmp_path_factory.mktemp(game)
        collect_frames(
            Args(env_id=f"ALE/{game}-v5", seed=987, num_envs=4), folder, 1200, torch.device("cpu"), threading.Event()
        )
        return FrameData(folder, 0.5, 0)

    return collect


@torch.no_grad()
def loss_on(pretraining, data: FrameData) -> float:
    pretraining.eval()
    obs, later_obs = data.sample("validation", SAMPLES, pretraining.offsets, np.random.default_rng(0))
    return pretraining.loss(obs, later_obs, 1.0)["loss"].item()


@pytest.mark.parametrize("game", GAMES)
def test_they_are_small_and_say_what_they_are(game):
    files = {path.stem: path for path in (ROOT / "pretrained" / game).glob("*.pt")}
    assert set(PAPER_MODELS) <= set(files)
    assert sum(path.stat().st_size for path in files.values()) <= 25e6
    for name, path in files.items():
        model = load_encoder(path, game=game)
        about = model.description
        assert about["name"] == name and about["env_id"] == f"ALE/{game}-v5"
        assert about["data"]["frames"] == 100_000 and about["data"]["expert_fraction"] == 0.0
        stored = torch.load(path, weights_only=True)["state"]
        assert all(tensor.dtype == torch.float16 for tensor in stored.values() if tensor.is_floating_point())


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("name", PAPER_MODELS)
def test_each_beats_its_random_initialisation(game, name, new_games_of):
    new_games = new_games_of(game)
    trained = load_pretraining(ROOT / "pretrained" / game, name)
    torch.manual_seed(1)
    untrained = PRETRAININGS[name]()
    untrained.cpu = trained.cpu
    assert loss_on(trained, new_games) < 0.9 * loss_on(untrained, new_games)


@pytest.mark.parametrize("game", ["Breakout", "MsPacman"])
def test_the_transporters_files_say_that_they_beat_the_median_frame(game):
    """On their held-out games; docs/pretraining.md says that Pong's does not."""
    for name in ("keypoint_features", "keypoint_maps"):
        about = load_encoder(ROOT / "pretrained" / game / f"{name}.pt").description
        assert about["validation_loss"] < about["median_frame_error"]


@pytest.mark.parametrize("game", GAMES)
def test_keypoints_and_masks_follow_what_moves(game):
    """More than three times as often, and as much, as those of another observation; in Ms. Pacman the masks do."""
    measured = measure(game)
    if game != "MsPacman":
        assert measured["on_what_moves"] > 3 * measured["of_another_observation"]
    assert measured["masks_likeness"] > 3 * measured["masks_of_another_observation"]
    with open(ROOT / "docs" / "models.csv", newline="") as file:
        stored = {row["game"]: row for row in csv.DictReader(file)}[game]
    for name in ("on_what_moves", "masks_likeness"):
        assert measured[name] == pytest.approx(float(stored[name]), abs=0.01)


@pytest.mark.parametrize("game", GAMES)
def test_the_autoencoder_beats_the_median_frame(game, new_games_of):
    pretraining, new_games = load_pretraining(ROOT / "pretrained" / game, "autoencoder"), new_games_of(game)
    obs, _ = new_games.sample("training", 1000, (0, 0), np.random.default_rng(1))
    median = obs[:, -1].float().median(dim=0).values / 255
    _, target = new_games.sample("validation", SAMPLES, pretraining.offsets, np.random.default_rng(0))
    of_median = F.mse_loss(median.expand(SAMPLES, -1, -1), target[:, -1].float() / 255).item()
    assert loss_on(pretraining, new_games) < of_median


@pytest.mark.parametrize("game", GAMES)
def test_the_page_names_the_models_that_beat_their_random_initialisation(game):
    """docs/pretraining.md, from the stored table of linear probes: mean F1 of what moves, all but the score."""
    with open(ROOT / "benchmark" / f"probes_{game}.csv", newline="") as file:
        rows = {(row["features"], row["weights"]): row for row in csv.DictReader(file)}

    def f1(name: str, weights: str) -> float:
        kinds = [kind for kind in rows[name, weights] if kind.startswith("f1_")]
        return np.mean([float(rows[name, weights][kind]) for kind in kinds if kind not in ("f1_score", "f1_mean")])

    page = (ROOT / "docs" / "pretraining.md").read_text()
    better = [f"`{name}`" for name in PAPER_MODELS if f1(name, "trained") > f1(name, "untrained")]
    assert f"| {game} | {', '.join(better) or 'none'} |" in page
    # of each row: the model, its F1 now and its initialisation's
    table = re.findall(rf"\| {game} \| `(\w+)`[^|]* \| [\d.]+ \| ([\d.]+) \| ([\d.]+) \|", page)
    assert len(table) >= 2
    for name, now, untrained in table:
        assert [now, untrained] == [f"{f1(name, weights):.3f}" for weights in ("trained", "untrained")]
