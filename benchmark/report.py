"""Tables and plots of the runs that are finished (`Snakefile`).

    python -m benchmark.report benchmark/experiments/modes_small.toml      # this experiment's
    python -m benchmark.report                            # all experiments', and the tables in the README and the pages

For each game: learning curves against steps and against time, and a table of final scores. Time has evaluations while
training in it; halts are left out. A score is the mean raw score of the training games that end in the last tenth of a
run's steps (the curve: at each game, of the tenth before it), and that of its evaluation games where the experiment
asks for them. Each run's score is shown. From 5 runs on there is a 95% interval of their mean (rliable's percentile
bootstrap; of fewer it would be little more than their range). From 8 on, mean and interval are the interquartile
mean's, called IQM (Agarwal et al. 2021, arXiv 2108.13264). What is said of evaluation games (all seeds') is explained
in evaluate.py.

Where an experiment says at which steps (scores_at), a second table has each seed's mean score of the games that ended
in the 30,000 steps before. Another has what else the runs logged (the models' weights, the share of flights): the mean
over the last tenth of each run, and over runs.

What evaluate.py has found in an experiment's chain of steps makes tables of its own. Of a suite of changed games: a row
per variation, and per agent the mean raw score, its 95% interval over games, the relative score, and what is said of
the games. Of an agent's weights over a game (--attention): a row per model. Where suites of several seeds were played,
another table has their means.

In `benchmark/results/<experiment>/` it writes `table.md` and `.csv`, `scores_at.csv`, `logged.csv`, `suite.csv`,
`suite_over_seeds.csv` (of several games `suite_<Game>.csv`), `attention.csv` and `curves_<Game>.png`; without arguments
also the tables in README.md, benchmark/README.md and docs/*.md: everything between `<!-- report: <name> -->` and `<!--
end -->`, where the name is an experiment's or one of those in `marked_table`: what the other scripts in benchmark/,
probe_encoders.py and evaluate.py have stored.
"""

import functools
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
from rliable import library as rly
from rliable import metrics

import evaluate
from benchmark import coverage
from benchmark.runs import EXPERIMENTS, RESULTS, ROOT, Run, read_experiment, write_atomically
from encoders import load_encoder
from environments import env_id_of, rendered
from housekeeping import files
from housekeeping.flags import InputError

BENCHMARK = ROOT / "benchmark"
ENOUGH_FOR_AN_INTERVAL, ENOUGH_FOR_IQM = 5, 8
END = 0.1  # the part of a run's steps that is its end
WINDOW = 50_000  # steps, of the curves that are not an experiment's
STRETCH = 30_000  # steps, of the scores on the way


@dataclass
class Args:
    experiments: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """experiments' files (none: all in benchmark/experiments that have finished runs)"""
    results_dir: str = str(RESULTS)
    """where the finished runs are; with another folder than the repository's the README and the pages are left alone"""


def text(values: pd.Series, form: str) -> pd.Series:
    """Numbers as text, nothing where there is none."""
    return values.map(lambda value: "" if pd.isna(value) else format(value, form)).astype(object)


