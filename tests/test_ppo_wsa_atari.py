"""Every way to combine against NumPy computations written here; sets of models that change; models of one's own; on
real games."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from test_combiners import CONTEXT_SHAPE, PAPER_SHAPES, numpy_conv, random_inputs
from test_ppo import scalars

import ppo_wsa_atari
from combiners import COMBINERS, Reservoir, find_combiner, make_combiner, options_of
from combiners.schedule import Change, apply_change, parse_schedule
from combiners.weighted_sum import WeightedSum
from encoders import PRETRAININGS, save_encoder
from encoders.frozen import FrozenModels, typical_frames
from environments.atari import make_env
from housekeeping import checkpoints, files
from housekeeping.flags import InputError, import_own
from housekeeping.seeds import env_seeds
from ppo_wsa_atari import Args, Player, load_agent, main

STRIDES = {"keypoint_features": 1, "keypoint_maps": 1, "object_masks": 5}


def parameters_of(combine) -> dict[str, np.ndarray]:
    """All parameters in float64, after moving them so that no bias is 0."""
    for parameter in combine.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return {name: value.detach().double().numpy() for name, value in combine.state_dict().items()}


def numpy_spatial(p, prefix, name, z):
    """The published spatial adapter: two convolutions and ReLU for a map, nothing for a vector."""
    z = z.double().numpy()
    if z.ndim == 2:
        return z
    z = numpy_conv(z, p[prefix + "pointwise.weight"], p[prefix + "pointwise.bias"], 1)
    return np.maximum(numpy_conv(z, p[prefix + "spatial.weight"], p[prefix + "spatial.bias"], STRIDES[name]), 0)


def numpy_conv3(x, weight, bias):
    return np.maximum(numpy_conv(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), weight, bias, 1), 0)


def numpy_adapted(p, embeddings, where):
    """Each embedding through spatial adapter, Linear and ReLU: (B, d)."""
    e = []
    for name, z in embeddings.items():
        z = numpy_spatial(p, f"{where}.{name}.spatial.", name, z).reshape(len(z), -1)
        e.append(np.maximum(z @ p[f"{where}.{name}.linear.weight"].T + p[f"{where}.{name}.linear.bias"], 0))
    return e


def check(combine, embeddings, context, expected, out_dim):
    out = combine(embeddings, context)
    assert out.shape == (len(context), out_dim) and combine.out_dim == out_dim
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_linear():
    combine = COMBINERS["linear"](PAPER_SHAPES, CONTEXT_SHAPE)
    p, (embeddings, context) = parameters_of(combine), random_inputs(PAPER_SHAPES)
    flat = [numpy_spatial(p, f"spatial.{name}.", name, z).reshape(3, -1) for name, z in embeddings.items()]
    check(combine, embeddings, context, np.concatenate(flat, axis=1), 16896)


@pytest.mark.parametrize("features_dim", [16, 64])
def test_fixed_linear(features_dim):
    combine = COMBINERS["fixed_linear"](PAPER_SHAPES, CONTEXT_SHAPE, features_dim=features_dim)
    p, (embeddings, context) = parameters_of(combine), random_inputs(PAPER_SHAPES)
    check(
        combine, embeddings, context, np.concatenate(numpy_adapted(p, embeddings, "spatial"), axis=1), 4 * features_dim
    )


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_cnn(layers):
    combine = COMBINERS["cnn"](PAPER_SHAPES, CONTEXT_SHAPE, cnn_layers=layers)
    p, (embeddings, context) = parameters_of(combine), random_inputs(PAPER_SHAPES)
    grids = [numpy_spatial(p, f"spatial.{name}.", name, z).reshape(3, -1, 16, 16) for name, z in embeddings.items()]
    x = np.concatenate(grids, axis=1)
    assert x.shape[1] == 66
    for layer in range(layers):
        x = numpy_conv3(x, p[f"convolutions.{2 * layer}.weight"], p[f"convolutions.{2 * layer}.bias"])
    check(combine, embeddings, context, x.reshape(3, -1), 8192)


def test_mixed():
    combine = COMBINERS["mixed"](PAPER_SHAPES, CONTEXT_SHAPE)
    p, (embeddings, context) = parameters_of(combine), random_inputs(PAPER_SHAPES)
    maps = [numpy_spatial(p, f"spatial.{name}.", name, z) for name, z in embeddings.items() if z.dim() == 4]
    maps = numpy_conv3(np.concatenate(maps, axis=1), p["convolution.weight"], p["convolution.bias"]).reshape(3, -1)
    vector = embeddings["state_representation"].numpy()
    check(combine, embeddings, context, np.concatenate([maps, vector], axis=1), 8704)


@pytest.mark.parametrize("mode", ["dot_product", "uniform", "random_weights"])
def test_modes_that_weigh(mode):
    d = 32
    combine = COMBINERS[mode](PAPER_SHAPES, CONTEXT_SHAPE, features_dim=d)
    p, (embeddings, context) = parameters_of(combine), random_inputs(PAPER_SHAPES)
    e = np.stack(numpy_adapted(p, embeddings, "adapters"), axis=1)
    if mode == "uniform":
        scores = np.zeros((3, 4))
    else:
        c = context.double().numpy().reshape(3, -1)
        c = np.maximum(c @ p["context_adapter.linear.weight"].T + p["context_adapter.linear.bias"], 0)
        if mode == "dot_product":
            scores = np.array([[e[b, n] @ c[b] / math.sqrt(d) for n in range(4)] for b in range(3)])
        else:
            w, bias = p["scorer.weight"][0], p["scorer.bias"][0]
            scores = np.array([[w[:d] @ c[b] + w[d:] @ e[b, n] + bias for n in range(4)] for b in range(3)])
    w = np.exp(scores - scores.max(axis=1, keepdims=True))
    w /= w.sum(axis=1, keepdims=True)
    check(combine, embeddings, context, (w[:, :, None] * e).sum(axis=1), d)
    _, weights = combine.state_and_weights(embeddings, context)
    np.testing.assert_allclose(weights.detach().numpy(), w, rtol=1e-3, atol=1e-5)


def test_random_weights_are_not_trained():
    combine = COMBINERS["random_weights"](PAPER_SHAPES, CONTEXT_SHAPE, features_dim=8)
    assert not any(parameter.requires_grad for parameter in combine.scorer.parameters())
    assert all(parameter.requires_grad for parameter in combine.adapters.parameters())


def test_the_scorers_last_activation():
    relu, none = (
        COMBINERS["wsa"](PAPER_SHAPES, CONTEXT_SHAPE, features_dim=8, scorer=kind) for kind in ("published", "linear")
    )
    none.load_state_dict(relu.state_dict())
    embeddings, context = random_inputs(PAPER_SHAPES, batch=20)
    scores = none.scores(*none.adapt(embeddings, context))
    torch.testing.assert_close(relu.scores(*relu.adapt(embeddings, context)), scores.clamp(min=0))
    assert relu.diagnose(embeddings, context)["dead_scores"] == pytest.approx((scores <= 0).float().mean().item())
    for model in (relu, none):
        model.scorer.bias.data -= 1e3
    assert relu.diagnose(embeddings, context)["dead_scores"] == 1.0
    # dead: weights stuck at 1/N
    torch.testing.assert_close(relu.state_and_weights(embeddings, context)[1], torch.full((20, 4), 0.25))
    assert none.state_and_weights(embeddings, context)[1].std() > 0


@pytest.mark.parametrize("kind", ["hidden", "bounded"])
def test_scorers_with_a_hidden_layer(kind):
    """By hand: embeddings and context each to mean 0 and variance 1, side by side, tanh of a layer, a layer; bounded:
    tanh of that."""
    combine = COMBINERS["wsa"](PAPER_SHAPES, CONTEXT_SHAPE, features_dim=8, scorer=kind)
    nn.init.normal_(combine.scorer[2].weight, std=3.0)
    p, (embeddings, context) = parameters_of(combine), random_inputs(PAPER_SHAPES, batch=20)
    with torch.no_grad():
        e, c = combine.adapt(embeddings, context)
        found, weights = combine.scores(e, c).numpy(), combine.state_and_weights(embeddings, context)[1].numpy()
    normal = lambda x: (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)  # noqa: E731
    e, c = e.double().numpy(), c.double().numpy()
    both = np.concatenate([np.repeat(normal(c)[:, None], 4, axis=1), normal(e)], axis=2)
    hidden = np.tanh(both @ p["scorer.0.weight"].T + p["scorer.0.bias"])
    expected = (hidden @ p["scorer.2.weight"].T + p["scorer.2.bias"])[:, :, 0]
    expected = np.tanh(expected) if kind == "bounded" else expected
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    if kind == "bounded":  # of four models: e / (e + 3 / e) and 1 / (1 + 3 e^2)
        assert np.abs(expected).max() > 0.9 and weights.min() > 0.043 and weights.max() < 0.712


def test_how_much_the_context_moves_the_weights():
    """Half the sum of absolute differences after a swap of contexts: nothing for one linear layer, something with a
    hidden one, and for dot products."""
    embeddings, context = random_inputs(PAPER_SHAPES, batch=20)
    found = {}
    for kind in ("linear", "published", "hidden", "dot_product"):
        name, options = ("wsa", {"scorer": kind}) if kind != "dot_product" else (kind, {})
        combine = COMBINERS[name](PAPER_SHAPES, CONTEXT_SHAPE, features_dim=8, **options)
        if kind == "hidden":
            nn.init.normal_(combine.scorer[2].weight)
        swapped = torch.cat([context[-1:], context[:-1]])
        with torch.no_grad():
            _, weights = combine.state_and_weights(embeddings, context)
            _, other = combine.state_and_weights(embeddings, swapped)
        found[kind] = combine.diagnose(embeddings, context)["context_effect"]
        assert found[kind] == pytest.approx((weights - other).abs().sum(dim=1).mean().item() / 2, abs=1e-6)
    assert found["linear"] < 1e-6 < 1e-3 < min(found["hidden"], found["dot_product"])
    assert COMBINERS["uniform"](PAPER_SHAPES, None, features_dim=8).diagnose(embeddings, context) == {}


@pytest.mark.parametrize("kind", ["hidden", "bounded"])
@pytest.mark.parametrize("game", ["Pong", "Breakout", "MsPacman"])
def test_scorers_that_live(kind, game, pretrained_dir):
    """Ten seeds, stored models, at the start and after some updates: all weights of each adapter, of the context's, and
    of the scorer get a gradient; the models' weights are no longer even, and none has gone to 0."""
    flags = {
        "env_id": f"ALE/{game}-v5",
        "encoders": ("state_representation", "autoencoder"),
        "features_dim": 32,
        "scorer": kind,
    }
    args = Args(**flags, pretrained_dir=pretrained_dir, precision="float32")
    frozen = ppo_wsa_atari.open_models(args)
    embeddings = frozen(typical_frames(args.env_id)[:32], args.encoders)
    for seed in range(10):
        torch.manual_seed(seed)
        agent = ppo_wsa_atari.Agent(frozen.shapes, frozen.context_name, 4, args)
        optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3, eps=1e-5)
        free, advantages, returns = torch.ones(32, dtype=torch.bool), torch.randn(32), torch.randn(32)
        for update in range(6):
            of_rollout = torch.randint(4, (32,)), torch.full((32,), -math.log(4)), advantages, returns, free, free.sum()
            loss, _, weights = ppo_wsa_atari.ppo_loss(agent, embeddings, *of_rollout, torch.tensor(0.1), 0.01, 0.5, 0.0)
            optimizer.zero_grad()
            loss.backward()
            if update in (0, 5):
                for part in (*agent.combiner.adapters.values(), agent.combiner.context_adapter, agent.combiner.scorer):
                    assert all(p.grad.abs().sum() > 0 for name, p in part.named_parameters() if "weight" in name), (
                        seed,
                        update,
                    )
            optimizer.step()
        assert (weights - 0.5).abs().max() > 1e-5 and weights.min() > 0.05


