"""What the stored models of three games see in games they were not trained on: docs/models.png and docs/models.csv.

    python -m docs.models

The picture shows two observations a game; each model draws what it draws for TensorBoard while it is trained. The table
says whether keypoints and masks are where something moves, in 256 observations of random play: pixels that differ
between the two newest frames by more than 8 of 255. Beside each number is what another observation's keypoints or masks
would give (the next one of the same game, 25 steps later): a place where something often moves is not yet a thing that
is followed.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from encoders import PRETRAINED, load_pretraining
from encoders.frozen import typical_frames
from encoders.keypoint_maps import keypoints, to_pixels
from housekeeping import files

GAMES = ("Pong", "Breakout", "MsPacman")
SHOWN = (120, 200)  # of the 256 observations; 8 games side by side: the first game, 250 steps apart
LATER = 8  # so many observations on is the next one of the same game
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
        obs, earlier = frames[list(SHOWN)], frames[[i - LATER for i in SHOWN]]
        drawn = {}
        for model in {model for _, model, _ in COLUMNS}:
            # the Transporter draws the later observation from the earlier one; the others look at one
            transports = model == "keypoint_features"
            drawn[model] = load_pretraining(pretrained / game, model).picture(earlier if transports else obs, obs)
        for column, (title, model, picture) in enumerate(COLUMNS):
            for row, image in enumerate(drawn[model][picture]):
                axis = axes[number * len(SHOWN) + row, column]
                axis.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1)
                axis.set(xticks=[], yticks=[])
                if number == row == 0:
                    axis.set_title(title, fontsize=9)
                if column == 0:
                    axis.set_ylabel(game)
                    for k, (x, y) in enumerate(to_pixels(drawn[model]["keypoints"][row]).tolist()):
                        axis.plot(x, y, "o", markersize=8, markerfacecolor="none", markeredgewidth=2, color=f"C{k}")
    figure.savefig(output, dpi=80)
    plt.close(figure)


def on_what_moves(points: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """The share of observations in which each keypoint is within 3 pixels of something that moves: (K,).

    Args:
        points: keypoints (B, K, 2) in [-1, 1], x and y.
        moved: bool (B, 84, 84), the pixels that differ.
    """
    near = F.max_pool2d(moved[:, None].float(), 7, stride=1, padding=3)[:, 0]
    x, y = to_pixels(points).round().long().unbind(dim=2)
    return near[torch.arange(len(near))[:, None], y, x].mean(dim=0)


def likeness(marked: torch.Tensor, moved: torch.Tensor) -> float:
    """Pearson's correlation over pixels between what masks mark (B, 84, 84) and what moves, the mean over
    observations."""
    marked, moved = (image.float().flatten(1) - image.float().flatten(1).mean(1, True) for image in (marked, moved))
    return float(F.cosine_similarity(marked, moved).mean())


@torch.no_grad()
def measure(game: str, pretrained: Path = PRETRAINED) -> dict[str, str | float]:
    """A row of docs/models.csv: the keypoint that is most often on what moves, and all masks together."""
    obs = typical_frames(f"ALE/{game}-v5")
    moved = (obs[:, -1].float() - obs[:, -2].float()).abs() > 8
    points, marked = [], []
    transporter, masks = (load_pretraining(pretrained / game, name) for name in ("keypoint_maps", "object_masks"))
    for batch in obs.split(32):
        points.append(keypoints(transporter.keypoints(batch)))
        marked.append(masks.picture(batch, batch)["where things move"][:, 0])
    points, marked = torch.cat(points), torch.cat(marked)
    some = moved.flatten(1).any(dim=1)
    followed = on_what_moves(points[some], moved[some])
    best = int(followed.argmax())
    return {
        "game": game,
        "observations": int(some.sum()),
        "keypoint": best + 1,
        "on_what_moves": float(followed[best]),
        "of_another_observation": float(on_what_moves(points.roll(-LATER, 0)[some], moved[some])[best]),
        "masks_likeness": likeness(marked[some], moved[some]),
        "masks_of_another_observation": likeness(marked.roll(-LATER, 0)[some], moved[some]),
    }


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".png"))
    rows = [measure(game) for game in GAMES]
    files.write_csv(Path(__file__).with_suffix(".csv"), rows, ".3f")
    for game, _, keypoint, of_points, of_other_points, of_masks, of_other_masks in (row.values() for row in rows):
        print(
            f"{game}: keypoint {keypoint} is on what moves in {of_points:.2f} of the observations "
            f"(another's: {of_other_points:.2f}); masks correlate with what moves by {of_masks:.2f} "
            f"(another's: {of_other_masks:.2f})"
        )
