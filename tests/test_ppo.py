"""Both PPO scripts on real games: bookkeeping, equality of kept and recomputed embeddings, checkpoints, resume,
bad input."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ppo_e2e_atari
import ppo_wsa_atari
from encoders import PRETRAININGS, save_encoder
from housekeeping import checkpoints, files, processes
from housekeeping.flags import InputError

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [ppo_e2e_atari, ppo_wsa_atari]


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> str:
    """Stored models with random weights, for Pong, Breakout and Ms. Pacman: what is tested here does not depend on what
    they know."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    light = ("state_representation", "image_completion", "autoencoder")
    of_pong = ("state_representation", "keypoint_maps", "object_masks", "image_completion", "autoencoder")
    for game, names in (("Pong", of_pong), ("Breakout", light), ("MsPacman", light)):
        for name in names:
            pretraining = PRETRAININGS[name]()
            for stored in pretraining.stored_models():
                save_encoder(folder / game / f"{stored}.pt", stored, pretraining, {"game": game})
    return str(folder)


@pytest.fixture
def args(tmp_path, models):
    """Makes small flags for a script: two games, rollouts of 16 steps, light models."""

    def make(script, **changes):
        settings = {
            "num_envs": 2,
            "num_steps": 16,
            "num_minibatches": 2,
            "update_epochs": 2,
            "total_timesteps": 128,
            "runs_dir": str(tmp_path / "runs"),
            "cuda": False,
            "precision": "float32",
        }
        if script is ppo_wsa_atari:
            settings |= {
                "encoders": ("state_representation", "image_completion"),
                "features_dim": 32,
                "centre_embeddings": False,  # saves the measuring
                "pretrained_dir": models,
            }
        return script.Args(**{**settings, **changes})

    return make


