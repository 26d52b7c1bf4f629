"""``cefam demo``: the whole way in small, repeated, stopped and taken up, and refused."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.commands import run

SMALL = ["--scenes", 160, "--evaluation_scenes", 4, "--epochs", 2, "--folder", "d"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small demo."""
    folder = tmp_path_factory.mktemp("demo") / "d"
    assert run("demo", *SMALL[:-1], folder) == 0
    return folder


def test_it_ends_with_tables_records_pictures_and_times(finished, capsys):
    names = {path.name for path in (finished / "evaluation").iterdir()}
    assert names == {
        "table.txt",
        "table.md",
        "table.csv",
        "differences.csv",
        "presence.csv",
        "lists.csv",
        "records.csv",
        "contact_sheet.png",
        "run.json",
        "examples.npz",
    }
    with (finished / "evaluation" / "table.csv").open() as lines:
        table = list(csv.DictReader(lines))
    methods = [
        "CE-FAM", "CLIP-Dissect", "WWW", "Grad-CAM, concept", "Grad-CAM, class",
        "random channel", "random map", "center", "luminance",
    ]  # fmt: skip
    assert [row["method"] for row in table] == 4 * methods  # all pairs and common ones, top-1 and oracle
    of_all = [int(row["pairs"]) for row in table if "common" not in row["protocol"]]
    assert len(set(of_all)) == 1
    assert of_all[0] > 80
    assert all(0 < int(row["pairs"]) < of_all[0] for row in table if "common" in row["protocol"])
    assert [entry["step"] for entry in entries(finished)] == [
        "draw train", "draw val", "draw evaluation", "features train", "features val", "probe", "fit", "evaluate", "explain",
    ]  # fmt: skip


def entries(folder):
    """The finished steps, as the journal has them."""
    return [json.loads(line)["about"] for line in (folder / "journal.json").read_text().splitlines()[1:]]


def test_its_artefact_is_explained_with_its_probe(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/demo").symlink_to(finished)
    assert run("explain", "runs/demo/scene.png", "--json", "-", "--out", "a.html") == 0
    of_demo = capsys.readouterr()
    assert "probe" not in of_demo.err
    best = "runs/demo/fit/checkpoints/best.ckpt"
    assert run("explain", "runs/demo/scene.png", "--artefact", best, "--json", "-", "--out", "b.html") == 0
    assert capsys.readouterr().out == of_demo.out
    shutil.copy(best, "moved.ckpt")
    assert run("explain", "runs/demo/scene.png", "--artefact", "moved.ckpt", "--json", "-", "--out", "c.html") == 0
    alone = capsys.readouterr()
    assert "more exact with a probe" in alone.err
    with_probe = ["--artefact", "moved.ckpt", "--probe", "runs/demo/probe"]
    assert run("explain", "runs/demo/scene.png", *with_probe, "--json", "-", "--out", "d.html") == 0
    assert capsys.readouterr().out == of_demo.out != alone.out


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def test_a_second_run_changes_nothing_and_other_options_are_refused(finished, capsys):
    before = snapshot(finished)
    assert run("demo", *SMALL[:-1], finished) == 0
    assert "together" in capsys.readouterr().out
    assert snapshot(finished) == before
    assert run("demo", *SMALL[:-1], finished, "--seed", 1) == 1
    assert "holds the work of a run with other inputs or options (seed)" in capsys.readouterr().err
    assert run("demo", "--scenes", 0) == 1
    assert "scenes must be at least 1, got 0" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    kept = tmp_path / "runs" / "fit" / "version_0" / "checkpoints" / "best.ckpt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"hours of work")
    assert run("demo", *SMALL[:-1], tmp_path / "runs") == 1
    assert "runs holds something other than a demo: name another `--folder`" in capsys.readouterr().err
    assert snapshot(tmp_path).keys() == {kept}


def test_a_stopped_training_is_taken_up(finished, capsys):
    """As it lies on the disk when a run is killed in `fit`: the journal ends before it, and a last checkpoint is there."""
    journal = finished / "journal.json"
    records = (finished / "evaluation" / "records.csv").read_bytes()
    journal.write_text("".join(line + "\n" for line in journal.read_text().splitlines()[:7]))
    assert run("demo", *SMALL[:-1], finished) == 0
    assert "--ckpt_path" in capsys.readouterr().out
    assert (finished / "evaluation" / "records.csv").read_bytes() == records
