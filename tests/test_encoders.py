"""The pre-trained models' networks and losses against computations written here, and their files."""

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from encoders import ENCODERS, PRETRAININGS, load_encoder, load_pretraining, save_encoder
from encoders.frozen import typical_frames
from encoders.image_completion import hide_square
from encoders.keypoint_maps import gaussian_maps, keypoints
from encoders.masked_autoencoder import MaskedAutoencoderPretraining, patches
from encoders.object_masks import ObjectMasksPretraining, blur, displace, ssim, unexplained
from encoders.state_representation import StateRepresentationPretraining, info_nce
from encoders.transporter import TransporterPretraining, transport
from housekeeping import files
from housekeeping.flags import InputError

PUBLISHED_SHAPES = {
    "state_representation": (512,),
    "keypoint_features": (128, 21, 21),
    "keypoint_maps": (4, 21, 21),
    "object_masks": (20, 84, 84),
    "autoencoder": (64, 16, 16),
    "image_completion": (64, 16, 16),
    "frame_prediction": (64, 16, 16),
    "masked_autoencoder": (192,),
}
SEES = {  # which of the four frames, oldest first
    "state_representation": [0, 1, 2, 3],
    "keypoint_features": [3],
    "keypoint_maps": [3],
    "object_masks": [2, 3],
    "autoencoder": [3],
    "image_completion": [3],
    "frame_prediction": [0, 1, 2, 3],
    "masked_autoencoder": [0, 1, 2, 3],
}


def random_obs(batch=2):
    return torch.randint(0, 256, (batch, 4, 84, 84), dtype=torch.uint8)


def store(folder, name, seed=0, **description):
    """A model with random weights, stored as pretrain_encoders.py stores them."""
    torch.manual_seed(seed)
    pretraining = PRETRAININGS[name]()
    description = {"game": "Pong", "training": {"budget": "paper"}} | description
    for model_name in pretraining.stored_models():
        save_encoder(folder / f"{model_name}.pt", model_name, pretraining, description)
    return pretraining


@pytest.mark.parametrize("name", ENCODERS)
def test_output_shape_and_frames(name):
    model, obs = ENCODERS[name]().eval(), random_obs()
    out = model(obs)
    assert tuple(out.shape[1:]) == model.output_shape == PUBLISHED_SHAPES[name]
    for frame in range(4):
        changed = obs.clone()
        changed[:, frame] = 255 - changed[:, frame]
        assert torch.equal(model(changed), out) == (frame not in SEES[name])


@pytest.mark.parametrize("name", ENCODERS)
def test_pixels_are_scaled_once(name):
    """All-white frames reach the first layer as ones."""
    model = ENCODERS[name]().eval()
    seen = {}
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    first.register_forward_hook(lambda module, args, output: seen.update(x=args[0]))
    model(torch.full((1, 4, 84, 84), 255, dtype=torch.uint8))
    assert (seen["x"] == 1).all() and seen["x"].numel() == len(SEES[name]) * 84 * 84


