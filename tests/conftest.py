"""What several tests share: the golden files' networks, the real photographs, quiet and offline defaults."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

import hypothesis
import numpy as np
import pytest
import torch
from torch import nn

from tests.commands import csv_logger, draw_scenes, evaluated, feature_options, run

# Seconds that torch waits for a data worker of an abandoned iterator before it ends it: five, for each worker.
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5

hypothesis.settings.register_profile("cefam", deadline=None)  # no test is timed
hypothesis.settings.load_profile("cefam")

GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_modifyitems(config, items):
    """Leave out tests marked `soak` (more members of a kind that is tested anyway) unless `make soak` asks for them."""
    left_out = [item for item in items if item.get_closest_marker("soak")]
    if left_out and "CEFAM_SOAK" not in os.environ:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def fill(module: nn.Module, seed: int) -> nn.Module:
    """Draw every floating-point tensor of a state dict, in order, from one legacy generator (the golden files' rule)."""
    random = np.random.RandomState(seed)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        shape = tuple(tensor.shape)
        if name.endswith("running_mean"):
            values = random.normal(0, 0.1, shape)
        elif name.endswith("running_var"):
            values = random.uniform(0.8, 1.2, shape)
        elif len(shape) == 1 and name.endswith("weight"):
            values = random.uniform(0.5, 1.0, shape)
        elif len(shape) == 1:
            values = random.normal(0, 0.05, shape)
        elif len(shape) == 4:
            values = random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        else:
            values = random.normal(0, np.sqrt(1 / shape[1]), shape)
        tensor.copy_(torch.from_numpy(np.asarray(values, dtype=np.float32)))
    return module


def assert_golden(actual, stored) -> None:
    """The agreement that the golden files expect: 1e-4 relative, and 1e-5 of the largest value."""
    stored = torch.as_tensor(stored).double()
    actual = torch.as_tensor(actual).double().detach()
    assert actual.shape == stored.shape
    torch.testing.assert_close(actual, stored, rtol=1e-4, atol=1e-5 * float(stored.abs().max()))


@pytest.fixture(scope="session")
def realset() -> Path:
    """The folder of real photographs."""
    folder = os.environ.get("CEFAM_REALSET")
    if not folder or not Path(folder).is_dir():
        pytest.skip("CEFAM_REALSET names no folder of real photographs")
    return Path(folder)


TOWERS = """
classifier:
  class_path: cefam.load_classifier
  init_args: {{name: resnet18, weights: {folder}/resnet18.pth, num_classes: 10, input_size: [64, 64]}}
vlm:
  class_path: cefam.load_vlm
  init_args: {{name: tiny_clip, pretrained: {folder}/tiny_clip.pt, config: {folder}/tiny_clip.json}}
"""
TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
LABELS = [  # Broden's own numbers and names
    (1, "black-c", "color(9)"),
    (10, "red-c", "color(9)"),
    (30, "glass", "material(9);object(1)"),
    (38, "car", "object(9)"),
    (19, "person", "object(9);part(2)"),
    (73, "headlight", "part(9)"),
]


def draw(seed: int, side: int) -> np.ndarray:
    """A colored square on noise."""
    random = np.random.RandomState(seed)
    pixels = random.randint(0, 255, (side, side, 3)).astype(np.uint8)
    row, column = random.randint(0, side // 2, 2)
    pixels[row : row + side // 2, column : column + side // 2] = random.randint(0, 255, 3)
    return pixels


def write_broden(root: Path, count: int = 14) -> None:
    """A folder in Broden's on-disk format: 64 x 64 photographs, 32 x 32 masks; one image has two part masks, one none."""
    import csv

    from PIL import Image

    (root / "images" / "src").mkdir(parents=True)
    with (root / "label.csv").open("w", newline="") as out:
        rows = [(number, name, category, 9, 1.0, "") for number, name, category in LABELS]
        csv.writer(out).writerows([("number", "name", "category", "frequency", "coverage", "syns"), *rows])
    lines = []
    numbers = {"color": [1, 10], "object": [38, 19], "part": [73, 19], "material": [30]}
    for index in range(count):
        random = np.random.RandomState(index)
        name = f"src/{index:03d}.jpg"
        Image.fromarray(draw(index, 64)).save(root / "images" / name, quality=95)
        entry = {"image": name, "split": "val", "ih": 64, "iw": 64, "sh": 32, "sw": 32, "scene": "", "texture": ""}
        for category, labels in numbers.items():
            files = []
            for copy in range(2 if category == "part" and index == 3 else 0 if index == 5 else 1):
                index_map = np.zeros((32, 32), dtype=np.int64)
                for label in labels:
                    row, column = random.randint(0, 24, 2)
                    index_map[row : row + random.randint(4, 12), column : column + 10] = label
                if index == 7 and category == "color":
                    index_map[:] = 1  # a mask that fills the image
                pixels = np.stack([index_map % 256, index_map // 256, index_map * 0], axis=-1).astype(np.uint8)
                files.append(f"src/{index:03d}_{category}{copy or ''}.png")
                Image.fromarray(pixels).save(root / "images" / files[-1])
            entry[category] = ";".join(files)
        lines.append(entry)
    columns = ["image", "split", "ih", "iw", "sh", "sw", "color", "object", "part", "material", "scene", "texture"]
    with (root / "index.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(lines)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """Small data of the real formats and small towers for the real loaders: images, broden, weights, towers.yaml."""
    import json

    import open_clip
    import torchvision
    from PIL import Image

    folder = tmp_path_factory.mktemp("world")
    for part, count in (("train", 24), ("val", 11)):
        for index in range(count):
            path = folder / "images" / part / f"class{index % 3}" / f"{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw(100 * len(part) + index, 72)).save(path)
    write_broden(folder / "broden")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), folder / "resnet18.pth")
    (folder / "tiny_clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder / "tiny_clip.json")
    torch.save(open_clip.create_model("tiny_clip").state_dict(), folder / "tiny_clip.pt")
    towers = TOWERS.format(folder=folder)
    (folder / "towers.yaml").write_text(towers)
    (folder / "model.yaml").write_text("model:" + towers.replace("\n", "\n  "))
    return folder


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Commands write below the working folder."""
    monkeypatch.chdir(tmp_path)


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


@pytest.fixture(scope="session")
def trained(world, prepared, tmp_path_factory):
    """A checkpoint of ``cefam fit`` from features, with regions measured in validation, and its export."""
    folder = tmp_path_factory.mktemp("trained")
    options = [f"--data.init_args.regions={prepared}/broden", "--trainer.max_epochs=3", csv_logger(folder)]
    assert run("fit", *feature_options(world, prepared), *options) == 0
    assert run("export", "--checkpoint", folder / "log/checkpoints/best.ckpt", "--folder", folder / "artefact") == 0
    return folder


@pytest.fixture(scope="session")
def measured(trained, prepared, tmp_path_factory):
    """The usual evaluation by one process: what others are compared with."""
    folder = tmp_path_factory.mktemp("measured") / "usual"
    assert evaluated(trained, prepared, folder) == 0
    return folder


@pytest.fixture(scope="session")
def quick_study(tmp_path_factory):
    """The folder of a small ``cefam study`` on drawn scenes."""
    folder = tmp_path_factory.mktemp("study")
    draw_scenes(folder / "scenes", 30)
    write_photographs(folder / "scenes", folder / "photographs")
    towers = ["--classifier", "brodenette", "--vlm", "brodenette"]
    options = ["--images", folder / "photographs", "--concepts", "brodenette", "--folder", folder / "study"]
    assert run("study", *towers, *options, "--epochs", 2, "--pages", 2, "--device", "cpu") == 0
    return folder / "study"


def write_photographs(shards: Path, folder: Path) -> None:
    """Write the images of shards as files, as people keep them."""
    import tarfile

    folder.mkdir()
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar.getmembers():
                if member.name.endswith((".jpg", ".png")):
                    tar.extract(member, folder, filter="data")
