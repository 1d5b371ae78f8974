"""HackAtari's changed games, with the real package; skipped where it is not installed (requirements-hackatari.txt)."""

import json

import numpy as np
import pytest
from test_atari import assert_shows_what_training_saw

import evaluate
import ppo_e2e_atari
from environments import hackatari
from environments.atari import make_env
from environments.hackatari import ChangedGame, make_changed_env, make_hackatari
from evaluate import Args, main
from housekeeping.flags import InputError

pytest.importorskip("hackatari")


@pytest.fixture(scope="module")
def agent(tmp_path_factory) -> str:
    settings = {
        "env_id": "ALE/Pong-v5",
        "num_envs": 2,
        "num_steps": 16,
        "total_timesteps": 32,
        "cuda": False,
        "precision": "float32",
    }
    run = ppo_e2e_atari.main(ppo_e2e_atari.Args(**settings, runs_dir=str(tmp_path_factory.mktemp("runs"))))
    return str(run / "checkpoint.pt")


@pytest.mark.parametrize("game", ["Pong", "Breakout", "MsPacman", "SpaceInvaders"])
def test_an_unmodified_game_shows_what_training_saw(game):
    """Through HackAtari without a modification, frame by frame, no-ops off, through the end of games: pixels, rewards,
    ends and lives."""
    settings = {"repeat_action_probability": 0.0, "max_num_frames_per_episode": 1600}

    def make():
        return make_env(
            f"ALE/{game}-v5", noop_max=0, emulator=ChangedGame(make_hackatari(f"ALE/{game}-v5", [], **settings), {})
        )

    assert_shows_what_training_saw(game, make)


def test_fire_follows_a_lost_life_in_a_changed_game():
    """In Breakout with gravity, for an agent that never presses it; once for each life but the last."""
    env = make_changed_env("ALE/Breakout-v5", "gravity", noop_max=0)
    env.reset(seed=1)
    played, lives, terminated = [], [], False
    while not terminated and len(played) < 800:
        _, _, terminated, _, info = env.step(2)
        played.append(info["action"])
        lives.append(info["lives"])
    lost = [t for t in range(1, len(lives)) if 0 < lives[t] < lives[t - 1]]
    assert terminated and len(lost) == 4
    assert [t for t, action in enumerate(played) if action == 1] == [t + 1 for t in lost]


def test_a_modification_does_what_it_says():
    """Breakout's blocks turn black where they were: the picture is the unchanged one but for the rows of blocks."""
    plain, black = (
        make_changed_env("ALE/Breakout-v5", name, noop_max=0) for name in (evaluate.UNCHANGED, "color_all_blocks_black")
    )
    (expected, _), (seen, _) = plain.reset(seed=1), black.reset(seed=1)
    for _ in range(3):
        (expected, *_), (seen, *_) = plain.step(0), black.step(0)
    rows = np.flatnonzero((expected[-1] != seen[-1]).any(axis=1))
    assert rows.min() >= 20 and rows.max() <= 40  # blocks: lines 57 to 93 of 210
    assert expected[-1][24:36, 10:74].min() > 50 and seen[-1][24:36, 10:74].max() < 20
    both, difficult = (
        make_changed_env("ALE/Breakout-v5", name, noop_max=0)
        for name in ("color_all_blocks_black+difficulty:1", "difficulty:1")
    )
    both.reset(seed=1), difficult.reset(seed=1), plain.reset(seed=1)
    for _ in range(3):
        (seen, *_), (expected, *_), (unchanged, *_) = both.step(0), difficult.step(0), plain.step(0)
    outside = np.r_[0:20, 41:84]
    np.testing.assert_array_equal(seen[-1][outside], expected[-1][outside])  # the narrow paddle, and black blocks
    assert seen[-1][24:36, 10:74].max() < 20 and not np.array_equal(expected[-1], unchanged[-1])


