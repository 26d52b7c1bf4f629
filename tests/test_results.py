"""Tables and figures from a folder of records alone; ``cefam table``; one mean over categories for all who need it."""

import csv
import io
import json
import math
import shutil
import sys

import numpy as np
import pytest
import torch

from cefam.metrics.functional import category_means
from cefam.report import examples, presence, records
from cefam.report.bootstrap import differences
from cefam.report.sums import NEAR, Sums
from cefam.report.tables import summarize, to_csv, to_latex, to_markdown, to_text
from tests.commands import command, evaluated, run

WRITTEN = ("table.txt", "table.md", "table.csv", "differences.csv", "contact_sheet.png")


@pytest.fixture(scope="module")
def measured(trained, prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / "first"
    grad_cam = "{class_path: GradCAMRegions, init_args: {of: class}}"
    assert evaluated(trained, prepared, folder, "--model.methods.Grad-CAM", grad_cam) == 0
    return folder


def test_everything_is_made_again_from_the_records(measured, tmp_path):
    shutil.copytree(measured, tmp_path / "run")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in WRITTEN}
    for name in WRITTEN:
        (tmp_path / "run" / name).unlink()
    assert run("table", tmp_path / "run", "--remake=true") == 0
    for name in WRITTEN[:-1]:
        assert (tmp_path / "run" / name).read_bytes() == before[name]
    assert (tmp_path / "run" / "contact_sheet.png").read_bytes()[:4] == b"\x89PNG"


def test_the_contact_sheet_shows_the_candidates_that_were_measured(measured):
    kept = examples.load(measured / "examples.npz")
    found = {(r["method"], r["protocol"]): set() for r in records.read(measured / "records.csv")}
    for record in records.read(measured / "records.csv"):
        found[record["method"], record["protocol"]].add(f"{record['nra']:.2f}")
    assert len(kept) == 8
    for example in kept:
        assert list(example.candidates) == ["CE-FAM", "random channel", "random map", "center", "luminance", "Grad-CAM"]
        assert [len(each) for each in example.candidates.values()] == [4, 4, 4, 1, 2, 1]
        for method, candidates in example.candidates.items():
            for protocol in ("top1", "oracle"):
                (chosen,) = [c for c in candidates if protocol in c.chosen]
                assert chosen.caption.split()[-1] in found[method, protocol]


def test_the_verb_prints_what_the_evaluation_printed(measured, capsys):
    assert run("table", measured) == 0
    assert capsys.readouterr().out == (measured / "table.txt").read_text()
    assert run("table", measured, "--format=csv") == 0
    assert capsys.readouterr().out.splitlines() == (measured / "table.csv").read_text().splitlines()
    assert run("table", measured, "--format", "md") == 0
    assert capsys.readouterr().out == (measured / "table.md").read_text()
    assert run("table", measured, "--format=latex") == 0
    latex = capsys.readouterr().out
    assert latex.startswith("\\begin{tabular}{lrrrrrrrrrrrrrrrrrrrr}")
    assert latex.count("\\\\") == 2 + 2 * (1 + 6)
    assert "Hit Rate" in latex


