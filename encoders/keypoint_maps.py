"""The Transporter's keypoint network (Kulkarni et al. 2019, arXiv 1906.11883): where the things are that move.

Each of the K = 4 maps is high where its keypoint is. It is trained together with `keypoint_features`, in
`transporter.py`.
"""

import torch
import torch.nn as nn

from encoders.keypoint_features import transporter_trunk

NUM_KEYPOINTS = 4
STANDARD_DEVIATION = 0.1  # of a keypoint's Gaussian, where the frame reaches from -1 to 1


class KeypointMaps(nn.Module):
    """Frame stack uint8 (B, 4, 84, 84) -> maps before their softmax (B, 4, 21, 21). Sees the newest frame only."""

    input = "newest frame"
    output_shape = (NUM_KEYPOINTS, 21, 21)

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(*transporter_trunk(), nn.Conv2d(128, NUM_KEYPOINTS, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x[:, -1:].float() / 255.0)


def keypoints(maps: torch.Tensor) -> torch.Tensor:
    """Soft-argmax: maps (B, K, H, W) -> coordinates (B, K, 2) in [-1, 1], x to the right and y downward.

    The mean place under the softmax over the whole map (Jakab et al. 2018, arXiv 1806.07823, eq. 1).
    """
    height, width = maps.shape[2:]
    where = maps.float().flatten(2).softmax(dim=2).unflatten(2, (height, width))
    x = (where.sum(dim=2) * torch.linspace(-1, 1, width, device=maps.device)).sum(dim=2)
    y = (where.sum(dim=3) * torch.linspace(-1, 1, height, device=maps.device)).sum(dim=2)
    return torch.stack([x, y], dim=2)


def to_pixels(points: torch.Tensor, size: int = 84) -> torch.Tensor:
    """Coordinates in [-1, 1] -> the same in pixels of a square frame, 0 to size - 1."""
    return (points + 1) / 2 * (size - 1)


def gaussian_maps(
    points: torch.Tensor, height: int, width: int, std: float | torch.Tensor = STANDARD_DEVIATION
) -> torch.Tensor:
    """Coordinates (B, K, 2) -> maps (B, K, height, width), exp(-d^2 / std^2) with d the distance to the keypoint: 1 at
    the keypoint."""
    x = torch.linspace(-1, 1, width, device=points.device)
    y = torch.linspace(-1, 1, height, device=points.device)
    squared_x = (x - points[:, :, 0:1]).square()  # (B, K, width)
    squared_y = (y - points[:, :, 1:2]).square()  # (B, K, height)
    return torch.exp(-(squared_y[:, :, :, None] + squared_x[:, :, None, :]) / std**2)
