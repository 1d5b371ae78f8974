"""Behavior Transfer: the replay buffer against explicit stacks, flights against exact probabilities, what a transition
teaches, and the plain agent against a minimal DQN written here, update for update."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dqn_bt_atari
import evaluate
import export_agent
import ppo_e2e_atari
import pretrain_policy_atari
from behavior_transfer.replay_buffer import Batch, ReplayBuffer
from dqn_bt_atari import Args, Flights, QNetwork, load_agent, main, td_loss
from environments.atari import make_envs
from housekeeping import files
from housekeeping.flags import InputError
from housekeeping.seeds import env_seeds

CPU = torch.device("cpu")
SMALL = {
    "num_envs": 4,
    "total_timesteps": 240,
    "learning_starts": 80,
    "batch_size": 8,
    "buffer_size": 400,
    "cuda": False,
    "precision": "float32",
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    """A checkpoint of a policy for Breakout, barely trained."""
    flags = {
        "env_id": "ALE/Breakout-v5",
        "num_envs": 2,
        "num_steps": 16,
        "total_timesteps": 32,
        "num_minibatches": 2,
        "update_epochs": 1,
    }
    run = pretrain_policy_atari.main(
        pretrain_policy_atari.Args(
            **flags, runs_dir=str(tmp_path_factory.mktemp("policy")), cuda=False, precision="float32"
        )
    )
    return str(run / "checkpoint.pt")


def make_args(tmp_path, **flags) -> Args:
    return Args(**{"env_id": "ALE/Breakout-v5", "runs_dir": str(tmp_path)} | SMALL | flags)


# --- Replay buffer ---


@pytest.mark.parametrize("size", [3000, 300])
def test_the_buffer_gives_back_explicit_stacks(size):
    """Random Breakout with lost lives, ends of games and games that are cut off, in a ring that never or often begins
    anew."""
    n_step, gamma, num_envs = 3, 0.9, 3
    envs = make_envs("ALE/Breakout-v5", num_envs, life_loss_info=True, max_frames_per_game=600)
    buffer = ReplayBuffer(size, num_envs, n_step, gamma)
    obs, _ = envs.reset(seed=np.arange(num_envs))
    rng = np.random.default_rng(0)
    # per environment (observation, action, reward, terminal), or (observation, None) at a cut
    history = [[] for _ in range(num_envs)]
    for _ in range(700):
        actions, by_policy = rng.integers(envs.single_action_space.n, size=num_envs), rng.random(num_envs) < 0.3
        next_obs, reward, terminated, truncated, info = envs.step(actions)
        cut = truncated & ~terminated
        buffer.add(obs[:, -1], actions, by_policy, np.sign(reward), terminated, info["game_over"] & ~cut)
        for i in range(num_envs):
            history[i].append((obs[i].copy(), actions[i], float(np.sign(reward[i])), bool(terminated[i]), by_policy[i]))
            if cut[i]:
                history[i].append((info["final_obs"][i].copy(), None))
        if cut.any():
            buffer.cut_off(np.flatnonzero(cut), info["final_obs"][np.flatnonzero(cut), -1])
        obs = next_obs
    envs.close()
    cuts = sum(entry[1] is None for steps in history for entry in steps)
    terminals = sum(entry[1] is not None and entry[3] for steps in history for entry in steps)
    assert cuts > 5 and terminals > 20 and list(buffer.written) == [len(steps) for steps in history]

    seen = {"terminal": 0, "cut": 0, "whole": 0}
    for i, steps in enumerate(history):
        oldest = max(0, len(steps) - buffer.per_env)
        slots = [t for t in range(oldest + 3 if oldest else 0, len(steps) - n_step) if steps[t][1] is not None]
        batch = buffer.transitions(np.full(len(slots), i), np.array(slots), CPU)
        for row, t in enumerate(slots):
            np.testing.assert_array_equal(batch.obs[row], steps[t][0])
            assert batch.actions[row] == steps[t][1] and batch.by_policy[row] == steps[t][4]
            total, discount, at = 0.0, 1.0, t
            while at < t + n_step and steps[at][1] is not None and discount > 0:
                total += discount * steps[at][2]
                discount = 0.0 if steps[at][3] else discount * gamma
                at += 1
            assert batch.returns[row].item() == pytest.approx(total) and batch.discounts[row].item() == pytest.approx(
                discount
            )
            if discount > 0:
                np.testing.assert_array_equal(batch.next_obs[row], steps[at][0])
            seen["terminal" if discount == 0 else "cut" if at < t + n_step else "whole"] += 1
    assert seen["terminal"] and seen["whole"] and (size == 300 or seen["cut"])


def test_n_step_returns_by_hand():
    """gamma 1/2, n 3, rewards 1 1 0 1 1 | life lost with the second 1 of them in one game, cut off after the fifth step
    in the other."""
    buffer = ReplayBuffer(100, 2, 3, 0.5)
    frames = np.arange(1, 13, dtype=np.uint8)
    for t, reward in enumerate((1, 1, 0, 1, 1)):
        frame = np.full((2, 84, 84), frames[t])
        no = np.zeros(2, dtype=bool)
        buffer.add(frame, np.zeros(2), no, np.full(2, reward), np.array([t == 1, False]), no)
    buffer.cut_off(np.array([1]), np.full((1, 84, 84), frames[5]))
    for t in range(6, 12):
        buffer.add(np.full((2, 84, 84), frames[t]), np.zeros(2), no, np.zeros(2), no, no)
    lost = buffer.transitions(np.zeros(4, dtype=np.int64), np.arange(4), CPU)
    assert lost.returns.tolist() == [1.5, 1.0, 0.75, 1.5]  # 1 + 1/2 | 1 | 0 + 1/2 + 1/4 | 1 + 1/2 + 0
    assert lost.discounts.tolist() == [0, 0, 0.125, 0.125]
    # slot 5 holds frame 6: game 0 was not cut off
    assert lost.next_obs[2:, -1, 0, 0].tolist() == [
        frames[6 - 1 + 1],
        frames[7],
    ]
    cut = buffer.transitions(np.ones(4, dtype=np.int64), np.arange(1, 5), CPU)
    assert cut.returns.tolist() == [1.25, 0.75, 1.5, 1.0]  # 1 + 0 + 1/4 | 0 + 1/2 + 1/4 | 1 + 1/2, cut | 1, cut
    assert cut.discounts.tolist() == [0.125, 0.125, 0.25, 0.5]
    assert cut.next_obs[1:, -1, 0, 0].tolist() == [frames[5]] * 3  # the state at which it was cut
    new = buffer.transitions(np.ones(2, dtype=np.int64), np.array([6, 7]), CPU)
    assert new.obs[:, :, 0, 0].tolist() == [[0, 0, 0, frames[6]], [0, 0, frames[6], frames[7]]]


def test_draws_are_even_over_all_whole_transitions():
    """One environment that was cut off has a slot in which nothing was done: that, and the last n, are never drawn."""
    buffer, no = ReplayBuffer(40, 2, 3, 0.99), np.zeros(2, dtype=bool)
    for t in range(30):
        buffer.add(np.zeros((2, 84, 84), dtype=np.uint8), np.zeros(2), no, np.zeros(2), no, no)
        if t == 20:
            buffer.cut_off(np.array([0]), np.zeros((1, 84, 84), dtype=np.uint8))
    expected = {(0, slot) for slot in range(11 + 3, 31 - 3) if slot != 21} | {
        (1, slot) for slot in range(10 + 3, 30 - 3)
    }
    envs, slots = buffer.draw(60_000, np.random.default_rng(0))
    counts = {pair: 0 for pair in expected}
    for pair in zip(envs.tolist(), slots.tolist(), strict=True):
        counts[pair] += 1  # KeyError: a slot that must not be drawn
    chi_squared = sum((count - 60_000 / len(expected)) ** 2 / (60_000 / len(expected)) for count in counts.values())
    assert chi_squared < 59.7  # 26 degrees of freedom: exceeded once in 5,000
    assert len(expected) == 27


def test_a_million_transitions_fit_into_8_gigabytes():
    buffer = ReplayBuffer(1_000_000, 8, 3, 0.99)
    assert sum(array.nbytes for array in vars(buffer).values() if isinstance(array, np.ndarray)) < 8e9
    assert buffer.frames.shape[:2] == (8, 125_000)


# --- Flights ---


def test_flight_lengths_follow_the_capped_zeta_distribution():
    flights = Flights(1, 1.0, 2.0, 100, np.random.default_rng(0))
    total = sum(1 / n**2 for n in range(1, 101))
    np.testing.assert_allclose(flights.lengths, [1 / n**2 / total for n in range(1, 101)], rtol=1e-12)
    # the cap's mean
    assert sum(n * p for n, p in enumerate(flights.lengths, start=1)) == pytest.approx(3.17, abs=0.005)
    drawn = []
    for _ in range(20_000):  # with probability 1, the next flight begins as soon as one ends: read how long each was
        flights.step()
        drawn.append(1 + int(flights.left[0]))
        flights.left[:] = 0
    observed = np.bincount(np.minimum(drawn, 6), minlength=7)[1:]
    expected = 20_000 * np.append(flights.lengths[:5], flights.lengths[5:].sum())
    # chi-squared, 5 degrees of freedom: exceeded once in 5,000
    assert ((observed - expected) ** 2 / expected).sum() < 24.1
    assert max(drawn) <= 100


def test_share_of_steps_on_flights():
    """0.01 per step and a mean length of 3.17: 3.17 of every 3.17 + 99 steps."""
    flights = Flights(200, 0.01, 2.0, 100, np.random.default_rng(1))
    share = np.mean([flights.step() for _ in range(5_000)])
    assert share == pytest.approx(3.173 / (3.173 + 99), rel=0.03)


def test_flights_end_with_the_game_and_last_as_long_as_drawn():
    flights = Flights(3, 0.0, 2.0, 100, np.random.default_rng(0))
    flights.left[:] = (5, 2, 0)
    assert [flights.step().tolist() for _ in range(2)] == [[True, True, False]] * 2
    flights.end(np.array([True, False, False]))
    assert [flights.step().tolist() for _ in range(2)] == [[False, False, False]] * 2


def test_main_ends_flights_with_the_games(tmp_path, policy, monkeypatch):
    """Games of 40 steps: what main tells the flights at each step is which games are over, and not which lives are
    lost."""
    told = []
    monkeypatch.setattr(Flights, "end", lambda self, envs: told.append(envs.copy()))
    flags = {"max_frames_per_game": 160, "total_timesteps": 400, "flights": True}
    main(make_args(tmp_path, **flags, pretrained_policy=policy))
    assert [t for t, envs in enumerate(told) if envs.any()] == [39, 79] and told[39].all()


def test_flights_leave_other_draws_alone(tmp_path, policy, monkeypatch):
    """Until the first flight, a run with flights is the run without; what is drawn for epsilon and replay is the same
    throughout.

    (What is drawn from the buffer depends on how much is in it alone, and all of these games are cut off at the same
    steps.)
    """
    sent = []
    make = dqn_bt_atari.make_envs

    def recording(*rest):
        envs = make(*rest)
        step = envs.step
        envs.step = lambda actions: (sent[-1].append(actions.copy()), step(actions))[1]
        return envs

    monkeypatch.setattr(dqn_bt_atari, "make_envs", recording)
    states = []
    for flags in ({}, {"flights": True, "flight_probability": 0.2, "pretrained_policy": policy}):
        sent.append([])
        run = main(make_args(tmp_path, total_timesteps=200, max_frames_per_game=160, **flags))
        states.append(files.load(run / "checkpoint.pt", "checkpoint")["streams"])
    assert (
        all(states[0][name] == states[1][name] for name in ("epsilon", "replay"))
        and states[0]["flights"] != states[1]["flights"]
    )
    same = np.mean([a == b for a, b in zip(*sent, strict=True)])
    flights = Flights(4, 0.2, 2.0, 100, np.random.default_rng([1, 2]))
    first = next(t for t in range(200) if flights.step().any())
    assert all((a == b).all() for a, b in zip(sent[0][:first], sent[1][:first], strict=True)) and 0.2 < same < 1


# --- What a transition teaches ---


class Table(nn.Module):
    """Q-values from a table; the state is the first pixel. Two actions of the game, and the extra one."""

    num_actions = 2

    def __init__(self, rows):
        super().__init__()
        self.q = nn.Parameter(torch.tensor(rows))

    def forward(self, obs):
        return self.q[obs[:, 0, 0, 0].long()]


def test_what_a_transition_teaches_by_hand():
    online = Table([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    target = Table([[9.0, 9.0, 9.0], [0.5, 0.7, 0.2]])
    states = torch.zeros(2, 4, 84, 84, dtype=torch.uint8)
    batch = Batch(
        obs=states,
        actions=torch.tensor([0, 1]),
        by_policy=torch.tensor([False, True]),
        returns=torch.tensor([0.1, 0.3]),
        next_obs=states + 1,
        discounts=torch.tensor([0.5, 0.0]),
    )
    # The online network likes the extra action best in state 1; the target network says 0.2 of it. Targets: 0.1 + 0.5 x
    # 0.2 = 0.2, and 0.3
    loss, logged = td_loss(online, target, batch)
    assert loss.item() == pytest.approx((0.2**2 / 2 + 0.3**2 / 2) / 2 + (0.3**2 / 2) / 2)
    loss.backward()
    # Huber's gradient inside 1 is the error over the batch of 2; action 0 learns from the first transition, the others
    # from the second
    np.testing.assert_allclose(online.q.grad[0], [-0.1, -0.15, -0.15], rtol=1e-6)
    assert not online.q.grad[1].any() and target.q.grad is None
    assert logged["q_values"].item() == 0 and logged["q_extra_action"].item() == 0


def test_without_the_extra_action_the_policys_steps_teach_the_games_action_only():
    online, target = Table([[0.0, 0.0], [1.0, 2.0]]), Table([[0.0, 0.0], [0.5, 0.7]])
    states = torch.zeros(1, 4, 84, 84, dtype=torch.uint8)
    batch = Batch(states, torch.tensor([1]), torch.tensor([True]), torch.tensor([0.1]), states + 1, torch.tensor([0.5]))
    td_loss(online, target, batch)[0].backward()
    np.testing.assert_allclose(online.q.grad, [[0, -0.45], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("how", ["extra_action", "flights", "random"])
def test_the_policys_action_goes_to_the_game(tmp_path, policy, monkeypatch, how):
    """The games, and the buffer, receive what the policy drew: where the network prefers the extra action, on flights,
    and at random.

    At random, the extra one is one of five actions.
    """
    drawn, sent, kept, forced = [], [], [], []
    make, load, add, init = dqn_bt_atari.make_envs, dqn_bt_atari.load_policy, ReplayBuffer.add, QNetwork.__init__

    def recording_envs(*rest):
        envs = make(*rest)
        step = envs.step
        envs.step = lambda actions: (sent.append(actions.copy()), forced.append(envs.forced >= 0), step(actions))[2]
        return envs

    def recording_policy(*rest):
        loaded = load(*rest)
        act = loaded.act
        monkeypatch.setattr(loaded, "act", lambda obs, greedy: (drawn.append(act(obs, greedy)), drawn[-1])[1])
        return loaded

    def biased(self, *rest):
        init(self, *rest)
        nn.init.constant_(self.q.bias[-1 if how == "extra_action" else 0], 1000.0)

    monkeypatch.setattr(dqn_bt_atari, "make_envs", recording_envs)
    monkeypatch.setattr(dqn_bt_atari, "load_policy", recording_policy)
    monkeypatch.setattr(QNetwork, "__init__", biased)
    monkeypatch.setattr(ReplayBuffer, "add", lambda self, *rest: (kept.append(rest[1:3]), add(self, *rest))[1])
    epsilon = 1.0 if how == "random" else 0.0
    flags = {"flights": True, "flight_probability": 1.0} if how == "flights" else {"extra_action": True}
    main(make_args(tmp_path, total_timesteps=160, pretrained_policy=policy, start_e=epsilon, end_e=epsilon, **flags))
    assert len(sent) == 40 and len({action for row in sent for action in row}) == 4
    np.testing.assert_array_equal(sent, [stored for stored, _ in kept])
    by_policy, forced = np.array([marked for _, marked in kept]), np.array(forced)
    # FIRE after a lost life is nobody's
    assert forced.any() and (np.array(sent)[forced] == 1).all() and not by_policy[forced].any()
    if how == "random":
        assert 20 <= by_policy.sum() <= 46  # of 160, a fifth; outside with one seed in 130 (binomial)
    else:
        assert by_policy[~forced].all()
    steps = np.flatnonzero(by_policy.any(axis=1))
    assert len(drawn) == len(steps)  # once for each step at which it acts
    for actions, step in zip(drawn, steps, strict=True):
        np.testing.assert_array_equal(sent[step][by_policy[step]], actions[by_policy[step]])


def test_fine_tuning_takes_the_convolutions_alone(policy):
    pretrained = dqn_bt_atari.load_policy(policy, "ALE/Breakout-v5", CPU)
    torch.manual_seed(5)
    q_network = QNetwork(4, False)
    before = {name: tensor.clone() for name, tensor in q_network.state_dict().items()}
    q_network.start_from(pretrained)
    after, theirs = q_network.state_dict(), pretrained.state_dict()
    for name, tensor in after.items():
        convolution = name.split(".")[1] in ("0", "2", "4")
        assert torch.equal(tensor, theirs[name] if convolution else before[name])


# --- The plain agent ---


def test_with_every_switch_off_it_is_a_minimal_dqn(tmp_path, monkeypatch):
    """Written again from the papers, on lists of whole observations; the same seeds must give the same losses, update
    for update.

    Lives are lost, and games are cut off after 60 steps: there the return ends with the value of the game's last state.
    """
    losses = []
    loss_of = dqn_bt_atari.td_loss
    monkeypatch.setattr(dqn_bt_atari, "td_loss", lambda *rest: (losses.append(loss_of(*rest)), losses[-1])[1])
    args = make_args(
        tmp_path, total_timesteps=280, target_network_frequency=160, exploration_fraction=0.5, max_frames_per_game=240
    )
    run = main(args)

    torch.manual_seed(args.seed)
    envs = make_envs(args.env_id, 4, life_loss_info=True, max_frames_per_game=240)
    online, target = ppo_e2e_atari.nature_cnn(), None
    head = ppo_e2e_atari.layer_init(nn.Linear(512, 4), 1.0)
    optimizer = torch.optim.Adam([*online.parameters(), *head.parameters()], lr=1e-4, eps=1e-4)
    explore, replay = np.random.default_rng([1, 0]), np.random.default_rng([1, 1])

    def q(body, last, stacks):
        return last(body(torch.as_tensor(np.array(stacks)).float() / 255))

    def copy_of(body, last):
        other = ppo_e2e_atari.nature_cnn(), nn.Linear(512, 4)
        other[0].load_state_dict(body.state_dict())
        other[1].load_state_dict(last.state_dict())
        return other

    target = copy_of(online, head)
    obs, _ = envs.reset(seed=env_seeds(4, 1, 0, 0))
    games = [[] for _ in range(4)]
    step, mine = 0, []
    while step < 280:
        epsilon = max(0.01, 1 + (0.01 - 1) * step / 140)
        with torch.no_grad():
            best = q(online, head, obs).argmax(dim=1).numpy()
        random = explore.random(4) < epsilon
        actions = np.where(random, explore.integers(4, size=4), best)
        actions = np.where(envs.forced >= 0, envs.forced, actions)  # FIRE after a lost life, stored as any action
        next_obs, reward, terminated, truncated, info = envs.step(actions)
        for i in range(4):
            games[i].append((obs[i].copy(), actions[i], np.sign(reward[i]), terminated[i]))
            if truncated[i]:
                games[i].append((info["final_obs"][i].copy(), None, None, None))
        obs, step = next_obs, step + 4
        if step > 80:
            index = [(i, t) for i in range(4) for t in range(len(games[i]) - 3)]
            chosen = []
            while len(chosen) < 8:  # where a game was cut off, nothing was done
                drawn = [index[k] for k in replay.integers(len(index), size=8 - len(chosen))]
                chosen += [(i, t) for i, t in drawn if games[i][t][1] is not None]
            errors = []
            for i, t in chosen:
                total, discount, last = 0.0, 1.0, t
                while last < t + 3 and games[i][last][1] is not None and discount:
                    _, _, r, end = games[i][last]
                    total += discount * r
                    discount *= 0.99 * (not end)
                    last += 1
                with torch.no_grad():
                    after = [games[i][last][0]]
                    value = q(*target, after)[0, q(online, head, after)[0].argmax()].item()
                errors.append(q(online, head, [games[i][t][0]])[0, games[i][t][1]] - (total + discount * value))
            errors = torch.stack(errors)
            loss = F.huber_loss(errors, torch.zeros(8))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*online.parameters(), *head.parameters()], 10.0)
            optimizer.step()
            mine.append(loss.item())
        if step % 160 == 0:
            target = copy_of(online, head)
    envs.close()
    assert len(losses) == len(mine) == 50
    assert sum(end is not None and end for game in games for _, _, _, end in game) >= 4  # lives were lost
    assert [len(game) for game in games] == [71] * 4  # 70 steps, and a game cut off
    np.testing.assert_allclose([loss.item() for loss, _ in losses], mine, rtol=1e-3, atol=1e-6)
    trained = files.load(run / "checkpoint.pt", "checkpoint")["agent"]
    for name, tensor in online.state_dict().items():
        torch.testing.assert_close(trained[f"network.{name}"], tensor, rtol=1e-3, atol=1e-4)


def test_one_seed_gives_one_run(tmp_path, policy):
    flags = {"flights": True, "extra_action": True, "flight_probability": 0.1, "pretrained_policy": policy}
    flags |= {"num_envs": 2, "total_timesteps": 120}
    one, two = (
        files.load(main(make_args(tmp_path, **flags)) / "checkpoint.pt", "checkpoint")["agent"] for _ in range(2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


# --- Checkpoints and errors ---


def test_a_q_network_that_diverges_is_not_saved(tmp_path, monkeypatch):
    """Also where a checkpoint is due between two losses that are logged."""
    loss_of = dqn_bt_atari.td_loss

    def diverging(*rest):
        loss, logged = loss_of(*rest)
        return loss * np.nan, logged | {"td_loss": loss.detach() * np.nan}

    monkeypatch.setattr(dqn_bt_atari, "td_loss", diverging)
    with pytest.raises(InputError, match="td_loss is nan, training has diverged"):
        main(make_args(tmp_path, total_timesteps=120))
    assert not list(tmp_path.glob("*/*.pt"))


@pytest.mark.parametrize("save_buffer", [True, False])
def test_resume(tmp_path, policy, save_buffer, capsys, monkeypatch):
    flags = {"flights": True, "extra_action": True, "pretrained_policy": policy, "save_buffer": save_buffer}
    run = main(make_args(tmp_path, **flags))
    first = files.load(run / "checkpoint.pt", "checkpoint")
    updates, buffers = [], []
    loss_of, init = dqn_bt_atari.td_loss, ReplayBuffer.__init__
    monkeypatch.setattr(dqn_bt_atari, "td_loss", lambda *rest: (updates.append(rest[2]), loss_of(*rest))[1])
    monkeypatch.setattr(ReplayBuffer, "__init__", lambda self, *rest: (buffers.append(self), init(self, *rest))[1])
    flags["pretrained_policy"] = None  # its weights are in the checkpoint
    assert main(make_args(tmp_path, **flags | {"total_timesteps": 360, "resume": str(run / "checkpoint.pt")})) == run
    second = files.load(run / "checkpoint.pt", "checkpoint")
    assert second["global_step"] == 360 and all(
        torch.equal(first["policy"][name], second["policy"][name]) for name in first["policy"]
    )
    assert len(updates) == (30 if save_buffer else 10)  # one for 4 steps: at once, or after 80 new transitions
    said = "the replay buffer holds 0 transitions; learning goes on from step 320" in capsys.readouterr().out
    assert said == (not save_buffer) and (run / "buffer.pt").exists() == save_buffer
    buffer = buffers[-1]
    if save_buffer:
        stored = files.load(run / "buffer.pt", "replay buffer")
        assert len(buffer) == 240 + 4 + 120 and [len(frames) for frames in stored["buffer"]["frames"]] == [91] * 4
        assert (~buffer.acted[:, :91]).nonzero()[1].tolist() == [60] * 4  # where the games were cut by the stop
        np.testing.assert_array_equal(torch.stack(stored["buffer"]["frames"]).numpy(), buffer.frames[:, :91])
        more = flags | {"total_timesteps": 400, "resume": str(run / "checkpoint.pt")}
        for change, says in (({"env_id": "ALE/Pong-v5"}, "of another run"), (None, "damaged")):
            if change:
                files.save(stored | change, run / "buffer.pt")
            else:
                (run / "buffer.pt").write_bytes(b"no")
            with pytest.raises(InputError, match=says):
                main(make_args(tmp_path, **more))
        # without --save-buffer, the checkpoint goes on and the buffer stays as it is ...
        files.save(stored, run / "buffer.pt")
        main(make_args(tmp_path, **more | {"save_buffer": False}))
        before = len(updates)
        main(make_args(tmp_path, **more | {"save_buffer": False, "total_timesteps": 440}))
        assert len(updates) - before == 10  # ... and serves the next resumption, too: learning goes on at once


def test_a_full_buffer_is_stored_and_read_back(tmp_path):
    """A ring that has begun anew gives the same transitions after it was stored; one that is hardly filled makes a
    small file."""
    rng = np.random.default_rng(0)
    full = ReplayBuffer(60, 2, 3, 0.99)
    for _ in range(47):
        frames, no = rng.integers(0, 256, (2, 84, 84), dtype=np.uint8), np.zeros(2, dtype=bool)
        full.add(frames, rng.integers(4, size=2), no, rng.normal(size=2), rng.random(2) < 0.1, no)
    files.save({"kind": "replay buffer", "buffer": full.state_dict()}, tmp_path / "full.pt")
    again = ReplayBuffer(60, 2, 3, 0.99)
    again.load_state_dict(files.load(tmp_path / "full.pt", "replay buffer", mmap=True)["buffer"])
    drawn = full.draw(50, np.random.default_rng(1))
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again.draw(50, np.random.default_rng(1)), strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(full.transitions(*drawn, CPU), again.transitions(*drawn, CPU), strict=True)
    )
    large = ReplayBuffer(100_000, 2, 3, 0.99)
    large.add(frames, np.zeros(2), no, np.zeros(2), no, no)
    files.save({"kind": "replay buffer", "buffer": large.state_dict()}, tmp_path / "large.pt")
    assert (tmp_path / "large.pt").stat().st_size < 40_000


def test_an_agent_with_the_extra_action_plays_on_its_own(tmp_path, policy, capsys):
    """The checkpoint holds the policy; evaluation opens it like any other."""
    run = main(make_args(tmp_path, extra_action=True, pretrained_policy=policy))
    agent = load_agent(run / "checkpoint.pt")
    obs = np.random.default_rng(0).integers(0, 256, (64, 4, 84, 84), dtype=np.uint8)
    with torch.no_grad():
        agent.q_network.q.bias[-1] += 1000.0
    torch.manual_seed(0)
    acted = agent.act(obs, greedy=True)
    torch.manual_seed(0)
    np.testing.assert_array_equal(acted, ppo_e2e_atari.Agent.act(agent.policy, obs, greedy=False))
    theirs = files.load(policy, "checkpoint")["agent"]
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in agent.policy.state_dict().items())
    with torch.no_grad():
        agent.q_network.q.bias[-1] -= 2000.0
    with torch.no_grad():
        np.testing.assert_array_equal(agent.act(obs, greedy=True), agent.q_network(torch.from_numpy(obs)).argmax(dim=1))
    flags = {
        "checkpoint": (str(run / "checkpoint.pt"),),
        "episodes": 2,
        "num_envs": 2,
        "max_frames_per_game": 400,
        "cuda": False,
    }
    evaluate.main(evaluate.Args(**flags, output_dir=str(tmp_path / "scores")))
    assert "distinct (only starts differ)" not in capsys.readouterr().out  # the policy's actions are drawn
    export_agent.main(export_agent.Args(str(run / "checkpoint.pt"), str(tmp_path / "small.pt")))
    small = files.load(tmp_path / "small.pt", "checkpoint")["policy"]
    assert {tensor.dtype for tensor in small.values()} == {torch.float16}
    assert load_agent(tmp_path / "small.pt").act(obs, greedy=True).shape == (64,)
    assert json.loads((tmp_path / "scores" / "results.json").read_text())["results"][0]["script"] == "dqn_bt_atari"


def test_epsilon_goes_from_one_to_the_other_and_stays(tmp_path):
    """Upward, too; over half of the run."""
    flags = {"start_e": 0.2, "end_e": 0.6, "exploration_fraction": 0.5, "learning_starts": 1000, "buffer_size": 1200}
    run = main(make_args(tmp_path, total_timesteps=1004, **flags))
    (logged,) = EventAccumulator(str(run)).Reload().Scalars("charts/epsilon")
    assert logged.step == 1000 and logged.value == pytest.approx(0.6)


def test_a_run_that_ends_before_it_learns_says_so(tmp_path, capsys):
    for steps, says in ((300, True), (308, False)):
        main(make_args(tmp_path / str(steps), total_timesteps=steps, learning_starts=300))
        assert ("nothing is learnt: the run ends before step 300" in capsys.readouterr().out) is says


def test_a_resumed_run_needs_room_for_one_more_buffer(tmp_path, monkeypatch):
    """The stored one is on the disk already: 7 KB for each of 140 steps, and as much for the new one, less what is
    there."""
    run = main(make_args(tmp_path, total_timesteps=100, save_buffer=True))
    usage, stored = shutil.disk_usage(tmp_path), (run / "buffer.pt").stat().st_size
    again = make_args(tmp_path, total_timesteps=140, save_buffer=True, resume=str(run / "checkpoint.pt"))
    needed = 2 * 140 * 84 * 84 - stored
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(InputError, match="GB of disk, and 0.00 GB are free"):
        main(again)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed + 1))
    assert main(again) == run


def test_bad_input_is_refused_in_one_sentence(tmp_path, policy, monkeypatch):
    run = main(make_args(tmp_path, total_timesteps=100))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    for flags, says in (
        ({"flights": True}, "need a policy: name it as --pretrained-policy"),
        ({"flights": True, "run_dir": str(tmp_path / "new")}, "need a policy: name it as --pretrained-policy"),
        ({"pretrained_policy": policy}, "nothing uses it"),
        (
            {"pretrained_policy": policy, "flights": True, "env_id": "ALE/Pong-v5"},
            "this policy plays ALE/Breakout-v5, not ALE/Pong-v5",
        ),
        (
            {"pretrained_policy": str(run / "checkpoint.pt"), "flights": True},
            "a policy comes from pretrain_policy_atari or ppo_e2e_atari",
        ),
        ({"pretrained_policy": "nothing.pt", "flights": True}, "there is no such file"),
        ({"resume": policy}, "this is a checkpoint of pretrain_policy_atari.py"),
        ({"resume": str(run / "checkpoint.pt"), "gamma": 0.9, "total_timesteps": 500}, "--gamma was 0.99, now 0.9"),
        ({"resume": str(run / "checkpoint.pt"), "total_timesteps": 100}, "raise --total-timesteps"),
        ({"flight_probability": 1.5}, "--flight-probability must be from 0 to 1"),
        ({"flight_cap": 5}, "--flight-cap is an option of --flights"),
        ({"pretrained_policy": policy, "flights": True, "flight_exponent": 1.0}, "--flight-exponent must be above 1"),
        ({"learning_starts": 3}, "nothing can be learnt before 4 steps"),
        ({"learning_starts": 500}, "the buffer holds only --buffer-size 400"),
        (
            {"save_buffer": True, "buffer_size": 10**5, "total_timesteps": 10**5},
            r"need 1\.41 GB of disk, and 1\.00 GB are free; lower",
        ),
        ({"buffer_size": 10**12, "total_timesteps": 10**12}, "replay buffer need .* GB, and"),
        ({"buffer_size": 10**12}, "--buffer-size 1000000000000: this system does not give 7056000.0 GB"),
    ):
        with pytest.raises(InputError, match=says):
            main(make_args(tmp_path, **flags))
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"no")
    with pytest.raises(InputError, match="damaged"):
        main(make_args(tmp_path, pretrained_policy=str(damaged), flights=True))