def test_a_checkpoint_says_which_scorer(args):
    """A run without --scorer stores the default; a checkpoint from before that plays and goes on with the published
    one."""
    run = main(args(total_timesteps=32))
    path = run / "checkpoint.pt"
    checkpoint = torch.load(path, weights_only=False)
    assert checkpoint["args"]["scorer"] == load_agent(path).agent.combiner.kind == "bounded"
    run = main(args(total_timesteps=32, scorer="published"))
    path = run / "checkpoint.pt"
    checkpoint = torch.load(path, weights_only=False)
    torch.save(checkpoint | {"args": checkpoint["args"] | {"scorer": None}}, path)
    assert load_agent(path).agent.combiner.kind == "published"
    main(args(total_timesteps=64, scorer="published", resume=str(path)))
    assert torch.load(path, weights_only=False)["args"]["scorer"] == "published"
    # ways without such a network have no scorer; before centring was a flag nothing was centred
    of_before = {"combiner": "cnn", "scorer": None}
    meant = Args(combiner="cnn", centre_embeddings=False, precision="float32")
    assert checkpoints.saved_args(Args, of_before) == meant


@pytest.mark.parametrize("mode", ["wsa", "dot_product"])
def test_permutation_and_removal(mode):
    """Permuting the models permutes the weights and leaves the state; removing one equals never having had it."""
    combine = COMBINERS[mode](PAPER_SHAPES, CONTEXT_SHAPE, features_dim=32)
    embeddings, context = random_inputs(PAPER_SHAPES)
    order = ["object_masks", "state_representation", "keypoint_maps", "keypoint_features"]
    permuted = COMBINERS[mode]({name: PAPER_SHAPES[name] for name in order}, CONTEXT_SHAPE, features_dim=32)
    permuted.load_state_dict(combine.state_dict())
    torch.testing.assert_close(permuted(embeddings, context), combine(embeddings, context), rtol=1e-4, atol=1e-4)
    columns = [list(PAPER_SHAPES).index(name) for name in order]
    _, weights = combine.state_and_weights(embeddings, context)
    torch.testing.assert_close(permuted.state_and_weights(embeddings, context)[1], weights[:, columns])
    combine.remove_model("keypoint_maps")
    never = COMBINERS[mode](
        {n: s for n, s in PAPER_SHAPES.items() if n != "keypoint_maps"}, CONTEXT_SHAPE, features_dim=32
    )
    never.load_state_dict(combine.state_dict())
    assert torch.equal(never(embeddings, context), combine(embeddings, context))


