"""Evaluation: scores against Gymnasium's own count, repetition, files, weights, fewer models, exported agents, bad
input."""

import csv
import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import export_agent
import ppo_e2e_atari
import ppo_wsa_atari
from environments import hackatari
from environments.atari import make_envs
from evaluate import STREAM, Args, games_and_envs, main, summarise, summarise_weights
from housekeeping import checkpoints, files
from housekeeping.flags import InputError
from housekeeping.seeds import env_seeds

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"num_envs": 2, "num_steps": 16, "total_timesteps": 32, "cuda": False, "precision": "float32"}


@pytest.fixture(scope="session")
def agents(tmp_path_factory, pretrained_dir) -> dict[str, str]:
    """Checkpoints after one rollout: what is tested here does not depend on how well they play."""
    runs = str(tmp_path_factory.mktemp("runs"))
    light = {
        "encoders": ("state_representation", "autoencoder"),
        "features_dim": 32,
        "centre_embeddings": False,  # saves the measuring
        "pretrained_dir": pretrained_dir,
        "runs_dir": runs,
    }
    runs_of = {
        "pong": ppo_e2e_atari.main(ppo_e2e_atari.Args(**SMALL, runs_dir=runs)),
        "breakout": ppo_e2e_atari.main(ppo_e2e_atari.Args(env_id="ALE/Breakout-v5", **SMALL, runs_dir=runs)),
        "wsa": ppo_wsa_atari.main(ppo_wsa_atari.Args(**SMALL, **light, scorer="linear")),
        "linear": ppo_wsa_atari.main(ppo_wsa_atari.Args(**SMALL, **light, combiner="linear")),
    }
    return {name: str(run / "checkpoint.pt") for name, run in runs_of.items()}


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["pong", "breakout"])
def test_scores_are_those_of_gymnasium(agents, name, tmp_path):
    """`RecordEpisodeStatistics` around the same games, played by the same agent, in the order of environments."""
    args = Args(
        checkpoint=(agents[name],),
        episodes=4,
        num_envs=2,
        sample=True,
        output_dir=str(tmp_path),
        max_frames_per_game=1200,
    )
    main(args)
    agent = checkpoints.load_agent(Path(agents[name]))
    env_id = files.load(Path(agents[name]), "checkpoint")["args"]["env_id"]
    envs = gym.wrappers.vector.RecordEpisodeStatistics(make_envs(env_id, 2, max_frames_per_game=1200))
    obs, _ = envs.reset(seed=env_seeds(2, 1, STREAM))
    torch.manual_seed(1)
    games = [[], []]
    while min(len(one) for one in games) < 2:
        obs, _, _, _, info = envs.step(agent.act(obs, greedy=False))
        for i in np.flatnonzero(info.get("_episode", np.zeros(2, dtype=bool))):
            games[i].append((int(info["episode"]["r"][i]), int(info["episode"]["l"][i])))
    envs.close()
    expected = games[0][:2] + games[1][:2]
    assert [(int(game["score"]), int(game["agent_steps"])) for game in read_csv(tmp_path / "games.csv")] == expected
    (row,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert row["mean"] == pytest.approx(np.mean([score for score, _ in expected])) and row["games"] == 4
    assert len({score for score, _ in expected}) > 1  # else nothing was compared


def test_one_seed_gives_one_result(agents, tmp_path):
    def games(folder, **changes):
        settings = {"episodes": 2, "max_frames_per_game": 800, "seed": 3, "output_dir": str(tmp_path / folder)}
        main(Args(checkpoint=(agents["pong"],), **settings | changes))
        return (tmp_path / folder / "games.csv").read_text()

    first = games("a", sample=True)
    assert first == games("b", sample=True)
    assert first != games("c", sample=True, seed=4)
    assert first != games("d")


def test_every_environment_plays_equally_many():
    assert games_and_envs(Args()) == (100, 10) and games_and_envs(Args(suite=True)) == (10, 10)
    for episodes in range(1, 60):
        given, num_envs = games_and_envs(Args(episodes=episodes))
        assert given == episodes and episodes % num_envs == 0 and 1 <= num_envs <= 10
    assert games_and_envs(Args(episodes=12)) == (12, 6)


def test_summary_of_games():
    """Worked out by hand: standard deviation sqrt(5/3), Student's t of 3 degrees of freedom 3.182446."""
    row = summarise([(1, 10, False), (2, 10, False), (3, 10, True), (4, 10, False)])
    assert (
        row["mean"] == 2.5 and row["std"] == pytest.approx(1.2909944) and row["truncated"] == 1 and row["distinct"] == 4
    )
    assert row["ci_high"] - 2.5 == pytest.approx(3.182446 * 1.2909944 / 2, rel=1e-6) == 2.5 - row["ci_low"]
    for lengths, distinct in (((10, 10, 17), 1), ((10, 17, 18), 2), ((30, 10, 20, 16), 3)):
        assert summarise([(1, length, False) for length in lengths])["distinct"] == distinct
    one = summarise([(7, 10, False)])
    assert one["mean"] == 7 and one["std"] is None and one["ci_low"] is None
    json.dumps(one, allow_nan=False)


def test_games_at_the_frame_limit_are_counted(agents, tmp_path, capsys):
    main(Args(checkpoint=(agents["pong"],), episodes=2, max_frames_per_game=200, output_dir=str(tmp_path)))
    (row,) = read_csv(tmp_path / "results.csv")
    assert row["truncated"] == "2" and row["games"] == "2" and row["agent"].endswith("/checkpoint")
    assert all(int(game["agent_steps"]) <= 50 and game["cut_off"] == "1" for game in read_csv(tmp_path / "games.csv"))
    assert "cut off" in capsys.readouterr().out


def test_it_writes_into_its_own_folder_only(agents, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = Path(agents["wsa"]).parent
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*")}
    quick = {"episodes": 2, "max_frames_per_game": 100}
    output = main(Args(checkpoint=(agents["wsa"], agents["pong"]), labels=("attention", "pixels"), **quick))
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*")} == before
    assert output.parent == Path("evaluations") and output.name.startswith("Pong__score__")
    assert sorted(path.name for path in output.iterdir()) == ["games.csv", "results.csv", "results.json"]
    assert [path for path in tmp_path.iterdir()] == [tmp_path / "evaluations"]
    assert [row["agent"] for row in read_csv(output / "results.csv")] == ["attention", "pixels"]
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("attention  Pong  unchanged") for line in lines) and any(
        line.startswith("pixels") for line in lines
    )


def test_a_checkpoint_of_a_gpu_opens_on_a_cpu(agents, tmp_path, monkeypatch):
    """The file is marked as a GPU's, as torch.save would have done there."""
    checkpoint = files.load(Path(agents["pong"]), "checkpoint")
    path = tmp_path / "gpu.pt"
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        files.save(checkpoint, path)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(path, weights_only=True)
    main(
        Args(checkpoint=(str(path),), episodes=1, max_frames_per_game=100, cuda=False, output_dir=str(tmp_path / "out"))
    )
    assert (tmp_path / "out" / "results.json").exists()


# ---------------------------------------------------------------- weights


def test_summary_of_weights():
    never = summarise_weights(np.tile([0.9, 0.1], (8, 1)), ("a", "b"))
    assert never["movement"] == pytest.approx(0, abs=1e-12) and never["models"]["a"]["std"] == pytest.approx(
        0, abs=1e-12
    )
    assert never["models"]["a"]["mean"] == pytest.approx(0.9)
    assert never["models"]["b"]["mean_by_quarter_of_the_game"] == [pytest.approx(0.1)] * 4
    assert never["entropy_nats"] == pytest.approx(-0.9 * np.log(0.9) - 0.1 * np.log(0.1))
    flat = summarise_weights(np.full((8, 4), 0.25), ("a", "b", "c", "d"))
    assert flat["movement"] is None and flat["entropy_nats"] == pytest.approx(np.log(4)) == flat["largest_entropy_nats"]
    around_even = summarise_weights(np.array([[1.0, 0.0], [0.0, 1.0]] * 4), ("a", "b"))
    assert around_even["movement"] == pytest.approx(1.0) and around_even["entropy_nats"] == pytest.approx(0.0, abs=1e-9)
    # by hand: weights of a are 0.5, 0.9: mean 0.7, variance 0.04; squared distance from 0.5: (0 + 0.16) / 2 = 0.08
    half = summarise_weights(np.array([[0.5, 0.5], [0.9, 0.1]]), ("a", "b"))
    assert half["variance_over_time"] == pytest.approx(0.04) and half["squared_distance_from_even"] == pytest.approx(
        0.08
    )
    assert half["movement"] == pytest.approx(0.5)


def test_relative_scores_by_hand(tmp_path, monkeypatch):
    """Random play -20; 10 unchanged and -5 changed is half of the way; an agent at -20 unchanged has no relative
    score."""
    means = iter((-20.0, 10.0, -20.0, -5.0, -30.0))
    monkeypatch.setattr(evaluate, "hackatari_modifications", lambda env_id: ({}, {}))
    monkeypatch.setattr(evaluate, "modes_and_difficulties", lambda env_id: {"mode:1": ""})
    monkeypatch.setattr(
        evaluate, "play", lambda act, env_id, variation, *rest: {"variation": variation, "mean": next(means)}
    )
    for name in ("plot_suite", "write_results"):
        monkeypatch.setattr(evaluate, name, lambda *rest: None)
    player = SimpleNamespace(act=len, precision="bfloat16")
    agents = [evaluate.Evaluated(label, "", player, "ALE/Pong-v5", "", 0, 0.0) for label in ("good", "bad")]
    rows = evaluate.suite(agents, Args(checkpoint=("good", "bad")), tmp_path)
    assert [row.get("relative") for row in rows] == [None, 1.0, None, 0.5, None]
    # what an agent played in; random play has none
    assert [row.get("precision") for row in rows] == [
        None,
        *["bfloat16"] * 4,
    ]


def test_attention_writes_what_the_agent_weighed(agents, tmp_path):
    """steps.csv against the weights computed from the frozen models and the formula, along the actions that it says
    were taken."""
    main(
        Args(
            checkpoint=(agents["wsa"],),
            attention=True,
            max_frames_per_game=1200,
            film_steps=5,
            output_dir=str(tmp_path),
        )
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.gif", "steps.csv", "summary.json", "weights.png"]
    rows = read_csv(tmp_path / "steps.csv")
    seeing = checkpoints.load_agent(Path(agents["wsa"]))
    combiner, models = seeing.agent.combiner, seeing.frozen.models
    env = evaluate.make_changed_env("ALE/Pong-v5", evaluate.UNCHANGED, max_frames_per_game=1200)
    obs, _ = env.reset(seed=env_seeds(1, 1, STREAM)[0])
    score = 0
    with torch.no_grad():
        for row in rows:
            x = torch.from_numpy(np.asarray(obs))[None]
            z = {name: models[name](x) for name in ("state_representation", "autoencoder")}
            c = combiner.context_adapter(z["autoencoder"])
            scores = [combiner.scorer(torch.cat([c, combiner.adapters[name](z[name])], dim=1)).item() for name in z]
            expected = np.exp(scores) / np.exp(scores).sum()
            weights = [float(row["state_representation"]), float(row["autoencoder"])]
            np.testing.assert_allclose(weights, expected, atol=1e-4)
            obs, reward, terminated, truncated, _ = env.step(int(row["action"]))
            score += int(reward)
            assert int(row["reward"]) == reward and int(row["score"]) == score
    assert terminated or truncated
    weights = np.array([[float(row["state_representation"]), float(row["autoencoder"])] for row in rows])
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-4)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == len(rows) and summary["score"] == score and summary["cut_off"] == truncated
    assert summary["models"]["autoencoder"]["mean"] == pytest.approx(weights[:, 1].mean(), abs=1e-5)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 5 and film.is_animated


def test_agents_without_weights_get_the_film_alone(agents, tmp_path, capsys):
    settings = {"attention": True, "max_frames_per_game": 400, "film_steps": 3, "film_start": 10}
    main(
        Args(
            checkpoint=(agents["pong"], agents["linear"]),
            labels=("pixels", "a/../linear"),
            output_dir=str(tmp_path / "pixels"),
            **settings,
        )
    )
    for folder in ("pixels/1_pixels", "pixels/2_a____linear"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["film.gif", "steps.csv"]
        assert list(read_csv(tmp_path / folder / "steps.csv")[0]) == ["step", "action", "reward", "score", "lives"]
    main(
        Args(
            checkpoint=(agents["pong"],),
            attention=True,
            max_frames_per_game=400,
            film_start=5000,
            output_dir=str(tmp_path / "late"),
        )
    )
    assert "no film: the game was over" in capsys.readouterr().out and not (tmp_path / "late" / "film.gif").exists()


def test_fewer_models(agents, tmp_path):
    """What an agent does without one of two models is what the other one alone gives: its weight is 1."""
    quick = {"episodes": 1, "max_frames_per_game": 200}
    main(Args(checkpoint=(agents["wsa"],), drop_encoders=("state_representation",), output_dir=str(tmp_path), **quick))
    (row,) = files.read_csv(tmp_path / "results.csv")
    assert row["agent"].endswith(" without state_representation")
    copy = tmp_path / "copy" / Path(agents["wsa"]).parent.name / Path(agents["wsa"]).name  # the same short name
    copy.parent.mkdir(parents=True)
    shutil.copy(agents["wsa"], copy)
    both = Args(checkpoint=(agents["wsa"], str(copy)), drop_encoders=("autoencoder",))
    labels = [agent.label for agent in evaluate.open_agents(both, torch.device("cpu"))]
    assert labels == [f"{agents['wsa']} without autoencoder", f"{copy} without autoencoder"]
    seeing = checkpoints.load_agent(Path(agents["wsa"]))
    adapter = seeing.agent.combiner.adapters["autoencoder"]
    seeing.drop("state_representation")
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 4, 84, 84), dtype=np.uint8))
    actions, weights = seeing.act_and_weights(x, greedy=True)
    assert seeing.weighed == ("autoencoder",) and torch.equal(weights, torch.ones(3, 1))
    with torch.no_grad():
        expected = seeing.agent.actor(adapter(seeing.frozen.models["autoencoder"](x))).argmax(dim=1)
    assert torch.equal(actions, expected)
    for checkpoint, names, says in (
        ("wsa", ("object_masks",), "object_masks is not one of the models"),
        ("wsa", ("autoencoder", "state_representation"), "state_representation is the last model"),
        ("linear", ("autoencoder",), "built for one set of models"),
        ("pong", ("autoencoder",), "has no frozen models"),
    ):
        with pytest.raises(InputError, match=f"--drop-encoders .*{says}"):
            main(Args(checkpoint=(agents[checkpoint],), drop_encoders=names, output_dir=str(tmp_path), **quick))


