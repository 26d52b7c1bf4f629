"""What is there stays there, and what is read is whole: files of others are not written over, counts are compared."""

import io
import json
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from cefam import Trained
from cefam.datasets import Manifest
from cefam.datasets.features import load_features
from cefam.errors import ExistsError
from cefam.io.files import locked, write_tensors
from cefam.report import records
from tests.commands import assert_same_results, csv_logger, evaluated, feature_options, good_call, run


def changed(path, **values):
    """A JSON file with other values."""
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, **values}))


def test_features_are_not_written_over_shards(world, prepared, tmp_path, capsys):
    shutil.copytree(prepared / "broden", tmp_path / "s")
    before = (tmp_path / "s" / "manifest.json").read_bytes()
    options = ["--config", world / "towers.yaml", "--size", 64, "--resize", 64, "--device", "cpu"]
    assert run("features", *options, "--images", tmp_path / "s", "--folder", tmp_path / "s") == 1
    assert "holds other data: name another folder for the features" in capsys.readouterr().err
    assert (tmp_path / "s" / "manifest.json").read_bytes() == before
    assert not (tmp_path / "s" / "journal.json").exists()


def test_export_leaves_the_files_of_others_alone(trained, tmp_path, capsys):
    (tmp_path / "README.md").write_text("# My project")
    options = ["--checkpoint", trained / "log/checkpoints/best.ckpt", "--folder", tmp_path]
    assert run("export", *options) == 1
    assert "holds a README.md or model.safetensors of something else" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["# My project"]


def test_the_log_of_a_run_is_not_written_over(world, prepared, trained, tmp_path, capsys):
    shutil.copytree(trained / "log", tmp_path / "log")
    before = (tmp_path / "log" / "metrics.csv").read_text()
    logger, options = csv_logger(tmp_path), feature_options(world, prepared)
    checkpoint = f"--ckpt_path={tmp_path}/log/checkpoints/last.ckpt"
    assert run("validate", *options, logger, checkpoint) == 1
    assert "already holds the log of a run" in capsys.readouterr().err
    assert evaluated(trained, prepared, tmp_path / "out", logger) == 1
    assert "already holds the log of a run" in capsys.readouterr().err
    assert (tmp_path / "log" / "metrics.csv").read_text() == before
    assert run("fit", *options, logger, checkpoint, "--trainer.max_epochs=5") == 0
    assert (tmp_path / "log" / "metrics-until-1.csv").read_text() == before
    assert (tmp_path / "log" / "metrics.csv").read_text() != before


def test_validation_needs_a_trained_translator(world, prepared, tmp_path, capsys):
    assert run("validate", *feature_options(world, prepared), csv_logger(tmp_path)) == 1
    assert "Name the checkpoint to validate with `--ckpt_path`" in capsys.readouterr().err


def test_what_is_no_checkpoint_is_refused_whatever_its_name(world, prepared, tmp_path, capsys):
    (tmp_path / "a.pt").write_bytes(b"")
    options = [*feature_options(world, prepared), csv_logger(tmp_path), "--ckpt_path", tmp_path / "a.pt"]
    assert run("fit", *options) == 1
    assert "a.pt cannot be read as a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["table.txt", "contact_sheet.png"])
