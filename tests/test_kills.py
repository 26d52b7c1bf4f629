"""Kill -9 at random moments: the verb, run again, ends with the result of an uninterrupted run, and finished files stay.

Two verbs are killed by default; ``make soak`` kills all of them twenty times (``CEFAM_KILLS``). ``CEFAM_SEED`` draws other moments.
"""

import contextlib
import csv
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cefam.trained import Trained
from tests.commands import (
    QUIET,
    TWO,
    Forked,
    assert_same_results,
    csv_logger,
    feature_options,
    forked,
    images_data,
    run,
)

KILLS = int(os.environ.get("CEFAM_KILLS", "1"))
SEED = os.environ.get("CEFAM_SEED", "0")


@dataclass
class Verb:
    """A verb's options, what it makes in its folder, and how two results are compared.

    ``finished``: patterns of files that are never written again; ``begun``: the first sign of work.
    """

    options: list[object]
    finished: str
    compare: Callable[[Path, Path], None]
    begun: str = ""
    resume: Callable[[Path], list[object]] = lambda folder: []


def same_files(*names: str) -> Callable[[Path, Path], None]:
    def compare(one: Path, other: Path) -> None:
        for pattern in names:
            found = sorted(path.relative_to(one) for path in one.glob(pattern))
            assert found == sorted(path.relative_to(other) for path in other.glob(pattern)) != []
            for name in found:
                assert (one / name).read_bytes() == (other / name).read_bytes(), name

    return compare


def same_tensors(one: Path, other: Path) -> None:
    found, wanted = load_file(one / "probe.safetensors"), load_file(other / "probe.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def same_training(near: float) -> Callable[[Path, Path], None]:
    def compare(one: Path, other: Path) -> None:
        found, wanted = (
            torch.load(folder / "log/checkpoints/last.ckpt", weights_only=True)["state_dict"] for folder in (one, other)
        )
        for name, value in wanted.items():
            if near:
                torch.testing.assert_close(found[name], value, rtol=0, atol=near)
            else:
                assert torch.equal(found[name], value), name

    return compare


def last_checkpoint(folder: Path) -> list[object]:
    path = folder / "log/checkpoints/last.ckpt"
    if not path.is_file():  # killed before the first: the folder is not taken
        shutil.rmtree(folder / "log", ignore_errors=True)
        return []
    return ["--ckpt_path", path]


@pytest.fixture(scope="session")
def verbs(world, prepared, trained, tmp_path_factory):
    """Every verb with enough work for several seconds."""
    images = tmp_path_factory.mktemp("many")
    for index in range(4):
        for path in (world / "images/train").rglob("*.png"):
            target = images / path.parent.name / f"{index}-{path.name}"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    towers = ["--config", world / "towers.yaml", "--size", 64, "--resize", 64, "--device", "cpu", "--batch_size", 4]
    shards = tmp_path_factory.mktemp("shards") / "many"
    status, said = run_once(
        ["prepare", "--kind=images", "--source", images, "--folder", shards, "--samples_per_shard", 2]
    )
    assert status == 0, said
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    data = images_data(prepared / "train", prepared / "val", num_workers=2)
    from_images = ["--config", world / "model.yaml", f"--data={data}", "--model.concepts", world / "broden/label.csv"]
    return {
        "prepare": Verb(
            ["--kind=brodenette", "--source=val", "--count=400", "--samples_per_shard=10", "--folder={out}"],
            "shard-*.tar", same_files("*.tar", "manifest.json", "labels.csv"), "shard-000001.tar",
        ),
        "features": Verb(
            [*towers, "--images", shards, "--views=2", "--folder={out}"],
            "part-*.safetensors", same_files("features.npy", "manifest.json"), "part-*.safetensors",
        ),
        "probe": Verb(
            [*towers, "--images", shards, "--top=5", "--folder={out}"], "probe-0*.safetensors", same_tensors,
            "probe-0*.safetensors",
        ),
        "fit from features": Verb(
            ["fit", *feature_options(world, prepared), "--trainer.max_epochs=60", "LOGGER"], "", same_training(0),
            "log/checkpoints/last.ckpt", last_checkpoint,
        ),
        "fit from images": Verb(
            ["fit", *from_images, "--trainer.max_epochs=4", *quiet, "LOGGER"], "", same_training(1e-6),
            "log/checkpoints/last.ckpt", last_checkpoint,
        ),
        "evaluate": Verb(
            ["--config", "evaluate/broden", "--model.artefact", trained / "artefact", "--data.shards",
             prepared / "broden", "--data.batch_size=1", "--model.output={out}", *quiet],
            ".parts/*.npz", same_files("records.csv", "table.txt", "contact_sheet.png"), ".parts/0*.npz",
        ),
        "summarize": Verb(
            [world / "images/train", "--artefact", trained / "artefact", "--out={out}", "--top_k=3", "--device=cpu"], "parts/0*.json",
            same_files("summary.json", "summary.csv", "summary.html"), "parts/0*.json",
        ),
    }  # fmt: skip


def arguments_of(name, verb, folder):
    """The command line of a verb that works in this folder."""
    words = [str(option).replace("{out}", str(folder)) for option in verb.options]
    words = [csv_logger(folder) if word == "LOGGER" else word for word in words]
    return [*([] if words[0] == "fit" else [name]), *words, *map(str, verb.resume(folder))]


def run_once(arguments):
    return forked(*arguments)


def killed(arguments, folder, begun, wait):
    """Start a command, wait until it works and a while longer, and kill it with all its processes; false: it was done before."""
    before = {path: path.stat().st_mtime_ns for path in folder.glob(begun)}
    process = Forked(arguments)
    for _ in range(1200):
        now = {path: path.stat().st_mtime_ns for path in folder.glob(begun)}
        if now != before or process.poll() is not None:
            break
        time.sleep(0.05)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=wait)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait(60) == -signal.SIGKILL


