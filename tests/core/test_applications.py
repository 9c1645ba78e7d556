"""The applications of ψ: what each promises of its images."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from problems import directional_difference, inner, random_direction
from torch import nn

import funcrobust as fr
from funcrobust.core import applications
from funcrobust.core.applications import denoising, sketch
from funcrobust.core.applications.inpainting import mean_filled, smooth_filled
from funcrobust.core.applications.super_resolution import bicubic
from funcrobust.core.tasks import centred_square
from funcrobust.core.walks import Restoring, Walk

WALK = Walk(2.0, 0.1, 4)


def test_presets_by_size():
    assert applications.find("inpainting").walks.of((3, 224, 224)) == Walk(21.6, 0.1, 720)
    walks = applications.find("generation").walks
    assert walks.of((3, 32, 32)).radius == 30.0
    assert walks.of((1, 8, 8)).radius < 10.0
    assert walks.of((1, 8, 8), 0.2) == walks.restoring._replace(step_size=0.2)


def test_every_file_of_the_folder_is_an_application():
    assert applications.names() == (
        "denoising", "generation", "inpainting", "painting", "sketch", "super-resolution",
        "translation",
    )  # fmt: skip
    with pytest.raises(fr.FuncrobustError, match=r"did you mean 'sketch'.*translation"):
        applications.find("sketching")


def test_generation_goes_toward_its_class(problem):
    y = (problem.y + 1) % 5
    made = fr.generation(problem.loss, WALK)(problem.params, problem.x, y)
    before, after = (problem.loss(problem.params, x, y) for x in (problem.x, made))
    assert (after < before).all()


def test_restoring_steps_go_a_share_of_the_way(problem):
    """One whole step is D; several leave their share of a straight way, as of a linear logit's."""
    flat = fr.functionalize(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double())
    y = (problem.y + 1) % 5
    slope = flat.params["1.weight"][y].reshape(problem.x.shape)
    made = fr.generation(fr.logit(flat.predict), Restoring(1, 0.0, 0.5))(flat.params, problem.x, y)
    assert torch.allclose(made, (problem.x + 0.5 * slope).clamp(0, 1), atol=1e-12)
    with pytest.raises(fr.FuncrobustError, match="remain > 0"):
        fr.generation(problem.loss, Restoring(3, 0.0))
    with pytest.raises(fr.FuncrobustError, match=r"got None\. .* draws by fr\.Walk"):
        fr.generation(problem.loss, Restoring(3, 0.2, None))  # of a card without a restoring_step
    share = 1 - 0.2 ** (1 / 3)
    made = fr.generation(fr.logit(flat.predict), Restoring(3, 0.2, 0.5))(flat.params, problem.x, y)
    assert torch.allclose(made, (problem.x + 3 * share * 0.5 * slope).clamp(0, 1), atol=1e-12)
    assert torch.equal(
        fr.generation(problem.loss, Restoring(0, 0.2))(problem.params, problem.x, y), problem.x
    )


WAYS = {"l2": WALK, "restoring": Restoring(3, 0.1, 2.0)}


@pytest.mark.parametrize("walk", WAYS.values(), ids=WAYS)
def test_inpainting_keeps_what_is_known(problem, walk):
    hole = centred_square(problem.x, 0.5)
    assert int(hole.sum()) == 16
    filled = mean_filled(problem.x, hole)
    known = problem.x[..., ~hole]
    assert torch.equal(filled[..., ~hole], known)
    assert torch.allclose(filled[0, :, 4, 4], known[0].mean(-1))
    made = fr.inpainting(problem.loss, hole, walk)(problem.params, filled, problem.y)
    assert torch.equal(made[..., ~hole], known)
    assert (made - filled)[..., hole].abs().max() > 0.05


@pytest.mark.parametrize("hole", [0.5, 0.8])
def test_smooth_filled_continues_a_ramp(hole):
    """What is linear is harmonic: nothing smoother agrees with the rest."""
    side = torch.linspace(0, 1, 12, dtype=torch.float64)
    rows, columns = torch.meshgrid(side, side, indexing="ij")
    ramps = torch.stack([rows, columns, 0.2 + 0.5 * rows - 0.1 * columns]).unsqueeze(0)
    missing = centred_square(ramps, hole)
    filled = smooth_filled(torch.where(missing, 0.9, ramps), missing)
    assert (filled - ramps).abs().max() <= 1e-12
    assert torch.equal(filled[..., ~missing], ramps[..., ~missing])


def test_smooth_filled_of_one_colour_is_that_colour():
    plain = torch.full((2, 3, 9, 7), 0.3)
    missing = centred_square(plain, 0.5)
    assert torch.allclose(smooth_filled(torch.where(missing, 0.0, plain), missing), plain)


@pytest.mark.parametrize("walk", WAYS.values(), ids=WAYS)
def test_super_resolution_agrees_with_its_input(problem, walk):
    low = F.avg_pool2d(problem.x, 4)
    start = bicubic(low, 4)
    assert (F.avg_pool2d(start, 4) - low).abs().max() > 1e-4
    made = fr.super_resolution(problem.loss, low, 4, walk)(problem.params, start, problem.y)
    assert (F.avg_pool2d(made, 4) - low).abs().max() <= 1e-10


def test_painting_leaks_nothing_and_raises_its_feature(problem):
    where = centred_square(problem.x, 0.5)
    features = fr.functionalize(nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.SiLU()).double())
    y = torch.tensor([0, 3, 6, 2])
    made = fr.painting(features.predict, where, WALK)(features.params, problem.x, y)
    assert torch.equal(made[..., ~where], problem.x[..., ~where])
    before, after = (features.predict(features.params, x) for x in (problem.x, made))
    rows = torch.arange(4)
    assert (after[rows, y] > before[rows, y]).all()


