"""Masked autoencoder (He et al. 2022, arXiv 2111.06377): a small vision transformer that rebuilds the screen from a
quarter of its patches.

The screen is cut into 7x7 patches of 12x12 pixels (all four frames of the stack in one patch). Three quarters of them
are taken away before the encoder; a light decoder, given the rest and the places of what is missing, must draw the
missing ones.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

PATCH = 12
GRID = 84 // PATCH
NUM_PATCHES = GRID**2
PIXELS = 4 * PATCH**2  # of one patch
WIDTH, DECODER_WIDTH = 192, 96
MASKED_SHARE = 0.75  # He et al. 2022, section 4.1


def transformer(width: int, depth: int) -> nn.TransformerEncoder:
    """Torch's own transformer blocks, normalised first (as in ViT), without dropout."""
    layer = nn.TransformerEncoderLayer(
        width, nhead=4, dim_feedforward=4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)


def patches(x: torch.Tensor) -> torch.Tensor:
    """uint8 (B, 4, 84, 84) -> patches in [0, 1], (B, 49, 576), row by row; within a patch frame by frame."""
    x = x.float() / 255.0
    return F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)


class MaskedAutoencoder(nn.Module):
    """Frame stack uint8 (B, 4, 84, 84) -> vector (B, 192), the mean over the patches' features. Sees the whole stack,
    nothing masked."""

    input = "4 frames"
    output_shape = (WIDTH,)

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(PIXELS, WIDTH)
        self.position_embedding = nn.Parameter(0.02 * torch.randn(1, NUM_PATCHES, WIDTH))
        self.blocks = transformer(WIDTH, depth=4)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 4, 84, 84) -> patches embedded, with their places (B, 49, 192)."""
        return self.embed(patches(x)) + self.position_embedding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.tokens(x)).mean(dim=1)


class MaskedAutoencoderPretraining(nn.Module):
    """Draw the patches that were taken away: mean squared error on their pixels in [0, 1] (He et al. 2022, section
    3)."""

    offsets = (0, 0)
    steps = {"cpu": 3_000, "paper": 100_000}
    batch_size = {"cpu": 32, "paper": 256}
    adam = {"lr": 5e-4, "betas": (0.9, 0.95)}
    max_grad_norm = None
    patience = None

    def __init__(self):
        super().__init__()
        self.encoder = MaskedAutoencoder()
        self.to_decoder = nn.Linear(WIDTH, DECODER_WIDTH)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, DECODER_WIDTH))
        self.position_embedding = nn.Parameter(0.02 * torch.randn(1, NUM_PATCHES, DECODER_WIDTH))
        self.decoder = nn.Sequential(transformer(DECODER_WIDTH, depth=2), nn.Linear(DECODER_WIDTH, PIXELS))

    def stored_models(self) -> dict[str, nn.Module]:
        return {"masked_autoencoder": self.encoder}

    def learning_rate_factor(self, progress: float) -> float:
        # ours: a short warm-up, then linearly down to a thousandth
        return min(1.0, progress / 0.05) * (1.0 - progress) + 1e-3

    def rebuild(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (B, 4, 84, 84) -> all patches drawn (B, 49, 576), and which were masked, bool (B, 49)."""
        order = torch.rand(len(obs), NUM_PATCHES, device=obs.device).argsort(dim=1)
        seen = order[:, : NUM_PATCHES - int(MASKED_SHARE * NUM_PATCHES)]  # (B, 13): the encoder works on these alone
        index = seen[:, :, None].expand(-1, -1, WIDTH)
        features = self.to_decoder(self.encoder.blocks(self.encoder.tokens(obs).gather(1, index)))
        index = seen[:, :, None].expand(-1, -1, DECODER_WIDTH)
        everything = self.mask_token.expand(len(obs), NUM_PATCHES, -1).scatter(
            1, index, features.to(self.mask_token.dtype)
        )
        masked = torch.ones(len(obs), NUM_PATCHES, dtype=torch.bool, device=obs.device).scatter(1, seen, False)
        return self.decoder(everything + self.position_embedding), masked

    def loss(self, obs: torch.Tensor, later_obs: torch.Tensor, progress: float) -> dict[str, torch.Tensor]:
        drawn, masked = self.rebuild(obs)
        return {"loss": F.mse_loss(drawn[masked], patches(obs)[masked])}

    def picture(self, obs: torch.Tensor, later_obs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Grey images (B, 1, 84, 84) in [0, 1], by what they show: the newest frame of the stack."""
        drawn, masked = self.rebuild(obs)
        true = patches(obs)
        to_image = lambda p: F.fold(p.transpose(1, 2), 84, PATCH, stride=PATCH)[:, -1:].clamp(0, 1)  # noqa: E731
        hidden = masked[:, :, None]
        return {
            "frame": to_image(true),
            "what the encoder sees": to_image(true.masked_fill(hidden, 0)),
            "completed": to_image(torch.where(hidden, drawn, true)),
        }