NAMES = ("prepare", "features", "probe", "fit from features", "fit from images", "evaluate", "summarize")
DEFAULT = ("features", "fit from features")


@pytest.mark.processes
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in DEFAULT else pytest.mark.soak) for n in NAMES])
def test_a_verb_that_was_killed_goes_on(name, verbs, tmp_path):
    verb, draws = verbs[name], random.Random(f"{SEED}/{name}")
    whole = tmp_path / "whole"
    start = time.monotonic()
    status, said = run_once(arguments_of(name, verb, whole))
    assert status == 0, said
    span = (time.monotonic() - start) / 2
    done = folders = 0
    while done < KILLS:
        folder = tmp_path / f"killed-{folders}"
        folders += 1
        while done < KILLS and killed(arguments_of(name, verb, folder), folder, verb.begun, draws.uniform(0, span)):
            done += 1
            finished = times(folder, verb.finished)
            if results_are_there(folder):
                break  # killed after its work
        if done == KILLS and not results_are_there(folder):
            status, said = run_once(arguments_of(name, verb, folder))
            assert status == 0, said
            later = times(folder, verb.finished)
            assert {path: stamp for path, stamp in finished.items() if later.get(path, stamp) != stamp} == {}
        verb.compare(folder, whole)
        assert not list(folder.rglob("*.part"))


def results_are_there(folder):
    return (folder / "table.txt").exists() and not (folder / ".parts").exists()


def times(folder, pattern):
    return {path: path.stat().st_mtime_ns for path in (folder.glob(pattern) if pattern else ())}


@pytest.mark.processes
def test_an_evaluation_that_was_killed_does_not_mix_with_that_of_another_artefact(verbs, trained, prepared, tmp_path):
    verb, folder, fresh = verbs["evaluate"], tmp_path / "killed", tmp_path / "fresh"
    while not killed(arguments_of("evaluate", verb, folder), folder, verb.begun, 0.3):
        shutil.rmtree(folder)
    assert list(folder.glob(".parts/0*.npz"))
    other = Trained.read(trained / "artefact")
    with torch.no_grad():
        other.translator.fc3.bias += 0.1
    other.write(tmp_path / "trained_again")
    options = [
        "--config=evaluate/broden",
        f"--model.artefact={tmp_path}/trained_again",
        f"--data.shards={prepared}/broden",
    ]
    for output in (folder, fresh):
        assert run("evaluate", *options, "--data.batch_size=1", f"--model.output={output}", *QUIET) == 0
    assert (folder / "records.csv").read_bytes() == (fresh / "records.csv").read_bytes()


@pytest.mark.soak
@pytest.mark.processes
@pytest.mark.parametrize("verb", ["evaluate", "fit"])
def test_one_process_of_two_is_killed(verb, world, prepared, trained, measured, tmp_path):
    """The run ends within 30 seconds with a sentence, and can be taken up."""
    output = tmp_path / "out"
    evaluate = ["--config", "evaluate/broden", "--model.artefact", trained / "artefact", "--data.shards"]
    evaluate += [prepared / "broden", "--data.batch_size=1", f"--model.output={output}", "--trainer.accelerator=cpu"]
    fit = [*feature_options(world, prepared), csv_logger(tmp_path), "--trainer.max_epochs=100000"]
    options = [verb, *map(str, {"evaluate": evaluate, "fit": fit}[verb])]
    begun = {"evaluate": "out/.parts/0*.npz", "fit": "log/checkpoints/last.ckpt"}[verb]
    process = Forked([*options, *TWO])
    try:
        for _ in range(1200):
            if list(tmp_path.glob(begun)) or process.poll() is not None:
                break
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        start = time.monotonic()
        status = process.wait(60)
        assert time.monotonic() - start < 30
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    said = process.output()
    assert status != 0
    assert f"cefam {verb}: " in said or "Child process with PID" in said  # Lightning's own sentence
    assert "Traceback" not in said
    if verb == "evaluate":
        done = len(list(output.glob(".parts/0*.npz")))
        status, printed = run_once(options)
        assert status == 0, printed
        assert f"{done} of them are measured already" in printed
        assert_same_results(output, measured)
    else:
        shorter = [word.replace("=100000", "=100001") for word in options]
        limit = ["--trainer.limit_train_batches=1", "--ckpt_path", str(tmp_path / "log/checkpoints/last.ckpt")]
        stored = torch.load(tmp_path / "log/checkpoints/last.ckpt", weights_only=True)
        shorter = [word.replace("=100001", f"={stored['epoch'] + 2}") for word in shorter]
        status, printed = run_once([*shorter, *limit])
        assert status == 0, printed
        with (tmp_path / "log/metrics.csv").open() as lines:
            assert any(row["val/loss"] for row in csv.DictReader(lines))
