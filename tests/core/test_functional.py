"""Modules become pure functions: nothing mutated, nothing stale."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import TinyNet, largest_difference, make_problem
from torch import nn
from torch.func import grad, vmap

import funcrobust as fr


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


def test_a_missing_tensor_is_loud(problem):
    with pytest.raises((RuntimeError, NotImplementedError)):
        problem.model.with_buffers({})(problem.params, problem.x)


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


def test_dropout_is_explicit():
    model = make_problem(torch.float32, dropout=0.5).model
    x = torch.rand(64, 3, 8, 8)
    with pytest.raises(fr.FuncrobustError, match="generator"):
        model.predict_train(model.params, model.buffers, x)
    outputs = [
        model.predict_train(model.params, model.buffers, x, fr.generator(seed, "dropout"))[0]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert torch.equal(model.predict(model.params, x), model.predict(model.params, x))


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


def test_dropout_at_its_limits():
    everything = fr.functionalize(nn.Sequential(nn.Dropout(1.0)))
    y, _ = everything.predict_train({}, {}, torch.ones(3, 3), fr.generator(0, "dropout"))
    assert torch.equal(y, torch.zeros(3, 3))
    with pytest.raises(fr.FuncrobustError, match="AlphaDropout"):
        fr.functionalize(nn.Sequential(nn.AlphaDropout(0.5)))


def test_float16_is_refused(problem):
    with pytest.raises(fr.FuncrobustError, match="bfloat16"):
        fr.autocast(problem.model.predict, torch.float16)


def test_dropout_keeps_the_mean():
    model = fr.functionalize(nn.Dropout(0.25))
    x = torch.ones(400, 100)
    y, _ = model.predict_train({}, {}, x, fr.generator(0, "dropout"))
    assert abs(float(y.mean()) - 1) < 0.02
    assert abs(float((y == 0).float().mean()) - 0.25) < 0.02


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


def test_ensembles_by_vmap(problem):
    stacked = {k: torch.stack([p, 2 * p]) for k, p in problem.params.items()}
    both = vmap(problem.model.predict, (0, None))(stacked, problem.x)
    second = problem.model.predict({k: 2 * p for k, p in problem.params.items()}, problem.x)
    assert torch.allclose(both[1], second)
