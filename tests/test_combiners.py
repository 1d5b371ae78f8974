"""Adapters and Weight Sharing Attention against NumPy computations written here, and the properties the paper
claims."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from combiners import COMBINERS
from combiners.adapters import Adapter, ContextAdapter, SpatialAdapter, landing
from combiners.wsa import WeightSharingAttention

PAPER_SHAPES = {
    "state_representation": (512,),
    "keypoint_features": (128, 21, 21),
    "keypoint_maps": (4, 21, 21),
    "object_masks": (20, 84, 84),
}
CONTEXT_SHAPE = (64, 16, 16)


def random_inputs(shapes, batch=3):
    return {name: torch.randn(batch, *shape) for name, shape in shapes.items()}, torch.randn(batch, *CONTEXT_SHAPE)


def numpy_conv(x, weight, bias, stride):
    """Plain convolution of (B, C, H, W), no padding, by explicit windows."""
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bchwij,ocij->bohw", windows, weight, optimize=True) + bias[None, :, None, None]


def numpy_wsa(parameters, embeddings, context, d):
    """Weight Sharing Attention as published, in float64 NumPy: the adapters of its table, shared scorer, softmax,
    weighted sum."""
    p = {name: value.detach().double().numpy() for name, value in parameters.items()}
    strides = {"keypoint_features": 1, "keypoint_maps": 1, "object_masks": 5}
    e = []
    for name, z in embeddings.items():
        z, prefix = z.double().numpy(), f"adapters.{name}."
        if z.ndim == 4:
            z = numpy_conv(z, p[prefix + "spatial.pointwise.weight"], p[prefix + "spatial.pointwise.bias"], 1)
            z = np.maximum(
                numpy_conv(z, p[prefix + "spatial.spatial.weight"], p[prefix + "spatial.spatial.bias"], strides[name]),
                0,
            )
        z = z.reshape(len(z), -1)
        e.append(np.maximum(z @ p[prefix + "linear.weight"].T + p[prefix + "linear.bias"], 0))
    c = context.double().numpy().reshape(len(context), -1)
    c = np.maximum(c @ p["context_adapter.linear.weight"].T + p["context_adapter.linear.bias"], 0)
    scores = []
    for e_i in e:
        both = np.concatenate([c, e_i], axis=1)
        scores.append(np.maximum(both @ p["scorer.weight"][0] + p["scorer.bias"][0], 0))
    scores = np.stack(scores, axis=1)
    w = np.exp(scores - scores.max(axis=1, keepdims=True))
    w /= w.sum(axis=1, keepdims=True)
    h = np.zeros((len(c), d))
    for i, e_i in enumerate(e):
        h += w[:, i : i + 1] * e_i
    return h, w


def test_wsa_equals_numpy():
    wsa = COMBINERS["wsa"](PAPER_SHAPES, CONTEXT_SHAPE, features_dim=32, scorer="published")
    for parameter in wsa.parameters():  # biases too, and scores well apart
        parameter.data += 0.05 * torch.randn_like(parameter)
    embeddings, context = random_inputs(PAPER_SHAPES)
    h, w = numpy_wsa(wsa.state_dict(), embeddings, context, 32)
    assert w.std() > 0.01  # the example says something
    np.testing.assert_allclose(wsa(embeddings, context).detach().numpy(), h, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(wsa.state_and_weights(embeddings, context)[1].detach().numpy(), w, rtol=1e-4, atol=1e-5)


def test_weights_are_a_distribution_and_are_what_forward_uses():
    wsa = WeightSharingAttention(PAPER_SHAPES, CONTEXT_SHAPE, features_dim=16)
    embeddings, context = random_inputs(PAPER_SHAPES, batch=50)
    w = wsa.state_and_weights(embeddings, context)[1]
    assert w.shape == (50, 4) and (w >= 0).all() and torch.equal(w, wsa.attention(embeddings, context))
    torch.testing.assert_close(w.sum(dim=1), torch.ones(50))
    e = torch.stack([wsa.adapters[name](embeddings[name]) for name in PAPER_SHAPES], dim=1)
    torch.testing.assert_close(wsa(embeddings, context), torch.einsum("bn,bnd->bd", w, e))


@pytest.mark.parametrize("number", [2, 20])
@pytest.mark.parametrize("scorer, size", [("published", 2 * 256 + 1), ("bounded", (2 * 256 + 1) * 64 + 64 + 1)])
def test_shared_network_does_not_grow(number, scorer, size):
    shapes = {f"model_{i}": (512,) for i in range(number)}
    wsa = WeightSharingAttention(shapes, CONTEXT_SHAPE, features_dim=256, scorer=scorer)
    assert sum(p.numel() for p in wsa.scorer.parameters()) == size
    # in all: one Linear(512, 256) per model, the context's Linear(16384, 256), and the scorer
    assert sum(p.numel() for p in wsa.parameters()) == number * (512 * 256 + 256) + (16384 * 256 + 256) + size


def test_gradients_reach_every_adapter():
    wsa = WeightSharingAttention(PAPER_SHAPES, CONTEXT_SHAPE, features_dim=64)
    embeddings, context = random_inputs(PAPER_SHAPES, batch=8)
    wsa(embeddings, context).square().sum().backward()
    for name, parameter in wsa.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_models_come_and_go():
    wsa = WeightSharingAttention({"a": (5,), "b": (7,)}, CONTEXT_SHAPE, features_dim=8)
    embeddings, context = random_inputs({"a": (5,), "b": (7,), "c": (9, 20, 20)})
    before = wsa(embeddings, context)
    wsa.add_model("c", (9, 20, 20))
    assert wsa.state_and_weights(embeddings, context)[1].shape == (3, 3)
    wsa.remove_model("c")
    torch.testing.assert_close(wsa(embeddings, context), before)
    with pytest.raises(ValueError, match="already"):
        wsa.add_model("a", (5,))
    with pytest.raises(ValueError, match="not one of"):
        wsa.remove_model("c")
    wsa.remove_model("b")
    with pytest.raises(ValueError, match="last"):
        wsa.remove_model("a")


def test_published_adapter_sizes():
    # the table of the paper's code: channels, kernels, strides, flattened length
    expected = {
        "keypoint_features": (32, 6, 1, 8192),
        "keypoint_maps": (16, 6, 1, 4096),
        "object_masks": (16, 5, 5, 4096),
    }
    for name, (channels, kernel, stride, flattened) in expected.items():
        adapter = Adapter(name, PAPER_SHAPES[name], 256)
        in_channels = PAPER_SHAPES[name][0]
        assert adapter.spatial.pointwise.weight.shape == (channels, in_channels, 1, 1)
        assert adapter.spatial.spatial.weight.shape == (channels, channels, kernel, kernel)
        assert adapter.spatial.spatial.stride == (stride, stride)
        assert adapter.linear.in_features == flattened
    assert Adapter("state_representation", (512,), 256).linear.in_features == 512
    assert ContextAdapter(CONTEXT_SHAPE, 256).linear.in_features == 16384


@pytest.mark.parametrize("name", ["keypoint_features", "keypoint_maps", "object_masks"])
def test_composed_convolution_equals_the_two(name):
    adapter = SpatialAdapter(name, PAPER_SHAPES[name])
    assert adapter.compose == (name != "keypoint_features")
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.randn(2, *PAPER_SHAPES[name])
    plain = F.relu(adapter.spatial(adapter.pointwise(x)))
    for compose in (True, False):
        adapter.compose = compose
        torch.testing.assert_close(adapter(x), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 16, 16), (64, 7, 7), (5, 32, 32), (2, 50, 40), (1, 17, 84), (300, 1, 1)])
def test_any_map_lands_on_16x16(shape):
    adapter = SpatialAdapter("a model of one's own", shape)
    assert adapter.output_shape == (16, 16, 16)
    assert adapter(torch.randn(2, *shape)).shape == (2, 16, 16, 16)


def test_landing():
    for size in range(16, 200):
        kernel, stride = landing(size)
        assert (size - kernel) // stride + 1 == 16
    assert landing(84) == (5, 5) and landing(21) == (6, 1)


def test_an_embedding_must_be_a_vector_or_a_map():
    with pytest.raises(ValueError, match="vector .* or a map"):
        WeightSharingAttention({"a": (4, 4)}, CONTEXT_SHAPE)
    with pytest.raises(ValueError, match="at least one"):
        WeightSharingAttention({}, CONTEXT_SHAPE)
