"""What the benchmarks share: fair timing, peak memory of a process, a table and a JSON file."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from funcrobust.running.machine import pick_device, pick_precision

# JAX else takes three quarters of a GPU for itself, beside what it is compared with; and GitPython,
# which foolbox imports, wants the program git.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

RESULTS = Path(__file__).resolve().parent / "results"
COMPETITORS = ("torchattacks", "foolbox", "robustness", "pyautoattack", "jax")


def arguments(description: str) -> argparse.ArgumentParser:
    """Flags that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds; the median counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    return parser


def device_name(device: torch.device | str) -> str:
    """Return what the machine calls itself."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    name = found.group(1).strip() if found else platform.processor() or "CPU"
    return f"{name} {instructions()}, {torch.get_num_threads()} threads"


def instructions() -> str:
    """Return what the CPU's vector units know, by which machines of one name differ."""
    half = pick_precision("auto", torch.device("cpu")) == "bf16"
    return torch.backends.cpu.get_cpu_capability() + ("-BF16" if half else "")


def seconds(call: Callable[[], Any], device: torch.device | str) -> float:
    """Time one call: CUDA events on a GPU, the wall clock on a CPU."""
    if torch.device(device).type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def side_by_side(
    calls: dict[str, Callable[[], Any]], device: torch.device | str, repeats: int, warmup: int = 2
) -> dict[str, float]:
    """Median seconds of each call, taken in turns, so that a slow spell meets them all."""
    for call in calls.values():
        for _ in range(warmup):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    return {name: statistics.median(found) for name, found in times.items()}


def in_fresh_process(
    script: str, *args: str, env: dict[str, str] | None = None, seconds: float | None = None
) -> Any:
    """Run ``python script args`` and return what its last line of output holds, as JSON.

    Raises `RuntimeError` where it fails or takes more than so many ``seconds``.
    """
    try:
        done = subprocess.run(
            [sys.executable, script, *args], capture_output=True, text=True, check=False,
            env={**os.environ, **(env or {})}, timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"not done after {seconds:.0f} s") from error
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(args)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peak_megabytes() -> float:
    """Highest resident memory of this process so far (a child's ru_maxrss starts at its parent's,
    so VmHWM is read instead)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(width=max(100, Console().width)).print(table)


def curves(
    path: Path, lines: Sequence[tuple[str, Sequence[float], Sequence[float]]], title: str,
    across: str, up: str,
) -> None:  # fmt: skip
    """Draw lines (name, x, y) as a PNG: those of one name in one colour."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for name, *_ in lines))
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for number, (name, x, y) in enumerate(lines):
        first = name not in [said for said, *_ in lines[:number]]
        color, label = f"C{names.index(name)}", name if first else None
        axes.plot(x, y, color=color, marker=".", alpha=0.8, label=label)
    axes.set(xlabel=across, ylabel=up, title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"wrote {path}")


def provenance() -> dict[str, Any]:
    """What a figure came from: the commit, what differs from it, and the script's own bytes."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], capture_output=True, text=True, check=False, cwd=RESULTS.parent
            )
        except OSError:  # a machine without git
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    script = Path(sys.argv[0])
    code = script.read_bytes() if script.is_file() else b""
    changed = git("status", "--porcelain", "--", "../funcrobust", ".", ":!results")
    commit = git("rev-parse", "HEAD") or os.environ.get("COMMIT")  # a copy without its .git
    return {
        "commit": commit, "changed_since": None if changed is None else bool(changed),
        "script": script.name, "script_sha256": hashlib.sha256(code).hexdigest(),
    }  # fmt: skip


def all_trained(
    name: str, names: Sequence[str], train: Callable[[str, int], Any], flags: argparse.Namespace,
    **record: Any,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Train each name with each seed that the JSON does not hold yet; return all, by both.

    It is written after every training, so that a run goes on where it was stopped. ``flags`` has
    ``seeds``, how many, and ``only``, a part of the names that are wanted.
    """
    path = result_path(name, flags.device, flags.out)
    held = json.loads(path.read_text())["trainings"] if path.exists() else {}
    found: dict[str, dict[str, Any]] = {each: held.get(each, {}) for each in names}
    for seed in range(flags.seeds):
        for each in names:
            if flags.only in each and str(seed) not in found[each]:
                found[each][str(seed)] = train(each, seed)
                write(name, {**record, "trainings": found}, flags.device, flags.out)
    return {each: seeds for each, seeds in found.items() if seeds}


def settle(args: argparse.Namespace) -> None:
    """Take the threads that are asked for; on a GPU have float32 be float32, as commands do."""
    torch.set_num_threads(args.threads)
    pick_device(args.device)


def versions() -> dict[str, str]:
    """Of what figures depend on; a competitor that is not installed is "missing"."""
    found = {}
    for name in ("funcrobust", "torch", "torchopt", *COMPETITORS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def result_path(name: str, device: torch.device | str, out: Path) -> Path:
    """Where a benchmark's record of this kind of machine lies."""
    kind = re.sub(r"[^a-z0-9]+", "-", device_name(device).split(",")[0].lower()).strip("-")
    return out / f"{name}-{kind}.json"


def write(name: str, record: dict[str, Any], device: torch.device | str, out: Path) -> Path:
    """Write the record, with machine, versions, commit and script, as JSON; return the path."""
    machine = {
        "device": device_name(device), "torch": torch.__version__,
        "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"),
        "versions": versions(), **provenance(),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    path = result_path(name, device, out)
    whole = path.with_suffix(".part")  # a part that is cut short leaves the last whole one
    whole.write_text(json.dumps({"benchmark": name, **machine, **record}, indent=1) + "\n")
    whole.replace(path)
    print(f"wrote {path}")
    return path
