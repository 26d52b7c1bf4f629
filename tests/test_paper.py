"""Tables and figures of the paper: pairs that all methods can express, secondary columns, our rows beside the paper's, figures."""

import csv
import dataclasses
import io
import json
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torchmetrics.functional.classification import binary_auroc

from cefam.methods import RegionMethod
from cefam.methods.base import Candidates
from cefam.report import examples, plots, presence, records, results
from cefam.report.bootstrap import intervals
from cefam.report.sums import Sums
from tests.commands import ROOT, evaluated, run


class EveryOther(RegionMethod):
    """Expresses concepts with even positions alone; the map is a slope."""

    def regions(self, activated, pairs, size, num_candidates):
        row = torch.linspace(0, 1, size[1]).expand(len(pairs), 1, *size)
        ones = torch.ones(len(pairs), 1)
        return Candidates(row, ones, ones.long(), (pairs.concept % 2 == 0).unsqueeze(1))


@pytest.fixture(scope="module")
def measured(trained, prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper") / "run"
    rows = {"CE-FAM": "CEFAMRegions", "WWW": "tests.test_paper.EveryOther"}
    options = [
        f"--model.methods={json.dumps(rows)}", "--model.metrics=[pointing, auprc]",
    ]  # fmt: skip
    assert evaluated(trained, prepared, folder, *options) == 0
    return folder


def test_a_block_holds_the_pairs_that_all_methods_can_express(measured):
    table = results.joined([measured])
    assert list(dict.fromkeys(row.protocol for row in table.rows)) == ["top1", "top1 common", "oracle", "oracle common"]
    every = [r for r in records.read(measured / "records.csv") if r["protocol"] == "top1"]
    expressed = {(r["image"], r["mask"], r["label"]) for r in every if r["method"] == "WWW" and r["expressible"]}
    assert 0 < len(expressed) < len(every) / 2
    for method in ("CE-FAM", "WWW"):
        (row,) = [row for row in table.rows if (row.protocol, row.method) == ("top1 common", method)]
        assert row.pairs == len(expressed)
        assert row.coverage == 1
        among = [r for r in every if r["method"] == method and (r["image"], r["mask"], r["label"]) in expressed]
        means = []
        for name in table.categories:
            values = [r["nra"] for r in among if r["category"] == name and not np.isnan(r["nra"])]
            means.append(np.mean(values) if values else None)
        found = row.means["nra"]
        assert found[:-1] == [None if m is None else pytest.approx(m) for m in means]
        assert found[-1] == pytest.approx(np.mean([m for m in means if m is not None]))
    assert {d.protocol for d in table.differences} == {"top1", "top1 common", "oracle", "oracle common"}


def test_secondary_metrics_and_areas_are_columns_on_request(measured, capsys):
    assert "pointing" in results.joined([measured]).columns
    assert run("table", measured, "--columns=[auc, auc_high, pointing]", "--format=csv") == 0
    header = capsys.readouterr().out.splitlines()[0]
    assert "AUC_high object" in header
    assert "Pointing game avg" in header
    assert "NRA" not in header
    assert run("table", measured, "--columns=[iou]") == 1
    assert "'iou' was not measured" in capsys.readouterr().err


def test_an_unknown_metric_is_refused(trained, prepared, tmp_path, capsys):
    assert evaluated(trained, prepared, tmp_path / "r", "--model.metrics=[pointin]") == 1
    assert "no secondary metric 'pointin'. Did you mean 'pointing'?" in capsys.readouterr().err


def test_the_papers_rows_stand_below_ours(measured, capsys):
    assert run("table", measured, "--published=table1/resnet50", "--columns=[nra]", "--format=csv") == 0
    rows = {(row["protocol"], row["method"]): row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    ours = next(r for r in results.joined([measured]).rows if (r.protocol, r.method) == ("oracle", "CE-FAM"))
    assert float(rows["oracle", "CE-FAM (paper)"]["NRA avg"]) == 0.361
    assert float(rows["oracle", "CE-FAM"]["NRA avg"]) == pytest.approx(ours.means["nra"][-1], abs=1e-3)
    assert run("table", measured, "--published=table9") == 1
    assert "There is no published table 'table9'" in capsys.readouterr().err


CONFIGS = sorted((ROOT / "configs" / "paper").glob("*.yaml"))


def published():
    """The methods of every published table."""
    tables = {}
    with (ROOT / "cefam/data/published.csv").open() as lines:
        for row in csv.DictReader(lines):
            tables.setdefault(row["table"], set()).add(row["method"])
    return tables


def tables_of(path):
    """The published tables that the head of a config names."""
    command = next(line for line in path.read_text().splitlines() if "--published" in line)
    return re.findall(r"table\w+/\w+", command.partition("--published")[2])


def test_every_table_of_the_paper_has_a_config():
    named = [name for path in CONFIGS for name in tables_of(path)]
    assert len(set(named)) == len(named)
    assert set(named) == set(published())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_measures_the_methods_of_its_rows(path):
    model = yaml.safe_load(path.read_text())["model"]
    for name in tables_of(path):
        assert published()[name] <= set(model["methods"])
    head = path.read_text()
    assert f"cefam evaluate --config paper/{path.stem} " in head
    assert "Cost: " in head


@pytest.mark.parametrize(
    ("kind", "options", "suffix"),
    [
        ("methods", [], "png"),
        ("points", ["--protocol=top1"], "pdf"),
        ("curves", ["--example=1"], "pdf"),
        ("stages", ["--methods=[CE-FAM]"], "svg"),
    ],
)
def test_figures_are_drawn_from_the_results(kind, options, suffix, measured, tmp_path):
    out = tmp_path / f"figure.{suffix}"
    assert run("figure", "--kind", kind, "--run", measured, "--out", out, *options) == 0
    if suffix == "png":
        with Image.open(out) as picture:
            assert picture.size[0] == pytest.approx(6.9 * 300, abs=2)  # a page wide, at 300 dots an inch
    else:
        assert out.read_bytes()[:4] in (b"%PDF", b"<?xm")
    assert run("figure", "--kind", kind, "--run", measured, "--out", out, *options) == 1  # it exists


def test_points_are_the_tables_means_within_their_intervals(measured):
    about = results.Run.read(measured)
    sums = Sums.of(records.blocks(measured / results.RECORDS))
    row = next(row for row in results.joined([measured]).rows if (row.protocol, row.method) == ("top1", "CE-FAM"))
    found = intervals(sums, "top1")
    for category, mean in zip(about.categories, row.means["nra"], strict=False):
        value, low, high = found["CE-FAM", category]
        assert value == pytest.approx(mean)
        assert low <= value <= high
        of_images = {}
        for record in records.read(measured / results.RECORDS):
            if (record["protocol"], record["method"], record["category"]) == ("top1", "CE-FAM", category):
                of_images.setdefault(record["image"], []).append(record["nra"])
        known = [np.array(v)[~np.isnan(v)] for v in of_images.values()]
        known = [v for v in known if len(v)]
        draws = np.random.RandomState(1).randint(len(known), size=(2000, len(known)))
        means = [np.concatenate([known[n] for n in draw]).mean() for draw in draws]
        assert (low, high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.25 * (max(means) - min(means)))
    figure = plots.points(found, about.methods, about.categories, "NRA")
    assert [axes.get_title() for axes in figure.axes] == [c for c in about.categories if ("CE-FAM", c) in found]


def test_titles_of_many_methods_do_not_overlap(measured):
    kept = examples.load(measured / results.EXAMPLES)[:2]
    names = ["Integrated Gradients, concept", "Score-CAM, concept", "random channel, guided", *"abcdef"]
    kept = [dataclasses.replace(each, candidates=dict.fromkeys(names, each.candidates["CE-FAM"])) for each in kept]
    figure = plots.side_by_side(kept, names)
    FigureCanvasAgg(figure).draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes[: len(names) + 2]]
    assert all(one.x1 <= other.x0 for one, other in pairwise(boxes))


def test_the_figure_of_epochs_shows_the_hit_rates_of_the_log(trained, measured, tmp_path, capsys):
    log = trained / "log" / "metrics.csv"
    options = ["--kind", "epochs", "--run", measured, "--out", tmp_path / "f.png"]
    assert run("figure", *options, "--log", log) == 0
    assert (tmp_path / "f.png").stat().st_size > 5000
    (tmp_path / "other.csv").write_text("epoch,step\n0,1\n")
    options[-1] = tmp_path / "g.png"
    assert run("figure", *options, "--log", tmp_path / "other.csv") == 1
    assert "train with `data.init_args.regions`" in capsys.readouterr().err
    assert run("figure", *options) == 1
    assert "set `--log`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (["--methods=[CE-FAN]"], "has no method 'CE-FAN'. Did you mean 'CE-FAM'?"),
        (["--example=99"], "There is no example 99"),
        (["--out=f.gif"], "written as .png, .pdf or .svg, not as 'f.gif'"),
    ],
)
def test_bad_options_of_a_figure(options, advice, measured, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("figure", "--kind=curves", "--run", measured, "--out=f.png", *options) == 1
    assert advice in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_examples_without_masks_have_no_curve():
    with pytest.raises(ValueError, match="has no mask"):
        plots.iou_thresholds(examples.Example("x", np.zeros((4, 4, 3), np.uint8), None, {}), ["a"])


def test_presence_is_the_area_under_the_roc_curve(trained, prepared, tmp_path, capsys):
    rows = {"CE-FAM": "CEFAMRegions", "random map": "RandomMapRegions"}
    options = [f"--model.methods={json.dumps(rows)}", "--model.presence_scores=true"]
    assert evaluated(trained, prepared, tmp_path / "run", *options) == 0
    assert "Presence: AUC" in capsys.readouterr().out
    lines = list(csv.DictReader((tmp_path / "run" / "presence.csv").open()))
    assert {line["method"] for line in lines} == {"CE-FAM"}  # a random map has no opinion
    assert all(0 <= float(line["auc"]) <= 1 for line in lines)
    assert not list((tmp_path / "run").glob(".*.part"))
    # The photographs that are counted have a mask of the category.
    shown = {}
    for record in records.read(tmp_path / "run" / "records.csv"):
        shown.setdefault(record["label"], set()).add(record["image"])
    for line in lines:
        assert int(line["with"]) == len(shown[line["label"]])


@given(st.integers(0, 2**16), st.integers(1, 6))
def test_roc_areas_are_torchmetrics(seed, levels):
    random = torch.Generator().manual_seed(seed)
    score = torch.randint(0, levels, (30, 3), generator=random).float() / levels
    present = torch.rand(30, 3, generator=random) < 0.4
    known = torch.rand(30, 3, generator=random) < 0.8
    present[0], present[1], known[:2] = True, False, True
    found = presence.roc_areas(score, present, known)
    for column in range(3):
        rows = known[:, column]
        wanted = binary_auroc(score[rows, column], present[rows, column].long())
        assert found[column].item() == pytest.approx(float(wanted), abs=1e-6)
    score[0, 0] = torch.nan
    assert presence.roc_areas(score, present, known)[0].isnan()


def test_ce_fam_of_some_stages_chooses_among_them(trained, prepared, tmp_path):
    rows = {
        "all": "CEFAMRegions",
        "last": {"class_path": "CEFAMRegions", "init_args": {"stages": ["layer4"]}},
        "two": {"class_path": "CEFAMRegions", "init_args": {"stages": ["layer4", "layer2"]}},
        "channel": {"class_path": "RandomChannelRegions", "init_args": {"stages": ["layer3"]}},
    }
    assert evaluated(trained, prepared, tmp_path / "r", f"--model.methods={json.dumps(rows)}") == 0
    found = {}
    for record in records.read(tmp_path / "r" / "records.csv"):
        key = (record["image"], record["mask"], record["label"])
        found.setdefault((record["method"], record["protocol"]), {})[key] = (record["stage"], f"{record['nra']:.9g}")
    assert {stage for stage, _ in found["last", "top1"].values()} == {"3"}
    assert {stage for stage, _ in found["channel", "oracle"].values()} == {"2"}
    assert {stage for stage, _ in found["two", "top1"].values()} <= {"1", "3"}
    for key, (stage, nra) in found["all", "top1"].items():
        if stage == "3":
            assert found["last", "top1"][key][1] == nra
        if stage in "13":
            assert found["two", "top1"][key] == (stage, nra)
    assert found["last", "top1"] == found["last", "oracle"]
