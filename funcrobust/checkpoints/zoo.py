"""Weights of RobustBench's model zoo: where they lie, how they are fetched, how they are named.

The library's own loader would unpickle a file by its own rules, and wait without end for a host
that does not answer. So it is asked for classes alone, see `models.robustbench_zoo`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from torch import Tensor, nn

from funcrobust.checkpoints.card import Card
from funcrobust.core.errors import FuncrobustError
from funcrobust.data.download import download
from funcrobust.data.progress import Progress
from funcrobust.files import name_and_path
from funcrobust.models.robustbench_zoo import PREFIX, ZooEntry, zoo_entry

DEFAULT_FOLDER = Path("models")
"""Where robustbench's ``load_model`` keeps what it fetches, unless told otherwise."""


def is_zoo(name: str | Path) -> bool:
    """Tell whether a checkpoint's name means a network of the zoo."""
    return str(name).startswith(PREFIX)


def named(text: str) -> tuple[ZooEntry, Path | None]:
    """Return the network of ``robustbench:NAME`` or ``robustbench:NAME=FOLDER``, and the folder."""
    model, folder = name_and_path(text, PREFIX.removesuffix(":"))
    return zoo_entry(f"{PREFIX}{model}"), folder


def locate(text: str, progress: Progress) -> tuple[ZooEntry, Path]:
    """Find ``robustbench:NAME`` or ``robustbench:NAME=FOLDER``, and fetch its file if need be.

    NAME is a network trained on CIFAR-10 against L∞, or ``DATASET/THREAT/NAME``. The file is
    ``FOLDER/DATASET/THREAT/NAME.pt``, as robustbench has it; FOLDER is ``models`` if left out.

    Raises `FuncrobustError` for a name that the zoo does not have or that is not read here, a
    folder that is not there, and a file that is neither there nor to be had.
    """
    entry, folder = named(text)
    if folder is not None and not os.path.isdir(folder):  # noqa: PTH112  (Path's raises on NUL)
        raise FuncrobustError(
            f"no such folder: {str(folder)!r}, in which {entry.place}.pt is to lie: make it, or "
            f"leave it out and {DEFAULT_FOLDER}/{entry.place}.pt is looked for"
        )
    path = (folder or DEFAULT_FOLDER) / f"{entry.place}.pt"
    if not path.is_file():
        _fetch(entry, path, progress)
    return entry, path


def _fetch(entry: ZooEntry, path: Path, progress: Progress) -> None:
    """Fetch a file as a whole or not at all, and make sure that it is no page that says why not."""
    host = urlsplit(entry.address).hostname
    progress(f"downloading {path.name}", 0, None)  # before a host is waited for
    try:
        there = next(folder for folder in path.parents if folder.is_dir())
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=there) as scratch:
            # No checksum of it is published.
            fetched = download(entry.address, Path(scratch, path.name), None, progress)
            with fetched.open("rb") as file:
                start = file.read(4)
            if not start.startswith((b"PK\x03\x04", b"\x80")):
                raise FuncrobustError(f"{host} sent something else than a PyTorch file")
            path.parent.mkdir(parents=True, exist_ok=True)
            fetched.replace(path)
    except (FuncrobustError, OSError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise FuncrobustError(
            f"no {path}, and fetching it failed ({reason}): fetch {entry.address} elsewhere and "
            f"put it there, or at FOLDER/{entry.place}.pt, and say {entry.model}=FOLDER"
        ) from error


# --- from the file's names to the class's ---------------------------------------------------------

_FIXED = ("mu", "sigma", "mean", "std", "normalize.mean", "normalize.std")
"""Normalisations that a class holds and an older file does not."""

_RENAMINGS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: name.removeprefix("model."),  # Chen2020Efficient's
    lambda name: f"model.{name}",  # ImageNet's, with normalisation as a layer before
)


def fitted(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Give a file's tensors the names that a class of the zoo has for them.

    What robustbench itself passes over is passed over: a normalisation that the class has fixed
    and the file lacks, and a file's parts of training alone. All else is left as it is.
    """
    expected = network.state_dict()

    def renamed(rename: Callable[[str], str]) -> dict[str, Tensor]:
        return {rename(name): tensor for name, tensor in tensors.items()}

    best = max(map(renamed, _RENAMINGS), key=lambda found: len(found.keys() & expected.keys()))
    constants = {
        name: tensor
        for name, tensor in expected.items()
        if name in _FIXED or name.endswith("num_batches_tracked")
    }
    kept = {n: t for n, t in best.items() if n in expected or not _passed_over(n, t)}
    return {**constants, **kept}


def _passed_over(name: str, tensor: Tensor) -> bool:
    """Tell what no logit depends on.

    A second head (Augustin et al. 2020), the scores of pruning (Diffenderfer et al. 2021), and a
    normaliser that does nothing, as our export to robustness writes it.
    """
    none = {"normalizer.new_mean": 0, "normalizer.new_std": 1}
    if name in none:
        return bool((tensor == none[name]).all())
    return name.startswith("model_preact_hl1.") or name.endswith(".scores")


# --- the card -------------------------------------------------------------------------------------


def zoo_card(entry: ZooEntry, path: Path) -> Card:
    """Return the card of a network of the zoo: its threat model is that of its leaderboard."""
    against_l2 = entry.threat_model == "L2"
    linf = (4 if entry.dataset == "imagenet" else 8) / 255
    measured = " (no ball: measured in that of L∞)" if entry.threat_model == "corruptions" else ""
    return Card(
        model=entry.model,
        num_classes=entry.num_classes,
        image_shape=(3, entry.image_size, entry.image_size),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        dataset=entry.dataset,
        constraint="l2" if against_l2 else "linf",
        epsilon=0.5 if against_l2 else linf,
        notes=f"robustbench's zoo, {entry.threat_model}{measured}, weights of {path.name}; it "
        "normalises by itself",
    )
