"""Learning curves of finished runs: TensorBoard's games become a CSV, the CSV becomes a plot.

    python benchmark/learning_curves.py --runs runs/<run_name> runs/<run_name> --labels "end to end" "WSA"
    python benchmark/learning_curves.py                    # the plot again, from the CSV

The curve is the mean raw score of the last 100 games, of fewer at the start, against agent steps and against wall time.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


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


def main(args: Args) -> None:
    path = Path(f"{args.output}.csv")
    if args.runs:
        if len(args.labels) != len(args.runs):
            raise SystemExit("error: give one of --labels for each of --runs.")
        with open(path, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["label", "step", "seconds", "raw_score"])
            for run, label in zip(args.runs, args.labels, strict=True):
                writer.writerows([label, step, f"{seconds:.0f}", f"{score:.0f}"] for step, seconds, score in read_games(run))
    if not path.exists():
        raise SystemExit(f"error: {path}: there is no such file; give --runs to make it.")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    labels = list(dict.fromkeys(row["label"] for row in rows))
    figure, (by_step, by_time) = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
    for label in labels:
        games = [row for row in rows if row["label"] == label]
        mean = running_mean(np.array([float(row["raw_score"]) for row in games]))
        by_step.plot([int(row["step"]) / 1e6 for row in games], mean, label=label)
        by_time.plot([float(row["seconds"]) / 60 for row in games], mean, label=label)
        print(
            f"{label}: {len(games)} games, {int(games[-1]['step']):,} steps, {float(games[-1]['seconds']) / 60:.0f} minutes; "
            f"mean of the last 100: first {mean[min(99, len(mean) - 1)]:.2f}, last {mean[-1]:.2f}"
        )
    for axis, unit in ((by_step, "million agent steps"), (by_time, "wall time, minutes")):
        axis.axhline(args.random_play, color="grey", linestyle=":", label="random play")
        axis.set_xlabel(unit)
        axis.grid(alpha=0.3)
    by_step.set_ylabel("raw score (21 is the most)")
    handles, names = by_step.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    figure.suptitle(args.title)
    figure.savefig(f"{args.output}.png", dpi=120)
    print(f"{path} and {args.output}.png")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
