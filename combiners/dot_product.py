"""Scaled dot-product attention (DPA in Piccoli et al. 2025; Vaswani et al. 2017, arXiv 1706.03762, eq. 1) over the
models.

The query is the adapted context, the keys and the values are the adapted embeddings: s_i = c . e_i / sqrt(d).
"""

import torch

from combiners.weighted_sum import WeightedSum


class DotProductAttention(WeightedSum):
    """`WeightedSum` whose scores are scaled dot products with the context."""

    def scores(self, e: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """s_i = c . e_i / sqrt(d) (Vaswani et al. 2017, eq. 1): e (B, N, d), c (B, d) -> (B, N)."""
        return torch.einsum("bnd,bd->bn", e, c) / self.out_dim**0.5
