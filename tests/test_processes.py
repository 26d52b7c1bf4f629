"""Two processes against one: the same tables, the same validation, the same training."""

import csv
import json
import sys

import pytest

from cefam.report.tables import NEAR
from tests.commands import BATCH, ROOT, assert_same_results, command, csv_logger, evaluated, feature_options, run


@pytest.mark.processes
def test_two_processes_give_the_table_of_one(trained, prepared, tmp_path):
    assert evaluated(trained, prepared, tmp_path / "one") == 0
    status, printed = command(
        sys.executable, ROOT / "evaluate.py", "--config", "evaluate/broden", "--config", "trainer/ddp_cpu",
        "--model.artefact", trained / "artefact", "--data.shards", prepared / "broden", f"--data.batch_size={BATCH}",
        "--model.output", tmp_path / "two", "--trainer.enable_progress_bar=false",
    )  # fmt: skip
    assert status == 0, printed
    assert_same_results(tmp_path / "one", tmp_path / "two")
    assert not list((tmp_path / "two").glob("*.part"))


@pytest.mark.processes
def test_two_processes_validate_exactly(trained, world, prepared, tmp_path):
    """11 validation rows and 3 shards over two processes: unequal shares, nothing repeated, nobody waits."""
    regions = f"--data.init_args.regions={prepared}/broden"
    shared = [*feature_options(world, prepared), regions, "--ckpt_path", trained / "log/checkpoints/last.ckpt"]
    assert run("validate", *shared, csv_logger(tmp_path, "one")) == 0
    two = [*shared, csv_logger(tmp_path, "two"), "--config", "trainer/ddp_cpu"]
    status, printed = command(sys.executable, "-m", "cefam", "validate", *two)
    assert status == 0, printed
    rows = []
    for name in ("one", "two"):
        with (tmp_path / name / "metrics.csv").open() as lines:
            rows.append(next(row for row in csv.DictReader(lines) if row["val/loss"]))
    assert rows[0].keys() == rows[1].keys()
    for key in rows[0]:
        # Batches are composed otherwise: see assert_same_results. A hit that flips is one pair of about twenty in a category.
        nearly = {"val": 1e-6, "regions": 0.1 if "/hit/" in key else NEAR}.get(key.partition("/")[0])
        if nearly:
            assert float(rows[0][key]) == pytest.approx(float(rows[1][key]), rel=1e-4, abs=nearly), key


@pytest.mark.processes
def test_two_processes_train_alike(world, prepared, tmp_path):
    shared = [
        *feature_options(world, prepared),
        f"--data.init_args.regions={prepared}/broden",
        "--trainer.max_epochs=2",
    ]
    one = [*shared, csv_logger(tmp_path, "one")]
    assert run("fit", *one) == 0
    two = [*shared, "--config", "trainer/ddp_cpu", csv_logger(tmp_path, "two")]
    two += ["--data.init_args.batch_size=4"]  # two processes x 4 = the batch of 8
    images = sorted(str(path) for path in (world / "images" / "val").rglob("*.png"))[:1]
    panel = [{"class_path": "RegionPanel", "init_args": {"images": images, "resize": 64, "crop": 64}}]
    two += [f"--trainer.callbacks={json.dumps(panel)}"]  # drawn by one process, which must not ask the others
    status, printed = command(sys.executable, "-m", "cefam", "fit", *two)
    assert status == 0, printed
    validated = []
    for name in ("one", "two"):
        with (tmp_path / name / "metrics.csv").open() as lines:
            validated.append([row for row in csv.DictReader(lines) if row["val/loss"]])
    for a, b in zip(*validated, strict=True):
        for key in ("val/loss", "val/cosine", "val/concept_correlation/object", "regions/oracle/epg/part"):
            assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-3)
