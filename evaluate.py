"""Look at a trained agent: its score over whole games, on changed games, and what its weights say.

    python evaluate.py --checkpoint runs/<run_name>/best.pt            # 100 games; several stand side by side
    python evaluate.py --list-variations --env-id ALE/Breakout-v5      # what can be changed in a game
    python evaluate.py --checkpoint ... --variation gravity mode:4 color_all_blocks_red+gravity
    python evaluate.py --checkpoint ... --suite                        # all of a game's variations
    python evaluate.py --checkpoint ... --attention                    # one game: weights as plot, film, CSV, summary

The protocol is that of Piccoli et al. (arXiv 2507.07197, section 5): the best agent of a run, greedy, 100 games, raw
scores. The changed games are HackAtari's (Delfosse et al. 2024, arXiv 2406.03997; install requirements-hackatari.txt)
and the modes and difficulties that the emulator itself offers (Machado et al. 2018, arXiv 1709.06009).

As in training, the action after a lost life is FIRE in games that have it, whatever the agent chose
(environments/atari.py).

The file reads in the order in which things happen: flags, playing and counting, the suite's comparison, one game
watched closely, `main`. The changed games are in environments/hackatari.py, plots and films in
environments/pictures.py. It writes into its output folder only.
"""

import functools
import importlib.metadata
import importlib.util
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scipy.special import stdtrit
from tqdm import tqdm

from environments import folder_name, rendered
from environments.atari import MAX_FRAMES_PER_GAME, game_name, make_envs, play_games
from environments.hackatari import (
    UNCHANGED,
    first_difference,
    hackatari,
    hackatari_modifications,
    list_variations,
    make_changed_env,
    modes_and_difficulties,
    parse_variation,
)
from environments.pictures import film, plot_suite, plot_weights, summarise_weights, weights_table
from housekeeping import checkpoints, device, files
from housekeeping.flags import InputError, check_ranges, parse, require_defaults, start
from housekeeping.run import BAR
from housekeeping.seeds import env_seeds

STREAM = 7  # evaluation games have seeds of their own, apart from those of training, whatever --seed is


@dataclass
class Args:
    """evaluation"""

    checkpoint: tuple[str, ...] = ()
    """checkpoint.pt or best.pt of any script here, or a file of export_agent.py; several stand side by side"""
    labels: tuple[str, ...] = ()
    """what to call each of them (none given: folder and file)"""
    episodes: int | None = None
    """whole games for each agent and variation (none given: 100 as in the paper, 10 with --suite)"""
    seed: int = 1
    """seed of games and, with --sample, of actions"""
    sample: bool = False
    """draw actions from the policy; without it, the most probable one (greedy: the paper's way)"""
    num_envs: int | None = None
    """games side by side; must divide --episodes (none given: the largest such number up to 10)"""
    repeat_action_probability: float | None = None
    """sticky actions (none given: as the agent was trained)"""
    max_frames_per_game: int = MAX_FRAMES_PER_GAME
    """a game is cut off after so many emulator frames"""

    env_id: str = "ALE/Pong-v5"
    """the game of --list-variations; agents play the game they were trained on"""
    list_variations: bool = False
    """show what can be changed in a game, and end"""
    variation: tuple[str, ...] = ()
    """changed games, each on its own: HackAtari's names, mode:4, difficulty:1; a+b puts a and b into one game"""
    suite: bool = False
    """the unchanged game and all of its variations, with a table and a bar plot"""
    drop_encoders: tuple[str, ...] = ()
    """play without these frozen models, for combiners that weigh"""

    attention: bool = False
    """watch one game closely, in place of counting scores: each model's weight over time, and a film"""
    film_start: int = 0
    """agent step at which the film begins"""
    film_steps: int = 450
    """agent steps in the film: 15 are a second of an Atari game (0: no film)"""

    pretrained_dir: str | None = None
    """where the stored models are (none given: where they were in training)"""
    output_dir: str | None = None
    """where to write (none given: a new folder under evaluations/)"""
    cuda: bool | Literal["auto"] = "auto"
    """run on a GPU: auto (if there is one), True or False"""
    torch_threads: int = 0
    """CPU threads for the network (0: PyTorch's choice)"""


