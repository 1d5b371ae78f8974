"""Learning curves of finished runs: TensorBoard's games become a CSV, the CSV becomes a plot.

    python -m benchmark.learning_curves --runs runs/<run_name> runs/<run_name> --labels "end to end" "WSA"
    python -m benchmark.learning_curves                    # the plot again, from the CSV

The curve is the mean raw score of the last 100 games, of fewer at the start, against agent steps and against wall time.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import storage
from storage import InputError


@dataclass
class Args:
    runs: tuple[str, ...] = ()
    """folders of runs; none: plot what the CSV holds"""
    labels: tuple[str, ...] = ()
    """what each run is called"""
    output: str = "benchmark/pong_learning_curves"
    """<output>.csv and <output>.png"""
    title: str = "Pong, mean raw score of the last 100 training games"
    """the plot's title"""
    random_play: float = -20.7
    """score of random play, drawn as a line"""


def read_games(run: str) -> list[tuple[int, float, float]]:
    """(agent step, seconds since the first log, raw score) of each finished game of a run."""
    events = EventAccumulator(run, size_guidance={"scalars": 0}).Reload()
    begin = events.FirstEventTimestamp()
    return [(event.step, event.wall_time - begin, event.value) for event in events.Scalars("charts/episodic_return")]


def running_mean(scores: np.ndarray, window: int = 100) -> np.ndarray:
    """Mean of the last `window` scores up to each game, of fewer at the start."""
    sums = np.cumsum(np.concatenate([[0.0], scores]))
    ends = np.arange(1, len(scores) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def read_curves(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each run by its label, game by game: agent steps, minutes, and the mean raw score of the last 100 games."""
    rows = storage.read_csv(path)
    found = {}
    for label in dict.fromkeys(row["label"] for row in rows):
        steps, seconds, scores = np.array(
            [[float(row[key]) for key in ("step", "seconds", "raw_score")] for row in rows if row["label"] == label]
        ).T
        found[label] = steps, seconds / 60, running_mean(scores)
    return found


def main(args: Args) -> None:
    path = Path(f"{args.output}.csv")
    if args.runs:
        if len(args.labels) != len(args.runs):
            raise InputError("give one of --labels for each of --runs.")
        games = [(label, *game) for run, label in zip(args.runs, args.labels, strict=True) for game in read_games(run)]
        storage.write_csv(
            path,
            [
                {"label": label, "step": step, "seconds": f"{seconds:.0f}", "raw_score": f"{score:.0f}"}
                for label, step, seconds, score in games
            ],
        )
    if not path.exists():
        raise InputError(f"{path}: there is no such file; give --runs to make it.")
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
    for label, (steps, minutes, mean) in read_curves(path).items():
        axes[0].plot(steps / 1e6, mean, label=label)
        axes[1].plot(minutes, mean, label=label)
        print(f"{label}: {len(steps)} games, {steps[-1]:,.0f} steps, {minutes[-1]:.0f} minutes; mean of the last 100: {mean[-1]:.1f}")
    for axis, unit in zip(axes, ("million agent steps", "wall time, minutes"), strict=True):
        axis.axhline(args.random_play, color="grey", linestyle=":", label="random play")
        axis.set_xlabel(unit)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("raw score (21 is the most)")
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
