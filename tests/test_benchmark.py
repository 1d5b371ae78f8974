"""Experiments: read as written, interrupted and taken up again without loss or doubling, and reported from what they
left."""

import csv
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from housekeeping import files as storage
import tyro
from housekeeping.flags import InputError
from torch.utils.tensorboard import SummaryWriter

import benchmark.run
import evaluate
from benchmark import report
from benchmark.learning_curves import running_mean
from benchmark.report import centre_and_interval, insert, marked_table
from benchmark.run import Args, Runner, in_order_of_needs, read_experiment

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = sorted((ROOT / "benchmark" / "experiments").glob("*.toml"))
TINY = """
title = "Tiny"
seeds = [1, 2]
flags = "--num-envs 2 --num-steps 32 --total-timesteps 256 --max-frames-per-game 160 --checkpoint-interval 64
--update-epochs 1" evaluate = "--episodes 2 --max-frames-per-game 160"

[[arms]]
name = "end_to_end"
command = "ppo_e2e_atari.py"
published = { Pong = 21.0 }
"""


def start(tmp_path: Path, *flags: str, **options) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "benchmark.run",
        str(tmp_path / "tiny.toml"),
        "--runs-dir",
        str(tmp_path / "runs"),
        "--threads",
        "1",
    ]
    return subprocess.Popen(
        [*command, "--results-dir", str(tmp_path / "results"), *flags], cwd=ROOT, text=True, **options
    )


def wait_for(condition, seconds: float = 300) -> None:
    begin = time.time()
    while not condition():
        assert time.time() - begin < seconds
        time.sleep(0.1)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_can_be_read(path):
    """Its scripts are there and take their flags, with their values, and a run comes after those it builds on."""
    title, runs = read_experiment(path)
    runs = [run for run in runs if not run.maker]
    ordered = [run.name for run in in_order_of_needs(runs)]
    assert title and sorted(ordered) == sorted(run.name for run in runs)
    for run in runs:
        assert all(ordered.index(name) < ordered.index(run.name) for name in run.needs.values())
        for command in run.commands if not run.earlier else ():
            script, *flags = shlex.split(command)
            module = importlib.import_module(Path(script).stem)
            module.check_args(tyro.cli(module.Args, args=flags))
        if run.evaluate is not None:
            evaluate.check_args(tyro.cli(evaluate.Args, args=["--checkpoint", "some.pt", *shlex.split(run.evaluate)]))


