"""Pre-train the vision models of Weight Sharing Attention on one game, without reward.

    python pretrain_encoders.py --env-id ALE/Qbert-v5                   # all five, a CPU's budget
    python pretrain_encoders.py --budget paper --data-dir data/paper --pretrained-dir pretrained_paper   # 1,000,000 frames, for a GPU
    python pretrain_encoders.py --encoders autoencoder --retrain        # one model, again
    python pretrain_encoders.py --data-dir data/mixed --pretrained-dir pretrained_mixed --expert-checkpoint runs/<run_name>/best.pt

What happens, in this order: collect frames of random play (or of a share of games played by a saved agent) on disk; set a tenth of the
games apart for validation; train each model that is not stored yet; store it as pretrained/<Game>/<name>.pt. A run that was stopped
goes on where it was when it is started again (with --retrain, models that were finished before the stop are made once more). The
models' networks and losses are in encoders/, one file each. In games that have FIRE, the action after a lost life is FIRE (atari.py).
"""

import json
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import matplotlib

matplotlib.use("Agg")  # pictures go to TensorBoard; no screen is needed
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import precision
import processes
import storage
from atari import env_seeds, fire_action, game_name, make_envs
from encoders import ENCODERS, PRETRAININGS, load_encoder, save_encoder
from precision import Precision
from storage import InputError


@dataclass
class Args:
    env_id: str = "ALE/Pong-v5"
    """the game, a Gymnasium id"""
    encoders: tuple[str, ...] = ("state_representation", "autoencoder", "object_masks", "keypoint_features", "keypoint_maps")
    """the models to train (the default: the paper's); also image_completion, frame_prediction, masked_autoencoder"""
    budget: Literal["cpu", "paper"] = "cpu"
    """frames, steps and batch sizes: cpu (some hours on two cores for all five) or paper (for a GPU)"""
    retrain: bool = False
    """train again what is stored already"""
    pretrained_dir: str | None = None
    """stored models go to <pretrained-dir>/<Game>/<name>.pt (none given: pretrained/ beside this script)"""

    data_dir: str = "data"
    """frames go to <data-dir>/<Game>/: 7 KB a frame, 7 GB for 1,000,000"""
    num_frames: int | None = None
    """frames to collect (cpu: 100,000, paper: 1,000,000)"""
    expert_checkpoint: str | None = None
    """a saved agent (checkpoint.pt or best.pt of a script here) that plays a share of the games"""
    expert_fraction: float = 0.5
    """that share, if there is an expert"""
    repeat_action_probability: float = 0.0
    """sticky actions while collecting"""
    num_envs: int = 8
    """games played side by side while collecting"""
    validation_fraction: float = 0.1
    """share of the games that is set apart"""

    steps: int | None = None
    """training steps of each model, instead of the budget's"""
    batch_size: int | None = None
    """batch size of each model, instead of the budget's"""
    validation_samples: int = 256
    """held-out samples for a validation, of which there are at least 20 in a run"""
    seed: int = 1
    """seed of games, weights and batches"""
    runs_dir: str = "runs"
    """TensorBoard logs go to <runs-dir>/<Game>__pretrain_encoders__<seed>/"""
    cuda: bool | Literal["auto"] = "auto"
    """train on a GPU: auto (if there is one), True or False"""
    torch_threads: int = 0
    """CPU threads for the networks (0: PyTorch's choice)"""
    compile: bool = False
    """compile each loss with torch.compile: needs a C++ compiler on a CPU, takes a minute or two at the start of each model"""
    precision: Precision = "auto"
    """arithmetic of training: bfloat16 or float32 (auto: bfloat16 on CUDA and on CPUs with instructions for it); held-out losses are
    float32"""


