"""Does torch.compile get the trainings' updates right here, and how long does it take?

    python benchmarks/compile_check.py [--presets paper-short strong] [--device cuda]

Each preset's update, as ``cure-train`` builds it, is compiled into one graph and compared with the
same update in float64 (`fr.compile_checked`). A verdict a row; the figures are written after each.
"""

from __future__ import annotations

import time
from typing import Any

import common
import torch

import funcrobust as fr
from funcrobust import data
from funcrobust.commands.cure_train import CureTrain
from funcrobust.commands.cure_train.assemble import assemble
from funcrobust.core.errors import FuncrobustError


def checked(preset: str, args: Any, dataset: data.Dataset) -> dict[str, Any]:
    """Compile and check the parts of one preset's update: with regularisers, and without."""
    given: dict[str, Any] = {"preset": preset, "device": args.device}
    given |= {"model": args.model} if args.model else {}
    given |= {"batch_size": args.batch} if args.batch else {}
    training = assemble(CureTrain.filled(given), dataset)
    parts: list[dict[str, Any]] = []

    def prepare(update: fr.Update, *, state: fr.State, batch: Any) -> fr.Update:
        began = time.perf_counter()
        try:
            fr.compile_checked(update, state, batch)
            verdict = "right"
        except FuncrobustError as error:
            verdict = str(error)
        except Exception as error:  # the compiler's own
            verdict = f"does not compile: {type(error).__name__}: {str(error).splitlines()[:1]}"
        parts.append({"verdict": verdict, "seconds": time.perf_counter() - began})
        return update

    training.update(prepare)
    return {"preset": preset, "precision": training.dtype and str(training.dtype), "parts": parts}


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["paper-short", "strong"])
    parser.add_argument("--model", help="another network than the preset's")
    parser.add_argument("--batch", type=int, help="another batch size")
    args = parser.parse_args()
    common.settle(args)
    dataset = data.load("cifar10").to(args.device)
    rows = []
    for preset in args.presets:
        rows.append(checked(preset, args, dataset))
        common.write("compile_check", {"rows": rows}, args.device, args.out)
    common.show(
        f"compiled updates, {common.device_name(args.device)}, torch {torch.__version__}",
        ("preset", "precision", "part", "seconds", "verdict"),
        [
            (row["preset"], row["precision"] or "fp32", number, f"{part['seconds']:.0f}",
             part["verdict"][:200])
            for row in rows for number, part in enumerate(row["parts"], 1)
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
