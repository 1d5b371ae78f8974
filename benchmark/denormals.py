"""What does flushing denormal numbers save? Adam's step in a trained run, with and without.

    python -m benchmark.denormals --checkpoint runs/<run_name>/checkpoint.pt

Where a unit has died, its weights get no gradients, and Adam's averages of them halve every few steps until they are denormal: numbers
below 1.2e-38, on which a CPU is many times as slow. `torch.set_flush_denormal(True)` makes them 0. The gradients are set to 0 here, so that
nothing but Adam is timed; the two ways take turns.
"""

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

import storage
from storage import InputError

SMALLEST = torch.finfo(torch.float32).smallest_normal


@dataclass
class Args:
    checkpoint: str
    """a training run's checkpoint.pt, with its optimizer's state"""
    rounds: int = 5
    """turns of each way; the medians are printed"""
    torch_threads: int = 1
    """CPU threads"""


def seconds_of_a_step(weights: list[torch.Tensor], state: dict, flush: bool) -> float:
    """Median of 10 steps of Adam, from the checkpoint's state."""
    torch.set_flush_denormal(flush)
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.Adam(parameters, fused=True)
    # Copies: a loaded state is shared with the dictionary, and the first flushed step would clean it for all
    optimizer.state.update({p: {key: value.clone() for key, value in state[i].items()} for i, p in enumerate(parameters)})
    times = []
    for _ in range(10):
        start = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(args: Args) -> None:
    checkpoint = storage.load(Path(args.checkpoint), "checkpoint")
    if "optimizer" not in checkpoint:
        raise InputError(f"{args.checkpoint}: there is no optimizer's state in it; an exported agent has none.")
    torch.set_num_threads(args.torch_threads)
    state = checkpoint["optimizer"]["state"]
    averages = torch.cat([one["exp_avg"].flatten() for one in state.values()])
    share = ((averages != 0) & (averages.abs() < SMALLEST)).float().mean()
    print(f"{checkpoint['script']}, step {checkpoint['global_step']:,}: {share:.0%} of {len(averages):,} running averages are denormal")
    weights = [one["exp_avg"] for one in state.values()]  # of the weights' shapes, which is all that counts here
    found = {flush: [] for flush in (False, True)}
    for _ in range(args.rounds):
        for flush, seconds in found.items():
            seconds.append(seconds_of_a_step(weights, state, flush))
    plain, flushed = (1e3 * statistics.median(found[flush]) for flush in (False, True))
    print(f"Adam's step: {plain:.1f} ms, {flushed:.1f} ms with denormal numbers flushed ({plain / flushed:.1f} times as fast)")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
