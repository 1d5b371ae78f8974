"""Changed games: HackAtari's (Delfosse et al. 2024, arXiv 2406.03997), and the modes and difficulties of the emulator
itself.

A variation is written gravity, mode:4, difficulty:1, or several with a + between them. HackAtari is a package of its
own (requirements-hackatari.txt); modes and difficulties (Machado et al. 2018, arXiv 1709.06009) need nothing.
"""

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import random

import gymnasium as gym
import numpy as np

from environments.atari import MAX_FRAMES_PER_GAME, game_name, make_env
from housekeeping.flags import InputError

UNCHANGED = "unchanged"
COMPARED_STEPS = 1000  # agent steps in which `first_difference` looks for a pixel that a variation changes


def hackatari():
    """The hackatari package; raises InputError if it is not installed."""
    if importlib.util.find_spec("hackatari") is None:
        raise InputError(
            "HackAtari's changed games need the package hackatari, which is not installed here; it needs NumPy "
            "below 2, so give it an "
            "environment of its own: python3 -m venv .venv-hackatari && .venv-hackatari/bin/pip install -r "
            "requirements-hackatari.txt"
        )
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    return importlib.import_module("hackatari.core")


def make_hackatari(env_id: str, modifications: list[str], **options) -> gym.Env:
    """HackAtari's own environment, one emulator frame per step, without the object detection that none of its
    modifications reads."""
    env = hackatari().HackAtari(
        env_id, modifs=modifications, obs_mode="ori", frameskip=1, create_buffer_stacks=[], **options
    )
    env.detect_objects = lambda: None  # fast: three times as fast without
    return env


@functools.cache
def hackatari_modifications(env_id: str) -> tuple[dict[str, str], dict[str, str]]:
    """What HackAtari's installed version can change in a game: {name: what it does}, and {name: error} of those that
    fail when tried.

    Its own list (`available_modifications`) fails for some games, and it ignores unknown names. So each name in the
    game's module (method or string) is given to it; those that put a function to work are its modifications, and each
    is tried for a few steps.

    Raises:
        InputError: the package is not installed.
    """
    hackatari()
    try:
        module = importlib.import_module(f"hackatari.games.{game_name(env_id).lower()}")
        source = ast.walk(ast.parse(inspect.getsource(module.GameModifications)))
        methods = {name: value for name, value in vars(module.GameModifications).items() if not name.startswith("_")}
    except (ModuleNotFoundError, AttributeError):
        return {}, {}  # it does not change this game
    strings = {
        node.value
        for node in source
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier()
    }
    plain = make_hackatari(env_id, [])
    known, broken = {}, {}
    for name in sorted(set(methods) | strings):
        try:
            if not any(module.modif_funcs(plain, [name])):  # functions for each step, after each reset, after detection
                continue
            env = make_hackatari(env_id, [name])
            env.reset(seed=0)
            for _ in range(10):
                env.step(0)
            env.close()
            known[name] = " ".join((getattr(methods.get(name), "__doc__", "") or "").split())
        except Exception as error:  # whatever goes wrong in a modification
            broken[name] = f"{type(error).__name__}: {error}"
    plain.close()
    return known, broken


@functools.cache
def modes_and_difficulties(env_id: str) -> dict[str, str]:
    """{name: what it does} of the game's own modes and difficulties, but for the default ones."""
    env = gym.make(env_id)
    modes, difficulties = env.unwrapped.ale.getAvailableModes(), env.unwrapped.ale.getAvailableDifficulties()
    env.close()
    known = {f"mode:{mode}": f"the cartridge's game mode {mode} (default: {modes[0]})" for mode in modes[1:]}
    return known | {
        f"difficulty:{level}": f"the console's difficulty switches at {level} (default: 0)"
        for level in difficulties[1:]
    }


