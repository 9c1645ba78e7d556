"""Pictures of a run: curves of its metrics, grids of images before and after.

Figures are made without pyplot, so nothing here has global state or opens a window, and
matplotlib is loaded only when something is drawn.
"""

from funcrobust.report.plots.images import change_row, image_grid
from funcrobust.report.plots.series import bands, curves, lines

__all__ = ["bands", "change_row", "curves", "image_grid", "lines"]
