"""WebDataset's shards, read at random."""

from __future__ import annotations

import io
import tarfile

import pytest
import torch
from streamed_sets import CLASSES, make_folder, make_shards

from funcrobust import data
from funcrobust.core.errors import FuncrobustError

SIZE = 32
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    folder = make_folder(root / "folder", 150, 40)
    return folder, make_shards(folder, root / "shards")


def load(root, workers=0):
    return data.load(str(root), streaming=data.Streaming(None, SIZE, workers))


def test_shards_hold_what_the_folder_does(both):
    folder, shards = both
    wanted = data.load(str(folder), streaming=data.Streaming(True, SIZE, 0))
    assert len(list(shards.glob("train-*.tar"))) == 3
    for workers in (0, 2):
        found = load(shards, workers)
        assert isinstance(found.x_train, data.Streamed)
        assert torch.equal(found.y_train, wanted.y_train)
        assert torch.equal(found.y_test, wanted.y_test)
        index = torch.randperm(150, generator=torch.Generator().manual_seed(1))
        assert torch.equal(found.x_train[index], wanted.x_train[index])
        assert torch.equal(found.x_test[:], wanted.x_test[:])
    assert found.class_names == tuple(map(str, range(20)))


def test_classes_have_the_names_of_a_file(both, tmp_path):
    shards = make_shards(both[0], tmp_path / "named")
    (shards / "classnames.txt").write_text("\n".join(CLASSES))
    assert load(shards).class_names == CLASSES
    (shards / "classnames.txt").write_text("one\ntwo\n")
    with pytest.raises(FuncrobustError, match=r"classnames\.txt names 2 classes, but .* label 19"):
        load(shards)


def cut_in_a_member(root):
    path = root / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-12000])


def cut_between_members(root):
    path = root / "train-000001.tar"
    with tarfile.open(path) as tar:
        places = [member.offset for member in tar]
    path.write_bytes(path.read_bytes()[: places[40]])


def remove_a_shard(root):
    (root / "train-000001.tar").unlink()


def remove_the_test_half(root):
    for path in root.glob("val-*.tar"):
        path.unlink()


def write(root, *members):
    with tarfile.open(root / "val-000000.tar", "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_in_a_member, r"train-000001\.tar"),
        (cut_between_members, r"train-000001\.tar is truncated"),
        (remove_a_shard, r"shard 1 is missing between train-000000\.tar and train-000002\.tar"),
        (remove_the_test_half, r"neither test\*\.tar nor val\*\.tar"),
        (lambda r: (r / "train-000001.tar").write_bytes(b"x" * 2000), r"read .*train-000001\.tar"),
        (lambda r: write(r, ("a.jpg", b"x")), r"val-000000\.tar: a\.jpg has no a\.cls beside it"),
        (lambda r: write(r, ("a.cls", b"1")), r"val-000000\.tar has no \.jpg or \.png image"),
        (
            lambda r: write(r, ("a.jpg", b"x"), ("a.cls", b"dog")),
            r"val-000000\.tar, member a\.cls must hold the number of a class, not b'dog'",
        ),
        (
            lambda r: write(r, ("a.jpg", b"x"), ("a.cls", b"9" * 20)),
            r"val-000000\.tar, member a\.cls must hold a class below 100000, not 9{20}",
        ),
        (
            lambda r: write(r, ("a.jpg", b"x"), ("a.png", b"x"), ("a.cls", b"1")),
            r"val-000000\.tar has two images of the key a",
        ),
        (
            lambda r: write(r, ("a.jpg", b"x"), ("a.cls", b"1")),
            r"only the train shards have class 0",
        ),
    ],
)
def test_what_is_wrong_is_named(both, tmp_path, spoil, message):
    shards = make_shards(both[0], tmp_path / "shards")
    spoil(shards)
    with pytest.raises(FuncrobustError, match=message) as error:
        load(shards)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_member_is_named(both, tmp_path, workers):
    shards = make_shards(both[0], tmp_path / "shards")
    path = shards / "train-000002.tar"
    with tarfile.open(path) as tar:
        member = next(m for m in tar if m.name.endswith(".jpg"))
    content = bytearray(path.read_bytes())
    content[member.offset_data : member.offset_data + 100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(FuncrobustError, match=rf"train-000002\.tar, member {member.name} \("):
        _ = load(shards, workers).x_train[:]


def test_shards_are_only_streamed(both):
    with pytest.raises(FuncrobustError, match="shards are streamed only, leave --no-stream out"):
        data.load(str(both[1]), streaming=data.Streaming(False))
