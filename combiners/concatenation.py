"""What the combiners that concatenate have in common: spatial adapters, and a set of models that is fixed."""

from collections.abc import Callable

import torch
import torch.nn as nn

from combiners.adapters import SpatialAdapter
from combiners.combiner import Combiner


class Concatenation(Combiner):
    """Spatially adapted embeddings, sorted into vectors and 16x16 maps; a combiner decides what becomes of them.

    Args:
        embedding_shapes: {model's name: shape of its embedding without the batch}.
        make_adapter: makes a model's adapter from its name and shape.

    Raises:
        ValueError: no model, or an embedding that is neither a vector nor a map.
    """

    def __init__(
        self,
        embedding_shapes: dict[str, tuple[int, ...]],
        make_adapter: Callable[[str, tuple[int, ...]], nn.Module] = SpatialAdapter,
    ):
        super().__init__()
        if not embedding_shapes:
            raise ValueError("there must be at least one model to combine.")
        self.spatial = nn.ModuleDict({name: make_adapter(name, shape) for name, shape in embedding_shapes.items()})

    @property
    def names(self) -> tuple[str, ...]:
        """The models that are combined, in this order."""
        return tuple(self.spatial)

    def adapt(self, embeddings: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{name: (B, *shape)} -> {name: (B, n) or (B, C, 16, 16)}, in the order of `embedding_shapes`."""
        return {name: adapter(embeddings[name]) for name, adapter in self.spatial.items()}
