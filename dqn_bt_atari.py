"""Behavior Transfer: Q-learning on Atari that explores with, and may call upon, a policy trained without reward.

    python dqn_bt_atari.py --env-id ALE/MsPacman-v5                           # from scratch: plain double DQN
    python dqn_bt_atari.py ... --pretrained-policy <checkpoint.pt> --fine-tune                            # fine-tuning
    python dqn_bt_atari.py ... --pretrained-policy <checkpoint.pt> --flights --extra-action               # behaviour
    python dqn_bt_atari.py ... --pretrained-policy <checkpoint.pt> --flights --extra-action --fine-tune   # both
    python dqn_bt_atari.py --resume runs/<run_name>/checkpoint.pt
    tensorboard --logdir runs

Campos et al.: "Beyond Fine-Tuning: Transferring Behavior in Reinforcement Learning" (arXiv 2102.13515). The policy
comes from pretrain_policy_atari.py. Three switches, which combine freely and are all off by default:

- `--flights`: now and then the pre-trained policy acts for a while; how long is drawn from a heavy-tailed distribution
  (the epsilon-z-greedy exploration of Dabney et al. 2021, arXiv 2006.01782, with that policy in place of one repeated
  action).
- `--extra-action`: one more action, "do what the pre-trained policy would do here", with a Q-value of its own.
- `--fine-tune`: the network's convolutions start as the policy's.

The paper's agent is R2D2 on many machines; here it is double DQN (Mnih et al. 2015, doi 10.1038/nature14236; van
Hasselt et al. 2016, arXiv 1509.06461) with n-step returns, small enough to be read in one sitting. Settings: buffer,
batch and updates as in Mnih et al. 2015; n = 3, first update and target period as in Rainbow (Hessel et al. 2018, arXiv
1710.02298, table 1); learning rate and epsilon as in CleanRL's dqn_atari.py.

In games that have FIRE, the action after a lost life is FIRE, whatever was chosen (environments/atari.py); it is stored
as any transition.

The file reads in the order in which things happen: flags, network, flights, loss, then `main`: set-up, act, store,
learn, log, save. The replay buffer is in behavior_transfer/replay_buffer.py.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import ppo_e2e_atari
from behavior_transfer.replay_buffer import Batch, ReplayBuffer
from environments.atari import AtariFlags, check_games, evaluation_games, game_name, make_envs
from housekeeping import checkpoints, files, precision, processes, run
from housekeeping.flags import InputError, check_ranges, require_defaults, start
from housekeeping.memory import require_memory, to_device
from housekeeping.precision import Float32Linear
from housekeeping.run import EvaluationFlags, Run, RunFlags, read_args
from housekeeping.seeds import env_seeds
from ppo_e2e_atari import layer_init, nature_cnn, pixels

SCRIPT = "dqn_bt_atari"  # what a checkpoint of this script calls itself
# whose agents can be the pre-trained policy: they share a network
POLICY_SCRIPTS = (
    "pretrain_policy_atari",
    "ppo_e2e_atari",
)


@dataclass
class Args(AtariFlags, RunFlags, EvaluationFlags):
    """Behavior Transfer and Q-learning"""

    pretrained_policy: str | None = None
    """a checkpoint of pretrain_policy_atari.py (or of ppo_e2e_atari.py) for the same game; the switches below need it.
    Its weights go into this run's checkpoint, so that a resumed run does not look at it"""
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

    save_buffer: bool = False
    """save the replay buffer, too (buffer.pt, 7 KB a transition); a run that is resumed without it first fills a new
    one"""


# The policy's weights are in the checkpoint
MAY_DIFFER_ON_RESUME = run.MAY_DIFFER | {"pretrained_policy", "save_buffer"}


