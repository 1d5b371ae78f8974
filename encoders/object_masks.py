"""Motion-based segmentation from MOREL (Goel et al. 2018, arXiv 1806.01838): things are what moves together.

From two consecutive frames the network predicts masks, one translation for each mask, and one for the camera. Moved
along these, the newer frame must become the older one. The masks are the embedding.

As published, 5,000 steps teach it nothing: frames of one game are nearly equal, so that features hardly tell them
apart, and a ball that moves further than its own size gives no gradient. Deviations of the "cpu" budget, which make
masks mark what moves within 2,000 steps:
- at the start the first layer sees the difference of the two frames, each layer of the trunk has outputs of mean 0 and
  variance 1 over 256 training observations, masks are small (sigmoid of -2) and the camera rests;
- the error, in training only, is squared, on the frames as they are and under two Gaussians, so that something far
  away pulls, too; each is a share of the error of frames left as they are, so that a ball alone counts as much as all;
- the learning rate is 5e-4.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from encoders.start import standardise_outputs

NUM_OBJECTS = 20
SIZE = 84


class ObjectMasks(nn.Module):
    """Frame stack uint8 (B, 4, 84, 84) -> masks in (0, 1), (B, 20, 84, 84). Sees the two newest frames."""

    input = "two newest frames"
    output_shape = (NUM_OBJECTS, SIZE, SIZE)

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(2, 32, 8, stride=4),  # (B, 2, 84, 84) -> (B, 32, 20, 20)
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),  # -> (B, 64, 9, 9)
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),  # -> (B, 64, 7, 7)
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 512),
            nn.ReLU(),
        )
        self.to_map = nn.Linear(512, 24 * 21 * 21)
        self.conv_42 = nn.Conv2d(24, 24, 3, padding=1)
        self.conv_84 = nn.Conv2d(24, 24, 3, padding=1)
        self.to_masks = nn.Conv2d(24, NUM_OBJECTS, 1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 4, 84, 84) -> (B, 512), which masks and translations share."""
        return self.trunk(x[:, -2:].float() / 255.0)

    def masks(self, features: torch.Tensor) -> torch.Tensor:
        """(B, 512) -> (B, 20, 84, 84)."""
        x = self.to_map(features).unflatten(1, (24, 21, 21))
        x = x.contiguous(memory_format=torch.channels_last)  # fast: as the convolutions want it
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
        x = x + F.relu(self.conv_42(x))
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
        x = x + F.relu(self.conv_84(x))
        return self.to_masks(x).sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.masks(self.features(x))


