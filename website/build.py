"""Builds the site as strictly as it can be: whatever is said while building is an error.

Zensical's own strictness is about links. Blocks of code that fail, and docstrings that cannot be
read, are said to Python's logging alone.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from zensical.main import cli

ROOT = Path(__file__).resolve().parent.parent


class Heard(logging.Handler):
    """Keeps every warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.said.append(f"{record.name}: {record.getMessage()}")


def main() -> int:
    """Build ``build/site``; return 1 if anything was said."""
    heard = Heard()
    logging.getLogger().addHandler(heard)
    command = ["build", "--strict", "--clean", "--config-file", str(ROOT / "zensical.toml")]
    cli.main(command, standalone_mode=False)
    for line in heard.said:
        print(line, file=sys.stderr)
    return 1 if heard.said else 0


if __name__ == "__main__":
    sys.exit(main())
