"""Denoising: a step of ψ from an image with noise, toward the class that the classifier sees in it.

It is what a ψ that restores was trained for; any other robust classifier draws over the noise.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from funcrobust.core.applications.generation import generation
from funcrobust.core.errors import extra
from funcrobust.core.network.functional import Params
from funcrobust.core.perturbations.projected_gradient import Perturbation
from funcrobust.core.randomness import generator
from funcrobust.core.tasks import BATCH, Plan, Scene, Task, psnr
from funcrobust.core.walks import Restoring, Walk, Walks


def plan(scene: Scene, *, noise: float) -> Plan:
    """Noise of ``noise`` gray levels of 255, or the user's own images, as noisy as they are.

    The noise is not clamped, as is usual where denoisers are compared. ψ is not told how much of it
    there is; the baseline is.
    """
    noisy, baselines, score, truth = scene.x, {"noisy": scene.x}, {}, {}
    if not scene.own:
        sigma = noise / 255
        draw = generator(scene.seed, "denoise", 0, scene.x.device)
        noisy = scene.x + sigma * torch.randn(scene.x.shape, generator=draw, device=draw.device)
        baselines = {"noisy": noisy, "non-local means": non_local_means(noisy, sigma)}
        truth = {"truth": scene.x}
        score = {"score": lambda x: {"PSNR": psnr(x, scene.x)}}
    restores = scene.restoring is not None
    psi = generation(scene.loss, scene.walk)
    psi = both_ways(psi) if restores and scene.mirrored else psi
    drawn = shifted(psi, min(scene.x.shape[-2:]) // 16) if restores else psi
    seen = "in what it makes of the noisy image" if restores else "in the noisy image"
    aim = scene.aim(f"the class that the classifier sees best {seen}")
    level = "" if scene.own else f"Noise of {noise:g} gray levels. "
    return Plan(
        psi=lambda _: drawn,
        params=scene.model.params,
        # An L2 ball's centre is inside its bounds.
        start=noisy if restores else noisy.clamp(0, 1),
        y=scene.asked(seen_behind(scene, psi, noisy) if restores else scene.sees(noisy)),
        baselines=baselines,
        wanted=scene.asked(scene.y),
        titles=scene.asked(scene.y),
        above={name: images.clamp(0, 1) for name, images in baselines.items()},
        below=truth,
        caption=f"{level}ψ toward {aim}.",
        **score,
    )


def both_ways(psi: Perturbation) -> Perturbation:
    """Build the mean of what ψ makes of an image and of its mirror image, mirrored back.

    Errors that are not of the image alone partly cancel: the "enhanced prediction" of Timofte et
    al. 2016 (arXiv:1511.02228). For images (B, C, H, W) whose mirror image is as likely.
    """

    def perturb(
        params: Params, start: Tensor, y: Tensor, *, center: Tensor | None = None
    ) -> Tensor:
        other = None if center is None else center.flip(-1)
        mirror = psi(params, start.flip(-1), y, center=other)
        return (psi(params, start, y, center=center) + mirror.flip(-1)) / 2

    return perturb


def shifted(psi: Perturbation, by: int) -> Perturbation:
    """Build the mean of what ψ makes of an image and of eight shifts of it, shifted back.

    ``by`` pixels up, down, left and right, and half as many along the diagonals; what a shift
    uncovers is the image's reflection, and is left out of the mean. For images (B, C, H, W); 0
    shifts nothing. Another part of the "enhanced prediction" that `both_ways` is from: a network
    with strides errs otherwise at every place of its grid.
    """
    half = (by + 1) // 2
    diagonal = [(a, b) for a in (-half, half) for b in (-half, half)]
    ways = [(0, 0), (by, 0), (-by, 0), (0, by), (0, -by), *diagonal]
    if by == 0:
        return psi

    def perturb(
        params: Params, start: Tensor, y: Tensor, *, center: Tensor | None = None
    ) -> Tensor:
        height, width = start.shape[-2:]
        rows, columns = slice(by, by + height), slice(by, by + width)

        def window(wide: Tensor, way: tuple[int, int]) -> Tensor:
            down, right = by + way[0], by + way[1]
            return wide[..., down : down + height, right : right + width]

        wide = pad(start, [by] * 4, mode="reflect")
        around = None if center is None else pad(center, [by] * 4, mode="reflect")

        def back(small: Tensor, way: tuple[int, int]) -> Tensor:
            down, right = by + way[0], by + way[1]
            return pad(small, [right, 2 * by - right, down, 2 * by - down])

        total, count = torch.zeros_like(wide), torch.zeros_like(wide)
        for way in ways:
            moved = None if around is None else window(around, way)
            total = total + back(psi(params, window(wide, way), y, center=moved), way)
            count = count + back(torch.ones_like(start), way)
        return (total / count)[..., rows, columns]

    return perturb


def seen_behind(scene: Scene, psi: Perturbation, noisy: Tensor, most: int = 10) -> Tensor:
    """Return argmax_c log p_c(ψ_c(x)): the class that is surest of what ψ makes of x toward it.

    Noise hides a class that restoring shows. (N, C, H, W) to (N,); c goes over the ``most``
    likeliest classes of x itself.
    """
    model = scene.model

    def surest(x: Tensor) -> Tensor:
        classes = model.predict(model.params, x)
        likeliest = classes.topk(min(most, classes.shape[-1])).indices
        found = []
        for c in likeliest.unbind(-1):
            log_p = model.predict(model.params, psi(model.params, x, c)).log_softmax(-1)
            found.append(log_p.gather(-1, c.unsqueeze(-1)))
        best = torch.cat(found, -1).argmax(-1, keepdim=True)
        return likeliest.gather(-1, best).squeeze(-1)

    with torch.no_grad():
        return torch.cat([surest(part) for part in noisy.split(BATCH)])


def non_local_means(x: Tensor, sigma: float) -> Tensor:
    """Denoise images (B, C, H, W) by scikit-image's non-local means, told the noise's ``sigma``.

    Buades et al. 2005, with the settings that its documentation recommends where σ is known: the
    exact form, h = 0.8·σ, patches of 5×5 within 6 pixels. Raises `FuncrobustError` without it.
    """
    with extra("denoising", "denoising's baseline needs scikit-image"):
        from skimage.restoration import denoise_nl_means
    channels_last = x.permute(0, 2, 3, 1)  # channels first it mistakes a single one (0.26)
    cleaned = [
        denoise_nl_means(
            image, patch_size=5, patch_distance=6, h=0.8 * sigma, sigma=sigma, fast_mode=False,
            channel_axis=-1,
        )
        for image in channels_last.cpu().numpy()
    ]  # fmt: skip
    stacked = [torch.from_numpy(image).reshape(channels_last.shape[1:]) for image in cleaned]
    return torch.stack(stacked).permute(0, 3, 1, 2).to(x).clamp(0, 1)


WALKS = Walks(
    imagenet=Walk(10.0, 1.0, 2), cifar=Walk(2.0, 0.25, 2), digits=Walk(1.0, 0.1, 2),
    restoring=Restoring(1, 0.0),
)  # fmt: skip
TASK = Task(WALKS, plan)
