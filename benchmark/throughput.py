"""How fast do the scripts train on this machine, where does the time go, and what does each larger "fast:" line bring?

    python -m benchmark.throughput                          # on a CPU, all cases without a compiler
    python -m benchmark.throughput --compile                # and the ones with one
    python -m benchmark.throughput --cuda True --compile --num-envs 64

Each case is one training loop put together from the scripts' own agents, losses and frozen models, with switches.
"plain" is the design without any of them, in float32: end to end, gymnasium's Python wrappers in turn, float32 storage
and PyTorch's defaults (CleanRL's ppo_atari.py); for WSA, every embedding computed again in each of the four epochs (the
published code). "script" is all that the script does by default, in the precision that is the faster one here;
"script, without X" takes one thing away. A case's unit is a rollout and its four epochs; of pre-training, a few steps
at the batch size of the CPU's budget, in float32 ("plain") and by default ("script"). Each case has a process of its
own, so that none works in memory that another one has prepared; they take turns, and the median over the rounds is
kept, so that a slow moment of the machine does not fall on one of them.
"""

import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import tyro
from gymnasium.wrappers import (
    FrameStackObservation,
    GrayscaleObservation,
    MaxAndSkipObservation,
    RecordEpisodeStatistics,
    ResizeObservation,
    TransformReward,
)

import ppo_e2e_atari
import ppo_wsa_atari
from benchmark.runs import cpu_name
from combiners.adapters import SpatialAdapter
from encoders import PRETRAININGS
from encoders.frozen import typical_frames
from environments.atari import game_name, make_envs
from housekeeping import device as devices
from housekeeping import files, precision, processes
from housekeeping.flags import InputError, check_ranges
from housekeeping.memory import keep_freed_memory, take_rows, to_device
from housekeeping.precision import Precision

PAPER = ("state_representation", "keypoint_features", "keypoint_maps", "object_masks")
LIGHT = ("state_representation", "autoencoder")
EPOCHS, MINIBATCH = 4, 256  # the published settings
PRETRAINED = {  # what a case of pre-training is called: the model whose pre-training it is
    "pre-training: state representation": "state_representation",
    "pre-training: Transporter": "keypoint_features",
    "pre-training: object masks": "object_masks",
    "pre-training: autoencoder": "autoencoder",
}
PRETRAINING_STEPS = 4  # of one measurement


@dataclass
class Args:
    env_id: str = "ALE/Pong-v5"
    """the game; its stored models are needed"""
    num_envs: int = 8
    """games side by side"""
    num_steps: int = 32
    """steps of each game in a rollout; shorter than in training, with the same minibatches of 256, so that the ratios
    are the same"""
    rounds: int = 5
    """measurements of each case, after one that is not counted"""
    cases: tuple[str, ...] = ()
    """only the cases in whose name one of these regular expressions is found (none: all)"""
    compile: bool = False
    """also the cases with --compile"""
    pretrained_dir: str | None = None
    """the stored models are <pretrained-dir>/<Game>/<name>.pt (none given: the repository's pretrained/)"""
    output: str = "my_throughput"
    """<output>.json and <output>.csv"""
    cuda: bool | Literal["auto"] = "auto"
    """run on a GPU: auto (if there is one), True or False"""
    torch_threads: int = 0
    """CPU threads for the network (0: PyTorch's choice)"""


@dataclass
class Case:
    """What is on in one training loop."""

    name: str
    kind: str  # "end to end", "WSA, four models", "WSA, light models", or one of PRETRAINED
    vector_envs: bool = True  # ale-py's C++ environments; off: gymnasium's wrappers, one game after the other
    uint8_storage: bool = True  # off: observations become float32 as they arrive
    kept_embeddings: bool = True  # off: the frozen models run again for each minibatch
    channels_last: bool = True
    folded_batch_norm: bool = True
    recorded_kernels: bool = True  # off: a GPU's kernels of the frozen models are started one by one
    composed_convolutions: bool = True
    fused_adam: bool = True
    freed_memory_kept: bool = True  # off: it goes back to the system, and new pages are asked for
    precision: Precision = "auto"
    compile: bool = False


