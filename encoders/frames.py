"""Frames on disk, for pre-training: collected from play, read as batches of observations.

frames.u8 holds the newest 84x84 frame of every observation, game after game; index.json says where each game starts and
how the frames were made. A stack of 4 is put together when it is needed, so a frame is stored once.
"""

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from environments import random_play, rendered
from environments.atari import fire_action
from housekeeping import checkpoints, files
from housekeeping.flags import InputError
from housekeeping.run import BAR
from housekeeping.seeds import env_seeds


def collect_frames(
    args: Any, folder: Path, num_frames: int, device: torch.device, interrupted: threading.Event
) -> None:
    """Play until `folder` holds `num_frames` frames, going on with what is there. Whole games are written; the last one
    is cut to fit.

    Raises:
        InputError: the folder holds frames that were made in another way.
    """
    expert = None
    if args.expert_checkpoint:
        plays = files.load(Path(args.expert_checkpoint), "checkpoint")["args"]["env_id"]
        if plays != args.env_id:
            raise InputError(f"{args.expert_checkpoint}: this agent plays {plays}, not {args.env_id}.")
        expert = checkpoints.load_agent(Path(args.expert_checkpoint), device)
    made_by = {
        "env_id": args.env_id,
        "repeat_action_probability": args.repeat_action_probability,
        "expert_sha256": files.sha256(Path(args.expert_checkpoint)) if expert else None,
        "expert_fraction": args.expert_fraction if expert else 0.0,
        "seed": args.seed,
    }
    atari = not rendered.is_rendered(args.env_id)
    if not atari:
        made_by["action_repeat"] = args.action_repeat
    fire = atari and fire_action(args.env_id) is not None
    index_path, frames_path = folder / "index.json", folder / "frames.u8"
    index = {**made_by, "fire_after_lost_life": fire, "games": []}
    if index_path.exists():
        index = json.loads(index_path.read_text())
        different = [key for key, value in made_by.items() if index.get(key) != value]
        if fire and not index.get("fire_after_lost_life"):
            raise InputError(
                f"{folder}: holds frames from before FIRE was pressed after a lost life; choose another "
                "--data-dir or delete it."
            )
        if different:
            raise InputError(
                f"{folder}: holds frames made with another {', '.join(different)}; choose another --data-dir or "
                "delete it."
            )
    games = index["games"]  # each {"start": first frame, "length": frames, "expert": whether the expert played}
    total = sum(game["length"] for game in games)
    if total and (not frames_path.exists() or frames_path.stat().st_size < total * 84 * 84):
        raise InputError(
            f"{frames_path}: holds less than {index_path} says; delete the folder, or choose another --data-dir."
        )
    if total >= num_frames:
        return
    files.require_disk(folder, (num_frames - total) * 84 * 84, f"{num_frames - total:,} frames", "lower --num-frames")

    rng = np.random.default_rng([args.seed, total])
    torch.manual_seed(int(rng.integers(2**31)))  # the expert's draws
    envs, draw = random_play(args.env_id, args.num_envs, rng, args.repeat_action_probability, args.action_repeat)
    obs, _ = envs.reset(seed=env_seeds(args.num_envs, args.seed, 2, total))
    begun = len(games)

    def next_is_expert() -> bool:  # spreads the expert's share evenly over the games, in the order in which they begin
        nonlocal begun
        begun += 1
        return int(begun * index["expert_fraction"]) > int((begun - 1) * index["expert_fraction"])

    by_expert = np.array([next_is_expert() for _ in range(args.num_envs)])
    # of each environment's game in play
    frames: list[list[np.ndarray]] = [[obs[i, -1].copy()] for i in range(args.num_envs)]
    with (
        open(frames_path, "r+b" if frames_path.exists() else "w+b") as file,
        tqdm(
            total=num_frames, initial=total, unit="frame", unit_scale=True, desc="collecting frames", **BAR
        ) as progress,
    ):
        file.truncate(total * 84 * 84)  # a stopped run may have left part of a game
        file.seek(0, os.SEEK_END)
        while total < num_frames and not interrupted.is_set():
            actions = draw()
            if by_expert.any():
                actions[by_expert] = expert.act(obs, greedy=False)[by_expert]
            obs, _, terminated, truncated, info = envs.step(actions)
            for i in range(args.num_envs):
                if not (terminated[i] or truncated[i]):
                    frames[i].append(obs[i, -1].copy())
                    continue
                frames[i].append(info["final_obs"][i][-1].copy())
                game = np.stack(frames[i])[: num_frames - total]
                file.write(game.tobytes())
                file.flush()
                games.append({"start": total, "length": len(game), "expert": bool(by_expert[i])})
                total += len(game)
                temporary = index_path.with_suffix(".tmp")
                temporary.write_text(json.dumps(index))
                os.replace(temporary, index_path)  # only now does the game count
                progress.update(len(game))
                frames[i], by_expert[i] = [obs[i, -1].copy()], next_is_expert()
                if total >= num_frames:
                    break
    envs.close()


