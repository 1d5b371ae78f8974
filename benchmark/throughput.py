"""How fast do the PPO scripts train on this machine, where does the time go, and what does each larger "fast:" line bring?

    python -m benchmark.throughput                          # on a CPU, all cases without a compiler
    python -m benchmark.throughput --compile --int8         # and the ones that a flag switches on
    python -m benchmark.throughput --cuda True --compile --num-envs 64

Each case is one training loop put together from the scripts' own agents, losses and frozen models, with switches. "plain" is the
design without any of them: end to end, gymnasium's Python wrappers in turn, float32 storage and PyTorch's defaults (CleanRL's
ppo_atari.py); for WSA, every embedding computed again in each of the four epochs (the published code). "script" is all that the script
does by default; "script, without X" takes one thing away. A case's unit is a rollout and its four epochs; the cases take turns, and the
median over the rounds is kept, so that a slow moment of the machine does not fall on one of them.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
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
import processes
import storage
from atari import game_name, make_envs
from benchmark.run import cpu_name
from combiners.adapters import SpatialAdapter
from storage import InputError

PAPER = ("state_representation", "keypoint_features", "keypoint_maps", "object_masks")
LIGHT = ("state_representation", "autoencoder")
EPOCHS, MINIBATCH = 4, 256  # the published settings


@dataclass
class Args:
    env_id: str = "ALE/Pong-v5"
    """the game; its stored models are needed"""
    num_envs: int = 8
    """games side by side"""
    num_steps: int = 32
    """steps of each game in a rollout; shorter than in training, with the same minibatches of 256, so that the ratios are the same"""
    rounds: int = 5
    """measurements of each case, after one that is not counted"""
    cases: tuple[str, ...] = ()
    """only the cases in whose name one of these regular expressions is found (none: all)"""
    compile: bool = False
    """also the cases with --compile"""
    int8: bool = False
    """also the cases with --frozen-precision int8"""
    pretrained_dir: str = "pretrained"
    """the stored models are <pretrained-dir>/<Game>/<name>.pt"""
    output: str = "benchmark/throughput"
    """<output>.json and <output>.csv"""
    cuda: bool | Literal["auto"] = "auto"
    """run on a GPU: auto (if there is one), True or False"""
    torch_threads: int = 0
    """CPU threads for the network (0: PyTorch's choice)"""


@dataclass
class Case:
    """What is on in one training loop."""

    name: str
    kind: Literal["end to end", "WSA, four models", "WSA, light models"]
    vector_envs: bool = True  # ale-py's C++ environments; off: gymnasium's wrappers, one game after the other
    uint8_storage: bool = True  # off: observations become float32 as they arrive
    kept_embeddings: bool = True  # off: the frozen models run again for each minibatch
    channels_last: bool = True
    folded_batch_norm: bool = True
    composed_convolutions: bool = True
    fused_adam: bool = True
    kept_precision: str = "float16"
    minibatch_room: bool = True  # off: new memory for each minibatch
    frozen_precision: str = "float32"
    env_groups: int = 1
    compile: bool = False
    cuda_graphs: bool = False
    tf32: bool = False


def cases(args: Args) -> list[Case]:
    """All cases, in the order of the table."""
    e2e, four, light = Case("script", "end to end"), Case("script", "WSA, four models"), Case("script", "WSA, light models")
    nothing = {"channels_last": False, "fused_adam": False}
    found = [
        Case("plain", "end to end", vector_envs=False, uint8_storage=False, **nothing),
        e2e,
        replace(e2e, name="script, without C++ environments", vector_envs=False),
        replace(e2e, name="script, without uint8 storage", uint8_storage=False),
        replace(e2e, name="script, without channels_last", channels_last=False),
        replace(e2e, name="script, without fused Adam", fused_adam=False),
        replace(e2e, name="script --env-groups 2", env_groups=2),
        Case(
            "plain",
            "WSA, four models",
            kept_precision="float32",
            minibatch_room=False,
            kept_embeddings=False,
            folded_batch_norm=False,
            composed_convolutions=False,
            **nothing,
        ),
        four,
        replace(four, name="script, without kept embeddings", kept_embeddings=False),
        replace(four, name="script, without channels_last and room for minibatches", channels_last=False, minibatch_room=False),
        replace(four, name="script, without folded batch norm", folded_batch_norm=False),
        replace(four, name="script, without composed convolutions", composed_convolutions=False),
        replace(four, name="script, without fused Adam", fused_adam=False),
        replace(four, name="script, without room for minibatches", minibatch_room=False),
        replace(four, name="script --kept-precision float32", kept_precision="float32"),
        replace(four, name="script --env-groups 2", env_groups=2),
        light,
    ]
    if args.int8:
        found += [replace(four, name="script --frozen-precision int8", frozen_precision="int8")]
    if args.compile:
        found += [replace(case, name="script --compile", compile=True) for case in (e2e, four, light)]
    if args.compile and args.int8:
        found += [replace(four, name="script --compile --frozen-precision int8", compile=True, frozen_precision="int8")]
    if processes.on_cuda(args.cuda):
        found += [replace(case, name="script --tf32", tf32=True) for case in (e2e, four)]
        found += [replace(four, name="script --frozen-precision bfloat16", frozen_precision="bfloat16")]
    if processes.on_cuda(args.cuda) and args.compile:
        quick = {"tf32": True, "compile": True, "cuda_graphs": True, "env_groups": 2}
        found += [replace(e2e, name="script --tf32 --compile --cuda-graphs --env-groups 2", **quick)]
        name = "script --tf32 --compile --cuda-graphs --env-groups 2 --frozen-precision bfloat16"
        found += [replace(case, name=name, frozen_precision="bfloat16", **quick) for case in (four, light)]
    order = [case.kind for case in (e2e, four, light)]
    found = [case for case in found if not args.cases or any(re.search(part, f"{case.kind}: {case.name}") for part in args.cases)]
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
    """One case's training loop. `iteration` plays one rollout and learns from it; `seconds` adds up where the time went."""

    def __init__(self, case: Case, args: Args, device: torch.device):
        self.case, self.args, self.device = case, args, device
        torch.manual_seed(0)
        self.group_size = args.num_envs // case.env_groups
        if case.vector_envs:
            self.groups = [make_envs(args.env_id, self.group_size, life_loss_info=True) for _ in range(case.env_groups)]
        else:
            self.groups = [python_envs(args.env_id, self.group_size)]
        num_actions = int(self.groups[0].single_action_space.n)
        self.frozen = None
        if case.kind == "end to end":
            self.agent = (ppo_e2e_atari.Agent if case.channels_last else PlainAgent)(num_actions)
            loss = partial(ppo_e2e_atari.ppo_loss, self.agent, ent_coef=0.01, vf_coef=0.5)
        else:
            flags = ppo_wsa_atari.Args(
                env_id=args.env_id,
                encoders=PAPER if case.kind == "WSA, four models" else LIGHT,
                pretrained_dir=args.pretrained_dir,
                frozen_precision=case.frozen_precision,
                kept_precision=case.kept_precision,
                compile=case.compile,
                cuda_graphs=case.cuda_graphs,
            )
            self.frozen = ppo_wsa_atari.FrozenModels(flags)
            if case.folded_batch_norm:
                self.frozen.prepare(flags, device)
            self.agent = ppo_wsa_atari.Agent(self.frozen.shapes, self.frozen.context_name, num_actions, flags)
            loss = partial(ppo_wsa_atari.ppo_loss, self.agent, ent_coef=0.01, vf_coef=0.5, weights_ent_coef=0.0)
            for module in self.agent.modules():
                if isinstance(module, SpatialAdapter) and not case.composed_convolutions:
                    module.compose = False
            if not case.channels_last:
                for model in (*self.frozen.models.values(), *self.frozen.fast.values()):
                    model.to(memory_format=torch.contiguous_format)
            self.frozen.to(device)
        self.agent.to(device, memory_format=torch.channels_last if case.channels_last else torch.contiguous_format)
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=2.5e-4, eps=1e-5, fused=True if case.fused_adam else None)
        self.act, self.loss = self.agent.get_action_and_value, loss
        if case.compile:
            mode = "reduce-overhead" if case.cuda_graphs else "default"
            self.act, self.loss = torch.compile(self.act, mode=mode), torch.compile(self.loss, mode=mode)
        self.room: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # for minibatches
        self.seconds: dict[str, float] = {}
        self.seen = []
        for number, envs in enumerate(self.groups):
            seeds = np.arange(self.group_size) + 100 * number
            obs, _ = envs.reset(seed=seeds if case.vector_envs else [int(seed) for seed in seeds])
            self.seen.append(self.look(obs))

    def timed(self, phase: str, function: Any, *values: Any) -> Any:
        """Call, and count the time it took; on CUDA until the GPU has done it."""
        begin = time.perf_counter()
        result = function(*values)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begin
        return result

    def look(self, obs: np.ndarray) -> dict[str, torch.Tensor]:
        """Observations of one group as the rollout keeps them: {"obs": ...} or {model: embedding}."""
        x = processes.to_device(obs, self.device)
        if self.frozen is None and self.case.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        seen = {"obs": x if self.case.uint8_storage else x.float()}
        if self.frozen is not None:
            embeddings = self.timed("frozen models", self.frozen, x, self.agent.names)
            seen = embeddings if self.case.kept_embeddings else embeddings | seen
        return seen

    def features_of(self, seen: dict[str, torch.Tensor]) -> Any:
        return seen["obs"] if self.frozen is None else {name: z.float() for name, z in seen.items() if name != "obs"}

    @torch.no_grad()
    def choose(self, seen: dict[str, torch.Tensor]) -> tuple[np.ndarray, tuple[torch.Tensor, ...]]:
        action, logprob, _, value, *_ = self.act(self.features_of(seen))
        return action.cpu().numpy(), (action.clone(), logprob.clone(), value.clone())  # a recorded computation overwrites what it gave

    def iteration(self) -> None:
        """One rollout and four epochs over it."""
        processes.use_tf32(self.case.tf32)
        kept, chosen, rewards, dones = [], [], [], []
        for _ in range(self.args.num_steps):
            for group, envs in enumerate(self.groups):
                seen = self.seen[group]
                actions, results = self.timed("policy", self.choose, seen)
                if self.case.env_groups > 1:
                    envs.send(actions)
                kept.append(self.timed("storage", self.keep, seen))
                chosen.append(results)
            for group, envs in enumerate(self.groups):
                if self.case.env_groups > 1:
                    obs, reward, terminated, truncated, _ = self.timed("emulation", envs.recv)
                else:
                    obs, reward, terminated, truncated, _ = self.timed("emulation", envs.step, actions)
                rewards.append(torch.from_numpy(np.sign(reward).astype(np.float32)))
                dones.append(torch.from_numpy(terminated | truncated).float())
                self.seen[group] = self.look(obs)
        self.timed("update", self.update, kept, chosen, rewards, dones)

    def keep(self, seen: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.frozen is not None and not self.case.kept_embeddings:
            return {"obs": seen["obs"]}
        dtype = getattr(torch, self.case.kept_precision)
        return seen if self.frozen is None else {name: z.to(dtype) for name, z in seen.items()}

    def take(self, name: str, values: torch.Tensor, inds: torch.Tensor) -> torch.Tensor:
        if name not in self.room:
            self.room[name] = values[: len(inds)].clone(), values[: len(inds)].float()
        return ppo_wsa_atari.take_rows(values, inds, *self.room[name])

    def update(self, kept: list, chosen: list, rewards: list, dones: list) -> None:
        shape = (self.args.num_steps, self.args.num_envs)
        b_seen = {name: torch.cat([seen[name] for seen in kept]) for name in kept[0]}
        b_actions, b_logprobs, b_values = (torch.cat(part) for part in zip(*chosen, strict=True))
        with torch.no_grad():
            last = torch.cat([self.agent.get_value(self.features_of(seen)) for seen in self.seen])
        rewards, dones = torch.cat(rewards).view(shape).to(self.device), torch.cat(dones).view(shape).to(self.device)
        advantages, returns = ppo_e2e_atari.compute_advantages(rewards, b_values.view(shape), dones, last, dones[-1], 0.99, 0.95)
        b_advantages, b_returns = advantages.flatten(), returns.flatten()
        clip_range = torch.tensor(0.1, device=self.device)
        for _ in range(EPOCHS):
            for inds in torch.randperm(len(b_actions), device=self.device).split(MINIBATCH):
                if self.frozen is not None and self.case.kept_embeddings and self.case.minibatch_room:
                    seen = {name: self.take(name, values, inds) for name, values in b_seen.items()}
                else:
                    seen = {name: values[inds] for name, values in b_seen.items()}
                if self.frozen is not None and not self.case.kept_embeddings:
                    obs = seen["obs"] if self.case.uint8_storage else seen["obs"].byte()
                    seen = self.timed("frozen models in the update", self.frozen, obs, self.agent.names)
                normalised = processes.normalise(b_advantages[inds])
                loss, *_ = self.loss(self.features_of(seen), b_actions[inds], b_logprobs[inds], normalised, b_returns[inds], clip_range)
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.agent.parameters(), 0.5)
                self.optimizer.step()