def test_parameter_counts():
    """Convolution k x k from i to o with bias: o (i k k + 1); batch normalisation: 2 a channel; Linear(i, o): o (i +
    1)."""
    conv_bn = lambda i, o, k: o * i * k * k + 2 * o  # noqa: E731
    trunk = (
        conv_bn(1, 32, 7)
        + conv_bn(32, 32, 3)
        + conv_bn(32, 64, 3)
        + conv_bn(64, 64, 3)
        + conv_bn(64, 128, 3)
        + conv_bn(128, 128, 3)
    )
    expected = {
        "autoencoder": 32 * 65 + 64 * (32 * 9 + 1) + 64 * (64 * 9 + 1),
        "state_representation": 32 * (4 * 64 + 1) + 64 * (32 * 16 + 1) + 32 * (64 * 9 + 1) + 512 * (1568 + 1),
        "keypoint_features": trunk,
        "keypoint_maps": trunk + 4 * (128 + 1),
        "image_completion": 32 * 65 + 64 * (32 * 9 + 1) + 64 * (64 * 9 + 1),
        "frame_prediction": 32 * (4 * 64 + 1) + 64 * (32 * 9 + 1) + 64 * (64 * 9 + 1),
        # embedding and places; per block: attention in and out, two layers of the perceptron, two norms; the last norm
        "masked_autoencoder": 192 * 577
        + 49 * 192
        + 4 * (3 * 192 * 193 + 192 * 193 + 768 * 193 + 192 * 769 + 4 * 192)
        + 2 * 192,
        "object_masks": 32 * (2 * 64 + 1)
        + 64 * (32 * 16 + 1)
        + 64 * (64 * 9 + 1)
        + 512 * (3136 + 1)
        + 24 * 441 * 513
        + 2 * 24 * (24 * 9 + 1)
        + 20 * 25,
    }
    assert {name: sum(p.numel() for p in cls().parameters()) for name, cls in ENCODERS.items()} == expected


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "keypoint_features"])
def test_a_few_steps_lower_the_loss(name):
    """Ten steps on one small batch of noise and squares: the loss of that batch falls, and every parameter moves."""
    pretraining = PRETRAININGS[name]()
    obs = torch.zeros(4, 4, 84, 84, dtype=torch.uint8)
    for i in range(4):
        for frame in range(4):
            obs[i, frame, 10 * i + 4 * frame : 10 * i + 4 * frame + 12, 20:40] = 200
    later = obs.roll(3, dims=2) if pretraining.offsets[1] else obs
    before = {key: value.clone() for key, value in pretraining.named_parameters()}
    optimizer = torch.optim.Adam(pretraining.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        torch.manual_seed(0)  # what is hidden at random stays hidden
        loss = pretraining.loss(obs, later, 0.0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(not torch.equal(value, before[key]) for key, value in pretraining.named_parameters())


def test_info_nce_equals_numpy():
    queries, keys = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    total = 0.0
    for place in range(3):
        for i in range(5):
            scores = [float(queries[place, i] @ keys[place, j]) for j in range(5)]
            total -= scores[i] - np.log(np.sum(np.exp(scores)))
    assert info_nce(queries, keys).item() == pytest.approx(total / 15, rel=1e-5)


def test_state_representation_contrasts_places():
    """Both parts of the loss, place by place, with plain loops over the bilinear forms."""
    pretraining, obs, later = StateRepresentationPretraining(), random_obs(3), random_obs(3)
    with torch.no_grad():
        losses = pretraining.loss(obs, later, 0.0)
        local, later_local = pretraining.encoder.local_map(obs), pretraining.encoder.local_map(later)
        vector = pretraining.encoder(obs)
        w_g, w_l = pretraining.global_local.weight, pretraining.local_local.weight
        global_total = local_total = 0.0
        for y in range(7):
            for x in range(7):
                global_scores = torch.stack([(w_g @ vector[i]) @ later_local[:, :, y, x].T for i in range(3)])
                local_scores = torch.stack([(w_l @ local[i, :, y, x]) @ later_local[:, :, y, x].T for i in range(3)])
                global_total += F.cross_entropy(global_scores, torch.arange(3)).item() / 49
                local_total += F.cross_entropy(local_scores, torch.arange(3)).item() / 49
    assert losses["global_local"].item() == pytest.approx(global_total, rel=1e-4)
    assert losses["local_local"].item() == pytest.approx(local_total, rel=1e-4)
    assert losses["loss"].item() == pytest.approx(global_total + local_total, rel=1e-4)


def test_keypoints_find_a_peak_and_average_two():
    maps = torch.zeros(1, 3, 21, 21)
    maps[0, 0, 5, 20] = 100.0  # row 5, column 20
    maps[0, 1, 0, 0] = maps[0, 1, 20, 10] = 100.0
    points = keypoints(maps)[0]
    torch.testing.assert_close(points[0], torch.tensor([1.0, -0.5]))  # x = 20/20*2-1, y = 5/20*2-1
    torch.testing.assert_close(points[1], torch.tensor([-0.5, 0.0]))
    torch.testing.assert_close(points[2], torch.tensor([0.0, 0.0]), atol=1e-6, rtol=0)


def test_gaussian_maps():
    maps = gaussian_maps(torch.tensor([[[0.0, -0.5]]]), 21, 21)[0, 0]
    assert maps[5, 10].item() == pytest.approx(1.0)
    assert maps[6, 10].item() == pytest.approx(np.exp(-(0.1**2) / 0.1**2), rel=1e-4)  # one cell is 0.1
    assert maps[7, 13].item() == pytest.approx(np.exp(-(0.2**2 + 0.3**2) / 0.1**2), rel=1e-3)


def test_transport_keypoint_by_keypoint():
    rng = np.random.default_rng(0)
    f_s, f_t = rng.random((1, 2, 3, 3)), rng.random((1, 2, 3, 3))
    h_s, h_t = rng.random((1, 2, 3, 3)), rng.random((1, 2, 3, 3))
    expected = f_s
    for k in range(2):
        expected = (1 - h_s[:, k]) * (1 - h_t[:, k]) * expected[0] + h_t[:, k] * f_t[0]
        expected = expected[None]
    result = transport(*(torch.from_numpy(a) for a in (f_s, f_t, h_s, h_t)))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6)


def test_transporter_learns_from_the_target_only():
    pretraining = PRETRAININGS["keypoint_maps"]().eval()
    seen = []
    pretraining.features.network[0].register_forward_hook(
        lambda module, args, output: seen.append(output.requires_grad)
    )
    pretraining.loss(random_obs(), random_obs(), 0.0)
    assert seen == [False, True]  # source, then target


def test_displace_moves_pixels():
    frame = torch.rand(1, 1, 84, 84)
    shift = torch.zeros(1, 2, 84, 84)
    shift[:, 0], shift[:, 1] = 3.0, -2.0  # look 3 to the right and 2 up
    moved = displace(frame, shift)
    torch.testing.assert_close(moved[:, :, 2:, :-3], frame[:, :, :-2, 3:], atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[0, 0, 10, 83], frame[0, 0, 8, 83], atol=1e-4, rtol=0)  # the border is clamped
    half = displace(frame, torch.full((1, 2, 84, 84), 0.5))
    torch.testing.assert_close(half[0, 0, 4, 4], frame[0, 0, 4:6, 4:6].mean(), atol=1e-4, rtol=0)


def test_ssim_equals_numpy():
    a, b = torch.rand(1, 1, 20, 24), torch.rand(1, 1, 20, 24)
    distance = np.arange(11) - 5
    gauss = np.exp(-(distance**2) / (2 * 1.5**2))
    window = np.outer(gauss, gauss) / gauss.sum() ** 2
    values = []
    for y in range(10):
        for x in range(14):
            p, q = a[0, 0, y : y + 11, x : x + 11].numpy(), b[0, 0, y : y + 11, x : x + 11].numpy()
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    assert ssim(a, b).item() == pytest.approx(np.mean(values), rel=1e-3)
    assert ssim(a, a).item() == pytest.approx(1.0)


def test_object_masks_loss():
    """Displacement and price from masks and translations by plain sums; the price's weight is the progress of the
    run."""
    pretraining, obs = ObjectMasksPretraining(), random_obs()
    with torch.no_grad():
        masks = pretraining.encoder(obs)
        features = pretraining.encoder.features(obs)
        translations = pretraining.translations(features).view(2, 20, 2)
        motion = masks[:, :, None] * translations[:, :, :, None, None]  # (B, 20, 2, 84, 84)
        displacement = 0.84 * (motion.sum(dim=1) + pretraining.camera(features)[:, :, None, None])
        rebuilt = displace(obs[:, 3:].float() / 255, displacement)
        dissimilarity = (1 - ssim(rebuilt, obs[:, 2:3].float() / 255)) / 2
        for progress in (0.0, 0.25, 1.0):
            losses = pretraining.loss(obs, obs, progress)
            assert losses["moved_area"].item() == pytest.approx(motion.abs().mean().item(), rel=1e-4)
            assert losses["loss"].item() == pytest.approx(
                (dissimilarity + progress * motion.abs().mean()).item(), rel=1e-4
            )


def test_a_square_is_hidden():
    obs = random_obs(50).clamp(min=1)
    hidden = hide_square(obs)
    # other places; the observations stay as they are
    assert not torch.equal(hidden[0] == 0, hidden[1] == 0) and obs.min() == 1
    for sample, before in zip(hidden, obs, strict=True):
        rows, columns = (sample[0] == 0).any(dim=1).nonzero(), (sample[0] == 0).any(dim=0).nonzero()
        top, left = int(rows[0]), int(columns[0])
        assert (sample[:, top : top + 20, left : left + 20] == 0).all() and (sample == 0).sum() == 4 * 20 * 20
        assert torch.equal(sample[sample != 0], before[sample != 0])


def test_frame_prediction_looks_at_the_next_frame():
    pretraining, obs, later = PRETRAININGS["frame_prediction"](), random_obs(), random_obs()
    drawn = pretraining.decoder(pretraining.encoder(obs))
    assert pretraining.loss(obs, later, 0.0)["loss"].item() == pytest.approx(
        (drawn - later[:, 3:].float() / 255).square().mean().item()
    )


def test_patches_row_by_row():
    obs = random_obs(1)
    cut = patches(obs)
    assert cut.shape == (1, 49, 576)
    expected = obs[0, :, 12:24, 36:48].float() / 255  # second row, fourth column: patch 7 + 3
    torch.testing.assert_close(cut[0, 10], expected.flatten())


def test_the_masked_autoencoder_sees_a_quarter():
    """The loss depends on the masked patches as targets alone, and what is drawn on the seen ones alone."""
    pretraining, obs = MaskedAutoencoderPretraining(), random_obs()
    torch.manual_seed(3)
    drawn, masked = pretraining.rebuild(obs)
    assert (masked.sum(dim=1) == 36).all()  # 49 patches, three quarters of them
    changed = obs.clone()
    for sample in range(2):
        for patch in masked[sample].nonzero().flatten().tolist():
            row, column = divmod(patch, 7)
            changed[sample, :, 12 * row : 12 * row + 12, 12 * column : 12 * column + 12] = 0
    torch.manual_seed(3)
    again, _ = pretraining.rebuild(changed)
    torch.testing.assert_close(drawn, again)
    torch.manual_seed(3)
    expected = (drawn - patches(obs))[masked].square().mean().item()
    assert pretraining.loss(obs, obs, 0.0)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_schedules_follow_the_run():
    assert PRETRAININGS["object_masks"]().learning_rate_factor(0.75) == pytest.approx(0.25)
    transporter = PRETRAININGS["keypoint_maps"]()
    assert transporter.learning_rate_factor(0.0) == 1.0
    assert transporter.learning_rate_factor(0.1) == pytest.approx(0.95)
    assert transporter.learning_rate_factor(0.79) == pytest.approx(0.95**7)
    assert transporter.learning_rate_factor(0.9) == pytest.approx(0.95**9 / 2)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_stored_model_equals_its_file(name, tmp_path):
    pretraining = store(tmp_path, name)
    model = load_encoder(tmp_path / f"{name}.pt", "cpu", "Pong")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    stored = torch.load(tmp_path / f"{name}.pt", weights_only=True)["state"]
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, stored[key].to(tensor.dtype)), key  # bit for bit
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float32 and stored[key].dtype == torch.float16
    original = pretraining.stored_models()[name].eval()
    out, exact = model(random_obs()), original(random_obs())
    assert out.shape == exact.shape and model.output_shape == PUBLISHED_SHAPES[name]
    assert model.sha256 == files.sha256(tmp_path / f"{name}.pt") and model.description["name"] == name
    whole = load_pretraining(tmp_path, name)
    for key, tensor in pretraining.state_dict().items():  # decoder and all, within half precision
        torch.testing.assert_close(whole.state_dict()[key], tensor, rtol=1e-3, atol=1e-4)


