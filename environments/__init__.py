"""What an agent plays: Atari games (atari.py), changed ones (hackatari.py), where things are in their memory (ram.py),
and plots and films of games that were played (pictures.py)."""