def check_args(args: Args) -> None:
    """Refuse, before any work, flags that cannot work; raises InputError."""
    game_name(args.env_id)
    processes.require_one_process("pretrain_encoders")
    unknown = [name for name in args.encoders if name not in ENCODERS]
    if unknown or not args.encoders:
        raise InputError(f"--encoders {' '.join(unknown)}: no such model; the known ones are {', '.join(ENCODERS)}.")
    at_least_one = ("num_frames", "steps", "batch_size", "num_envs", "validation_samples")
    processes.check_ranges(args, at_least_one, not_negative=("seed", "torch_threads"))
    for name in ("expert_fraction", "validation_fraction"):
        if not 0.0 < getattr(args, name) <= 1.0:
            raise InputError(f"--{name.replace('_', '-')} must be above 0 and at most 1, not {getattr(args, name)}.")
    if args.validation_samples % 32 == 1:
        raise InputError("--validation-samples must not leave a last batch of one: contrast needs two.")
    if args.batch_size == 1:
        raise InputError("--batch-size must be at least 2: batch normalisation and contrast need several samples.")
    processes.require_cuda(args)
    processes.require_compiler(args)


# Frames on disk: frames.u8 holds the newest 84x84 frame of every observation, game after game; index.json says where each game starts and
# how the frames were made. A stack of 4 is put together when it is needed, so a frame is stored once.


def collect_frames(args: Args, folder: Path, num_frames: int, device: torch.device, interrupted: threading.Event) -> None:
    """Play until `folder` holds `num_frames` frames, going on with what is there. Whole games are written; the last one is cut to fit.

    Raises:
        InputError: the folder holds frames that were made in another way.
    """
    expert = None
    if args.expert_checkpoint:
        plays = storage.load(Path(args.expert_checkpoint), "checkpoint")["args"]["env_id"]
        if plays != args.env_id:
            raise InputError(f"{args.expert_checkpoint}: this agent plays {plays}, not {args.env_id}.")
        expert = storage.load_agent(Path(args.expert_checkpoint), device)
    made_by = {
        "env_id": args.env_id,
        "repeat_action_probability": args.repeat_action_probability,
        "expert_sha256": storage.sha256(Path(args.expert_checkpoint)) if expert else None,
        "expert_fraction": args.expert_fraction if expert else 0.0,
        "seed": args.seed,
    }
    fire = fire_action(args.env_id) is not None
    index_path, frames_path = folder / "index.json", folder / "frames.u8"
    index = {**made_by, "fire_after_lost_life": fire, "games": []}
    if index_path.exists():
        index = json.loads(index_path.read_text())
        different = [key for key, value in made_by.items() if index.get(key) != value]
        if fire and not index.get("fire_after_lost_life"):
            raise InputError(
                f"{folder}: holds frames from before FIRE was pressed after a lost life; choose another --data-dir or delete it."
            )
        if different:
            raise InputError(f"{folder}: holds frames made with another {', '.join(different)}; choose another --data-dir or delete it.")
    games = index["games"]  # each {"start": first frame, "length": frames, "expert": whether the expert played}
    total = sum(game["length"] for game in games)
    if total and (not frames_path.exists() or frames_path.stat().st_size < total * 84 * 84):
        raise InputError(f"{frames_path}: holds less than {index_path} says; delete the folder, or choose another --data-dir.")
    if total >= num_frames:
        return
    storage.require_disk(folder, (num_frames - total) * 84 * 84, f"{num_frames - total:,} frames", "lower --num-frames")

    rng = np.random.default_rng([args.seed, total])
    torch.manual_seed(int(rng.integers(2**31)))  # the expert's draws
    envs = make_envs(args.env_id, args.num_envs, args.repeat_action_probability)
    obs, _ = envs.reset(seed=env_seeds(args.num_envs, args.seed, 2, total))
    begun = len(games)

    def next_is_expert() -> bool:  # spreads the expert's share evenly over the games, in the order in which they begin
        nonlocal begun
        begun += 1
        return int(begun * index["expert_fraction"]) > int((begun - 1) * index["expert_fraction"])

    by_expert = np.array([next_is_expert() for _ in range(args.num_envs)])
    frames: list[list[np.ndarray]] = [[obs[i, -1].copy()] for i in range(args.num_envs)]  # of each environment's game in play
    with (
        open(frames_path, "r+b" if frames_path.exists() else "w+b") as file,
        tqdm(total=num_frames, initial=total, unit="frame", unit_scale=True, desc="collecting frames", **processes.BAR) as progress,
    ):
        file.truncate(total * 84 * 84)  # a stopped run may have left part of a game
        file.seek(0, os.SEEK_END)
        while total < num_frames and not interrupted.is_set():
            actions = rng.integers(envs.single_action_space.n, size=args.num_envs)
            if by_expert.any():
                actions[by_expert] = expert.act(obs, greedy=False)[by_expert]
            obs, _, terminated, truncated, info = envs.step(actions)
            for i in range(args.num_envs):
                if not (terminated[i] or truncated[i]):
                    frames[i].append(obs[i, -1].copy())
                    continue
                frames[i].append(info["final_obs"][i, -1].copy())
                game = np.stack(frames[i])[: num_frames - total]
                file.write(game.tobytes())
                file.flush()
                games.append({"start": total, "length": len(game), "expert": bool(by_expert[i])})
                total += len(game)
                temporary = index_path.with_suffix(".tmp")
                temporary.write_text(json.dumps(index))
                os.replace(temporary, index_path)  # only now does the game count
                progress.update(len(game))
                frames[i], by_expert[i] = [obs[i, -1].copy()], next_is_expert()
                if total >= num_frames:
                    break
    envs.close()


