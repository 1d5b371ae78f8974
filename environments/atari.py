"""The Atari games as every script here plays them, through ale-py's own vector environment.

One setting for pre-training, training and evaluation, in one place, because the three must agree: grey, 84x84, frame
skip 4 with max-pooling, a stack of 4 frames (oldest first, zeros before a game's first frame), up to 28 no-ops and FIRE
at the start of a game (up to 29 no-ops where there is no FIRE). All of that happens in ale-py's C++ threads. What they
lack is added here: in games that have FIRE, the action after a lost life is FIRE, whatever was chosen.
"""

import difflib
import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from tqdm import tqdm

from housekeeping.flags import InputError, check_ranges
from housekeeping.run import BAR
from housekeeping.seeds import env_seeds

gym.register_envs(ale_py)

MAX_FRAMES_PER_GAME = 108_000  # emulator frames: half an hour of play (Machado et al. 2018, arXiv 1709.06009)


@dataclass
class AtariFlags:
    """game"""

    env_id: str = "ALE/Pong-v5"
    """the game, a Gymnasium id"""
    num_envs: int = 8
    """games played side by side"""
    repeat_action_probability: float = 0.0
    """sticky actions: how often the emulator repeats the action before (0: the paper's, 0.25: Machado et al. 2018)"""
    max_frames_per_game: int = MAX_FRAMES_PER_GAME
    """a game is cut off after so many emulator frames (not a terminal: its last state keeps its value)"""


def check_games(args: AtariFlags) -> None:
    """Refuse flags that no game can be played with; raises InputError."""
    game_name(args.env_id)
    check_ranges(args, ("num_envs", "max_frames_per_game"), below_one=("repeat_action_probability",))


def game_name(env_id: str) -> str:
    """The bare name of a game, which is also its folder's: "ALE/Pong-v5" -> "Pong".

    Raises:
        InputError: not the id of an Atari game in Gymnasium; the sentence names the nearest ones.
    """
    games = {id.removeprefix("ALE/").removesuffix("-v5"): id for id in gym.registry if re.fullmatch(r"ALE/\w+-v5", id)}
    match = re.fullmatch(r"ALE/(\w+)-v5", env_id)
    if match and match[1] in games:
        return match[1]
    bare = re.sub(r"^ALE/|(-ram)?(NoFrameskip|Deterministic)?(-v\d+)?$", "", env_id)
    if bare in games:
        raise InputError(f"--env-id {env_id}: this project uses Gymnasium's present ids; write --env-id {games[bare]}.")
    near = [games[name] for name in difflib.get_close_matches(bare, games, cutoff=0.4)]
    hint = f"did you mean {' or '.join(near)}?" if near else "an example of a known one is ALE/Pong-v5."
    if env_id in gym.registry:
        hint = "the scripts whose names end in _continuous play others."
    raise InputError(f"--env-id {env_id}: no such Atari game; {hint}")


@functools.cache
def fire_action(env_id: str) -> int | None:
    """The number of the action FIRE in a game's own set of actions; None where there is no such action, or no life to
    lose."""
    env = gym.make(env_id)
    _, info = env.reset()
    meanings = env.unwrapped.get_action_meanings()
    env.close()
    return meanings.index("FIRE") if "FIRE" in meanings and info["lives"] else None


def lost_life(lives_before: np.ndarray, lives: np.ndarray, game_over: np.ndarray) -> np.ndarray:
    """Where a life was lost and the game goes on.

    `terminated` does not say it: it is false where lives are not reported, and true where the game is over. Nor do
    lives alone: a new game may begin with fewer than the one before had won.
    """
    return (lives < lives_before) & ~game_over


class CountedGames(gym.vector.VectorWrapper):
    """Environments side by side whose returns and lengths in agent steps are added up until a game is over."""

    def start_counting(self, dtype: type) -> None:
        """All games begin now; `dtype` is that of their returns."""
        self.returns, self.lengths = np.zeros(self.num_envs, dtype), np.zeros(self.num_envs, dtype=np.int64)

    def count(self, rewards: np.ndarray, over: np.ndarray) -> list[tuple[float, int]]:
        """Take in a step's rewards (num_envs,); return and length of each game that is over, in the order of
        environments."""
        self.returns += rewards
        self.lengths += 1
        games = [(self.returns[i].item(), self.lengths[i].item()) for i in np.flatnonzero(over)]
        self.returns[over] = self.lengths[over] = 0
        return games


