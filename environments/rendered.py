"""Any Gymnasium environment that draws itself and takes continuous actions, seen as an Atari game is: by its picture.

An observation is uint8 (4, 84, 84): the picture in grey, the newest four (oldest first, zeros before an episode's
first one). What the simulator knows in numbers (joint angles, goals) is not in it. An action is a vector with each
number from -1 to 1, whatever the environment's box is; what is outside is clipped. Drawing is what costs, so the
environments run in processes of their own, and the picture is taken once a step.

Reacher-v5 (an arm of two links must reach a point, in MuJoCo) and gym_pusht/PushT-v0 (a block must be pushed into
place) are tested; others work by their id.
"""

import atexit
import functools
import importlib
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.wrappers import (
    AddRenderObservation,
    ClipAction,
    FrameStackObservation,
    GrayscaleObservation,
    RescaleAction,
    ResizeObservation,
)

from environments.atari import CountedGames, play_and_read, play_games
from housekeeping.flags import InputError, check_ranges
from housekeeping.seeds import env_seeds

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # draw without a screen
os.environ.setdefault("LP_NUM_THREADS", "0")  # fast: Mesa draws in the process's own thread

INSTALL = "pip install -r requirements-continuous.txt, and what docs/continuous.md says"
NEEDS_EGL = "without a screen, MuJoCo needs EGL: apt-get install libegl1 libgl1-mesa-dri"
# How the tested ones are drawn. Reacher's own camera shows the target smaller than a pixel: ours looks down on the arm
DRAWN: dict[str, dict[str, Any]] = {
    "Reacher-v5": {
        "width": 84,
        "height": 84,
        "default_camera_config": {"distance": 0.62, "elevation": -90.0, "azimuth": 90.0, "lookat": np.zeros(3)},
    },
    "gym_pusht/PushT-v0": {"obs_type": "state", "visualization_width": 96, "visualization_height": 96},
}
ENDS_WHEN_SOLVED = {"gym_pusht/PushT-v0"}  # an episode that the time limit did not cut off is a success
SMOOTHNESS = 0.9  # of random play: how much of an action is left in the next one


@dataclass
class RenderedFlags:
    """environment"""

    env_id: str = "Reacher-v5"
    """the environment, a Gymnasium id: Reacher-v5, gym_pusht/PushT-v0, or another one that draws itself"""
    num_envs: int = 8
    """environments side by side, each in a process"""
    action_repeat: int = 1
    """each action is played so many times, and their rewards are added; the picture is taken once"""


def is_rendered(env_id: str) -> bool:
    """Whether this is one of Gymnasium's environments and no Atari game; looks for a package of its namespace, too."""
    namespace, _, _ = env_id.rpartition("/")
    if namespace.isidentifier() and namespace != "ALE":
        with suppress(ImportError):
            importlib.import_module(namespace)  # packages register their environments when they are imported
    return env_id in gym.registry and "ale_py" not in str(gym.registry[env_id].entry_point)


def folder_name(env_id: str) -> str:
    """What its folders are called: "gym_pusht/PushT-v0" -> "PushT"."""
    return re.sub(r"-v\d+$", "", env_id.rpartition("/")[2])


def check_environment(args: RenderedFlags) -> None:
    """Refuse flags that nothing can be played with, after making it once; raises InputError."""
    check_ranges(args, ("num_envs", "action_repeat"))
    make_env(args.env_id, from_state=getattr(args, "from_state", False)).close()


class ActionRepeat(gym.Wrapper):
    """Each action `times` times, or until the episode ends; the reward is the sum."""

    def __init__(self, env: gym.Env, times: int):
        super().__init__(env)
        self.times = times

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        total = 0.0
        for _ in range(self.times):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


def make_env(env_id: str, action_repeat: int = 1, from_state: bool = False) -> gym.Env:
    """One environment: actions (n,) from -1 to 1 in, observations uint8 (4, 84, 84) out.

    Args:
        from_state: observations are the simulator's own numbers in place of pictures.

    Raises:
        InputError: not known, not installed, actions that are no bounded vector, or it cannot draw itself here.
    """
    if not is_rendered(env_id):
        if "ALE/" in env_id or "NoFrameskip" in env_id or f"ALE/{folder_name(env_id)}-v5" in gym.registry:
            raise InputError(f"--env-id {env_id} is an Atari game: play it with the scripts whose names end in _atari.")
        raise InputError(
            f"--env-id {env_id}: no such environment here; {' and '.join(DRAWN)} are tried, others work by their "
            f"Gymnasium id if their package is installed. {INSTALL}."
        )
    try:
        env = gym.make(env_id, render_mode="rgb_array", disable_env_checker=True, **DRAWN.get(env_id, {}))
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        install = INSTALL if env_id in DRAWN else str(error)
        raise InputError(f"--env-id {env_id}: a package is missing: {install}.") from error
    except Exception as error:  # someone else's code: anything can happen
        raise InputError(
            f"--env-id {env_id}: cannot be made ({type(error).__name__}: {error}); {NEEDS_EGL}."
        ) from error
    space = env.action_space
    is_vector = isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.dtype.kind == "f"
    if not (is_vector and space.is_bounded()):
        raise InputError(f"--env-id {env_id}: its actions are {space}; these scripts need a bounded vector of numbers.")
    if "rgb_array" not in env.metadata.get("render_modes", ()):
        raise InputError(
            f"--env-id {env_id}: it does not draw itself (no render mode rgb_array), so there is nothing to see."
        )
    if hasattr(env.unwrapped, "mujoco_renderer"):
        env.unwrapped.model.vis.quality.offsamples = 0  # fast: one sample a pixel in place of four
    env = ClipAction(RescaleAction(ActionRepeat(env, action_repeat), np.float32(-1.0), np.float32(1.0)))
    if from_state:
        shown = env.observation_space
        if not (isinstance(shown, gym.spaces.Box) and len(shown.shape) == 1):
            raise InputError(f"--from-state: {env_id} observes {shown}; this needs a vector of numbers.")
        return env
    try:
        grey = GrayscaleObservation(AddRenderObservation(env, render_only=True))
    except Exception as error:
        raise InputError(f"--env-id {env_id}: cannot draw ({type(error).__name__}: {error}); {NEEDS_EGL}.") from error
    small = grey if grey.observation_space.shape == (84, 84) else ResizeObservation(grey, (84, 84))
    return FrameStackObservation(small, 4, padding_type="zero")


