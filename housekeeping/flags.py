"""Command lines: flags in named groups, and one clear sentence where a flag cannot work."""

import ast
import functools
import importlib
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

T = TypeVar("T")


class InputError(ValueError):
    """Something the user gave cannot be used. Its text is the one sentence that the user sees, with what to do next."""


def start(main: Callable[[Any], object], read_args: Callable[[], Any]) -> None:
    """Run a program: read its flags, call `main` with them, and show what the user gave wrongly as one sentence."""
    try:
        try:
            args = read_args()
        except BrokenPipeError:  # --help | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python's last flush would fail, too
            sys.exit(1)
        main(args)
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def parse(args_class: type[T], description: str | None, default: T | None = None, argv: list[str] | None = None) -> T:
    """Flags from the command line as an `args_class`, a dataclass that may inherit others.

    --help shows the flags of each class of its family as a group of their own, titled by the first line of the class's
    docstring: first those of `args_class` itself, then those of its parents from left to right.

    Args:
        description: the text above the flags.
        default: what the flags are that are not given; None: the defaults of the class.
        argv: in place of the command line.
    """
    groups, listed = {}, set()
    for cls in (cls for cls in args_class.__mro__ if is_dataclass(cls)):
        names = set(inspect.get_annotations(cls)) - listed  # one that gives a parent's flag another default
        listed |= names
        if own := [f for f in fields(args_class) if f.name in names]:
            title = (cls.__doc__ or cls.__name__).partition("\n")[0].rstrip(".")
            groups[title] = make_dataclass(cls.__name__, [_described(cls, f, default) for f in own])
    # help: else tyro searches the sources for some, which takes longer than all the rest
    members = [
        (f"group_{number}", Annotated[group, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name=title, help="")])
        for number, (title, group) in enumerate(groups.items())
    ]
    # tyro puts two empty lines before what is indented, or none
    text = description and description.replace("\n\n    ", "\n    ")
    parsed = tyro.cli(make_dataclass("Flags", members), description=text, args=argv)
    values = {f.name: getattr(part, f.name) for part in vars(parsed).values() for f in fields(part)}
    return args_class(**values)


def _described(cls: type, f: Any, default: Any) -> tuple[str, Any, Any]:
    """A field as `make_dataclass` wants it, with the text that stands below it in the class's source as its help."""
    text = _texts(cls).get(f.name, "")
    value = f.default if default is None else getattr(default, f.name)
    none = "(default: none)" if value == () else None  # tyro would say "(default: )"
    about = tyro.conf.arg(help=text, help_behavior_hint=none)
    kind = Annotated[get_type_hints(cls, include_extras=True)[f.name], about]
    if value is MISSING:
        return f.name, kind, field(default_factory=f.default_factory)
    return f.name, kind, field(default=value)


@functools.cache
def _texts(cls: type) -> dict[str, str]:
    """What is said of each field of a dataclass: the string below it in the source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    return {
        before.target.id: " ".join(after.value.value.split())
        for before, after in zip(body, body[1:], strict=False)
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }


def written(name: str) -> str:
    """A flag as it is written on a command line: num_envs -> --num-envs."""
    return f"--{name.replace('_', '-')}"


def check_ranges(
    args: Any,
    at_least_one: Iterable[str] = (),
    shares: Iterable[str] = (),
    not_negative: Iterable[str] = (),
    some_share: Iterable[str] = (),
    below_one: Iterable[str] = (),
) -> None:
    """Refuse flags, by name, that are out of their range (None is not looked at); raises InputError."""
    ranges = (
        (at_least_one, lambda value: value >= 1, "must be at least 1"),
        (shares, lambda value: 0 <= value <= 1, "must be from 0 to 1"),
        (some_share, lambda value: 0 < value <= 1, "must be above 0 and at most 1"),
        (below_one, lambda value: 0 <= value < 1, "must be at least 0 and below 1"),
        (not_negative, lambda value: value >= 0, "must not be negative"),
    )
    for names, fits, text in ranges:
        for name in names:
            value = getattr(args, name)
            if value is not None and not fits(value):
                raise InputError(f"{written(name)} {text}, not {value}.")


def require_defaults(args: Any, names: Iterable[str], owner: str) -> None:
    """Refuse flags that do nothing here, as they are options of `owner`; raises InputError."""
    for name in names:
        if getattr(args, name) != type(args).__dataclass_fields__[name].default:
            raise InputError(f"{written(name)} is an option of {owner}; leave it out.")


def import_own(spec: str) -> Any:
    """What "my_module:name" stands for, a class or function of the user's; raises InputError if it cannot be
    imported."""
    module_name, _, attribute = spec.rpartition(":")
    sys.path.insert(0, "")  # modules of the folder in which one works
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # someone else's code: anything can happen
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{spec}: cannot be made ({reason}); write module:name of a class or function.") from error
    finally:
        sys.path.remove("")
