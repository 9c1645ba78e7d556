"""Run the examples and keep small versions of their pictures in docs/gallery/.

python website/make_gallery.py [NAME ...]

What they print is printed: the numbers in docs/gallery.md are to be compared with it.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent.parent / "docs"
MOST = 60_000
"""Bytes of a picture."""


def small(source: Path, target: Path) -> None:
    """Write a PNG of at most `MOST` bytes: as wide and with as many colours as that allows."""
    with Image.open(source) as picture:
        whole = picture.convert("RGB")
    for width in (whole.width, 800, 640, 480):
        size = (
            min(width, whole.width),
            round(whole.height * min(1, width / whole.width)),
        )
        for colours in (256, 64):
            reduced = whole.resize(size, Image.Resampling.LANCZOS).quantize(colours)
            reduced.save(target, optimize=True)
            if target.stat().st_size <= MOST:
                return
    raise SystemExit(f"{target} cannot be made smaller than {MOST} bytes")


def main(*names: str) -> None:
    """Run those named, or all."""
    examples = sorted((DOCS.parent / "examples").glob("*.py"))
    (DOCS / "gallery").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for example in examples:
            if names and example.stem not in names:
                continue
            start = [
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node",
                "2",
            ]
            words = start if example.stem == "two_processes" else []
            png = Path(folder) / f"{example.stem}.png"
            print(f"{example.stem}:", flush=True)
            subprocess.run([sys.executable, *words, str(example), str(png)], check=True)
            small(png, DOCS / "gallery" / png.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