def test_games_seeds_and_placeholders(tmp_path):
    path = tmp_path / "some.toml"
    path.write_text(
        'games = ["Pong", "Breakout"]\nseeds = [3, 4]\nflags = "--gamma 0.9"\n'
        '[[arms]]\nname = "one"\nseeds = [3]\ncommand = "pretrain_policy_atari.py"\ngame_flags = { Pong = "--num-envs 4" }\n'
        '[[arms]]\nname = "two"\ngames = ["Pong"]\ncommand = "dqn_bt_atari.py --pretrained-policy " "{run:one:3}/checkpoint.pt --flights"\n'
        '[[arms]]\nname = "chain"\ngames = ["Pong"]\nseeds = [4]\n'
        'steps = ["pretrain_encoders.py --env-id {env_id} --data-dir d/{game}{seed}"]\n'
    )
    runs = {run.name: run for run in read_experiment(path)[1]}
    assert list(runs) == ["one__Pong__3", "one__Breakout__3", "two__Pong__3", "two__Pong__4", "chain__Pong__4"]
    assert runs["one__Breakout__3"].commands == [
        "pretrain_policy_atari.py --gamma 0.9 --env-id ALE/Breakout-v5 --seed 3"
    ]
    assert runs["one__Pong__3"].commands == [
        "pretrain_policy_atari.py --gamma 0.9 --num-envs 4 --env-id ALE/Pong-v5 --seed 3"
    ]
    assert list(runs["two__Pong__4"].needs.values()) == ["one__Pong__3"]
    assert runs["chain__Pong__4"].commands == ["pretrain_encoders.py --env-id ALE/Pong-v5 --data-dir d/Pong4"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("arms = 3 4", "this is not TOML"),
        ("[[arms]]\nname = 'a'\ncommand = 'nothing.py'", "there is no script nothing.py"),
        ("[[arms]]\nname = 'a'", "an arm needs a name, and one of: a command, steps"),
        ("[[arms]]\nname = 'a'\nof = 'other/b'\nflags = '--seed 3'", "beside of, an arm may have games and seeds"),
        ("[[arms]]\nname = 'a'\nof = 'other/b'", "other.toml: there is no such file"),
        ("steps = 3\n[[arms]]\nname = 'a'\ncommand = 'ppo_e2e_atari.py'", "steps: not known here"),
        ("[[arms]]\nname = 'a'\ncommand = 'ppo_e2e_atari.py {run:b}'", "needs b__Pong__1, which is not among the runs"),
        ("games = ['Pon']\n[[arms]]\nname = 'a'\ncommand = 'ppo_e2e_atari.py'", "did you mean ALE/Pong-v5"),
        ("title = 'none'", "at least one arm"),
        ("game_flags = {Pon = ''}\n[[arms]]\nname = 'a'\ncommand = 'ppo_e2e_atari.py'", "did you mean ALE/Pong-v5"),
        ("[[arms]]\nname = 'a'\nsteps = ['storage.py']\nflags = '--seed 3'", "for training scripts, not for steps"),
        ("[[arms]]\nname = 'a'\nsteps = ['storage.py']\nafter = ['other/b']", "other.toml: there is no such file"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(tmp_path, text, says):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_experiment(path)


def test_runs_that_need_each_other_are_refused(tmp_path):
    path = tmp_path / "circle.toml"
    arms = (f"[[arms]]\nname = '{a}'\ncommand = 'ppo_e2e_atari.py --x {{run:{b}}}'\n" for a, b in ("ab", "ba"))
    path.write_text("".join(arms))
    with pytest.raises(InputError, match="needs itself"):
        in_order_of_needs(read_experiment(path)[1])


def test_a_run_that_is_under_way_is_waited_for(tmp_path):
    """Whoever holds a run's lock is at work on it; only then, and if it left no results, it is done here."""
    (tmp_path / "chain.toml").write_text(
        '[[arms]]\nname = "chain"\nsteps = ["storage.py"]\n'
    )  # a script that does nothing when it is run
    (run,) = read_experiment(tmp_path / "chain.toml")[1]
    runner = Runner(
        Args(tmp_path / "chain.toml", runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results")), [run]
    )
    work, result = runner.work_dir(run.name), runner.result_dir(run)
    work.mkdir(parents=True)
    for leaves_results in (False, True):
        with open(work / "lock", "w") as lock:
            assert storage.try_lock(lock)
            thread = threading.Thread(target=runner.work, args=(run,))
            thread.start()
            thread.join(2.5)
            assert thread.is_alive() and not (work / "log.txt").exists()
            if leaves_results:
                (result / "run.json").write_text(json.dumps({"commands": run.commands, "evaluate": None}))
        thread.join(60)
        assert not thread.is_alive() and not runner.failed
        assert (work / "log.txt").exists() != leaves_results and (result / "run.json").is_file()
        shutil.rmtree(result)
        result.mkdir()
        (work / "log.txt").unlink(missing_ok=True)


def test_games_over_a_resumption(tmp_path, monkeypatch):
    """Steps that the checkpoint had not seen are shown once, and the time in between is not time of training."""
    for began, games, purge in (
        (1000.0, {10: (1005.0, 3), 20: (1010.0, 4), 30: (1020.0, 5)}, None),
        (5000.0, {25: (5006.0, 7)}, 21),
    ):
        monkeypatch.setattr(time, "time", lambda began=began: began)
        with SummaryWriter(str(tmp_path), purge_step=purge, filename_suffix=str(began)) as writer:
            for step, (when, score) in games.items():
                writer.add_scalar("charts/episodic_return", score, step, walltime=when)
        newest = max(tmp_path.glob("events*"), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (began, began))
    # 20 seconds until the first writer's last word, of which the purged game's are a part, and 6 of the second one's
    assert benchmark.run.games_of(tmp_path) == [(10, 5.0, 3.0), (20, 10.0, 4.0), (25, 26.0, 7.0)]


def test_what_else_a_run_has_logged(tmp_path):
    """Means over equal stretches, and in the report over the last tenth of the run and over runs; a model that has gone
    has no weight."""
    with SummaryWriter(str(tmp_path / "events")) as writer:
        for step in range(20):
            writer.add_scalar("weights/a", float(step), step)
            if step < 15:
                writer.add_scalar("weights/gone", 1.0, step)
            writer.add_scalar("losses/value_loss", 1.0, step)
    rows = benchmark.run.logged_of(tmp_path / "events", stretches=10)
    assert rows[:10] == [{"tag": "weights/a", "step": 2 * i + 1, "mean": 2 * i + 0.5} for i in range(10)]
    assert {row["tag"] for row in rows[10:]} == {"weights/gone"} and rows[-1]["step"] == 14
    storage.write_csv(tmp_path / "logged.csv", rows)
    assert (
        report.read_logged(tmp_path / "logged.csv") == {"weights/a": 18.5}
        and report.read_logged(tmp_path / "none.csv") == {}
    )
    (run,) = read_experiment(ROOT / "benchmark" / "experiments" / "changed_games_small.toml")[1]
    runs = [replace(run, arm=arm) for arm in ("one", "one", "two", "three")]
    logged = ({"x": 1.0}, {"x": 2.0}, {"y": 0.25}, {})
    finished = [
        report.Finished(run, *[np.zeros(1)] * 3, None, of_run) for run, of_run in zip(runs, logged, strict=True)
    ]
    assert report.logged_rows(finished) == [
        {"game": "Pong", "arm": "one", "x": "1.5", "y": ""},
        {"game": "Pong", "arm": "two", "x": "", "y": "0.25"},
    ]


def test_killed_and_begun_again(tmp_path):
    """SIGKILL in the second run: the first one is left alone, the second one's orphan waited for and not started twice;
    then the report."""
    slow = TINY.replace("--total-timesteps 256", "--total-timesteps 512").replace(
        "--checkpoint-interval 64", "--checkpoint-interval 128"
    )
    (tmp_path / "tiny.toml").write_text(slow)
    first = start(tmp_path, "--jobs", "1")
    results, runs = tmp_path / "results" / "tiny", tmp_path / "runs" / "tiny"
    wait_for(lambda: list(runs.glob("end_to_end__Pong__2/*/checkpoint.pt")))
    first.send_signal(signal.SIGKILL)
    first.wait()
    finished = results / "end_to_end__Pong__1" / "run.json"
    before = finished.stat().st_mtime_ns
    assert not (results / "end_to_end__Pong__2" / "run.json").exists()

    (folder,) = runs.glob("end_to_end__Pong__2/Pong__*")
    (folder / "buffer.pt").write_text("gigabytes that nothing needs at the end")
    second = start(tmp_path, "--jobs", "2", stdout=subprocess.PIPE)
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 0 and "2 runs, 1 finished" in said and "end_to_end__Pong__2: finished" in said
    assert finished.stat().st_mtime_ns == before
    assert not (folder / "buffer.pt").exists()
    for seed in (1, 2):
        folders = list(runs.glob(f"end_to_end__Pong__{seed}/Pong__*"))
        assert len(folders) == 1  # one run folder: nothing was begun twice
        log = (runs / f"end_to_end__Pong__{seed}" / "log.txt").read_text()
        assert log.count("$ python ppo_e2e_atari.py") == 1 and log.count("$ python evaluate.py") == 1
        with open(results / f"end_to_end__Pong__{seed}" / "curve.csv", newline="") as file:
            games = list(csv.DictReader(file))
        assert len(games) == 512 // 2 // 40 * 2  # 256 steps of 2 environments, games of 160 frames: 40 steps
        assert [int(game["step"]) for game in games[:2]] == [80, 80] and float(games[-1]["seconds"]) > 0
        about = json.loads((results / f"end_to_end__Pong__{seed}" / "run.json").read_text())
        assert about["commands"] == [
            f"ppo_e2e_atari.py {slow.split('flags = ')[1].splitlines()[0][1:-1]} --env-id ALE/Pong-v5 --seed {seed}"
        ]
        assert log.startswith(f"# revision {about['revision']}\n") and about["revision"]
        folder = f"runs/tiny/end_to_end__Pong__{seed}"
        assert (
            about["ran"][0] == f"{about['commands'][0]} --exp-name end_to_end --runs-dir {folder}"
        )  # as it was run, but for our folders
        assert about["ran"][-1].startswith(f"evaluate.py --checkpoint {folder}/Pong__end_to_end__{seed}__")
        assert {"torch", "gymnasium", "ale-py", "numpy", "cpu"} <= set(about["machine"])
        evaluation = json.loads((results / f"end_to_end__Pong__{seed}" / "evaluation.json").read_text())
        assert evaluation["results"][0]["games"] == 2 and str(tmp_path) not in json.dumps(evaluation)

    third = start(tmp_path, "--list", stdout=subprocess.PIPE)
    said, _ = third.communicate(timeout=300)
    assert "2 runs, 2 finished" in said and said.count("finished  step        512") == 2
    assert json.loads(finished.read_text())["resumed"] == 0
    report.main(report.Args((tmp_path / "tiny.toml",), str(tmp_path / "results")))
    table = (results / "table.md").read_text()
    row = next(line for line in table.splitlines() if "end_to_end" in line)
    means = []
    for seed in (1, 2):
        with open(results / f"end_to_end__Pong__{seed}" / "curve.csv", newline="") as file:
            games = list(csv.DictReader(file))
        end = 0.9 * int(games[-1]["step"])
        means.append(np.mean([float(game["raw_score"]) for game in games if int(game["step"]) > end]))
    assert (
        f"| {np.mean(means):.1f} |" in row
        and " ".join(f"{mean:.1f}" for mean in means) in row
        and row.endswith("| 21 |")
    )
    assert (results / "curves_Pong.png").stat().st_size > 10_000

    (tmp_path / "tiny.toml").write_text(TINY)  # other commands: what was finished is not theirs
    with pytest.raises(InputError, match="made by other commands"):
        title, parsed = read_experiment(tmp_path / "tiny.toml")
        Runner(Args(tmp_path / "tiny.toml", results_dir=str(tmp_path / "results")), parsed).finished(parsed[0])
    shutil.rmtree(results)  # nor is a checkpoint, finished or not, where the results are gone
    for steps in (256, 4096):
        (tmp_path / "tiny.toml").write_text(TINY.replace("--total-timesteps 256", f"--total-timesteps {steps}"))
        _, parsed = read_experiment(tmp_path / "tiny.toml")
        runner = Runner(
            Args(tmp_path / "tiny.toml", runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results")), parsed
        )
        with pytest.raises(InputError, match=f"--total-timesteps was 512, now {steps}"):
            runner.train(parsed[0], 0, tmp_path / "log.txt")


@pytest.mark.slow
def test_ctrl_c_and_a_failing_run(tmp_path):
    """Ctrl-C: the run saves and is resumed by the same command. A run that fails is named, with the last line it
    wrote."""
    text = TINY.replace("--total-timesteps 256", "--total-timesteps 2560").replace("seeds = [1, 2]", "seeds = [1]")
    (tmp_path / "tiny.toml").write_text(
        text + '[[arms]]\nname = "wrong"\ncommand = "ppo_e2e_atari.py --num-minibatches 5"\n'
    )
    first = start(tmp_path, "--jobs", "1", stderr=subprocess.PIPE)
    runs = tmp_path / "runs" / "tiny"
    wait_for(lambda: list(runs.glob("end_to_end__Pong__1/*/checkpoint.pt")))
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=300)
    assert first.returncode == 130 and "stopping" in said
    assert not (tmp_path / "results" / "tiny" / "end_to_end__Pong__1" / "run.json").exists()
    changed = text.replace(
        "--update-epochs 1", "--update-epochs 2"
    )  # a checkpoint of other flags is not trained on as if it were of these
    (tmp_path / "tiny.toml").write_text(changed)
    other = start(tmp_path, "--jobs", "1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said, _ = other.communicate(timeout=300)
    assert other.returncode == 1 and "--update-epochs was 1, now 2" in said
    (tmp_path / "tiny.toml").write_text(
        text + '[[arms]]\nname = "wrong"\ncommand = "ppo_e2e_atari.py --num-minibatches 5"\n'
    )
    second = start(tmp_path, "--jobs", "1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said, complaint = second.communicate(timeout=300)
    assert second.returncode == 1 and "1 of 2 runs failed" in complaint
    assert "end_to_end__Pong__1: finished" in said
    assert re.search(r"wrong__Pong__1: failed: exit status 1; .*--num-minibatches 5 does not divide", said)
    log = (runs / "end_to_end__Pong__1" / "log.txt").read_text()
    assert "--resume" in log and len(list(runs.glob("end_to_end__Pong__1/Pong__*"))) == 1


def test_intervals():
    """The mean of some runs, with scipy's bootstrap; the interquartile mean of many; no interval for few, where it
    would be their range."""
    none = pytest.approx(np.nan, nan_ok=True)
    assert centre_and_interval(np.array([3.0])) == (3.0, none, none)
    assert centre_and_interval(np.array([1.0, 3.0])) == (2.0, none, none)
    centre, low, high = centre_and_interval(np.array([1.0, 1.0, 1.0, 1.0, 6.0]))
    assert (centre, low, high) == (
        2.0,
        1.0,
        4.0,
    )  # 6 is drawn 3 times or more in 5.8% of resamples, 4 times or more in 0.7%
    values = np.array([0.0, 1, 2, 3, 4, 5, 6, 100])
    centre, low, high = centre_and_interval(values)
    assert centre == 3.5 and low < 3.5 < high < 100  # the middle half: 2, 3, 4, 5
    rng = np.random.default_rng(0)
    by_hand = [np.sort(rng.choice(values, 8))[2:6].mean() for _ in range(4000)]
    np.testing.assert_allclose((low, high), np.percentile(by_hand, (2.5, 97.5)), atol=0.6)


def test_a_suite_makes_a_table(tmp_path):
    """A row per variation, agents beside each other, from what evaluate.py wrote."""
    _, runs = read_experiment(ROOT / "benchmark" / "experiments" / "changed_games_small.toml")
    folder = tmp_path / runs[0].name
    (folder / "suite").mkdir(parents=True)
    shutil.copy(
        ROOT / "benchmark" / "results" / "changed_games_small" / "suite__Pong__1" / "output" / "results.csv",
        folder / "suite",
    )
    assert report.tables(tmp_path, runs, []) == {}  # not finished
    (folder / "run.json").write_text(json.dumps({"commands": runs[0].commands, "evaluate": runs[0].evaluate}))
    rows = report.tables(tmp_path, runs, [])["suite"]
    assert [row["variation"] for row in rows][:2] == ["unchanged", "down_drift"] and len(rows) == len(
        {row["variation"] for row in rows}
    )
    unchanged = {
        "Pong/e2e": "17.2",
        "Pong/e2e: 95%": "13.3 to 21.1",
        "Pong/e2e: relative": "1.00",
        "random play": "-20.5",
    }
    assert unchanged.items() <= rows[0].items() and rows[1]["random play"] == ""
    assert (
        rows[1]["Pong/e2e"] == "-21.0"
        and rows[1]["Pong/e2e: relative"] == "-0.01"
        and rows[1]["picture"] == "differs from step 15"
    )
    (easier,) = (row for row in rows if row["variation"] == "difficulty:1")
    assert easier["Pong/e2e: games"] == "10, 3 distinct" and easier["Pong/wsa: games"] == "10, 4 distinct, 3 cut off"


def test_suites_of_several_seeds(tmp_path):
    """A row per seed and variation, and one per variation over seeds: means by hand; random play has no relative
    score."""
    (run,) = read_experiment(ROOT / "benchmark" / "experiments" / "changed_games_small.toml")[1]
    results = storage.read_csv(
        ROOT / "benchmark" / "results" / "changed_games_small" / "suite__Pong__1" / "output" / "results.csv"
    )
    runs = [replace(run, seed=seed) for seed in (1, 2)]
    assert "suite_over_seeds" not in report.tables(ROOT / "benchmark" / "results" / "changed_games_small", [run], [])
    for seed, one in enumerate(runs, 1):
        (tmp_path / one.name / "again").mkdir(parents=True)
        (tmp_path / one.name / "run.json").write_text(json.dumps({"commands": run.commands, "evaluate": None}))
        shifted = [
            row | {"mean": str(float(row["mean"]) + seed), "relative": row["relative"] and str(seed / 4)}
            for row in results
        ]
        shifted[-1]["relative"] = "" if seed == 1 else "-0.001"
        storage.write_csv(tmp_path / one.name / "results.csv", shifted)
        storage.write_csv(
            tmp_path / one.name / "again" / "results.csv", shifted
        )  # another chain's, with the same random play
    found = report.tables(tmp_path, runs, [])
    assert [row["seed"] for row in found["suite"] if row["variation"] == "unchanged"] == ["1", "2"]
    first, second = found["suite_over_seeds"][:2]
    assert first["Pong/e2e"] == "18.7" and first["Pong/e2e, each seed"] == "18.2 19.2"  # 17.2 + 1 and + 2
    assert first["Pong/e2e: relative"] == "0.38" and first["Pong/e2e: relative, each seed"] == "0.25 0.50"
    assert first["random play"] == "-19.0" and "random play: relative" not in first and second["random play"] == ""
    assert first["random play, each seed"] == "-19.5 -18.5"
    last = found["suite_over_seeds"][-1]  # not defined for the first seed
    assert last["Pong/wsa: relative"] == "0.00" and last["Pong/wsa: relative, each seed"] == "- 0.00"


def test_runs_of_another_experiment_are_shown_but_not_made_again(tmp_path, capsys):
    """Their results are read where their maker put them, under the name they have here; the runner has nothing to do
    for them."""
    experiments, results = tmp_path / "experiments", tmp_path / "results"
    experiments.mkdir()
    arm = '[[arms]]\nname = "{}"\n{}\n'
    maker = 'seeds = [1, 2]\n[[arms]]\nname = "old"\ncommand = "ppo_e2e_atari.py"\n'
    (experiments / "maker.toml").write_text(
        maker + arm.format("back", 'of = "shower/own"\nseeds = [1]')
    )  # shows some of ours in turn
    (experiments / "shower.toml").write_text(
        arm.format("own", 'command = "ppo_e2e_atari.py --gamma 0.9"')
        + arm.format("shown", 'of = "maker/old"\nseeds = [2]')
    )
    _, runs = read_experiment(experiments / "shower.toml")
    assert [(run.name, run.maker) for run in runs] == [
        ("own__Pong__1", None),
        ("shown__Pong__2", ("maker", "old__Pong__2")),
    ]
    for run, score in zip(runs, (3, 5), strict=True):
        folder = run.result_dir(results / "shower")
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"commands": run.commands, "evaluate": run.evaluate}))
        (folder / "curve.csv").write_text(f"step,seconds,raw_score\n100,1,{score}\n200,2,{score}\n")
    assert (results / "maker" / "old__Pong__2" / "run.json").is_file()
    report.main(report.Args((experiments / "shower.toml",), str(results)))
    rows = (results / "shower" / "table.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[1:6] for row in rows] == [
        ["own", "200", "1", "1", "3.0"],
        ["shown", "200", "1", "1", "5.0"],
    ]
    capsys.readouterr()
    benchmark.run.main(
        Args(experiments / "shower.toml", list=True, runs_dir=str(tmp_path / "runs"), results_dir=str(results))
    )
    said = capsys.readouterr().out
    assert "1 runs, 1 finished" in said and "shown" not in said and "not finished" not in said
    shutil.rmtree(results / "maker")
    benchmark.run.main(
        Args(experiments / "shower.toml", list=True, runs_dir=str(tmp_path / "runs"), results_dir=str(results))
    )
    assert "the table also shows runs that maker.toml makes, which are not finished" in capsys.readouterr().out
    (experiments / "shower.toml").write_text(arm.format("shown", 'of = "maker/old"\nseeds = [3]'))
    with pytest.raises(InputError, match="maker/old is not made there in all these games and seeds"):
        read_experiment(experiments / "shower.toml")


def test_the_readmes_tables_are_what_the_report_makes():
    """Every marked table in a README is made from the committed results, and nothing else is changed."""
    marked = []
    for readme in report.READMES:
        text = after = (ROOT / readme).read_text()
        names = re.findall(r"<!-- report: ([\w.-]+) -->", text)
        assert text.count("<!-- end -->") == len(names)
        for name in names:
            table = marked_table(name)
            assert f"<!-- report: {name} -->\n{table}\n<!-- end -->" in text
            after = insert(after, name, table)
            if name != "throughput" and (ROOT / "benchmark" / "results" / name).is_dir():
                assert (ROOT / "benchmark" / "results" / name / "table.md").read_text() == table + "\n"
        assert after == text
        marked += names
    assert {"throughput", "scaling", "probes_Pong", "probes_Breakout", "probes_MsPacman"} <= set(marked)
    assert (
        insert("a\n<!-- report: x -->\nold\n<!-- end -->\nb", "x", "new")
        == "a\n<!-- report: x -->\nnew\n<!-- end -->\nb"
    )


def test_the_running_mean_is_over_steps():
    """Each game's mean by hand: of the games that ended less than 100 steps before it."""
    steps, scores = np.array([50.0, 100, 149, 150, 150, 400]), np.array([1.0, 2, 6, 3, 5, 4])
    by_hand = [np.mean(scores[(steps > step - 100) & (steps <= step)]) for step in steps]
    np.testing.assert_allclose(running_mean(steps, scores, 100), by_hand)
    np.testing.assert_allclose(by_hand, [1, 1.5, 3, 4, 4, 4])


def test_runs_wait_for_those_they_need_without_taking_a_place(tmp_path, monkeypatch):
    """One that is ready goes before one that waits; one whose need has failed fails, too."""
    path = tmp_path / "some.toml"
    arms = {"slow": "", "waits": 'after = ["slow"]', "free": "", "wrong": "", "fails": 'after = ["wrong"]'}
    path.write_text(
        "".join(
            f'[[arms]]\nname = "{name}"\nsteps = ["storage.py {name} {{output}}"]\n{after}\n'
            for name, after in arms.items()
        )
    )
    runs = read_experiment(path)[1]
    runner = Runner(Args(path, jobs=2, runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results")), runs)
    begun, free_has_begun = [], threading.Event()

    def execute(command, log, lock):
        output = Path(command.split()[2])
        output.mkdir(parents=True)
        (output / "about.json").write_text(f"{output} {tmp_path / 'runs'}/some.pt")
        begun.append(command.split()[1])
        if begun[-1] == "free":
            free_has_begun.set()
        if begun[-1] == "slow":
            assert free_has_begun.wait(60)
        if begun[-1] == "wrong":
            raise RuntimeError("tried")

    monkeypatch.setattr(runner, "execute", execute)
    runner.work_all(in_order_of_needs(runs))
    assert (runner.result_dir(runs[0]) / "output" / "about.json").read_text() == "./output runs/some.pt"
    assert set(begun[:2]) == {"slow", "free"} and sorted(begun) == ["free", "slow", "waits", "wrong"]
    assert runner.failed == {"wrong__Pong__1": "tried", "fails__Pong__1": "wrong__Pong__1 failed, which it needs"}


def test_runs_wait_for_another_experiments(tmp_path, monkeypatch):
    """What another experiment makes must be finished; a name that it does not make is refused at once."""
    (tmp_path / "first.toml").write_text('seeds = [3]\n[[arms]]\nname = "agent"\ncommand = "ppo_e2e_atari.py"\n')
    second = tmp_path / "second.toml"
    second.write_text('[[arms]]\nname = "suite"\nsteps = ["storage.py"]\nafter = ["first/agent:3"]\n')
    _, (run,) = read_experiment(second)
    assert run.needs == {} and run.needs_elsewhere == [("first", "agent__Pong__3")]
    for finished in (False, True):
        runner = Runner(Args(second, runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results")), [run])
        monkeypatch.setattr(runner, "execute", lambda *rest: None)
        if finished:
            (tmp_path / "results" / "first" / "agent__Pong__3").mkdir(parents=True)
            (tmp_path / "results" / "first" / "agent__Pong__3" / "run.json").write_text("{}")
        runner.work(run)
        assert runner.finished(run) == finished
        assert (
            "it needs agent__Pong__3, which first.toml has not finished" in runner.failed.get(run.name, "")
        ) != finished
    second.write_text(second.read_text().replace("agent:3", "agent"))
    with pytest.raises(InputError, match="suite__Pong__1 needs first/agent__Pong__1, which is not made there"):
        read_experiment(second)


def test_tables_of_other_scripts_by_hand():
    """The end of a learning curve and of its weights, a ratio of Adam's steps, and the quarters of an agent's
    weights."""
    data = ROOT / "benchmark"
    games = [row for row in storage.read_csv(data / "pong_learning_curves.csv") if row["label"] == "WSA, d = 128"]
    end = np.mean([float(game["raw_score"]) for game in games if int(game["step"]) > int(games[-1]["step"]) - 50_000])
    logged = [
        row for row in storage.read_csv(data / "pong_learning_curves_logged.csv") if row["label"] == "WSA, d = 128"
    ]
    entropy = np.mean(
        [float(row["mean"]) for row in logged if row["tag"] == "weights/entropy" and int(row["step"]) > 0.9 * 830464]
    )
    (row,) = (line for line in marked_table("pong_learning_curves").splitlines() if "| WSA, d = 128 |" in line)
    assert f"| {len(games)} | {end:.1f} |" in row and f"| {entropy:.2f} | 0.00 |" in row
    slowest = storage.read_csv(data / "denormals.csv")[-1]
    assert (
        f"| {float(slowest['plain_ms']) / float(slowest['flushed_ms']):.1f} |"
        in marked_table("denormals").splitlines()[-1]
    )
    assert "Pong/e2e  Pong  unchanged    100       17.13" in marked_table("evaluation_score")


def test_weights_over_a_game_make_a_table(tmp_path):
    """A row per model, from what evaluate.py --attention wrote."""
    _, runs = read_experiment(ROOT / "benchmark" / "experiments" / "changed_games_small.toml")
    (tmp_path / runs[0].name / "output").mkdir(parents=True)
    shutil.copy(ROOT / "benchmark" / "evaluation" / "attention" / "summary.json", tmp_path / runs[0].name / "output")
    (tmp_path / runs[0].name / "run.json").write_text(json.dumps({"commands": runs[0].commands, "evaluate": None}))
    first, second = report.tables(tmp_path, runs, [])["attention"]
    weights = {"mean weight": "0.404", "std": "0.168", "quarter 1": "0.424", "quarter 4": "0.423"}
    assert first == {
        "game": "Pong",
        "seed": "1",
        "agent": "Pong/wsa",
        "score": "19",
        "steps": "1,797",
        "model": "state_representation",
    } | weights | {
        "quarter 2": "0.384",
        "quarter 3": "0.384",
    }
    assert second["model"] == "autoencoder" and second["mean weight"] == "0.596"
