"""Make a checkpoint small: what playing needs, in half precision, without the optimiser.

    python export_agent.py --checkpoint runs/<run_name>/best.pt --output agents/Pong/wsa.pt

evaluate.py and pretrain_encoders.py open such a file like any other checkpoint; only --resume refuses it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from housekeeping import files
from housekeeping.flags import InputError, parse, start

ONLY_FOR_TRAINING = ("optimizer", "intrinsic", "intrinsic_optimizer", "target", "streams", "rng_state", "last_games")


@dataclass
class Args:
    """export"""

    checkpoint: str
    """a checkpoint.pt or best.pt of any script here"""
    output: str
    """where the small one goes"""


def main(args: Args) -> None:
    checkpoint = files.load(Path(args.checkpoint), "checkpoint")
    output = Path(args.output)
    if output.exists():
        raise InputError(f"{output}: there is such a file already; move it away or choose another name.")
    files.require_writable(output.parent)
    small = {key: value for key, value in checkpoint.items() if key not in ONLY_FOR_TRAINING}
    # Running moments are float64 and stay as they are: they count steps
    weights = {name: tensor for name, tensor in checkpoint["agent"].items() if tensor.dtype == torch.float32}
    small["agent"] = checkpoint["agent"] | {name: tensor.half() for name, tensor in weights.items()}
    largest = max(tensor.abs().max().item() for tensor in weights.values())
    if largest > torch.finfo(torch.float16).max:
        raise InputError(f"{args.checkpoint}: a weight of {largest:.3g} does not fit into half precision.")
    files.save(small, output)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, from {Path(args.checkpoint).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    start(main, lambda: parse(Args, __doc__))
