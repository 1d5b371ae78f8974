"""Pool a class's runs: each run's mean raw score of its last 30,000 steps, by game and --exp-name.

    python -m docs.lessons.pool                   # those in runs/
    python -m docs.lessons.pool alice bob carol --csv pooled.csv          # any number of folders that hold runs

The CSV has the mean of the 30,000 steps before each 50,000 that a run has reached.
"""

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

from housekeeping import files

LAST = 30_000  # steps that count

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folders", nargs="*", type=Path, default=[Path("runs")])
parser.add_argument("--csv", type=Path)
args = parser.parse_args()


def scores_before(games: list[ScalarEvent], step: int) -> list[float]:
    """Scores of the games that ended in the last steps before this one."""
    return [one.value for one in games if step - LAST < one.step <= step]


pooled: dict[str, list[tuple[int, float]]] = defaultdict(list)  # by game and name, each run's seed and score
rows, unfinished = [], 0
for run in sorted(run for folder in args.folders for run in folder.glob("*__*__*__*") if run.is_dir()):
    game, *name, seed, _ = run.name.split("__")
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    if "charts/episodic_return" not in events.Tags()["scalars"]:
        unfinished += 1
        continue
    games, end = events.Scalars("charts/episodic_return"), events.Scalars("charts/SPS")[-1].step
    about = {"game": game, "name": "__".join(name), "seed": seed}
    for step in range(50_000, end + 1, 50_000):
        if scores := scores_before(games, step):
            rows.append(about | {"until_step": step, "games": len(scores), "score": f"{np.mean(scores):.2f}"})
    pooled[f"{game} {about['name']}"].append((int(seed), np.mean(scores_before(games, games[-1].step))))
if not pooled:
    sys.exit(f"error: no runs with finished games in {', '.join(map(str, args.folders))}; name folders that hold runs.")
for name, found in pooled.items():
    each = " ".join(f"{score:.1f}" for _, score in sorted(found))
    runs = "1 run, " if len(found) == 1 else f"{len(found)} runs,"
    print(f"{name:28} {runs} mean {np.mean([score for _, score in found]):6.1f}: {each}")
    for seed, times in Counter(seed for seed, _ in found).items():
        if times > 1:
            print(f"note: seed {seed} has {times} runs: copies, or commands without an --exp-name each")
if unfinished:
    print(f"runs without a finished game, left out: {unfinished}")
if args.csv and not rows:
    print(f"{args.csv} is not written: no run has reached 50,000 steps")
elif args.csv:
    files.write_csv(args.csv, rows)
