"""Pre-training a policy: episodic novelty and normalisations against NumPy, and proof that the game's reward is never
learnt from."""

import functools
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import pretrain_policy_atari
from benchmark.coverage import replace_games, summary, whole_games
from environments.atari import make_env, make_envs, play_games
from environments.ram import VARIABLES
from housekeeping import files
from housekeeping.flags import InputError
from housekeeping.seeds import env_seeds
from pretrain_policy_atari import (
    POSITION,
    Args,
    EpisodicMemory,
    IntrinsicReward,
    RunningMoments,
    coverage,
    load_agent,
    main,
)

CPU = torch.device("cpu")
SMALL = {
    "num_envs": 2,
    "num_steps": 16,
    "total_timesteps": 64,
    "num_minibatches": 2,
    "update_epochs": 2,
    "cuda": False,
    "precision": "float32",
}


def make_args(tmp_path, **flags) -> Args:
    if flags.get("intrinsic") == "ngu":
        flags = {"num_neighbours": 3} | flags  # games are short here
    return Args(**{"env_id": "ALE/Breakout-v5", "runs_dir": str(tmp_path)} | SMALL | flags)


def numpy_nearest(embedding: np.ndarray, memory: list[np.ndarray], k: int) -> list[float]:
    """The k least squared distances to what is in the memory, or nothing where it holds fewer."""
    squared = sorted(float(((embedding - other) ** 2).sum()) for other in memory)[:k]
    return squared if len(memory) >= k else []


def numpy_novelty(nearest: list[float], distances: list[float]) -> float:
    """Never Give Up's algorithm 1 from there on; `distances` are all that were ever looked at."""
    if not nearest:
        return 0.0
    d = np.maximum(np.array(nearest) / np.mean(distances) - 0.008, 0)
    s = np.sqrt((1e-4 / (d + 1e-4)).sum()) + 0.001
    return 1 / s if s <= 8 else 0.0


@pytest.mark.parametrize("size", [1000, 12])
def test_episodic_novelty_equals_numpy(size):
    """Three environments, places that come again, games that end at different times; with a memory that overflows,
    too."""
    rng, k = np.random.default_rng(0), 4
    memory, moments = EpisodicMemory(3, size, 5, k, CPU), RunningMoments()
    held: list[list[np.ndarray]] = [[], [], []]
    distances: list[float] = []
    seen = set()
    for step in range(120):
        places = rng.normal(size=(3, 5)).astype(np.float32)
        places[0] = np.round(places[0, 0])  # the first one comes back to the same few places
        over = rng.random(3) < 0.04
        memory.forget(torch.from_numpy(over))
        found = memory.novelty(torch.from_numpy(places), moments)
        memory.add(torch.from_numpy(places))
        nearest = []
        for i in range(3):
            held[i] = [] if over[i] else held[i][-size:]
            nearest.append(numpy_nearest(places[i], held[i], k))
            held[i].append(places[i])
        distances += [d for of_one in nearest for d in of_one]
        for i in range(3):
            expected = numpy_novelty(nearest[i], distances)
            assert found[i].item() == pytest.approx(expected, rel=2e-3, abs=1e-6), (step, i)
            seen.add((bool(nearest[i]), expected > 1))
    assert {(False, False), (True, True), (True, False)} <= seen


def test_all_too_familiar_places_are_worth_nothing():
    """100 neighbours at the same place: the root of 100 is more than 8."""
    memory, moments = EpisodicMemory(1, 200, 2, 100, CPU), RunningMoments()
    moments.update(torch.ones(1))
    for _ in range(100):
        memory.add(torch.zeros(1, 2))
    assert memory.novelty(torch.zeros(1, 2), moments).item() == 0
    assert memory.novelty(torch.full((1, 2), 5.0), moments).item() > 1


