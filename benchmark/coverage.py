"""How much of a game does a pre-trained policy get to see, beside random play?

    python -m benchmark.coverage --checkpoint runs/<run_name>/checkpoint.pt        # one policy per game
    python -m benchmark.coverage                                                   # the plot again, from the CSVs

Counts different places (bytes of the console's memory, see environments/ram.py), in two ways: in each of some
whole games, as Never Give Up's reward sees them, whose memory is of one game; and in equal numbers of steps, by 8 games
side by side, whatever ends meanwhile. The policy's actions are drawn, as they are when it helps another agent.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro

import pretrain_policy_atari
from behavior_transfer.coverage import coverage
from environments.atari import MAX_FRAMES_PER_GAME, game_name, make_env
from environments.ram import POSITION
from evaluate import half_width_of_mean
from housekeeping import checkpoints, files
from housekeeping.flags import InputError
from housekeeping.seeds import env_seeds


@dataclass
class Args:
    checkpoint: tuple[str, ...] = ()
    """checkpoints of pretrain_policy_atari.py (or of other agents without a memory), one per game; none: plot what the
    CSVs hold"""
    games: int = 24
    """whole games of each player"""
    max_frames_per_game: int = MAX_FRAMES_PER_GAME
    """a game is cut off after so many emulator frames"""
    steps: int = 8_000
    """agent steps of one set of 8 games side by side"""
    sets: int = 5
    """such sets"""
    every: int = 200
    """one line of the CSV for so many of these steps"""
    output: str = "benchmark/coverage"
    """<output>_games.csv, <output>_steps.csv and <output>.png; in the tables other games' lines stay"""


def whole_games(
    act: Callable[[np.ndarray], np.ndarray],
    env_id: str,
    seeds: np.ndarray,
    max_frames_per_game: int,
    sticky: float = 0.0,
) -> list[dict[str, int]]:
    """Play one game per seed, side by side, and count each one's places.

    Args:
        act: uint8 (B, 4, 84, 84) -> actions (B,).
        sticky: how often the emulator repeats the action before.

    Returns:
        Of each game its length in agent steps, its "places", and, where the game has several, its "rooms".
    """
    where = list(POSITION[game_name(env_id)])
    envs = [make_env(env_id, sticky, max_frames_per_game) for _ in seeds]
    obs = np.stack([env.reset(seed=int(seed))[0] for env, seed in zip(envs, seeds, strict=True)])
    seen: list[set[bytes]] = [set() for _ in envs]
    lengths, playing = np.zeros(len(envs), dtype=np.int64), np.arange(len(envs))
    while len(playing):
        over = np.zeros(len(playing), dtype=bool)
        for k, (i, action) in enumerate(zip(playing, act(obs[playing]), strict=True)):
            obs[i], _, terminated, truncated, _ = envs[i].step(action)
            seen[i].add(envs[i].unwrapped.ale.getRAM()[where].tobytes())
            lengths[i] += 1
            over[k] = terminated or truncated
        playing = playing[~over]
    rows = [{"steps": int(length), "places": len(places)} for length, places in zip(lengths, seen, strict=True)]
    if len(where) == 3:
        rows = [row | {"rooms": len({place[:1] for place in places})} for row, places in zip(rows, seen, strict=True)]
    return rows