def cases(args: Args) -> list[Case]:
    """All cases, in the order of the table."""
    on_gpu = devices.on_cuda(args.cuda)
    e2e, four, light = (
        Case("script", "end to end"),
        Case("script", "WSA, four models"),
        Case("script", "WSA, light models"),
    )
    nothing = {"channels_last": False, "fused_adam": False, "precision": "float32", "freed_memory_kept": False}
    found = [
        Case("plain", "end to end", vector_envs=False, uint8_storage=False, **nothing),
        e2e,
        replace(e2e, name="script --precision float32", precision="float32"),
        replace(e2e, name="script, without C++ environments", vector_envs=False),
        replace(e2e, name="script, without uint8 storage", uint8_storage=False),
        replace(e2e, name="script, without channels_last", channels_last=False),
        replace(e2e, name="script, without fused Adam", fused_adam=False),
        replace(e2e, name="script, without keeping freed memory", freed_memory_kept=False),
        Case(
            "plain",
            "WSA, four models",
            vector_envs=False,
            kept_embeddings=False,
            folded_batch_norm=False,
            recorded_kernels=False,
            composed_convolutions=False,
            **nothing,
        ),
        four,
        replace(four, name="script --precision float32", precision="float32"),
        replace(four, name="script, without kept embeddings", kept_embeddings=False),
        replace(four, name="script, without channels_last", channels_last=False),
        replace(four, name="script, without folded batch norm", folded_batch_norm=False),
        replace(four, name="script, without composed convolutions", composed_convolutions=False),
        *([replace(four, name="script, without recorded kernels", recorded_kernels=False)] if on_gpu else []),
        replace(four, name="script, without fused Adam", fused_adam=False),
        replace(four, name="script, without keeping freed memory", freed_memory_kept=False),
        light,
        replace(light, name="script --precision float32", precision="float32"),
    ]
    found += [
        Case(name, kind, precision=of) for kind in PRETRAINED for name, of in (("plain", "float32"), ("script", "auto"))
    ]
    if args.compile:
        found += [replace(case, name="script --compile", compile=True) for case in (e2e, four, light)]
    order = [case.kind for case in (e2e, four, light)] + list(PRETRAINED)
    found = [
        case
        for case in found
        if not args.cases or any(re.search(part, f"{case.kind}: {case.name}") for part in args.cases)
    ]
    return sorted(found, key=lambda case: order.index(case.kind))


def python_envs(env_id: str, num_envs: int) -> gym.vector.VectorEnv:
    """The plain design's games: gymnasium's wrappers in CleanRL's order, one environment after the other."""

    def make() -> gym.Env:
        env = RecordEpisodeStatistics(gym.make(env_id, frameskip=1, repeat_action_probability=0.0))
        env = MaxAndSkipObservation(env, skip=4)
        env = GrayscaleObservation(ResizeObservation(TransformReward(env, np.sign), (84, 84)))
        return FrameStackObservation(env, 4)

    return gym.vector.SyncVectorEnv([make] * num_envs)


class PlainAgent(ppo_e2e_atari.Agent):
    """The same network, fed in PyTorch's default layout."""

    def features(self, obs: torch.Tensor) -> torch.Tensor:
        return self.network(obs.float() / 255.0)