def events_of(run: Path) -> EventAccumulator:
    """What TensorBoard reads of a run. Its files in the order in which they were written: of a folder it takes those of
    one second, which only tests have, in the order "10", "9"."""
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "events.out.tfevents.0"
        paths = sorted(run.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns)
        one.write_bytes(b"".join(path.read_bytes() for path in paths))
        return EventAccumulator(str(one), size_guidance={"scalars": 0}).Reload()


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    events = events_of(run)
    return [(event.step, event.value) for event in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []


def separate_advantages(rewards, values, ends, next_value, gamma, lam):
    """Each advantage as its own sum of (gamma lambda)^k delta_{t+k}, up to the end of the episode or of the rollout
    (eq. 11 to 16 of Schulman et al. 2016); `ends[t]` says that step t was the last of a life or a game."""
    num_steps = len(rewards)
    following = [*values[1:], next_value]
    advantages = []
    for t in range(num_steps):
        total, factor = 0.0, 1.0
        for k in range(t, num_steps):
            total += factor * (rewards[k] + (0.0 if ends[k] else gamma * following[k]) - values[k])
            if ends[k]:
                break
            factor *= gamma * lam
        advantages.append(total)
    return np.array(advantages)


@pytest.mark.parametrize("script", SCRIPTS)
def test_advantages_over_hand_made_episodes(script):
    """Four environments: nothing ends; a life is lost at step 2; a game is over in the last step; a game is cut off at
    step 3 (its reward holds gamma times the cut state's value) and another one is over at step 5."""
    rng = np.random.default_rng(0)
    rewards, values, next_value = rng.normal(size=(8, 4)), rng.normal(size=(8, 4)), rng.normal(size=4)
    ends = np.zeros((8, 4), dtype=bool)
    ends[2, 1] = ends[7, 2] = ends[3, 3] = ends[5, 3] = True
    cut_value, gamma, lam = 0.7, 0.99, 0.95
    rewards[3, 3] += gamma * cut_value
    dones = np.vstack([np.zeros((1, 4)), ends[:-1]])  # the script's: done with the step before
    as_tensor = lambda a: torch.as_tensor(np.asarray(a), dtype=torch.float64)  # noqa: E731
    advantages, returns = script.compute_advantages(
        as_tensor(rewards), as_tensor(values), as_tensor(dones), as_tensor(next_value), as_tensor(ends[-1]), gamma, lam
    )
    for env in range(4):
        expected = separate_advantages(rewards[:, env], values[:, env], ends[:, env], next_value[env], gamma, lam)
        np.testing.assert_allclose(advantages[:, env].numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(returns.numpy(), advantages.numpy() + values, rtol=1e-6)
    # the step that was cut off: its advantage is reward + gamma V(cut) - V(s), nothing of the next game
    assert advantages[3, 3].item() == pytest.approx(rewards[3, 3] - values[3, 3])


class Recorder:
    """A vector environment that notes down all that goes through it."""

    def __init__(self, envs):
        self.envs, self.steps = envs, []

    def __getattr__(self, name):
        return getattr(self.envs, name)

    def reset(self, **options):
        obs, info = self.envs.reset(**options)
        self.first = obs.copy(), {key: value.copy() for key, value in info.items()}
        return obs, info

    def step(self, actions):
        result = self.envs.step(actions)
        obs, rewards, terminated, truncated, info = result
        info = {key: value.copy() for key, value in info.items()}
        self.steps.append((actions.copy(), obs.copy(), rewards.copy(), terminated.copy(), truncated.copy(), info))
        return result


@pytest.fixture
def record(monkeypatch):
    """Makes a script record its environment and the arguments of each call of compute_advantages."""

    def install(script):
        recorded = {"rollouts": []}
        make_envs, compute = script.make_envs, script.compute_advantages

        def recording_envs(*rest):
            recorded["envs"] = Recorder(make_envs(*rest))
            return recorded["envs"]

        def recording_compute(*rest):
            recorded["rollouts"].append([value.clone() if isinstance(value, torch.Tensor) else value for value in rest])
            result = compute(*rest)
            recorded["rollouts"][-1].append(result[0])
            return result

        monkeypatch.setattr(script, "make_envs", recording_envs)
        monkeypatch.setattr(script, "compute_advantages", recording_compute)
        return recorded

    return install


@pytest.mark.parametrize("script", SCRIPTS)
def test_rollout_bootstraps_from_the_cut_games_last_state(script, args, record):
    """Games of at most 60 frames are cut off within the rollout; nothing scores that early in Pong, so rewards are 0
    but where a game was
    cut: there gamma times the value of the last state of the old game, from the truncated rows of `final_obs`."""
    recorded = record(script)
    run = script.main(
        args(script, total_timesteps=64, num_steps=32, num_minibatches=1, max_frames_per_game=60, learning_rate=0.0)
    )
    rewards, values, dones, next_value, next_done, gamma, _, _ = recorded["rollouts"][0]
    agent = script.load_agent(run / "checkpoint.pt")  # a learning rate of 0: these are the weights of the rollout
    if script is ppo_wsa_atari:
        value_of = lambda obs: agent.agent.get_value(agent.frozen(torch.from_numpy(obs), agent.agent.names))  # noqa: E731
    else:
        value_of = lambda obs: agent.get_value(torch.from_numpy(obs))  # noqa: E731
    obs, cuts = recorded["envs"].first[0], 0
    done_before = np.zeros(2)
    with torch.no_grad():
        for t, (_, next_obs, reward, terminated, truncated, info) in enumerate(recorded["envs"].steps[:32]):
            np.testing.assert_allclose(values[t].numpy(), value_of(obs).numpy(), atol=1e-4)
            np.testing.assert_array_equal(dones[t].numpy(), done_before)
            for env in range(2):
                expected = float(np.sign(reward[env]))
                if truncated[env] and not terminated[env]:
                    expected += gamma * value_of(info["final_obs"][env : env + 1]).item()
                    cuts += 1
                assert rewards[t, env].item() == pytest.approx(expected, abs=1e-4)
            obs, done_before = next_obs, (terminated | truncated).astype(float)
        np.testing.assert_allclose(next_value.numpy(), value_of(obs).numpy(), atol=1e-4)
    np.testing.assert_array_equal(next_done.numpy(), done_before)
    assert cuts >= 2


@pytest.mark.parametrize("script", SCRIPTS)
def test_breakout_logs_raw_scores_of_whole_games(script, args, record):
    """What the log says of each game is what the emulator played between two restarts of its own clock, over all
    lives."""
    recorded = record(script)
    run = script.main(
        args(
            script,
            env_id="ALE/Breakout-v5",
            total_timesteps=2048,
            num_envs=4,
            num_steps=128,
            update_epochs=1,
            num_minibatches=1,
        )
    )
    score, length, frame = np.zeros(4), np.zeros(4), recorded["envs"].first[1]["episode_frame_number"]
    lives, lost = recorded["envs"].first[1]["lives"], 0
    expected_scores, expected_lengths = [], []
    for i, (_, _, reward, terminated, _, info) in enumerate(recorded["envs"].steps):
        score, length = score + reward, length + 1
        over = info["episode_frame_number"] < frame
        lost += int((terminated & (info["lives"] < lives)).sum())
        for env in np.flatnonzero(over):
            expected_scores.append(((i + 1) * 4, score[env]))
            expected_lengths.append(((i + 1) * 4, length[env]))
        score[over] = length[over] = 0
        frame, lives = info["episode_frame_number"], info["lives"]
    assert len(expected_scores) >= 4 and lost >= 16
    assert scalars(run, "charts/episodic_return") == expected_scores
    assert scalars(run, "charts/episodic_length") == expected_lengths
    dones = torch.cat([rollout[2] for rollout in recorded["rollouts"]])  # a lost life is a terminal for learning
    assert int(dones.sum()) >= lost


@pytest.mark.parametrize("script", SCRIPTS)
def test_losses_of_a_first_minibatch(script, args, record):
    """One epoch, one minibatch: the policy is still the rollout's, so the ratio is 1, the policy's loss is minus the
    mean of normalised advantages (0), and the value's loss is the mean squared advantage, not halved."""
    recorded = record(script)
    run = script.main(args(script, total_timesteps=32, update_epochs=1, num_minibatches=1))
    advantages = recorded["rollouts"][0][-1]
    assert scalars(run, "losses/value_loss")[0][1] == pytest.approx(advantages.square().mean().item(), rel=1e-3)
    for tag in ("policy_loss", "approx_kl", "old_approx_kl", "clipfrac"):
        assert scalars(run, f"losses/{tag}")[0][1] == pytest.approx(0.0, abs=1e-5)
    assert scalars(run, "losses/entropy")[0][1] == pytest.approx(np.log(6), abs=0.01)  # Pong has 6 actions


@pytest.mark.parametrize("script", SCRIPTS)
def test_ppo_loss_by_hand(script):
    """Ratios 2, 2, 1/2, 1/2, 1 under a clip range of 0.1: -min(rA, clip(r)A) is -1.1, 2, -0.5, 0.9, -2 (Schulman et al.
    2017, eq. 7, 9).

    A sixth step was forced: its value counts ((3 - 1)^2, beside 1, 0, 1, 4, 9), all else leaves it out.
    """
    old, new = torch.tensor([0.1, 0.1, 0.4, 0.4, 0.5, 0.01]).log(), torch.tensor([0.2, 0.2, 0.2, 0.2, 0.5, 0.9]).log()
    values, returns = torch.tensor([0.0, 1, 2, 3, 4, 3]), torch.ones(6)
    free = torch.tensor([True, True, True, True, True, False])
    wsa = script is ppo_wsa_atari

    class Fixed:
        def get_action_and_value(self, seen, actions):
            found = actions, new, torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 9.0]), values
            return (*found, torch.full((6, 2), 0.5)) if wsa else found

    options = {"ent_coef": 0.01, "vf_coef": 0.5} | ({"weights_ent_coef": 0.1} if wsa else {})
    advantages = torch.tensor([1.0, -1, 1, -1, 2, 100])
    of_rollout = torch.zeros(6), old, advantages, returns, free, free.sum()
    loss, logged, *_ = script.ppo_loss(Fixed(), None, *of_rollout, torch.tensor(0.1), **options)
    value_loss = 19 / 6
    assert loss.item() == pytest.approx(
        -0.14 - 0.01 * 0.5 + 0.5 * value_loss - (0.1 * np.log(2) if wsa else 0), abs=1e-5
    )
    expected = {
        "policy_loss": -0.14,
        "value_loss": value_loss,
        "entropy": 0.5,
        "clipfrac": 0.8,
        "approx_kl": 0.2,
        "old_approx_kl": 0,
    }
    assert {name: value.item() for name, value in logged.items()} == pytest.approx(expected, abs=1e-5)