def test_the_memory_is_empty_after_a_game():
    memory, moments = EpisodicMemory(2, 50, 2, 3, CPU), RunningMoments()
    for i in range(10):
        memory.add(torch.full((2, 2), float(i)))
    memory.forget(torch.tensor([True, False]))
    assert memory.visits.tolist() == [0, 10]
    novelty = memory.novelty(torch.full((2, 2), 20.0), moments)
    assert novelty[0] == 0 < novelty[1]


def test_running_moments_equal_numpy():
    rng = np.random.default_rng(0)
    parts = [rng.normal(3, 5, size=(n, 4)) for n in (1, 7, 0, 200, 3)]
    moments = RunningMoments((4,))
    for part in parts:
        moments.update(torch.from_numpy(part))
    whole = np.concatenate(parts)
    np.testing.assert_allclose(moments.mean, whole.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(moments.var, whole.var(axis=0), rtol=1e-10)
    assert moments.count == 211


def test_old_samples_fade_beyond_the_horizon():
    """100 zeros count as 10: with 10 ones more, the mean is a half and the variance a quarter; with 30 more again, 35 /
    40."""
    moments = RunningMoments(horizon=10)
    moments.update(torch.zeros(100))
    moments.update(torch.ones(10))
    assert moments.mean.item() == pytest.approx(0.5) and moments.var.item() == pytest.approx(0.25)
    moments.update(torch.ones(30))
    assert moments.mean.item() == pytest.approx(35 / 40) and moments.var.item() == pytest.approx(5 / 40 * 35 / 40)


@pytest.mark.parametrize("kind", ["ngu", "rnd"])
def test_a_rollouts_rewards_equal_numpy(tmp_path, kind):
    """Lifelong factor, product, and division by the running standard deviation of the discounted sum, over two
    rollouts."""
    torch.manual_seed(0)
    args = make_args(tmp_path, intrinsic=kind, num_neighbours=2, num_envs=2)
    model = IntrinsicReward(4, args)
    memory = EpisodicMemory(2, 100, 32, 2, CPU)
    rng = np.random.default_rng(0)
    errors, sums, running = [], [], np.zeros(2)
    held, distances = [[], []], []
    for rollout in range(2):
        obs = torch.from_numpy(rng.integers(0, 256, (9, 2, 4, 84, 84), dtype=np.uint8))
        game_over = torch.zeros(8, 2, dtype=torch.bool)
        game_over[4, 1] = True
        found = model(obs, game_over, memory)
        with torch.no_grad():
            error = np.array([model.prediction_error(obs[t + 1]).numpy() for t in range(8)])
            places = [model.embed(obs[t + 1]).numpy() for t in range(8)]
        errors += error.flatten().tolist()
        if kind == "rnd":
            lifelong, episodic = error, np.ones((8, 2))
        else:
            lifelong = np.clip(1 + (error - np.mean(errors)) / np.std(errors), 1, 5)
            episodic = np.zeros((8, 2))
            for t in range(8):
                if game_over[t, 1]:
                    held[1] = []
                nearest = [numpy_nearest(places[t][i], held[i], 2) for i in range(2)]
                distances += [d for of_one in nearest for d in of_one]
                for i in range(2):
                    episodic[t, i] = numpy_novelty(nearest[i], distances)
                    held[i].append(places[t][i])
            assert (episodic > 0).sum() == (16 - 4 - 2 if rollout == 0 else 16 - 2)
        for t in range(8):
            running = 0.99 * running + episodic[t] * lifelong[t]
            sums += running.tolist()
        np.testing.assert_allclose(found["lifelong"], lifelong, rtol=1e-4)
        np.testing.assert_allclose(found["episodic"], episodic, rtol=1e-3)
        np.testing.assert_allclose(found["reward"], episodic * lifelong / np.std(sums), rtol=1e-3)


def test_whitening_and_prediction_error_by_hand(tmp_path):
    """Mean 100, deviation 20, clipped to [-5, 5]; the error is the mean square over 128 outputs, of the newest frame
    alone."""
    model = IntrinsicReward(4, make_args(tmp_path, intrinsic="rnd"))
    model.pixels.mean.fill_(100.0)
    model.pixels.var.fill_(400.0)
    obs = torch.full((1, 4, 84, 84), 100, dtype=torch.uint8)
    obs[0, 3, 0, :3] = torch.tensor([120, 255, 0], dtype=torch.uint8)
    assert model.whiten(obs)[0, 3, 0, :4].tolist() == [1.0, 5.0, -5.0, 0.0]
    x = torch.zeros(1, 1, 84, 84)
    x[0, 0, 0, :3] = torch.tensor([1.0, 5.0, -5.0])
    with torch.no_grad():
        expected = np.square((model.predictor(x) - model.target(x)).numpy()).sum() / 128
        older = obs.clone()
        older[0, :3] = 7
        assert (
            model.prediction_error(obs).item()
            == pytest.approx(expected, rel=1e-4)
            == model.prediction_error(older).item()
        )


def test_what_the_rewards_own_networks_learn_from(tmp_path):
    """Actions across the end of a game are not to be explained, and the predictor learns from its share of the steps
    alone."""
    torch.manual_seed(0)
    model = IntrinsicReward(4, make_args(tmp_path))
    rng = np.random.default_rng(0)
    obs, next_obs = (torch.from_numpy(rng.integers(0, 256, (4, 4, 84, 84), dtype=np.uint8)) for _ in range(2))
    actions = torch.tensor([0, 1, 2, 3])
    same_game, learns = torch.tensor([True, False, True, True]), torch.tensor([False, True, False, True])
    losses = model.loss(obs, actions, next_obs, same_game, learns)
    logits = model.inverse(torch.cat([model.embed(obs), model.embed(next_obs)], dim=1)).detach().double().numpy()
    each = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(4), actions]
    assert losses["inverse"].item() == pytest.approx(each[[0, 2, 3]].mean(), rel=1e-5)
    assert losses["predictor"].item() == pytest.approx(model.prediction_error(next_obs)[[1, 3]].mean().item(), rel=1e-5)
    sum(losses.values()).backward()
    assert all(parameter.grad is None for parameter in model.target.parameters())
    assert all(parameter.grad.any() for part in (model.predictor, model.embedding) for parameter in part.parameters())
    outside = IntrinsicReward(4, make_args(tmp_path)).loss(
        obs, actions, next_obs, torch.zeros(4, dtype=torch.bool), learns
    )
    assert outside["inverse"].item() == 0


