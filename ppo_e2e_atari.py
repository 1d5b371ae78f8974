"""Proximal Policy Optimization on Atari, end to end from pixels: the baseline that Weight Sharing Attention is compared with.

    python ppo_e2e_atari.py --env-id ALE/Pong-v5                 # the published length: 10,000,000 steps
    python ppo_e2e_atari.py --total-timesteps 1000000 --seed 2   # a run of one to two hours on a CPU
    python ppo_e2e_atari.py --resume runs/<run_name>/checkpoint.pt
    torchrun --nproc-per-node 2 ppo_e2e_atari.py --num-envs 16   # several processes or GPUs train one agent
    tensorboard --logdir runs

PPO: Schulman et al. 2017 (arXiv 1707.06347). Network: Mnih et al. 2015 (doi 10.1038/nature14236). Settings: Piccoli et al. 2025
(arXiv 2507.07197), who take them from the Atari settings of Schulman et al., table 5.

In games that have FIRE, the action after a lost life is FIRE, whatever the policy chose (atari.py): it teaches the values, not the policy.

The file reads in the order in which things happen: flags, network, advantages, loss, then `main`: set-up, rollout, advantages, update, log,
save. What makes it fast is marked "fast:" where it stands; the README says what the larger ones bring
(benchmark/throughput.py, benchmark/denormals.py).
"""

import functools
import signal
import sys
import threading
import time
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
from precision import Float32Linear, Precision
from storage import InputError

SCRIPT = "ppo_e2e_atari"  # what a checkpoint of this script calls itself


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
    """arithmetic of the network: bfloat16 or float32 (auto: bfloat16 on CUDA and on CPUs with instructions for it)"""
    compile: bool = False
    """compile the network with torch.compile: needs a C++ compiler on a CPU, takes a minute at the start"""


MAY_DIFFER_ON_RESUME = {"total_timesteps", "resume", "checkpoint_interval", "exp_name", "runs_dir"} | processes.SPEED_FLAGS


def check_args(args: Args) -> None:
    """Refuse, before any work, flags that cannot work; raises InputError."""
    game_name(args.env_id)
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


