"""One CURE training step: this library, the published algorithm in plain PyTorch, and JAX.

    python benchmarks/cure_step.py [--model preact-tiny] [--batch 128] [--device cpu]

The step is RS-FGSM, the loss on x̂ in training mode, λ·CURE in evaluation mode, and SGD with
momentum. All do the whole of it on the same network, batch and start. A second table compares the
ways to differentiate CURE alone: time, memory of a fresh process, and error against float64.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import funcrobust as fr
from funcrobust import models
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.regularisers.cure import DerivativeOfCure

EPSILON, ALPHA, LAM, H, LR = 8 / 255, 10 / 255, 0.25, 0.75, 0.1
BALL = fr.linf(EPSILON)
DTYPES = {"fp32": None, "bf16": torch.bfloat16}


def batch(size: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Random images: the time of a step does not depend on what they show."""
    draw = torch.Generator().manual_seed(0)
    x = torch.rand((size, 3, 32, 32), generator=draw)
    y = torch.randint(10, (size,), generator=draw)
    return x.to(device), y.to(device), BALL.sample(x, draw).to(device)


def published(module: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> Callable[[], Any]:
    """The published algorithm in plain eager PyTorch, as one would write it from the paper."""
    optimizer = torch.optim.SGD(module.parameters(), LR, 0.9, weight_decay=5e-4, nesterov=True)

    def attack() -> Tensor:
        point = start.clone().requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(module(point), y), point)[0]
        moved = start + ALPHA * gradient.sign()
        return (x + (moved - x).clamp(-EPSILON, EPSILON)).clamp(0, 1).detach()

    def curvature() -> Tensor:
        point = x.clone().requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(module(point), y), point)[0]
        z = gradient.sign()
        z = H * z / z.flatten(1).norm(dim=1)[:, None, None, None]
        ahead = F.cross_entropy(module(point + z), y, reduction="sum")
        here = F.cross_entropy(module(point), y, reduction="sum")
        difference = torch.autograd.grad(ahead - here, point, create_graph=True)[0]
        return difference.flatten(1).norm(dim=1).mean()

    def step() -> None:
        module.train()
        x_hat = attack()
        loss = F.cross_entropy(module(x_hat), y)
        module.eval()
        optimizer.zero_grad()
        (loss + LAM * curvature()).backward()
        optimizer.step()

    return step


def ours(
    module: nn.Module, x: Tensor, y: Tensor, start: Tensor, *, dtype: torch.dtype | None = None,
    compiled: bool = False, graphs: bool = False, captured: bool = False,
    statistics: str = "running",
) -> Callable[[], Any]:  # fmt: skip
    """The same step as one pure update; ``statistics`` are CURE's, the published ones running."""
    model = fr.functionalize(module).to(x.device, torch.channels_last)
    attack = fr.rs_fgsm(BALL, step_size=ALPHA)

    def compose(modes: fr.Modes, batch: fr.Batch) -> fr.Terms:
        robust = fr.adversarial(fr.cross_entropy(modes.training), attack, start=batch.start)
        curvature = fr.cure(fr.cross_entropy(getattr(modes, statistics)), H)
        return {"loss": (1.0, robust), "curvature": (LAM, curvature)}

    objective = fr.training_objective(model, compose, dtype=dtype)
    optim = fr.optimizer("SGD", LR, momentum=0.9, weight_decay=5e-4, nesterov=True)
    update, state = fr.make_update(objective, optim), [fr.initial_state(model, optim)]
    images, begin = (t.contiguous(memory_format=torch.channels_last) for t in (x, start))
    drawn = fr.Batch(images, y, begin)
    if compiled:
        update = fr.compile_checked(update, state[0], drawn)
    if captured:
        update = fr.capture_checked(update, state[0], drawn)

    def step() -> None:
        state[0], _ = update(state[0], drawn)

    if not graphs:
        return step
    # No graph is recorded of an update that counts on the CPU.
    state[0] = state[0]._replace(step=state[0].step.to(x.device))
    recorded = torch.compile(update, fullgraph=True, mode="reduce-overhead")

    def replayed() -> None:  # a graph writes to the same memory every time: what is kept is copied
        torch.compiler.cudagraph_mark_step_begin()
        state[0] = tree_map(torch.clone, recorded(state[0], drawn)[0])

    return replayed