def check_args(args: Args) -> None:
    """Refuse, before any work, flags that cannot work; raises InputError."""
    if not args.checkpoint:
        raise InputError(
            "name at least one agent: --checkpoint runs/<run_name>/best.pt (python evaluate.py --help shows all flags)."
        )
    if args.labels and (len(args.labels) != len(args.checkpoint) or len(set(args.labels)) < len(args.labels)):
        raise InputError("--labels: give one for each of --checkpoint, no two the same.")
    if args.suite and (args.variation or args.attention):
        raise InputError("--suite plays all variations and counts; leave --variation and --attention out.")
    if args.attention and (args.episodes or args.num_envs):
        raise InputError("--attention watches one game; leave --episodes and --num-envs out.")
    if args.attention and len(args.variation) > 1:
        raise InputError("--attention watches one game: one --variation at most (a+b puts two changes into it).")
    require_defaults(args, ("env_id",), "--list-variations (an agent plays the game it was trained on)")
    if not args.attention:
        require_defaults(args, ("film_start", "film_steps"), "--attention")
    not_negative = ("seed", "torch_threads", "film_start", "film_steps")
    at_least_one, below_one = ("episodes", "num_envs", "max_frames_per_game"), ("repeat_action_probability",)
    check_ranges(args, at_least_one, not_negative=not_negative, below_one=below_one)
    episodes, num_envs = games_and_envs(args)
    if episodes % num_envs:
        raise InputError(
            f"--num-envs {num_envs} does not divide --episodes {episodes}: each environment plays the same "
            "number of games."
        )
    device.require_cuda(args)


def games_and_envs(args: Args) -> tuple[int, int]:
    """How many games each agent plays, and in how many environments: an equal number in each, so that short games are
    not favoured."""
    episodes = args.episodes or (10 if args.suite else 100)
    return episodes, args.num_envs or max(n for n in range(1, 11) if episodes % n == 0)


# --------------------------------------------------------- playing and counting


@dataclass
class Evaluated:
    """An agent that was opened, and what its checkpoint says of it."""

    label: str
    path: str
    agent: Any  # act(obs, greedy) -> actions; WSA's have act_and_weights and the names `weighed`
    env_id: str
    script: str
    step: int
    repeat_action_probability: float
    drawn: dict[str, Any] = field(default_factory=dict)  # of rendered environments: what else `make_env` is to know


def open_agents(args: Args, on: torch.device) -> list[Evaluated]:
    """Open every checkpoint, without the models of --drop-encoders; raises InputError."""
    opened = []
    without = f" without {' '.join(args.drop_encoders)}" if args.drop_encoders else ""
    labels = args.labels or tuple(
        "/".join(Path(path).absolute().parts[-2:]).removesuffix(".pt") + without for path in args.checkpoint
    )
    if len(set(labels)) < len(labels):
        labels = tuple(path + without for path in args.checkpoint)  # of two folders of one name
    if len(set(labels)) < len(labels):
        raise InputError("--checkpoint: one of them is named twice; give --labels to tell them apart.")
    for path, label in zip(args.checkpoint, labels, strict=True):
        checkpoint = files.load(Path(path), "checkpoint", mmap=True)
        agent = checkpoints.load_agent(Path(path), on, args.pretrained_dir)
        folder_name(checkpoint["args"]["env_id"])  # refuses what cannot be played here
        for name in args.drop_encoders:
            if not hasattr(agent, "drop"):
                raise InputError(f"--drop-encoders {name}: {path} has no frozen models to do without.")
            try:
                agent.drop(name)
            except InputError as error:
                raise InputError(f"--drop-encoders {name}: {path}: {error}") from error
        trained = checkpoint["args"]
        sticky = args.repeat_action_probability
        sticky = trained.get("repeat_action_probability", 0.0) if sticky is None else sticky
        about = (trained["env_id"], checkpoint["script"], checkpoint["global_step"], sticky)
        drawn = {name: trained[name] for name in ("action_repeat", "from_state") if name in trained}
        opened.append(Evaluated(label, path, agent, *about, drawn))
        if rendered.is_rendered(trained["env_id"]):
            of_atari = ("suite", "variation", "max_frames_per_game") + ("repeat_action_probability",) * bool(sticky)
            require_defaults(args, of_atari, f"Atari games, and {trained['env_id']} of {path} is no Atari game")
    return opened


