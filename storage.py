"""Files that survive a kill, load without running code, and say in one sentence what is wrong with them.

Every file this project stores (an agent's checkpoint, a pre-trained model, the state of a pre-training) is a dict written by
`save` and read by `load`. A dict says what it is under the key "kind".
"""

import csv
import hashlib
import importlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any

import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


PRETRAINED = Path(__file__).resolve().parent / "pretrained"  # the stored models of this repository, wherever one works


class InputError(ValueError):
    """Something the user gave cannot be used. Its text is the one sentence that the user sees, with what to do next."""


def save(payload: dict[str, Any], path: Path) -> None:
    """Write `payload` to `path` so that a kill at any moment leaves the old file or the new one, never half of one.

    The payload may hold tensors, numbers, strings, and dicts, lists and tuples of them: what `torch.load` reads back with
    `weights_only=True`. The bytes go to a temporary file beside `path`, are forced to the disk, and take its name in one step.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        torch.save(payload, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path, kind: str, device: torch.device | str = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Read a file that `save` wrote; no code in it is run. With `mmap` a large one is read as it is used, not at once.

    Raises:
        InputError: the file is not there, is damaged, or is not of the `kind` that was asked for.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    try:
        payload = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged file can fail in any way
        raise InputError(f"{path}: this file is damaged or is not one that this project wrote.") from error
    found = payload.get("kind") if isinstance(payload, dict) else None
    if found != kind:
        raise InputError(f"{path}: expected a file of the kind '{kind}', found '{found}'.")
    return payload


def write_csv(path: Path, rows: list[dict[str, Any]], float_format: str = "") -> None:
    """A table with a column for every key that any of the rows has, in the order in which they come; empty where a row lacks it."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: format(value, float_format) if isinstance(value, float) else value for name, value in row.items()})


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table that `write_csv` wrote, by column; all values are text."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes: what a checkpoint remembers of each stored model."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_writable(folder: Path) -> None:
    """Make `folder` and try to write there, so that a run does not find out hours later that it cannot save.

    Raises:
        InputError: the folder cannot be made or written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot write here ({error.strerror}); choose another folder.") from error


def require_disk(folder: Path | str, needed: int, what: str, remedy: str) -> None:
    """Refuse, before the work starts, `needed` bytes that the disk under `folder` (which may not be there yet) has no room for.

    Raises:
        InputError: says how much is needed, and how much is free.
    """
    there = next(path for path in (Path(folder).resolve(), *Path(folder).resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(f"{folder}: {what} need {needed / 1e9:.2f} GB of disk, and {free / 1e9:.2f} GB are free; {remedy}.")


def try_lock(file: IO) -> bool:
    """Take the lock of an open file, until it and what child processes have of it is closed; False if it is taken. (On Windows: True.)"""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block with the same folder, which must be there. (Not on Windows, where it does nothing.)"""
    with open(Path(folder) / "lock", "w") as lock:
        if not try_lock(lock):
            print(f"waiting for another process that is at work in {folder}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def new_run_dir(runs_dir: Path | str, name: str) -> Path:
    """Make the folder of a new run, `<runs_dir>/<name>__<seconds since 1970>`; of two runs begun in one second, one gets the next second.

    Raises:
        InputError: the folder cannot be made.
    """
    started = int(time.time())
    while True:
        run_dir = Path(runs_dir) / f"{name}__{started}"
        require_writable(run_dir.parent)
        try:
            run_dir.mkdir()  # fails where another run has just taken the name
            return run_dir
        except FileExistsError:
            started += 1


def load_agent(path: Path, device: torch.device | str = "cpu", pretrained_dir: str | None = None):
    """Open any agent's checkpoint with the `load_agent` of the script that the checkpoint names.

    Args:
        pretrained_dir: where the stored models are, if not where they were in training.

    Returns:
        An object with `act(obs, greedy) -> actions` for uint8 observations (B, 4, 84, 84).
    """
    script = load(path, "checkpoint").get("script")
    if not (isinstance(script, str) and re.fullmatch(r"\w+", script) and Path(__file__).with_name(f"{script}.py").is_file()):
        raise InputError(f"{path}: it was made by '{script}.py', which is not one of the scripts here.")
    try:
        return importlib.import_module(script).load_agent(path, device, pretrained_dir)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path}: this checkpoint does not fit this version of {script}.py ({type(error).__name__}: {error}).") from error


def load_checkpoint(path: Path, script: str) -> dict[str, Any]:
    """Read a checkpoint of the named script, on the CPU; raises InputError if it is of another one."""
    checkpoint = load(path, "checkpoint")
    if checkpoint["script"] != script:
        raise InputError(f"{path}: this is a checkpoint of {checkpoint['script']}.py, not of {script}.py.")
    return checkpoint


def load_to_resume(path: Path, script: str, args: Any, may_differ: set[str]) -> dict[str, Any]:
    """Read the checkpoint of a run that is to go on with the flags `args`.

    Raises:
        InputError: it is of another script, of other flags than those in `may_differ`, without an optimiser, has done all its steps, or
            is older than the checkpoint.pt beside it, which would be written over.
    """
    checkpoint = load_checkpoint(path, script)
    require_same_settings(path, checkpoint["args"], args, may_differ)
    require_resumable(path, checkpoint)
    if checkpoint["global_step"] >= args.total_timesteps:
        raise InputError(f"{path}: this run has done its {checkpoint['global_step']:,} steps; raise --total-timesteps to go on.")
    newest = path.with_name("checkpoint.pt")
    if path != newest and newest.is_file():
        try:
            last_step = load_checkpoint(newest, script)["global_step"]
        except InputError:  # if that one is damaged, this one is what there is
            last_step = 0
        if last_step > checkpoint["global_step"]:
            raise InputError(
                f"{path}: the run has gone on from here to step {last_step:,}, and {newest.name} would be written over; resume that "
                f"one, or copy this one (step {checkpoint['global_step']:,}) into a folder of its own."
            )
    return checkpoint


def require_resumable(path: Path, checkpoint: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint that export_agent.py made smaller: it has no optimiser; raises InputError."""
    if "optimizer" not in checkpoint:
        raise InputError(f"{path}: an exported agent can play but not train on; resume from its run's checkpoint.pt.")


def require_same_settings(path: Path, saved: dict[str, Any], args: Any, may_differ: set[str]) -> None:
    """Refuse to resume the checkpoint at `path`, made with the flags `saved`, under other `args`, but for those in `may_differ`.

    Flags that the script did not have yet when the checkpoint was made count as `saved_args` says.

    Raises:
        InputError: names each flag that differs, with both values, or those that the script has no longer.
    """
    before, now = asdict(saved_args(path, type(args), saved)), asdict(args)
    different = [
        f"--{name.replace('_', '-')} was {before[name]!r}, now {now[name]!r}"
        for name in now
        if name not in may_differ and before[name] != now[name]
    ]
    if different:
        raise InputError(f"{path}: made with other settings ({'; '.join(different)}); leave them out or start a new run.")


def saved_args(path: Path | str, args_class: type, saved: dict[str, Any]) -> Any:
    """The flags of the checkpoint at `path`, as the script's `Args`; raises InputError if the script has some of them no longer.

    Those that it did not have yet count as their defaults, but for the precision: before that was a flag it was float32.
    """
    now = {field.name for field in fields(args_class)}
    gone = set(saved) - now
    if gone:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(gone))
        raise InputError(f"{path}: another version of the script made it, which had {flags}; open it with that version, or train anew.")
    return args_class(**{"precision": "float32"} | saved) if "precision" in now else args_class(**saved)
