"""Behavior Transfer: Q-learning on Atari that explores with, and may call upon, a policy that was trained without reward.

    python dqn_bt_atari.py --env-id ALE/MsPacman-v5                                # from scratch: plain double DQN
    python dqn_bt_atari.py --env-id ALE/MsPacman-v5 --pretrained-policy <checkpoint.pt> --fine-tune                 # fine-tuning
    python dqn_bt_atari.py --env-id ALE/MsPacman-v5 --pretrained-policy <checkpoint.pt> --flights --extra-action    # behaviour
    python dqn_bt_atari.py --env-id ALE/MsPacman-v5 --pretrained-policy <checkpoint.pt> --flights --extra-action --fine-tune   # both
    python dqn_bt_atari.py --resume runs/<run_name>/checkpoint.pt
    tensorboard --logdir runs

Campos et al.: "Beyond Fine-Tuning: Transferring Behavior in Reinforcement Learning" (arXiv 2102.13515). The policy comes from
pretrain_policy_atari.py. Three switches, which combine freely and are all off by default:

- `--flights`: now and then the pre-trained policy acts for a while; how long is drawn from a heavy-tailed distribution (the
  epsilon-z-greedy exploration of Dabney et al. 2021, arXiv 2006.01782, with that policy in place of one repeated action).
- `--extra-action`: one more action, "do what the pre-trained policy would do here", with a Q-value of its own.
- `--fine-tune`: the network's convolutions start as the policy's.

The paper's agent is R2D2 on many machines; here it is double DQN (Mnih et al. 2015, doi 10.1038/nature14236; van Hasselt et al. 2016, arXiv
1509.06461) with n-step returns, small enough to be read in one sitting. Settings: buffer, batch and updates as
in Mnih et al. 2015; n = 3, first update and target period as in Rainbow (Hessel et al. 2018, arXiv 1710.02298, table 1); learning rate and
epsilon as in CleanRL's dqn_atari.py.

In games that have FIRE, the action after a lost life is FIRE, whatever was chosen (atari.py); it is stored as any transition.

The file reads in the order in which things happen: flags, replay buffer, network, flights, loss, then `main`: set-up, act, store, learn,
log, save.
"""

import functools
import signal
import sys
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import ppo_e2e_atari
import precision
import processes
import storage
from atari import MAX_FRAMES_PER_GAME, env_seeds, game_name, make_envs, play_games
from ppo_e2e_atari import layer_init, nature_cnn, pixels
from precision import Float32Linear, Precision
from storage import InputError

SCRIPT = "dqn_bt_atari"  # what a checkpoint of this script calls itself
POLICY_SCRIPTS = ("pretrain_policy_atari", "ppo_e2e_atari")  # whose agents can be the pre-trained policy: they share a network