def test_reservoir_equals_a_numpy_recurrence():
    """Five steps of three environments; in the second one a game ends before the third step."""
    combine = COMBINERS["reservoir"](PAPER_SHAPES, CONTEXT_SHAPE, reservoir_units=50, reservoir_input_scale=0.01)
    p = parameters_of(combine)
    state, expected = combine.initial_state(3), np.zeros((3, 50))
    for step in range(5):
        embeddings, context = random_inputs(PAPER_SHAPES)
        new_game = torch.tensor([False, step == 2, False])
        if step == 0:
            first = combine(embeddings, context)
        h, state = combine.step(embeddings, state, new_game)
        if step == 0:
            assert torch.equal(first, h)
        x = np.concatenate(
            [numpy_spatial(p, f"spatial.{n}.", n, z).reshape(3, -1) for n, z in embeddings.items()], axis=1
        )
        for env in range(3):
            before = np.zeros(50) if new_game[env] else expected[env]
            expected[env] = np.tanh(p["w_in"] @ x[env] + p["w_res"] @ before)
        np.testing.assert_allclose(h.numpy(), expected, rtol=1e-3, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in combine.parameters())


@pytest.mark.parametrize("units", [100, 512])
def test_spectral_radius(units):
    combine = COMBINERS["reservoir"]({"a": (10,)}, CONTEXT_SHAPE, reservoir_units=units)
    assert np.abs(np.linalg.eigvals(combine.w_res.double().numpy())).max() == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("mode", COMBINERS)
