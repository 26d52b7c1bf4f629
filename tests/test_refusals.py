"""What the commands refuse: a sentence, a non-zero exit, nothing half-written."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from cefam import CEFAM, Trained
from cefam.commands import main
from tests.commands import QUIET, ROOT, command, csv_logger, evaluated, feature_options, forked, run


def test_an_artefact_names_networks_not_programs(trained, tmp_path):
    import shutil

    shutil.copytree(trained / "artefact", tmp_path / "evil")
    config = json.loads((tmp_path / "evil" / "config.json").read_text())
    config["classifier"]["source"] = {"class_path": "os.system", "init_args": {"command": f"touch {tmp_path}/called"}}
    (tmp_path / "evil" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"it is not called. Annotate it, or load the classifier yourself"):
        Trained.read(tmp_path / "evil")
    assert not (tmp_path / "called").exists()


WRONG = """
from cefam.methods import MethodContext, Candidates, CenterRegions, RegionMethod

class Nothing(RegionMethod):
    def __init__(self, context: MethodContext, what: str = "none") -> None:
        self.what = what

    def regions(self, activated, pairs, size, num_candidates):
        good = CenterRegions().regions(activated, pairs, size, num_candidates)
        wrong = {"none": None, "tuple": tuple(good), "q": Candidates(*(part[:, :0] for part in good)),
                 "size": good._replace(maps=good.maps[..., :5]), "float": good._replace(valid=good.score)}
        return wrong.get(self.what, good)
