"""Robust accuracy of one classifier under PGD: this library, torchattacks, foolbox, robustness.

    python benchmarks/attack_throughput.py [--device cpu] [--examples 100] [--repeats 3]

What is timed is the task a user has: classifier and images in, robust accuracy out. Every row
attacks the shipped classifier on the same CIFAR-10 test images, chosen at random, all in one batch,
with the same ball, step size, steps and restarts. A weaker attack would be faster, so the accuracy
that each one finds is shown: the rows of a table must agree, but for the random starts.

- Ours is `robust` of funcrobust.core.evaluation: an example that is fooled once is not attacked
  again.
- The libraries attack the whole batch in every restart, and the worst one counts; they have no
  switch for anything else. They get the classifier as ``checkpoints.load`` returns it.
- Two more rows of ours tell where the time goes: nothing dropped in torch's default memory
  layout (the libraries' own work), and bfloat16 in channels_last (``--precision bf16``).

Takes about 6 minutes on 2 CPU cores. A library that is not installed is left out, and said so.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import common
import torch
from torch import Tensor, nn

import funcrobust as fr
from funcrobust import checkpoints, data
from funcrobust.core import evaluation
from funcrobust.core.errors import FuncrobustError
from funcrobust.models import import_robustness
from funcrobust.running.dataset import chosen_test_images

CHECKPOINT = "cifar10-linf-tiny"
OURS = "funcrobust"
LIBRARIES = ("torchattacks", "foolbox", "robustness")


@dataclass(frozen=True)
class Attack:
    """PGD in one ball."""

    norm: str
    epsilon: float
    step_size: float
    steps: int
    restarts: int

    @property
    def ball(self) -> fr.Ball:
        return {"linf": fr.linf, "l2": fr.l2}[self.norm](self.epsilon)


# The long one last: the others have warmed every kernel up for it.
ATTACKS = {
    "PGD-10": Attack("linf", 8 / 255, 2 / 255, 10, 1),
    "L2-PGD-50": Attack("l2", 0.5, 0.1, 50, 1),
    "PGD-50-10": Attack("linf", 8 / 255, 2 / 255, 50, 10),
}


@dataclass(frozen=True)
class Case:
    """What all are given."""

    module: nn.Module
    card: checkpoints.Card
    x: Tensor
    y: Tensor

    def worst(self, attack: Callable[[], Tensor], restarts: int) -> float:
        """Robust accuracy under the worst of several runs of an attack."""
        alive = torch.ones_like(self.y, dtype=torch.bool)
        for _ in range(restarts):
            found = attack()
            with torch.no_grad():
                alive &= self.module(found).argmax(1) == self.y
        return float(alive.float().mean())


Contestant = Callable[[Case, Attack], Callable[[], float]]
"""Sets an attack up; calling what it returns runs it, and gives the robust accuracy."""


# --- ours ---------------------------------------------------------------------------------------


def ours(dtype: torch.dtype | None = None) -> Contestant:
    """The library as it is meant to be used, float32 unless told otherwise."""

    def contestant(case: Case, attack: Attack) -> Callable[[], float]:
        model = fr.functionalize(case.module).to(case.x.device, torch.channels_last)
        predict = fr.autocast(model.predict, dtype)

        def run() -> float:
            pgd = evaluation.Pgd(attack.ball, attack.step_size, attack.steps, attack.restarts)
            alive = evaluation.robust(
                predict, model.params, case.x, case.y, pgd, batch_size=len(case.x)
            )
            return float(alive.float().mean())

        return run

    return contestant


def ours_undropped(case: Case, attack: Attack) -> Callable[[], float]:
    """The library's PGD run as the others run theirs: every example, every step, every restart."""
    model = fr.functionalize(case.module)
    pgd = fr.pgd(
        fr.cross_entropy(model.predict), attack.ball, step_size=attack.step_size, steps=attack.steps
    )
    draw = fr.generator(0, "benchmark", device=case.x.device)

    def once() -> Tensor:
        start = attack.ball.sample(case.x, draw)
        return pgd(model.params, start, case.y, center=case.x)

    return lambda: case.worst(once, attack.restarts)


# --- the libraries, as their own documentation uses them ----------------------------------------


def torchattacks(case: Case, attack: Attack) -> Callable[[], float]:
    library = importlib.import_module("torchattacks")
    kind = {"linf": library.PGD, "l2": library.PGDL2}[attack.norm]
    pgd = kind(case.module, attack.epsilon, attack.step_size, attack.steps, random_start=True)
    return lambda: case.worst(lambda: pgd(case.x, case.y), attack.restarts)


def foolbox(case: Case, attack: Attack) -> Callable[[], float]:
    library = importlib.import_module("foolbox")
    kind = {"linf": library.attacks.LinfPGD, "l2": library.attacks.L2PGD}[attack.norm]
    pgd = kind(abs_stepsize=attack.step_size, steps=attack.steps, random_start=True)
    repeated = pgd.repeat(attack.restarts)
    model = library.PyTorchModel(case.module, bounds=(0, 1), device=case.x.device)

    def run() -> float:
        *_, fooled = repeated(model, case.x, case.y, epsilons=attack.epsilon)
        return 1.0 - float(fooled.float().mean())

    return run


