"""Draw docs/method.png: Weight Sharing Attention from observation to action, with shapes.

    python docs/method.py

Frozen parts are blue, trained ones green.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

FROZEN, TRAINED, DATA, RED = "#dbe4ee", "#cdebd0", "#ffffff", "#a33b20"
MODELS = ("state_representation", "keypoint_features", "keypoint_maps", "object_masks")
SHAPES = ("512", "128 x 21 x 21", "4 x 21 x 21", "20 x 84 x 84")


def box(axis, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    """A box whose left lower corner is (x, y)."""
    axis.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", facecolor=colour, edgecolor="#44505c"
        )
    )
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10.5, linespacing=1.35)


def arrow(axis, start: tuple[float, float], end: tuple[float, float], text: str = "", colour: str = "#44505c") -> None:
    """An arrow with a shape written above its middle."""
    axis.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0, "lw": 1.2}
    )
    if text:
        axis.text(
            (start[0] + end[0]) / 2,
            (start[1] + end[1]) / 2 + 0.1,
            text,
            ha="center",
            va="bottom",
            fontsize=9,
            color="#44505c",
        )


figure, axis = plt.subplots(figsize=(13.2, 5.6))
axis.set_xlim(-0.3, 20.2)
axis.set_ylim(-0.75, 7.65)
axis.axis("off")

box(axis, -0.2, 2.85, 2.3, 1.5, "observation x\nuint8\n4 x 84 x 84", DATA)
heights = (6.1, 4.75, 3.4, 2.05)
for name, shape, y in zip(MODELS, SHAPES, heights, strict=True):
    arrow(axis, (2.1, 3.6), (3.0, y + 0.45))
    box(axis, 3.0, y, 3.3, 0.9, name, FROZEN)
    arrow(axis, (6.3, y + 0.45), (8.1, y + 0.45), shape)
    box(axis, 8.1, y, 1.7, 0.9, "adapter", TRAINED)
    arrow(axis, (9.8, y + 0.45), (11.5, y + 0.45), f"$e_{heights.index(y) + 1}$: d")
arrow(axis, (2.1, 3.6), (3.0, 0.75))
box(axis, 3.0, 0.3, 3.3, 0.9, "autoencoder\n(newest frame only)", FROZEN)
arrow(axis, (6.3, 0.75), (8.1, 0.75), "64 x 16 x 16")
box(axis, 8.1, 0.3, 1.7, 0.9, "adapter", TRAINED)
arrow(axis, (9.8, 0.75), (11.5, 0.75), "context c: d")

box(axis, 11.5, 0.3, 3.2, 6.7, "", DATA)
box(axis, 11.65, 3.7, 2.9, 1.7, "shared network f\n$s_i = f\\,([c\\,;\\,e_i])$\n2d numbers to 1", TRAINED)
axis.text(13.1, 2.75, "$w = \\mathrm{softmax}(s)$", ha="center", va="center", fontsize=12)
axis.text(13.1, 1.75, "$h = \\sum_i w_i\\, e_i$", ha="center", va="center", fontsize=12)
axis.text(13.1, 6.1, "the same f for each i", ha="center", va="center", fontsize=10, color=RED)

axis.plot((14.7, 16.0), (3.65, 3.65), color="#44505c", lw=1.2)
axis.text(15.4, 3.75, "state h: d", ha="center", va="bottom", fontsize=9, color="#44505c")
arrow(axis, (16.0, 3.65), (16.8, 4.75))
arrow(axis, (16.0, 3.65), (16.8, 2.55))
box(axis, 16.8, 4.2, 3.3, 1.1, "policy head\nd to 256 to actions", TRAINED)
box(axis, 16.8, 2.0, 3.3, 1.1, "value head\nd to 256 to 1", TRAINED)

box(axis, 3.1, -0.6, 0.5, 0.4, "", FROZEN)
axis.text(3.75, -0.4, "frozen: trained before, without reward", va="center", fontsize=10)
box(axis, 9.6, -0.6, 0.5, 0.4, "", TRAINED)
axis.text(10.25, -0.4, "trained by PPO, with the game's reward (d = 256)", va="center", fontsize=10)
axis.text(
    0.1,
    7.35,
    "Weight Sharing Attention: several frozen models see, one small network weighs what they see",
    fontsize=12.5,
    va="center",
)

figure.savefig(Path(__file__).with_suffix(".png"), dpi=100, bbox_inches="tight", pad_inches=0.1)
