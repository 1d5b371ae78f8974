"""A policy that explores: PPO on Atari with an intrinsic reward in place of the game's, the start of Behavior Transfer.

    python pretrain_policy_atari.py --env-id ALE/MsPacman-v5                            # Never Give Up's reward
    python pretrain_policy_atari.py --env-id ALE/MontezumaRevenge-v5 --intrinsic rnd    # its lifelong part alone
    python pretrain_policy_atari.py --resume runs/<run_name>/checkpoint.pt
    python dqn_bt_atari.py --env-id ALE/MsPacman-v5 --pretrained-policy runs/<run_name>/checkpoint.pt --flights   # then
    tensorboard --logdir runs

Behavior Transfer: Campos et al. 2021 (arXiv 2102.13515). The reward is that of Never Give Up (NGU): Badia et al. 2020
(arXiv 2002.06038), whose lifelong part is random network distillation (RND): Burda et al. 2018 (arXiv 1810.12894). PPO
and its network are those of ppo_e2e_atari.py, but for a constant clip range; what keeps intrinsic rewards steady under
PPO is RND's.

The policy never receives the game's reward, which is only reported (`charts/episodic_return`), nor is it told of lost
lives; what the screen shows of both stays visible. In games that have FIRE, the action after a lost life is FIRE,
whatever it chose (environments/atari.py): that step teaches the values, not the policy. What it explores is measured
where the player's place is known in the console's memory.

The file reads in the order in which things happen: flags, the parts of the intrinsic reward, then `main`: set-up,
rollout, intrinsic reward, advantages, update, coverage, log, save.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from behavior_transfer.coverage import coverage
from environments.atari import AtariFlags, check_games, game_name, make_envs
from environments.ram import POSITION
from environments.scaling import RunningMoments
from housekeeping import checkpoints, processes, run
from housekeeping.flags import InputError, check_ranges, require_defaults, start
from housekeeping.memory import require_memory, to_device
from housekeeping.run import Run, RunFlags, read_args
from housekeeping.seeds import env_seeds
from ppo_e2e_atari import Agent, agent_of, compute_advantages, layer_init, nature_cnn, ppo_loss

SCRIPT = "pretrain_policy_atari"  # what a checkpoint of this script calls itself
MAY_DIFFER_ON_RESUME = run.MAY_DIFFER | {"coverage_interval", "coverage_steps"}
# NGU's constants (Badia et al. 2020, algorithm 1): nearer than this, in units of the mean distance, is the same
MIN_DISTANCE = 0.008
KERNEL_EPSILON = 1e-4
KERNEL_CONSTANT = 0.001
MAX_SIMILARITY = 8.0
# Samples after which errors, distances and returns of earlier days have faded (ours): networks that learn change them
HORIZON = 100_000


@dataclass
class Args(AtariFlags, RunFlags):
    """intrinsic reward and PPO"""

    num_steps: int = 128
    """steps per environment in one rollout"""

    intrinsic: Literal["ngu", "rnd"] = "ngu"
    """the reward: ngu (episodic novelty times lifelong novelty) or rnd (lifelong novelty alone)"""
    memory_size: int = 30_000
    """ngu: embeddings that the episodic memory of one game holds (30,000 published); the oldest go first"""
    num_neighbours: int = 10
    """ngu: how many nearest embeddings of this game a new one is compared with (10 published)"""
    max_lifelong: float = 5.0
    """ngu: the lifelong factor is clipped to [1, this] (5 published)"""
    predictor_share: float = 0.25
    """share of the steps that the predictor of lifelong novelty learns from, so that novelty does not fade too soon
    (published: 0.25)"""
    intrinsic_learning_rate: float = 2.5e-4
    """Adam's learning rate for the predictor and the embedding"""
    intrinsic_minibatch: int = 64
    """their minibatch; they see each step once"""

    learning_rate: float = 2.5e-4
    """Adam's learning rate for the policy at the start"""
    anneal_lr: bool = True
    """bring the policy's learning rate down to 0 linearly"""
    gamma: float = 0.99
    """discount of intrinsic rewards"""
    episodic_return: bool | Literal["auto"] = "auto"
    """whether the return stops where a game ends: auto (with ngu, whose memory is of one game, so that staying alive
    pays; not with rnd, whose paper lets it go on, section 2.3), True or False"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation"""
    num_minibatches: int = 4
    """minibatches per epoch; must divide num_envs x num_steps"""
    update_epochs: int = 4
    """epochs over each rollout"""
    clip_coef: float = 0.1
    """PPO's clip range"""
    ent_coef: float = 0.01
    """weight of the policy's entropy in the loss"""
    vf_coef: float = 0.5
    """weight of the value's mean squared error in the loss"""
    max_grad_norm: float = 0.5
    """the gradient's norm is clipped to this"""

    coverage_interval: int = 100_000
    """measure every so many steps how many places the policy reaches, where the player's place is known (0: never)"""
    coverage_steps: int = 8_000
    """agent steps of one such measurement, in 8 games side by side"""


