"""What the training scripts share: several processes that train one agent, transfers, random states, and checks of flags.

`torchrun --nproc-per-node 2 <script> ...` starts several processes.

Each plays its share of the games and holds a copy of the agent. What must be common to all is here: the advantages' mean and
standard deviation, the gradients, the list of finished games, and the wish to stop. With one process each function is the plain thing.
"""

import ctypes
import os
import shutil
import sys
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from atari import env_seeds
from storage import InputError

SPEED_FLAGS = {"compile", "precision", "cuda", "torch_threads"}  # of all scripts that have them; a resumed run may have others
BAR: Any = {"mininterval": 0.5 if sys.stderr.isatty() else 60, "dynamic_ncols": True}  # progress bars; into a file a line a minute
PATIENCE = timedelta(hours=2)  # how long the others wait while the first process evaluates


def on_cuda(cuda: bool | Literal["auto"]) -> bool:
    """Whether a script with this --cuda runs on a GPU here."""
    return cuda is True or (cuda == "auto" and torch.cuda.is_available())


def require_cuda(args: Any) -> None:
    """Refuse --cuda True where there is no GPU; raises InputError."""
    if args.cuda is True and not torch.cuda.is_available():
        raise InputError("--cuda True was asked for, but PyTorch finds no CUDA device here; leave it out to run on the CPU.")


def join(cuda: bool | Literal["auto"]) -> tuple[int, int, torch.device]:
    """Join the other processes, if torchrun started this one; returns its rank, how many there are, and its device.

    On CUDA each process takes the GPU of its rank on its machine and talks over NCCL, else over gloo.
    """
    use_cuda = on_cuda(cuda)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1, device
    if not dist.is_initialized():
        dist.init_process_group("nccl" if use_cuda else "gloo", timeout=PATIENCE)
    return dist.get_rank(), dist.get_world_size(), device


def normalise(x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """x (n,) less the mean, over the standard deviation (n - 1; 1e-8 is added to it), of those numbers of all processes that count.

    Args:
        counts: bool (n,), which ones count; of fewer than two, in all processes together, there is no deviation, and the result is 0.
    """
    chosen = x[counts]
    if not dist.is_initialized():
        return (x - chosen.mean()) / (chosen.std() + 1e-8) if len(chosen) > 1 else torch.zeros_like(x)
    total = torch.stack([chosen.sum(), chosen.new_tensor(len(chosen))])
    dist.all_reduce(total)
    center = total[0] / total[1].clamp(min=1)
    squares = (chosen - center).square().sum()
    dist.all_reduce(squares)
    return (x - center) / ((squares / (total[1] - 1)).sqrt() + 1e-8) if total[1] > 1 else torch.zeros_like(x)


def mean(x: torch.Tensor) -> torch.Tensor:
    """The mean over all processes of a number () that each of them has."""
    if not dist.is_initialized():
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes, in one message."""
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, of_all in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(of_all.view_as(gradient))


def gather(items: list[Any]) -> list[Any]:
    """The items of all processes, in the order of ranks."""
    if not dist.is_initialized():
        return items
    of_all: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, items)
    return [item for of_one in of_all for item in of_one]


def keep_freed_memory() -> None:
    """Let freed memory stay with this process, for the next tensor of its size, in place of going back to the system. (Only with glibc.)

    New pages cost more than the numbers that are written to them.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # macOS, Windows, musl
        return
    trim_threshold, mmap_max = -1, -4  # names in the GNU C library's mallopt(3)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_max, 0)


def take_rows(kept: torch.Tensor, rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """`kept[rows]` of vectors (m, n) or of maps (m, C, H, W) in the layout channels_last, up to twenty times as fast as the brackets.

    Args:
        out: where to write it, (len(rows), ...) of kept's type and layout; None: into new memory.
    """
    if kept.dim() == 2:
        return torch.index_select(kept, 0, rows, out=out)
    rows_of = torch.index_select(kept.permute(0, 2, 3, 1), 0, rows, out=None if out is None else out.permute(0, 2, 3, 1))
    return rows_of.permute(0, 3, 1, 2)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array as a tensor on the device: as it is on a CPU; on CUDA through page-locked memory, without waiting for the copy."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def restore_random_state(checkpoint: dict[str, Any], seed: int) -> None:
    """Set PyTorch's random generators for a resumed run.

    The CPU's goes on where the checkpoint left it. A GPU's state is not stored: it gets a seed that depends on the step, so that the run
    does not draw its first actions again.
    """
    torch.set_rng_state(checkpoint["rng_state"])
    torch.cuda.manual_seed(int(env_seeds(1, seed, 10, checkpoint["global_step"])[0]))


def check_ranges(args: Any, at_least_one: Iterable[str] = (), shares: Iterable[str] = (), not_negative: Iterable[str] = ()) -> None:
    """Refuse flags, by name, that are out of their range (shares: from 0 to 1; None is not looked at); raises InputError."""
    ranges = (
        (at_least_one, 1, float("inf"), "must be at least 1"),
        (shares, 0, 1, "must be from 0 to 1"),
        (not_negative, 0, float("inf"), "must not be negative"),
    )
    for names, low, high, text in ranges:
        for name in names:
            value = getattr(args, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"--{name.replace('_', '-')} {text}, not {value}.")


def require_defaults(args: Any, names: Iterable[str], owner: str) -> None:
    """Refuse flags that do nothing here, as they are options of `owner`; raises InputError."""
    for name in names:
        if getattr(args, name) != type(args).__dataclass_fields__[name].default:
            raise InputError(f"--{name.replace('_', '-')} is an option of {owner}; leave it out.")


def check_processes(args: Any) -> None:
    """Refuse a number of processes that this machine, or this number of games, cannot serve; raises InputError with the reason."""
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if args.num_envs % world_size:
        raise InputError(f"--num-envs {args.num_envs} cannot be split evenly into {world_size} processes.")
    if (args.num_envs // world_size * args.num_steps) % args.num_minibatches:
        raise InputError(f"--num-minibatches {args.num_minibatches} does not divide the steps of one of {world_size} processes.")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if on_cuda(args.cuda) and local > torch.cuda.device_count():
        raise InputError(f"{local} processes and {torch.cuda.device_count()} GPU(s): lower --nproc-per-node, or give --cuda False.")


def require_one_process(script: str) -> None:
    """Refuse torchrun in scripts that train in one process; raises InputError."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError(f"{script}.py trains in one process; start it with python, without torchrun.")


def require_compiler(args: Any) -> None:
    """Refuse --compile on a CPU without a C++ compiler; raises InputError."""
    if args.compile and not on_cuda(args.cuda) and not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise InputError("--compile needs a C++ compiler on a CPU (g++ or clang++), and there is none here.")


def require_memory(needed: int, device: torch.device, what: str, remedy: str) -> None:
    """Refuse what cannot fit into the memory that is free on the device; raises InputError, which says how much is needed."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    else:
        return  # not known on this system
    if needed > free:
        raise InputError(f"{what} need {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free here; {remedy}.")


def describe_speed(args: Any, device: torch.device, world_size: int = 1) -> str:
    """What is on, in one line for the start of a run."""
    threads = f"{torch.get_num_threads()} CPU threads"
    on = [device.type, args.precision, threads if world_size == 1 else f"{world_size} processes with {threads} each"]
    on += ["--compile"] if getattr(args, "compile", False) else []
    return ", ".join(on)


def leave() -> None:
    """Say goodbye to the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()
