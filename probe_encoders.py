"""What do the pre-trained models know? Linear probes from their embeddings to the console's memory.

    python probe_encoders.py --env-id ALE/Pong-v5
    python probe_encoders.py --env-id Reacher-v5

A model that encodes where the ball is lets a linear classifier read the ball's position off its embedding. The true
positions are bytes of the console's RAM (the Atari Annotated RAM Interface of Anand et al. 2019, arXiv 1906.08226,
whose measure this is: weighted F1 on games that the probe was not trained on). Each stored model is compared with its
own random initialisation.

What happens, in this order: play random games with the RAM beside each observation; embed all observations with each
model; fit one linear classifier per variable on each set of features; print and store a table. The sets are: each
model, trained and untrained; the raw pixels (the whole stack); all models side by side; and all but one, which shows
what that one adds to the others.

The probe is a logistic regression (scikit-learn's) that has converged, on features of mean 0 and variance 1: on raw
ones it ends where its optimiser is stopped, and the order of models may be another. Maps are pooled to at most 4,096
numbers, and what is longer than 512 numbers is projected on its 512 principal components, so that each set of features
has equal room and five models take minutes. How strongly the weights are held small is chosen on a fifth of the games,
for each set of features; another fifth judges. The published code removes observations that occur both in training and
in held-out games (the starts of games); here they stay.

In environments that are no Atari games the simulator's own numbers (joint angles, places) take the place of the RAM,
ridge regression that of the classifier, and R^2 on held-out episodes that of F1.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, f1_score, r2_score

from encoders import ENCODERS, PRETRAINED, load_encoder
from environments import folder_name, rendered
from environments.ram import VARIABLES, collect_with_ram
from housekeeping import device as devices
from housekeeping import files
from housekeeping.flags import InputError, check_ranges, parse, start

MAX_POOLED = 4096  # a map is pooled to the largest square grid that has at most this many numbers
COMPONENTS = 512  # longer features are projected on so many principal components
STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # scikit-learn's C, the inverse of the penalty on the squared weights
PENALTIES = (1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)  # of the squared weights, in regressions
MIN_ENTROPY = 0.6  # nats; a variable that varies less is left out (the published threshold)


@dataclass
class Args:
    """probes"""

    env_id: str = "ALE/Pong-v5"
    """the game, a Gymnasium id"""
    encoders: tuple[str, ...] = ()
    """the stored models to probe (none named: all that are stored)"""
    pretrained_dir: str | None = None
    """the stored models are <pretrained-dir>/<Game>/<name>.pt (none given: pretrained/ beside this script)"""
    num_samples: int = 6_000
    """observations to probe; a fifth of the games is held out"""
    every: int = 4
    """take one observation in so many: neighbours are nearly equal"""
    seed: int = 1
    """seed of games and random initialisations"""
    output: str = "benchmark/probes_<Game>.csv"
    """where the table is stored"""
    cuda: bool | Literal["auto"] = "auto"
    """run on a GPU: auto (if there is one), True or False"""
    torch_threads: int = 0
    """CPU threads (0: PyTorch's choice)"""


@torch.no_grad()
def embed(model: nn.Module, observations: np.ndarray, device: torch.device) -> torch.Tensor:
    """Embeddings (n, length) of observations (n, 4, 84, 84): vectors as they are, maps (C, H, W) average-pooled to a
    square grid."""
    parts = []
    for batch in torch.from_numpy(observations).split(64):
        z = model(batch.to(device))
        if z.dim() == 4:
            z = F.adaptive_avg_pool2d(z, min(z.shape[2], int((MAX_POOLED / z.shape[1]) ** 0.5))).flatten(1)
        parts.append(z.cpu())
    return torch.cat(parts)


def prepare(features: torch.Tensor, train: np.ndarray, seed: int) -> np.ndarray:
    """Features (n, length) -> (n, at most COMPONENTS) of mean 0 and variance 1 over the training observations; long
    ones are projected.

    Numbers that never vary in training are left out.
    """
    x = features.numpy().astype(np.float32)
    deviation = x[train].std(axis=0)
    x = (x - x[train].mean(axis=0))[:, deviation > 1e-6] / deviation[deviation > 1e-6]
    if x.shape[1] > COMPONENTS:
        components = min(COMPONENTS, int(train.sum()))
        x = PCA(components, svd_solver="randomized", random_state=seed).fit(x[train]).transform(x)
        # one scale for all: the first components stay the larger ones
        x = x / np.sqrt(np.square(x[train]).sum(axis=1).mean() / components)
    return x


def probe(
    x: np.ndarray, labels: dict[str, np.ndarray], train: np.ndarray, validation: np.ndarray, test: np.ndarray
) -> tuple[dict[str, tuple[float, float]], float]:
    """Fit logistic regressions on features x (n, length), choose their strength on validation games, and judge them on
    others.

    Args:
        labels: RAM bytes (n,) of each variable.
        train, validation, test: bool (n,), which observations fit the probe, choose its strength, and judge it. For the
            judgement it is fitted on the first two together.

    Returns:
        for each variable its weighted F1 and its accuracy; and the strength chosen, one for all variables.
    """

    def fitted(
        values: np.ndarray, strength: float, fit: np.ndarray, before: LogisticRegression | None = None
    ) -> LogisticRegression:
        # fast: from the last strength's weights on
        model = before or LogisticRegression(max_iter=1000, tol=1e-3, warm_start=True)
        return model.set_params(C=strength).fit(x[fit], values[fit])

    def scores(model: LogisticRegression, values: np.ndarray, judge: np.ndarray) -> tuple[float, float]:
        guess = model.predict(x[judge])
        f1 = f1_score(values[judge], guess, average="weighted", zero_division=0)
        return float(f1), float(accuracy_score(values[judge], guess))

    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)  # a probe that has not converged would say something else
        f1 = {strength: [] for strength in STRENGTHS}
        for values in labels.values():
            model = None
            for strength in STRENGTHS:
                model = fitted(values, strength, train, model)
                f1[strength].append(scores(model, values, validation)[0])
        best = max(STRENGTHS, key=lambda strength: np.mean(f1[strength]))
        return {
            name: scores(fitted(values, best, train | validation), values, test) for name, values in labels.items()
        }, best


