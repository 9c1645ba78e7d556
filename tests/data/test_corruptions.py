"""Common corruptions: against formulas, the library's own functions, and any other randomness."""

from __future__ import annotations

import random
import sys
from functools import partial

import numpy as np
import pytest
import torch
from imagecorruptions import corruptions as library
from PIL import Image
from scipy import stats
from scipy.ndimage import gaussian_filter

from funcrobust.core.errors import FuncrobustError
from funcrobust.data import corruptions
from funcrobust.data.corruptions import CORRUPTIONS, NAMES, SEVERITIES, corrupt

SEED = 5
DETERMINISTIC = {
    "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression",
}  # fmt: skip


def scenes(count=8):
    """Smooth, coloured images with some noise: (count, 3, 32, 32), uint8."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(count, 3, 32, 32)), 2.5, axes=(2, 3))
    smooth += 0.1 * gaussian_filter(rng.normal(size=smooth.shape), 0.5, axes=(2, 3))
    smooth -= smooth.min()
    return torch.from_numpy((240 * smooth / smooth.max()).astype(np.uint8))


def plain(value, count=1):
    return torch.full((count, 3, 32, 32), value, dtype=torch.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_changes_the_image_by_counted_randomness_alone(name):
    x = scenes()
    untouched = x.clone()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    found = {severity: corrupt(x, name, severity, seed=3) for severity in SEVERITIES}
    assert states == (
        random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
    )  # fmt: skip
    assert torch.equal(x, untouched)
    for made in found.values():
        assert (made.shape, made.dtype) == (x.shape, torch.uint8)
        assert (made != x).flatten(1).any(1).all()
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    again = corrupt(x, name, 4, seed=3)
    assert torch.equal(again, found[4])
    part = corrupt(x[[6, 2]], name, 4, seed=3, numbers=torch.tensor([6, 2]))
    assert torch.equal(part, again[[6, 2]]), "an image is corrupted alike in whatever batch"
    other = corrupt(x, name, 4, seed=4)
    assert torch.equal(other, again) == (name in DETERMINISTIC)
    twins = corrupt(x[:1].expand(2, -1, -1, -1), name, 4, seed=3)
    assert torch.equal(twins[0], twins[1]) == (name in DETERMINISTIC)


@pytest.mark.parametrize(
    "name",
    [
        "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "zoom_blur", "snow", "fog",
        "brightness", "contrast", "pixelate", "jpeg_compression",
    ],
)  # fmt: skip
def test_a_higher_severity_does_more(name):
    """Those whose constants grow in one way: not frost, glass, motion blur and elastic."""
    x = scenes(32)
    errors = [
        (corrupt(x, name, severity).float() - x.float()).square().mean().item()
        for severity in SEVERITIES
    ]
    assert errors == sorted(errors)
    assert errors[-1] > 1.2 * errors[0]


@pytest.mark.parametrize(("severity", "scale"), enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1))
def test_gaussian_noise_has_its_standard_deviation(severity, scale):
    noise = corrupt(plain(128, 64), "gaussian_noise", severity).double() / 255 - 128 / 255
    assert noise.std().item() == pytest.approx(scale, rel=0.01)  # 0.2 % is one standard error
    assert noise.mean().item() == pytest.approx(-0.5 / 255, abs=0.001)  # fractions are dropped


@pytest.mark.parametrize(("severity", "rate"), enumerate((500, 250, 100, 75, 50), 1))
def test_shot_noise_is_poisson(severity, rate):
    photons = np.arange(10 * rate)
    chance = stats.poisson(rate * 100 / 255).pmf(photons)
    value = np.floor(np.minimum(255 * photons / rate, 255))  # 8 bits, fractions dropped
    mean = (chance * value).sum()
    shot = corrupt(plain(100, 64), "shot_noise", severity).double()
    assert shot.mean().item() == pytest.approx(mean, rel=0.005)
    assert shot.var().item() == pytest.approx((chance * (value - mean) ** 2).sum(), rel=0.02)


@pytest.mark.parametrize(("severity", "amount"), enumerate((0.01, 0.02, 0.03, 0.05, 0.07), 1))
def test_impulse_noise_is_as_much_salt_as_pepper(severity, amount):
    hit = corrupt(plain(100, 64), "impulse_noise", severity)
    for value in (0, 255):
        assert (hit == value).double().mean().item() == pytest.approx(amount / 2, rel=0.1)
    assert set(hit.unique().tolist()) == {0, 100, 255}


@pytest.mark.parametrize(("severity", "kept"), enumerate((0.75, 0.5, 0.4, 0.3, 0.15), 1))
def test_contrast_is_its_formula(severity, kept):
    x = scenes().double()
    mean = x.mean((2, 3), keepdim=True)
    made = corrupt(scenes(), "contrast", severity).double()
    assert (made - (mean + kept * (x - mean))).abs().max() <= 1


@pytest.mark.parametrize(("severity", "added"), enumerate((0.05, 0.1, 0.15, 0.2, 0.3), 1))
def test_brightness_raises_the_largest_channel_and_keeps_the_ratios(severity, added):
    """HSV's value is the largest channel; hue and saturation are ratios."""
    x = scenes().double() / 255
    value = x.amax(1, keepdim=True)
    expected = x * (value + added).clamp(max=1) / value
    made = corrupt(scenes(), "brightness", severity).double() / 255
    assert (made - expected).abs().max() <= 1.01 / 255


