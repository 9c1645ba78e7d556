"""What a run is made from: its options say where that lies, a digest says what it holds.

So a run is resumed with what it began with, wherever that lies by now.
"""

from __future__ import annotations

from collections.abc import Mapping

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.contents import contents as data_contents
from funcrobust.report.runs import RunFolder
from funcrobust.running.classifier import contents
from funcrobust.running.option import options_of
from funcrobust.running.options import Options

_CONTENTS = {"checkpoint": contents, "helper": contents, "dataset": data_contents}


def inputs(options: Options, **places: str) -> dict[str, str]:
    """Return the SHA-256 of what lies where options say, by their names.

    ``places`` are those that are left out of the options. Published data are checked by themselves.
    """
    named = {name: getattr(options, name, None) for name in _CONTENTS} | places
    found = {name: _CONTENTS[name](place) for name, place in named.items() if place}
    return {name: digest for name, digest in found.items() if digest is not None}


def require_inputs(run: RunFolder, options: Options, found: Mapping[str, str]) -> None:
    """Raise if what a run began with holds something else by now."""
    fields = options_of(type(options))
    for name, before in run.inputs.items():
        place = getattr(options, name)
        if found.get(name) != before:
            if name not in found:
                raise FuncrobustError(
                    f"{run.path} began from a {fields[name].flag} of one's own, not from {place}: "
                    "say where it lies, or start anew"
                )
            raise FuncrobustError(
                f"{run.path} began from another {fields[name].flag}: the SHA-256 of what "
                f"{place or 'it'} holds was {str(before)[:12]}..., and is "
                f"{found[name][:12]}... now: bring that back, or start anew"
            )


def record_moves(run: RunFolder, options: Options) -> None:
    """Let the run's record say where what it began with lies by now."""
    moved = {n: getattr(options, n) for n in run.inputs if run.config[n] != getattr(options, n)}
    if moved:
        run.revise(moved)