class Loop:
    """One case's training loop. `iteration` plays one rollout and learns from it; `seconds` adds up where the time
    went."""

    def __init__(self, case: Case, args: Args, device: torch.device):
        self.case, self.args, self.device = case, args, device
        self.precision = precision.choose(case.precision, device)
        self.steps = args.num_envs * args.num_steps
        torch.manual_seed(0)
        if case.vector_envs:
            self.envs = make_envs(args.env_id, args.num_envs, life_loss_info=True)
        else:
            self.envs = python_envs(args.env_id, args.num_envs)
        num_actions = int(self.envs.single_action_space.n)
        self.frozen = None
        if case.kind == "end to end":
            self.agent = (ppo_e2e_atari.Agent if case.channels_last else PlainAgent)(num_actions, self.precision)
            loss = partial(ppo_e2e_atari.ppo_loss, self.agent, ent_coef=0.01, vf_coef=0.5)
        else:
            flags = ppo_wsa_atari.Args(
                env_id=args.env_id,
                encoders=PAPER if case.kind == "WSA, four models" else LIGHT,
                pretrained_dir=args.pretrained_dir,
                precision=self.precision,
                compile=case.compile,
            )
            self.frozen = ppo_wsa_atari.open_models(flags)
            self.frozen.prepare(self.precision, device, compile=case.compile)
            if not case.folded_batch_norm:
                self.frozen.fast = {
                    name: model.to(getattr(torch, self.precision)) for name, model in self.frozen.models.items()
                }
            self.agent = ppo_wsa_atari.Agent(self.frozen.shapes, self.frozen.context_name, num_actions, flags)
            loss = partial(ppo_wsa_atari.ppo_loss, self.agent, ent_coef=0.01, vf_coef=0.5, weights_ent_coef=0.0)
            for module in self.agent.modules():
                if isinstance(module, SpatialAdapter) and not case.composed_convolutions:
                    module.compose = False
            if not case.channels_last:
                for model in (*self.frozen.models.values(), *self.frozen.fast.values()):
                    model.to(memory_format=torch.contiguous_format)
            self.frozen.to(device)
            self.see = self.frozen if case.recorded_kernels else self.see_kernel_by_kernel
        self.agent.to(device, memory_format=torch.channels_last if case.channels_last else torch.contiguous_format)
        self.optimizer = torch.optim.Adam(
            self.agent.parameters(), lr=2.5e-4, eps=1e-5, fused=True if case.fused_adam else None
        )
        self.act, self.loss = self.agent.get_action_and_value, loss
        if case.compile:
            self.act, self.loss = torch.compile(self.act), torch.compile(self.loss)
        self.kept: dict[str, torch.Tensor] = {}
        self.room: dict[str, torch.Tensor] = {}  # for minibatches
        self.seconds: dict[str, float] = {}
        seeds = np.arange(args.num_envs)
        obs, _ = self.envs.reset(seed=seeds if case.vector_envs else [int(seed) for seed in seeds])
        self.seen = self.look(obs)

    def timed(self, phase: str, function: Any, *values: Any) -> Any:
        """Call, and count the time it took; on CUDA until the GPU has done it."""
        begin = time.perf_counter()
        result = function(*values)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begin
        return result

    def see_kernel_by_kernel(self, obs: torch.Tensor, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """What the frozen models say, without a recording."""
        return self.frozen.compute(obs, self.frozen.wanted(names))

    def look(self, obs: np.ndarray) -> dict[str, torch.Tensor]:
        """Observations as the rollout keeps them: {"obs": ...} or {model: embedding}."""
        x = to_device(obs, self.device)
        if self.frozen is None and self.case.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        seen = {"obs": x if self.case.uint8_storage else x.float()}
        if self.frozen is not None:
            embeddings = self.timed("frozen models", self.see, x, self.agent.names)
            seen = embeddings if self.case.kept_embeddings else embeddings | seen
        return seen

    def features_of(self, seen: dict[str, torch.Tensor]) -> Any:
        return seen["obs"] if self.frozen is None else {name: z for name, z in seen.items() if name != "obs"}

    @torch.no_grad()
    def choose(self, seen: dict[str, torch.Tensor]) -> tuple[np.ndarray, tuple[torch.Tensor, ...]]:
        action, logprob, _, value, *_ = self.act(self.features_of(seen))
        return action.cpu().numpy(), (action, logprob, value)

    def iteration(self) -> None:
        """One rollout and four epochs over it."""
        chosen, rewards, dones = [], [], []
        for step in range(self.args.num_steps):
            actions, results = self.timed("policy", self.choose, self.seen)
            self.timed("storage", self.keep, self.seen, step)
            chosen.append(results)
            obs, reward, terminated, truncated, _ = self.timed("emulation", self.envs.step, actions)
            rewards.append(torch.from_numpy(np.sign(reward).astype(np.float32)))
            dones.append(torch.from_numpy(terminated | truncated).float())
            self.seen = self.look(obs)
        self.timed("update", self.update, chosen, rewards, dones)

    def keep(self, seen: dict[str, torch.Tensor], step: int) -> None:
        """Write what was seen into the rollout's storage, made at the first call."""
        if self.frozen is not None and not self.case.kept_embeddings:
            seen = {"obs": seen["obs"]}
        for name, values in seen.items():
            if name not in self.kept:
                layout = (
                    torch.channels_last if values.dim() == 4 and self.case.channels_last else torch.contiguous_format
                )
                self.kept[name] = values.new_zeros((self.steps, *values.shape[1:])).to(memory_format=layout)
            self.kept[name][step * len(values) : (step + 1) * len(values)] = values

    def update(self, chosen: list, rewards: list, dones: list) -> None:
        shape = (self.args.num_steps, self.args.num_envs)
        b_actions, b_logprobs, b_values = (torch.cat(part) for part in zip(*chosen, strict=True))
        with torch.no_grad():
            last = self.agent.get_value(self.features_of(self.seen))
        rewards, dones = torch.cat(rewards).view(shape).to(self.device), torch.cat(dones).view(shape).to(self.device)
        advantages, returns = ppo_e2e_atari.compute_advantages(
            rewards, b_values.view(shape), dones, last, dones[-1], 0.99, 0.95
        )
        b_advantages, b_returns = advantages.flatten(), returns.flatten()
        clip_range = torch.tensor(0.1, device=self.device)
        for _ in range(EPOCHS):
            for inds in torch.randperm(len(b_actions), device=self.device).split(MINIBATCH):
                if self.case.channels_last:
                    seen = {name: take_rows(values, inds, self.room.get(name)) for name, values in self.kept.items()}
                    self.room = seen if self.frozen is not None and len(inds) == MINIBATCH else {}
                else:
                    seen = {name: values[inds] for name, values in self.kept.items()}
                if self.frozen is not None and not self.case.kept_embeddings:
                    obs = seen["obs"] if self.case.uint8_storage else seen["obs"].byte()
                    seen = self.timed("frozen models in the update", self.see, obs, self.agent.names)
                free = torch.ones(len(inds), dtype=torch.bool, device=self.device)
                normalised = processes.normalise(b_advantages[inds], free)
                seen, of_rollout = (
                    self.features_of(seen),
                    (b_actions[inds], b_logprobs[inds], normalised, b_returns[inds]),
                )
                loss, *_ = self.loss(seen, *of_rollout, free, free.sum(), clip_range)
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.agent.parameters(), 0.5)
                self.optimizer.step()