def markdown(table: pd.DataFrame) -> str:
    """A table of text as Markdown, of the columns in which something is said."""
    table = table.loc[:, (table != "").any()]
    lines = [table.columns, ["---"] * len(table.columns), *table.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace(" --- ", "---")


def running_mean(steps: np.ndarray, scores: np.ndarray, window: float) -> np.ndarray:
    """At each game, the mean score of the games that ended in the `window` steps up to its end.

    Steps and not games, as a better player's games may be longer or shorter: a hundred games would begin at another
    time in each run.

    Args:
        steps: agent step at which each game ended, rising (games,).
        scores: (games,).
    """
    sums = np.cumsum(np.concatenate([[0.0], scores]))
    ends = np.searchsorted(steps, steps, side="right")
    starts = np.searchsorted(steps, steps - window, side="right")
    return (sums[ends] - sums[starts]) / (ends - starts)


def without_halts(steps: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Seconds of a run at each game (games,), as if it had not been halted while other work was done: where more than a
    minute passed between two games, and five times what the run takes for as many steps, that takes its place.
    """
    usual = seconds[-1] / steps[-1] * np.diff(steps, prepend=0)
    passed = np.diff(seconds, prepend=0)
    return np.where((passed > 60) & (passed > 5 * usual), usual, passed).cumsum()


# What training runs have left


def read_games(runs: list[Run], results_dir: Path) -> pd.DataFrame:
    """A row per training game of the finished runs: which run's, whether on a GPU, step, seconds, raw_score, and the
    curve there.
    """
    found = []
    for run in runs:
        path = results_dir / run.experiment / run.name / "curve.csv"
        if run.trains and run.is_finished(results_dir) and path.is_file():
            games = pd.read_csv(path)
            if len(games):
                curve = running_mean(games.step.to_numpy(), games.raw_score.to_numpy(), END * games.step.max())
                if "--eval-interval" not in run.commands[0]:  # an evaluation would look like a halt
                    games["seconds"] = without_halts(games.step.to_numpy(), games.seconds.to_numpy())
                gpu = "gpu" in json.loads(path.with_name("run.json").read_text())["machine"]
                found.append(games.assign(game=run.game, arm=run.arm, seed=run.seed, curve=curve, gpu=gpu, run=run))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def centre_and_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over runs, or interquartile mean where there are enough, and its bootstrap interval at 95%, NaN where there
    are too few.
    """
    aggregate = metrics.aggregate_iqm if len(values) >= ENOUGH_FOR_IQM else metrics.aggregate_mean
    scores = np.asarray(values, dtype=float)[:, None]  # rliable: runs by tasks
    if len(values) < ENOUGH_FOR_AN_INTERVAL or np.ptp(values) == 0:
        return float(aggregate(scores)), float("nan"), float("nan")
    np.random.seed(0)  # rliable draws from the global generator, whatever its random_state
    centre, interval = rly.get_interval_estimates(
        {"runs": scores}, lambda drawn: np.array([aggregate(drawn)]), reps=10_000
    )
    return float(centre["runs"][0]), *(float(bound) for bound in interval["runs"][:, 0])


def scores_said(name: str, values: list[float]) -> dict[str, str]:
    """Cells on some runs' scores: their centre, its interval, and each one's."""
    centre, low, high = centre_and_interval(np.array(values)) if values else (np.nan,) * 3
    iqm = " (IQM)" if len(values) >= ENOUGH_FOR_IQM else ""
    cells = {
        name: f"{centre:.1f}{iqm}" if values else "",
        f"{name}: 95%": "" if np.isnan(low) else f"{low:.1f} to {high:.1f}",
    }
    return cells | {f"{name}: each seed": " ".join(f"{value:.1f}" for value in values)}


def games_said(game: str, games: int, distinct: int, truncated: int) -> str:
    """How many evaluation games there were, and what evaluate.py says of them. (A robot arm's starts are all different,
    and its episodes last until the time limit or until they are solved.)"""
    env_id = env_id_of(game)
    if env_id in rendered.DRAWN:
        return f"{games}" + (f", {games - truncated} solved" if env_id in rendered.ENDS_WHEN_SOLVED else "")
    return f"{games}, {distinct} distinct" + (f", {truncated} cut off" if truncated else "")


def score_table(games: pd.DataFrame, results_dir: Path) -> pd.DataFrame:
    """A row per game and arm."""
    rows = []
    for game, of_game in games.groupby("game", sort=False):
        for arm, mine in of_game.groupby("arm", sort=False):
            by_seed = mine.groupby("seed", sort=False)
            ends = by_seed.last()  # each run's last game
            in_the_end = by_seed.step.apply(lambda steps: (steps > (1 - END) * steps.max()).sum())
            paths = [results_dir / run.experiment / run.name / "evaluation.json" for run in ends.run]
            evaluated = pd.DataFrame([json.loads(path.read_text())["results"][0] for path in paths if path.is_file()])
            row = {"game": game, "arm": arm, "last game at step": f"{ends.step.max():,}", "seeds": str(len(ends))}
            row["games in the last tenth"] = " ".join(map(str, in_the_end))
            row |= scores_said("last tenth of training", list(ends.curve))
            row |= scores_said("evaluation", list(evaluated["mean"]) if len(evaluated) else [])
            row["evaluation: games"] = (
                games_said(game, *evaluated[["games", "distinct", "truncated"]].sum()) if len(evaluated) else ""
            )
            minutes = ends.groupby("gpu", sort=False).seconds.mean() / 60
            row["minutes"] = ", ".join(f"{mean:.0f}" + " (GPU)" * gpu for gpu, mean in minutes.items())
            published = ends.run.iloc[0].published
            rows.append(row | {"published": "" if published is None else f"{published:g}"})
    return pd.DataFrame(rows)


def scores_on_the_way(games: pd.DataFrame) -> pd.DataFrame:
    """A row per game and arm: each seed's mean score of the games that ended in the STRETCH steps before each of those
    that the experiment names.
    """
    rows = []
    for game, of_game in games.groupby("game", sort=False):
        for arm, mine in of_game.groupby("arm", sort=False):
            row = {"game": game, "arm": arm}
            for step in mine.run.iloc[0].scores_at:
                ended = mine[(mine.step > step - STRETCH) & (mine.step <= step)]
                row[f"{step:,} steps"] = " ".join(text(ended.groupby("seed", sort=False).raw_score.mean(), ".1f"))
            rows.append(row)
    return pd.DataFrame(rows)


def end_of(logged: pd.DataFrame) -> pd.Series:
    """By tag, the mean over the stretches that end in the last tenth of the run; nothing of what was no longer logged
    then.
    """
    return logged[logged.step > (1 - END) * logged.step.max()].groupby("tag")["mean"].mean()


def logged_table(runs: list[Run], results_dir: Path) -> pd.DataFrame:
    """A row per game and arm: of each tag that its finished runs have logged, the mean over them."""
    found = []
    for run in runs:
        path = results_dir / run.experiment / run.name / "logged.csv"
        if run.is_finished(results_dir) and path.is_file():
            found.append(end_of(pd.read_csv(path)).reset_index().assign(game=run.game, arm=run.arm))
    if not found:
        return pd.DataFrame()
    rows = pd.concat(found)
    means = rows.pivot_table(index=["game", "arm"], columns="tag", values="mean").reindex(
        pd.MultiIndex.from_frame(rows[["game", "arm"]]).unique()
    )
    means = means.round(6)  # 1e-7, one model's entropy, is 0
    if "weights/entropy" in means and (means["weights/entropy"] == 0).all():  # one model alone: its weight is always 1
        means = means.drop(columns=[tag for tag in means if tag.startswith("weights/")])
    return means.apply(text, form=".3g").reset_index() if len(means.columns) else pd.DataFrame()


# What evaluate.py has left in chains of steps


def files_of_chains(runs: list[Run], results_dir: Path, name: str) -> list[tuple[int, Path]]:
    """The files of this name that finished chains of steps have left, each with its chain's seed."""
    chains = [run for run in runs if not run.trains and run.is_finished(results_dir)]
    return [
        (run.seed, path) for run in chains for path in sorted((results_dir / run.experiment / run.name).rglob(name))
    ]


def suite_table(found: pd.DataFrame) -> pd.DataFrame:
    """A row per game, seed and variation, with all agents beside each other."""
    keys = ["game", "seed", "variation"]
    order = pd.MultiIndex.from_frame(found[keys].drop_duplicates())
    # two chains may have played the same random games
    found = found.drop_duplicates([*keys, "agent"], keep="last").set_index(keys)
    cells = pd.DataFrame({"": text(found["mean"], ".1f")})
    cells[": 95%"] = (text(found.ci_low, ".1f") + " to " + text(found.ci_high, ".1f")).where(found.ci_low.notna(), "")
    cells[": relative"] = text(found.relative, "z.2f")
    of_games = zip(found.index.get_level_values("game"), found.games, found.distinct, found.truncated, strict=True)
    cells[": games"] = [games_said(*row) for row in of_games]
    agents = [cells[found.agent == agent].add_prefix(agent) for agent in found.agent.unique()]
    pictures = found.first_difference.groupby(level=keys).last().rename("picture")
    table = pd.concat([pictures, *agents], axis=1).reindex(order).fillna("").reset_index()
    return table.astype({"seed": str}) if table.seed.nunique() > 1 else table.drop(columns="seed")


def suite_over_seeds(found: pd.DataFrame) -> pd.DataFrame:
    """Where there are several seeds: one row per game and variation, with each agent's means, and those of each seed.

    A relative score is not defined where the agent is no better than random play in the unchanged game: a dash, left
    out of the mean.
    """
    if found.seed.nunique() == 1:
        return pd.DataFrame()
    keys = ["game", "variation"]
    found = found.drop_duplicates([*keys, "seed", "agent"], keep="last")
    columns = {}
    for agent, mine in found.groupby("agent", sort=False):
        for name, what, form in ((agent, "mean", "z.1f"), (f"{agent}: relative", "relative", "z.2f")):
            rows = mine.groupby(keys, sort=False)[what]
            columns[name] = text(rows.mean(), form)
            seeds = rows.apply(lambda values, form=form: " ".join(text(values, form).replace("", "-")))
            columns[f"{name}, each seed"] = seeds.where(rows.count() > 0, "")
    order = pd.MultiIndex.from_frame(found[keys].drop_duplicates())
    table = pd.DataFrame(columns).reindex(order).fillna("").reset_index()
    return table.loc[:, (table != "").any()]


def attention_table(found: list[tuple[int, Path]]) -> pd.DataFrame:
    """A row per model of each agent whose weights over a game evaluate.py has stored."""
    rows = []
    for seed, path in found:
        about = json.loads(path.read_text())
        for model, weight in about["models"].items():
            row = {"game": about["game"], "seed": str(seed), "agent": about["agent"], "score": str(about["score"])}
            row |= {"steps": f"{about['steps']:,}" + (", cut off" if about.get("cut_off") else ""), "model": model}
            row |= {"mean weight": f"{weight['mean']:.3f}", "std": f"{weight['std']:.3f}"}
            quarters = enumerate(weight["mean_by_quarter_of_the_game"], 1)
            rows.append(row | {f"quarter {number}": "" if mean is None else f"{mean:.3f}" for number, mean in quarters})
    return pd.DataFrame(rows).fillna("")


def tables(runs: list[Run], results_dir: Path) -> dict[str, pd.DataFrame]:
    """What an experiment has found so far, where it has: the "table" of its training runs, what they "logged", suites,
    "attention".
    """
    games = read_games(runs, results_dir)
    found = {"table": score_table(games, results_dir) if len(games) else games}
    if len(games) and runs[0].scores_at:
        found["scores_at"] = scores_on_the_way(games)
    found["logged"] = logged_table(runs, results_dir)
    suites = [pd.read_csv(path).assign(seed=seed) for seed, path in files_of_chains(runs, results_dir, "results.csv")]
    if suites:
        by_game = dict(list(pd.concat(suites).groupby("game", sort=False)))
        for game, mine in by_game.items():
            which = f"_{game}" if len(by_game) > 1 else ""
            found |= {f"suite_over_seeds{which}": suite_over_seeds(mine), f"suite{which}": suite_table(mine)}
    found["attention"] = attention_table(files_of_chains(runs, results_dir, "summary.json"))
    return {name: table for name, table in found.items() if len(table)}


def plot(games: pd.DataFrame, title: str, path: Path, said: str = "over a tenth of the run") -> None:
    """Curves of one game: mean and range over seeds, as far as all seeds go; over time, where either all runs or none
    had a GPU, each step at the mean of the seeds' minutes.
    """
    labels = ["million agent steps"]
    if games.gpu.nunique() == 1:
        labels.append("minutes (mean of seeds), without halts")
    size = (3 + 4 * len(labels), 4.8)
    figure, axes = plt.subplots(1, len(labels), figsize=size, sharey=True, layout="constrained", squeeze=False)
    axes = axes[0]
    for number, (arm, of_arm) in enumerate(games.groupby("arm", sort=False)):
        mine = [one for _, one in of_arm.groupby("seed", sort=False)]
        steps = np.linspace(max(one.step.iloc[0] for one in mine), min(one.step.iloc[-1] for one in mine), 200)
        minutes = np.mean([np.interp(steps, one.step, one.seconds) for one in mine], axis=0) / 60
        grids = (steps / 1e6, minutes)[: len(labels)]
        curves = np.array([np.interp(steps, one.step, one.curve) for one in mine])
        colour, line = f"C{number % 10}", "-" if number < 10 else "--"
        for axis, grid in zip(axes, grids, strict=True):
            axis.plot(grid, curves.mean(axis=0), color=colour, label=f"{arm} ({len(mine)})", linestyle=line)
            if len(mine) > 1:
                axis.fill_between(grid, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    for axis, label in zip(axes, labels, strict=True):
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"raw score, mean {said}")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, title="mean and range over seeds (how many)")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# What other scripts have stored


def throughput_table(processor: str) -> str:
    """What benchmark/throughput.py has measured on one processor: a table of the loops, and how long scripts take to
    start.
    """
    stored = json.loads((BENCHMARK / f"throughput_{processor}.json").read_text())
    rows = pd.DataFrame(stored["rows"])
    table = pd.DataFrame(
        {
            "case": rows.kind + ": " + rows.case,
            "precision": rows.precision,
            "steps/s": text(rows.steps_per_second, ",.1f"),
        }
    )
    table["times plain"], table["of script"] = text(rows.times_plain, ".2f"), text(rows.of_script, ".2f")
    table["slowest to fastest"] = text(rows.slowest, ",.1f") + " to " + text(rows.fastest, ",.1f")
    for phase in ("emulation", "frozen_models", "policy", "update"):
        table[phase.replace("_", " ")] = text(rows[f"share_{phase}"], ".0%")
    about, settings = stored["machine"], stored["settings"]
    where = f"{about['cpu']}, {about['threads']} threads, {about.get('gpu', 'no GPU')}, PyTorch {about['torch']}"
    games, rounds = settings["num_envs"], settings["rounds"]
    where += f"; {games} games, {rounds} rounds: the median, and the slowest and the fastest."
    starts = (
        f"`{script}.py` {min(seconds):.1f} to {max(seconds):.1f} s"
        for script, seconds in stored["start_up_seconds"].items()
    )
    said = f"From the command to the end of a run of one step, three times each: {', '.join(starts)}."
    return f"{markdown(table)}\n\n{where} {said}"


def denormals_table() -> str:
    """What flushing denormal numbers saved, in the runs of benchmark/denormals.csv."""
    rows = pd.read_csv(BENCHMARK / "denormals.csv")
    table = pd.DataFrame(
        {
            "run of": "`" + rows.script + ".py`",
            "steps": text(rows.step, ","),
            "denormal": text(rows.denormal_share, ".0%"),
        }
    )
    table["Adam's step (ms)"], table["flushed (ms)"] = text(rows.plain_ms, ".1f"), text(rows.flushed_ms, ".1f")
    return markdown(table.assign(**{"times as fast": text(rows.times_as_fast, ".1f")}))


def old_curves() -> pd.DataFrame:
    """The games of benchmark/pong_learning_curves.csv, of no experiment, as `read_games` gives them."""
    games = pd.read_csv(BENCHMARK / "pong_learning_curves.csv").rename(columns={"label": "arm"}).assign(seed=1)
    curves = [
        running_mean(one.step.to_numpy(), one.raw_score.to_numpy(), WINDOW)
        for _, one in games.groupby("arm", sort=False)
    ]
    return games.assign(curve=np.concatenate(curves), gpu=False)


def curves_table() -> str:
    """Where these runs ended."""
    logged, rows = pd.read_csv(BENCHMARK / "pong_learning_curves_logged.csv"), []
    for label, games in old_curves().groupby("arm", sort=False):
        last, of_end = games.iloc[-1], end_of(logged[logged.label == label])
        row = {
            "run": label,
            "last game at step": f"{last.step:,}",
            "games": str(len(games)),
            f"last {WINDOW:,} steps": f"{last.curve:.1f}",
        }
        row |= {"minutes": f"{last.seconds / 60:.0f}"}
        tags = ("weights/state_representation", "weights/entropy", "weights/dead_scores")
        rows.append(row | {tag: f"{of_end[tag]:.2f}" if tag in of_end else "" for tag in tags})
    return markdown(pd.DataFrame(rows))


def coverage_table() -> str:
    """How many places benchmark/coverage.py has counted."""
    found = coverage.summary(*(files.read_csv(BENCHMARK / f"coverage_{what}.csv") for what in ("games", "steps")))
    rows = []
    for row in found:
        cells = {
            "game": row["game"],
            "player": row["player"] + (f", {row['trained steps']:,} steps" if row["trained steps"] else ""),
        }
        cells |= {"games": str(row["games"]), "steps of a game": f"{row['steps of a game']:.0f}"}
        cells |= {"places in a game": f"{row['places in a game']:.0f}", "95%": f"{row['from']:.0f} to {row['to']:.0f}"}
        cells |= {
            "rooms": str(row["rooms"] or ""),
            f"places in {row['equal steps']:,} steps": f"{row['places in them']:.0f}",
        }
        rows.append(cells | {f"lowest to highest of {row['sets']} sets": f"{row['fewest']} to {row['most']}"})
    return markdown(pd.DataFrame(rows).fillna(""))


def evaluation_text(name: str) -> str:
    """What evaluate.py printed of the evaluation in benchmark/evaluation/<name>, as a block of text."""
    folder = BENCHMARK / "evaluation" / name
    if (folder / "summary.json").is_file():
        said = evaluate.weights_table(json.loads((folder / "summary.json").read_text()))
    else:
        said = evaluate.table(json.loads((folder / "results.json").read_text())["results"])
    return f"```\n{said}\n```"


def scaling_table() -> str:
    """What benchmark/scaling.py has measured, at the smallest and the largest number of models."""
    rows = pd.read_csv(BENCHMARK / "scaling.csv")
    columns = {"trained_parameters": ("parameters", ",.0f"), "training_megabytes": ("training memory (MB)", ".0f")}
    columns |= {"combine_8_ms": ("step of 8 (ms)", ".1f"), "update_256_ms": ("update of 256 (ms)", ".0f")}
    table = pd.DataFrame(index=rows["mode"].unique())
    for column, (what, form) in columns.items():
        for n in (rows.models.min(), rows.models.max()):
            table[f"{what}, N = {n}"] = text(rows[rows.models == n].set_index("mode")[column], form)
    return markdown(table.rename("`{}`".format).rename_axis("mode").reset_index())


def probes_table(game: str) -> str:
    """What the stored models of a game were trained with, their losses, and what linear probes read from them.

    F1 scores (R^2, where the simulator's numbers were read) are the trained model's and, in brackets, its random
    initialisation's.
    """
    rows = pd.read_csv(BENCHMARK / f"probes_{game}.csv").set_index(["weights", "features"])
    trained, untrained = rows.loc["trained"], rows.loc["untrained"]
    found = []
    for (weights, features), row in rows.iterrows():
        if weights == "untrained" or features.startswith("all but"):
            continue
        cells = dict.fromkeys(("model", "steps x batch", "held-out loss", "untrained", "median frame"), "")
        cells["model"] = f"`{features}`" if features in untrained.index else features
        if features in untrained.index:
            about = load_encoder(ROOT / "pretrained" / game / f"{features}.pt").description
            cells["steps x batch"] = f"{about['training']['steps']:,} x {about['training']['batch_size']}"
            cells["held-out loss"], cells["untrained"] = (
                f"{about[f'validation_loss{which}']:.3g}" for which in ("", "_untrained")
            )
            cells["median frame"] = "" if about["median_frame_error"] is None else f"{about['median_frame_error']:.3g}"
        for kind in (name for name in rows if name[:3] in ("f1_", "r2_") and not name.endswith("_mean")):
            before = f" ({untrained.loc[features, kind]:.2f})" if features in untrained.index else ""
            cells[f"{'F1' if kind[0] == 'f' else 'R^2'} {kind[3:]}"] = f"{row[kind]:.2f}{before}"
        without = f"all but {features}"
        found.append(cells | {"adds": f"{trained.loc[without, 'adds']:+.3f}" if without in trained.index else ""})
    return markdown(pd.DataFrame(found))


def models_table() -> str:
    """Do the stored models' keypoints and masks follow what moves, and (in brackets) would others' do as well?"""
    rows = pd.read_csv(ROOT / "docs" / "models.csv")

    def beside(mine: str, others: str) -> pd.Series:
        return text(rows[mine], ".2f") + " (" + text(rows[others], ".2f") + ")"

    columns = {"game": rows["game"], "keypoint on what moves": beside("on_what_moves", "of_another_observation")}
    columns |= {"masks": beside("masks_likeness", "masks_of_another_observation")}
    return markdown(pd.DataFrame(columns))


# The README and the pages


@functools.cache
def marked_table(name: str) -> str:
    """What belongs where a page says `<!-- report: name -->`."""
    of_scripts = {
        "denormals": denormals_table,
        "scaling": scaling_table,
        "coverage": coverage_table,
        "models": models_table,
        "pong_learning_curves": curves_table,
    }
    if name in of_scripts:
        return of_scripts[name]()
    if name.startswith("throughput_"):
        return throughput_table(name.removeprefix("throughput_"))
    if name.startswith("probes_"):
        return probes_table(name.removeprefix("probes_"))
    if name.startswith("evaluation_"):
        return evaluation_text(name.removeprefix("evaluation_"))
    found = tables(read_experiment(EXPERIMENTS / f"{name}.toml")[1], RESULTS)
    return "\n\n".join(markdown(table) for table in found.values()) or "Not run yet."


def pages() -> list[Path]:
    """Where tables are put in."""
    return [ROOT / "README.md", BENCHMARK / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(page: str, table_of: Callable[[str], str] = marked_table) -> str:
    """A page's text with each marked table put in."""
    pattern = r"(<!-- report: ([\w.-]+) -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{table_of(match[2])}\n{match[3]}", page, flags=re.DOTALL)


def main(args: Args) -> None:
    results_dir = Path(args.results_dir)
    for path in args.experiments or sorted(EXPERIMENTS.glob("*.toml")):
        title, runs = read_experiment(path)
        folder, found = results_dir / path.stem, tables(runs, results_dir)
        if not any(run.is_finished(results_dir) for run in runs if run.experiment == path.stem) or not found:
            if args.experiments:
                raise InputError(
                    f"{folder}: nothing of this experiment that makes a table is finished; benchmark/Snakefile runs it."
                )
            continue
        for name, table in found.items():
            table.to_csv(folder / f"{name}.csv", index=False)
        said = "\n\n".join(markdown(table) for table in found.values())
        (folder / "table.md").write_text(said + "\n")
        if "table" in found:
            for game, games in read_games(runs, results_dir).groupby("game", sort=False):
                plot(games, f"{title} ({game})", folder / f"curves_{game}.png")
        print(f"{title}: {sum(run.is_finished(results_dir) for run in runs)} of {len(runs)} runs\n{said}\n")
    if not args.experiments and results_dir.resolve() == RESULTS.resolve():
        plot(old_curves(), "Pong", BENCHMARK / "pong_learning_curves.png", f"of the games of the last {WINDOW:,} steps")
        for page in pages():
            if (after := filled(page.read_text())) != page.read_text():
                write_atomically(page, after)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
