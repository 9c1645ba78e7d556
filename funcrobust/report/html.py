"""Data into HTML: one file that asks nothing of any network, and runs no script.

All text may come from a file that nobody vouches for: it is escaped, and characters that cannot be
seen are spelled out.
"""

from __future__ import annotations

import base64
import datetime
import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from funcrobust.core.errors import FuncrobustError, visible
from funcrobust.environment import own_version
from funcrobust.report.records import percent

if TYPE_CHECKING:
    from torch import Tensor

Mark = Literal["good", "open", "bad", "none"]
"""How a word is set off: by colour and by a sign."""

PNG = b"\x89PNG\r\n\x1a\n"
"""What a PNG begins with."""


def render(template: str, page: object, filters: Mapping[str, Callable[..., Any]]) -> str:
    """Return a template of this folder, filled with ``page``."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("funcrobust", "report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_visible,
    )  # fmt: skip
    environment.filters |= {
        "percent": percent,
        "data": png_uri,
        "png_file": png_file_uri,
        **filters,
    }
    return environment.get_template(template).render(page=page)


def colophon(clock: str = "%F %T") -> str:
    """Return a page's last line: by what it was written, and when by the ``clock``."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        f"Written by funcrobust {own_version()} at {now:{clock}} UTC. This file asks nothing of "
        "any network."
    )


def _visible(value: Any) -> Any:
    """Spell out control characters and the like, which a browser would hide or obey."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return visible(value, most=100_000)


def png_uri(image: Tensor) -> str:
    """Return an image (1 or 3, H, W) in [0, 1] as a PNG in a data URI, every pixel as it is."""
    import torch
    from PIL import Image

    if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.is_floating_point():
        raise FuncrobustError(
            f"a page shows float images (1 or 3, H, W), got {tuple(image.shape)} of {image.dtype}"
        )
    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(array[..., 0] if image.shape[0] == 1 else array).save(file, "PNG")
    return png_file_uri(file.getvalue())


def png_file_uri(content: bytes) -> str:
    """Return what is in a PNG file as a data URI."""
    if not content.startswith(PNG):
        raise FuncrobustError("a page shows PNG files alone")
    return "data:image/png;base64," + base64.b64encode(content).decode()
