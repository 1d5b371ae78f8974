"""Seeds: a well-mixed one for each purpose, so that nothing that a run does moves the random numbers of something
else."""

import zlib
from typing import Any

import numpy as np
import torch


def env_seeds(num_envs: int, *entropy: int) -> np.ndarray:
    """One well-mixed seed per environment, (num_envs,) int64, from e.g. `seed, stream number, steps done so far`.

    `reset(seed=1)` would seed 1, 2, 3, ... so that the runs with seeds 1 and 2 would share all games but one.
    """
    return (np.random.SeedSequence(entropy).generate_state(num_envs) >> 1).astype(np.int64)  # below 2**31, as ALE needs


def seed_of(seed: int, what: str) -> int:
    """A seed for one thing alone, which does not depend on what else the run has."""
    return int(np.random.SeedSequence([seed, zlib.crc32(what.encode())]).generate_state(1)[0])


def restore_random_state(checkpoint: dict[str, Any], seed: int) -> None:
    """Set PyTorch's random generators for a resumed run; call it last, as making networks draws from them.

    The CPU's goes on where the checkpoint left it. A GPU's state is not stored: it gets a seed that depends on the
    step, so that the run does not draw its first actions again.
    """
    torch.set_rng_state(checkpoint["rng_state"])
    torch.cuda.manual_seed(int(env_seeds(1, seed, 10, checkpoint["global_step"])[0]))
