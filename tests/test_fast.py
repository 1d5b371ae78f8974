"""Every fast path against the plain one: folded models, bfloat16, rows taken, several processes, refusals."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_ppo import events_of
from two_processes import update

import dqn_bt_atari
import ppo_e2e_atari
import ppo_wsa_atari
import pretrain_policy_atari
from combiners import COMBINERS
from encoders import ENCODERS, PRETRAININGS, load_encoder
from encoders.fast import folded
from encoders.frozen import FrozenModels, typical_frames
from housekeeping import files, precision, processes
from housekeeping.flags import InputError
from housekeeping.memory import take_rows

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}  # of programs that run in another folder
PONG = ("state_representation", "keypoint_features", "keypoint_maps", "object_masks", "autoencoder")
SMALL = {"num_envs": 2, "num_steps": 16, "total_timesteps": 64, "cuda": False, "precision": "float32"}
LIGHT = {"encoders": ("state_representation", "autoencoder"), "features_dim": 32, "centre_embeddings": False}


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return typical_frames("ALE/Pong-v5")


def losses(run: Path) -> dict[str, list[float]]:
    events = events_of(run)
    return {
        tag: [event.value for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag.startswith("losses/")
    }


@pytest.mark.parametrize("name", PONG)
def test_folded_models_equal_stored_ones(name, frames, pretrained_dir):
    model = load_encoder(Path(pretrained_dir) / "Pong" / f"{name}.pt")
    copy = folded(model)
    x = frames[:16]
    with torch.no_grad():
        tolerance = 1e-4 if name == "object_masks" else 1e-5  # masks have steep edges, where rounding shows
        torch.testing.assert_close(copy(x), model(x), rtol=tolerance, atol=tolerance * model(x).abs().max().item())
    norms = [module for module in copy.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms == [] and any(
        isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()
    ) == name.startswith("keypoint")


def test_folding_is_the_formula():
    """w x + b, minus mean, over the root of variance + eps, times gain, plus shift: on a 1x1 convolution by hand."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1)).eval()
    with torch.no_grad():
        for tensor, value in zip(
            (model[0].weight, model[0].bias, model[1].weight, model[1].bias), (2.0, 1.0, 3.0, 0.5), strict=True
        ):
            tensor.fill_(value)
        model[1].running_mean.fill_(4.0)
        model[1].running_var.fill_(9.0 - model[1].eps)
    copy = folded(model)
    assert copy[0].weight.item() == pytest.approx(2.0) and copy[0].bias.item() == pytest.approx((1 - 4) * 3 / 3 + 0.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="kernels are recorded on a GPU only")
def test_recorded_kernels_say_the_same(frames, pretrained_dir):
    """For batches of two sizes in turns, and what was said before stays; one's own model is not recorded."""
    device = torch.device("cuda")
    frozen = FrozenModels("ALE/Pong-v5", PONG[:4], "autoencoder", pretrained_dir=pretrained_dir)
    frozen.prepare("bfloat16", device, centre=True)
    batches = [frames[start:end].to(device) for start, end in ((0, 8), (8, 16), (0, 3), (16, 24), (3, 6))]
    said = [frozen(batch, PONG[:4]) for batch in batches]
    assert len(frozen.recordings) == 2
    with torch.no_grad():
        for batch, embeddings in zip(batches, said, strict=True):
            plain = frozen.compute(batch, PONG)
            assert embeddings.keys() == plain.keys() and all(
                torch.equal(embeddings[name], plain[name]) for name in plain
            )
    own = FrozenModels("ALE/Pong-v5", ("torch.nn:Flatten",))
    own.prepare("bfloat16", device)
    assert own(batches[0], ("Flatten",)).keys() == {"Flatten"} and not own.recordings