# ----------------------------------------------------------- changed games


def test_modes_and_difficulties_change_the_game(agents, tmp_path, capsys, monkeypatch):
    main(Args(list_variations=True, env_id="ALE/Breakout-v5"))
    listed = capsys.readouterr().out
    assert "mode:44" in listed and "difficulty:1" in listed and "mode:0 " not in listed
    plain, changed = (
        evaluate.make_changed_env("ALE/Breakout-v5", name, noop_max=0)
        for name in (evaluate.UNCHANGED, "mode:16+difficulty:1")
    )
    assert not np.array_equal(plain.reset(seed=1)[0], changed.reset(seed=1)[0])
    other = gym.make("ALE/Breakout-v5", mode=16, difficulty=1, frameskip=1, repeat_action_probability=0.0)
    other.reset(seed=1)
    other.step(1)  # FIRE, as at every start of a game here
    np.testing.assert_array_equal(changed.unwrapped.ale.getScreenGrayscale(), other.unwrapped.ale.getScreenGrayscale())
    quick = {"episodes": 1, "max_frames_per_game": 200, "output_dir": str(tmp_path)}
    monkeypatch.setattr(hackatari, "COMPARED_STEPS", 200)
    main(Args(checkpoint=(agents["pong"],), variation=("mode:1", "difficulty:2+mode:1"), **quick))
    assert [row["variation"] for row in read_csv(tmp_path / "results.csv")] == ["mode:1", "difficulty:2+mode:1"]
    assert evaluate.first_difference("ALE/Pong-v5", evaluate.UNCHANGED) == "no pixel in 200 steps"
    assert evaluate.first_difference("ALE/Pong-v5", "difficulty:2").startswith("differs from step")
    with pytest.raises(
        InputError,
        match="Pong has no such variation; the known ones are .*mode:1, difficulty:1, difficulty:2, difficulty:3",
    ):
        main(Args(checkpoint=(agents["pong"],), variation=("mode:7",), **quick))


