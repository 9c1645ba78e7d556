r"""Vision with one robust classifier: each application is ψ with another start, ball or loss.

An application is a file of this folder: its operator gives a `Perturbation`, ``(params, start, y,
*, center=None) -> x``, to be run, and to be differentiated in θ, as any other ψ; its ``TASK`` says
how it is shown and scored. Santurkar et al. 2019 (arXiv:1906.09453) is the source of all but
denoising; drawing with a ψ that restores follows Kadkhodaie & Simoncelli 2021 (arXiv:2007.13640).
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from funcrobust.core.errors import unknown_name

if TYPE_CHECKING:
    from funcrobust.core.tasks import Task


def names() -> tuple[str, ...]:
    """Return the applications by name, without loading any of their files."""
    files = (file.name for file in pkgutil.iter_modules(__path__))
    return tuple(sorted(name.replace("_", "-") for name in files))


def find(name: str) -> Task:
    """Return the application called ``name``; raise `FuncrobustError` if there is none."""
    if name not in names():
        raise unknown_name("application", name, names())
    task: Task = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").TASK
    return task
