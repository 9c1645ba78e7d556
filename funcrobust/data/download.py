"""Download a file with a short patience, a progress report and a checksum."""

from __future__ import annotations

import http.client
import urllib.request
from pathlib import Path

from torchvision.datasets.utils import check_integrity

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.progress import Progress

PATIENCE_SECONDS = 8.0
"""How long to wait for a connection, or for the next bytes. torchvision's own download waits
forever on a host that does not answer, which is why it is not used."""

_CHUNK = 1 << 20


def download(url: str, target: Path, md5: str | None, progress: Progress) -> Path:
    """Fetch ``url`` into ``target`` and return it.

    Raises ``FuncrobustError`` if the host is out of reach, stops answering, or sends a file with
    another MD5, or one shorter than it announced. Without ``md5`` the length alone is checked.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "funcrobust"})
    done, total = 0, None
    try:
        with (
            urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response,
            target.open("wb") as file,
        ):
            total = _announced(response.headers["Content-Length"], request.host)
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                progress(f"downloading {target.name}", done, total)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise FuncrobustError(f"no answer from {request.host} ({reason})") from error
    if total is not None and done < total:  # http.client takes an early end for the end
        raise FuncrobustError(f"{request.host} sent {done} of {total} bytes of {target.name}")
    if not check_integrity(target, md5):
        raise FuncrobustError(f"what {request.host} sent as {target.name} fails its MD5 check")
    return target


def _announced(length: str | None, host: str) -> int | None:
    """Return how many bytes are to come, if a host says so."""
    if length and not (length.isdecimal() and len(length) < 20):
        raise FuncrobustError(f"{host} announces {length[:40]!r} bytes, which is no number of them")
    return int(length) if length else None
