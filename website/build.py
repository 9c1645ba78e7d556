"""Builds the site as strictly as it can be: whatever is said while building is an error.

Zensical's own strictness is about links between pages. Blocks of code that fail, and docstrings
that cannot be read, are said to Python's logging alone; links in what was generated are checked
when the site is there (`checking`).
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

from checking import faults
from click import ClickException
from zensical.main import cli


class Heard(logging.Handler):
    """Keeps every warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.said.append(f"{record.name}: {record.getMessage()}")


def faults_of(folder: Path) -> list[str]:
    """Build ``build/site`` of the ``zensical.toml`` in a folder; return what is wrong with it.

    The pages' code runs in the folder: it draws into ``build``, and runs the command line.
    """
    os.chdir(folder)
    site = folder / "build" / "site"
    site.mkdir(parents=True, exist_ok=True)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ |= {"COLUMNS": "80", "PYTHONWARNINGS": "ignore"}
    warnings.simplefilter("ignore")
    heard = Heard()
    logging.getLogger().addHandler(heard)
    try:
        cli.main(
            ["build", "--strict", "--clean", "--config-file", str(folder / "zensical.toml")],
            standalone_mode=False,
        )
    except (ClickException, RuntimeError) as error:
        heard.said.append(str(error))
    return [*heard.said, *faults(site)]


def main() -> int:
    """Build the site of a folder, this project's if none is named; return 1 if it has a fault."""
    folder = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent.parent
    found = faults_of(folder.resolve())
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
