"""Experiments: read as written, killed and taken up again, refused where changed, reported from what is left."""

import csv
import functools
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from benchmark.runs import (
    EXPERIMENTS,
    RESULTS,
    ROOT,
    games_of,
    logged_of,
    read_experiment,
    require_all_steps,
    store_results,
)
from housekeeping import files
from housekeeping.flags import InputError, parse

try:
    from benchmark import report
except ImportError:
    report = None  # type: ignore[assignment]
SNAKEMAKE = importlib.util.find_spec("snakemake") is not None
needs_snakemake = pytest.mark.skipif(not SNAKEMAKE, reason="snakemake is in requirements-benchmark.txt")
needs_report = pytest.mark.skipif(report is None, reason="pandas and rliable are in requirements-benchmark.txt")
PATHS = sorted(EXPERIMENTS.glob("*.toml"))
STEPS = "--num-envs 2 --num-steps 32 --total-timesteps 1280 --max-frames-per-game 160 --checkpoint-interval 64"
TINY = f"""
title = "Tiny"
flags = "{STEPS} --update-epochs 1 --torch-threads 1"
evaluate = "--episodes 2 --max-frames-per-game 160"

[[arms]]
name = "end_to_end"
command = "ppo_e2e_atari.py"
published = {{ Pong = 21.0 }}

[[arms]]
name = "look"
steps = [
  "evaluate.py --checkpoint {{run:end_to_end}}/best.pt --episodes 1 --max-frames-per-game 160 --output-dir {{output}}"
]
"""


def snakemake(tmp_path: Path, *flags: str) -> subprocess.Popen:
    """Snakemake, in a working folder, and if there are any with experiments, of the test's own."""
    config = [f"runs={tmp_path}/runs"]
    if (tmp_path / "experiments").is_dir():
        config += [f"results={tmp_path}/results", f"experiments={tmp_path}/experiments"]
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "benchmark" / "Snakefile"), "-j", "1", *flags]
    command += ["--directory", str(tmp_path), "--config", *config]
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
    return subprocess.Popen(command, text=True, cwd=ROOT, **out)


def said_by(process: subprocess.Popen, code: int = 0) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == code, said
    return said


def tiny(tmp_path: Path, text: str = TINY) -> Path:
    (tmp_path / "experiments").mkdir(exist_ok=True)
    (tmp_path / "experiments" / "tiny.toml").write_text(text)
    return tmp_path / "experiments" / "tiny.toml"


@functools.cache  # many experiments have the same commands
def takes(script: str, flags: str = "") -> None:
    module = importlib.import_module(Path(script).stem)
    if script.endswith("_continuous.py"):
        pytest.importorskip("mujoco"), pytest.importorskip("gym_pusht")
    module.check_args(parse(module.Args, None, argv=shlex.split(flags)))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_experiment_can_be_read(path):
    """Its scripts are there and take their flags, with their values; games and seeds change nothing in that."""
    title, runs = read_experiment(path)
    assert title
    mine = [run for run in runs if run.experiment == path.stem and not run.earlier]
    for run in {re.sub(f"{run.game}|--seed .", "", str(run.commands)): run for run in mine}.values():
        for command in run.commands:
            takes(*command.split(maxsplit=1))
        if run.evaluate is not None:
            takes("evaluate.py", f"--checkpoint some.pt {run.evaluate}")


