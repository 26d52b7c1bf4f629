"""Tars as others write them, and tars that were cut."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cefam.datasets.contract import Shard
from cefam.datasets.shards import read_members
from cefam.errors import CefamError

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
KEYS = st.text("abcXYZ019-_ ü雪", min_size=1, max_size=60).filter(lambda key: not key.startswith("__"))


def written(path, members, form=tarfile.PAX_FORMAT, headers=None):
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(content), headers or {}
            tar.addfile(member, io.BytesIO(content))
    return Shard(str(path))


@given(
    keys=st.lists(KEYS, min_size=1, max_size=4, unique=True),
    folder=st.sampled_from(["", "train", "n" * 40 + "/" + "m" * 60]),
    contents=st.lists(st.binary(max_size=2000), min_size=4, max_size=4),
    form=st.sampled_from(FORMATS),
)
def test_members_of_every_format_come_back(tmp_path_factory, keys, folder, contents, form):
    named = [f"{folder}/{key}" if folder else key for key in keys]
    members = [
        (f"{key}.{suffix}", content) for key, content in zip(named, contents, strict=False) for suffix in ("jpg", "cls")
    ]
    shard = written(tmp_path_factory.getbasetemp() / "any.tar", members, form)
    found = [(sample["__key__"], sample["jpg"], sample["cls"]) for sample in read_members(shard)]
    assert found == [(key, content, content) for key, content in zip(named, contents, strict=False)]


def test_a_sparse_member_is_filled_up(tmp_path):
    """Ten stored bytes of a file of fifteen, with a hole between them."""
    headers = {"GNU.sparse.map": "0,5,10,5", "GNU.sparse.size": "15", "GNU.sparse.name": "a.jpg"}
    shard = written(tmp_path / "sparse.tar", [("a.jpg", b"abcdefghij")], headers=headers)
    assert [sample["jpg"] for sample in read_members(shard)] == [b"abcde\0\0\0\0\0fghij"]


@pytest.mark.parametrize("left", [1, 511, 512, 513, 900, 1024, 1100, 1535])
def test_a_tar_that_was_cut_is_refused(tmp_path, left):
    shard = written(tmp_path / "cut.tar", [("a.jpg", b"a" * 700), ("a.cls", b"1")])
    content = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[:left])
    with pytest.raises(CefamError, match=r"cut\.tar (cannot be read|holds 0 samples)"):
        list(read_members(Shard(shard.place, count=1)))
