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
from zensical.main import cli

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "site"


class Heard(logging.Handler):
    """Keeps every warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.said.append(f"{record.name}: {record.getMessage()}")


def main() -> int:
    """Build ``build/site``; return 1 if anything is wrong, after saying what."""
    os.chdir(ROOT)  # the pages' code draws into build/, and runs the command line
    (ROOT / "build").mkdir(exist_ok=True)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ |= {"COLUMNS": "80", "PYTHONWARNINGS": "ignore"}
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(ROOT))
    heard = Heard()
    logging.getLogger().addHandler(heard)
    command = ["build", "--strict", "--clean", "--config-file", str(ROOT / "zensical.toml")]
    cli.main(command, standalone_mode=False)
    wrong = [*heard.said, *faults(SITE)]
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