class RenderedEnvs(CountedGames):
    """Whole episodes: `step` adds to info `games`, for each episode that is over its return and its length in agent
    steps, in the order of environments."""

    def reset(self, *, seed: np.ndarray | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.start_counting(float)
        return self.env.reset(seed=None if seed is None else [int(one) for one in seed], options=options)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        obs, rewards, terminated, truncated, info = self.env.step(actions)
        games = self.count(rewards, terminated | truncated)
        return obs, rewards, terminated, truncated, info | {"games": games}


def make_envs(env_id: str, num_envs: int, action_repeat: int = 1, from_state: bool = False) -> RenderedEnvs:
    """`num_envs` of `make_env` side by side, each in a process of its own; observations uint8 (num_envs, 4, 84, 84).

    SAME_STEP: an episode's last step already returns the next one's first observation; its own last one is in
    `info["final_obs"]`, an array of objects, only valid in the rows that really ended.
    """
    make = functools.partial(_make_in_worker, env_id, action_repeat, from_state)
    # A process that has drawn cannot be forked: the copies would wait for ever. This server has not, and forks them all
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    envs = AsyncVectorEnv([make] * num_envs, context="forkserver", autoreset_mode=AutoresetMode.SAME_STEP)
    return RenderedEnvs(envs)


@atexit.register
def _end_workers() -> None:
    """At a program's end, before Python waits for its processes: `_make_in_worker`'s do not listen to the SIGTERM by
    which it ends those that were not closed."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _make_in_worker(*args: Any) -> gym.Env:
    """`make_env` in a process of its own, which leaves Ctrl-C and SIGTERM to the program: that plays on until it has
    saved. (A terminal, `timeout` and Slurm send them to all of a program's processes.)"""
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return make_env(*args)


def smooth_actions(num_envs: int, size: int, rng: np.random.Generator) -> Callable[[], np.ndarray]:
    """Random play that moves: each action (num_envs, size) is near the one before. Independent ones only tremble.

    A first-order autoregressive process with variance 1/2, so that most actions are within -1 and 1.
    """
    action = rng.normal(size=(num_envs, size))

    def draw() -> np.ndarray:
        nonlocal action
        action = SMOOTHNESS * action + np.sqrt(1 - SMOOTHNESS**2) * rng.normal(size=(num_envs, size))
        return (action * 0.5**0.5).astype(np.float32)

    return draw


def evaluation_games(
    act: Callable[[np.ndarray], np.ndarray], args: RenderedFlags, num_games: int
) -> list[tuple[float, int, bool]]:
    """Return, length and whether it was cut off of `num_games` episodes during a training run, always the same ones."""
    num_envs = min(num_games, args.num_envs)
    envs = make_envs(args.env_id, num_envs, args.action_repeat, getattr(args, "from_state", False))
    return play_games(act, envs, num_games, env_seeds(num_envs, args.seed, 1))


def collect_with_state(
    env_id: str, num_samples: int, every: int, seed: int
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Random play as an agent would see it: observations uint8 (n, 4, 84, 84), by kind of thing what the simulator knew
    (n, length), number of the episode (n,)."""
    env, rng = make_env(env_id), np.random.default_rng(seed)

    def begin() -> Callable[[], np.ndarray]:
        draw = smooth_actions(1, env.action_space.shape[0], rng)
        return lambda: draw()[0]

    read = functools.partial(simulator_state, env)
    observations, states, episodes = play_and_read(env, begin, read, num_samples, every, seed)
    return observations, {kind: np.stack([state[kind] for state in states]) for kind in states[0]}, episodes


def simulator_state(env: gym.Env) -> dict[str, np.ndarray]:
    """What the simulator knows of the scene now, by kind of thing, for probes; raises InputError if not known here."""
    inner: Any = env.unwrapped
    if inner.spec.id == "Reacher-v5":
        angles, target = inner.data.qpos[:2], inner.data.qpos[2:4]
        return {
            "joint angles": np.concatenate([np.cos(angles), np.sin(angles)]),
            "fingertip": inner.get_body_com("fingertip")[:2].copy(),
            "target": target.copy(),
        }
    if inner.spec.id == "gym_pusht/PushT-v0":
        angle = inner.block.angle
        return {
            "pusher": np.array(inner.agent.position),
            "block place": np.array(inner.block.position),
            "block angle": np.array([np.cos(angle), np.sin(angle)]),
        }
    raise InputError(
        f"--env-id {inner.spec.id}: no state of the simulator is known here to probe; {', '.join(DRAWN)} have."
    )