def robustness(case: Case, attack: Attack) -> Callable[[], float]:
    """Its model normalises by itself, so it gets the network inside ours.

    Its own ``random_restarts`` keeps the last restart instead of the worst (``~`` of a uint8 mask
    is nonzero everywhere), so it is called once a restart, for the same work.
    """
    library = import_robustness("attacker")
    mean_std = SimpleNamespace(mean=torch.tensor(case.card.mean), std=torch.tensor(case.card.std))
    model = library.AttackerModel(_WithLatent(case.module.net), mean_std).to(case.x.device).eval()
    threat = {"constraint": {"linf": "inf", "l2": "2"}[attack.norm], "eps": attack.epsilon}

    def once() -> Tensor:
        _, found = model(
            case.x, case.y, make_adv=True, **threat, step_size=attack.step_size,
            iterations=attack.steps, random_start=True,
        )  # fmt: skip
        return found

    def run() -> float:
        with _cuda_calls_ignored(case.x.device):
            return case.worst(once, attack.restarts)

    return run


class _WithLatent(nn.Module):
    """Takes the arguments that robustness hands to every network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return self.net(x)


@contextlib.contextmanager
def _cuda_calls_ignored(device: torch.device) -> Iterator[None]:
    """robustness calls ``.cuda()`` whatever the machine."""
    if device.type == "cuda":
        yield
        return
    original = torch.Tensor.cuda
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.cuda = original  # type: ignore[method-assign]


# --- the comparison -----------------------------------------------------------------------------

CONTESTANTS: dict[str, Contestant] = {
    OURS: ours(),
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "robustness": robustness,
    "funcrobust, nothing dropped, default layout": ours_undropped,
    "funcrobust, bf16": ours(torch.bfloat16),
}


def compare(case: Case, attack: Attack, repeats: int, warmup: int) -> dict[str, dict[str, Any]]:
    """Time all on one attack: a row of figures each."""
    accuracy: dict[str, float] = {}
    calls: dict[str, Callable[[], None]] = {}
    rows: dict[str, dict[str, Any]] = {}

    def keeping(name: str, run: Callable[[], float]) -> Callable[[], None]:
        return lambda: accuracy.__setitem__(name, run())

    for name, contestant in CONTESTANTS.items():
        try:
            calls[name] = keeping(name, contestant(case, attack))
        except (ImportError, FuncrobustError):  # the latter is import_robustness's
            rows[name] = {"missing": "not installed"}
    times = common.side_by_side(calls, case.x.device, repeats, warmup)
    for name, time in times.items():
        rows[name] = {
            "seconds": time, "images_per_second": len(case.x) / time,
            "robust_accuracy": accuracy[name], "time_over_ours": time / times[OURS],
        }  # fmt: skip
    return {name: rows[name] for name in CONTESTANTS}


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The fastest library against ours, and how far the robust accuracies lie apart."""
    ran = {name: row for name, row in rows.items() if "seconds" in row}
    libraries = [name for name in LIBRARIES if name in ran]
    accuracies = [row["robust_accuracy"] for row in ran.values()]
    found: dict[str, Any] = {"accuracy_spread": max(accuracies) - min(accuracies)}
    if libraries:
        fastest = min(libraries, key=lambda name: ran[name]["seconds"])
        found |= {
            "fastest_library": fastest,
            "fastest_library_over_ours": ran[fastest]["time_over_ours"],
            # Above 0: ours leaves more examples standing, so its attack is the weaker one.
            "ours_minus_strongest_library": ran[OURS]["robust_accuracy"]
            - min(ran[name]["robust_accuracy"] for name in libraries),
        }
    return found


def show(name: str, attack: Attack, rows: dict[str, dict[str, Any]], found: dict[str, Any]) -> None:
    """Print one attack's table."""
    cells = [
        (name, row["missing"], "", "", "") if "missing" in row else (
            name, f"{row['seconds']:.2f}", f"{row['images_per_second']:.1f}",
            f"{row['robust_accuracy']:.2%}", f"{row['time_over_ours']:.2f}",
        )
        for name, row in rows.items()
    ]  # fmt: skip
    if "fastest_library" in found:
        ratio = f"{found['fastest_library_over_ours']:.2f}"
        cells.append((f"fastest library ({found['fastest_library']}) / ours", "", "", "", ratio))
    title = f"{name}: {attack.norm} ε = {attack.epsilon:.4g}, step {attack.step_size:.4g}, " + (
        f"{attack.steps} steps, {attack.restarts} restart(s)"
    )
    columns = ("", "seconds", "images/s", "robust accuracy", "time / ours")
    common.show(title, columns, cells)
    print(f"robust accuracies lie within {found['accuracy_spread']:.2%} of one another\n")


def arguments() -> Any:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.set_defaults(repeats=3)
    parser.add_argument("--examples", type=int, help="test images (100 on a CPU, else 1000)")
    parser.add_argument("--warmup", type=int, default=1, help="untimed rounds of the short attacks")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    return parser.parse_args()


def main() -> None:
    args = arguments()
    common.settle(args)
    examples = args.examples or (1000 if args.device.startswith("cuda") else 100)
    module, card = checkpoints.load(CHECKPOINT)
    _, x, y = chosen_test_images(data.load("cifar10"), examples, 0)
    case = Case(module.to(args.device), card, data.as_float(x).to(args.device), y.to(args.device))
    results = dict[str, Any]()
    record = {
        "checkpoint": CHECKPOINT, "examples": examples, "repeats": args.repeats, "attacks": results,
    }  # fmt: skip
    for name in (name for name in ATTACKS if name in args.attacks):
        attack = ATTACKS[name]
        # Ten restarts warm up by themselves after the shorter attacks, and are long.
        warmup = 0 if attack.restarts > 1 and len(args.attacks) > 1 else args.warmup
        rows = compare(case, attack, args.repeats, warmup)
        found = summary(rows)
        show(name, attack, rows, found)
        results[name] = {"attack": asdict(attack), "rows": rows, **found}
        common.write("attack_throughput", record, args.device, args.out)


if __name__ == "__main__":
    main()
