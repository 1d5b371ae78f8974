"""Make a checkpoint small and whole: what playing needs, in half precision, without the optimiser.

    python export_agent.py --checkpoint runs/<run_name>/best.pt --output agents/Pong/wsa.pt

The models that the agent sees through go with it, so that it plays wherever it is, and as before when the stored models
have been trained anew.
evaluate.py and pretrain_encoders.py open such a file like any other checkpoint; only --resume refuses it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from encoders import half_if_finite
from housekeeping import checkpoints, files
from housekeeping.flags import InputError, parse, start

ONLY_FOR_TRAINING = ("optimizer", "intrinsic", "intrinsic_optimizer", "target", "streams", "rng_state", "last_games")


@dataclass
class Args:
    """export"""

    checkpoint: str
    """a checkpoint.pt or best.pt of any script here"""
    output: str
    """where the small one goes"""
    pretrained_dir: str | None = None
    """where the stored models are (none given: where they were in training)"""


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
    largest = max((tensor.abs().max().item() for tensor in weights.values()), default=0.0)
    if largest > torch.finfo(torch.float16).max:
        raise InputError(f"{args.checkpoint}: a weight of {largest:.3g} does not fit into half precision.")
    if small.get("policy"):  # of dqn_bt_atari.py: only the extra action plays with it
        plays = checkpoint["args"]["extra_action"]
        small["policy"] = {name: half_if_finite(x) for name, x in small["policy"].items()} if plays else None
    if "encoders" in checkpoint:
        frozen = checkpoints.load_agent(Path(args.checkpoint), pretrained_dir=args.pretrained_dir).frozen
        small["own_models"] = checkpoint["own_models"] | {
            name: {key: half_if_finite(tensor) for key, tensor in frozen.models[name].state_dict().items()}
            for name in frozen.sha256
        }
    files.save(small, output)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, from {Path(args.checkpoint).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    start(main, lambda: parse(Args, __doc__))
