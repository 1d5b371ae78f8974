"""Pre-train the vision models of Weight Sharing Attention on one game, without reward.

    python pretrain_encoders.py --env-id ALE/Qbert-v5                   # all five, a CPU's budget
    python pretrain_encoders.py --encoders autoencoder --retrain        # one model, again
    python pretrain_encoders.py --budget paper --data-dir data/paper --pretrained-dir pretrained_paper   # for a GPU
    python pretrain_encoders.py --data-dir data/mixed --pretrained-dir pretrained_mixed --expert-checkpoint <best.pt>

What happens, in this order: collect frames of random play (or of a share of games played by a saved agent) on disk; set
a tenth of the games apart for validation; train each model that is not stored yet; store it as
pretrained/<Game>/<name>.pt. A run that was stopped goes on where it was when it is started again (with --retrain,
models that were finished before the stop are made once more). The models' networks and losses are in encoders/, one
file each; frames on disk are in encoders/frames.py. In games that have FIRE, the action after a lost life is FIRE
(environments/atari.py).
"""

import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from encoders import ENCODERS, PRETRAINED, PRETRAININGS, load_encoder, save_encoder
from encoders.frames import FrameData, collect_frames
from encoders.pictures import draw_picture
from environments import folder_name, rendered
from housekeeping import device as devices
from housekeeping import files, precision, processes
from housekeeping.flags import InputError, check_ranges, parse, require_defaults, start
from housekeeping.precision import Precision
from housekeeping.run import BAR


@dataclass
class Args:
    """pre-training"""

    env_id: str = "ALE/Pong-v5"
    """the game, or another environment that draws itself (Reacher-v5), a Gymnasium id"""
    encoders: tuple[str, ...] = (
        "state_representation",
        "autoencoder",
        "object_masks",
        "keypoint_features",
        "keypoint_maps",
    )
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
    action_repeat: int = 1
    """of environments that are no Atari games: as their agents will be trained"""
    num_envs: int = 8
    """games played side by side while collecting"""
    validation_fraction: float = 0.1
    """share of the games that is set apart"""

    steps: int | None = None
    """training steps of each model, instead of the budget's"""
    batch_size: int | None = None
    """batch size of each model, instead of the budget's"""
    validation_samples: int = 256
    """held-out samples of each validation; a run has at least 20 validations, if it has as many steps"""
    seed: int = 1
    """seed of games, weights and batches"""
    runs_dir: str = "runs"
    """TensorBoard logs go to <runs-dir>/<Game>__pretrain_encoders__<seed>/"""
    cuda: bool | Literal["auto"] = "auto"
    """train on a GPU: auto (if there is one), True or False"""
    torch_threads: int = 0
    """CPU threads for the networks (0: PyTorch's choice)"""
    compile: bool = False
    """compile each loss with torch.compile: needs a C++ compiler on a CPU, takes a minute or two at the start of each
    model"""
    precision: Precision = "auto"
    """arithmetic of training: bfloat16 or float32 (auto: bfloat16 on CUDA and on CPUs with instructions for it);
    held-out losses are float32"""


def check_args(args: Args) -> None:
    """Refuse, before any work, flags that cannot work; raises InputError."""
    if rendered.is_rendered(args.env_id):
        require_defaults(args, ("repeat_action_probability", "expert_checkpoint"), "Atari games")
        rendered.check_environment(args)
    else:
        folder_name(args.env_id)
        require_defaults(args, ("action_repeat",), "environments that are no Atari games")
    if not args.expert_checkpoint:
        require_defaults(args, ("expert_fraction",), "--expert-checkpoint")
    processes.require_one_process("pretrain_encoders")
    unknown = [name for name in args.encoders if name not in ENCODERS]
    if unknown or not args.encoders:
        raise InputError(f"--encoders {' '.join(unknown)}: no such model; the known ones are {', '.join(ENCODERS)}.")
    at_least_one = ("num_frames", "steps", "batch_size", "num_envs", "validation_samples")
    some_share = ("expert_fraction", "validation_fraction")
    not_negative, below_one = ("seed", "torch_threads"), ("repeat_action_probability",)
    check_ranges(args, at_least_one, not_negative=not_negative, some_share=some_share, below_one=below_one)
    if args.validation_samples % 32 == 1:
        raise InputError("--validation-samples must not leave a last batch of one: contrast needs two.")
    if args.batch_size == 1:
        raise InputError("--batch-size must be at least 2: batch normalisation and contrast need several samples.")
    devices.require_cuda(args)
    devices.require_compiler(args)


@torch.no_grad()
def validate(
    pretraining: nn.Module, data: FrameData, num_samples: int, seed: int, device: torch.device
) -> dict[str, float]:
    """Losses on held-out games, always on the same samples, with the schedules at their end (progress 1) so that they
    can be compared."""
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


