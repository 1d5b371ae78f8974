"""Collecting frames and pre-training, on the real Pong."""

import json

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pretrain_encoders
from encoders import PRETRAININGS, load_encoder
from encoders.frames import FrameData
from environments.atari import make_envs
from housekeeping.flags import InputError
from housekeeping.seeds import env_seeds
from pretrain_encoders import Args, main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """2,500 frames of random play (three games and more), and two models trained on them for a few steps."""
    folder = tmp_path_factory.mktemp("pretrain")
    main(small_args(folder))
    return folder


def small_args(folder, **changes):
    settings = {
        "encoders": ("state_representation", "autoencoder"),
        "num_frames": 2500,
        "num_envs": 2,
        "steps": 12,
        "batch_size": 8,
        "validation_samples": 32,
        "pretrained_dir": str(folder / "pretrained"),
        "data_dir": str(folder / "data"),
        "runs_dir": str(folder / "runs"),
    }
    return Args(**{**settings, **changes})


def test_stacks_from_disk_equal_the_environments(folder):
    """Play the first game again, with the same draws: what `observations` puts together is what the environment
    showed."""
    data = FrameData(folder / "data" / "Pong", 0.1, 1)
    rng = np.random.default_rng([1, 0])
    rng.integers(2**31)
    envs = make_envs("ALE/Pong-v5", 2)
    obs, _ = envs.reset(seed=env_seeds(2, 1, 2, 0))
    shown = [obs.copy()]
    while True:
        obs, _, terminated, truncated, info = envs.step(rng.integers(6, size=2))
        done = terminated | truncated
        if done.any():
            winner = int(np.flatnonzero(done)[0])
            shown = [o[winner] for o in shown] + [info["final_obs"][winner]]
            break
        shown.append(obs.copy())
    assert data.lengths[0] == len(shown)
    times = np.arange(len(shown))
    np.testing.assert_array_equal(data.observations(np.zeros(len(shown), dtype=int), times), np.stack(shown))


def test_frames_are_on_disk_and_complete(folder):
    data = FrameData(folder / "data" / "Pong", 0.1, 1)
    assert data.num_frames == 2500 and isinstance(data.frames, np.memmap)
    assert (folder / "data" / "Pong" / "frames.u8").stat().st_size == 2500 * 84 * 84
    assert data.starts[0] == 0 and (data.starts[1:] == np.cumsum(data.lengths)[:-1]).all()
    assert sorted([*data.games["training"], *data.games["validation"]]) == list(range(len(data.lengths)))
    assert len(data.games["validation"]) >= 1


@pytest.mark.parametrize("offsets", [(0, 0), (1, 1), (0, 19)])
def test_samples_stay_in_one_game_of_their_split(folder, offsets, monkeypatch):
    data = FrameData(folder / "data" / "Pong", 0.5, 1)
    drawn = []
    monkeypatch.setattr(
        data,
        "observations",
        lambda games, times: drawn.append((games, times)) or np.zeros((len(games), 4, 84, 84), np.uint8),
    )
    data.sample("validation", 2000, offsets, np.random.default_rng(0))
    games, times = drawn[0]
    later = drawn[-1][1]
    assert set(games) == set(data.games["validation"])
    assert (times >= 1).all() and (later < data.lengths[games]).all()
    assert set(np.unique(later - times)) == set(range(offsets[0], offsets[1] + 1))


def test_stored_models_say_what_they_are(folder):
    for name in ("state_representation", "autoencoder"):
        about = load_encoder(folder / "pretrained" / "Pong" / f"{name}.pt", game="Pong").description
        assert about["name"] == name and about["env_id"] == "ALE/Pong-v5" and about["version"] == 1
        assert about["data"]["frames"] == 2500 and about["data"]["expert_fraction"] == 0.0
        assert about["training"]["batch_size"] == 8 and about["validation_loss"] > 0
    assert about["validation_loss"] < about["validation_loss_untrained"] and about["training"]["steps"] == 12


