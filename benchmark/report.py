"""Tables and plots of what benchmark/run.py has finished.

    python -m benchmark.report benchmark/experiments/modes_small.toml   # this experiment's
    python -m benchmark.report                                          # all of them, and their tables in README.md and benchmark/README.md

For each game: learning curves against steps and against time, evaluations while training included, and a table of final scores. A score
is the mean raw score of the training games that end in the last tenth of a run's steps (the curve: at each game, of the tenth before it),
and that of its evaluation games where the experiment asks for them. Each run's score is shown, and over 5 runs and more the interval of a
bootstrap at 95% (scipy.stats.bootstrap, percentiles; of fewer it is little more than their range) of their mean, or, called IQM, of their
interquartile mean where there are at least 8 (Agarwal et al. 2021, arXiv 2108.13264). What is said of evaluation games (all seeds') is
explained in evaluate.py.

A second table has what else the runs logged (the models' weights, the share of flights): the mean over the last tenth of each run, and over
runs.

What evaluate.py has found in an experiment's chain of steps makes tables of its own. Of a suite of changed games: a row per variation,
and per agent the mean raw score, its 95% interval over games, the relative score, and what is said of the games. Of an agent's weights
over a game (--attention): a row per model. Where suites of several seeds were played, another table has their means.

In `benchmark/results/<experiment>/` it writes `table.md` and `.csv`, `logged.csv`, `suite.csv`, `suite_over_seeds.csv`, `attention.csv`
and `curves_<Game>.png`;
without arguments also the tables in the READMEs: everything between `<!-- report: <name> -->` and `<!-- end -->`, where the name is an
experiment's or one of those in `marked_table`: what the other scripts in benchmark/, probe_encoders.py and evaluate.py have stored.
"""

import functools
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import tyro

import evaluate
from benchmark import coverage
from benchmark.learning_curves import WINDOW, read_curves, running_mean
from benchmark.run import ROOT, Run, is_finished, read_experiment, write_atomically
from encoders import load_encoder
from housekeeping import files as storage
from housekeeping.flags import InputError