@pytest.mark.parametrize("shape", [(7,), (3, 5, 6), (1, 5, 6), (4, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
def test_rows_are_copied_as_they_are(shape, dtype):
    """Maps in any layout of memory that a map of this shape can have; the memory is used again."""

    def room(rows: int) -> torch.Tensor:
        layout = torch.channels_last if len(shape) == 3 else torch.contiguous_format
        return (50 * torch.rand(rows, *shape)).to(dtype).to(memory_format=layout)

    kept, out = room(20), room(6)
    for rows in (torch.tensor([3, 19, 0, 3, 7, 8]), torch.arange(6)):
        assert torch.equal(take_rows(kept, rows), kept[rows])
        found = take_rows(kept, rows, out)
        assert found.data_ptr() == out.data_ptr() and torch.equal(out, kept[rows]) and found.shape == out.shape


# ---------------------------------------------------------------- bfloat16


@pytest.fixture
def processor(monkeypatch):
    """Makes PyTorch believe that the processor has these instructions."""
    return lambda **instructions: monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx2": True, **instructions}
    )


@pytest.mark.parametrize("instructions", ["avx512_bf16", "amx_bf16"])
def test_auto_is_the_faster_precision(processor, capsys, instructions):
    processor(**{instructions: True})
    cpu = torch.device("cpu")
    assert [precision.choose(wanted, cpu) for wanted in ("auto", "float32", "bfloat16")] == [
        "bfloat16",
        "float32",
        "bfloat16",
    ]
    assert capsys.readouterr().err == ""
    processor(**{instructions: False})
    assert [precision.choose(wanted, cpu) for wanted in ("auto", "float32")] == ["float32", "float32"]
    assert precision.choose("auto", torch.device("cuda")) == "bfloat16" and capsys.readouterr().err == ""
    assert precision.choose("bfloat16", cpu) == "bfloat16"
    assert "warning: --precision bfloat16 is slower than float32 here" in capsys.readouterr().err


def test_layers_for_logits_and_values_stay_float32():
    layer, x = precision.Float32Linear(300, 5), torch.randn(4, 300)
    expected = x.double() @ layer.weight.double().T + layer.bias.double()
    with precision.autocast("bfloat16", "cpu"):
        rough, exact = torch.nn.functional.linear(x, layer.weight, layer.bias), layer(x)
    assert (rough.dtype, exact.dtype) == (torch.bfloat16, torch.float32)
    assert (exact - expected).abs().max() < 1e-5 < 1e-4 < (rough - expected).abs().max()


@pytest.mark.parametrize("name", ENCODERS)
def test_frozen_models_in_bfloat16(name, frames, pretrained_dir):
    """The embedding's root mean square error is below 2% of its size (5% for masks and keypoints, whose edges are
    steep), and it is what the update reads: bfloat16."""
    flags = {
        "encoders": (name,),
        "pretrained_dir": pretrained_dir,
        "combiner": "uniform",
        "untrained_encoders": name not in PONG,
    }
    found = {}
    for of in ("float32", "bfloat16"):
        args = ppo_wsa_atari.Args(**flags, precision=of)
        models = ppo_wsa_atari.open_models(args)
        models.prepare(args.precision, torch.device("cpu"))
        found[of] = models(frames[:16], (name,))[name]
        assert found[of].dtype == getattr(torch, of)
        # the models themselves stay as stored
        assert all(parameter.dtype == torch.float32 for parameter in models.parameters())
    error = (found["bfloat16"].double() - found["float32"]).square().mean() / found["float32"].double().square().mean()
    assert 1e-5 < error.sqrt().item() < (0.05 if name in ("object_masks", "keypoint_maps") else 0.02)


@pytest.mark.parametrize("mode", COMBINERS)
def test_an_agent_in_bfloat16_is_nearly_one_in_float32(mode, tmp_path, pretrained_dir):
    """The same seed, one rollout and one update: nearly the same losses; weights, and Adam's moments of them, stay
    float32."""
    flags = SMALL | LIGHT | {"pretrained_dir": pretrained_dir, "runs_dir": str(tmp_path), "total_timesteps": 32}
    # untrained models: how far rounding moves a loss over 32 steps depends on the models' numbers (stored ones, Pong:
    # 0.5% to 2.5% off, the loss up to 16%), and the reservoir is little more than signs, which it may turn
    flags |= {"update_epochs": 1, "num_minibatches": 1, "combiner": mode, "untrained_encoders": True}
    runs = [ppo_wsa_atari.main(ppo_wsa_atari.Args(**flags | {"precision": of})) for of in ("float32", "bfloat16")]
    exact, rough = (losses(run) for run in runs)
    assert exact != rough
    for tag, tolerance in (("losses/value_loss", 0.05), ("losses/entropy", 0.002)):
        assert rough[tag] == pytest.approx(exact[tag], rel=tolerance)
    assert abs(rough["losses/approx_kl"][0]) < 1e-3  # acting and the first update agree on the policy
    checkpoint = files.load(runs[1] / "checkpoint.pt", "checkpoint")
    moments = [value for state in checkpoint["optimizer"]["state"].values() for value in state.values()]
    assert {tensor.dtype for tensor in (*checkpoint["agent"].values(), *moments)} == {torch.float32}
    assert checkpoint["args"]["precision"] == "bfloat16"


@pytest.mark.parametrize("mode", ["wsa", "dot_product"])
def test_scores_and_weights_stay_float32(mode):
    """The adapters' outputs are rounded, what is made of them is not."""
    shapes = {"a": (300,), "b": (4, 21, 21)}
    network = {"scorer": "published"} if mode == "wsa" else {}
    combine = COMBINERS[mode](shapes, (64, 16, 16), features_dim=64, **network)
    embeddings = {name: torch.randn(8, *shape).bfloat16() for name, shape in shapes.items()}
    context = torch.randn(8, 64, 16, 16).bfloat16()
    with torch.no_grad(), precision.autocast("bfloat16", "cpu"):
        (e, c), (h, w) = combine.adapt(embeddings, context), combine.state_and_weights(embeddings, context)
    assert e.dtype == c.dtype == h.dtype == w.dtype == torch.float32 and torch.equal(e, e.bfloat16().float())
    e, c = e.double(), c.double()
    if mode == "wsa":
        linear = combine.scorer.double()
        scores = (torch.cat([c[:, None].expand_as(e), e], dim=2) @ linear.weight[0] + linear.bias).relu()
    else:
        scores = (e * c[:, None]).sum(dim=2) / 8
    torch.testing.assert_close(w.double(), scores.softmax(dim=1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(h.double(), (w.double()[:, :, None] * e).sum(dim=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("script", [ppo_e2e_atari, pretrain_policy_atari, dqn_bt_atari])
def test_the_other_scripts_in_bfloat16(script, tmp_path):
    flags = {"total_timesteps": 64, "num_envs": 2, "cuda": False, "runs_dir": str(tmp_path)}
    if script is dqn_bt_atari:
        flags |= {"learning_starts": 40, "buffer_size": 200}
    else:
        flags |= {"num_steps": 16, "num_minibatches": 1, "update_epochs": 1}
    runs = [script.main(script.Args(**flags, precision=of)) for of in ("float32", "bfloat16")]
    exact, rough = (files.load(run / "checkpoint.pt", "checkpoint")["agent"] for run in runs)
    assert {tensor.dtype for tensor in rough.values()} == {torch.float32}
    assert any(not torch.equal(exact[name], rough[name]) for name in exact)
    for name in exact:  # a few steps of Adam at 1e-4: the same way, or hardly apart
        torch.testing.assert_close(rough[name], exact[name], rtol=0, atol=5e-3)
    # novelty is float32 in both, and the first rollout's actions are drawn from nearly equal policies
    if script is pretrain_policy_atari:
        first, second = (EventAccumulator(str(run)).Reload().Scalars("intrinsic/lifelong")[0].value for run in runs)
        assert first == pytest.approx(second, rel=0.2)


def test_agents_from_before_the_flag_play_in_float32(tmp_path, processor):
    """Their checkpoints have no precision; it was float32."""
    processor(avx512_bf16=True)
    flags = {
        "total_timesteps": 16,
        "num_envs": 2,
        "cuda": False,
        "runs_dir": str(tmp_path),
        "learning_starts": 16,
        "buffer_size": 200,
    }
    path = dqn_bt_atari.main(dqn_bt_atari.Args(**flags)) / "checkpoint.pt"
    checkpoint = files.load(path, "checkpoint")
    assert dqn_bt_atari.load_agent(path).precision == checkpoint["args"].pop("precision") == "bfloat16"
    files.save(checkpoint, path)
    assert dqn_bt_atari.load_agent(path).precision == "float32"


@pytest.mark.parametrize("script", [ppo_e2e_atari, ppo_wsa_atari])
def test_what_was_trained_in_bfloat16_plays_in_float32_where_that_is_all(
    script, tmp_path, pretrained_dir, processor, capsys, frames
):
    processor(avx512_bf16=True)
    # precision: auto
    flags = {
        "num_envs": 2,
        "num_steps": 16,
        "num_minibatches": 2,
        "update_epochs": 2,
        "total_timesteps": 32,
        "cuda": False,
        "runs_dir": str(tmp_path),
    }
    if script is ppo_wsa_atari:
        flags |= LIGHT | {"pretrained_dir": pretrained_dir}
    path = script.main(script.Args(**flags)) / "checkpoint.pt"
    assert "bfloat16" in capsys.readouterr().out  # said at the start
    here = script.load_agent(path)
    assert capsys.readouterr().err == ""
    processor()
    there = script.load_agent(path)
    assert (
        f"{path}: trained in bfloat16" in (said := capsys.readouterr().err)
        and "plays in float32" in said
        and said.count("\n") == 1
    )
    agents = (here, there) if script is ppo_e2e_atari else (here.agent, there.agent)
    assert [agent.precision for agent in agents] == ["bfloat16", "float32"]
    assert all(torch.equal(a, b) for a, b in zip(here.state_dict().values(), there.state_dict().values(), strict=True))
    there.act(frames[:4].numpy(), greedy=True)
    # and goes on in it
    script.main(script.Args(**flags | {"resume": str(path), "total_timesteps": 64, "precision": "float32"}))
    assert files.load(path, "checkpoint")["args"]["precision"] == "float32"


# ---------------------------------------------------------- several processes


def in_two(*command: str, cwd: Path) -> None:
    """A program in two processes, with the environment that torchrun gives them, and without the time it takes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = ONE_THREAD | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            env=os.environ | shared | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in both:
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said
    finally:
        for process in both:  # one that waits for the other
            process.kill()


def test_two_processes_learn_what_one_does(tmp_path):
    """One update over gloo, each process on half of the minibatch, against one process on all of it: gradients and
    weights within 1e-5."""
    in_two(str(ROOT / "tests" / "two_processes.py"), str(tmp_path / "two.pt"), cwd=tmp_path)
    two = torch.load(tmp_path / "two.pt")
    assert two["ranks"] == [0, 1]
    one = update(slice(None))
    assert set(one) == set(two["result"])
    for name, value in one.items():
        torch.testing.assert_close(two["result"][name], value, rtol=1e-4, atol=1e-5)
    assert max(value.abs().max() for name, value in one.items() if name.endswith(".grad")) > 1e-2


def test_a_run_of_two_processes(tmp_path, pretrained_dir):
    """It plays both shares of the games, saves once, and goes on with --resume, alone or together."""
    flags = shlex.split("--num-envs 4 --num-steps 16 --total-timesteps 128 --cuda False --max-frames-per-game 60")
    flags += ["--encoders", *LIGHT["encoders"], "--no-centre-embeddings", "--features-dim", "32"]
    flags += ["--pretrained-dir", pretrained_dir, "--runs-dir", str(tmp_path)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(ROOT / "ppo_wsa_atari.py"), *flags],
        cwd=tmp_path,
        env=os.environ | ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes with 1 CPU thread each" in done.stdout and done.stdout.count("done at step 128") == 1
    (run,) = tmp_path.glob("Pong__*")
    checkpoint = files.load(run / "checkpoint.pt", "checkpoint")
    # each of the four environments was cut off twice
    assert checkpoint["global_step"] == 128 and len(checkpoint["last_games"]) == 8
    resume = ["--resume", str(run / "checkpoint.pt"), "--total-timesteps", "192"]
    in_two(str(ROOT / "ppo_wsa_atari.py"), *resume, cwd=tmp_path)
    assert files.load(run / "checkpoint.pt", "checkpoint")["global_step"] == 192
    alone = ppo_wsa_atari.Args(**checkpoint["args"] | {"resume": str(run / "checkpoint.pt"), "total_timesteps": 256})
    ppo_wsa_atari.main(alone)
    assert len(losses(run)["losses/value_loss"]) == 4


def test_normalise_is_plain_alone():
    x = torch.tensor([1.0, 2.0, 3.0, 6.0])
    expected = (x.numpy() - 3) / (np.std([1, 2, 3, 6], ddof=1) + 1e-8)
    np.testing.assert_allclose(processes.normalise(x, torch.ones(4, dtype=torch.bool)).numpy(), expected, rtol=1e-6)


def test_normalise_leaves_out_what_does_not_count():
    x, counts = torch.tensor([1.0, 100.0, 2.0, 3.0, -50.0, 6.0]), torch.tensor([True, False, True, True, False, True])
    found = processes.normalise(x, counts)
    np.testing.assert_allclose(
        found[counts].numpy(), (np.array([1, 2, 3, 6]) - 3) / np.std([1, 2, 3, 6], ddof=1), rtol=1e-6
    )
    for few in ([True] + [False] * 5, [False] * 6):  # no deviation of one number
        assert processes.normalise(x, torch.tensor(few)).tolist() == [0.0] * 6


# ---------------------------------------------------------------- refusals


def test_what_the_machine_cannot_serve_is_refused(monkeypatch, tmp_path, pretrained_dir):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wsa = {"runs_dir": str(tmp_path), "pretrained_dir": pretrained_dir}
    # 216,228 numbers an observation, of a rollout of 6,400,000 and of a minibatch of 1,600,000, 2 or 4 bytes each
    for of, gigabytes in (("bfloat16", 3459), ("float32", 6919)):
        says = (
            rf"kept embeddings of a rollout of 6,400,000 steps and of a minibatch need {gigabytes}\.\d\d "
            "GB, and .* are free"
        )
        with pytest.raises(InputError, match=says):
            ppo_wsa_atari.main(ppo_wsa_atari.Args(**wsa, num_envs=50_000, precision=of))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="needs a C\\+\\+ compiler"):
        ppo_e2e_atari.main(ppo_e2e_atari.Args(compile=True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"2 processes and 1 GPU\(s\): lower --nproc-per-node, or give --cuda False"):
        ppo_e2e_atari.main(ppo_e2e_atari.Args())
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="cannot be split evenly into 3 processes"):
        ppo_e2e_atari.main(ppo_e2e_atari.Args())
    assert list(tmp_path.iterdir()) == []


def test_all_threads_flush_denormals(tmp_path, pretrained_dir):
    """Once a run has begun, products below 1.2e-38 that two threads compute are 0, each thread's."""
    flags = {
        "encoders": ("state_representation",),
        "num_envs": 2,
        "num_steps": 8,
        "total_timesteps": 16,
        "update_epochs": 1,
        "centre_embeddings": False,
        "cuda": False,
        "precision": "float32",
    }
    flags |= {"pretrained_dir": pretrained_dir, "runs_dir": str(tmp_path)}
    run = f"import torch, ppo_wsa_atari; ppo_wsa_atari.main(ppo_wsa_atari.Args(**{flags}))"
    count = (
        "print(torch.get_num_threads(), (torch.full((4_000_000,), 3e-38) * "
        "0.1).view(torch.int32).count_nonzero().item())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}  # beside another test
    done = subprocess.run(
        [sys.executable, "-c", f"{run}; {count}"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 0"


# the Transporter's is keypoint_features'
@pytest.mark.parametrize("name", [name for name in PRETRAININGS if name != "keypoint_maps"])
def test_pretraining_in_bfloat16_has_the_same_loss(name, frames):
    """Each loss within 2% and the gradients' norm within 5% of single precision's."""
    torch.manual_seed(0)
    pretraining, found = PRETRAININGS[name](), []
    until = 102 if name == "keypoint_features" else 108  # slow where bfloat16 is emulated
    for enabled in (False, True):
        torch.manual_seed(1)
        with precision.autocast("bfloat16" if enabled else "float32", "cpu"):
            loss = pretraining.loss(frames[100:until], frames[101 : until + 1], torch.tensor(0.5))["loss"]
        loss.backward()
        gradients = [parameter.grad.norm() for parameter in pretraining.parameters() if parameter.grad is not None]
        found.append((loss.item(), torch.stack(gradients).norm().item()))
        pretraining.zero_grad()
    assert found[1][0] == pytest.approx(found[0][0], rel=0.02) and found[1][1] == pytest.approx(found[0][1], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("script", [ppo_e2e_atari, ppo_wsa_atari])
def test_compiled_runs_equal_eager_ones(script, tmp_path, pretrained_dir):
    """The first update's losses within 1e-4 (relative)."""
    flags = SMALL | {"total_timesteps": 64, "num_minibatches": 1, "update_epochs": 2, "runs_dir": str(tmp_path)}
    if script is ppo_wsa_atari:
        flags |= LIGHT | {"pretrained_dir": pretrained_dir}
    eager, compiled = (losses(script.main(script.Args(**flags, compile=compile))) for compile in (False, True))
    for tag, values in eager.items():
        assert compiled[tag] == pytest.approx(values, rel=1e-4, abs=1e-6), tag
