"""A control: all weights 1/N. What WSA gains over this it gains by weighing, not by its adapters."""

import torch

from combiners.weighted_sum import WeightedSum


class Uniform(WeightedSum):
    """`WeightedSum` whose scores are all equal; it does not look at the context."""

    uses_context = learns_weights = False

    def scores(self, e: torch.Tensor, c: None) -> torch.Tensor:
        """e (B, N, d) -> zeros (B, N)."""
        return torch.zeros(e.shape[:2], device=e.device)
