"""Networks with attention: differentiated twice, mapped over, recognised."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from problems import TinyNet, inner, largest_difference, random_direction
from torch import nn
from torch.func import grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import funcrobust as fr
from funcrobust.core.network.attention import uses_fused_attention


def attend(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


class Direct(nn.Module):
    """Tokens are the rows of an image; one head."""

    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(24, 36), nn.Linear(12, 5)

    def parts(self, x):
        return self.qkv(x.transpose(1, 2).flatten(2)).unsqueeze(1).chunk(3, -1)

    def forward(self, x):
        return self.head(F.scaled_dot_product_attention(*self.parts(x)).mean((1, 2)))


class ThroughAMethod(Direct):
    def attend(self, *qkv):
        return F.scaled_dot_product_attention(*qkv)

    def forward(self, x):
        return self.head((lambda: self.attend(*self.parts(x)))().mean((1, 2)))


class ThroughAFunction(Direct):
    def forward(self, x):
        return self.head(attend(*self.parts(x)).mean((1, 2)))


class MultiHead(Direct):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(36, 3, 48, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(36, 5)

    def forward(self, x):
        return self.head(self.encoder(self.qkv(x.transpose(1, 2).flatten(2))).mean(1))


def timm_vit():
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, depth=2, embed_dim=24, num_heads=3,
        num_classes=5,
    )  # fmt: skip


NETWORKS = {
    "direct": Direct, "method": ThroughAMethod, "function": ThroughAFunction,
    "multi-head": MultiHead, "timm": timm_vit,
}  # fmt: skip


def problem(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = NETWORKS[name]().double()
        for p in module.parameters():  # heads and layer scales may start at 0
            nn.init.normal_(p, std=0.3)
        x, y = torch.rand(3, 3, 8, 8, dtype=torch.float64), torch.randint(0, 5, (3,))
    return fr.functionalize(module), x, y


@pytest.mark.parametrize("way", ["predict", "by_batch", "predict_train"])
@pytest.mark.parametrize("name", NETWORKS)
def test_second_derivatives(name, way):
    """Of CURE, in every parameter, against central differences of it."""
    model, x, y = problem(name)
    predict = {
        "predict": model.predict,
        "by_batch": model.by_batch(model.buffers),
        "predict_train": lambda p, x: model.predict_train(p, model.buffers, x)[0],
    }[way]
    z = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()

    def size(params):
        slope = grad(lambda x: fr.mean(fr.cross_entropy(predict))(params, x, y))
        return (slope(x + z) - slope(x)).square().sum()

    direction = random_direction(model.params)
    exact = inner(grad(size)(model.params), direction)
    ahead, behind = (
        float(size({k: p + h * direction[k] for k, p in model.params.items()}))
        for h in (1e-5, -1e-5)
    )
    assert abs(exact - (ahead - behind) / 2e-5) <= 1e-4 * abs(exact)


@pytest.mark.parametrize("name", ["direct", "timm"])
def test_the_library_on_a_transformer(name):
    """ψ in θ, CURE in θ, and the update of both: what fused attention alone fails in."""
    model, x, y = problem(name)
    loss = fr.cross_entropy(model.predict)
    psi = fr.psi(loss, fr.l2(1.0), step_size=0.1, steps=2)
    total = fr.weighted_sum((1.0, loss), (1.0, fr.drift(psi)), (1.0, fr.cure(loss, 0.5)))
    found = grad(fr.mean(total))(model.params, x, y)
    assert all(torch.isfinite(g).all() for g in found.values())
    stacked = {k: torch.stack([p, 1.1 * p]) for k, p in model.params.items()}
    each = vmap(grad(fr.mean(total)), (0, None, None))(stacked, x, y)
    assert largest_difference({k: g[0] for k, g in each.items()}, found) <= 1e-9


def test_forward_mode_and_plain_autograd():
    model, x, _ = problem("direct")
    v = torch.ones_like(x)

    def value(x):
        return model.predict(model.params, x).sin().sum()

    exact = float((grad(value)(x) * v).sum())
    assert abs(float(jvp(value, (x,), (v,))[1]) - exact) <= 1e-10
    x.requires_grad_()
    (slope,) = torch.autograd.grad(value(x), x, create_graph=True)
    assert abs(float((slope * v).sum()) - exact) <= 1e-10
    slope.square().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_compiled():
    model, x, y = problem("direct")
    total = fr.mean(fr.cure(fr.cross_entropy(model.predict), 0.5))
    found = torch.compile(grad(total), fullgraph=True, backend="aot_eager")(model.params, x, y)
    assert largest_difference(found, grad(total)(model.params, x, y)) <= 1e-10


def test_without_a_derivative_the_fused_kernel_may_run(monkeypatch):
    """Evaluation keeps torch's choice; a derivative of any order takes the plain kernel."""
    model, x, _ = problem("direct")
    allowed = []
    kernel = F.scaled_dot_product_attention

    def seen(*args):
        allowed.append(torch.backends.cuda.flash_sdp_enabled())
        return kernel(*args)

    monkeypatch.setattr(F, "scaled_dot_product_attention", seen)
    model.predict(model.params, x)
    grad(lambda x: model.predict(model.params, x).sum())(x)
    with sdpa_kernel(SDPBackend.MATH):
        model.predict(model.params, x)
    model.predict(model.params, x)
    assert allowed == [True, False, False, True]


def test_recognised():
    assert all(uses_fused_attention(make()) for make in NETWORKS.values())
    assert not uses_fused_attention(TinyNet())