class PretrainingLoop:
    """One model's pre-training at the batch size of the CPU's budget, on frames of random play."""

    def __init__(self, case: Case, args: Args, device: torch.device):
        self.case, self.device, self.steps, self.seconds = case, device, PRETRAINING_STEPS, {}
        self.precision = precision.choose(case.precision, device)
        torch.manual_seed(0)
        self.pretraining = PRETRAININGS[PRETRAINED[case.kind]]().to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.pretraining.parameters(), **self.pretraining.adam, fused=True)
        frames = typical_frames(args.env_id)
        batch_size = self.pretraining.batch_size["cpu"]
        self.obs, self.later_obs = (frames[part : part + batch_size].to(device) for part in (100, 101))

    def iteration(self) -> None:
        for _ in range(self.steps):
            with precision.autocast(self.precision, self.device):
                loss = self.pretraining.loss(self.obs, self.later_obs, torch.tensor(0.5))["loss"]
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def work(case: Case, args: Args, connection: Connection) -> None:
    """One case, in a process of its own: an iteration that is not counted (it allocates, picks kernels, compiles), one
    for each True."""
    begin = time.perf_counter()
    if args.torch_threads:
        torch.set_num_threads(args.torch_threads)
    torch.set_flush_denormal(True)
    if case.freed_memory_kept:
        keep_freed_memory()
    device = torch.device("cuda" if devices.on_cuda(args.cuda) else "cpu")
    loop = (PretrainingLoop if case.kind in PRETRAINED else Loop)(case, args, device)
    loop.iteration()
    connection.send((loop.steps, loop.precision, time.perf_counter() - begin))
    while connection.recv():
        loop.seconds = {}
        begin = time.perf_counter()
        loop.iteration()
        connection.send((time.perf_counter() - begin, loop.seconds))


@dataclass
class Running:
    """A case's process, and what it has said."""

    case: Case
    process: multiprocessing.Process
    connection: Connection
    steps: int
    precision: str
    ready: float  # seconds until the end of its first iteration
    times: list[tuple[float, dict[str, float]]]

    @property
    def speed(self) -> float:
        """Steps per second, by the median iteration."""
        return self.steps / float(np.median([total for total, _ in self.times]))


def start(case: Case, args: Args) -> Running:
    """Begin a case, and wait until it is ready; raises RuntimeError if it fails."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(case, args, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        steps, of, ready = ours.recv()
    except EOFError as error:
        raise RuntimeError(f"{case.kind}: {case.name}: its process has ended") from error
    print(f"ready: {case.kind}: {case.name} ({ready:.0f} s)", flush=True)
    return Running(case, process, ours, steps, of, ready, [])


def machine(device: torch.device) -> dict[str, Any]:
    """What this was measured on."""
    found = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__, "device": device.type}
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def start_up(script: str, args: Args) -> float:
    """Seconds from the command to the end of a run of one step (so a little more than to the first step), at the
    script's own settings."""
    flags = (
        f"--env-id {args.env_id} --cuda {args.cuda} --num-envs {args.num_envs} --num-steps 1 "
        "--num-minibatches 1 --update-epochs 1"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            f"{script}.py",
            *flags.split(),
            "--total-timesteps",
            str(args.num_envs),
            "--runs-dir",
            folder,
        ]
        command += (
            ["--pretrained-dir", args.pretrained_dir] if script == "ppo_wsa_atari" and args.pretrained_dir else []
        )
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - begin