"""


@pytest.mark.parametrize(
    ("what", "status", "advice"),
    [
        ("none", 1, "x must give Candidates of tensors for every pair, got a NoneType"),
        ("tuple", 1, "got a tuple"),
        ("q", 1, "with Q of at least 1"),
        ("size", 1, "x must give maps ("),
        ("float", 1, "`valid` as booleans, got torch.float"),
        ("good", 0, ""),
    ],
)
def test_a_method_that_gives_something_else_is_refused(
    trained, prepared, tmp_path, monkeypatch, capsys, what, status, advice
):
    (tmp_path / "wrong_methods.py").write_text(WRONG)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wrong_methods", raising=False)
    method = {"class_path": "wrong_methods.Nothing", "init_args": {"what": what}}
    assert evaluated(trained, prepared, tmp_path / "out", f"--model.methods.x={json.dumps(method)}") == status
    assert advice in capsys.readouterr().err
    assert (tmp_path / "out" / "records.csv").exists() == (status == 0)


def test_a_teacher_of_other_shapes_is_refused():
    from cefam import ConceptSet, VisionLanguageModel
    from cefam.towers.vlm import encode_images

    class Wrong(VisionLanguageModel):
        embedding_dim = 8

        def encode_image(self, images):
            return torch.ones(len(images), 1, 8)

        def encode_text(self, texts):
            return torch.ones(len(texts) - 1, 8)

    with pytest.raises(ValueError, match=r"encode_image gave \(3, 1, 8\) for 3 views, its embedding_dim is 8"):
        encode_images(Wrong(), torch.rand(3, 3, 4, 4))
    with pytest.raises(ValueError, match=r"encode_text gave \(1, 8\) for 2 texts"):
        ConceptSet.from_words(["a", "b"]).embed(Wrong())
    wrong = Wrong()
    wrong.probability = "nothing"
    with pytest.raises(ValueError, match="probability must be 'softmax' or 'sigmoid', got 'nothing'"):
        wrong.freeze()


@pytest.mark.processes
def test_bad_input_of_one_process_ends_the_others_with_a_sentence(trained, prepared, tmp_path):
    import shutil

    shutil.copytree(prepared / "broden", tmp_path / "shards")
    shard = tmp_path / "shards" / "shard-000001.tar"  # the second process's
    shard.write_bytes(shard.read_bytes()[:3000])
    status, printed = command(
        sys.executable, "-m", "cefam", "evaluate", "--config", "evaluate/broden", "--config", "trainer/ddp_cpu",
        f"--model.artefact={trained}/artefact", f"--data.shards={tmp_path}/shards", "--model.output=out", *QUIET,
    )  # fmt: skip
    assert status in (1, -9), printed  # -9: Lightning ends those that still wait for a process that is gone
    assert "shard-000001.tar" in printed
    assert "Unexpected error" not in printed
    assert {path.name for path in (tmp_path / "out").glob("*")} <= {".parts"}  # what the first process measured


@pytest.mark.soak
@pytest.mark.processes
def test_bad_input_of_all_processes_is_said_once(world, prepared, tmp_path):
    options = [*feature_options(world, prepared), "--data.init_args.batch_size=4000", csv_logger(tmp_path)]
    status, printed = command(sys.executable, "-m", "cefam", "fit", "--config", "trainer/ddp_cpu", *options)
    assert status in (1, -9), printed  # -9: Lightning ends those that still wait for a process that is gone
    assert printed.count("which makes no batch of 4000") == 1, printed
    assert "Unexpected error" not in printed
    assert "Traceback" not in printed


class Dividing(Callback):
    """A callback with a defect."""

    def on_train_start(self, trainer, pl_module):
        raise ZeroDivisionError("a defect")


def test_an_unexpected_error_is_one_sentence_and_a_file(world, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    options = [
        *feature_options(world, prepared),
        csv_logger(tmp_path),
        "--trainer.callbacks=tests.test_refusals.Dividing",
    ]
    assert run("fit", *options) == 70
    printed = capsys.readouterr().err
    assert "cefam fit: Unexpected error: ZeroDivisionError: a defect." in printed
    assert "Traceback" not in printed
    (path,) = tmp_path.glob("cefam-fit-*.txt")
    assert str(path) in printed
    assert path.read_text().startswith("Traceback")
    monkeypatch.setenv("CEFAM_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run("fit", *options, csv_logger(tmp_path, "again"))


def test_weights_that_are_no_numbers_are_refused(world, tmp_path, capsys):
    import torchvision

    state = torchvision.models.resnet18(num_classes=10).state_dict()
    state["layer4.1.conv2.weight"][0, 0, 0, 0] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    options = ["--config", world / "towers.yaml", f"--classifier.init_args.weights={tmp_path}/nan.pth"]
    assert run("features", *options, f"--images={world}/images/val", f"--folder={tmp_path}/out") == 1
    assert "logits are not finite: its weights hold NaN" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_export_never_overwrites_without_being_told(trained, capsys):
    options = ["--checkpoint", trained / "log/checkpoints/best.ckpt", "--folder", trained / "artefact"]
    assert run("export", *options) == 1
    error = capsys.readouterr().err
    assert "already holds an artefact" in error
    assert "`--overwrite true`" in error
    assert run("export", *options, "--overwrite", "true") == 0


def test_evaluate_refuses_to_overwrite_results(trained, prepared, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "records.csv").write_text("mine")
    assert evaluated(trained, prepared, tmp_path / "out") == 1
    assert "already holds results" in capsys.readouterr().err
    assert (tmp_path / "out" / "records.csv").read_text() == "mine"


def test_features_of_other_towers_are_refused(world, prepared, tmp_path, capsys):
    torch.manual_seed(5)
    import torchvision

    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), tmp_path / "other.pth")
    other = ["--model.classifier.init_args.weights", tmp_path / "other.pth"]
    assert run("fit", *feature_options(world, prepared), *other) == 1
    assert "made with another classifier: its fingerprint" in capsys.readouterr().err
    options = ["--config", world / "towers.yaml", "--images", world / "images/val", "--size", 48, "--device", "cpu"]
    assert run("features", *options, "--folder", prepared / "features" / "val") == 1
    assert "the work of a run with other inputs or options" in capsys.readouterr().err


def test_a_checkpoint_of_another_concept_set_or_vlm_is_refused(world, prepared, trained, tmp_path, capsys):
    checkpoint = f"--ckpt_path={trained}/log/checkpoints/last.ckpt"
    options = feature_options(world, prepared)
    assert run("fit", *options, "--model.concepts", "awa2", "--trainer.max_epochs=9", checkpoint) == 1
    assert "made with another concept set: its identity" in capsys.readouterr().err
    assert run("fit", *options, "--model.vlm.init_args.mean=[0.1, 0.2, 0.3]", "--trainer.max_epochs=9", checkpoint) == 1
    assert "made with another vision-language model: its preprocessing" in capsys.readouterr().err


def test_a_run_is_never_mixed_with_another(world, prepared, trained, capsys):
    options = [*feature_options(world, prepared), csv_logger(trained), "--trainer.max_epochs=1"]
    assert run("fit", *options) == 1
    assert "already holds a run" in capsys.readouterr().err


def test_a_validation_cache_of_other_towers_is_refused(world, prepared, tmp_path, capsys):
    import shutil

    shutil.copytree(prepared / "features" / "val", tmp_path / "val")
    manifest = json.loads((tmp_path / "val" / "manifest.json").read_text())
    manifest["vlm"]["fingerprint"] = "another"
    (tmp_path / "val" / "manifest.json").write_text(json.dumps(manifest))
    assert run("fit", *feature_options(world, prepared), "--data.init_args.val", tmp_path / "val") == 1
    assert "made with another vision-language model: its fingerprint is another" in capsys.readouterr().err


def test_an_artefact_knows_its_teacher_without_holding_it(trained, prepared, tmp_path):
    """Loaded without the VLM, it is still not trained on another teacher's features."""
    import shutil

    import lightning as L

    from cefam.datamodules import FeaturesData

    shutil.copytree(prepared / "features" / "train", tmp_path / "train")
    manifest = json.loads((tmp_path / "train" / "manifest.json").read_text())
    manifest["vlm"]["fingerprint"] = "another"
    (tmp_path / "train" / "manifest.json").write_text(json.dumps(manifest))
    module = CEFAM.from_pretrained(trained / "artefact")
    data = FeaturesData(str(tmp_path / "train"), str(prepared / "features" / "val"), batch_size=8)
    trainer = L.Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, logger=False)
    with pytest.raises(ValueError, match="made with another vision-language model: its fingerprint is another"):
        trainer.fit(module, data)


