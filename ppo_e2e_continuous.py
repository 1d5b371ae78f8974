"""PPO on continuous actions, end to end from pixels: what ppo_wsa_continuous.py is compared with.

    python ppo_e2e_continuous.py --env-id Reacher-v5                       # an arm must reach a point
    python ppo_e2e_continuous.py --env-id gym_pusht/PushT-v0 --action-repeat 2
    python ppo_e2e_continuous.py --from-state                              # a control: the simulator's own numbers
    python ppo_e2e_continuous.py --resume runs/<run_name>/checkpoint.pt
    tensorboard --logdir runs

PPO: Schulman et al. 2017 (arXiv 1707.06347), with a Gaussian policy. Network: Mnih et al. 2015. What differs from
ppo_e2e_atari.py, after the settings of CleanRL's ppo_continuous_action.py:

- the policy is a Gaussian for each number of the action; its mean depends on what is seen, its standard deviation is
  learnt, but the same everywhere. What leaves the environment's box is clipped by the environment (environments/
  rendered.py); the log-probability is that of the action before clipping;
- rewards are divided by the standard deviation of the discounted return so far (environments/scaling.py);
- an episode that the time limit cuts off does not end there: its last state still has a value.

The advantages and the loss are those of ppo_e2e_atari.py. A run's folder, log, checkpoints and Ctrl-C are in
housekeeping/run.py.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
from torch.distributions import Normal

import ppo_e2e_atari
from environments.rendered import RenderedFlags, check_environment, evaluation_games, folder_name, make_envs
from environments.scaling import RewardScale, RunningMoments
from housekeeping import checkpoints, processes
from housekeeping.flags import start
from housekeeping.memory import take_rows, to_device
from housekeeping.precision import Float32Linear, to_play_in
from housekeeping.run import EvaluationFlags, Run, RunFlags, read_args
from housekeeping.seeds import env_seeds
from ppo_e2e_atari import PPOFlags, check_ppo, compute_advantages, layer_init, ppo_loss

SCRIPT = "ppo_e2e_continuous"  # what a checkpoint of this script calls itself


@dataclass
class ContinuousFlags:
    """PPO on continuous actions: other defaults than on Atari"""

    total_timesteps: int = 1_000_000
    """length of the run in agent steps, over all environments"""
    num_steps: int = 256
    """steps per environment in one rollout"""
    learning_rate: float = 3e-4
    """Adam's learning rate at the start"""
    num_minibatches: int = 8
    """minibatches per epoch; must divide num_envs x num_steps"""
    update_epochs: int = 10
    """epochs over each rollout"""
    clip_coef: float = 0.2
    """PPO's clip range at the start"""
    anneal_clip: bool = False
    """bring the clip range down to 0 linearly"""
    ent_coef: float = 0.0
    """weight of the policy's entropy in the loss"""


@dataclass
class Args(ContinuousFlags, PPOFlags, RenderedFlags, RunFlags, EvaluationFlags):
    """PPO from pixels, or from the simulator's state"""

    from_state: bool = False
    """a control: see the simulator's own numbers in place of pictures (two hidden layers of 64)"""


def check_args(args: Args) -> None:
    """Refuse, before any work, flags that cannot work; raises InputError."""
    processes.require_one_process(SCRIPT)
    check_ppo(args)
    check_environment(args)


def gaussian(mean: torch.Tensor, log_std: torch.Tensor) -> Normal:
    """The policy: a normal distribution for each number of the action. mean (B, size), log_std (size,)."""
    return Normal(mean, log_std.exp().expand_as(mean), validate_args=False)  # fast: no check of each batch's numbers