def test_modes_survive_a_seeded_reset():
    """HackAtari's own game_mode is lost at the first seeded reset."""
    through, plain = (
        make_changed_env("ALE/Breakout-v5", "left_drift+mode:12", noop_max=0),
        make_env("ALE/Breakout-v5", noop_max=0, mode=12),
    )
    default = make_env("ALE/Breakout-v5", noop_max=0)
    for seed in (1, 2):
        for env in (through, plain, default):
            env.reset(seed=seed)
        seen, expected, other = (env.step(0)[0] for env in (through, plain, default))
        np.testing.assert_array_equal(seen, expected)
        assert not np.array_equal(other, expected)


def test_known_modifications():
    assert {"gravity", "color_all_blocks_red", "right_drift"} <= set(
        evaluate.hackatari_modifications("ALE/Breakout-v5")[0]
    )
    assert set(evaluate.hackatari_modifications("ALE/Pong-v5")[0]) == {
        "lazy_enemy",
        "up_drift",
        "down_drift",
        "left_drift",
        "right_drift",
    }
    assert (
        evaluate.hackatari_modifications("ALE/YarsRevenge-v5")
        == ({}, {})
        == evaluate.hackatari_modifications("ALE/Qbert-v5")
    )
    # version 0.0.6: one of its modifications raises
    known, broken = evaluate.hackatari_modifications("ALE/BankHeist-v5")
    assert known and "random_city" in broken and "random_city" not in known
    assert "invert_flags" in evaluate.hackatari_modifications("ALE/Skiing-v5")[0]  # a name that is no method
    with pytest.raises(InputError, match="obelix: it fails in the installed version of HackAtari"):
        evaluate.parse_variation("obelix", "ALE/Asterix-v5")
    with pytest.raises(
        InputError, match="Breakout has no such variation; the known ones are color_all_blocks_black, .*mode:4"
    ):
        evaluate.parse_variation("gravty", "ALE/Breakout-v5")


def test_one_seed_gives_one_result(agent, tmp_path):
    """Freeway's stopped cars and the like draw from Python's own generator."""

    def games(folder, seed):
        main(
            Args(
                checkpoint=(agent,),
                variation=("lazy_enemy",),
                episodes=2,
                max_frames_per_game=2000,
                seed=seed,
                sample=True,
                output_dir=str(tmp_path / folder),
            )
        )
        return (tmp_path / folder / "games.csv").read_text()

    assert games("a", 1) == games("b", 1) != games("c", 2)
    name = "stop_random_car"
    frames = []
    for _ in range(2):
        env = make_changed_env("ALE/Freeway-v5", name)
        env.reset(seed=3)
        frames.append(np.stack([env.step(0)[0][-1] for _ in range(100)]))
    np.testing.assert_array_equal(*frames)


def test_the_suite(agent, tmp_path, capsys, monkeypatch):
    """All variations, with each score relative to the unchanged game's as the formula says."""
    monkeypatch.setattr(hackatari, "COMPARED_STEPS", 20)
    main(
        Args(
            checkpoint=(agent,),
            labels=("agent",),
            suite=True,
            episodes=2,
            sample=True,
            max_frames_per_game=600,
            output_dir=str(tmp_path),
        )
    )
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    known = [*evaluate.hackatari_modifications("ALE/Pong-v5")[0], *evaluate.modes_and_difficulties("ALE/Pong-v5")]
    assert [row["variation"] for row in rows] == [evaluate.UNCHANGED, evaluate.UNCHANGED, *known] and len(known) == 9
    random_play, unchanged = rows[0]["mean"], rows[1]
    if unchanged["mean"] > random_play:
        for row in rows[1:]:
            assert row["relative"] == pytest.approx((row["mean"] - random_play) / (unchanged["mean"] - random_play))
    else:
        assert all(row["relative"] is None for row in rows[1:])
    assert all(row["first_difference"] for row in rows[2:])
    assert (tmp_path / "suite.png").stat().st_size > 10_000
    assert "lazy_enemy" in capsys.readouterr().out
