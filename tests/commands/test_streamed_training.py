"""Training on images that are decoded when they are wanted."""

from __future__ import annotations

import pytest
import torch
from problems import run_cli
from streamed_sets import make_folder

from funcrobust import data
from funcrobust.commands.cure_train.assemble import assemble
from funcrobust.commands.cure_train.options import CureTrain
from funcrobust.commands.psi_train.assemble import make_batches
from funcrobust.commands.psi_train.options import PsiTrain
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.shards import Shard
from funcrobust.core.starts import GaussianStarts
from funcrobust.running.dataset import for_statistics, shuffled_if_sorted

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

GIVEN = {
    "preset": "cpu", "model": "preact-tiny", "epochs": 2, "batch_size": 16, "precision": "fp32",
    "compile": False, "train_examples": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("set"), 100, 20)


def load(folder, workers, size=64):
    streaming = data.Streaming(True, size, workers)
    return shuffled_if_sorted(data.load(str(folder), streaming=streaming))


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_taken_up_in_the_middle_with_other_workers_ends_at_the_same_bits(folder):
    def training(workers):
        options = CureTrain.filled(GIVEN | {"dataset": str(folder)})
        return assemble(options, load(folder, workers).subset(64, None, 0))

    def run(training, state, steps):
        update = training.update(lambda update, **_: update)
        for step in steps:
            state, _ = update(state, training.batches(step))
        return state

    alone, helped = training(0), training(2)
    wanted = run(alone, alone.state, range(6))
    halfway = run(helped, helped.state, range(3))
    later = training(2)
    found = run(later, halfway, range(3, 6))
    assert int(found.step) == 6
    assert same(found.params, wanted.params)
    assert same(found.buffers, wanted.buffers)


def test_a_processes_rows_are_those_of_the_whole_batch(folder):
    """Whatever is drawn for the other rows, black there, one's own are as if all were decoded."""
    from funcrobust.commands.cure_train.assemble import Batches
    from funcrobust.commands.cure_train.compose import training_attack
    from funcrobust.running.threat import pick_ball

    given = GIVEN | {"dataset": str(folder), "restore": 0.5, "delta": "random", "mixed": 0.0}
    options = CureTrain.filled(given)
    dataset, ball = load(folder, 0), pick_ball("linf", 8 / 255)
    attack = training_attack(options, ball)
    whole, own = (
        Batches(dataset, ball, attack, options, 6, shard) for shard in (Shard(), Shard(1, 2))
    )
    shard = Shard(1, 2)
    due = 2 * options.cycle  # where all that can be drawn is
    found, wanted = shard.rows(own(due)), shard.rows(whole(due))
    for name, value in wanted._asdict().items():
        for one, other in zip(_leaves(getattr(found, name)), _leaves(value), strict=True):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other)), name
    assert torch.equal(own.whole()(2).x, whole(2).x)


def _leaves(value):
    return [] if value is None else list(value) if isinstance(value, tuple) else [value]


def test_psi_trains_batches_are_the_same_whoever_decodes(folder):
    options = PsiTrain.filled({"dataset": str(folder), "batch_size": 10, "step_size": 1.0})
    alone, helped = (make_batches(options, load(folder, workers, 32)) for workers in (0, 2))
    for step in (0, 1, 5):
        assert torch.equal(alone(step).x, helped(step).x)
        assert torch.equal(alone(step).y, helped(step).y)


def test_gaussian_starts_decode_a_class_when_it_is_asked_for(folder, monkeypatch):
    dataset = load(folder, 0, 32)
    draw = torch.Generator().manual_seed(3)
    wanted = GaussianStarts(dataset.x_train[:], dataset.y_train)(torch.tensor([4, 9]), draw)
    draw = torch.Generator().manual_seed(3)
    images, labels = for_statistics(dataset)
    assert torch.equal(GaussianStarts(images, labels)(torch.tensor([4, 9]), draw), wanted)
    monkeypatch.setattr("funcrobust.running.dataset.STATISTICS", 20 * 9 * 4 * 3 * 32**2)
    with pytest.raises(FuncrobustError, match="Gaussian images of 20 classes, 32x32, need more"):
        for_statistics(dataset)


def test_the_commands_from_training_to_evaluation(folder, tmp_path):
    told = ("--dataset", str(folder), "--stream", "--device", "cpu")
    done = run_cli(
        "cure-train", *told, "--image-size", "32", "--workers", "2", "--epochs", "1",
        "--batch-size", "25", "--train-examples", "50", "--robust-examples", "4",
        "--evaluate-examples", "4", "--evaluate-steps", "1", "--out", str(tmp_path), "--name", "a",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "100 training and 20 test images of 3x32x32 (streamed" in done.stdout
    done = run_cli(
        "generate", str(tmp_path / "a"), *told, "--workers", "0", "--steps", "1",
        "--png", str(tmp_path / "made.png"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "of 3x32x32" in done.stdout  # the checkpoint's size
    assert (tmp_path / "made.png").exists()
    done = run_cli("evaluate", str(tmp_path / "a"), *told, "--image-size", "48")
    assert done.returncode == 2
    assert "the checkpoint classifies 3x32x32 images" in done.stderr


def test_a_broken_image_ends_a_training_in_one_line(tmp_path):
    make_folder(tmp_path, 60, 20)
    broken = tmp_path / "train" / "n04" / "0004.JPEG"
    broken.write_bytes(broken.read_bytes()[:-200])
    done = run_cli(
        "cure-train", "--dataset", str(tmp_path), "--stream", "--image-size", "32", "--workers",
        "2", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "runs"),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: cannot read {broken} (")
