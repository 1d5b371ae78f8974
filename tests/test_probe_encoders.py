"""Linear probes: the measure on made-up features, and the memory beside the picture on the real Pong."""

import csv

import numpy as np
import pytest
import torch

import probe_encoders
from encoders import PRETRAININGS, save_encoder
from environments.ram import collect_with_ram
from housekeeping.flags import InputError
from probe_encoders import COMPONENTS, Args, embed, entropy, main, prepare, probe


def test_a_probe_reads_what_is_there_and_not_what_is_not():
    rng = np.random.default_rng(0)
    hidden, other = rng.integers(5, size=2000), rng.integers(5, size=2000)
    x = np.eye(5)[hidden] @ rng.normal(size=(5, 30)) + 0.1 * rng.normal(size=(2000, 30))
    train, test = np.arange(2000) < 1200, np.arange(2000) >= 1600
    scores, strength = probe(x, {"hidden": hidden * 7 + 3, "other": other}, train, ~train & ~test, test)
    assert strength in probe_encoders.STRENGTHS
    assert scores["hidden"][0] > 0.99 and scores["hidden"][1] > 0.99
    assert scores["other"][0] < 0.4 and scores["other"][1] < 0.4  # five values at chance: 0.2


def test_the_probe_has_converged():
    """Its weights are those that Newton's method finds for the same penalty, on two classes; more iterations change no
    guess."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(600, 3))
    labels = (x @ [2.0, -1.0, 0.5] + rng.logistic(size=600) > 0).astype(int)
    train, test = np.arange(600) < 200, np.arange(600) >= 400
    scores, strength = probe(x, {"side": labels}, train, ~train & ~test, test)
    fit, weights = np.column_stack([x, np.ones(600)])[~test], np.zeros(4)
    penalty = np.diag([1, 1, 1, 0]) / strength  # the intercept is free
    for _ in range(50):
        p = 1 / (1 + np.exp(-fit @ weights))
        gradient = fit.T @ (p - labels[~test]) + penalty @ weights
        weights -= np.linalg.solve(fit.T @ (fit * (p * (1 - p))[:, None]) + penalty, gradient)
    guess = np.column_stack([x, np.ones(600)])[test] @ weights > 0
    # one of 200 may sit on the border
    assert scores["side"][1] == pytest.approx((guess == labels[test]).mean(), abs=0.006)


def test_features_are_brought_to_one_scale():
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(5, [0.1, 10, 1, 0], size=(300, 4))).float()
    train = np.arange(300) < 200
    x = prepare(features, train, seed=0)
    assert x.shape == (300, 3)  # the last one never varies
    np.testing.assert_allclose(x[train].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(x[train].std(axis=0), 1, rtol=1e-3)
    raw = features[:, :3].numpy()
    np.testing.assert_allclose(
        x[~train], (raw[~train] - raw[train].mean(axis=0)) / raw[train].std(axis=0), rtol=1e-3, atol=1e-3
    )


def test_long_features_are_projected():
    """On the directions in which standardised features vary most, found by a singular value decomposition; the size is
    1 in the mean."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(
        rng.normal(size=(700, 4)) @ rng.normal(size=(4, 600)) + 0.01 * rng.normal(size=(700, 600))
    ).float()
    train = np.arange(700) < 600
    x = prepare(features, train, seed=0)
    assert x.shape == (700, COMPONENTS) and np.square(x[train]).mean() == pytest.approx(1, rel=1e-3)
    z = features.numpy()
    z = (z - z[train].mean(axis=0)) / z[train].std(axis=0)
    largest = np.linalg.svd(z[train], full_matrices=False)[2][:4]
    expected = z @ largest.T
    for i in range(4):
        assert abs(np.corrcoef(expected[:, i], x[:, i])[0, 1]) > 0.999


def test_entropy():
    assert entropy(np.array([0, 1, 2, 3])) == pytest.approx(1.3863, abs=1e-4)
    assert entropy(np.array([7, 7, 7])) == 0.0
    assert entropy(np.array([0, 0, 0, 1])) == pytest.approx(0.5623, abs=1e-4)


def test_the_memory_belongs_to_the_picture():
    """The byte called player_y moves with the bright paddle at the right of the newest frame."""
    observations, rams, games = collect_with_ram("ALE/Pong-v5", 300, 2, seed=0)
    assert observations.shape == (300, 4, 84, 84) and rams.shape == (300, 128) and games[0] == 0 and games[-1] >= 0
    lane = observations[:, 3, 15:76, 72:78].astype(float)  # the paddle's lane between the two walls
    bright = np.maximum(lane - np.median(lane), 0).sum(axis=2) + 1e-9
    rows = (bright * np.arange(bright.shape[1])).sum(axis=1) / bright.sum(axis=1)
    seen = bright.sum(axis=1) > 50
    assert seen.sum() > 100 and np.corrcoef(rows[seen], rams[seen, 51])[0, 1] > 0.9