def layer_init(layer: nn.Module, gain: float = np.sqrt(2)) -> nn.Module:
    """Orthogonal weights and zero bias, in place (Saxe et al. 2014; the gains are those of the published settings)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def nature_cnn(in_channels: int = 4, out_features: int = 512) -> nn.Sequential:
    """The Nature CNN (Mnih et al. 2015, methods, "Model architecture"): pixels in [0, 1] (B, in_channels, 84, 84) -> (B, out_features)."""
    return nn.Sequential(
        layer_init(nn.Conv2d(in_channels, 32, 8, stride=4)),  # -> (B, 32, 20, 20)
        nn.ReLU(inplace=True),
        layer_init(nn.Conv2d(32, 64, 4, stride=2)),  # -> (B, 64, 9, 9)
        nn.ReLU(inplace=True),
        layer_init(nn.Conv2d(64, 64, 3, stride=1)),  # -> (B, 64, 7, 7)
        nn.Flatten(),
        nn.ReLU(inplace=True),  # fast: behind the change of layout, not before it
        layer_init(nn.Linear(64 * 7 * 7, out_features)),
        nn.ReLU(inplace=True),
    )


def pixels(obs: torch.Tensor, precision: Literal["float32", "bfloat16"]) -> torch.Tensor:
    """uint8 (B, 4, 84, 84) -> pixels in [0, 1] of this precision, in the layout that convolutions prefer."""
    return obs.to(getattr(torch, precision), memory_format=torch.channels_last).div_(255.0)


class Agent(nn.Module):
    """The Nature CNN with a policy and a value head on its 512 features.

    Args:
        precision: of the CNN's arithmetic; weights and heads are float32.
    """

    def __init__(self, num_actions: int, precision: Literal["float32", "bfloat16"] = "float32"):
        super().__init__()
        self.precision = precision
        self.network = nature_cnn()
        self.actor = layer_init(Float32Linear(512, num_actions), gain=0.01)
        self.critic = layer_init(Float32Linear(512, 1), gain=1.0)
        self.to(memory_format=torch.channels_last)  # fast: the layout that convolutions prefer

    @classmethod
    def with_weights(cls, weights: dict[str, torch.Tensor], precision: Literal["float32", "bfloat16"] = "float32") -> "Agent":
        """An agent from its state dict, as a checkpoint holds it."""
        agent = cls(weights["actor.weight"].shape[0], precision)
        agent.load_state_dict(weights)
        return agent

    def features(self, obs: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 4, 84, 84) -> (B, 512)."""
        with precision.autocast(self.precision, obs.device):  # fast, where it is bfloat16
            return self.network(pixels(obs, self.precision))

    def get_value(self, obs: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 4, 84, 84) -> value of each state (B,)."""
        return self.critic(self.features(obs)).squeeze(-1)

    def get_action_and_value(
        self, obs: torch.Tensor, action: torch.Tensor | None = None, forced: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """uint8 (B, 4, 84, 84) -> action (drawn, unless given), its log-probability, the policy's entropy, value; each (B,).

        `forced` (B,): the actions that the environment plays whatever is drawn (FIRE after a lost life), -1 where it plays what is drawn.
        """
        features = self.features(obs)
        policy = Categorical(logits=self.actor(features), validate_args=False)  # fast: no check of each batch's numbers
        action = policy.sample() if action is None else action
        if forced is not None:
            action = torch.where(forced >= 0, forced, action)
        return action, policy.log_prob(action), policy.entropy(), self.critic(features).squeeze(-1)

    @torch.no_grad()
    def act(self, obs: np.ndarray | torch.Tensor, greedy: bool) -> np.ndarray | torch.Tensor:
        """uint8 (B, 4, 84, 84) -> actions (B,): the most probable ones or drawn ones. An array gives an array, a tensor a tensor."""
        logits = self.actor(self.features(torch.as_tensor(obs, device=self.actor.weight.device)))
        actions = logits.argmax(dim=1) if greedy else Categorical(logits=logits).sample()
        return actions if isinstance(obs, torch.Tensor) else actions.cpu().numpy()


def load_agent(path: Path, device: torch.device | str = "cpu", pretrained_dir: str | None = None) -> Agent:
    """The trained agent of a checkpoint of this script, ready to `act`. (`pretrained_dir` is for scripts whose agents have stored models.)

    Raises:
        InputError: no such file, damaged, or of another script.
    """
    checkpoint = storage.load_checkpoint(path, SCRIPT)
    args = storage.saved_args(path, Args, checkpoint["args"])
    return Agent.with_weights(checkpoint["agent"], precision.to_play_in(args.precision, torch.device(device), path)).to(device).eval()


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
    obs: torch.Tensor,
    actions: torch.Tensor,
    logprobs: torch.Tensor,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    free: torch.Tensor,
    num_free: torch.Tensor,
    clip_coef: torch.Tensor,
    ent_coef: float,
    vf_coef: float,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """PPO's loss of one minibatch (Schulman et al. 2017, eq. 9), and what is logged of it.

    Args:
        obs: uint8 (B, 4, 84, 84).
        actions, logprobs, advantages, returns: (B,), of the rollout; the advantages normalised.
        free: bool (B,), where the action was the policy's choice. The others (FIRE after a lost life) teach the values only.
        num_free: how many those are, () (with several processes the mean over them).
        clip_coef: the clip range, () (a tensor, so that a compiled loss is not compiled again when it changes).
    """

    def mean(x: torch.Tensor) -> torch.Tensor:
        """Over the steps at which the policy chose."""
        return (x * free).sum() / num_free

    _, newlogprob, entropy, newvalue = agent.get_action_and_value(obs, actions)
    logratio = torch.where(free, newlogprob - logprobs, 0.0)  # what was forced may be as improbable as it likes
    ratio = logratio.exp()
    pg_loss1 = -advantages * ratio
    pg_loss2 = -advantages * torch.clamp(ratio, 1 - clip_coef, 1 + clip_coef)
    pg_loss = mean(torch.max(pg_loss1, pg_loss2))  # eq. 7
    v_loss = (newvalue - returns).square().mean()  # plain, not halved: the published settings
    entropy_loss = mean(entropy)
    loss = pg_loss - ent_coef * entropy_loss + vf_coef * v_loss
    logged = {
        "value_loss": v_loss,
        "policy_loss": pg_loss,
        "entropy": entropy_loss,
        "old_approx_kl": mean(-logratio),  # http://joschu.net/blog/kl-approx.html
        "approx_kl": mean((ratio - 1) - logratio),
        "clipfrac": mean(((ratio - 1.0).abs() > clip_coef).float()),
    }
    return loss, {name: value.detach() for name, value in logged.items()}


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
    run_dir = None
    if checkpoint and rank == 0:
        run_dir = Path(args.resume).resolve().parent
        storage.require_writable(run_dir)
    elif rank == 0:
        run_dir = storage.new_run_dir(args.runs_dir, f"{game_name(args.env_id)}__{args.exp_name}__{args.seed}")

    # Set-up
    torch.manual_seed(args.seed)  # the same first weights in all processes
    envs = make_envs(args.env_id, num_envs, args.repeat_action_probability, True, args.max_frames_per_game)
    agent = Agent(envs.single_action_space.n, args.precision).to(device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)  # fast: one kernel for all weights
    global_step, first_iteration, best_return = 0, 1, -float("inf")
    last_games: deque[float] = deque(maxlen=100)  # raw scores
    if checkpoint:
        agent.load_state_dict(checkpoint["agent"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        processes.restore_random_state(checkpoint, args.seed)
        global_step, best_return = checkpoint["global_step"], checkpoint["best_return"]
        first_iteration = checkpoint["iteration"] + 1
        last_games.extend(checkpoint["last_games"])
    if rank > 0:  # other actions and minibatches in each process
        torch.manual_seed(int(env_seeds(1, args.seed, 9, rank, global_step)[0]))
    act, loss_of = agent.get_action_and_value, functools.partial(ppo_loss, agent, ent_coef=args.ent_coef, vf_coef=args.vf_coef)
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

    if rank == 0:
        print(f"{SCRIPT}: {args.env_id}, {sum(p.numel() for p in agent.parameters()):,} trained parameters, run folder {run_dir}")
        print(f"{SCRIPT}: {processes.describe_speed(args, device, world_size)}")

    # Storage of one rollout; observations stay bytes (fast: a quarter of the memory traffic) until the network reads them, and lie as its
    # convolutions want them, channels last in memory (fast: put in order once, not in each epoch); (num_steps, num_envs, 4, 84, 84)
    obs = torch.zeros((args.num_steps, num_envs, 84, 84, 4), dtype=torch.uint8, device=device).permute(0, 1, 4, 2, 3)
    actions = torch.zeros((args.num_steps, num_envs), dtype=torch.int64, device=device)
    logprobs = torch.zeros((args.num_steps, num_envs), device=device)
    values = torch.zeros((args.num_steps, num_envs), device=device)
    forced = torch.zeros((args.num_steps, num_envs), dtype=torch.int64, device=device)
    rewards = torch.zeros((args.num_steps, num_envs))  # these two stay with the emulators, on the CPU, until the rollout is complete
    dones = torch.zeros((args.num_steps, num_envs))

    # Emulators' states are not in a checkpoint: a resumed run starts new games, other ones than at step 0
    first_obs, _ = envs.reset(seed=env_seeds(args.num_envs, args.seed, 0, global_step)[rank * num_envs : (rank + 1) * num_envs])
    next_obs, next_done = processes.to_device(first_obs, device), torch.zeros(num_envs)
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
        optimizer.param_groups[0]["lr"] = args.learning_rate * (remaining if args.anneal_lr else 1.0)
        clip_coef = args.clip_coef * (remaining if args.anneal_clip else 1.0)

        # Rollout
        finished.clear()
        with torch.no_grad():
            for step in range(args.num_steps):
                obs[step], dones[step], forced[step] = next_obs, next_done, torch.from_numpy(envs.forced)
                actions[step], logprobs[step], _, values[step] = act(next_obs, forced=forced[step])
                next_frames, reward, terminated, truncated, info = envs.step(actions[step].cpu().numpy())
                rewards[step] = torch.from_numpy(np.sign(reward).astype(np.float32))  # learn from clipped rewards, report raw scores
                cut_off = np.flatnonzero(truncated & ~terminated)
                if len(cut_off):  # the frame limit is no terminal: the old game's last state still has a value
                    final_value = agent.get_value(torch.as_tensor(info["final_obs"][cut_off], device=device))
                    rewards[step][cut_off] += args.gamma * final_value.cpu()
                next_obs, next_done = processes.to_device(next_frames, device), torch.from_numpy(terminated | truncated).float()
                finished += [(global_step + (step + 1) * args.num_envs, score, length) for score, length in info["games"]]
        global_step += batch_size

        # Advantages
        with torch.no_grad():
            next_value = agent.get_value(next_obs)
        advantages, returns = compute_advantages(
            rewards.to(device), values, dones.to(device), next_value, next_done.to(device), args.gamma, args.gae_lambda
        )

        # Update
        b_obs = obs.flatten(0, 1)  # (batch, 4, 84, 84)
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
                mb_obs, mb_actions, mb_logprobs = processes.take_rows(b_obs, mb_inds), b_actions[mb_inds], b_logprobs[mb_inds]
                loss, logged = loss_of(mb_obs, mb_actions, mb_logprobs, mb_advantages, b_returns[mb_inds], mb_free, num_free, clip_range)
                optimizer.zero_grad()
                loss.backward()
                processes.average_gradients(agent.parameters())
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
                clipfracs.append(logged["clipfrac"].clone())

        # Log: the last minibatch's losses of the first process, and the games of all
        for step, episodic_return, episodic_length in processes.gather(finished):
            last_games.append(episodic_return)
            if rank == 0:
                writer.add_scalar("charts/episodic_return", episodic_return, step)
                writer.add_scalar("charts/episodic_length", episodic_length, step)
        sps = (global_step - start_step) / (time.time() - start_time)
        if rank == 0:
            writer.add_scalar("charts/SPS", sps, global_step)
            writer.add_scalar("charts/learning_rate", optimizer.param_groups[0]["lr"], global_step)
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
            play = functools.partial(agent.act, greedy=True)
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
