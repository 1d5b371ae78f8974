"""Plots and films of games that were played: what evaluate.py draws."""

from pathlib import Path

import matplotlib
import numpy as np
from tqdm import tqdm

from environments.hackatari import COMPARED_STEPS, UNCHANGED
from housekeeping.run import BAR

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.animation import PillowWriter  # noqa: E402

STEPS_PER_SECOND = 15  # agent steps in a second of play: 60 emulator frames, 4 a step


def plot_suite(rows: list[dict], labels: list[str], variations: tuple[str, ...], path: Path) -> None:
    """Bars of the relative scores, one group for each variation, with the 95% interval of the mean over games."""
    random_play = rows[0]["mean"]
    height = 0.8 / len(labels)
    figure, axis = plt.subplots(
        figsize=(9, 1.4 + 0.32 * len(variations) * max(1, len(labels) * 0.6)), layout="constrained"
    )
    for i, label in enumerate(labels):
        own = {row["variation"]: row for row in rows if row["agent"] == label}
        span = own[UNCHANGED]["mean"] - random_play
        name = f"{label.replace('$', '')} (unchanged: {own[UNCHANGED]['mean']:.1f})"
        if own[UNCHANGED]["relative"] is None:
            axis.barh([], [], color=f"C{i}", label=f"{name}, no better than random play: no relative score")
            continue
        values = np.array([own[variation]["relative"] for variation in variations])
        half = [own[v]["ci_high"] - own[v]["mean"] if own[v]["ci_high"] is not None else 0.0 for v in variations]
        intervals = np.array(half) / span
        axis.barh(
            np.arange(len(variations)) + i * height,
            values,
            height * 0.95,
            xerr=intervals,
            color=f"C{i}",
            label=name,
            error_kw={"linewidth": 0.8},
        )
    same = [
        name
        for name in variations
        if "no pixel" in str(next(row for row in rows[1:] if row["variation"] == name)["first_difference"])
    ]
    axis.set_yticks(
        np.arange(len(variations)) + 0.4 - height / 2, [f"{name} *" if name in same else name for name in variations]
    )
    axis.invert_yaxis()
    largest = max(row.get("relative") or 0 for row in rows)
    if largest > 4:  # a mode with more to win would press all else against 0
        axis.set_xscale("symlog", linthresh=2, linscale=2)
        axis.set_xticks(ticks := [tick for tick in (0, 0.5, 1, 1.5, 2, 5, 10, 20, 50) if tick < 2 * largest], ticks)
    axis.axvline(1, color="black", linewidth=0.8, linestyle="--")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel(
        "score relative to the agent's own in the unchanged game\n(1: as in the unchanged game; 0: random play "
        f"there, {random_play:.1f})"
        + ("; above 2 the scale is logarithmic" if largest > 4 else "")
        + (f"\n* changed no pixel in {COMPARED_STEPS:,} steps" if same else "")
    )
    axis.set_title(
        f"{rows[0]['game']} and its variations, {rows[0]['games']} games each, 95% intervals over games", fontsize=11
    )
    figure.legend(loc="outside lower center", ncols=1, frameon=False)
    axis.margins(y=0.01)
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_weights(steps: list[dict], names: tuple[str, ...], title: str, path: Path) -> None:
    """Each model's weight over the game (thin: each step, thick: mean of 30 steps, or of a tenth of a short game).

    Below, rewards and lost lives are marked; where most steps are rewarded, the reward is a line.
    """
    x, window = np.arange(len(steps)), min(2 * STEPS_PER_SECOND, max(1, len(steps) // 10))
    figure, (axis, events) = plt.subplots(
        2, 1, figsize=(11, 4.8), sharex=True, layout="constrained", height_ratios=[6, 1], gridspec_kw={"hspace": 0.02}
    )
    equal = all(row[name] == row[names[0]] for row in steps for name in names)
    for i, name in enumerate(names):
        weight = np.array([row[name] for row in steps])
        axis.plot(x, weight, color=f"C{i}", linewidth=0.6, alpha=0.35)
        smooth = np.convolve(weight, np.ones(window), "same") / np.convolve(
            np.ones(len(weight)), np.ones(window), "same"
        )
        width = 1.6 + 3 * equal * (len(names) - 1 - i)  # equal weights: each line on top of a wider one
        axis.plot(x, smooth[: len(x)], color=f"C{i}", linewidth=width, label=name)
    axis.axhline(1 / len(names), color="grey", linestyle=":", label=f"1/N = {1 / len(names):.2f}")
    lives, rewards = (np.array([row[name] for row in steps]) for name in ("lives", "reward"))
    kinds = {
        "reward": (np.flatnonzero(rewards > 0), "tab:green", 1.0),
        "negative reward": (np.flatnonzero(rewards < 0), "tab:red", 1.0),
        "lost life": (1 + np.flatnonzero(np.diff(lives) < 0), "black", 2.0),
    }
    if np.mean(rewards != 0) > 0.5:
        events.plot(x, rewards, color="tab:green", linewidth=1.0)
        events.set_ylabel("reward")
    else:
        events.set_yticks([])
        events.set_ylabel("events")
        for kind, (when, colour, line_width) in kinds.items():
            if len(when):
                events.vlines(when, 0, 1, color=colour, linewidth=line_width, label=f"{kind} ({len(when)})")
    for step in kinds["lost life"][0]:
        axis.axvline(step, color="black", linewidth=0.8)
    axis.set_ylabel("weight (they sum to 1)")
    axis.set_title(title.replace("$", r"\$"), fontsize=11)
    axis.set_ylim(-0.02, 1.02)
    axis.grid(alpha=0.3)
    axis.legend(
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        title=f"thick: mean of {window} steps",
        frameon=False,
    )
    events.set_xlabel("agent step")
    if events.get_legend_handles_labels()[0]:
        events.legend(loc="upper left", bbox_to_anchor=(1.0, 1.3), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def summarise_weights(weights: np.ndarray, names: tuple[str, ...]) -> dict:
    """What the weights (T, N) of one game say.

    `movement` is the weights' variance over time divided by their mean squared distance from 1/N (both averaged over
    models). 0: they never move; 1: they move around an even mixture; None: they are flat, all 1/N (the distance is
    below 1e-12).
    """
    n = weights.shape[1]
    distance = float(np.square(weights - 1 / n).mean())
    entropy = float(-(weights * np.log(np.maximum(weights, 1e-12))).sum(axis=1).mean())
    quarters = np.array_split(weights, 4)
    return {
        "steps": len(weights),
        "models": {
            name: {
                "mean": float(weights[:, i].mean()),
                "std": float(weights[:, i].std()),
                "mean_by_quarter_of_the_game": [float(part[:, i].mean()) if len(part) else None for part in quarters],
            }
            for i, name in enumerate(names)
        },
        "entropy_nats": entropy,
        "largest_entropy_nats": float(np.log(n)),
        "variance_over_time": float(weights.var(axis=0).mean()),
        "squared_distance_from_even": distance,
        "movement": float(weights.var(axis=0).mean()) / distance if distance > 1e-12 else None,
    }


def weights_table(summary: dict) -> str:
    """What `summarise_weights` found, as aligned text."""
    width = max(len(name) for name in summary["models"])
    lines = [f"{'model':<{width}}  mean weight    std  by quarters of the game"]
    for name, model in summary["models"].items():
        quarters = "  ".join(f"{value:.3f}" for value in model["mean_by_quarter_of_the_game"] if value is not None)
        lines.append(f"{name:<{width}}  {model['mean']:>11.3f}  {model['std']:.3f}  {quarters}")
    lines.append(
        f"entropy {summary['entropy_nats']:.3f} of at most {summary['largest_entropy_nats']:.3f} (equal weights)"
    )
    if summary["movement"] is None:
        lines.append("the weights are flat: always 1/N")
    else:
        lines.append(f"movement {summary['movement']:.3f} (0: the weights never move, 1: they move around equal ones)")
    return "\n".join(lines)


def film(screens: list[np.ndarray], steps: list[dict], names: tuple[str, ...], title: str, path: Path) -> None:
    """A GIF in about the speed of play (a GIF counts in hundredths of a second): the screen and, for agents that weigh,
    a bar for each model's weight."""
    figure, axes = plt.subplots(
        1, 2 if names else 1, figsize=(6.4 if names else 3.4, 3.9), layout="constrained", squeeze=False
    )
    figure.suptitle(title.partition(", one game")[0].replace("$", r"\$"), fontsize=9)
    picture = axes[0, 0].imshow(screens[0], interpolation="nearest")
    axes[0, 0].axis("off")
    caption = axes[0, 0].set_title("", fontsize=8)
    if names:
        bars = axes[0, 1].barh(names, [0.0] * len(names), color=[f"C{i}" for i in range(len(names))])
        axes[0, 1].set_xlim(0, 1)
        axes[0, 1].axvline(1 / len(names), color="grey", linestyle=":")
        axes[0, 1].set_xlabel("weight (dotted: 1/N)", fontsize=8)
        axes[0, 1].tick_params(labelsize=8)
        axes[0, 1].invert_yaxis()
    writer = PillowWriter(fps=STEPS_PER_SECOND)
    with writer.saving(figure, str(path), dpi=80):
        for screen, row in tqdm(
            zip(screens, steps, strict=False),
            total=len(screens),
            desc="film",
            unit="frame",
            **BAR,
            leave=False,
        ):
            picture.set_data(screen)
            caption.set_text(f"step {row['step']:,}, score {round(row['score'] - row['reward'], 2)}")
            for bar, name in zip(bars if names else (), names, strict=True):
                bar.set_width(row[name])
            writer.grab_frame()
    plt.close(figure)
