"""Weight Sharing Attention: PPO on Atari that sees through several frozen, pre-trained models and learns how to weigh them.

    python ppo_wsa_atari.py --env-id ALE/Pong-v5                             # the paper's four models, 10,000,000 steps
    python ppo_wsa_atari.py --encoders state_representation autoencoder      # light models, for a CPU
    python ppo_wsa_atari.py --resume runs/<run_name>/checkpoint.pt           # go on
    torchrun --nproc-per-node 2 ppo_wsa_atari.py --num-envs 16               # several processes or GPUs train one agent
    tensorboard --logdir runs

Piccoli, Li, Carfì, Lomonaco, Bacciu: "Combining Pre-Trained Models for Enhanced Feature Representation in Reinforcement Learning" (arXiv
2507.07197). PPO: Schulman et al. 2017 (arXiv 1707.06347). The models come from pretrain_encoders.py (encoders/), the combination is in
combiners/wsa.py. PPO here is that of ppo_e2e_atari.py, acting on embeddings in place of pixels.

In games that have FIRE, the action after a lost life is FIRE, whatever the policy chose (atari.py): it teaches the values, not the policy.

The file reads in the order in which things happen: flags, frozen models, trained agent, advantages, loss, then `main`: set-up, rollout
(where each frozen model sees each observation once), advantages, update (which reads the kept embeddings), log, save. What makes it fast is
marked "fast:" where it stands; the README says what the larger ones bring
(benchmark/throughput.py, benchmark/denormals.py).
"""

import functools
import math
import signal
import sys
import threading
import time
import zlib
from collections import deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import tyro
from torch.distributions import Categorical
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import precision
import processes
import storage
from atari import MAX_FRAMES_PER_GAME, env_seeds, game_name, make_envs, play_games
from combiners import COMBINERS, Reservoir, WeightedSum, options_of
from combiners.adapters import layer_init
from encoders import ENCODERS, load_encoder
from encoders.fast import folded
from encoders.own_model import make_own_model
from precision import Float32Linear, Precision
from storage import InputError

SCRIPT = "ppo_wsa_atari"  # what a checkpoint of this script calls itself


@dataclass
class Args:
    env_id: str = "ALE/Pong-v5"
    """the game, a Gymnasium id"""
    exp_name: str = SCRIPT
    """the run's folder is <game>__<exp_name>__<seed>__<time>"""
    seed: int = 1
    """seed of network, actions, minibatches and games"""
    total_timesteps: int = 10_000_000
    """length of the run in agent steps (4 emulator frames each), over all environments"""
    num_envs: int = 8
    """games played side by side"""
    num_steps: int = 128
    """steps per environment in one rollout"""
    repeat_action_probability: float = 0.0
    """sticky actions: how often the emulator repeats the action before (0: the paper's, 0.25: Machado et al. 2018)"""
    max_frames_per_game: int = MAX_FRAMES_PER_GAME
    """a game is cut off after so many emulator frames (not a terminal: its last state keeps its value)"""

    encoders: tuple[str, ...] = ("state_representation", "keypoint_features", "keypoint_maps", "object_masks")
    """the frozen models to combine (the default: the paper's four); my_module:MyEncoder takes a model of your own"""
    context_encoder: str = "autoencoder"
    """the frozen model that gives the context in which the others are weighed; random: the autoencoder's network, untrained"""
    untrained_encoders: bool = False
    """a control: the models of --encoders with random weights"""
    schedule: tuple[str, ...] = ()
    """models that come and go, at the first rollout from that step on: add:autoencoder:200000 drop:state_representation:400000"""
    centre_embeddings: bool = False
    """subtract from each embedding its mean over 256 observations of random play, divide by the deviation around it (not published)"""
    combiner: str = "wsa"
    """how they are combined: wsa, the paper's rivals, or the controls uniform and random_weights"""
    features_dim: int = 256
    """width of adapted embeddings, context and state: the paper's d"""
    hidden_sizes: tuple[int, ...] = (256,)
    """hidden layers of the policy head and of the value head (the paper's large policy: 1024 512 256)"""
    hidden_activation: Literal["tanh", "relu"] = "tanh"
    """activation of these layers (the paper's large policy: relu)"""
    pretrained_dir: str | None = None
    """the stored models are <pretrained-dir>/<Game>/<name>.pt (none given: pretrained/ beside this script)"""
    scorer: Literal["published", "linear", "hidden", "bounded"] | None = None
    """wsa: the shared weight network (default: published, one layer with a ReLU, which can die; linear: without it, so that the context
    cancels out in the softmax; hidden: a hidden layer; bounded: the same, with scores in [-1, 1])"""
    weights_ent_coef: float = 0.0
    """wsa, dot_product: reward for even weights: this times their entropy is subtracted from the loss"""
    cnn_layers: int | None = None
    """cnn: convolutions, 1 to 3 (default: 1)"""
    reservoir_units: int | None = None
    """reservoir: units (default: 1024)"""
    reservoir_spectral_radius: float | None = None
    """reservoir: largest absolute eigenvalue of the recurrent weights (default: 0.9)"""
    reservoir_input_scale: float | None = None
    """reservoir: standard deviation of the input weights (default: 1.0, the published one)"""
    recompute_embeddings: bool = False
    """run the frozen models again for each minibatch, the plain way, in place of keeping a rollout's embeddings: slow, to compare"""

    learning_rate: float = 2.5e-4
    """Adam's learning rate at the start"""
    anneal_lr: bool = True
    """bring the learning rate down to 0 linearly"""
    gamma: float = 0.99
    """discount"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation"""
    num_minibatches: int = 4
    """minibatches per epoch; must divide num_envs x num_steps"""
    update_epochs: int = 4
    """epochs over each rollout"""
    norm_adv: bool = True
    """normalise the advantages of each minibatch"""
    clip_coef: float = 0.1
    """PPO's clip range at the start"""
    anneal_clip: bool = True
    """bring the clip range down to 0 linearly"""
    ent_coef: float = 0.01
    """weight of the policy's entropy in the loss"""
    vf_coef: float = 0.5
    """weight of the value's mean squared error in the loss"""
    max_grad_norm: float = 0.5
    """the gradient's norm is clipped to this"""

    eval_interval: int = 0
    """play greedy evaluation games every so many steps; best.pt then follows them (0: off, best.pt follows the last 100 training games)"""
    eval_episodes: int = 10
    """games in one evaluation (the paper: 100, every 40,000 steps)"""
    checkpoint_interval: int = 20_000
    """save checkpoint.pt about every so many steps, and at the end"""
    resume: str | None = None
    """go on from this checkpoint.pt, in its folder; its flags are the defaults then"""
    runs_dir: str = "runs"
    """folder of the runs"""
    cuda: bool | Literal["auto"] = "auto"
    """train on a GPU: auto (if there is one), True or False"""
    torch_threads: int = 0
    """CPU threads for the network (0: PyTorch's choice); lower it when several runs share a machine"""
    precision: Precision = "auto"
    """arithmetic of frozen models and agent: bfloat16 or float32 (auto: bfloat16 on CUDA and on CPUs with instructions for it)"""
    compile: bool = False
    """compile frozen models and agent with torch.compile: needs a C++ compiler on a CPU, takes a minute or two at the start"""