def test_the_end_to_end_agent_by_hand():
    """Mnih et al. 2015's sizes, pixels scaled once, policy head of gain 0.01 and value head of gain 1, greedy play."""
    agent, obs = ppo_e2e_atari.Agent(6), torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    x, network = obs.float() / 255, agent.network
    with torch.no_grad():
        for i, shape, stride in ((0, (32, 4, 8, 8), 4), (2, (64, 32, 4, 4), 2), (4, (64, 64, 3, 3), 1)):
            assert network[i].weight.shape == shape
            x = F.relu(F.conv2d(x, network[i].weight, network[i].bias, stride))
        assert network[7].weight.shape == (512, 3136)
        x = F.relu(x.flatten(1) @ network[7].weight.T + network[7].bias)
        logits = x @ agent.actor.weight.T + agent.actor.bias
        torch.testing.assert_close(
            agent.get_value(obs), x @ agent.critic.weight[0] + agent.critic.bias, rtol=1e-4, atol=1e-4
        )
        _, logprob, _, _ = agent.get_action_and_value(obs, torch.arange(5))
        torch.testing.assert_close(logprob, logits.log_softmax(dim=1)[range(5), range(5)], rtol=1e-4, atol=1e-4)
        assert agent.act(obs, greedy=True).tolist() == logits.argmax(dim=1).tolist()
        torch.testing.assert_close(agent.actor.weight @ agent.actor.weight.T, 1e-4 * torch.eye(6), rtol=1e-3, atol=1e-7)
        assert agent.critic.weight.norm().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pixels_are_from_0_to_1(precision):
    """Each of the 256 grey levels is its 255th part, rounded once to the precision."""
    obs = torch.arange(256, dtype=torch.uint8).view(4, 4, 4, 4)
    exact = torch.from_numpy(np.arange(256) / 255.0).view(4, 4, 4, 4)
    torch.testing.assert_close(
        ppo_e2e_atari.pixels(obs, precision), exact.to(getattr(torch, precision)), rtol=0, atol=0
    )