READMES = ("README.md", "benchmark/README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))))
RESULTS = ROOT / "benchmark" / "results"
ENOUGH_FOR_AN_INTERVAL, ENOUGH_FOR_IQM = 5, 8
END = 0.1  # the part of a run's steps that is its end
GAMES_SAID = ("games", "distinct", "truncated")  # of evaluate.py's results


@dataclass
class Args:
    experiments: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """experiments' files (none: all in benchmark/experiments that have finished runs)"""
    results_dir: str = str(RESULTS)
    """where benchmark/run.py has put what it finished; with another one than the repository's the READMEs are left alone"""


@dataclass
class Finished:
    """What a finished run has left."""

    run: Run
    steps: np.ndarray  # of each training game
    seconds: np.ndarray
    scores: np.ndarray
    evaluation: (
        dict | None
    )  # what evaluate.py found: mean raw score, how many games were cut off, how many are distinct
    logged: dict[str, float]  # what else was logged, by tag: means over the end of the run

    @property
    def curve(self) -> np.ndarray:
        """At each training game, the mean raw score of those that ended in the tenth of the run up to there."""
        return running_mean(self.steps, self.scores, END * self.steps[-1])


def read_finished(folder: Path, runs: list[Run]) -> list[Finished]:
    """The finished runs of an experiment that have a curve, in its order."""
    found = []
    for run in runs:
        path = run.result_dir(folder)
        if not is_finished(path, run) or not (path / "curve.csv").is_file():
            continue
        rows = storage.read_csv(path / "curve.csv")
        if not rows:
            continue
        columns = (np.array([float(row[name]) for row in rows]) for name in ("step", "seconds", "raw_score"))
        evaluation = None
        if (path / "evaluation.json").is_file():
            evaluation = json.loads((path / "evaluation.json").read_text())["results"][0]
        found.append(Finished(run, *columns, evaluation, read_logged(path / "logged.csv")))
    return found


def read_logged(path: Path) -> dict[str, float]:
    """What a run's logged.csv says of the end of the run; empty where there is no such file."""
    return end_of(storage.read_csv(path)) if path.is_file() else {}


def end_of(rows: list[dict[str, str]]) -> dict[str, float]:
    """By tag, the mean over the stretches that end in the last tenth of the run; nothing of what was no longer logged then."""
    last = max(int(row["step"]) for row in rows)
    values: dict[str, list[float]] = {}
    for row in rows:
        if int(row["step"]) > (1 - END) * last:
            values.setdefault(row["tag"], []).append(float(row["mean"]))
    return {tag: float(np.mean(found)) for tag, found in values.items()}


def logged_rows(finished: list[Finished]) -> list[dict[str, str]]:
    """One row per arm and game: of each tag that its runs have logged, the mean over them."""
    rows = []
    tags = dict.fromkeys(tag for one in finished for tag in one.logged)
    for game, arm in dict.fromkeys((one.run.game, one.run.arm) for one in finished if one.logged):
        mine = [one.logged for one in finished if (one.run.game, one.run.arm) == (game, arm)]
        means = {tag: np.mean([logged[tag] for logged in mine if tag in logged] or [np.nan]) for tag in tags}
        cells = {
            tag: "" if np.isnan(mean) else f"{round(mean, 6):.3g}" for tag, mean in means.items()
        }  # 1e-7, one model's entropy, is 0
        rows.append({"game": game, "arm": arm} | cells)
    return rows


def centre_and_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over runs, or interquartile mean where there are enough, and its bootstrap interval at 95%, NaN where there are too few."""

    def statistic(sample: np.ndarray, axis: int) -> np.ndarray:
        return (
            scipy.stats.trim_mean(sample, 0.25, axis=axis) if len(values) >= ENOUGH_FOR_IQM else sample.mean(axis=axis)
        )

    if len(values) < ENOUGH_FOR_AN_INTERVAL or np.ptp(values) == 0:
        return float(statistic(values, 0)), float("nan"), float("nan")
    interval = scipy.stats.bootstrap(
        (values,), statistic, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(statistic(values, 0)), float(interval.low), float(interval.high)


def table_rows(finished: list[Finished]) -> list[dict[str, str]]:
    """One row per arm and game."""
    rows = []
    for game in dict.fromkeys(one.run.game for one in finished):
        for arm in dict.fromkeys(one.run.arm for one in finished if one.run.game == game):
            mine = [one for one in finished if (one.run.game, one.run.arm) == (game, arm)]
            row = {
                "game": game,
                "arm": arm,
                "last game at step": f"{max(one.steps[-1] for one in mine):,.0f}",
                "seeds": str(len(mine)),
            }
            row["games in the last tenth"] = " ".join(
                str(int((one.steps > (1 - END) * one.steps[-1]).sum())) for one in mine
            )
            evaluated = [one.evaluation for one in mine if one.evaluation]
            for name, values in (
                ("last tenth of training", [one.curve[-1] for one in mine]),
                ("evaluation", [one["mean"] for one in evaluated]),
            ):
                centre, low, high = centre_and_interval(np.array(values)) if values else (np.nan,) * 3
                row[name] = f"{centre:.1f}" + (" (IQM)" if len(values) >= ENOUGH_FOR_IQM else "") if values else ""
                row[f"{name}: 95%"] = "" if np.isnan(low) else f"{low:.1f} to {high:.1f}"
                row[f"{name}: each seed"] = " ".join(f"{value:.1f}" for value in values)
            row["evaluation: games"] = (
                games_said(*(sum(one[what] for one in evaluated) for what in GAMES_SAID)) if evaluated else ""
            )
            row["minutes"] = f"{np.mean([one.seconds[-1] for one in mine]) / 60:.0f}"
            row["published"] = "" if mine[0].run.published is None else f"{mine[0].run.published:g}"
            rows.append(row)
    return rows


def files_of_chains(folder: Path, runs: list[Run], name: str) -> list[tuple[int, Path]]:
    """The files of this name that finished chains of steps have left, each with its chain's seed."""
    chains = (run for run in runs if not run.trains and is_finished(run.result_dir(folder), run))
    return [(run.seed, path) for run in chains for path in sorted(run.result_dir(folder).rglob(name))]


def suite_rows(found: list[tuple[int, dict[str, str]]]) -> list[dict[str, str]]:
    """One row per game, seed and variation, with all agents beside each other, of evaluate.py's results and their seeds."""
    several = len({seed for seed, _ in found}) > 1
    rows: dict[tuple[str, int, str], dict[str, str]] = {}
    for seed, one in found:
        about = {"game": one["game"]} | ({"seed": str(seed)} if several else {}) | {"variation": one["variation"]}
        row = rows.setdefault((one["game"], seed, one["variation"]), about)
        row["picture"] = one["first_difference"]
        row[one["agent"]] = f"{float(one['mean']):.1f}"
        row[f"{one['agent']}: 95%"] = (
            f"{float(one['ci_low']):.1f} to {float(one['ci_high']):.1f}" if one["ci_low"] else ""
        )
        row[f"{one['agent']}: relative"] = f"{float(one['relative']):z.2f}" if one["relative"] else ""
        row[f"{one['agent']}: games"] = games_said(*(int(one[what]) for what in GAMES_SAID))
    return filled_up(rows.values())


def suite_over_seeds(found: list[tuple[int, dict[str, str]]]) -> list[dict[str, str]]:
    """Where there are several seeds: one row per game and variation, with each agent's means, and those of each seed.

    A relative score is not defined where the agent is no better than random play in the unchanged game: a dash, left out of the mean.
    """
    if len({seed for seed, _ in found}) == 1:
        return []
    values: dict[tuple[str, str], dict[str, dict[int, str]]] = {}  # by game and variation, by column, by seed
    for seed, one in found:
        row = values.setdefault((one["game"], one["variation"]), {})
        row.setdefault(one["agent"], {})[seed] = one["mean"]
        row.setdefault(f"{one['agent']}: relative", {})[seed] = one["relative"]
    rows = []
    for (game, variation), row in values.items():
        cells = {"game": game, "variation": variation}
        for name, of_seeds in ((name, of_seeds) for name, of_seeds in row.items() if any(of_seeds.values())):
            form = "z.2f" if name.endswith(": relative") else "z.1f"
            cells[name] = format(float(np.mean([float(value) for value in of_seeds.values() if value])), form)
            cells[f"{name}, each seed"] = " ".join(
                format(float(value), form) if value else "-" for value in of_seeds.values()
            )
        rows.append(cells)
    return filled_up(rows)


def filled_up(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The rows, with nothing in each column that only others have."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name, "") for name in columns} for row in rows]


def games_said(games: int, distinct: int, truncated: int) -> str:
    """How many evaluation games there were, and what evaluate.py says of them."""
    return f"{games}, {distinct} distinct" + (f", {truncated} cut off" if truncated else "")


def attention_rows(folder: Path, runs: list[Run]) -> list[dict[str, str]]:
    """One row per model of each agent whose weights over a game evaluate.py has stored in a finished chain of steps."""
    rows = []
    for seed, path in files_of_chains(folder, runs, "summary.json"):
        about = json.loads(path.read_text())
        for model, weight in about["models"].items():
            row = {"game": about["game"], "seed": str(seed), "agent": about["agent"], "score": str(about["score"])}
            row |= {"steps": f"{about['steps']:,}" + (", cut off" if about.get("cut_off") else ""), "model": model}
            row |= {"mean weight": f"{weight['mean']:.3f}", "std": f"{weight['std']:.3f}"}
            quarters = enumerate(weight["mean_by_quarter_of_the_game"], 1)
            rows.append(row | {f"quarter {number}": "" if mean is None else f"{mean:.3f}" for number, mean in quarters})
    return rows


def tables(folder: Path, runs: list[Run], finished: list[Finished]) -> dict[str, list[dict[str, str]]]:
    """What an experiment has found so far, those with rows: the "table" of its training runs, what they "logged", suites, "attention"."""
    found = {"table": table_rows(finished), "logged": logged_rows(finished)}
    suites = [
        (seed, row) for seed, path in files_of_chains(folder, runs, "results.csv") for row in storage.read_csv(path)
    ]
    found |= {
        "suite_over_seeds": suite_over_seeds(suites),
        "suite": suite_rows(suites),
        "attention": attention_rows(folder, runs),
    }
    return {name: rows for name, rows in found.items() if rows}


def markdown(rows: list[dict[str, str]]) -> str:
    """The rows as a table of Markdown, of the columns in which something is said."""
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row[name] for name in columns)} |" for row in rows)])


