"""Weight Sharing Attention (Piccoli et al. 2025, arXiv 2507.07197, section 4).

One small network, shared by all models, scores each adapted embedding in the light of the context; the state is their weighted sum:

    s_i = f([c ; e_i]),   w = softmax(s),   h = sum_i w_i e_i

Because f is shared its size does not depend on the number of models, so that a model can come or go while the agent lives.
"""

from typing import Literal

import torch
import torch.nn as nn

from combiners.adapters import layer_init
from combiners.weighted_sum import WeightedSum


class WeightSharingAttention(WeightedSum):
    """`WeightedSum` whose scores are those of the Shared Weight Network f, a Linear(2d, 1).

    Args:
        scorer_activation: "relu" after f is the published code's. It can die: where all scores are 0, the weights are 1/N and nothing is
            learnt from them. "none" leaves the scores as they are. But f is one linear layer, so that the context then adds the same
            number to all scores of a sample, which the softmax takes out again: without the ReLU the weights do not depend on it.
    """

    def __init__(
        self,
        embedding_shapes: dict[str, tuple[int, ...]],
        context_shape: tuple[int, ...],
        features_dim: int = 256,
        scorer_activation: Literal["relu", "none"] = "relu",
    ):
        super().__init__(embedding_shapes, context_shape, features_dim)
        self.scorer = layer_init(nn.Linear(2 * features_dim, 1))
        self.scorer_activation = scorer_activation

    def scores(self, e: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """s_i = f([c ; e_i]) (Piccoli et al. 2025, section 4): e (B, N, d), c (B, d) -> (B, N)."""
        scores = self.scorer(torch.cat([c[:, None].expand_as(e), e], dim=2)).squeeze(2)  # all models at once
        return scores.relu() if self.scorer_activation == "relu" else scores

    @torch.no_grad()
    def dead_scores(self, embeddings: dict[str, torch.Tensor], context: torch.Tensor) -> float:
        """Share of scores that the ReLU holds at 0, where no gradient passes."""
        e, c = self.adapt(embeddings, context)
        with torch.autocast(e.device.type, enabled=False):
            return (self.scores(e, c) == 0).float().mean().item()
