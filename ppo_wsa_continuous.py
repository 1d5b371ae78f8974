"""Weight Sharing Attention on continuous actions: PPO that sees a robot arm through several frozen, pre-trained models.

    python pretrain_encoders.py --env-id Reacher-v5 --encoders state_representation autoencoder   # if none are stored
    python ppo_wsa_continuous.py --env-id Reacher-v5                         # what the two light models see
    python ppo_wsa_continuous.py --combiner uniform                          # a control: even weights
    python ppo_wsa_continuous.py --resume runs/<run_name>/checkpoint.pt      # go on
    tensorboard --logdir runs

Piccoli, Li, Carfì, Lomonaco, Bacciu (arXiv 2507.07197) name continuous control as the next test of their method; they
did not make it. The method does not depend on what the pictures show, so it is that of ppo_wsa_atari.py: frozen models,
adapters, the shared weight network, the weighted sum, the heads, the loss. What differs is what differs between
ppo_e2e_atari.py and ppo_e2e_continuous.py: the Gaussian policy, and rewards brought to one scale.

    obs (B, 4, 84, 84)  ->  frozen models  ->  adapters  ->  scores, weights  ->  state h (B, d)
                        ->  mean of the action (B, size) and value (B,)                          class Agent, below
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

import ppo_wsa_atari
from combiners import CombinerOptions, find_combiner
from combiners.schedule import apply_change, parse_schedule, trained_by
from encoders.frozen import KeptEmbeddings
from encoders.player import Player
from environments.rendered import RenderedFlags, check_environment, evaluation_games, folder_name, make_envs
from environments.scaling import RewardScale
from housekeeping import processes
from housekeeping.flags import start
from housekeeping.memory import to_device
from housekeeping.run import EvaluationFlags, Run, RunFlags, read_args
from housekeeping.seeds import env_seeds
from ppo_e2e_atari import PPOFlags, check_ppo, compute_advantages
from ppo_e2e_continuous import ContinuousFlags, gaussian
from ppo_wsa_atari import (
    MAY_DIFFER_ON_RESUME,
    WSAFlags,
    check_wsa,
    logged_weights,
    open_models,
    open_player,
    ppo_loss,
)

SCRIPT = "ppo_wsa_continuous"  # what a checkpoint of this script calls itself


@dataclass
class Defaults:
    """Weight Sharing Attention: other defaults than on Atari"""

    encoders: tuple[str, ...] = ("state_representation", "autoencoder")
    """the frozen models to combine; my_module:MyEncoder takes a model of your own"""


@dataclass
class Args(Defaults, WSAFlags, CombinerOptions, ContinuousFlags, PPOFlags, RenderedFlags, RunFlags, EvaluationFlags):
    """PPO on what frozen models see"""


def check_args(args: Args) -> None:
    """Refuse, before any work, flags that cannot work; raises InputError."""
    processes.require_one_process(SCRIPT)
    check_ppo(args)
    check_wsa(args)
    check_environment(args)


class Agent(ppo_wsa_atari.Agent):
    """All that is trained: the combiner, the head that gives the mean of the action, the value head, and the logarithm
    of the policy's standard deviation, the same everywhere. Arguments as there; `action_size` in place of actions."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], context_name: str | None, action_size: int, args: Args):
        super().__init__(shapes, context_name, action_size, args)
        self.log_std = nn.Parameter(torch.zeros(action_size))

    def get_action_and_value(
        self, seen: dict[str, torch.Tensor], action: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """{name: (B, *shape)} -> action (B, size) (drawn, unless given), its log-probability, the policy's entropy,
        value, each (B,); and the weights (B, N) of combiners that weigh."""
        with self.autocast(seen):
            state, weights = self.state(seen)
            mean, value = self.actor(state), self.critic(state).squeeze(-1)
        policy = gaussian(mean, self.log_std)
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action).sum(dim=1), policy.entropy().sum(dim=1), value, weights

    def choose(self, seen: dict[str, torch.Tensor], greedy: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """{name: (B, *shape)} -> actions (B, size), the means or drawn ones, and the weights (B, N)."""
        with self.autocast(seen):
            state, weights = self.state(seen)
            mean = self.actor(state)
        return mean if greedy else gaussian(mean, self.log_std).sample(), weights


def load_agent(path: Path, device: torch.device | str = "cpu", pretrained_dir: str | None = None) -> Player:
    """The trained agent of a checkpoint of this script with its frozen models, ready to `act`; as ppo_wsa_atari's."""
    return open_player(path, SCRIPT, Args, Agent, device, pretrained_dir)


def main(args: Args) -> Path:
    """Train, and return the run's folder."""
    check_args(args)
    run = Run(SCRIPT, args, folder_name(args.env_id), MAY_DIFFER_ON_RESUME)
    args, device = run.args, run.device
    batch_size = args.num_envs * args.num_steps
    minibatch_size = batch_size // args.num_minibatches
    num_iterations = -(-args.total_timesteps // batch_size)  # whole rollouts, at least as many steps as asked for
    first_iteration, global_step, changes_done = 1, 0, 0
    schedule = parse_schedule(args.schedule, args.encoders, find_combiner(args.combiner))

    # Set-up
    frozen = open_models(args)
    if run.checkpoint:
        frozen.restore(run.checkpoint, Path(args.resume))
    dtype = getattr(torch, args.precision)  # embeddings are kept in the precision in which the update reads them
    if args.combiner != "reservoir":
        KeptEmbeddings.require_memory(frozen.shapes, batch_size, minibatch_size, dtype, device)
    torch.manual_seed(args.seed)
    envs = make_envs(args.env_id, args.num_envs, args.action_repeat)
    action_size = envs.single_action_space.shape[0]
    measured = run.checkpoint.get("centre") if run.checkpoint else None
    frozen.prepare(args.precision, device, args.centre_embeddings, measured, args.compile)
    agent = Agent(frozen.shapes, frozen.context_name, action_size, args).to(device)
    scale = RewardScale(args.num_envs, args.gamma)  # on the CPU, with the environments
    trained = [parameter for parameter in agent.parameters() if parameter.requires_grad]
    # fast: one kernel for all weights
    optimizer = torch.optim.Adam(trained, lr=args.learning_rate, eps=1e-5, fused=True)
    if run.checkpoint:
        changes_done = run.checkpoint["changes_done"]
        for change in schedule[:changes_done]:
            apply_change(change, agent.combiner, frozen.shapes, args.seed, optimizer)
        trained = trained_by(optimizer)
        agent.load_state_dict(run.checkpoint["agent"])
        scale.load_state_dict(run.checkpoint["reward_scale"])
        optimizer.load_state_dict(run.checkpoint["optimizer"])
        first_iteration, global_step = run.checkpoint["iteration"] + 1, run.checkpoint["global_step"]
    run.set_random_state()
    coefficients = {"ent_coef": args.ent_coef, "vf_coef": args.vf_coef, "weights_ent_coef": args.weights_ent_coef}
    act, loss_of = agent.get_action_and_value, functools.partial(ppo_loss, agent, **coefficients)
    if args.compile:  # fast: fewer and fused kernels
        act, loss_of = torch.compile(act), torch.compile(loss_of)

    # Storage of one rollout
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
    memory = agent.combiner.initial_state(args.num_envs)
    next_seen, memory = agent.see(frozen, next_obs, memory, torch.ones(args.num_envs, dtype=torch.bool, device=device))
    # Row step * num_envs + env of b_seen belongs to that step of that environment
    b_seen = KeptEmbeddings(next_seen, batch_size, minibatch_size)
    run.start(
        num_iterations * batch_size,
        f"{args.env_id}, {args.combiner} of {', '.join(agent.names)}",
        f"{sum(p.numel() for p in trained):,} trained and {sum(p.numel() for p in frozen.parameters()):,} frozen "
        f"parameters, {b_seen.nbytes / 1e9:.2f} GB of kept embeddings",
    )

    for iteration in range(first_iteration, num_iterations + 1):
        # Models that come or go
        due = [change for change in schedule[changes_done:] if change.step <= global_step]
        for change in due:
            apply_change(change, agent.combiner, frozen.shapes, args.seed, optimizer)
        if due:
            changes_done += len(due)
            trained = trained_by(optimizer)
            b_seen = None  # the old models' memory is free before the new ones take theirs
            next_seen = frozen(next_obs, agent.names)
            b_seen = KeptEmbeddings(next_seen, batch_size, minibatch_size)
            run.say(f"step {global_step:,}: the models are now {', '.join(agent.names)}")

        # Annealing
        remaining = 1.0 - (iteration - 1.0) / num_iterations  # from 1 at the start of the run toward 0 at its end
        learning_rate = args.learning_rate * (remaining if args.anneal_lr else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        clip_range.fill_(args.clip_coef * (remaining if args.anneal_clip else 1.0))

        # Rollout
        finished = []  # agent step, return and length of the rollout's finished episodes
        with torch.no_grad():
            for step in range(args.num_steps):
                b_seen[step * args.num_envs : (step + 1) * args.num_envs] = next_seen
                dones[step] = next_done
                actions[step], logprobs[step], _, values[step], _ = act(next_seen)
                next_frames, reward, terminated, truncated, info = envs.step(actions[step].cpu().numpy())
                over = torch.from_numpy(terminated | truncated)
                rewards[step] = scale(torch.from_numpy(reward), over)
                cut_off = np.flatnonzero(truncated & ~terminated)
                if len(cut_off):  # the time limit is no terminal: the old episode's last state still has a value
                    final_obs = torch.as_tensor(np.stack(info["final_obs"][cut_off]), device=device)
                    not_new = torch.zeros(len(cut_off), dtype=torch.bool, device=device)
                    final_seen, _ = agent.see(frozen, final_obs, None if memory is None else memory[cut_off], not_new)
                    rewards[step][cut_off] += args.gamma * agent.get_value(final_seen).cpu()
                next_obs, next_done = to_device(next_frames, device), over.float()
                next_seen, memory = agent.see(frozen, next_obs, memory, over.to(device))
                now = global_step + (step + 1) * args.num_envs
                finished += [(now, score, length) for score, length in info["games"]]
        global_step += batch_size

        # Advantages
        with torch.no_grad():
            next_value = agent.get_value(next_seen)
        advantages, returns = compute_advantages(
            rewards.to(device), values, dones.to(device), next_value, next_done.to(device), args.gamma, args.gae_lambda
        )

        # Update
        b_actions, b_logprobs, b_values = actions.flatten(0, 1), logprobs.flatten(), values.flatten()
        b_advantages, b_returns = advantages.flatten(), returns.flatten()
        clipfracs = []
        for _epoch in range(args.update_epochs):
            for mb_inds in torch.randperm(batch_size).to(device).split(minibatch_size):
                mb_free, mb_advantages = b_free[mb_inds], b_advantages[mb_inds]
                if args.norm_adv:
                    mb_advantages = processes.normalise(mb_advantages, mb_free)
                mb_seen = b_seen[mb_inds]  # fast: what the frozen models said in the rollout is still true
                loss, logged, weights = loss_of(
                    mb_seen,
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
                logged["grad_norm"] = nn.utils.clip_grad_norm_(trained, args.max_grad_norm)
                optimizer.step()
                clipfracs.append(logged["clipfrac"].clone())

        # Log: the last minibatch's losses and weights (a random part of the rollout)
        run.log_games(finished)
        run.log(global_step, logged_weights(agent, mb_seen, weights))
        logged["clipfrac"] = torch.stack(clipfracs).mean()  # of all minibatches
        run.log_losses(global_step, logged)
        explained_variance = 1 - (b_returns - b_values).var() / b_returns.var()  # nan where all returns are equal
        run.log(global_step, {"losses/explained_variance": explained_variance})
        run.log(global_step, {"charts/learning_rate": learning_rate, "charts/clip_coef": clip_range})
        run.log(global_step, {"charts/policy_std": agent.log_std.exp().mean()})
        run.log(global_step, {"charts/SPS": run.steps_per_second(global_step)})
        run.show(global_step)

        # Evaluate and save, where that is due
        player = Player(frozen, agent)
        play = functools.partial(evaluation_games, functools.partial(player.act, greedy=True), args, args.eval_episodes)
        run.reach(global_step, play)
        if run.must_save:
            run.save(
                {
                    **frozen.state(),
                    "changes_done": changes_done,
                    "num_actions": action_size,
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