def test_half_precision_does_not_overflow(tmp_path):
    pretraining = PRETRAININGS["keypoint_maps"]()
    pretraining.keypoints.network[1].running_var.fill_(1e6)  # above 65,504
    save_encoder(tmp_path / "keypoint_maps.pt", "keypoint_maps", pretraining, {"game": "Pong"})
    assert load_encoder(tmp_path / "keypoint_maps.pt").network[1].running_var[0] == 1e6


def test_files_that_do_not_fit_are_refused(tmp_path):
    store(tmp_path, "autoencoder")
    path = tmp_path / "autoencoder.pt"
    payload = torch.load(path, weights_only=True)
    with pytest.raises(InputError, match="of Pong, not of Breakout"):
        load_encoder(path, game="Breakout")
    for change, says in [
        ({"version": 99}, "format version 99"),
        ({"name": "resnet"}, "'resnet'; the known ones are"),
        ({"output_shape": [1, 2, 3]}, r"its output shape is \(1, 2, 3\)"),
        ({"name": "object_masks"}, "the model in this file is object_masks, not autoencoder"),
        ({"state": {}}, "do not fit"),
        ({"state": {"decoder": "white"}}, "do not fit"),
        ({"kind": "checkpoint"}, "expected a file of the kind 'encoder'"),
    ]:
        files.save({**payload, **change}, path)
        with pytest.raises(InputError, match=says):
            load_encoder(path)
    with pytest.raises(InputError, match="no such file"):
        load_encoder(tmp_path / "nothing.pt")


