"""LIN in Piccoli et al. 2025: concatenate all spatially adapted, flattened embeddings; nothing weighs or mixes them
before the heads."""

import math

import torch

from combiners.concatenation import Concatenation


class Linear(Concatenation):
    """The concatenation itself: out_dim is 16,896 for the paper's four models (512 + 8,192 + 4,096 + 4,096). The
    context and features_dim are not used."""

    def __init__(
        self,
        embedding_shapes: dict[str, tuple[int, ...]],
        context_shape: tuple[int, ...] | None,
        features_dim: int = 256,
    ):
        super().__init__(embedding_shapes)
        self.out_dim = sum(math.prod(adapter.output_shape) for adapter in self.spatial.values())

    def forward(self, embeddings: dict[str, torch.Tensor], context: torch.Tensor | None) -> torch.Tensor:
        """{name: (B, *shape)} -> (B, out_dim)."""
        return torch.cat([z.flatten(1) for z in self.adapt(embeddings).values()], dim=1)
