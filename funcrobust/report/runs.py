"""A folder for every training: what was asked, what was measured, what came out.

``runs/<YYYYmmdd-HHMMSS>-<command>[-2]/`` holds ``config.json``, ``metrics.jsonl``, whatever the
recipe puts there (``checkpoint.safetensors``, ``console.log``, pictures, ``report.html``), and at
the end of all ``result.json``.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from filelock import FileLock, Timeout

from funcrobust.core.errors import FuncrobustError
from funcrobust.environment import device_name, versions
from funcrobust.files import (
    WriteError,
    atomic_write,
    clear_leftovers,
    is_plain_name,
    temporary_name,
)
from funcrobust.reading import LARGEST_TEXT, parse_json, read_file
from funcrobust.report.records import Record, append_line, as_json, as_line, parse_line, write_json

CONFIG, METRICS, RESULT = "config.json", "metrics.jsonl", "result.json"
REPORT, EVALUATION_PAGE = "report.html", "evaluation.html"
"""The page on a run, and the one on its evaluation."""

Status = Literal["finished", "interrupted", "collapsed", "diverged"]
"""How a training ended: one that was interrupted can be resumed, the others are complete."""

_LOCK = ".lock"

_PACKAGES = (
    "funcrobust",
    "torch",
    "torchvision",
    "torchopt",
    "robustness",
    "numpy",
    "safetensors",
    "matplotlib",
    "rich",
)


class RunFolder:
    """One run on disk. Made by :meth:`create`, found again by :meth:`open`.

    Attributes:
        path: the folder.
        config: the options of the run, as JSON knows them (tuples are lists, paths are text);
            the same after :meth:`create` and after :meth:`open`.
        record: all of ``config.json``: ``command``, ``created``, ``argv``, ``seed``,
            ``device``, ``versions``, ``options`` (which is ``config``) and ``inputs``.
    """

    def __init__(self, path: Path, record: Record) -> None:
        """Use :meth:`create` or :meth:`open`."""
        self.path = path
        self.record = record
        self.config: Record = record["options"]

    @classmethod
    def create(
        cls, root: Path, command: str, config: Mapping[str, Any], name: str | None = None,
        inputs: Mapping[str, str] | None = None,
    ) -> Self:  # fmt: skip
        """Make a new folder under ``root``, with its ``config.json`` in it from the first instant.

        Args:
            root: the folder of all runs; made if absent.
            command: what is run (``train``); part of the folder's name.
            config: all options. ``config["seed"]`` and ``config["device"]`` are also used for
                the record's seed and device name.
            name: the folder's name, instead of the time and the command.
            inputs: the SHA-256 of what the files hold that options name, by option.

        Raises:
            FuncrobustError: the folder cannot be written, the name is taken or no plain name,
                or an option cannot be written as JSON.
        """
        # Made first: an option JSON cannot hold must not leave an empty folder.
        text = as_json(_describe(command, config, inputs or {}))
        root = Path(root)
        if name is not None:
            require_free(root, name)
        try:
            root.mkdir(parents=True, exist_ok=True)
            clear_leftovers(root)
            made = temporary_name(root / (name or "run"))
            try:
                atomic_write(made / CONFIG, text)
                path = _named(made, root / name) if name else _dated(made, root, command)
            finally:  # where it got its name, there is nothing left to delete
                shutil.rmtree(made, ignore_errors=True)
        except OSError as error:
            raise _cannot_write(root, error) from error
        return cls(path, json.loads(text))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Find a run again, to resume it or to read it.

        Raises:
            FuncrobustError: no such folder, or no whole ``config.json`` in it.
        """
        path = Path(path)
        try:
            raw = read_file(path / CONFIG, most=LARGEST_TEXT)
        except FuncrobustError as error:
            raise FuncrobustError(f"{path} is not a run folder: {error}") from error
        record = parse_json(raw, path / CONFIG, finite=False)
        if not isinstance(record, dict) or not isinstance(record.get("options"), dict):
            raise FuncrobustError(f"{path / CONFIG} is not the record of a run: no options in it")
        return cls(path, record)

    @property
    def inputs(self) -> dict[str, str]:
        """The SHA-256 of what it began with, by the options that name it.

        Empty of a run from before they were kept.
        """
        known = self.record.get("inputs")
        if not isinstance(known, dict):
            return {}
        return {name: str(digest) for name, digest in known.items() if name in self.config}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other process write into this run meanwhile; the lock ends with the process.

        What killed processes left half-written here is deleted.

        Raises:
            FuncrobustError: another process has the lock, or the folder cannot be written.
        """
        lock = FileLock(self.path / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise FuncrobustError(
                f"{self.path} is under way in another process: wait for it, or stop it first"
            ) from None
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        try:
            clear_leftovers(self.path)
            yield
        finally:
            lock.release()

    def require_there(self) -> None:
        """Raise `WriteError` if the folder has been deleted: nothing is to be written then."""
        if not (self.path / CONFIG).is_file():
            raise WriteError(
                f"cannot write {self.path}: the folder of the run was deleted or moved"
            )

    def revise(self, options: Mapping[str, Any]) -> None:
        """Write into ``config.json`` where something lies by now.

        Raises:
            WriteError: the file cannot be written.
        """
        self.require_there()
        self.config.update(options)
        atomic_write(self.file(CONFIG), as_json(self.record))

    def conclude(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``, the last file of a run: it names the files that are there by now.

        Raises:
            WriteError: the file cannot be written.
        """
        self.require_there()
        files = sorted(p.name for p in self.path.iterdir() if p.suffix in _LASTING)
        files = [name for name in files if not name.startswith((".", "state", RESULT))]
        write_json(self.file(RESULT), {**result, "files": files})

    def result(self) -> Record | None:
        """Return what `conclude` wrote; None for a run that has something left to do.

        So has one that lacks a file which was there in the end.
        """
        path = self.file(RESULT)
        try:
            raw = read_file(path, most=LARGEST_TEXT)
            found: Record = parse_json(raw, path, finite=False)
            files = found["files"]
            return found if all(self.file(name).exists() for name in files) else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def file(self, name: str) -> Path:
        """Return the path of a file in this run; it need not exist.

        Raises:
            FuncrobustError: the name points outside the folder.
        """
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise FuncrobustError(f"not a file name inside a run folder: {name!r}")
        return self.path / name

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl`` and hand it to the operating system.

        Numbers may be 0-d tensors. NaN and infinities, which JSON does not have, are ``null``.

        Raises:
            FuncrobustError: the file cannot be written.
        """
        line = as_line(record)
        self.require_there()
        try:
            append_line(self.file(METRICS), line)
        except OSError as error:
            raise _cannot_write(self.file(METRICS), error) from error

    def metrics(self) -> list[Record]:
        """Return all records of ``metrics.jsonl``, oldest first; ``null`` comes as None.

        A last line cut short by a crash is left out.

        Raises:
            FuncrobustError: a line before the last is damaged.
        """
        path = self.file(METRICS)
        raw = read_file(path, most=LARGEST_TEXT) if os.path.lexists(path) else b""
        lines = raw.split(b"\n")
        records = []
        for number, line in enumerate(lines, start=1):
            record = parse_line(line)
            if record is not None:
                records.append(record)
            elif line.strip() and number < len(lines):
                raise FuncrobustError(f"{path}, line {number} is damaged: {line[:60]!r}")
        return records

    def truncate_metrics(self, keep: Callable[[Record], bool]) -> None:
        """Keep only the records for which ``keep`` is true; the file is replaced as a whole.

        A run that resumes from epoch 5 drops what a crashed run logged after it.

        Raises:
            FuncrobustError: a line is damaged, or the file cannot be written.
        """
        kept = [as_line(record) for record in self.metrics() if keep(record)]
        atomic_write(self.file(METRICS), b"".join(kept))


_LASTING = (".json", ".jsonl", ".png", ".safetensors")


def require_free(root: Path, name: str) -> None:
    """Raise `FuncrobustError` for a run's name that is no plain one, or is taken under ``root``.

    An empty folder is free: a new run takes its place.
    """
    if not is_plain_name(name):
        raise FuncrobustError(f"a run's name is one plain folder name, got {name[:80]!r}")
    path = root / name
    if path.is_symlink() or (path.exists() and not _is_empty(path)):
        raise FuncrobustError(f"{path} exists already: choose another name, or resume that run")


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _dated(made: Path, root: Path, command: str) -> Path:
    word = re.sub(r"[^A-Za-z0-9._]+", "-", command).strip("-.") or "run"
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{word}"
    number = 1
    while True:
        path = root / (stem if number == 1 else f"{stem}-{number}")
        if not path.exists() and _renamed(made, path):
            return path
        number += 1


def _named(made: Path, path: Path) -> Path:
    if not _renamed(made, path):
        require_free(path.parent, path.name)
        raise FuncrobustError(f"{path} exists already: choose another name, or resume that run")
    return path


def _renamed(made: Path, path: Path) -> bool:
    """Rename a folder that holds something, unless the name is taken: no gap between the two."""
    try:
        made.rename(path)
    except OSError:
        if not path.exists():
            raise
        return False
    return True


def _cannot_write(path: Path, error: OSError) -> WriteError:
    why = error.strerror or str(error)
    return WriteError(f"cannot write {path}: {why}; choose a folder you can write to")


def _describe(command: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> Record:
    return {
        "command": command,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "argv": list(sys.argv),
        "seed": config.get("seed"),
        "device": device_name(config.get("device")),
        "versions": _versions(),
        "options": dict(config),
        "inputs": dict(inputs),
    }


def _versions() -> dict[str, str]:
    import torch

    found = {"python": platform.python_version(), **versions(_PACKAGES)}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found
