"""All experiments and their presets, in a line each; and runs one: python -m experiments [NAME [PRESET] [options]]."""

from __future__ import annotations

import runpy
import shutil
import sys
from textwrap import wrap

from experiments.records.text import nearest
from experiments.running.catalogue import FAMILIES, drivers, preset_mistyped


def main(arguments: list[str]) -> None:
    """List the drivers, or run the one that is named. A name that none has ends this with a sentence, exit code 1."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listed())
        return
    name, known = arguments[0].removeprefix("experiments."), drivers()
    if name not in known:
        short = {each.rpartition(".")[2]: each for each in known}
        hint = f"; did you mean {short[name]}?" if name in short else nearest(name, [*known, *short])
        raise SystemExit(f"There is no experiment {name}{hint or '; python -m experiments lists them'}")
    preset, presets = [*arguments[1:], "-"][0], list(known[name].presets)
    if presets and not preset.startswith("-") and (wrong := preset_mistyped(name, preset, presets)):
        raise SystemExit(wrong)
    sys.argv[1:] = arguments[1:]
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)


def listed() -> str:
    """The drivers by family, and what each and its presets are."""
    found = drivers().values()
    lines = ["python -m experiments NAME PRESET [--option value ...]; NAME PRESET --help says what there is to choose."]
    columns = shutil.get_terminal_size((120, 24)).columns
    for family, title in FAMILIES.items():
        lines += ["", f"{title}:"]
        for driver in (each for each in found if each.family == family):
            lines += ["", *wrap(f"  {driver.name}: {driver.title}", columns, subsequent_indent="    ")]
            width = max(map(len, driver.presets), default=0)
            for preset, text in driver.presets.items():
                lines += wrap(f"    {preset:{width}}  {text}", columns, subsequent_indent=" " * (width + 6))
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
