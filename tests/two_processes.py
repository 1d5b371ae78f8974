"""Run by tests/test_fast.py in two processes: one update of the end-to-end agent, each process on its share of one
minibatch."""

import sys

import torch
import torch.nn as nn

from housekeeping import processes
from ppo_e2e_atari import Agent, ppo_loss


def minibatch() -> dict[str, torch.Tensor]:
    """The same made-up minibatch of 32 samples in every process."""
    generator = torch.Generator().manual_seed(0)
    return {
        "obs": torch.randint(0, 256, (32, 4, 84, 84), dtype=torch.uint8, generator=generator),
        "actions": torch.randint(0, 6, (32,), generator=generator),
        "logprobs": -1.8 + 0.1 * torch.randn(32, generator=generator),
        "advantages": 3 + 2 * torch.randn(32, generator=generator),
        "returns": torch.randn(32, generator=generator),
        "free": torch.rand(32, generator=generator) < 0.7,  # not an equal number in both halves
    }


def update(share: slice) -> dict[str, torch.Tensor]:
    """Weights after one step on a share of the minibatch, with what the processes have in common."""
    torch.manual_seed(0)
    agent = Agent(6)
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3, eps=1e-5)
    mine = {name: values[share] for name, values in minibatch().items()}
    mine["advantages"] = processes.normalise(mine["advantages"], mine["free"])
    num_free = processes.mean(mine["free"].sum().float())
    loss, _ = ppo_loss(agent, **mine, num_free=num_free, clip_coef=torch.tensor(0.1), ent_coef=0.01, vf_coef=0.5)
    loss.backward()
    processes.average_gradients(agent.parameters())
    gradients = {f"{name}.grad": parameter.grad.clone() for name, parameter in agent.named_parameters()}
    nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
    optimizer.step()
    return agent.state_dict() | gradients


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, world_size, _ = processes.join(cuda=False)
    result = update(slice(rank * 32 // world_size, (rank + 1) * 32 // world_size))
    ranks = processes.gather([rank])
    if rank == 0:
        torch.save({"result": result, "ranks": ranks}, sys.argv[1])
    processes.leave()
