"""Linear probes: the measure on made-up features, and the memory beside the picture on the real Pong."""

import numpy as np
import pytest
import torch

from probe_encoders import Args, collect, embed, entropy_bits, main, probe
from storage import InputError


def test_a_probe_reads_what_is_there_and_not_what_is_not():
    rng = np.random.default_rng(0)
    hidden, other = rng.integers(5, size=2000), rng.integers(5, size=2000)
    features = torch.from_numpy(np.eye(5)[hidden] @ rng.normal(size=(5, 30)) + 0.1 * rng.normal(size=(2000, 30))).float()
    train = np.arange(2000) < 1600
    scores = probe(features, {"hidden": hidden * 7 + 3, "other": other}, train, epochs=20, seed=0)
    assert scores["hidden"][0] > 0.99 and scores["hidden"][1] > 0.99
    assert scores["other"][0] < 0.4 and scores["other"][1] < 0.4  # five values at chance: 0.2


def test_entropy():
    assert entropy_bits(np.array([0, 1, 2, 3])) == pytest.approx(2.0)
    assert entropy_bits(np.array([7, 7, 7])) == 0.0
    assert entropy_bits(np.array([0, 0, 0, 1])) == pytest.approx(0.8113, abs=1e-4)


def test_the_memory_belongs_to_the_picture():
    """The byte called player_y moves with the bright paddle at the right of the newest frame."""
    observations, rams, games = collect("ALE/Pong-v5", 300, 2, seed=0)
    assert observations.shape == (300, 4, 84, 84) and rams.shape == (300, 128) and games[0] == 0 and games[-1] >= 0
    lane = observations[:, 3, 15:76, 72:78].astype(float)  # the paddle's lane between the two walls
    bright = np.maximum(lane - np.median(lane), 0).sum(axis=2) + 1e-9
    rows = (bright * np.arange(bright.shape[1])).sum(axis=1) / bright.sum(axis=1)
    seen = bright.sum(axis=1) > 50
    assert seen.sum() > 100 and np.corrcoef(rows[seen], rams[seen, 51])[0, 1] > 0.9


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
    with pytest.raises(InputError, match="python pretrain_encoders.py --env-id ALE/Pong-v5"):
        main(Args(pretrained_dir=str(tmp_path)))
