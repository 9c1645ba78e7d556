"""How long to a robust classifier: seconds and epochs to 45 % and to 48.3 % robust accuracy.

    python benchmarks/fast_training.py     # preset fast on CUDA, cpu on a CPU
    python benchmarks/fast_training.py --preset strong --seeds 3

The preset runs as ``cure-train`` runs it, but is timed alone: loading, compiling or recording a
CUDA graph, and measuring are outside the clock. Beside it, in the same process, runs plain RS-FGSM
training of the same network as published (Wong et al. 2020: eager float32, cyclic learning rate to
0.2, batch 128) for as much time as the preset took. After every part of an epoch the robust
accuracy on test images is measured (PGD-10), and at the end PGD-50-10; with ``--autoattack`` also
AutoAttack (funcrobust[autoattack]).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import funcrobust as fr
from funcrobust import data, models
from funcrobust.commands.cure_train import CureTrain
from funcrobust.commands.cure_train.assemble import Training, assemble
from funcrobust.commands.evaluate.attacking import autoattack
from funcrobust.core import evaluation
from funcrobust.core.balls.ball import known_inside
from funcrobust.core.training import updates
from funcrobust.report.console import Reporter
from funcrobust.running.config import to_config
from funcrobust.running.dataset import chosen_test_images
from funcrobust.running.machine import launched, pick_dtype

EPSILON = 8 / 255
BALL = fr.linf(EPSILON)
TARGETS = (0.45, 0.483)
PLAIN = "plain RS-FGSM, float32"
Weights = tuple[fr.Params, fr.Buffers]
Progress = Iterator[tuple[int, Weights]]
"""Yields (updates done, weights to evaluate) after every stretch; the clock runs between."""


def preset_training(training: Training, stretch: int, prepare: Any) -> Callable[[], Progress]:
    """The library's training, one stretch of updates at a time."""
    update = training.update(prepare)

    def run() -> Progress:
        state = training.state
        for step in range(training.steps):
            with known_inside():  # as in `funcrobust.running.loop`
                state, _ = update(state, training.batches(step))
            if (step + 1) % stretch == 0 or step + 1 == training.steps:
                yield step + 1, updates.averaged(state)

    return run


def plain_training(
    module: nn.Module, dataset: data.Dataset, steps: int, stretch: int, seed: int
) -> Callable[[], Progress]:
    """RS-FGSM training as published: an nn.Module, torch.optim, no library of ours."""
    optimizer = torch.optim.SGD(module.parameters(), 0.2, 0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CyclicLR(
        optimizer, 0.0, 0.2, step_size_up=steps / 2, step_size_down=steps / 2, cycle_momentum=False
    )
    device = dataset.x_train.device
    draw = torch.Generator(device).manual_seed(seed)

    def step(x: Tensor, y: Tensor) -> None:
        delta = (2 * torch.rand(x.shape, generator=draw, device=device) - 1) * EPSILON
        delta = (x + delta).clamp(0, 1) - x
        delta.requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(module(x + delta), y), delta)[0]
        delta = (delta + 1.25 * EPSILON * gradient.sign()).clamp(-EPSILON, EPSILON).detach()
        optimizer.zero_grad()
        F.cross_entropy(module((x + delta).clamp(0, 1)), y).backward()
        optimizer.step()
        scheduler.step()

    def run() -> Progress:
        module.train()
        order = iter(())
        for i in range(steps):
            index = next(order, None)
            if index is None:
                order = data.batches(len(dataset.y_train), 128, draw)
                index = next(order)
            x = data.as_float(data.flip_and_crop(dataset.x_train[index], draw))
            step(x, dataset.y_train[index])
            if (i + 1) % stretch == 0 or i + 1 == steps:
                yield i + 1, (dict(module.named_parameters()), dict(module.named_buffers()))

    return run


def timed(
    run: Callable[[], Progress], measure: Callable[[Weights], dict[str, float]], device: str,
    limit: float = float("inf"),
) -> tuple[list[dict[str, float]], Weights]:  # fmt: skip
    """Run to the end (or ``limit`` seconds), with the clock stopped while measuring."""
    progress, spent, records = run(), 0.0, []
    weights: Weights = ({}, {})
    while True:
        began = time.perf_counter()
        following = next(progress, None)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        spent += time.perf_counter() - began
        if following is None:
            return records, weights
        step, weights = following
        weights = tuple({k: v.detach().clone() for k, v in part.items()} for part in weights)
        records.append({"step": step, "seconds": spent, **measure(weights)})
        if spent > limit:
            return records, weights


def measurer(
    model: fr.Functional, x: Tensor, y: Tensor, dtype: torch.dtype | None, steps: int
) -> Callable[[Weights], dict[str, float]]:
    """Clean and PGD accuracy on some test images."""

    def measure(weights: Weights) -> dict[str, float]:
        params, buffers = weights
        predict = fr.autocast(model.with_buffers(buffers), dtype)
        return {
            "clean": share(evaluation.correct(predict, params, x, y)),
            "robust": share(evaluation.robust(
                predict, params, x, y, evaluation.Pgd(BALL, EPSILON / 4, steps))),
        }  # fmt: skip

    return measure