def parse_variation(variation: str, env_id: str) -> tuple[list[str], dict[str, int]]:
    """From "gravity+mode:4" to HackAtari's modifications ["gravity"] and the emulator's options {"mode": 4}.

    Raises:
        InputError: names the known variations, or the missing package.
    """
    parts = variation.split("+") if variation != UNCHANGED else []
    of_emulator = {part for part in parts if part.startswith(("mode:", "difficulty:"))}
    known, broken = modes_and_difficulties(env_id), {}
    if of_emulator != set(parts):
        of_hackatari, broken = hackatari_modifications(env_id)
        known = of_hackatari | known
    kinds = [part.partition(":")[0] for part in parts]
    if len(set(kinds)) < len(kinds):
        raise InputError(f"--variation {variation}: names one thing twice.")
    for part in parts:
        if part in broken:
            raise InputError(f"--variation {part}: it fails in the installed version of HackAtari ({broken[part]}).")
        if part not in known:
            raise InputError(
                f"--variation {part}: {game_name(env_id)} has no such variation; the known ones are "
                f"{', '.join(known) or 'none'}."
            )
    modifications = [part for part in parts if part not in of_emulator]
    return modifications, {part.partition(":")[0]: int(part.partition(":")[2]) for part in of_emulator}


class ChangedGame(gym.Wrapper):
    """HackAtari's environment, mended for Gymnasium's wrappers: seeds, the emulator's attribute, and which end of a
    game is which.

    Version 0.0.6 returns `terminated` and `truncated` the other way round, and its modifications draw from Python's own
    generator.
    """

    def __init__(self, env: gym.Env, options: dict[str, int]):
        super().__init__(env)
        env.ale = env._ale
        for name, value in options.items():  # its own way to set a mode is undone at the first seeded reset
            setattr(env._env.unwrapped, f"_game_{name}", value)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        if seed is not None:
            random.seed(seed)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, reward, _, _, info = self.env.step(action)
        return obs, reward, self.env.ale.game_over(with_truncation=False), self.env.ale.game_truncated(), info


def make_changed_env(
    env_id: str,
    variation: str,
    repeat_action_probability: float = 0.0,
    max_frames_per_game: int = MAX_FRAMES_PER_GAME,
    noop_max: int = 30,
) -> gym.Env:
    """One changed game, seen as in training: `atari.make_env` around HackAtari, or around the emulator alone."""
    modifications, options = parse_variation(variation, env_id)
    emulator = None
    if modifications:
        settings = {
            "repeat_action_probability": repeat_action_probability,
            "max_num_frames_per_episode": max_frames_per_game,
        }
        emulator = ChangedGame(make_hackatari(env_id, sorted(modifications), **settings), options)
        options = {}
    return make_env(env_id, repeat_action_probability, max_frames_per_game, noop_max, emulator, **options)


def list_variations(env_id: str) -> None:
    """Print what the installed packages can change in a game."""
    own = modes_and_difficulties(env_id)
    try:
        (changes, broken), says = hackatari_modifications(env_id), None
        print(
            f"{game_name(env_id)}: {len(changes)} modifications of HackAtari {importlib.metadata.version('hackatari')}"
        )
    except InputError as error:
        changes, broken, says = {}, {}, str(error)
    width = max((len(name) for name in (*changes, *own)), default=0)
    for name, text in changes.items():
        print(f"  {name:<{width}}  {text}")
    for name, text in broken.items():
        print(f"  {name} is left out: it fails when tried ({text})")
    print(f"{game_name(env_id)}: {len(own)} modes and difficulties of the game itself")
    for name, text in own.items():
        print(f"  {name:<{width}}  {text}")
    if says:
        print(says)


@functools.cache
def first_difference(env_id: str, variation: str) -> str:
    """Where the changed game's picture first differs from the unchanged game's, under the same start and the same
    random actions."""
    plain, changed = make_env(env_id, noop_max=0), make_changed_env(env_id, variation, noop_max=0)
    (expected, _), (seen, _) = plain.reset(seed=7), changed.reset(seed=7)
    rng = np.random.default_rng(7)
    for step in range(COMPARED_STEPS):
        if not np.array_equal(expected, seen):
            return f"differs from step {step}"
        action = int(rng.integers(plain.action_space.n))
        (expected, _, *ends, _), (seen, _, *other_ends, _) = plain.step(action), changed.step(action)
        if any(ends) and any(other_ends):
            (expected, _), (seen, _) = plain.reset(), changed.reset()
    return f"no pixel in {COMPARED_STEPS:,} steps"
