"""Modules become pure functions: nothing mutated, nothing stale."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import TinyNet, largest_difference, make_problem
from torch import nn
from torch.func import grad, vmap

import funcrobust as fr
from funcrobust.core import evaluation


def test_predict_is_the_modules_evaluation_mode(problem):
    found = problem.model.predict(problem.params, problem.x)
    assert (found - problem.module(problem.x)).abs().max() <= 1e-12


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("layer", "shape"), [("1d", (4, 3)), ("2d", (4, 3, 5, 5)), ("3d", (4, 3, 2, 2, 2))]
)
def test_batch_norm_as_an_affine_map(layer, shape, affine):
    """Values and second derivatives, against torch's own evaluation-mode batch norm."""
    norm = getattr(nn, f"BatchNorm{layer}")(3, affine=affine).double()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    model = fr.functionalize(norm)
    norm.eval()
    x = torch.randn(shape).double()

    def slope(call):
        return grad(lambda x: grad(lambda x: call(x).sin().sum())(x).square().sum())(x)

    assert (model.predict(model.params, x) - norm(x)).abs().max() <= 1e-12
    assert (slope(lambda x: model.predict(model.params, x)) - slope(norm)).abs().max() <= 1e-12
    assert isinstance(model.module(), type(norm))


def test_batch_norm_without_running_statistics_goes_by_the_batch():
    norm = nn.BatchNorm2d(3, track_running_stats=False).double()
    model, x = fr.functionalize(norm), torch.randn(4, 3, 5, 5).double()
    assert (model.predict(model.params, x) - norm.eval()(x)).abs().max() < 1e-12


def test_by_batch_is_training_mode_that_moves_nothing(problem):
    """Values and second derivatives against torch's own training-mode batch norm."""
    model, module = problem.model, copy.deepcopy(problem.module).train()
    predict = model.by_batch(model.buffers)
    assert (predict(model.params, problem.x) - module(problem.x)).abs().max() < 1e-12

    def slope(call):
        return grad(lambda x: grad(lambda x: call(x).sin().sum())(x).square().sum())(problem.x)

    def own(x):
        return model.predict_train(model.params, model.buffers, x)[0]

    found = slope(lambda x: predict(model.params, x))
    assert found.abs().max() > 1e-6
    assert (found - slope(own)).abs().max() < 1e-12


def test_predict_train_returns_new_buffers_and_mutates_nothing(problem):
    before = copy.deepcopy(problem.model.buffers)
    logits, after = problem.model.predict_train(problem.params, problem.model.buffers, problem.x)
    reference = copy.deepcopy(problem.module).train()
    assert torch.equal(logits, reference(problem.x))
    assert largest_difference(after, dict(reference.named_buffers())) == 0
    assert largest_difference(before, problem.model.buffers) == 0
    assert largest_difference(after, before) > 0


def test_buffers_come_out_of_a_gradient(problem):
    def objective(params, buffers):
        logits, buffers = problem.model.predict_train(params, buffers, problem.x)
        return logits.square().mean(), buffers

    _, after = grad(objective, has_aux=True)(problem.params, problem.model.buffers)
    _, expected = problem.model.predict_train(problem.params, problem.model.buffers, problem.x)
    assert largest_difference(after, expected) == 0


def test_the_original_module_is_left_alone_and_not_needed():
    module = TinyNet()
    before = copy.deepcopy(module.state_dict())
    model = fr.functionalize(module)
    model.predict_train(model.params, model.buffers, torch.rand(2, 3, 8, 8))
    assert module.training
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert model.predict(model.params, torch.rand(2, 3, 8, 8)).abs().sum() > 0


def calls(model, params, buffers, x):
    """Every way to run a network."""
    return {
        "predict": lambda: model.predict(params, x),
        "with_buffers": lambda: model.with_buffers(buffers)(params, x),
        "by_batch": lambda: model.by_batch(buffers)(params, x),
        "predict_train": lambda: model.predict_train(params, buffers, x)[0],
    }


WAYS = ["predict", "with_buffers", "by_batch", "predict_train"]


