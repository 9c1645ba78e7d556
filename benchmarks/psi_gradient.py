"""Time and memory of the parameter gradient of the drift ‖x − ψ(x)‖², against steps: and JAX's.

    python benchmarks/psi_gradient.py [--device cpu] [--batch 64] [--steps 5 10 20 50 100]

ψ takes L2 steps of 0.5 toward a target; its gradient in the parameters goes through every step.

- adjoint: ``fr.psi(..., derivative=fr.adjoint())``, which keeps the iterates and walks back.
- three kept: the same with the graphs of the last three steps (``kept=3``; one is the default).
- segmented: the adjoint that keeps √steps of the iterates and works out the others again.
- unrolled: ``derivative=fr.unrolled()``, plain reverse mode, which keeps every step's graph.
- jax checkpoint: a jitted JAX loop, unrolled, with ``jax.checkpoint`` on each step.
- jax scan: ``jax.lax.scan`` of that step.

All have the same network (preact-tiny, evaluation mode), images and targets; that the frameworks'
gradients agree is checked first. Every measurement is a fresh process, one after the other. Its
memory is the peak of the first gradient, less what the process held before it; compiling is timed
apart and done by then. Takes about 10 minutes on 2 CPU cores. Without JAX (``pip install jax``) its
rows say so.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor, nn

import funcrobust as fr
from funcrobust import models
from funcrobust.data import as_float, load

STEP_SIZE = 0.5
OURS = {
    "adjoint": fr.adjoint(), "three kept": fr.adjoint(kept=3), "segmented": fr.adjoint(every=0),
    "unrolled": fr.unrolled(),
}  # fmt: skip
MODES = (*OURS, "jax checkpoint", "jax scan")
CHECK, CHECK_STEPS, CHECK_BATCH, CHECK_TOLERANCE = "check", 5, 8, 1e-3
# What a CPU is spared, and why.
UNROLL_ON_CPU = 20
SCAN_ON_CPU = 10
JAX_ON_CPU = 20
SKIPPED = {
    "jax checkpoint": (JAX_ON_CPU, "skipped on a CPU: compiles for minutes"),
    "unrolled": (UNROLL_ON_CPU, "skipped on a CPU: needs too much memory"),
    "jax scan": (SCAN_ON_CPU, "skipped on a CPU: convolutions in its loops are too slow"),
}
ENOUGH = 15.0
"""Seconds of timed calls after which no further one is begun."""

Gradient = Callable[[], Any]
"""Computes the gradient, waits for it, and returns it by parameter name."""
Made = tuple[Gradient, dict[str, float]]
"""A gradient, and what making it has told."""


def problem(batch: int, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network as it is initialised, test images, and targets that are not their labels."""
    module = models.build("preact-tiny", seed=0).eval()
    test = load("cifar10")
    x, y = as_float(test.x_test[:batch]), (test.y_test[:batch] + 1) % 10
    return module.to(device), x.to(device), y.to(device)


# --- the two frameworks -------------------------------------------------------------------------


def torch_gradient(mode: str, steps: int, module: nn.Module, x: Tensor, y: Tensor) -> Made:
    """Ours: the parameter gradient of the mean drift."""
    model = fr.functionalize(module).to(x.device, torch.channels_last)
    psi = fr.psi(
        fr.cross_entropy(model.predict), fr.l2(math.inf), step_size=STEP_SIZE, steps=steps,
        targeted=True, derivative=OURS[mode],
    )  # fmt: skip
    gradient = torch.func.grad(fr.mean(fr.drift(psi)))

    def call() -> Any:
        found = gradient(model.params, x, y)
        if x.is_cuda:
            torch.cuda.synchronize()
        return found

    return call, {}


def jax_gradient(kind: str, steps: int, module: nn.Module, x: Tensor, y: Tensor) -> Made:
    """JAX's, compiled already: how long that took, and what memory the compiler planned."""
    import jax
    import jax.numpy as jnp
    import jax_preact

    params, stats = jax_preact.split(jax_preact.from_torch(module))
    start, labels = jax_preact.images(x), jnp.asarray(y.cpu().numpy())

    def total(x: Any, params: Any) -> Any:
        logits, _ = jax_preact.predict(params, stats, x)
        return jax_preact.cross_entropy(logits, labels).sum()

    def step(params: Any, x: Any) -> Any:
        g = jax.grad(total)(x, params)
        norm = jnp.sqrt((g**2).sum((1, 2, 3), keepdims=True))
        return jnp.clip(x - STEP_SIZE * g / norm, 0, 1)

    def unrolled(params: Any) -> Any:
        x = start
        for _ in range(steps):
            x = jax.checkpoint(step)(params, x)
        return x

    def scanned(params: Any) -> Any:
        # A scan needs no barrier against the compiler's undoing the checkpoint; JAX says so.
        body = jax.checkpoint(step, prevent_cse=False)
        return jax.lax.scan(lambda x, _: (body(params, x), None), start, length=steps)[0]

    psi = {"jax checkpoint": unrolled, "jax scan": scanned}[kind]

    def drift(params: Any) -> Any:
        return ((start - psi(params)) ** 2).sum((1, 2, 3)).mean()

    began = time.perf_counter()
    compiled = jax.jit(jax.grad(drift)).lower(params).compile()
    told = {"compile_seconds": time.perf_counter() - began}
    if plan := compiled.memory_analysis():
        told["planned_mb"] = plan.temp_size_in_bytes / 2**20
    return lambda: jax.block_until_ready(compiled(params)), told


