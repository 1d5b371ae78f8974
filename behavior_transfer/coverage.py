"""How much of a game a policy gets to see: the different places and rooms that the player reaches."""

import functools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from environments.atari import game_name, make_env
from environments.ram import POSITION
from housekeeping.seeds import env_seeds


def coverage(act: Callable[[np.ndarray], np.ndarray], args: Any, stream: int) -> dict[str, list[int]]:
    """How many different places (and rooms, if the game has some) are reached in `coverage_steps` steps of 8 games side
    by side.

    Args:
        act: uint8 (8, 4, 84, 84) -> actions (8,).
        stream: number that tells apart the games of different measurements.

    Returns:
        "places", and perhaps "rooms": how many there were after the first step of all 8 games, the second, ...
    """
    where = list(POSITION[game_name(args.env_id)])
    make = functools.partial(make_env, args.env_id, args.repeat_action_probability, args.max_frames_per_game)
    envs = gym.vector.SyncVectorEnv([make] * 8, autoreset_mode=AutoresetMode.SAME_STEP)
    obs, _ = envs.reset(seed=[int(seed) for seed in env_seeds(8, args.seed, 2, stream)])
    seen: dict[str, set[bytes]] = {"places": set()} | ({"rooms": set()} if len(where) == 3 else {})
    counts: dict[str, list[int]] = {what: [] for what in seen}
    for _ in range(-(-args.coverage_steps // 8)):
        obs, *_ = envs.step(act(obs))
        places = [env.unwrapped.ale.getRAM()[where].tobytes() for env in envs.envs]
        for what, found in seen.items():
            found.update(places if what == "places" else (place[:1] for place in places))
            counts[what].append(len(found))
    envs.close()
    return counts
