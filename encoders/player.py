"""A trained agent with its frozen models, as evaluation plays it."""

import numpy as np
import torch
import torch.nn as nn

from combiners.weighted_sum import WeightedSum
from encoders.frozen import FrozenModels, short_name
from housekeeping.flags import InputError


class Player(nn.Module):
    """Frozen models and trained agent together, to play: in evaluation, or as an expert.

    With the reservoir it remembers: row i of `obs` must then be the same environment in each call. Its memory of a row
    begins anew at a game's first observation, whose three older frames are black where the newest three of the call
    before were not. (If these were black, too, the screen has only gone dark, and the game goes on.)
    """

    def __init__(self, frozen: FrozenModels, agent: nn.Module):
        super().__init__()
        self.frozen, self.agent, self.precision = frozen, agent, agent.precision
        self.memory = self.last_obs = None

    @property
    def weighed(self) -> tuple[str, ...]:
        """Names of the models in the order of the weights' columns; none for combiners that do not weigh."""
        return self.agent.names if isinstance(self.agent.combiner, WeightedSum) else ()

    def drop(self, spec: str) -> None:
        """Go on without one of the models; raises InputError if the combiner needs all, it is not there, or is the last
        one."""
        try:
            self.agent.combiner.remove_model(short_name(spec))
        except ValueError as error:
            raise InputError(str(error)) from error

    @torch.no_grad()
    def act_and_weights(self, obs: np.ndarray | torch.Tensor, greedy: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """uint8 (B, 4, 84, 84) -> actions (B,) and the weights (B, N) of combiners that weigh."""
        x = torch.as_tensor(obs, device=next(self.agent.parameters()).device)
        if self.last_obs is None or len(self.last_obs) != len(x):
            self.memory, self.last_obs = self.agent.combiner.initial_state(len(x)), torch.ones_like(x)
        new_game = (x[:, :-1] == 0).flatten(1).all(dim=1) & (self.last_obs[:, 1:] > 0).flatten(1).any(dim=1)
        self.last_obs = x.clone()
        seen, self.memory = self.agent.see(self.frozen, x, self.memory, new_game)
        return self.agent.choose(seen, greedy)

    def act(self, obs: np.ndarray | torch.Tensor, greedy: bool) -> np.ndarray | torch.Tensor:
        """uint8 (B, 4, 84, 84) -> actions (B,). An array gives an array, a tensor a tensor."""
        actions, _ = self.act_and_weights(obs, greedy)
        return actions if isinstance(obs, torch.Tensor) else actions.cpu().numpy()
