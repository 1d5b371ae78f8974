"""Weight Sharing Attention: PPO on Atari that sees through several frozen, pre-trained models and learns to weigh them.

    python ppo_wsa_atari.py --env-id ALE/Pong-v5                             # the paper's four models, 10,000,000 steps
    python ppo_wsa_atari.py --encoders state_representation autoencoder      # light models, for a CPU
    python ppo_wsa_atari.py --resume runs/<run_name>/checkpoint.pt           # go on
    torchrun --nproc-per-node 2 ppo_wsa_atari.py --num-envs 16               # several processes or GPUs train one agent
    tensorboard --logdir runs

Piccoli, Li, Carfì, Lomonaco, Bacciu: "Combining Pre-Trained Models for Enhanced Feature Representation in Reinforcement
Learning" (arXiv 2507.07197). PPO: Schulman et al. 2017 (arXiv 1707.06347), as in ppo_e2e_atari.py.

From observation to action, and where each step stands:

    obs (B, 4, 84, 84)  ->  frozen models, an embedding each: what is "seen"         encoders/frozen.py
                        ->  adapters: embeddings e (B, N, d), context c (B, d)       combiners/weighted_sum.py
                        ->  scores s_i = f([c ; e_i])                                combiners/wsa.py
                        ->  weights w = softmax(s), state h = sum_i w_i e_i (B, d)   combiners/weighted_sum.py
                        ->  policy and value                                         class Agent, below

The frozen models see each observation once, in the rollout; the update reads what they said then. In games that have
FIRE, the action after a lost life is FIRE, whatever the policy chose (environments/atari.py): it teaches the values,
not the policy. What makes it fast is marked "fast:". A run's folder, log, checkpoints and Ctrl-C are in
housekeeping/run.py.
"""

import functools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn as nn
from torch.distributions import Categorical

from combiners import CombinerOptions, check_options, find_combiner, make_combiner
from combiners.adapters import layer_init
from combiners.schedule import apply_change, parse_schedule, trained_by
from encoders.frozen import FrozenModels, KeptEmbeddings, require_known, short_name
from encoders.player import Player
from environments.atari import AtariFlags, check_games, evaluation_games, game_name, make_envs
from housekeeping import checkpoints, processes
from housekeeping.flags import InputError, start
from housekeeping.memory import to_device
from housekeeping.precision import Float32Linear, autocast, to_play_in
from housekeeping.run import MAY_DIFFER, EvaluationFlags, Run, RunFlags, read_args
from housekeeping.seeds import env_seeds
from ppo_e2e_atari import PPOFlags, check_ppo, compute_advantages

SCRIPT = "ppo_wsa_atari"  # what a checkpoint of this script calls itself
MAY_DIFFER_ON_RESUME = MAY_DIFFER | {"pretrained_dir"}


@dataclass
class WSAFlags:
    """Weight Sharing Attention"""

    encoders: tuple[str, ...] = ("state_representation", "keypoint_features", "keypoint_maps", "object_masks")
    """the frozen models to combine (the default: the paper's four); my_module:MyEncoder takes a model of your own"""
    context_encoder: str = "autoencoder"
    """the frozen model that gives the context, of combiners that have one; random: the autoencoder's network, untrained
    """
    combiner: str = "wsa"
    """how they are combined: wsa, one of the paper's rivals (dot_product, linear, fixed_linear, cnn, mixed, reservoir),
    a control (uniform, random_weights), or your own: my_module:MyCombiner"""
    features_dim: int = 256
    """width of adapted embeddings, context and state: the paper's d (not of linear, cnn, mixed, reservoir)"""
    centre_embeddings: bool = True
    """subtract from each embedding its mean over 256 observations of random play, divide by the deviation around it
    (ours; as published: --no-centre-embeddings)"""
    weights_ent_coef: float = 0.0
    """reward for even weights: this times their entropy is subtracted from the loss (wsa, dot_product)"""
    hidden_sizes: tuple[int, ...] = (256,)
    """hidden layers of the policy head and of the value head (the paper's large policy: 1024 512 256)"""
    hidden_activation: Literal["tanh", "relu"] = "tanh"
    """activation of these layers (the paper's large policy: relu)"""
    pretrained_dir: str | None = None
    """the stored models are <pretrained-dir>/<Game>/<name>.pt (none given: pretrained/ beside this script)"""
    untrained_encoders: bool = False
    """a control: the models of --encoders and --schedule with random weights"""
    schedule: tuple[str, ...] = ()
    """models that come and go, at the first rollout from that step on: add:autoencoder:200000
    drop:autoencoder:400000"""

    @staticmethod
    def older_defaults(saved: dict[str, Any]) -> dict[str, Any]:
        """Flags that an older checkpoint lacks: it had the published network, and did not centre embeddings."""
        network = {"scorer": "published"} if saved.get("combiner") == "wsa" and not saved.get("scorer") else {}
        return network | ({} if "centre_embeddings" in saved else {"centre_embeddings": False})


