"""The options of ``runs``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from funcrobust.core.errors import FuncrobustError
from funcrobust.running.groups import Figures
from funcrobust.running.marks import Flag, Lies, Where
from funcrobust.running.option import require_once
from funcrobust.running.options import only_with
from funcrobust.running.places import AUTO, DatasetName, Page, require_there


@dataclass(frozen=True, kw_only=True)
class Runs(Figures):
    """Runs."""

    folders: tuple[str, ...] = field(default=(), kw_only=False)
    """Two run folders to compare, or their names in --out; left out: a table of all in --out."""
    out: Annotated[Path, Where()] = Path("runs")
    """Where run folders are."""
    page: Annotated[
        Page | None, Flag(off="--no-page"), Where(), only_with(folders=...)
    ] = AUTO  # fmt: skip
    """Write a page that compares the two there; auto is comparison.html here, and none with
    --json -."""
    images: Annotated[bool, only_with(folders=...)] = True
    """Show on it the same test images under both networks."""
    model: Annotated[tuple[str, ...], only_with(folders=...)] = ()
    """The factory of a network of your own, which a run folder may not choose; again and again."""
    dataset: Annotated[DatasetName | None, only_with(folders=...)] = None
    """A name, FILE.npz or FOLDER; left out: the data that their networks were made for."""
    data_dir: Annotated[
        Path | None, Where(), Lies(require_there), only_with(folders=...)
    ] = None  # fmt: skip
    """A local folder that holds their published dataset."""

    def check(self) -> None:
        """Refuse one run, and more than two."""
        super().check()
        if len(self.folders) not in (0, 2):
            raise FuncrobustError(
                f"runs compares two, got {len(self.folders)}: name two run folders, or none for a "
                "table of all"
            )
        require_once("--model", self.model)
        about_images = bool(self.model or self.dataset or self.data_dir)
        if not self.paged and (not self.images or about_images):
            raise FuncrobustError(
                "--no-images, --model, --dataset and --data-dir do nothing here: they are about "
                "the page"
            )

    def require_places(self) -> None:
        """Refuse a folder that is named and not there; the usual one may not have been made yet."""
        super().require_places()
        if "out" in self._said:
            require_there(self.out)

    @property
    def paged(self) -> bool:
        """Whether a page is to be written."""
        asked = self.page is not None and not (self.prints_figures and self.page == AUTO)
        return asked and bool(self.folders)
