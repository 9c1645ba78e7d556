"""The pickles of CIFAR: read, and never run."""

import os
import pickle

import numpy as np
import pytest
from published_sets import as_folder, as_python2, remote, use

from funcrobust import data
from funcrobust.core.errors import FuncrobustError
from funcrobust.data import pickles
from funcrobust.data.cache import digests


class Evil:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_malicious_pickle_is_refused_and_not_run(tmp_path, protocol):
    trace = tmp_path / "ran"
    evil = Evil(os.system, f"touch {trace}")
    content = pickle.dumps({"data": evil, "labels": []}, protocol=protocol)
    with pytest.raises(FuncrobustError, match="refused"):
        pickles.read_pickle("data_batch_1", content)
    assert not trace.exists()
    pickle.loads(content)  # it would have run
    assert trace.exists()


@pytest.mark.parametrize("function", [eval, getattr, np.load, np.frombuffer])
def test_other_names_are_refused(function):
    with pytest.raises(FuncrobustError, match="refused"):
        pickles.read_pickle("x", pickle.dumps({"data": Evil(function, "1")}))


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", b"\x80\x04N.", pickle.dumps([1]), b"cnumpy\nndarray\n)R.",
     pickle.dumps({"data": np.zeros(2, np.float32)}, protocol=4),
     pickle.dumps({"data": np.array([{}], object)}, protocol=4)],
)  # fmt: skip
def test_bad_pickle_is_one_clear_line(content):
    with pytest.raises(FuncrobustError) as caught:
        pickles.read_pickle("batch", content)
    assert "\n" not in str(caught.value)


def test_malicious_batch_in_a_folder_falls_through_to_the_next_source(tiny, tmp_path, monkeypatch):
    files = as_python2(tiny)
    files["data_batch_3"] = pickle.dumps(Evil(os.system, f"touch {tmp_path / 'ran'}"))
    use(monkeypatch, "cifar10", digests=digests(tiny), remotes=(remote("good", tiny),))
    with pytest.warns(UserWarning, match=r"posix\.system|nt\.system"):
        dataset = data.load(
            "cifar10", folder=as_folder(tmp_path / "a", files), cache=tmp_path / "c"
        )
    assert dataset.source == "good"
    assert not (tmp_path / "ran").exists()