def check_args(args: Args) -> None:
    """Refuse, before any work, flags that cannot work; raises InputError."""
    check_games(args)
    processes.require_one_process(SCRIPT)
    at_least_one = ("n_step", "batch_size", "train_frequency", "learning_starts", "target_network_frequency")
    shares = ("flight_probability", "start_e", "end_e", "exploration_fraction", "gamma")
    check_ranges(args, (*at_least_one, "flight_cap"), shares, ("learning_rate", "max_grad_norm"))
    if args.pretrained_policy and not (args.flights or args.extra_action or args.fine_tune):
        raise InputError(
            "--pretrained-policy is given, but nothing uses it; add --flights, --extra-action or --fine-tune."
        )
    if not args.flights:
        require_defaults(args, ("flight_probability", "flight_exponent", "flight_cap"), "--flights")
    if args.flight_exponent <= 1:
        raise InputError(
            f"--flight-exponent must be above 1, not {args.flight_exponent}: the zeta distribution is not "
            "defined there."
        )
    if args.buffer_size // args.num_envs < args.n_step + 5:
        raise InputError(
            f"--buffer-size {args.buffer_size} is too small for {args.num_envs} environments and --n-step "
            f"{args.n_step}."
        )
    if args.learning_starts < args.num_envs * (args.n_step + 1):
        raise InputError(
            f"--learning-starts {args.learning_starts}: nothing can be learnt before {args.n_step + 1} steps of "
            "each environment."
        )
    if args.learning_starts > args.buffer_size:
        raise InputError(
            f"--learning-starts {args.learning_starts}: the buffer holds only --buffer-size {args.buffer_size} "
            "transitions; lower the first or raise the second."
        )
    if args.total_timesteps < args.num_envs:
        raise InputError(
            f"--total-timesteps {args.total_timesteps} is less than one step of --num-envs {args.num_envs} "
            "environments."
        )


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
        """uint8 (B, 4, 84, 84) -> actions (B,) of the highest Q-value, or with random ones among them as in training's
        end (not greedy).

        Where the extra action is the best, the policy's action is drawn, also in greedy play: the policy is stochastic.
        An array gives an array, a tensor a tensor.
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

    Off a flight, one begins with each step with a small probability; its length n has a probability proportional to
    n^-exponent, up to a cap (without one, the mean length is infinite for exponents up to 2).
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


def td_loss(
    q_network: QNetwork, target_network: QNetwork, batch: Batch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Double Q-learning's loss, (), and what is logged of it.

    The target is the return plus the discounted Q-value of the next state: the online network chooses the action, the
    extra one among them, and the target network says what it is worth (van Hasselt et al. 2016, eq. 4, with n-step
    returns). The loss is Huber's, which is Mnih et al.'s clipping of the error to [-1, 1]. A transition teaches
    the Q-value of the action that the game received; if the pre-trained policy chose that action, it also teaches the
    extra action's (our reading of the paper: both are true of what happened).
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
    path: str | None, env_id: str, device: torch.device, precision: Literal["float32", "bfloat16"] = "float32"
) -> ppo_e2e_atari.Agent:
    """The pre-trained policy, frozen, in this run's precision; raises InputError if none is named, or the file is not
    one for this game."""
    if path is None:
        raise InputError(
            "--flights, --extra-action and --fine-tune need a policy: name it as --pretrained-policy; "
            "pretrain_policy_atari.py makes one."
        )
    checkpoint = files.load(Path(path), "checkpoint")
    if checkpoint.get("script") not in POLICY_SCRIPTS:
        raise InputError(
            f"{path}: this is a checkpoint of {checkpoint.get('script')}.py; a policy comes from "
            f"{' or '.join(POLICY_SCRIPTS)}.py."
        )
    plays = checkpoint["args"]["env_id"]
    if plays != env_id:
        raise InputError(f"{path}: this policy plays {plays}, not {env_id}.")
    policy = checkpoints.load_agent(Path(path), device).requires_grad_(False)
    policy.precision = precision
    return policy


def load_agent(path: Path, device: torch.device | str = "cpu", pretrained_dir: str | None = None) -> Agent:
    """The trained agent of a checkpoint of this script, ready to `act`. (`pretrained_dir` is for scripts that use
    stored models.)

    Raises:
        InputError: no such file, damaged, or of another script.
    """
    checkpoint = checkpoints.load_checkpoint(path, SCRIPT)
    args, num_actions = checkpoints.saved_args(Args, checkpoint["args"]), checkpoint["num_actions"]
    plays_in = precision.to_play_in(args.precision, torch.device(device), path)
    q_network = QNetwork(num_actions, args.extra_action, plays_in)
    q_network.load_state_dict(checkpoint["agent"])
    policy = None
    if args.extra_action:
        policy = ppo_e2e_atari.Agent.with_weights(checkpoint["policy"], plays_in).requires_grad_(False)
    return Agent(q_network, policy, args.end_e).to(device).eval()


def main(args: Args) -> Path | None:
    """Train, and return the run's folder."""
    check_args(args)
    run = Run(SCRIPT, args, game_name(args.env_id), MAY_DIFFER_ON_RESUME)
    args, device, checkpoint = run.args, run.device, run.checkpoint
    policy = None
    if args.flights or args.extra_action or args.fine_tune:
        if checkpoint:
            policy = (
                ppo_e2e_atari.Agent.with_weights(checkpoint["policy"], args.precision).requires_grad_(False).to(device)
            )
        else:
            policy = load_policy(args.pretrained_policy, args.env_id, device, args.precision)
    room = min(args.buffer_size, args.total_timesteps)  # what will be written; the rest takes no memory
    require_memory(
        room * 84 * 84, torch.device("cpu"), f"{room:,} transitions of the replay buffer", "lower --buffer-size"
    )
    if args.save_buffer:  # a new file takes the old one's place only when it is whole
        before = run.folder / "buffer.pt"
        stored = before.stat().st_size if before.is_file() else 0
        files.require_disk(
            run.folder,
            2 * room * 84 * 84 - stored,
            "the stored replay buffer and the one before it",
            "lower --buffer-size",
        )

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
    streams = {
        name: np.random.default_rng([args.seed, number]) for number, name in enumerate(("epsilon", "replay", "flights"))
    }
    flights = Flights(args.num_envs, args.flight_probability, args.flight_exponent, args.flight_cap, streams["flights"])
    global_step = 0
    if checkpoint:
        q_network.load_state_dict(checkpoint["agent"])
        target_network.load_state_dict(checkpoint["target"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        for name, rng in streams.items():
            rng.bit_generator.state = checkpoint["streams"][name]
        global_step = checkpoint["global_step"]
        # perhaps older or newer than the checkpoint: off-policy learning may use it
        if (run.folder / "buffer.pt").is_file():
            buffer.restore(run.folder / "buffer.pt", args.env_id)
    # then comes the first update
    learning_from = max(args.learning_starts, global_step + args.learning_starts - len(buffer))
    run.set_random_state()
    transfer = [name.replace("_", "-") for name in ("flights", "extra_action", "fine_tune") if getattr(args, name)]
    of_buffer = f"room for {room:,} transitions ({room * 84 * 84 / 1e9:.1f} GB)"
    run.start(args.total_timesteps, f"{args.env_id}, {' and '.join(transfer) or 'from scratch'}, {of_buffer}")
    if checkpoint and learning_from > global_step:
        run.say(f"the replay buffer holds {len(buffer):,} transitions; learning goes on from step {learning_from:,}")
    if learning_from >= args.total_timesteps:
        run.say(f"nothing is learnt: the run ends before step {learning_from:,} (--learning-starts)")

    # Emulators' states are not in a checkpoint: a resumed run starts new games, other ones than at step 0
    obs, _ = envs.reset(seed=env_seeds(args.num_envs, args.seed, 0, global_step))
    decay_steps = max(1, args.exploration_fraction * args.total_timesteps)
    counts = {"flights": 0, "extra_action": 0, "steps": 0}  # since the last log
    logged: dict[str, torch.Tensor] = {}

    while global_step < args.total_timesteps:
        # Act: on a flight as the policy does; else epsilon-greedily among all Q-values, where the last one may mean "as
        # the policy does"
        epsilon = args.start_e + (args.end_e - args.start_e) * min(1.0, global_step / decay_steps)
        with torch.no_grad():
            choice = q_network(to_device(obs, device)).argmax(dim=1).cpu().numpy()
        random = streams["epsilon"].random(args.num_envs) < epsilon
        choice = np.where(
            random, streams["epsilon"].integers(num_actions + args.extra_action, size=args.num_envs), choice
        )
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
                logged["grad_norm"] = nn.utils.clip_grad_norm_(q_network.parameters(), args.max_grad_norm)
                optimizer.step()
        if global_step // args.target_network_frequency > before // args.target_network_frequency:
            target_network.load_state_dict(q_network.state_dict())

        # Log
        run.log_games((global_step, score, length) for score, length in info["games"])
        if global_step // 1000 > before // 1000:
            run.log_losses(global_step, logged)
            run.log(global_step, {"charts/epsilon": epsilon, "charts/learning_rate": args.learning_rate})
            run.log(global_step, {"charts/SPS": run.steps_per_second(global_step)})
            for name in ("flights", "extra_action"):
                if getattr(args, name):
                    run.log(global_step, {f"transfer/{name}_share": counts[name] / counts["steps"]})
            counts = dict.fromkeys(counts, 0)
            run.show(global_step, f"epsilon {epsilon:.2f}")

        # Save
        player = functools.partial(Agent(q_network, policy, args.end_e).act, greedy=True)
        run.reach(global_step, functools.partial(evaluation_games, player, args, args.eval_episodes))
        if run.must_save:
            run.require_finite(global_step, logged)
            if args.save_buffer and run.due:  # first: a checkpoint says that the buffer is there
                buffer.store(run.dir / "buffer.pt", args.env_id, obs[:, -1])
            run.save(
                {
                    "num_actions": num_actions,
                    "agent": q_network.state_dict(),
                    "target": target_network.state_dict(),
                    "policy": policy.state_dict() if policy else None,
                    "optimizer": optimizer.state_dict(),
                    "streams": {name: rng.bit_generator.state for name, rng in streams.items()},
                }
            )
        if run.stopping:
            break

    envs.close()
    return run.close()


if __name__ == "__main__":
    start(main, lambda: read_args(Args, __doc__, SCRIPT))
