"""The command line: what lies in ``commands/`` is a command. Flags are its options' affair.

A file, or a folder, called ``psi_train`` holds the class of options ``PsiTrain`` and a function
``run(options, reporter)``. Torch is imported when a command runs, not for its help.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, NoReturn

from cyclopts import App, CycloptsError
from rich.console import Console

from funcrobust import commands
from funcrobust.core.errors import FuncrobustError, visible
from funcrobust.running.catalogue import summary
from funcrobust.running.commandline import command, explained
from funcrobust.running.options import Options
from funcrobust.running.places import require_apart

COMPLETION = "--install-completion"


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; bad input ends in one line on stderr and exit code 2."""
    _stand_in_for_closed_streams()
    try:
        code = perform(list(sys.argv[1:] if argv is None else argv))
    except FuncrobustError as error:
        rank = os.environ.get("RANK", "0")  # torchrun's: all processes may say the same
        who = "error" if rank == "0" else f"error (process {rank})"
        print(f"{visible(who)}: {visible(' '.join(str(error).split()))}", file=sys.stderr)
        code = 2
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        print("error: out of memory: take fewer images, or smaller batches", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def _stand_in_for_closed_streams() -> None:
    """Let what is said go nowhere where the caller has closed the place it would go to (>&-)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123


def _is_of_memory(error: Exception) -> bool:
    """Tell the end of memory from a mistake of ours; a GPU's allocator says it in other words."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(words in str(error) for words in ("allocate memory", "out of memory"))


def perform(words: list[str]) -> int:
    """Do what is said, and return the exit code: 2 for a loss of NaN, 130 for Ctrl-C."""
    try:
        call, bound, _ = program(words).parse_args(words, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise explained(error) from None
    options = call(*bound.args, **bound.kwargs)
    if not isinstance(options, Options):  # help, version and completion are done
        return 0
    options.require_places()
    require_apart(options)
    from funcrobust.report.console import Reporter
    from funcrobust.running.processes import started

    run = import_module(f"funcrobust.commands.{words[0].replace('-', '_')}").run
    with started(options) as here:
        quiet = options.quiet or options.prints_figures
        with Reporter(quiet=quiet) if here.first else Reporter.silent() as reporter:
            outcome: Any = run(options, reporter)
    return {"diverged": 2, "interrupted": 130}.get(getattr(outcome, "status", ""), 0)


class _Console(Console):
    def on_broken_pipe(self) -> None:  # rich's would end here, with exit code 1
        raise BrokenPipeError


def program(words: list[str]) -> App:
    """Build the program, with the flags of the command that the words begin with."""
    app = App(
        name="funcrobust", help=summary("funcrobust"), help_flags="--help",
        help_format="plaintext", console=_Console(),
        version=lambda: str(import_module("funcrobust").__version__),
    )  # fmt: skip
    for _, file, _ in iter_modules(commands.__path__):
        name, module = file.replace("_", "-"), f"funcrobust.commands.{file}"
        if words[:1] in ([name], [COMPLETION]):
            options = getattr(import_module(module), file.title().replace("_", ""))
            app.command(command(options, summary(module), words[1:]))
        else:
            app.command(App(name=name, help=summary(module)))
    app.register_install_completion_command(COMPLETION)
    return app
