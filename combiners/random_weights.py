"""A control: weights that move with the screen but are not learnt. What WSA gains over this it gains by learning how to
weigh."""

import torch

from combiners.wsa import WeightSharingAttention


class RandomWeights(WeightSharingAttention):
    """Weight Sharing Attention whose Shared Weight Network stays as it was initialised, one linear layer; adapters are
    trained."""

    learns_weights = False

    def __init__(
        self, embedding_shapes: dict[str, tuple[int, ...]], context_shape: tuple[int, ...], features_dim: int = 256
    ):
        super().__init__(embedding_shapes, context_shape, features_dim, scorer="linear")
        self.scorer.requires_grad_(False)
        self.context_adapter.requires_grad_(False)  # it serves the scorer alone

    def scores(self, e: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """As WSA's, without gradients: e (B, N, d), c (B, d) -> (B, N)."""
        # nor do the adapters learn to be weighed; they learn through the weighted sum
        return super().scores(e.detach(), c.detach())
