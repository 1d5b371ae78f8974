"""Draw docs/models.png: what the stored models of three games make of two observations each.

    python -m docs.models

The observations are of random play with seeds of its own; no model was trained on them. Each model draws the picture
that it draws for TensorBoard while it is trained.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from encoders import PRETRAINED, load_pretraining
from encoders.frozen import typical_frames

GAMES = ("Pong", "Breakout", "MsPacman")
SHOWN = (120, 200)  # of the 256 observations; 8 games side by side: the first game, 250 steps apart
COLUMNS = (  # title, the model that draws, the picture it draws
    ("newest frame, keypoints", "keypoint_features", "target"),
    ("drawn from the keypoints", "keypoint_features", "reconstruction of the target"),
    ("where masks move things", "object_masks", "where things move"),
    ("autoencoder", "autoencoder", "reconstruction"),
)


@torch.no_grad()
def draw(output: Path, pretrained: Path = PRETRAINED, games: tuple[str, ...] = GAMES) -> None:
    """A row for each observation (frames uint8 (4, 84, 84)), two for each game."""
    size = (2.1 * len(COLUMNS), 2.2 * len(games) * len(SHOWN))
    figure, axes = plt.subplots(len(games) * len(SHOWN), len(COLUMNS), figsize=size, layout="constrained")
    for number, game in enumerate(games):
        frames = typical_frames(f"ALE/{game}-v5")
        obs, earlier = frames[list(SHOWN)], frames[[i - 8 for i in SHOWN]]  # the same games, 25 steps before
        drawn = {}
        for model in {model for _, model, _ in COLUMNS}:
            # the Transporter draws the later observation from the earlier one; the others look at one
            transports = model == "keypoint_features"
            drawn[model] = load_pretraining(pretrained / game, model).picture(earlier if transports else obs, obs)
        for column, (title, model, picture) in enumerate(COLUMNS):
            for row, image in enumerate(drawn[model][picture]):
                axis = axes[number * len(SHOWN) + row, column]
                axis.imshow(image[0], cmap="gray", vmin=0, vmax=1)
                axis.set(xticks=[], yticks=[])
                if number == row == 0:
                    axis.set_title(title, fontsize=9)
                if column == 0:
                    axis.set_ylabel(game)
                    for k, (x, y) in enumerate(((drawn[model]["keypoints"][row] + 1) / 2 * 83).tolist()):
                        axis.plot(x, y, "o", markersize=8, markerfacecolor="none", markeredgewidth=2, color=f"C{k}")
    figure.savefig(output, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".png"))
