"""Start images: Gaussians of a class, for any kind of data."""

from __future__ import annotations

import pytest
import torch

import funcrobust as fr


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(), (5,), (4, 5), (3, 4, 5)])
def test_any_shape_and_no_bounds(shape):
    """Two examples a class: all samples lie on the line through them."""
    x, labels = 9 * draw((4, *shape)), torch.tensor([0, 0, 1, 1])
    wanted = torch.tensor([1, 0, 1])
    found = fr.class_conditional_gaussian(
        x, labels, wanted, fr.generator(0, "t"), bounds=None
    ).reshape(3, -1)
    for sample, y in zip(found, wanted, strict=True):
        a, b = x[labels == y].reshape(2, -1)
        t = ((sample - a) * (b - a)).sum() / (b - a).square().sum()
        assert (sample - a - t * (b - a)).abs().max() <= 1e-10
    clamped = fr.class_conditional_gaussian(
        x, labels, wanted, fr.generator(0, "t"), bounds=(-1.0, 2.0)
    )
    assert torch.equal(clamped.reshape(3, -1), found.clamp(-1, 2))


def test_bytes_are_images():
    x, labels = (255 * draw((6, 3, 2, 2)).abs() / 4).to(torch.uint8), torch.tensor([0, 1] * 3)
    of_bytes, of_floats = (
        fr.GaussianStarts(images, labels)(labels, fr.generator(0, "t")) for images in (x, x / 255)
    )
    assert torch.equal(of_bytes, of_floats)


def test_refused():
    with pytest.raises(fr.FuncrobustError, match=r"labels of shape \(4,\)"):
        fr.GaussianStarts(draw((4, 3)), torch.zeros(3))
    with pytest.raises(fr.FuncrobustError, match="at least 2"):
        fr.class_conditional_gaussian(
            draw((4, 3)), torch.arange(4), torch.tensor([2]), fr.generator(0, "t")
        )


def test_class_conditional_gaussian_has_the_classes_mean_and_covariance():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat_interleave(300)
    mixing = 0.03 * torch.randn(4, 4, generator=generator)
    images = 0.5 + (torch.randn(600, 4, generator=generator) @ mixing).reshape(600, 1, 2, 2)
    images[300:] -= 0.1
    wanted = torch.tensor([1]).repeat(20000)
    samples = fr.class_conditional_gaussian(images, labels, wanted, generator).flatten(1)
    own = images[300:].flatten(1)
    assert (samples.mean(0) - own.mean(0)).abs().max() < 2e-3
    assert (samples.T.cov() - own.T.cov()).abs().max() < 2e-4


def test_gaussian_starts_follow_their_labels_and_stay_in_range():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(60, 3, 4, 4, generator=generator)
    labels = torch.arange(3).repeat(20)
    images[labels == 2] = 0.9 + 0.2 * images[labels == 2] - 0.1
    samples = fr.class_conditional_gaussian(
        images.clamp(0, 1), labels, torch.tensor([2, 0, 2]), generator
    )
    assert samples.min() >= 0
    assert samples.max() <= 1
    assert samples[0].mean() > samples[1].mean()
    with pytest.raises(fr.FuncrobustError, match=r"class 7 .*, and has 0: add images"):
        fr.class_conditional_gaussian(images, labels, torch.tensor([7]), generator)
