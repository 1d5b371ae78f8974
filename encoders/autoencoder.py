"""The State Encoder: a convolutional autoencoder of the newest frame, in the Nature CNN's style.

Piccoli et al. 2025 (arXiv 2507.07197) use its encoder as the context of Weight Sharing Attention. Sizes: 1-32 kernel 8
stride 4, 32-64 kernel 3, 64-64 kernel 3; the decoder mirrors them.

Deviation of the "cpu" budget: the decoder begins with the training frames' mean grey. Where frames are nearly white, as
PushT's are, the first steps otherwise drive each pixel to white until the sigmoid has no gradient left, and there the
loss stays.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F


def conv_encoder(in_channels: int) -> nn.Sequential:
    """(B, in_channels, 84, 84) in [0, 1] -> (B, 64, 16, 16); `image_completion` and `frame_prediction` have it, too."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 32, 8, stride=4),  # -> (B, 32, 20, 20)
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),  # -> (B, 64, 18, 18)
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),  # -> (B, 64, 16, 16)
        nn.ReLU(),
    )


def conv_decoder() -> nn.Sequential:
    """The encoder's mirror image: (B, 64, 16, 16) -> one frame in [0, 1], (B, 1, 84, 84)."""
    return nn.Sequential(
        nn.ConvTranspose2d(64, 64, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 8, stride=4),
        nn.Sigmoid(),
    )


def start_at_mean(decoder: nn.Sequential, obs: torch.Tensor) -> None:
    """Begin with the mean grey of the newest frames of obs uint8 (B, 4, 84, 84)."""
    mean = (obs[:, -1].float() / 255.0).mean().clamp(0.01, 0.99)
    nn.init.constant_(decoder[-2].bias, torch.logit(mean).item())


class Autoencoder(nn.Module):
    """Frame stack uint8 (B, 4, 84, 84) -> map (B, 64, 16, 16), all numbers non-negative. Sees the newest frame only."""

    input = "newest frame"
    output_shape = (64, 16, 16)

    def __init__(self):
        super().__init__()
        self.network = conv_encoder(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x[:, -1:].float() / 255.0)


class AutoencoderPretraining(nn.Module):
    """Rebuild the newest frame: mean squared error on pixels in [0, 1]. `for_cpu` is the "cpu" budget's start."""

    offsets = (0, 0)  # one observation a sample
    steps = {"cpu": 100_000, "paper": 100_000}  # in Breakout it shows paddle, ball and score from about 10,000 on
    batch_size = {"cpu": 32, "paper": 32}
    adam = {"lr": 1e-3}
    max_grad_norm = None
    patience = None

    def __init__(self):
        super().__init__()
        self.encoder = Autoencoder()
        self.decoder = conv_decoder()

    def stored_models(self) -> dict[str, nn.Module]:
        return {"autoencoder": self.encoder}

    def learning_rate_factor(self, progress: float) -> float:
        return 1.0

    def for_cpu(self, obs: torch.Tensor) -> None:
        start_at_mean(self.decoder, obs)

    def loss(self, obs: torch.Tensor, later_obs: torch.Tensor, progress: float) -> dict[str, torch.Tensor]:
        return {"loss": F.mse_loss(self.decoder(self.encoder(obs)), obs[:, -1:].float() / 255.0)}

    def picture(self, obs: torch.Tensor, later_obs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Grey images (B, 1, 84, 84) in [0, 1], by what they show."""
        return {"frame": obs[:, -1:].float() / 255.0, "reconstruction": self.decoder(self.encoder(obs))}
