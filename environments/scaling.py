"""Numbers brought to one scale by what was seen so far: rewards, errors, observations."""

import torch
import torch.nn as nn


class RunningMoments(nn.Module):
    """Mean and variance of all that was seen so far (Chan et al. 1979's rule for joining two samples), in double
    precision.

    What was seen before never counts as more than `horizon` samples, so that it fades. Its numbers are buffers, so that
    they are in the checkpoint.
    """

    def __init__(self, shape: tuple[int, ...] = (), horizon: float = float("inf")):
        super().__init__()
        self.horizon = horizon
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        # of the population; 1 as long as nothing was seen
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: torch.Tensor) -> None:
        """Take in x (n, *shape); n may be 0."""
        if len(x) == 0:
            return
        x = x.double()
        n, total = len(x), self.count + len(x)
        delta = x.mean(dim=0) - self.mean
        squares = self.var * self.count + x.var(dim=0, correction=0) * n + delta.square() * self.count * n / total
        self.mean += delta * n / total
        self.var.copy_(squares / total)
        self.count.copy_(total.clamp(max=self.horizon))


class RewardScale(nn.Module):
    """Rewards divided by the standard deviation of the discounted return so far, and clipped to [-10, 10], as in
    CleanRL's continuous control (Engstrom et al. 2020, arXiv 2005.12729, "reward scaling").

    Args:
        num_envs: environments side by side; all of them share one deviation.
        gamma: the discount.
    """

    def __init__(self, num_envs: int, gamma: float):
        super().__init__()
        self.gamma, self.moments = gamma, RunningMoments()
        # not in the checkpoint: a resumed run starts new episodes
        self.register_buffer("returns", torch.zeros(num_envs, dtype=torch.float64), persistent=False)

    def forward(self, rewards: torch.Tensor, over: torch.Tensor) -> torch.Tensor:
        """Raw rewards (num_envs,), and where they ended an episode, bool (num_envs,) -> scaled rewards (num_envs,)."""
        self.returns = self.returns * self.gamma + rewards
        self.moments.update(self.returns)
        self.returns = self.returns * ~over
        return (rewards / (self.moments.var + 1e-8).sqrt()).clamp(-10, 10).float()
