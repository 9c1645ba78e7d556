"""The frame that every SVG curve of a page stands in, in the units of its picture."""

from __future__ import annotations

from typing import ClassVar


class Frame:
    """A picture of ``width`` × ``height`` and the frame within it.

    ``edge`` is the share of the frame that stays free on either side of a curve.
    """

    width: ClassVar[int] = 360
    height: ClassVar[int] = 230
    left: ClassVar[int] = 50
    right: ClassVar[int] = 346
    top: ClassVar[int] = 12
    bottom: ClassVar[int] = 184
    edge: ClassVar[float] = 0.03

    @classmethod
    def across(cls, share: float) -> float:
        """Return where a share of the way from the first to the last number stands."""
        return cls.left + (cls.right - cls.left) * (cls.edge + (1 - 2 * cls.edge) * share)

    @classmethod
    def up(cls, share: float) -> float:
        """Return the height of a share of the vertical axis."""
        return cls.bottom - (cls.bottom - cls.top) * share
