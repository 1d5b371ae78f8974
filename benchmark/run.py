"""Run an experiment: a plain file with command lines, for several games and seeds, several runs at a time.

    python -m benchmark.run benchmark/experiments/modes_small.toml            # as many runs at a time as there are cores
    python -m benchmark.run benchmark/experiments/modes_small.toml --list     # what there is to do, and how far it is
    python -m benchmark.report benchmark/experiments/modes_small.toml         # tables and plots of what is finished

Stopped at any moment, even by SIGKILL, the same command goes on: finished runs are left alone, others resume from their checkpoints, and
runs that were started by a killed runner and live on are waited for. A finished run's replay buffer (gigabytes) is removed.

What a run leaves in `benchmark/results/<experiment>/<run>/`:

- `curve.csv`: step, seconds of training, and raw score of each finished training game;
- `logged.csv`: evaluations while training, the models' weights, shares of flights, novelty, and what else tells how the agent works: means
  over stretches;
- `evaluation.json`: evaluate.py's results of its best.pt (checkpoint.pt where there is none), if the file asks for an evaluation;
- `run.json`: the commands as the file has them (`commands`) and as they were run (`ran`, resumptions included), versions, machine, and how
  often it was resumed. It is written last: a run that has it is finished.

An experiment's file (TOML) has a title, and arms; a run is an arm in a game with a seed:

    title = "..."                       # what is compared
    games = ["Pong"]
    seeds = [1, 2]
    flags = "--total-timesteps 500000"  # given to each arm's training script
    evaluate = "--episodes 20"          # flags of evaluate.py; left out: no evaluation

    [[arms]]
    name = "wsa"
    command = "ppo_wsa_atari.py --combiner wsa"   # a training script; game, seed and folders are added to it
    game_flags = {Pong = "--features-dim 1024"}   # flags for some of the games
    published = {Pong = 21.0}                     # shown beside ours

    [[arms]]
    name = "behaviour"                  # {run:explorer} is the folder of that arm's run of the same game and seed, which goes first;
    command = "dqn_bt_atari.py --flights --pretrained-policy {run:explorer}/checkpoint.pt"   # {run:explorer:1}: of seed 1

    [[arms]]
    name = "wsa"
    of = "modes_small/wsa"              # runs that another experiment makes, shown beside these; nothing is run for it here

`earlier = "3f2a1b0"` beside the title says that an earlier revision of the scripts, whose flags are gone, made the results: they are kept
and shown, and never run again.

An arm may have games, seeds, flags, game_flags and evaluate of its own, and `after = ["other"]` (or `["other:1"]`: of seed 1) where it
needs what that arm makes. `after = ["main/wsa"]` names an arm of another experiment, which must have been finished before.

An arm with `steps = [...]` in place of `command` is a chain of other scripts (frames, models, suites): when it is taken up again,
pre-training goes on where it was, an evaluation begins anew. In it {env_id}, {game} and {seed} stand for what they say, {output} for a new
folder in the run's results, a name with a * for all files that fit; there and in commands, {runs} is the folder of all runs (--runs-dir).
"""

import csv
import glob
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from environments.atari import game_name
from housekeeping import files as storage
from housekeeping.flags import InputError

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "gymnasium", "ale-py", "numpy")
LOGGED = ("eval/", "weights/", "transfer/", "intrinsic/", "coverage/")  # tags that are kept, beside the score
DEFAULTS = {"games": ["Pong"], "seeds": [1], "flags": "", "game_flags": {}, "evaluate": None}


@dataclass
class Args:
    experiment: Annotated[Path, tyro.conf.Positional]
    """the experiment's file"""
    jobs: int = 0
    """runs at a time (0: one per core, each with one thread; at most 4 where there is a GPU)"""
    threads: int = 0
    """CPU threads of each run (0: the cores, shared evenly)"""
    list: bool = False
    """only say what there is to do"""
    runs_dir: str = "runs"
    """checkpoints and TensorBoard events go to <runs-dir>/<experiment>/<run>"""
    results_dir: str = str(ROOT / "benchmark" / "results")
    """what is kept goes to <results-dir>/<experiment>/<run>"""