MAY_DIFFER_ON_RESUME = {
    "total_timesteps",
    "resume",
    "checkpoint_interval",
    "exp_name",
    "runs_dir",
    "pretrained_dir",
} | processes.SPEED_FLAGS


def check_args(args: Args) -> None:
    """Refuse, before any work, flags that cannot work; raises InputError."""
    game_name(args.env_id)
    known = f"the known ones are {', '.join(ENCODERS)}, and module:name for a model of your own"
    unknown = [spec for spec in args.encoders if spec not in ENCODERS and ":" not in spec]
    if args.context_encoder not in (*ENCODERS, "random") and ":" not in args.context_encoder:
        unknown.append(args.context_encoder)
    if unknown:
        raise InputError(f"{', '.join(unknown)}: no such model; {known}.")
    names = [short_name(spec) for spec in args.encoders]
    if not names or len(set(names)) < len(names):
        raise InputError(f"--encoders {' '.join(args.encoders)}: name at least one model, and none twice.")
    if args.combiner not in COMBINERS:
        raise InputError(f"--combiner {args.combiner}: no such mode; the known ones are {', '.join(COMBINERS)}.")
    for option in {option for mode in COMBINERS for option in options_of(mode)} - set(options_of(args.combiner)):
        if getattr(args, option) is not None:
            owner = next(mode for mode in COMBINERS if option in options_of(mode))
            raise InputError(f"--{option.replace('_', '-')} is an option of --combiner {owner}, not of {args.combiner}.")
    if args.cnn_layers not in (None, 1, 2, 3):
        raise InputError(f"--cnn-layers must be 1, 2 or 3, not {args.cnn_layers}.")
    if args.reservoir_units is not None and args.reservoir_units < 1:
        raise InputError(f"--reservoir-units must be at least 1, not {args.reservoir_units}.")
    if args.weights_ent_coef and args.combiner not in ("wsa", "dot_product"):
        raise InputError(f"--weights-ent-coef is an option of --combiner wsa and dot_product, not of {args.combiner}.")
    if args.combiner == "reservoir" and args.recompute_embeddings:
        raise InputError("--recompute-embeddings does not go with --combiner reservoir: its states follow one another in time.")
    parse_schedule(args)
    if args.features_dim < 1 or not args.hidden_sizes or min(args.hidden_sizes) < 1:
        raise InputError("--features-dim and --hidden-sizes must be at least 1.")
    at_least_one = ("num_envs", "num_steps", "num_minibatches", "update_epochs", "max_frames_per_game", "eval_episodes")
    not_negative = ("seed", "torch_threads", "learning_rate", "clip_coef", "max_grad_norm", "eval_interval")
    shares = ("gamma", "gae_lambda", "repeat_action_probability")
    processes.check_ranges(args, (*at_least_one, "checkpoint_interval"), shares, not_negative)
    batch_size = args.num_envs * args.num_steps
    if batch_size % args.num_minibatches:
        raise InputError(
            f"--num-minibatches {args.num_minibatches} does not divide the {batch_size} steps of a rollout "
            f"(--num-envs {args.num_envs} x --num-steps {args.num_steps})."
        )
    if batch_size // args.num_minibatches < 2:
        raise InputError("a minibatch of 1 step has no advantages to normalise; lower --num-minibatches.")
    if args.total_timesteps < batch_size:
        raise InputError(f"--total-timesteps {args.total_timesteps} is less than one rollout of {batch_size} steps.")
    processes.require_cuda(args)
    processes.check_processes(args)
    processes.require_compiler(args)


@dataclass
class Change:
    """A model that comes or goes, at the first rollout that starts at or after `step`."""

    kind: Literal["add", "drop"]
    spec: str
    step: int


def parse_schedule(args: Args) -> list[Change]:
    """The changes of --schedule in the order in which they happen.

    Raises:
        InputError: not of the form kind:model:step; the mode cannot change its set; a model is added twice, removed where it is not, or is
            the last one.
    """
    changes = []
    for entry in args.schedule:
        kind, _, rest = entry.partition(":")
        spec, _, step = rest.rpartition(":")
        if kind not in ("add", "drop") or not spec or not step.isdecimal():
            raise InputError(f"--schedule {entry}: write add:<model>:<step> or drop:<model>:<step>.")
        if kind == "add" and spec not in ENCODERS and ":" not in spec:
            raise InputError(f"--schedule {entry}: no such model; the known ones are {', '.join(ENCODERS)}.")
        changes.append(Change(kind, spec, int(step)))
    if changes and not issubclass(COMBINERS[args.combiner], WeightedSum):
        raise InputError(f"--schedule: --combiner {args.combiner} is built for one set of models; wsa takes any.")
    changes.sort(key=lambda change: change.step)
    present = [short_name(spec) for spec in args.encoders]
    for change in changes:
        name = short_name(change.spec)
        if change.kind == "add" and name in present:
            raise InputError(f"--schedule add:{change.spec}:{change.step}: {name} is there already at that step.")
        if change.kind == "drop" and name not in present:
            raise InputError(f"--schedule drop:{change.spec}:{change.step}: {name} is not there at that step.")
        if change.kind == "drop" and len(present) == 1:
            raise InputError(f"--schedule drop:{change.spec}:{change.step}: {name} is the last model then; one must remain.")
        present = [*present, name] if change.kind == "add" else [other for other in present if other != name]
    return changes


