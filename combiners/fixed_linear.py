"""FIX in Piccoli et al. 2025: each embedding through its own Linear and ReLU to d numbers, then concatenate."""

import functools

import torch

from combiners.adapters import Adapter
from combiners.concatenation import Concatenation


class FixedLinear(Concatenation):
    """Adapted embeddings side by side: out_dim is N x features_dim (256, 512 or 1024 a model in the paper). The context
    is not used."""

    def __init__(
        self,
        embedding_shapes: dict[str, tuple[int, ...]],
        context_shape: tuple[int, ...] | None,
        features_dim: int = 256,
    ):
        super().__init__(embedding_shapes, functools.partial(Adapter, features_dim=features_dim))
        self.out_dim = len(embedding_shapes) * features_dim

    def forward(self, embeddings: dict[str, torch.Tensor], context: torch.Tensor | None) -> torch.Tensor:
        """{name: (B, *shape)} -> (B, out_dim)."""
        return torch.cat(list(self.adapt(embeddings).values()), dim=1)
