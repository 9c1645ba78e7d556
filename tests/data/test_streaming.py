"""Images that are decoded when they are wanted: which they are, their pixels, what goes wrong."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from streamed_sets import CLASSES, make_folder
from torchvision import transforms
from torchvision.transforms import functional as plain

from funcrobust import data
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.randomness import derive_seed, generator
from funcrobust.core.shards import Shard

SIZE = 32
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("set"))


def load(folder, workers=0, size=SIZE):
    return data.load(str(folder), streaming=data.Streaming(True, size, workers))


def order(step):
    """A batch of 50 of 200, shuffled anew every epoch."""
    epoch, i = divmod(step, 4)
    return torch.randperm(200, generator=generator(5, "order", epoch)).split(50)[i]


def file_of(dataset, number):
    return dataset.x_train.encoded.path(number)


def test_a_folder_of_imagenets_layout(folder):
    dataset = load(folder)
    assert dataset.class_names == CLASSES
    assert dataset.image_shape == (3, SIZE, SIZE)
    assert (len(dataset.x_train), len(dataset.x_test)) == (200, 40)
    for number, label in enumerate(dataset.y_train.tolist()):
        assert file_of(dataset, number).parent.name == CLASSES[label]


def test_imagenets_own_test_folder_has_no_classes(tmp_path):
    make_folder(tmp_path, 20, 20)
    (tmp_path / "test").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "test" / "1.JPEG")
    assert len(load(tmp_path).x_test) == 20


def test_the_pixels_are_those_of_torchvisions_transforms(folder):
    dataset = load(folder)
    found = dataset.x_train[torch.arange(40)]
    middle = transforms.Compose([transforms.Resize(37), transforms.CenterCrop(SIZE)])
    for number in range(40):
        with Image.open(file_of(dataset, number)) as image:
            wanted = plain.pil_to_tensor(middle(image.convert("RGB")))
        assert torch.equal(found[number], wanted), number


def test_random_crops_are_torchvisions_at_counted_parameters(folder):
    dataset, seed, step = load(folder), 11, 6
    found, mirrored = data.training_feed(dataset, order, seed)(step), 0
    for number, pixels in zip(order(step).tolist(), found, strict=True):
        with Image.open(file_of(dataset, number)) as opened:
            image = opened.convert("RGB")
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, f"augment/{number}", step))
            crop = transforms.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
            flip = bool(torch.rand(1) < 0.5)
        wanted = plain.pil_to_tensor(plain.resized_crop(image, *crop, [SIZE, SIZE]))
        assert torch.equal(pixels, wanted.flip(-1) if flip else wanted)
        mirrored += flip
    assert 0 < mirrored < 50


def test_the_global_random_numbers_are_left_alone(folder):
    before = torch.random.get_rng_state()
    dataset = load(folder, workers=2)
    data.training_feed(dataset, order, 0)(0)
    _ = dataset.mean
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("steps", [(0, 1, 2, 3, 4, 5), (3, 4, 5), (5, 0, 1, 9, 3)])
def test_a_step_has_the_same_bits_whatever_came_before_and_whoever_decodes(folder, steps):
    alone, helped = load(folder), load(folder, workers=2)
    wanted = {step: data.training_feed(alone, order, 1)(step) for step in steps}
    feed = data.training_feed(helped, order, 1)
    for step in steps:
        assert torch.equal(feed(step), wanted[step])
    assert torch.equal(helped.x_train[order(1)], alone.x_train[order(1)])


def test_each_process_decodes_its_rows(folder):
    dataset = load(folder)
    whole = data.training_feed(dataset, order, 1)
    parts = [data.training_feed(dataset, order, 1, shard=Shard(rank, 2)) for rank in range(2)]
    for step in (0, 1):
        first, second = (part(step) for part in parts)
        assert not first[1::2].any()
        assert not second[0::2].any()
        assert torch.equal(first + second, whole(step))


def test_a_subset_is_another_order_of_the_same_images(folder):
    dataset = load(folder)
    part = dataset.subset(30, 10, 4)
    order = torch.randperm(200, generator=generator(4, "data/subset/train"))[:30]
    assert torch.equal(part.x_train[:], dataset.x_train[order])
    assert torch.equal(part.y_train, dataset.y_train[order])
    assert part.x_test.shape == (10, 3, SIZE, SIZE)


def test_mean_and_standard_deviation(folder):
    dataset = load(folder)
    std, mean = torch.std_mean(dataset.x_train[:].double() / 255, dim=(0, 2, 3), correction=0)
    assert dataset.mean == pytest.approx(mean.tolist(), abs=1e-12)
    assert dataset.std == pytest.approx(std.tolist(), abs=1e-12)


def test_what_is_large_is_streamed_of_itself(folder):
    # Sides of 40 to 119: 79.5² on average, three bytes a pixel, 240 images.
    streamed = data.load(str(folder), max_bytes=3 * 240 * 60**2)
    assert isinstance(streamed.x_train, data.Streamed)
    with pytest.raises(FuncrobustError, match=r"all images must have one size.*--stream"):
        data.load(str(folder), max_bytes=3 * 240 * 100**2)  # read into memory


def test_gray_images_are_a_byte_a_pixel(tmp_path):
    for half in ("train", "test"):
        (tmp_path / half / "a").mkdir(parents=True)
        for i in range(4):
            Image.new("L", (40, 30)).save(tmp_path / half / "a" / f"{i}.png")
    size = 8 * 40 * 30
    assert data.load(str(tmp_path), max_bytes=size).image_shape == (1, 30, 40)
    assert isinstance(data.load(str(tmp_path), max_bytes=size - 1).x_train, data.Streamed)
    with pytest.raises(FuncrobustError, match=r"is the limit: .* say --max-data-gib"):
        data.load(str(tmp_path), max_bytes=size - 1, streaming=data.Streaming(False))


def test_a_picture_that_claims_too_many_pixels_is_refused(tmp_path, monkeypatch):
    make_folder(tmp_path, 20, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 39 * 39)
    with pytest.raises(FuncrobustError, match=r"cannot read .*n00/0000\.JPEG \(.*exceeds limit"):
        _ = load(tmp_path).x_train[:]


def resident(processes):
    pages = [Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in processes]
    return sum(map(int, pages)) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="it needs Linux's /proc")
@pytest.mark.parametrize("workers", [0, 1])
def test_memory_does_not_grow_with_what_was_decoded(folder, workers):
    feed = data.training_feed(load(folder, workers, 224), order, 1)
    processes = [os.getpid(), *(child.pid for child in started_by(lambda: feed(0)))]
    for step in range(1, 4):
        feed(step)
    before = resident(processes)
    decoded = sum(feed(step).numel() for step in range(4, 20))
    assert decoded == 16 * 50 * 3 * 224**2
    assert resident(processes) - before < decoded / 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named(tmp_path, workers):
    make_folder(tmp_path, 60, 20)
    broken = tmp_path / "train" / "n04" / "0004.JPEG"
    broken.write_bytes(broken.read_bytes()[:-200])
    dataset = load(tmp_path, workers)
    place = [file_of(dataset, number) for number in range(60)].index(broken)
    for read in (
        lambda: dataset.x_train[:],
        lambda: data.training_feed(dataset, lambda _: torch.arange(60), 0)(0),
    ):
        with pytest.raises(FuncrobustError, match=rf"cannot read {re.escape(str(broken))} \(") as e:
            read()
        assert "\n" not in str(e.value)
    broken.unlink()
    with pytest.raises(FuncrobustError, match=rf"cannot read {re.escape(str(broken))}: No such"):
        _ = dataset.x_train[torch.tensor([place])]


def test_sixteen_bits_are_refused(tmp_path):
    make_folder(tmp_path, 20, 20)
    Image.new("I;16", (40, 40)).save(tmp_path / "train" / "n00" / "0000.png")
    with pytest.raises(FuncrobustError, match=r"0000\.png is in mode I;16; only 8-bit"):
        _ = load(tmp_path).x_train[:]


def remove_class(root):
    for path in (root / "val" / "n07").iterdir():
        path.unlink()
    (root / "val" / "n07").rmdir()


def remove_images(root):
    for path in (root / "train" / "n07").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_class, "class 'n07' is in only one of train and val"),
        (remove_images, r"train/n07 has no \.png or \.jpg image"),
        (lambda root: (root / "val").rename(root / "elsewhere"), r"has no folder 'test'"),
    ],
)
def test_what_is_missing_is_named(tmp_path, spoil, message):
    spoil(make_folder(tmp_path, 20, 20))
    with pytest.raises(FuncrobustError, match=message):
        load(tmp_path)


def started_by(call):
    before = {process.pid for process in multiprocessing.active_children()}
    call()
    return [p for p in multiprocessing.active_children() if p.pid not in before]


def test_a_workers_death_is_said_where_its_images_are_missed(folder):
    feed = data.training_feed(load(folder, workers=2), order, 1)
    children = started_by(lambda: feed(0))
    assert len(children) == 2
    os.kill(children[0].pid, signal.SIGKILL)
    children[0].join(10)
    time.sleep(0.1)  # nothing is raised here, where an update might be
    with pytest.raises(FuncrobustError, match=r"worker process.*has died.*--workers"):
        list(map(feed, range(1, 30)))


def test_workers_go_when_nobody_holds_the_stream(folder):
    held = [data.training_feed(load(folder, workers=2), order, 1)]
    children = started_by(lambda: held[0](0))
    gc.disable()
    try:
        held.clear()
    finally:
        gc.enable()
    assert [child.exitcode is None for child in children] == [False, False]


def test_workers_leave_ctrl_c_to_the_run(folder):
    dataset = load(folder, workers=2)
    feed = data.training_feed(dataset, order, 1)
    children = started_by(lambda: feed(0))
    assert len(children) == 2
    for child in children:
        os.kill(child.pid, signal.SIGINT)
    wanted = data.training_feed(load(folder), order, 1)
    for step in range(1, 8):
        assert torch.equal(feed(step), wanted(step))


@pytest.mark.parametrize(
    ("streaming", "message"),
    [
        (data.Streaming(True), "digits is held in memory: --stream is for a folder"),
        (data.Streaming(size=64), "--image-size does nothing here"),
        (data.Streaming(workers=2), "--workers does nothing here"),
    ],
)
def test_what_is_in_memory_is_not_streamed(streaming, message):
    with pytest.raises(FuncrobustError, match=message):
        data.load("digits", streaming=streaming)


def test_what_needs_all_in_memory_is_refused(folder):
    with pytest.raises(FuncrobustError, match=r"needs all images in memory, but those of .*stream"):
        load(folder).in_memory()