def test_features_notice_changed_photographs(world, prepared, tmp_path, capsys):
    import shutil

    shutil.copytree(world / "images" / "val", tmp_path / "images")
    options = [
        "--config",
        world / "towers.yaml",
        "--images",
        tmp_path / "images",
        "--folder",
        tmp_path / "cache",
        "--size",
        64,
    ]
    options += ["--resize", 64, "--device", "cpu"]
    assert run("features", *options) == 0
    shutil.copy(next((tmp_path / "images").rglob("*.png")), tmp_path / "images" / "one_more.png")
    assert run("features", *options) == 1
    assert "features of other photographs" in capsys.readouterr().err
    assert run("features", *options[:-2], "--device", "nothing", "--folder", tmp_path / "new") == 1
    assert "There is no device 'nothing'" in capsys.readouterr().err
    assert not (tmp_path / "new" / "journal.json").exists()
    assert run("features", *options, "--views", -1) == 1
    assert "views must be 0" in capsys.readouterr().err


def test_other_concepts_need_the_very_teacher(world, trained, prepared, tmp_path, capsys):
    vlm = yaml.safe_load((world / "towers.yaml").read_text())["vlm"]
    other = ["--model.concepts", "broden", "--model.output", tmp_path / "out"]
    shards = [
        "--model.artefact",
        trained / "artefact",
        "--data.shards",
        prepared / "broden",
        "--data.batch_size=7",
        *QUIET,
    ]
    assert run("evaluate", *other, *shards) == 1
    assert "set `model.vlm` to the VLM that the translator mimics" in capsys.readouterr().err
    state = torch.load(world / "tiny_clip.pt", weights_only=True)
    state["logit_scale"] += 1
    torch.save(state, tmp_path / "other.pt")
    changed = {**vlm, "init_args": {**vlm["init_args"], "pretrained": str(tmp_path / "other.pt")}}
    assert run("evaluate", *other, *shards, f"--model.vlm={json.dumps(changed)}") == 1
    assert "made with another vision-language model: its logit_scale" in capsys.readouterr().err
    options = ["--model.methods={CE-FAM: CEFAMRegions, center: CenterRegions}", "--model.derivative=branch"]
    assert run("evaluate", *other, *shards, f"--model.vlm={json.dumps(vlm)}", *options) == 0


