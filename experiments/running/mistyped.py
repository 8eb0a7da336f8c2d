"""What was mistyped on a command line, in a sentence that names the nearest name there is.

tyro says the same of few mistakes, in a box. What is looked at here are names: of presets, of options, and of values
where an option takes names alone. All else that may be wrong with a value is tyro's to say.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from experiments.records.text import nearest
from experiments.running.catalogue import preset_mistyped
from experiments.running.options import written

__all__ = ["check_names", "mistyped", "option_mistyped", "options"]


def check_names(option: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError that names the first of `names` that is not among those known, and the nearest that is."""
    for name in names:
        if name not in known:
            raise ValueError(f"{option}: names among {', '.join(known)} wanted, got {name}{nearest(name, known)}")


def mistyped(driver: str, arguments: Sequence[str], presets: Mapping[str, Any]) -> str:
    """The sentence on the first mistake; nothing where there is none, or where help is asked for."""
    if {"-h", "--help"} & {*arguments}:
        return ""
    if not arguments or arguments[0].startswith("-"):
        return f"{driver} wants a preset first: {', '.join(presets)}; --help says what each of them is"
    if wrong := preset_mistyped(driver, arguments[0], list(presets)):
        return wrong
    return option_mistyped(driver, arguments[1:], presets[arguments[0]])


def option_mistyped(driver: str, arguments: Sequence[str], config: Any) -> str:
    """The same of arguments that no preset is among: options of a config, and their values."""
    if {"-h", "--help"} & {*arguments}:
        return ""
    known = options(config)
    names: tuple[str, ...] = ()
    option = ""
    for argument in arguments:
        if argument.startswith("--"):
            option, _, argument = argument.partition("=")
            option = option.replace("_", "-")
            if option not in known:
                return f"{driver} has no option {option}{nearest(option, known) or '; --help lists them'}"
            names = known[option]
        if argument and names and argument not in names:
            return f"{option} takes {', '.join(names)}, not {argument}{nearest(argument, names)}"
    return ""


def options(config: Any) -> dict[str, tuple[str, ...]]:
    """Each option of a config, a dataclass or its type, and the names it takes; none if it takes other things, too."""
    return {option: _names(hint) for option, hint in written(config).values()}


def _names(hint: Any) -> tuple[str, ...]:
    """The names that values of that type are; none where some are no names."""
    kind, parts = get_origin(hint), [part for part in get_args(hint) if part is not Ellipsis]
    if kind is Literal:
        return tuple(map(str, parts))
    if hint is type(None):
        return ("None",)
    if kind is Annotated:
        return _names(parts[0])
    if kind in (Union, types.UnionType, tuple):
        each = [_names(part) for part in parts]
        return tuple(dict.fromkeys(name for names in each for name in names)) if all(each) else ()
    return ()
