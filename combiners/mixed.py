"""MIX in Piccoli et al. 2025: maps are convolved together, vectors are concatenated to the result as they are."""

import math

import torch
import torch.nn as nn

from combiners.adapters import GRID, layer_init
from combiners.concatenation import Concatenation


class Mixed(Concatenation):
    """Stacked maps (64 channels for the paper's three) through one convolution 3x3 to 32 and ReLU, flattened, beside
    the vectors.

    out_dim is 8,704 for the paper's four models (8,192 + 512). The context and features_dim are not used.
    """

    def __init__(
        self,
        embedding_shapes: dict[str, tuple[int, ...]],
        context_shape: tuple[int, ...] | None,
        features_dim: int = 256,
    ):
        super().__init__(embedding_shapes)
        shapes = [adapter.output_shape for adapter in self.spatial.values()]
        channels = sum(shape[0] for shape in shapes if len(shape) == 3)
        self.convolution = layer_init(nn.Conv2d(channels, 32, 3, padding=1)) if channels else None
        self.out_dim = (32 * GRID**2 if channels else 0) + sum(math.prod(shape) for shape in shapes if len(shape) == 1)

    def forward(self, embeddings: dict[str, torch.Tensor], context: torch.Tensor | None) -> torch.Tensor:
        """{name: (B, *shape)} -> (B, out_dim), the maps' part first."""
        adapted = self.adapt(embeddings).values()
        vectors = [z for z in adapted if z.dim() == 2]
        if self.convolution is None:
            return torch.cat(vectors, dim=1)
        maps = self.convolution(torch.cat([z for z in adapted if z.dim() == 4], dim=1)).relu().flatten(1)
        return torch.cat([maps, *vectors], dim=1)