def steps_table(args: Any) -> dict[str, float | None]:
    """Median seconds of each implementation of the step; None for one that is missing."""
    x, y, start = batch(args.batch, args.device)

    def network() -> nn.Module:
        return models.build(args.model).to(args.device)

    plain, missing = "plain eager PyTorch, fp32", list[str]()
    calls = {
        plain: published(network(), x, y, start),
        "funcrobust, fp32": ours(network(), x, y, start),
        "funcrobust, bf16": ours(network(), x, y, start, dtype=torch.bfloat16),
        "funcrobust, bf16, CURE by batch statistics": ours(
            network(), x, y, start, dtype=torch.bfloat16, statistics="batch"
        ),
    }
    if args.device.startswith("cuda"):
        half = published(network(), x, y, start)
        calls["plain eager PyTorch, bf16"] = lambda: in_bf16(half)
    for name, (dtype, way) in {
        "bf16, eager in a CUDA graph": (torch.bfloat16, "captured"),
        "fp32, compiled": (None, "compiled"), "bf16, compiled": (torch.bfloat16, "compiled"),
        "bf16, compiled, CUDA graphs": (torch.bfloat16, "graphs"),
    }.items():  # fmt: skip
        if not (args.device.startswith("cuda") if way == "captured" else args.compile):
            continue
        made = partial(ours, network(), x, y, start, dtype=dtype, **{way: True})
        if isinstance(tried := attempt(made), str):
            print(f"{name}: does not run here: {tried}")
            missing.append(f"funcrobust, {name}")
        else:
            calls[f"funcrobust, {name}"] = tried
    if args.no_jax or (jax_step := jax_update(network(), x, y, start)) is None:
        missing.append("JAX, jit, fp32")
    else:
        calls["JAX, jit, fp32"] = jax_step
    times = common.side_by_side(calls, args.device, args.repeats)
    common.show(
        f"one CURE step, {args.model}, batch {args.batch}, {common.device_name(args.device)}",
        ("implementation", "ms", "images/s", "against plain eager"),
        [
            (name, f"{t * 1e3:.0f}", f"{args.batch / t:.0f}", f"{times[plain] / t:.2f} x")
            for name, t in times.items()
        ]
        + [(name, "missing", "", "") for name in missing],
    )
    return times | dict.fromkeys(missing)


def attempt(make: Callable[[], Callable[[], Any]]) -> Callable[[], Any] | str:
    """Make a call that runs, or say why there is none, so that the other rows are not lost with it.

    Three times: a CUDA graph is recorded at the second call, and replayed at the third.
    """
    try:
        call = make()
        for _ in range(3):
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except Exception as error:
        first = error
        while first.__context__ is not None:  # a capture that fails has its cause beneath
            first = first.__context__
        return str(first).splitlines()[0] if str(first) else type(first).__name__
    return call


def in_bf16(step: Callable[[], Any]) -> None:
    with torch.autocast("cuda", torch.bfloat16):
        step()


