"""Every fast path against the plain one: folded and int8 models, groups of environments, kept precision, several processes, refusals."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from two_processes import update

import ppo_e2e_atari
import ppo_wsa_atari
import pretrain_encoders
import processes
import storage
from encoders import ENCODERS, PRETRAININGS, load_encoder
from encoders.fast import INT8, folded, int8
from ppo_wsa_atari import typical_frames
from storage import InputError

ROOT = Path(__file__).resolve().parent.parent
PONG = ("state_representation", "keypoint_features", "keypoint_maps", "object_masks", "autoencoder")
SMALL = {"num_envs": 4, "num_steps": 16, "total_timesteps": 128, "cuda": False}
LIGHT = {"encoders": ("state_representation", "autoencoder"), "features_dim": 32}


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return typical_frames("ALE/Pong-v5")


def losses(run: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"] if tag.startswith("losses/")}


@pytest.mark.parametrize("name", PONG)
def test_folded_models_equal_stored_ones(name, frames, pretrained_dir):
    model = load_encoder(Path(pretrained_dir) / "Pong" / f"{name}.pt")
    copy = folded(model)
    x = frames[:16]
    with torch.no_grad():
        torch.testing.assert_close(copy(x), model(x), rtol=1e-5, atol=1e-5 * model(x).abs().max().item())
    norms = [module for module in copy.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms == [] and any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()) == name.startswith("keypoint")


def test_folding_is_the_formula():
    """w x + b, minus mean, over the root of variance + eps, times gain, plus shift: on a 1x1 convolution by hand."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1)).eval()
    with torch.no_grad():
        for tensor, value in zip((model[0].weight, model[0].bias, model[1].weight, model[1].bias), (2.0, 1.0, 3.0, 0.5), strict=True):
            tensor.fill_(value)
        model[1].running_mean.fill_(4.0)
        model[1].running_var.fill_(9.0 - model[1].eps)
    copy = folded(model)
    assert copy[0].weight.item() == pytest.approx(2.0) and copy[0].bias.item() == pytest.approx((1 - 4) * 3 / 3 + 0.5)