@dataclass
class Args:
    env_id: str = "ALE/Pong-v5"
    """the game, a Gymnasium id"""
    exp_name: str = SCRIPT
    """the run's folder is <game>__<exp_name>__<seed>__<time>"""
    seed: int = 1
    """seed of network, actions, replay and games"""
    total_timesteps: int = 10_000_000
    """length of the run in agent steps (4 emulator frames each), over all environments"""
    num_envs: int = 8
    """games played side by side"""
    repeat_action_probability: float = 0.0
    """sticky actions: how often the emulator repeats the action before"""
    max_frames_per_game: int = MAX_FRAMES_PER_GAME
    """a game is cut off after so many emulator frames (not a terminal: its last state keeps its value)"""

    pretrained_policy: str | None = None
    """a checkpoint of pretrain_policy_atari.py (or of ppo_e2e_atari.py) for the same game; the switches below need it. Its weights go into
    this run's checkpoint, so that a resumed run does not look at it"""
    flights: bool = False
    """explore with flights of the pre-trained policy"""
    flight_probability: float = 0.01
    """how probable it is, at each step off a flight, that one begins with it (ours: no published value was found)"""
    flight_exponent: float = 2.0
    """a flight of n steps has a probability proportional to n to the minus this (zeta distribution) ..."""
    flight_cap: int = 100
    """... up to this many steps, and 0 beyond (ours: without a cap the distribution has no mean)"""
    extra_action: bool = False
    """one more action: what the pre-trained policy would do"""
    fine_tune: bool = False
    """start the convolutions with the pre-trained policy's weights"""

    learning_rate: float = 1e-4
    """Adam's learning rate"""
    gamma: float = 0.99
    """discount"""
    n_step: int = 3
    """steps of reward in a target before the next state's value"""
    buffer_size: int = 1_000_000
    """transitions in the replay buffer, over all environments; each takes 7 KB"""
    batch_size: int = 32
    """transitions in one update"""
    train_frequency: int = 4
    """one update for so many agent steps"""
    learning_starts: int = 20_000
    """agent steps before the first update"""
    target_network_frequency: int = 8_000
    """the target network takes over the weights every so many agent steps"""
    start_e: float = 1.0
    """epsilon at the start: the share of random actions"""
    end_e: float = 0.01
    """epsilon in the end"""
    exploration_fraction: float = 0.1
    """epsilon goes linearly from one to the other over this share of the run"""
    max_grad_norm: float = 10.0
    """the gradient's norm is clipped to this"""

    eval_interval: int = 0
    """play greedy evaluation games every so many steps; best.pt then follows them (0: off, best.pt follows the last 100 training games)"""
    eval_episodes: int = 10
    """games in one evaluation"""
    checkpoint_interval: int = 20_000
    """save checkpoint.pt about every so many steps, and at the end"""
    save_buffer: bool = False
    """save the replay buffer, too (buffer.pt, 7 KB a transition); a run that is resumed without it first fills a new one"""
    resume: str | None = None
    """go on from this checkpoint.pt, in its folder; its flags are the defaults then"""
    runs_dir: str = "runs"
    """folder of the runs"""
    cuda: bool | Literal["auto"] = "auto"
    """train on a GPU: auto (if there is one), True or False"""
    torch_threads: int = 0
    """CPU threads for the network (0: PyTorch's choice); lower it when several runs share a machine"""
    precision: Precision = "auto"
    """arithmetic of the networks: bfloat16 or float32 (auto: bfloat16 on CUDA and on CPUs with instructions for it)"""


MAY_DIFFER_ON_RESUME = {
    "total_timesteps",
    "pretrained_policy",  # its weights are in the checkpoint
    "checkpoint_interval",
    "save_buffer",
    "exp_name",
    "resume",
    "runs_dir",
} | processes.SPEED_FLAGS


def check_args(args: Args) -> None:
    """Refuse, before any work, flags that cannot work; raises InputError."""
    game_name(args.env_id)
    processes.require_one_process(SCRIPT)
    at_least_one = ("num_envs", "n_step", "batch_size", "train_frequency", "learning_starts", "target_network_frequency", "flight_cap")
    at_least_one += ("max_frames_per_game", "eval_episodes", "checkpoint_interval")
    shares = ("flight_probability", "start_e", "end_e", "exploration_fraction", "gamma", "repeat_action_probability")
    processes.check_ranges(args, at_least_one, shares, not_negative=("seed", "torch_threads", "learning_rate", "eval_interval"))
    transfers = [f"--{name.replace('_', '-')}" for name in ("flights", "extra_action", "fine_tune") if getattr(args, name)]
    if transfers and not (args.pretrained_policy or args.resume):
        raise InputError(f"{' and '.join(transfers)}: give the policy as --pretrained-policy; pretrain_policy_atari.py makes one.")
    if args.pretrained_policy and not transfers:
        raise InputError("--pretrained-policy is given, but nothing uses it; add --flights, --extra-action or --fine-tune.")
    if not args.flights:
        processes.require_defaults(args, ("flight_probability", "flight_exponent", "flight_cap"), "--flights")
    if args.flight_exponent <= 1:
        raise InputError(f"--flight-exponent must be above 1, not {args.flight_exponent}: the zeta distribution is not defined there.")
    if args.buffer_size // args.num_envs < args.n_step + 5:
        raise InputError(f"--buffer-size {args.buffer_size} is too small for {args.num_envs} environments and --n-step {args.n_step}.")
    if args.learning_starts < args.num_envs * (args.n_step + 1):
        raise InputError(
            f"--learning-starts {args.learning_starts}: nothing can be learnt before {args.n_step + 1} steps of each environment."
        )
    if args.learning_starts > args.buffer_size:
        raise InputError(f"--learning-starts {args.learning_starts}: the buffer holds only --buffer-size {args.buffer_size} transitions.")
    if args.total_timesteps < args.num_envs:
        raise InputError(f"--total-timesteps {args.total_timesteps} is less than one step of --num-envs {args.num_envs} environments.")
    processes.require_cuda(args)