class FrameData:
    """The collected frames of one game, read from the disk as they are needed.

    Raises:
        InputError: fewer than two games, so that none could be held out.
    """

    def __init__(self, folder: Path, validation_fraction: float, seed: int):
        self.index = json.loads((folder / "index.json").read_text())
        games = self.index["games"]
        long_enough = np.array([i for i, game in enumerate(games) if game["length"] >= 3])  # the others are not drawn from
        if len(long_enough) < 2:
            raise InputError(f"{folder}: holds {len(long_enough)} game; at least 2 are needed to hold one out, so raise --num-frames.")
        self.starts = np.array([game["start"] for game in games])
        self.lengths = np.array([game["length"] for game in games])
        self.num_frames = int(self.lengths.sum())
        self.frames = np.memmap(folder / "frames.u8", dtype=np.uint8, mode="r", shape=(self.num_frames, 84, 84))
        order = np.random.default_rng(seed).permutation(long_enough)
        num_validation = min(len(order) - 1, max(1, round(validation_fraction * len(order))))
        self.games = {"validation": np.sort(order[:num_validation]), "training": np.sort(order[num_validation:])}

    def observations(self, games: np.ndarray, times: np.ndarray) -> np.ndarray:
        """What the agent saw at these times of these games, uint8 (B, 4, 84, 84): oldest frame first, zeros before a game's first frame."""
        ages = np.arange(-3, 1)
        rows = (self.starts[games] + times)[:, None] + ages  # (B, 4)
        obs = self.frames[np.maximum(rows, 0)]
        obs[times[:, None] + ages < 0] = 0
        return obs

    def sample(self, split: str, batch_size: int, offsets: tuple[int, int], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw observations and later ones of the same games, each uint8 (batch_size, 4, 84, 84).

        Each comes from a game drawn at random; the later one is between the two `offsets` steps later, as far as the game lasted. A
        game's very first frame is not drawn: it has none before it.
        """
        lowest, highest = offsets
        games = rng.choice(self.games[split], size=batch_size)
        times = rng.integers(1, self.lengths[games] - lowest)
        later = times + rng.integers(lowest, np.minimum(highest, self.lengths[games] - 1 - times), endpoint=True)
        obs = torch.from_numpy(self.observations(games, times))
        return obs, obs if highest == 0 else torch.from_numpy(self.observations(games, later))

    def median_frame_error(self, seed: int, num_samples: int) -> float:
        """Mean squared error, on held-out frames in [0, 1], of always showing the pixel-wise median of 1,000 training frames."""
        train, _ = self.sample("training", 1000, (0, 0), np.random.default_rng([seed, 1]))
        held_out, _ = self.sample("validation", num_samples, (0, 0), np.random.default_rng([seed, 0]))
        median = train[:, -1].float().median(dim=0).values
        return F.mse_loss(median.expand(num_samples, -1, -1) / 255.0, held_out[:, -1].float() / 255.0).item()


@torch.no_grad()
def validate(pretraining: nn.Module, data: FrameData, num_samples: int, seed: int, device: torch.device) -> dict[str, float]:
    """Losses on held-out games, always on the same samples, with the schedules at their end (progress 1) so that they can be compared."""
    pretraining.eval()
    rng = np.random.default_rng([seed, 0])
    torch.manual_seed(seed)
    sums: dict[str, float] = {}
    for size in [32] * (num_samples // 32) + [num_samples % 32] * (num_samples % 32 > 0):
        obs, later_obs = data.sample("validation", size, pretraining.offsets, rng)
        for name, value in pretraining.loss(obs.to(device), later_obs.to(device), 1.0).items():
            sums[name] = sums.get(name, 0.0) + value.item() * size
    pretraining.train()
    return {name: total / num_samples for name, total in sums.items()}


@torch.no_grad()
def draw_picture(pretraining: nn.Module, data: FrameData, seed: int, device: torch.device) -> plt.Figure:
    """What the models see in three held-out samples; the keypoints, where there are some, as numbered dots."""
    pretraining.eval()
    obs, later_obs = data.sample("validation", 3, pretraining.offsets, np.random.default_rng([seed, 3]))
    images = pretraining.picture(obs.to(device), later_obs.to(device))
    points = images.pop("keypoints", None)
    pretraining.train()
    figure, axes = plt.subplots(3, len(images), figsize=(2.4 * len(images), 7.2), squeeze=False, layout="constrained")
    for row in range(3):
        for axis, (title, image) in zip(axes[row], images.items(), strict=True):
            axis.imshow(image[row, 0].cpu().numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=9)
            if points is not None and title != "source":
                for k, (x, y) in enumerate(((points[row].cpu() + 1) / 2 * 83).tolist()):
                    axis.plot(x, y, "o", markersize=5, markerfacecolor="none", color=f"C{k}")
                    axis.annotate(str(k + 1), (x, y), xytext=(3, 3), textcoords="offset points", color=f"C{k}", fontsize=7)
    return figure


def train(
    name: str, args: Args, data: FrameData, folder: Path, data_folder: Path, device: torch.device, interrupted: threading.Event
) -> bool:
    """Train the pre-training that makes the model `name` and store all models it makes in `folder`; False if it was interrupted."""
    torch.manual_seed(args.seed)
    pretraining = PRETRAININGS[name]().to(device, memory_format=torch.channels_last)  # fast: the layout that convolutions prefer
    names = list(pretraining.stored_models())
    steps = args.steps or pretraining.steps[args.budget]
    batch_size = args.batch_size or pretraining.batch_size[args.budget]
    optimizer = torch.optim.Adam(pretraining.parameters(), **pretraining.adam, fused=True)  # fast: one kernel for all weights
    settings = {"steps": steps, "batch_size": batch_size, "seed": args.seed, "frames": data.num_frames}
    settings |= {"validation_fraction": args.validation_fraction, "validation_samples": args.validation_samples}
    first_step, best, unchanged = 0, None, 0
    state_path = data_folder / f"{'+'.join(names)}.training.pt"
    if state_path.exists():
        state = storage.load(state_path, "pretraining")
        if state["settings"] == settings:  # a stopped run of the same kind: go on; else start anew
            pretraining.load_state_dict(state["pretraining"])
            optimizer.load_state_dict(state["optimizer"])
            first_step, best, unchanged, untrained = state["step"], state["best"], state["unchanged"], state["untrained"]
            if first_step == steps:  # it was stopped between its last step and storing
                step, validation = steps, validate(pretraining, data, args.validation_samples, args.seed, device)
    if first_step == 0:
        untrained = validate(pretraining, data, args.validation_samples, args.seed, device)

    log_dir = Path(args.runs_dir) / f"{game_name(args.env_id)}__pretrain_encoders__{args.seed}" / "+".join(names)
    writer = SummaryWriter(str(log_dir), purge_step=first_step + 1)
    interval = max(1, steps // 20)
    loss_of = torch.compile(pretraining.loss) if args.compile else pretraining.loss  # fast: fused kernels

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """What step `step` learns from, and the seed of what its loss hides at random; the same after a resume."""
        rng = np.random.default_rng([args.seed, 4, step])
        obs, later_obs = data.sample("training", batch_size, pretraining.offsets, rng)
        return obs, later_obs, int(rng.integers(2**31))

    loader = ThreadPoolExecutor(1)  # fast: the next batch is read from the disk while the model learns from this one
    upcoming = loader.submit(batch, first_step + 1)
    lr = pretraining.adam["lr"]
    with tqdm(total=steps, initial=first_step, unit="step", desc=" + ".join(names), **processes.BAR) as progress_bar:
        for step in range(first_step + 1, steps + 1):
            progress = (step - 1) / steps
            optimizer.param_groups[0]["lr"] = lr * pretraining.learning_rate_factor(progress)
            obs, later_obs, seed = upcoming.result()
            upcoming = loader.submit(batch, step + 1)
            torch.manual_seed(seed)
            with precision.autocast(args.precision, device):  # fast, where it is bfloat16
                losses = loss_of(obs.to(device), later_obs.to(device), torch.tensor(progress))
            optimizer.zero_grad()
            losses["loss"].backward()
            if pretraining.max_grad_norm:
                nn.utils.clip_grad_norm_(pretraining.parameters(), pretraining.max_grad_norm)
            optimizer.step()

            if step % max(1, interval // 10) == 0:
                for part, value in losses.items():
                    writer.add_scalar(f"training/{part}", value.item(), step)
            if step % interval == 0 or step == steps:
                validation = validate(pretraining, data, args.validation_samples, args.seed, device)
                for part, value in validation.items():
                    writer.add_scalar(f"validation/{part}", value, step)
                writer.add_figure("pictures", draw_picture(pretraining, data, args.seed, device), step)
                progress_bar.set_postfix_str(f"validation {validation['loss']:.5f}, untrained {untrained['loss']:.5f}")
                if pretraining.patience:
                    unchanged += 1
                    if best is None or validation["loss"] < best["validation"]["loss"]:
                        state_dict = {key: tensor.detach().clone() for key, tensor in pretraining.state_dict().items()}
                        best, unchanged = {"validation": validation, "step": step, "pretraining": state_dict}, 0
            progress_bar.update(1)
            stop_early = bool(pretraining.patience) and unchanged >= pretraining.patience
            if step % interval == 0 or interrupted.is_set():
                state = {
                    "kind": "pretraining",
                    "settings": settings,
                    "step": step,
                    "pretraining": pretraining.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "best": best,
                    "unchanged": unchanged,
                    "untrained": untrained,
                }
                storage.save(state, state_path)
            if interrupted.is_set() and step < steps:
                loader.shutdown()
                writer.close()
                return False
            if stop_early:
                break

    loader.shutdown()
    if best:
        pretraining.load_state_dict(best["pretraining"])
        validation, step = best["validation"], best["step"]
    reconstructs = name not in ("state_representation", "object_masks", "masked_autoencoder")
    description = {
        "game": game_name(args.env_id),
        "env_id": args.env_id,
        "data": {
            "frames": data.num_frames,
            "games": len(data.lengths),
            "expert_fraction": data.index["expert_fraction"],  # of the games that were begun, as asked for
            "expert_frames": sum(game["length"] for game in data.index["games"] if game["expert"]),  # those that were kept
            "repeat_action_probability": data.index["repeat_action_probability"],
        },
        "training": {
            "steps": step,
            "batch_size": batch_size,
            "seed": args.seed,
            "precision": args.precision,
            "torch": torch.__version__.split("+")[0],
        },
        "validation_loss": validation["loss"],
        "validation_parts": validation,
        "validation_loss_untrained": untrained["loss"],
        "median_frame_error": data.median_frame_error(args.seed, args.validation_samples) if reconstructs else None,
    }
    for model_name in names:
        save_encoder(folder / f"{model_name}.pt", model_name, pretraining, description)
    state_path.unlink(missing_ok=True)
    writer.close()
    return True


def main(args: Args) -> None:
    # Worker threads inherit how denormal numbers are treated when they are started, so that this is set before any computation
    check_args(args)
    if args.torch_threads:
        torch.set_num_threads(args.torch_threads)
    torch.set_flush_denormal(True)  # fast: Adam's averages of weights without gradients fade to numbers that a CPU is slow at
    processes.keep_freed_memory()  # fast: new pages cost more than the numbers in them
    game = game_name(args.env_id)
    folder, data_folder = Path(args.pretrained_dir or storage.PRETRAINED) / game, Path(args.data_dir) / game
    for path in (folder, data_folder, Path(args.runs_dir)):
        storage.require_writable(path)
    with storage.one_at_a_time(data_folder):
        make_models(args, folder, data_folder)


def make_models(args: Args, folder: Path, data_folder: Path) -> None:
    """Collect what frames are missing, and train what models are missing."""
    todo: list[str] = []  # one name for each pre-training that has work to do
    for name in args.encoders:
        if (folder / f"{name}.pt").exists() and not args.retrain:
            load_encoder(folder / f"{name}.pt", game=game_name(args.env_id))  # refuse a damaged file now
            print(f"{folder / name}.pt is stored already; --retrain makes it again")
        elif PRETRAININGS[name] not in [PRETRAININGS[other] for other in todo]:
            together = list(PRETRAININGS[name]().stored_models())
            stored = [other for other in together if (folder / f"{other}.pt").exists()]
            if stored and not args.retrain:
                raise InputError(
                    f"{folder}: {', '.join(stored)} is stored, but {name}, made together with it, is not; --retrain makes both again."
                )
            todo.append(name)
    if not todo:
        return

    interrupted = threading.Event()

    def on_interrupt(signum, frame):
        print("\nstopping after this step; the same command goes on from here", file=sys.stderr)
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, on_interrupt)
    signal.signal(signal.SIGTERM, on_interrupt)
    device = torch.device("cuda" if processes.on_cuda(args.cuda) else "cpu")
    args = replace(args, precision=precision.choose(args.precision, device))
    print(f"pretrain_encoders: {args.env_id}, {', '.join(todo)}; {processes.describe_speed(args, device)}")

    collect_frames(args, data_folder, args.num_frames or {"cpu": 100_000, "paper": 1_000_000}[args.budget], device, interrupted)
    if interrupted.is_set():
        sys.exit(130)
    data = FrameData(data_folder, args.validation_fraction, args.seed)
    print(f"{data.num_frames:,} frames of {len(data.lengths)} games in {data_folder}, {len(data.games['validation'])} games held out")
    for name in todo:
        if not train(name, args, data, folder, data_folder, device, interrupted):
            sys.exit(130)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    print(f"\n{'model':22}{'held-out loss':>14}{'untrained':>12}{'median frame':>14}{'KB':>8}")
    for path in sorted(folder.glob("*.pt")):
        model = load_encoder(path).description
        median = f"{model['median_frame_error']:.5f}" if model["median_frame_error"] is not None else "-"
        print(
            f"{model['name']:22}{model['validation_loss']:>14.5f}{model['validation_loss_untrained']:>12.5f}"
            f"{median:>14}{path.stat().st_size / 1024:>8,.0f}"
        )


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