@pytest.mark.parametrize("way", WAYS)
def test_tensors_by_wrong_names(problem, way):
    model, p, b, x = problem.model, problem.params, problem.model.buffers, problem.x
    without = {k: t for k, t in p.items() if k != "net.0.weight"}
    for params, words in (
        (without, "no 'net.0.weight', which"),
        (without | {"net.0.wieght": p["net.0.weight"]}, "is it called 'net.0.wieght'"),
        ({f"module.{k}": t for k, t in p.items()}, "and 5 more"),
        (p | {"net.0.wieght": p["net.0.weight"]}, "did you mean 'net.0.weight'"),
        (p | {"psi.temperature": x.sum()}, "has 'psi.temperature', which .* no dot"),
        (p | b, "not a state_dict"),
        (list(p.values()), "a dict of tensors by name, got list"),
    ):
        with pytest.raises(fr.FuncrobustError, match=words) as found:
            calls(model, params, b, x)[way]()
        assert "\n" not in str(found.value)
    free = p | {"temperature": x.sum(), "weight": x.sum()}
    assert torch.equal(calls(model, free, b, x)[way](), calls(model, p, b, x)[way]())
    if way != "predict":
        for buffers, words in (
            ({}, "buffers has no 'net.1.running_mean'"),
            (b | {"net.1.running_men": x}, "did you mean 'net.1.running_mean'"),
        ):
            with pytest.raises(fr.FuncrobustError, match=words):
                calls(model, p, buffers, x)[way]()
        counted = {k: t for k, t in b.items() if not k.endswith("num_batches_tracked")}
        assert torch.equal(calls(model, p, counted, x)[way](), calls(model, p, b, x)[way]())


@pytest.mark.parametrize("way", WAYS)
def test_bytes_are_refused_in_one_line(problem, way):
    x = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(fr.FuncrobustError, match="divide by 255"):
        calls(problem.model, problem.params, problem.model.buffers, x)[way]()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stack_buffers", [True, False])
def test_ensembles_by_vmap(problem, way, stack_buffers):
    """Values and input gradients of stacked networks, against one after the other."""
    model, x = problem.model, problem.x
    members = [
        ({k: s * t for k, t in problem.params.items()},
         {k: (s * t).to(t.dtype) for k, t in model.buffers.items()} if stack_buffers
         else model.buffers)
        for s in (1, 2, 3)
    ]  # fmt: skip

    def both(params, buffers):
        def total(x):
            logits = calls(model, params, buffers, x)[way]()
            return logits.sin().sum(), logits

        return grad(total, has_aux=True)(x)

    p, b = ({k: torch.stack([m[i][k] for m in members]) for k in members[0][i]} for i in (0, 1))
    if way == "predict_train" and not stack_buffers:
        with pytest.raises(fr.FuncrobustError, match="stack the buffers"):
            vmap(both, (0, None))(p, model.buffers)
        return
    found = vmap(both, (0, 0 if stack_buffers else None))(p, b if stack_buffers else model.buffers)
    for i, member in enumerate(members):
        for a, expected in zip(found, both(*member), strict=True):
            assert (a[i] - expected).abs().max() <= 1e-12


def test_buffers_of_an_ensemble_come_out_stacked(problem):
    p, b = ({k: torch.stack([t, 2 * t]) for k, t in d.items()}
            for d in (problem.params, problem.model.buffers))  # fmt: skip
    _, after = vmap(problem.model.predict_train, (0, 0, None))(p, b, problem.x)
    for i in (0, 1):
        one = ({k: t[i] for k, t in d.items()} for d in (p, b))
        expected = problem.model.predict_train(*one, problem.x)[1]
        assert largest_difference({k: t[i] for k, t in after.items()}, expected) <= 1e-12


def test_a_dry_run_on_the_meta_device(problem):
    """Shapes without arithmetic, autocast included."""
    model = problem.model.to("meta")
    predict = fr.autocast(model.predict, torch.bfloat16)
    x = problem.x.to("meta")
    gradient = grad(fr.mean(fr.cure(fr.cross_entropy(predict), 0.5)))
    found = gradient(model.params, x, problem.y.to("meta"))
    assert {k: g.shape for k, g in found.items()} == {k: p.shape for k, p in model.params.items()}
    assert predict(model.params, x).is_meta