# --- inside a fresh process ---------------------------------------------------------------------


def measure(mode: str, steps: int, args: Namespace) -> dict[str, Any]:
    """Compile time, memory and run time of one mode, as the process that does nothing else."""
    if mode.startswith("jax") and (missing := why_no_jax(args.device)):
        return {"missing": missing}
    module, x, y = problem(args.batch, args.device)
    of = jax_gradient if mode.startswith("jax") else torch_gradient
    gradient, told = of(mode, steps, module, x, y)
    first, memory = peak(gradient, mode, args.device)
    # The first call warms up, unless it alone has taken too long for another.
    times = [] if first < 2 * ENOUGH else [first]
    while not times or (len(times) < args.repeats and sum(times) < ENOUGH):
        times.append(wall(gradient))
    return {
        "seconds": statistics.median(times), "times": times, "first_seconds": first, **told,
        **memory,
    }  # fmt: skip


def wall(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def peak(call: Gradient, mode: str, device: str) -> tuple[float, dict[str, float]]:
    """Seconds of the first call, and its memory in MB: before, at the peak, and the difference."""
    before = held(mode, device, begin=True)
    first = wall(call)
    after = held(mode, device)
    return first, {"before_mb": before, "peak_mb": after, "extra_mb": after - before}


def held(mode: str, device: str, begin: bool = False) -> float:
    """Megabytes held at most since the beginning that ``begin`` marks: the process's, or a GPU's.

    JAX cannot mark one on a GPU, where compiling tries kernels out: see ``planned_mb`` there.
    """
    if device.startswith("cuda"):
        return held_on_gpu(mode, begin)
    if begin:
        with contextlib.suppress(OSError, AttributeError):  # not Linux, or not glibc
            # What was freed goes back, or the gradient would take it without being seen to; then
            # the high-water mark is set to what is left.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
    return common.peak_megabytes()


def held_on_gpu(mode: str, begin: bool) -> float:
    if mode.startswith("jax"):
        import jax

        stats = jax.devices()[0].memory_stats()
        return stats["bytes_in_use" if begin else "peak_bytes_in_use"] / 2**20
    if begin:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated() / 2**20


def why_no_jax(device: str) -> str:
    """Empty if JAX can run on this device."""
    try:
        import jax
    except ImportError:
        return "jax not installed"
    kind = "gpu" if device.startswith("cuda") else "cpu"
    if kind == "cpu":
        jax.config.update("jax_platforms", "cpu")
    found = jax.default_backend()
    return "" if found == kind else f"jax has no {kind} here, only {found}"


def check(args: Namespace) -> dict[str, Any]:
    """‖JAX's gradient − ours‖ / ‖ours‖ over all parameters, and the same for our two modes."""
    if missing := why_no_jax(args.device):
        return {"missing": missing}
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")
    torch.backends.cudnn.allow_tf32 = False
    case = problem(CHECK_BATCH, args.device)
    found = {}
    for mode in MODES:
        jaxs = mode.startswith("jax")
        gradient, _ = (jax_gradient if jaxs else torch_gradient)(mode, CHECK_STEPS, *case)
        in_torch = from_jax if jaxs else Tensor.cpu
        found[mode] = {name: in_torch(g) for name, g in gradient().items()}
    ours = flat(found["adjoint"])
    return {
        "relative_error": {
            mode: float((flat(g) - ours).norm() / ours.norm()) for mode, g in found.items()
        },
        "gradient_norm": float(ours.norm()),
    }


def from_jax(array: Any) -> Tensor:
    """A JAX gradient in torch's layout: kernels from HWIO to OIHW."""
    tensor = torch.tensor(array.tolist())
    return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor


def flat(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient[name].flatten() for name in sorted(gradient)]).double()


# --- the table ----------------------------------------------------------------------------------


LONGEST = 90.0
"""Seconds that a GPU's row may take, with its compilation: a lent one is lent by the minute."""


def skip_reason(mode: str, steps: int, device: str) -> str:
    most, why = SKIPPED.get(mode, (math.inf, ""))
    return why if device == "cpu" and steps > most else ""


