"""Do the weights follow the ball? Each model's mean weight over one game, by where a thing is.

    python -m docs.lessons.weights_by_place benchmark/evaluation/attention_breakout
    python -m docs.lessons.weights_by_place benchmark/evaluation/attention_breakout --csv my_places.csv

The folder is one that `evaluate.py --attention` made, with its default seed and without sticky actions. Its actions are
played again; the console's memory says where the thing is (`environments/ram.py`).
"""

import argparse
import json
from pathlib import Path

import numpy as np

from environments import env_id_of
from environments.atari import make_env
from environments.ram import VARIABLES
from evaluate import STREAM
from housekeeping import files
from housekeeping.seeds import env_seeds

NOT_WEIGHTS = {"step", "action", "reward", "score", "lives"}


def places(game: str, steps: list[dict[str, str]], address: int) -> np.ndarray:
    """The byte at this address before each step of the game (steps,)."""
    env = make_env(env_id_of(game))
    env.reset(seed=int(env_seeds(1, 1, STREAM)[0]))
    found, score = [], 0.0
    for row in steps:
        found.append(int(env.unwrapped.ale.getRAM()[address]))
        score += env.step(int(row["action"]))[1]
        assert score == float(row["score"]), "the game went another way than the folder says"
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--thing", default="ball", help="a key of environments.ram.VARIABLES (default: ball)")
    parser.add_argument("--byte", default="ball_y", help="its byte; of ball_y larger is lower (default: ball_y)")
    parser.add_argument("--width", type=int, default=20, help="of each row of the table, in the byte's unit")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    game = json.loads((args.folder / "summary.json").read_text())["game"]
    steps = files.read_csv(args.folder / "steps.csv")
    models = [name for name in steps[0] if name not in NOT_WEIGHTS]
    weights = np.array([[float(row[name]) for name in models] for row in steps])
    where = places(game, steps, VARIABLES[game][args.thing][args.byte]) // args.width
    rows = []
    for place in np.unique(where):
        mine = weights[where == place]
        row = {args.byte: f"{place * args.width} to {(place + 1) * args.width - 1}", "steps": len(mine)}
        rows.append(row | dict(zip(models, (f"{weight:.3f}" for weight in mine.mean(axis=0)), strict=True)))
    print(" | ".join(rows[0]))
    for row in rows:
        print(" | ".join(map(str, row.values())))
    if args.csv:
        files.write_csv(args.csv, rows)


if __name__ == "__main__":
    main()
