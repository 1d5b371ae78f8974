"""The runs of an experiment: read from its file for `Snakefile` and `report.py`, and stored when they are finished.

    python -m benchmark.runs runs/<experiment>/<run>    # as JSON: step reached, machine; fails where steps are left

An experiment's file (TOML) has a title, and arms. A run is an arm in a game with a seed:

    title = "..."                       # what is compared
    games = ["Pong"]
    seeds = [1, 2]
    flags = "--total-timesteps 500000"  # given to each arm's training script
    evaluate = "--episodes 20"          # flags of evaluate.py; left out: no evaluation
    scores_at = [100_000, 500_000]      # a table of the scores there, too; may be left out

    [[arms]]
    name = "wsa"
    command = "ppo_wsa_atari.py --combiner wsa"   # a training script; game, seed and folder are added to it
    game_flags = {Pong = "--features-dim 1024"}   # flags for some of the games
    published = {Pong = 21.0}                     # shown beside ours

    [[arms]]
    name = "behaviour"                  # {run:explorer}: the folder of that arm's run of the same game and seed, which
                                        # goes first; {run:explorer:1}: of seed 1
    command = "dqn_bt_atari.py --flights --pretrained-policy {run:explorer}/checkpoint.pt"

    [[arms]]
    name = "wsa"
    of = "modes_small/wsa"              # runs that another experiment makes, shown beside these; not run here

`earlier = "3f2a1b0"` beside the title says that an earlier revision of the scripts, whose flags are gone, made the
results: they are kept and shown, and never run again.

An arm may have games, seeds, flags, game_flags and evaluate of its own, and `after = ["other"]` (or `["other:1"]`: of
seed 1) where it needs what that arm makes. `other` may be of another experiment: `after = ["main/wsa"]`,
`{run:main/wsa}`.

An arm with `steps = [...]` in place of `command` is a chain of other scripts (frames, models, suites). When it is taken
up again, pre-training goes on where it was, an evaluation begins anew. In it {env_id}, {game} and {seed} stand for what
they say, {output} for a new folder, which is kept with the results; there and in commands, {runs} is the folder of all
runs. `python = "hackatari"`: these steps need the environment of requirements-hackatari.txt.
"""

import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from environments import env_id_of
from housekeeping import files
from housekeeping.flags import InputError

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "benchmark" / "experiments"
RESULTS = ROOT / "benchmark" / "results"
PACKAGES = ("torch", "gymnasium", "ale-py", "numpy")
LOGGED = ("eval/", "weights/", "transfer/", "intrinsic/", "coverage/")  # tags that are kept, beside the score
DEFAULTS = {"games": ["Pong"], "seeds": [1], "flags": "", "game_flags": {}, "evaluate": None}
OF_ARMS = {"name", "command", "steps", "of", "published", "after", "python"}
TYPES = dict.fromkeys(("games", "seeds", "after", "steps", "scores_at"), list)
TYPES |= dict.fromkeys(("title", "earlier", "name", "command", "of", "flags", "evaluate", "python"), str)
TYPES |= dict.fromkeys(("game_flags", "published"), dict)
WRITTEN = {list: "a list, in square brackets", str: "text, in quotes", dict: "a table, in curly brackets"}
FOR_TRAINING = {"flags", "game_flags", "evaluate", "published"}


@dataclass
class Run:
    """One arm in one game with one seed."""

    experiment: str  # that makes it
    name: str  # of its folders: <arm>__<game>__<seed>, as its maker calls the arm
    arm: str  # as it is called in the table
    game: str
    seed: int
    commands: list[str]  # one training script's command line, or the steps of a chain
    trains: bool
    evaluate: str | None = None
    published: float | None = None
    after: tuple[str, ...] = ()  # arms whose runs of the same game and seed go first
    python: str = "python"  # or "hackatari"
    earlier: str | None = None  # the revision of the scripts that made it, if those of today cannot
    scores_at: tuple[int, ...] = ()  # steps, of the experiment that shows it

    def named(self, other: str) -> str:
        """<experiment>/<name> of the run called `other` here: an arm's, of this or of another experiment, perhaps of
        another seed.
        """
        experiment, _, arm = other.rpartition("/")
        arm, _, seed = arm.partition(":")
        return f"{experiment or self.experiment}/{arm}__{self.game}__{seed or self.seed}"

    @property
    def needs(self) -> list[str]:
        """Each run that goes first, as <experiment>/<name>."""
        others = re.findall(r"\{run:([\w./:-]+)\}", " ".join(self.commands))
        return list(dict.fromkeys(self.named(other) for other in (*others, *self.after)))

    def filled(self, runs_dir: Path | str) -> list[str]:
        """The commands with the folders of runs in them."""
        quoted = shlex.quote(str(runs_dir))

        def fill(match: re.Match) -> str:
            if match[1] == "runs":
                return quoted
            if match[1] == "output":
                return f"{quoted}/{self.experiment}/{self.name}/output"
            return f"{quoted}/{self.named(match[1].removeprefix('run:'))}"

        return [re.sub(r"\{(runs|output|run:[\w./:-]+)\}", fill, command) for command in self.commands]

    @property
    def record(self) -> dict[str, Any]:
        """What must be the same for results and checkpoints to be of this run."""
        return {"commands": self.commands, "evaluate": self.evaluate}

    def is_recorded(self, path: Path) -> bool:
        """Whether the file at `path` is there; raises InputError if it is of other commands than the experiment has
        now.
        """
        if not path.is_file():
            return False
        about = json.loads(path.read_text())
        if any(about[key] != value for key, value in self.record.items()):
            raise InputError(
                f"{path}: this run was made by other commands than the experiment has now; to run it again, remove its "
                "folders among the runs and the results, or choose other ones: --config runs=my_runs results=my_results"
            )
        return True

    def is_finished(self, results_dir: Path) -> bool:
        """Whether its results are complete; raises InputError if they are of other commands."""
        return self.is_recorded(Path(results_dir) / self.experiment / self.name / "run.json")


