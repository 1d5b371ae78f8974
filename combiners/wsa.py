"""Weight Sharing Attention (Piccoli et al. 2025, arXiv 2507.07197, section 4).

One small network, shared by all models, scores each adapted embedding in the light of the context; the state is their
weighted sum:

    s_i = f([c ; e_i]),   w = softmax(s),   h = sum_i w_i e_i

Because f is shared its size does not depend on the number of models, so that a model can come or go while the agent
lives.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F

from combiners.adapters import layer_init
from combiners.weighted_sum import WeightedSum

HIDDEN = 64  # units of the hidden layer, where f has one


@dataclass
class Options:
    """--combiner wsa"""

    scorer: Literal["published", "linear", "hidden", "bounded"] | None = None
    """wsa: the shared weight network (none given: bounded, a hidden layer, and scores in [-1, 1]; hidden: the same
    without bounds; published: one layer with a ReLU, which can die; linear: one layer, so that the context cancels out
    in the softmax)"""


class WeightSharingAttention(WeightedSum):
    """`WeightedSum` whose scores are those of the Shared Weight Network f.

    Args:
        scorer: what f is.
            "published": ReLU(Linear(2d, 1)). It can die: where all scores are 0, the weights are 1/N and nothing is
            learnt from them.
            "linear": Linear(2d, 1). Being one linear layer, it adds the context's share to all scores of a sample
            alike, and the softmax takes that out again: the weights do not depend on the context.
            "hidden" (ours): e_i and c brought to one scale (layer normalisation without parameters), Linear(2d, 64),
            tanh, Linear(64, 1), whose last layer starts near 0, so that the weights start near even. It cannot die,
            and the context can move the weights.
            "bounded" (ours): the same with a tanh at its end, so that no score leaves [-1, 1], and no model's weight
            can go to 0: of four models the largest is at most e / (e + 3 / e) = 0.71, the smallest at least 0.04.
    """

    def __init__(
        self,
        embedding_shapes: dict[str, tuple[int, ...]],
        context_shape: tuple[int, ...],
        features_dim: int = 256,
        scorer: Literal["published", "linear", "hidden", "bounded"] = "bounded",
    ):
        super().__init__(embedding_shapes, context_shape, features_dim)
        self.kind = scorer
        if scorer in ("published", "linear"):
            self.scorer: nn.Module = layer_init(nn.Linear(2 * features_dim, 1))
        else:
            first, last = layer_init(nn.Linear(2 * features_dim, HIDDEN)), layer_init(nn.Linear(HIDDEN, 1), gain=0.01)
            self.scorer = nn.Sequential(first, nn.Tanh(), last)

    def scores(self, e: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """s_i = f([c ; e_i]) (Piccoli et al. 2025, section 4): e (B, N, d), c (B, d) -> (B, N)."""
        if self.kind in ("hidden", "bounded"):
            e, c = F.layer_norm(e, e.shape[-1:]), F.layer_norm(c, c.shape[-1:])
        s = self.scorer(torch.cat([c[:, None].expand_as(e), e], dim=2)).squeeze(2)  # all models at once
        return s.relu() if self.kind == "published" else s.tanh() if self.kind == "bounded" else s

    def diagnose_scores(self, s: torch.Tensor) -> dict[str, float]:
        """With "published" "dead_scores": the share of scores that its ReLU holds at 0, where no gradient passes."""
        return {"dead_scores": (s == 0).float().mean().item()} if self.kind == "published" else {}
