"""Where things are in the console's memory: bytes of its RAM (Anand et al. 2019, arXiv 1906.08226, appendix)."""

import numpy as np

from environments.atari import make_env, play_and_read

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

# Where the player is; the room first, if there are several. Freeway's chicken only goes up and down: its height
POSITION: dict[str, tuple[int, ...]] = {"Freeway": (14,), "MontezumaRevenge": (3, 42, 43), "MsPacman": (10, 16)}


def collect_with_ram(env_id: str, num_samples: int, every: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random play, as the training environment shows it: observations uint8 (n, 4, 84, 84), RAM uint8 (n, 128), number
    of the game (n,).

    The vector environment has no RAM; a single one has, and shows the same pixels.
    """
    env, rng = make_env(env_id), np.random.default_rng(seed)

    def draw() -> int:
        return int(rng.integers(env.action_space.n))

    def ram() -> np.ndarray:
        return env.unwrapped.ale.getRAM().copy()

    observations, rams, games = play_and_read(env, lambda: draw, ram, num_samples, every, seed)
    return observations, np.stack(rams), games
