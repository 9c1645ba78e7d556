"""What changed between two results of a benchmark: the ratio of every figure, NEW / OLD.

    python benchmarks/compare.py OLD.json NEW.json
    python benchmarks/compare.py HEAD~3 results/psi_gradient-amd-epyc-avx512-bf16.json  # as it was

OLD may be a git revision: results are committed, so that git is their history. Rows are found by
their names (``mode``, ``steps``, ...), not by their places. What only one of the two has is said,
and so is a difference of machine, threads, versions or script, which a ratio would hide.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common

ABOUT = ("device", "torch", "python", "versions", "commit", "changed_since", "script_sha256")
SKIPPED = ("date", "benchmark", "script", *ABOUT)
NAMING = ("mode", "name", "attack", "derivative", "precision", "preset", "steps", "seed", "epoch")


def read(what: str, like: Path | None = None) -> dict[str, Any]:
    """Read a result: a file, or what a git revision had in place of ``like``."""
    if Path(what).is_file():
        text = Path(what).read_text()
    elif like is None:
        raise SystemExit(f"{what} is no file")
    else:
        shown = subprocess.run(
            ["git", "show", f"{what}:./{like.name}"], capture_output=True, text=True, check=False,
            cwd=like.resolve().parent,
        )  # fmt: skip
        if shown.returncode:
            raise SystemExit(f"{what} is no file, and no revision that has {like}")
        text = shown.stdout
    found = json.loads(text)
    if not isinstance(found, dict):
        raise SystemExit(f"{what} is no result of a benchmark")
    return found


def figures(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    """Yield every number of a result under its path."""
    if isinstance(tree, bool) or tree is None or isinstance(tree, str):
        return
    if isinstance(tree, int | float):
        yield "/".join(path), float(tree)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            if path or key not in SKIPPED:
                yield from figures(value, (*path, key))
    else:
        for place, value in enumerate(tree):
            yield from figures(value, (*path, row_name(value, place)))


def row_name(row: Any, place: int) -> str:
    """Return what a row calls itself, or its number."""
    said = [str(row[k]) for k in NAMING if k in row] if isinstance(row, dict) else []
    return " ".join(said) or str(place)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say what besides the code may have changed the figures."""
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in ABOUT
        if old.get(name) != new.get(name)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", help="a JSON file, or a git revision")
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", help="figures whose path holds this text")
    args = parser.parse_args()
    new = read(str(args.new))
    old = read(args.old, args.new)
    if old.get("benchmark") != new.get("benchmark"):
        raise SystemExit(f"results of {old.get('benchmark')} and of {new.get('benchmark')}")
    before, after = dict(figures(old)), dict(figures(new))
    rows = []
    for name in dict.fromkeys((*before, *after)):
        if args.only and args.only not in name:
            continue
        a, b = before.get(name), after.get(name)
        ratio = f"{b / a:.3f}" if a and b is not None else ""
        rows.append((name, *("missing" if v is None else f"{v:.5g}" for v in (a, b)), ratio))
    common.show(f"{new['benchmark']}: NEW / OLD", ("figure", "old", "new", "ratio"), rows)
    for line in differences(old, new):
        print(line)


if __name__ == "__main__":
    main()
