"""Pool a class's runs: each run's mean raw score of its last 30,000 steps, by --exp-name.

    python -m docs.lessons.pool runs              # any number of folders that hold runs
    python -m docs.lessons.pool alice bob carol --csv pooled.csv

The CSV has the mean at each 50,000 steps.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

LAST = 30_000  # steps that count

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folders", nargs="+", type=Path)
parser.add_argument("--csv", type=Path)
args = parser.parse_args()

scores: dict[str, dict[int, float]] = defaultdict(dict)
rows = []
for folder in args.folders:
    for run in sorted(path for path in folder.glob("*__*__*__*") if path.is_dir()):
        game, name, seed, _ = run.name.split("__")
        events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
        if "charts/episodic_return" not in events.Tags()["scalars"]:
            continue
        games = events.Scalars("charts/episodic_return")
        last = max(one.step for one in games)
        for until in range(50_000, last + LAST, 50_000):
            found = [one.value for one in games if until - LAST < one.step <= until]
            if found:
                rows.append(
                    {
                        "game": game,
                        "name": name,
                        "seed": seed,
                        "until_step": until,
                        "games": len(found),
                        "score": f"{np.mean(found):.2f}",
                    }
                )
        scores[f"{game} {name}"][int(seed)] = np.mean([one.value for one in games if one.step > last - LAST])
for name, found in scores.items():
    each = " ".join(f"{score:.1f}" for _, score in sorted(found.items()))
    print(f"{name:28} {len(found)} seeds, mean {np.mean(list(found.values())):6.1f}: {each}")
if args.csv:
    with open(args.csv, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
