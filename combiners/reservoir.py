"""RES in Piccoli et al. 2025: an echo-state network (Jaeger 2001) over the concatenated embeddings, a memory with
nothing to train.

    state' = tanh(W_in x + W_res state)

All its weights are random and fixed, its spatial adapters too, as nothing behind it receives a gradient. So it runs
once, in the rollout, with the state of each environment, and what it gave is stored and read in the update.
"""

import math
from dataclasses import dataclass

import torch

from combiners.concatenation import Concatenation


@dataclass
class Options:
    """--combiner reservoir"""

    reservoir_units: int | None = None
    """reservoir: units (none given: 1024)"""
    reservoir_spectral_radius: float | None = None
    """reservoir: largest absolute eigenvalue of the recurrent weights (none given: 0.9)"""
    reservoir_input_scale: float | None = None
    """reservoir: standard deviation of the input weights (none given: 1.0, the published one)"""


class Reservoir(Concatenation):
    """A reservoir of `reservoir_units`; out_dim is the number of units (512, 1024 or 2048 in the paper). The context
    and features_dim are not used.

    Args:
        reservoir_spectral_radius: largest absolute eigenvalue of W_res; below 1 old inputs fade.
        reservoir_input_scale: standard deviation of W_in. The published 1.0 over 16,896 inputs drives tanh to its ends,
            where a state is little more than the signs of W_in x; smaller scales leave room for what was before.
    """

    def __init__(
        self,
        embedding_shapes: dict[str, tuple[int, ...]],
        context_shape: tuple[int, ...] | None,
        features_dim: int = 256,
        reservoir_units: int = 1024,
        reservoir_spectral_radius: float = 0.9,
        reservoir_input_scale: float = 1.0,
    ):
        super().__init__(embedding_shapes)
        self.out_dim = reservoir_units
        inputs = sum(math.prod(adapter.output_shape) for adapter in self.spatial.values())
        self.register_buffer("w_in", reservoir_input_scale * torch.randn(reservoir_units, inputs))
        w_res = torch.randn(reservoir_units, reservoir_units)
        self.register_buffer("w_res", w_res * (reservoir_spectral_radius / torch.linalg.eigvals(w_res).abs().max()))
        self.requires_grad_(False)

    def initial_state(self, num_envs: int) -> torch.Tensor:
        """The state with which each game starts: zeros (num_envs, units)."""
        return torch.zeros(num_envs, self.out_dim, device=self.w_in.device)

    @torch.no_grad()
    def step(
        self, embeddings: dict[str, torch.Tensor], state: torch.Tensor, new_game: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of each environment.

        Args:
            embeddings: {name: (num_envs, *shape)}.
            state: (num_envs, units), what the last call gave.
            new_game: (num_envs,) bool, where a new game begins and the state starts from zero.

        Returns:
            h and the state to give next time, both (num_envs, units), here the same.
        """
        # float32: what is rounded here comes back with each step
        with torch.autocast(state.device.type, enabled=False):
            adapted = self.adapt({name: z.float() for name, z in embeddings.items()})
            x = torch.cat([z.flatten(1) for z in adapted.values()], dim=1)
            state = state * ~new_game[:, None]
            h = torch.tanh(x @ self.w_in.T + state @ self.w_res.T)
        return h, h

    def state_and_weights(
        self, embeddings: dict[str, torch.Tensor], context: torch.Tensor | None
    ) -> tuple[torch.Tensor, None]:
        """What `step` gave in the rollout, {"reservoir": (B, units)}, is the state (B, units); there are no weights."""
        return embeddings["reservoir"], None

    def forward(self, embeddings: dict[str, torch.Tensor], context: torch.Tensor | None) -> torch.Tensor:
        """{name: (B, *shape)} -> (B, units): the step that begins a game, from zero. Later steps need `step`."""
        num = len(next(iter(embeddings.values())))
        state = self.initial_state(num)
        return self.step(embeddings, state, torch.zeros(num, dtype=torch.bool, device=state.device))[0]