@pytest.mark.parametrize("shapes", [{"v": (512,)}, {"v": (300,), "m": (3, 16, 16)}, {"m": (7, 40, 30)}])
def test_any_set_of_models(mode, shapes):
    options = {"reservoir_units": 20} if mode == "reservoir" else {}
    combine = COMBINERS[mode](shapes, CONTEXT_SHAPE, features_dim=8, **options)
    assert combine(*random_inputs(shapes)).shape == (3, combine.out_dim)
    if not isinstance(combine, WeightedSum):
        with pytest.raises(ValueError, match="one set of models"):
            combine.add_model("more", (5,))
        with pytest.raises(ValueError, match="one set of models"):
            combine.remove_model("v")


# On the real game


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> str:
    """Stored models with random weights for Pong: what is tested here does not depend on what they know."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    for name in ("state_representation", "image_completion", "autoencoder", "frame_prediction"):
        for stored in (pretraining := PRETRAININGS[name]()).stored_models():
            save_encoder(folder / "Pong" / f"{stored}.pt", stored, pretraining, {"game": "Pong"})
    return str(folder)


def changes(flags: Args) -> list[Change]:
    """The changes that these flags ask for."""
    return parse_schedule(flags.schedule, flags.encoders, find_combiner(flags.combiner))


@pytest.fixture
def args(tmp_path, models):
    def make(**changes):
        settings = {
            "num_envs": 2,
            "num_steps": 16,
            "num_minibatches": 2,
            "update_epochs": 2,
            "total_timesteps": 256,
            "encoders": ("state_representation", "image_completion"),
            "features_dim": 16,
            "centre_embeddings": False,  # saves the measuring
            "runs_dir": str(tmp_path / "runs"),
            "pretrained_dir": models,
            "cuda": False,
            "precision": "float32",
        }
        if changes.get("combiner") == "reservoir":
            settings["reservoir_units"] = 64
        return Args(**{**settings, **changes})

    return make


@pytest.mark.parametrize("mode", [mode for mode in COMBINERS if mode != "wsa"])
def test_every_mode_trains_saves_and_resumes(args, mode):
    run = main(args(combiner=mode, total_timesteps=64))
    checkpoint = files.load(run / "checkpoint.pt", "checkpoint")
    assert checkpoint["global_step"] == 64
    main(args(combiner=mode, resume=str(run / "checkpoint.pt"), total_timesteps=96))
    agent = load_agent(run / "checkpoint.pt")
    obs = np.random.default_rng(0).integers(1, 256, (2, 4, 84, 84), dtype=np.uint8)
    assert agent.act(obs, greedy=True).shape == (2,)
    weighs = issubclass(COMBINERS[mode], WeightedSum)
    assert [step for step, _ in scalars(run, "weights/entropy")] == ([32, 64, 96] if weighs else [])
    if mode == "uniform":
        assert {value for _, value in scalars(run, "weights/image_completion")} == {0.5}
    uses_context = COMBINERS[mode].uses_context
    assert set(checkpoint["encoders"]) == {
        "state_representation",
        "image_completion",
        *(["autoencoder"] if uses_context else []),
    }


def test_options_of_modes_reach_them(args, monkeypatch):
    made = []
    original = ppo_wsa_atari.Agent.__init__
    monkeypatch.setattr(
        ppo_wsa_atari.Agent, "__init__", lambda self, *rest: (original(self, *rest), made.append(self))[0]
    )
    main(args(total_timesteps=32, scorer="linear", weights_ent_coef=0.1))
    assert made[-1].combiner.kind == "linear"
    main(args(total_timesteps=32, combiner="cnn", cnn_layers=3))
    assert len(made[-1].combiner.convolutions) == 6
    main(
        args(
            total_timesteps=32,
            combiner="reservoir",
            reservoir_units=32,
            reservoir_input_scale=0.1,
            reservoir_spectral_radius=0.5,
        )
    )
    assert made[-1].combiner.out_dim == 32
    assert {option for mode in COMBINERS for option in options_of(mode)} == {
        "scorer",
        "cnn_layers",
        "reservoir_units",
        "reservoir_spectral_radius",
        "reservoir_input_scale",
    }


def test_entropy_of_the_weights_is_rewarded(args):
    """A large coefficient drives the weights toward 1/N."""
    entropy = {}
    for coefficient in (-5.0, 5.0):
        run = main(
            args(
                weights_ent_coef=coefficient,
                scorer="linear",
                exp_name=f"entropy_{coefficient:+.0f}",
                learning_rate=1e-3,
            )
        )
        entropy[coefficient] = scalars(run, "weights/entropy")[-1][1]
    assert entropy[5.0] > entropy[-5.0] + 0.05 and entropy[5.0] <= math.log(2) + 1e-6


def test_reservoir_states_of_a_rollout(args, monkeypatch):
    """The states that a rollout stores equal a NumPy recurrence over all observations, through lost lives, from zero
    after a game's end, which comes at different steps in the two environments."""
    recorded, games = [], []

    class Spy(Reservoir):
        def step(self, embeddings, state, new_game):
            h, after = super().step(embeddings, state, new_game)
            # not the bootstrap of games that were cut off, which leads nowhere
            if not recorded or state is recorded[-1][3]:
                x = torch.cat([z.flatten(1) for z in self.adapt(embeddings).values()], dim=1)
                recorded.append((x.double().numpy(), new_game.numpy().copy(), h.numpy().copy(), after))
                games.append((self.w_in.double().numpy(), self.w_res.double().numpy()))
            return h, after

    monkeypatch.setitem(COMBINERS, "reservoir", Spy)
    breakout = {
        "env_id": "ALE/Breakout-v5",
        "untrained_encoders": True,
        "encoders": ("state_representation",),
        "update_epochs": 1,
    }
    main(args(combiner="reservoir", reservoir_input_scale=0.05, total_timesteps=640, **breakout))
    ends = np.array([new_game for _, new_game, *_ in recorded[1:]])
    assert len(recorded) == 1 + 320 and (ends.any(axis=1) & ~ends.all(axis=1)).any()
    assert recorded[0][1].all()
    state = np.zeros((2, 64))
    for (x, new_game, h, _), (w_in, w_res) in zip(recorded, games, strict=True):
        state[new_game] = 0.0
        state = np.tanh(x @ w_in.T + state @ w_res.T)
        np.testing.assert_allclose(h, state, rtol=1e-3, atol=1e-3)


