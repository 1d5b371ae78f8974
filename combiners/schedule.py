"""Sets of models that change while the agent learns: a model comes with a new adapter, or goes with its adapter."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn

from combiners.weighted_sum import WeightedSum
from encoders import ENCODERS
from encoders.frozen import short_name
from housekeeping.flags import InputError
from housekeeping.seeds import seed_of


@dataclass
class Change:
    """A model that comes or goes, at the first rollout that starts at or after `step`."""

    kind: Literal["add", "drop"]
    spec: str
    step: int


def parse_schedule(schedule: tuple[str, ...], encoders: tuple[str, ...], combiner: type[nn.Module]) -> list[Change]:
    """The changes of --schedule in the order in which they happen.

    Args:
        schedule: "add:<model>:<step>" or "drop:<model>:<step>".
        encoders: the models that are there at the start.
        combiner: its class.

    Raises:
        InputError: not of that form; the combiner cannot change its set; a model is added twice, removed where it is
            not, or is the last one.
    """
    changes = []
    for entry in schedule:
        kind, _, rest = entry.partition(":")
        spec, _, step = rest.rpartition(":")
        if kind not in ("add", "drop") or not spec or not step.isdecimal():
            raise InputError(f"--schedule {entry}: write add:<model>:<step> or drop:<model>:<step>.")
        if kind == "add" and spec not in (*ENCODERS, "random") and ":" not in spec:
            raise InputError(f"--schedule {entry}: no such model; the known ones are {', '.join(ENCODERS)}.")
        changes.append(Change(kind, spec, int(step)))
    if changes and not issubclass(combiner, WeightedSum):
        raise InputError(f"--schedule: {combiner.__name__} is built for one set of models; wsa takes any.")
    changes.sort(key=lambda change: change.step)
    present = [short_name(spec) for spec in encoders]
    for change in changes:
        name, entry = short_name(change.spec), f"--schedule {change.kind}:{change.spec}:{change.step}"
        if change.kind == "add" and name in present:
            raise InputError(f"{entry}: {name} is there already at that step.")
        if change.kind == "drop" and name not in present:
            raise InputError(f"{entry}: {name} is not there at that step.")
        if change.kind == "drop" and len(present) == 1:
            raise InputError(f"{entry}: {name} is the last model then; one must remain.")
        present = [*present, name] if change.kind == "add" else [other for other in present if other != name]
    return changes


def apply_change(
    change: Change,
    combiner: WeightedSum,
    shapes: dict[str, tuple[int, ...]],
    seed: int,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Let a model come (with a new adapter and new optimiser state) or go (with both); all else stays as it is.

    Args:
        shapes: {name: shape of its embedding without the batch}.
        seed: of a new adapter's weights.
        optimizer: in training.
    """
    name = short_name(change.spec)
    if change.kind == "add":
        with torch.random.fork_rng():  # a generator of its own, so that nothing else's randomness moves
            torch.manual_seed(seed_of(seed, f"{name} at {change.step}"))
            combiner.add_model(name, shapes[name])
        if optimizer:
            optimizer.add_param_group({"params": list(combiner.adapters[name].parameters())})
        return
    gone = {id(parameter): parameter for parameter in combiner.adapters[name].parameters()}
    combiner.remove_model(name)
    if optimizer:
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in gone]
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        for parameter in gone.values():
            optimizer.state.pop(parameter, None)


def trained_by(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All that the optimiser steps: what is to be clipped together, and other than before wherever a model came or
    went."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
