"""``cefam verify``: finds what a copy or a disk has changed, and says where."""

import json
import shutil

import numpy as np
import pytest

from tests.commands import run


def test_what_is_whole_passes(prepared, trained, capsys):
    assert run("verify", prepared / "broden", prepared / "features/train", trained / "artefact") == 0
    said = capsys.readouterr().out
    assert "3 shards, 14 samples, 92 (mask, label) pairs" in said
    assert "48 rows" in said
    assert "an artefact" in said


def flip(path, at):
    """Change one byte."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("at", [300, -2000])
def test_a_flipped_byte_of_a_shard(prepared, tmp_path, capsys, at):
    copy = shutil.copytree(prepared / "broden", tmp_path / "copy")
    flip(copy / "shard-000001.tar", at)
    assert run("verify", copy) == 1
    said = capsys.readouterr()
    assert "shard-000001.tar: " in said.out
    assert "shard-000000.tar: " not in said.out
    assert "problem(s) were found" in said.err


def test_a_cut_shard_and_an_unknown_label(prepared, tmp_path, capsys):
    copy = shutil.copytree(prepared / "broden", tmp_path / "copy")
    shard = copy / "shard-000002.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    about = json.loads((copy / "manifest.json").read_text())
    about["labels"] = [label for label in about["labels"] if label["number"] != 38]
    (copy / "manifest.json").write_text(json.dumps(about))
    assert run("verify", copy) == 1
    said = capsys.readouterr().out
    assert "shard-000002.tar: " in said
    assert "has label 38, which the manifest does not name" in said


def test_features_of_another_shape_or_not_finite(prepared, tmp_path, capsys):
    copy = shutil.copytree(prepared / "features/val", tmp_path / "copy")
    path = copy / "features.npy"
    rows = np.load(path)
    rows[0, 0] = np.nan
    np.save(path, rows)
    assert run("verify", copy) == 1
    said = capsys.readouterr().out
    assert "features.npy: it holds values that are not finite" in said
    assert "features.npy: its bytes are others than when it was written" in said
    np.save(path, rows[:, 1:])
    assert run("verify", copy) == 1
    assert "holds (11, 991) float32 instead of (11, 992) float32" in capsys.readouterr().out


def test_what_cannot_be_verified(tmp_path, capsys):
    assert run("verify", tmp_path) == 1
    assert "neither shards nor features nor an artefact" in capsys.readouterr().err
