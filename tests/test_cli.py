"""The commands, from files on disk to the number in the table, with the real loaders; and what they refuse."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from cefam import CEFAM
from cefam.cli import main
from cefam.report import records, tables

ROOT = Path(__file__).parent.parent
QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
]
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


@pytest.fixture(scope="session")
def prepared(world):
    """Shards and feature caches made by the commands."""
    folder = world / "made"
    for kind, source, name in (
        ("broden", "broden", "broden"),
        ("images", "images/train", "train"),
        ("images", "images/val", "val"),
    ):
        options = ["--source", world / source, "--folder", folder / name, "--samples_per_shard", 6]
        assert run("prepare", "--kind", kind, *options) == 0
    for name, views in (("train", 2), ("val", 0)):
        options = ["--images", world / "images" / name, "--folder", folder / "features" / name, "--views", views]
        assert (
            run(
                "features", "--config", world / "towers.yaml", *options, "--size", 64, "--resize", 64, "--device", "cpu"
            )
            == 0
        )
    return folder


def feature_options(world, prepared):
    data = "--data.init_args."
    return [
        "--config", "train/features", "--config", world / "model.yaml",
        "--model.concepts", world / "broden" / "label.csv",
        "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.02", "--model.warmup_epochs=0",
        f"{data}train", prepared / "features" / "train", f"{data}val", prepared / "features" / "val", f"{data}batch_size=8",
        "--trainer.log_every_n_steps=1", *QUIET,
    ]  # fmt: skip


@pytest.fixture(scope="session")
def trained(world, prepared, tmp_path_factory):
    """A checkpoint of ``cefam fit`` from features, with regions measured in validation, and its export."""
    folder = tmp_path_factory.mktemp("trained")
    options = [f"--data.init_args.regions={prepared}/broden", "--trainer.max_epochs=3", csv_logger(folder)]
    assert run("fit", *feature_options(world, prepared), *options) == 0
    assert run("export", "--checkpoint", folder / "log/checkpoints/best.ckpt", "--folder", folder / "artefact") == 0
    return folder


def test_fit_logs_losses_agreement_and_regions(trained):
    with (trained / "log" / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    last = {key: value for row in rows for key, value in row.items() if value}
    for key in ("train/loss", "val/loss", "val/embedding", "val/cosine", "val/concept_correlation"):
        assert key in last
    for metric in ("epg", "nra", "nra_calibrated", "hit"):
        for protocol in ("top1", "oracle"):
            assert 0 <= float(last[f"regions/{protocol}/{metric}/mean"]) <= 1 or metric == "nra_calibrated"
            assert f"regions/{protocol}/{metric}/part" in last
    losses = [float(row["val/loss"]) for row in rows if row["val/loss"]]
    assert losses[-1] < losses[0]


def test_validate_repeats_what_fit_measured(trained, world, prepared, tmp_path):
    options = ["--ckpt_path", trained / "log/checkpoints/last.ckpt", csv_logger(tmp_path)]
    assert run("validate", *feature_options(world, prepared), *options) == 0
    last = []
    for path in (trained / "log" / "metrics.csv", tmp_path / "log" / "metrics.csv"):
        with path.open() as lines:
            last.append([row for row in csv.DictReader(lines) if row["val/loss"]][-1])
    for key in ("val/loss", "val/cosine", "val/concept_correlation/object"):
        assert float(last[0][key]) == pytest.approx(float(last[1][key]), rel=1e-5)


def test_checkpoints_hold_the_translator_alone_and_load_without_unpickling(trained):
    path = trained / "log" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} == {"translator"}
    numbers = sum(v.numel() for v in checkpoint["state_dict"].values())
    assert path.stat().st_size < 4 * numbers + 200_000
    assert checkpoint["cefam"]["classifier"]["source"]["init_args"]["name"] == "resnet18"
    assert checkpoint["cefam"]["vlm"]["source"]["init_args"]["name"] == "tiny_clip"


def test_the_defaults_are_the_published_recipe(trained):
    """What the ledger says of early stop, checkpoint, optimizer and schedule, as a run without options has it."""
    config = yaml.safe_load((trained / "log" / "config.yaml").read_text())
    stop, keep = config["early_stopping"], config["checkpoint"]
    assert (stop["monitor"], stop["patience"], stop["min_delta"]) == ("val/loss", 10, 0.0)
    assert (keep["monitor"], keep["mode"], keep["save_top_k"]) == ("val/loss", "min", 1)
    assert (config["model"]["similarity_weight"], config["model"]["preset"]) == (0.001, "published")
    restored = CEFAM.from_pretrained(trained / "artefact")
    for preset, patience in (("published", 6), ("paper", 4)):
        module = CEFAM(restored.classifier, None, restored.concepts, preset=preset)
        configured = module.configure_optimizers()
        optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        group = optimizer.param_groups[0]
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0, 0)
        assert len(group["params"]) == 6  # the translator alone
        assert (schedule.warmup_epochs, schedule.patience + 1, schedule.factor) == (1, patience, 0.1)


def test_under_half_precision_the_translator_trains_in_single(trained):
    module = CEFAM.from_pretrained(trained / "artefact")
    module.log_dict = lambda *args, **kwargs: None
    batch = {"pooled": [torch.rand(4, c) for c in module.classifier.channels], "embedding": torch.rand(4, 32)}
    expected = module.training_step(batch, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module.training_step(batch, 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_an_artefact_names_networks_not_programs(trained, tmp_path):
    import shutil

    shutil.copytree(trained / "artefact", tmp_path / "evil")
    config = json.loads((tmp_path / "evil" / "config.json").read_text())
    config["classifier"]["source"] = {"class_path": "os.system", "init_args": {"command": f"touch {tmp_path}/called"}}
    (tmp_path / "evil" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"it is not called. Load the classifier yourself"):
        CEFAM.from_pretrained(tmp_path / "evil")
    assert not (tmp_path / "called").exists()


def test_an_exported_folder_and_its_checkpoint_are_the_same_model(trained, world):
    one = CEFAM.from_pretrained(trained / "artefact")
    other = CEFAM.from_pretrained(trained / "log/checkpoints/best.ckpt")
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(one.explainer.scores(images), other.explainer.scores(images))
    explanation = one.explainer.explain(images, top_k=3)[0]
    assert len(explanation.concepts) == 3
    assert all(part.contribution is not None for part in explanation.concepts)
    card = (trained / "artefact" / "README.md").read_text()
    assert "resnet18" in card
    assert "independent implementation" in card
    config = json.loads((trained / "artefact" / "config.json").read_text())
    assert config["vlm"]["preprocessing"]["size"] == [32, 32]


def test_export_never_overwrites_without_being_told(trained, capsys):
    options = ["--checkpoint", trained / "log/checkpoints/best.ckpt", "--folder", trained / "artefact"]
    assert run("export", *options) == 1
    error = capsys.readouterr().err
    assert "already holds an artefact" in error
    assert "`--overwrite true`" in error
    assert run("export", *options, "--overwrite", "true") == 0


def evaluated(trained, prepared, output, *options):
    return run(
        "evaluate", "--config", "evaluate/broden", "--model.artefact", trained / "artefact",
        "--data.shards", prepared / "broden", "--data.batch_size=4", "--model.output", output, *QUIET, *options,
    )  # fmt: skip


def test_evaluate_writes_tables_records_and_a_contact_sheet(trained, prepared, tmp_path, capsys):
    output = tmp_path / "out"
    assert evaluated(trained, prepared, output) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == [
        "contact_sheet.png", "records.csv", "table.csv", "table.md", "table.txt",
    ]  # fmt: skip
    assert (output / "table.txt").read_text() in printed
    assert (output / "contact_sheet.png").read_bytes()[:4] == b"\x89PNG"
    found = list(records.read(output / "records.csv"))
    manifest = json.loads((prepared / "broden" / "manifest.json").read_text())
    assert len(found) == manifest["num_pairs"] * 5 * 2  # methods x protocols
    # Every number of the table, from the records, by hand.
    with (output / "table.csv").open() as lines:
        rows = {(row["protocol"], row["method"]): row for row in csv.DictReader(lines)}
    assert list(rows)[:2] == [("top1", "CE-FAM"), ("top1", "random channel")]
    for (protocol, method), row in rows.items():
        mine = [r for r in found if (r["protocol"], r["method"]) == (protocol, method)]
        means = []
        for category in ("object", "part", "color", "material"):
            values = [r["nra"] for r in mine if r["category"] == category and r["nra"] == r["nra"]]
            means.append(sum(values) / len(values))
            assert float(row[f"NRA {category}"]) == pytest.approx(means[-1], abs=1e-12)
        assert float(row["NRA avg"]) == pytest.approx(sum(means) / 4, abs=1e-12)
        assert int(row["pairs"]) == len(mine)
        assert int(row["undefined"]) == sum(r["nra"] != r["nra"] for r in mine) == 1  # the mask that fills its image
        assert float(row["coverage"]) == 1
    for record in found:  # eq. 13 ties the three areas to NRA
        if record["nra"] == record["nra"]:
            high, low = record["auc_high"], record["auc_low"]
            assert record["nra"] == pytest.approx(max(record["auc"] - low, 0) / (high - low), abs=1e-9)
            assert 0 < low < high
    oracle, top1 = rows["oracle", "CE-FAM"], rows["top1", "CE-FAM"]
    assert float(oracle["NRA avg"]) >= float(top1["NRA avg"])


def test_evaluate_refuses_to_overwrite_results(trained, prepared, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "records.csv").write_text("mine")
    assert evaluated(trained, prepared, tmp_path / "out") == 1
    assert "already holds results" in capsys.readouterr().err
    assert (tmp_path / "out" / "records.csv").read_text() == "mine"


def test_the_paper_preset_and_the_branch_derivative_run_too(trained, prepared, tmp_path):
    options = [
        "--model.preset=paper",
        "--model.derivative=branch",
        "--model.chance=[center]",
        "--model.num_candidates=2",
    ]
    assert evaluated(trained, prepared, tmp_path / "out", *options) == 0
    assert "Preset: paper" in (tmp_path / "out" / "table.txt").read_text()


@pytest.mark.parametrize("source", ["folder", "shards"])
def test_fit_from_images_with_a_second_kind_of_classifier(world, prepared, tmp_path, source):
    train, val = (world / "images" / n if source == "folder" else prepared / n for n in ("train", "val"))
    data = images_data(train, val, regions=str(prepared / "broden"))
    vlm = yaml.safe_load((world / "towers.yaml").read_text())["vlm"]
    options = [
        f"--model.classifier={CONVNEXT}", f"--model.vlm={json.dumps(vlm)}", "--model.concepts", "broden",
        f"--data={data}", "--trainer.max_epochs=1", csv_logger(tmp_path), "--trainer.log_every_n_steps=1", *QUIET,
    ]  # fmt: skip
    assert run("fit", *options) == 0
    checkpoint = torch.load(tmp_path / "log" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["cefam"]["translator"]["channels"] == [40, 80, 160, 320]
    assert len(checkpoint["cefam"]["concepts"]["records"]) == 1197


def test_one_stage_without_similarity_loss_and_with_the_paper_preset(world, tmp_path):
    config = yaml.safe_load((world / "model.yaml").read_text())
    config["model"]["classifier"]["init_args"]["stages"] = ["layer4"]
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(config))
    images = images_data(world / "images/train", world / "images/val")
    options = ["--config", "one.yaml", f"--data={images}", "--model.similarity_weight=0", "--model.preset=paper"]
    assert run("fit", *options, "--model.concepts=[wing, red]", "--trainer.fast_dev_run=true", *QUIET) == 0


def test_a_teacher_of_ones_own_by_class_path(world, tmp_path, monkeypatch):
    (tmp_path / "my_teacher.py").write_text(
        "import torch\n"
        "from cefam import VisionLanguageModel\n"
        "class Colors(VisionLanguageModel):\n"
        "    embedding_dim = 3\n"
        "    logit_scale = 10.0\n"
        "    def __init__(self, shift: float = 0.0):\n"
        "        super().__init__()\n"
        "        self.shift = shift\n"
        "    def encode_image(self, images):\n"
        "        return images.float().mean(dim=(2, 3)) / 255 + self.shift\n"
        "    def encode_text(self, texts):\n"
        "        return torch.eye(3)[[len(t) % 3 for t in texts]]\n"
    )
    images = images_data(world / "images/train", world / "images/val")
    options = [
        "--config",
        world / "model.yaml",
        "--model.vlm",
        "{class_path: my_teacher.Colors, init_args: {shift: 0.5}}",
    ]
    arguments = [
        f"--data={images}",
        "--model.concepts=[red, green, blue sky]",
        "--trainer.max_epochs=1",
        csv_logger(tmp_path),
    ]
    assert run("fit", *options, *arguments, *QUIET) == 0
    stored = torch.load(tmp_path / "log/checkpoints/last.ckpt", weights_only=True)["cefam"]
    assert stored["vlm"]["source"] == {"class_path": "my_teacher.Colors", "init_args": {"shift": 0.5}}
    assert stored["translator"]["embedding_dim"] == 3


def test_a_resumed_run_is_the_uninterrupted_one(world, prepared, tmp_path):
    def fit(name, epochs, *more):
        options = [f"--trainer.max_epochs={epochs}", csv_logger(tmp_path, name), *more]
        assert run("fit", *feature_options(world, prepared), *options) == 0
        return torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)

    whole = fit("whole", 4)
    fit("first", 2)
    resumed = fit("second", 4, f"--ckpt_path={tmp_path}/first/checkpoints/last.ckpt")
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, rtol=0, atol=0)
    assert resumed["lr_schedulers"] == whole["lr_schedulers"]
    assert resumed["lr_schedulers"][0]["epochs"] == 4


def test_frozen_towers_are_byte_equal_after_fit(world, prepared, trained):
    before = torch.load(world / "resnet18.pth", weights_only=True)
    after = CEFAM.from_pretrained(trained / "artefact").classifier.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_features_resume_and_do_not_depend_on_the_workers(world, prepared, tmp_path):
    from cefam.features import load_features

    folder = tmp_path / "again"
    options = ["--config", world / "towers.yaml", "--images", world / "images/train", "--folder", folder, "--views", 2]
    options += ["--size", 64, "--resize", 64, "--device", "cpu"]
    assert run("features", *options, "--num_workers", 2, "--batch_size", 5) == 0
    one, other = load_features(folder), load_features(prepared / "features" / "train")
    assert len(one["embedding"]) == 48
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one["pooled.0"][:24], one["pooled.0"][24:])  # the views differ
    (folder / "manifest.json").unlink()
    removed = sorted(folder.glob("*.safetensors"))[0]
    kept = sorted(folder.glob("*.safetensors"))[1].stat().st_mtime_ns
    removed.unlink()
    assert run("features", *options) == 0
    assert sorted(folder.glob("*.safetensors"))[1].stat().st_mtime_ns == kept
    torch.testing.assert_close(load_features(folder)["embedding"], one["embedding"], rtol=1e-4, atol=1e-5)


def test_features_of_other_towers_are_refused(world, prepared, tmp_path, capsys):
    torch.manual_seed(5)
    import torchvision

    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), tmp_path / "other.pth")
    other = ["--model.classifier.init_args.weights", tmp_path / "other.pth"]
    assert run("fit", *feature_options(world, prepared), *other) == 1
    assert "made with another classifier: its fingerprint" in capsys.readouterr().err
    options = ["--config", world / "towers.yaml", "--images", world / "images/val", "--size", 48, "--device", "cpu"]
    assert run("features", *options, "--folder", prepared / "features" / "val") == 1
    assert "features of other towers, photographs or views" in capsys.readouterr().err


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
    assert "features of other towers, photographs or views" in capsys.readouterr().err
    assert run("features", *options[:-2], "--device", "nothing", "--folder", tmp_path / "new") == 1
    assert "There is no device 'nothing'" in capsys.readouterr().err
    assert not (tmp_path / "new" / "run.json").exists()
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
    assert "set `model.vlm` to the VLM it mimics" in capsys.readouterr().err
    state = torch.load(world / "tiny_clip.pt", weights_only=True)
    state["logit_scale"] += 1
    torch.save(state, tmp_path / "other.pt")
    changed = {**vlm, "init_args": {**vlm["init_args"], "pretrained": str(tmp_path / "other.pt")}}
    assert run("evaluate", *other, *shards, f"--model.vlm={json.dumps(changed)}") == 1
    assert "made with another vision-language model: its logit_scale" in capsys.readouterr().err
    options = ["--model.chance=[center]", "--model.derivative=branch"]
    assert run("evaluate", *other, *shards, f"--model.vlm={json.dumps(vlm)}", *options) == 0


def test_one_concept_and_a_classifier_of_ones_own_class_path_make_the_round_trip(world, tmp_path):
    own = {
        "class_path": "cefam.FrozenClassifier",
        "init_args": {
            "module": {"class_path": "my_net.Net", "init_args": {"seed": 3}},
            "stages": ["layer3", "layer4"],
        },
    }
    (tmp_path / "my_net.py").write_text(
        "import torch\n"
        "from torchvision.models import ResNet\n"
        "from torchvision.models.resnet import BasicBlock\n"
        "class Net(ResNet):\n"
        "    def __init__(self, seed: int = 0):\n"
        "        torch.manual_seed(seed)\n"
        "        super().__init__(BasicBlock, [1, 1, 1, 1], num_classes=4)\n"
    )
    vlm = yaml.safe_load((world / "towers.yaml").read_text())["vlm"]
    options = [f"--model.classifier={json.dumps(own)}", f"--model.vlm={json.dumps(vlm)}", "--model.concepts=[wing]"]
    data = f"--data={images_data(world / 'images/train', world / 'images/val')}"
    assert run("fit", *options, data, "--trainer.max_epochs=1", csv_logger(tmp_path), *QUIET) == 0
    restored = CEFAM.from_pretrained(tmp_path / "log/checkpoints/last.ckpt")
    assert restored.classifier.channels == [256, 512]
    assert restored.concepts.words == ["wing"]


def test_a_loss_that_is_no_number_stops_the_run(world, prepared, tmp_path, capsys):
    options = [
        *feature_options(world, prepared),
        "--model.optimizer.lr=1e30",
        csv_logger(tmp_path),
        "--trainer.max_epochs=9",
    ]
    assert run("fit", *options) == 0
    with (tmp_path / "log" / "metrics.csv").open() as lines:
        losses = [float(row["val/loss"]) for row in csv.DictReader(lines) if row["val/loss"]]
    assert len(losses) < 9
    assert losses[-1] != losses[-1] or losses[-1] == float("inf")


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"", "truncated, empty, or holds pickled objects"),
        (None, "There is no artefact"),
        ("pickle", "truncated, empty"),
        ("other", "no checkpoint of cefam"),
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
        (["evalute"], 2, "Did you mean 'evaluate'?"),
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


def test_an_unknown_option_is_refused(world, prepared, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("fit", *feature_options(world, prepared), "--model.similarty_weight=1")
    assert "similarty_weight" in capsys.readouterr().err


def test_help_and_version(capsys):
    assert main([]) == 0
    assert "evaluate" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert "cefam 0." in capsys.readouterr().out


SHIPPED = sorted(p.relative_to(ROOT / "configs").with_suffix("").as_posix() for p in (ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_parses(name, capsys, trained, prepared):
    verb = "evaluate" if name.startswith("evaluate/") else "fit"
    needed = ["--model.artefact=x", "--data.shards=y"] if verb == "evaluate" else []
    if verb == "fit" and not name.startswith("train/"):
        needed = ["--config", "train/resnet50_clip"]
    if name == "train/features":
        needed = ["--config", str(ROOT / "examples/real_photos/fit.yaml")]
    with pytest.raises(SystemExit, match="0"):
        main([verb, *needed, "--config", name, "--print_config"])
    assert "seed_everything" in capsys.readouterr().out


def test_a_region_panel_is_drawn_after_validation(world, prepared, tmp_path):
    images = sorted(str(path) for path in (world / "images" / "val").rglob("*.png"))[:2]
    panel = json.dumps([{"class_path": "RegionPanel", "init_args": {"images": images, "resize": 64, "crop": 64}}])
    logger = json.dumps([{
        "class_path": "lightning.pytorch.loggers.WandbLogger",
        "init_args": {"project": "t", "save_dir": str(tmp_path), "offline": True},
    }])  # fmt: skip
    options = [f"--trainer.callbacks={panel}", f"--trainer.logger={logger}", "--trainer.max_epochs=1"]
    options += [f"--trainer.default_root_dir={tmp_path}"]
    assert run("fit", *feature_options(world, prepared), *options) == 0
    (path,) = tmp_path.rglob("panels/epoch-0000.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert list(tmp_path.rglob("offline-run-*"))


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


@pytest.mark.processes
def test_two_processes_give_the_table_of_one(trained, prepared, tmp_path):
    assert evaluated(trained, prepared, tmp_path / "one") == 0
    status, printed = command(
        sys.executable, ROOT / "evaluate.py", "--config", "evaluate/broden", "--config", "trainer/ddp_cpu",
        "--model.artefact", trained / "artefact", "--data.shards", prepared / "broden", "--data.batch_size=4",
        "--model.output", tmp_path / "two", "--trainer.enable_progress_bar=false",
    )  # fmt: skip
    assert status == 0, printed
    one, two = (list(records.read(tmp_path / name / "records.csv")) for name in ("one", "two"))
    keys = ("image", "mask", "label", "method", "protocol", "category")
    assert [[r[k] for k in keys] for r in one] == [[r[k] for k in keys] for r in two]
    for a, b in zip(one, two, strict=True):
        for name in ("epg", "nra", "nra_calibrated"):
            assert a[name] == pytest.approx(b[name], abs=1e-4, nan_ok=True)
    rows = [tables.summarize(r, ["object", "part", "color", "material"], 4).rows for r in (one, two)]
    for a, b in zip(*rows, strict=True):
        assert (a.method, a.pairs, a.undefined) == (b.method, b.pairs, b.undefined)
        for metric in ("epg", "nra", "nra_calibrated", "hit"):
            assert a.means[metric] == pytest.approx(b.means[metric], abs=1e-5)
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
        if key.startswith(("val/", "regions/")):
            assert float(rows[0][key]) == pytest.approx(float(rows[1][key]), rel=1e-4, abs=1e-6), key


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


@pytest.mark.processes
@pytest.mark.parametrize("verb", ["prepare", "features", "fit", "evaluate", "export"])
def test_the_exit_status_of_a_command(verb, tmp_path):
    bad = {
        "prepare": ["--kind", "images", "--source", "nowhere", "--folder", "x"],
        "features": ["--config", "nowhere.yaml"],
        "fit": ["--config", "nowhere"],
        "evaluate": ["--model.artefact", "nowhere", "--data.shards", "nowhere"],
        "export": ["--checkpoint", "nowhere", "--folder", "x"],
    }
    status, printed = command(sys.executable, "-m", "cefam", verb, *bad[verb])
    assert status == 1, printed
    assert "nowhere" in printed
    assert "Traceback" not in printed
