"""Environments that draw themselves, and PPO on continuous actions; skipped where MuJoCo, PushT or EGL is missing."""

import csv
import ctypes.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from test_ppo import scalars

import evaluate
import export_agent
import ppo_e2e_continuous
import ppo_wsa_atari
import ppo_wsa_continuous
import pretrain_encoders
import probe_encoders
from encoders import PRETRAINED, load_encoder
from environments import rendered
from environments.atari import play_games
from environments.scaling import RewardScale
from housekeeping import checkpoints, files
from housekeeping.flags import InputError

PUSHT = "gym_pusht/PushT-v0"
for package in ("mujoco", "gym_pusht"):
    pytest.importorskip(package)
if sys.platform == "linux" and ctypes.util.find_library("EGL") is None:
    pytest.skip(rendered.NEEDS_EGL, allow_module_level=True)

SMALL = {"num_envs": 2, "num_steps": 64, "num_minibatches": 2, "update_epochs": 2, "total_timesteps": 256}
SMALL |= {"precision": "float32", "cuda": False, "torch_threads": 1}
PLAIN = {"centre_embeddings": False, "features_dim": 32}  # of WSA: saves the measuring, and large matrices


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A short run of each script: {name: folder}."""
    places = {"runs_dir": str(tmp_path_factory.mktemp("runs"))}
    wsa = ppo_wsa_continuous.Args(**SMALL, **places)
    state = ppo_e2e_continuous.Args(**SMALL | {"precision": "auto"}, **places, from_state=True, exp_name="state")
    pusht = ppo_e2e_continuous.Args(**SMALL | {"total_timesteps": 128}, **places, env_id=PUSHT, action_repeat=2)
    return {
        "wsa": ppo_wsa_continuous.main(wsa),
        "state": ppo_e2e_continuous.main(state),
        "pusht": ppo_e2e_continuous.main(pusht),
    }


def test_pretraining(tmp_path):
    """Models are made of frames in which the arm moves, and WSA trains on them."""
    settings = {"encoders": ("state_representation", "autoencoder"), "num_frames": 300, "steps": 2, "num_envs": 2}
    settings |= {"batch_size": 8, "validation_samples": 32, "cuda": False, "precision": "float32", "torch_threads": 1}
    places = {name: str(tmp_path / name) for name in ("data_dir", "pretrained_dir", "runs_dir")}
    pretrain_encoders.main(pretrain_encoders.Args(env_id="Reacher-v5", **settings, **places))
    frames = np.fromfile(tmp_path / "data_dir" / "Reacher" / "frames.u8", dtype=np.uint8).reshape(-1, 84, 84)
    assert len(frames) == 300 and len(np.unique(frames[50:100], axis=0)) > 40
    flags = ppo_wsa_continuous.Args(
        **SMALL | {"total_timesteps": 128}, **PLAIN, pretrained_dir=places["pretrained_dir"]
    )
    assert load_encoder(tmp_path / "pretrained_dir" / "Reacher" / "autoencoder.pt").description["game"] == "Reacher"
    run = ppo_wsa_continuous.main(replace(flags, runs_dir=places["runs_dir"]))
    assert checkpoints.load_agent(run / "checkpoint.pt").frozen.sha256


@pytest.mark.parametrize("env_id", ["Reacher-v5", PUSHT])
def test_an_observation_is_the_newest_four_pictures(env_id):
    """Grey by the usual weights, oldest first, zeros before the first one."""
    env = rendered.make_env(env_id)
    obs, _ = env.reset(seed=3)
    pictures = [np.zeros((84, 84), dtype=np.uint8)] * 3
    for step in range(5):
        assert obs.dtype == np.uint8 and obs.shape == (4, 84, 84) == env.observation_space.shape
        colour = env.unwrapped.render().astype(float)
        grey = (colour @ [0.2125, 0.7154, 0.0721]).astype(np.uint8)
        if grey.shape == (84, 84):
            np.testing.assert_allclose(obs[-1].astype(int), grey, atol=1)
        else:  # made smaller: the means of large squares stay
            means = [a.reshape(4, len(a) // 4, 4, len(a) // 4).mean(axis=(1, 3)) for a in (obs[-1], grey)]
            np.testing.assert_allclose(*means, atol=3)
        pictures.append(obs[-1])
        np.testing.assert_array_equal(obs, pictures[-4:])
        obs, *_ = env.step(np.array([0.8, -0.6]) * (-1) ** step)
    assert len(np.unique(pictures[3:], axis=0)) == 5
    env.close()


def test_the_agent_is_shown_no_numbers():
    """Two arms that look alike and differ in what only the simulator says (their speed) give the same observation."""
    env = rendered.make_env("Reacher-v5")
    seen, picture = [], env.env.env  # below the stack and the grey
    for speed in (0.0, 5.0):
        env.reset(seed=1)
        inner = env.unwrapped
        inner.set_state(inner.data.qpos.copy(), np.array([speed, -speed, 0.0, 0.0]))
        assert np.isclose(inner._get_obs()[6], speed)
        seen.append(picture.observation(inner._get_obs()))
    np.testing.assert_array_equal(*seen)
    envs = rendered.make_envs("Reacher-v5", 1)
    assert envs.single_observation_space == gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    envs.close()
    env.close()


def test_actions_are_within_the_box_and_repeated():
    for env_id, low, high in (("Reacher-v5", -1.0, 1.0), (PUSHT, 0.0, 512.0)):
        env, played = rendered.make_env(env_id, action_repeat=3), []
        inner = env.unwrapped
        step = inner.step
        inner.step = lambda action, played=played, step=step: played.append(np.array(action)) or step(action)
        env.reset(seed=0)
        _, reward, *_ = env.step(np.array([7.0, -1.5], dtype=np.float32))
        np.testing.assert_allclose(played, [[high, low]] * 3)
        env.step(np.array([0.0, 0.5], dtype=np.float32))
        np.testing.assert_allclose(played[3], [(low + high) / 2, low + 0.75 * (high - low)])
        env.close()
    plain = gym.make("Reacher-v5")
    plain.reset(seed=0)
    rewards = [plain.step(np.array([1.0, -1.0]))[1] for _ in range(3)]
    env = rendered.make_env("Reacher-v5", action_repeat=3, from_state=True)
    env.reset(seed=0)
    assert env.step(np.array([7.0, -1.5], dtype=np.float32))[1] == pytest.approx(sum(rewards))
    played, step = [], env.unwrapped.step
    env.unwrapped.step = lambda action: played.append(action) or step(action)
    for _ in range(16):
        *_, truncated, _ = env.step(np.zeros(2, dtype=np.float32))
    assert truncated and len(played) == 50 - 3  # 50 is no multiple of 3: the last action is played twice


def test_a_time_limit_is_truncation_and_episodes_are_counted():
    envs = rendered.make_envs("Reacher-v5", 2)
    envs.reset(seed=np.array([1, 2]))
    total = np.zeros(2)
    for step in range(1, 101):
        obs, rewards, terminated, truncated, info = envs.step(np.full((2, 2), 0.1, dtype=np.float32))
        total += rewards
        assert truncated.all() == (step % 50 == 0) and not terminated.any()
        if step % 50 == 0:
            assert info["games"] == [(pytest.approx(total[0]), 50), (pytest.approx(total[1]), 50)]
            total[:] = 0
            assert (obs[:, :3] == 0).all() and (np.stack(info["final_obs"])[:, :3] > 0).any()
        else:
            assert info["games"] == []
    envs.close()


@pytest.mark.parametrize(
    ("env_id", "name"), [("Reacher-v5", "Reacher"), (PUSHT, "PushT"), ("my/Arm", "Arm"), ("Ant-vel-v10", "Ant-vel")]
)
def test_folders_are_called_by_the_bare_name(env_id, name):
    assert rendered.folder_name(env_id) == name


def test_smooth_actions_move():
    """Neighbours are alike (correlation 0.9), and each number has variance 1/2."""
    draw = rendered.smooth_actions(500, 2, np.random.default_rng(0))
    actions = np.stack([draw() for _ in range(200)])
    assert actions.var() == pytest.approx(0.5, abs=0.03)
    assert (actions[1:] * actions[:-1]).mean() / actions.var() == pytest.approx(0.9, abs=0.02)


def test_rewards_are_scaled_by_the_deviation_of_the_discounted_return():
    rng = np.random.default_rng(0)
    rewards, over = rng.normal(3, 2, (50, 4)), rng.random((50, 4)) < 0.1
    scale, running, seen = RewardScale(4, 0.9), np.zeros(4), []
    for reward, ended in zip(rewards, over, strict=True):
        running = running * 0.9 + reward
        seen += list(running)
        found = scale(torch.from_numpy(reward), torch.from_numpy(ended))
        np.testing.assert_allclose(found, np.clip(reward / np.sqrt(np.var(seen) + 1e-8), -10, 10), rtol=1e-5)
        running[ended] = 0


def test_log_probabilities_are_of_the_action_before_clipping():
    torch.manual_seed(0)
    agent = ppo_e2e_continuous.Agent(2)
    agent.log_std.data = torch.tensor([0.3, -0.2])
    obs = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    actions = torch.tensor([[4.0, -3.0], [0.1, 0.2], [-1.5, 0.0]])
    with torch.no_grad():
        given, logprob, entropy, _ = agent.get_action_and_value(obs, actions)
        mean = agent.actor(agent.features(obs)).double().numpy()
    std = np.exp([0.3, -0.2])
    density = np.exp(-((actions.numpy() - mean) ** 2) / (2 * std**2)) / (std * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(logprob, np.log(density).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(entropy, np.full(3, (0.5 * np.log(2 * np.pi * np.e) + np.log(std)).sum()), rtol=1e-5)
    assert torch.equal(given, actions)
    np.testing.assert_allclose(agent.act(obs.numpy(), greedy=True), mean, rtol=1e-5)


@pytest.mark.parametrize("script", [ppo_e2e_continuous, ppo_wsa_continuous])
def test_one_rollout(script, tmp_path, monkeypatch):
    """Where an episode was cut off, the reward holds gamma times the value of its last state, and the discounted return
    by which rewards are scaled begins anew. Actions and log-probabilities are stored as drawn, though the environment
    clips: before the first step of an update, the policy is the one that acted.
    """
    scaled, over, values, seen = [], [], [], {}
    forward, get_value = RewardScale.forward, script.Agent.get_value

    def recorded(scale, reward, ended):
        assert scale.gamma == 0.99
        over.append(ended)
        scaled.append(forward(scale, reward, ended))
        return scaled[-1]

    monkeypatch.setattr(RewardScale, "forward", recorded)
    monkeypatch.setattr(script.Agent, "get_value", lambda *a: values.append(get_value(*a)) or values[-1])
    advantages = script.compute_advantages
    monkeypatch.setattr(
        script,
        "compute_advantages",
        lambda rewards, *a: seen.update(rewards=rewards.clone(), dones=a[1].clone()) or advantages(rewards, *a),
    )
    extra = PLAIN if script is ppo_wsa_continuous else {}
    once = {"total_timesteps": 128, "num_minibatches": 1, "update_epochs": 1, "action_repeat": 2}
    run = script.main(script.Args(**SMALL | once, runs_dir=str(tmp_path), **extra))
    added = seen["rewards"] - torch.stack(scaled)
    assert len(values) == 3 and seen["dones"][[25, 50]].all() and seen["dones"].sum() == 4
    torch.testing.assert_close(added[[24, 49]], 0.99 * torch.stack(values[:2]), rtol=1e-4, atol=1e-6)
    added[[24, 49]] = 0
    assert not added.any()
    assert torch.equal(torch.stack(over)[:-1].float(), seen["dones"][1:])
    assert scalars(run, "losses/approx_kl")[0][1] == pytest.approx(0, abs=1e-6)
    assert {length for _, length in scalars(run, "charts/episodic_length")} == {25}


@pytest.mark.parametrize(
    ("script", "extra"),
    [(ppo_e2e_continuous, {}), (ppo_e2e_continuous, {"from_state": True}), (ppo_wsa_continuous, PLAIN)],
    ids=["e2e", "state", "wsa"],
)
def test_same_seed_same_numbers_and_resume(script, extra, tmp_path):
    first, second = (
        script.main(script.Args(**SMALL, runs_dir=str(tmp_path / name), **extra)) for name in ("first", "second")
    )
    for tag in ("losses/value_loss", "losses/policy_loss", "charts/episodic_return", "charts/policy_std"):
        assert scalars(first, tag) == scalars(second, tag) != []
    path = first / "checkpoint.pt"
    before = torch.load(path, weights_only=True)
    script.main(script.Args(**SMALL | {"total_timesteps": 384}, resume=str(path), **extra))
    after = torch.load(path, weights_only=True)
    assert (before["global_step"], after["global_step"]) == (256, 384)
    assert before["reward_scale"]["moments.count"] == 256 and after["reward_scale"]["moments.count"] == 384
    if "from_state" in extra:
        assert before["agent"]["seen.count"] == 256 and after["agent"]["seen.count"] == 384
        before["agent"]["seen.count"] += 1e6  # of a long run: a number that is no weight
        torch.save(before, tmp_path / "long.pt")
        export_agent.main(export_agent.Args(str(tmp_path / "long.pt"), str(tmp_path / "small.pt")))
        assert checkpoints.load_agent(tmp_path / "small.pt").seen.count == 1e6 + 256
    assert [step for step, _ in scalars(first, "losses/value_loss")] == [128, 256, 384]


def test_agents_are_evaluated_and_filmed(runs, tmp_path, capsys):
    settings = {"episodes": 2, "cuda": False, "torch_threads": 1}
    paths = tuple(str(run / "checkpoint.pt") for run in runs.values())
    evaluate.main(evaluate.Args(checkpoint=paths, **settings, output_dir=str(tmp_path / "score")))
    rows = json.loads((tmp_path / "score" / "results.json").read_text())["results"]
    assert [row["game"] for row in rows] == ["Reacher", "Reacher", "PushT"]
    assert [row["lengths"] for row in rows[:2]] == [[50] * 2] * 2 and max(rows[2]["lengths"]) <= 150
    assert rows[2]["solved"] == 1 - rows[2]["truncated"] / 2 and "solved" not in rows[0]
    said = capsys.readouterr().out
    assert "solved" in said and "distinct" not in said  # random starts: no game is a copy
    film = {"attention": True, "film_steps": 20, "output_dir": str(tmp_path / "film")}
    evaluate.main(evaluate.Args(checkpoint=paths[:1], **film, cuda=False))
    steps = list(csv.DictReader((tmp_path / "film" / "steps.csv").open()))
    assert len(steps) == 50 and {"action_0", "action_1", "state_representation", "autoencoder"} <= set(steps[0])
    assert float(steps[-1]["score"]) == pytest.approx(sum(float(row["reward"]) for row in steps), rel=1e-4)
    assert (tmp_path / "film" / "film.gif").stat().st_size > 5_000
    obs = np.random.default_rng(0).integers(0, 255, (2, 4, 84, 84), dtype=np.uint8)
    agent, again = (checkpoints.load_agent(runs["wsa"] / "checkpoint.pt") for _ in range(2))
    actions = agent.act(obs, greedy=True)
    assert actions.shape == (2, 2) and np.array_equal(actions, again.act(obs, greedy=True))
    assert agent.weighed == ("state_representation", "autoencoder")
    state = checkpoints.load_checkpoint(runs["state"] / "checkpoint.pt", "ppo_e2e_continuous")
    assert state["args"]["precision"] == "float32"  # as it says
    for of_atari in ({"variation": ("mode:1",)}, {"max_frames_per_game": 100}):
        with pytest.raises(InputError, match="no Atari game"):
            evaluate.main(evaluate.Args(checkpoint=paths[:1], **of_atari, output_dir=str(tmp_path / "no")))


def test_sigterm_to_all_processes_saves(tmp_path):
    """As a terminal, `timeout` and Slurm send it: to the program and to the processes of its environments."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    flags += ["--total-timesteps=100000", f"--run-dir={tmp_path / 'run'}", "--from-state"]
    script = Path(ppo_e2e_continuous.__file__)
    command = [sys.executable, script.name, *flags]
    program = subprocess.Popen(command, cwd=script.parent, start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("run/events*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    os.killpg(program.pid, signal.SIGTERM)
    _, said = program.communicate(timeout=60)
    assert program.returncode == 0 and "stopping soon" in said, said
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["global_step"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_environments_leave_nothing_open():
    """Evaluation makes new ones again and again."""
    opened = []
    for _ in range(3):
        envs = rendered.make_envs(PUSHT, 1, from_state=True)
        envs.close()
        del envs
        opened.append(len(list(Path("/proc/self/fd").iterdir())))
    assert opened[0] == opened[2]


def test_a_program_that_fails_ends_its_environments():
    code = f"from environments import rendered; envs = rendered.make_envs({PUSHT!r}, 1, from_state=True); 1 / 0"
    root = Path(ppo_e2e_continuous.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


def test_an_episode_that_is_solved_at_the_time_limit_is_solved():
    class AtTheGoal(gym.Wrapper):
        def reset(self, *, seed=None, options=None):
            obs, info = self.env.reset(seed=seed, options=options)
            if self.solved:
                block, place = self.unwrapped.block, self.unwrapped.goal_pose
                block.angle = place[2]  # before the position, which it changes
                block.position = list(place[:2])
            return obs, info

    found = []
    for solved in (True, False):
        env = AtTheGoal(rendered.make_env(PUSHT, from_state=True))
        env.solved = solved
        envs = gym.vector.SyncVectorEnv(
            [lambda env=env: gym.wrappers.TimeLimit(env, 1)], autoreset_mode=gym.vector.AutoresetMode.SAME_STEP
        )
        found += play_games(lambda obs: np.zeros((1, 2), dtype=np.float32), envs, 1, [3])
    assert [(length, cut_off) for _, length, cut_off in found] == [(1, False), (1, True)]
    assert found[0][0] == 1  # the whole place is covered


def test_after_a_resume_an_added_models_gradient_is_clipped(tmp_path, clipped):
    flags = {"encoders": ("state_representation",), "schedule": ("add:autoencoder:100",), "runs_dir": str(tmp_path)}
    run = ppo_wsa_continuous.main(ppo_wsa_continuous.Args(**SMALL, **PLAIN, **flags))
    clipped.clear()
    goes_on = SMALL | flags | {"total_timesteps": 384, "resume": str(run / "checkpoint.pt")}
    ppo_wsa_continuous.main(ppo_wsa_continuous.Args(**goes_on, **PLAIN))
    stepped = files.load(run / "checkpoint.pt", "checkpoint")["optimizer"]["state"].values()
    assert set(clipped) == {sum(state["exp_avg"].numel() for state in stepped)} and len(clipped) == 4


@pytest.mark.parametrize("combiner", ["uniform", "reservoir"])
def test_other_combiners_and_a_schedule(combiner, tmp_path):
    schedule = ("drop:autoencoder:100",) if combiner == "uniform" else ()
    flags = ppo_wsa_continuous.Args(**SMALL, **PLAIN, combiner=combiner, schedule=schedule, runs_dir=str(tmp_path))
    run = ppo_wsa_continuous.main(flags)
    agent = checkpoints.load_agent(run / "checkpoint.pt")
    assert agent.agent.names == ("state_representation", "autoencoder")[: 1 if schedule else 2]


def test_probes_find_what_is_there(tmp_path):
    """R^2 of a linear function is 1, of noise about 0; and the program's table for Reacher has its kinds of things."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 5))
    labels = {"linear": 3 * x[:, 0] - x[:, 2] + 1, "noise": rng.normal(size=600)}
    train, validation, test = (np.arange(600) // 200 == i for i in range(3))
    found, _ = probe_encoders.regress(x, labels, train, validation, test)
    assert found["linear"][0] > 0.999 and abs(found["noise"][0]) < 0.1
    settings = {"num_samples": 150, "encoders": ("autoencoder",), "cuda": False}
    output = tmp_path / "probes.csv"
    probe_encoders.main(probe_encoders.Args(env_id="Reacher-v5", **settings, output=str(output)))
    rows = list(csv.DictReader(output.open()))
    assert {"r2_joint angles", "r2_fingertip", "r2_target", "r2_mean"} <= set(rows[0])
    assert [row["features"] for row in rows] == ["autoencoder", "autoencoder", "raw pixels"]


@pytest.mark.parametrize("env_id", ["Reacher-v5", PUSHT])
def test_the_stored_models_have_learnt(env_id):
    """They are small, say what they are, and their losses on held-out episodes are below the untrained networks'."""
    paths = sorted((PRETRAINED / rendered.folder_name(env_id)).glob("*.pt"))
    assert [path.stem for path in paths] == ["autoencoder", "state_representation"]
    assert sum(path.stat().st_size for path in paths) < 5e6
    for path in paths:
        about = load_encoder(path, game=rendered.folder_name(env_id)).description
        assert about["env_id"] == env_id and about["data"]["frames"] == 50_000
        assert about["validation_loss"] < 0.7 * about["validation_loss_untrained"]
        if path.stem == "autoencoder":
            assert about["validation_loss"] < 0.1 * about["median_frame_error"]


def test_the_state_for_probes_is_the_simulator_s():
    env = rendered.make_env("Reacher-v5")
    env.reset(seed=5)
    state, numbers = rendered.simulator_state(env), env.unwrapped._get_obs()
    np.testing.assert_allclose(state["joint angles"], numbers[:4])
    np.testing.assert_allclose(state["target"], numbers[4:6])
    np.testing.assert_allclose(state["fingertip"] - state["target"], numbers[8:10])
    env.close()


@pytest.mark.parametrize(
    ("main", "args", "message"),
    [
        (ppo_e2e_continuous, {"env_id": "ALE/Pong-v5"}, "is an Atari game: play it with the scripts .* _atari"),
        (ppo_e2e_continuous, {"env_id": "Breakout-v5"}, "is an Atari game: play it with the scripts .* _atari"),
        (ppo_e2e_continuous, {"env_id": "Nope-v1"}, "no such environment here; Reacher-v5 and gym_pusht/PushT-v0"),
        (ppo_e2e_continuous, {"env_id": "CartPole-v1"}, r"its actions are Discrete\(2\)"),
        (ppo_e2e_continuous, {"action_repeat": 0}, "--action-repeat must be at least 1"),
        (ppo_wsa_continuous, {"pretrained_dir": "nowhere"}, "no stored state_representation.*--env-id Reacher-v5"),
        (ppo_wsa_atari, {"env_id": "Reacher-v5"}, "no such Atari game; the scripts whose names end in _continuous"),
        (pretrain_encoders, {"env_id": "Reacher-v5", "repeat_action_probability": 0.2}, "is an option of Atari games"),
        (pretrain_encoders, {"action_repeat": 2}, "is an option of environments that are no Atari games"),
    ],
)
def test_bad_input(main, args, message):
    with pytest.raises(InputError, match=message):
        main.main(main.Args(**args))


def test_environments_that_do_not_fit_are_refused():
    """That do not draw, or not in colour; whose numbers are no vector; whose actions are whole numbers."""

    class Odd(gym.Env):
        action_space = gym.spaces.Box(-1, 1, (1,))
        observation_space = gym.spaces.Dict({"a": gym.spaces.Box(-1, 1, (1,))})
        metadata: dict = {"render_modes": ["rgb_array"], "render_fps": 10}

        def __init__(self, render_mode=None):
            self.render_mode = render_mode

        def reset(self, *, seed=None, options=None):
            return {"a": np.zeros(1, dtype=np.float32)}, {}

        def render(self):
            return np.zeros((50, 50), dtype=np.uint8)

    class Silent(Odd):
        metadata: dict = {"render_modes": []}

    class Whole(Odd):
        action_space = gym.spaces.Box(-1, 1, (1,), np.int64)

    for name, one in {"Odd": Odd, "Silent": Silent, "Whole": Whole}.items():
        gym.register(f"{name}-v0", one)
    with pytest.warns(UserWarning, match="render_modes"), pytest.raises(InputError, match="does not draw itself"):
        rendered.make_env("Silent-v0")
    with pytest.raises(InputError, match="cannot draw"):
        rendered.make_env("Odd-v0")
    with pytest.raises(InputError, match=r"--from-state: Odd-v0 observes Dict.*a vector of numbers"):
        rendered.make_env("Odd-v0", from_state=True)
    with pytest.raises(InputError, match="its actions are Box.*a bounded vector of numbers"):
        rendered.make_env("Whole-v0")