def play(act, env_id: str, variation: str, sticky: float, args: Args, description: str, **drawn: Any) -> dict:
    """Play whole games and count: a row of the table, with the single games under "scores", "lengths" and "cut_off".

    `drawn` is passed on to `rendered.make_envs`, where the environment is no Atari game.
    """
    episodes, num_envs = games_and_envs(args)
    if rendered.is_rendered(env_id):
        envs = rendered.make_envs(env_id, num_envs, **drawn)
    elif variation == UNCHANGED:
        envs = make_envs(env_id, num_envs, sticky, max_frames_per_game=args.max_frames_per_game)
    else:
        make = functools.partial(make_changed_env, env_id, variation, sticky, args.max_frames_per_game)
        envs = SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    torch.manual_seed(args.seed)
    with tqdm(total=episodes, unit="game", desc=description, **BAR, leave=False) as progress:
        games = play_games(act, envs, episodes, env_seeds(num_envs, args.seed, STREAM), progress.update)
    row = {"variation": variation, "game": folder_name(env_id), **summarise(games), "repeat_action_probability": sticky}
    if rendered.is_rendered(env_id):
        row["distinct"] = None  # its starts are all different: equal scores are no copies
    if env_id in rendered.ENDS_WHEN_SOLVED:
        row["solved"] = 1 - row["truncated"] / row["games"]
    return row | {"first_difference": None if variation == UNCHANGED else first_difference(env_id, variation)}


def half_width_of_mean(values: np.ndarray) -> float:
    """Half the width of Student's 95% interval of the mean of several values; 0 where all are equal."""
    return stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(len(values))


def summarise(games: list[tuple[int, int, bool]]) -> dict:
    """Mean, standard deviation (n - 1) and Student's 95% interval of the mean over games, and how many the frame limit
    cut off.

    `distinct` is how many different games there are: two count as different if their scores differ, or their lengths by
    more than 7 steps. Less can come from the random no-ops at the start (at most 29 frames). In a game without chance a
    greedy agent plays the same few games again and again, and an interval over copies is too narrow. (Different games
    that happen to be as long as each other count as one.)
    """
    distinct, last = 0, (None, 0)
    for score, length in sorted({(score, length) for score, length, _ in games}):
        if score != last[0] or length > last[1] + 7:
            distinct, last = distinct + 1, (score, length)
    scores = np.array([score for score, _, _ in games], dtype=float)
    mean, several = scores.mean(), len(scores) > 1
    half_width = half_width_of_mean(scores) if several else None
    return {
        "games": len(games),
        "mean": float(mean),
        "std": float(scores.std(ddof=1)) if several else None,
        "ci_low": float(mean - half_width) if several else None,
        "ci_high": float(mean + half_width) if several else None,
        "truncated": sum(cut_off for _, _, cut_off in games),
        "distinct": distinct,
        "scores": [score for score, _, _ in games],
        "lengths": [length for _, length, _ in games],
        "cut_off": [cut_off for _, _, cut_off in games],
    }


COLUMNS = {  # of the table on the screen and of results.csv
    "agent": "agent",
    "game": "game",
    "variation": "variation",
    "games": "games",
    "mean": "mean score",
    "std": "std",
    "ci_low": "95% from",
    "ci_high": "to",
    "truncated": "cut off",
    "solved": "solved",
    "distinct": "distinct",
    "relative": "relative",
    "first_difference": "picture",
}