def test_without_hackatari_one_sentence_says_how_to_get_it(agents, tmp_path, monkeypatch, capsys):
    find_spec = evaluate.importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "hackatari" else find_spec(name))
    evaluate.hackatari_modifications.cache_clear()
    for flags in ({"variation": ("gravity",)}, {"suite": True}):
        with pytest.raises(
            InputError, match=r"hackatari, which is not installed.*pip install -r requirements-hackatari.txt"
        ):
            main(Args(checkpoint=(agents["breakout"],), output_dir=str(tmp_path), **flags))
    main(Args(list_variations=True))
    assert "requirements-hackatari.txt" in capsys.readouterr().out
    evaluate.hackatari_modifications.cache_clear()


def test_both_requirements_files_agree():
    """All but NumPy, OpenCV (its builds differ) and what only one of them has."""
    files = [
        dict(line.split("==") for line in (ROOT / name).read_text().split() if "==" in line)
        for name in ("requirements.txt", "requirements-hackatari.txt")
    ]
    shared = set(files[0]) & set(files[1]) - {"numpy"}
    assert len(shared) >= 10 and all(files[0][name] == files[1][name] for name in shared)
    assert int(files[1]["numpy"].split(".")[0]) < 2 and "hackatari" in files[1]


# ---------------------------------------------------------- exported agents


