"""What an agent plays, one kind of environment a file: Atari games (atari.py), and changed ones (hackatari.py)."""