@pytest.mark.parametrize("walk", WAYS.values(), ids=WAYS)
def test_applications_are_differentiable(problem, walk):
    """Each is a ψ: a number of what it drew has an exact slope in θ."""
    hole = centred_square(problem.x, 0.5)

    def total(params):
        made = fr.inpainting(problem.loss, hole, walk)(params, problem.x, problem.y)
        return (made * problem.x.flip(0)).sum()

    direction = random_direction(problem.params)
    exact = inner(torch.func.grad(total)(problem.params), direction)
    numeric = directional_difference(total, problem.params, direction)
    assert abs(exact) > 1e-3
    assert abs(exact - numeric) <= 1e-6 * abs(exact)


def test_without_scikit_image_there_is_a_line_that_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.restoration", None)
    with pytest.raises(fr.FuncrobustError, match=r'pip install "funcrobust\[denoising\]"'):
        denoising.non_local_means(torch.rand(1, 1, 8, 8), 0.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_non_local_means_is_the_librarys(channels):
    restoration = pytest.importorskip("skimage.restoration")
    x = torch.rand(2, channels, 12, 12, dtype=torch.float64)
    ours = denoising.non_local_means(x, 0.1)
    settings = {
        "patch_size": 5,
        "patch_distance": 6,
        "h": 0.8 * 0.1,
        "sigma": 0.1,
        "fast_mode": False,
    }
    if channels == 1:  # as a plain gray image
        theirs = restoration.denoise_nl_means(x[1, 0].numpy(), **settings)[None]
    else:
        image = x[1].permute(1, 2, 0).numpy()
        theirs = restoration.denoise_nl_means(image, channel_axis=-1, **settings)
        theirs = theirs.transpose(2, 0, 1)
    assert torch.equal(ours[1], torch.from_numpy(theirs.copy()).clamp(0, 1))


def test_denoising_shifted_is_the_mean_over_the_shifts_that_hold_a_pixel():
    x = torch.rand(2, 1, 7, 9, generator=torch.Generator().manual_seed(0))
    ramp = torch.arange(63.0).reshape(7, 9) ** 1.5
    drawn = denoising.shifted(lambda params, start, y, *, center=None: start + ramp, 2)
    ways = [(0, 0), (2, 0), (-2, 0), (0, 2), (0, -2), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    expected = torch.zeros(7, 9)
    for r in range(7):
        for c in range(9):
            at = [(r - a, c - b) for a, b in ways]
            held = [ramp[p] for p in at if 0 <= p[0] < 7 and 0 <= p[1] < 9]
            expected[r, c] = torch.stack(held).mean()
    y = torch.zeros(2, dtype=torch.int64)
    torch.testing.assert_close(drawn({}, x, y), x + expected)
    half = denoising.shifted(lambda params, start, y, *, center: (start + center) / 2, 1)
    torch.testing.assert_close(half({}, x, y, center=1 - x), torch.full_like(x, 0.5))


@pytest.mark.parametrize("walk", WAYS.values(), ids=WAYS)
def test_denoising_both_ways_sees_no_difference_between_an_image_and_its_mirror(problem, walk):
    psi = denoising.both_ways(fr.generation(problem.loss, walk))
    made, mirrored = (psi(problem.params, x, problem.y) for x in (problem.x, problem.x.flip(-1)))
    assert torch.allclose(made, mirrored.flip(-1), atol=1e-12)


def test_the_class_seen_behind_is_that_of_the_nearest_mean():
    """For Gaussian classes of one width ψ toward c is the shrunk way to c's mean; the right c wins.

    z_c = ⟨μ_c, x⟩/s − ‖μ_c‖²/2s is the log-density of N(μ_c, s) but for what all classes share; so
    whatever c is assumed, log p_c of what ψ_c makes of x is largest for the class nearest to x.
    """
    means = torch.eye(4, dtype=torch.float64).reshape(4, 1, 2, 2)

    def predict(_params, x):
        return -(x.unsqueeze(1) - means).square().flatten(2).sum(-1)

    x = 0.2 + 0.3 * means.roll(1, 0)
    y = torch.arange(4)
    scene = SimpleNamespace(model=SimpleNamespace(predict=predict, params={}))
    psi = fr.generation(fr.logit(predict), Restoring(1, 0.0, 0.1))
    seen = denoising.seen_behind(scene, psi, x)
    assert torch.equal(seen, y.roll(1))
    assert torch.equal(denoising.seen_behind(scene, psi, x, most=1), predict({}, x).argmax(-1))


def test_flattened_has_few_colours(problem):
    flat = sketch.flattened(problem.x, colours=3, blocks=4)
    assert flat.shape == problem.x.shape
    for image in flat:
        assert len(image.flatten(1).T.unique(dim=0)) <= 3


def test_shifted_maps_over_networks(problem):
    psi = denoising.shifted(
        fr.psi(problem.loss, fr.l2(1.0), step_size=0.1, steps=1, targeted=True), 2
    )
    stacked = {k: torch.stack([p, 1.1 * p]) for k, p in problem.params.items()}
    both = torch.func.vmap(lambda p: psi(p, problem.x, problem.y))(stacked)
    assert (both[0] - psi(problem.params, problem.x, problem.y)).abs().max() < 1e-12