def machine(device: torch.device) -> dict[str, Any]:
    """What this was measured on."""
    found = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__, "device": device.type}
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def start_up(script: str, args: Args) -> float:
    """Seconds from the command to the end of a run of one step (so a little more than to the first step), at the script's own settings."""
    flags = f"--env-id {args.env_id} --cuda {args.cuda} --num-envs {args.num_envs} --num-steps 1 --num-minibatches 1 --update-epochs 1"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, f"{script}.py", *flags.split(), "--total-timesteps", str(args.num_envs), "--runs-dir", folder]
        command += ["--pretrained-dir", args.pretrained_dir] if script == "ppo_wsa_atari" else []
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - begin


def main(args: Args) -> None:
    game_name(args.env_id)
    processes.check_ranges(args, ("num_envs", "num_steps", "rounds"), not_negative=("torch_threads",))
    processes.require_cuda(args)
    if args.num_envs % 2:
        raise InputError(f"--num-envs {args.num_envs}: it must be even, as some cases split the games into two groups.")
    ppo_wsa_atari.FrozenModels(ppo_wsa_atari.Args(env_id=args.env_id, pretrained_dir=args.pretrained_dir))  # says which models are missing
    started = {script: [start_up(script, args) for _ in range(3)] for script in ("ppo_e2e_atari", "ppo_wsa_atari")}
    for script, seconds in started.items():
        print(
            f"{script}: {min(seconds):.1f} to {max(seconds):.1f} s from the command to the end of its first step, three times", flush=True
        )
    if args.torch_threads:
        torch.set_num_threads(args.torch_threads)
    device = torch.device("cuda" if processes.on_cuda(args.cuda) else "cpu")
    steps = args.num_envs * args.num_steps
    loops, rows = [], []
    for case in cases(args):
        begin = time.perf_counter()
        loop = Loop(case, args, device)
        loop.iteration()  # not counted: first calls allocate, choose kernels, compile
        loops.append((loop, time.perf_counter() - begin, []))
        print(f"ready: {case.kind}: {case.name} ({loops[-1][1]:.0f} s)", flush=True)
    for number in range(args.rounds):
        for loop, _, times in loops:
            loop.seconds = {}
            begin = time.perf_counter()
            loop.iteration()
            times.append((time.perf_counter() - begin, loop.seconds))
        print(f"round {number + 1} of {args.rounds}", flush=True)

    def speed(times: list) -> float:
        return steps / float(np.median([total for total, _ in times]))

    plain = {loop.case.kind: speed(times) for loop, _, times in loops if loop.case.name == "plain"}
    whole = {loop.case.kind: speed(times) for loop, _, times in loops if loop.case.name == "script"}
    for loop, ready, times in loops:
        kind = loop.case.kind
        total = sum(total for total, _ in times)
        phases = ("emulation", "frozen models", "policy", "update", "frozen models in the update")
        shares = {phase: sum(seconds.get(phase, 0.0) for _, seconds in times) for phase in phases}
        again = shares.pop("frozen models in the update")
        shares["frozen models"] += again
        shares["update"] -= again
        row = {"kind": kind, "case": loop.case.name, "steps_per_second": speed(times)}
        row["slowest"], row["fastest"] = (steps / pick(total for total, _ in times) for pick in (max, min))
        row["times_plain"] = speed(times) / plain[kind] if kind in plain else None
        row["of_script"] = speed(times) / whole[kind] if kind in whole else None
        row |= {f"share_{phase.replace(' ', '_')}": seconds / total for phase, seconds in shares.items()}
        rows.append(row | {"first_iteration_seconds": ready})

    found = machine(device)
    print(f"\n{found['cpu']}, {found['threads']} threads, {found.get('gpu', 'no GPU')}, PyTorch {found['torch']}; {args.num_envs} games\n")
    print(f"{'case':<58} {'steps/s':>8} {'x plain':>8} {'of script':>9}   emulation  frozen  policy  update")
    for row in rows:
        ratios = [f"{row[key]:.2f}" if row[key] else "" for key in ("times_plain", "of_script")]
        shares = [f"{row[f'share_{phase}']:.0%}" for phase in ("emulation", "frozen_models", "policy", "update")]
        print(
            f"{row['kind'] + ': ' + row['case']:<58} {row['steps_per_second']:>8.1f} {ratios[0]:>8} {ratios[1]:>9}   "
            f"{shares[0]:>9}  {shares[1]:>6}  {shares[2]:>6}  {shares[3]:>6}"
        )
    result = {"machine": found, "settings": asdict(args), "start_up_seconds": started, "rows": rows}
    Path(f"{args.output}.json").write_text(json.dumps(result, indent=1) + "\n")
    storage.write_csv(Path(f"{args.output}.csv"), rows, ".4g")
    print(f"\nstored in {args.output}.json and .csv")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
