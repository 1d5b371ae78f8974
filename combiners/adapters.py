"""Adapters: trained layers that bring each frozen model's embedding, whatever its shape, to one width.

Sizes: the published code of Piccoli et al. 2025 (arXiv 2507.07197), whose four models' shapes the rule below
reproduces.
"""

import math

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

GRID = 16  # height and width of every adapted map
PUBLISHED_CHANNELS = {"keypoint_features": 32}  # channels of an adapted map; 16 for every other model


def layer_init(layer: nn.Module, gain: float = np.sqrt(2)) -> nn.Module:
    """Orthogonal weights and zero bias, in place (Saxe et al. 2014)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class SpatialAdapter(nn.Module):
    """Embedding (B, *shape) -> vector as it is, or map (B, C, 16, 16); `output_shape` says which.

    A vector passes unchanged. A map gets a 1x1 convolution to C channels (16; 32 for `keypoint_features`), then the
    convolution that lands on 16x16 (for 84x84: 5x5 with stride 5; for 21x21: 6x6; none if it is 16x16 already), then
    ReLU. A map with a side below 16 gets the 1x1 convolution, ReLU, and adaptive average pooling to 16x16.

    Raises:
        ValueError: the shape is neither a vector (n,) nor a map (C, H, W).
    """

    def __init__(self, name: str, shape: tuple[int, ...]):
        super().__init__()
        if len(shape) not in (1, 3) or min(shape) < 1:
            raise ValueError(f"{name}: an embedding must be a vector (n,) or a map (C, H, W), not {tuple(shape)}.")
        self.is_map = len(shape) == 3
        if not self.is_map:
            self.output_shape = tuple(shape)
            return
        in_channels, height, width = shape
        channels = PUBLISHED_CHANNELS.get(name, 16)
        self.output_shape = (channels, GRID, GRID)
        self.pointwise = layer_init(nn.Conv2d(in_channels, channels, 1))
        (kernel_h, stride_h), (kernel_w, stride_w) = landing(height), landing(width)
        self.pools = min(height, width) < GRID
        self.spatial = None
        if not self.pools and (height, width) != (GRID, GRID):
            self.spatial = layer_init(nn.Conv2d(channels, channels, (kernel_h, kernel_w), (stride_h, stride_w)))
            # With nothing between them the two convolutions are one linear map. One convolution with composed weights
            # does less work where the map is large or has few channels (the masks, the keypoint maps), more where it
            # has many (keypoint features).
            composed = in_channels * channels * kernel_h * kernel_w * GRID**2
            separate = in_channels * channels * height * width + channels * channels * kernel_h * kernel_w * GRID**2
            self.compose = composed < separate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.is_map:
            return x
        if self.spatial is not None and self.compose:  # fast: one convolution with composed weights in place of two
            first, second = self.pointwise, self.spatial
            weight = torch.einsum("omhw,mi->oihw", second.weight, first.weight[:, :, 0, 0])
            bias = second.bias + torch.einsum("omhw,m->o", second.weight, first.bias)
            x = F.conv2d(x, weight.contiguous(memory_format=torch.channels_last), bias, second.stride)
        else:
            x = self.pointwise(x)
            x = x if self.spatial is None else self.spatial(x)
        x = x.contiguous().relu()  # fast: behind the change of layout that flattening needs, not before it
        return F.adaptive_avg_pool2d(x, GRID) if self.pools else x


def landing(size: int) -> tuple[int, int]:
    """Kernel and stride of the convolution that brings a side of `size` to 16: no overlap if that lands there, else as
    wide as needed."""
    stride = max(1, size // GRID)
    return (stride if (size - stride) // stride + 1 == GRID else size - (GRID - 1) * stride), stride


class Adapter(nn.Module):
    """Embedding (B, *shape) -> vector (B, features_dim): spatial adapter, flattened, Linear, ReLU."""

    def __init__(self, name: str, shape: tuple[int, ...], features_dim: int):
        super().__init__()
        self.spatial = SpatialAdapter(name, shape)
        self.linear = layer_init(nn.Linear(math.prod(self.spatial.output_shape), features_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.spatial(x).flatten(1)).relu()


class ContextAdapter(nn.Module):
    """Context (B, *shape) -> vector (B, features_dim): flattened, Linear, ReLU.

    The autoencoder's map (64, 16, 16) is flattened as it is, as published; so is every map of 16x16. Other maps go
    through a spatial adapter first.
    """

    def __init__(self, shape: tuple[int, ...], features_dim: int):
        super().__init__()
        self.spatial = nn.Identity() if tuple(shape[1:]) == (GRID, GRID) else SpatialAdapter("context", shape)
        length = math.prod(getattr(self.spatial, "output_shape", shape))
        self.linear = layer_init(nn.Linear(length, features_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.spatial(x).flatten(1)).relu()
