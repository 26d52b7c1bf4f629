"""Two processes against one: the same tables, the same validation, the same training."""

import csv
import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cefam.datasets.features import load_features
from cefam.evaluation import module
from cefam.io.passes import Pass
from cefam.report.sums import NEAR
from tests.commands import (
    BATCH,
    ROOT,
    TWO,
    assert_same_results,
    command,
    csv_logger,
    evaluated,
    feature_options,
    forked,
    run,
)


@pytest.mark.processes
def test_two_processes_validate_exactly(trained, world, prepared, tmp_path):
    """11 validation rows and 3 shards over two processes: unequal shares, nothing repeated, nobody waits."""
    regions = f"--data.init_args.regions={prepared}/broden"
    shared = [*feature_options(world, prepared), regions, "--ckpt_path", trained / "log/checkpoints/last.ckpt"]
    assert run("validate", *shared, csv_logger(tmp_path, "one")) == 0
    status, printed = forked("validate", *shared, csv_logger(tmp_path, "two"), *TWO)
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
    two = [*shared, *TWO, csv_logger(tmp_path, "two")]
    two += ["--data.init_args.batch_size=4"]  # two processes x 4 = the batch of 8
    images = sorted(str(path) for path in (world / "images" / "val").rglob("*.png"))[:1]
    panel = [{"class_path": "RegionPanel", "init_args": {"images": images, "resize": 64, "crop": 64}}]
    two += [f"--trainer.callbacks={json.dumps(panel)}"]  # drawn by one process, which must not ask the others
    status, printed = forked("fit", *two)
    assert status == 0, printed
    validated = []
    for name in ("one", "two"):
        with (tmp_path / name / "metrics.csv").open() as lines:
            validated.append([row for row in csv.DictReader(lines) if row["val/loss"]])
    for a, b in zip(*validated, strict=True):
        for key in ("val/loss", "val/cosine", "val/concept_correlation/object", "regions/oracle/epg/part"):
            assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-3)


@pytest.mark.soak
@pytest.mark.processes
def test_three_processes_with_fewer_shards_give_the_table_of_one(trained, world, tmp_path):
    """14 photographs in 2 uneven shards, 5 batches over 3 processes with 2 data workers each."""
    options = ["--source", world / "broden", "--folder", tmp_path / "shards", "--samples_per_shard", 9]
    assert run("prepare", "--kind=broden", *options) == 0
    shared = [f"--data.shards={tmp_path}/shards", "--data.batch_size=3", "--data.num_workers=2"]
    assert evaluated(trained, tmp_path, tmp_path / "one", *shared) == 0
    status, printed = command(
        sys.executable, ROOT / "evaluate.py", "--config", "evaluate/broden", "--config", "trainer/ddp_cpu",
        "--trainer.devices=3", "--model.artefact", trained / "artefact", *shared, "--model.output", tmp_path / "three",
        "--trainer.enable_progress_bar=false",
    )  # fmt: skip
    assert status == 0, printed
    assert "14 photographs, 92 (mask, label) pairs, 5 batches for 3 process(es)." in printed
    assert_same_results(tmp_path / "one", tmp_path / "three")
    one, three = ((tmp_path / name / "table.csv").read_text() for name in ("one", "three"))
    assert one == three  # batches are the same whatever the number of processes


def on_two_nodes(*words):
    """Torchrun twice, as on two machines, each with one process; ``words`` take the number of the node. Statuses and outputs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def node(rank):
        launch = [
            f"--node-rank={rank}",
            "--nnodes=2",
            "--nproc-per-node=1",
            "--master-addr=127.0.0.1",
            f"--master-port={port}",
        ]
        named = [str(word).format(node=rank) for word in words]
        return command(sys.executable, "-m", "torch.distributed.run", *launch, "-m", "cefam", *named)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(node, range(2)))


def on_nodes(trained, prepared, output):
    return [
        "evaluate", "--config", "evaluate/broden", "--config", "trainer/ddp_cpu", "--trainer.devices=1",
        "--trainer.num_nodes=2", "--model.artefact", trained / "artefact", "--data.shards", prepared / "broden",
        f"--data.batch_size={BATCH}", "--model.output", output, "--trainer.enable_progress_bar=false",
    ]  # fmt: skip


@pytest.mark.soak
@pytest.mark.processes
def test_two_nodes_over_the_loopback(trained, prepared, measured, tmp_path):
    ended = on_two_nodes(*on_nodes(trained, prepared, tmp_path / "two"))
    assert [status for status, _ in ended] == [0, 0], ended
    assert_same_results(measured, tmp_path / "two")


@pytest.mark.processes
def test_two_nodes_on_disks_of_their_own_are_refused(trained, prepared, tmp_path):
    """Features and probe ask the same question, when their pass begins."""
    ended = on_two_nodes(*on_nodes(trained, prepared, tmp_path / "disk of node {node}"))
    assert all(status != 0 for status, _ in ended), ended
    assert any("on several nodes it must lie on a disk that all of them share" in printed for _, printed in ended), (
        ended
    )
    assert not list(tmp_path.glob("*/table.txt"))


def test_a_table_of_fewer_batches_than_there_are_is_refused(trained, prepared, tmp_path, monkeypatch, capsys):
    """As where a process has ended without a word: its batches are missing."""
    write = module.write_part

    def all_but_one(path, *rest):
        write(path, *rest)
        if path.name == "00000001.npz":
            lost.append(path)

    def files(work):
        return [path for path in found(work) if path not in lost]

    lost, found = [], Pass.files
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_part", all_but_one)
        patch.setattr(Pass, "files", files)
        assert evaluated(trained, prepared, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert f"batches are in {tmp_path / 'out'}: run the same command again, which measures the others" in said
    assert not (tmp_path / "out/table.txt").exists()
    assert evaluated(trained, prepared, tmp_path / "out") == 0
    assert (tmp_path / "out/table.txt").exists()


@pytest.mark.processes
def test_two_processes_share_the_features(world, prepared, tmp_path):
    options = ["--config", world / "towers.yaml", "--images", prepared / "train", "--size=64", "--resize=64"]
    options += ["--views=2", "--device=cpu"]
    assert run("features", *options, "--folder", tmp_path / "one") == 0
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "cefam", "features"]
    status, printed = command(sys.executable, *launch, *options, "--folder", tmp_path / "two")
    assert status == 0, printed
    one, two = (load_features(tmp_path / name) for name in ("one", "two"))
    torch.testing.assert_close(one.matrix, two.matrix, rtol=1e-5, atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "features.npy", "journal-1.json", "journal.json", "manifest.json",
    ]  # fmt: skip