def test_a_learning_rate_that_explodes_stops_the_run(world, prepared, tmp_path, capsys):
    options = [*feature_options(world, prepared), csv_logger(tmp_path), "--trainer.max_epochs=9"]
    assert run("fit", *options, "--model.optimizer.lr=1e30") == 1
    said = capsys.readouterr().err
    assert "loss became" in said
    assert "Try a smaller `model.optimizer.lr`" in said


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"", "truncated, empty, or holds pickled objects"),
        (None, "There is no artefact"),
        ("pickle", "truncated, empty"),
        ("other", "not a checkpoint of cefam"),
    ],
)
def test_broken_artefacts_are_refused(content, advice, prepared, tmp_path, capsys):
    path = tmp_path / "broken.ckpt"
    if content == "pickle":
        torch.save(torch.nn.Linear(1, 1), path)
    elif content == "other":
        torch.save({"state_dict": {}}, path)
    elif content is not None:
        path.write_bytes(content)
    assert run("evaluate", "--model.artefact", path, "--data.shards", prepared / "broden", *QUIET) == 1
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "advice"),
    [
        (["evalute"], 2, "Did you mean 'evaluate'"),
        (["fit", "--config", "train/featurs"], 1, "There is no config 'train/featurs'. Did you mean 'train/features'"),
        (["export", "--checkpoint", "nowhere.ckpt", "--folder", "x"], 1, "There is no artefact nowhere.ckpt"),
    ],
)
def test_mistyped_commands_name_near_ones(arguments, status, advice, capsys):
    assert main(arguments) == status
    assert advice in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that the test must not find")
def test_a_gpu_that_is_not_there_is_said(world, prepared, capsys):
    assert run("fit", *feature_options(world, prepared), "--trainer.accelerator=gpu") == 1
    assert "No supported gpu backend found" in capsys.readouterr().err


BAD = {
    "prepare": ["--kind", "images", "--source", "nowhere", "--folder", "x"],
    "features": ["--config", "nowhere.yaml"],
    "fit": ["--config", "nowhere"],
    "evaluate": ["--model.artefact", "nowhere", "--data.shards", "nowhere"],
    "export": ["--checkpoint", "nowhere", "--folder", "x"],
    "explain": ["nowhere.jpg"],
    "table": ["nowhere"],
    "verify": ["nowhere"],
    "study": ["--classifier", "nowhere.net", "--images", "x", "--concepts", "broden", "--vlm", "brodenette"],
}


@pytest.mark.processes
@pytest.mark.parametrize("verb", BAD)
def test_the_exit_status_of_a_command(verb):
    status, printed = forked(verb, *BAD[verb])
    assert status == 1, printed
    assert "nowhere" in printed
    assert "Traceback" not in printed


@pytest.mark.processes
def test_the_exit_status_of_python_m_cefam():
    status, printed = command(sys.executable, "-m", "cefam", "export", *BAD["export"])
    assert status == 1, printed


@pytest.mark.processes
def test_output_that_nobody_reads_is_no_error():
    """As in `cefam --help | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cefam", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_help_and_version(capsys):
    assert main([]) == 0
    assert "evaluate" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert "cefam 0." in capsys.readouterr().out


SHIPPED = sorted(p.relative_to(ROOT / "configs").with_suffix("").as_posix() for p in (ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_parses(name, capsys, trained, prepared):
    verb = "evaluate" if name.startswith(("evaluate/", "paper/", "methods/")) else "fit"
    needed = ["--model.artefact=x", "--data.shards=y"] if verb == "evaluate" else []
    if name.startswith("features/"):
        verb, needed = "features", ["--images=x", "--folder=y"]
    elif verb == "fit" and not name.startswith("train/"):
        needed = ["--config", "train/resnet50_clip"]
    if name == "train/features":
        needed = ["--config", str(ROOT / "examples/real_photos/fit.yaml")]
    with pytest.raises(SystemExit, match="0"):
        main([verb, *needed, "--config", name, "--print_config"])
    assert "seed" in capsys.readouterr().out
