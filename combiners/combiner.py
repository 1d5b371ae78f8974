"""What an agent asks of every way to combine."""

import torch
import torch.nn as nn


class Combiner(nn.Module):
    """Embeddings of several models in, one state out. A combiner has `names`, the models in their order, `out_dim`, the
    width of the state, and `forward(embeddings, context)`, {name: (B, *shape)} and (B, *context_shape) -> (B, out_dim).
    """

    uses_context = False
    learns_weights = False  # so that --weights-ent-coef has something to reward
    names: tuple[str, ...]
    out_dim: int

    def state_and_weights(
        self, embeddings: dict[str, torch.Tensor], context: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The state (B, out_dim) and, of combiners that weigh, the weights that made it (B, N)."""
        return self(embeddings, context), None

    def initial_state(self, num_envs: int) -> torch.Tensor | None:
        """What a combiner that remembers takes to its first `step` in each environment; None for the others."""
        return None

    def add_model(self, name: str, shape: tuple[int, ...]) -> None:
        """Let a model come; raises ValueError where the layers are built for one set of models."""
        raise ValueError(
            f"{type(self).__name__} cannot take {name}: its layers are built for one set of models; wsa takes any."
        )

    def remove_model(self, name: str) -> None:
        """Let a model go; raises ValueError where the layers are built for one set of models."""
        raise ValueError(
            f"{type(self).__name__} cannot give up {name}: its layers are built for one set of models; wsa takes any."
        )
