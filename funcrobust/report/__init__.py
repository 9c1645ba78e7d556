"""What a person sees, and what a run leaves behind: lines, bars, run folders, pictures.

Importing this package loads neither matplotlib nor torchvision; a plot loads matplotlib when
it is drawn. The function ``console()`` is in ``funcrobust.report.console``.
"""

from funcrobust.report.bars import Track
from funcrobust.report.console import Reporter
from funcrobust.report.plots import change_row, curves, image_grid
from funcrobust.report.runs import RunFolder

__all__ = [
    "Reporter",
    "RunFolder",
    "Track",
    "change_row",
    "curves",
    "image_grid",
]
