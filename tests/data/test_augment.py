"""Augmentation against its definition, and the order of an epoch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funcrobust import data
from funcrobust.core.errors import FuncrobustError

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def slow_flip_and_crop(x, generator, padding):
    """One image at a time, from the definition."""
    count, channels, height, width = x.shape
    flip = torch.rand(count, generator=generator, device=x.device) < 0.5
    offsets = torch.randint(
        2 * padding + 1, (2, count), generator=generator, device=x.device
    ).tolist()
    out = torch.zeros_like(x)
    for i in range(count):
        padded = torch.zeros(
            channels, height + 2 * padding, width + 2 * padding, dtype=x.dtype, device=x.device
        )
        padded[:, padding : padding + height, padding : padding + width] = x[i]
        row, column = offsets[0][i], offsets[1][i]
        crop = padded[:, row : row + height, column : column + width]
        out[i] = torch.fliplr(crop.permute(1, 2, 0)).permute(2, 0, 1) if flip[i] else crop
    return out


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, 9) for _ in range(4))),
    padding=st.integers(0, 5),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    channels_last=st.booleans(),
)
def test_flip_and_crop_against_the_definition(device, shape, padding, seed, dtype, channels_last):
    x = torch.randint(1, 256, shape, device=device).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    before = x.clone()
    fast = data.flip_and_crop(x, torch.Generator(device).manual_seed(seed), padding=padding)
    slow = slow_flip_and_crop(x, torch.Generator(device).manual_seed(seed), padding)
    assert torch.equal(fast, slow)
    assert torch.equal(x, before)
    assert fast.dtype == dtype


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_memory_format_stays(memory_format, dtype):
    x = torch.ones(8, 3, 32, 32, dtype=dtype).contiguous(memory_format=memory_format)
    out = data.flip_and_crop(x, torch.Generator().manual_seed(0))
    assert out.stride() == x.stride()


def test_every_flip_and_offset_occurs_about_equally():
    x = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3).expand(9000, 1, 3, 3)
    out = data.flip_and_crop(x, torch.Generator().manual_seed(0), padding=1)
    kinds, counts = torch.unique(out.flatten(1), dim=0, return_counts=True)
    assert len(kinds) == 2 * 9
    assert counts.min() > 400  # 500 expected, σ ≈ 22
    assert counts.max() < 600


def test_flip_and_crop_is_a_function_of_the_generator():
    x = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    torch.manual_seed(1)
    one = data.flip_and_crop(x, torch.Generator().manual_seed(7))
    torch.manual_seed(2)
    two = data.flip_and_crop(x, torch.Generator().manual_seed(7))
    other = data.flip_and_crop(x, torch.Generator().manual_seed(8))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_flip_and_crop_refuses_what_is_no_batch():
    generator = torch.Generator()
    with pytest.raises(FuncrobustError, match=r"must be \(N, C, H, W\), got \(3, 8, 8\)"):
        data.flip_and_crop(torch.zeros(3, 8, 8), generator)
    with pytest.raises(FuncrobustError, match="padding"):
        data.flip_and_crop(torch.zeros(1, 3, 8, 8), generator, padding=-1)


def test_batches_are_one_shuffled_epoch():
    epoch = list(data.batches(10, 3, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in epoch] == [3, 3, 3]
    whole = list(data.batches(10, 3, torch.Generator().manual_seed(0), drop_last=False))
    assert [len(batch) for batch in whole] == [3, 3, 3, 1]
    assert sorted(torch.cat(whole).tolist()) == list(range(10))
    assert torch.equal(torch.cat(epoch), torch.cat(whole)[:9])
    assert torch.cat(whole).tolist() != list(range(10))
    assert [len(b) for b in data.batches(2, 8, torch.Generator(), drop_last=False)] == [2]


@pytest.mark.parametrize(("n", "batch_size"), [(5, 6), (0, 1), (4, 0), (-1, 2)])
def test_batches_refuses_an_epoch_of_nothing(n, batch_size):
    with pytest.raises(FuncrobustError):
        data.batches(n, batch_size, torch.Generator())