@pytest.mark.parametrize("shape", [(7,), (3, 5, 6), (1, 5, 6), (4, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_rows_of_kept_embeddings_are_copied_as_they_are(shape, dtype):
    """Maps in any layout of memory that a map of this shape can have; the memory is used again."""

    def room(rows: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(rows, *shape).to(dtype).to(memory_format=torch.channels_last if len(shape) == 3 else torch.contiguous_format)

    kept, out = room(20, dtype), room(6, torch.float32)
    half = out if dtype == torch.float32 else room(6, dtype)
    for rows in (torch.tensor([3, 19, 0, 3, 7, 8]), torch.arange(6)):
        found = ppo_wsa_atari.take_rows(kept, rows, half, out)
        assert found is out and torch.equal(found, kept[rows].float())


@pytest.mark.parametrize("name", [name for name in PONG if ENCODERS[name] in INT8])
def test_int8_embeddings_are_within_the_stated_error(name, frames, pretrained_dir):
    """The README says: within 5% (root mean square, on frames that were not used to set the ranges)."""
    model = load_encoder(Path(pretrained_dir) / "Pong" / f"{name}.pt")
    x = frames[200:]
    with torch.no_grad():
        exact, rough = model(x), int8(model, frames[:200])(x)
    error = ((rough - exact).square().mean() / exact.square().mean()).sqrt().item()
    assert 1e-4 < error < 0.05


def test_an_agent_trained_on_int8_is_opened_with_int8(tmp_path, pretrained_dir):
    flags = SMALL | LIGHT | {"pretrained_dir": pretrained_dir, "runs_dir": str(tmp_path), "frozen_precision": "int8"}
    run = ppo_wsa_atari.main(ppo_wsa_atari.Args(**flags))
    agent = ppo_wsa_atari.load_agent(run / "checkpoint.pt")
    x = typical_frames("ALE/Pong-v5")[:4]
    exact = agent.frozen.models["autoencoder"](x)
    assert 0 < (agent.frozen(x, agent.agent.names)["autoencoder"] - exact).abs().max() < 1
    stored = load_encoder(Path(pretrained_dir) / "Pong" / "autoencoder.pt")  # and the model itself is still its file
    assert all(
        torch.equal(a, b)
        for a, b in zip(agent.frozen.models["autoencoder"].state_dict().values(), stored.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("script", [ppo_e2e_atari, ppo_wsa_atari])
def test_groups_of_environments_play_the_same_games(script, tmp_path, pretrained_dir, monkeypatch):
    """With a policy that cannot choose (a learning rate of 0, one action drawn whatever is seen), two groups bring the rollout of one."""
    flags = SMALL | {"runs_dir": str(tmp_path), "num_minibatches": 1, "update_epochs": 1}
    if script is ppo_wsa_atari:
        flags |= LIGHT | {"pretrained_dir": pretrained_dir}
    rollouts = []
    compute = script.compute_advantages
    monkeypatch.setattr(script, "compute_advantages", lambda *rest: (rollouts.append([x.clone() for x in rest[:5]]), compute(*rest))[1])
    monkeypatch.setattr(torch.distributions.Categorical, "sample", lambda policy: policy.logits.argmax(dim=1) * 0 + 3)
    for env_groups in (1, 2):
        script.main(script.Args(**flags, env_groups=env_groups, learning_rate=0.0, env_id="ALE/Pong-v5"))
    assert len(rollouts) == 4
    for one, two in zip(rollouts[:2], rollouts[2:], strict=True):
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert rollouts[0][1].std() > 0  # the values differ, so that order matters


def test_one_seed_gives_one_run_with_groups(tmp_path):
    runs = [ppo_e2e_atari.main(ppo_e2e_atari.Args(**SMALL, env_groups=2, runs_dir=str(tmp_path))) for _ in range(2)]
    assert losses(runs[0]) == losses(runs[1])


def test_half_precision_of_kept_embeddings_changes_little(tmp_path, pretrained_dir):
    flags = SMALL | LIGHT | {"pretrained_dir": pretrained_dir, "runs_dir": str(tmp_path), "total_timesteps": 64, "update_epochs": 1}
    flags["num_minibatches"] = 1
    exact, rough = (losses(ppo_wsa_atari.main(ppo_wsa_atari.Args(**flags, kept_precision=p))) for p in ("float32", "float16"))
    assert exact != rough
    for tag in ("losses/value_loss", "losses/entropy"):
        assert rough[tag] == pytest.approx(exact[tag], rel=1e-3)


# ---------------------------------------------------------- several processes


def torchrun(*command: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*start, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_two_processes_learn_what_one_does(tmp_path):
    """One update over gloo, each process on half of the minibatch, against one process on all of it: gradients and weights within 1e-5."""
    done = torchrun(str(ROOT / "tests" / "two_processes.py"), str(tmp_path / "two.pt"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    two = torch.load(tmp_path / "two.pt")
    assert two["ranks"] == [0, 1]
    one = update(slice(None))
    assert set(one) == set(two["result"])
    for name, value in one.items():
        torch.testing.assert_close(two["result"][name], value, rtol=1e-4, atol=1e-5)
    assert max(value.abs().max() for name, value in one.items() if name.endswith(".grad")) > 1e-2


def test_a_run_of_two_processes(tmp_path, pretrained_dir):
    """It plays both shares of the games, saves once, and goes on with --resume, alone or together."""
    flags = ["--num-envs", "4", "--num-steps", "16", "--total-timesteps", "128", "--cuda", "False", "--max-frames-per-game", "60"]
    flags += ["--encoders", *LIGHT["encoders"], "--features-dim", "32", "--pretrained-dir", pretrained_dir, "--runs-dir", str(tmp_path)]
    done = torchrun(str(ROOT / "ppo_wsa_atari.py"), *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout and done.stdout.count("done at step 128") == 1
    (run,) = tmp_path.glob("Pong__*")
    checkpoint = storage.load(run / "checkpoint.pt", "checkpoint")
    assert checkpoint["global_step"] == 128 and len(checkpoint["last_games"]) == 8  # each of the four environments was cut off twice
    again = torchrun(str(ROOT / "ppo_wsa_atari.py"), "--resume", str(run / "checkpoint.pt"), "--total-timesteps", "192", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert storage.load(run / "checkpoint.pt", "checkpoint")["global_step"] == 192
    alone = ppo_wsa_atari.Args(**checkpoint["args"] | {"resume": str(run / "checkpoint.pt"), "total_timesteps": 256})
    ppo_wsa_atari.main(alone)
    assert len(losses(run)["losses/value_loss"]) == 4


def test_normalise_is_plain_alone():
    x = torch.tensor([1.0, 2.0, 3.0, 6.0])
    expected = (x.numpy() - 3) / (np.std([1, 2, 3, 6], ddof=1) + 1e-8)
    np.testing.assert_allclose(processes.normalise(x).numpy(), expected, rtol=1e-6)


# ---------------------------------------------------------------- refusals


def test_what_the_machine_cannot_serve_is_refused(monkeypatch, tmp_path, pretrained_dir):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wsa = {"runs_dir": str(tmp_path), "pretrained_dir": pretrained_dir}
    for script, flags, says in (
        (ppo_e2e_atari, {"cuda_graphs": True}, "needs --compile and a CUDA device"),
        (ppo_e2e_atari, {"tf32": True}, "this run is on a CPU"),
        (ppo_e2e_atari, {"env_groups": 3}, "cannot be split evenly"),
        (pretrain_encoders, {"mixed_precision": True}, "--mixed-precision is for CUDA"),
        (ppo_wsa_atari, wsa | {"frozen_precision": "bfloat16"}, "bfloat16 is for CUDA"),
        (
            ppo_wsa_atari,
            wsa | {"num_envs": 50_000},
            r"kept embeddings of a rollout of 50000 x 128 steps and of a minibatch need 48\d\d\.\d\d GB, and .* are free",
        ),
    ):
        with pytest.raises(InputError, match=says):
            script.main(script.Args(**flags))
    monkeypatch.setattr(processes.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="needs a C\\+\\+ compiler"):
        ppo_e2e_atari.main(ppo_e2e_atari.Args(compile=True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"2 processes and 1 GPU\(s\): lower --nproc-per-node, or give --cuda False"):
        ppo_e2e_atari.main(ppo_e2e_atari.Args())
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="cannot be split evenly into 3 process"):
        ppo_e2e_atari.main(ppo_e2e_atari.Args())
    assert list(tmp_path.iterdir()) == []


def test_all_threads_flush_denormals(tmp_path, pretrained_dir):
    """Once a run has begun, products below 1.2e-38 that two threads compute are 0, each thread's."""
    flags = {"encoders": ("state_representation",), "num_envs": 2, "num_steps": 8, "total_timesteps": 16, "update_epochs": 1, "cuda": False}
    flags |= {"pretrained_dir": pretrained_dir, "runs_dir": str(tmp_path)}
    run = f"import torch, ppo_wsa_atari; ppo_wsa_atari.main(ppo_wsa_atari.Args(**{flags}))"
    count = "print(torch.get_num_threads(), (torch.full((4_000_000,), 3e-38) * 0.1).view(torch.int32).count_nonzero().item())"
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", f"{run}; {count}"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 0"


@pytest.mark.parametrize("name", [name for name in PRETRAININGS if name != "keypoint_maps"])  # the Transporter's is keypoint_features'
def test_pretraining_in_mixed_precision_has_the_same_loss(name, frames):
    """bfloat16, here on a CPU: each loss within 2% and the gradients' norm within 5% of single precision's."""
    torch.manual_seed(0)
    pretraining, found = PRETRAININGS[name](), []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = pretraining.loss(frames[100:108], frames[101:109], torch.tensor(0.5))["loss"]
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
