"""A training run: its folder, its log, its checkpoints, and how it stops. The same for all programs that train agents.

    run = Run("my_script", args, "Pong")      # reads the checkpoint of --resume, joins other processes
    run.start(total_steps)                    # makes the folder, opens the log, listens to Ctrl-C
    for step in ...:
        run.log_losses(step, {"value_loss": loss})
        run.log_games([(step, score, length)])
        run.reach(step, play)                 # evaluates with play() where that is due
        if run.must_save:
            run.save({"agent": agent.state_dict()})
        if run.stopping:
            break
    run.close()

Under torchrun all processes make the same calls in the same order (some of them talk to each other); the first one
writes.
"""

import importlib.util
import signal
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from housekeeping import checkpoints, device, files, flags, precision, processes
from housekeeping.flags import InputError
from housekeeping.precision import Precision
from housekeeping.seeds import env_seeds, restore_random_state

T = TypeVar("T")
BAR: Any = {"mininterval": 0.5 if sys.stderr.isatty() else 60, "dynamic_ncols": True}  # into a file: a line a minute


@dataclass
class RunFlags:
    """run"""

    total_timesteps: int = 10_000_000
    """length of the run in agent steps (4 emulator frames each), over all environments"""
    seed: int = 1
    """seed of network, actions, minibatches and environments"""
    exp_name: str | None = None
    """the run's folder is <game>__<exp_name>__<seed>__<time> (none given: the script's name)"""
    runs_dir: str = "runs"
    """folder of the runs"""
    run_dir: str | None = None
    """the run's folder itself, in place of --runs-dir and --exp-name; if a run is in it already, it goes on"""
    checkpoint_interval: int = 20_000
    """save checkpoint.pt about every so many steps, and at the end"""
    resume: str | None = None
    """go on from this checkpoint.pt, in its folder; its flags are the defaults then"""
    track: bool = False
    """send the log to Weights & Biases as well (needs the package wandb)"""
    cuda: bool | Literal["auto"] = "auto"
    """train on a GPU: auto (if there is one), True or False"""
    torch_threads: int = 0
    """CPU threads for the networks (0: PyTorch's choice); lower it when several runs share a machine"""
    precision: Precision = "auto"
    """arithmetic of the networks: bfloat16 or float32 (auto: bfloat16 on CUDA and on CPUs with instructions for it)"""


@dataclass
class EvaluationFlags:
    """evaluation during the run"""

    eval_interval: int = 0
    """play greedy evaluation games every so many steps; best.pt then follows them (0: off, best.pt follows the last 100
    training games)"""
    eval_episodes: int = 10
    """games in one evaluation (the paper: 100, every 40000 steps)"""


# Flags that a resumed run may have otherwise; programs add some of their own
MAY_DIFFER = {"total_timesteps", "resume", "run_dir", "runs_dir", "exp_name", "checkpoint_interval", "track"}
MAY_DIFFER |= {"compile", "precision", "cuda", "torch_threads"}


def read_args(args_class: type[T], description: str | None, script: str) -> T:
    """Flags from the command line; those of a checkpoint that the run goes on from are the defaults.

    Raises:
        InputError: the checkpoint cannot be read, or is another script's.
    """
    args = flags.parse(args_class, description)
    path = _resumed_from(args)
    if path is None:
        return args
    saved = checkpoints.saved_args(args_class, checkpoints.load_checkpoint(path, script)["args"])
    return flags.parse(args_class, description, default=replace(saved, resume=None, run_dir=None))


def _resumed_from(args: Any) -> Path | None:
    """The checkpoint that a run with these flags goes on from, if any."""
    if args.run_dir and (Path(args.run_dir) / "checkpoint.pt").is_file():
        return Path(args.run_dir) / "checkpoint.pt"
    return Path(args.resume) if args.resume else None


