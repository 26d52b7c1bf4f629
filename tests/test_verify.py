"""``cefam verify``: finds what a copy or a disk has changed, and says where."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

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
    (path,) = copy.glob("*.safetensors")
    tensors = load_file(path)
    tensors["embedding"][0, 0] = torch.nan
    tensors["pooled.0"] = tensors["pooled.0"][:, 1:].contiguous()
    save_file(tensors, path)
    assert run("verify", copy) == 1
    said = capsys.readouterr().out
    assert "embedding holds values that are not finite" in said
    assert "pooled.0 is (11, 63), its manifest says (11, 64)" in said


def test_what_cannot_be_verified(tmp_path, capsys):
    assert run("verify", tmp_path) == 1
    assert "neither shards nor features nor an artefact" in capsys.readouterr().err
