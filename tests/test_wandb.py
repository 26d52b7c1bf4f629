"""W&B: the id of a run, its attempts, the upload of a folder as one run, and sweeps; without a network."""

import json
import re
import shutil
import struct
import time
from glob import glob
from pathlib import Path

import pytest
import torch
import yaml

from tests.commands import ROOT, csv_logger, feature_options, run


def stored(path):
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log, blocks of 32 KB with (crc, length, type) before each part."""
    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def records_of(folder):
    """What an offline run holds: its run record, and its rows of numbers. W&B's service writes the end a little after the run."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    for _ in range(300):
        kinds = {wandb_internal_pb2.Record.FromString(data).WhichOneof("record_type") for data in stored(path)}
        if "exit" in kinds:
            break
        time.sleep(0.1)
    rows, about = [], None
    for data in stored(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "run":
            about = about or record.run
        if record.WhichOneof("record_type") == "history":
            items = {
                (item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item
            }
            rows.append(items)
    return about, rows


def logged(folder, *options):
    """A training with W&B's logger beside the CSV log."""
    import wandb

    board = {
        "class_path": "lightning.pytorch.loggers.WandbLogger",
        "init_args": {"project": "t", "save_dir": str(folder)},
    }
    both = [json.loads(csv_logger(folder).split("=", 1)[1]), board]
    wandb.finish()  # of another test in this process
    status = run("fit", *options, f"--trainer.logger={json.dumps(both)}")
    wandb.finish()  # as when the process of a command ends
    return status


@pytest.fixture(scope="module")
def attempts(world, prepared, tmp_path_factory):
    """Two epochs, then two more; then two again from the same checkpoint, as after a kill: the log of three attempts."""
    folder = tmp_path_factory.mktemp("attempts")
    options = [*feature_options(world, prepared), f"--data.init_args.regions={prepared}/broden"]
    last = folder / "log" / "checkpoints" / "last.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        assert logged(folder, *options, "--trainer.max_epochs=2") == 0
        shutil.copy(last, folder / "kept.ckpt")
        for checkpoint in (last, folder / "kept.ckpt"):
            assert logged(folder, *options, "--trainer.max_epochs=4", f"--ckpt_path={checkpoint}") == 0
    return folder


def test_the_attempts_of_a_run_have_its_id(attempts):
    """`wandb sync` uploads runs of one id as one run, in the order of their start."""
    about = json.loads((attempts / "log" / "run_id.json").read_text())
    stored = torch.load(attempts / "log/checkpoints/last.ckpt", weights_only=True)
    assert stored["callbacks"]["RunIdentity"] == about
    folders = sorted((attempts / "wandb").glob("offline-run-*"))
    assert len(folders) == 3
    runs = [records_of(folder) for folder in folders]
    assert [run.run_id for run, _ in runs] == [about["id"]] * 3
    assert all(folder.name.endswith(about["id"]) for folder in folders)
    losses = [[row["val/loss"] for row in rows if "val/loss" in row] for _, rows in runs]
    assert [len(each) for each in losses] == [2, 2, 2]
    assert losses[1] == pytest.approx(losses[2])  # both continue from the same checkpoint


def test_fit_ends_with_the_command_that_uploads_it(world, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert logged(tmp_path, *feature_options(world, prepared), "--trainer.max_epochs=1") == 0
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    command = next(line for line in capsys.readouterr().out.splitlines() if "wandb sync" in line)
    assert [Path(place).resolve() for place in glob(command.split()[-1])] == [folder.resolve()]


def test_a_sweep_runs_what_the_command_line_understands(tmp_path, capsys):
    """W&B's own expansion of the command, parsed by the command itself."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "examples" / "sweep.yaml").read_text())
    drawn = {name: {"value": each.get("values", [each.get("min")])[-1]} for name, each in sweep["parameters"].items()}
    arguments = create_sweep_command_args({"args": drawn})["args"]
    command = [
        word for part in create_sweep_command(sweep["command"]) for word in (arguments if part == "${args}" else [part])
    ]
    assert command[:3] == ["${env}", "cefam", "fit"]
    with pytest.raises(SystemExit) as ended:
        run(*command[2:], "--print_config")
    assert not ended.value.code
    config = yaml.safe_load(
        re.sub(r"^.*?(?=^\w+:)", "", capsys.readouterr().out, count=1, flags=re.DOTALL | re.MULTILINE)
    )
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.01
    assert config["model"]["similarity_weight"] == 0.01
    assert config["seed_everything"] == 2
    assert sweep["metric"]["name"] == "val/loss"


def test_presets_are_online_and_offline():
    online, offline = (
        yaml.safe_load(Path(ROOT / "configs/logger" / name).read_text())["trainer"]["logger"]
        for name in ("wandb.yaml", "wandb_offline.yaml")
    )
    assert not online[1]["init_args"].get("offline")
    assert offline[1]["init_args"]["offline"] is True
    assert online[0] == offline[0]