def plot(finished: list[Finished], title: str, path: Path) -> None:
    """Curves of one game: mean and range over seeds, as far as all seeds go; over time, each step at the mean of the seeds' minutes."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
    for number, arm in enumerate(dict.fromkeys(one.run.arm for one in finished)):
        mine = [one for one in finished if one.run.arm == arm]
        steps = np.linspace(max(one.steps[0] for one in mine), min(one.steps[-1] for one in mine), 200)
        minutes = np.mean([np.interp(steps, one.steps, one.seconds) for one in mine], axis=0) / 60
        curves = np.array([np.interp(steps, one.steps, one.curve) for one in mine])
        colour, line = f"C{number % 10}", "-" if number < 10 else "--"
        for axis, grid in zip(axes, (steps / 1e6, minutes), strict=True):
            axis.plot(grid, curves.mean(axis=0), color=colour, label=f"{arm} ({len(mine)})", linestyle=line)
            if len(mine) > 1:
                axis.fill_between(grid, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    for axis, label in zip(
        axes, ("million agent steps", "minutes (mean of seeds), with evaluations while training"), strict=True
    ):
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("raw score, mean over a tenth of the run")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, title="mean and range over seeds (how many)")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def throughput_table() -> str:
    """What benchmark/throughput.py has measured last and stored: a table of the loops, and how long scripts take to start."""
    stored = json.loads((ROOT / "benchmark" / "throughput.json").read_text())
    rows = []
    for row in stored["rows"]:
        cells = {
            "case": f"{row['kind']}: {row['case']}",
            "precision": row["precision"],
            "steps/s": f"{row['steps_per_second']:.3g}",
        }
        cells |= {key.replace("_", " "): f"{row[key]:.2f}" if row[key] else "" for key in ("times_plain", "of_script")}
        cells["slowest to fastest"] = f"{row['slowest']:.3g} to {row['fastest']:.3g}"
        phases = ("emulation", "frozen_models", "policy", "update")
        shares = {phase: row.get(f"share_{phase}") for phase in phases}
        rows.append(
            cells
            | {phase.replace("_", " "): f"{share:.0%}" if share is not None else "" for phase, share in shares.items()}
        )
    about, settings = stored["machine"], stored["settings"]
    where = f"{about['cpu']}, {about['threads']} threads, {about.get('gpu', 'no GPU')}, PyTorch {about['torch']}; {settings['num_envs']} games"
    starts = (
        f"`{script}.py` {min(seconds):.1f} to {max(seconds):.1f} s"
        for script, seconds in stored["start_up_seconds"].items()
    )
    measured = f"{where}, {settings['rounds']} rounds: the median, and the slowest and the fastest."
    return f"{markdown(rows)}\n\n{measured} From the command to the end of a run of one step, three times each: {', '.join(starts)}."


def denormals_table() -> str:
    """What benchmark/denormals.py has measured last and stored."""
    rows = []
    for row in storage.read_csv(ROOT / "benchmark" / "denormals.csv"):
        cells = {
            "run of": f"`{row['script']}.py`",
            "steps": f"{int(row['step']):,}",
            "denormal": f"{float(row['denormal_share']):.0%}",
        }
        cells |= {
            "Adam's step (ms)": f"{float(row['plain_ms']):.1f}",
            "flushed (ms)": f"{float(row['flushed_ms']):.1f}",
        }
        rows.append(cells | {"times as fast": f"{float(row['times_as_fast']):.1f}"})
    return markdown(rows)


def curves_table() -> str:
    """Where the runs of benchmark/pong_learning_curves.csv ended."""
    logged, rows = storage.read_csv(ROOT / "benchmark" / "pong_learning_curves_logged.csv"), []
    for label, (steps, minutes, mean) in read_curves(ROOT / "benchmark" / "pong_learning_curves.csv").items():
        cells = {"run": label, "last game at step": f"{steps[-1]:,.0f}", "games": str(len(steps))}
        cells |= {f"last {WINDOW:,} steps": f"{mean[-1]:.1f}", "minutes": f"{minutes[-1]:.0f}"}
        mine = [row for row in logged if row["label"] == label]
        of_end = end_of(mine) if mine else {}
        for tag in ("weights/state_representation", "weights/entropy", "weights/dead_scores"):
            cells[tag] = f"{of_end[tag]:.2f}" if tag in of_end else ""
        rows.append(cells)
    return markdown(rows)


def coverage_table() -> str:
    """How many places benchmark/coverage.py has counted."""
    rows = []
    for row in coverage.summary(
        *(storage.read_csv(ROOT / "benchmark" / f"coverage_{what}.csv") for what in ("games", "steps"))
    ):
        cells = {
            "game": row["game"],
            "player": row["player"] + (f", {row['trained steps']:,} steps" if row["trained steps"] else ""),
        }
        cells |= {"games": str(row["games"]), "steps of a game": f"{row['steps of a game']:.0f}"}
        cells |= {"places in a game": f"{row['places in a game']:.0f}", "95%": f"{row['from']:.0f} to {row['to']:.0f}"}
        cells |= {
            "rooms": "" if row["rooms"] is None else str(row["rooms"]),
            f"places in {row['equal steps']:,} steps": f"{row['places in them']:.0f}",
        }
        rows.append(cells | {f"lowest to highest of {row['sets']} sets": f"{row['fewest']} to {row['most']}"})
    return markdown(rows)


def evaluation_text(name: str) -> str:
    """What evaluate.py printed at the end of the evaluation stored in benchmark/evaluation/<name>, as a block of text."""
    folder = ROOT / "benchmark" / "evaluation" / name
    if (folder / "summary.json").is_file():
        text = evaluate.weights_table(json.loads((folder / "summary.json").read_text()))
    else:
        text = evaluate.table(json.loads((folder / "results.json").read_text())["results"])
    return f"```\n{text}\n```"


def scaling_table() -> str:
    """What benchmark/scaling.py has measured, at the smallest and the largest number of models."""
    rows = storage.read_csv(ROOT / "benchmark" / "scaling.csv")
    counts = [int(row["models"]) for row in rows]
    numbers = (min(counts), max(counts))
    columns = {"trained_parameters": ("parameters", ",.0f"), "training_megabytes": ("training memory (MB)", ".0f")}
    columns |= {"combine_8_ms": ("step of 8 (ms)", ".1f"), "update_256_ms": ("update of 256 (ms)", ".0f")}
    found = []
    for mode in dict.fromkeys(row["mode"] for row in rows):
        cells = {"mode": f"`{mode}`"}
        for column, (what, form) in columns.items():
            for n in numbers:
                (row,) = (row for row in rows if (row["mode"], int(row["models"])) == (mode, n))
                cells[f"{what}, N = {n}"] = format(float(row[column]), form)
        found.append(cells)
    return markdown(found)


def probes_table(game: str) -> str:
    """What the stored models of a game were trained with, their losses, and what linear probes read from them.

    F1 scores are the trained model's and, in brackets, its random initialisation's.
    """
    rows = {
        (row["features"], row["weights"]): row for row in storage.read_csv(ROOT / "benchmark" / f"probes_{game}.csv")
    }
    kinds = [name for name in next(iter(rows.values())) if name.startswith("f1_") and name != "f1_mean"]
    found = []
    for (features, weights), row in rows.items():
        if weights == "untrained" or features.startswith("all but"):
            continue
        without, before = rows.get((f"all but {features}", "trained")), rows.get((features, "untrained"))
        cells = dict.fromkeys(("model", "steps x batch", "held-out loss", "untrained", "median frame"), "")
        cells["model"] = f"`{features}`" if before else features
        if before:
            about = load_encoder(ROOT / "pretrained" / game / f"{features}.pt").description
            cells["steps x batch"] = f"{about['training']['steps']:,} x {about['training']['batch_size']}"
            cells["held-out loss"], cells["untrained"] = (
                f"{about[f'validation_loss{which}']:.5f}" for which in ("", "_untrained")
            )
            cells["median frame"] = "" if about["median_frame_error"] is None else f"{about['median_frame_error']:.5f}"
        for kind in kinds:
            cells[f"F1 {kind[3:]}"] = f"{float(row[kind]):.2f}" + (f" ({float(before[kind]):.2f})" if before else "")
        cells["adds"] = f"{float(without['adds']):+.3f}" if without else ""
        found.append(cells)
    return markdown(found)


@functools.cache
def marked_table(name: str) -> str:
    """What belongs where a README says `<!-- report: name -->`."""
    of_scripts = {
        "throughput": throughput_table,
        "denormals": denormals_table,
        "scaling": scaling_table,
        "coverage": coverage_table,
        "pong_learning_curves": curves_table,
    }
    if name in of_scripts:
        return of_scripts[name]()
    if name.startswith("probes_"):
        return probes_table(name.removeprefix("probes_"))
    if name.startswith("evaluation_"):
        return evaluation_text(name.removeprefix("evaluation_"))
    folder, runs = RESULTS / name, read_experiment(ROOT / "benchmark" / "experiments" / f"{name}.toml")[1]
    found = tables(folder, runs, read_finished(folder, runs))
    return "\n\n".join(markdown(rows) for rows in found.values()) or "Not run yet."


def write_readmes() -> None:
    """Put each marked table in; a README in which nothing changes is left alone."""
    for readme in (ROOT / name for name in READMES):
        before = after = readme.read_text()
        for name in re.findall(r"<!-- report: ([\w.-]+) -->", before):
            after = insert(after, name, marked_table(name))
        if after != before:
            write_atomically(readme, after)


def insert(text: str, experiment: str, table: str) -> str:
    """A README with this experiment's table put in where it is marked."""
    pattern = rf"(<!-- report: {re.escape(experiment)} -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{table}\n{match[2]}", text, flags=re.DOTALL)


def main(args: Args) -> None:
    paths = args.experiments or sorted((ROOT / "benchmark" / "experiments").glob("*.toml"))
    for path in paths:
        title, runs = read_experiment(path)
        folder = Path(args.results_dir) / path.stem
        finished = read_finished(folder, runs)
        found = tables(folder, runs, finished)
        if not any(is_finished(run.result_dir(folder), run) for run in runs if not run.maker) or not found:
            if args.experiments:
                raise InputError(
                    f"{folder}: nothing of this experiment that makes a table is finished; start it with benchmark/run.py."
                )
            continue
        for name, rows in found.items():
            storage.write_csv(folder / f"{name}.csv", rows)
        table = "\n\n".join(markdown(rows) for rows in found.values())
        (folder / "table.md").write_text(table + "\n")
        for game in dict.fromkeys(one.run.game for one in finished):
            plot([one for one in finished if one.run.game == game], f"{title} ({game})", folder / f"curves_{game}.png")
        print(
            f"{title}: {sum(is_finished(run.result_dir(folder), run) for run in runs)} of {len(runs)} runs\n{table}\n"
        )
    if not args.experiments and Path(args.results_dir).resolve() == RESULTS.resolve():
        write_readmes()


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
