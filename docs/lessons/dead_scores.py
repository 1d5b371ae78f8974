"""The lottery of the dead ReLU: the share of scores that are 0 before any training, for ten seeds.

    python -m docs.lessons.dead_scores
    python -m docs.lessons.dead_scores --csv docs/lessons/dead_scores.csv      # as stored there

256 observations of random play go through stored models; for each seed a new combiner scores them.
"""

import argparse
from pathlib import Path

import ale_py
import gymnasium as gym
import numpy as np
import torch

from combiners.wsa import WeightSharingAttention
from encoders import load_encoder
from housekeeping import files

LIGHT = ("state_representation", "autoencoder")
FOUR = ("state_representation", "keypoint_features", "keypoint_maps", "object_masks")
ROOT = Path(__file__).resolve().parents[2]
SCORER = "published"  # change this: "linear", "hidden" or "bounded"
CASES = [("Pong", LIGHT, 256), ("Pong", LIGHT, 128), ("Pong", FOUR, 256), ("Breakout", FOUR, 256)]
SEEDS = range(1, 11)


def observations(game: str) -> torch.Tensor:
    """uint8 (256, 4, 84, 84) of random play."""
    envs = gym.make_vec(f"ALE/{game}-v5", num_envs=8)
    obs, _ = envs.reset(seed=0)
    rng, found = np.random.default_rng(0), []
    for step in range(32 * 25):
        if step % 25 == 0:
            found.append(torch.from_numpy(obs.copy()))
        obs, *_ = envs.step(rng.integers(envs.single_action_space.n, size=8))
    envs.close()
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    gym.register_envs(ale_py)
    rows = []
    for game, names, features_dim in CASES:
        models = {name: load_encoder(ROOT / "pretrained" / game / f"{name}.pt") for name in {*names, "autoencoder"}}
        with torch.no_grad():
            batches = observations(game).split(32)
            embeddings = {
                name: torch.cat([model(batch).float() for batch in batches]) for name, model in models.items()
            }
        for seed in SEEDS:
            torch.manual_seed(seed)
            shapes = {name: tuple(models[name].output_shape) for name in names}
            combiner = WeightSharingAttention(shapes, tuple(models["autoencoder"].output_shape), features_dim, SCORER)
            found = combiner.diagnose({name: embeddings[name] for name in names}, embeddings["autoencoder"])
            rows.append(
                {"game": game, "models": len(names), "features_dim": features_dim, "seed": seed, "scorer": SCORER}
            )
            rows[-1] |= {
                "dead_scores": round(found.get("dead_scores", 0.0), 2),
                "context_effect": round(found["context_effect"], 4),
            }
        mine = [
            row for row in rows if (row["game"], row["models"], row["features_dim"]) == (game, len(names), features_dim)
        ]
        dead, effect = ([row[what] for row in mine] for what in ("dead_scores", "context_effect"))
        case = f"{game}, {len(names)} models, d = {features_dim}, {SCORER}"
        print(f"{case}: dead {' '.join(f'{x:.2f}' for x in dead)}; context moves {max(effect):.1%} at most", flush=True)
    if args.csv:
        files.write_csv(args.csv, rows)


if __name__ == "__main__":
    main()