def test_any_result_keeps_its_folder(trained, prepared, tmp_path, capsys, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    assert evaluated(trained, prepared, tmp_path / "out") == 1
    assert "already holds results" in capsys.readouterr().err


def test_features_of_replaced_shards_are_made_anew_or_refused(world, prepared, trained, tmp_path, capsys):
    """A tar is padded: its length does not tell it from another one."""
    for name, part in (("one", "val"), ("other", "val")):
        shutil.copytree(world / "images" / part, tmp_path / name)
    for path in (tmp_path / "other").rglob("*.png"):
        pixels = np.asarray(Image.open(path))
        Image.fromarray(255 - pixels).save(path)
    features = [*good_call("features", world, prepared, trained), f"--images={tmp_path}/shards"]
    found = []
    for name in ("one", "other", "one"):
        shutil.rmtree(tmp_path / "shards", ignore_errors=True)
        assert run("prepare", "--kind=images", f"--source={tmp_path}/{name}", f"--folder={tmp_path}/shards") == 0
        if len(found) < 2:
            Path("out/manifest.json").unlink(missing_ok=True)  # as if it had been stopped at its end
            assert run("features", *features) == 0
            found.append(load_features("out").matrix)
    assert not torch.allclose(*found)
    assert run("features", *features) == 1
    assert "features of other photographs" in capsys.readouterr().err
    assert torch.equal(load_features("out").matrix, found[1])


@pytest.mark.parametrize("verb", ["prepare", "evaluate"])
def test_two_runs_do_not_write_into_one_folder(verb, world, prepared, trained, capsys):
    Path("out").mkdir()
    options = good_call(verb, world, prepared, trained)
    with locked(Path("out")):
        assert run(verb, *options) == 1
    assert "Another run is writing into out: wait for it" in capsys.readouterr().err
    assert run(verb, *options) == 0
    assert not Path("out/.lock").exists()


def test_linked_folders_are_read_and_loops_are_not_followed(world, tmp_path, capsys):
    shutil.copytree(world / "images" / "val", tmp_path / "linked")
    shutil.rmtree(tmp_path / "linked" / "class0")
    (tmp_path / "linked" / "class0").symlink_to(world / "images" / "val" / "class0")
    (tmp_path / "linked" / "class1" / "up").symlink_to(tmp_path / "linked")
    counts = []
    for source in (world / "images" / "val", tmp_path / "linked"):
        folder = tmp_path / f"shards{len(counts)}"
        assert run("prepare", "--kind=images", "--source", source, "--folder", folder) == 0
        counts.append(Manifest.read(folder).num_samples)
    assert counts[0] == counts[1]


def test_a_shard_that_was_cut_between_two_samples_is_refused(world, trained, prepared, tmp_path, capsys):
    """An interrupted copy can be a whole tar."""
    shutil.copytree(prepared / "broden", tmp_path / "s")
    shard = tmp_path / "s" / "shard-000000.tar"
    with tarfile.open(shard) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    last = members[-1][0].name.split(".")[0]
    with tarfile.open(shard, "w") as tar:
        for member, content in members:
            if not member.name.startswith(last):
                tar.addfile(member, io.BytesIO(content))
    assert run("evaluate", "--model.artefact", trained / "artefact", "--data.shards", tmp_path / "s",
               "--model.output", tmp_path / "out", "--trainer.accelerator=cpu") == 1  # fmt: skip
    assert "its manifest says" in capsys.readouterr().err
    assert not (tmp_path / "out" / "records.csv").exists()
    options = ["--config", world / "towers.yaml", "--size", 64, "--resize", 64, "--device", "cpu"]
    assert run("features", *options, "--images", tmp_path / "s", "--folder", tmp_path / "cache") == 1
    assert "its manifest says" in capsys.readouterr().err


@pytest.mark.parametrize(
    "values",
    [{"shards": []}, {"shards": [{}]}, {"shards": [1]}, {"shards": None}, {"labels": [{}]}, {"num_samples": 3}],
)
def test_a_damaged_manifest_of_shards_is_refused(prepared, tmp_path, values):
    shutil.copytree(prepared / "broden", tmp_path / "s")
    changed(tmp_path / "s" / "manifest.json", **values)
    with pytest.raises(ValueError, match="is not a file of cefam-shards version 1"):
        Manifest.read(tmp_path / "s")


@pytest.mark.parametrize(
    "values", [{"num_rows": 0}, {"sha256": ""}, {"precision": "int8"}, {"version": 1}, {"vlm": None}]
)
def test_a_damaged_manifest_of_features_is_refused(prepared, tmp_path, values):
    shutil.copytree(prepared / "features" / "val", tmp_path / "f")
    changed(tmp_path / "f" / "manifest.json", **values)
    with pytest.raises(ValueError, match="is not a file of cefam-features version 2"):
        load_features(tmp_path / "f")


def test_features_must_have_the_rows_and_widths_of_their_manifest(prepared, tmp_path):
    shutil.copytree(prepared / "features" / "val", tmp_path / "f")
    path = tmp_path / "f" / "features.npy"
    whole = np.load(path)
    for damaged in (whole[1:], whole[:, 1:], whole.astype(np.float16)):
        np.save(path, damaged)
        with pytest.raises(ValueError, match=r"features.npy holds \(.* instead of .*make it again"):
            load_features(tmp_path / "f")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("concepts.embeddings", lambda v: v[1:]),
        ("concepts.embeddings", lambda v: v[0]),
        ("concepts.embeddings", lambda v: v * torch.nan),
        ("translator.fc2.weight", lambda v: v * torch.nan),
        ("translator.fc2.weight", lambda v: v[1:]),
    ],
)
def test_damaged_weights_of_an_artefact_are_refused(trained, tmp_path, name, damage):
    shutil.copytree(trained / "artefact", tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    tensors = load_file(path)
    write_tensors(path, {**tensors, name: damage(tensors[name]).contiguous()})
    with pytest.raises(ValueError, match=r"(?s)is damaged .*export it again"):
        Trained.read(tmp_path / "a")
    write_tensors(path, {key: tensor.half() for key, tensor in tensors.items()})
    assert Trained.read(tmp_path / "a").translator.fc2.weight.dtype == torch.float32


@pytest.mark.parametrize("content", ["[]", '"x"', "null"])
def test_a_config_that_is_no_description_is_refused(trained, tmp_path, content):
    shutil.copytree(trained / "artefact", tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(content)
    with pytest.raises(ValueError, match="does not describe an artefact"):
        Trained.read(tmp_path / "a")


def test_rows_are_chosen_renamed_and_repeated_with_other_settings(trained, prepared, tmp_path):
    """Each row is what its settings give alone, and shares nothing with the others."""
    rows = {name: {"class_path": "CEFAMRegions", "init_args": {"derivative": name}} for name in ("total", "branch")}
    rows["seven"] = {"class_path": "RandomMapRegions", "init_args": {"seed": 7}}
    assert evaluated(trained, prepared, tmp_path / "both", f"--model.methods={json.dumps(rows)}") == 0
    rows = list(records.read(tmp_path / "both" / "records.csv"))
    assert list(dict.fromkeys(row["method"] for row in rows)) == ["total", "branch", "seven"]
    for name in ("total", "branch"):
        options = ["--model.methods={CE-FAM: CEFAMRegions}", f"--model.derivative={name}"]
        assert evaluated(trained, prepared, tmp_path / name, *options) == 0
        alone = [{**row, "method": name} for row in records.read(tmp_path / name / "records.csv")]
        assert repr([row for row in rows if row["method"] == name]) == repr(alone)  # NaN is not equal to itself
    values = {name: [row["nra"] for row in rows if row["method"] == name] for name in ("total", "branch")}
    assert values["total"] != values["branch"]


def test_a_method_explains_the_concepts_that_are_measured(trained, world, prepared, tmp_path, monkeypatch):
    """The context has them: a method that loaded the artefact by itself would explain those it was trained with."""
    (tmp_path / "own_method.py").write_text(
        "from cefam.methods import Activated, MethodContext, Candidates, CEFAMRegions, RegionMethod\n"
        "class Own(RegionMethod):\n"
        "    def __init__(self, context: MethodContext, share: float = 1.0) -> None:\n"
        "        super().__init__(context)\n"
        "        self.method = CEFAMRegions(context, channel_share=share)\n"
        "    def regions(self, activated: Activated, pairs, size, num_candidates) -> Candidates:\n"
        "        return self.method.regions(activated, pairs, size, num_candidates)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = (world / "broden" / "label.csv").read_text().splitlines()
    (tmp_path / "others.csv").write_text("\n".join([lines[0], *reversed(lines[1:-1])]))
    vlm = json.dumps(yaml.safe_load((world / "towers.yaml").read_text())["vlm"])
    options = [f"--model.concepts={tmp_path}/others.csv", f"--model.vlm={vlm}"]
    options += [
        "--model.methods={CE-FAM: CEFAMRegions}",
        "--model.methods.own",
        "{class_path: own_method.Own, init_args: {share: 1.0}}",
    ]
    assert evaluated(trained, prepared, tmp_path / "out", *options) == 0
    rows = list(records.read(tmp_path / "out" / "records.csv"))
    mine, theirs = ([{**r, "method": ""} for r in rows if r["method"] == name] for name in ("own", "CE-FAM"))
    assert repr(mine) == repr(theirs)  # NaN is not equal to itself


def test_a_leftover_environment_does_not_halve_the_data(trained, prepared, measured, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert evaluated(trained, prepared, tmp_path / "out") == 0
    assert_same_results(measured, tmp_path / "out")


def test_a_lock_is_held_once_however_many_try(tmp_path):
    """Also where a lock file that somebody has opened is removed by the one who held it."""
    holders, most, got = [], [], []

    def attempt(number):
        for _ in range(200):
            try:
                with locked(tmp_path):
                    holders.append(number)
                    most.append(len(holders))
                    got.append(number)
                    holders.remove(number)
            except ExistsError:
                pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attempt, range(8)))
    assert max(most) == 1
    assert len(got) > 8
    assert not list(tmp_path.iterdir())


def test_a_refused_evaluation_leaves_the_parts_of_a_running_one(trained, prepared, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    part = tmp_path / "out" / ".records-0000.part"
    part.write_text("of a running evaluation")
    with locked(tmp_path / "out"):
        assert evaluated(trained, prepared, tmp_path / "out") == 1
    assert "Another run is writing into" in capsys.readouterr().err
    assert part.read_text() == "of a running evaluation"


@pytest.mark.parametrize("content", ["", "{}", "[1]", "not json"])
def test_a_journal_of_something_else_is_refused(world, prepared, trained, tmp_path, capsys, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "journal.json").write_text(content)
    assert run("features", *good_call("features", world, prepared, trained)) == 1
    assert "is not a journal of cefam" in capsys.readouterr().err