class ObjectMasksPretraining(nn.Module):
    """Rebuild the older frame by moving the newer one: structural dissimilarity, and moved area must be worth its
    price.

    `for_cpu` switches to the "cpu" budget's start and loss.
    """

    offsets = (0, 0)  # one observation a sample: the two frames are in it
    steps = {"cpu": 60_000, "paper": 500_000}
    batch_size = {"cpu": 16, "paper": 32}
    adam = {"lr": 1e-4}
    max_grad_norm = 5.0
    patience = None
    cpu = False

    def __init__(self):
        super().__init__()
        self.encoder = ObjectMasks()
        self.translations = nn.Linear(512, NUM_OBJECTS * 2)
        self.camera = nn.Linear(512, 2)

    def stored_models(self) -> dict[str, nn.Module]:
        return {"object_masks": self.encoder}

    def learning_rate_factor(self, progress: float) -> float:
        return 1.0 - progress

    @torch.no_grad()
    def for_cpu(self, obs: torch.Tensor) -> None:
        self.cpu, self.adam = True, {"lr": 5e-4}
        trunk = self.encoder.trunk
        trunk[0].weight[:, 0] = -trunk[0].weight[:, 1]
        standardise_outputs(trunk, obs[:, -2:].float() / 255.0)
        nn.init.constant_(self.encoder.to_masks.bias, -2.0)
        self.translations.weight *= 0.3  # features are larger now; not 0, or the masks would have no gradient
        for zero in (self.translations.bias, self.camera.weight, self.camera.bias):
            nn.init.zeros_(zero)

    def displacement(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """uint8 (B, 4, 84, 84) -> displacement in pixels (B, 2, 84, 84), masks (B, 20, 84, 84), translations."""
        features = self.encoder.features(obs)
        masks = self.encoder.masks(features)
        translations = self.translations(features).unflatten(1, (NUM_OBJECTS, 2))
        motion = torch.einsum("bkhw,bkc->bchw", masks, translations)  # the sum over objects of mask times translation
        return 0.01 * SIZE * (motion + self.camera(features)[:, :, None, None]).float(), masks, translations

    def rebuild(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """uint8 (B, 4, 84, 84) -> older frame rebuilt (B, 1, 84, 84), masks (B, 20, 84, 84), translations (B, 20,
        2)."""
        displacement, masks, translations = self.displacement(obs)
        return displace(obs[:, -1:].float() / 255.0, displacement), masks, translations

    def loss(self, obs: torch.Tensor, later_obs: torch.Tensor, progress: float) -> dict[str, torch.Tensor]:
        older, newer = obs[:, -2:-1].float() / 255.0, obs[:, -1:].float() / 255.0
        displacement, masks, translations = self.displacement(obs)
        with torch.autocast(obs.device.type, enabled=False):  # variances are small differences: not in bfloat16
            if self.cpu and self.training:
                name, error = "unexplained", unexplained(newer, older, displacement)
            else:  # held-out losses are the published one, whatever the budget
                name, error = "dissimilarity", (1 - ssim(displace(newer, displacement), older)) / 2
        # Mean of |mask times translation| over objects, directions and pixels; masks are positive, so it factors. Its
        # weight grows from 0 to 1 over the run (published: by 1e-5 a step).
        flow_regularization = (masks.float().mean(dim=(2, 3))[:, :, None] * translations.float().abs()).mean()
        return {"loss": error + progress * flow_regularization, name: error, "moved_area": flow_regularization}

    def picture(self, obs: torch.Tensor, later_obs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Grey images (B, 1, 84, 84) in [0, 1], by what they show."""
        rebuilt, masks, translations = self.rebuild(obs)
        speed = translations.norm(dim=2)[:, :, None, None]  # (B, 20, 1, 1)
        moved = (masks * speed).sum(dim=1, keepdim=True)
        largest = (masks * speed).mean(dim=(2, 3)).argmax(dim=1)  # the object that moves most
        return {
            "older frame": obs[:, -2:-1].float() / 255.0,
            "newer frame": obs[:, -1:].float() / 255.0,
            "older frame rebuilt": rebuilt,
            "where things move": moved / moved.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-8),
            "mask that moves most": masks[torch.arange(len(masks)), largest][:, None],
        }


def displace(frame: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """Sample `frame` (B, 1, H, W) at each pixel's place plus `displacement` (B, 2, H, W; x and y in pixels), bilinear,
    border clamped."""
    height, width = frame.shape[2:]
    x = torch.arange(width, device=frame.device) + displacement[:, 0]  # (B, H, W)
    y = torch.arange(height, device=frame.device)[:, None] + displacement[:, 1]
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=3)  # grid_sample's -1 to 1
    return F.grid_sample(frame, grid, mode="bilinear", padding_mode="border", align_corners=True)


def unexplained(newer: torch.Tensor, older: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """Squared error of the older frame rebuilt, as a share of the newer frame's as it is: mean over samples and blurs.

    0: all motion is explained; 1: as good as no displacement. Frames that hardly differ count by their error itself.
    """
    still = (newer - older).square().sum(dim=(1, 2, 3)) < 0.02
    shares = []
    for sigma in (0.0, 1.5, 3.0):  # pixels; a blurred ball has a slope that reaches as far as the ball moves
        blurred_newer, blurred_older = blur(newer, sigma), blur(older, sigma)
        error = (displace(blurred_newer, displacement) - blurred_older).square().sum(dim=(1, 2, 3))
        unmoved_error = (blurred_newer - blurred_older).square().sum(dim=(1, 2, 3))
        shares.append(torch.where(still, error, error / unmoved_error.clamp(min=1e-6)).mean())
    return torch.stack(shares).mean()


def blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Images (B, 1, H, W) under a Gaussian of `sigma` pixels, their borders repeated."""
    if not sigma:
        return image
    reach = math.ceil(2.5 * sigma)
    gauss = torch.exp(-torch.arange(-reach, reach + 1, device=image.device).square() / (2 * sigma**2))
    gauss = gauss / gauss.sum()
    image = F.pad(image, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(image, gauss.view(1, 1, 1, -1)), gauss.view(1, 1, -1, 1))


def ssim(a: torch.Tensor, b: torch.Tensor, window: int = 11, sigma: float = 1.5) -> torch.Tensor:
    """Mean structural similarity of images (B, 1, H, W) in [0, 1] (Wang et al. 2004, eq. 13), under a Gaussian window;
    1 if equal."""
    distance = torch.arange(window, device=a.device) - window // 2
    gauss = torch.exp(-distance.square() / (2 * sigma**2))
    gauss = gauss / gauss.sum()

    def blur(image: torch.Tensor) -> torch.Tensor:  # separable, no padding: only whole windows count
        return F.conv2d(F.conv2d(image, gauss.view(1, 1, 1, -1)), gauss.view(1, 1, -1, 1))

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a.square(), blur(b * b) - mean_b.square()
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (similarity / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))).mean()
