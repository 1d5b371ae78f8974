"""Arithmetic in bfloat16, where the processor has instructions for it: half the bits, and up to twice the speed.

Convolutions and matrix products round their inputs to bfloat16 (8 significant bits) and add up in float32. All else
stays float32: weights, optimiser state, the layers that give logits and values, softmaxes, log-probabilities,
entropies, advantages and losses. Where bfloat16 is off, nothing here changes a number.
"""

import os
import sys
from typing import Literal

import torch
import torch.nn as nn

torch.backends.cudnn.allow_tf32 = (
    False  # on CUDA, float32 means float32 in convolutions, too; PyTorch's default is TensorFloat-32
)

Precision = Literal["auto", "float32", "bfloat16"]
INSTRUCTIONS = ("avx512_bf16", "amx_bf16")  # of x86 processors; without either, bfloat16 is slower than float32


def is_fast(device: torch.device) -> bool:
    """Whether this device computes faster in bfloat16 than in float32: CUDA, and CPUs with instructions for it."""
    return device.type == "cuda" or any(torch.cpu.get_capabilities().get(name, False) for name in INSTRUCTIONS)


def choose(wanted: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """What --precision means on this device: auto is the faster one. Prints a warning where bfloat16 is asked for and
    is the slower one."""
    # of several processes one says it
    if wanted == "bfloat16" and not is_fast(device) and os.environ.get("RANK", "0") == "0":
        print(
            "warning: --precision bfloat16 is slower than float32 here, as this processor has neither "
            f"{' nor '.join(INSTRUCTIONS)}.",
            file=sys.stderr,
        )
    return wanted if wanted != "auto" else "bfloat16" if is_fast(device) else "float32"


def to_play_in(trained: Precision, device: torch.device, whose: object) -> Literal["float32", "bfloat16"]:
    """What an agent that was trained in this precision plays in: the same, or float32, with a word, where that is all
    there is."""
    if trained == "bfloat16" and not is_fast(device):
        print(
            f"{whose}: trained in bfloat16, which is slow on this processor, so it plays in float32.", file=sys.stderr
        )
        return "float32"
    return choose(trained, device)


def autocast(precision: Literal["float32", "bfloat16"], device: torch.device | str) -> torch.autocast:
    """A context in which convolutions and matrix products have this precision."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")


class Float32Linear(nn.Linear):
    """A linear layer that stays in float32 under `autocast`, for logits and values: 3.1416 would be 3.1406 in
    bfloat16."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())