def test_tied_parameters_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False)
            self.b = nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    module = Tied()
    model = fr.functionalize(module)
    x = torch.rand(2, 4)
    assert list(model.params) == ["a.weight"]
    assert torch.equal(model.predict(model.params, x), module(x))
    doubled = {"a.weight": 2 * model.params["a.weight"]}
    assert torch.allclose(model.predict(doubled, x), 4 * module(x))
    assert torch.allclose(model.module(doubled)(x), 4 * module(x))


def test_tied_buffers_are_filled_too():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
            self.b.running_mean = self.a.running_mean

        def forward(self, x):
            return self.b(self.a(x))

    module = fr.functionalize(Shared()).module()
    assert module(torch.rand(4, 3)).device.type == "cpu"
    assert module.a.running_mean is module.b.running_mean


def test_float16_is_refused(problem):
    with pytest.raises(fr.FuncrobustError, match="bfloat16"):
        fr.autocast(problem.model.predict, torch.float16)


def test_module_round_trip(problem):
    module = problem.model.module()
    assert not module.training
    assert torch.equal(module(problem.x), problem.module(problem.x))
    with torch.no_grad():
        next(module.parameters()).zero_()
    assert next(iter(problem.params.values())).abs().sum() > 0


def test_to_changes_layout_not_values(problem):
    """In float64: another layout is another order of summation."""
    model = problem.model.to("cpu", torch.channels_last)
    weight = model.params["net.0.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    found = model.predict(model.params, problem.x)
    assert (found - problem.model.predict(problem.params, problem.x)).abs().max() <= 1e-12


def test_autocast_returns_float32_and_float32_gradients():
    problem = make_problem(torch.float32)
    predict = fr.autocast(problem.model.predict, torch.bfloat16)
    logits = predict(problem.params, problem.x)
    exact = problem.model.predict(problem.params, problem.x)
    assert logits.dtype == torch.float32
    assert 0 < (logits - exact).abs().max() < 0.05
    gradient = grad(fr.mean(fr.cross_entropy(predict)))(problem.params, problem.x, problem.y)
    assert all(g.dtype == torch.float32 for g in gradient.values())
    assert fr.autocast(problem.model.predict, None) == problem.model.predict


def test_batch_norm_refuses_what_torchs_own_does():
    """An image without its batch would be normalised along the wrong axis, and never say so."""
    model = fr.functionalize(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)))
    with pytest.raises(ValueError, match="4D"):
        model.predict(model.params, torch.zeros(3, 8, 8))
    flat = fr.functionalize(nn.BatchNorm1d(4))
    with pytest.raises(fr.FuncrobustError, match="more than one value a channel"):
        flat.by_batch(flat.buffers)(flat.params, torch.zeros(1, 4))
    assert flat.by_batch(flat.buffers)(flat.params, torch.zeros(2, 4)).shape == (2, 4)


class _Twice(nn.Module):
    """Calls one norm for two halves of what it gives."""

    def __init__(self, momentum):
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(2, momentum=momentum), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.cat([self.norm(x), self.norm(3 * x.flip(1))], 1))


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_a_batch_norm_that_is_called_twice_has_statistics(momentum):
    """Between those of its two calls: of the running ones, the last weighs most."""
    model = fr.functionalize(_Twice(momentum).double())
    x = torch.rand(64, 2, generator=fr.generator(0, "twice"), dtype=torch.float64)
    found = evaluation.recalibrated(model, model.params, model.buffers, [x])
    share = {0.1: 1 / 1.9, 1.0: 1.0, None: 1 / 2}[momentum]  # of the second call
    for name, of in (("mean", torch.mean), ("var", torch.var)):
        first, second = of(x, dim=0), of(3 * x.flip(1), dim=0)
        assert torch.allclose(found[f"norm.running_{name}"], torch.lerp(first, second, share))


def test_instance_norm_is_recalibrated():
    network = nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten())
    model = fr.functionalize(network.double())
    x = 10 * torch.rand(8, 2, 30, generator=fr.generator(0, "instances"), dtype=torch.float64)
    found = evaluation.recalibrated(model, model.params, model.buffers, [x])
    assert torch.allclose(found["0.running_mean"], x.mean((0, 2)))
    assert torch.allclose(found["0.running_var"], x.var(2).mean(0))