class AtariGames(CountedGames):
    """Whole games, through lost lives: FIRE after each lost one, and each game's raw score.

    The paper's wrapper, as Stable-Baselines3's and CleanRL's, presses FIRE when a life is lost, as a game like Breakout
    waits for it, and a greedy agent that has not found FIRE waits with it until the frame limit. Here the action after
    a lost life is FIRE, whatever was chosen, in games that have FIRE. That step is the environment's: it is recorded
    and its score counts, but it should teach no policy.

    - `forced` (num_envs,) int64: the action that each game will receive next, whatever is chosen; -1 where the choice
      is free.
    - `step` adds to info: `game_over` (num_envs,) bool, and `games`, for each game that is over its raw score and its
      length in agent steps, in the order of environments.

    When a game is over, `lives` is already the new game's, and the emulator's clock has gone back. Pong and its like
    have no lives (0).
    """

    def __init__(self, envs: gym.vector.VectorEnv, fire: int | None):
        super().__init__(envs)
        self.fire = fire

    def reset(self, **options) -> tuple[np.ndarray, dict]:
        obs, info = self.env.reset(**options)
        self.lives, self.clock = info["lives"].copy(), info["episode_frame_number"].copy()
        self.forced = np.full(self.num_envs, -1)
        self.start_counting(np.int64)
        return obs, info

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        obs, rewards, terminated, truncated, info = self.env.step(np.where(self.forced >= 0, self.forced, actions))
        lives, clock = info["lives"].copy(), info["episode_frame_number"].copy()
        game_over = truncated | (terminated & (clock < self.clock))
        games = self.count(rewards, game_over)
        self.forced = np.full(self.num_envs, -1)
        if self.fire is not None:
            self.forced[lost_life(self.lives, lives, game_over)] = self.fire
        self.lives, self.clock = lives, clock
        return obs, rewards, terminated, truncated, info | {"game_over": game_over, "games": games}


def make_envs(
    env_id: str,
    num_envs: int,
    repeat_action_probability: float = 0.0,
    life_loss_info: bool = False,
    max_frames_per_game: int = MAX_FRAMES_PER_GAME,
    noop_max: int = 30,
) -> AtariGames:
    """`num_envs` games of `env_id` side by side; observations uint8 (num_envs, 4, 84, 84), rewards int32 (num_envs,)
    raw.

    - `repeat_action_probability`: 0.0 is the paper's (NoFrameskip-v4); Gymnasium's own default for the v5 ids is 0.25.
    - `life_loss_info`: report a lost life as `terminated` while the game goes on, which is what "episodic life" means
      in the Atari literature. (ale-py's `episodic_life` starts the game anew at each lost life: a second life would
      never be seen.)
    - SAME_STEP: a finished game's last step already returns the next game's first observation, as PPO's bookkeeping
      assumes; the old game's last one is in `info["final_obs"]`, only valid in the rows that really ended.
    """
    # those that this process may use: taskset or a cluster may give it fewer than the machine has
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    envs = gym.make_vec(
        env_id,
        num_envs=num_envs,
        repeat_action_probability=repeat_action_probability,
        life_loss_info=life_loss_info,
        reward_clipping=False,  # scores stay raw; a script that wants clipped rewards clips them itself
        max_num_frames_per_episode=max_frames_per_game,
        noop_max=noop_max,
        num_threads=min(num_envs, cores),  # fast: more threads than cores only get in the network's way
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    return AtariGames(envs, fire_action(env_id))


class StartOfGame(gym.Wrapper):
    """No-ops and then FIRE at the start of a game, as the vector environment does it, for an environment of one
    emulator frame per step."""

    def __init__(self, env: gym.Env, noop_max: int = 30):
        super().__init__(env)
        self.noop_max, self.rng = noop_max, np.random.default_rng()
        actions = env.unwrapped.get_action_meanings()
        self.fire = actions.index("FIRE") if "FIRE" in actions else None

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        if seed is not None:
            seed = int(seed)
            self.rng = np.random.default_rng(seed)
        obs, info = self.env.reset(seed=seed, options=options)
        # As was seen, ale-py draws from 0 to noop_max - 1, and one less where it presses FIRE afterwards
        for _ in range(self.rng.integers(0, max(1, self.noop_max - (self.fire is not None)))):
            obs, _, _, _, info = self.env.step(0)
        if self.fire is not None:
            obs, _, _, _, info = self.env.step(self.fire)
        return obs, info


class FireAfterLostLife(gym.Wrapper):
    """The same rule as `AtariGames`, for one game; around the frame skip, as one press lasts four frames.

    `step` adds to info `action`, what was played.

    Args:
        fire: the game's `fire_action`.
    """

    def __init__(self, env: gym.Env, fire: int | None):
        super().__init__(env)
        self.fire = fire

    def reset(self, **options) -> tuple[np.ndarray, dict]:
        obs, info = self.env.reset(**options)
        self.lives, self.must_fire = info["lives"], False
        return obs, info

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        action = self.fire if self.must_fire else int(action)
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.must_fire = self.fire is not None and bool(
            lost_life(self.lives, info["lives"], np.bool_(terminated or truncated))
        )
        self.lives = info["lives"]
        return obs, reward, terminated, truncated, info | {"action": action}


def make_env(
    env_id: str,
    repeat_action_probability: float = 0.0,
    max_frames_per_game: int = MAX_FRAMES_PER_GAME,
    noop_max: int = 30,
    emulator: gym.Env | None = None,
    **options,
) -> gym.Env:
    """One game through Gymnasium's wrappers, several times slower than `make_envs` but open: its RAM, its colour
    screen, its modes.

    It shows the same pixels as `make_envs`, from the same start of a game on (no-ops are drawn from the same range by
    another generator). Here `max_frames_per_game` counts the no-ops, too: a game that is cut off is up to 7 steps
    shorter.

    Args:
        emulator: one-frame-per-step environment to wrap in place of Gymnasium's own.
        options: `mode` and `difficulty` of the emulator, `render_mode`.
    """
    if emulator is None:
        settings = {
            "repeat_action_probability": repeat_action_probability,
            "max_num_frames_per_episode": max_frames_per_game,
        }
        emulator = gym.make(env_id, frameskip=1, **settings, **options)
    env = AtariPreprocessing(StartOfGame(emulator, noop_max), noop_max=0, frame_skip=4, screen_size=84)
    return FireAfterLostLife(FrameStackObservation(env, 4, padding_type="zero"), fire_action(env_id))


def play_games(
    act: Callable[[np.ndarray], np.ndarray],
    envs: gym.vector.VectorEnv,
    num_games: int,
    seeds: np.ndarray,
    on_game: Callable[[], object] = lambda: None,
) -> list[tuple[int, int, bool]]:
    """Play `num_games` whole games and return of each its raw score, its length in agent steps, and whether the frame
    limit cut it off.

    `act` maps uint8 (B, 4, 84, 84) to actions (B,); `envs` are without `life_loss_info`, in SAME_STEP mode, and are
    closed at the end; `on_game` is called after each game. How many games each environment plays is fixed beforehand
    (no two differ by more than one), so that short games are not counted more often than long ones; the games come in
    the order of environments.
    """
    quota = [len(part) for part in np.array_split(np.arange(num_games), envs.num_envs)]
    games: list[list[tuple[int, int, bool]]] = [[] for _ in range(envs.num_envs)]
    scores, lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=np.int64)
    obs, _ = envs.reset(seed=seeds)
    while any(len(games[i]) < quota[i] for i in range(envs.num_envs)):
        obs, rewards, terminated, truncated, _ = envs.step(act(obs))
        scores += rewards
        lengths += 1
        for i in np.flatnonzero(terminated | truncated):
            if len(games[i]) < quota[i]:
                score = int(scores[i]) if scores[i].is_integer() else float(scores[i])
                games[i].append((score, int(lengths[i]), bool(truncated[i] and not terminated[i])))
                on_game()
            scores[i], lengths[i] = 0, 0
    envs.close()
    return [game for per_env in games for game in per_env]


