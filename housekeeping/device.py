"""Where a program computes: on a GPU or on how many cores of a CPU, and what it says of that."""

import os
import shutil
from typing import Any, Literal

import torch

from housekeeping.flags import InputError
from housekeeping.memory import keep_freed_memory


def on_cuda(cuda: bool | Literal["auto"]) -> bool:
    """Whether a script with this --cuda runs on a GPU here."""
    return cuda is True or (cuda == "auto" and torch.cuda.is_available())


def require_cuda(args: Any) -> None:
    """Refuse --cuda True where there is no GPU; raises InputError."""
    if args.cuda is True and not torch.cuda.is_available():
        raise InputError(
            "--cuda True was asked for, but PyTorch finds no CUDA device here; give --cuda False to run on the CPU."
        )


def require_compiler(args: Any) -> None:
    """Refuse --compile on a CPU without a C++ compiler; raises InputError."""
    if (
        getattr(args, "compile", False)
        and not on_cuda(args.cuda)
        and not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))
    ):
        raise InputError("--compile needs a C++ compiler on a CPU (g++ or clang++), and there is none here.")


def prepare_cpu(torch_threads: int) -> None:
    """Set how the CPU computes; before any computation, as worker threads inherit it when they are started."""
    if torch_threads:
        torch.set_num_threads(torch_threads)
    # fast: Adam's averages fade to numbers that a CPU is slow at (with 4 models 1.3 times)
    torch.set_flush_denormal(True)
    keep_freed_memory()  # fast: new pages cost more than the numbers in them


def describe(args: Any, device: torch.device, world_size: int = 1) -> str:
    """What is on, in one line for the start of a run."""
    threads = f"{torch.get_num_threads()} CPU thread{'s' * (torch.get_num_threads() > 1)}"
    on = [device.type, args.precision, threads if world_size == 1 else f"{world_size} processes with {threads} each"]
    on += ["compiled"] if getattr(args, "compile", False) else []
    return ", ".join(on)