@dataclass
class Run:
    """One arm in one game with one seed."""

    arm: str
    game: str
    seed: int
    commands: list[str]  # one training script's command line, or the steps of a chain
    trains: bool
    evaluate: str | None
    published: float | None
    after: tuple[str, ...]  # arms, of this or of another experiment, whose runs of the same game and seed go first
    maker: tuple[str, str] | None = None  # the experiment that makes this run, and its name there; None: this one
    earlier: str | None = None  # the revision of the scripts that made it, if those of today cannot

    @property
    def name(self) -> str:
        return f"{self.arm}__{self.game}__{self.seed}"

    def result_dir(self, experiment_dir: Path) -> Path:
        """Where this run's results are, if those of this experiment are in `experiment_dir`."""
        return experiment_dir.parent / self.maker[0] / self.maker[1] if self.maker else experiment_dir / self.name

    @property
    def needs(self) -> dict[str, str]:
        """The runs that must be finished first: how the commands call each one, and its name."""
        found = re.findall(r"(\{run:([\w.-]+?(?::\d+)?)\})", " ".join(self.commands))
        others = [(f"after {other}", other) for other in self.after if "/" not in other]
        return {written: self.named(other) for written, other in (*found, *others)}

    @property
    def needs_elsewhere(self) -> list[tuple[str, str]]:
        """The runs of other experiments that must be finished first: the experiment, and the name there."""
        others = (other.partition("/") for other in self.after if "/" in other)
        return [(experiment, self.named(other)) for experiment, _, other in others]

    def named(self, other: str) -> str:
        """The name of the run called `other` here: an arm's in the same game, of the same seed or, written arm:seed, of that one."""
        arm, _, seed = other.partition(":")
        return f"{arm}__{self.game}__{seed or self.seed}"


def read_experiment(path: Path, with_others: bool = True) -> tuple[str, list[Run]]:
    """An experiment's title and its runs, in the order of the file, seed by seed, so that a part of it already compares all arms.

    Args:
        with_others: also those of other experiments that it shows.

    Raises:
        InputError: no such file, not TOML, or something in it that is not known; before anything runs.
    """
    try:
        content = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"{path}: there is no such file.") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: this is not TOML ({error}).") from error
    common = DEFAULTS | {key: value for key, value in content.items() if key not in ("title", "arms", "earlier")}
    unknown = set(common) - set(DEFAULTS)
    runs: list[Run] = []
    for arm in content.get("arms", []):
        settings = common | arm
        unknown |= set(settings) - set(DEFAULTS) - {"name", "command", "steps", "published", "after", "of"}
        if not isinstance(arm.get("after", []), list):
            raise InputError(f"{path}: after must be a list of names of arms.")
        if "name" not in arm or ("command" in arm) + ("steps" in arm) + ("of" in arm) != 1:
            raise InputError(f"{path}: an arm needs a name, and one of: a command, steps, or whose runs it shows (of).")
        for game in (*settings["game_flags"], *arm.get("published", {})):
            game_name(f"ALE/{game}-v5")
        if "steps" in arm and set(arm) & {"flags", "game_flags", "evaluate", "published"}:
            raise InputError(
                f"{path}: {arm['name']}: flags, game_flags, evaluate and published are for training scripts, not for steps."
            )
        if "of" in arm and set(arm) - {"name", "of", "games", "seeds"}:
            raise InputError(
                f"{path}: {arm['name']}: beside of, an arm may have games and seeds; the rest is {arm['of']}'s."
            )
        if "of" in arm and with_others:
            maker, _, other = arm["of"].partition("/")
            theirs = read_experiment(Path(path).with_name(f"{maker}.toml"), with_others=False)[1]
            wanted = {(other, game, seed) for game in settings["games"] for seed in settings["seeds"]}
            found = [run for run in theirs if (run.arm, run.game, run.seed) in wanted]
            if len(found) < len(wanted):
                raise InputError(f"{path}: {arm['name']}: {arm['of']} is not made there in all these games and seeds.")
            runs += [replace(run, arm=arm["name"], maker=(maker, run.name)) for run in found]
        if "of" in arm:
            continue
        for game in settings["games"]:
            env_id = f"ALE/{game}-v5"
            game_name(env_id)
            flags = " ".join(part for part in (settings["flags"], settings["game_flags"].get(game)) if part)
            for seed in settings["seeds"]:
                commands = arm.get("steps") or [f"{arm['command']} {flags} --env-id {env_id} --seed {seed}"]
                fill = {"{env_id}": env_id, "{game}": game, "{seed}": str(seed)}
                commands = [
                    re.sub(r"\{\w+\}", lambda match, fill=fill: fill.get(match[0], match[0]), command)
                    for command in commands
                ]
                trains, published = "command" in arm, arm.get("published", {}).get(game)
                evaluate, after = settings["evaluate"] if trains else None, tuple(arm.get("after", ()))
                earlier = content.get("earlier")
                runs.append(Run(arm["name"], game, seed, commands, trains, evaluate, published, after, earlier=earlier))
    if unknown:
        raise InputError(
            f"{path}: {', '.join(sorted(unknown))}: not known here; the docstring of benchmark/run.py says what is."
        )
    if not runs or len({run.name for run in runs}) < len(runs):
        raise InputError(f"{path}: it must have at least one arm, and no two of one name.")
    names = {run.name for run in runs if not run.maker}
    makers = {maker for run in runs if with_others and not run.maker for maker, _ in run.needs_elsewhere}
    made = {
        (maker, one.name)
        for maker in makers
        for one in read_experiment(Path(path).with_name(f"{maker}.toml"), with_others=False)[1]
    }
    for run in (run for run in runs if not run.maker):
        for script in (shlex.split(command)[0] for command in run.commands):
            if not (ROOT / script).is_file():
                raise InputError(f"{path}: {run.arm}: there is no script {script}.")
        missing = set(run.needs.values()) - names
        if missing:
            raise InputError(f"{path}: {run.name} needs {', '.join(sorted(missing))}, which is not among the runs.")
        for maker, name in run.needs_elsewhere if with_others else ():
            if (maker, name) not in made:
                raise InputError(f"{path}: {run.name} needs {maker}/{name}, which is not made there.")
    order = {seed: number for number, seed in enumerate(dict.fromkeys(run.seed for run in runs))}
    return content.get("title", Path(path).stem), sorted(runs, key=lambda run: order[run.seed])


