"""Several processes that train one agent: `torchrun --nproc-per-node 2 <script> ...`.

Each plays its share of the games and holds a copy of the agent. What must be common to all is here: the advantages'
mean and standard deviation, the gradients, the list of finished games, and the wish to stop. With one process each
function is the plain thing.
"""

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist

from housekeeping.device import on_cuda
from housekeeping.flags import InputError

PATIENCE = timedelta(hours=2)  # how long the others wait while the first process evaluates


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
    """x (n,) less the mean, over the standard deviation (n - 1; 1e-8 is added to it), of those numbers of all processes
    that count.

    Args:
        counts: bool (n,), which ones count; of fewer than two, in all processes together, there is no deviation, and
            the result is 0.
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


def share(items: Any) -> Any:
    """This process's part of a sequence that is split evenly among all."""
    if not dist.is_initialized():
        return items
    size = len(items) // dist.get_world_size()
    return items[dist.get_rank() * size : (dist.get_rank() + 1) * size]


def gather(items: list[Any]) -> list[Any]:
    """The items of all processes, in the order of ranks."""
    if not dist.is_initialized():
        return items
    of_all: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, items)
    return [item for of_one in of_all for item in of_one]


def check_rollouts(args: Any) -> None:
    """Refuse rollouts that cannot be split into minibatches, or shared by these processes; raises InputError with the
    reason."""
    batch_size = args.num_envs * args.num_steps
    if batch_size % args.num_minibatches:
        raise InputError(
            f"--num-minibatches {args.num_minibatches} does not divide the {batch_size} steps of a rollout "
            f"(--num-envs {args.num_envs} x --num-steps {args.num_steps})."
        )
    if getattr(args, "norm_adv", True) and batch_size // args.num_minibatches < 2:
        raise InputError(
            "a minibatch of 1 step has no advantages to normalise; lower --num-minibatches, or raise --num-steps."
        )
    if args.total_timesteps < batch_size:
        raise InputError(f"--total-timesteps {args.total_timesteps} is less than one rollout of {batch_size} steps.")
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if args.num_envs % world_size:
        raise InputError(f"--num-envs {args.num_envs} cannot be split evenly into {world_size} processes.")
    if (args.num_envs // world_size * args.num_steps) % args.num_minibatches:
        raise InputError(
            f"--num-minibatches {args.num_minibatches} does not divide the steps of one of {world_size} processes."
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if torch.cuda.is_available() and on_cuda(args.cuda) and local > torch.cuda.device_count():
        raise InputError(
            f"{local} processes and {torch.cuda.device_count()} GPU(s): lower --nproc-per-node, or give --cuda False."
        )


def require_one_process(script: str) -> None:
    """Refuse torchrun in programs that run in one process; raises InputError."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError(f"{script}.py trains in one process; start it with python, without torchrun.")


def leave() -> None:
    """Say goodbye to the other processes."""
    if dist.is_initialized():
        dist.barrier()  # none takes its end of a connection away while another one still talks
        dist.destroy_process_group()