def test_a_reservoir_agent_remembers_and_forgets(args):
    """Playing: the same observation gives another state the second time, and the first one again when a game begins
    anew."""
    run = main(args(combiner="reservoir", total_timesteps=32, reservoir_input_scale=0.05))
    agent: Player = load_agent(run / "checkpoint.pt")
    rng = np.random.default_rng(0)
    later = rng.integers(1, 256, (2, 4, 84, 84), dtype=np.uint8)
    begin = later.copy()
    begin[:, :3] = 0
    agent.act(begin, greedy=True)
    first = agent.memory.clone()
    agent.act(later, greedy=True)
    second = agent.memory.clone()
    agent.act(later, greedy=True)
    assert not torch.equal(second, agent.memory)
    agent.act(np.stack([begin[0], later[1]]), greedy=True)
    assert torch.allclose(first[0], agent.memory[0]) and not torch.allclose(first[1], agent.memory[1])
    empty = later.copy()  # a game that goes dark for some steps is no new game
    empty[:, 1:] = 0
    agent.act(empty, greedy=True)
    agent.act(begin, greedy=True)
    assert not torch.allclose(first, agent.memory)
    later[:, 3] = 0  # one that ends in the dark is followed by a new one
    agent.act(later, greedy=True)
    agent.act(begin, greedy=True)
    assert torch.allclose(first, agent.memory)


def test_a_run_that_adds_a_model_is_until_then_the_run_that_does_not(args):
    plain = main(args(exp_name="plain"))
    grows = main(args(exp_name="grows", schedule=("add:frame_prediction:100", "drop:image_completion:190")))
    for tag in ("losses/value_loss", "losses/policy_loss", "losses/entropy", "weights/state_representation"):
        a, b = scalars(plain, tag), scalars(grows, tag)
        assert a[:4] == b[:4] and a[4:] != b[4:]  # the first rollout that starts at or after step 100 starts at 128
    assert [step for step, _ in scalars(grows, "weights/frame_prediction")] == [160, 192, 224, 256]
    assert [step for step, _ in scalars(grows, "weights/image_completion")] == [32, 64, 96, 128, 160, 192]
    of_model = [
        dict(scalars(grows, f"weights/{name}"))
        for name in ("state_representation", "image_completion", "frame_prediction")
    ]
    for step in (128, 160, 192, 224, 256):  # the softmax is over the models that are there
        assert sum(weights.get(step, 0.0) for weights in of_model) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("mode", ["wsa", "dot_product", "uniform", "random_weights"])
def test_a_schedule_goes_on_across_resume(args, mode):
    """Stopped between the two changes and resumed: the second one still happens, the optimiser fits, the agent
    opens."""
    flags = {"combiner": mode, "schedule": ("drop:image_completion:150", "add:frame_prediction:60")}
    run = main(args(total_timesteps=128, **flags))
    checkpoint = files.load(run / "checkpoint.pt", "checkpoint")
    assert checkpoint["changes_done"] == 1 and any("adapters.frame_prediction" in key for key in checkpoint["agent"])
    main(args(resume=str(run / "checkpoint.pt"), **flags))
    checkpoint = files.load(run / "checkpoint.pt", "checkpoint")
    assert checkpoint["changes_done"] == 2 and not any("image_completion" in key for key in checkpoint["agent"])
    trained = sum(
        1 for key in checkpoint["agent"] if not (mode == "random_weights" and ("scorer" in key or "context" in key))
    )
    assert len(checkpoint["optimizer"]["state"]) == trained
    assert load_agent(run / "checkpoint.pt").agent.names == ("state_representation", "frame_prediction")


