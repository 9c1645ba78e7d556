"""Places that options name: what a stored run may choose of them, what must be there.

Code and places outside a run's folder are not for its config.json to choose (`Vouched`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from funcrobust.core.errors import FuncrobustError, did_you_mean
from funcrobust.files import place_of
from funcrobust.reading import user_path
from funcrobust.running.catalogue import files_in
from funcrobust.running.marks import Acts, Choices, Lies, Spelled, Vouched, Where
from funcrobust.running.option import options_of
from funcrobust.running.options import Options

if TYPE_CHECKING:
    from funcrobust.report.console import Reporter

# --- what a file may not choose ------------------------------------------------------------------


def _is_code(value: str, _folder: Path) -> bool:
    from funcrobust.models.registry import names_code

    return names_code(value)


def _is_elsewhere(value: str | Path, folder: Path) -> bool:
    """Tell whether a place is outside a run's folder."""
    try:
        place, own = (os.path.realpath(user_path(path)) for path in (value, folder))
        return os.path.commonpath([place, own]) != own
    except ValueError:  # no path at all, or another drive of Windows
        return True


def _is_others_checkpoint(value: str, folder: Path) -> bool:
    from funcrobust.checkpoints import resolve, shipped

    try:
        return resolve(value) not in shipped().values() and _is_elsewhere(value, folder)
    except FuncrobustError:  # not there, or of RobustBench's zoo
        return True


def _is_own_data(value: str, folder: Path) -> bool:
    return value not in files_in("data/sets") and _is_elsewhere(value, folder)


MAX_GIB = 2.0


def is_much(value: float, _folder: Path) -> bool:
    """Tell whether data may be more than is usual."""
    return value > MAX_GIB


def _reads_own(options: Any) -> bool:
    name = getattr(options, "dataset", None)
    own = bool(name) and name not in files_in("data/sets")
    return own or bool(getattr(options, "image", ()))


Decoded = Acts(_reads_own, lambda _: "it goes with data of your own, FILE.npz or FOLDER")
# --- what must be there, and what can be written --------------------------------------------------


def require_there(place: Path) -> None:
    """Raise unless a file or folder is there."""
    if not os.path.exists(place):  # noqa: PTH110  (Path's raises on too long a name)
        raise FuncrobustError(f"no such file or folder: {place}")


def require_run(place: Path) -> None:
    """Raise unless a folder is a run's."""
    from funcrobust.report.runs import CONFIG

    if not os.path.lexists(place / CONFIG):
        raise FuncrobustError(f"{place} is not a run folder: there is no {CONFIG} in it")


def require_writable(path: Path) -> None:
    """Raise unless a file can be written there, with folders that are to be made: but for ``-``."""
    if str(path) == "-":
        return
    if os.path.isdir(path):  # noqa: PTH112
        raise FuncrobustError(f"cannot write {path}: it is a folder, name a file in it")
    _require_room_for(path, os.path.exists(path))  # noqa: PTH110


def picture_place(named: Path | None, usual: str, reporter: Reporter) -> Path:
    """Return where a picture goes; say it if one that is there will be replaced.

    Raises `FuncrobustError` if none is named and the usual name is taken, and where nothing can be
    written: of a name that nobody gave, nobody else has looked.
    """
    png = place_of(named, usual, flag="--png ")
    require_writable(png)
    say_replaced(png, reporter)
    return png


def say_replaced(file: Path | None, reporter: Reporter) -> None:
    """Say, before any work, that a file which is there will be replaced; ``-`` is none."""
    if file is not None and str(file) != "-" and os.path.lexists(file):
        reporter.say(f"{file} is there already, and will be replaced")


def require_folder(path: Path) -> None:
    """Raise unless there is such a folder to write in, or one can be made."""
    _require_room_for(path / "x", False)


def require_room(place: Path) -> None:
    """Raise unless a file can be written there, or in the folder that is there."""
    (require_folder if os.path.isdir(place) else require_writable)(place)  # noqa: PTH112


