"""The figures of a study: its JSON, its plots, its tables."""

from __future__ import annotations

import json
from collections.abc import Iterable
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from funcrobust import data
from funcrobust.commands.study.drawing import CLAIMED, GUIDANCE, MARKS, REMAIN, WAYS, WHOLE
from funcrobust.commands.study.options import Study
from funcrobust.commands.study.scores import KINDS, Bench, compared
from funcrobust.core.errors import FuncrobustError
from funcrobust.files import atomic_write
from funcrobust.reading import LARGEST_TEXT, parse_json, read_file
from funcrobust.report import plots
from funcrobust.running.classifier import Classifier
from funcrobust.running.processes import processes

Rows = dict[str, list[Any]]
"""By variant: what `score` found of each training."""


def save(rows: Rows, options: Study, base: Classifier, bench: Bench) -> None:
    """Write the figures and the plots after every network: a study can be cut short."""
    if not processes().first:
        return
    threads = {"threads": torch.get_num_threads()}  # which decide roundings alone
    every = merged(known(options, base, bench), rows)
    plain = _settings_of(options, base, bench) | threads | {"variants": every}
    atomic_write(options.out / "study.json", json.dumps(plain, indent=1) + "\n")
    for kind in KINDS:
        for way in WAYS:
            draw(every, kind, way, bench)
    bench.reporter.say(f"figures  {options.out / 'study.json'}")


def settings(
    options: Study, base: Classifier, dataset: data.Dataset, judges: Iterable[str],
    real: Iterable[Tensor],
) -> dict[str, Any]:  # fmt: skip
    """Return all that the figures depend on, besides the variants."""
    return {
        "dataset": dataset.name, "checkpoint": base.name, "sha256": base.sha256,
        "judges": list(judges),
        "l2_steps": list(MARKS), "gradient_steps": list(WHOLE),
        "claimed": list(CLAIMED), "images": options.images,
        "choosing": options.choosing, "examples": options.examples or len(dataset.y_test),
        "real": [len(x) for x in real],
        "attack_steps": options.attack_steps, "remain": REMAIN,
        "guidance": GUIDANCE, "seed": options.seed, "precision": options.precision,
    }  # fmt: skip


def _settings_of(options: Study, base: Classifier, bench: Bench) -> dict[str, Any]:
    return settings(options, base, bench.dataset, bench.judges, (bench.x_train, bench.x_test))


def require_same(
    options: Study, base: Classifier, dataset: data.Dataset, judges: Iterable[str]
) -> None:
    """Refuse, before the judges have looked at anything, what `known` would refuse."""
    if processes().first:
        _earlier(options, settings(options, base, dataset, judges, compared(dataset, options)))


def known(options: Study, base: Classifier, bench: Bench) -> Rows:
    """Return what an earlier study in the same folder found.

    Raises `FuncrobustError` if it had other settings, or cannot be read: writing would destroy it.
    """
    return _earlier(options, _settings_of(options, base, bench))


def _earlier(options: Study, now: dict[str, Any]) -> Rows:
    path = options.out / "study.json"
    if not path.exists():
        return {}
    try:
        found = dict(parse_json(read_file(path, most=LARGEST_TEXT), path))
        rows: Rows = {name: list(each) for name, each in found.pop("variants").items()}
    except (FuncrobustError, KeyError, TypeError, ValueError, AttributeError):
        raise FuncrobustError(
            f"{path} holds no study that can be read: use another --out, or delete it"
        ) from None
    found.pop("threads", None)
    if different := [n for n in now | found if n not in found or found[n] != now.get(n)]:
        raise FuncrobustError(
            f"{path} holds a study with another {', '.join(different)}: use another --out, or "
            "delete it"
        )
    return rows


def merged(before: Rows, rows: Rows) -> Rows:
    """Return both, what is new in place of the same seed's of before; no seed is dropped.

    A variant's trainings stand in the order of their seeds, from --seed on.
    """
    return before | {name: new + before.get(name, [])[len(new) :] for name, new in rows.items()}


def draw(rows: Rows, kind: str, way: str, bench: Bench) -> None:
    """Plot each judge's scores against the number of steps, a line a variant (its first seed).

    Of the images to choose by, from which every number of steps is drawn.
    """
    panels = {}
    for judge in bench.judges:
        for label, key in (("Fréchet distance", "frechet"), ("agreement", "agreement")):
            if key == "agreement" and not bench.judges[judge].network.classifies:
                continue
            panels[f"{label}, {judge}" if len(bench.judges) > 1 else label] = {
                name: [
                    (p["steps"], p["judges"][judge][key])
                    for p in found[0][kind]["choices"]
                    if p["way"] in ("start", way)
                ]
                for name, found in rows.items()
            }
    path = bench.options.out / f"{kind}-{way.lower()}.png"
    plots.lines(
        panels, path, x="steps", title=f"Images drawn from {kind} starts by {way} steps"
    )  # fmt: skip


def tables(rows: Rows, bench: Bench) -> None:
    """Print the accuracies, and for each kind of start each network at its best."""
    n = bench.options.examples or len(bench.dataset.y_test)
    robust = f"PGD-{bench.options.attack_steps}"
    bench.reporter.table(
        f"on {n} test images",
        ("", "clean", robust, "drift"),
        [
            (
                name, said([f["clean"] for f in found], percent=True),
                said([f["robust"] for f in found], percent=True), said([f["drift"] for f in found]),
            )
            for name, found in rows.items()
        ],
    )  # fmt: skip
    for kind in KINDS:
        start = rows["before"][0][kind]["points"][0]
        bench.reporter.table(
            f"from {kind} starts, each at its best way and number of steps; {bench.options.images} "
            "images; ± over trainings, or of one over bootstrap samples; stability: the largest "
            "distance over numbers of gradient steps by the least, on the images to choose by; "
            "copies: distance to the nearest training image, by that of test images",
            ("", "way", *_headings(bench), "stability", "copies"),
            [("start", "", *_scores([start], bench), "", "")]
            + [
                (
                    name, _way(found[0][kind]["best"]),
                    *_scores([f[kind]["best"] for f in found], bench),
                    said([f[kind]["stability"] for f in found]),
                    said([f[kind]["copies"]["features, median"] for f in found]),
                )
                for name, found in rows.items()
            ],
        )  # fmt: skip


def _headings(bench: Bench) -> list[str]:
    names = list(bench.judges)
    marks = [f" ({i + 1})" for i in range(len(names))] if len(names) > 1 else [""]
    return [f"{what}{mark}" for mark in marks for what in ("Fréchet", "agrees")]


def _scores(points: list[Any], bench: Bench) -> list[str]:
    found = []
    for judge in bench.judges:
        seen = [p["judges"][judge] for p in points]
        spread = seen[0].get("spread") if len(seen) == 1 else None
        found += [
            said([s["frechet"] for s in seen], spread),
            said([s["agreement"] for s in seen], percent=True) if "agreement" in seen[0] else "",
        ]
    return found


def _way(best: Any) -> str:
    return f"{best['steps']} {best['way']}"


def said(values: list[float], spread: float | None = None, *, percent: bool = False) -> str:
    """Write a mean, with its standard deviation over trainings, or the spread given."""
    spread = stdev(values) if len(values) > 1 else spread
    if percent:
        return f"{mean(values):.1%}" + (f" ± {100 * spread:.1f}" if spread is not None else "")
    return f"{mean(values):.2f}" + (f" ± {spread:.2f}" if spread is not None else "")
