"""Augmentation of whole batches on their own device, and the order of an epoch.

Every random number comes from the generator given, on the batch's device, so an epoch is a pure
function of its generator's seed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from funcrobust.core.errors import FuncrobustError, require_count


def flip_and_crop(x: Tensor, generator: torch.Generator, *, padding: int = 4) -> Tensor:
    """Flip each image left to right with probability 1/2, and shift it by a random crop.

    ``x`` is (N, C, H, W), uint8 or float; each image is padded with ``padding`` zeros on every
    side and cropped back to (H, W) at an offset uniform in ``0 .. 2 * padding`` each way. The
    flips (N,) are drawn first, then the offsets (2, N), rows before columns. Dtype, device and
    memory format stay. Raises ``FuncrobustError`` if ``x`` is not such a batch.
    """
    if x.ndim != 4:
        raise FuncrobustError(f"a batch of images must be (N, C, H, W), got {tuple(x.shape)}")
    reach = 2 * require_count("padding", padding) + 1
    count, _, height, width = x.shape
    flip = torch.rand(count, generator=generator, device=x.device) < 0.5
    rows, columns = torch.randint(reach, (2, count), generator=generator, device=x.device)
    # all crops there are, as a view (N, C, reach, reach, H, W); indexing copies one an image
    crops = F.pad(x, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    crop = crops[torch.arange(count, device=x.device), :, rows, columns]
    flipped = torch.where(flip[:, None, None, None], crop.flip(3), crop)
    return flipped.contiguous(memory_format=_memory_format(x))


def batches(
    n: int, batch_size: int, generator: torch.Generator, drop_last: bool = True
) -> Iterator[Tensor]:
    """Yield the indices (batch_size,) of one shuffled epoch over ``n`` examples.

    Indices are int64 on the generator's device. ``drop_last`` leaves out a smaller last batch.
    Raises ``FuncrobustError``, at the call, if there would be no batch at all.
    """
    require_count("batch_size", batch_size, minimum=1)
    require_count("the number of examples", n, minimum=batch_size if drop_last else 1)
    order = torch.randperm(n, generator=generator, device=generator.device)
    return iter(torch.split(order[: n - n % batch_size if drop_last else n], batch_size))


def _memory_format(x: Tensor) -> torch.memory_format:
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