def regress(
    x: np.ndarray, labels: dict[str, np.ndarray], train: np.ndarray, validation: np.ndarray, test: np.ndarray
) -> tuple[dict[str, tuple[float]], float]:
    """As `probe`, for numbers in place of bytes: ridge regressions, and for each variable its R^2; 0 is the mean."""

    def scores(penalty: float, fit: np.ndarray, judge: np.ndarray) -> dict[str, tuple[float]]:
        values = np.stack(list(labels.values()), axis=1)
        guess = Ridge(alpha=penalty).fit(x[fit], values[fit]).predict(x[judge])
        r2 = r2_score(values[judge], guess, multioutput="raw_values")
        return {name: (float(one),) for name, one in zip(labels, r2, strict=True)}

    best = max(PENALTIES, key=lambda penalty: np.mean(list(scores(penalty, train, validation).values())))
    return scores(best, train | validation, test), best


def play(args: Args) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, list[str]], np.ndarray]:
    """Observations (n, 4, 84, 84), each variable's values (n,), the variables of each kind of thing, the number of the
    game (n,)."""
    if rendered.is_rendered(args.env_id):
        observations, state, games = rendered.collect_with_state(args.env_id, args.num_samples, args.every, args.seed)
        kinds = {kind: [f"{kind} {i}" for i in range(values.shape[1])] for kind, values in state.items()}
        return observations, {f"{k} {i}": v[:, i] for k, v in state.items() for i in range(v.shape[1])}, kinds, games
    observations, rams, games = collect_with_ram(args.env_id, args.num_samples, args.every, args.seed)
    variables = VARIABLES[folder_name(args.env_id)]
    labels = {name: rams[:, byte] for kind in variables.values() for name, byte in kind.items()}
    labels = {name: values for name, values in labels.items() if entropy(values) >= MIN_ENTROPY}
    kinds = {kind: [name for name in names if name in labels] for kind, names in variables.items()}
    return observations, labels, {kind: names for kind, names in kinds.items() if names}, games


def entropy(values: np.ndarray) -> float:
    """Entropy, in nats, of how often each value occurs."""
    share = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(share * np.log(share)).sum())