def measure(path: Path, args: Args) -> tuple[list[dict], list[dict]]:
    """Count for one policy and for random play, and return the lines of both CSVs."""
    checkpoint = files.load(path, "checkpoint")
    env_id, trained = checkpoint["args"]["env_id"], checkpoint["global_step"]
    game = game_name(env_id)
    agent = checkpoints.load_agent(path)
    num_actions = int(make_env(env_id).action_space.n)
    sticky = checkpoint["args"]["repeat_action_probability"]
    flags = pretrain_policy_atari.Args(
        env_id=env_id,
        coverage_steps=args.steps,
        max_frames_per_game=args.max_frames_per_game,
        repeat_action_probability=sticky,
    )
    by_game, by_steps = [], []
    for number in range(args.sets + 1):  # the last one is the whole games
        rng = np.random.default_rng(number)
        torch.manual_seed(number)
        players = {
            "random play": lambda obs, rng=rng: rng.integers(num_actions, size=len(obs)),
            "policy": lambda obs: agent.act(obs, greedy=False),
        }
        for who, act in players.items():
            about = {"game": game, "who": who, "trained_steps": trained if who == "policy" else 0}
            if number == args.sets:
                found = whole_games(
                    act, env_id, env_seeds(args.games, 1, 2, 1_000_000_006), args.max_frames_per_game, sticky
                )
                by_game += [about | {"number": i} | row for i, row in enumerate(found)]
                continue
            counts = coverage(act, flags, stream=1_000_000_007 + number)
            for i in range(args.every // 8 - 1, len(counts["places"]), args.every // 8):
                by_steps.append(
                    about | {"set": number, "steps": (i + 1) * 8} | {what: values[i] for what, values in counts.items()}
                )
            print(
                f"{game}, set {number}, {who}: {', '.join(f'{v[-1]} {what}' for what, v in counts.items())}", flush=True
            )
    return by_game, by_steps


def replace_games(path: Path, rows: list[dict]) -> None:
    """Write these lines into a CSV, in place of those that it has of the same games."""
    games = {row["game"] for row in rows}
    others = [row for row in files.read_csv(path) if row["game"] not in games] if path.exists() else []
    files.write_csv(path, others + rows)


def summary(by_game: list[dict[str, str]], by_steps: list[dict[str, str]]) -> list[dict[str, Any]]:
    """A row per game and player: places in a whole game, with Student's 95% interval, and in equal steps, with the
    range over sets."""
    rows = []
    for game, who in dict.fromkeys((row["game"], row["who"]) for row in by_game):
        mine = [row for row in by_game if (row["game"], row["who"]) == (game, who)]
        ends = [row for row in by_steps if (row["game"], row["who"]) == (game, who)]
        most = max(int(row["steps"]) for row in ends)
        places, lengths = (np.array([float(row[what]) for row in mine]) for what in ("places", "steps"))
        half_width = half_width_of_mean(places)
        low, high = places.mean() - half_width, places.mean() + half_width
        last = [int(row["places"]) for row in ends if int(row["steps"]) == most]
        row = {"game": game, "player": who, "trained steps": int(mine[0]["trained_steps"]), "games": len(mine)}
        row |= {"steps of a game": lengths.mean(), "places in a game": places.mean(), "from": low, "to": high}
        row |= {"rooms": max(int(row["rooms"]) for row in mine) if mine[0].get("rooms") else None}
        row |= {
            "equal steps": most,
            "sets": len(last),
            "places in them": np.mean(last),
            "fewest": min(last),
            "most": max(last),
        }
        rows.append(row)
    return rows


def plot(by_game: list[dict[str, str]], by_steps: list[dict[str, str]], rows: list[dict[str, Any]], path: Path) -> None:
    """A row per game: places of each whole game, with mean and interval (the summary's); places in equal steps, with
    their range."""
    found = {(row["game"], row["player"]): row for row in rows}
    names = list(dict.fromkeys(row["game"] for row in by_game))
    figure, axes = plt.subplots(len(names), 2, figsize=(10, 4.2 * len(names)), layout="constrained", squeeze=False)
    rng = np.random.default_rng(0)
    for (left, right), game in zip(axes, names, strict=True):
        for number, who in enumerate(dict.fromkeys(row["who"] for row in by_game)):
            mine = [row for row in by_game if (row["game"], row["who"]) == (game, who)]
            places, row = [float(row["places"]) for row in mine], found[game, who]
            left.plot(
                number + rng.uniform(-0.12, 0.12, len(places)),
                places,
                "o",
                color=f"C{number}",
                alpha=0.4,
                markeredgewidth=0,
            )
            mean = row["places in a game"]
            left.errorbar(
                number + 0.25, mean, [[mean - row["from"]], [row["to"] - mean]], fmt="s", color=f"C{number}", capsize=4
            )
            sets = dict.fromkeys(row["set"] for row in by_steps if (row["game"], row["who"]) == (game, who))
            of_sets = [
                [row for row in by_steps if (row["game"], row["who"], row["set"]) == (game, who, one)] for one in sets
            ]
            counts = np.array([[int(row["places"]) for row in rows] for rows in of_sets])
            steps = [int(row["steps"]) for row in of_sets[0]]
            right.plot(
                steps, counts.mean(axis=0), color=f"C{number}", label=f"{who} (mean and range of {len(sets)} sets)"
            )
            right.fill_between(
                steps, counts.min(axis=0), counts.max(axis=0), color=f"C{number}", alpha=0.2, linewidth=0
            )
        left.set_xticks([0, 1], ["random play", f"policy ({found[game, 'policy']['trained steps']:,} steps)"])
        left.set_xlim(-0.5, 1.5)
        left.set_ylabel("different places")
        left.set_title(f"{game}: each whole game; mean, 95% interval")
        right.set_xlabel("agent steps, by 8 games side by side")
        right.set_title(f"{game}: equal steps")
        right.legend()
        for axis in (left, right):
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(args: Args) -> None:
    games_path, steps_path = Path(f"{args.output}_games.csv"), Path(f"{args.output}_steps.csv")
    policies: dict[str, str] = {}
    for path in args.checkpoint:
        env_id = files.load(Path(path), "checkpoint")["args"]["env_id"]
        if game_name(env_id) not in POSITION:
            raise InputError(
                f"{path}: it plays {env_id}, where no place is known; the games with places are {', '.join(POSITION)}."
            )
        if policies.setdefault(env_id, path) != path:
            raise InputError(f"{path}: it plays {env_id}, as {policies[env_id]} does; give one policy per game.")
    if min(args.games, args.sets) < 2 or args.steps < args.every or args.every < 8:
        raise InputError(
            "--games and --sets must be at least 2, --every at least 8, and --steps at least as many as --every."
        )
    if args.checkpoint:
        files.require_writable(games_path.parent)
        measured = [measure(Path(path), args) for path in args.checkpoint]
        for path, part in ((games_path, 0), (steps_path, 1)):
            replace_games(path, [row for both in measured for row in both[part]])
    for path in (games_path, steps_path):
        if not path.exists():
            raise InputError(f"{path}: there is no such file; give --checkpoint to make it.")
    by_game, by_steps = files.read_csv(games_path), files.read_csv(steps_path)
    rows = summary(by_game, by_steps)
    for row in rows:
        rooms = "" if row["rooms"] is None else f", at most {row['rooms']} room(s)"
        places = f"{row['places in a game']:.0f} places in a game ({row['from']:.0f} to {row['to']:.0f})"
        print(
            f"{row['game']}, {row['player']}: {places} in {row['games']} games of {row['steps of a game']:.0f} "
            f"steps{rooms}"
        )
        print(
            f"  {row['places in them']:.0f} places in {row['equal steps']:,} steps of 8 games ({row['fewest']} "
            f"to {row['most']})"
        )
    plot(by_game, by_steps, rows, Path(f"{args.output}.png"))
    print(f"{games_path}, {steps_path} and {args.output}.png")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