def test_heads_by_hand():
    layers, x = ppo_wsa_atari.head(8, (5, 3), "relu", 2, gain=0.01), torch.randn(4, 8)
    a, b, c = (layer.weight for layer in layers[::2])  # biases start at 0
    torch.testing.assert_close(layers(x), F.relu(F.relu(x @ a.T) @ b.T) @ c.T)
    torch.testing.assert_close(a @ a.T, 2 * torch.eye(5), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(c @ c.T, 1e-4 * torch.eye(2), rtol=1e-3, atol=1e-7)


# --- What a rollout stores, and what an update does with it ---


@pytest.fixture
def minibatches(monkeypatch):
    """Makes a script note down what each call of its loss is given, by name."""

    def install(script):
        names = ("actions", "logprobs", "advantages", "returns", "free", "num_free")
        given, original = [], script.ppo_loss

        def noting(agent, seen, *rest, **options):
            given.append({name: value.clone() for name, value in zip(names, rest, strict=False)})
            return original(agent, seen, *rest, **options)

        monkeypatch.setattr(script, "ppo_loss", noting)
        return given

    return install


@pytest.mark.parametrize("script", SCRIPTS)
def test_rewards_are_clipped_for_learning_and_raw_in_the_log(script, args, record):
    """In Ms. Pacman a dot brings 10 points: the rollout has 1, the score 10 for each."""
    recorded = record(script)
    flags = {
        "env_id": "ALE/MsPacman-v5",
        "num_steps": 400,
        "total_timesteps": 800,
        "num_minibatches": 1,
        "update_epochs": 1,
    }
    run = script.main(args(script, **flags, learning_rate=0.0, max_frames_per_game=1500))
    raw = np.stack([reward for _, _, reward, *_ in recorded["envs"].steps])
    cut = np.stack([truncated for *_, truncated, _ in recorded["envs"].steps])  # there the state's value is added
    rewards = recorded["rollouts"][0][0].numpy()
    assert raw.max() >= 10 and set(rewards[~cut]) == {0.0, 1.0}
    np.testing.assert_array_equal(rewards[~cut], np.minimum(raw, 1)[~cut])
    scores = [score for _, score in scalars(run, "charts/episodic_return")]
    assert len(scores) == 2 and sorted(scores) == sorted(raw[:375].sum(axis=0))


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_gradients_norm_is_clipped(script, args, monkeypatch):
    """What Adam receives is never longer than --max-grad-norm, and as long as that where the gradient was longer."""
    norms, step = [], torch.optim.Adam.step

    def noting(self, *rest):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
        return step(self, *rest)

    monkeypatch.setattr(torch.optim.Adam, "step", noting)
    published = {"update_epochs": 4, "num_minibatches": 4}
    script.main(args(script, **published, total_timesteps=32, max_grad_norm=0.01))
    script.main(args(script, **published, total_timesteps=32, max_grad_norm=1000.0))
    clipped, free = norms[:16], norms[16:]
    assert clipped == pytest.approx([0.01] * 16, rel=1e-3) and min(free) > 0.02


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_epoch_sees_each_step_once_in_a_new_order(script, args, record, minibatches):
    recorded, given = record(script), minibatches(script)
    script.main(args(script, total_timesteps=64, num_steps=32, num_minibatches=4, update_epochs=3, learning_rate=0.0))
    advantages = recorded["rollouts"][0][-1]
    returns = (advantages + recorded["rollouts"][0][1]).flatten()
    assert len(set(returns.tolist())) == 64 and len(given) == 12  # so that a return tells which step it is of
    epochs = [torch.cat([part["returns"] for part in given[i : i + 4]]) for i in (0, 4, 8)]
    orders = [[returns.tolist().index(value) for value in epoch.tolist()] for epoch in epochs]
    for order in orders:
        assert sorted(order) == list(range(64))
        steps = np.diff(order)
        assert (steps == 1).mean() < 0.2  # neighbours in time are no neighbours in a minibatch
        assert all(len(set(np.array(part) // 16)) >= 3 for part in np.split(np.array(order), 4))
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_fire_after_a_lost_life_is_stored_and_teaches_the_policy_nothing(script, args, record, minibatches):
    """Real Breakout: after each lost life the game received FIRE, whatever was drawn; just these steps are left out of
    the policy's loss, and of the mean and deviation of advantages."""
    recorded, given = record(script), minibatches(script)
    flags = {
        "env_id": "ALE/Breakout-v5",
        "num_envs": 4,
        "num_steps": 128,
        "total_timesteps": 1024,
        "update_epochs": 1,
        "num_minibatches": 2,
    }
    script.main(args(script, **flags))
    lives, forced, sent = recorded["envs"].first[1]["lives"], [np.zeros(4, dtype=bool)], []
    for actions, _, _, _, truncated, info in recorded["envs"].steps:
        sent.append(actions)
        forced.append((info["lives"] < lives) & ~truncated)  # carried from one rollout to the next
        lives = info["lives"]
    forced, sent = np.array(forced[:-1]), np.array(sent)
    assert forced.sum() >= 15 and (sent[forced] == 1).all() and 0.1 < (sent[~forced] == 1).mean() < 0.5
    dones = torch.cat([rollout[2] for rollout in recorded["rollouts"]]).numpy()
    assert dones[forced].all()  # each of these steps opens a learning episode
    for i in (0, 1):  # each rollout in two minibatches
        parts = given[2 * i : 2 * i + 2]
        mine = slice(128 * i, 128 * (i + 1))
        assert sum(int((~part["free"]).sum()) for part in parts) == forced[mine].sum()
        for part in parts:
            free = part["free"]
            assert (part["actions"][~free] == 1).all() and part["num_free"] == free.sum()
            assert part["advantages"][free].mean().abs() < 1e-5 and part["advantages"][free].std() == pytest.approx(
                1, abs=1e-3
            )


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_forced_steps_advantage_moves_no_policy(script, args, models):
    """The same gradients, but for the value head's, whatever advantage a forced step had; its return moves the
    values."""
    if script is ppo_wsa_atari:
        flags = args(script)
        frozen = script.open_models(flags)
        agent = script.Agent(frozen.shapes, frozen.context_name, 4, flags)
        seen = frozen(torch.randint(0, 256, (6, 4, 84, 84), dtype=torch.uint8), agent.names)
    else:
        agent, seen = script.Agent(4), torch.randint(0, 256, (6, 4, 84, 84), dtype=torch.uint8)
    free = torch.tensor([True, True, False, True, True, False])
    options = {"ent_coef": 0.01, "vf_coef": 0.5} | ({"weights_ent_coef": 0.0} if script is ppo_wsa_atari else {})

    def gradients(advantages, returns):
        advantages = processes.normalise(torch.tensor(advantages), free)
        agent.zero_grad()
        of_rollout = (
            torch.tensor([0, 1, 1, 2, 3, 1]),
            torch.full((6,), -1.4),
            advantages,
            torch.tensor(returns),
            free,
            free.sum(),
        )
        script.ppo_loss(agent, seen, *of_rollout, torch.tensor(0.1), **options)[0].backward()
        return {name: p.grad.clone() for name, p in agent.named_parameters() if p.grad is not None}

    returns = [0.5, 1, 2, 0, 1, 3]
    one = gradients([1.0, -1, 5, 2, 0, -7], returns)
    other = gradients([1.0, -1, -300, 2, 0, 400], returns)
    assert all(torch.equal(one[name], other[name]) for name in one)
    moved = gradients([1.0, -1, 5, 2, 0, -7], [0.5, 1, 9, 0, 1, 3])
    critic = [name for name in one if "critic" in name]
    assert all(not torch.equal(one[name], moved[name]) for name in critic)
    assert all(torch.equal(one[name], moved[name]) for name in one if name.startswith("actor"))


TAGS = ["losses/value_loss", "losses/policy_loss", "losses/entropy", "losses/approx_kl", "losses/explained_variance"]


def test_kept_embeddings_are_what_the_frozen_models_say(args, monkeypatch):
    """In each minibatch of the update, what is kept of a step equals what the frozen models say of its observation."""
    encoders = ("state_representation", "keypoint_maps", "object_masks")
    steps, observations, compared = [], [], []
    frozen_models, kept = ppo_wsa_atari.FrozenModels, ppo_wsa_atari.KeptEmbeddings

    class Frozen(frozen_models):
        def forward(self, obs, names):
            steps.append(self)
            observations.append(obs.clone())
            return super().forward(obs, names)

    class Kept(kept):
        def __getitem__(self, rows):
            found = super().__getitem__(rows)
            rollout = observations[-17:-1]  # 16 steps of 2 environments; the last one belongs to the next rollout
            obs = torch.cat(rollout)[rows]
            said = frozen_models.forward(steps[0], obs, encoders)
            assert set(found) == {*encoders, "autoencoder"} == set(said)
            for name, z in said.items():
                torch.testing.assert_close(found[name], z, rtol=1e-3, atol=1e-4)
            compared.append(len(rows))
            return found

    monkeypatch.setattr(ppo_wsa_atari, "FrozenModels", Frozen)
    monkeypatch.setattr(ppo_wsa_atari, "KeptEmbeddings", Kept)
    ppo_wsa_atari.main(args(ppo_wsa_atari, encoders=encoders, total_timesteps=64))
    assert sum(compared) == 2 * 2 * 32  # iterations, epochs, steps of a rollout


@pytest.mark.parametrize("script", SCRIPTS)
def test_same_seed_same_numbers(script, args):
    runs = [script.main(args(script, exp_name=name, total_timesteps=64)) for name in ("first", "second")]
    first, second = (files.load(run / "checkpoint.pt", "checkpoint") for run in runs)
    assert all(torch.equal(first["agent"][key], second["agent"][key]) for key in first["agent"])
    for tag in TAGS:
        assert scalars(runs[0], tag) == scalars(runs[1], tag) != []
    other = files.load(
        script.main(args(script, exp_name="third", seed=2, total_timesteps=64)) / "checkpoint.pt", "checkpoint"
    )
    assert not all(torch.equal(first["agent"][key], other["agent"][key]) for key in first["agent"])


def test_frozen_models_stay_as_stored(args, models, monkeypatch):
    """After the agent is built and trained, every frozen weight equals its file, is in evaluation mode and has no
    gradient; what is trained has moved. (The published code initialises its State Encoder anew.)"""
    kept = []
    original = ppo_wsa_atari.FrozenModels

    class Spy(original):
        def __init__(self, *rest):
            super().__init__(*rest)
            kept.append(self)

    monkeypatch.setattr(ppo_wsa_atari, "FrozenModels", Spy)
    every = ("state_representation", "keypoint_features", "keypoint_maps", "object_masks")
    run = ppo_wsa_atari.main(args(ppo_wsa_atari, encoders=every, total_timesteps=64))
    frozen = kept[0]
    assert set(frozen.models) == {*every, "autoencoder"}
    for name, model in frozen.models.items():
        stored = torch.load(Path(models) / "Pong" / f"{name}.pt", weights_only=True)["state"]
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, stored[key].to(tensor.dtype)), (name, key)
        assert not any(module.training for module in model.modules())
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    checkpoint = files.load(run / "checkpoint.pt", "checkpoint")
    assert not any("frozen" in key or "models" in key for key in checkpoint["agent"])  # only what was trained
    torch.manual_seed(1)
    fresh = ppo_wsa_atari.Agent(
        frozen.shapes, frozen.context_name, 6, ppo_wsa_atari.Args(**checkpoint["args"])
    ).state_dict()
    assert all(not torch.equal(fresh[key], value) for key, value in checkpoint["agent"].items())


def test_weights_are_logged(args):
    run = ppo_wsa_atari.main(args(ppo_wsa_atari))
    sums = np.array([value for _, value in scalars(run, "weights/state_representation")])
    sums += np.array([value for _, value in scalars(run, "weights/image_completion")])
    np.testing.assert_allclose(sums, 1.0, atol=1e-5)
    entropy = [value for _, value in scalars(run, "weights/entropy")]
    assert len(entropy) == 4 and all(0 <= value <= np.log(2) + 1e-6 for value in entropy)


@pytest.mark.parametrize("script", SCRIPTS)
def test_resume_goes_on(script, args, monkeypatch):
    """Stopped by Ctrl-C in the third of four iterations, resumed: the same schedule, step count and optimiser as the
    run that was not stopped, and no step twice in the log."""
    whole = script.main(args(script, exp_name="whole"))
    compute, calls = script.compute_advantages, []

    def interrupt_in_third(*rest):
        calls.append(0)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return compute(*rest)

    monkeypatch.setattr(script, "compute_advantages", interrupt_in_third)
    run = script.main(args(script, exp_name="stopped"))
    stopped = files.load(run / "checkpoint.pt", "checkpoint")
    assert (stopped["global_step"], stopped["iteration"]) == (96, 3)
    assert script.main(args(script, exp_name="stopped", resume=str(run / "checkpoint.pt"))).resolve() == run.resolve()
    finished, reference = (files.load(folder / "checkpoint.pt", "checkpoint") for folder in (run, whole))
    assert finished["global_step"] == reference["global_step"] == 128
    assert finished["optimizer"]["param_groups"] == reference["optimizer"]["param_groups"]  # the learning rate too
    steps = [state["step"].item() for state in finished["optimizer"]["state"].values()]
    assert steps == [4 * 2 * 2.0] * len(steps)  # iterations x epochs x minibatches
    for tag in ("charts/learning_rate", "charts/clip_coef"):
        assert scalars(run, tag) == scalars(whole, tag)
    assert scalars(run, "losses/value_loss")[:3] == scalars(whole, "losses/value_loss")[:3]
    assert [step for step, _ in scalars(run, "losses/value_loss")] == [32, 64, 96, 128]
    np.testing.assert_allclose(
        scalars(run, "charts/learning_rate"), [(32, 2.5e-4), (64, 1.875e-4), (96, 1.25e-4), (128, 6.25e-5)], rtol=1e-6
    )
    np.testing.assert_allclose(
        scalars(run, "charts/clip_coef"), [(32, 0.1), (64, 0.075), (96, 0.05), (128, 0.025)], rtol=1e-6
    )
    assert finished["optimizer"]["param_groups"][0]["lr"] == pytest.approx(6.25e-5)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_killed_run_leaves_no_double_stretch(script, args, monkeypatch):
    """Killed after four iterations with a checkpoint of the second: the resumed run repeats two, TensorBoard shows each
    step once."""
    compute, calls = script.compute_advantages, []

    def die_in_fifth(*rest):
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return compute(*rest)

    monkeypatch.setattr(script, "compute_advantages", die_in_fifth)
    flags = args(script, total_timesteps=192, checkpoint_interval=64, exp_name="killed")
    with pytest.raises(KeyboardInterrupt):
        script.main(flags)
    (run,) = Path(flags.runs_dir).glob("*__killed__*")
    path = run / "checkpoint.pt"
    checkpoint = files.load(path, "checkpoint")
    assert checkpoint["global_step"] == 128  # 64, 128 were saved; now as if the second save had not happened
    earlier = {**checkpoint, "global_step": 64, "iteration": 2}
    files.save(earlier, path)
    script.main(args(script, total_timesteps=192, checkpoint_interval=64, resume=str(path)))
    assert [step for step, _ in scalars(run, "losses/value_loss")] == [32, 64, 96, 128, 160, 192]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_that_diverges_keeps_its_last_checkpoint(script, args, monkeypatch):
    """Nothing is saved of weights that are no numbers. And where a kill or a copy has left a checkpoint without its
    best.pt, the resumed run makes one."""
    run = script.main(args(script, total_timesteps=64, checkpoint_interval=32))
    (run / "best.pt").unlink()
    before = (run / "checkpoint.pt").read_bytes()
    compute = script.compute_advantages
    monkeypatch.setattr(script, "compute_advantages", lambda *rest: [np.nan * x for x in compute(*rest)])
    again = args(script, total_timesteps=96, checkpoint_interval=32, resume=str(run / "checkpoint.pt"))
    with pytest.raises(InputError, match="step 96: value_loss is nan, training has diverged"):
        script.main(again)
    assert (run / "checkpoint.pt").read_bytes() == before and not (run / "best.pt").exists()
    monkeypatch.setattr(script, "compute_advantages", compute)
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def infinite_in_the_last(parameters, *rest):
        calls.append(parameters := list(parameters))
        if len(calls) == 4:  # its loss is finite, and no other loss comes after it
            parameters[0].grad[0] = np.inf
        return clip(parameters, *rest)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", infinite_in_the_last)
    with pytest.raises(InputError, match="step 96: grad_norm is inf, training has diverged"):
        script.main(again)
    assert (run / "checkpoint.pt").read_bytes() == before
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    script.main(again)
    assert files.load(run / "best.pt", "checkpoint")["global_step"] == 96


@pytest.mark.parametrize("script", SCRIPTS)
def test_saved_agent_acts(script, args, models):
    run = script.main(args(script))
    agent, other = (script.load_agent(run / "checkpoint.pt", "cpu") for _ in range(2))
    obs = np.random.default_rng(0).integers(0, 256, (5, 4, 84, 84), dtype=np.uint8)
    greedy = agent.act(obs, greedy=True)
    assert isinstance(greedy, np.ndarray) and greedy.shape == (5,) and set(greedy) <= set(range(6))
    np.testing.assert_array_equal(greedy, other.act(obs, greedy=True))
    assert torch.equal(agent.act(torch.from_numpy(obs), greedy=True), torch.from_numpy(greedy))
    drawn = np.stack([agent.act(obs, greedy=False) for _ in range(50)])
    assert len(np.unique(drawn)) == 6  # the policy is still nearly uniform
    assert type(checkpoints.load_agent(run / "checkpoint.pt")) is type(agent)


def test_an_evaluation_makes_a_best_agent(args):
    run = ppo_e2e_atari.main(args(ppo_e2e_atari, eval_interval=64, eval_episodes=1, total_timesteps=64))
    ((step, value),) = scalars(run, "eval/episodic_return")
    best = files.load(run / "best.pt", "checkpoint")
    assert step == 64 and best["global_step"] == 64 and best["best_return"] == value and -21 <= value <= 21


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_best_evaluation_decides_what_is_best(script, args, monkeypatch):
    """Scores 1, 5, 3, 5: the second one's agent stays, also beside an equal later one."""
    scores = iter((1, 5, 3, 5))
    monkeypatch.setattr(script, "evaluation_games", lambda *_: [(next(scores), 10, False)])
    run = script.main(args(script, eval_interval=32, eval_episodes=1))
    assert scalars(run, "eval/episodic_return") == [(32, 1), (64, 5), (96, 3), (128, 5)]
    best, last = (files.load(run / name, "checkpoint") for name in ("best.pt", "checkpoint.pt"))
    assert (best["global_step"], best["best_return"], last["global_step"], last["best_return"]) == (64, 5.0, 128, 5.0)


def test_what_an_evaluation_draws_does_not_depend_on_the_training(args, monkeypatch):
    """An agent may draw though it is greedy (Q-learning's extra action): the same in each evaluation."""
    monkeypatch.setattr(ppo_e2e_atari, "evaluation_games", lambda *_: [(torch.rand(()).item(), 10, False)])
    run = ppo_e2e_atari.main(args(ppo_e2e_atari, eval_interval=32, total_timesteps=96))
    values = [value for _, value in scalars(run, "eval/episodic_return")]
    assert len(values) == 3 and set(values) == {torch.rand((), generator=torch.Generator().manual_seed(1)).item()}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_checkpoint_that_does_not_fit_is_refused(script, args, tmp_path):
    run = script.main(args(script))
    path = str(run / "checkpoint.pt")
    before = (run / "checkpoint.pt").read_bytes()
    with pytest.raises(InputError, match=r"--learning-rate was 0.00025, now 0.001"):
        script.main(args(script, resume=path, learning_rate=1e-3, total_timesteps=256))
    with pytest.raises(InputError, match="--seed was 1, now 3"):
        script.main(args(script, resume=path, seed=3, total_timesteps=256))
    with pytest.raises(InputError, match="has done its 128 steps; raise --total-timesteps"):
        script.main(args(script, resume=path))
    other = SCRIPTS[1 - SCRIPTS.index(script)]
    with pytest.raises(InputError, match=f"a checkpoint of {script.SCRIPT}.py, not of {other.SCRIPT}.py"):
        other.main(args(other, resume=path))
    with pytest.raises(InputError, match="no such file"):
        script.main(args(script, resume=str(tmp_path / "nothing.pt")))
    saved = files.load(run / "checkpoint.pt", "checkpoint")
    files.save(saved | {"args": saved["args"] | {"kept_precision": "float16", "tf32": False}}, tmp_path / "old.pt")
    with pytest.raises(InputError, match="which had --kept-precision, --tf32; open it with that version"):
        script.main(args(script, resume=str(tmp_path / "old.pt")))
    obs = np.random.default_rng(0).integers(256, size=(4, 4, 84, 84), dtype=np.uint8)
    plays, as_saved = (checkpoints.load_agent(tmp_path / "old.pt"), checkpoints.load_agent(run / "checkpoint.pt"))
    assert (plays.act(obs, greedy=True) == as_saved.act(obs, greedy=True)).all()  # to play, they do not matter
    files.save(saved | {"global_step": 64}, run / "best.pt")
    with pytest.raises(InputError, match="has gone on from here to step 128, and checkpoint.pt would be written over"):
        script.main(args(script, resume=str(run / "best.pt"), total_timesteps=256))
    assert (run / "checkpoint.pt").read_bytes() == before
    (run / "checkpoint.pt").write_bytes(before[: len(before) // 2])
    with pytest.raises(InputError, match="damaged"):
        script.main(args(script, resume=path, total_timesteps=256))
    flags = args(script, total_timesteps=256)
    script.check_args(flags)
    best = checkpoints.load_to_resume(run / "best.pt", script.SCRIPT, flags, {"total_timesteps"})
    assert best["global_step"] == 64
    with pytest.raises(InputError, match="damaged"):
        checkpoints.load_agent(path)


def test_another_stored_model_is_refused(args, models, tmp_path):
    """A model that was trained again must not slip under an agent."""
    folder = tmp_path / "own" / "Pong"
    folder.mkdir(parents=True)
    for name in ("state_representation", "image_completion", "autoencoder"):
        (folder / f"{name}.pt").write_bytes((Path(models) / "Pong" / f"{name}.pt").read_bytes())
    flags = {"pretrained_dir": str(folder.parent)}
    run = ppo_wsa_atari.main(args(ppo_wsa_atari, **flags))
    save_encoder(folder / "autoencoder.pt", "autoencoder", PRETRAININGS["autoencoder"](), {"game": "Pong"})
    for open_it in (
        lambda: ppo_wsa_atari.load_agent(run / "checkpoint.pt"),
        lambda: ppo_wsa_atari.main(
            args(ppo_wsa_atari, resume=str(run / "checkpoint.pt"), total_timesteps=256, **flags)
        ),
    ):
        with pytest.raises(InputError, match="the stored autoencoder is not the one"):
            open_it()
    assert ppo_wsa_atari.load_agent(run / "checkpoint.pt", pretrained_dir=models) is not None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"env_id": "PongNoFrameskip-v4"}, "--env-id ALE/Pong-v5"),
        ({"num_minibatches": 3}, "--num-minibatches 3 does not divide the 32 steps"),
        ({"num_minibatches": 32}, "a minibatch of 1"),
        ({"total_timesteps": 31}, "less than one rollout"),
        ({"num_envs": 0}, "--num-envs must be at least 1"),
        ({"eval_interval": -1}, "--eval-interval must not be negative"),
        ({"gae_lambda": 1.5}, "--gae-lambda must be from 0 to 1"),
        ({"repeat_action_probability": 1.0}, "--repeat-action-probability must be at least 0 and below 1"),
        ({"cuda": True}, "no CUDA device"),
    ],
)
@pytest.mark.parametrize("script", SCRIPTS)
def test_bad_flags_are_refused(script, args, changes, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = args(script, **changes)
    with pytest.raises(InputError, match=says):
        script.main(flags)
    assert not Path(flags.runs_dir).exists()  # refused before anything was made


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoders": ("resnet",)}, "resnet: no such model; the known ones are state_representation"),
        ({"encoders": ()}, "at least one model"),
        ({"encoders": ("autoencoder", "autoencoder")}, "none twice"),
        ({"combiner": "average"}, "average: no such combiner; the known ones are wsa"),
        (
            {"env_id": "ALE/Freeway-v5"},
            "python pretrain_encoders.py --env-id ALE/Freeway-v5 --encoders state_representation image_completion",
        ),
    ],
)
def test_bad_models_are_refused(args, changes, says):
    with pytest.raises(InputError, match=says):
        ppo_wsa_atari.main(args(ppo_wsa_atari, **changes))


