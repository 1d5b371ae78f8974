"""What an agent plays: Atari games (atari.py), changed ones (hackatari.py), where things are in their memory (ram.py),
any Gymnasium environment that draws itself (rendered.py), rewards brought to one scale (scaling.py), and plots and
films of what was played (pictures.py)."""

from collections.abc import Callable

import gymnasium as gym
import numpy as np

from environments import atari, rendered
from housekeeping.flags import InputError


def folder_name(env_id: str) -> str:
    """What the folders of a game or environment are called: "Pong", "Reacher"; raises InputError if it is not known."""
    if rendered.is_rendered(env_id):
        return rendered.folder_name(env_id)
    if env_id in rendered.DRAWN:
        raise InputError(f"--env-id {env_id}: a package is missing: {rendered.INSTALL}.")
    return atari.game_name(env_id)


def env_id_of(name: str) -> str:
    """The id of a game or tested environment by its folder's name; raises InputError if there is none."""
    found = [env_id for env_id in rendered.DRAWN if rendered.folder_name(env_id) == name]
    if not found:
        atari.game_name(f"ALE/{name}-v5")
    return found[0] if found else f"ALE/{name}-v5"


def random_play(
    env_id: str,
    num_envs: int,
    rng: np.random.Generator,
    repeat_action_probability: float = 0.0,
    action_repeat: int = 1,
) -> tuple[gym.vector.VectorEnv, Callable[[], np.ndarray]]:
    """Environments side by side, and what draws their next actions: each with the same probability, or smooth random
    movements where actions are continuous."""
    if rendered.is_rendered(env_id):
        envs = rendered.make_envs(env_id, num_envs, action_repeat)
        return envs, rendered.smooth_actions(num_envs, envs.single_action_space.shape[0], rng)
    envs = atari.make_envs(env_id, num_envs, repeat_action_probability)
    return envs, lambda: rng.integers(envs.single_action_space.n, size=num_envs)
