"""Where things are in the console's memory: bytes of its RAM (Anand et al. 2019, arXiv 1906.08226, appendix)."""

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
