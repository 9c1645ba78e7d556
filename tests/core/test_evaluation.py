"""Evaluation against a plain attack on everybody, and starts against their law."""

from __future__ import annotations

import functools

import pytest
import torch
from problems import make_problem

import funcrobust as fr
from funcrobust.core import evaluation

EPS = 0.03
BALL = fr.linf(EPS)


@pytest.fixture(scope="module")
def case():
    """A network trained for a moment: some examples withstand the attack and some do not.

    In float64: in float32 the size of a batch would decide who of them is lost.
    """
    model = fr.functionalize(make_problem(torch.float32).module.double())
    draw = torch.Generator().manual_seed(5)
    y = torch.randint(5, (200,), generator=draw)
    centers = torch.rand(5, 3, 8, 8, generator=draw)
    x = (0.35 * centers[y] + 0.3 + 0.12 * torch.randn(200, 3, 8, 8, generator=draw)).clamp(0, 1)
    x = x.double()
    optim = fr.optimizer("SGD", 0.05)

    def objective(params, buffers, x, y):
        loss = fr.cross_entropy(model.with_buffers(buffers))
        return loss(params, x, y).mean(), (buffers, {})

    update, state = fr.make_update(objective, optim), fr.initial_state(model, optim)
    for _ in range(60):
        state, _ = update(state, x, y)
    return model.predict, state.params, x, y


PGD = evaluation.Pgd(BALL, step_size=EPS / 4, steps=10)


def robust(case, pgd=PGD, **options):
    return evaluation.robust(*case, pgd, **options)


def starts(x, numbers, ball, seed=0, purpose="evaluate/robust"):
    """A start is a function of the seed, the adversary's name and the example's number alone."""
    drawn = [ball.sample(x[n : n + 1], fr.generator(seed, purpose, n)) for n in numbers.tolist()]
    return torch.cat(drawn)


def test_clean_accuracy(case):
    predict, params, x, y = case
    expected = predict(params, x).argmax(1) == y
    assert 0.5 < expected.float().mean() < 1
    assert torch.equal(evaluation.correct(predict, params, x, y, batch_size=7), expected)


def test_nobody_who_withstands_is_fooled_at_the_end_and_nobody_is_lost_without_cause(case):
    """An example is lost iff it is misclassified clean or at one of the ten iterates."""
    predict, params, x, y = case
    stands = predict(params, x).argmax(1) == y
    survivors = stands.nonzero().squeeze(1)
    start = starts(x, survivors, BALL)
    for steps in range(1, 11):
        attack = fr.pgd(fr.cross_entropy(predict), BALL, step_size=EPS / 4, steps=steps)
        end = attack(params, start, y[survivors], center=x[survivors])
        stands[survivors] &= predict(params, end).argmax(1) == y[survivors]
    found = robust(case)
    assert torch.equal(found, stands)
    assert 0.05 < found.float().mean() < 0.95


def test_more_restarts_and_more_steps_never_help_the_defender(case):
    one, three = robust(case), robust(case, PGD._replace(restarts=3))
    assert not (three & ~one).any()
    assert one.sum() <= evaluation.correct(*case).sum()


def test_restarts_are_other_starts(case):
    """With steps of length 0 who is lost is lost at one of the starts, each with its own number."""
    predict, params, x, y = case
    ball = fr.linf(0.5)
    clean = predict(params, x).argmax(1) == y
    expected, first = clean.clone(), None
    for restart in ("", "/1", "/2"):
        start = starts(x, clean.nonzero().squeeze(1), ball, purpose=f"evaluate/robust{restart}")
        expected[clean] &= predict(params, start).argmax(1) == y[clean]
        first = expected.clone() if first is None else first
    pgd = evaluation.Pgd(ball, step_size=0.0, steps=1, restarts=3)
    assert torch.equal(robust(case, pgd), expected)
    assert expected.sum() < first.sum(), "else one start would do"


def test_robust_falls_with_the_radius(case):
    def share(r):
        pgd = evaluation.Pgd(fr.linf(r), step_size=r / 4, steps=10)
        return float(robust(case, pgd).float().mean())

    shares = [share(r) for r in (0.0, 0.02, 0.05, 0.2)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == float(evaluation.correct(*case).float().mean())
    assert shares[-1] < 0.05


def test_progress_counts_every_example(case):
    counts = []
    robust(case, PGD._replace(restarts=3), batch_size=30, advance=counts.append)
    assert sum(counts) == 200
    assert len([count for count in counts if count]) > 5, "not all at once"


def test_starts_are_counted_from_the_seed(case):
    """With steps of length 0 who is lost is lost at the start."""
    predict, params, x, y = case
    clean = predict(params, x).argmax(1) == y
    seen = []
    for seed in (1, 2):
        ball = fr.linf(0.5)
        start = starts(x, clean.nonzero().squeeze(1), ball, seed)
        expected = clean.clone()
        expected[clean] &= predict(params, start).argmax(1) == y[clean]
        pgd = evaluation.Pgd(ball, step_size=0.0, steps=1, seed=seed)
        assert torch.equal(robust(case, pgd), expected)
        seen.append(expected)
    assert not torch.equal(*seen), "another seed is another start"


def test_uint8_images_are_scaled():
    problem = make_problem(torch.float32)
    predict, params, y = problem.model.predict, problem.params, problem.y
    bytes_ = (problem.x * 255).round().to(torch.uint8)
    found, expected, raw = (
        evaluation.mean_of(problem.loss, params, x, y)
        for x in (bytes_, bytes_.float() / 255, bytes_.float())
    )
    assert found == expected != raw
    assert torch.equal(
        evaluation.correct(predict, params, bytes_, y),
        evaluation.correct(predict, params, bytes_.float() / 255, y),
    )


def test_mean_of(case):
    predict, params, x, y = case
    loss = fr.cross_entropy(predict)
    found = evaluation.mean_of(loss, params, x, y, batch_size=64)
    assert found == pytest.approx(float(loss(params, x, y).mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"restarts": 0}, "restarts"), ({"steps": 0}, "steps"), ({"step_size": -1.0}, "step_size"),
        ({"ball": fr.l2(float("inf"))}, "no uniform start"),
    ],
)  # fmt: skip
def test_bad_input(case, options, word):
    with pytest.raises(fr.FuncrobustError, match=word):
        robust(case, PGD._replace(**options))