def test_the_memory_belongs_to_the_picture_in_breakout():
    """player_x moves with the paddle's line, ball_x and ball_y with the one small thing between blocks and paddle."""
    observations, rams, _ = collect_with_ram("ALE/Breakout-v5", 400, 2, seed=0)
    newest = observations[:, 3].astype(float)
    paddle = np.maximum(newest[:, 74:77, 5:79] - np.median(newest[:, 74:77, 5:79]), 0).sum(axis=1) + 1e-9
    assert np.corrcoef((paddle * np.arange(74)).sum(axis=1) / paddle.sum(axis=1), rams[:, 72])[0, 1] > 0.98
    field = np.abs(newest - np.median(newest, axis=0))[:, 38:72, 6:78]
    seen = field.max(axis=(1, 2)) > 40
    y, x = np.unravel_index(field[seen].reshape(seen.sum(), -1).argmax(axis=1), field.shape[1:])
    assert (
        seen.sum() > 100
        and np.corrcoef(x, rams[seen, 99])[0, 1] > 0.98
        and np.corrcoef(y, rams[seen, 101])[0, 1] > 0.98
    )


@pytest.fixture
def quick(monkeypatch):
    """Fewer components and strengths: what is tested with it does not depend on how good the probes are."""
    monkeypatch.setattr(probe_encoders, "COMPONENTS", 24)
    monkeypatch.setattr(probe_encoders, "STRENGTHS", (0.01,))


def test_the_table(tmp_path, pretrained_dir, capsys, quick):
    """Trained and untrained models, raw pixels, all models together and all but each one; what one adds is the
    difference."""
    models = ("state_representation", "autoencoder")
    output = tmp_path / "probes_<Game>.csv"
    main(Args(encoders=models, pretrained_dir=pretrained_dir, num_samples=500, every=8, output=str(output)))
    with open(tmp_path / "probes_Pong.csv", newline="") as file:
        rows = {(row["features"], row["weights"]): row for row in csv.DictReader(file)}
    assert list(rows) == [
        *((name, weights) for name in models for weights in ("trained", "untrained")),
        ("raw pixels", ""),
        ("all", "trained"),
        *((f"all but {name}", "trained") for name in models),
    ]
    assert [int(row["length"]) for row in rows.values()] == [512, 512, 4096, 4096, 4 * 84 * 84, 4608, 4096, 512]
    for name in models:
        row = rows[f"all but {name}", "trained"]
        assert float(row["adds"]) == pytest.approx(
            float(rows["all", "trained"]["f1_mean"]) - float(row["f1_mean"]), abs=2e-4
        )
        (other,) = set(models) - {name}
        assert row["f1_mean"] == rows[other, "trained"]["f1_mean"]  # of two, all but one is the other
    assert "what each model adds" in capsys.readouterr().out


@pytest.mark.parametrize("game", ["Breakout", "MsPacman"])
def test_other_games(game, tmp_path, quick):
    """With models stored for the game, here ones with random weights."""
    torch.manual_seed(0)
    save_encoder(tmp_path / game / "autoencoder.pt", "autoencoder", PRETRAININGS["autoencoder"](), {"game": game})
    settings = {"num_samples": 500, "every": 2 if game == "Breakout" else 8, "output": str(tmp_path / "probes.csv")}
    main(Args(env_id=f"ALE/{game}-v5", pretrained_dir=str(tmp_path), **settings))
    with open(tmp_path / "probes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["features"] for row in rows] == ["autoencoder", "autoencoder", "raw pixels"]
    # a fruit is never there so early
    assert {"Breakout": "f1_ball", "MsPacman": "f1_ghosts"}[game] in rows[0] and "f1_fruit" not in rows[0]


def test_maps_are_pooled():
    class Maps(torch.nn.Module):
        def forward(self, x):
            return x[:, :1].float().expand(-1, 20, -1, -1)

    observations = np.zeros((3, 4, 84, 84), dtype=np.uint8)
    observations[1] = 8
    features = embed(Maps(), observations, torch.device("cpu"))
    assert features.shape == (3, 20 * 14 * 14)  # the largest square with at most 4,096 numbers
    assert (features[1] == 8).all() and (features[[0, 2]] == 0).all()


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="no RAM bytes are known"):
        main(Args(env_id="ALE/Freeway-v5"))
    with pytest.raises(InputError, match="--every must be at least 1"):
        main(Args(every=0))
    with pytest.raises(InputError, match="python pretrain_encoders.py --env-id ALE/Pong-v5"):
        main(Args(pretrained_dir=str(tmp_path)))


def test_what_never_varies_in_the_games_that_fit_the_probe_is_left_out(tmp_path, program):
    """In so few observations no block is hit in the first games of this seed: one class, nothing to learn."""
    output = tmp_path / "few.csv"
    flags = ("--env-id", "ALE/Breakout-v5", "--num-samples", "100", "--seed", "5", "--encoders", "state_representation")
    status, _, error = program("probe_encoders.py", *flags, "--output", str(output))
    assert status == 0, error
    with open(output, newline="") as file:
        columns = csv.DictReader(file).fieldnames
    assert {"f1_ball", "f1_player"} <= set(columns) and not {"f1_score", "f1_blocks"} & set(columns)
    status, _, error = program("probe_encoders.py", "--output", str(tmp_path))
    assert status == 1 and error == f"error: --output {tmp_path}: this is a folder; name a file.\n"
