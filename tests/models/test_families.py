"""The families of networks: sizes, the papers' structure, other libraries as oracles."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from funcrobust import models
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.network.functional import functionalize
from funcrobust.models.preact_resnet import preact_resnet
from funcrobust.models.wide_resnet import wide_resnet


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max())


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("preact-tiny", 308_938),
        ("preact-small", 1_228_170),
        ("preact-medium", 2_757_706),
        ("preact-resnet18", 11_172_170),
        ("wrn-28-10", 36_479_194),
        ("resnet20", 269_722),
        ("robustness-resnet18", 11_173_962),
        ("robustness-resnet50", 23_520_842),
    ],
)
def test_parameter_counts(name, count):
    with torch.device("meta"):
        network = models.build(name)
    assert parameters(network) == count
    assert name in models.names()


def test_the_wide_resnet_has_the_papers_number_of_convolutions():
    with torch.device("meta"):
        network = wide_resnet(depth=28, widen=10)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) == 25
    assert sum(m.kernel_size == (1, 1) for m in convolutions) == 3


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("preact-tiny", 3, 32),
        ("preact-tiny", 1, 8),
        ("preact-tiny", 1, 28),
        ("resnet20", 3, 32),
        ("resnet20", 1, 8),
        ("preact-small", 1, 8),
        ("preact-resnet18", 1, 8),
    ],
)
def test_forward_shapes(name, channels, size):
    network = models.build(name, num_classes=7, in_channels=channels)
    x = torch.rand(2, channels, size, size)
    assert network(x).shape == (2, 7)  # training mode: batch statistics over a 1x1 last stage
    assert network.eval()(x).shape == (2, 7)


def test_wide_resnet_forward():
    assert wide_resnet(depth=10, widen=1, num_classes=5)(torch.rand(2, 3, 32, 32)).shape == (2, 5)


def test_wide_resnet_equals_the_preact_network_of_that_width():
    """The two are written from different papers' code, and are the same function."""
    wide = wide_resnet(depth=10, widen=1).double().eval()
    pre = preact_resnet(widths=(16, 32, 64), blocks=(1, 1, 1)).double().eval()
    renamed = {
        name.replace("block", "layer")
        .replace(".layer.", ".")
        .replace("convShortcut", "shortcut.0")
        .replace("fc.", "linear."): value
        for name, value in wide.state_dict().items()
    }
    renamed = {
        ("bn." + name.removeprefix("bn1.") if name.startswith("bn1.") else name): value
        for name, value in renamed.items()
    }
    pre.load_state_dict(renamed)
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(wide(x), pre(x))


def test_smooth_activation_gives_second_derivatives():
    network = preact_resnet(widths=(4,), blocks=(1,), activation=nn.Softplus).eval()
    x = torch.rand(1, 3, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x).logsumexp(1).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(gradient.square().sum(), x)
    assert curvature.abs().sum() > 0


def test_robustness_network_equals_the_librarys_own():
    library = models.import_robustness("cifar_models.resnet")
    network = models.build("robustness-resnet18", num_classes=4, seed=1).eval()
    theirs = library.ResNet18(num_classes=4).eval()
    theirs.load_state_dict(network.net.state_dict())
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(network(x), theirs((x - network.mean) / network.std))


def test_robustness_resnet50_is_the_librarys_own():
    library = models.import_robustness("cifar_models.resnet")
    with torch.device("meta"):
        network = models.build("robustness-resnet50", num_classes=4)
        theirs = library.ResNet50(num_classes=4)
    assert type(network.net) is library.ResNet
    ours = {name: t.shape for name, t in network.net.state_dict().items()}
    assert ours == {name: t.shape for name, t in theirs.state_dict().items()}


def test_networks_work_under_function_transforms():
    """Per-example input gradients by vmap equal those of one backward pass."""
    network = models.build("preact-tiny", in_channels=1).double().eval()
    weights = network.state_dict()

    def margin(x):
        logits = torch.func.functional_call(network, weights, (x[None],))
        return logits[0, 0] - logits[0, 1]

    x = torch.rand(3, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    logits = network(x)
    (together,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), x)
    apart = torch.func.vmap(torch.func.grad(margin))(x.detach())
    torch.testing.assert_close(apart, together)


def test_robustness_imports_where_it_needs_the_removed_torchvision_module():
    assert models.import_robustness().__name__ == "robustness"
    assert hasattr(models.import_robustness("model_utils"), "make_and_restore_model")


def test_robustness_networks_take_32x32_rgb_only():
    with pytest.raises(FuncrobustError, match="32x32 RGB"):
        models.build("robustness-resnet18", in_channels=1)
    with pytest.raises(FuncrobustError, match="takes 32x32 images, got 28x28"):
        models.build("robustness-resnet18")(torch.rand(1, 3, 28, 28))


def test_bad_architectures_are_refused():
    with pytest.raises(FuncrobustError, match="one number a stage"):
        preact_resnet(widths=(4, 8), blocks=(1,))
    with pytest.raises(FuncrobustError, match="stem"):
        preact_resnet(widths=(4,), blocks=(1,), stem="7x7")  # type: ignore[arg-type]
    with pytest.raises(FuncrobustError, match="6n"):
        wide_resnet(depth=27)


def test_a_flip_averaged_network_sees_both_mirror_images_and_trains_on_one():
    plain = models.build("preact-tiny-silu", seed=3)
    both = models.build("preact-tiny-silu-flip", seed=3)
    assert list(both.state_dict()) == list(plain.state_dict())
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert off(both(x), plain(x)) == 0  # training mode
    plain.load_state_dict(both.state_dict())  # the statistics of that batch
    plain, both = plain.double().eval(), both.double().eval()
    x = x.double()
    assert off(both(x), (plain(x) + plain(x.flip(-1))) / 2) < 1e-12
    assert off(both(x), both(x.flip(-1))) < 1e-12
    assert off(both(x), plain(x)) > 1e-6


def test_the_functional_modes_of_a_flip_averaged_network_are_the_modules():
    network = models.build("preact-tiny-silu-flip", seed=3).double()
    model = functionalize(network)
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    one = functionalize(models.build("preact-tiny-silu", seed=3).double())
    logits = model.predict(model.params, x)
    mean = (one.predict(one.params, x) + one.predict(one.params, x.flip(-1))) / 2
    assert off(logits, mean) < 1e-12
    for mode in (
        lambda f: f.by_batch(f.buffers)(f.params, x),
        lambda f: f.predict_train(f.params, f.buffers, x)[0],
    ):
        assert off(mode(model), mode(one)) < 1e-12
    features = models.representation(network.eval())
    assert off(models.head(network)(features(x)), logits) < 1e-12
