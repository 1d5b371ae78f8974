"""Proximal Policy Optimization on Atari, end to end from pixels: what Weight Sharing Attention is compared with.

    python ppo_e2e_atari.py --env-id ALE/Pong-v5                 # the published length: 10,000,000 steps
    python ppo_e2e_atari.py --total-timesteps 1000000 --seed 2   # a run of one to two hours on a CPU
    python ppo_e2e_atari.py --resume runs/<run_name>/checkpoint.pt
    torchrun --nproc-per-node 2 ppo_e2e_atari.py --num-envs 16   # several processes or GPUs train one agent
    tensorboard --logdir runs

PPO: Schulman et al. 2017 (arXiv 1707.06347). Network: Mnih et al. 2015 (doi 10.1038/nature14236). Settings: Piccoli et
al. 2025 (arXiv 2507.07197), who take them from the Atari settings of Schulman et al., table 5.

In games that have FIRE, the action after a lost life is FIRE, whatever the policy chose (environments/atari.py): it
teaches the values, not the policy.

The file reads in the order in which things happen: flags, network, advantages, loss, then `main`: set-up, rollout,
advantages, update, log, save. What makes it fast is marked "fast:" where it stands. A run's folder, log, checkpoints
and Ctrl-C are in housekeeping/run.py.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
from torch.distributions import Categorical

from environments.atari import AtariFlags, check_games, evaluation_games, game_name, make_envs
from housekeeping import checkpoints, processes
from housekeeping.flags import check_ranges, start
from housekeeping.memory import take_rows, to_device
from housekeeping.precision import Float32Linear, autocast, to_play_in
from housekeeping.run import EvaluationFlags, Run, RunFlags, read_args
from housekeeping.seeds import env_seeds

SCRIPT = "ppo_e2e_atari"  # what a checkpoint of this script calls itself


@dataclass
class PPOFlags:
    """PPO"""

    num_steps: int = 128
    """steps per environment in one rollout"""
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
    compile: bool = False
    """compile the networks with torch.compile: needs a C++ compiler on a CPU, takes a minute or two at the start"""


@dataclass
class Args(PPOFlags, AtariFlags, RunFlags, EvaluationFlags):
    """PPO from pixels"""


def check_args(args: Args) -> None:
    """Refuse, before any work, flags that cannot work; raises InputError."""
    check_games(args)
    check_ppo(args)


def check_ppo(args: PPOFlags) -> None:
    """Refuse flags of PPO that cannot work; raises InputError."""
    at_least_one = ("num_steps", "num_minibatches", "update_epochs")
    not_negative = ("learning_rate", "clip_coef", "max_grad_norm", "ent_coef", "vf_coef")
    check_ranges(args, at_least_one, ("gamma", "gae_lambda"), not_negative)
    processes.check_rollouts(args)


def layer_init(layer: nn.Module, gain: float = np.sqrt(2)) -> nn.Module:
    """Orthogonal weights and zero bias, in place (Saxe et al. 2014; the gains are those of the published settings)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def nature_cnn(in_channels: int = 4, out_features: int = 512) -> nn.Sequential:
    """The Nature CNN (Mnih et al. 2015, methods, "Model architecture"): pixels in [0, 1] (B, in_channels, 84, 84) ->
    (B, out_features)."""
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
    x = obs.to(getattr(torch, precision), memory_format=torch.channels_last)
    return x.mul_(1 / 255.0) if precision == "bfloat16" else x.div_(255.0)  # fast: in bfloat16 both give the same


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
    def with_weights(
        cls, weights: dict[str, torch.Tensor], precision: Literal["float32", "bfloat16"] = "float32"
    ) -> "Agent":
        """An agent from its state dict, as a checkpoint holds it."""
        agent = cls(weights["actor.weight"].shape[0], precision)
        agent.load_state_dict(weights)
        return agent

    def features(self, obs: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 4, 84, 84) -> (B, 512)."""
        with autocast(self.precision, obs.device):  # fast, where it is bfloat16
            return self.network(pixels(obs, self.precision))

    def get_value(self, obs: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 4, 84, 84) -> value of each state (B,)."""
        return self.critic(self.features(obs)).squeeze(-1)

    def get_action_and_value(
        self, obs: torch.Tensor, action: torch.Tensor | None = None, forced: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """uint8 (B, 4, 84, 84) -> action (drawn, unless given), its log-probability, the policy's entropy, value; each
        (B,).

        `forced` (B,): the actions that the environment plays whatever is drawn (FIRE after a lost life), -1 where it
        plays what is drawn.
        """
        features = self.features(obs)
        policy = Categorical(logits=self.actor(features), validate_args=False)  # fast: no check of each batch's numbers
        action = policy.sample() if action is None else action
        if forced is not None:
            action = torch.where(forced >= 0, forced, action)
        return action, policy.log_prob(action), policy.entropy(), self.critic(features).squeeze(-1)

    @torch.no_grad()
    def act(self, obs: np.ndarray | torch.Tensor, greedy: bool) -> np.ndarray | torch.Tensor:
        """uint8 (B, 4, 84, 84) -> actions (B,): the most probable ones or drawn ones. An array gives an array, a tensor
        a tensor."""
        logits = self.actor(self.features(torch.as_tensor(obs, device=self.actor.weight.device)))
        actions = logits.argmax(dim=1) if greedy else Categorical(logits=logits).sample()
        return actions if isinstance(obs, torch.Tensor) else actions.cpu().numpy()


def load_agent(path: Path, device: torch.device | str = "cpu", pretrained_dir: str | None = None) -> Agent:
    """The trained agent of a checkpoint of this script, ready to `act`. (`pretrained_dir` is for agents with stored
    models.)

    Raises:
        InputError: no such file, damaged, or of another script.
    """
    return agent_of(checkpoints.load_checkpoint(path, SCRIPT), torch.device(device), path)


def agent_of(checkpoint: dict, device: torch.device, path: Path) -> Agent:
    """The agent of a checkpoint, of this script or of pretrain_policy_atari.py, whose policy has the same network."""
    plays_in = to_play_in(checkpoint["args"].get("precision", "float32"), device, path)
    return Agent.with_weights(checkpoint["agent"], plays_in).to(device).eval()


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
        rewards, values: (num_steps, num_envs). Where a game was cut off at the frame limit, the reward already holds
            gamma times the value of the state at which it was cut.
        dones: (num_steps, num_envs), 1 where the step before ended a life or a game, so that this step begins something
            new.
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
        actions, logprobs, advantages, returns: (B,), of the rollout (continuous actions: (B, size)); the advantages
            normalised.
        free: bool (B,), where the action was the policy's choice. The others (FIRE after a lost life) teach the values
            only.
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
    check_args(args)
    run = Run(SCRIPT, args, game_name(args.env_id))
    args, device = run.args, run.device
    num_envs = args.num_envs // run.world_size  # of this process
    batch_size = args.num_envs * args.num_steps  # of all processes
    minibatch_size = num_envs * args.num_steps // args.num_minibatches  # of this process
    num_iterations = -(-args.total_timesteps // batch_size)  # whole rollouts, at least as many steps as asked for
    first_iteration, global_step = 1, 0

    # Set-up
    torch.manual_seed(args.seed)  # the same first weights in all processes
    envs = make_envs(args.env_id, num_envs, args.repeat_action_probability, True, args.max_frames_per_game)
    agent = Agent(envs.single_action_space.n, args.precision).to(device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)  # fast: one kernel
    if run.checkpoint:
        agent.load_state_dict(run.checkpoint["agent"])
        optimizer.load_state_dict(run.checkpoint["optimizer"])
        first_iteration, global_step = run.checkpoint["iteration"] + 1, run.checkpoint["global_step"]
    run.set_random_state()
    act = agent.get_action_and_value
    loss_of = functools.partial(ppo_loss, agent, ent_coef=args.ent_coef, vf_coef=args.vf_coef)
    if args.compile:  # fast: fewer and fused kernels
        act, loss_of = torch.compile(act), torch.compile(loss_of)

    # Storage of one rollout. Observations stay bytes until the network reads them (fast: a quarter of the memory
    # traffic), channels last in memory, as its convolutions want them (fast: put in order once, not in each epoch)
    obs = torch.zeros((args.num_steps, num_envs, 84, 84, 4), dtype=torch.uint8, device=device).permute(0, 1, 4, 2, 3)
    actions = torch.zeros((args.num_steps, num_envs), dtype=torch.int64, device=device)
    logprobs = torch.zeros((args.num_steps, num_envs), device=device)
    values = torch.zeros((args.num_steps, num_envs), device=device)
    forced = torch.zeros((args.num_steps, num_envs), dtype=torch.int64, device=device)
    rewards = torch.zeros((args.num_steps, num_envs))  # on the CPU, with the emulators, until the rollout is complete
    dones = torch.zeros((args.num_steps, num_envs))

    # Emulators' states are not in a checkpoint: a resumed run starts new games, other ones than at step 0
    first_obs, _ = envs.reset(seed=processes.share(env_seeds(args.num_envs, args.seed, 0, global_step)))
    next_obs, next_done = to_device(first_obs, device), torch.zeros(num_envs)
    parameters = sum(p.numel() for p in agent.parameters())
    run.start(num_iterations * batch_size, f"{args.env_id}, {parameters:,} trained parameters")

    for iteration in range(first_iteration, num_iterations + 1):
        remaining = 1.0 - (iteration - 1.0) / num_iterations  # from 1 at the start of the run toward 0 at its end
        optimizer.param_groups[0]["lr"] = args.learning_rate * (remaining if args.anneal_lr else 1.0)
        clip_coef = args.clip_coef * (remaining if args.anneal_clip else 1.0)

        # Rollout
        finished = []  # agent step, raw score and length of the rollout's finished games
        with torch.no_grad():
            for step in range(args.num_steps):
                obs[step], dones[step], forced[step] = next_obs, next_done, torch.from_numpy(envs.forced)
                actions[step], logprobs[step], _, values[step] = act(next_obs, forced=forced[step])
                next_frames, reward, terminated, truncated, info = envs.step(actions[step].cpu().numpy())
                rewards[step] = torch.from_numpy(np.sign(reward).astype(np.float32))  # clipped; scores are reported raw
                cut_off = np.flatnonzero(truncated & ~terminated)
                if len(cut_off):  # the frame limit is no terminal: the old game's last state still has a value
                    final_value = agent.get_value(torch.as_tensor(info["final_obs"][cut_off], device=device))
                    rewards[step][cut_off] += args.gamma * final_value.cpu()
                next_obs = to_device(next_frames, device)
                next_done = torch.from_numpy(terminated | truncated).float()
                now = global_step + (step + 1) * args.num_envs
                finished += [(now, score, length) for score, length in info["games"]]
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
                mb_free, mb_advantages = b_free[mb_inds], b_advantages[mb_inds]
                if args.norm_adv:
                    mb_advantages = processes.normalise(mb_advantages, mb_free)
                loss, logged = loss_of(
                    take_rows(b_obs, mb_inds),
                    b_actions[mb_inds],
                    b_logprobs[mb_inds],
                    mb_advantages,
                    b_returns[mb_inds],
                    mb_free,
                    processes.mean(mb_free.sum().float()).clamp(min=1),
                    clip_range,
                )
                optimizer.zero_grad()
                loss.backward()
                processes.average_gradients(agent.parameters())
                logged["grad_norm"] = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
                clipfracs.append(logged["clipfrac"].clone())

        # Log: the last minibatch's losses of the first process, and the games of all
        run.log_games(finished)
        logged["clipfrac"] = torch.stack(clipfracs).mean()  # of all minibatches
        run.log_losses(global_step, logged)
        explained_variance = 1 - (b_returns - b_values).var() / b_returns.var()  # nan where all returns are equal
        run.log(global_step, {"losses/explained_variance": explained_variance, "charts/clip_coef": clip_coef})
        run.log(global_step, {"charts/learning_rate": optimizer.param_groups[0]["lr"]})
        run.log(global_step, {"charts/SPS": run.steps_per_second(global_step)})
        run.show(global_step)

        # Evaluate and save, where that is due
        play = functools.partial(evaluation_games, functools.partial(agent.act, greedy=True), args, args.eval_episodes)
        run.reach(global_step, play)
        if run.must_save:
            run.save({"iteration": iteration, "agent": agent.state_dict(), "optimizer": optimizer.state_dict()})
        if run.stopping:
            break

    envs.close()
    return run.close()


if __name__ == "__main__":
    start(main, lambda: read_args(Args, __doc__, SCRIPT))