def inside(monkeypatch, wrapper):
    """Make the script's environments play what the wrapper makes of the emulators' steps."""
    make = pretrain_policy_atari.make_envs

    def wrapped(*rest):
        envs = make(*rest)
        envs.env = wrapper(envs.env)
        return envs

    monkeypatch.setattr(pretrain_policy_atari, "make_envs", wrapped)


class OtherReward(gym.vector.VectorWrapper):
    """The same games with other rewards."""

    def step(self, actions):
        obs, reward, *rest = self.env.step(actions)
        return obs, reward * 0 - 17 + np.arange(len(reward)), *rest


@pytest.mark.parametrize("kind", ["ngu", "rnd"])
def test_changing_the_games_reward_changes_nothing(tmp_path, kind, monkeypatch):
    args = make_args(tmp_path, intrinsic=kind)
    one = files.load(main(args) / "checkpoint.pt", "checkpoint")
    inside(monkeypatch, OtherReward)
    other = files.load(main(args) / "checkpoint.pt", "checkpoint")
    for part in ("agent", "intrinsic"):
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])
    untrained = pretrain_policy_atari.Agent(4).state_dict()
    assert not torch.equal(one["agent"]["critic.bias"], untrained["critic.bias"])  # and something was learnt


class EndsAtStep5(gym.vector.VectorWrapper):
    """Games in which the fifth step of the second environment is said to be the last."""

    step_count = 0

    def step(self, actions):
        obs, reward, terminated, *rest = self.env.step(actions)
        self.step_count += 1
        terminated[1] |= self.step_count == 5
        return obs, reward, terminated, *rest


