"""Fetch a dataset into the cache, verify it, and say what it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt, Le

from funcrobust.core.errors import FuncrobustError
from funcrobust.running.marks import Lies, Where
from funcrobust.running.options import Options
from funcrobust.running.places import MAX_GIB, DatasetName, Decoded, require_there

if TYPE_CHECKING:
    from funcrobust.data import Dataset
    from funcrobust.report.console import Reporter


@dataclass(frozen=True, kw_only=True)
class Data(Options):
    """Data."""

    name: DatasetName = field(default="cifar10", kw_only=False)
    """A name, FILE.npz or FOLDER."""
    data_dir: Annotated[Path | None, Where(), Lies(require_there)] = None
    """A local folder that holds a published dataset."""
    max_data_gib: Annotated[float, Gt(0), Le(2**20), Decoded] = MAX_GIB
    """What images of your own may be at most when they are decoded. More in a FOLDER are streamed,
    more in a file is refused."""

    @property
    def dataset(self) -> str:
        """What other commands call it."""
        return self.name


def run(options: Data, reporter: Reporter) -> Dataset:
    """Load a dataset (fetching it if need be) and show what it holds."""
    from funcrobust import data

    loaded = data.load(
        options.name, folder=options.data_dir, progress=reporter.progress_callback(),
        max_bytes=int(options.max_data_gib * 2**30),
    )  # fmt: skip
    if not len(loaded.y_train):
        raise FuncrobustError(f"{options.name} has no training images")
    shape = "x".join(map(str, loaded.image_shape))
    mean, std = (" ".join(f"{v:.4f}" for v in each) for each in (loaded.mean, loaded.std))
    reporter.table(
        f"{loaded.name} ({loaded.source})",
        ("split", "images", "shape", "mean", "standard deviation"),
        [
            ("train", str(len(loaded.y_train)), shape, mean, std),
            ("test", str(len(loaded.y_test)), shape, "", ""),
        ],
    )
    reporter.say(f"classes: {', '.join(loaded.class_names)}")
    reporter.say(f"cache: {data.default_cache()}")
    return loaded
