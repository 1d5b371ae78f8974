"""ST-DIM (Anand et al. 2019, arXiv 1906.08226): what stays predictable from one moment to the next, found by contrast.

The features of one observation must tell the next observation of the same game apart from the others in the batch,
place by place. What changes the screen in a predictable way (balls, paddles, scores) is thereby encoded,
also where it is small.

As published, the first thousands of steps take away more than they give: units that hardly ever answer at the start
have no gradient, most places of a frame show nothing that tells observations apart, and what all frames share outweighs
a ball. Deviations of the "cpu" budget:
- before training each unit's output is scaled to mean 0 and variance 1 over 256 training observations;
- patches and vector are contrasted without their mean over the batch, the vector and each place at one scale;
- a place counts only where the newest frames of the two observations differ.
"""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from encoders.start import standardise_outputs

PATCH, PATCH_STRIDE = 36, 8  # pixels that one of the 7x7 places sees, and from one to the next


class StateRepresentation(nn.Module):
    """Frame stack uint8 (B, 4, 84, 84) -> vector (B, 512), no activation at its end."""

    input = "4 frames"
    output_shape = (512,)

    def __init__(self):
        super().__init__()
        self.local = nn.Sequential(
            nn.Conv2d(4, 32, 8, stride=4),  # (B, 4, 84, 84) -> (B, 32, 20, 20)
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),  # -> (B, 64, 9, 9)
            nn.ReLU(),
            nn.Conv2d(64, 32, 3),  # -> (B, 32, 7, 7): one patch of the screen in each of the 49 places
            nn.ReLU(),
        )
        self.head = nn.Linear(32 * 7 * 7, 512)
        for layer in (self.local[0], self.local[2], self.local[4], self.head):
            # under PyTorch's smaller default all scores are equal and learning stalls
            nn.init.orthogonal_(layer.weight, np.sqrt(2))
            nn.init.zeros_(layer.bias)

    def local_map(self, x: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 4, 84, 84) -> patches (B, 32, 7, 7)."""
        return self.local(x.float() / 255.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.local_map(x).flatten(1))


class StateRepresentationPretraining(nn.Module):
    """InfoNCE between consecutive observations: global to local plus local to local (Anand et al. 2019, section 3).

    `for_cpu` switches to the "cpu" budget's start and contrast. The bilinear forms are trained for this contrast only,
    so held-out losses use it, too.
    """

    offsets = (1, 1)  # a sample is an observation and the next one of the same game
    steps = {"cpu": 10_000, "paper": 100_000}
    batch_size = {"cpu": 64, "paper": 64}
    adam = {"lr": 3e-4, "eps": 1e-5}
    max_grad_norm = None
    patience = 15  # validations without a lower loss, then stop; the best weights are kept
    cpu = False

    def __init__(self):
        super().__init__()
        self.encoder = StateRepresentation()
        self.global_local = nn.Linear(512, 32, bias=False)  # the bilinear forms' matrices
        self.local_local = nn.Linear(32, 32, bias=False)

    def stored_models(self) -> dict[str, nn.Module]:
        return {"state_representation": self.encoder}

    def learning_rate_factor(self, progress: float) -> float:
        return 1.0

    def for_cpu(self, obs: torch.Tensor) -> None:
        self.cpu = True
        patches = standardise_outputs(self.encoder.local, obs.float() / 255.0)
        standardise_outputs(nn.Sequential(self.encoder.head), patches.flatten(1))

    def loss(self, obs: torch.Tensor, later_obs: torch.Tensor, progress: float) -> dict[str, torch.Tensor]:
        patches = self.encoder.local_map(obs)  # (B, 32, 7, 7)
        later_patches = by_place(self.encoder.local_map(later_obs))  # (49, B, 32)
        # at the start all scores are nearly equal: in bfloat16 they would be noise
        with torch.autocast(obs.device.type, enabled=False):
            patches, later_patches = patches.float(), later_patches.float()
            vector, patches = self.encoder.head(patches.flatten(1)), by_place(patches)
            moves = None
            if self.cpu:
                differ = (obs[:, -1:] != later_obs[:, -1:]).float()
                moves = by_place(F.max_pool2d(differ, PATCH, PATCH_STRIDE)).squeeze(2)  # (49, B)
                vector, patches = standardised(vector), standardised(patches)
                later_patches = standardised(later_patches) / later_patches.shape[2] ** 0.5  # of length 1 on average
            global_query = self.global_local(vector)  # (B, 32)
            global_loss = info_nce(global_query.expand(len(later_patches), -1, -1), later_patches, moves)
            local_loss = info_nce(self.local_local(patches), later_patches, moves)
        return {"loss": global_loss + local_loss, "global_local": global_loss, "local_local": local_loss}

    def picture(self, obs: torch.Tensor, later_obs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Grey images (B, 1, 84, 84) in [0, 1]: how large the patches are, place by place; there is nothing to
        reconstruct."""
        size = self.encoder.local_map(obs).norm(dim=1, keepdim=True)
        size = size / size.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-8)
        return {"frame": obs[:, -1:].float() / 255.0, "size of the local features": F.interpolate(size, size=(84, 84))}


def by_place(maps: torch.Tensor) -> torch.Tensor:
    """Maps (B, channels, H, W) -> (H * W, B, channels)."""
    return maps.flatten(2).permute(2, 0, 1)


def standardised(x: torch.Tensor) -> torch.Tensor:
    """(..., B, channels) without its mean over the batch, and of variance 1 over batch and channels together; B > 1.

    Gradients pass through mean and scale, as in batch normalisation.
    """
    x = x - x.mean(dim=-2, keepdim=True)
    return x / (x.square().mean(dim=(-2, -1), keepdim=True) + 1e-5).sqrt()


def info_nce(queries: torch.Tensor, keys: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:
    """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748, eq. 4), the mean over places; queries and keys (places, B,
    channels).

    In each place, query i belongs to key i; the batch's other keys in the same place are the negatives. `counts`
    (places, B) weighs the queries in the mean: 1 or 0.
    """
    scores = queries @ keys.transpose(1, 2)  # (places, B, B)
    labels = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[0], -1)
    losses = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.mean() if counts is None else (losses * counts.flatten()).sum() / counts.sum().clamp(min=1)
