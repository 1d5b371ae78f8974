"""Checkpoints: dicts that say which program made them, with which flags; opened to play, or to go on training."""

import importlib
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from housekeeping.files import load
from housekeeping.flags import InputError, written

ROOT = Path(__file__).resolve().parent.parent  # where the programs are


class Finished(InputError):
    """The run has made all the steps that were asked for."""


def load_agent(path: Path, device: torch.device | str = "cpu", pretrained_dir: str | None = None):
    """Open any agent's checkpoint with the `load_agent` of the script that the checkpoint names.

    Args:
        pretrained_dir: where the stored models are, if not where they were in training.

    Returns:
        An object with `act(obs, greedy) -> actions` for uint8 observations (B, 4, 84, 84).
    """
    script = load(path, "checkpoint", mmap=True).get("script")
    if not (isinstance(script, str) and re.fullmatch(r"\w+", script) and (ROOT / f"{script}.py").is_file()):
        raise InputError(f"{path}: it was made by '{script}.py', which is not one of the scripts here.")
    try:
        return importlib.import_module(script).load_agent(path, device, pretrained_dir)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"{path}: this checkpoint does not fit this version of {script}.py ({type(error).__name__}: {error})."
        ) from error


def load_checkpoint(path: Path, script: str) -> dict[str, Any]:
    """Read a checkpoint of the named script, on the CPU; raises InputError if it is of another one."""
    checkpoint = load(path, "checkpoint")
    if checkpoint["script"] != script:
        made_by = checkpoint["script"]
        raise InputError(f"{path}: this is a checkpoint of {made_by}.py, not of {script}.py; run python {made_by}.py.")
    return checkpoint


def load_to_resume(path: Path, script: str, args: Any, may_differ: set[str]) -> dict[str, Any]:
    """Read the checkpoint of a run that is to go on with the flags `args`.

    Raises:
        InputError: it is of another script, of other flags than those in `may_differ`, without an optimiser, has done
            all its steps, or is older than the checkpoint.pt beside it, which would be written over.
    """
    checkpoint = load_checkpoint(path, script)
    require_same_settings(path, checkpoint["args"], args, may_differ)
    require_resumable(path, checkpoint)
    if checkpoint["global_step"] >= args.total_timesteps:
        raise Finished(
            f"{path}: this run has done its {checkpoint['global_step']:,} steps; raise --total-timesteps to go on."
        )
    newest = path.with_name("checkpoint.pt")
    if path != newest and (last_step := entry_of(newest, "global_step", 0)) > checkpoint["global_step"]:
        raise InputError(
            f"{path}: the run has gone on from here to step {last_step:,}, and {newest.name} would be "
            "written over; resume that "
            f"one, or copy this one (step {checkpoint['global_step']:,}) into a folder of its own."
        )
    return checkpoint


def entry_of(path: Path, name: str, otherwise: Any) -> Any:
    """What the checkpoint at `path` has under this name; `otherwise` where there is none, or a damaged one, which
    nothing can go on from."""
    try:
        return load(path, "checkpoint", mmap=True).get(name, otherwise)
    except InputError:
        return otherwise


def require_resumable(path: Path, checkpoint: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint that export_agent.py made smaller: it has no optimiser; raises InputError."""
    if "optimizer" not in checkpoint:
        raise InputError(f"{path}: an exported agent can play but not train on; resume from its run's checkpoint.pt.")


def require_same_settings(path: Path, saved: dict[str, Any], args: Any, may_differ: set[str]) -> None:
    """Refuse to resume the checkpoint at `path`, made with the flags `saved`, under other `args`, but for those in
    `may_differ`.

    Flags that the script did not have yet when the checkpoint was made count as `saved_args` says.

    Raises:
        InputError: names each flag that differs, with both values, or those that the script has no longer.
    """
    gone = sorted(set(saved) - {field.name for field in fields(args)})
    if gone:
        flags = ", ".join(written(name) for name in gone)
        raise InputError(
            f"{path}: another version of the script made it, which had {flags}; open it with that version, or "
            "train anew."
        )
    before, now = asdict(saved_args(type(args), saved)), asdict(args)
    different = [
        f"{written(name)} was {before[name]!r}, now {now[name]!r}"
        for name in now
        if name not in may_differ and before[name] != now[name]
    ]
    if different:
        raise InputError(
            f"{path}: made with other settings ({'; '.join(different)}); leave them out or start a new run."
        )


def saved_args(args_class: type, saved: dict[str, Any]) -> Any:
    """The flags of a checkpoint as the script's `Args` of today.

    Those that it did not have yet count as their defaults, but for the precision, which was float32 before it was a
    flag, and for what `args_class.older_defaults(saved)` says, if it has that. Those that the script has no longer are
    left out: what they did for speed does not matter to an agent that plays.
    """
    now = {field.name for field in fields(args_class)}
    known = {name: value for name, value in saved.items() if name in now}
    older = args_class.older_defaults(saved) if hasattr(args_class, "older_defaults") else {}
    return args_class(**({"precision": "float32"} if "precision" in now else {}) | known | older)
