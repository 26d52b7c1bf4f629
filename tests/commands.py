"""What tests of the commands share: running them in process or as a process, and their usual options."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from cefam.commands import main
from cefam.concepts.categories import CATEGORIES
from cefam.report import records
from cefam.report.sums import NEAR, THRESHOLD, Sums
from cefam.report.tables import summarize

ROOT = Path(__file__).parent.parent


QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
]


# Files that commands write.
RESULTS = ("manifest.json", "table.txt", "records.csv", "config.json", "*.ckpt", "*.safetensors", "*.tar", "*.part")

CONVNEXT = "{class_path: cefam.load_classifier, init_args: {name: 'timm:convnext_atto', weights: null, num_classes: 5}}"


def images_data(train, val, **options):
    init_args = {"train": str(train), "val": str(val), "size": 32, "resize": 36, "batch_size": 8, "num_workers": 0}
    return json.dumps({"class_path": "ImagesData", "init_args": {**init_args, **options}})


def csv_logger(folder, name="log"):
    init_args = {"save_dir": str(folder), "name": name, "version": ""}
    return "--trainer.logger=" + json.dumps(
        {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": init_args}
    )


def run(*arguments):
    return main([str(argument) for argument in arguments])


def draw_scenes(folder, count):
    """Shards of scenes of Brodenette, without masks."""
    options = ["--source", "train", "--count", count, "--masks", "[]", "--folder", folder]
    assert run("prepare", "--kind", "brodenette", *options) == 0


def feature_options(world, prepared):
    data = "--data.init_args."
    return [
        "--config", "train/features", "--config", world / "model.yaml",
        "--model.concepts", world / "broden" / "label.csv",
        "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.02", "--model.warmup_epochs=0",
        f"{data}train", prepared / "features" / "train", f"{data}val", prepared / "features" / "val", f"{data}batch_size=8",
        "--trainer.log_every_n_steps=1", *QUIET,
    ]  # fmt: skip


# Photographs in a batch of the evaluations: CEFAM_BATCH=1 composes all batches otherwise, and no test may mind.
BATCH = int(os.environ.get("CEFAM_BATCH", "4"))


def assert_same_results(one, other):
    """Two evaluations of the same pairs whose batches were composed otherwise: what the documentation promises.

    A network's output moves by its last bits with the images that share a batch. EPG moves as little, but is set to 0 where the
    published NRA is 0. NRA ranks pixels, and moves by less than NEAR where nearly equal ones change places; a hit flips where NRA is that
    near to its threshold; and where two stages are equally associated, another one may come first.
    """
    one, other = (list(records.read(folder / "records.csv")) for folder in (one, other))
    keys = ("image", "mask", "label", "word", "category", "method", "protocol", "expressible")
    assert [[row[key] for key in keys] for row in one] == [[row[key] for key in keys] for row in other]
    steady = []
    for a, b in zip(one, other, strict=True):
        if a["stage"] != b["stage"]:
            continue
        for name in ("nra", "nra_calibrated", "auc", "auc_low", "auc_high"):
            assert a[name] == pytest.approx(b[name], abs=NEAR, nan_ok=True), (name, a, b)
        assert a["hit"] == pytest.approx(b["hit"], nan_ok=True) or abs(a["nra"] - THRESHOLD) < NEAR, (a, b)
        if (a["nra"] == 0) == (b["nra"] == 0):
            assert a["epg"] == pytest.approx(b["epg"], abs=1e-4, nan_ok=True), (a, b)
            steady.append((a, b))
    assert len(steady) >= 0.98 * len(one)
    tables = [summarize(Sums.of_records(pair[i] for pair in steady), CATEGORIES, 4) for i in (0, 1)]
    for a, b in zip(*(table.rows for table in tables), strict=True):
        assert (a.method, a.protocol, a.pairs, a.undefined) == (b.method, b.protocol, b.pairs, b.undefined)
        for metric in ("epg", "nra", "nra_calibrated"):
            assert a.means[metric] == pytest.approx(b.means[metric], abs=0.001)


def evaluated(trained, prepared, output, *options):
    return run(
        "evaluate", "--config", "evaluate/broden", "--model.artefact", trained / "artefact",
        "--data.shards", prepared / "broden", f"--data.batch_size={BATCH}", "--model.output", output, *QUIET, *options,
    )  # fmt: skip


def good_call(verb, world, made, trained):
    """Options with which the verb would do its work, below the working folder."""
    return {
        "prepare": ["--kind=images", f"--source={world}/images/val", "--folder=out"],
        "features": [
            "--config", world / "towers.yaml", f"--images={world}/images/val", "--folder=out", "--size=64",
            "--resize=64", "--device=cpu",
        ],
        "fit": [*feature_options(world, made), "--trainer.max_epochs=1"],
        "evaluate": [
            "--config", "evaluate/broden", f"--model.artefact={trained}/artefact", f"--data.shards={made}/broden",
            "--model.output=out", *QUIET,
        ],
        "validate": [
            *feature_options(world, made), f"--data.init_args.regions={made}/broden",
            f"--ckpt_path={trained}/log/checkpoints/best.ckpt",
        ],
        "export": [f"--checkpoint={trained}/log/checkpoints/best.ckpt", "--folder=out"],
        "demo": ["--folder=out"],
        "probe": [
            "--config", world / "towers.yaml", f"--images={world}/images/val", "--folder=out", "--size=64",
            "--resize=64", "--device=cpu", "--top=2",
        ],
        "associate": ["--config", world / "towers.yaml", "--method=www", f"--probe={made}/probe", "--folder=out"],
        "import": [
            "--kind=www", "--classifier.class_path=cefam.load_classifier", "--classifier.init_args.name=brodenette",
            "--concepts=brodenette", "--folder=out",
        ],
        "figure": ["--kind=methods", "--run=gone", "--out=out.png"],
    }[verb]  # fmt: skip


def command(*arguments, timeout=300, **environment):
    """Run a command in a process group of its own; a hung one is killed with its children."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    process = subprocess.Popen(
        [str(a) for a in arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables,
        start_new_session=True, cwd=os.getcwd(),
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


# A server that has imported everything forks the commands of tests that need a process: starting Python takes ten seconds.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "cefam.commands._lightning",
        "cefam.commands.summarize",
        "cefam.commands.probe",
        "timm",
        "open_clip",
        "torchvision",
    ]
)