def short_name(spec: str) -> str:
    """What a model is called in logs and checkpoints: "object_masks", or for one's own "my_module:MyEncoder" its last part."""
    return spec.rpartition(":")[2]


def seed_of(seed: int, what: str) -> int:
    """A seed for one thing alone, which does not depend on what else the run has."""
    return int(np.random.SeedSequence([seed, zlib.crc32(what.encode())]).generate_state(1)[0])


class FrozenModels(nn.Module):
    """The models that an agent sees through: never trained, never initialised anew after they were made, always in evaluation mode.

    `sha256` has the hash of each one that comes from a file; the others (one's own, untrained ones) are in `own`, and a checkpoint keeps
    their weights.
    """

    def __init__(self, args: Args, pretrained_dir: str | None = None):
        """Open or make each model that the run will need once; raises InputError, with the command that makes them, if some are missing."""
        super().__init__()
        game = game_name(args.env_id)
        folder = Path(pretrained_dir or args.pretrained_dir or storage.PRETRAINED) / game
        specs: dict[str, str] = {}

        def need(name: str, spec: str) -> None:
            if specs.setdefault(name, spec) != spec:
                raise InputError(f"{specs[name]} and {spec} are both called {name}; rename one.")

        for spec in (*args.encoders, *(change.spec for change in parse_schedule(args) if change.kind == "add")):
            need(short_name(spec), spec)
        untrained = set(specs) & set(ENCODERS) if args.untrained_encoders else set()
        self.context_name = None
        if COMBINERS[args.combiner].uses_context:
            self.context_name = short_name(args.context_encoder)
            if self.context_name in untrained:  # the context stays what it is; it is not the untrained model of the same name
                self.context_name = f"context_{self.context_name}"
            need(self.context_name, args.context_encoder)
        stored = {name: spec for name, spec in specs.items() if spec in ENCODERS and name not in untrained}
        missing = [spec for spec in stored.values() if not (folder / f"{spec}.pt").is_file()]
        if missing:
            where = f" --pretrained-dir {folder.parent}" if folder.parent != storage.PRETRAINED else ""
            raise InputError(
                f"{folder}: no stored {', '.join(missing)}; make them with "
                f"python pretrain_encoders.py --env-id {args.env_id} --encoders {' '.join(missing)}{where}"
            )
        self.models, self.sha256 = nn.ModuleDict(), {}
        for name, spec in specs.items():
            if name in stored:
                self.models[name] = load_encoder(folder / f"{spec}.pt", game=game)
                if self.models[name].description["name"] != spec:
                    raise InputError(
                        f"{folder / spec}.pt: the model in this file is a {self.models[name].description['name']}, not a {spec}."
                    )
                self.sha256[name] = self.models[name].sha256
            else:
                with torch.random.fork_rng():  # random weights of its own, so that nothing else's randomness moves
                    torch.manual_seed(seed_of(args.seed, name))
                    self.models[name] = make_own_model(spec, ENCODERS)
        self.shapes = {name: tuple(model.output_shape) for name, model in self.models.items()}
        self.requires_grad_(False).eval()
        for model in self.models.values():
            if all(parameter.dim() <= 4 for parameter in model.parameters()):
                model.to(memory_format=torch.channels_last)  # fast: the layout that convolutions prefer
        self.fast: dict[str, nn.Module] = {}  # copies that `prepare` makes; not registered, so that a state dict has each model once
        self.centre: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # mean and scale of each embedding, with --centre-embeddings
        self.precision = "float32"

    def prepare(self, args: Args, device: torch.device, centre: dict[str, tuple[torch.Tensor, torch.Tensor]] | None = None) -> None:
        """Move to the device and make the copies that are really run; without this call the models run as they are stored.

        Args:
            centre: what --centre-embeddings takes away, from a checkpoint, so that an agent stays what it is; without it, it is measured.
        """
        self.to(device)
        self.precision = args.precision
        for name, model in self.models.items():
            if type(model) in ENCODERS.values():
                self.fast[name] = folded(model)  # fast: each batch norm is computed with the convolution before it
                self.fast[name].to(getattr(torch, self.precision))  # fast: rounded once, not at each call
            if args.compile:
                compiled = torch.compile(self.fast.get(name, model), options={"freezing": True})
                self.fast[name] = compiled  # fast: fused kernels, with the weights as constants
        if centre:
            self.centre = {name: (mean.to(device), scale.to(device)) for name, (mean, scale) in centre.items()}
        elif args.centre_embeddings:
            for name, model in self.models.items():
                with torch.no_grad():
                    z = torch.cat([model(batch.to(device)).float() for batch in typical_frames(args.env_id).split(32)])
                mean = z.mean(dim=0)  # what all frames share: walls, borders, empty space
                self.centre[name] = mean, (z - mean).square().mean().sqrt().clamp(min=1e-6)

    @property
    def own(self) -> dict[str, nn.Module]:
        """The models that come from no file, by name."""
        return {name: model for name, model in self.models.items() if name not in self.sha256}

    def wanted(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The models named and the context, each once."""
        return tuple(dict.fromkeys((*names, self.context_name) if self.context_name else names))

    @torch.no_grad()
    def forward(self, obs: torch.Tensor, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """uint8 (B, 4, 84, 84) -> {name: embedding (B, *shape)} of the models named, and of the context, in the precision chosen."""
        embeddings, dtype = {}, getattr(torch, self.precision)
        with precision.autocast(self.precision, obs.device):  # fast, where it is bfloat16
            for name in self.wanted(names):
                embeddings[name] = self.fast.get(name, self.models[name])(obs)
        for name in self.centre.keys() & embeddings.keys():
            mean, scale = self.centre[name]
            embeddings[name] = (embeddings[name].float() - mean) / scale
        return {name: z.to(dtype) for name, z in embeddings.items()}


@functools.cache
def typical_frames(env_id: str) -> torch.Tensor:
    """uint8 (256, 4, 84, 84) from random play with a seed of its own, always the same: what centring takes its means from."""
    envs = make_envs(env_id, 8)
    obs, _ = envs.reset(seed=env_seeds(8, 0, 8))
    rng, frames = np.random.default_rng(0), []
    for step in range(32 * 25):
        if step % 25 == 0:
            frames.append(torch.from_numpy(obs.copy()))
        obs, *_ = envs.step(rng.integers(envs.single_action_space.n, size=8))
    envs.close()
    return torch.cat(frames)


class Agent(nn.Module):
    """All that is trained: the combiner (adapters and shared weight network), a policy head and a value head.

    It sees embeddings, {name: (B, *shape)}, as `FrozenModels` gives them; with the reservoir {"reservoir": (B, units)}, its state.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], context_name: str | None, num_actions: int, args: Args):
        super().__init__()
        self.precision = args.precision  # of adapters and hidden layers; scores, weights, logits and values are float32
        self.names, self.context_name = tuple(short_name(spec) for spec in args.encoders), context_name
        options = {name: getattr(args, name) for name in options_of(args.combiner) if getattr(args, name) is not None}
        self.combiner = COMBINERS[args.combiner](
            {name: shapes[name] for name in self.names}, shapes.get(context_name), features_dim=args.features_dim, **options
        )
        self.actor = head(self.combiner.out_dim, args.hidden_sizes, args.hidden_activation, num_actions, gain=0.01)
        self.critic = head(self.combiner.out_dim, args.hidden_sizes, args.hidden_activation, 1, gain=1.0)
        self.to(memory_format=torch.channels_last)  # fast: the layout that convolutions prefer

    def combiner_inputs(self, embeddings: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """{name: (B, *shape)} -> what the combiner takes: the embeddings of its models, and the context (None where it is not used)."""
        return {name: embeddings[name] for name in self.names}, embeddings.get(self.context_name)

    def features(self, embeddings: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The state that the heads see (B, out_dim) and, for modes that weigh, the weights (B, N)."""
        if isinstance(self.combiner, Reservoir):
            return embeddings["reservoir"], None
        if isinstance(self.combiner, WeightedSum):
            return self.combiner.state_and_weights(*self.combiner_inputs(embeddings))
        return self.combiner(*self.combiner_inputs(embeddings)), None

    def get_value(self, embeddings: dict[str, torch.Tensor]) -> torch.Tensor:
        """{name: (B, *shape)} -> value of each state (B,)."""
        with self.autocast(embeddings):
            return self.critic(self.features(embeddings)[0]).squeeze(-1)

    def get_action_and_value(
        self, embeddings: dict[str, torch.Tensor], action: torch.Tensor | None = None, forced: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """{name: (B, *shape)} -> action (drawn, unless given), its log-probability, policy's entropy, value, each (B,); weights (B, N).

        `forced` (B,): the actions that the environment plays whatever is drawn (FIRE after a lost life), -1 where it plays what is drawn.
        """
        with self.autocast(embeddings):
            state, weights = self.features(embeddings)
            logits, value = self.actor(state), self.critic(state).squeeze(-1)
        policy = Categorical(logits=logits, validate_args=False)  # fast: no check of each batch's numbers
        action = policy.sample() if action is None else action
        if forced is not None:
            action = torch.where(forced >= 0, forced, action)
        return action, policy.log_prob(action), policy.entropy(), value, weights

    def autocast(self, embeddings: dict[str, torch.Tensor]) -> torch.autocast:
        """The context in which the agent computes, on the device of these embeddings."""
        return precision.autocast(self.precision, next(iter(embeddings.values())).device)

    def apply_change(
        self, change: Change, shapes: dict[str, tuple[int, ...]], seed: int, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Let a model come (with a new adapter and, in training, new optimiser state) or go (with both); all else stays as it is."""
        name = short_name(change.spec)
        if change.kind == "add":
            with torch.random.fork_rng():  # a generator of its own, so that nothing else's randomness moves
                torch.manual_seed(seed_of(seed, f"{name} at {change.step}"))
                self.combiner.add_model(name, shapes[name])
            if optimizer:
                optimizer.add_param_group({"params": list(self.combiner.adapters[name].parameters())})
            self.names = (*self.names, name)
            return
        gone = {id(parameter): parameter for parameter in self.combiner.adapters[name].parameters()}
        self.combiner.remove_model(name)
        self.names = tuple(other for other in self.names if other != name)
        if optimizer:
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in gone]
            optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
            for parameter in gone.values():
                optimizer.state.pop(parameter, None)


def head(in_features: int, hidden_sizes: tuple[int, ...], activation: str, out_features: int, gain: float) -> nn.Sequential:
    """A policy or value head: hidden layers, then a linear layer whose initial weights have the given gain."""
    layers: list[nn.Module] = []
    for width in hidden_sizes:
        layers += [layer_init(nn.Linear(in_features, width)), {"tanh": nn.Tanh, "relu": nn.ReLU}[activation]()]
        in_features = width
    return nn.Sequential(*layers, layer_init(Float32Linear(in_features, out_features), gain))


class SeeingAgent(nn.Module):
    """Frozen models and trained agent together: from pixels to actions, for evaluation.

    With the reservoir it remembers: row i of `obs` must then be the same environment in each call. A game's first observation starts its
    row anew: its three older frames are empty, and they are not the newest three of the call before (in a game that goes dark they are).
    """

    def __init__(self, frozen: FrozenModels, agent: Agent):
        super().__init__()
        self.frozen, self.agent, self.precision, self.reservoir_state = frozen, agent, agent.precision, None
        self.was_empty: torch.Tensor | None = None  # bool (B,): whether the newest three frames of the call before were all empty

    @property
    def weighed(self) -> tuple[str, ...]:
        """Names of the models in the order of the weights' columns; none for modes that do not weigh."""
        return self.agent.names if isinstance(self.agent.combiner, WeightedSum) else ()

    def drop(self, spec: str) -> None:
        """Go on without one of the models. Raises InputError if the mode needs them all, it is not there, or it is the last one."""
        if not self.weighed:
            raise InputError("this agent's mode was built for one set of models; those that weigh (wsa, dot_product) can do with fewer.")
        try:
            self.agent.combiner.remove_model(short_name(spec))
        except ValueError as error:
            raise InputError(str(error)) from error
        self.agent.names = tuple(self.agent.combiner.adapters)

    @torch.no_grad()
    def act_and_weights(self, obs: np.ndarray | torch.Tensor, greedy: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """uint8 (B, 4, 84, 84) -> actions (B,): the most probable ones or drawn ones; and the weights (B, N), for modes that weigh."""
        x = torch.as_tensor(obs, device=self.agent.actor[0].weight.device)
        embeddings = self.frozen(x, self.agent.names)
        if isinstance(self.agent.combiner, Reservoir):
            if self.reservoir_state is None or len(self.reservoir_state) != len(x):
                self.reservoir_state = self.agent.combiner.initial_state(len(x))
                self.was_empty = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            new_game = (x[:, :-1].amax(dim=(1, 2, 3)) == 0) & ~self.was_empty
            self.was_empty = x[:, 1:].amax(dim=(1, 2, 3)) == 0
            h, self.reservoir_state = self.agent.combiner.step(embeddings, self.reservoir_state, new_game)
            embeddings = {"reservoir": h}
        with self.agent.autocast(embeddings):
            state, weights = self.agent.features(embeddings)
            logits = self.agent.actor(state)
        return logits.argmax(dim=1) if greedy else Categorical(logits=logits).sample(), weights

    def act(self, obs: np.ndarray | torch.Tensor, greedy: bool) -> np.ndarray | torch.Tensor:
        """uint8 (B, 4, 84, 84) -> actions (B,). An array gives an array, a tensor a tensor."""
        actions, _ = self.act_and_weights(obs, greedy)
        return actions if isinstance(obs, torch.Tensor) else actions.cpu().numpy()


def load_agent(path: Path, device: torch.device | str = "cpu", pretrained_dir: str | None = None) -> SeeingAgent:
    """The trained agent of a checkpoint of this script with the frozen models it was trained with, ready to `act`.

    Args:
        pretrained_dir: where the stored models are, if not where they were in training.

    Raises:
        InputError: no such file, damaged, or of another script; a stored model is missing or is another one than in training.
    """
    checkpoint = storage.load_checkpoint(path, SCRIPT)
    args = storage.saved_args(path, Args, checkpoint["args"])
    args.precision = precision.to_play_in(args.precision, torch.device(device), path)
    frozen = FrozenModels(args, pretrained_dir)
    restore_frozen(path, checkpoint, frozen)
    agent = Agent(frozen.shapes, frozen.context_name, checkpoint["num_actions"], args)
    for change in parse_schedule(args)[: checkpoint["changes_done"]]:
        agent.apply_change(change, frozen.shapes, args.seed)
    agent.load_state_dict(checkpoint["agent"])
    frozen.prepare(replace(args, compile=False), torch.device(device), checkpoint.get("centre"))
    return SeeingAgent(frozen, agent).to(device).eval()


def restore_frozen(path: Path, checkpoint: dict, frozen: FrozenModels) -> None:
    """Bring back the weights of models that come from no file; refuse stored models other than those the checkpoint was trained with.

    Raises:
        InputError: names the stored models that differ, or the model of one's own whose weights no longer fit.
    """
    other = [name for name, sha256 in checkpoint["encoders"].items() if frozen.sha256.get(name) != sha256]
    if other:
        raise InputError(
            f"{path}: the stored {', '.join(other)} is not the one this agent was trained with; "
            "give the folder that holds it as --pretrained-dir."
        )
    for name, model in frozen.own.items():
        try:
            model.load_state_dict(checkpoint["own_models"][name])
        except (KeyError, RuntimeError) as error:
            raise InputError(f"{path}: the weights of {name} in this checkpoint do not fit the model of that name.") from error


def compute_advantages(
    rewards: torch.Tensor,
    values: torch.Tensor,
    dones: torch.Tensor,
    next_value: torch.Tensor,
    next_done: torch.Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16) over one rollout.

    Args:
        rewards, values: (num_steps, num_envs). Where a game was cut off at the frame limit, the reward already holds gamma times the
            value of the state at which it was cut.
        dones: (num_steps, num_envs), 1 where the step before ended a life or a game, so that this step begins something new.
        next_value, next_done: (num_envs,), the same of the state after the rollout.

    Returns:
        advantages and returns (advantages + values), each (num_steps, num_envs).
    """
    num_steps = len(rewards)
    advantages = torch.zeros_like(rewards)
    lastgaelam = torch.zeros_like(next_value)
    for t in reversed(range(num_steps)):
        nextnonterminal = 1.0 - (next_done if t == num_steps - 1 else dones[t + 1])
        nextvalues = next_value if t == num_steps - 1 else values[t + 1]
        delta = rewards[t] + gamma * nextvalues * nextnonterminal - values[t]
        advantages[t] = lastgaelam = delta + gamma * gae_lambda * nextnonterminal * lastgaelam
    return advantages, advantages + values


def ppo_loss(
    agent: Agent,
    embeddings: dict[str, torch.Tensor],
    actions: torch.Tensor,
    logprobs: torch.Tensor,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    free: torch.Tensor,
    num_free: torch.Tensor,
    clip_coef: torch.Tensor,
    ent_coef: float,
    vf_coef: float,
    weights_ent_coef: float,
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor | None]:
    """PPO's loss of one minibatch (Schulman et al. 2017, eq. 9), what is logged of it, and the weights (B, N) of modes that weigh.

    Args:
        embeddings: {name: (B, *shape)}.
        actions, logprobs, advantages, returns: (B,), of the rollout; the advantages normalised.
        free: bool (B,), where the action was the policy's choice. The others (FIRE after a lost life) teach the values only.
        num_free: how many those are, () (with several processes the mean over them).
        clip_coef: the clip range, () (a tensor, so that a compiled loss is not compiled again when it changes).
    """

    def mean(x: torch.Tensor) -> torch.Tensor:
        """Over the steps at which the policy chose."""
        return (x * free).sum() / num_free

    _, newlogprob, entropy, newvalue, weights = agent.get_action_and_value(embeddings, actions)
    logratio = torch.where(free, newlogprob - logprobs, 0.0)  # what was forced may be as improbable as it likes
    ratio = logratio.exp()
    pg_loss1 = -advantages * ratio
    pg_loss2 = -advantages * torch.clamp(ratio, 1 - clip_coef, 1 + clip_coef)
    pg_loss = mean(torch.max(pg_loss1, pg_loss2))  # eq. 7
    v_loss = (newvalue - returns).square().mean()  # plain, not halved: the published settings
    entropy_loss = mean(entropy)
    loss = pg_loss - ent_coef * entropy_loss + vf_coef * v_loss
    if weights_ent_coef:
        loss = loss - weights_ent_coef * Categorical(probs=weights).entropy().mean()
    logged = {
        "value_loss": v_loss,
        "policy_loss": pg_loss,
        "entropy": entropy_loss,
        "old_approx_kl": mean(-logratio),  # http://joschu.net/blog/kl-approx.html
        "approx_kl": mean((ratio - 1) - logratio),
        "clipfrac": mean(((ratio - 1.0).abs() > clip_coef).float()),
    }
    return loss, {name: value.detach() for name, value in logged.items()}, weights


def main(args: Args) -> Path | None:
    """Train, and return the run's folder (None in the other processes of a torchrun)."""
    # Flags. Worker threads inherit how denormal numbers are treated when they are started, so that this is set before any computation
    check_args(args)
    if args.torch_threads:
        torch.set_num_threads(args.torch_threads)
    torch.set_flush_denormal(True)  # fast: Adam's averages of weights without gradients fade to numbers that a CPU is slow at
    processes.keep_freed_memory()  # fast: new pages cost more than the numbers in them

    # Resume: the flags must be the checkpoint's, but for MAY_DIFFER_ON_RESUME
    checkpoint = None
    if args.resume:
        checkpoint = storage.load_to_resume(Path(args.resume), SCRIPT, args, MAY_DIFFER_ON_RESUME)
    rank, world_size, device = processes.join(args.cuda)  # 0 and 1 without torchrun
    args = replace(args, precision=precision.choose(args.precision, device))
    num_envs = args.num_envs // world_size  # of this process
    batch_size = args.num_envs * args.num_steps  # of all processes
    minibatch_size = num_envs * args.num_steps // args.num_minibatches  # of this process
    num_iterations = -(-args.total_timesteps // batch_size)  # whole rollouts, at least as many steps as asked for
    schedule = parse_schedule(args)
    frozen = FrozenModels(args)
    if checkpoint:
        restore_frozen(Path(args.resume), checkpoint, frozen)
    if not args.recompute_embeddings and args.combiner != "reservoir":
        numbers = sum(math.prod(shape) for shape in frozen.shapes.values())  # of one observation
        processes.require_memory(
            numbers * (num_envs * args.num_steps + minibatch_size) * getattr(torch, args.precision).itemsize,
            device,
            f"the kept embeddings of a rollout of {num_envs} x {args.num_steps} steps and of a minibatch",
            "lower --num-envs or --num-steps, or give --recompute-embeddings",
        )
    run_dir = None
    if checkpoint and rank == 0:
        run_dir = Path(args.resume).resolve().parent
        storage.require_writable(run_dir)
    elif rank == 0:
        run_dir = storage.new_run_dir(args.runs_dir, f"{game_name(args.env_id)}__{args.exp_name}__{args.seed}")

    # Set-up
    torch.manual_seed(args.seed)  # the same first weights in all processes
    envs = make_envs(args.env_id, num_envs, args.repeat_action_probability, True, args.max_frames_per_game)
    num_actions = int(envs.single_action_space.n)
    frozen.prepare(args, device, checkpoint.get("centre") if checkpoint else None)
    agent = Agent(frozen.shapes, frozen.context_name, num_actions, args).to(device)
    trained = [parameter for parameter in agent.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=args.learning_rate, eps=1e-5, fused=True)  # fast: one kernel for all weights
    global_step, first_iteration, best_return = 0, 1, -float("inf")
    last_games: deque[float] = deque(maxlen=100)  # raw scores
    changes_done = 0
    if checkpoint:
        changes_done = checkpoint["changes_done"]
        for change in schedule[:changes_done]:
            agent.apply_change(change, frozen.shapes, args.seed, optimizer)
        agent.load_state_dict(checkpoint["agent"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        processes.restore_random_state(checkpoint, args.seed)
        global_step, best_return = checkpoint["global_step"], checkpoint["best_return"]
        first_iteration = checkpoint["iteration"] + 1
        last_games.extend(checkpoint["last_games"])
    if rank > 0:  # other actions and minibatches in each process
        torch.manual_seed(int(env_seeds(1, args.seed, 9, rank, global_step)[0]))
    coefficients = {"ent_coef": args.ent_coef, "vf_coef": args.vf_coef, "weights_ent_coef": args.weights_ent_coef}
    act, loss_of = agent.get_action_and_value, functools.partial(ppo_loss, agent, **coefficients)
    if args.compile:  # fast: fewer and fused kernels
        act, loss_of = torch.compile(act), torch.compile(loss_of)

    writer = None
    if rank == 0:
        writer = SummaryWriter(str(run_dir), purge_step=global_step + 1 if checkpoint else None)  # drops what the checkpoint has not seen
        if not checkpoint:
            rows = "\n".join(f"|{name}|{value}|" for name, value in asdict(args).items())
            writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")

    def save(path: Path, iteration: int) -> None:
        storage.save(
            {
                "kind": "checkpoint",
                "script": SCRIPT,
                "encoders": frozen.sha256,
                "own_models": {name: model.state_dict() for name, model in frozen.own.items()},
                "centre": frozen.centre,
                "changes_done": changes_done,
                "num_actions": num_actions,
                "args": asdict(args),
                "iteration": iteration,
                "global_step": global_step,
                "agent": agent.state_dict(),
                "optimizer": optimizer.state_dict(),
                "rng_state": torch.get_rng_state(),
                "best_return": best_return,
                "last_games": list(last_games),
            },
            path,
        )

    # The first Ctrl-C (or SIGTERM) ends the run after the iteration in hand, with a checkpoint; the second one ends it at once.
    interrupted = threading.Event()

    def on_interrupt(signum, frame):
        if rank == 0:
            limit = " if torchrun waits so long (30 s without --shutdown-timeout)" if world_size > 1 else ""
            print(f"\nstopping after this iteration, with a checkpoint{limit} (once more: stop now, without)", file=sys.stderr)
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, on_interrupt)
    signal.signal(signal.SIGTERM, on_interrupt)

    # Storage of one rollout; row step * num_envs + env of `b_obs` or `b_embeddings` belongs to that step of that environment
    def make_storage() -> tuple[dict[str, torch.Tensor], ...]:
        """Room for the embeddings of one rollout, {name: (batch, *shape)}, and of a minibatch, of the models there are now."""
        shapes, dtype = {name: frozen.shapes[name] for name in frozen.wanted(agent.names)}, getattr(torch, args.precision)
        if isinstance(agent.combiner, Reservoir):
            shapes, dtype = {"reservoir": (agent.combiner.out_dim,)}, torch.float32  # its state is all that the update needs

        def room(rows: int, shape: tuple[int, ...]) -> torch.Tensor:
            layout = torch.channels_last if len(shape) == 3 else torch.contiguous_format
            return torch.zeros((rows, *shape), dtype=dtype, device=device).to(memory_format=layout)

        return tuple({name: room(rows, shape) for name, shape in shapes.items()} for rows in (num_envs * args.num_steps, minibatch_size))

    b_obs = None
    if args.recompute_embeddings:
        b_obs = torch.zeros((num_envs * args.num_steps, 4, 84, 84), dtype=torch.uint8, device=device)
    b_embeddings, mb_room = ({}, {}) if args.recompute_embeddings else make_storage()
    if rank == 0:
        print(
            f"{SCRIPT}: {args.env_id}, {args.combiner} of {', '.join(agent.names)}; "
            f"{sum(p.numel() for p in agent.parameters() if p.requires_grad):,} trained and "
            f"{sum(p.numel() for p in frozen.parameters()):,} frozen parameters, "
            f"{sum(kept.nbytes for kept in b_embeddings.values()) / 1e9:.2f} GB of kept embeddings; {run_dir}"
        )
        print(f"{SCRIPT}: {processes.describe_speed(args, device, world_size)}")
    actions = torch.zeros((args.num_steps, num_envs), dtype=torch.int64, device=device)
    logprobs = torch.zeros((args.num_steps, num_envs), device=device)
    values = torch.zeros((args.num_steps, num_envs), device=device)
    forced = torch.zeros((args.num_steps, num_envs), dtype=torch.int64, device=device)
    rewards = torch.zeros((args.num_steps, num_envs))  # these two stay with the emulators, on the CPU, until the rollout is complete
    dones = torch.zeros((args.num_steps, num_envs))

    def see(obs: torch.Tensor, memory: torch.Tensor | None, new_game: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """What the agent sees of each observation, and the reservoir's memory after it; called once for each observation."""
        embeddings = frozen(obs, agent.names)
        if memory is None:
            return embeddings, None
        h, memory = agent.combiner.step(embeddings, memory, new_game)
        return {"reservoir": h}, memory

    # Emulators' states are not in a checkpoint: a resumed run starts new games, other ones than at step 0
    first_obs, _ = envs.reset(seed=env_seeds(args.num_envs, args.seed, 0, global_step)[rank * num_envs : (rank + 1) * num_envs])
    next_obs, next_done = processes.to_device(first_obs, device), torch.zeros(num_envs)
    memory = agent.combiner.initial_state(num_envs) if isinstance(agent.combiner, Reservoir) else None
    next_embeddings, memory = see(next_obs, memory, torch.ones(num_envs, dtype=torch.bool, device=device))
    finished: list[tuple[int, int, int]] = []  # agent step, raw score and length of the rollout's finished games

    start_time, start_step = time.time(), global_step
    progress = tqdm(
        total=num_iterations * batch_size,
        initial=global_step,
        unit="step",
        unit_scale=True,
        disable=rank > 0,
        **processes.BAR,
    )

    for iteration in range(first_iteration, num_iterations + 1):
        remaining = 1.0 - (iteration - 1.0) / num_iterations  # from 1 at the start of the run toward 0 at its end
        learning_rate = args.learning_rate * (remaining if args.anneal_lr else 1.0)
        clip_coef = args.clip_coef * (remaining if args.anneal_clip else 1.0)

        # Models that come or go
        due = [change for change in schedule[changes_done:] if change.step <= global_step]
        for change in due:
            agent.apply_change(change, frozen.shapes, args.seed, optimizer)
        if due:
            changes_done += len(due)
            b_embeddings, mb_room, mb_embeddings, kept = {}, {}, {}, None  # the old ones' memory is free before the new ones take theirs
            if not args.recompute_embeddings:
                b_embeddings, mb_room = make_storage()
            next_embeddings, _ = see(next_obs, None, next_done)  # the modes that allow changes have no memory
            if rank == 0:
                progress.write(f"step {global_step:,}: the models are now {', '.join(agent.names)}")
        for parameters in optimizer.param_groups:
            parameters["lr"] = learning_rate
        trained = [parameter for parameters in optimizer.param_groups for parameter in parameters["params"]]

        # Rollout
        finished.clear()
        with torch.no_grad():
            for step in range(args.num_steps):
                dones[step], forced[step] = next_done, torch.from_numpy(envs.forced)
                actions[step], logprobs[step], _, values[step], _ = act(next_embeddings, forced=forced[step])
                rows = slice(step * num_envs, (step + 1) * num_envs)
                if args.recompute_embeddings:
                    b_obs[rows] = next_obs
                for name, kept in b_embeddings.items():
                    kept[rows] = next_embeddings[name]
                next_frames, reward, terminated, truncated, info = envs.step(actions[step].cpu().numpy())
                rewards[step] = torch.from_numpy(np.sign(reward).astype(np.float32))  # learn from clipped rewards, report raw scores
                cut_off = np.flatnonzero(truncated & ~terminated)
                if len(cut_off):  # the frame limit is no terminal: the old game's last state still has a value
                    final_obs = torch.as_tensor(info["final_obs"][cut_off], device=device)
                    not_new = torch.zeros(len(cut_off), dtype=torch.bool, device=device)
                    final_value = agent.get_value(see(final_obs, None if memory is None else memory[cut_off], not_new)[0])
                    rewards[step][cut_off] += args.gamma * final_value.cpu()
                next_obs, next_done = processes.to_device(next_frames, device), torch.from_numpy(terminated | truncated).float()
                next_embeddings, memory = see(next_obs, memory, torch.as_tensor(info["game_over"], device=device))
                finished += [(global_step + (step + 1) * args.num_envs, score, length) for score, length in info["games"]]
        global_step += batch_size

        # Advantages
        with torch.no_grad():
            next_value = agent.get_value(next_embeddings)
        advantages, returns = compute_advantages(
            rewards.to(device), values, dones.to(device), next_value, next_done.to(device), args.gamma, args.gae_lambda
        )

        # Update
        b_actions, b_logprobs, b_values = actions.flatten(), logprobs.flatten(), values.flatten()
        b_advantages, b_returns, b_free = advantages.flatten(), returns.flatten(), forced.flatten() < 0
        clip_range = torch.tensor(clip_coef, device=device)
        clipfracs = []
        for _epoch in range(args.update_epochs):
            b_inds = torch.randperm(num_envs * args.num_steps).to(device)
            for mb_inds in b_inds.split(minibatch_size):
                mb_advantages, mb_free = b_advantages[mb_inds], b_free[mb_inds]
                if args.norm_adv:
                    mb_advantages = processes.normalise(mb_advantages, mb_free)
                num_free = processes.mean(mb_free.sum().float()).clamp(min=1)
                if args.recompute_embeddings:
                    mb_embeddings = frozen(b_obs[mb_inds], agent.names)
                else:  # fast: what the frozen models said in the rollout is still true
                    mb_embeddings = {name: processes.take_rows(kept, mb_inds, mb_room[name]) for name, kept in b_embeddings.items()}
                mb_actions, mb_logprobs, mb_returns = b_actions[mb_inds], b_logprobs[mb_inds], b_returns[mb_inds]
                loss, logged, weights = loss_of(
                    mb_embeddings, mb_actions, mb_logprobs, mb_advantages, mb_returns, mb_free, num_free, clip_range
                )
                optimizer.zero_grad()
                loss.backward()
                processes.average_gradients(trained)
                nn.utils.clip_grad_norm_(trained, args.max_grad_norm)
                optimizer.step()
                clipfracs.append(logged["clipfrac"].clone())

        # Log: the last minibatch's losses and weights (a random quarter of the rollout) of the first process, and the games of all
        for step, episodic_return, episodic_length in processes.gather(finished):
            last_games.append(episodic_return)
            if rank == 0:
                writer.add_scalar("charts/episodic_return", episodic_return, step)
                writer.add_scalar("charts/episodic_length", episodic_length, step)
        sps = (global_step - start_step) / (time.time() - start_time)
        if rank == 0:
            if weights is not None:  # (minibatch, N)
                for name, weight in zip(agent.names, weights.mean(dim=0).tolist(), strict=True):
                    writer.add_scalar(f"weights/{name}", weight, global_step)
                writer.add_scalar("weights/entropy", Categorical(probs=weights).entropy().mean().item(), global_step)  # at most ln N
            if args.combiner == "wsa":
                with agent.autocast(mb_embeddings):
                    found = agent.combiner.diagnose(*agent.combiner_inputs(mb_embeddings))
                for name, value in found.items():
                    writer.add_scalar(f"weights/{name}", value, global_step)
            writer.add_scalar("charts/SPS", sps, global_step)
            writer.add_scalar("charts/learning_rate", learning_rate, global_step)
            writer.add_scalar("charts/clip_coef", clip_coef, global_step)
            for name, value in (logged | {"clipfrac": torch.stack(clipfracs).mean()}).items():
                writer.add_scalar(f"losses/{name}", value.item(), global_step)
            explained_variance = 1 - (b_returns - b_values).var() / b_returns.var()  # nan where all returns are equal
            writer.add_scalar("losses/explained_variance", explained_variance.item(), global_step)
        progress.update(batch_size)
        if last_games:
            progress.set_postfix_str(f"return {np.mean(last_games):.1f} over {len(last_games)} games", refresh=False)

        # Evaluate and save. best.pt follows the evaluation, or else the mean of the last 100 training games; it is the latest agent until
        # there is a first evaluation, or 100 games
        stop = any(processes.gather([interrupted.is_set()]))
        last = stop or iteration == num_iterations
        candidate = None
        if rank == 0 and args.eval_interval and (global_step // args.eval_interval > (global_step - batch_size) // args.eval_interval):
            num_eval_envs = min(args.eval_episodes, 100)  # side by side, as one that lasts until the frame limit holds up all
            eval_envs = make_envs(args.env_id, num_eval_envs, args.repeat_action_probability, False, args.max_frames_per_game)
            play = functools.partial(SeeingAgent(frozen, agent).act, greedy=True)
            games = play_games(play, eval_envs, args.eval_episodes, env_seeds(num_eval_envs, args.seed, 1))
            candidate = float(np.mean([score for score, _, _ in games]))
            writer.add_scalar("eval/episodic_return", candidate, global_step)
            stood_still = sum(cut_off for _, _, cut_off in games)  # a greedy agent's rally may last for ever
            writer.add_scalar("eval/truncated_games", stood_still, global_step)
        save_now = last or global_step // args.checkpoint_interval > (global_step - batch_size) // args.checkpoint_interval
        if save_now and not args.eval_interval and len(last_games) == last_games.maxlen:
            candidate = float(np.mean(last_games))
        improved = candidate is not None and candidate > best_return
        best_return = candidate if improved else best_return
        if rank == 0 and (save_now or improved):  # before best.pt, so that a resumed run knows how good that is
            writer.flush()
            save(run_dir / "checkpoint.pt", iteration)
        if rank == 0 and (improved or (save_now and best_return == -float("inf"))):
            save(run_dir / "best.pt", iteration)
        if stop:
            break

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    progress.close()
    envs.close()
    processes.leave()
    if rank == 0:
        writer.close()
        games = f"mean return {np.mean(last_games):.1f} over the last {len(last_games)} games" if last_games else "no game finished"
        print(f"{'stopped' if stop else 'done'} at step {global_step:,}: {games}, {sps:,.0f} steps/s. {run_dir}/checkpoint.pt")
    return run_dir


if __name__ == "__main__":
    try:
        args = tyro.cli(Args, description=__doc__)
        if args.resume:  # the checkpoint's flags are the defaults
            saved = storage.load_checkpoint(Path(args.resume), SCRIPT)["args"]
            args = tyro.cli(Args, description=__doc__, default=replace(storage.saved_args(args.resume, Args, saved), resume=None))
        main(args)
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