def test_runs_are_joined(measured, tmp_path, capsys):
    """The same method twice is told apart by its run, and has the numbers that it has alone."""
    shutil.copytree(measured, tmp_path / "second")
    assert run("table", measured, tmp_path / "second", "--format=csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    alone = list(csv.DictReader((measured / "table.csv").open()))
    assert len(rows) == 2 * len(alone)
    for row in rows:
        name = row["method"].partition(": ")
        assert name[0] in ("first", "second")
        (same,) = [a for a in alone if (a["method"], a["protocol"]) == (name[2], row["protocol"])]
        assert {**row, "method": name[2]} == same
    shutil.copytree(measured, tmp_path / "other" / "first")
    assert run("table", measured, tmp_path / "other" / "first", "--format=csv") == 0
    assert "other/first: CE-FAM" in capsys.readouterr().out
    assert run("table", measured, measured) == 1
    assert "A folder is named twice" in capsys.readouterr().err
    about = json.loads((tmp_path / "second" / "run.json").read_text())
    (tmp_path / "second" / "run.json").write_text(json.dumps({**about, "preset": "paper"}))
    assert run("table", measured, tmp_path / "second") == 1
    assert "such rows cannot be compared" in capsys.readouterr().err


def test_published_numbers_stand_beside(measured, tmp_path, capsys):
    assert run("table", measured, "--published=table1/resnet50", "--format=wide") == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("CE-FAM (paper)")]
    assert line.split("|")[1].split() == ["0.233", "0.067", "0.169", "0.147", "0.154"]
    assert line.split("|")[3].split() == ["-"] * 5  # the paper has no calibrated column
    assert "WWW (paper)" in out
    assert run("table", measured, f"--published={measured}/table.csv") == 0
    assert "CE-FAM (published)" in capsys.readouterr().out
    assert run("table", measured, "--published=table1/resnet5") == 1
    assert "Did you mean 'table1/resnet50'" in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert run("table", measured, f"--published={tmp_path}/other.csv") == 1
    assert "has no column 'method', 'protocol'" in capsys.readouterr().err
    text = (measured / "table.csv").read_text()
    for old, new, advice in (
        ("top1", "top-1", "the protocol 'top-1' is not one of top1, top1 common, oracle"),
        (" object", "_object", None),
        ("CE-FAM,0", "CE-FAM,x0", "does not hold the numbers of a table.csv"),
    ):
        (tmp_path / "other.csv").write_text(text.replace(old, new))
        assert run("table", measured, f"--published={tmp_path}/other.csv") == (1 if advice else 0)
        assert (advice or "") in capsys.readouterr().err


def test_the_papers_averages_are_the_means_of_its_categories():
    """A typing error in the shipped numbers would show here; the paper rounds to three digits."""
    from importlib.resources import files

    with (files("cefam") / "data" / "published.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    off = []
    for row in rows:
        for metric in ("EPG", "NRA", "Hit Rate", "AUC", "AUC_high", "AUC_low"):
            cells = [row[f"{metric} {name}"] for name in ("object", "part", "color", "material")]
            if all(cells):
                off.append(abs(sum(map(float, cells)) / 4 - float(row[f"{metric} avg"])))
    assert len(off) == 27 * 3 + 5
    assert max(off) <= 0.0011


@pytest.mark.parametrize(
    ("damage", "advice"),
    [
        (lambda folder: (folder / "run.json").unlink(), "holds no results (no run.json)"),
        (lambda folder: (folder / "records.csv").unlink(), "holds no results (no records.csv)"),
        (lambda folder: (folder / "run.json").write_text("{"), "is not a file of cefam-results version 2"),
        (lambda folder: (folder / "records.csv").write_text("a,b\n"), "is not a file of records"),
        (
            lambda folder: (folder / "records.csv").write_text(
                "\n".join((folder / "records.csv").read_text().splitlines()[:3]).replace(
                    "CE-FAM,top1,", "CE-FAM,top1,x"
                )
            ),
            "up to line 3: could not convert string to float",
        ),
    ],
)
def test_broken_results_are_refused(measured, tmp_path, capsys, damage, advice):
    shutil.copytree(measured, tmp_path / "run")
    damage(tmp_path / "run")
    assert run("table", tmp_path / "run") == 1
    assert advice in capsys.readouterr().err


@pytest.mark.processes
def test_the_table_exits_with_its_status(measured, tmp_path):
    status, printed = command(sys.executable, "-m", "cefam", "table", measured)
    assert status == 0
    assert printed == (measured / "table.txt").read_text()
    assert run("table", tmp_path) == 1
    assert run("table", measured, "--formt=md") == 2


def test_means_over_categories_from_a_pencil():
    means, average = category_means(torch.tensor([[3.0, 1.0, 0.0]]).double(), torch.tensor([[4, 1, 0]]))
    assert means[0, :2].tolist() == [0.75, 1.0]
    assert math.isnan(means[0, 2])
    assert average.tolist() == [0.875]
    assert math.isnan(category_means(torch.zeros(2).double(), torch.zeros(2).long())[1])
    random = np.random.default_rng(0)
    total, count = random.random((50, 4)), random.integers(0, 3, (50, 4))
    with np.errstate(invalid="ignore"):
        expected = np.nanmean(np.where(count > 0, total / np.maximum(count, 1), np.nan), axis=1)
    found = category_means(torch.from_numpy(total), torch.from_numpy(count))[1]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-14)