@needs_snakemake
def test_dry_runs(tmp_path):
    """All experiments in one plan: each model is made once, and nothing that is stored is made again but what others
    need (checkpoints are not stored)."""
    results = tmp_path / "results"
    results.symlink_to(RESULTS)
    made = [run for path in PATHS for run in read_experiment(path)[1] if run.experiment == path.stem]
    left = [run for run in made if not run.is_finished(results)]
    (tmp_path / "experiments").symlink_to(EXPERIMENTS)
    said = said_by(snakemake(tmp_path, "-n", "-p", *(path.stem for path in PATHS)))
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE))
    needed = {other for run in left for other in run.needs} - {f"{run.experiment}/{run.name}" for run in left}
    assert needed <= {"transfer_freeway_small/explorer__Freeway__1"}
    assert int(jobs["train"]) == sum(run.trains for run in left) + len(needed)
    assert int(jobs["chain"]) == sum(not run.trains for run in left)
    assert int(jobs["evaluate"]) == sum(run.evaluate is not None for run in left)
    assert int(jobs["keep"]) == len(left) < len(made)
    assert said.count("pretrain_encoders.py --env-id ALE/Pong-v5 --budget paper --data-dir") >= 1
    assert not any(run.earlier for run in left)
    for name in ("modes_small", "fast_and_plain", "scorer_small", "transfer_small", "precision_small"):
        assert f"/{name}/" not in said


@needs_snakemake
def test_a_changed_command_is_refused(tmp_path):
    """Whether results or only checkpoints are there; an experiment that was made by an earlier revision is not run."""
    path = tiny(tmp_path)
    run = read_experiment(path)[1][0]
    made = json.dumps(run.record | {"commands": ["ppo_e2e_atari.py --gamma 0.5"]})
    for folder, name in (("results", "run.json"), ("runs", "begun.json")):
        where = tmp_path / folder / "tiny" / run.name
        where.mkdir(parents=True)
        (where / name).write_text(made)
        assert "made by other commands" in said_by(snakemake(tmp_path, "-n", "tiny"), 1)
        with pytest.raises(InputError, match="made by other commands"):
            run.is_recorded(where / name)
        shutil.rmtree(tmp_path / folder)
    path.write_text('earlier = "1e01900"\n' + TINY)
    assert "today's scripts no longer have its flags" in said_by(snakemake(tmp_path, "-n", "tiny"), 1)


@needs_snakemake
@pytest.mark.slow
def test_killed_and_begun_again(tmp_path):
    """SIGKILL of everything: unlocked, the same command goes on from the checkpoint, and then leaves all alone."""
    tiny(tmp_path)
    folder, results = tmp_path / "runs" / "tiny" / "end_to_end__Pong__1", tmp_path / "results" / "tiny"
    first = snakemake(tmp_path, "tiny")
    while not (folder / "checkpoint.pt").is_file():
        assert first.poll() is None
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    with pytest.raises(InputError, match="stopped at step"):  # else too fast: nothing was killed
        require_all_steps(folder)
    said_by(snakemake(tmp_path, "--unlock", "tiny"))
    (folder / "buffer.pt").write_text("gigabytes that nothing needs at the end")
    said_by(snakemake(tmp_path, "tiny"))
    log = (folder / "log.txt").read_text()
    assert log.count("$ python ppo_e2e_atari.py") == 2 and log.count("$ python evaluate.py") == 1
    # each at a line's beginning, not behind the killed run's progress bar
    assert len(re.findall(r"^# revision", log, re.MULTILINE)) == log.count("# revision") == 3
    assert not (folder / "buffer.pt").exists()
    with open(results / "end_to_end__Pong__1" / "curve.csv", newline="") as file:
        games = list(csv.DictReader(file))
    steps = [int(game["step"]) for game in games]  # two games of 160 frames end together, 80 steps after they began
    assert len(steps) in (30, 32) and steps == sorted(steps)  # those cut off by the kill begin anew
    assert all(steps.count(step) == 2 for step in steps)  # none is there twice
    about = json.loads((results / "end_to_end__Pong__1" / "run.json").read_text())
    flags = f"{STEPS} --update-epochs 1 --torch-threads 1 --env-id ALE/Pong-v5 --seed 1"
    assert about["commands"] == [f"ppo_e2e_atari.py {flags}"] and about["resumed"] == 1 and about["revision"]
    assert about["ran"][0] == f"{about['commands'][0]} --run-dir runs/tiny/end_to_end__Pong__1"
    assert {"torch", "gymnasium", "ale-py", "numpy", "cpu"} <= set(about["machine"])
    evaluation = json.loads((results / "end_to_end__Pong__1" / "evaluation.json").read_text())
    assert evaluation["results"][0]["games"] == 2 and str(tmp_path) not in json.dumps(evaluation)
    look = json.loads((results / "look__Pong__1" / "run.json").read_text())
    assert "--output-dir ./output" in look["ran"][0] and (results / "look__Pong__1/output/results.json").is_file()
    for path in (ROOT / "benchmark" / "Snakefile", ROOT / "ppo_e2e_atari.py"):  # newer than the results
        assert path.is_file()
    os.utime(folder / "done.json")
    assert "Nothing to be done" in said_by(snakemake(tmp_path, "tiny"))