class Run:
    """One run of a training program.

    Args:
        script: what checkpoints of the program call themselves.
        args: its flags, a dataclass with those of `RunFlags`, and perhaps `EvaluationFlags`: only then there is a
            best.pt.
        name: what the run's folder is called first, e.g. the game.
        may_differ: flags that a resumed run may have otherwise.

    Attributes:
        args: the flags, with "auto" resolved.
        checkpoint: what the run goes on from, or None.
        dir: the run's folder, from `start` on (None in processes that do not write).
        stopping: whether the run was asked to stop.

    Raises:
        InputError: a flag is out of its range, or the checkpoint does not fit.
    """

    def __init__(self, script: str, args: Any, name: str, may_differ: set[str] = MAY_DIFFER):
        not_negative = ("seed", "torch_threads") + (("eval_interval",) if hasattr(args, "eval_interval") else ())
        at_least_one = ("checkpoint_interval",) + (("eval_episodes",) if hasattr(args, "eval_episodes") else ())
        flags.check_ranges(args, at_least_one, not_negative=not_negative)
        if args.run_dir and args.resume:
            raise InputError("--run-dir and --resume: give one of them.")
        if args.track and importlib.util.find_spec("wandb") is None:
            raise InputError("--track needs the package wandb, which is not installed here: pip install wandb")
        device.require_cuda(args)
        device.require_compiler(args)
        device.prepare_cpu(args.torch_threads)
        self.script, self.name, self.lock = script, name, None
        self.rank, self.world_size, self.device = processes.join(args.cuda)  # 0 and 1 without torchrun
        if args.run_dir and Path(args.run_dir).is_dir() and self.rank == 0:
            files.require_writable(Path(args.run_dir))
            self.lock = files.lock(Path(args.run_dir))  # what is at work there ends first
        processes.gather([])  # all processes read the same checkpoint
        path = _resumed_from(args)
        self.checkpoint: dict[str, Any] | None = None
        if path:
            try:
                self.checkpoint = checkpoints.load_to_resume(path, script, args, may_differ)
            except checkpoints.Finished as finished:
                if args.run_dir:
                    if self.rank == 0:
                        print(finished)
                    sys.exit(0)
                raise
        self.args = replace(args, precision=precision.choose(args.precision, self.device), resume=path and str(path))
        self.keeps_best = hasattr(args, "eval_interval")
        self.step = self.checkpoint["global_step"] if self.checkpoint else 0
        self.best_return = -float("inf")
        if path:  # best.pt's word, not the checkpoint's: a copy of that has no best.pt beside it
            self.best_return = checkpoints.entry_of(path.with_name("best.pt"), "best_return", self.best_return)
        self.last_games: deque[float] = deque(self.checkpoint["last_games"] if self.checkpoint else (), maxlen=100)
        self.dir: Path | None = None
        self.stopping = self.improved = self.due = False

    @property
    def folder(self) -> Path:
        """The run's folder where it is known, before `start` at least the folder in which it will be."""
        if self.args.resume:
            return Path(self.args.resume).resolve().parent
        return Path(self.args.run_dir or self.args.runs_dir)

    def start(self, total_steps: int, *about: str) -> None:
        """Make the folder, open the log, listen to Ctrl-C, and say what is going on; raises InputError if it cannot
        write.

        Args:
            total_steps: the step at which the run ends.
            about: what to say of the run, beside the device.
        """
        self.total_steps, self.first_step = total_steps, self.step
        if self.rank == 0:
            if self.checkpoint or self.args.run_dir:
                self.dir = self.folder
                files.require_writable(self.dir)
            else:
                self.dir = files.new_folder(self.args.runs_dir, self._folder_name())
            self.lock = self.lock or files.lock(self.dir)
            reached = checkpoints.entry_of(self.dir / "checkpoint.pt", "global_step", 0)
            if reached > self.step:  # by who held the lock before
                raise InputError(
                    f"{self.dir}: another process has brought this run to step {reached:,} meanwhile; give the command "
                    "again to go on from there."
                )
            if self.args.track:
                self._track()
            # what an earlier attempt logged after its last checkpoint goes
            again = self.checkpoint or self.args.run_dir
            self.writer = SummaryWriter(str(self.dir), purge_step=self.step + 1 if again else None)
            if not self.checkpoint:
                rows = "\n".join(f"|{name}|{value}|" for name, value in asdict(self.args).items())
                self.writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
        self._listen()
        if self.checkpoint:
            self.say(f"{self.script}: goes on at step {self.step:,}")
        if total_steps != self.args.total_timesteps:
            self.say(f"{self.script}: {total_steps:,} steps, the next whole number of rollouts")
        for line in (*about, device.describe(self.args, self.device, self.world_size), f"folder {self.dir}"):
            self.say(f"{self.script}: {line}")
        self.bar = tqdm(
            total=total_steps, initial=self.step, unit="step", unit_scale=True, disable=self.rank > 0, **BAR
        )
        self.started = time.time()

    def _folder_name(self) -> str:
        return f"{self.name}__{self.args.exp_name or self.script}__{self.args.seed}"

    def _track(self) -> None:
        """Weights & Biases copies what the SummaryWriter writes from now on; a resumed run goes on in its record there.

        Its own files go to ./wandb (its WANDB_DIR and WANDB_MODE change that): in the run's folder it would
        copy itself.
        """
        import wandb

        kept = self.dir / "wandb_id"
        if not (self.checkpoint and kept.is_file()):
            kept.write_text(uuid.uuid4().hex)
        about = {"name": self.dir.name, "id": kept.read_text(), "resume": "allow"}
        wandb.init(project="weight-sharing-attention", config=asdict(self.args), sync_tensorboard=True, **about)

    def _listen(self) -> None:
        """The first Ctrl-C (or SIGTERM) ends the run where it next can, with a checkpoint; the second one ends it at
        once."""
        self._interrupted = threading.Event()

        def on_interrupt(signum, frame):
            limit = " if torchrun waits so long (30 s without --shutdown-timeout)" if self.world_size > 1 else ""
            if self.rank == 0:
                what = f"\nstopping soon, with a checkpoint{limit} (once more: stop now, without)"
                print(what, file=sys.stderr)
            self._interrupted.set()
            self._stop_listening()

        signal.signal(signal.SIGINT, on_interrupt)
        signal.signal(signal.SIGTERM, on_interrupt)

    def _stop_listening(self) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def set_random_state(self) -> None:
        """The draws of this process from now on: a resumed run's go on where they were, each process has its own.

        Call it last, when all networks are made.
        """
        if self.checkpoint:
            restore_random_state(self.checkpoint, self.args.seed)
        if self.rank > 0:
            torch.manual_seed(int(env_seeds(1, self.args.seed, 9, self.rank, self.step)[0]))

    def say(self, text: str) -> None:
        """Print a line, above the progress bar if there is one."""
        if self.rank == 0:
            tqdm.write(text)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Write numbers, by tag, to TensorBoard."""
        if self.rank == 0:
            for tag, value in values.items():
                self.writer.add_scalar(tag, value.item() if isinstance(value, torch.Tensor) else value, step)

    def log_losses(self, step: int, losses: dict[str, torch.Tensor]) -> None:
        """Write losses and the gradient's norm, by name, if they are finite."""
        self.require_finite(step, losses)
        self.log(step, {f"losses/{name}": loss for name, loss in losses.items()})

    def require_finite(self, step: int, losses: dict[str, torch.Tensor]) -> None:
        """Raises InputError where a loss is no finite number, before what was saved is written over."""
        for name, loss in losses.items():
            if not loss.isfinite():
                raise InputError(
                    f"step {step:,}: {name} is {loss.item()}, training has diverged; nothing was saved since the last "
                    "checkpoint. A lower --learning-rate may help."
                )

    def log_games(self, games: Iterable[tuple[int, float, int]]) -> None:
        """Write finished games of all processes: agent step, raw score and length in agent steps of each."""
        for step, episodic_return, episodic_length in processes.gather(list(games)):
            self.last_games.append(episodic_return)
            self.log(step, {"charts/episodic_return": episodic_return, "charts/episodic_length": episodic_length})

    def steps_per_second(self, step: int) -> float:
        """Of this process's life, not of what a resumed run did before."""
        return (step - self.first_step) / (time.time() - self.started)

    def show(self, step: int, text: str = "") -> None:
        """Move the progress bar to this step, with the mean score of the last games and `text` beside it."""
        self.bar.update(step - self.bar.n)
        games = len(self.last_games)
        parts = [f"return {np.mean(self.last_games):.1f} over {games} games"] if games else []
        if parts or text:
            self.bar.set_postfix_str(", ".join(parts + ([text] if text else [])), refresh=False)

    def reach(self, step: int, play: Callable[[], list[tuple[float, int, bool]]] | None = None) -> None:
        """The run has come to this step: evaluate where that is due, and set `must_save` and `stopping`.

        best.pt follows the evaluation, or else the mean of the last 100 training games; it is the latest agent until
        there is a first evaluation, or 100 games.

        Args:
            play: plays evaluation games and returns of each the score, the length, and whether it was cut off.
        """
        before, self.step = self.step, step
        self.stopping = any(processes.gather([self._interrupted.is_set()]))
        self.due = self.stopping or step >= self.total_steps or self.passed(self.args.checkpoint_interval, before)
        candidate = None
        if self.keeps_best and self.passed(self.args.eval_interval, before) and self.rank == 0:
            with torch.random.fork_rng():  # what is drawn there is no part of the training
                torch.manual_seed(self.args.seed)  # nor of the step at which it is drawn
                games = play()
            candidate = float(np.mean([score for score, _, _ in games]))
            cut_off = sum(cut_off for _, _, cut_off in games)  # a greedy agent's rally may last for ever
            self.log(step, {"eval/episodic_return": candidate, "eval/truncated_games": cut_off})
        elif self.keeps_best and not self.args.eval_interval and self.due and len(self.last_games) == 100:
            candidate = float(np.mean(self.last_games))
        self.improved = candidate is not None and candidate > self.best_return
        self.best_return = candidate if self.improved else self.best_return

    @property
    def must_save(self) -> bool:
        """Whether the step that was reached is to be saved: a checkpoint is due, or the agent is the best so far."""
        return self.due or self.improved

    def passed(self, interval: int, before: int) -> bool:
        """Whether a multiple of `interval` lies between the step `before` and this one."""
        return interval > 0 and self.step // interval > before // interval

    def save(self, state: dict[str, Any]) -> None:
        """Write checkpoint.pt and, where it is the best so far, best.pt; `state` is what the program adds to it."""
        if self.rank > 0:
            return
        self.writer.flush()
        payload = {
            "kind": "checkpoint",
            "script": self.script,
            "args": asdict(self.args),
            "global_step": self.step,
            "rng_state": torch.get_rng_state(),
            "best_return": self.best_return,
            "last_games": list(self.last_games),
            **state,
        }
        if self.keeps_best and (self.improved or (self.due and self.best_return == -float("inf"))):
            files.save(payload, self.dir / "best.pt")  # first: a kill may come between the two
        files.save(payload, self.dir / "checkpoint.pt")

    def close(self) -> Path | None:
        """End the run: close what is open, and say how it went. Returns its folder (None in processes that do not
        write)."""
        self._stop_listening()
        self.bar.close()
        processes.leave()
        if self.rank == 0:
            self.writer.close()
            mean = f"mean return {np.mean(self.last_games):.1f}" if self.last_games else ""
            games = f"{mean} over the last {len(self.last_games)} games" if mean else "no game finished"
            ended, speed = "done" if self.step >= self.total_steps else "stopped", self.steps_per_second(self.step)
            print(f"{ended} at step {self.step:,}: {games}, {speed:,.0f} steps/s. {self.dir}/checkpoint.pt")
            if self.args.track:
                import wandb

                wandb.finish()
            self.lock.close()
        return self.dir