class Agent(ppo_e2e_atari.Agent):
    """The Nature CNN with a Gaussian policy and a value head on its 512 features."""

    def __init__(self, action_size: int, precision: Literal["float32", "bfloat16"] = "float32"):
        super().__init__(action_size, precision)
        self.log_std = nn.Parameter(torch.zeros(action_size))

    def get_action_and_value(
        self, obs: torch.Tensor, action: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Observations (B, ...) -> action (B, size) (drawn, unless given), its log-probability, the policy's entropy,
        value; each (B,)."""
        features = self.features(obs)
        policy = gaussian(self.actor(features), self.log_std)
        action = policy.sample() if action is None else action
        value = self.critic(features).squeeze(-1)
        return action, policy.log_prob(action).sum(dim=1), policy.entropy().sum(dim=1), value

    @torch.no_grad()
    def act(self, obs: np.ndarray | torch.Tensor, greedy: bool) -> np.ndarray | torch.Tensor:
        """Observations (B, ...) -> actions (B, size): the means or drawn ones. An array gives an array, a tensor a
        tensor."""
        mean = self.actor(self.features(torch.as_tensor(obs, device=self.log_std.device)))
        actions = mean if greedy else gaussian(mean, self.log_std).sample()
        return actions if isinstance(obs, torch.Tensor) else actions.cpu().numpy()


class StateAgent(Agent):
    """The same on the simulator's numbers (B, length): brought to mean 0 and variance 1, then two hidden layers."""

    def __init__(self, action_size: int, length: int):
        super().__init__(action_size)
        self.seen = RunningMoments((length,))
        self.network = nn.Sequential(
            layer_init(nn.Linear(length, 64)), nn.Tanh(), layer_init(nn.Linear(64, 64)), nn.Tanh()
        )
        self.actor, self.critic = (
            layer_init(Float32Linear(64, action_size), 0.01),
            layer_init(Float32Linear(64, 1), 1.0),
        )

    def features(self, obs: torch.Tensor) -> torch.Tensor:
        """(B, length) -> (B, 64)."""
        return self.network(((obs - self.seen.mean) / (self.seen.var + 1e-8).sqrt()).clamp(-10, 10).float())


def make_agent(args: Args, observation_shape: tuple[int, ...], action_size: int) -> Agent:
    """The agent that these flags ask for."""
    return StateAgent(action_size, *observation_shape) if args.from_state else Agent(action_size, args.precision)


def load_agent(path: Path, device: torch.device | str = "cpu", pretrained_dir: str | None = None) -> Agent:
    """The trained agent of a checkpoint of this script, ready to `act`. (`pretrained_dir` is for agents with stored
    models.)

    Raises:
        InputError: no such file, damaged, or of another script.
    """
    checkpoint = checkpoints.load_checkpoint(path, SCRIPT)
    args = checkpoints.saved_args(Args, checkpoint["args"])
    args.precision = to_play_in(args.precision, torch.device(device), path)
    agent = make_agent(args, checkpoint["observation_shape"], checkpoint["action_size"])
    agent.load_state_dict(checkpoint["agent"])
    return agent.to(device).eval()


def main(args: Args) -> Path:
    """Train, and return the run's folder."""
    check_args(args)
    if args.from_state:
        args = replace(args, precision="float32")  # two small layers gain nothing by bfloat16
    run = Run(SCRIPT, args, folder_name(args.env_id))
    args, device = run.args, run.device
    batch_size = args.num_envs * args.num_steps
    minibatch_size = batch_size // args.num_minibatches
    num_iterations = -(-args.total_timesteps // batch_size)  # whole rollouts, at least as many steps as asked for
    first_iteration, global_step = 1, 0

    # Set-up
    torch.manual_seed(args.seed)
    envs = make_envs(args.env_id, args.num_envs, args.action_repeat, args.from_state)
    observation_shape, (action_size,) = envs.single_observation_space.shape, envs.single_action_space.shape
    agent = make_agent(args, observation_shape, action_size).to(device)
    scale = RewardScale(args.num_envs, args.gamma)  # on the CPU, with the environments
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)  # fast: one kernel
    if run.checkpoint:
        agent.load_state_dict(run.checkpoint["agent"])
        scale.load_state_dict(run.checkpoint["reward_scale"])
        optimizer.load_state_dict(run.checkpoint["optimizer"])
        first_iteration, global_step = run.checkpoint["iteration"] + 1, run.checkpoint["global_step"]
    run.set_random_state()
    act = agent.get_action_and_value
    loss_of = functools.partial(ppo_loss, agent, ent_coef=args.ent_coef, vf_coef=args.vf_coef)
    if args.compile:  # fast: fewer and fused kernels
        act, loss_of = torch.compile(act), torch.compile(loss_of)

    # Storage of one rollout
    if args.from_state:
        obs = torch.zeros((args.num_steps, args.num_envs, *observation_shape), dtype=torch.float64, device=device)
    else:  # fast: channels last in memory, as the convolutions want them
        obs = torch.zeros((args.num_steps, args.num_envs, 84, 84, 4), dtype=torch.uint8, device=device)
        obs = obs.permute(0, 1, 4, 2, 3)
    actions = torch.zeros((args.num_steps, args.num_envs, action_size), device=device)
    logprobs = torch.zeros((args.num_steps, args.num_envs), device=device)
    values = torch.zeros((args.num_steps, args.num_envs), device=device)
    rewards = torch.zeros((args.num_steps, args.num_envs))
    dones = torch.zeros((args.num_steps, args.num_envs))
    b_free = torch.ones(batch_size, dtype=torch.bool, device=device)  # every action is the policy's choice
    clip_range = torch.tensor(args.clip_coef, device=device)

    # Simulators' states are not in a checkpoint: a resumed run starts new episodes, other ones than at step 0
    first_obs, _ = envs.reset(seed=env_seeds(args.num_envs, args.seed, 0, global_step))
    next_obs, next_done = to_device(first_obs, device), torch.zeros(args.num_envs)
    parameters = sum(p.numel() for p in agent.parameters())
    run.start(num_iterations * batch_size, f"{args.env_id}, {parameters:,} trained parameters")

    for iteration in range(first_iteration, num_iterations + 1):
        remaining = 1.0 - (iteration - 1.0) / num_iterations  # from 1 at the start of the run toward 0 at its end
        optimizer.param_groups[0]["lr"] = args.learning_rate * (remaining if args.anneal_lr else 1.0)
        clip_range.fill_(args.clip_coef * (remaining if args.anneal_clip else 1.0))

        # Rollout
        finished = []  # agent step, return and length of the rollout's finished episodes
        with torch.no_grad():
            for step in range(args.num_steps):
                if args.from_state:
                    agent.seen.update(next_obs)
                obs[step], dones[step] = next_obs, next_done
                actions[step], logprobs[step], _, values[step] = act(next_obs)
                next_frames, reward, terminated, truncated, info = envs.step(actions[step].cpu().numpy())
                rewards[step] = scale(torch.from_numpy(reward), torch.from_numpy(terminated | truncated))
                cut_off = np.flatnonzero(truncated & ~terminated)
                if len(cut_off):  # the time limit is no terminal: the old episode's last state still has a value
                    final_obs = torch.as_tensor(np.stack(info["final_obs"][cut_off]), device=device)
                    rewards[step][cut_off] += args.gamma * agent.get_value(final_obs).cpu()
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
        b_obs, b_actions = obs.flatten(0, 1), actions.flatten(0, 1)
        b_logprobs, b_values = logprobs.flatten(), values.flatten()
        b_advantages, b_returns = advantages.flatten(), returns.flatten()
        clipfracs = []
        for _epoch in range(args.update_epochs):
            for mb_inds in torch.randperm(batch_size).to(device).split(minibatch_size):
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
                    mb_free.sum(),
                    clip_range,
                )
                optimizer.zero_grad()
                loss.backward()
                logged["grad_norm"] = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
                clipfracs.append(logged["clipfrac"].clone())

        # Log: the last minibatch's losses
        run.log_games(finished)
        logged["clipfrac"] = torch.stack(clipfracs).mean()  # of all minibatches
        run.log_losses(global_step, logged)
        explained_variance = 1 - (b_returns - b_values).var() / b_returns.var()  # nan where all returns are equal
        run.log(global_step, {"losses/explained_variance": explained_variance, "charts/clip_coef": clip_range})
        run.log(global_step, {"charts/learning_rate": optimizer.param_groups[0]["lr"]})
        run.log(global_step, {"charts/policy_std": agent.log_std.exp().mean()})
        run.log(global_step, {"charts/SPS": run.steps_per_second(global_step)})
        run.show(global_step)

        # Evaluate and save, where that is due
        play = functools.partial(evaluation_games, functools.partial(agent.act, greedy=True), args, args.eval_episodes)
        run.reach(global_step, play)
        if run.must_save:
            run.save(
                {
                    "observation_shape": tuple(observation_shape),
                    "action_size": action_size,
                    "iteration": iteration,
                    "agent": agent.state_dict(),
                    "reward_scale": scale.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
            )
        if run.stopping:
            break

    envs.close()
    return run.close()


if __name__ == "__main__":
    start(main, lambda: read_args(Args, __doc__, SCRIPT))
