"""Pictures that a page's own code has drawn, put into the page itself."""

from __future__ import annotations

import base64
from pathlib import Path


def shown(path: str, alt: str) -> str:
    """Return an image in HTML, from a PNG."""
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return f'<p><img alt="{alt}" src="data:image/png;base64,{data}"></p>'


def code_of(path: str) -> str:
    """Return a file of the project as a block of code."""
    return f"```python\n{Path(path).read_text().rstrip()}\n```"
