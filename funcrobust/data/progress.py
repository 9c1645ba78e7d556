"""How a slow read tells its caller how far it is; drawing a bar is the caller's business."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as ``progress(description, done, total)``; ``total`` is None while unknown."""

    def __call__(self, description: str, done: int, total: int | None, /) -> None:
        """Show that ``done`` of ``total`` (bytes) of what ``description`` names is there."""


def silent(_description: str, _done: int, _total: int | None, /) -> None:
    """Show nothing."""