@pytest.mark.parametrize("name", ["pong", "wsa"])
def test_an_exported_agent_plays_and_is_small(agents, name, tmp_path):
    path = tmp_path / "small.pt"
    export_agent.main(export_agent.Args(checkpoint=agents[name], output=str(path)))
    carried = files.load(path, "checkpoint").get("own_models", {}).values()  # the frozen models, beside the agent
    models = sum(tensor.nbytes for state in carried for tensor in state.values())
    # half precision, and neither of Adam's two moments
    assert path.stat().st_size - models < Path(agents[name]).stat().st_size / 5
    x = np.random.default_rng(0).integers(0, 256, (16, 4, 84, 84), dtype=np.uint8)
    whole = checkpoints.load_agent(Path(agents[name]))
    small = checkpoints.load_agent(path, pretrained_dir=str(tmp_path / "no models here"))
    for (key, weight), stored in zip(whole.state_dict().items(), small.state_dict().values(), strict=True):
        rounded = (
            weight if key.startswith("frozen") or not weight.is_floating_point() else weight.half().to(weight.dtype)
        )
        assert torch.equal(stored, rounded), key
    assert small.act(x, greedy=True).shape == (16,)
    again = tmp_path / "again.pt"  # of a small one: the same
    export_agent.main(export_agent.Args(checkpoint=str(path), output=str(again)))
    assert torch.equal(checkpoints.load_agent(again).act(torch.tensor(x), True), small.act(torch.tensor(x), True))
    with pytest.raises(InputError, match="there is such a file already"):
        export_agent.main(export_agent.Args(checkpoint=agents[name], output=str(path)))
    script = {"pong": ppo_e2e_atari, "wsa": ppo_wsa_atari}[name]
    saved = files.load(path, "checkpoint")["args"]
    with pytest.raises(InputError, match="an exported agent can play but not train on"):
        script.main(script.Args(**saved | {"resume": str(path), "total_timesteps": 64}))


