"""What one machine can tell of cluster runs: presets and scripts are parsed with the real parsers."""

import shlex
import subprocess

import pytest
import yaml

from tests.commands import ROOT, run

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