@pytest.mark.parametrize(("severity", "amount"), enumerate((0.2, 0.5, 0.75, 1, 1.5), 1))
def test_fog_reaches_from_none_to_all_of_it(severity, amount):
    """On a plain image v: v²/(v + c) where the fractal is 0, v where it is 1."""
    v = 200 / 255
    fogged = corrupt(plain(200), "fog", severity).double() / 255
    assert fogged.min().item() == pytest.approx(v * v / (v + amount), abs=1.01 / 255)
    assert fogged.max().item() == pytest.approx(v, abs=1.01 / 255)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(
    "name",
    [
        "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate",
        "contrast", "jpeg_compression",
    ],
)  # fmt: skip
def test_a_plain_image_has_nothing_to_blur(name, severity):
    made = corrupt(plain(137, 2), name, severity).int()
    assert (made - 137).abs().max() <= 1


@pytest.mark.parametrize("rounds", [1, 2])
def test_glass_is_the_walk_of_the_papers_script(rounds):
    """Pixel after pixel from the last one, with numpy's own meaning of a swap of views."""
    x = scenes(1)[0].permute(1, 2, 0).contiguous().numpy()
    made = CORRUPTIONS["glass_blur"].apply(x, (0.0, rounds), np.random.default_rng(SEED))
    walked, rng = x.copy(), np.random.default_rng(SEED)
    for _ in range(rounds):
        up, left = rng.integers(2, size=(2, 30, 30))
        for h in range(31, 1, -1):
            for w in range(31, 1, -1):
                h2, w2 = h - up[h - 2, w - 2], w - left[h - 2, w - 2]
                walked[h, w], walked[h2, w2] = walked[h2, w2], walked[h, w]
    assert np.array_equal(made.astype(np.uint8), walked)
    assert (walked != x).any(2).mean() > 0.5


def test_snow_and_frost_whiten():
    black = plain(0, 8)
    assert corrupt(black, "snow", 1).float().mean() > 255 * 0.05 * 0.5 * 0.9  # (1 - 0.95) / 2
    for severity, added in enumerate((0.2, 0.3, 0.4, 0.4, 0.45), 1):
        frost = corrupt(black, "frost", severity)
        assert 0 < frost.max() <= 255 * added
        assert len({each.numpy().tobytes() for each in frost}) == 8, "a crop of its own each"


# The library's functions have ImageNet-C's constants. With those, ours must be theirs.
WORD = int(np.random.default_rng(SEED).integers(2**32))  # what ours hands on as a seed


@pytest.mark.parametrize(
    ("name", "constants", "theirs"),
    [
        ("gaussian_noise", 0.08, library.gaussian_noise),
        ("shot_noise", 60, library.shot_noise),
        ("impulse_noise", 0.03, partial(library.impulse_noise, seed=SEED)),
        ("defocus_blur", (3, 0.1), library.defocus_blur),
        ("motion_blur", (10, 3), library.motion_blur),
        ("zoom_blur", 1.11, library.zoom_blur),
        ("snow", (0.1, 0.3, 3, 0.5, 10, 4, 0.8), library.snow),
        ("fog", (1.5, 2), library.fog),
        ("brightness", 0.1, library.brightness),
        ("contrast", 0.4, library.contrast),
        ("jpeg_compression", 25, library.jpeg_compression),
    ],
)
def test_is_the_librarys_function_at_its_constants(name, constants, theirs):
    x = scenes(1)[0].permute(1, 2, 0).contiguous().numpy()
    # Both draw from the same stream; ours hands a word of its own on where the library draws.
    own = name in ("impulse_noise", "fog")
    rng = np.random.default_rng(SEED) if own else np.random.RandomState(SEED)
    ours = np.clip(CORRUPTIONS[name].apply(x, constants, rng), 0, 255).astype(np.uint8)
    before = np.random.get_state()
    np.random.seed(WORD if name == "fog" else SEED)
    expected = np.asarray(theirs(Image.fromarray(x), 1)).astype(np.uint8)
    np.random.set_state(before)
    rounding = 1 if name in ("motion_blur", "snow") else 0  # ours rounds, as ImageMagick does
    assert np.abs(ours.astype(int) - expected).max() <= rounding


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: corrupt(plain(1)[:, :1], "fog", 1), "made for uint8 images of 3x32x32, got uint8"),
        (lambda: corrupt(plain(1).float(), "fog", 1), "got float32 of 3x32x32"),
        (lambda: corrupt(plain(1)[..., :8, :8], "fog", 1), "got uint8 of 3x8x8"),
        (lambda: corrupt(plain(1), "fogg", 1), "unknown corruption 'fogg' .did you mean 'fog'"),
        (lambda: corrupt(plain(1), "fog", 0), "severity must be a whole number from 1 to 5, got 0"),
        (lambda: corrupt(plain(1), "fog", 1, numbers=[1, 2]), "2 numbers for 1 images"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(call, said):
    with pytest.raises(FuncrobustError, match=said):
        call()


def test_says_what_to_install(monkeypatch):
    corruptions._library.cache_clear()
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(FuncrobustError, match=r'pip install "funcrobust\[corruptions\]"'):
        corrupt(plain(1), "gaussian_noise", 1)