# ---------------------------------------------------------------- bad input


def test_flags_that_cannot_work(agents, tmp_path):
    one = {"checkpoint": (agents["pong"],), "output_dir": str(tmp_path)}
    for flags, says in (
        ({}, "name at least one agent"),
        (one | {"labels": ("a", "b")}, "give one for each"),
        (one | {"episodes": 10, "num_envs": 3}, "--num-envs 3 does not divide --episodes 10"),
        (one | {"episodes": 0}, "--episodes must be at least 1"),
        (one | {"suite": True, "attention": True}, "leave --variation and --attention out"),
        (one | {"attention": True, "variation": ("mode:1", "difficulty:1")}, "one --variation at most"),
        (one | {"repeat_action_probability": 1.0}, "must be at least 0 and below 1"),
        (one | {"variation": ("mode:1+mode:0",)}, "names one thing twice"),
        (one | {"checkpoint": (agents["pong"], agents["pong"])}, "named twice"),
        (one | {"env_id": "ALE/Breakout-v5"}, "--env-id is an option of --list-variations"),
        (one | {"film_steps": 3}, "--film-steps is an option of --attention"),
        (one | {"list_variations": True}, "of a game, not of an agent"),
        ({"list_variations": True, "env_id": "PongNoFrameskip-v4"}, "ALE/Pong-v5"),
    ):
        with pytest.raises(InputError, match=says):
            main(Args(**flags))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="there is something in it already"):
        main(Args(**one))