class Forked:
    """``cefam`` in a process and group of its own; what it prints goes to a file."""

    def __init__(self, arguments, **environment):
        self.printed = Path(tempfile.mkdtemp()) / "printed.txt"
        variables = {**os.environ, **environment}
        given = ([str(argument) for argument in arguments], os.getcwd(), variables, str(self.printed))
        self.process = SERVER.Process(target=_forked, args=given)
        self.process.start()
        self.pid = self.process.pid

    def poll(self):
        """The exit status, or ``None`` while it runs; -n for signal n."""
        return self.process.exitcode

    def wait(self, timeout=None):
        """Wait for the end; the exit status."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("cefam", timeout)
        return self.process.exitcode

    def output(self):
        """What it has printed."""
        return self.printed.read_text()


def _forked(arguments, folder, variables, printed):
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["cefam", *arguments]
    for number in (signal.SIGINT, signal.SIGHUP):  # the tests themselves may run under nohup
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    torch.set_num_threads(1)  # OpenMP's threads do not survive the fork of `ddp_fork`
    sys.exit(main(arguments))


def forked(*arguments, timeout=300):
    """Run a command to its end: its status and what it printed; a hung one is killed with its children."""
    process = Forked(arguments)
    try:
        return process.wait(timeout), process.output()
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


# Two processes of a forked command.
TWO = ["--trainer.strategy=ddp_fork", "--trainer.devices=2", "--trainer.accelerator=cpu"]