def check_args(args: Args) -> None:
    """Refuse, before any work, flags that cannot work; raises InputError."""
    check_games(args)
    processes.require_one_process(SCRIPT)
    at_least_one = ("num_steps", "num_minibatches", "update_epochs", "memory_size", "num_neighbours", "max_lifelong")
    at_least_one += ("intrinsic_minibatch", "coverage_steps")
    not_negative = ("learning_rate", "intrinsic_learning_rate", "clip_coef", "max_grad_norm", "coverage_interval")
    not_negative += ("ent_coef", "vf_coef")
    check_ranges(args, at_least_one, ("gamma", "gae_lambda"), not_negative, some_share=("predictor_share",))
    processes.check_rollouts(args)
    if args.num_neighbours > args.memory_size:
        held = f"the memory holds only --memory-size {args.memory_size} embeddings"
        raise InputError(f"--num-neighbours {args.num_neighbours}: {held}.")
    if args.intrinsic == "rnd":
        require_defaults(args, ("memory_size", "num_neighbours", "max_lifelong"), "--intrinsic ngu")


class EpisodicMemory:
    """Embeddings of what each environment's present game has shown, and how new another one is (NGU, section 2 and
    algorithm 1).

    The sum over the nearest neighbours is a kernel estimate of how often the like was seen in this game; one over its
    root is the usual bonus for counts.
    """

    def __init__(self, num_envs: int, size: int, features: int, num_neighbours: int, device: torch.device):
        self.embeddings = torch.zeros((num_envs, size, features), device=device)
        self.visits = torch.zeros(num_envs, dtype=torch.int64, device=device)  # how many were ever put in, in this game
        self.num_neighbours = num_neighbours

    def forget(self, envs: torch.Tensor) -> None:
        """Empty the memories where envs (num_envs,) bool says so: another game begins there."""
        self.visits[envs] = 0

    def novelty(self, embedding: torch.Tensor, distances: RunningMoments) -> torch.Tensor:
        """How new (num_envs, features) is in each environment's game: (num_envs,).

        0 where the similarity is above MAX_SIMILARITY, as published; as each neighbour adds at most 1, this needs 64
        neighbours and more. Also 0 as long as the memory holds fewer than `num_neighbours` embeddings: otherwise the
        first steps of each game would look newer than all others, and it would pay to end games early. Updates
        `distances`, the running mean of squared distances to the neighbours.
        """
        k, size = self.num_neighbours, self.embeddings.shape[1]
        held = self.visits.clamp(max=size)
        known = held >= k
        if not known.any():
            return torch.zeros(len(embedding), device=embedding.device)
        filled = int(held.max())
        squared = (self.embeddings[:, :filled] - embedding[:, None]).square().sum(dim=2)  # (num_envs, filled)
        squared[torch.arange(filled, device=embedding.device) >= held[:, None]] = torch.inf
        nearest = squared.topk(k, dim=1, largest=False).values  # (num_envs, k)
        distances.update(nearest[known].flatten())
        normalised = nearest / distances.mean.float().clamp(min=1e-8)
        kernel = KERNEL_EPSILON / ((normalised - MIN_DISTANCE).clamp(min=0) + KERNEL_EPSILON)
        similarity = kernel.sum(dim=1).sqrt() + KERNEL_CONSTANT
        return torch.where(known & (similarity <= MAX_SIMILARITY), 1 / similarity, 0.0)

    def add(self, embedding: torch.Tensor) -> None:
        """Put one embedding per environment (num_envs, features) into the memories; the oldest goes where one is
        full."""
        self.embeddings[
            torch.arange(len(embedding), device=embedding.device), self.visits % self.embeddings.shape[1]
        ] = embedding
        self.visits += 1