def in_turn(args: Namespace, keep: Callable[[list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
    """One row a mode and number of steps, a process each, never two at a time."""
    rows: list[dict[str, Any]] = []
    for steps in args.steps:
        for mode in MODES:
            if reason := skip_reason(mode, steps, args.device):
                found = {"missing": reason}
            else:
                try:
                    found = in_child(mode, steps, args)
                except RuntimeError as error:  # its own row is lost, and no other
                    found = {"missing": str(error).strip().splitlines()[-1]}
            rows.append({"steps": steps, "mode": mode, **found})
            keep(rows)
            said = found.get("missing") or f"{found['seconds']:.2f} s"
            print(f"{mode} at {steps} steps: {said}", flush=True)
    return rows


def in_child(mode: str, steps: int, args: Namespace) -> dict[str, Any]:
    flags = ("device", "batch", "repeats", "threads")
    passed = [word for flag in flags for word in (f"--{flag}", str(getattr(args, flag)))]
    limit = LONGEST if args.device.startswith("cuda") else None
    return common.in_fresh_process(__file__, *passed, "--measure", mode, str(steps), seconds=limit)


def ratios(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the rows say in a few numbers."""
    ran = {(row["mode"], row["steps"]): row for row in rows if "seconds" in row}
    numbers = sorted({steps for _, steps in ran})

    def times(mode: str, over: str) -> dict[int, float]:
        both = [n for n in numbers if {(mode, n), (over, n)} <= ran.keys()]
        return {n: ran[mode, n]["seconds"] / ran[over, n]["seconds"] for n in both}

    def memory(mode: str, kind: str) -> float:
        own = [n for n in numbers if (mode, n) in ran]
        return ran[mode, own[-1]][kind] / max(ran[mode, own[0]][kind], 1.0) if own else math.nan

    ends = f"at {numbers[-1]} / at {numbers[0]} steps" if numbers else ""
    return {
        "adjoint time / unroll time": times("adjoint", "unrolled"),
        "three kept time / unroll time": times("three kept", "unrolled"),
        "jax checkpoint time / adjoint time": times("jax checkpoint", "adjoint"),
        "jax scan time / adjoint time": times("jax scan", "adjoint"),
        "segmented time / unroll time": times("segmented", "unrolled"),
        f"adjoint, the gradient's memory, {ends}": memory("adjoint", "extra_mb"),
        f"segmented, the gradient's memory, {ends}": memory("segmented", "extra_mb"),
        f"adjoint, the process's peak, {ends}": memory("adjoint", "peak_mb"),
        f"segmented, the process's peak, {ends}": memory("segmented", "peak_mb"),
    }


def show(rows: list[dict[str, Any]], found: dict[str, Any], args: Namespace) -> None:
    def cells(row: dict[str, Any]) -> tuple[Any, ...]:
        if "missing" in row:
            return row["steps"], row["mode"], row["missing"], "", "", "", ""
        compiling = f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else ""
        memory = (f"{row[key]:.0f}" for key in ("extra_mb", "peak_mb", "before_mb"))
        return row["steps"], row["mode"], f"{row['seconds']:.2f}", compiling, *memory

    columns = ("steps", "mode", "seconds", "compile s", "gradient MB", "peak MB", "before MB")
    title = f"parameter gradient of the drift, preact-tiny, batch {args.batch}, {args.device}"
    common.show(title, columns, [cells(row) for row in rows])
    for name, value in found.items():
        by_steps = value.items() if isinstance(value, dict) else [("", value)]
        listed = ", ".join(f"{r:.2f} at {n}" if n else f"{r:.2f}" for n, r in by_steps)
        print(f"{name}: {listed or 'not measured'}")


def agreement(args: Namespace) -> dict[str, Any]:
    """The check, in a process of its own; ends the program if the frameworks disagree."""
    found = in_child(CHECK, CHECK_STEPS, args)
    if "missing" in found:
        print(f"no comparison with JAX: {found['missing']}")
        return found
    errors = found["relative_error"]
    listed = ", ".join(f"{mode} {error:.1e}" for mode, error in errors.items() if mode != "adjoint")
    print(f"relative error against the adjoint's gradient at {CHECK_STEPS} steps: {listed}")
    if not max(errors.values()) < CHECK_TOLERANCE:
        raise SystemExit(f"the gradients disagree by more than {CHECK_TOLERANCE}")
    return found


def arguments() -> Namespace:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.set_defaults(repeats=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50, 100])
    parser.add_argument("--measure", nargs=2, metavar=("MODE", "STEPS"), help="used by itself")
    return parser.parse_args()


def settle(args: Namespace) -> None:
    """The same cores for both frameworks: JAX has no setting, but keeps to what it is allowed."""
    common.settle(args)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])


def main() -> None:
    args = arguments()
    settle(args)
    if args.measure:
        mode, steps = args.measure
        print(json.dumps(check(args) if mode == CHECK else measure(mode, int(steps), args)))
        return
    agreed = agreement(args)

    def keep(rows: list[dict[str, Any]]) -> None:
        record = {"batch": args.batch, "check": agreed, "rows": rows, "ratios": ratios(rows)}
        common.write("psi_gradient", record, args.device, args.out)

    rows = in_turn(args, keep)
    show(rows, ratios(rows), args)


if __name__ == "__main__":
    main()