def read_experiment(path: Path, with_others: bool = True) -> tuple[str, list[Run]]:
    """An experiment's title and its runs, in the order of the file, seed by seed, so that a part of it already compares
    all arms.

    Args:
        with_others: also those of other experiments that it shows.

    Raises:
        InputError: no such file, not TOML, or something in it that is not known; before anything runs.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: there is no such file.") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: this is not TOML ({error}).") from error
    own = ("title", "arms", "earlier", "scores_at")
    require_types(path, {key: content[key] for key in (*own, *DEFAULTS) if key in content})
    common = DEFAULTS | {key: value for key, value in content.items() if key not in own}
    scores_at = tuple(content.get("scores_at", ()))
    unknown = set(common) - set(DEFAULTS)
    runs: list[Run] = []
    arms = content.get("arms", [])
    if not (isinstance(arms, list) and all(isinstance(arm, dict) for arm in arms)):
        raise InputError(f"{path}: arms are written as [[arms]], each with lines of its own.")
    for arm in arms:
        require_types(path, arm)
        settings = common | arm
        unknown |= set(arm) - set(DEFAULTS) - OF_ARMS
        if "name" not in arm or len({"command", "steps", "of"} & set(arm)) != 1:
            raise InputError(f"{path}: an arm needs a name, and one of: a command, steps, or whose runs it shows (of).")
        if "steps" in arm and FOR_TRAINING & set(arm):
            raise InputError(
                f"{path}: {arm['name']}: {', '.join(sorted(FOR_TRAINING))} are for training scripts, not for steps."
            )
        if "of" in arm and set(arm) - {"name", "of", "games", "seeds"}:
            raise InputError(
                f"{path}: {arm['name']}: beside of, an arm may have games and seeds; the rest is {arm['of']}'s."
            )
        for game in (*settings["games"], *settings["game_flags"], *arm.get("published", {})):
            env_id_of(game)
        wanted = [(game, seed) for game in settings["games"] for seed in settings["seeds"]]
        if "of" in arm:
            maker, _, other = arm["of"].partition("/")
            theirs = read_experiment(path.with_name(f"{maker}.toml"), with_others=False)[1] if with_others else []
            found = [
                replace(run, arm=arm["name"], scores_at=scores_at)
                for run in theirs
                if run.arm == other and (run.game, run.seed) in wanted
            ]
            if with_others and len(found) < len(wanted):
                raise InputError(f"{path}: {arm['name']}: {arm['of']} is not made there in all these games and seeds.")
            runs += found
            continue
        for game, seed in wanted:
            flags = " ".join(part for part in (settings["flags"], settings["game_flags"].get(game)) if part)
            commands = arm.get("steps") or [f"{arm['command']} {flags} --env-id {env_id_of(game)} --seed {seed}"]
            fill = {"env_id": env_id_of(game), "game": game, "seed": seed}
            runs.append(
                Run(
                    experiment=path.stem,
                    name=f"{arm['name']}__{game}__{seed}",
                    arm=arm["name"],
                    game=game,
                    seed=seed,
                    commands=[
                        re.sub(r"\{(env_id|game|seed)\}", lambda m, fill=fill: str(fill[m[1]]), one) for one in commands
                    ],
                    trains="command" in arm,
                    evaluate=settings["evaluate"] if "command" in arm else None,
                    published=arm.get("published", {}).get(game),
                    after=tuple(arm.get("after", ())),
                    python=arm.get("python", "python"),
                    earlier=content.get("earlier"),
                    scores_at=scores_at,
                )
            )
    if unknown:
        raise InputError(
            f"{path}: {', '.join(sorted(unknown))}: not known here; the docstring of benchmark/runs.py says what is."
        )
    if not runs and with_others or len({(run.arm, run.game, run.seed) for run in runs}) < len(runs):
        raise InputError(f"{path}: it must have at least one arm, and no two of one name.")
    if with_others:
        require_what_is_needed(path, [run for run in runs if run.experiment == path.stem])
    order = {seed: number for number, seed in enumerate(dict.fromkeys(run.seed for run in runs))}
    return content.get("title", path.stem), sorted(runs, key=lambda run: order[run.seed])


def require_types(path: Path, settings: dict[str, Any]) -> None:
    """Refuse what is written as something else than it is; raises InputError, which says how it is written."""
    for key, value in settings.items():
        if not isinstance(value, TYPES.get(key, object)):
            raise InputError(f"{path}: {key} must be {WRITTEN[TYPES[key]]}.")


def require_what_is_needed(path: Path, runs: list[Run]) -> None:
    """Refuse scripts that are not there, and needs that no experiment makes; raises InputError."""
    makers = {need.partition("/")[0] for run in runs for need in run.needs} - {path.stem}
    others = [read_experiment(path.with_name(f"{maker}.toml"), with_others=False)[1] for maker in makers]
    made = {f"{run.experiment}/{run.name}" for some in (runs, *others) for run in some}
    for run in runs:
        for script in (shlex.split(command)[0] for command in run.commands):
            if not (ROOT / script).is_file():
                raise InputError(f"{path}: {run.arm}: there is no script {script}.")
        for need in run.needs:
            if need not in made:
                raise InputError(f"{path}: {run.name} needs {need}, which is not among the runs.")


def games_of(run_dir: Path) -> list[tuple[int, float, float]]:
    """(agent step, seconds of training so far, raw score) of each finished game; time between a stop and its resumption
    does not count.
    """
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
    # those of several processes are not
    for event in sorted(events.Scalars("charts/episodic_return"), key=lambda event: event.step):
        games.append(
            (event.step, sum(max(0.0, min(end, event.wall_time) - begin) for begin, end in spans), event.value)
        )
    return games


def logged_of(run_dir: Path, stretches: int = 50) -> list[dict[str, Any]]:
    """What else a run has logged: for each tag, means over so many equal stretches, with each one's last step."""
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
    """What this process runs on."""
    found = {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}
    found |= {package: importlib.metadata.version(package) for package in PACKAGES}
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def revision() -> str:
    """The commit that the scripts are of, with a + if files were changed since."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def require_all_steps(run_dir: Path) -> int:
    """The step that a training run has reached; raises InputError if steps are left, as a script that was stopped ends
    without an error.
    """
    checkpoint = files.load(run_dir / "checkpoint.pt", "checkpoint")
    step, steps = checkpoint["global_step"], checkpoint["args"]["total_timesteps"]
    if step < steps:
        raise InputError(f"{run_dir}: stopped at step {step:,} of {steps:,}; run the same command again to go on.")
    return step


def write_atomically(path: Path, text: str) -> None:
    """So that a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def store_results(run: Run, runs_dir: Path, results_dir: Path) -> None:
    """Put what is kept of a run that has ended into its folder among the results; `run.json`, written last, says that
    all is there.
    """
    folder, result = (Path(some).resolve() / run.experiment / run.name for some in (runs_dir, results_dir))

    def without_folders(text: str) -> str:
        """The text without this machine's folders: those below the run's are given from there, others from `runs` and
        from here.
        """
        text = text.replace(str(folder / "output"), "./output").replace(str(Path(runs_dir).resolve()), "runs")
        return text.replace(f"{ROOT}/", "")

    result.mkdir(parents=True, exist_ok=True)
    if run.trains:
        games = [
            {"step": step, "seconds": f"{seconds:.0f}", "raw_score": f"{score:g}"}
            for step, seconds, score in games_of(folder)
        ]
        if games:
            files.write_csv(result / "curve.csv", games)
        if rows := logged_of(folder):
            files.write_csv(result / "logged.csv", rows, ".4g")
        if run.evaluate is not None:
            results = json.loads((folder / "evaluation.json").read_text())["results"]
            for row in results:
                row.pop("checkpoint", None)  # a folder of this machine
            write_atomically(result / "evaluation.json", json.dumps({"results": results}, indent=1) + "\n")
        (folder / "buffer.pt").unlink(missing_ok=True)  # gigabytes, for a resumption that will not be
    elif (folder / "output").is_dir():
        shutil.rmtree(result / "output", ignore_errors=True)  # of a copy that was cut short
        shutil.copytree(folder / "output", result / "output")
        for path in (path for path in result.glob("output/**/*") if path.suffix in (".json", ".csv")):
            write_atomically(path, without_folders(path.read_text()))
    said = (folder / "log.txt").read_text()
    ran = re.findall(r"^\$ python (.+?) ?$", without_folders(said), re.MULTILINE)
    begun = sum(command.startswith(shlex.split(run.commands[0])[0]) for command in ran)
    about = run.record | {"machine": json.loads((folder / "done.json").read_text())["machine"]}
    about |= json.loads((folder / "begun.json").read_text()) | {"resumed": begun - 1 if run.trains else 0}
    about |= {"revision": ", ".join(dict.fromkeys(re.findall(r"^# revision (.+)$", said, re.MULTILINE)))}
    about |= {"finished": time.strftime("%Y-%m-%d"), "ran": ran}
    write_atomically(result / "run.json", json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    try:
        print(
            json.dumps({"step": require_all_steps(Path(sys.argv[1])) if sys.argv[1:] else None, "machine": machine()})
        )
    except InputError as error:
        sys.exit(f"error: {error}")