class IntrinsicReward(nn.Module):
    """What is new: in this game (ngu's episodic part) and in all that was ever seen (random network distillation).

    Its state dict has all networks and all running normalisations.
    """

    def __init__(self, num_actions: int, args: Args):
        super().__init__()
        self.args = args
        # Embedded is what the player can influence: what tells which action was taken between one observation and the
        # next (NGU, fig. 1)
        self.embedding = nature_cnn(4, 32)[:-1]  # without its last ReLU
        self.inverse = nn.Sequential(
            layer_init(nn.Linear(64, 128)), nn.ReLU(), layer_init(nn.Linear(128, num_actions), 0.01)
        )
        # Lifelong novelty: what a trained network cannot yet say of a random one's output (RND, section 2.2)
        self.target = nature_cnn(1, 128)[:-1].requires_grad_(False)
        self.predictor = nature_cnn(1, 128)[:-1]
        self.pixels = RunningMoments((84, 84))
        self.errors, self.distances, self.returns = (RunningMoments(horizon=HORIZON) for _ in range(3))
        # sum of past intrinsic rewards of each environment, discounted
        self.register_buffer("discounted", torch.zeros(args.num_envs))
        self.to(memory_format=torch.channels_last)  # fast: the layout that convolutions prefer

    def whiten(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, 84, 84) -> each pixel less its mean, over its standard deviation, in [-5, 5] (RND, section 2.4).

        The embedding gets this, too (ours): what the player moves is small, and on plain pixels the inverse model does
        not find it in the first 100,000 steps.
        """
        deviation = self.pixels.var.sqrt().clamp(min=1e-2).float()
        return (
            (frames.to(torch.float32, memory_format=torch.channels_last) - self.pixels.mean.float()) / deviation
        ).clamp(-5, 5)

    def embed(self, obs: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 4, 84, 84) -> embedding (B, 32): NGU's controllable state."""
        return self.embedding(self.whiten(obs))

    def prediction_error(self, obs: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 4, 84, 84) -> the predictor's mean squared error on the newest frame (B,)."""
        x = self.whiten(obs[:, -1:])
        return (self.predictor(x) - self.target(x)).square().mean(dim=1)

    @torch.no_grad()
    def forward(self, obs: torch.Tensor, game_over: torch.Tensor, memory: EpisodicMemory) -> dict[str, torch.Tensor]:
        """The rewards of one rollout; updates memory and running normalisations.

        Args:
            obs: uint8 (num_steps + 1, num_envs, 4, 84, 84); step t is rewarded for what obs[t + 1] shows. Where a game
                ended with step t, that is the next game's first observation, which starts its memory.
            game_over: bool (num_steps, num_envs).

        Returns:
            "reward" (num_steps, num_envs), normalised; "episodic" and "lifelong" of the same shape, as they were
            multiplied (with rnd "lifelong" is the error itself).
        """
        num_steps, num_envs = game_over.shape
        seen = obs[1:].flatten(0, 1)
        self.pixels.update(seen[:, -1])
        error = torch.cat([self.prediction_error(part) for part in seen.split(256)]).view(num_steps, num_envs)
        self.errors.update(error.flatten())
        if self.args.intrinsic == "rnd":
            lifelong, episodic = error, torch.ones_like(error)
        else:
            lifelong = (
                (1 + (error - self.errors.mean) / self.errors.var.sqrt().clamp(min=1e-8))
                .float()
                .clamp(1, self.args.max_lifelong)
            )
            embeddings = torch.cat([self.embed(part) for part in seen.split(256)]).view(num_steps, num_envs, -1)
            episodic = torch.zeros_like(error)
            for t in range(num_steps):
                memory.forget(game_over[t])
                episodic[t] = memory.novelty(embeddings[t], self.distances)
                memory.add(embeddings[t])
        reward = episodic * lifelong
        discounted = []
        for t in range(num_steps):  # divide by the running standard deviation of the discounted sum (RND, section 2.4)
            self.discounted.copy_(self.args.gamma * self.discounted + reward[t])
            discounted.append(self.discounted.clone())
        self.returns.update(torch.cat(discounted))
        reward = reward / self.returns.var.sqrt().clamp(min=1e-8).float()
        return {"reward": reward, "episodic": episodic, "lifelong": lifelong}

    def loss(
        self,
        obs: torch.Tensor,
        actions: torch.Tensor,
        next_obs: torch.Tensor,
        same_game: torch.Tensor,
        learns: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """What the networks learn from: "predictor" (RND, section 2.2) and, with ngu, "inverse" (cross-entropy in
        nats), both ().

        Args:
            obs, next_obs: uint8 (B, 4, 84, 84), before and after the step; actions (B,).
            same_game: bool (B,), whether no game ended in between: only then the action explains the difference.
            learns: bool (B,), the share of the steps that the predictor learns from.
        """
        # fast: what the predictor does not learn from is not computed
        lifelong = self.prediction_error(next_obs[learns]).sum() / learns.sum().clamp(min=1)
        if self.args.intrinsic == "rnd":
            return {"predictor": lifelong}
        logits = self.inverse(torch.cat([self.embed(obs), self.embed(next_obs)], dim=1))
        inverse = (F.cross_entropy(logits, actions, reduction="none") * same_game).sum() / same_game.sum().clamp(min=1)
        return {"predictor": lifelong, "inverse": inverse}


def load_agent(path: Path, device: torch.device | str = "cpu", pretrained_dir: str | None = None) -> Agent:
    """The pre-trained policy of a checkpoint of this script, ready to `act`. (`pretrained_dir` is for scripts that use
    stored models.)

    Raises:
        InputError: no such file, damaged, or of another script.
    """
    return agent_of(checkpoints.load_checkpoint(path, SCRIPT), torch.device(device), path)


def main(args: Args) -> Path | None:
    """Train, and return the run's folder."""
    check_args(args)
    run = Run(SCRIPT, args, game_name(args.env_id), MAY_DIFFER_ON_RESUME)
    args, device = run.args, run.device
    batch_size = args.num_envs * args.num_steps
    num_iterations = -(-args.total_timesteps // batch_size)  # whole rollouts, at least as many steps as asked for
    first_iteration, global_step, random_coverage = 1, 0, {}
    episodic = args.intrinsic == "ngu" if args.episodic_return == "auto" else args.episodic_return
    if args.intrinsic == "ngu":
        needed = 3 * args.num_envs * args.memory_size * 32 * 4  # and the differences to a new one, and their squares
        require_memory(needed, device, "the episodic memories", "lower --memory-size or --num-envs")

    # Set-up. Lives are not reported: a lost one is nothing that this policy knows of
    torch.manual_seed(args.seed)
    envs = make_envs(args.env_id, args.num_envs, args.repeat_action_probability, False, args.max_frames_per_game)
    num_actions = int(envs.single_action_space.n)
    agent = Agent(num_actions, args.precision).to(device)
    intrinsic = IntrinsicReward(num_actions, args).to(device)
    memory = EpisodicMemory(
        args.num_envs, args.memory_size if args.intrinsic == "ngu" else 1, 32, args.num_neighbours, device
    )
    # fast: one kernel for all weights
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)
    learning = [parameter for parameter in intrinsic.parameters() if parameter.requires_grad]
    intrinsic_optimizer = torch.optim.Adam(learning, lr=args.intrinsic_learning_rate, fused=True)  # fast: the same
    if run.checkpoint:
        agent.load_state_dict(run.checkpoint["agent"])
        intrinsic.load_state_dict(run.checkpoint["intrinsic"])
        optimizer.load_state_dict(run.checkpoint["optimizer"])
        intrinsic_optimizer.load_state_dict(run.checkpoint["intrinsic_optimizer"])
        first_iteration, global_step = run.checkpoint["iteration"] + 1, run.checkpoint["global_step"]
    run.set_random_state()
    run.start(num_iterations * batch_size, f"{args.env_id}, {args.intrinsic}")
    measures_coverage = args.coverage_interval > 0 and game_name(args.env_id) in POSITION
    if args.coverage_interval > 0 and not measures_coverage:
        run.say(
            f"{SCRIPT}: where the player is in this game is not known, so that coverage is not measured (known: "
            f"{', '.join(POSITION)})"
        )
    if measures_coverage:
        rng = np.random.default_rng(args.seed)
        random_coverage = coverage(lambda obs: rng.integers(num_actions, size=len(obs)), args, stream=0)
        found = " and ".join(f"{counts[-1]} {what}" for what, counts in random_coverage.items())
        run.say(f"{SCRIPT}: random play reaches {found} in {args.coverage_steps:,} steps")

    # Storage of one rollout
    obs = torch.zeros((args.num_steps + 1, args.num_envs, 4, 84, 84), dtype=torch.uint8, device=device)
    actions, forced = torch.zeros((2, args.num_steps, args.num_envs), dtype=torch.int64, device=device)
    logprobs = torch.zeros((args.num_steps, args.num_envs), device=device)
    values = torch.zeros((args.num_steps, args.num_envs), device=device)
    game_over = torch.zeros((args.num_steps, args.num_envs), dtype=torch.bool, device=device)
    # 1 where a return must not go on from the step before
    ends = torch.zeros((args.num_steps + 1, args.num_envs), device=device)
    # value of the last state of a game that was cut off there
    cut_values = torch.zeros((args.num_steps, args.num_envs), device=device)

    if not run.checkpoint:  # RND, section 2.4: pixels' statistics from random play, before the first reward
        warm_up = make_envs(args.env_id, args.num_envs, args.repeat_action_probability, False, args.max_frames_per_game)
        warm_up.reset(seed=env_seeds(args.num_envs, args.seed, 3))
        rng = np.random.default_rng([args.seed, 3])
        for _ in range(128):
            frames, *_ = warm_up.step(rng.integers(num_actions, size=args.num_envs))
            intrinsic.pixels.update(torch.as_tensor(frames[:, -1], device=device))
        warm_up.close()

    # Emulators' states are not in a checkpoint: a resumed run starts new games, other ones than at step 0
    first_obs, _ = envs.reset(seed=env_seeds(args.num_envs, args.seed, 0, global_step))
    obs[0] = to_device(first_obs, device)
    with torch.no_grad():
        memory.add(intrinsic.embed(obs[0]))

    for iteration in range(first_iteration, num_iterations + 1):
        remaining = 1.0 - (iteration - 1.0) / num_iterations  # from 1 at the start of the run toward 0 at its end
        optimizer.param_groups[0]["lr"] = args.learning_rate * (remaining if args.anneal_lr else 1.0)

        # Rollout; the game's reward is left where it is: the environment adds it up, for the report
        if iteration > first_iteration:
            obs[0] = obs[-1]
        finished = []
        cut_values.zero_()
        for step in range(args.num_steps):
            forced[step] = torch.from_numpy(envs.forced)
            with torch.no_grad():
                actions[step], logprobs[step], _, values[step] = agent.get_action_and_value(
                    obs[step], forced=forced[step]
                )
            next_obs, _, terminated, truncated, info = envs.step(actions[step].cpu().numpy())
            obs[step + 1] = to_device(next_obs, device)
            game_over[step] = torch.from_numpy(terminated | truncated)
            if episodic:
                ends[step + 1] = game_over[step]
                cut_off = np.flatnonzero(truncated & ~terminated)
                if len(cut_off):  # the frame limit is no terminal: the old game's last state still has a value
                    with torch.no_grad():
                        cut_values[step, cut_off] = agent.get_value(
                            torch.as_tensor(info["final_obs"][cut_off], device=device)
                        )
            finished += [(global_step + (step + 1) * args.num_envs, score, length) for score, length in info["games"]]
        global_step += batch_size

        # Intrinsic reward
        rewards = intrinsic(obs, game_over, memory)

        # Advantages
        with torch.no_grad():
            next_value = agent.get_value(obs[-1])
        to_go = rewards["reward"] + args.gamma * cut_values
        advantages, returns = compute_advantages(
            to_go, values, ends[:-1], next_value, ends[-1], args.gamma, args.gae_lambda
        )

        # Update
        b_obs, b_next_obs = obs[:-1].flatten(0, 1), obs[1:].flatten(0, 1)
        b_actions, b_logprobs, b_values = actions.flatten(), logprobs.flatten(), values.flatten()
        b_advantages, b_returns, b_same_game = advantages.flatten(), returns.flatten(), ~game_over.flatten()
        b_free = forced.flatten() < 0
        clip_range = torch.tensor(args.clip_coef, device=device)
        learns = torch.rand(batch_size, device=device) < args.predictor_share
        for mb_inds in torch.randperm(batch_size).to(device).split(args.intrinsic_minibatch):
            intrinsic_losses = intrinsic.loss(
                b_obs[mb_inds], b_actions[mb_inds], b_next_obs[mb_inds], b_same_game[mb_inds], learns[mb_inds]
            )
            intrinsic_optimizer.zero_grad()
            sum(intrinsic_losses.values()).backward()
            intrinsic_optimizer.step()
        clipfracs = []
        for _epoch in range(args.update_epochs):
            for mb_inds in torch.randperm(batch_size).to(device).split(batch_size // args.num_minibatches):
                mb_free = b_free[mb_inds]
                mb_advantages = processes.normalise(b_advantages[mb_inds], mb_free)
                loss, logged = ppo_loss(
                    agent,
                    b_obs[mb_inds],
                    b_actions[mb_inds],
                    b_logprobs[mb_inds],
                    mb_advantages,
                    b_returns[mb_inds],
                    mb_free,
                    mb_free.sum().clamp(min=1),
                    clip_range,
                    args.ent_coef,
                    args.vf_coef,
                )
                optimizer.zero_grad()
                loss.backward()
                logged["grad_norm"] = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
                clipfracs.append(logged["clipfrac"])

        # Log: the last minibatch's losses, the rollout's rewards
        run.log_games(finished)
        logged["clipfrac"] = torch.stack(clipfracs).mean()  # of all minibatches
        run.log_losses(global_step, logged | intrinsic_losses)
        explained_variance = 1 - (b_returns - b_values).var() / b_returns.var()  # nan where all returns are equal
        run.log(global_step, {"losses/explained_variance": explained_variance})
        run.log(global_step, {f"intrinsic/{name}": value.mean() for name, value in rewards.items()})
        run.log(global_step, {"charts/learning_rate": optimizer.param_groups[0]["lr"]})
        run.log(global_step, {"charts/SPS": run.steps_per_second(global_step)})
        run.show(global_step, f"novelty {rewards['episodic'].mean():.2f} x {rewards['lifelong'].mean():.3g}")

        # Coverage: how many places the policy reaches
        last = iteration == num_iterations
        before = global_step - batch_size
        if measures_coverage and (last or global_step // args.coverage_interval > before // args.coverage_interval):
            with torch.random.fork_rng():  # its draws are no part of the training
                torch.manual_seed(args.seed)
                reached = coverage(functools.partial(agent.act, greedy=False), args, stream=global_step)
            for what, counts in reached.items():
                run.log(global_step, {f"coverage/{what}": counts[-1]})
                run.log(global_step, {f"coverage/{what}_random_play": random_coverage[what][-1]})
            found = ", ".join(
                f"{counts[-1]} {what} (random play: {random_coverage[what][-1]})" for what, counts in reached.items()
            )
            run.say(f"step {global_step:,}: {found} in {args.coverage_steps:,} steps")

        # Save. There is no best.pt: what would be best is the game's score, which this script does not look at
        run.reach(global_step)
        if run.must_save:
            run.save(
                {
                    "iteration": iteration,
                    "agent": agent.state_dict(),
                    "intrinsic": intrinsic.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "intrinsic_optimizer": intrinsic_optimizer.state_dict(),
                }
            )
        if run.stopping:
            break

    envs.close()
    return run.close()


if __name__ == "__main__":
    start(main, lambda: read_args(Args, __doc__, SCRIPT))