def _require_room_for(path: Path, there: bool) -> None:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # too long a name, say
        raise FuncrobustError(f"cannot write {path}: {error.strerror or error}") from error
    above = next((p for p in path.absolute().parents if os.path.lexists(p)), path)
    if not os.path.isdir(above) or not os.access(above, os.W_OK | os.X_OK):  # noqa: PTH112
        raise FuncrobustError(f"cannot write {path}: {above} is no folder that you may write to")
    if there and not os.path.isfile(path):  # noqa: PTH113
        raise FuncrobustError(f"cannot write {path}: it is no plain file")


def require_apart(options: Options) -> None:
    """Raise where two options would write one file, or one would write what another reads.

    Nor is a file written that makes a folder a run: by whatever name it is reached.
    """
    places = [
        (option.flag, mark.check, one)
        for name, option in options_of(type(options)).items()
        for mark in option.marks
        if isinstance(mark, Lies) and (value := getattr(options, name)) is not None
        for one in (value if option.several else (value,))
    ]
    taken = {
        os.path.realpath(place): f"what {flag} reads"
        for flag, check, one in places
        for place in _read(check, one)
    }
    for flag, check, one in places:
        if check not in WRITES or str(one) in ("-", str(AUTO)) or os.path.isdir(one):  # noqa: PTH112
            continue
        place = os.path.realpath(one)
        if (other := taken.get(place)) is not None:
            raise FuncrobustError(f"{flag}: {one} is {other}, too: choose another file")
        if _is_of_a_run(place):
            raise FuncrobustError(f"{flag}: {one} is a file of a run, which would be lost")
        taken[place] = f"what {flag} writes"


def _read(check: object, named: Any) -> Iterator[Path]:
    """Yield the files that an option reads."""
    from funcrobust.checkpoints import is_zoo, resolve

    if check is require_there or (check is _require_dataset and named not in files_in("data/sets")):
        yield user_path(named)
    elif check is _require_checkpoint and not is_zoo(named):
        yield resolve(named)


def _is_of_a_run(place: str) -> bool:
    from funcrobust.checkpoints.locate import CHECKPOINT, STATE, STATE_BEFORE, STATE_RECORDED
    from funcrobust.report.runs import CONFIG, METRICS, RESULT

    folder, name = os.path.split(place)
    states = (STATE, STATE_BEFORE, STATE_RECORDED)
    known = name in (CONFIG, METRICS, RESULT, CHECKPOINT, *states)
    return known and os.path.exists(os.path.join(folder, CONFIG))  # noqa: PTH110, PTH118


def _require_dataset(name: str) -> None:
    known = files_in("data/sets")
    if name not in known and not os.path.exists(user_path(name)):  # noqa: PTH110
        hint = did_you_mean(name, known)
        raise FuncrobustError(
            f"no dataset {name!r}{hint}: choose from {', '.join(known)}, or name a .npz file or a "
            "folder of images that is there"
        )


def _require_checkpoint(name: str) -> None:
    from funcrobust.checkpoints import is_zoo, resolve

    if not is_zoo(name):
        resolve(name)


def _require_png(text: str) -> None:
    if not text.lower().endswith(".png"):
        raise FuncrobustError(f"--png must name a .png file, got {text}")


def _require_html(text: str) -> None:
    if text != str(AUTO) and not text.lower().endswith(".html"):
        raise FuncrobustError(f"--page must name a .html file, got {text}")


def _require_page_place(path: Path) -> None:
    if path != AUTO:
        require_writable(path)


AUTO = Path("auto")
"""A `Page` where the command thinks it belongs."""
Factory = Vouched(_is_code)
Place = Vouched(_is_elsewhere)
CheckpointName = Annotated[str, Vouched(_is_others_checkpoint), Lies(_require_checkpoint)]
DatasetName = Annotated[
    str, Choices(partial(files_in, "data/sets"), all_there_is=False), Vouched(_is_own_data),
    Lies(_require_dataset),
]  # fmt: skip
Picture = Annotated[Path, Spelled(_require_png), Lies(require_writable)]
Output = Annotated[Path, Lies(require_writable)]
WRITES = (require_writable, _require_page_place, require_room)
Page = Annotated[Path, Spelled(_require_html), Lies(_require_page_place)]
Folder = Annotated[Path, Where(), Lies(require_folder)]