@dataclass
class Args(WSAFlags, CombinerOptions, PPOFlags, AtariFlags, RunFlags, EvaluationFlags):
    """PPO on what frozen models see"""


def check_args(args: Args) -> None:
    """Refuse, before any work, flags that cannot work; raises InputError."""
    check_games(args)
    check_ppo(args)
    check_wsa(args)


def check_wsa(args: WSAFlags) -> None:
    """Refuse flags of the method that cannot work; raises InputError."""
    check_options(args)
    require_known((*args.encoders, args.context_encoder))
    names = [short_name(spec) for spec in args.encoders]
    if not names or len(set(names)) < len(names):
        raise InputError(f"--encoders {' '.join(args.encoders)}: name at least one model, and none twice.")
    if args.weights_ent_coef and not getattr(find_combiner(args.combiner), "learns_weights", False):
        raise InputError(
            f"--weights-ent-coef is for combiners that learn weights (wsa, dot_product), not for {args.combiner}."
        )
    parse_schedule(args.schedule, args.encoders, find_combiner(args.combiner))
    if args.features_dim < 1 or not args.hidden_sizes or min(args.hidden_sizes) < 1:
        raise InputError("--features-dim and --hidden-sizes must be at least 1.")


def open_models(args: WSAFlags, pretrained_dir: str | None = None, carried: Collection[str] = ()) -> FrozenModels:
    """All frozen models that a run with these flags needs at some time, those `carried` by a checkpoint without a file;
    raises InputError if some are missing."""
    combiner = find_combiner(args.combiner)
    coming = [c.spec for c in parse_schedule(args.schedule, args.encoders, combiner) if c.kind == "add"]
    context = args.context_encoder if combiner.uses_context else None
    folder = pretrained_dir or args.pretrained_dir
    names = (*args.encoders, *coming)
    return FrozenModels(args.env_id, names, context, args.untrained_encoders, args.seed, folder, carried)


