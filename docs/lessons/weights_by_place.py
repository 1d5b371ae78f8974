"""Do the weights follow the ball? Each model's mean weight over one game, by where a thing is.

    python -m docs.lessons.weights_by_place benchmark/evaluation/attention_breakout
    python -m docs.lessons.weights_by_place benchmark/evaluation/attention --byte ball_x       # Pong

The folder is one that `evaluate.py --attention` made, with its default seed and without sticky actions. Its actions are
played again; the console's memory says where the thing is (`environments/ram.py`).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from environments import env_id_of
from environments.atari import make_env
from environments.ram import VARIABLES
from evaluate import STREAM
from housekeeping import files
from housekeeping.flags import InputError, parse, start
from housekeeping.seeds import env_seeds


@dataclass
class Args:
    """places"""

    folder: Annotated[Path, tyro.conf.Positional]
    """steps.csv and summary.json of one game"""
    byte: str = "ball_y"
    """where something is; of ball_y larger is lower, of ball_x further to the right"""
    width: int = 20
    """of each row of the table, in the byte's unit"""
    csv: Path | None = None
    """write the table to this file, too"""


def places(game: str, steps: list[dict[str, str]], byte: str) -> np.ndarray:
    """The byte of the console's memory before each step of a game that is played again (steps,).

    Raises:
        InputError: the byte has no such name in this game, or the game goes another way than its steps say.
    """
    addresses = {name: address for thing in VARIABLES.get(game, {}).values() for name, address in thing.items()}
    if byte not in addresses:
        raise InputError(f"{byte}: not known in {game}; what is: {', '.join(addresses) or 'nothing'}.")
    env, found, score = make_env(env_id_of(game)), [], 0.0
    env.reset(seed=int(env_seeds(1, 1, STREAM)[0]))
    for row in steps:
        found.append(int(env.unwrapped.ale.getRAM()[addresses[byte]]))
        score += env.step(int(row["action"]))[1]
        if score != float(row["score"]):
            raise InputError(f"step {row['step']}: the score is {score:g}, in the folder {row['score']}: another game.")
    env.close()
    return np.array(found)


def mean_weights(folder: Path, byte: str, width: int) -> list[dict[str, str]]:
    """A row per stretch of places: its bounds, the number of steps, each model's mean weight in them."""
    try:
        about = json.loads((folder / "summary.json").read_text())
        steps = files.read_csv(folder / "steps.csv")
    except OSError as error:
        raise InputError(f"{folder}: there is no game here as evaluate.py --attention stores it.") from error
    where, models = places(about["game"], steps, byte) // width, list(about["models"])
    weights = np.array([[float(row[name]) for name in models] for row in steps])
    rows = []
    for place in np.unique(where):
        mine = weights[where == place]
        row = {byte: f"{place * width} to {(place + 1) * width - 1}", "steps": str(len(mine))}
        rows.append(row | {name: f"{w:.3f}" for name, w in zip(models, mine.mean(axis=0), strict=True)})
    return rows


def main(args: Args) -> None:
    if args.width < 1:
        raise InputError("--width must be at least 1.")
    rows = mean_weights(args.folder, args.byte, args.width)
    print(" | ".join(rows[0]))
    for row in rows:
        print(" | ".join(row.values()))
    if args.csv:
        files.write_csv(args.csv, rows)


if __name__ == "__main__":
    start(main, lambda: parse(Args, __doc__))