def test_after_a_resume_an_added_models_gradient_is_clipped(args, clipped):
    """All that the optimiser steps is clipped together, also what the checkpoint's schedule has added."""
    flags = {"schedule": ("add:frame_prediction:60",)}
    run = main(args(total_timesteps=128, **flags))
    clipped.clear()
    main(args(total_timesteps=160, resume=str(run / "checkpoint.pt"), **flags))
    stepped = files.load(run / "checkpoint.pt", "checkpoint")["optimizer"]["state"].values()
    assert set(clipped) == {sum(state["exp_avg"].numel() for state in stepped)} and len(clipped) == 4


def test_a_schedule_keeps_all_else(args):
    """At a change nothing else moves: adapters and optimiser state of the models that stay, scorer and heads."""
    flags = args()
    frozen = ppo_wsa_atari.open_models(args(schedule=("add:frame_prediction:0",)))
    agent = ppo_wsa_atari.Agent(frozen.shapes, "autoencoder", 6, flags)
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)
    obs = torch.randint(0, 256, (4, 4, 84, 84), dtype=torch.uint8)
    agent.get_value(frozen(obs, agent.names)).sum().backward()
    optimizer.step()
    before = {key: value.clone() for key, value in agent.state_dict().items()}
    moments = {id(p): optimizer.state[p]["exp_avg"].clone() for p in agent.parameters() if p in optimizer.state}
    rng_state = torch.get_rng_state()
    for entry in ("add:frame_prediction:7", "drop:image_completion:9"):
        apply_change(changes(args(schedule=(entry,)))[0], agent.combiner, frozen.shapes, 1, optimizer)
    assert torch.equal(torch.get_rng_state(), rng_state)
    after = agent.state_dict()
    assert {key for key in before if key not in after} == {key for key in before if "image_completion" in key}
    assert all(torch.equal(before[key], after[key]) for key in before if key in after)
    kept = [p for p in agent.parameters() if id(p) in moments]
    assert kept and all(torch.equal(optimizer.state[p]["exp_avg"], moments[id(p)]) for p in kept)
    new = list(agent.combiner.adapters["frame_prediction"].parameters())
    in_optimizer = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert in_optimizer == {id(p) for p in agent.parameters()} and not any(p in optimizer.state for p in new)


def test_what_comes_later_does_not_move_random_models(args):
    """The random context, and two models added at one step: each has a generator of its own."""
    plain, later = (
        ppo_wsa_atari.open_models(args(context_encoder="random", schedule=schedule))
        for schedule in ((), ("add:frame_prediction:9",))
    )
    for key, value in plain.models["random"].state_dict().items():
        assert torch.equal(value, later.models["random"].state_dict()[key])
    flags = args(encoders=("state_representation",), schedule=("add:frame_prediction:9", "add:autoencoder:9"))
    frozen = ppo_wsa_atari.open_models(flags)
    agent = ppo_wsa_atari.Agent(frozen.shapes, frozen.context_name, 6, flags)
    optimizer = torch.optim.Adam(agent.parameters())
    for change in changes(flags):
        apply_change(change, agent.combiner, frozen.shapes, 1, optimizer)
    first, second = (agent.combiner.adapters[name].linear.weight for name in ("frame_prediction", "autoencoder"))
    assert first.shape == second.shape and not torch.equal(first, second)


def test_untrained_models_and_the_random_context(args, models):
    """The controls: random weights that the seed decides and the checkpoint keeps; the context is what was asked
    for."""
    run = main(args(untrained_encoders=True, context_encoder="random", total_timesteps=64))
    checkpoint = files.load(run / "checkpoint.pt", "checkpoint")
    assert checkpoint["encoders"] == {} and set(checkpoint["own_models"]) == {
        "state_representation",
        "image_completion",
        "random",
    }
    frozen = load_agent(run / "checkpoint.pt").frozen
    for name, state in checkpoint["own_models"].items():
        assert all(torch.equal(value, state[key]) for key, value in frozen.models[name].state_dict().items())
    weight = checkpoint["own_models"]["random"]["network.2.weight"].flatten(1)  # orthogonal rows of length sqrt 2
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(64), rtol=1e-4, atol=1e-4)
    stored = torch.load(Path(models) / "Pong" / "state_representation.pt", weights_only=True)["state"]
    assert not torch.equal(
        stored["head.weight"].float(), checkpoint["own_models"]["state_representation"]["head.weight"]
    )
    both = ppo_wsa_atari.open_models(args(encoders=("autoencoder",), untrained_encoders=True))
    assert set(both.models) == {"autoencoder", "context_autoencoder"} and set(both.sha256) == {"context_autoencoder"}


@pytest.mark.parametrize("context", ["state_representation", "image_completion"])
def test_any_model_can_be_the_context(args, context):
    assert main(args(context_encoder=context, total_timesteps=32)).is_dir()


