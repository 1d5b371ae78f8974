"""What the combiners that weigh have in common: adapted embeddings, a weight for each, their weighted sum.

A combiner (wsa, dot_product, uniform, random_weights) says how to score; the weights are the scores' softmax over the
models.
"""

import torch
import torch.nn as nn

from combiners.adapters import Adapter, ContextAdapter
from combiners.combiner import Combiner


class WeightedSum(Combiner):
    """Combine N embeddings into one state h = sum_i w_i e_i of `features_dim` numbers.

    Args:
        embedding_shapes: {model's name: shape of its embedding without the batch}; its order is that of the weights'
            columns.
        context_shape: shape of the context without the batch; None for combiners that do not look at it.
        features_dim: the paper's d, the width of adapted embeddings, context and state.

    Raises:
        ValueError: no model, or an embedding that is neither a vector nor a map.
    """

    uses_context = True
    learns_weights = True

    def __init__(
        self,
        embedding_shapes: dict[str, tuple[int, ...]],
        context_shape: tuple[int, ...] | None,
        features_dim: int = 256,
    ):
        super().__init__()
        if not embedding_shapes:
            raise ValueError("there must be at least one model to combine.")
        self.out_dim = features_dim
        self.adapters = nn.ModuleDict(
            {name: Adapter(name, shape, features_dim) for name, shape in embedding_shapes.items()}
        )
        if self.uses_context:
            self.context_adapter = ContextAdapter(context_shape, features_dim)

    @property
    def names(self) -> tuple[str, ...]:
        """The models that are combined, in the order of the weights' columns."""
        return tuple(self.adapters)

    def scores(self, e: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        """Adapted embeddings e (B, N, d) and adapted context c (B, d) -> scores (B, N). Each combiner has its own."""
        raise NotImplementedError

    def adapt(
        self, embeddings: dict[str, torch.Tensor], context: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """{name: (B, *shape)} and (B, *context_shape) -> e (B, N, d) and c (B, d), float32."""
        e = torch.stack([adapter(embeddings[name]) for name, adapter in self.adapters.items()], dim=1).float()
        return e, self.context_adapter(context).float() if self.uses_context else None

    def state_and_weights(
        self, embeddings: dict[str, torch.Tensor], context: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """State h (B, d) and the weights that made it (B, N): each row non-negative with sum one, columns in the order
        of `names`."""
        e, c = self.adapt(embeddings, context)
        # scores and weights are float32, also where the adapters are not
        with torch.autocast(e.device.type, enabled=False):
            w = self.scores(e, c).softmax(dim=1)
            return (w[:, :, None] * e).sum(dim=1), w

    def attention(self, embeddings: dict[str, torch.Tensor], context: torch.Tensor) -> torch.Tensor:
        """The weights alone (B, N)."""
        return self.state_and_weights(embeddings, context)[1]

    @torch.no_grad()
    def diagnose(self, embeddings: dict[str, torch.Tensor], context: torch.Tensor) -> dict[str, float]:
        """How a combiner that has a context fares on a batch of observations in random order; this is logged.

        "context_effect": how much of the weights moves, in the mean, when an observation is given another one's
        context: half the sum of the absolute differences, from 0 to 1. And what `diagnose_scores` says.
        """
        if not self.uses_context:
            return {}
        e, c = self.adapt(embeddings, context)
        with torch.autocast(e.device.type, enabled=False):
            s, other = self.scores(e, c), self.scores(e, c.roll(1, dims=0))
        effect = (s.softmax(dim=1) - other.softmax(dim=1)).abs().sum(dim=1).mean().item() / 2
        return {"context_effect": effect} | self.diagnose_scores(s)

    def diagnose_scores(self, s: torch.Tensor) -> dict[str, float]:
        """What else a combiner logs of its scores (B, N)."""
        return {}

    def forward(self, embeddings: dict[str, torch.Tensor], context: torch.Tensor) -> torch.Tensor:
        """{name: (B, *shape)} and (B, *context_shape) -> state h (B, features_dim)."""
        return self.state_and_weights(embeddings, context)[0]

    def add_model(self, name: str, shape: tuple[int, ...]) -> None:
        """Give a new model an adapter of its own; its column comes last. Raises ValueError if the name is taken or the
        shape is neither a vector's nor a map's."""
        if name in self.adapters:
            raise ValueError(f"{name} is one of the models already.")
        device = next(self.parameters()).device
        self.adapters[name] = Adapter(name, shape, self.out_dim).to(device, memory_format=torch.channels_last)

    def remove_model(self, name: str) -> None:
        """Take a model and its adapter away. Raises ValueError if it is not there or is the last one."""
        if name not in self.adapters:
            raise ValueError(f"{name} is not one of the models ({', '.join(self.adapters)}).")
        if len(self.adapters) == 1:
            raise ValueError(f"{name} is the last model; one must remain.")
        del self.adapters[name]