def test_no_examples(case):
    predict, params, x, y = case
    with pytest.raises(fr.FuncrobustError, match=r"no examples.*x is empty"):
        robust((predict, params, x[:0], y[:0]))
    with pytest.raises(fr.FuncrobustError, match=r"no examples.*x is empty"):
        evaluation.mean_of(fr.cross_entropy(predict), params, x[:0], y[:0])


def test_a_seed_that_is_given_is_the_one(case):
    """Of a `Pgd` with another of its own; and whoever reads a seed of their own keeps it."""
    model, params, x, y = case
    ball = fr.linf(0.03)

    def standing(own, **given):
        return evaluation.robust(
            model, params, x, y, evaluation.Pgd(ball, 0.02, steps=2, seed=own), **given
        )

    for seed in (0, 3, 5):
        assert torch.equal(standing(3, seed=seed), standing(seed))
    with pytest.raises(fr.FuncrobustError, match="a Pgd of seed 3, and seed=5"):
        evaluation.attack_all(
            model, params, x, y, {"pgd": evaluation.Pgd(ball, 0.1, seed=3)}, seed=5
        )

    class Own:
        seed = 7

        def __call__(self, predict, params, x, y, run):
            return x

    assert evaluation.robust(model, params, x, y, Own()).shape == y.shape
    assert evaluation.robust(model, params, x, y, Own(), seed=1).shape == y.shape


OURS = {
    "linf": fr.linf(8 / 255),
    "l2": fr.l2(0.5),
    "smoothing": fr.random_smoothing(0.1),
    "no radius": fr.linf(float("inf")),
    "block means": fr.with_block_means(fr.l2(0.5), 2),
}


class Own:
    """A ball of somebody's own, which asks torch itself."""

    def sample(self, center, generator):
        assert isinstance(generator, torch.Generator)
        noise = torch.rand(center.shape, generator=generator, device=generator.device)
        return (center + noise).clamp(0, 1)


class Wrapping:
    """What wraps the sample of one of ours, its attributes too, and asks torch besides."""

    @functools.wraps(BALL.sample)
    def sample(self, center, generator):
        return BALL.sample(center, generator) + torch.rand(1, generator=generator)


class Mixing:
    """One made of ours that looks at all it is given, and draws as many as it likes."""

    def sample(self, center, generator):
        more = fr.linf(0.1).sample(center.repeat(2, 1, 1, 1), generator)
        return (more[: len(center)] * center.mean()).clamp(0, 1)


@pytest.mark.parametrize(
    "ball",
    [*OURS.values(), Own(), Wrapping(), Mixing()],
    ids=[*OURS, "somebody's own", "wrapping", "made of ours"],
)
def test_a_start_is_that_of_its_example_alone(ball):
    """Drawn together, and for some of them: the bits that each has by itself."""
    x = torch.rand((7, 3, 4, 4), generator=fr.generator(0, "images"))
    run = evaluation.Run(torch.arange(7), seed=3, purpose="it")
    alone = starts(x, run.numbers, ball, 3, "it")
    assert torch.equal(run.starts(ball.sample, x, run.numbers), alone)
    some = torch.tensor([5, 2])
    assert torch.equal(run.starts(ball.sample, x[some], some), alone[some])
    assert run.starts(ball.sample, x[:0], some[:0]).shape == (0, 3, 4, 4)
    other = run.starts(ball.sample, x, run.numbers, restart=1)
    assert (other != alone).any()


@pytest.mark.parametrize("ball", [fr.linf(8 / 255), fr.l2(0.5)], ids=["linf", "l2"])
def test_starts_are_the_cpus_whatever_device_is_the_default(ball):
    x = torch.rand((3, 3, 4, 4), generator=fr.generator(0, "images"))
    run = evaluation.Run(torch.arange(3))
    expected = run.starts(ball.sample, x, run.numbers)
    with torch.device("meta"):
        assert torch.equal(run.starts(ball.sample, x, run.numbers), expected)


def test_a_start_for_each_image_and_no_other():
    run = evaluation.Run(torch.arange(3))
    with pytest.raises(fr.FuncrobustError, match="2 generators for 3 rows"):
        run.starts(BALL.sample, torch.rand(3, 3, 4, 4), run.numbers[:2])