def share(which: Tensor) -> float:
    return float(which.float().mean())


def final_figures(
    model: fr.Functional, weights: Weights, dataset: Any, args: Any
) -> dict[str, Any]:
    """PGD-50-10 in float32, and AutoAttack if asked for."""
    params, buffers = weights
    predict, n = model.with_buffers(buffers), args.final_examples
    _, x, y = chosen_test_images(dataset, n, 0)
    found: dict[str, Any] = {
        "examples": n,
        "clean": share(evaluation.correct(predict, params, x, y)),
        "pgd50_10": share(evaluation.robust(
            predict, params, x, y, evaluation.Pgd(BALL, EPSILON / 4, steps=50, restarts=10))),
    }  # fmt: skip
    if args.autoattack:
        numbers, x, y = chosen_test_images(dataset, args.autoattack, 0)
        ensemble = autoattack(BALL, dataset.num_classes)
        outcome = evaluation.attack_all(predict, params, x, y, ensemble, numbers=numbers)
        found |= {"autoattack": share(outcome.robust), "autoattack_examples": len(y)}
    return found


class FlopCounter(TorchDispatchMode):
    """torch's own formulas for the operations of matrix products and convolutions, summed.

    (Its FlopCounterMode hooks modules, which fails inside torch.func.grad.)
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def utilisation(training: Training, seconds: float, device: str) -> dict[str, float]:
    """Floating-point operations of the steps run, against a measured matrix product.

    In the training's own precision: a CPU that only emulates bfloat16 is faster without.
    """
    update = training.update(lambda update, **_: update)
    totals = []
    for step in range(k := training.batches.options.cycle):
        with FlopCounter() as counter:
            update(training.state, training.batches(step))
        totals.append(counter.total)
    flops = sum(totals) / k
    n = 8192 if device.startswith("cuda") else 1024
    a = torch.randn(n, n, device=device, dtype=training.dtype)
    product = common.side_by_side({"": lambda: a @ a}, device, 20)[""]
    peak = 2 * n**3 / product
    achieved = flops * training.steps / seconds
    return {"flops_per_step": flops, "achieved": achieved, "peak": peak, "mfu": achieved / peak}


def reached(records: list[dict[str, float]], target: float) -> dict[str, float] | None:
    return next((r for r in records if r["robust"] >= target), None)


def one_seed(
    args: Any, dataset: data.Dataset, seed: int, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train the preset, then plain RS-FGSM for as long; ``keep`` is given each part as it comes."""
    given = {"preset": args.preset, "seed": seed, "device": args.device}
    given |= {k: v for k, v in (("epochs", args.epochs), ("model", args.model)) if v}
    if args.compile is not None:
        given["compile"] = args.compile
    options = CureTrain.filled(given)
    training = assemble(options, dataset)
    dtype = pick_dtype(options.precision, torch.device(args.device))
    compiling = [0.0]

    def prepare(update: fr.Update, *, state: fr.State, batch: Any) -> Any:
        began = time.perf_counter()
        with Reporter() as reporter:
            made = launched(
                update, state=state, batch=batch, options=options, compiles=True, reporter=reporter
            )
        compiling[0] += time.perf_counter() - began
        return made

    _, x, y = chosen_test_images(dataset, args.examples, 1)  # seed 0's are the final figures'
    measure = measurer(training.model, x, y, dtype, 10)
    per_epoch = training.batches.steps_per_epoch
    records, weights = timed(
        preset_training(training, max(1, per_epoch // args.parts), prepare), measure, args.device
    )
    seconds = records[-1]["seconds"]
    for record in records:
        record["epoch"] = record["step"] / per_epoch
    result: dict[str, Any] = {
        "seed": seed, "options": to_config(options), "seconds": seconds,
        "compile_seconds": compiling[0], "records": records,
        "reached": {f"{t:.1%}": reached(records, t) for t in TARGETS},
    }  # fmt: skip
    keep(result)
    result["utilisation"] = utilisation(training, seconds, args.device)
    result["final"] = final_figures(training.model, weights, dataset, args)
    keep(result)
    if not args.no_plain:
        result["plain"] = plain(args, dataset, options.model, seconds, seed)
        keep(result)
    return result


def plain(args: Any, dataset: Any, model_name: str, seconds: float, seed: int) -> dict[str, Any]:
    """Plain RS-FGSM whose schedule ends after about ``seconds``."""

    def module() -> nn.Module:
        return models.build(model_name, mean=dataset.mean, std=dataset.std, seed=seed).to(
            args.device
        )

    rehearsal = plain_training(module(), dataset, 20, 10, seed)
    first, second = timed(rehearsal, lambda _: {}, args.device)[0][:2]
    per_step = (second["seconds"] - first["seconds"]) / 10
    steps = max(20, round(seconds / per_step))
    per_epoch = len(dataset.y_train) // 128
    model = fr.functionalize(module())
    _, x, y = chosen_test_images(dataset, args.examples, 1)  # seed 0's are the final figures'
    measure = measurer(model, x, y, None, 10)
    stretch = max(1, per_epoch // args.parts)
    run = plain_training(module(), dataset, steps, stretch, seed)
    records, weights = timed(run, measure, args.device)
    for record in records:
        record["epoch"] = record["step"] / per_epoch
    final = final_figures(model, weights, dataset, args)
    return {"records": records, "seconds": records[-1]["seconds"], "final": final}


def draw(runs: list[dict[str, Any]], args: Any, path: Path) -> None:
    """Robust accuracy against seconds of training."""
    both = [
        (name, found["records"])
        for run in runs
        for name, found in ((f"preset {args.preset}", run), (PLAIN, run.get("plain")))
        if found is not None
    ]
    common.curves(
        path,
        [(name, [r["seconds"] for r in rs], [100 * r["robust"] for r in rs]) for name, rs in both],
        f"{runs[0]['options']['model']}, {common.device_name(args.device)}",
        "seconds of training", f"PGD-10 accuracy on {args.examples} test images (%)",
    )  # fmt: skip


def show(runs: list[dict[str, Any]], args: Any) -> None:
    """Print what was found, a line a training."""
    rows = []
    for run in runs:
        for name, found in ((args.preset, run), ("plain RS-FGSM", run.get("plain"))):
            if found is None:
                continue
            final = found["final"]
            times = [reached(found["records"], t) for t in TARGETS]
            rows.append((
                name, run["seed"], f"{found['seconds']:.1f}",
                f"{found['records'][-1]['epoch']:.1f}",
                f"{final['clean']:.1%}", f"{final['pgd50_10']:.1%}",
                f"{final['autoattack']:.1%}" if "autoattack" in final else "",
                *(f"{r['seconds']:.1f} s, {r['epoch']:.1f} epochs" if r else "not" for r in times),
            ))  # fmt: skip
    common.show(
        f"{runs[0]['options']['model']}, {common.device_name(args.device)}; final figures on "
        f"{args.final_examples} test images, 'reached' by PGD-10 on {args.examples}",
        ("training", "seed", "seconds", "epochs", "clean", "PGD-50-10", "AutoAttack",
         *(f"reached {t:.1%}" for t in TARGETS)),
        rows,
    )  # fmt: skip
    use = runs[0]["utilisation"]
    print(
        f"compiled or recorded in {runs[0]['compile_seconds']:.0f} s (apart); "
        f"{use['achieved'] / 1e12:.2f} TFLOP/s, {use['mfu']:.1%} of a matrix product's "
        f"{use['peak'] / 1e12:.2f}"
    )
    if len(runs) > 1:
        finals = [run["final"]["pgd50_10"] for run in runs]
        print(f"PGD-50-10 {statistics.mean(finals):.1%} ± {statistics.stdev(finals):.1%}")


def main() -> None:
    parser = common.arguments(__doc__)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--preset", default="fast" if on_gpu else "cpu")
    parser.add_argument("--model", help="another network than the preset's")
    parser.add_argument("--epochs", type=int, help="other than the preset's")
    parser.add_argument(
        "--seeds", type=int, default=1, help="one that compiles does so anew for each"
    )
    parser.add_argument("--examples", type=int, default=1000, help="test images while training")
    parser.add_argument("--final-examples", type=int, default=10_000 if on_gpu else 1000)
    parser.add_argument("--parts", type=int, default=2, help="measurements an epoch")
    parser.add_argument("--autoattack", type=int, default=0, help="on so many test images")
    parser.add_argument("--no-plain", action="store_true", help="leave out plain RS-FGSM")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="left out: as the preset says"
    )
    parser.add_argument("--train-examples", type=int, help="use so many training images")
    args = parser.parse_args()
    common.settle(args)
    if not on_gpu:
        print("no CUDA device is here: the GPU presets are skipped, this is the CPU's part")
    if args.autoattack:
        autoattack(BALL, 10)  # what is missing is missed before the training
    dataset = data.load("cifar10").subset(args.train_examples, None, 0).to(args.device)
    name = "fast_training" if args.preset in ("cpu", "fast") else f"fast_training-{args.preset}"
    runs: list[dict[str, Any]] = []

    def keep(run: dict[str, Any]) -> None:
        record = {"preset": args.preset, "seeds_asked": args.seeds, "runs": [*runs, run]}
        common.write(name, record, args.device, args.out)

    for seed in range(args.seeds):
        torch.compiler.reset()  # else a compiler counts all seeds' updates as one's
        runs.append(one_seed(args, dataset, seed, keep))
    show(runs, args)
    draw(runs, args, common.result_path(name, args.device, args.out).with_suffix(".png"))


if __name__ == "__main__":
    main()
