"""What a run is made on: versions and the machine, for cards and run folders."""

from __future__ import annotations

import os
import platform
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any


def own_version() -> str:
    """Return this package's version: pyproject.toml's, by way of what is installed."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version("funcrobust")
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"  # a clone, not installed
    return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those of ``packages`` that are installed."""
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    if "torch" in found:
        import torch

        found["torch"] = torch.__version__  # has the build (+cu130), which the metadata may lack
    return found


def device_name(device: Any) -> str:
    """Return the product name of the device asked for, or of the one torch would take."""
    import torch

    asked = str(device) if device is not None else "auto"
    if torch.cuda.is_available() and asked.partition(":")[0] in ("auto", "cuda"):
        return torch.cuda.get_device_name(asked if ":" in asked else None)
    return processor_name() if asked in ("auto", "cpu", "cuda") else asked


def processor_name() -> str:
    """Return the processor's product name and its number of cores."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({os.cpu_count()} cores)"
    return f"{platform.processor() or platform.machine()} ({os.cpu_count()} cores)"