def main(args: Args) -> None:
    game_name(args.env_id)
    check_ranges(args, ("num_envs", "num_steps", "rounds"), not_negative=("torch_threads",))
    devices.require_cuda(args)
    files.require_writable(Path(args.output).parent)
    try:
        chosen = cases(args)
    except re.error as error:
        raise InputError(f"--cases: this is no regular expression ({error}).") from error
    if not chosen:
        raise InputError(f"--cases {' '.join(args.cases)}: no case is called so.")
    # says which models are missing
    ppo_wsa_atari.open_models(ppo_wsa_atari.Args(env_id=args.env_id, pretrained_dir=args.pretrained_dir))
    started = {script: [start_up(script, args) for _ in range(3)] for script in ("ppo_e2e_atari", "ppo_wsa_atari")}
    for script, seconds in started.items():
        print(
            f"{script}: {min(seconds):.1f} to {max(seconds):.1f} s from the command to the end of its first "
            "step, three times",
            flush=True,
        )
    if args.torch_threads:
        torch.set_num_threads(args.torch_threads)
    device = torch.device("cuda" if devices.on_cuda(args.cuda) else "cpu")
    running, rows = [start(case, args) for case in chosen], []
    for number in range(args.rounds):
        for one in running:
            one.connection.send(True)
            one.times.append(one.connection.recv())
        print(f"round {number + 1} of {args.rounds}", flush=True)
    for one in running:
        one.connection.send(False)

    plain = {one.case.kind: one.speed for one in running if one.case.name == "plain"}
    whole = {one.case.kind: one.speed for one in running if one.case.name == "script"}
    for one in running:
        kind, total = one.case.kind, sum(total for total, _ in one.times)
        phases = ("emulation", "frozen models", "policy", "update", "frozen models in the update")
        shares = {phase: sum(seconds.get(phase, 0.0) for _, seconds in one.times) for phase in phases}
        again = shares.pop("frozen models in the update")
        shares["frozen models"] += again
        shares["update"] -= again
        row = {"kind": kind, "case": one.case.name, "precision": one.precision, "steps_per_second": one.speed}
        row["slowest"], row["fastest"] = (one.steps / pick(total for total, _ in one.times) for pick in (max, min))
        row["times_plain"] = one.speed / plain[kind] if kind in plain else None
        row["of_script"] = one.speed / whole[kind] if kind in whole else None
        if kind not in PRETRAINED:
            row |= {f"share_{phase.replace(' ', '_')}": seconds / total for phase, seconds in shares.items()}
        rows.append(row | {"first_iteration_seconds": one.ready})

    found = machine(device)
    print(
        f"\n{found['cpu']}, {found['threads']} threads, {found.get('gpu', 'no GPU')}, PyTorch {found['torch']}; "
        f"{args.num_envs} games\n"
    )
    print(f"{'case':<58} {'steps/s':>8} {'x plain':>8} {'of script':>9}   emulation  frozen  policy  update")
    for row in rows:
        ratios = [f"{row[key]:.2f}" if row[key] else "" for key in ("times_plain", "of_script")]
        phases = ("emulation", "frozen_models", "policy", "update")
        shares = [f"{row[f'share_{phase}']:.0%}" if f"share_{phase}" in row else "" for phase in phases]
        print(
            f"{row['kind'] + ': ' + row['case']:<58} {row['steps_per_second']:>8.1f} {ratios[0]:>8} {ratios[1]:>9}   "
            f"{shares[0]:>9}  {shares[1]:>6}  {shares[2]:>6}  {shares[3]:>6}"
        )
    result = {"machine": found, "settings": asdict(args), "start_up_seconds": started, "rows": rows}
    Path(f"{args.output}.json").write_text(json.dumps(result, indent=1) + "\n")
    files.write_csv(Path(f"{args.output}.csv"), rows, ".4g")
    print(f"\nstored in {args.output}.json and .csv")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