def test_checkpoints_that_cannot_be_used(agents, tmp_path, pretrained_dir):
    whole = Path(agents["pong"]).read_bytes()
    truncated, foreign = tmp_path / "truncated.pt", tmp_path / "foreign.pt"
    truncated.write_bytes(whole[: len(whole) // 2])
    files.save({**files.load(Path(agents["pong"]), "checkpoint"), "script": "dreamer"}, foreign)
    files.save({**files.load(Path(agents["pong"]), "checkpoint"), "agent": {}}, tmp_path / "shapeless.pt")
    files.save({"kind": "checkpoint", "script": 3}, tmp_path / "nameless.pt")
    encoder = Path(pretrained_dir) / "Pong" / "autoencoder.pt"
    for checkpoint, says in (
        (tmp_path / "nothing.pt", "there is no such file"),
        (truncated, "damaged"),
        (foreign, "made by 'dreamer.py', which is not one of the scripts here"),
        (tmp_path / "shapeless.pt", "does not fit this version of ppo_e2e_atari.py"),
        (tmp_path / "nameless.pt", "is not one of the scripts here"),
        (encoder, "expected a file of the kind 'checkpoint', found 'encoder'"),
    ):
        with pytest.raises(InputError, match=says):
            main(Args(checkpoint=(str(checkpoint),), output_dir=str(tmp_path / "out")))
    empty, other = tmp_path / "empty", tmp_path / "other"
    (other / "Pong").mkdir(parents=True)
    for name in ("state_representation", "autoencoder"):
        payload = files.load(Path(pretrained_dir) / "Pong" / f"{name}.pt", "encoder")
        files.save({**payload, "comment": "another file"}, other / "Pong" / f"{name}.pt")
    for folder, says in (
        (empty, "no stored state_representation, autoencoder; make them with"),
        (other, "is not the one this agent was trained with"),
    ):
        with pytest.raises(InputError, match=says):
            main(Args(checkpoint=(agents["wsa"],), pretrained_dir=str(folder), output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_one_sentence(tmp_path, monkeypatch, program):
    monkeypatch.chdir(tmp_path)
    said = program("evaluate.py", "--checkpoint", "nothing.pt")
    assert said == (1, "", "error: nothing.pt: there is no such file.\n") and list(tmp_path.iterdir()) == []