def test_games_seeds_and_placeholders(tmp_path):
    path = tmp_path / "some.toml"
    path.write_text(
        'games = ["Pong", "Breakout"]\nseeds = [3, 4]\nflags = "--gamma 0.9"\n'
        '[[arms]]\nname = "one"\nseeds = [3]\ncommand = "pretrain_policy_atari.py"\n'
        'game_flags = { Pong = "--num-envs 4" }\n'
        '[[arms]]\nname = "two"\ngames = ["Pong"]\ncommand = "dqn_bt_atari.py --pretrained-policy '
        '{run:one:3}/checkpoint.pt --flights"\n'
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
    assert runs["two__Pong__4"].needs == ["some/one__Pong__3"]
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
        (
            "[[arms]]\nname = 'a'\ncommand = 'ppo_e2e_atari.py {run:b}'",
            "needs wrong/b__Pong__1, which is not among the runs",
        ),
        ("games = ['Pon']\n[[arms]]\nname = 'a'\ncommand = 'ppo_e2e_atari.py'", "did you mean ALE/Pong-v5"),
        ("title = 'none'", "at least one arm"),
        ("game_flags = {Pon = ''}\n[[arms]]\nname = 'a'\ncommand = 'ppo_e2e_atari.py'", "did you mean ALE/Pong-v5"),
        (
            "[[arms]]\nname = 'a'\nsteps = ['export_agent.py']\nflags = '--seed 3'",
            "for training scripts, not for steps",
        ),
        ("[[arms]]\nname = 'a'\nsteps = ['export_agent.py']\nafter = ['other/b']", "other.toml: there is no such file"),
        ("seeds = 3\n[[arms]]\nname = 'a'\ncommand = 'ppo_e2e_atari.py'", "seeds must be a list, in square brackets"),
        ("[[arms]]\nname = 'a'\ngames = 'Pong'\ncommand = 'ppo_e2e_atari.py'", "games must be a list"),
        ("[[arms]]\nname = 'a'\ncommand = ['ppo_e2e_atari.py']", "command must be text, in quotes"),
        ("game_flags = 3\n[[arms]]\nname = 'a'\ncommand = 'x'", "game_flags must be a table, in curly brackets"),
        ("[arms]\nname = 'a'\ncommand = 'ppo_e2e_atari.py'", "arms are written as .*arms"),
        ("arms = ['a']", "arms are written as .*arms"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(tmp_path, text, says):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_experiment(path)


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
    assert games_of(tmp_path) == [(10, 5.0, 3.0), (20, 10.0, 4.0), (25, 26.0, 7.0)]


@needs_report
def test_intervals():
    """Mean of some runs, interquartile mean of many, by hand and by a bootstrap of our own; no interval for few."""
    none = pytest.approx(np.nan, nan_ok=True)
    assert report.centre_and_interval(np.array([3.0])) == (3.0, none, none)
    assert report.centre_and_interval(np.array([1.0, 3.0])) == (2.0, none, none)
    found = report.centre_and_interval(np.array([1.0, 1.0, 1.0, 1.0, 6.0]))
    assert found == (2.0, 1.0, 4.0)  # 6 is drawn 3 times or more in 5.8% of resamples, 4 times or more in 0.7%
    values = np.array([0.0, 1, 2, 3, 4, 5, 6, 100])
    centre, low, high = report.centre_and_interval(values)
    assert centre == 3.5 and low < 3.5 < high < 100  # the middle half: 2, 3, 4, 5
    assert report.centre_and_interval(values) == (centre, low, high)  # seeded
    rng = np.random.default_rng(0)
    by_hand = [np.sort(rng.choice(values, 8))[2:6].mean() for _ in range(4000)]
    np.testing.assert_allclose((low, high), np.percentile(by_hand, (2.5, 97.5)), atol=0.6)


@needs_report
@pytest.mark.parametrize(
    "name",
    ["modes_small", "transfer_small", "scorer_small", "claims_light_small", "four_models_small", "one_model_small"],
)
def test_scores_are_those_of_the_raw_files(name):
    """Every score of the table, with the csv module and NumPy only."""
    _, runs = read_experiment(EXPERIMENTS / f"{name}.toml")
    found = report.tables(runs, RESULTS)
    on_the_way = iter(found["scores_at"].to_dict("records") if "scores_at" in found else [])
    for row in found["table"].to_dict("records"):
        mine = [run for run in runs if (run.arm, run.game) == (row["arm"], row["game"])]
        ends, evaluated, at = [], [], {f"{step:,} steps": [] for step in mine[0].scores_at}
        for run in mine:
            folder = RESULTS / run.experiment / run.name
            if not folder.is_dir():
                continue
            games = files.read_csv(folder / "curve.csv")
            steps, scores = (np.array([float(game[what]) for game in games]) for what in ("step", "raw_score"))
            ends.append(scores[steps > 0.9 * steps[-1]].mean())
            for step, column in zip(run.scores_at, at.values(), strict=True):
                column.append(f"{scores[(steps > step - 30_000) & (steps <= step)].mean():.1f}")
            if (folder / "evaluation.json").is_file():
                evaluated.append(json.loads((folder / "evaluation.json").read_text())["results"][0]["mean"])
        assert row["seeds"] == str(len(ends))  # what is run is shown
        assert row["last tenth of training"] == f"{np.mean(ends):.1f}"
        assert row["last tenth of training: each seed"] == " ".join(f"{end:.1f}" for end in ends)
        assert row["evaluation"] == (f"{np.mean(evaluated):.1f}" if evaluated else "")
        if at:
            expected = {"game": row["game"], "arm": row["arm"]} | {step: " ".join(each) for step, each in at.items()}
            assert next(on_the_way) == expected


@needs_report
def test_times_with_and_without_a_gpu_are_not_compared(tmp_path):
    """Each has its own mean, and a picture with both has no axis of time."""
    runs = read_experiment(EXPERIMENTS / "four_models_small.toml")[1]
    games = report.read_games(runs, RESULTS)
    on_a_gpu = set(games[games.gpu].arm)
    assert on_a_gpu == {"wsa", "wsa_published", "uniform", "untrained"} == set(games.arm) - {"end_to_end"}
    mixed = games[(games.game == "Breakout") & (games.seed == 1) & games.arm.isin(["end_to_end", "wsa"])]
    cpu, gpu = (mixed[mixed.arm == arm].seconds.iloc[-1] / 60 for arm in ("end_to_end", "wsa"))
    table = report.score_table(mixed.assign(seed=mixed.arm, arm="both"), RESULTS)
    assert table.minutes.item() == f"{cpu:.0f}, {gpu:.0f} (GPU)"
    report.plot(games[games.game == "Breakout"], "", tmp_path / "both.png")
    report.plot(games[games.gpu], "", tmp_path / "gpu.png")
    widths = [plt.imread(tmp_path / name).shape[1] for name in ("both.png", "gpu.png")]
    assert widths == [770, 1210]


@needs_report
def test_a_run_without_a_finished_game_has_no_row(tmp_path):
    """It ends before its first game does; what else there is makes its table."""
    flags = "ppo_e2e_atari.py --total-timesteps 128"
    path = tiny(tmp_path, "".join(f"[[arms]]\nname = '{name}'\ncommand = '{flags}'\n" for name in "ab"))
    for run, games in zip(read_experiment(path)[1], ((), (100, 128)), strict=True):
        folder = tmp_path / "runs" / "tiny" / run.name
        with SummaryWriter(str(folder)) as writer:
            writer.add_scalar("charts/SPS", 1.0, 128)
            for step in games:
                writer.add_scalar("charts/episodic_return", -21.0, step)
        for name, text in (("done.json", '{"machine": {}}'), ("begun.json", "{}"), ("log.txt", "")):
            (folder / name).write_text(text)
        store_results(run, tmp_path / "runs", tmp_path / "results")
    found = report.tables(read_experiment(path)[1], tmp_path / "results")["table"]
    assert list(found.arm) == ["b"] and list(found["last tenth of training"]) == ["-21.0"]


@needs_report
def test_what_else_a_run_has_logged(tmp_path):
    """Means over equal stretches; in the report over the last tenth of the run. A model that has gone has no weight."""
    with SummaryWriter(str(tmp_path / "events")) as writer:
        for step in range(20):
            writer.add_scalar("weights/a", float(step), step)
            if step < 15:
                writer.add_scalar("weights/gone", 1.0, step)
            writer.add_scalar("losses/value_loss", 1.0, step)
    rows = logged_of(tmp_path / "events", stretches=10)
    assert rows[:10] == [{"tag": "weights/a", "step": 2 * i + 1, "mean": 2 * i + 0.5} for i in range(10)]
    assert {row["tag"] for row in rows[10:]} == {"weights/gone"} and rows[-1]["step"] == 14
    assert report.end_of(report.pd.DataFrame(rows)).to_dict() == {"weights/a": 18.5}
    # where each run sees through one model, weights say nothing; where one of them has two, they do
    for name, says in (("one_model_small", False), ("schedule_small", True)):
        runs = read_experiment(EXPERIMENTS / f"{name}.toml")[1]
        assert ("weights/entropy" in report.tables(runs, RESULTS).get("logged", ())) is says


@needs_report
def test_suites_make_tables():
    """A row per variation, agents beside each other; over seeds, means by hand, and a dash where nothing is defined."""
    run = read_experiment(EXPERIMENTS / "changed_games_small.toml")[1][0]
    rows = report.tables([run], RESULTS)["suite"].to_dict("records")
    assert [row["variation"] for row in rows][:2] == ["unchanged", "down_drift"] and len(rows) == 10
    unchanged = {"Pong/e2e": "17.2", "Pong/e2e: 95%": "13.3 to 21.1", "Pong/e2e: relative": "1.00"}
    assert unchanged.items() <= rows[0].items() and rows[0]["random play"] == "-20.5" and rows[1]["random play"] == ""
    assert rows[1]["Pong/e2e: relative"] == "-0.01" and rows[1]["picture"] == "differs from step 15"
    (easier,) = (row for row in rows if row["variation"] == "difficulty:1")
    assert easier["Pong/wsa: games"] == "10, 4 distinct, 3 cut off"
    found = report.pd.read_csv(RESULTS / "changed_games_small" / run.name / "output" / "results.csv")
    assert report.suite_over_seeds(found.assign(seed=1)).empty
    seeds = []
    for seed in (1, 2):
        one = found.assign(
            seed=seed, mean=found["mean"] + seed, relative=found.relative.where(found.relative.isna(), seed / 4)
        )
        one.loc[one.index[-1], "relative"] = np.nan if seed == 1 else -0.001
        seeds += [one, one]  # another chain's, with the same random play
    seeds = report.pd.concat(seeds)
    assert list(report.suite_table(seeds).query("variation == 'unchanged'").seed) == ["1", "2"]
    means = report.suite_over_seeds(seeds).to_dict("records")
    assert means[0]["Pong/e2e"] == "18.7" and means[0]["Pong/e2e, each seed"] == "18.2 19.2"  # 17.2 + 1 and + 2
    assert means[0]["Pong/e2e: relative"] == "0.38" and means[0]["Pong/e2e: relative, each seed"] == "0.25 0.50"
    assert means[0]["random play"] == "-19.0" and "random play: relative" not in means[0]
    assert means[-1]["Pong/wsa: relative"] == "0.00" and means[-1]["Pong/wsa: relative, each seed"] == "- 0.00"


@needs_report
def test_weights_over_a_game_make_a_table():
    """A row per model, from what evaluate.py --attention wrote."""
    table = report.attention_table([(1, ROOT / "benchmark" / "evaluation" / "attention" / "summary.json")])
    first, second = table.to_dict("records")
    weights = {"mean weight": "0.674", "std": "0.106", "quarter 1": "0.671", "quarter 4": "0.675"}
    about = {"game": "Pong", "seed": "1", "agent": "Pong/wsa", "score": "20", "steps": "2,156"}
    assert (about | weights | {"quarter 2": "0.666", "model": "state_representation"}).items() <= first.items()
    assert second["model"] == "autoencoder" and second["mean weight"] == "0.326"


@needs_report
def test_the_pages_tables_are_what_the_report_makes():
    """Every marked table is made from the committed results, and nothing else is changed."""
    for page in report.pages():
        text = page.read_text()
        assert text.count("<!-- end -->") == len(re.findall(r"<!-- report: ([\w.-]+) -->", text))
        assert report.filled(text) == text
    assert report.filled("a\n<!-- report: x -->\nold\n<!-- end -->\nb", "new {}".format) == (
        "a\n<!-- report: x -->\nnew x\n<!-- end -->\nb"
    )


def test_playing_needs_no_pandas():
    """HackAtari's environment has none."""
    check = "import sys, evaluate; sys.exit('pandas' in sys.modules or 'snakemake' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


@needs_report
def test_the_running_mean_is_over_steps():
    """Each game's mean by hand: of the games that ended less than 100 steps before it."""
    steps, scores = np.array([50.0, 100, 149, 150, 150, 400]), np.array([1.0, 2, 6, 3, 5, 4])
    by_hand = [np.mean(scores[(steps > step - 100) & (steps <= step)]) for step in steps]
    np.testing.assert_allclose(report.running_mean(steps, scores, 100), by_hand)
    np.testing.assert_allclose(by_hand, [1, 1.5, 3, 4, 4, 4])


@needs_report
def test_halts_are_left_out_of_the_time():
    """100 steps take 10 seconds; there is a halt before two games that end together; later, 200 steps take 90."""
    steps, seconds = np.array([100, 200, 300, 300, 500, 700]), np.array([10, 20, 430, 430, 450, 540])
    usual = 540 / 700
    by_hand = np.cumsum([10, 10, 100 * usual, 0, 20, 90])  # 90 seconds are less than five times what 200 steps take
    np.testing.assert_allclose(report.without_halts(steps, seconds), by_hand)


@needs_report
def test_tables_of_other_scripts_by_hand():
    """The end of a learning curve and of its weights, a ratio of Adam's steps, and the quarters of an agent's
    weights."""
    data = ROOT / "benchmark"
    games = [row for row in files.read_csv(data / "pong_learning_curves.csv") if row["label"] == "WSA, d = 128"]
    end = np.mean([float(game["raw_score"]) for game in games if int(game["step"]) > int(games[-1]["step"]) - 50_000])
    logged = [row for row in files.read_csv(data / "pong_learning_curves_logged.csv") if row["label"] == "WSA, d = 128"]
    entropy = np.mean(
        [float(row["mean"]) for row in logged if row["tag"] == "weights/entropy" and int(row["step"]) > 0.9 * 830464]
    )
    (row,) = (line for line in report.marked_table("pong_learning_curves").splitlines() if "| WSA, d = 128 |" in line)
    assert f"| {len(games)} | {end:.1f} |" in row and f"| {entropy:.2f} | 0.00 |" in row
    slowest = files.read_csv(data / "denormals.csv")[-1]
    assert (
        f"| {float(slowest['plain_ms']) / float(slowest['flushed_ms']):.1f} |"
        in report.marked_table("denormals").splitlines()[-1]
    )
    assert "Pong/e2e  Pong  unchanged    100       17.13" in report.marked_table("evaluation_score")
