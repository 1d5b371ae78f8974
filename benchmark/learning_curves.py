"""Learning curves of finished runs: what TensorBoard has of them becomes CSVs, the CSVs become a plot.

    python -m benchmark.learning_curves --runs runs/<run_name> runs/<run_name> --labels "end to end" "WSA"
    python -m benchmark.learning_curves                    # the plot again, from the CSV

The curve is the mean raw score of the games of the last 50,000 steps, against agent steps and against wall time.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro

from benchmark.run import games_of, logged_of
from housekeeping import files as storage
from housekeeping.flags import InputError

WINDOW = 50_000  # agent steps


@dataclass
class Args:
    runs: tuple[str, ...] = ()
    """folders of runs; none: plot what the CSV holds"""
    labels: tuple[str, ...] = ()
    """what each run is called"""
    output: str = "benchmark/pong_learning_curves"
    """<output>.csv (games), <output>_logged.csv (weights, and what else tells how the agent works), <output>.png"""
    title: str = f"Pong, mean raw score of the games of the last {WINDOW:,} steps"
    """the plot's title"""
    random_play: float = -20.7
    """score of random play, drawn as a line"""


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


def read_curves(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each run by its label, game by game: agent steps, minutes, and the mean raw score of the games of the last
    steps."""
    rows = storage.read_csv(path)
    found = {}
    for label in dict.fromkeys(row["label"] for row in rows):
        steps, seconds, scores = np.array(
            [[float(row[key]) for key in ("step", "seconds", "raw_score")] for row in rows if row["label"] == label]
        ).T
        found[label] = steps, seconds / 60, running_mean(steps, scores, WINDOW)
    return found


def main(args: Args) -> None:
    path, logged_path = Path(f"{args.output}.csv"), Path(f"{args.output}_logged.csv")
    if args.runs:
        if len(args.labels) != len(args.runs):
            raise InputError("give one of --labels for each of --runs.")
        runs = [(label, Path(run)) for run, label in zip(args.runs, args.labels, strict=True)]
        games = [(label, *game) for label, run in runs for game in games_of(run)]
        columns = ("label", "step", "seconds", "raw_score")
        storage.write_csv(path, [dict(zip(columns, game, strict=True)) for game in games], ".0f")
        storage.write_csv(logged_path, [{"label": label} | row for label, run in runs for row in logged_of(run)], ".4g")
    if not path.exists():
        raise InputError(f"{path}: there is no such file; give --runs to make it.")
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
    for label, (steps, minutes, mean) in read_curves(path).items():
        axes[0].plot(steps / 1e6, mean, label=label)
        axes[1].plot(minutes, mean, label=label)
        print(
            f"{label}: {len(steps)} games, {steps[-1]:,.0f} steps, {minutes[-1]:.0f} minutes; at the end {mean[-1]:.1f}"
        )
    for axis, unit in zip(axes, ("million agent steps", "wall time, minutes"), strict=True):
        axis.axhline(args.random_play, color="grey", linestyle=":", label="random play")
        axis.set_xlabel(unit)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("raw score")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    figure.suptitle(args.title)
    figure.savefig(f"{args.output}.png", dpi=120)
    plt.close(figure)
    print(f"{path} and {args.output}.png")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