def test_losses_and_pictures_are_logged(folder):
    events = EventAccumulator(str(folder / "runs" / "Pong__pretrain_encoders__1" / "autoencoder")).Reload()
    assert {"training/loss", "validation/loss"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["pictures"]
    assert [event.step for event in events.Scalars("validation/loss")] == list(range(1, 13))


def test_what_is_stored_is_not_trained_again(folder, capsys):
    path = folder / "pretrained" / "Pong" / "autoencoder.pt"
    before = path.read_bytes()
    main(small_args(folder, steps=1))
    assert path.read_bytes() == before and "--retrain" in capsys.readouterr().out


def test_a_stopped_run_goes_on_to_the_same_result(folder, monkeypatch):
    """Interrupt after 5 of 12 steps, start again: the stored weights equal those of the run that was not stopped."""
    original, calls = pretrain_encoders.FrameData.sample, []

    def interrupting(self, split, *rest):
        calls.append(split)
        if split == "training" and calls.count("training") == 5:
            pretrain_encoders.signal.raise_signal(pretrain_encoders.signal.SIGINT)
        return original(self, split, *rest)

    args = small_args(folder, encoders=("autoencoder",), pretrained_dir=str(folder / "again"))
    monkeypatch.setattr(pretrain_encoders.FrameData, "sample", interrupting)
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 130 and not (folder / "again" / "Pong" / "autoencoder.pt").exists()
    monkeypatch.setattr(pretrain_encoders.FrameData, "sample", original)
    main(args)
    first = torch.load(folder / "pretrained" / "Pong" / "autoencoder.pt", weights_only=True)
    second = torch.load(folder / "again" / "Pong" / "autoencoder.pt", weights_only=True)
    assert first["validation_loss"] == second["validation_loss"]
    assert all(torch.equal(first["state"][key], second["state"][key]) for key in first["state"])


def test_a_training_that_diverges_stores_nothing(folder, monkeypatch):
    monkeypatch.setitem(PRETRAININGS["autoencoder"].adam, "lr", float("inf"))
    stored = folder / "pretrained" / "Pong" / "autoencoder.pt"
    before = stored.read_bytes()
    with pytest.raises(InputError, match="autoencoder: step 1: the held-out loss is nan, training has diverged"):
        main(small_args(folder, encoders=("autoencoder",), retrain=True))
    assert stored.read_bytes() == before


@pytest.mark.parametrize("game", ["Breakout", "MsPacman"])
def test_frames_from_before_fire_do_not_mix_with_newer_ones(tmp_path, game):
    """Where FIRE is pressed after a lost life, frames whose index does not say so are refused; elsewhere nothing has
    changed."""
    flags = {"env_id": f"ALE/{game}-v5", "num_frames": 1200, "encoders": ("autoencoder",), "steps": 1}
    main(small_args(tmp_path, **flags))
    path = tmp_path / "data" / game / "index.json"
    index = json.loads(path.read_text())
    assert index.pop("fire_after_lost_life") == (game == "Breakout")
    path.write_text(json.dumps(index))
    before = (tmp_path / "data" / game / "frames.u8").read_bytes()
    more = small_args(tmp_path, **flags | {"num_frames": 1500}, retrain=True)
    if game == "Breakout":
        with pytest.raises(
            InputError, match="holds frames from before FIRE was pressed after a lost life; choose another --data-dir"
        ):
            main(more)
        assert (tmp_path / "data" / game / "frames.u8").read_bytes() == before
    else:
        main(more)
        assert (tmp_path / "data" / game / "frames.u8").stat().st_size == 1500 * 84 * 84


def test_collecting_goes_on_where_it_was(folder):
    """More frames are added behind those there are; other settings are refused and nothing is lost."""
    data_folder = folder / "data" / "Pong"
    before = (data_folder / "frames.u8").read_bytes()
    main(small_args(folder, num_frames=3300, pretrained_dir=str(folder / "more"), encoders=("autoencoder",), steps=1))
    after = (data_folder / "frames.u8").read_bytes()
    assert after[: len(before)] == before and len(after) == 3300 * 84 * 84
    with pytest.raises(InputError, match="another seed"):
        main(
            small_args(folder, seed=2, num_frames=5000, pretrained_dir=str(folder / "other"), encoders=("autoencoder",))
        )
    assert (data_folder / "frames.u8").read_bytes() == after


def test_an_expert_plays_its_share(tmp_path):
    """An agent of any script may; here a policy that was trained without reward."""
    import pretrain_policy_atari

    flags = {
        "total_timesteps": 32,
        "num_envs": 2,
        "num_steps": 16,
        "runs_dir": str(tmp_path / "runs"),
        "cuda": False,
        "precision": "float32",
    }
    run = pretrain_policy_atari.main(pretrain_policy_atari.Args(**flags))
    args = small_args(
        tmp_path, num_frames=3600, expert_checkpoint=str(run / "checkpoint.pt"), encoders=("autoencoder",), steps=1
    )
    main(args)
    with pytest.raises(InputError, match=r"plays ALE/Pong-v5, not ALE/Breakout-v5"):
        main(small_args(tmp_path, env_id="ALE/Breakout-v5", expert_checkpoint=str(run / "checkpoint.pt")))
    index = json.loads((tmp_path / "data" / "Pong" / "index.json").read_text())
    assert index["expert_fraction"] == 0.5 and len(index["expert_sha256"]) == 64
    assert {game["expert"] for game in index["games"]} == {True, False}
    about = load_encoder(tmp_path / "pretrained" / "Pong" / "autoencoder.pt").description
    assert about["data"]["expert_fraction"] == 0.5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"env_id": "Pong-v4"}, "ALE/Pong-v5"),
        ({"encoders": ("resnet",)}, "resnet: no such model; the known ones are state_representation"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"batch_size": 1}, "at least 2"),
        ({"expert_fraction": 1.5}, "--expert-fraction"),
        ({"expert_checkpoint": "nowhere.pt"}, "nowhere.pt: there is no such file"),
        ({"num_frames": 300}, "at least 2 are needed"),
        ({"num_frames": 1}, "at least 2 are needed"),
        ({"seed": -1}, "must not be negative"),
        ({"repeat_action_probability": 1.0}, "--repeat-action-probability must be at least 0 and below 1"),
        ({"cuda": True}, "no CUDA device"),
    ],
)
def test_bad_input_is_refused(tmp_path, changes, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=says):
        main(small_args(tmp_path, **changes))
