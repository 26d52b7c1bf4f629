"""What tests of the commands share: running them in process or as a process, and their usual options."""

import json
import os
import signal
import subprocess
from pathlib import Path

from cefam.commands import main

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


def feature_options(world, prepared):
    data = "--data.init_args."
    return [
        "--config", "train/features", "--config", world / "model.yaml",
        "--model.concepts", world / "broden" / "label.csv",
        "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.02", "--model.warmup_epochs=0",
        f"{data}train", prepared / "features" / "train", f"{data}val", prepared / "features" / "val", f"{data}batch_size=8",
        "--trainer.log_every_n_steps=1", *QUIET,
    ]  # fmt: skip


def evaluated(trained, prepared, output, *options):
    return run(
        "evaluate", "--config", "evaluate/broden", "--model.artefact", trained / "artefact",
        "--data.shards", prepared / "broden", "--data.batch_size=4", "--model.output", output, *QUIET, *options,
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
