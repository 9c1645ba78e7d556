"""Worker processes that decode: asked for images by number, they give them in the order asked."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from funcrobust.core.errors import FuncrobustError
from funcrobust.core.randomness import derive_seed
from funcrobust.data.streaming.encoded import Encoded

_M_MMAP_THRESHOLD = -3
"""glibc's, in malloc.h."""

CHUNK = 16
"""Images that a worker decodes at a time: a batch is shared by all of them."""


class Request(NamedTuple):
    """Some images, and the step whose random crops they get."""

    numbers: list[int]
    step: int = 0


def requests(numbers: Tensor, step: int = 0) -> list[Request]:
    """Cut the numbers of a batch's images (B,) into what a worker decodes at a time."""
    return [Request(part.tolist(), step) for part in numbers.split(CHUNK)] if len(numbers) else []


class Augment(NamedTuple):
    """Random crops, and flips where an image may be ``mirrored``, counted from ``seed``."""

    seed: int
    mirrored: bool = True


class Decoder:
    """What a worker does."""

    def __init__(self, encoded: Encoded, size: int, augment: Augment | None) -> None:
        # Imported before the workers start, so that they need not: it takes seconds.
        from funcrobust.data.streaming import pixels

        self._encoded, self._augment, self._pixels = encoded, augment, pixels
        self._cut = (
            pixels.centred(size)
            if augment is None
            else pixels.at_random(size, mirrored=augment.mirrored)
        )

    def __getitem__(self, request: Request) -> Tensor | str:
        """Return images (n, 3, S, S), uint8, or what is wrong with one.

        An exception would come out of a worker as a page of text.
        """
        try:
            return torch.stack([self._one(number, request.step) for number in request.numbers])
        except FuncrobustError as error:
            return str(error)

    def _one(self, number: int, step: int) -> Tensor:
        image = self._pixels.decode(self._encoded.read(number), self._encoded.name(number))
        if self._augment is None:
            return self._cut(image)
        seed = derive_seed(self._augment.seed, f"augment/{number}", step)
        return self._pixels.seeded(self._cut, image, seed)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the module, for processes that are not forked."""
        return {k: v for k, v in self.__dict__.items() if k != "_pixels"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from funcrobust.data.streaming import pixels

        self.__dict__.update(state, _pixels=pixels)


def loader(
    decoder: Decoder, wanted: Iterable[Request], workers: int, *, ahead: int, pinned: bool = False
) -> DataLoader[Any]:
    """Return what gives each request's images in turn; ``ahead``: requests under way at a time.

    The workers (0: none, the process itself decodes) live as long as it does.
    """
    options: dict[str, Any] = {}
    if workers:
        options = {"prefetch_factor": -(-ahead // workers), "persistent_workers": True}
    return DataLoader(
        decoder,  # type: ignore[arg-type]
        sampler=wanted, batch_size=None, collate_fn=_as_it_is, num_workers=workers,
        worker_init_fn=_prepared, pin_memory=pinned,
        generator=torch.Generator(),  # not the global one, which it would draw from
        **options,
    )  # fmt: skip


def begun(loading: DataLoader[Any]) -> Iterator[Any]:
    """Begin (again) with what the loader's sampler now gives."""
    with _quiet_deaths():
        return iter(loading)


def images(given: Iterator[Any]) -> Tensor:
    """Take the next request's images; raises `FuncrobustError` for a bad one, or a dead worker."""
    try:
        part = next(given)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise FuncrobustError(
            "a worker process that decodes images has died: killed, or out of memory or of shared "
            "memory (/dev/shm)? Use fewer --workers, or --workers 0"
        ) from error
    if isinstance(part, str):
        raise FuncrobustError(part)
    assert isinstance(part, Tensor)
    return part


def usual_workers() -> int:
    """Return a worker for each processor but one, at most 8."""
    here = getattr(os, "sched_getaffinity", None)  # Linux alone says which are ours
    processors = len(here(0)) if here else os.cpu_count() or 1
    return min(8, max(1, processors - 1))


def _as_it_is(part: Any) -> Any:
    return part


def room(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a uint8 tensor to be filled.

    On a CPU by numpy's allocation: torch's, which is aligned, makes glibc before 2.38 take new
    memory for each of many large tensors, though the ones before are free.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=torch.uint8, device=device)
    return torch.from_numpy(np.empty(shape, np.uint8))


def _prepared(_: int) -> None:
    """Prepare a worker: Ctrl-C, which all processes get, is the run's; its memory stays flat."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run may want images yet, to end as it should
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:  # see `room`; what is mapped apart is given back
        mallopt(_M_MMAP_THRESHOLD, 65536)


@contextmanager
def _quiet_deaths() -> Iterator[None]:
    """Put back what a death of a child does, which torch changes.

    Its handler raises wherever the run happens to be, in the middle of an update. Without it the
    next look for images says so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
