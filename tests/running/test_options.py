"""Options: what a field says is what is checked, in Python as on the command line."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt

from funcrobust.core.errors import FuncrobustError
from funcrobust.running.marks import Choices, Count, Flag, Spelled, Weight, Where
from funcrobust.running.option import options_of, read_number, written_number
from funcrobust.running.options import Options, command_name, only_with, unless


def even(text):
    if len(text) % 2:
        raise FuncrobustError(f"{text!r} is odd")


@dataclass(frozen=True, kw_only=True)
class Base(Options):
    """Base."""

    seed: Annotated[int, Ge(0), Lt(10)] = 0
    out: Annotated[Path, Where()] = Path("runs")


@dataclass(frozen=True, kw_only=True)
class ToyTrain(Base):
    """Toy."""

    file: str = field(default="x", kw_only=False)
    h: Annotated[float, Gt(0), Le(4)] = 1.0
    lam: Annotated[Weight, Flag("--lambda", "--lam")] = 2.0
    rate: Weight | None = None
    kind: Literal["one", "Two"] = "one"
    steps: Annotated[Count, only_with(kind="Two")] = 3
    found: Annotated[str, Choices(lambda: ("a", "b"))] = "a"
    spelt: Annotated[str, Spelled(even)] = "ab"
    near: Annotated[bool, Flag(off="--far")] = True
    many: tuple[Path, ...] = ()
    weights: Annotated[dict[str, float], Ge(0), Choices(("p", "q"))] = field(default_factory=dict)
    extra: Annotated[float, only_with(weights=..., rate=...)] = 0.5
    learned: int = 0
    start: Annotated[str, unless(learned=...)] = "made"

    def check(self):
        super().check()
        if self.kind == "Two" and self.h == 2:
            raise FuncrobustError("not both")

    @classmethod
    def beneath(cls, given):
        return {"kind": "Two", "steps": 7} if given.get("found") == "b" else {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"h": math.nan}, "--h must be a finite number > 0 and <= 4, got nan"),
        ({"h": 0.0}, "got 0.0"), ({"h": 5}, "got 5"), ({"h": "1"}, "got '1'"),
        ({"h": True}, "got True"), ({"h": None}, "got None"), ({"seed": 10}, "< 10"),
        ({"seed": 1.0}, "--seed must be a whole number"), ({"seed": True}, "got True"),
        ({"lam": -1.0}, "--lambda must be"), ({"rate": math.inf}, "--rate"),
        ({"kind": "two"}, "unknown --kind 'two' (did you mean 'Two'?): choose from one, Two"),
        ({"found": "c"}, "choose from a, b"), ({"spelt": "abc"}, "'abc' is odd"),
        ({"near": 1}, "--near must be true or false, got 1"), ({"file": ""}, "FILE must be a text"),
        ({"out": "runs"}, "--out must be a path"), ({"many": [Path("a")]}, "--many"),
        ({"many": ("a",)}, "--many must be several, each a path"),
        ({"weights": {"r": 1.0}}, "unknown --weights 'r'"),
        ({"weights": {"p": -1.0}}, "--weights must be NAME=VALUE, each a finite number >= 0"),
        ({"steps": 4}, "--steps does nothing here: it needs --kind Two"),
        ({"extra": 1.0}, "--extra does nothing here: it needs --weights or --rate"),
        ({"learned": 1, "start": "own"}, "--start does nothing here: --learned takes its place"),
        ({"kind": "Two", "h": 2}, "not both"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_or_without_effect_is_refused(given, message):
    with pytest.raises(FuncrobustError) as refused:
        ToyTrain(**given)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        {"h": 4}, {"rate": 0.0}, {"kind": "Two", "steps": 4}, {"many": (Path("a"),)},
        {"weights": {"p": 1, "q": 0.5}, "extra": 1.0}, {"rate": 1.0, "extra": 1.0},
        {"start": "own"}, {"learned": 1},
    ],
)  # fmt: skip
def test_what_is_valid_is_kept(given):
    options = ToyTrain(**given)
    assert {name: getattr(options, name) for name in given} == given


def test_a_preset_lies_beneath_what_is_given():
    assert ToyTrain.filled({}) == ToyTrain()
    assert ToyTrain.filled({"found": "b"}) == ToyTrain(found="b", kind="Two", steps=7)
    assert ToyTrain.filled({"found": "b", "steps": 9}).steps == 9
    assert ToyTrain.filled({"h": 2.0}, {"lam": 3.0}) == ToyTrain(h=2.0, lam=3.0)


def test_what_a_preset_chose_goes_when_it_has_no_effect_but_not_what_is_given():
    changed = ToyTrain.filled({"found": "b", "kind": "one"})
    assert (changed.kind, changed.steps) == ("one", 3)
    with pytest.raises(FuncrobustError, match="--steps does nothing here"):
        ToyTrain.filled({"found": "b", "kind": "one", "steps": 7})
    with pytest.raises(FuncrobustError, match="--steps does nothing here"):
        ToyTrain.filled({"steps": 3})  # the default's own value, said for nothing


@pytest.mark.parametrize("layer", ["given", "preset"])
def test_an_option_that_does_not_exist_is_refused_with_the_nearest(layer):
    arguments = ({"stepz": 3},) if layer == "given" else ({}, {"stepz": 3})
    with pytest.raises(FuncrobustError, match="unknown option 'stepz' \\(did you mean 'steps'"):
        ToyTrain.filled(*arguments)


def test_options_are_frozen_and_checked_anew_when_replaced():
    options = ToyTrain()
    with pytest.raises(AttributeError):
        options.h = 2.0  # type: ignore[misc]
    with pytest.raises(FuncrobustError, match="--h"):
        replace(options, h=-1.0)


def test_fields_know_their_flags_their_group_and_their_default():
    fields = options_of(ToyTrain)
    assert list(fields)[:3] == ["quiet", "seed", "out"]
    assert fields["lam"].flags == ("--lambda", "--lam")
    assert (fields["near"].flag, fields["near"].off) == ("--near", "--far")
    assert (fields["file"].flag, fields["file"].positional) == ("FILE", True)
    assert (fields["seed"].owner, fields["h"].owner) == (Base, ToyTrain)
    assert (fields["out"].where, fields["h"].where) == (True, False)
    assert fields["rate"].default is None
    assert fields["weights"].default == {}
    assert command_name(ToyTrain) == "toy-train"


def test_a_required_option():
    @dataclass(frozen=True, kw_only=True)
    class Export(Options):
        file: str

    assert options_of(Export)["file"].default is MISSING
    with pytest.raises(FuncrobustError, match="--file is missing"):
        Export.filled({})


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (8 / 255, "8/255"), (10 / 255, "10/255"), (0.031, "0.031"), (5e-4, "0.0005"), (3.0, "3"),
        (0.1 + 0.2, "0.30000000000000004"), (-2 / 255, "-2/255"), (1e-8, "1e-08"), (0.0, "0"),
        (7 / 255 * 1.25, repr(7 / 255 * 1.25)),
    ],
)  # fmt: skip
def test_numbers_are_written_so_that_they_come_back(number, text):
    assert written_number(number) == text
    assert read_number(text) == number


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("h", 8 / 255, ["--h", "8/255"]), ("lam", 2.5, ["--lambda", "2.5"]),
        ("seed", 3, ["--seed", "3"]), ("near", False, ["--far"]), ("near", True, ["--near"]),
        ("many", (Path("a"), Path("b")), ["--many", "a", "--many", "b"]),
        ("weights", {"p": 1.0, "q": 0.5}, ["--weights", "p=1", "--weights", "q=0.5"]),
        ("file", "y z", ["y z"]), ("kind", "Two", ["--kind", "Two"]),
    ],
)  # fmt: skip
def test_values_are_written_as_words(name, value, words):
    assert options_of(ToyTrain)[name].written(value) == words


@pytest.mark.parametrize(
    ("name", "said", "value"),
    [
        ("h", "8/255", 8 / 255), ("seed", "3", 3), ("out", "a/b", Path("a/b")),
        ("many", ["a", "b"], (Path("a"), Path("b"))), ("weights", ["p=1/2"], {"p": 0.5}),
        ("out", "~/a", Path.home() / "a"), ("many", ["~/b"], (Path.home() / "b",)),
    ],
)  # fmt: skip
def test_words_are_read_as_values(name, said, value):
    assert options_of(ToyTrain)[name].read(said) == value


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("h", "1/0"), ("h", "one"), ("h", "1/2/3"), ("seed", "3.0"), ("seed", ""),
        ("weights", ["p"]), ("weights", ["=1"]), ("weights", ["p="]), ("weights", ["p=x"]),
    ],
)  # fmt: skip
def test_words_that_are_no_values(name, said):
    with pytest.raises(FuncrobustError, match=f"--{name} must be"):
        options_of(ToyTrain)[name].read(said)


@dataclass(frozen=True, kw_only=True)
class Chosen(Options):
    """Chosen."""

    chosen_by = "preset"
    preset: str = "plain"
    h: float = 1.0
    trades: Weight | None = None
    hat: Annotated[Weight | None, Flag(off="--no-hat")] = None

    @classmethod
    def beneath(cls, given):
        return {"h": 2.0, "trades": 5.0, "hat": 1.0} if given.get("preset") == "strong" else {}


def test_a_preset_that_is_a_label_alone_is_refused_and_one_whose_values_are_given_is_not():
    with pytest.raises(FuncrobustError, match="not the values of preset 'strong': build the"):
        Chosen(preset="strong")
    given = {"preset": "strong", "h": 1.0, "hat": None}
    made = Chosen.filled(given | {"trades": 3.0})
    assert (made.h, made.trades, made.hat) == (1.0, 3.0, None)
    plain = Chosen(**given, trades=None)
    assert replace(plain, quiet=True).h == 1.0


def test_none_over_a_presets_value_needs_a_flag_that_says_it():
    assert options_of(Chosen)["hat"].written(None) == ["--no-hat"]
    with pytest.raises(FuncrobustError, match=r"--trades cannot be None over the preset's 5\.0"):
        Chosen.filled({"preset": "strong", "trades": None})
    assert Chosen.filled({"preset": "plain", "trades": None}).trades is None