def train(
    name: str,
    args: Args,
    data: FrameData,
    folder: Path,
    data_folder: Path,
    device: torch.device,
    interrupted: threading.Event,
) -> bool:
    """Train the pre-training that makes the model `name` and store all models it makes in `folder`; False if it was
    interrupted."""
    torch.manual_seed(args.seed)
    # fast: the layout that convolutions prefer
    pretraining = PRETRAININGS[name]().to(device, memory_format=torch.channels_last)
    if args.budget == "cpu" and hasattr(pretraining, "for_cpu"):
        obs, _ = data.sample("training", 256, (0, 0), np.random.default_rng([args.seed, 5]))
        pretraining.for_cpu(obs.to(device))
    names = list(pretraining.stored_models())
    steps = args.steps or pretraining.steps[args.budget]
    batch_size = args.batch_size or pretraining.batch_size[args.budget]
    # fast: one kernel for all weights
    optimizer = torch.optim.Adam(pretraining.parameters(), **pretraining.adam, fused=True)
    settings = {"steps": steps, "batch_size": batch_size, "seed": args.seed, "frames": data.num_frames}
    settings |= {
        "budget": args.budget,
        "validation_fraction": args.validation_fraction,
        "validation_samples": args.validation_samples,
    }
    first_step, best, unchanged = 0, None, 0
    state_path = data_folder / f"{'+'.join(names)}.training.pt"
    if state_path.exists():
        state = files.load(state_path, "pretraining")
        if state["settings"] == settings:  # a stopped run of the same kind: go on; else start anew
            pretraining.load_state_dict(state["pretraining"])
            optimizer.load_state_dict(state["optimizer"])
            first_step, best, unchanged, untrained = (
                state["step"],
                state["best"],
                state["unchanged"],
                state["untrained"],
            )
            if first_step == steps:  # it was stopped between its last step and storing
                step, validation = steps, validate(pretraining, data, args.validation_samples, args.seed, device)
    if first_step == 0:
        untrained = validate(pretraining, data, args.validation_samples, args.seed, device)

    log_dir = Path(args.runs_dir) / f"{folder_name(args.env_id)}__pretrain_encoders__{args.seed}" / "+".join(names)
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
    with tqdm(total=steps, initial=first_step, unit="step", desc=" + ".join(names), **BAR) as progress_bar:
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
                if not np.isfinite(validation["loss"]) and not best:  # where there is a best, that is stored
                    loader.shutdown()
                    writer.close()
                    raise InputError(
                        f"{' + '.join(names)}: step {step:,}: the held-out loss is {validation['loss']}, training has "
                        "diverged; nothing was stored. Another --seed may help."
                    )
                for part, value in validation.items():
                    writer.add_scalar(f"validation/{part}", value, step)
                writer.add_figure("pictures", draw_picture(pretraining, data, args.seed, device), step)
                progress_bar.set_postfix_str(f"validation {validation['loss']:.3g}, untrained {untrained['loss']:.3g}")
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
                files.save(state, state_path)
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
        "game": folder_name(args.env_id),
        "env_id": args.env_id,
        "data": {
            "frames": data.num_frames,
            "games": len(data.lengths),
            "expert_fraction": data.index["expert_fraction"],  # of the games that were begun, as asked for
            # those that were kept
            "expert_frames": sum(game["length"] for game in data.index["games"] if game["expert"]),
            "repeat_action_probability": data.index["repeat_action_probability"],
            "action_repeat": data.index.get("action_repeat", 1),
        },
        "training": {
            "steps": step,
            "batch_size": batch_size,
            "budget": args.budget,
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
    check_args(args)
    devices.prepare_cpu(args.torch_threads)
    game = folder_name(args.env_id)
    folder, data_folder = Path(args.pretrained_dir or PRETRAINED) / game, Path(args.data_dir) / game
    for path in (folder, data_folder, Path(args.runs_dir)):
        files.require_writable(path)
    with files.lock(data_folder):
        make_models(args, folder, data_folder)


def make_models(args: Args, folder: Path, data_folder: Path) -> None:
    """Collect what frames are missing, and train what models are missing."""
    todo: list[str] = []  # one name for each pre-training that has work to do
    for name in args.encoders:
        if (folder / f"{name}.pt").exists() and not args.retrain:
            load_encoder(folder / f"{name}.pt", game=folder_name(args.env_id))  # refuse a damaged file now
            print(f"{folder / name}.pt is stored already; --retrain makes it again")
        elif PRETRAININGS[name] not in [PRETRAININGS[other] for other in todo]:
            together = list(PRETRAININGS[name]().stored_models())
            stored = [other for other in together if (folder / f"{other}.pt").exists()]
            if stored and not args.retrain:
                raise InputError(
                    f"{folder}: {', '.join(stored)} is stored, but {name}, made together with it, is not; "
                    "--retrain makes both again."
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
    device = torch.device("cuda" if devices.on_cuda(args.cuda) else "cpu")
    args = replace(args, precision=precision.choose(args.precision, device))
    print(f"pretrain_encoders: {args.env_id}, {', '.join(todo)}; {devices.describe(args, device)}")

    collect_frames(
        args, data_folder, args.num_frames or {"cpu": 100_000, "paper": 1_000_000}[args.budget], device, interrupted
    )
    if interrupted.is_set():
        sys.exit(130)
    data = FrameData(data_folder, args.validation_fraction, args.seed)
    print(
        f"{data.num_frames:,} frames of {len(data.lengths)} games in {data_folder}, "
        f"games held out: {len(data.games['validation'])}"
    )
    for name in todo:
        if not train(name, args, data, folder, data_folder, device, interrupted):
            sys.exit(130)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    print(f"\n{'model':22}{'held-out loss':>14}{'untrained':>12}{'median frame':>14}{'KB':>8}")
    for path in [folder / f"{name}.pt" for name in sorted(ENCODERS)]:
        if not path.is_file():
            continue
        model = load_encoder(path).description
        median = f"{model['median_frame_error']:.3g}" if model["median_frame_error"] is not None else "-"
        print(
            f"{model['name']:22}{model['validation_loss']:>14.3g}{model['validation_loss_untrained']:>12.3g}"
            f"{median:>14}{path.stat().st_size / 1024:>8,.0f}"
        )
        if model["median_frame_error"] is not None and model["validation_loss"] >= model["median_frame_error"]:
            print(f"{'':22}no better than one fixed picture, the median frame: it needs more steps or another start")


if __name__ == "__main__":
    start(main, lambda: parse(Args, __doc__))
