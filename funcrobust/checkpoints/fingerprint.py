"""What a checkpoint proves itself by: a digest of its tensors, and its logits at fixed images.

The digest finds every damage of the tensors, to the bit. The fingerprint finds another network
around the same tensors: another architecture, activation or normalisation, or a factory's code that
has changed since. Damage too small to move a logit is for the digest alone. Neither is a signature:
who writes a file writes both.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Fingerprint = tuple[tuple[float, ...], ...]
"""A row for each of the fixed images: its logits, or `WIDTH` projections of more than these."""

WIDTH = 16

TOLERANCE = 1e-3
"""How far a number may be from the fingerprint's, relative to the root mean square of these.

Float64 for float32, another instruction set, another number of threads and another memory layout
move the numbers of the shipped networks, and of networks up to ResNet-50, by at most 6e-6 of it.
The least that was found of what must be seen: a std that is off by 1 %, 1e-2; batch norm's eps of
1e-4 for 1e-5, 7e-3; weights rounded to float16, 2e-3. Not seen are, in one network of four, an eps
of 1e-6 for 1e-5, and everywhere the last bits of single weights.
"""

_COUNT = 4  # images, of the usual sizes
_VALUES = 2**17  # in all of them, unless the first alone has more
_LARGEST = 2**21  # values of an image: a file's words must not fill the memory


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, types and shapes: 64 hexadecimal digits.

    It is the same in whatever order and memory layout they come.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        found.update(raw.data)
    return found.hexdigest()


def fingerprint(network: nn.Module, image_shape: tuple[int, int, int]) -> Fingerprint:
    """Return the numbers that a network, on the CPU in evaluation mode, has for `images`.

    Its logits (n, classes) to six digits. Of more than `WIDTH` classes C, the projections
    Σ_c z_c·√(2/C)·cos(2π·φ·c·j), j = 1 ... `WIDTH`, φ the golden ratio's fraction: no two classes
    weigh the same in all of them.

    Raises what the network raises, and ValueError where it gives anything but logits.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False), _plain_kernels():
        precision = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
        logits = network(images(image_shape).to(precision or torch.float32))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count(image_shape):
        raise ValueError("it gives something other than logits (B, classes)")
    rows = _narrow(logits.double().numpy()).tolist()
    return tuple(tuple(float(f"{value:.6g}") for value in row) for row in rows)


def difference(found: Fingerprint, expected: Fingerprint) -> float:
    """Return max |found − expected| over the root mean square of ``expected``.

    Infinite for another number of classes and for NaN.
    """
    a, b = np.array(found), np.array(expected)
    if a.shape != b.shape or not np.isfinite(a).all():
        return math.inf
    farthest = float(abs(a - b).max())
    return farthest / math.sqrt((b**2).mean()) if b.any() else (math.inf if farthest else 0.0)


def is_fingerprint(value: Any, image_shape: tuple[int, int, int]) -> bool:
    """Tell whether a file's value could be the fingerprint of a network of such images."""
    return (
        isinstance(value, tuple)
        and 0 < len(value) == count(image_shape)
        and all(isinstance(row, tuple) and 0 < len(row) <= WIDTH for row in value)
        and len({len(row) for row in value}) == 1
        and all(type(v) in (int, float) and -1e30 < v < 1e30 for row in value for v in row)
    )


def count(image_shape: tuple[int, int, int]) -> int:
    """Return how many images of a shape are looked at: 4, fewer of large ones, none of huge."""
    size = math.prod(image_shape)
    return 0 if size > _LARGEST else max(1, min(_COUNT, _VALUES // size))


def images(image_shape: tuple[int, int, int]) -> Tensor:
    """Return the fixed images of a shape: (n, C, H, W), float32 in [0, 1], n = `count`.

    x_i = ½ + ¼·sin(2π·(i+1)·(u·cos(πi/n) + v·sin(πi/n)) + c) + ¼·r, i from 0: gratings of growing
    frequency, u and v in [0, 1) across and down, c the channel; and r in [-1, 1] noise, the bytes
    of SHAKE-256 of the shape's text. No library's stream of random numbers enters.
    """
    channels, height, width = image_shape
    shape = (count(image_shape), *image_shape)
    i = np.arange(shape[0]).reshape(-1, 1, 1, 1)
    c = np.arange(channels).reshape(-1, 1, 1)
    v, u = np.arange(height).reshape(-1, 1) / height, np.arange(width) / width
    angle = np.pi * i / shape[0]
    grating = np.sin(2 * np.pi * (i + 1) * (u * np.cos(angle) + v * np.sin(angle)) + c)
    text = "funcrobust fingerprint " + "x".join(map(str, shape))
    raw = hashlib.shake_256(text.encode()).digest(math.prod(shape))
    noise = np.frombuffer(raw, np.uint8).reshape(shape) / 127.5 - 1
    return torch.from_numpy((0.5 + 0.25 * grating + 0.25 * noise).astype(np.float32))


def _narrow(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    classes = logits.shape[1]
    if classes <= WIDTH:
        return logits
    golden = (math.sqrt(5) - 1) / 2
    turns = golden * np.outer(np.arange(1, classes + 1), np.arange(1, WIDTH + 1))
    projected: np.ndarray[Any, Any] = logits @ (math.sqrt(2 / classes) * np.cos(2 * np.pi * turns))
    return projected


def _plain_kernels() -> AbstractContextManager[None]:
    """Leave oneDNN out: it may be set to compute float32 in bfloat16, where the processor can."""
    return torch.backends.mkldnn.flags(
        enabled=False, deterministic=None, allow_tf32=None, fp32_precision=None
    )
