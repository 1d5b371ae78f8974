"""CNN in Piccoli et al. 2025: all embeddings as channels of one 16x16 grid, through 1 to 3 convolutions."""

from dataclasses import dataclass

import torch
import torch.nn as nn

from combiners.adapters import GRID, layer_init
from combiners.concatenation import Concatenation


@dataclass
class Options:
    """--combiner cnn"""

    cnn_layers: int | None = None
    """cnn: convolutions, 1 to 3 (none given: 1)"""


class CNN(Concatenation):
    """Stack everything on channels (66 for the paper's four models), convolve, flatten: out_dim 8,192. The context and
    features_dim are not used.

    A vector whose length divides by 256 is laid out on the grid as it is (512 numbers: 2 channels); any other first
    goes through a trained Linear to 256 (1 channel).

    Args:
        cnn_layers: 1, 2 or 3 convolutions 3x3 to 32 channels, each with ReLU.
    """

    def __init__(
        self,
        embedding_shapes: dict[str, tuple[int, ...]],
        context_shape: tuple[int, ...] | None,
        features_dim: int = 256,
        cnn_layers: int = 1,
    ):
        super().__init__(embedding_shapes)
        if cnn_layers not in (1, 2, 3):
            raise ValueError(f"cnn_layers must be 1, 2 or 3, not {cnn_layers}.")
        self.to_grid = nn.ModuleDict()
        channels = 0
        for name, adapter in self.spatial.items():
            shape = adapter.output_shape
            if len(shape) == 1 and shape[0] % GRID**2:
                self.to_grid[name] = layer_init(nn.Linear(shape[0], GRID**2))
                shape = (GRID**2,)
            channels += shape[0] if len(shape) == 3 else shape[0] // GRID**2
        layers: list[nn.Module] = []
        for _ in range(cnn_layers):
            layers += [layer_init(nn.Conv2d(channels, 32, 3, padding=1)), nn.ReLU()]
            channels = 32
        self.convolutions = nn.Sequential(*layers)
        self.out_dim = 32 * GRID**2

    def forward(self, embeddings: dict[str, torch.Tensor], context: torch.Tensor | None) -> torch.Tensor:
        """{name: (B, *shape)} -> (B, 8192)."""
        grids = []
        for name, z in self.adapt(embeddings).items():
            z = self.to_grid[name](z) if name in self.to_grid else z
            grids.append(z if z.dim() == 4 else z.unflatten(1, (-1, GRID, GRID)))
        return self.convolutions(torch.cat(grids, dim=1)).flatten(1)