class FrameData:
    """The collected frames of one game, read from the disk as they are needed.

    Raises:
        InputError: fewer than two games, so that none could be held out.
    """

    def __init__(self, folder: Path, validation_fraction: float, seed: int):
        self.index = json.loads((folder / "index.json").read_text())
        games = self.index["games"]
        # the others are not drawn from
        long_enough = np.array([i for i, game in enumerate(games) if game["length"] >= 3])
        if len(long_enough) < 2:
            raise InputError(
                f"{folder}: holds {len(long_enough)} game; at least 2 are needed to hold one out, so raise "
                "--num-frames."
            )
        self.starts = np.array([game["start"] for game in games])
        self.lengths = np.array([game["length"] for game in games])
        self.num_frames = int(self.lengths.sum())
        self.frames = np.memmap(folder / "frames.u8", dtype=np.uint8, mode="r", shape=(self.num_frames, 84, 84))
        order = np.random.default_rng(seed).permutation(long_enough)
        num_validation = min(len(order) - 1, max(1, round(validation_fraction * len(order))))
        self.games = {"validation": np.sort(order[:num_validation]), "training": np.sort(order[num_validation:])}

    def observations(self, games: np.ndarray, times: np.ndarray) -> np.ndarray:
        """What the agent saw at these times of these games, uint8 (B, 4, 84, 84): oldest frame first, zeros before a
        game's first frame."""
        ages = np.arange(-3, 1)
        rows = (self.starts[games] + times)[:, None] + ages  # (B, 4)
        obs = self.frames[np.maximum(rows, 0)]
        obs[times[:, None] + ages < 0] = 0
        return obs

    def sample(
        self, split: str, batch_size: int, offsets: tuple[int, int], rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw observations and later ones of the same games, each uint8 (batch_size, 4, 84, 84).

        Each comes from a game drawn at random; the later one is between the two `offsets` steps later, as far as the
        game lasted. A game's very first frame is not drawn: it has none before it.
        """
        lowest, highest = offsets
        games = rng.choice(self.games[split], size=batch_size)
        times = rng.integers(1, self.lengths[games] - lowest)
        later = times + rng.integers(lowest, np.minimum(highest, self.lengths[games] - 1 - times), endpoint=True)
        obs = torch.from_numpy(self.observations(games, times))
        return obs, obs if highest == 0 else torch.from_numpy(self.observations(games, later))

    def median_frame_error(self, seed: int, num_samples: int) -> float:
        """Mean squared error, on held-out frames in [0, 1], of always showing the pixel-wise median of 1,000 training
        frames."""
        train, _ = self.sample("training", 1000, (0, 0), np.random.default_rng([seed, 1]))
        held_out, _ = self.sample("validation", num_samples, (0, 0), np.random.default_rng([seed, 0]))
        median = train[:, -1].float().median(dim=0).values
        return F.mse_loss(median.expand(num_samples, -1, -1) / 255.0, held_out[:, -1].float() / 255.0).item()