def newest_run(folder: Path) -> Path | None:
    """The folder below `folder` that a training script made and left a checkpoint in."""
    found = sorted(folder.glob("*/checkpoint.pt"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent if found else None


def games_of(run_dir: Path) -> list[tuple[int, float, float]]:
    """(agent step, seconds of training so far, raw score) of each finished game; time between a stop and its resumption does not count."""
    spans = []
    for path in sorted(run_dir.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime):
        one = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        times = [event.wall_time for tag in one.Tags()["scalars"] for event in one.Scalars(tag)]
        if times:
            spans.append((one.FirstEventTimestamp(), max(times)))
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    if "charts/episodic_return" not in events.Tags()["scalars"]:
        return []
    games = []
    for event in sorted(
        events.Scalars("charts/episodic_return"), key=lambda event: event.step
    ):  # those of several processes are not
        games.append(
            (event.step, sum(max(0.0, min(end, event.wall_time) - begin) for begin, end in spans), event.value)
        )
    return games


def logged_of(run_dir: Path, stretches: int = 50) -> list[dict[str, Any]]:
    """What else a run has logged: for each tag, means over at most so many equal stretches, with the last step of each."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    rows = []
    for tag in sorted(tag for tag in events.Tags()["scalars"] if tag.startswith(LOGGED)):
        found = events.Scalars(tag)
        for part in np.array_split(np.arange(len(found)), min(stretches, len(found))):
            rows.append(
                {"tag": tag, "step": found[part[-1]].step, "mean": float(np.mean([found[i].value for i in part]))}
            )
    return rows


def cpu_name() -> str:
    """The processor's model, as far as this system says it."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return name


def machine() -> dict[str, Any]:
    """What the runs are made on."""
    found = {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}
    found |= {package: importlib.metadata.version(package) for package in PACKAGES}
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def is_finished(folder: Path, run: Run) -> bool:
    """Whether a run's results are complete; raises InputError if they were made by other commands than the experiment has now."""
    path = folder / "run.json"
    if not path.is_file():
        return False
    about = json.loads(path.read_text())
    if (about["commands"], about["evaluate"]) != (run.commands, run.evaluate):
        raise InputError(
            f"{path}: this run was made by other commands than the experiment has now; to run it again, remove its folders here and "
            "in --runs-dir, or give a --results-dir and a --runs-dir of your own."
        )
    return True


def write_atomically(path: Path, text: str) -> None:
    """So that a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def revision() -> str | None:
    """The commit that the scripts are of, with a + if files were changed since; None where there is no git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


class Stopped(Exception):
    """The runner was asked to stop before this was begun."""


class Runner:
    """Runs what is left of an experiment, one thread per job."""

    def __init__(self, args: Args, runs: list[Run]):
        self.args, self.runs = args, {run.name: run for run in runs}
        self.experiment = Path(args.experiment).stem
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.jobs = args.jobs or (min(cores, 4) if torch.cuda.is_available() else cores)
        self.threads = args.threads or max(1, cores // self.jobs)
        self.failed: dict[str, str] = {}
        self.stopping = threading.Event()
        self.children: set[subprocess.Popen] = set()

    def work_dir(self, name: str) -> Path:
        return Path(self.args.runs_dir) / self.experiment / name

    def result_dir(self, run: Run) -> Path:
        return run.result_dir(Path(self.args.results_dir) / self.experiment)

    def finished(self, run: Run) -> bool:
        return is_finished(self.result_dir(run), run)

    def filled(self, command: str, run: Run) -> str:
        """The command with the folders of the runs that it builds on."""
        command = command.replace("{runs}", shlex.quote(str(Path(self.args.runs_dir).resolve())))
        for written, name in run.needs.items():
            if written not in command:
                continue
            folder = newest_run(self.work_dir(name))
            if folder is None:
                remedy = "to make it again, give a --results-dir of your own"
                raise InputError(
                    f"{self.work_dir(name)}: {run.name} needs its checkpoint, which is not here; {remedy}."
                )
            command = command.replace(written, shlex.quote(str(folder.resolve())))
        return command

    def without_folders(self, text: str, result: Path) -> str:
        """The text without this machine's folders: those below a run's results are given from there, others from `runs` and from here."""
        text = text.replace(str(result.resolve()), ".").replace(str(Path(self.args.runs_dir).resolve()), "runs")
        return text.replace(f"{ROOT}/", "")

    def execute(self, command: str, log: Path, lock: int) -> None:
        """Run a command line of a script here to its end; its output is added to the log. Raises RuntimeError if it fails.

        The child holds the run's lock as well, so that it is not started a second time if this process is killed and begun again.
        """
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        if self.stopping.is_set():
            raise Stopped
        words: list[str] = []
        for word in shlex.split(command):
            found = sorted(glob.glob(word, root_dir=ROOT)) if "*" in word else [word]
            if not found:
                raise RuntimeError(f"{word}: there is no such file")
            words += found
        with open(log, "a") as output:
            line_end = "\n" if output.tell() else ""  # what was killed may have stopped within a line
            output.write(f"{line_end}# revision {revision() or 'unknown'}\n$ python {command}\n")
            output.flush()
            child = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(lock,),
                start_new_session=True,
            )
        self.children.add(child)
        if self.stopping.is_set():  # asked for while it was being started
            child.send_signal(signal.SIGINT)
        code = child.wait()
        self.children.discard(child)
        if code:
            raise RuntimeError(
                f"exit status {code}; the end of {log}: {log.read_text().strip().splitlines()[-1][-300:]}"
            )

    def train(self, run: Run, lock: int, log: Path) -> Path:
        """Train to the end, from the checkpoint if there is one; returns the run's folder."""
        folder = self.work_dir(run.name)
        command = self.filled(run.commands[0], run)
        script, *flags = shlex.split(command)

        def done(run_dir: Path) -> bool:
            """Whether it has made all its steps; raises InputError if they were made with other flags."""
            path, module = run_dir / "checkpoint.pt", importlib.import_module(Path(script).stem)
            try:
                wanted = tyro.cli(module.Args, args=flags)
            except SystemExit as error:
                raise RuntimeError(f"{script} does not know its flags: {shlex.join(flags)}") from error
            saved = storage.load_checkpoint(path, module.SCRIPT)
            # how many steps there are to be decides how fast a learning rate falls
            storage.require_same_settings(
                path, saved["args"], wanted, module.MAY_DIFFER_ON_RESUME - {"total_timesteps"}
            )
            return saved["global_step"] >= wanted.total_timesteps

        run_dir = newest_run(folder)
        if run_dir is None:
            self.execute(f"{command} --exp-name {run.arm} --runs-dir {shlex.quote(str(folder.resolve()))}", log, lock)
        elif not done(run_dir):
            self.execute(f"{command} --resume {shlex.quote(str((run_dir / 'checkpoint.pt').resolve()))}", log, lock)
        run_dir = newest_run(folder)
        if run_dir is None or not done(run_dir):
            raise RuntimeError(f"the script was stopped before its last step; {log} has what it said")
        return run_dir

    def one(self, run: Run) -> None:
        """Do what is left of one run."""
        for name in run.needs.values():
            if name in self.failed:
                raise RuntimeError(f"{name} failed, which it needs")
        for maker, name in run.needs_elsewhere:
            if not (Path(self.args.results_dir) / maker / name / "run.json").is_file():
                raise RuntimeError(f"it needs {name}, which {maker}.toml has not finished (with this --results-dir)")
        work, result = self.work_dir(run.name), self.result_dir(run)
        work.mkdir(parents=True, exist_ok=True)
        result.mkdir(parents=True, exist_ok=True)
        with open(work / "lock", "w") as lock:
            while not storage.try_lock(lock):  # something that a killed runner has left running
                if self.stopping.wait(1):
                    return
            if self.finished(run):
                return
            begin, log = time.time(), work / "log.txt"
            if not run.trains:
                shutil.rmtree(result / "output", ignore_errors=True)  # of an attempt that was cut short
                for command in run.commands:
                    command = command.replace("{output}", shlex.quote(str((result / "output").resolve())))
                    self.execute(self.filled(command, run), log, lock.fileno())
                for path in (path for path in result.glob("output/**/*") if path.suffix in (".json", ".csv")):
                    write_atomically(path, self.without_folders(path.read_text(), result))
            else:
                run_dir = self.train(run, lock.fileno(), log)
                if run.evaluate is not None:
                    checkpoint = run_dir / "best.pt" if (run_dir / "best.pt").is_file() else run_dir / "checkpoint.pt"
                    output = work / f"evaluation_{int(begin)}"
                    flags = f"--output-dir {shlex.quote(str(output.resolve()))} {run.evaluate}"
                    self.execute(
                        f"evaluate.py --checkpoint {shlex.quote(str(checkpoint.resolve()))} {flags}", log, lock.fileno()
                    )
                    results = json.loads((output / "results.json").read_text())
                    for row in results["results"]:
                        row.pop("checkpoint", None)  # folders of this machine
                    write_atomically(
                        result / "evaluation.json", json.dumps({"results": results["results"]}, indent=1) + "\n"
                    )
                with open(result / "curve.csv", "w", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    writer.writerow(["step", "seconds", "raw_score"])
                    writer.writerows(
                        [step, f"{seconds:.0f}", f"{score:g}"] for step, seconds, score in games_of(run_dir)
                    )
                if rows := logged_of(run_dir):
                    storage.write_csv(result / "logged.csv", rows, ".4g")
                (run_dir / "buffer.pt").unlink(missing_ok=True)  # gigabytes, for a resumption that will not be
            about = {
                "commands": run.commands,
                "evaluate": run.evaluate,
                "machine": machine(),
                "runs_at_a_time": self.jobs,
            }
            said = log.read_text() if log.is_file() else ""
            revisions = dict.fromkeys(re.findall(r"^# revision (.+)$", said, re.MULTILINE))
            about |= {"threads": self.threads, "resumed": said.count(" --resume ")}
            about |= {"revision": ", ".join(revisions), "finished": time.strftime("%Y-%m-%d")}
            about["ran"] = re.findall(r"^\$ python (.+)$", self.without_folders(said, result), re.MULTILINE)
            write_atomically(result / "run.json", json.dumps(about, indent=1) + "\n")

    def work(self, run: Run) -> None:
        """One run, in a thread of its own; what goes wrong is kept for the end."""
        begin = time.time()
        try:
            self.one(run)
        except Stopped:
            pass
        except Exception as error:  # whatever it is, the other runs go on
            self.failed[run.name] = (
                f"{type(error).__name__}: {error}" if not isinstance(error, (InputError, RuntimeError)) else str(error)
            )
        if not self.stopping.is_set():
            state = f"failed: {self.failed[run.name]}" if run.name in self.failed else "finished"
            print(
                f"{time.strftime('%H:%M')} {run.name}: {state} after {(time.time() - begin) / 60:.1f} minutes",
                flush=True,
            )

    def work_all(self, waiting: list[Run]) -> None:
        """Do these runs in their order, but each only when those that it needs have ended."""
        running: dict[Future, Run] = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            while (waiting or running) and not self.stopping.is_set():
                not_ended = {run.name for run in (*waiting, *running.values())}
                ready = [run for run in waiting if not_ended.isdisjoint(run.needs.values())]
                for run in ready[: self.jobs - len(running)]:
                    waiting.remove(run)
                    running[pool.submit(self.work, run)] = run
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[future]

    def stop(self, *_: Any) -> None:
        """Ctrl-C or SIGTERM: let each run save a checkpoint and end; once more: end them at once."""
        again = self.stopping.is_set()
        print(
            "\nstopping at once" if again else "\nstopping; the runs save their checkpoints (once more: at once)",
            file=sys.stderr,
        )
        self.stopping.set()
        for child in list(self.children):
            child.send_signal(signal.SIGINT)


def in_order_of_needs(runs: list[Run]) -> list[Run]:
    """Runs that others need come before them; raises InputError where some need each other."""
    ordered: dict[str, Run] = {}
    by_name = {run.name: run for run in runs}

    def place(run: Run, above: tuple[str, ...] = ()) -> None:
        if run.name in above:
            raise InputError(f"{run.name} needs itself, through {' and '.join(above)}.")
        for name in run.needs.values():
            place(by_name[name], (*above, run.name))
        ordered.setdefault(run.name, run)

    for run in runs:
        place(run)
    return list(ordered.values())


def main(args: Args) -> None:
    title, all_runs = read_experiment(args.experiment)
    runs = in_order_of_needs([run for run in all_runs if not run.maker])
    if min(args.jobs, args.threads) < 0:
        raise InputError("--jobs and --threads must not be negative.")
    runner = Runner(args, runs)
    left = [run for run in runs if not runner.finished(run)]
    print(
        f"{title}\n{len(runs)} runs, {len(runs) - len(left)} finished; {runner.jobs} at a time, {runner.threads} threads each"
    )
    if makers := dict.fromkeys(
        run.maker[0] for run in all_runs if run.maker and not (runner.result_dir(run) / "run.json").is_file()
    ):
        print(
            f"the table also shows runs that {' and '.join(f'{maker}.toml' for maker in makers)} makes, which are not finished"
        )
    if args.list:
        for run in runs:
            folder = newest_run(runner.work_dir(run.name))
            step = storage.load(folder / "checkpoint.pt", "checkpoint")["global_step"] if folder else 0
            print(
                f"  {run.name:<40} {'to do' if run in left else 'finished':<9} step {step:>10,}   {' && '.join(run.commands)}"
            )
        return
    if left and left[0].earlier:
        raise InputError(
            f"{args.experiment}: revision {left[0].earlier} of the scripts made these results; today's scripts no longer have its flags."
        )
    signal.signal(signal.SIGINT, runner.stop)
    signal.signal(signal.SIGTERM, runner.stop)
    runner.work_all(left)
    if runner.stopping.is_set():
        sys.exit(130)
    if runner.failed:
        sys.exit(
            f"error: {len(runner.failed)} of {len(runs)} runs failed; run the same command again to go on with them."
        )


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