class Agent(nn.Module):
    """All that is trained: the combiner (adapters and shared weight network), a policy head and a value head.

    It decides by what the frozen models say: `seen`, {name: embedding (B, *shape)}. The reservoir, which has a memory
    and nothing to train, belongs to seeing: with it `seen` is {"reservoir": (B, units)}.

    Args:
        shapes: {name: shape of its embedding without the batch}.
        context_name: the model among them that gives the context, if the combiner has one.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], context_name: str | None, num_actions: int, args: Args):
        super().__init__()
        self.precision = args.precision  # of adapters and hidden layers; scores, weights, logits, values are float32
        self.context_name = context_name
        names = [short_name(spec) for spec in args.encoders]
        self.combiner = make_combiner(args, {name: shapes[name] for name in names}, shapes.get(context_name))
        self.actor = head(self.combiner.out_dim, args.hidden_sizes, args.hidden_activation, num_actions, gain=0.01)
        self.critic = head(self.combiner.out_dim, args.hidden_sizes, args.hidden_activation, 1, gain=1.0)
        self.to(memory_format=torch.channels_last)  # fast: the layout that convolutions prefer

    @property
    def names(self) -> tuple[str, ...]:
        """The models that are combined now, in the order of the weights' columns."""
        return self.combiner.names

    def see(
        self, frozen: FrozenModels, obs: torch.Tensor, memory: torch.Tensor | None, new_game: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """What the frozen models say of uint8 (B, 4, 84, 84), and the reservoir's memory after it.

        Args:
            memory: what the last call gave for the same B environments; None without a reservoir.
            new_game: bool (B,), where a game begins, so that its memory starts anew.
        """
        embeddings = frozen(obs, self.names)
        if memory is None:
            return embeddings, None
        h, memory = self.combiner.step(embeddings, memory, new_game)
        return {"reservoir": h}, memory

    def autocast(self, seen: dict[str, torch.Tensor]) -> torch.autocast:
        """The context in which the agent computes, on the device of what is seen."""
        return autocast(self.precision, next(iter(seen.values())).device)

    def state(self, seen: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The state h that the heads see (B, out_dim) and, for combiners that weigh, the weights w (B, N)."""
        return self.combiner.state_and_weights(seen, seen.get(self.context_name))

    def get_value(self, seen: dict[str, torch.Tensor]) -> torch.Tensor:
        """{name: (B, *shape)} -> value of each state (B,)."""
        with self.autocast(seen):
            return self.critic(self.state(seen)[0]).squeeze(-1)

    def get_action_and_value(
        self, seen: dict[str, torch.Tensor], action: torch.Tensor | None = None, forced: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """{name: (B, *shape)} -> action (drawn, unless given), its log-probability, the policy's entropy, value, each
        (B,); and the weights (B, N) of combiners that weigh.

        `forced` (B,): the actions that the environment plays whatever is drawn (FIRE after a lost life), -1 where it
        plays what is drawn.
        """
        with self.autocast(seen):
            state, weights = self.state(seen)
            logits, value = self.actor(state), self.critic(state).squeeze(-1)
        policy = Categorical(logits=logits, validate_args=False)  # fast: no check of each batch's numbers
        action = policy.sample() if action is None else action
        if forced is not None:
            action = torch.where(forced >= 0, forced, action)
        return action, policy.log_prob(action), policy.entropy(), value, weights

    def choose(self, seen: dict[str, torch.Tensor], greedy: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """{name: (B, *shape)} -> actions (B,), the most probable ones or drawn ones, and the weights (B, N)."""
        with self.autocast(seen):
            state, weights = self.state(seen)
            logits = self.actor(state)
        return logits.argmax(dim=1) if greedy else Categorical(logits=logits).sample(), weights


def head(
    in_features: int, hidden_sizes: tuple[int, ...], activation: str, out_features: int, gain: float
) -> nn.Sequential:
    """A policy or value head: hidden layers, then a linear layer whose initial weights have the given gain."""
    layers: list[nn.Module] = []
    for width in hidden_sizes:
        layers += [layer_init(nn.Linear(in_features, width)), {"tanh": nn.Tanh, "relu": nn.ReLU}[activation]()]
        in_features = width
    return nn.Sequential(*layers, layer_init(Float32Linear(in_features, out_features), gain))


def load_agent(path: Path, device: torch.device | str = "cpu", pretrained_dir: str | None = None) -> Player:
    """The trained agent of a checkpoint of this script with the frozen models it was trained with, ready to `act`.

    Args:
        pretrained_dir: where the stored models are, if not where they were in training.

    Raises:
        InputError: no such file, damaged, of another script; a stored model is missing, or another one than in
        training.
    """
    return open_player(path, SCRIPT, Args, Agent, device, pretrained_dir)


def open_player(
    path: Path, script: str, args_class: type, agent_class: type[Agent], device: torch.device | str, models: str | None
) -> Player:
    """The same for the checkpoints of any script whose agent is an `agent_class`; `models` is where the stored ones
    are."""
    checkpoint = checkpoints.load_checkpoint(path, script)
    args = checkpoints.saved_args(args_class, checkpoint["args"])
    args.precision = to_play_in(args.precision, torch.device(device), path)
    frozen = open_models(args, models, checkpoint["own_models"])
    frozen.restore(checkpoint, path)
    agent = agent_class(frozen.shapes, frozen.context_name, checkpoint["num_actions"], args)
    changes = parse_schedule(args.schedule, args.encoders, find_combiner(args.combiner))
    for change in changes[: checkpoint["changes_done"]]:
        apply_change(change, agent.combiner, frozen.shapes, args.seed)
    agent.load_state_dict(checkpoint["agent"])
    frozen.prepare(args.precision, torch.device(device), args.centre_embeddings, checkpoint.get("centre"))
    return Player(frozen, agent).to(device).eval()


def ppo_loss(
    agent: Agent,
    seen: dict[str, torch.Tensor],
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
    """PPO's loss of one minibatch (Schulman et al. 2017, eq. 9), what is logged of it, and the weights (B, N), if any.

    Args:
        seen: {name: (B, *shape)}.
        actions, logprobs, advantages, returns: (B,), of the rollout; the advantages normalised.
        free: bool (B,), where the action was the policy's choice. The others (FIRE after a lost life) teach the values
            only.
        num_free: how many those are, () (with several processes the mean over them).
        clip_coef: the clip range, () (a tensor, so that a compiled loss is not compiled again when it changes).
    """

    def mean(x: torch.Tensor) -> torch.Tensor:
        """Over the steps at which the policy chose."""
        return (x * free).sum() / num_free

    _, newlogprob, entropy, newvalue, weights = agent.get_action_and_value(seen, actions)
    logratio = torch.where(free, newlogprob - logprobs, 0.0)  # what was forced may be as improbable as it likes
    ratio = logratio.exp()
    pg_loss1 = -advantages * ratio
    pg_loss2 = -advantages * torch.clamp(ratio, 1 - clip_coef, 1 + clip_coef)
    pg_loss = mean(torch.max(pg_loss1, pg_loss2))  # eq. 7
    v_loss = (newvalue - returns).square().mean()  # plain, not halved: the published settings
    entropy_loss = mean(entropy)
    loss = pg_loss - ent_coef * entropy_loss + vf_coef * v_loss
    if weights_ent_coef:
        loss = loss - weights_ent_coef * Categorical(probs=weights, validate_args=False).entropy().mean()
    logged = {
        "value_loss": v_loss,
        "policy_loss": pg_loss,
        "entropy": entropy_loss,
        "old_approx_kl": mean(-logratio),  # http://joschu.net/blog/kl-approx.html
        "approx_kl": mean((ratio - 1) - logratio),
        "clipfrac": mean(((ratio - 1.0).abs() > clip_coef).float()),
    }
    return loss, {name: value.detach() for name, value in logged.items()}, weights


def logged_weights(
    agent: Agent, seen: dict[str, torch.Tensor], weights: torch.Tensor | None
) -> dict[str, torch.Tensor | float]:
    """What is logged of a minibatch's weights (B, N): each model's mean, their entropy, what the combiner finds."""
    logged: dict[str, torch.Tensor | float] = {}
    if weights is not None:
        logged |= dict(zip(agent.names, weights.mean(dim=0), strict=True))
        logged["entropy"] = Categorical(probs=weights, validate_args=False).entropy().mean()  # at most ln N
    if hasattr(agent.combiner, "diagnose"):
        with agent.autocast(seen):
            logged |= agent.combiner.diagnose(seen, seen.get(agent.context_name))
    return {f"weights/{name}": value for name, value in logged.items()}


def main(args: Args) -> Path | None:
    """Train, and return the run's folder (None in the other processes of a torchrun)."""
    check_args(args)
    run = Run(SCRIPT, args, game_name(args.env_id), MAY_DIFFER_ON_RESUME)
    args, device = run.args, run.device
    num_envs = args.num_envs // run.world_size  # of this process
    batch_size = args.num_envs * args.num_steps  # of all processes
    minibatch_size = num_envs * args.num_steps // args.num_minibatches  # of this process
    num_iterations = -(-args.total_timesteps // batch_size)  # whole rollouts, at least as many steps as asked for
    first_iteration, global_step, changes_done = 1, 0, 0
    schedule = parse_schedule(args.schedule, args.encoders, find_combiner(args.combiner))

    # Set-up
    frozen = open_models(args)
    if run.checkpoint:
        frozen.restore(run.checkpoint, Path(args.resume))
    dtype = getattr(torch, args.precision)  # embeddings are kept in the precision in which the update reads them
    if args.combiner != "reservoir":
        KeptEmbeddings.require_memory(frozen.shapes, num_envs * args.num_steps, minibatch_size, dtype, device)
    torch.manual_seed(args.seed)  # the same first weights in all processes
    envs = make_envs(args.env_id, num_envs, args.repeat_action_probability, True, args.max_frames_per_game)
    num_actions = int(envs.single_action_space.n)
    measured = run.checkpoint.get("centre") if run.checkpoint else None
    frozen.prepare(args.precision, device, args.centre_embeddings, measured, args.compile)
    agent = Agent(frozen.shapes, frozen.context_name, num_actions, args).to(device)
    trained = [parameter for parameter in agent.parameters() if parameter.requires_grad]
    # fast: one kernel for all weights
    optimizer = torch.optim.Adam(trained, lr=args.learning_rate, eps=1e-5, fused=True)
    if run.checkpoint:
        changes_done = run.checkpoint["changes_done"]
        for change in schedule[:changes_done]:
            apply_change(change, agent.combiner, frozen.shapes, args.seed, optimizer)
        trained = trained_by(optimizer)
        agent.load_state_dict(run.checkpoint["agent"])
        optimizer.load_state_dict(run.checkpoint["optimizer"])
        first_iteration, global_step = run.checkpoint["iteration"] + 1, run.checkpoint["global_step"]
    run.set_random_state()
    coefficients = {"ent_coef": args.ent_coef, "vf_coef": args.vf_coef, "weights_ent_coef": args.weights_ent_coef}
    act, loss_of = agent.get_action_and_value, functools.partial(ppo_loss, agent, **coefficients)
    if args.compile:  # fast: fewer and fused kernels
        act, loss_of = torch.compile(act), torch.compile(loss_of)

    # Storage of one rollout
    actions = torch.zeros((args.num_steps, num_envs), dtype=torch.int64, device=device)
    logprobs = torch.zeros((args.num_steps, num_envs), device=device)
    values = torch.zeros((args.num_steps, num_envs), device=device)
    forced = torch.zeros((args.num_steps, num_envs), dtype=torch.int64, device=device)
    rewards = torch.zeros((args.num_steps, num_envs))  # on the CPU, with the emulators, until the rollout is complete
    dones = torch.zeros((args.num_steps, num_envs))

    # Emulators' states are not in a checkpoint: a resumed run starts new games, other ones than at step 0
    first_obs, _ = envs.reset(seed=processes.share(env_seeds(args.num_envs, args.seed, 0, global_step)))
    next_obs, next_done = to_device(first_obs, device), torch.zeros(num_envs)
    memory = agent.combiner.initial_state(num_envs)
    next_seen, memory = agent.see(frozen, next_obs, memory, torch.ones(num_envs, dtype=torch.bool, device=device))
    # Row step * num_envs + env of b_seen belongs to that step of that environment
    b_seen = KeptEmbeddings(next_seen, num_envs * args.num_steps, minibatch_size)
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
            b_seen = KeptEmbeddings(next_seen, num_envs * args.num_steps, minibatch_size)
            run.say(f"step {global_step:,}: the models are now {', '.join(agent.names)}")

        # Annealing
        remaining = 1.0 - (iteration - 1.0) / num_iterations  # from 1 at the start of the run toward 0 at its end
        learning_rate = args.learning_rate * (remaining if args.anneal_lr else 1.0)
        clip_coef = args.clip_coef * (remaining if args.anneal_clip else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

        # Rollout
        finished = []  # agent step, raw score and length of the rollout's finished games
        with torch.no_grad():
            for step in range(args.num_steps):
                b_seen[step * num_envs : (step + 1) * num_envs] = next_seen
                dones[step], forced[step] = next_done, torch.from_numpy(envs.forced)
                actions[step], logprobs[step], _, values[step], _ = act(next_seen, forced=forced[step])
                next_frames, reward, terminated, truncated, info = envs.step(actions[step].cpu().numpy())
                rewards[step] = torch.from_numpy(np.sign(reward).astype(np.float32))  # clipped; scores are reported raw
                cut_off = np.flatnonzero(truncated & ~terminated)
                if len(cut_off):  # the frame limit is no terminal: the old game's last state still has a value
                    final_obs = torch.as_tensor(info["final_obs"][cut_off], device=device)
                    not_new = torch.zeros(len(cut_off), dtype=torch.bool, device=device)
                    final_seen, _ = agent.see(frozen, final_obs, None if memory is None else memory[cut_off], not_new)
                    rewards[step][cut_off] += args.gamma * agent.get_value(final_seen).cpu()
                next_obs = to_device(next_frames, device)
                next_done = torch.from_numpy(terminated | truncated).float()
                game_over = torch.as_tensor(info["game_over"], device=device)
                next_seen, memory = agent.see(frozen, next_obs, memory, game_over)
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
                mb_seen = b_seen[mb_inds]  # fast: what the frozen models said in the rollout is still true
                loss, logged, weights = loss_of(
                    mb_seen,
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
                processes.average_gradients(trained)
                logged["grad_norm"] = nn.utils.clip_grad_norm_(trained, args.max_grad_norm)
                optimizer.step()
                clipfracs.append(logged["clipfrac"].clone())

        # Log: the last minibatch's losses and weights (a random part of the rollout) of the first process
        run.log_games(finished)
        run.log(global_step, logged_weights(agent, mb_seen, weights))
        logged["clipfrac"] = torch.stack(clipfracs).mean()  # of all minibatches
        run.log_losses(global_step, logged)
        explained_variance = 1 - (b_returns - b_values).var() / b_returns.var()  # nan where all returns are equal
        run.log(global_step, {"losses/explained_variance": explained_variance})
        run.log(global_step, {"charts/learning_rate": learning_rate, "charts/clip_coef": clip_coef})
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
                    "num_actions": num_actions,
                    "iteration": iteration,
                    "agent": agent.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
            )
        if run.stopping:
            break

    envs.close()
    return run.close()


if __name__ == "__main__":
    start(main, lambda: read_args(Args, __doc__, SCRIPT))
