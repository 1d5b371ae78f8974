"""Image completion: the State Encoder's networks, trained to fill in a part of the frame that was hidden.

One of the models with which Piccoli et al. 2025 (arXiv 2507.07197) let the set grow.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from encoders.autoencoder import conv_decoder, conv_encoder, start_at_mean

HIDDEN = 20  # side of the black square


class ImageCompletion(nn.Module):
    """Frame stack uint8 (B, 4, 84, 84) -> map (B, 64, 16, 16), all numbers non-negative. Sees the newest frame only,
    all of it."""

    input = "newest frame"
    output_shape = (64, 16, 16)

    def __init__(self):
        super().__init__()
        self.network = conv_encoder(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x[:, -1:].float() / 255.0)


class ImageCompletionPretraining(nn.Module):
    """Rebuild the newest frame of which a 20x20 square is black: mean squared error on all pixels in [0, 1].

    `for_cpu`: see autoencoder.py.
    """

    offsets = (0, 0)
    steps = {"cpu": 5_000, "paper": 100_000}
    batch_size = {"cpu": 32, "paper": 32}
    adam = {"lr": 1e-3}
    max_grad_norm = None
    patience = None

    def __init__(self):
        super().__init__()
        self.encoder = ImageCompletion()
        self.decoder = conv_decoder()

    def stored_models(self) -> dict[str, nn.Module]:
        return {"image_completion": self.encoder}

    def learning_rate_factor(self, progress: float) -> float:
        return 1.0

    def for_cpu(self, obs: torch.Tensor) -> None:
        start_at_mean(self.decoder, obs)

    def loss(self, obs: torch.Tensor, later_obs: torch.Tensor, progress: float) -> dict[str, torch.Tensor]:
        return {"loss": F.mse_loss(self.decoder(self.encoder(hide_square(obs))), obs[:, -1:].float() / 255.0)}

    def picture(self, obs: torch.Tensor, later_obs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Grey images (B, 1, 84, 84) in [0, 1], by what they show."""
        hidden = hide_square(obs)
        return {
            "frame": obs[:, -1:].float() / 255.0,
            "with a part hidden": hidden[:, -1:].float() / 255.0,
            "completed": self.decoder(self.encoder(hidden)),
        }


def hide_square(obs: torch.Tensor) -> torch.Tensor:
    """Black out a square of 20x20 at a random place of each sample, in all its frames; uint8 (B, 4, 84, 84), a new
    tensor."""
    top, left = torch.randint(84 - HIDDEN + 1, (2, len(obs), 1), device=obs.device)
    place = torch.arange(84, device=obs.device)
    rows, columns = (place >= top) & (place < top + HIDDEN), (place >= left) & (place < left + HIDDEN)  # (B, 84)
    return obs.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)