def test_a_damaged_or_foreign_model_is_refused(args, models, tmp_path):
    folder = tmp_path / "own" / "Pong"
    folder.mkdir(parents=True)
    for name in ("image_completion", "autoencoder"):
        (folder / f"{name}.pt").write_bytes((Path(models) / "Pong" / f"{name}.pt").read_bytes())
    target = folder / "state_representation.pt"
    whole = (Path(models) / "Pong" / target.name).read_bytes()
    flags = {"pretrained_dir": str(folder.parent)}
    for content, says in [
        (whole[:1000], "damaged"),
        ((Path(models) / "Breakout" / target.name).read_bytes(), "of Breakout, not of Pong"),
    ]:
        target.write_bytes(content)
        with pytest.raises(InputError, match=says):
            ppo_wsa_atari.main(args(ppo_wsa_atari, **flags))


def test_a_folder_that_cannot_be_written_is_refused(args, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        ppo_e2e_atari.main(args(ppo_e2e_atari, runs_dir=str(tmp_path / "file")))


def test_help_may_be_cut_short():
    """--help | head: no traceback where the reader has gone."""
    done = subprocess.run(f"{sys.executable} ppo_e2e_atari.py --help | :", shell=True, cwd=ROOT, capture_output=True)
    assert done.stderr == b""


@pytest.mark.parametrize(
    "script", ["ppo_e2e_atari.py", "ppo_wsa_atari.py", "pretrain_encoders.py", "probe_encoders.py"]
)
def test_a_person_sees_one_sentence(script, program):
    assert program(script, "--env-id", "PongNoFrameskip-v4") == (
        1,
        "",
        "error: --env-id PongNoFrameskip-v4: this project uses Gymnasium's present ids; write --env-id ALE/Pong-v5.\n",
    )


def test_an_unknown_precision_is_refused(program):
    status, _, said = program("ppo_e2e_atari.py", "--precision", "half")
    assert status != 0 and "Traceback" not in said
    assert all(word in said for word in ("--precision", "half", "auto", "float32", "bfloat16"))


def test_stored_models_are_found_from_any_folder(tmp_path, monkeypatch):
    """The default is the repository's pretrained/; a relative folder of one's own is looked for where one is."""
    monkeypatch.chdir(tmp_path)
    small = {"encoders": ("state_representation",), "num_envs": 2, "num_steps": 8, "total_timesteps": 16, "cuda": False}
    small["centre_embeddings"] = False
    run = ppo_wsa_atari.main(ppo_wsa_atari.Args(**small, num_minibatches=1))
    assert run.resolve().parent == tmp_path / "runs"
    assert files.load(run / "checkpoint.pt", "checkpoint")["args"]["pretrained_dir"] is None
    assert ppo_wsa_atari.load_agent(run / "checkpoint.pt").weighed == ("state_representation",)
    flags = ["--encoders", "state_representation", "--pretrained-dir", "mine", "--cuda", "False"]
    command = [sys.executable, str(ROOT / "ppo_wsa_atari.py"), *flags]
    missing = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert missing.returncode != 0 and missing.stderr.startswith(
        "error: mine/Pong: no stored state_representation, autoencoder; make them"
    )
    (tmp_path / "mine").symlink_to(ROOT / "pretrained")
    ppo_wsa_atari.main(ppo_wsa_atari.Args(**small, num_minibatches=1, pretrained_dir="mine"))


def test_resume_from_the_command_line_keeps_the_flags(tmp_path, program):
    """The flags of the first command need not be repeated; Ctrl-C ends it cleanly and the next command goes on."""
    flags = ["--num-envs", "2", "--num-steps", "16", "--runs-dir", str(tmp_path), "--torch-threads", "1"]
    first = subprocess.Popen(
        [sys.executable, "ppo_e2e_atari.py", "--total-timesteps", "1000000", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    first.stdout.readline()  # it says that it has begun
    first.send_signal(signal.SIGINT)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 0 and "stopped at step" in out
    (run,) = tmp_path.iterdir()
    done = files.load(run / "checkpoint.pt", "checkpoint")["global_step"]
    flags = ["--resume", str(run / "checkpoint.pt"), "--total-timesteps", str(done + 64)]
    status, _, error = program("ppo_e2e_atari.py", *flags)
    assert status == 0, error
    checkpoint = files.load(run / "checkpoint.pt", "checkpoint")
    assert checkpoint["global_step"] == done + 64 and checkpoint["args"]["num_steps"] == 16
