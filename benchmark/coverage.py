"""How much of a game does a pre-trained policy get to see, beside random play?

    python -m benchmark.coverage --checkpoint runs/<run_name>/checkpoint.pt
    python -m benchmark.coverage                                            # the plot again, from the CSV

Counts the different places (bytes of the console's memory, see pretrain_policy_atari.py) that 8 games side by side reach, step by step, in
several sets of games; the policy's actions are drawn, as they are when it helps another agent.
"""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro

import pretrain_policy_atari
import storage
from atari import game_name, make_env
from storage import InputError


@dataclass
class Args:
    checkpoint: str | None = None
    """a checkpoint of pretrain_policy_atari.py, or of another script; none: plot what the CSV holds"""
    steps: int = 8_000
    """agent steps of one set of 8 games"""
    sets: int = 5
    """sets of games"""
    every: int = 200
    """one line of the CSV for so many steps"""
    output: str = "benchmark/coverage"
    """<output>.csv and <output>.png"""


def measure(args: Args) -> list[dict]:
    """Count, and return the CSV's lines."""
    checkpoint = storage.load(Path(args.checkpoint), "checkpoint")
    env_id = checkpoint["args"]["env_id"]
    if game_name(env_id) not in pretrain_policy_atari.POSITION:
        known = ", ".join(pretrain_policy_atari.POSITION)
        raise InputError(f"{args.checkpoint}: it plays {env_id}, where no place is known; the games with places are {known}.")
    agent = storage.load_agent(Path(args.checkpoint))
    num_actions = int(make_env(env_id).action_space.n)
    flags = pretrain_policy_atari.Args(env_id=env_id, coverage_steps=args.steps)
    rows = []
    for number in range(args.sets):
        rng = np.random.default_rng(number)
        torch.manual_seed(number)
        players = {
            "random play": lambda obs, rng=rng: rng.integers(num_actions, size=len(obs)),
            "policy": lambda obs: agent.act(obs, greedy=False),
        }
        for who, act in players.items():
            found = pretrain_policy_atari.coverage(act, flags, stream=1_000_000_007 + number)
            for i in range(args.every // 8 - 1, len(found["places"]), args.every // 8):
                counts = {what: values[i] for what, values in found.items()}
                rows.append({"game": game_name(env_id), "who": who, "set": number, "steps": (i + 1) * 8} | counts)
            print(f"set {number}, {who}: {', '.join(f'{values[-1]} {what}' for what, values in found.items())}", flush=True)
    return rows


def main(args: Args) -> None:
    path = Path(f"{args.output}.csv")
    if args.checkpoint:
        rows = measure(args)
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if not path.exists():
        raise InputError(f"{path}: there is no such file; give --checkpoint to make it.")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    figure, axis = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    for who in dict.fromkeys(row["who"] for row in rows):
        sets = dict.fromkeys(row["set"] for row in rows if row["who"] == who)
        steps = sorted({int(row["steps"]) for row in rows if row["who"] == who})
        counts = np.array([[int(row["places"]) for row in rows if (row["who"], row["set"]) == (who, one)] for one in sets])
        axis.plot(steps, counts.mean(axis=0), label=f"{who} (mean and range of {len(sets)} sets)")
        axis.fill_between(steps, counts.min(axis=0), counts.max(axis=0), alpha=0.2, linewidth=0)
        print(f"{who}: {counts[:, -1].mean():.0f} places in {steps[-1]:,} steps ({counts[:, -1].min()} to {counts[:, -1].max()})")
    axis.set_xlabel("agent steps, in 8 games side by side")
    axis.set_ylabel("different places")
    axis.set_title(f"Places reached in {rows[0]['game']}")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(f"{args.output}.png", dpi=120)
    print(f"{path} and {args.output}.png")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