def jax_update(module: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> Callable[[], Any] | None:
    """The step under jax.jit, if JAX is installed; compiled before any timing."""
    try:
        import jax_preact
    except ImportError:
        print("JAX is not installed (pip install jax): its row says missing")
        return None
    return jax_preact.cure_step(
        module, x, y, start, epsilon=EPSILON, alpha=ALPHA, lam=LAM, h=H, lr=LR
    )


def cure_gradient(
    args: Any, derivative: str, dtype: torch.dtype | None, double: bool = False
) -> tuple[Callable[[], Any], Callable[[Any], Tensor]]:
    """The parameter gradient of CURE alone, and what lays it out as one vector."""
    module = models.build(args.model).to(args.device)
    model = fr.functionalize(module.double() if double else module)
    model = model.to(args.device, torch.channels_last)
    x, y, _ = batch(args.batch, args.device)
    x = x.contiguous(memory_format=torch.channels_last)
    loss = fr.cross_entropy(fr.autocast(model.predict, dtype))
    gradient = torch.func.grad(fr.mean(fr.cure(loss, H, derivative=derivative)))
    x = x.double() if double else x
    return (
        lambda: gradient(model.params, x, y),
        lambda found: torch.cat([g.double().flatten() for g in found.values()]),
    )


def variants_table(args: Any) -> list[dict[str, Any]]:
    """Time, memory and error of each way to differentiate CURE."""
    call, flat = cure_gradient(args, "shared", None, double=True)
    truth = flat(call())
    rows, calls = [], {}
    for name, dtype in DTYPES.items():
        for derivative in get_args(DerivativeOfCure):
            call, flat = cure_gradient(args, derivative, dtype)
            try:
                error = float((flat(call()) - truth).norm() / truth.norm())
            except (RuntimeError, FuncrobustError):  # torch's forward mode under its autocast
                rows.append({"derivative": derivative, "precision": name, "error": None})
                continue
            calls[f"{derivative} {name}"] = call
            rows.append({"derivative": derivative, "precision": name, "error": error})
    times = common.side_by_side(calls, args.device, args.repeats, warmup=1)
    for row in rows:
        key = f"{row['derivative']} {row['precision']}"
        row["seconds"] = times.get(key)
        row["megabytes"] = None
        if key in times:
            row["megabytes"] = memory(args, row["derivative"], row["precision"])
    common.show(
        f"parameter gradient of CURE alone, {args.model}, batch {args.batch}",
        ("derivative", "precision", "ms", "extra MB", "error against float64"),
        [
            (r["derivative"], r["precision"], "does not run", "", "")
            if r["error"] is None
            else (r["derivative"], r["precision"], f"{r['seconds'] * 1e3:.0f}",
                  f"{r['megabytes']:.0f}", f"{r['error']:.1e}")
            for r in rows
        ],
    )  # fmt: skip
    return rows


def memory(args: Any, derivative: str, precision: str) -> float:
    """Memory that the gradient adds at its peak: of a fresh process on a CPU."""
    flags = ("--model", args.model, "--batch", str(args.batch), "--device", args.device)
    return float(
        common.in_fresh_process(__file__, *flags, "--memory", f"{derivative} {precision}")[
            "megabytes"
        ]
    )


def print_memory(args: Any) -> None:
    """What `memory` reads: one line of JSON."""
    derivative, precision = args.memory.split()
    call, _ = cure_gradient(args, derivative, DTYPES[precision])
    if args.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        print(json.dumps({"megabytes": (torch.cuda.max_memory_allocated() - before) / 2**20}))
        return
    before = common.peak_megabytes()
    call()
    print(json.dumps({"megabytes": common.peak_megabytes() - before}))


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--model", default="preact-tiny")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--no-jax", action="store_true")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available(),
        help="compiled rows; an update takes minutes",
    )  # fmt: skip
    parser.add_argument("--no-variants", action="store_true", help="leave out the second table")
    parser.add_argument("--memory", help="(used by the script itself)")
    args = parser.parse_args()
    common.settle(args)
    if args.memory:
        print_memory(args)
        return
    record = {
        "model": args.model, "batch": args.batch, "repeats": args.repeats,
        "step_seconds": steps_table(args), "cure_gradient": [],
    }  # fmt: skip
    common.write("cure_step", record, args.device, args.out)
    if not args.no_variants:
        record["cure_gradient"] = variants_table(args)
        common.write("cure_step", record, args.device, args.out)


if __name__ == "__main__":
    main()
