"""The Transporter's feature encoder (Kulkarni et al. 2019, arXiv 1906.11883): what is where, as a map of features.

It is trained together with `keypoint_maps`, in `transporter.py`.
"""

import torch
import torch.nn as nn


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Convolution with its input's size over `stride`, batch normalisation, ReLU: the block all of the Transporter is
    made of."""
    # the norm has the bias
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


def transporter_trunk() -> nn.Sequential:
    """One frame in [0, 1] (B, 1, 84, 84) -> (B, 128, 21, 21); the same six blocks for features and for keypoints."""
    return nn.Sequential(
        *conv_bn_relu(1, 32, 7),
        *conv_bn_relu(32, 32, 3),
        *conv_bn_relu(32, 64, 3, stride=2),  # -> 42 x 42
        *conv_bn_relu(64, 64, 3),
        *conv_bn_relu(64, 128, 3, stride=2),  # -> 21 x 21
        *conv_bn_relu(128, 128, 3),
    )


class KeypointFeatures(nn.Module):
    """Frame stack uint8 (B, 4, 84, 84) -> map (B, 128, 21, 21). Sees the newest frame only."""

    input = "newest frame"
    output_shape = (128, 21, 21)

    def __init__(self):
        super().__init__()
        self.network = transporter_trunk()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x[:, -1:].float() / 255.0)