def test_ones_own_model(args, tmp_path, monkeypatch):
    """The example of docs/combining.md, word for word; its weights are in the checkpoint."""
    page = (Path(__file__).resolve().parent.parent / "docs" / "combining.md").read_text()
    code = page.split("```python\n# my_models.py\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 12
    (tmp_path / "my_models.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    run = main(args(encoders=("state_representation", "my_models:Downsampled"), total_timesteps=64))
    checkpoint = files.load(run / "checkpoint.pt", "checkpoint")
    assert "Downsampled" in checkpoint["own_models"] and "state_representation" in checkpoint["encoders"]
    obs = np.random.default_rng(0).integers(0, 256, (2, 4, 84, 84), dtype=np.uint8)
    assert load_agent(run / "checkpoint.pt").act(obs, greedy=True).shape == (2,)
    assert len(scalars(run, "weights/Downsampled")) == 2


class Rare(nn.Module):
    """A convolution's numbers, by `view`; and one that random play never moves."""

    def __init__(self, value=0.0):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 8, 4)
        self.register_buffer("any", torch.zeros(1, 1, 1, 1, 1))
        self.value = value

    def forward(self, x):
        seen = (x[:, 3, 0, 0] == 255)[:, None]  # Pong's corner is never white
        return torch.cat([self.conv(x.float() / 255).view(len(x), -1) * self.value, seen], dim=1)


def test_what_ones_own_model_may_be():
    """What random play never moves is not blown up by centring; numbers that are not finite are refused."""
    models = FrozenModels("ALE/Pong-v5", [f"{__name__}:Rare"], None)
    models.prepare("float32", torch.device("cpu"), centre=True)
    rare = torch.full((1, 4, 84, 84), 255, dtype=torch.uint8)
    assert models(rare, ("Rare",))["Rare"][0, -1] == 1.0 and models(0 * rare, ("Rare",))["Rare"][0, -1] == 0.0
    models.models["Rare"].value = torch.nan
    with pytest.raises(InputError, match="Rare: what it gives in random play has numbers that are not finite"):
        models.prepare("float32", torch.device("cpu"), centre=True)


class Sharp(COMBINERS["dot_product"]):
    def __init__(self, encoders, context_shape, features_dim=256, gamma=4.0, precision=8):
        super().__init__(encoders, context_shape, features_dim)
        self.given = gamma, precision


def test_ones_own_combiner_is_not_given_others_flags(args):
    made = make_combiner(args(combiner=f"{__name__}:Sharp"), {"a": (4,), "b": (4,)}, (64, 16, 16))
    assert made.given == (4.0, 8) and made.names == ("a", "b")


def test_ones_own_module_may_change_the_path(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "beside_it.py").write_text("number = 3")
    (tmp_path / "lazy_module.py").write_text(f"import sys\nsys.path.insert(0, {str(tmp_path / 'lib')!r})\nthree = 3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", before := list(sys.path))
    assert import_own("lazy_module:three") == 3 and str(tmp_path / "lib") in before and "" not in before[:1]


def test_ones_own_combiner(args, tmp_path, monkeypatch):
    """The example of docs/combining.md, word for word, by its flag: trained, logged, opened again to play."""
    page = (Path(__file__).resolve().parent.parent / "docs" / "combining.md").read_text()
    code = page.split("<!-- example: my_combiner.py -->")[1].split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 17
    (tmp_path / "my_combiner.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    run = main(args(combiner="my_combiner:Cosine", total_timesteps=64))
    assert len(scalars(run, "weights/state_representation")) == 2
    player = load_agent(run / "checkpoint.pt")
    assert type(player.agent.combiner).__name__ == "Cosine"
    _, weights = player.act_and_weights(np.zeros((2, 4, 84, 84), dtype=np.uint8), greedy=True)
    np.testing.assert_allclose(weights.sum(dim=1), 1.0, rtol=1e-5)
    with pytest.raises(InputError, match="my_combiner:Nothing: cannot be made"):
        main(args(combiner="my_combiner:Nothing"))
    with pytest.raises(InputError, match="must be a class derived from Combiner"):
        main(args(combiner="math:sqrt"))
    with pytest.raises(InputError, match="--scorer is an option of --combiner wsa, not of my_combiner:Cosine"):
        main(args(combiner="my_combiner:Cosine", scorer="hidden"))


class Wrong(nn.Module):
    def forward(self, x):
        return x.float().flatten(2)  # (B, 4, 7056)


class Unscaled(nn.Conv2d):
    def __init__(self):
        super().__init__(4, 8, 3)  # and the pixels are integers


class Unsettable(Wrong):
    output_shape = property(lambda self: (4,))

    def forward(self, x):
        return x[:, :, 0, 0].float()


def not_a_module():
    return 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"combiner": "cnn", "scorer": "linear"}, "--scorer is an option of --combiner wsa, not of cnn"),
        ({"cnn_layers": 2}, "--cnn-layers is an option of --combiner cnn, not of wsa"),
        ({"combiner": "cnn", "cnn_layers": 4}, "--cnn-layers must be 1, 2 or 3, not 4"),
        ({"combiner": "reservoir", "reservoir_units": 0}, "--reservoir-units must be at least 1"),
        ({"combiner": "uniform", "weights_ent_coef": 0.1}, "--weights-ent-coef"),
        ({"combiner": "attention"}, "no such combiner; the known ones are wsa, linear"),
        ({"schedule": ("add:frame_prediction",)}, "write add:<model>:<step>"),
        ({"schedule": ("add:resnet:10",)}, "no such model"),
        ({"schedule": ("drop:object_masks:10",)}, "object_masks is not there at that step"),
        ({"schedule": ("add:image_completion:10",)}, "image_completion is there already"),
        ({"schedule": ("drop:image_completion:10", "drop:state_representation:20")}, "is the last model then"),
        ({"schedule": ("add:frame_prediction:9",), "combiner": "linear"}, "Linear is built for one set of models"),
        ({"encoders": ("nowhere:Model",)}, "nowhere:Model: cannot be made"),
        ({"encoders": ("test_ppo_wsa_atari:Nothing",)}, "test_ppo_wsa_atari:Nothing: cannot be made"),
        ({"encoders": ("test_ppo_wsa_atari:not_a_module",)}, "gives int, not an nn.Module"),
        ({"encoders": ("test_ppo_wsa_atari:Unscaled",)}, r"test_ppo_wsa_atari:Unscaled: fails on uint8"),
        ({"encoders": ("test_ppo_wsa_atari:Wrong", "other:Wrong")}, "none twice"),
        ({"encoders": ("test_ppo_wsa_atari:autoencoder",)}, "are both called autoencoder"),
        ({"encoders": ("test_ppo_wsa_atari:Wrong",)}, r"test_ppo_wsa_atari:Wrong: must map .* it gave \(2, 4, 7056\)"),
        ({"encoders": ("test_ppo_wsa_atari:Unsettable",)}, "its output_shape cannot be set"),
        ({"context_encoder": "resnet"}, "resnet: no such model"),
    ],
)
def test_bad_input_is_refused(args, changes, says):
    flags = args(**changes)
    with pytest.raises(InputError, match=says):
        main(flags)
    assert not Path(flags.runs_dir).exists()