def main(args: Args) -> None:
    game = folder_name(args.env_id)
    check_ranges(args, ("num_samples", "every"), not_negative=("seed", "torch_threads"))
    folder = Path(args.pretrained_dir or PRETRAINED) / game
    if not rendered.is_rendered(args.env_id) and game not in VARIABLES:
        raise InputError(
            f"--env-id {args.env_id}: no RAM bytes are known for it here; the games that can be probed are "
            f"{', '.join(VARIABLES)}."
        )
    names = args.encoders or tuple(name for name in ENCODERS if (folder / f"{name}.pt").exists())
    if not names:
        raise InputError(
            f"{folder}: no stored models; make them with python pretrain_encoders.py --env-id {args.env_id}"
        )
    devices.require_cuda(args)
    device = torch.device("cuda" if devices.on_cuda(args.cuda) else "cpu")
    models = {name: load_encoder(folder / f"{name}.pt", device, game) for name in names}
    output = Path(args.output.replace("<Game>", game))
    if output.is_dir():
        raise InputError(f"--output {output}: this is a folder; name a file.")
    files.require_writable(output.parent)
    if args.torch_threads:
        torch.set_num_threads(args.torch_threads)

    observations, labels, kinds, games = play(args)
    games = np.unique(games, return_inverse=True)[1]  # a short game may have no observation
    num_games = int(games[-1]) + 1
    if num_games < 3:
        raise InputError(
            f"--num-samples {args.num_samples} with --every {args.every} ends in game {num_games}, and a probe "
            "needs three games: to be fitted, to choose its strength and to be judged; raise them."
        )
    part = max(1, num_games // 5)
    test, validation = games >= num_games - part, (games >= num_games - 2 * part) & (games < num_games - part)
    train = ~test & ~validation
    labels = {name: values for name, values in labels.items() if np.unique(values[train]).size > 1}
    kinds = {kind: kept for kind, names in kinds.items() if (kept := [name for name in names if name in labels])}
    if not labels:
        raise InputError(
            f"--num-samples {args.num_samples}: none of the variables varied enough to be probed; raise it."
        )
    print(
        f"{len(games):,} observations of {num_games} games, {validation.sum():,} of them to choose the probes' "
        f"strength, {test.sum():,} to "
        f"judge; variables: {', '.join(labels)}"
    )

    rows: list[dict] = []
    fit_and_judge, measures = (regress, ("r2",)) if rendered.is_rendered(args.env_id) else (probe, ("f1", "accuracy"))

    def judge(features: torch.Tensor, what: str, weights: str) -> float:
        """Probe one set of features, add a row to the table, and return its mean F1 or R^2."""
        scores, strength = fit_and_judge(prepare(features, train, args.seed), labels, train, validation, test)
        row = {
            "features": what,
            "weights": weights,
            "length": features.shape[1],
            "strength": f"{strength:g}",
            "adds": "",
        }
        for number, measure in enumerate(measures):
            of_kinds = {kind: float(np.mean([scores[v][number] for v in names])) for kind, names in kinds.items()}
            if number == 0:
                row |= {f"{measure}_{kind}": value for kind, value in of_kinds.items()}
            row[f"{measure}_mean"] = float(np.mean(list(of_kinds.values())))
        rows.append(row)
        numbers = "  ".join(f"{key} {value:.3f}" for key, value in row.items() if isinstance(value, float))
        print(f"{what:<{width}}  {weights:<9}  {row['length']:>6} numbers  {numbers}", flush=True)
        return row[f"{measures[0]}_mean"]

    width = max(len(f"all but {name}") for name in models)
    embeddings = {}
    for name, stored in models.items():
        torch.manual_seed(args.seed)
        untrained = ENCODERS[name]().requires_grad_(False).eval().to(device)
        embeddings[name] = embed(stored, observations, device)
        judge(embeddings[name], name, "trained")
        judge(embed(untrained, observations, device), name, "untrained")
        shape = tuple(stored.output_shape)
        if len(shape) == 3 and shape[1] ** 2 * shape[0] > embeddings[name].shape[1]:
            side = round((embeddings[name].shape[1] / shape[0]) ** 0.5)
            print(f"  ({name}: maps of {shape[0]}x{shape[1]}x{shape[2]}, average-pooled to {shape[0]}x{side}x{side})")
    judge(torch.from_numpy(observations).flatten(1).float() / 255, "raw pixels", "")
    if len(models) > 1:
        together = judge(torch.cat(list(embeddings.values()), dim=1), "all", "trained")
        for name in models:
            others = torch.cat([embedding for other, embedding in embeddings.items() if other != name], dim=1)
            without = judge(others, f"all but {name}", "trained")
            rows[-1]["adds"] = together - without
        print(
            f"what each model adds to the mean {measures[0].upper()} of the others: "
            + ", ".join(f"{row['features'][8:]} {row['adds']:+.3f}" for row in rows if row["adds"] != "")
        )
    files.write_csv(output, rows, ".4f")
    print(f"stored in {output}")


if __name__ == "__main__":
    start(main, lambda: parse(Args, __doc__))