def table(rows: list[dict]) -> str:
    """The rows as aligned text; columns that no row fills are left out."""
    columns = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]

    def text(row: dict, name: str) -> str:
        value = row.get(name)
        return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)

    cells = [[COLUMNS[name] for name in columns]] + [[text(row, name) for name in columns] for row in rows]
    left = {"agent", "game", "variation", "first_difference"}
    formats = [f"{'<' if name in left else '>'}{max(len(row[i]) for row in cells)}" for i, name in enumerate(columns)]
    lines = ["  ".join(format(cell, how) for cell, how in zip(row, formats, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def write_results(output: Path, args: Args, rows: list[dict]) -> None:
    """results.json (all), results.csv (the table) and games.csv (one line per game); called after each agent and
    variation."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "ale-py", "gymnasium", "numpy")}
    if importlib.util.find_spec("hackatari") is not None:
        packages["hackatari"] = importlib.metadata.version("hackatari")
    text = json.dumps({"settings": asdict(args), "packages": packages, "results": rows}, indent=1, allow_nan=False)
    (output / "results.json").write_text(text + "\n")
    columns = (*COLUMNS, "script", "step", "precision", "repeat_action_probability", "checkpoint")
    files.write_csv(output / "results.csv", [{name: row.get(name) for name in columns} for row in rows], ".6g")
    games = []
    for row in rows:
        whose = {"agent": row["agent"], "game": row["game"], "variation": row["variation"]}
        for i, (score, length, cut_off) in enumerate(zip(row["scores"], row["lengths"], row["cut_off"], strict=True)):
            games.append(whose | {"number": i, "score": score, "agent_steps": length, "cut_off": int(cut_off)})
    files.write_csv(output / "games.csv", games, ".6g")


def play_agent(agent: Evaluated, variation: str, args: Args) -> dict:
    """The row of one agent in one variation."""
    act, what = functools.partial(agent.agent.act, greedy=not args.sample), f"{agent.label}, {variation}"
    row = play(act, agent.env_id, variation, agent.repeat_action_probability, args, what, **agent.drawn)
    about = {"script": agent.script, "step": agent.step, "precision": agent.agent.precision, "checkpoint": agent.path}
    return {"agent": agent.label, **row, **about}


def score(agents: list[Evaluated], args: Args, output: Path) -> list[dict]:
    """Play each agent in each variation (in the unchanged game if none is named), and write the files."""
    rows = []
    for agent in agents:
        for variation in args.variation or (UNCHANGED,):
            rows.append(play_agent(agent, variation, args))
            write_results(output, args, rows)
    return rows


# ---------------------------------------------------------------- the suite


def suite(agents: list[Evaluated], args: Args, output: Path) -> list[dict]:
    """All variations of the agents' game, each agent's score beside its own in the unchanged game; a table and
    suite.png.

    A relative score is (score - r) / (score in the unchanged game - r), where r is random play's score in the unchanged
    game: 1 is as good as unchanged, 0 no better than random play there. For an agent that is no better than random play
    in the unchanged game there is none.
    """
    env_id, sticky = agents[0].env_id, agents[0].repeat_action_probability
    known = [*hackatari_modifications(env_id)[0], *modes_and_difficulties(env_id)]
    rng = np.random.default_rng(args.seed)
    num_actions = int(gym.make(env_id).action_space.n)
    row = play(lambda obs: rng.integers(num_actions, size=len(obs)), env_id, UNCHANGED, sticky, args, "random play")
    rows = [{"agent": "random play", **row}]
    baseline = {}
    for variation in (UNCHANGED, *known):
        for agent in agents:
            row = play_agent(agent, variation, args)
            if variation == UNCHANGED:
                baseline[agent.label] = row
            span = baseline[agent.label]["mean"] - rows[0]["mean"]
            row["relative"] = (row["mean"] - rows[0]["mean"]) / span if span > 0 else None
            rows.append(row)
            write_results(output, args, rows)
    plot_suite(rows, [agent.label for agent in agents], (UNCHANGED, *known), output / "suite.png")
    return rows


# ---------------------------------------------------- one game watched closely


def watch(agent: Evaluated, variation: str, args: Args, output: Path) -> None:
    """Play one game and write steps.csv, film.gif and, for agents that weigh, weights.png and summary.json."""
    atari = not rendered.is_rendered(agent.env_id)
    if atari:
        env = make_changed_env(agent.env_id, variation, agent.repeat_action_probability, args.max_frames_per_game)
    else:
        env = rendered.make_env(agent.env_id, **agent.drawn)
    names = getattr(agent.agent, "weighed", ())
    torch.manual_seed(args.seed)
    obs, info = env.reset(seed=int(env_seeds(1, args.seed, STREAM)[0]))
    steps, screens, total, done = [], [], 0, False
    with tqdm(unit="step", desc=f"{agent.label}, watching", **BAR, leave=False) as progress:
        while not done:
            if args.film_start <= len(steps) < args.film_start + args.film_steps:
                screens.append(env.unwrapped.ale.getScreenRGB() if atari else env.render())
            batch = torch.from_numpy(np.asarray(obs))[None]
            if names:
                action, weights = agent.agent.act_and_weights(batch, greedy=not args.sample)
                weights = weights[0].tolist()
            else:
                action, weights = agent.agent.act(batch, greedy=not args.sample), []
            obs, reward, terminated, truncated, info = env.step(int(action) if atari else action[0].cpu().numpy())
            done = terminated or truncated
            reward = int(reward) if atari else float(reward)
            total += reward
            played = (
                {"action": info["action"]} if atari else {f"action_{i}": x for i, x in enumerate(action[0].tolist())}
            )
            row = {"step": len(steps), **played, "reward": reward, "score": total, "lives": info.get("lives", 0)}
            steps.append(row | dict(zip(names, weights, strict=True)))
            progress.update()
    env.close()
    files.write_csv(output / "steps.csv", steps, ".6g")
    cut_off = truncated and not terminated
    game = f"{folder_name(agent.env_id)}{'' if variation == UNCHANGED else f' ({variation})'}"
    limit = f", cut off at the {'frame' if atari else 'time'} limit" if cut_off else ""
    title = f"{game}, {agent.label}, one game: score {round(total, 2)}{limit}"
    if names:
        summary = summarise_weights(np.array([[row[name] for name in names] for row in steps]), names)
        about = {"agent": agent.label, "game": game, "score": total, "cut_off": bool(cut_off)}
        (output / "summary.json").write_text(json.dumps({**about, **summary}, indent=1) + "\n")
        plot_weights(steps, names, title, output / "weights.png")
        print(weights_table(summary))
    elif getattr(agent.agent, "frozen", None) is not None:
        print(f"{agent.label}: this agent's combiner has no weights; the film shows the game alone.")
    if args.film_steps and not screens:
        print(f"no film: the game was over before --film-start {args.film_start}.")
    if screens:
        film(screens, steps[args.film_start :], names, title, output / "film.gif")
    print(f"{title}, {len(steps):,} agent steps; stored in {output}")


# ------------------------------------------------------------------------ main


def main(args: Args) -> Path | None:
    """Do what the flags ask for, and return the folder with the results."""
    if args.list_variations:
        if args.checkpoint:
            raise InputError("--list-variations is of a game, not of an agent: leave --checkpoint out, name --env-id.")
        game_name(args.env_id)
        list_variations(args.env_id)
        return None
    check_args(args)
    device.prepare_cpu(args.torch_threads)
    agents = open_agents(args, torch.device("cuda" if device.on_cuda(args.cuda) else "cpu"))
    for agent in agents:
        for variation in args.variation:
            parse_variation(variation, agent.env_id)
    if args.suite:
        hackatari()
        if len({agent.env_id for agent in agents}) > 1:
            raise InputError("--suite: the agents play different games; give those of one game.")
        if len({agent.repeat_action_probability for agent in agents}) > 1:
            raise InputError(
                "--suite: the agents were trained with different sticky actions; give --repeat-action-probability."
            )
    what = "suite" if args.suite else "attention" if args.attention else "score"
    if args.output_dir:
        output = Path(args.output_dir)
        if output.is_dir() and any(output.iterdir()):
            raise InputError(f"--output-dir {output}: there is something in it already; name a new folder.")
        files.require_writable(output)
    else:
        games = "_".join(dict.fromkeys(folder_name(agent.env_id) for agent in agents))
        output = files.new_folder("evaluations", f"{games}__{what}")

    if args.attention:
        for number, agent in enumerate(agents, 1):
            folder = output if len(agents) == 1 else output / f"{number}_{re.sub(r'[^A-Za-z0-9_-]', '_', agent.label)}"
            files.require_writable(folder)
            watch(agent, (*args.variation, UNCHANGED)[0], args, folder)
        return output
    rows = suite(agents, args, output) if args.suite else score(agents, args, output)
    print(table(rows))
    drawing = {agent.label for agent in agents if args.sample or getattr(agent.agent, "policy", None)} | {"random play"}
    greedy = [row for row in rows if row["agent"] not in drawing and not row["repeat_action_probability"]]
    if any(row["games"] > 1 and row["distinct"] and row["distinct"] <= row["games"] / 2 for row in greedy):
        print(
            "note: at most half of some row's games are distinct (only starts differ); its interval takes copies "
            "for new games."
        )
    print(f"{'drawn' if args.sample else 'greedy'} actions, seed {args.seed}; 95%: Student's t; stored in {output}")
    return output


if __name__ == "__main__":
    start(main, lambda: parse(Args, __doc__))