def test_hits_that_rounding_may_decide_are_named():
    record = {"protocol": "top1", "method": "ours", "category": "object", "expressible": True, "epg": 0.1, "hit": 1.0}
    values = [0.5 + NEAR / 2, 0.5 - NEAR / 2, 0.7, 0.5 + 2 * NEAR]
    table = summarize(Sums.of_records({**record, "nra": v, "nra_calibrated": v} for v in values), ["object"], 4)
    assert table.notes == [f"Hits that rounding may decide (NRA within {NEAR} of 0.5): ours (top1) 2."]
    for render in (to_text, to_markdown):
        assert "ours (top1) 2" in render(table)
    assert "ours" in to_csv(table)
    assert "ours" in to_latex(table)


def test_differences_are_of_the_first_method_and_of_the_same_images():
    def record(image, method, value, expressible=True):
        return {
            "image": image,
            "method": method,
            "protocol": "top1",
            "category": "object",
            "nra": value,
            "expressible": expressible,
        }

    images = [str(i) for i in range(6)]
    rows = [record(i, "mine", 0.5, i != "0") for i in images] + [record(i, "chance", 0.1) for i in images]
    rows.sort(key=lambda row: row["image"])  # in the first image only "chance" has a value
    (found,) = differences(Sums.of_records(rows), repeats=20, order=["mine", "chance"])
    assert (found.method, found.other) == ("mine", "chance")
    assert found.value == pytest.approx(0.4)
    others = [record(f"other {i}", "elsewhere", 0.9) for i in images]
    every = Sums.of_records([*rows, *others])
    assert [d.other for d in differences(every, repeats=20, order=["mine"])] == ["chance"]


def test_lists_are_compared_with_the_most_frequent_concepts():
    """Literally: of six photographs and nine concepts, of which the first is always there and left out."""
    generator = torch.Generator().manual_seed(1)
    present = torch.rand(6, 10, generator=generator) < 0.5
    present[:, 0], present[0, 1:], present[1, 1:] = True, True, False
    score = torch.rand(6, 10, generator=generator)
    score[:, 9] = score[:, 8] * 2  # rises and falls with another one
    found = {
        (name, measure): value
        for name, measure, value, *_ in presence.lists({"m": score}, present, torch.ones(6, 10) > 0)
    }
    often = present.double().mean(dim=0)

    def precision(order, count):
        chosen = [sorted(range(1, 10), key=lambda c: -float(row[c]))[:count] for row in order]
        return sum(float(present[n, c]) for n, some in enumerate(chosen) for c in some) / (6 * count)

    for count in (3, 8):
        mine, usual = precision(score, count), precision(often.expand(6, -1), count)
        assert found["m", f"precision {count}"] == pytest.approx(mine)
        assert found["m", f"lift {count}"] == pytest.approx(mine - usual)
    together = torch.corrcoef(score.T.double())
    redundant = 0
    for row in score:
        order = sorted(range(1, 10), key=lambda c: -float(row[c]))[:8]
        redundant += sum(any(together[c, other] > 0.9 for other in order[:n]) for n, c in enumerate(order))
    assert found["m", "redundant"] == pytest.approx(redundant / 6)
    assert presence.lists({"m": score[:, :4]}, present[:, :4], torch.ones(6, 4) > 0) == []  # fewer than a list