def test_centred_embeddings(args, tmp_path):
    """Over the typical frames: each number's mean is 0, the whole embedding's root mean square is 1; elsewhere the same
    shift and scale."""
    plain, centred = (ppo_wsa_atari.open_models(args()) for _ in range(2))
    centred.prepare("float32", torch.device("cpu"), centre=True)
    frames = typical_frames("ALE/Pong-v5")
    assert frames.shape == (256, 4, 84, 84) and torch.equal(frames, typical_frames.__wrapped__("ALE/Pong-v5"))
    names = ("state_representation", "autoencoder")
    other = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 4, 84, 84), dtype=np.uint8))
    raw, seen, raw_other, seen_other = (models(x, names) for x in (frames, other) for models in (plain, centred))
    for name in names:
        z = raw[name].double().numpy()
        mean, scale = z.mean(axis=0), np.sqrt(np.square(z - z.mean(axis=0)).mean())
        np.testing.assert_allclose(seen[name].mean(dim=0).numpy(), 0, atol=1e-3)
        assert seen[name].square().mean().sqrt().item() == pytest.approx(1, rel=1e-3)
        np.testing.assert_allclose(
            seen_other[name].numpy(), (raw_other[name].numpy() - mean) / scale, rtol=1e-3, atol=1e-3
        )
    run = main(args(total_timesteps=32, centre_embeddings=True))
    agent = load_agent(run / "checkpoint.pt")
    for name, z in agent.frozen(frames[:8], names).items():
        torch.testing.assert_close(z, seen[name][:8], rtol=1e-3, atol=1e-3)
    # the agent has its own centre, and does not measure it anew
    checkpoint = files.load(run / "checkpoint.pt", "checkpoint")
    checkpoint["centre"] = {name: (mean + 1, scale * 2) for name, (mean, scale) in checkpoint["centre"].items()}
    files.save(checkpoint, tmp_path / "moved.pt")
    for name, z in load_agent(tmp_path / "moved.pt").frozen(frames[:8], names).items():
        scale = checkpoint["centre"][name][1] / 2
        torch.testing.assert_close(z, (seen[name][:8] - 1 / scale) / 2, rtol=1e-3, atol=1e-3)


def test_an_agent_whose_checkpoint_lacks_the_centre_measures_it_anew(args, tmp_path):
    """So do the stored agents, whose files are older than the key; without centring they would see something else."""
    run = main(args(centre_embeddings=True, total_timesteps=32))
    checkpoint = files.load(run / "checkpoint.pt", "checkpoint")
    assert set(checkpoint["centre"]) == {"state_representation", "image_completion", "autoencoder"}
    files.save({name: value for name, value in checkpoint.items() if name != "centre"}, tmp_path / "older.pt")
    stored, measured = (load_agent(path).frozen.centre for path in (run / "checkpoint.pt", tmp_path / "older.pt"))
    for name, (mean, scale) in stored.items():
        torch.testing.assert_close(measured[name][0], mean)
        torch.testing.assert_close(measured[name][1], scale)


@pytest.mark.parametrize("game, steps, points", [("Pong", 600, 3), ("Breakout", 120, 3), ("MsPacman", 120, 100)])
def test_the_stored_agents_win_their_first_points(game, steps, points):
    """What README shows: agents/<Game>/wsa.pt, greedy, in the game of evaluate.py --attention."""
    player = load_agent(Path(__file__).resolve().parent.parent / "agents" / game / "wsa.pt")
    env = make_env(f"ALE/{game}-v5")
    obs, _ = env.reset(seed=int(env_seeds(1, 1, 7)[0]))
    score = 0
    for _ in range(steps):
        obs, reward, *_ = env.step(int(player.act(np.asarray(obs)[None], greedy=True)[0]))
        score += reward
    assert score >= points