def play_and_read(
    env: gym.Env,
    begin: Callable[[], Callable[[], Any]],
    read: Callable[[], Any],
    num_samples: int,
    every: int,
    seed: int,
) -> tuple[np.ndarray, list[Any], np.ndarray]:
    """Play one environment, and at one step in `every` read what is known beside the picture.

    Args:
        begin: called at each game's start; gives what draws the game's actions.

    Returns:
        observations uint8 (n, 4, 84, 84), what was read at each of them, and the number of the game (n,).
    """
    observations, found, games = [], [], []
    step, game, done = 0, -1, True
    with tqdm(total=num_samples, unit="sample", desc="playing", **BAR) as progress:
        while len(observations) < num_samples:
            if done:
                game, draw = game + 1, begin()
                env.reset(seed=int(env_seeds(1, seed, 5, game)[0]))
            obs, _, terminated, truncated, _ = env.step(draw())
            done = terminated or truncated
            step += 1
            if step % every == 0 and not done:
                observations.append(np.asarray(obs))
                found.append(read())
                games.append(game)
                progress.update(1)
    env.close()
    return np.stack(observations), found, np.array(games)


def evaluation_games(
    act: Callable[[np.ndarray], np.ndarray], args: AtariFlags, num_games: int
) -> list[tuple[int, int, bool]]:
    """What `play_games` gives of `num_games` whole games during a training run with these flags, always the same
    games."""
    num_envs = min(num_games, 100)  # side by side, as one that lasts until the frame limit holds up all
    envs = make_envs(args.env_id, num_envs, args.repeat_action_probability, False, args.max_frames_per_game)
    return play_games(act, envs, num_games, env_seeds(num_envs, args.seed, 1))
