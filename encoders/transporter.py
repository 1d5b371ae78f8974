"""The Transporter's pre-training (Kulkarni et al. 2019, arXiv 1906.11883, section 3), which makes two models at once.

Two frames of one game, a source and a target. At the target's keypoints the source's features are replaced by the
target's, and at the source's keypoints they are wiped out; from the result a decoder must draw the target. That only
works if the keypoints sit on what moved.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from encoders.keypoint_features import KeypointFeatures, conv_bn_relu
from encoders.keypoint_maps import KeypointMaps, gaussian_maps, keypoints


def transport(
    source_features: torch.Tensor, target_features: torch.Tensor, source_maps: torch.Tensor, target_maps: torch.Tensor
) -> torch.Tensor:
    """Put the target's features at its keypoints into the source's features (B, C, H, W), keypoint by keypoint; maps
    (B, K, H, W).

    F := (1 - H_s)(1 - H_t) F + H_t F_t, from F = F_s (section 3, eq. 1, for one keypoint after the other).
    """
    features = source_features
    for k in range(source_maps.shape[1]):
        h_s, h_t = source_maps[:, k : k + 1], target_maps[:, k : k + 1]
        features = (1 - h_s) * (1 - h_t) * features + h_t * target_features
    return features


class TransporterPretraining(nn.Module):
    """Draw the target from transported features: mean squared error on pixels in [0, 1]."""

    offsets = (0, 19)  # source and target are 0 to 19 steps apart
    steps = {"cpu": 2_500, "paper": 1_000_000}
    batch_size = {"cpu": 8, "paper": 64}
    adam = {"lr": 1e-3}
    max_grad_norm = None
    patience = None

    def __init__(self):
        super().__init__()
        self.features = KeypointFeatures()
        self.keypoints = KeypointMaps()
        upsample = nn.Upsample(scale_factor=2, mode="bilinear")
        self.refine = nn.Sequential(
            *conv_bn_relu(128, 128, 3),
            *conv_bn_relu(128, 64, 3),
            upsample,  # -> 42 x 42
            *conv_bn_relu(64, 64, 3),
            *conv_bn_relu(64, 32, 3),
            upsample,  # -> 84 x 84
            *conv_bn_relu(32, 32, 3),
            nn.Conv2d(32, 1, 7, padding=3),
        )

    def stored_models(self) -> dict[str, nn.Module]:
        return {"keypoint_features": self.features, "keypoint_maps": self.keypoints}

    def learning_rate_factor(self, progress: float) -> float:
        # Published: times 0.95 every 100,000 of 1,000,000 steps. Ours besides: down to 0 over the last fifth, so that
        # what is stored does not depend on the last steps' noise.
        return 0.95 ** int(progress * 10) * min(1.0, 5 * (1.0 - progress))

    def reconstruct(self, source: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two observations uint8 (B, 4, 84, 84) -> the target's newest frame drawn (B, 1, 84, 84), its keypoints (B, K,
        2)."""
        with torch.no_grad():  # the source only provides; it is the target's side that learns
            source_features = self.features(source)
            source_maps = gaussian_maps(keypoints(self.keypoints(source)), *source_features.shape[2:])
        target_features = self.features(target)
        target_points = keypoints(self.keypoints(target))
        target_maps = gaussian_maps(target_points, *target_features.shape[2:])
        return self.refine(transport(source_features, target_features, source_maps, target_maps)), target_points

    def loss(self, obs: torch.Tensor, later_obs: torch.Tensor, progress: float) -> dict[str, torch.Tensor]:
        return {"loss": F.mse_loss(self.reconstruct(obs, later_obs)[0], later_obs[:, -1:].float() / 255.0)}

    def picture(self, obs: torch.Tensor, later_obs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Grey images (B, 1, 84, 84) in [0, 1], and the target's keypoints (B, K, 2) in [-1, 1] to be drawn on all of
        them."""
        drawn, points = self.reconstruct(obs, later_obs)
        source, target = obs[:, -1:].float() / 255.0, later_obs[:, -1:].float() / 255.0
        return {
            "source": source,
            "target": target,
            "reconstruction of the target": drawn.clamp(0, 1),
            "keypoints": points,
        }
