"""Frame prediction: the State Encoder's networks, trained to draw the next frame from the last four.

One of the models with which Piccoli et al. 2025 (arXiv 2507.07197) let the set grow.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from encoders.autoencoder import conv_decoder, conv_encoder, start_at_mean


class FramePrediction(nn.Module):
    """Frame stack uint8 (B, 4, 84, 84) -> map (B, 64, 16, 16), all numbers non-negative. Sees the whole stack."""

    input = "4 frames"
    output_shape = (64, 16, 16)

    def __init__(self):
        super().__init__()
        self.network = conv_encoder(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.float() / 255.0)


class FramePredictionPretraining(nn.Module):
    """Draw the frame that comes one step later: mean squared error on pixels in [0, 1].

    `for_cpu`: see autoencoder.py.
    """

    offsets = (1, 1)
    steps = {"cpu": 5_000, "paper": 100_000}
    batch_size = {"cpu": 32, "paper": 32}
    adam = {"lr": 1e-3}
    max_grad_norm = None
    patience = None

    def __init__(self):
        super().__init__()
        self.encoder = FramePrediction()
        self.decoder = conv_decoder()

    def stored_models(self) -> dict[str, nn.Module]:
        return {"frame_prediction": self.encoder}

    def learning_rate_factor(self, progress: float) -> float:
        return 1.0

    def for_cpu(self, obs: torch.Tensor) -> None:
        start_at_mean(self.decoder, obs)

    def loss(self, obs: torch.Tensor, later_obs: torch.Tensor, progress: float) -> dict[str, torch.Tensor]:
        return {"loss": F.mse_loss(self.decoder(self.encoder(obs)), later_obs[:, -1:].float() / 255.0)}

    def picture(self, obs: torch.Tensor, later_obs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Grey images (B, 1, 84, 84) in [0, 1], by what they show."""
        return {
            "newest frame": obs[:, -1:].float() / 255.0,
            "next frame": later_obs[:, -1:].float() / 255.0,
            "next frame predicted": self.decoder(self.encoder(obs)),
        }