class Batch(NamedTuple):
    """Transitions as a loss needs them, on its device."""

    obs: torch.Tensor  # uint8 (B, 4, 84, 84)
    actions: torch.Tensor  # int64 (B,), what the game received
    by_policy: torch.Tensor  # bool (B,), whether the pre-trained policy chose it
    returns: torch.Tensor  # float32 (B,), discounted sum of up to n rewards
    next_obs: torch.Tensor  # uint8 (B, 4, 84, 84), the state whose value stands for what comes after
    discounts: torch.Tensor  # float32 (B,), what that value is multiplied with; 0 after a terminal


class ReplayBuffer:
    """Keeps each frame once, as bytes; stacks of 4 frames and n-step returns are put together when they are drawn.

    Each environment has a ring of slots. A slot is one observation (its newest frame) with what was done there and what came of it. A game
    that is cut off at the frame limit gets one slot more, for the state at which it was cut; nothing was done there.
    """

    def __init__(self, size: int, num_envs: int, n_step: int, gamma: float):
        self.per_env = -(-size // num_envs)
        self.n_step, self.gamma = n_step, gamma
        shape = (num_envs, self.per_env)
        self.frames = np.empty((*shape, 84, 84), dtype=np.uint8)  # takes memory as it is written
        self.actions = np.zeros(shape, dtype=np.uint8)
        self.by_policy = np.zeros(shape, dtype=bool)
        self.rewards = np.zeros(shape, dtype=np.float32)
        self.terminals = np.zeros(shape, dtype=bool)
        self.acted = np.zeros(shape, dtype=bool)  # False where a game was cut off
        self.older = np.zeros(shape, dtype=np.uint8)  # how many frames of the same game came before, at most 3
        self.written = np.zeros(num_envs, dtype=np.int64)  # slots written so far; slot i is at index i % per_env
        self.age = np.zeros(num_envs, dtype=np.uint8)  # `older` of the next slot

    def __len__(self) -> int:
        return int(np.minimum(self.written, self.per_env).sum())

    def _write(self, envs: np.ndarray, frames: np.ndarray, **values: np.ndarray | bool) -> None:
        index = self.written[envs] % self.per_env
        self.frames[envs, index] = frames
        self.older[envs, index] = self.age[envs]
        for name, value in values.items():
            getattr(self, name)[envs, index] = value
        self.written[envs] += 1
        self.age[envs] = np.minimum(self.age[envs] + 1, 3)

    def add(
        self,
        frames: np.ndarray,
        actions: np.ndarray,
        by_policy: np.ndarray,
        rewards: np.ndarray,
        terminals: np.ndarray,
        game_over: np.ndarray,
    ) -> None:
        """One step of all environments, each argument (num_envs, ...).

        Args:
            frames: uint8 (num_envs, 84, 84), the newest frames of the observations that were acted on.
            terminals: where nothing that comes after counts: a life was lost, or the game.
            game_over: where the next observation is another game's.
        """
        envs = np.arange(len(frames))
        self._write(envs, frames, actions=actions, by_policy=by_policy, rewards=rewards, terminals=terminals, acted=True)
        self.age[game_over] = 0

    def cut_off(self, envs: np.ndarray, frames: np.ndarray) -> None:
        """The games of these environments (n,) stop here, but not because they ended: frames uint8 (n, 84, 84) show where they stand.

        Call it right after `add`, to which these environments' games were not over.
        """
        self._write(envs, frames, acted=False, terminals=False, rewards=0.0)
        self.age[envs] = 0

    def stacks(self, envs: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Observations uint8 (B, 4, 84, 84), oldest frame first; zeros where the game had not begun."""
        back = np.arange(3, -1, -1)  # 3 frames ago, ..., now
        stacks = self.frames[envs[:, None], (slots[:, None] - back) % self.per_env]
        stacks[back > self.older[envs, slots % self.per_env][:, None]] = 0
        return stacks

    def draw(self, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Environments and slots, each (batch_size,), drawn evenly from all whose n next steps, and whose stack's frames, are
        there. Raises ValueError while there is none."""
        newest = self.written - 1
        oldest = np.maximum(self.written - self.per_env, 0)
        oldest = np.where(oldest > 0, oldest + 3, 0)  # the frames before the oldest slots are overwritten
        room = np.maximum(newest - self.n_step - oldest + 1, 0)  # slots that may be drawn
        if not room.any():
            raise ValueError(f"the buffer holds no transition with the {self.n_step} steps after it yet")
        ends = np.cumsum(room)
        envs, slots = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        while len(envs) < batch_size:
            drawn = rng.integers(ends[-1], size=batch_size - len(envs))
            env = np.searchsorted(ends, drawn, side="right")
            slot = oldest[env] + drawn - (ends - room)[env]
            acted = self.acted[env, slot % self.per_env]
            envs, slots = np.concatenate([envs, env[acted]]), np.concatenate([slots, slot[acted]])
        return envs, slots

    def transitions(self, envs: np.ndarray, slots: np.ndarray, device: torch.device) -> Batch:
        """What happened in these slots, each argument (B,), and in the n steps from there on, or until the life or the game ended."""
        returns, discounts = np.zeros(len(slots), dtype=np.float32), np.ones(len(slots), dtype=np.float32)
        ahead = slots.copy()
        for _ in range(self.n_step):
            index = ahead % self.per_env
            goes_on = (discounts > 0) & self.acted[envs, index]  # a cut-off game's last state stands for the rest by its value
            returns += np.where(goes_on, discounts * self.rewards[envs, index], 0)
            discounts = np.where(goes_on, discounts * self.gamma * ~self.terminals[envs, index], discounts).astype(np.float32)
            ahead += goes_on & (discounts > 0)
        index = slots % self.per_env
        arrays = (
            self.stacks(envs, slots),
            self.actions[envs, index].astype(np.int64),
            self.by_policy[envs, index],
            returns,
            self.stacks(envs, ahead),
            discounts,
        )
        return Batch(*(processes.to_device(array, device) for array in arrays))

    def state_dict(self) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        """All that is filled: one tensor per environment, as torch.save would write the unfilled part of a common one, too."""
        filled = np.minimum(self.written, self.per_env)
        names = ("frames", "actions", "by_policy", "rewards", "terminals", "acted", "older")
        state = {name: [torch.from_numpy(row[:n]) for row, n in zip(getattr(self, name), filled, strict=True)] for name in names}
        return state | {"written": torch.from_numpy(self.written), "age": torch.from_numpy(self.age)}

    def load_state_dict(self, state: dict[str, torch.Tensor | list[torch.Tensor]]) -> None:
        """Fill an empty buffer of the same size and number of environments from what state_dict gave."""
        for name, values in state.items():
            if name in ("written", "age"):
                getattr(self, name)[:] = values.numpy()
            else:
                for row, part in zip(getattr(self, name), values, strict=True):
                    row[: len(part)] = part.numpy()


class QNetwork(nn.Module):
    """The Nature CNN with one Q-value per action; with `extra_action` the last one is the pre-trained policy's.

    Args:
        precision: of the CNN's arithmetic; weights and Q-values are float32.
    """

    def __init__(self, num_actions: int, extra_action: bool, precision: Literal["float32", "bfloat16"] = "float32"):
        super().__init__()
        self.num_actions, self.precision = num_actions, precision  # the game's actions
        self.network = nature_cnn()
        self.q = layer_init(Float32Linear(512, num_actions + extra_action), gain=1.0)
        self.to(memory_format=torch.channels_last)  # fast: the layout that convolutions prefer

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 4, 84, 84) -> Q-values (B, num_actions), or one more."""
        with precision.autocast(self.precision, obs.device):  # fast, where it is bfloat16
            return self.q(self.network(pixels(obs, self.precision)))

    def start_from(self, policy: nn.Module) -> None:
        """Fine-tuning: take over the convolutions of a pre-trained policy with the same network."""
        for mine, other in zip(self.network, policy.network, strict=True):
            if isinstance(mine, nn.Conv2d):
                mine.load_state_dict(other.state_dict())


class Agent(nn.Module):
    """A trained Q-network and, where it has the extra action, the pre-trained policy: for evaluation."""

    def __init__(self, q_network: QNetwork, policy: nn.Module | None, epsilon: float):
        super().__init__()
        self.q_network, self.policy, self.epsilon, self.precision = q_network, policy, epsilon, q_network.precision

    @torch.no_grad()
    def act(self, obs: np.ndarray | torch.Tensor, greedy: bool) -> np.ndarray | torch.Tensor:
        """uint8 (B, 4, 84, 84) -> actions (B,) of the highest Q-value, or with random ones among them as in training's end (not greedy).

        Where the extra action is the best, the policy's action is drawn, also in greedy play: the policy is stochastic. An array gives an
        array, a tensor a tensor.
        """
        x = torch.as_tensor(obs, device=self.q_network.q.weight.device)
        actions = self.q_network(x).argmax(dim=1)
        if not greedy:
            random = torch.rand(len(x), device=x.device) < self.epsilon
            actions[random] = torch.randint(self.q_network.q.out_features, (int(random.sum()),), device=x.device)
        calls = actions == self.q_network.num_actions
        if calls.any():
            actions = torch.where(calls, self.policy.act(x, greedy=False), actions)
        return actions if isinstance(obs, torch.Tensor) else actions.cpu().numpy()


class Flights:
    """Which environments the pre-trained policy steers at each step. Draws from a random stream of its own.

    Off a flight, one begins with each step with a small probability; its length n has a probability proportional to n^-exponent, up to a
    cap (without one, the mean length is infinite for exponents up to 2).
    """

    def __init__(self, num_envs: int, probability: float, exponent: float, cap: int, rng: np.random.Generator):
        weights = np.arange(1, cap + 1, dtype=np.float64) ** -exponent
        self.lengths = weights / weights.sum()  # probability of 1, 2, ..., cap
        self.probability, self.rng = probability, rng
        self.left = np.zeros(num_envs, dtype=np.int64)  # steps of the present flight that are still to come

    def step(self) -> np.ndarray:
        """Whether this step is on a flight, bool (num_envs,)."""
        starts = (self.left == 0) & (self.rng.random(len(self.left)) < self.probability)
        self.left[starts] = 1 + self.rng.choice(len(self.lengths), size=starts.sum(), p=self.lengths)
        flying = self.left > 0
        self.left[flying] -= 1
        return flying

    def end(self, envs: np.ndarray) -> None:
        """The games of these environments, bool (num_envs,), are over, and their flights with them."""
        self.left[envs] = 0


def td_loss(q_network: QNetwork, target_network: QNetwork, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Double Q-learning's loss, (), and what is logged of it.

    The target is the return plus the discounted value of the next state, of the action that the online network finds best there and as the
    target network sees it (van Hasselt et al. 2016, eq. 4, with n-step returns); the extra action is among them. The loss
    is Huber's, which is Mnih et al.'s clipping of the error to [-1, 1]. A transition teaches the Q-value of the action that the game
    received; if the pre-trained policy chose that action, it also teaches the extra action's (our reading of the paper: both are true of
    what happened).
    """
    with torch.no_grad():
        best = q_network(batch.next_obs).argmax(dim=1, keepdim=True)
        target = batch.returns + batch.discounts * target_network(batch.next_obs).gather(1, best).squeeze(1)
    q = q_network(batch.obs)
    chosen = q.gather(1, batch.actions[:, None]).squeeze(1)
    loss = F.smooth_l1_loss(chosen, target)
    logged = {"q_values": chosen.mean()}
    if q.shape[1] > q_network.num_actions:
        extra = F.smooth_l1_loss(q[:, -1], target, reduction="none")
        loss = loss + (extra * batch.by_policy).mean()  # a sum over the batch's lessons, divided by its transitions
        logged["q_extra_action"] = q[:, -1].mean()
    return loss, {name: value.detach() for name, value in ({"td_loss": loss} | logged).items()}


def load_policy(
    path: Path, env_id: str, device: torch.device, precision: Literal["float32", "bfloat16"] = "float32"
) -> ppo_e2e_atari.Agent:
    """The pre-trained policy, frozen, in this run's precision; raises InputError if the file is not one for this game."""
    checkpoint = storage.load(path, "checkpoint")
    if checkpoint.get("script") not in POLICY_SCRIPTS:
        raise InputError(
            f"{path}: this is a checkpoint of {checkpoint.get('script')}.py; a policy comes from {' or '.join(POLICY_SCRIPTS)}.py."
        )
    plays = checkpoint["args"]["env_id"]
    if plays != env_id:
        raise InputError(f"{path}: this policy plays {plays}, not {env_id}.")
    policy = storage.load_agent(path, device).requires_grad_(False)
    policy.precision = precision
    return policy


def load_agent(path: Path, device: torch.device | str = "cpu", pretrained_dir: str | None = None) -> Agent:
    """The trained agent of a checkpoint of this script, ready to `act`. (`pretrained_dir` is for scripts that use stored models.)

    Raises:
        InputError: no such file, damaged, or of another script.
    """
    checkpoint = storage.load_checkpoint(path, SCRIPT)
    args, num_actions = storage.saved_args(path, Args, checkpoint["args"]), checkpoint["num_actions"]
    plays_in = precision.to_play_in(args.precision, torch.device(device), path)
    q_network = QNetwork(num_actions, args.extra_action, plays_in)
    q_network.load_state_dict(checkpoint["agent"])
    policy = None
    if args.extra_action:
        policy = ppo_e2e_atari.Agent.with_weights(checkpoint["policy"], plays_in).requires_grad_(False)
    return Agent(q_network, policy, args.end_e).to(device).eval()


def main(args: Args) -> Path:
    """Train, and return the run's folder."""
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
    device = torch.device("cuda" if processes.on_cuda(args.cuda) else "cpu")
    args = replace(args, precision=precision.choose(args.precision, device))
    policy = None
    if args.flights or args.extra_action or args.fine_tune:
        if checkpoint:
            policy = ppo_e2e_atari.Agent.with_weights(checkpoint["policy"], args.precision).requires_grad_(False).to(device)
        else:
            policy = load_policy(Path(args.pretrained_policy), args.env_id, device, args.precision)
    room = min(args.buffer_size, args.total_timesteps)  # what will be written; the rest takes no memory
    processes.require_memory(room * 84 * 84, torch.device("cpu"), f"{room:,} transitions of the replay buffer", "lower --buffer-size")
    if args.save_buffer:  # a new file takes the old one's place only when it is whole
        folder = Path(args.resume).resolve().parent if args.resume else Path(args.runs_dir)
        stored = (folder / "buffer.pt").stat().st_size if (folder / "buffer.pt").is_file() else 0
        storage.require_disk(folder, 2 * room * 84 * 84 - stored, "the stored replay buffer and the one before it", "lower --buffer-size")
    if checkpoint:
        run_dir = Path(args.resume).resolve().parent
        storage.require_writable(run_dir)
    else:
        run_dir = storage.new_run_dir(args.runs_dir, f"{game_name(args.env_id)}__{args.exp_name}__{args.seed}")

    # Set-up
    torch.manual_seed(args.seed)
    envs = make_envs(args.env_id, args.num_envs, args.repeat_action_probability, True, args.max_frames_per_game)
    num_actions = int(envs.single_action_space.n)
    q_network, target_network = (QNetwork(num_actions, args.extra_action, args.precision).to(device) for _ in range(2))
    if args.fine_tune:
        q_network.start_from(policy)
    target_network.load_state_dict(q_network.state_dict())
    adam = {"lr": args.learning_rate, "eps": 1e-4}  # eps: our choice
    optimizer = torch.optim.Adam(q_network.parameters(), **adam, fused=True)  # fast: one kernel for all weights
    buffer = ReplayBuffer(args.buffer_size, args.num_envs, args.n_step, args.gamma)
    # One random stream for each purpose, so that a switch that is turned on leaves the others' draws as they were
    streams = {name: np.random.default_rng([args.seed, number]) for number, name in enumerate(("epsilon", "replay", "flights"))}
    flights = Flights(args.num_envs, args.flight_probability, args.flight_exponent, args.flight_cap, streams["flights"])
    global_step, best_return = 0, -float("inf")
    last_games: deque[float] = deque(maxlen=100)  # raw scores
    if checkpoint:
        q_network.load_state_dict(checkpoint["agent"])
        target_network.load_state_dict(checkpoint["target"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        processes.restore_random_state(checkpoint, args.seed)
        for name, rng in streams.items():
            rng.bit_generator.state = checkpoint["streams"][name]
        global_step, best_return = checkpoint["global_step"], checkpoint["best_return"]
        last_games.extend(checkpoint["last_games"])
        if (run_dir / "buffer.pt").is_file():
            stored = storage.load(run_dir / "buffer.pt", "replay buffer", mmap=True)
            if (stored["env_id"], stored["num_envs"], stored["size"]) != (args.env_id, args.num_envs, args.buffer_size):
                raise InputError(
                    f"{run_dir / 'buffer.pt'}: this is the replay buffer of another run; remove it to begin with an empty one."
                )
            buffer.load_state_dict(stored["buffer"])  # perhaps somewhat older or newer than the checkpoint: off-policy learning may use it
            buffer.cut_off(np.arange(args.num_envs), stored["next_frames"].numpy())  # new games begin: see below
            del stored  # else the file's space would not be freed when a newer one takes its name
    learning_from = max(args.learning_starts, global_step + args.learning_starts - len(buffer))  # the first update comes after this step

    writer = SummaryWriter(str(run_dir), purge_step=global_step + 1 if checkpoint else None)  # drops what the checkpoint has not seen
    if not checkpoint:
        rows = "\n".join(f"|{name}|{value}|" for name, value in asdict(args).items())
        writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")

    def save(path: Path) -> None:
        storage.save(
            {
                "kind": "checkpoint",
                "script": SCRIPT,
                "args": asdict(args),
                "num_actions": num_actions,
                "global_step": global_step,
                "agent": q_network.state_dict(),
                "target": target_network.state_dict(),
                "policy": policy.state_dict() if policy else None,
                "optimizer": optimizer.state_dict(),
                "rng_state": torch.get_rng_state(),
                "streams": {name: rng.bit_generator.state for name, rng in streams.items()},
                "best_return": best_return,
                "last_games": list(last_games),
            },
            path,
        )

    # The first Ctrl-C (or SIGTERM) ends the run after the step in hand, with a checkpoint; the second one ends it at once.
    interrupted = threading.Event()

    def on_interrupt(signum, frame):
        print("\nstopping after this step, with a checkpoint (once more: stop now, without)", file=sys.stderr)
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, on_interrupt)
    signal.signal(signal.SIGTERM, on_interrupt)

    transfer = [name.replace("_", "-") for name in ("flights", "extra_action", "fine_tune") if getattr(args, name)]
    print(
        f"{SCRIPT}: {args.env_id}, {' and '.join(transfer) or 'from scratch'}, {processes.describe_speed(args, device)}, "
        f"room for {room:,} transitions ({room * 84 * 84 / 1e9:.1f} GB); {run_dir}"
    )
    if checkpoint and learning_from > global_step:
        print(f"{SCRIPT}: the replay buffer holds {len(buffer):,} transitions; learning goes on from step {learning_from:,}")

    # Emulators' states are not in a checkpoint: a resumed run starts new games, other ones than at step 0
    obs, _ = envs.reset(seed=env_seeds(args.num_envs, args.seed, 0, global_step))
    decay_steps = max(1, args.exploration_fraction * args.total_timesteps)
    counts = {"flights": 0, "extra_action": 0, "steps": 0}  # since the last log
    logged: dict[str, torch.Tensor] = {}

    start_time, start_step = time.time(), global_step
    progress = tqdm(
        total=args.total_timesteps,
        initial=global_step,
        unit="step",
        unit_scale=True,
        **processes.BAR,
    )

    while global_step < args.total_timesteps:
        # Act: on a flight as the policy does; else epsilon-greedily among all Q-values, where the last one may mean "as the policy does"
        epsilon = args.start_e + (args.end_e - args.start_e) * min(1.0, global_step / decay_steps)
        with torch.no_grad():
            choice = q_network(processes.to_device(obs, device)).argmax(dim=1).cpu().numpy()
        random = streams["epsilon"].random(args.num_envs) < epsilon
        choice = np.where(random, streams["epsilon"].integers(num_actions + args.extra_action, size=args.num_envs), choice)
        flying = flights.step() if args.flights else np.zeros(args.num_envs, dtype=bool)
        forced = envs.forced >= 0  # FIRE after a lost life, nobody's choice
        by_policy = (flying | (choice == num_actions)) & ~forced
        actions = np.where(forced, envs.forced, choice)
        if by_policy.any():  # drawn once: the game and the buffer get the same
            actions = np.where(by_policy, policy.act(obs, greedy=False), actions)
        next_obs, reward, terminated, truncated, info = envs.step(actions)

        # Store: rewards clipped, a lost life as a terminal; a game cut off at the frame limit goes on in value
        game_over = info["game_over"]
        cut_off = np.flatnonzero(truncated & ~terminated)
        buffer.add(obs[:, -1], actions, by_policy, np.sign(reward), terminated, game_over & ~(truncated & ~terminated))
        if len(cut_off):
            buffer.cut_off(cut_off, info["final_obs"][cut_off, -1])
        flights.end(game_over)
        obs = next_obs
        before, global_step = global_step, global_step + args.num_envs
        counts["flights"] += int(flying.sum())
        counts["extra_action"] += int((by_policy & ~flying).sum())
        counts["steps"] += args.num_envs

        # Learn
        if global_step > learning_from:
            for _ in range(global_step // args.train_frequency - before // args.train_frequency):
                batch = buffer.transitions(*buffer.draw(args.batch_size, streams["replay"]), device)
                loss, logged = td_loss(q_network, target_network, batch)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(q_network.parameters(), args.max_grad_norm)
                optimizer.step()
        if global_step // args.target_network_frequency > before // args.target_network_frequency:
            target_network.load_state_dict(q_network.state_dict())

        # Log
        for episodic_return, episodic_length in info["games"]:
            last_games.append(episodic_return)
            writer.add_scalar("charts/episodic_return", episodic_return, global_step)
            writer.add_scalar("charts/episodic_length", episodic_length, global_step)
        progress.update(global_step - before)
        if global_step // 1000 > before // 1000:
            sps = (global_step - start_step) / (time.time() - start_time)
            writer.add_scalar("charts/SPS", sps, global_step)
            writer.add_scalar("charts/learning_rate", args.learning_rate, global_step)
            writer.add_scalar("charts/epsilon", epsilon, global_step)
            for name, value in logged.items():
                writer.add_scalar(f"losses/{name}", value.item(), global_step)
            for name in ("flights", "extra_action"):
                if getattr(args, name):
                    writer.add_scalar(f"transfer/{name}_share", counts[name] / counts["steps"], global_step)
            counts = dict.fromkeys(counts, 0)
            if last_games:
                so_far = f"return {np.mean(last_games):.1f} over {len(last_games)} games, epsilon {epsilon:.2f}"
                progress.set_postfix_str(so_far, refresh=False)

        # Evaluate and save. best.pt follows the evaluation, or else the mean of the last 100 training games; it is the latest agent until
        # there is a first evaluation, or 100 games
        stop = interrupted.is_set()
        last = stop or global_step >= args.total_timesteps
        candidate = None
        if args.eval_interval and global_step // args.eval_interval > before // args.eval_interval:
            num_eval_envs = min(args.eval_episodes, 100)  # side by side, as one that lasts until the frame limit holds up all
            eval_envs = make_envs(args.env_id, num_eval_envs, args.repeat_action_probability, False, args.max_frames_per_game)
            with torch.random.fork_rng():  # the policy's draws there are no part of the training
                play = functools.partial(Agent(q_network, policy, args.end_e).act, greedy=True)
                games = play_games(play, eval_envs, args.eval_episodes, env_seeds(num_eval_envs, args.seed, 1))
            candidate = float(np.mean([score for score, _, _ in games]))
            writer.add_scalar("eval/episodic_return", candidate, global_step)
            writer.add_scalar("eval/truncated_games", sum(cut for _, _, cut in games), global_step)
        save_now = last or global_step // args.checkpoint_interval > before // args.checkpoint_interval
        if save_now and not args.eval_interval and len(last_games) == last_games.maxlen:
            candidate = float(np.mean(last_games))
        improved = candidate is not None and candidate > best_return
        best_return = candidate if improved else best_return
        if save_now or improved:  # before best.pt, so that a resumed run knows how good that is
            writer.flush()
            if args.save_buffer and save_now:
                about = {"env_id": args.env_id, "num_envs": args.num_envs, "size": args.buffer_size}
                contents = {"buffer": buffer.state_dict(), "next_frames": torch.from_numpy(obs[:, -1].copy())}
                storage.save({"kind": "replay buffer"} | about | contents, run_dir / "buffer.pt")
            save(run_dir / "checkpoint.pt")
        if improved or (save_now and best_return == -float("inf")):
            save(run_dir / "best.pt")
        if stop:
            break

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    progress.close()
    envs.close()
    writer.close()
    sps = (global_step - start_step) / (time.time() - start_time)
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
