"""The commands, from files on disk to the number in the table, with the real loaders."""

import copy
import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cefam import CEFAM, MethodSettings, Trained
from cefam.evaluation.module import RegionEvaluation
from cefam.methods import RegionMethod
from cefam.report import records
from tests.commands import (
    CONVNEXT,
    QUIET,
    ROOT,
    assert_same_results,
    csv_logger,
    evaluated,
    feature_options,
    images_data,
    run,
)


def test_fit_logs_losses_agreement_and_regions(trained):
    with (trained / "log" / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    last = {key: value for row in rows for key, value in row.items() if value}
    for key in ("train/loss", "val/loss", "val/embedding_loss", "val/cosine", "val/concept_correlation"):
        assert key in last
    for metric in ("epg", "nra", "nra_calibrated", "hit"):
        for protocol in ("top1", "oracle"):
            assert 0 <= float(last[f"regions/{protocol}/{metric}/mean"]) <= 1 or metric == "nra_calibrated"
            assert f"regions/{protocol}/{metric}/part" in last
    losses = [float(row["val/loss"]) for row in rows if row["val/loss"]]
    assert losses[-1] < losses[0]
    with (trained / "log" / "concept_correlation.csv").open() as lines:
        each = {row["word"]: row for row in csv.DictReader(lines)}
    objects = [float(row["correlation"]) for row in each.values() if row["category"] == "object"]
    assert sum(objects) / len(objects) == pytest.approx(float(last["val/concept_correlation/object"]), rel=1e-5)
    assert each["red"]["number"] == "10"


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
    assert config["model"]["similarity_weight"] == 0.001
    assert (
        Trained.read(trained / "artefact").settings == MethodSettings() == MethodSettings("published", "total", 20, 1.0)
    )
    restored = Trained.read(trained / "artefact")
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


def test_a_checkpoint_is_loaded_as_lightning_does(trained):
    module = CEFAM.load_from_checkpoint(trained / "log/checkpoints/best.ckpt")
    stored = torch.load(trained / "log/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert module.state_dict().keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in module.state_dict().items())


def test_an_exported_folder_and_its_checkpoint_are_the_same_model(trained, world):
    one = Trained.read(trained / "artefact")
    other = Trained.read(trained / "log/checkpoints/best.ckpt")
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(one.explainer().scores(images), other.explainer().scores(images))
    explanation = one.explainer().explain(images, top_k=3)[0]
    assert len(explanation.concepts) == 3
    assert all(part.contribution is not None for part in explanation.concepts)
    card = (trained / "artefact" / "README.md").read_text()
    assert "resnet18" in card
    assert "independent implementation" in card
    config = json.loads((trained / "artefact" / "config.json").read_text())
    assert config["vlm"]["preprocessing"]["size"] == [32, 32]


def test_evaluate_writes_tables_records_and_a_contact_sheet(trained, prepared, tmp_path, capsys):
    output = tmp_path / "out"
    assert evaluated(trained, prepared, output) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == [
        "contact_sheet.png", "differences.csv", "examples.npz", "records.csv", "run.json", "table.csv", "table.md",
        "table.txt",
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
            assert record["nra"] == pytest.approx(max(record["auc"] - low, 0) / (high - low), abs=1e-7)
            assert 0 < low < high
    oracle, top1 = rows["oracle", "CE-FAM"], rows["top1", "CE-FAM"]
    assert float(oracle["NRA avg"]) >= float(top1["NRA avg"])


def test_a_table_of_some_photographs_says_so(trained, prepared, measured, tmp_path):
    assert evaluated(trained, prepared, tmp_path / "some", "--trainer.limit_test_batches=2") == 0
    note = "at most 2 batch(es) of each process were measured (`trainer.limit_test_batches`)"
    assert note in (tmp_path / "some" / "table.md").read_text()
    assert "limit_test_batches" not in (measured / "table.txt").read_text()


def test_a_leading_tilde_is_the_users_home(world, tmp_path, monkeypatch):
    """After "=" no shell replaces it, and in a config nobody else."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    source = f"--source={world}/images/val"
    assert run("prepare", "--kind=images", source, "--folder=~/shards") == 0
    (tmp_path / "home" / "here.yaml").write_text(f"kind: images\nsource: {world}/images/val\nfolder: ~/more\n")
    assert run("prepare", "--config=~/here.yaml") == 0
    assert [(tmp_path / "home" / name / "manifest.json").is_file() for name in ("shards", "more")] == [True, True]
    assert not (tmp_path / "~").exists()


def test_a_home_inside_a_list_of_loggers_is_found_too(world, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "~/runs", "version": ""}}
    (tmp_path / "logger.yaml").write_text(f"trainer: {{max_epochs: 1, logger: [{json.dumps(logger)}]}}\n")
    assert run("fit", *feature_options(world, prepared), "--config=logger.yaml") == 0
    for name in ("metrics.csv", "concept_correlation.csv", "checkpoints/last.ckpt"):
        assert (tmp_path / "home" / "runs" / "fit" / name).is_file()
    assert not (tmp_path / "~").exists()


def test_a_config_may_merge_mappings(world, prepared, tmp_path):
    (tmp_path / "merged.yaml").write_text("trainer: {<<: {max_epochs: 2}, log_every_n_steps: 1}\n")
    assert run("fit", *feature_options(world, prepared), "--config=merged.yaml", csv_logger(tmp_path)) == 0
    assert "max_epochs: 2" in (tmp_path / "log" / "config.yaml").read_text()


def test_results_of_an_earlier_run_do_not_stay_beside_new_ones(trained, prepared, tmp_path):
    assert evaluated(trained, prepared, tmp_path / "out") == 0
    assert (tmp_path / "out" / "contact_sheet.png").is_file()
    again = ["--model.overwrite=true", "--model.num_examples=0"]
    assert evaluated(trained, prepared, tmp_path / "out", *again) == 0
    assert not (tmp_path / "out" / "contact_sheet.png").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_table_does_not_depend_on_data_workers(trained, prepared, measured, tmp_path, workers):
    assert evaluated(trained, prepared, tmp_path / "out", f"--data.num_workers={workers}") == 0
    assert_same_results(measured, tmp_path / "out")


def test_the_paper_preset_and_the_branch_derivative_run_too(trained, prepared, tmp_path):
    options = [
        "--model.preset=paper",
        "--model.derivative=branch",
        "--model.methods={CE-FAM: CEFAMRegions, center: CenterRegions}",
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


@pytest.mark.parametrize("source", ["features", "folder", "shards"])
def test_a_resumed_run_is_the_uninterrupted_one(world, prepared, tmp_path, source):
    """In orders and crops of its training data, too, whatever stands ready in data workers."""
    train, val = (prepared / n if source == "shards" else world / "images" / n for n in ("train", "val"))
    data = [] if source == "features" else [f"--data={images_data(train, val, num_workers=2)}"]

    def fit(name, epochs, *more):
        options = [*data, f"--trainer.max_epochs={epochs}", csv_logger(tmp_path, name), *more]
        assert run("fit", *feature_options(world, prepared), *options) == 0
        return torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)

    whole = fit("whole", 4)
    fit("first", 2)
    resumed = fit("second", 4, f"--ckpt_path={tmp_path}/first/checkpoints/last.ckpt")
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, rtol=0, atol=0)
    assert resumed["lr_schedulers"] == whole["lr_schedulers"]
    assert resumed["lr_schedulers"][0]["epochs"] == 4


class Witness(Callback):
    """Compares the towers before and after, and writes down that it did."""

    def on_fit_start(self, trainer, pl_module):
        self.towers = torch.nn.ModuleList([pl_module.classifier, pl_module.vlm])
        self.before = copy.deepcopy(self.towers.state_dict())

    def on_fit_end(self, trainer, pl_module):
        after = self.towers.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in self.before.items())
        Path("witness.json").write_text(json.dumps(list(after)))


def test_frozen_towers_are_byte_equal_after_fit(world, prepared):
    # Of this network some BatchNorm is not folded into convolutions: statistics that must not move.
    classifier = {"name": "timm:tf_efficientnet_lite0", "weights": None, "num_classes": 5}
    classifier = {"class_path": "cefam.load_classifier", "init_args": classifier}
    data = images_data(world / "images/train", world / "images/val", regions=str(prepared / "broden"))
    options = ["--config", world / "model.yaml", f"--model.classifier={json.dumps(classifier)}", f"--data={data}"]
    options += ["--model.concepts", world / "broden/label.csv", "--trainer.max_epochs=1", "--trainer.logger=false"]
    assert run("fit", *options, "--trainer.callbacks=tests.test_commands.Witness", *QUIET) == 0
    seen = json.loads(Path("witness.json").read_text())
    assert any("running_mean" in name for name in seen)
    assert any("visual" in name for name in seen)


def test_features_do_not_depend_on_the_workers(world, prepared, tmp_path):
    from cefam.datasets.features import load_features

    folder = tmp_path / "again"
    options = ["--config", world / "towers.yaml", "--images", world / "images/train", "--folder", folder, "--views", 2]
    options += ["--size", 64, "--resize", 64, "--device", "cpu"]
    assert run("features", *options, "--num_workers", 2, "--batch_size", 5) == 0
    one, other = load_features(folder), load_features(prepared / "features" / "train")
    assert len(one) == 48
    torch.testing.assert_close(one.matrix, other.matrix, rtol=1e-4, atol=1e-5)
    first = one.split(one.matrix)["pooled"][0]
    assert not torch.allclose(first[:24], first[24:])  # the views differ


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_features_go_on_where_they_stopped(world, prepared, tmp_path, precision, capsys):
    """A shard that is damaged for a while: what came before it is not computed again."""
    from cefam.datasets.features import load_features

    shards = shutil.copytree(prepared / "val", tmp_path / "shards")
    options = ["--config", world / "towers.yaml", "--images", shards, "--size", 64, "--resize", 64, "--device", "cpu"]
    options += ["--precision", precision]
    assert run("features", *options, "--folder", tmp_path / "whole") == 0
    good = (shards / "shard-000001.tar").read_bytes()
    (shards / "shard-000001.tar").write_bytes(good[:3000])
    assert run("features", *options, "--folder", tmp_path / "stopped") == 1
    assert "shard-000001.tar" in capsys.readouterr().err
    (shards / "shard-000001.tar").write_bytes(good)
    journal = (tmp_path / "stopped" / "journal.json").read_text()
    assert run("features", *options, "--folder", tmp_path / "stopped") == 0
    assert (tmp_path / "stopped" / "journal.json").read_text().startswith(journal)
    names = [path.name for path in sorted((tmp_path / "stopped").iterdir())]
    assert names == ["features.npy", "journal.json", "manifest.json"]
    one, other = load_features(tmp_path / "whole"), load_features(tmp_path / "stopped")
    assert torch.equal(one.matrix, other.matrix)
    assert one.matrix.dtype == getattr(torch, precision)
    exact = load_features(prepared / "features" / "val")
    assert one.split(one.matrix)["embedding"].dtype == torch.float32
    torch.testing.assert_close(one.split(one.matrix), exact.split(exact.matrix), rtol=1e-2, atol=1e-2)


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
    restored = Trained.read(tmp_path / "log/checkpoints/last.ckpt")
    assert restored.classifier.channels == [256, 512]
    assert restored.concepts.words == ["wing"]


def test_a_region_panel_is_drawn_after_validation(world, prepared, tmp_path):
    images = sorted(str(path) for path in (world / "images" / "val").rglob("*.png"))[:2]
    panel = json.dumps([{"class_path": "RegionPanel", "init_args": {"images": images, "resize": 64, "crop": 64}}])
    loggers = "lightning.pytorch.loggers."
    board = {
        "class_path": f"{loggers}TensorBoardLogger",
        "init_args": {"save_dir": str(tmp_path / "board"), "version": ""},
    }
    wandb = {"project": "t", "save_dir": str(tmp_path), "offline": True}
    both = json.dumps([{"class_path": f"{loggers}WandbLogger", "init_args": wandb}, board])
    options = [f"--trainer.callbacks={panel}", f"--trainer.logger={both}", "--trainer.max_epochs=2"]
    options += [f"--trainer.default_root_dir={tmp_path}"]
    assert run("fit", *feature_options(world, prepared), *options) == 0
    panels = sorted(tmp_path.rglob("panels/epoch-*.png"))
    assert [path.read_bytes()[:4] for path in panels] == [b"\x89PNG"] * 2
    assert list(tmp_path.rglob("offline-run-*"))
    (table,) = tmp_path.rglob("explanations.csv")
    rows = table.read_text().splitlines()
    assert rows[0] == "photograph,class,probability,concept,score,stage,contribution"
    assert len(rows) == 1 + 2 * 6  # the concept set has six
    found = EventAccumulator(str(next((tmp_path / "board").rglob("events*")).parent)).Reload()
    steps = [event.step for event in found.Images("regions")]
    assert len(steps) == 2
    assert steps[0] < steps[1]
    assert found.Tags()["tensors"] == ["explanations/text_summary"]


def test_the_method_of_the_contributor_page_becomes_a_row(trained, prepared, tmp_path, monkeypatch):
    page = (ROOT / "docs/reference/extending.md").read_text()
    code = next(block.split("```")[0] for block in page.split("```python\n") if block.startswith("# my_methods.py"))
    (tmp_path / "my_methods.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    option = re.search(r"--model.methods.leftwards '(.*)'", page)[1]
    assert evaluated(trained, prepared, "out", "--model.methods.leftwards", option) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| leftwards |" in table
    assert "color" in table


def test_a_method_with_weights_moves_with_the_evaluation(trained, tmp_path):
    class Learned(RegionMethod, torch.nn.Module):
        def __init__(self, context):
            torch.nn.Module.__init__(self)
            self.weight = torch.nn.Parameter(torch.ones(2))

        def regions(self, activated, pairs, size, num_candidates):
            raise NotImplementedError

    evaluation = RegionEvaluation(str(trained / "artefact"), str(tmp_path / "out"), methods={"learned": Learned})
    evaluation.make_methods(torch.device("cpu"))
    evaluation.to(torch.float64)  # as good as another device
    assert evaluation.evaluator.methods["learned"].weight.dtype == torch.float64


def test_without_a_logger_nothing_is_written_beside_the_output(trained, prepared, tmp_path):
    assert evaluated(trained, prepared, "out", "--trainer.logger=false") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
