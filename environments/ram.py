"""Where things are in the console's memory: bytes of its RAM (Anand et al. 2019, arXiv 1906.08226, appendix)."""

import numpy as np
from tqdm import tqdm

from environments.atari import make_env
from housekeeping.run import BAR
from housekeeping.seeds import env_seeds

# By kind of thing
VARIABLES: dict[str, dict[str, dict[str, int]]] = {
    "Pong": {
        "ball": {"ball_x": 49, "ball_y": 54},
        "player": {"player_x": 46, "player_y": 51},
        "enemy": {"enemy_x": 45, "enemy_y": 50},
        "score": {"enemy_score": 13, "player_score": 14},
    },
    "Breakout": {
        "ball": {"ball_x": 99, "ball_y": 101},
        "player": {"player_x": 72},
        "score": {"blocks_hit": 77, "score": 84},
    },
    "MsPacman": {
        "player": {"player_x": 10, "player_y": 16, "player_direction": 56},
        "ghosts": {
            "sue_x": 6,
            "sue_y": 12,
            "inky_x": 7,
            "inky_y": 13,
            "pinky_x": 8,
            "pinky_y": 14,
            "blinky_x": 9,
            "blinky_y": 15,
        },
        "fruit": {"fruit_x": 11, "fruit_y": 17},
        "score": {"dots_eaten": 119, "lives": 123},
    },
}

# Where the player is; the room first, if there are several
POSITION: dict[str, tuple[int, ...]] = {"MontezumaRevenge": (3, 42, 43), "MsPacman": (10, 16)}


def collect_with_ram(env_id: str, num_samples: int, every: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random play, as the training environment shows it: observations uint8 (n, 4, 84, 84), RAM uint8 (n, 128), number
    of the game (n,).

    The vector environment has no RAM; a single one has, and shows the same pixels.
    """
    env = make_env(env_id)
    rng = np.random.default_rng(seed)
    observations, rams, games = [], [], []
    step, game, done = 0, -1, True
    with tqdm(total=num_samples, unit="sample", desc="playing", **BAR) as progress:
        while len(observations) < num_samples:
            if done:
                game += 1
                obs, _ = env.reset(seed=env_seeds(1, seed, 5, game)[0])
            obs, _, terminated, truncated, _ = env.step(int(rng.integers(env.action_space.n)))
            done = terminated or truncated
            step += 1
            if step % every == 0 and not done:
                observations.append(np.asarray(obs))
                rams.append(env.unwrapped.ale.getRAM().copy())
                games.append(game)
                progress.update(1)
    env.close()
    return np.stack(observations), np.stack(rams), np.array(games)
