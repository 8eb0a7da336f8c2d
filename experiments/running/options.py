"""The options of a config on the command line: in groups by the class that has them, each shown where it acts.

tyro makes a group of every nested dataclass, and configs are flat. So it is shown a nested one, made of the config's
fields here, and what it reads is laid flat again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

import docstring_parser
import tyro

__all__ = ["Acts", "idle", "laid_flat", "shown", "written"]

C = TypeVar("C")


class Acts(NamedTuple):
    """Options that do something in some configs alone.

    A config's class lists them in `acts`, a class variable; `those` are names of fields, of a nested config's with a
    dot. where: the end of the sentence "it acts ...". holds: whether a config is such a one. told: help tells of them
    in every config, since what makes them act stands beside them.
    """

    where: str
    those: tuple[str, ...]
    holds: Callable[[Any], bool]
    told: bool = False


class Written(NamedTuple):
    """An option as it is written on the command line, and the hint of its values."""

    option: str
    hint: Any


def idle(config: Any, helping: bool = False) -> dict[str, str]:
    """The options of a config that do nothing in it, by the names of their fields, and where each of them acts.

    helping: without those that help tells of.
    """
    listed = [acts for owner in type(config).__mro__ for acts in vars(owner).get("acts", ())]
    still = [acts for acts in listed if not (acts.holds(config) or (helping and acts.told))]
    return {name: acts.where for acts in still for name in acts.those}


def written(config: Any, path: str = "", prefix: str = "--") -> dict[str, Written]:
    """How each option of a config, a dataclass or its type, is written on the command line.

    By the paths of their fields: of a nested config's with a dot. A field that is True is written to make it False.
    """
    found: dict[str, Written] = {}
    hints = get_type_hints(config if isinstance(config, type) else type(config), include_extras=True)
    for field in dataclasses.fields(config):
        hint, value, name = hints[field.name], getattr(config, field.name, None), field.name.replace("_", "-")
        if {tyro.conf.Suppress, tyro.conf.Positional} & {*getattr(hint, "__metadata__", ())}:
            continue
        if dataclasses.is_dataclass(value):
            inner = prefix if _inlined(hint) else f"{prefix}{name}."
            found |= written(value, f"{path}{field.name}.", inner)
        else:
            found[path + field.name] = Written(f"{prefix}no-{name}" if value is True else prefix + name, hint)
    return found


def shown(config: Any, helping: bool) -> tuple[Any, str]:
    """What tyro is shown of a config: the same values in groups; and sentences on the options that are left out.

    helping: whether it is to tell of the options; it then leaves out those that do nothing in this config. Else it is
    to read them, and has all: another option may make them act.
    The fields that a class has of its own are a group, named by the class; those of the config's own class stand before
    all groups. What was inherited keeps its place, and has the newest text.
    """
    asleep = idle(config, helping=True) if helping else {}
    entries: list[Entry] = []
    for owner, names in _by_class(type(config)):
        plain = [name for name in names if not dataclasses.is_dataclass(getattr(config, name))]
        some = _entries(config, plain, asleep)
        if owner is type(config):
            entries += some
        elif some:
            title = re.sub(r"(?<=.)(Config|Options)$", "", owner.__name__).lower()
            entries.append(_group(title, _made(owner, some)))
        entries += _entries(config, [name for name in names if name not in plain], asleep)  # groups by themselves
    hidden: dict[str, list[str]] = {}
    spelled = written(config)
    for name, where in asleep.items():
        hidden.setdefault(where, []).append(spelled[name].option)
    left_out = "\n\n".join(f"More options act {where}: {', '.join(names)}." for where, names in hidden.items())
    return _made(type(config), entries)(), left_out


def laid_flat(view: Any, config: C) -> C:
    """The config with the values of what was `shown` of it."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(view):
        value, now = getattr(view, field.name), getattr(config, field.name, None)
        if not dataclasses.is_dataclass(value):
            values[field.name] = value
        elif dataclasses.is_dataclass(now):
            values[field.name] = laid_flat(value, now)
        else:  # a group of the config's own fields; it may be called as one of them is
            values |= {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


Entry = tuple[str, Any, Any]
"""A field of a class to be made: its name, its type and its default value."""


def _by_class(kind: type) -> list[tuple[type, list[str]]]:
    """The classes of a config, its own first, and the fields that each has first."""
    found, seen = [], set()
    for owner in reversed([each for each in kind.__mro__ if dataclasses.is_dataclass(each)]):
        own = vars(owner).get("__annotations__", {})
        names = [field.name for field in dataclasses.fields(owner) if field.name in own and field.name not in seen]
        found.append((owner, names))
        seen |= {*names}
    return found[::-1]


def _entries(config: Any, names: Iterable[str], asleep: Iterable[str], inside: str = "") -> list[Entry]:
    """These fields of a config that are not asleep, each with its text."""
    hints, texts = get_type_hints(type(config), include_extras=True), _texts(type(config))
    entries: list[Entry] = []
    for name in names:
        hint, value, path = hints[name], getattr(config, name), f"{inside}{name}"
        if path in asleep or tyro.conf.Suppress in getattr(hint, "__metadata__", ()):
            continue
        if dataclasses.is_dataclass(value):
            parts = _entries(value, [field.name for field in dataclasses.fields(value)], asleep, f"{path}.")
            group = _made(type(value), parts)
            entries.append(_group(name, group) if _inlined(hint) else (name, group, group()))
        else:
            # such an option is written --no-…, beside which the default True reads as its opposite
            default = "(unless this is given)" if value is True else None
            argument = tyro.conf.arg(help=texts.get(name, ""), help_behavior_hint=default)
            entries.append((name, Annotated[hint, argument], value))
    return entries


def _inlined(hint: Any) -> bool:
    """Whether the options of a nested config are written without its name."""
    return any(getattr(mark, "name", None) == "" for mark in getattr(hint, "__metadata__", ()))


def _group(title: str, made: Any) -> Entry:
    return title, Annotated[made, tyro.conf.OmitArgPrefixes], made()


def _made(like: type, entries: list[Entry]) -> Any:
    """A dataclass of these with the docstring of another, but for one that dataclasses write themselves."""
    text = like.__doc__ or ""
    namespace = {"__doc__": "" if text.startswith(f"{like.__name__}(") else _line(text)}
    fields = [(name, hint, dataclasses.field(default=value)) for name, hint, value in entries]
    return dataclasses.make_dataclass(like.__name__, fields, frozen=True, namespace=namespace)


def _texts(kind: type) -> dict[str, str]:
    """The texts below the fields of a config's class and of what it inherits from, each one line."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__[:-1]):
        for each in docstring_parser.parse_from_object(owner).params:
            found[each.arg_name] = _line(each.description or "")
    return found


def _line(text: str) -> str:
    return " ".join(text.split())
