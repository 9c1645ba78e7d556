"""A folder for every training: what was asked, what was measured, what came out.

``runs/<YYYYmmdd-HHMMSS>-<command>[-2]/`` holds ``config.json``, ``metrics.jsonl``, and whatever
the recipe puts there (``checkpoint.safetensors``, ``console.log``, pictures).
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from funcrobust.core.errors import FuncrobustError

CONFIG, METRICS = "config.json", "metrics.jsonl"

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

Record = dict[str, Any]


class RunFolder:
    """One run on disk. Made by :meth:`create`, found again by :meth:`open`.

    Attributes:
        path: the folder.
        config: the options of the run, as JSON knows them (tuples are lists, paths are text);
            the same after :meth:`create` and after :meth:`open`.
        record: all of ``config.json``: ``command``, ``created``, ``argv``, ``seed``,
            ``device``, ``versions`` and ``options`` (which is ``config``).
    """

    def __init__(self, path: Path, record: Record) -> None:
        """Use :meth:`create` or :meth:`open`."""
        self.path = path
        self.record = record
        self.config: Record = record["options"]

    @classmethod
    def create(
        cls, root: Path, command: str, config: Mapping[str, Any], name: str | None = None
    ) -> Self:
        """Make a new folder under ``root`` and write its ``config.json``.

        Args:
            root: the folder of all runs; made if absent.
            command: what is run (``train``); part of the folder's name.
            config: all options. ``config["seed"]`` and ``config["device"]`` are also used for
                the record's seed and device name.
            name: the folder's name, instead of the time and the command.

        Raises:
            FuncrobustError: the folder cannot be written, the name is taken or no plain name,
                or an option cannot be written as JSON.
        """
        # Made first: an option JSON cannot hold must not leave an empty folder.
        text = json.dumps(_describe(command, config), indent=2, default=_plain_value) + "\n"
        root = Path(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            path = _new_named(root, name) if name is not None else _new_dated(root, command)
        except OSError as error:
            raise _cannot_write(root, error) from error
        try:
            _write(path / CONFIG, text)
        except FuncrobustError:
            with suppress(OSError):
                path.rmdir()
            raise
        return cls(path, json.loads(text))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Find a run again, to resume it or to read it.

        Raises:
            FuncrobustError: no such folder, or no whole ``config.json`` in it.
        """
        path = Path(path)
        try:
            record = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        except OSError as error:
            raise FuncrobustError(
                f"{path} is not a run folder: cannot read its {CONFIG} ({error.strerror})"
            ) from error
        except ValueError as error:
            raise FuncrobustError(f"{path / CONFIG} is not JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("options"), dict):
            raise FuncrobustError(f"{path / CONFIG} is not the record of a run: no options in it")
        return cls(path, record)

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
        clean = {name: _finite(value) for name, value in record.items()}
        line = json.dumps(clean, default=_plain_value, allow_nan=False) + "\n"
        try:
            with self.file(METRICS).open("a+b") as stream:
                _mend_tail(stream)
                stream.write(line.encode())
        except OSError as error:
            raise _cannot_write(self.file(METRICS), error) from error

    def metrics(self) -> list[Record]:
        """Return all records of ``metrics.jsonl``, oldest first; ``null`` comes as None.

        A last line cut short by a crash is left out.

        Raises:
            FuncrobustError: a line before the last is damaged.
        """
        path = self.file(METRICS)
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        records = []
        for number, line in enumerate(lines, start=1):
            record = _parse(line)
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
        kept = [json.dumps(record) + "\n" for record in self.metrics() if keep(record)]
        _write(self.file(METRICS), "".join(kept))


# --- names ------------------------------------------------------------------------------------


def _new_dated(root: Path, command: str) -> Path:
    word = re.sub(r"[^A-Za-z0-9._]+", "-", command).strip("-.") or "run"
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{word}"
    number = 1
    while True:
        path = root / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()  # fails if another run just took the name: no gap between look and take
            return path
        except FileExistsError:
            number += 1


def _new_named(root: Path, name: str) -> Path:
    if name in ("", ".", "..") or Path(name).name != name:
        raise FuncrobustError(f"a run's name is one plain folder name, got {name!r}")
    path = root / name
    try:
        path.mkdir()
    except FileExistsError:
        raise FuncrobustError(
            f"{path} exists already: choose another name, or resume that run"
        ) from None
    return path


def _cannot_write(path: Path, error: OSError) -> FuncrobustError:
    why = error.strerror or str(error)
    return FuncrobustError(f"cannot write {path}: {why}; choose a folder you can write to")


def _write(path: Path, text: str) -> None:
    from funcrobust.files import atomic_write

    atomic_write(path, text)


# --- config.json ------------------------------------------------------------------------------


def _describe(command: str, config: Mapping[str, Any]) -> Record:
    return {
        "command": command,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "argv": list(sys.argv),
        "seed": config.get("seed"),
        "device": _device_name(config.get("device")),
        "versions": _versions(),
        "options": dict(config),
    }


def _versions() -> dict[str, str]:
    import torch

    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    found["torch"] = torch.__version__  # has the build (+cu130), which the metadata may lack
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def _device_name(device: Any) -> str:
    """Return the product name of the device asked for, or of the one torch would take."""
    import torch

    asked = str(device) if device is not None else "auto"
    if torch.cuda.is_available() and asked.partition(":")[0] in ("auto", "cuda"):
        return torch.cuda.get_device_name(asked if ":" in asked else None)
    return _processor_name() if asked in ("auto", "cpu", "cuda") else asked


def _processor_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({os.cpu_count()} cores)"
    return f"{platform.processor() or platform.machine()} ({os.cpu_count()} cores)"


# --- JSON -------------------------------------------------------------------------------------


def _plain_value(value: Any) -> Any:
    """Turn what JSON does not know into what it knows."""
    import torch

    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path | torch.device | torch.dtype):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if hasattr(value, "item") and getattr(value, "size", None) is not None:  # 0-d tensor, numpy
        with suppress(ValueError, RuntimeError):
            return value.item()
    raise FuncrobustError(f"cannot write {value!r} ({type(value).__name__}) as JSON")


def _finite(value: Any) -> Any:
    if not isinstance(value, str | int | float | bool) and value is not None:
        value = _plain_value(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:  # also the error of a character cut in two
        return None
    return record if isinstance(record, dict) else None


def _mend_tail(stream: Any) -> None:
    """Complete or remove a last line that a crash left without its end."""
    size = stream.seek(0, os.SEEK_END)
    if size == 0:
        return
    stream.seek(size - 1)
    if stream.read(1) == b"\n":
        return
    stream.seek(0)
    last = stream.read().rpartition(b"\n")[2]
    if _parse(last) is None:
        stream.truncate(size - len(last))
    else:
        stream.write(b"\n")
