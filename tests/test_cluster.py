"""What one machine can tell of cluster runs: presets and scripts are parsed with the real parsers."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from tests.commands import ROOT, command, csv_logger, feature_options, run

PRESETS = sorted(path.stem for path in (ROOT / "configs" / "trainer").glob("*.yaml"))


def printed(arguments, capsys):
    """The configuration that a command would run with."""
    with pytest.raises(SystemExit) as ended:
        run(*arguments, "--print_config")
    assert ended.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_options_of_the_trainer(preset, capsys):
    config = printed(["fit", "--config", "demo", "--config", f"trainer/{preset}"], capsys)
    given = yaml.safe_load((ROOT / "configs" / "trainer" / f"{preset}.yaml").read_text())["trainer"]
    for name in ("accelerator", "devices", "num_nodes", "precision"):
        if name in given:
            assert config["trainer"][name] == given[name]


@pytest.mark.parametrize("script", ["train.sbatch", "torchrun.sh"])
def test_scripts_name_real_options(script, capsys):
    path = ROOT / "examples" / "cluster" / script
    subprocess.run(["bash", "-n", str(path)], check=True)
    words = shlex.split(path.read_text().replace("\\\n", " ").replace('"$SLURM_NNODES"', "2"), comments=True)
    config = printed(words[words.index("fit") :], capsys)
    assert config["trainer"]["num_nodes"] == 2
    assert config["trainer"]["devices"] in (4, "4")


def test_slurm_asks_for_what_the_preset_counts_on():
    lines = (ROOT / "examples" / "cluster" / "train.sbatch").read_text().splitlines()
    asked = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH --"))
    assert (
        asked["ntasks-per-node"] == asked["gpus-per-node"]
    )  # Lightning refuses another number of processes than devices
    assert asked["signal"].startswith(
        "SIGUSR1"
    )  # to the steps, not to the script (B:): srun's processes write the checkpoint
    assert "requeue" in asked


@pytest.mark.processes
@pytest.mark.soak
def test_a_job_that_is_told_to_end_goes_back_into_the_queue_and_goes_on(world, prepared, tmp_path):
    """SLURM's warning (SIGUSR1) writes a checkpoint and asks for the queue; the job, started again, goes on from it by itself."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tmp_path / "bin/scontrol").chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": "localhost",
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
    }  # fmt: skip
    options = ["fit", *feature_options(world, prepared), csv_logger(tmp_path), "--config", "trainer/slurm"]
    options += ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1"]
    options += [f"--trainer.default_root_dir={tmp_path}", "--early_stopping.patience=1000000"]
    words = [sys.executable, "-m", "cefam", *map(str, options), "--trainer.max_epochs=1000000"]
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **slurm},
    )  # fmt: skip
    try:
        for _ in range(1200):
            if (tmp_path / "log/checkpoints/last.ckpt").exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        for _ in range(1200):
            if (tmp_path / "asked").exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)  # as SLURM does when it takes the job off
        _, said = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert (tmp_path / "asked").read_text().split() == ["requeue", "77"], said
    (kept,) = tmp_path.rglob("hpc_ckpt_*.ckpt")
    epoch = torch.load(kept, weights_only=True)["epoch"]
    again = [*words[:-1], f"--trainer.max_epochs={epoch + 3}"]
    status, printed = command(*again, **slurm)
    assert status == 0, printed
    assert "hpc_ckpt" in printed
    assert torch.load(tmp_path / "log/checkpoints/last.ckpt", weights_only=True)["epoch"] == epoch + 2