# ----------------------------------------------------- the "cpu" budget's deviations


def test_what_a_displacement_explains():
    """A ball of 2 x 2 pixels that moved by 4 to the right, beside one that did not move: all, or nothing, is
    explained."""
    older, newer = torch.zeros(2, 1, 84, 84), torch.zeros(2, 1, 84, 84)
    older[0, 0, 40:42, 30:32] = newer[0, 0, 40:42, 34:36] = 1.0
    older[1, 0, 10:12, 10:12] = newer[1, 0, 10:12, 10:12] = 1.0  # nothing moves: error 0 without displacement
    nothing = torch.zeros(2, 2, 84, 84)
    assert unexplained(newer, older, nothing).item() == pytest.approx(0.5)
    moved = nothing.clone()
    moved[0, 0] = 4.0  # x: each pixel is taken from 4 pixels further right
    assert unexplained(newer, older, moved).item() == pytest.approx(0.0, abs=1e-5)
    # Half way there is no gain on sharp frames, but some under each blur: what pulls from afar
    half = nothing.clone()
    half[0, 0] = 2.0
    assert unexplained(newer[:1], older[:1], half[:1]).item() < 0.8


def test_a_blur_is_a_gaussian_that_keeps_the_sum():
    image = torch.zeros(1, 1, 84, 84)
    image[0, 0, 40, 40] = 1.0
    blurred = blur(image, 1.5)[0, 0].numpy()
    x = np.arange(-4, 5)
    gauss = np.exp(-(x**2) / (2 * 1.5**2))
    gauss /= gauss.sum()
    np.testing.assert_allclose(blurred[36:45, 36:45], np.outer(gauss, gauss), atol=1e-6)
    assert blurred.sum() == pytest.approx(1.0, abs=1e-5)


