"""What does flushing denormal numbers save? Adam's step in a trained run, with and without.

    python -m benchmark.denormals --checkpoint runs/<run_name>/checkpoint.pt runs/<run_name>/checkpoint.pt

Where a unit has died, its weights get no gradients, and Adam's averages of them halve every few steps until they are
denormal: numbers below 1.2e-38, on which a CPU is many times as slow. `torch.set_flush_denormal(True)` makes them 0.
    The gradients are set to 0 here, so that
nothing but Adam is timed; the two ways take turns.
"""

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from housekeeping import files as storage
from housekeeping import processes
from housekeeping.flags import InputError

SMALLEST = torch.finfo(torch.float32).smallest_normal


@dataclass
class Args:
    checkpoint: tuple[str, ...]
    """training runs' checkpoint.pt, with their optimizers' states"""
    rounds: int = 5
    """turns of each way, of whose times the medians are kept"""
    torch_threads: int = 1
    """CPU threads"""
    output: str = "benchmark/denormals.csv"
    """one line per checkpoint"""


def seconds_of_a_step(weights: list[torch.Tensor], state: dict, flush: bool) -> float:
    """Median of 10 steps of Adam, from the checkpoint's state."""
    torch.set_flush_denormal(flush)
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.Adam(parameters, fused=True)
    # Copies: a loaded state is shared with the dictionary, and the first flushed step would clean it for all
    optimizer.state.update(
        {p: {key: value.clone() for key, value in state[i].items()} for i, p in enumerate(parameters)}
    )
    times = []
    for _ in range(10):
        start = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(checkpoint: dict, rounds: int) -> dict[str, str | int | float]:
    """Of one run: the share of denormal numbers in Adam's averages, and the milliseconds of its step."""
    state = checkpoint["optimizer"]["state"]
    torch.set_flush_denormal(False)  # else they would count as 0
    averages = torch.cat([one["exp_avg"].flatten() for one in state.values()])
    share = ((averages != 0) & (averages.abs() < SMALLEST)).float().mean()
    weights = [one["exp_avg"] for one in state.values()]  # of the weights' shapes, which is all that counts here
    found = {flush: [] for flush in (False, True)}
    for _ in range(rounds):
        for flush, seconds in found.items():
            seconds.append(seconds_of_a_step(weights, state, flush))
    plain, flushed = (1e3 * statistics.median(found[flush]) for flush in (False, True))
    about = {
        "script": checkpoint["script"],
        "step": checkpoint["global_step"],
        "weights": len(averages),
        "denormal_share": float(share),
    }
    return about | {"plain_ms": plain, "flushed_ms": flushed, "times_as_fast": plain / flushed}


def main(args: Args) -> None:
    processes.check_ranges(args, ("rounds", "torch_threads"))
    checkpoints = [storage.load(Path(path), "checkpoint") for path in args.checkpoint]
    for path, checkpoint in zip(args.checkpoint, checkpoints, strict=True):
        if "optimizer" not in checkpoint:
            raise InputError(f"{path}: there is no optimizer's state in it; an exported agent has none.")
    torch.set_num_threads(args.torch_threads)
    rows = [measure(checkpoint, args.rounds) for checkpoint in checkpoints]
    for row in rows:
        print(
            f"{row['script']}, step {row['step']:,}: {row['denormal_share']:.0%} of {row['weights']:,} running "
            "averages are denormal; "
            f"Adam's step {row['plain_ms']:.1f} ms, {row['flushed_ms']:.1f} ms with them flushed "
            f"({row['times_as_fast']:.1f} times as fast)"
        )
    storage.write_csv(Path(args.output), rows, ".4g")
    print(f"stored in {args.output}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
