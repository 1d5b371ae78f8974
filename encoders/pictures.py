"""What a model sees, drawn: pictures of a pre-training, for TensorBoard."""

import matplotlib

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn as nn  # noqa: E402

from encoders.frames import FrameData  # noqa: E402
from encoders.keypoint_maps import to_pixels  # noqa: E402


@torch.no_grad()
def draw_picture(pretraining: nn.Module, data: FrameData, seed: int, device: torch.device) -> plt.Figure:
    """What the models see in three held-out samples; the keypoints, where there are some, as numbered dots."""
    pretraining.eval()
    obs, later_obs = data.sample("validation", 3, pretraining.offsets, np.random.default_rng([seed, 3]))
    images = pretraining.picture(obs.to(device), later_obs.to(device))
    points = images.pop("keypoints", None)
    pretraining.train()
    figure, axes = plt.subplots(3, len(images), figsize=(2.4 * len(images), 7.2), squeeze=False, layout="constrained")
    for row in range(3):
        for axis, (title, image) in zip(axes[row], images.items(), strict=True):
            axis.imshow(image[row, 0].cpu().numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=9)
            if points is not None and title != "source":
                for k, (x, y) in enumerate(to_pixels(points[row].cpu()).tolist()):
                    axis.plot(x, y, "o", markersize=5, markerfacecolor="none", color=f"C{k}")
                    axis.annotate(
                        str(k + 1), (x, y), xytext=(3, 3), textcoords="offset points", color=f"C{k}", fontsize=7
                    )
    return figure