@pytest.mark.parametrize(
    ("kind", "episodic", "stops_there"), [("ngu", "auto", True), ("rnd", "auto", False), ("ngu", False, False)]
)
def test_where_returns_stop(tmp_path, kind, episodic, stops_there, monkeypatch):
    """The return of step 5, which ends a game, is its reward with NGU's, and goes on through the end with RND's."""
    compute, calls = pretrain_policy_atari.compute_advantages, []

    def watched(rewards, values, *rest):
        advantages, returns = compute(rewards, values, *rest)
        calls.append((rewards.clone(), returns))
        return advantages, returns

    inside(monkeypatch, EndsAtStep5)
    monkeypatch.setattr(pretrain_policy_atari, "compute_advantages", watched)
    main(make_args(tmp_path, intrinsic=kind, episodic_return=episodic))
    rewards, returns = calls[0]
    stops = torch.isclose(returns, rewards)
    assert stops[4].tolist() == [False, stops_there]
    assert stops.sum() == stops_there


@pytest.mark.parametrize("kind", ["ngu", "rnd"])
def test_the_frame_limit_is_no_terminal(tmp_path, kind, monkeypatch):
    """Games of 5 steps: with NGU's reward the fifth step's return is its reward and the discounted value of the game's
    last state, and no more; with RND's it goes on into the next game."""
    make, compute, calls, last = pretrain_policy_atari.make_envs, pretrain_policy_atari.compute_advantages, [], []

    def recording(*rest):
        envs = make(*rest)
        step = envs.step
        envs.step = lambda actions: (last.append(step(actions)), last[-1])[1]
        return envs

    monkeypatch.setattr(pretrain_policy_atari, "make_envs", recording)
    watched = lambda *rest: (calls.append((rest, compute(*rest))), compute(*rest))[1]  # noqa: E731
    monkeypatch.setattr(pretrain_policy_atari, "compute_advantages", watched)
    args = make_args(tmp_path, intrinsic=kind, max_frames_per_game=20)
    main(args)
    (rewards, *_), (_, returns) = calls[0]
    torch.manual_seed(args.seed)
    untrained = pretrain_policy_atari.Agent(4)
    of_training = [info["final_obs"] for _, _, _, truncated, info in last if truncated.all()]
    warm_up = 128 // 5  # games of the warm-up come first
    with torch.no_grad():
        value = untrained.get_value(torch.from_numpy(np.stack(of_training[warm_up])))
    if kind == "ngu":  # the next game's first state is worth nothing: its memory is empty
        torch.testing.assert_close(rewards[4], 0.99 * value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(returns[4], rewards[4])
    else:
        assert (rewards[4] > 0).all() and not torch.isclose(returns[4], rewards[4], rtol=1e-3).any()
    assert value.abs().min() > 1e-4


def test_resume_keeps_the_running_normalisations(tmp_path, capsys):
    run = main(make_args(tmp_path))
    first = files.load(run / "checkpoint.pt", "checkpoint")
    assert first["intrinsic"]["pixels.count"] == 128 * 2 + 64 and first["intrinsic"]["errors.count"] == 64
    agent = load_agent(run / "checkpoint.pt")
    assert agent.act(np.zeros((2, 4, 84, 84), dtype=np.uint8), greedy=False).shape == (2,)
    main(make_args(tmp_path, total_timesteps=96, resume=str(run / "checkpoint.pt")))
    second = files.load(run / "checkpoint.pt", "checkpoint")
    assert second["global_step"] == 96
    # counted on, not anew
    assert second["intrinsic"]["pixels.count"] == 128 * 2 + 96 and second["intrinsic"]["errors.count"] == 96
    assert torch.equal(first["intrinsic"]["target.0.weight"], second["intrinsic"]["target.0.weight"])
    assert not torch.equal(first["intrinsic"]["predictor.0.weight"], second["intrinsic"]["predictor.0.weight"])
    for name in ("distances.count", "returns.count"):
        assert second["intrinsic"][name] > first["intrinsic"][name] > 0
    for flags, says in (
        (
            {"resume": str(run / "checkpoint.pt"), "intrinsic": "rnd", "total_timesteps": 500},
            "--intrinsic was 'ngu', now 'rnd'",
        ),
        ({"intrinsic": "rnd", "memory_size": 99}, "--memory-size is an option of --intrinsic ngu"),
        ({"resume": str(run / "checkpoint.pt"), "total_timesteps": 96}, "raise --total-timesteps"),
        ({"resume": "nothing.pt"}, "there is no such file"),
        ({"num_neighbours": 0}, "--num-neighbours must be at least 1"),
        ({"num_neighbours": 11, "memory_size": 10}, "the memory holds only"),
        ({"gamma": 1.5}, "--gamma must be from 0 to 1"),
        ({"predictor_share": 0.0}, "--predictor-share must be above 0"),
        ({"memory_size": 10**10}, "the episodic memories need .* GB"),
        ({"num_minibatches": 3}, "--num-minibatches 3 does not divide the 32 steps"),
    ):
        with pytest.raises(InputError, match=says):
            main(make_args(tmp_path, **flags))


@pytest.mark.parametrize("game", ["MsPacman", "MontezumaRevenge"])
def test_coverage_counts_places_in_the_consoles_memory(tmp_path, game):
    """Against a count of our own over the same games, one by one."""
    args = make_args(tmp_path, env_id=f"ALE/{game}-v5", coverage_steps=960)
    num_actions = make_env(args.env_id).action_space.n
    found = coverage(lambda obs: np.arange(8) % num_actions, args, stream=7)
    places, first = set(), set()
    env = make_env(args.env_id)
    for i, seed in enumerate(env_seeds(8, args.seed, 2, 7)):
        env.reset(seed=int(seed))
        for step in range(120):  # Ms. Pacman cannot move for the first 65
            _, _, terminated, truncated, _ = env.step(i % num_actions)
            assert not (terminated or truncated)
            ram = env.unwrapped.ale.getRAM()
            place = tuple(int(ram[byte]) for byte in POSITION[game])
            places.add(place)
            first |= {place} if step < 90 else set()
    assert len(found["places"]) == 120 and found["places"][-1] == len(places) > 20 and found["places"][89] == len(first)
    if game == "MontezumaRevenge":
        assert found["rooms"][-1] == len({place[0] for place in places})
    else:
        assert "rooms" not in found


def test_places_of_whole_games(tmp_path):
    """Each game on its own finds what games side by side find; a cut-off one ends there."""
    frames, seeds = 1600, env_seeds(3, 1)
    found = whole_games(lambda obs: np.full(len(obs), 3), "ALE/MontezumaRevenge-v5", seeds, frames)
    for seed, row in zip(seeds, found, strict=True):
        env = make_env("ALE/MontezumaRevenge-v5", max_frames_per_game=frames)
        env.reset(seed=int(seed))
        places, over, steps = set(), False, 0
        while not over:
            _, _, terminated, truncated, _ = env.step(3)
            ram, over, steps = env.unwrapped.ale.getRAM(), terminated or truncated, steps + 1
            places.add(tuple(int(ram[byte]) for byte in (3, 42, 43)))
        assert row == {"steps": steps, "places": len(places), "rooms": 1} and len(places) > 10 and steps <= 400


def test_a_game_measured_again_leaves_the_others_lines(tmp_path):
    path = tmp_path / "coverage_games.csv"
    replace_games(path, [{"game": "Freeway", "places": 1}, {"game": "Pitfall", "places": 2, "rooms": 3}])
    replace_games(path, [{"game": "Freeway", "places": 4}, {"game": "Freeway", "places": 5}])
    rows = [tuple(row.values()) for row in files.read_csv(path)]
    assert rows == [("Pitfall", "2", "3"), ("Freeway", "4", ""), ("Freeway", "5", "")]


def test_the_stored_explorer_crosses_the_road():
    """A game like those of its evaluation, 20 to 25 points (benchmark/results/transfer_freeway_small)."""
    policy = load_agent(Path(__file__).parent.parent / "agents" / "Freeway" / "explorer.pt")
    act = functools.partial(policy.act, greedy=False)
    ((score, *_),) = play_games(act, make_envs("ALE/Freeway-v5", 1), 1, env_seeds(1, 3))
    assert 17 <= score <= 26


def test_the_player_is_where_the_memory_says():
    """The bytes are those of the probes; and going right and left moves the one for x."""
    player = VARIABLES["MsPacman"]["player"]
    assert POSITION["MsPacman"] == (player["player_x"], player["player_y"])
    env = make_env("ALE/MontezumaRevenge-v5", noop_max=0)
    env.reset(seed=0)
    meanings = env.unwrapped.get_action_meanings()

    def go(action: str, steps: int) -> tuple[int, int, int]:
        for _ in range(steps):
            env.step(meanings.index(action))
        return tuple(int(env.unwrapped.ale.getRAM()[byte]) for byte in POSITION["MontezumaRevenge"])

    start = go("NOOP", 5)
    right = go("RIGHT", 1)
    left = go("LEFT", 2)
    assert start[0] == right[0] == left[0] == 1  # the first screen is room 1
    assert left[1] < start[1] < right[1] and start[2] == right[2] == left[2]  # the player stands on a platform


def test_the_chickens_height_says_when_it_has_crossed_the_road():
    """In Freeway, going up raises it to its largest value, where the point is scored; down never gets off the kerb."""
    env = make_env("ALE/Freeway-v5", noop_max=0)
    env.reset(seed=0)
    meanings, (byte,) = env.unwrapped.get_action_meanings(), POSITION["Freeway"]
    heights, rewards = [], []
    for _ in range(400):
        rewards.append(env.step(meanings.index("UP"))[1])
        heights.append(int(env.unwrapped.ale.getRAM()[byte]))
    scored = [step for step, reward in enumerate(rewards) if reward]
    assert len(scored) >= 2 and len(set(heights)) > 80
    for step in scored:  # it is then far up, and back at the kerb within a second
        assert max(heights[step - 4 : step + 1]) > 170 and min(heights[step : step + 15]) < 20
    env.reset(seed=0)
    for _ in range(100):
        assert env.step(meanings.index("DOWN"))[1] == 0 and env.unwrapped.ale.getRAM()[byte] < 20


def test_the_summary_of_coverage():
    """Student's interval of 1, 2, 3 is 2 +- 4.303 / sqrt(3); of the sets only the ends count."""
    games = [
        {
            "game": "MsPacman",
            "who": "policy",
            "trained_steps": "5",
            "number": str(i),
            "steps": "10",
            "places": str(i + 1),
        }
        for i in range(3)
    ]
    sets = [
        {
            "game": "MsPacman",
            "who": "policy",
            "trained_steps": "5",
            "set": str(i),
            "steps": str(steps),
            "places": str(steps + i),
        }
        for i in range(2)
        for steps in (100, 200)
    ]
    (equal,) = summary([game | {"places": "2"} for game in games], sets)
    assert (equal["places in a game"], equal["from"], equal["to"]) == (2, 2, 2)
    (row,) = summary(games, sets)
    assert (row["places in a game"], row["from"], row["to"]) == (
        2,
        pytest.approx(2 - 2.4841, abs=1e-3),
        pytest.approx(2 + 2.4841, abs=1e-3),
    )
    assert (row["equal steps"], row["sets"], row["places in them"], row["fewest"], row["most"]) == (
        200,
        2,
        200.5,
        200,
        201,
    )
    assert (row["player"], row["trained steps"], row["games"], row["steps of a game"], row["rooms"]) == (
        "policy",
        5,
        3,
        10,
        None,
    )
