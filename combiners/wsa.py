"""Weight Sharing Attention (Piccoli et al. 2025, arXiv 2507.07197, section 4).

One small network, shared by all models, scores each adapted embedding in the light of the context; the state is their weighted sum:

    s_i = f([c ; e_i]),   w = softmax(s),   h = sum_i w_i e_i

Because f is shared its size does not depend on the number of models, so that a model can come or go while the agent lives.
"""

import torch
import torch.nn as nn

from combiners.adapters import Adapter, ContextAdapter, layer_init


class WeightSharingAttention(nn.Module):
    """Combine N embeddings into one state of `features_dim` numbers.

    Args:
        embedding_shapes: {model's name: shape of its embedding without the batch}; its order is that of the weights' columns.
        context_shape: shape of the context without the batch.
        features_dim: the paper's d, the width of adapted embeddings, context and state.

    Raises:
        ValueError: no model, or an embedding that is neither a vector nor a map.
    """

    def __init__(self, embedding_shapes: dict[str, tuple[int, ...]], context_shape: tuple[int, ...], features_dim: int = 256):
        super().__init__()
        if not embedding_shapes:
            raise ValueError("there must be at least one model to combine.")
        self.out_dim = features_dim
        self.adapters = nn.ModuleDict({name: Adapter(name, shape, features_dim) for name, shape in embedding_shapes.items()})
        self.context_adapter = ContextAdapter(context_shape, features_dim)
        self.scorer = layer_init(nn.Linear(2 * features_dim, 1))  # the Shared Weight Network f

    def weigh(self, embeddings: dict[str, torch.Tensor], context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Adapted embeddings e (B, N, d) and their weights w (B, N)."""
        e = torch.stack([adapter(embeddings[name]) for name, adapter in self.adapters.items()], dim=1)
        c = self.context_adapter(context)[:, None].expand_as(e)
        scores = self.scorer(torch.cat([c, e], dim=2)).squeeze(2).relu()  # (B, N), all models at once; this ReLU is the published one
        return e, scores.softmax(dim=1)

    def forward(self, embeddings: dict[str, torch.Tensor], context: torch.Tensor) -> torch.Tensor:
        """{name: (B, *shape)} and (B, *context_shape) -> state h (B, features_dim)."""
        e, w = self.weigh(embeddings, context)
        return (w[:, :, None] * e).sum(dim=1)

    def attention(self, embeddings: dict[str, torch.Tensor], context: torch.Tensor) -> torch.Tensor:
        """The weights that `forward` uses: (B, N), each row non-negative with sum one, columns in the order of `embedding_shapes`."""
        return self.weigh(embeddings, context)[1]

    def add_model(self, name: str, shape: tuple[int, ...]) -> None:
        """Give a new model an adapter of its own; its column comes last. Raises ValueError if the name is taken or the shape is none."""
        if name in self.adapters:
            raise ValueError(f"{name} is one of the models already.")
        self.adapters[name] = Adapter(name, shape, self.out_dim).to(self.scorer.weight.device)

    def remove_model(self, name: str) -> None:
        """Take a model and its adapter away. Raises ValueError if it is not there or is the last one."""
        if name not in self.adapters:
            raise ValueError(f"{name} is not one of the models ({', '.join(self.adapters)}).")
        if len(self.adapters) == 1:
            raise ValueError(f"{name} is the last model; one must remain.")
        del self.adapters[name]
