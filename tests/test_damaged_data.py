"""Data that is damaged on its way: evaluation stops and names shard, key and reason; training may leave samples out, counted."""

import csv
import io
import shutil
import sys
import tarfile
import warnings

import pytest
from PIL import Image

from cefam.datamodules import RegionsData
from cefam.datasets import Manifest
from tests.commands import QUIET, csv_logger, evaluated, good_call, images_data, run


def rewritten(shard, change):
    """A shard whose members go through ``change(name, content)``; ``None`` leaves one out."""
    with tarfile.open(shard) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(shard, "w") as tar:
        for name, content in members:
            content = change(name, content)
            if content is not None:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def flipped(name, content):
    return content[:-9] + bytes([content[-9] ^ 4]) + content[-8:] if name == "00000007.jpg" else content


def another_format(name, content):
    return b"RIFF and so on" if name == "00000007.jpg" else content


def without_mask(name, content):
    return None if name == "00000007.mask0.png" else content


def unreadable(name, content):
    return content[:-3] if name == "00000007.json" else content


def without_image(name, content):
    return None if name == "00000007.jpg" else content


DAMAGES = {
    "flipped": (flipped, "its bytes are others than when it was written"),
    "another format": (another_format, "its bytes are others than when it was written"),
    "without mask": (without_mask, "mask 0 is missing"),
    "unreadable": (unreadable, "its json cannot be read"),
    "without image": (without_image, "the sample has no image"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_evaluation_stops_with_shard_key_and_reason(damage, trained, prepared, tmp_path, capsys):
    shards = shutil.copytree(prepared / "broden", tmp_path / "shards")
    change, message = DAMAGES[damage]
    rewritten(shards / "shard-000001.tar", change)
    assert evaluated(trained, prepared, tmp_path / "out", f"--data.shards={shards}") == 1
    said = capsys.readouterr().err
    assert "shard-000001.tar, key 00000007" in said
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.soak)])
def test_an_evaluation_goes_on_when_a_shard_is_mended(workers, trained, prepared, tmp_path, capsys):
    shards = shutil.copytree(prepared / "broden", tmp_path / "shards")
    good = (shards / "shard-000001.tar").read_bytes()
    rewritten(shards / "shard-000001.tar", flipped)
    options = [f"--data.shards={shards}", "--data.batch_size=2", f"--data.num_workers={workers}"]
    assert evaluated(trained, prepared, tmp_path / "out", *options) == 1
    done = len(list((tmp_path / "out/.parts").glob("*.npz")))
    assert workers or done == 2  # a Trainer reads one batch ahead
    (shards / "shard-000001.tar").write_bytes(good)
    capsys.readouterr()
    assert evaluated(trained, prepared, tmp_path / "out", *options) == 0
    finished = f"; {done} of them are measured already" if done else ""
    assert f"7 batches for 1 process(es){finished}." in capsys.readouterr().out
    assert evaluated(trained, prepared, tmp_path / "whole", *options) == 0
    for name in ("records.csv", "table.txt", "contact_sheet.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )


def fit(world, val, train, folder, name, *more, **data):
    options = ["--config", world / "model.yaml", f"--data={images_data(train, val, **data)}", csv_logger(folder, name)]
    options += ["--model.concepts", world / "broden/label.csv", "--trainer.max_epochs=2", *QUIET, *more]
    return run("fit", *options, "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.02")


def skipped(folder):
    with (folder / "metrics.csv").open() as lines:
        return [float(row["train/skipped"]) for row in csv.DictReader(lines) if row.get("train/skipped")]


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.soak), 2])
def test_training_leaves_samples_of_shards_out_if_it_may(workers, world, prepared, tmp_path, capsys):
    train = shutil.copytree(prepared / "train", tmp_path / "train")

    def damage(name, content):
        return b"no png" if name in ("00000003.png", "00000004.png") else content

    rewritten(train / "shard-000000.tar", damage)
    cut = train / "shard-000002.tar"
    cut.write_bytes(cut.read_bytes()[: len(cut.read_bytes()) // 2])
    data = {"num_workers": workers, "batch_size": 4}
    assert fit(world, prepared / "val", train, tmp_path, "refused", **data) == 1
    said = capsys.readouterr().err
    assert "shard-00000" in said
    assert "Traceback" not in said
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert fit(world, prepared / "val", train, tmp_path, "allowed", **data, max_skipped=12) == 0
    counts = skipped(tmp_path / "allowed")
    assert len(counts) == 2
    assert all(count > 2 for count in counts)  # two photographs, and what the cut shard lost
    assert capsys.readouterr().err.count("cefam fit: warning: Skipped: ") == sum(counts)
    assert fit(world, prepared / "val", train, tmp_path, "some", **data, max_skipped=2) == 1
    assert "More than 2 sample(s) of an epoch cannot be read (`max_skipped`); the last: " in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.soak)])
def test_training_leaves_files_out_if_it_may(workers, world, tmp_path, capsys):
    train = shutil.copytree(world / "images/train", tmp_path / "train")
    paths = sorted(train.rglob("*.png"))
    for path in paths[3:5]:
        path.write_bytes(b"no png")
    val = world / "images/val"
    assert fit(world, val, train, tmp_path, "refused", num_workers=workers) == 1
    assert str(paths[3]) in (said := capsys.readouterr().err) or str(paths[4]) in said
    assert fit(world, val, train, tmp_path, "allowed", num_workers=workers, max_skipped=3) == 0
    # The photograph before two broken ones stands in for none; the one at the first broken one's place skips two.
    assert skipped(tmp_path / "allowed") == [3.0, 3.0]
    assert fit(world, val, train, tmp_path, "some", num_workers=workers, max_skipped=2) == 1
    assert "More than 2 sample(s) of an epoch" in capsys.readouterr().err


def test_validation_leaves_nothing_out(world, tmp_path, capsys):
    val = shutil.copytree(world / "images/val", tmp_path / "val")
    path = sorted(val.rglob("*.png"))[2]
    path.write_bytes(b"no png")
    assert fit(world, val, world / "images/train", tmp_path, "log", max_skipped=100) == 1
    assert str(path) in capsys.readouterr().err


def test_a_photograph_in_another_format_than_its_suffix_is_read(world, prepared, tmp_path):
    """A PNG that is called .jpg is a photograph."""
    Image.open(sorted((world / "images/val").rglob("*.png"))[0]).save(tmp_path / "a.png")
    (tmp_path / "images").mkdir()
    shutil.copy(tmp_path / "a.png", tmp_path / "images" / "a.jpg")
    assert run("prepare", "--kind=images", f"--source={tmp_path}/images", f"--folder={tmp_path}/out") == 0
    assert Manifest.read(tmp_path / "out").num_samples == 1


def test_a_disk_that_is_gone_is_said(prepared, tmp_path):
    shards = shutil.copytree(prepared / "broden", tmp_path / "shards")
    loader = RegionsData(str(shards), batch_size=2).test_dataloader()
    shutil.rmtree(shards)
    with pytest.raises(FileNotFoundError, match="see whether its disk is still there"):
        list(loader)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/sys is Linux's")
@pytest.mark.parametrize("verb", ["prepare", "features", "evaluate", "export"])
def test_a_folder_that_cannot_be_written_is_said(verb, world, prepared, trained, capsys):
    """/sys takes no files, not even from the administrator."""
    options = [str(option).replace("=out", "=/sys/cefam") for option in good_call(verb, world, prepared, trained)]
    assert run(verb, *options) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"cefam {verb}: ")
    assert "/sys/cefam" in said
