"""What every program here needs and no method is made of: a run's folder and files, flags, devices, processes. Never
about Atari.

All of it is passive: a program calls it. It calls back only to play evaluation games and to open an agent.
"""
