"""Files that survive a kill, load without running code, and say in one sentence what is wrong with them.

Every file this project stores (an agent's checkpoint, a pre-trained model, the state of a pre-training) is a dict
written by `save` and read by `load`. A dict says what it is under the key "kind".
"""

import csv
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import torch

from housekeeping.flags import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

HELD: dict[Path, IO] = {}  # locks of this process


def save(payload: dict[str, Any], path: Path) -> None:
    """Write `payload` to `path` so that a kill at any moment leaves the old file or the new one, never half of one.

    The payload may hold tensors, numbers, strings, and dicts, lists and tuples of them: what `torch.load` reads back
    with `weights_only=True`. The bytes go to a temporary file beside `path`, are forced to the disk, and take its name
    in one step.
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
    if path.is_dir():
        raise InputError(f"{path}: this is a folder; name a file in it.")
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
    """A table with a column for every key that any of the rows has, in the order in which they come; empty where a row
    lacks it."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {
                    name: format(value, float_format) if isinstance(value, float) else value
                    for name, value in row.items()
                }
            )


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
    """Refuse, before the work starts, `needed` bytes that the disk under `folder` (which may not be there yet) has no
    room for.

    Raises:
        InputError: says how much is needed, and how much is free.
    """
    there = next(path for path in (Path(folder).resolve(), *Path(folder).resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"{folder}: {what} need {needed / 1e9:.2f} GB of disk, and {free / 1e9:.2f} GB are free; {remedy}."
        )


def lock(folder: Path) -> IO:
    """Wait until no other process holds this folder, which must be there; hold it until what is returned is closed.

    Child processes that inherit the open file hold it, too. (Not on Windows, where it does nothing.)
    """
    path = Path(folder).resolve() / "lock"
    if path in HELD:  # by a run of this process that failed
        HELD[path].close()
    file = HELD[path] = open(path, "w")  # noqa: SIM115 (it stays open)
    if fcntl is None:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another process that is at work in {folder}", flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def new_folder(parent: Path | str, name: str) -> Path:
    """Make `<parent>/<name>__<seconds since 1970>`; of two made in one second, one gets the next second.

    Raises:
        InputError: the folder cannot be made.
    """
    started = int(time.time())
    while True:
        folder = Path(parent) / f"{name}__{started}"
        require_writable(folder.parent)
        try:
            folder.mkdir()  # fails where another process has just taken the name
            return folder
        except FileExistsError:
            started += 1
        except OSError as error:  # such as a name that is too long
            raise InputError(f"{folder.name[:60]}...: no folder can be called so ({error.strerror}).") from error
