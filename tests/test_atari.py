"""The environment: names, seeds, and whole games' raw scores, on real ROMs."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from environments.atari import fire_action, game_name, lost_life, make_env, make_envs, play_games
from housekeeping.flags import InputError
from housekeeping.seeds import env_seeds


def test_game_name():
    assert game_name("ALE/Pong-v5") == "Pong"
    assert game_name("ALE/MsPacman-v5") == "MsPacman"


@pytest.mark.parametrize(
    ("env_id", "says"),
    [
        ("PongNoFrameskip-v4", "ALE/Pong-v5"),
        ("BreakoutDeterministic-v4", "ALE/Breakout-v5"),
        ("Pong", "ALE/Pong-v5"),
        ("ALE/Pnog-v5", "did you mean ALE/Pong-v5"),
        ("CartPole-v1", "no such Atari game"),
        ("", "no such Atari game"),
    ],
)
def test_unknown_games_get_a_hint(env_id, says):
    with pytest.raises(InputError, match=says):
        game_name(env_id)


def test_seeds_of_neighbouring_runs_share_nothing():
    seeds = np.concatenate(
        [env_seeds(8, seed, stream, step) for seed in range(5) for stream in range(2) for step in (0, 1024)]
    )
    assert len(set(seeds.tolist())) == len(seeds)
    assert seeds.min() >= 0 and seeds.max() < 2**31
    np.testing.assert_array_equal(env_seeds(8, 3, 0), env_seeds(8, 3, 0))


def test_a_kept_emulator_plays_as_a_new_one():
    """The tests open one again (see conftest.py): nothing of what was played before may be left."""

    def played(envs, actions: int) -> list[np.ndarray]:
        seen, rng = [envs.reset(seed=np.array([3, 4]))[0]], np.random.default_rng(0)
        for _ in range(actions):
            seen += envs.step(rng.integers(0, 9, 2))[:3]
        return seen

    first, second = (make_envs("ALE/MsPacman-v5", 2, repeat_action_probability=0.5) for _ in range(2))
    assert first.unwrapped is not second.unwrapped
    new = played(second, 40)
    played(first, 200)
    first.close()
    again = make_envs("ALE/MsPacman-v5", 2, repeat_action_probability=0.5)
    assert again.unwrapped is first.unwrapped
    for a, b in zip(played(again, 40), new, strict=True):
        np.testing.assert_array_equal(a, b)


def test_observations_equal_gymnasiums_wrappers():
    envs = make_envs("ALE/Breakout-v5", 1)
    obs, _ = envs.reset(seed=np.array([5]))
    # ALE's vector environment draws its no-ops itself; the comparison starts at its first observation, with both
    # emulators brought there
    env = gym.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    env = FrameStackObservation(AtariPreprocessing(env, noop_max=0, frame_skip=4), 4, padding_type="zero")
    plain = gym.make_vec(
        "ALE/Breakout-v5",
        num_envs=1,
        repeat_action_probability=0.0,
        noop_max=0,
        use_fire_reset=False,
        reward_clipping=False,
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    obs_a, obs_b = plain.reset(seed=np.array([5]))[0][0], env.reset(seed=5)[0]
    np.testing.assert_array_equal(obs_a, obs_b)
    for action in [1, 2, 2, 3, 0, 3, 3, 2, 1, 0, 2, 2, 2]:
        obs_a, obs_b = plain.step(np.array([action]))[0][0], env.step(action)[0]
        np.testing.assert_array_equal(obs_a, obs_b)
    assert obs.shape == (1, 4, 84, 84) and obs.dtype == np.uint8
    assert not obs[0, :3].any() and obs[0, 3].any()  # zeros before a game's first frame


def test_whole_games_in_breakout_against_the_emulator():
    """Raw scores of whole games, through lost lives, must be what the emulators themselves say: no rewards of one life
    alone."""
    envs = make_envs("ALE/Breakout-v5", 3, life_loss_info=True)
    _, info = envs.reset(seed=env_seeds(3, 7))
    rng = np.random.default_rng(0)
    reference: list[tuple[int, int]] = []
    score, length = np.zeros(3, dtype=int), np.zeros(3, dtype=int)
    frame, seen, lives_lost = info["episode_frame_number"], [], 0
    for _ in range(1500):
        _, rewards, terminated, truncated, info = envs.step(rng.integers(4, size=3))
        score, length = score + rewards, length + 1
        seen += info["games"]
        new_game = info["episode_frame_number"] < frame  # the emulator's own clock starts anew with each game
        np.testing.assert_array_equal(info["game_over"], new_game)
        lives_lost += int((terminated & ~new_game).sum())
        for i in np.flatnonzero(new_game):
            reference.append((int(score[i]), int(length[i])))
            score[i] = length[i] = 0
        frame = info["episode_frame_number"]
    envs.close()
    assert len(reference) >= 6 and max(score for score, _ in reference) >= 2
    assert lives_lost == pytest.approx(4 * len(reference), abs=3 * 4)  # five lives a game: four losses go on
    assert seen == reference


def test_whole_games_against_an_environment_without_life_loss():
    """The same seeds and actions with and without `life_loss_info`: the same games, the same scores."""
    scores = []
    for life_loss_info in (True, False):
        envs = make_envs("ALE/Breakout-v5", 2, life_loss_info=life_loss_info)
        envs.reset(seed=env_seeds(2, 11))
        games, rng = [], np.random.default_rng(1)
        for _ in range(600):
            games += envs.step(rng.integers(4, size=2))[-1]["games"]
        envs.close()
        scores.append(games)
    assert len(scores[0]) >= 3 and scores[0] == scores[1]


def test_play_games_counts_whole_games_and_repeats():
    def act(obs):  # the action depends on what is seen, so that a change in the observations would show
        return obs.reshape(len(obs), -1).sum(axis=1, dtype=np.int64) % 6

    def play(seed, **options):
        return play_games(act, make_envs("ALE/Pong-v5", 2, **options), 3, env_seeds(2, seed, 1))

    first = play(3)
    assert len(first) == 3 and all(
        -21 <= score <= 21 and length > 500 and not cut_off for score, length, cut_off in first
    )
    assert first == play(3)
    assert first != play(4)
    assert all(length <= 25 and cut_off for _, length, cut_off in play(3, max_frames_per_game=100))


def assert_shows_what_training_saw(game, make):
    """A single environment against training's, frame by frame, through the end of games: pixels, rewards, ends and
    lives.

    `make` gives the environment with no-ops off and games of at most 1,600 frames.
    """
    vector = make_envs(f"ALE/{game}-v5", 1, noop_max=0, max_frames_per_game=1600)
    single = gym.vector.SyncVectorEnv([make], autoreset_mode=AutoresetMode.SAME_STEP)
    (expected, info), (seen, other) = vector.reset(seed=np.array([5])), single.reset(seed=np.array([5]))
    rng, ends = np.random.default_rng(0), 0
    for _ in range(500):
        np.testing.assert_array_equal(seen, expected)
        assert other["lives"] == info["lives"]
        action = rng.integers(vector.single_action_space.n, size=1)
        expected, reward, terminated, truncated, info = vector.step(action)
        seen, *rest, other = single.step(action)
        assert (*rest[0], *rest[1], *rest[2]) == (*reward, *terminated, *truncated)
        ends += int(terminated[0] or truncated[0])
    assert ends >= 1
    vector.close()
    single.close()


@pytest.mark.parametrize("game", ["Pong", "Breakout", "MsPacman", "SpaceInvaders"])
def test_the_open_environment_shows_what_training_saw(game):
    """FIRE is pressed at the start, in games that have it."""
    assert_shows_what_training_saw(game, lambda: make_env(f"ALE/{game}-v5", noop_max=0, max_frames_per_game=1600))


@pytest.mark.parametrize(
    ("game", "first", "noop_max"), [("Pong", 1, 2), ("Pong", 1, 6), ("MsPacman", 0, 2), ("MsPacman", 0, 6)]
)
def test_the_open_environment_starts_games_as_training_does(game, first, noop_max):
    """The emulator's clock after a reset (no-ops, and FIRE where there is one) takes the same values, seen over many
    resets."""

    def clocks(envs, seed):
        found = [envs.reset(seed=seed)[1], *(envs.reset()[1] for _ in range(60))]
        envs.close()
        return set(np.concatenate([np.atleast_1d(info["episode_frame_number"]) for info in found]).tolist())

    expected = clocks(make_envs(f"ALE/{game}-v5", 2, noop_max=noop_max), np.arange(2))
    seen = clocks(make_env(f"ALE/{game}-v5", noop_max=noop_max), 0)
    assert seen == expected == set(range(first, noop_max))


# --- FIRE after a lost life ---

BALL_Y = 101  # byte of Breakout's memory: 0 while no ball is in play (Anand et al. 2019, arXiv 1906.08226, appendix)


def test_games_that_have_fire():
    assert {game: fire_action(f"ALE/{game}-v5") for game in ("Breakout", "Pong", "MsPacman")} == {
        "Breakout": 1,
        "Pong": None,
        "MsPacman": None,
    }


@pytest.mark.parametrize("action", [0, 2])
def test_after_each_lost_life_the_ball_is_in_play(action):
    """An agent that stands still, or only goes right, never presses FIRE: it loses all of its lives all the same."""
    env = make_env("ALE/Breakout-v5")
    env.reset(seed=3)
    played, lives, ball = [], [], []
    for _ in range(400):
        _, _, terminated, _, info = env.step(action)
        played.append(info["action"])
        lives.append(info["lives"])
        ball.append(int(env.unwrapped.ale.getRAM()[BALL_Y]))
        if terminated:
            break
    lost = [t for t in range(1, len(lives)) if 0 < lives[t] < lives[t - 1]]
    assert terminated and len(lost) == 4  # five lives; the fifth loss ends the game
    for t in lost:
        assert played[t : t + 3] == [action, 1, action] and ball[t] == 0 and ball[t + 3] != 0
    assert sum(a != action for a in played) == 4


def test_fire_is_forced_where_a_life_was_lost_and_nowhere_else():
    """In the vector environment, with and without lives reported, through ends of games and games that are cut off."""
    for life_loss_info in (False, True):
        envs = make_envs("ALE/Breakout-v5", 3, life_loss_info=life_loss_info, max_frames_per_game=700)
        _, info = envs.reset(seed=env_seeds(3, 5))
        assert (envs.forced == -1).all()
        lives, rng, lost, cut = info["lives"].copy(), np.random.default_rng(2), 0, 0
        for _ in range(700):
            before = envs.forced.copy()
            _, _, terminated, truncated, info = envs.step(rng.choice([0, 2, 3], size=3))
            expected = np.where((info["lives"] < lives) & (info["lives"] > 0) & ~truncated, 1, -1)
            np.testing.assert_array_equal(envs.forced, expected)
            assert not (before[expected == 1] == 1).any()  # no two in a row: each is pressed once
            lost, cut, lives = lost + int((expected == 1).sum()), cut + int(truncated.sum()), info["lives"].copy()
        assert lost >= 20 and cut >= 3
        envs.reset(seed=env_seeds(3, 6))
        assert (envs.forced == -1).all()
        envs.close()


def test_a_new_game_is_no_lost_life():
    """The new game's lives may be fewer than those that the game before had won, and nothing was lost."""
    found = lost_life(
        np.array([5, 6, 5, 0, 1]), np.array([4, 5, 5, 0, 5]), np.array([False, True, False, False, False])
    )
    assert found.tolist() == [True, False, False, False, False]


def test_games_without_fire_are_left_alone():
    envs = make_envs("ALE/MsPacman-v5", 2)
    _, info = envs.reset(seed=env_seeds(2, 1))
    lives, lost = info["lives"].copy(), 0
    for _ in range(400):
        _, _, _, _, info = envs.step(np.zeros(2, dtype=np.int64))
        lost += int((info["lives"] < lives).sum())
        lives = info["lives"].copy()
        assert (envs.forced == -1).all()
    envs.close()
    assert lost >= 2


def test_one_press_with_sticky_actions_nearly_always_serves():
    """A press lasts four frames, each of which repeats the action before with probability 1/4: it fails once in 256."""
    env = make_env("ALE/Breakout-v5", repeat_action_probability=0.25)
    served = []
    for seed in range(4):
        env.reset(seed=seed)
        wait = None
        for t in range(1200):
            _, _, terminated, _, info = env.step(1 if t < 10 else 0)
            wait = 3 if env.must_fire else wait - 1 if wait else wait
            if wait == 0:
                served.append(int(env.unwrapped.ale.getRAM()[BALL_Y]) != 0)
                wait = None
            if terminated:
                break
    assert len(served) >= 12 and sum(served) >= len(served) - 1