def require_standardised(layers: torch.nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Each unit of each layer has mean 0 and variance 1 over the data; what the last layer gives."""
    for layer in layers:
        x = layer(x)
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            y = x.transpose(0, 1).flatten(1)
            assert y.mean(dim=1).abs().max() < 1e-3 and (y.std(dim=1) - 1).abs().max() < 1e-2
    return x


@torch.no_grad()
def test_the_masks_start_tells_frames_apart():
    """After `for_cpu` each unit of the trunk answers, and equal frames look like nothing."""
    torch.manual_seed(0)
    obs = torch.randint(0, 256, (64, 4, 84, 84), dtype=torch.uint8)
    pretraining = ObjectMasksPretraining()
    pretraining.for_cpu(obs)
    require_standardised(pretraining.encoder.trunk, obs[:, -2:].float() / 255.0)
    first = pretraining.encoder.trunk[0]
    same = first(torch.rand(1, 1, 84, 84).expand(1, 2, 84, 84))
    torch.testing.assert_close(same, first.bias[None, :, None, None].expand_as(same), atol=1e-4, rtol=0)


def test_the_autoencoder_learns_nearly_white_frames_by_its_start():
    """A dark square on white, like PushT's block. As published every picture soon becomes white."""

    def frames(count: int) -> torch.Tensor:
        obs = torch.full((count, 4, 84, 84), 250, dtype=torch.uint8)
        for one, (top, left) in zip(obs, torch.randint(0, 76, (count, 2)).tolist(), strict=True):
            one[:, top : top + 8, left : left + 8] = 60
        return obs

    for start, learns in ((True, True), (False, False)):
        torch.manual_seed(0)
        pretraining = PRETRAININGS["autoencoder"]()
        if start:
            pretraining.for_cpu(frames(64))
        optimizer = torch.optim.Adam(pretraining.parameters(), **pretraining.adam)
        for _ in range(75):
            obs = frames(8)
            optimizer.zero_grad()
            pretraining.loss(obs, obs, 0.0)["loss"].backward()
            optimizer.step()
        obs = frames(32)
        with torch.no_grad():
            drawn, loss = pretraining.picture(obs, obs)["reconstruction"], pretraining.loss(obs, obs, 1.0)["loss"]
        of_median = 64 / 84**2 * ((250 - 60) / 255) ** 2
        assert bool(loss < 0.7 * of_median) is learns
        assert bool(drawn.std(dim=0).mean() < 1e-3) is not learns  # the same picture whatever is seen


@torch.no_grad()
def test_all_units_of_the_state_representation_answer_at_the_start():
    """With the published start 12 of 32 units answer in less than 1% of Pong's places, as docs/pretraining.md says."""
    torch.manual_seed(1)
    obs, pretraining = typical_frames("ALE/Pong-v5"), StateRepresentationPretraining()

    def silent() -> int:
        return int(((pretraining.encoder.local_map(obs) > 0).float().mean(dim=(0, 2, 3)) < 0.01).sum())

    assert silent() == 12
    pretraining.for_cpu(obs)
    assert silent() == 0
    patches = require_standardised(pretraining.encoder.local, obs.float() / 255.0)
    require_standardised(torch.nn.Sequential(pretraining.encoder.head), patches.flatten(1))


def test_the_cpu_budgets_contrast():
    """Only places that see a pixel change count, and nothing that all observations share: plain loops."""
    torch.manual_seed(0)
    obs = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    later = obs.clone()
    later[:2, -1, 0, 0] ^= 1  # rows and columns 0 to 35 are seen by the first place alone
    later[2, -1, 83, 45] ^= 1  # the last row: places 2 (16 to 51) to 5 (40 to 75) of the last row of places
    counting = {(0, 0, 0), (1, 0, 0), *((2, 6, x) for x in (2, 3, 4, 5))}
    pretraining = StateRepresentationPretraining()
    pretraining.for_cpu(obs)

    def without_mean(x: np.ndarray) -> np.ndarray:  # (B, numbers)
        x = x - x.mean(axis=0)
        return x / np.sqrt((x**2).mean() + 1e-5)

    with torch.no_grad():
        losses = pretraining.loss(obs, later, 0.0)
        local = pretraining.encoder.local_map(obs).numpy()
        later_local = pretraining.encoder.local_map(later).numpy()
        vector = without_mean(pretraining.encoder(obs).numpy())
    w_g, w_l = pretraining.global_local.weight.detach().numpy(), pretraining.local_local.weight.detach().numpy()
    totals = np.zeros(2)
    for i, y, x in counting:
        patch, keys = without_mean(local[:, :, y, x])[i], without_mean(later_local[:, :, y, x]) / np.sqrt(32)
        for part, query in enumerate((w_g @ vector[i], w_l @ patch)):
            scores = keys @ query
            totals[part] += np.log(np.exp(scores).sum()) - scores[i]
    assert losses["global_local"].item() == pytest.approx(totals[0] / 6, rel=1e-3)
    assert losses["local_local"].item() == pytest.approx(totals[1] / 6, rel=1e-3)


def test_nothing_that_moves_is_no_loss():
    obs = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    pretraining = StateRepresentationPretraining()
    pretraining.for_cpu(obs)
    loss = pretraining.loss(obs, obs, 0.0)["loss"]
    loss.backward()
    assert loss.item() == 0 and pretraining.encoder.head.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("pretraining_of", [ObjectMasksPretraining, TransporterPretraining])
def test_held_out_losses_are_the_published_ones(pretraining_of):
    """What `for_cpu` changes in the loss it changes in training only."""
    torch.manual_seed(0)
    obs, later = torch.randint(0, 256, (2, 4, 4, 84, 84), dtype=torch.uint8)
    pretraining = pretraining_of().eval()
    published = pretraining.loss(obs, later, 1.0)
    pretraining.cpu = True
    assert {name: value.item() for name, value in pretraining.loss(obs, later, 1.0).items()} == {
        name: value.item() for name, value in published.items()
    }
    assert set(pretraining.train().loss(obs, later, 1.0)) != set(published)


def test_the_keypoints_gaussians_shrink_to_the_published_width(monkeypatch):
    widths = []
    pretraining = TransporterPretraining()
    pretraining.for_cpu(torch.zeros(1, 4, 84, 84, dtype=torch.uint8))
    original = pretraining.reconstruct
    monkeypatch.setattr(pretraining, "reconstruct", lambda *rest: widths.append(float(rest[2])) or original(*rest))
    obs = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    for progress in (0.0, 0.3, 0.6, 1.0):
        pretraining.loss(obs, obs, progress)
    np.testing.assert_allclose(widths, [0.5, 0.1 * 5**0.5, 0.1, 0.1], rtol=1e-6)
