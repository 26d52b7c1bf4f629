"""The real-photographs example, shortened: the same commands on a few of the same photographs, with the real weights."""

import csv
import shutil
from pathlib import Path

import pytest
import yaml

from cefam.commands import main
from cefam.datasets.sources.images import list_images

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.realset


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture
def few(realset, tmp_path):
    """40 photographs, and a Broden folder of 12."""
    for path, _ in list_images(realset / "imagenet_sample")[::25]:
        (tmp_path / "images" / path.parent.name).mkdir(parents=True)
        shutil.copy(path, tmp_path / "images" / path.parent.name)
    source, target = realset / "broden_sample", tmp_path / "broden"
    target.mkdir()
    (target / "images").symlink_to(source / "images")
    shutil.copy(source / "label.csv", target)
    lines = (source / "index.csv").read_text().splitlines()
    (target / "index.csv").write_text("\n".join([lines[0], *lines[1::22]]) + "\n")
    return tmp_path


def test_the_example_runs_from_photographs_to_the_table(few, monkeypatch):
    from examples.real_photos.weights import convert_lite0

    monkeypatch.syspath_prepend(str(ROOT))
    Path("runs/real_photos").mkdir(parents=True)
    convert_lite0(Path("runs/real_photos/lite0.safetensors"))
    example = ROOT / "examples" / "real_photos"
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    run("prepare", "--kind", "broden", "--source", few / "broden", "--folder", "runs/real_photos/broden")
    for name, views in (("train", 1), ("val", 0)):
        folder = f"runs/real_photos/features/{name}"
        run(
            "features",
            "--config",
            example / "towers.yaml",
            "--images",
            few / "images",
            "--folder",
            folder,
            "--views",
            views,
        )
    options = ["--model.concepts", few / "broden/label.csv", "--data.init_args.batch_size=20", "--trainer.max_epochs=4"]
    run("fit", "--config", example / "fit.yaml", *options, *quiet)
    run("export", "--checkpoint", "runs/real_photos/fit/checkpoints/best.ckpt", "--folder", "runs/real_photos/artefact")
    three = sorted(path for path in (few / "images").rglob("*") if path.is_file())[:3]
    options = ["--artefact", "runs/real_photos/artefact", "--out", "runs/real_photos/pages", "--top_k", 3]
    run("explain", *three, *options)
    pages = sorted(Path("runs/real_photos/pages").glob("*.html"))
    assert len(pages) == 4  # and the index
    options = [
        "--model.artefact=runs/real_photos/artefact",
        "--data.shards=runs/real_photos/broden",
        "--model.output=out",
    ]
    run("evaluate", "--config", "evaluate/broden", *options, "--model.derivative=branch", *quiet)
    with Path("out/table.csv").open() as lines:
        rows = {(row["protocol"], row["method"]): row for row in csv.DictReader(lines)}
    # Real pixels through the real format: what cannot depend on the training is what the full set gives.
    assert 0.1 < float(rows["top1", "random map"]["NRA avg"]) < 0.14
    assert float(rows["oracle", "CE-FAM"]["NRA avg"]) > float(rows["oracle", "random map"]["NRA avg"])
    assert "blocks.1 (24)" in Path("out/table.txt").read_text()


def test_the_classifier_knows_its_photographs(realset):
    """Preprocessing and weights are right: EfficientNet-Lite0 names most of ImageNet's photographs."""
    import torch

    from cefam import load_classifier
    from cefam.images.pictures import read_pixels
    from cefam.images.views import EvaluationView
    from examples.real_photos.weights import convert_lite0

    convert_lite0(Path("lite0.safetensors"))
    towers = yaml.safe_load((ROOT / "examples/real_photos/towers.yaml").read_text())
    stages = towers["classifier"]["init_args"]["stages"]
    classifier = load_classifier("timm:tf_efficientnet_lite0", "lite0.safetensors", stages=stages)
    chosen = list_images(realset / "imagenet_sample")[::20]
    images = torch.stack([EvaluationView(256, 224)(read_pixels(path, str(path))) for path, _ in chosen])
    correct = classifier(images).logits.argmax(dim=1) == torch.tensor([label for _, label in chosen])
    assert correct.double().mean() > 0.75


def test_colors_are_those_of_the_standard():
    """CIELAB of white, black, and the sRGB primaries, as tabulated."""
    import torch

    from examples.real_photos.teacher import _lab

    rgb = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    wanted = torch.tensor(
        [[100.0, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    )
    torch.testing.assert_close(_lab(rgb[:, :, None, None])[:, :, 0, 0], wanted, rtol=0, atol=0.05)


def test_a_teacher_that_knows_colors():
    """Of plain views, and of halves of two colors: the names of what is there come first."""
    import torch

    from examples.real_photos.teacher import COLORS, ColorConSE
    from examples.real_photos.weights import convert_lite0

    convert_lite0(Path("lite0.safetensors"))
    teacher = ColorConSE("timm:tf_efficientnet_lite0", "lite0.safetensors").freeze()
    views = torch.tensor(list(COLORS.values()), dtype=torch.uint8)[:, :, None, None].expand(-1, 3, 64, 64)
    halves = torch.cat([views[8:9, :, :32], views[1:2, :, 32:]], dim=2)  # red over blue
    change = teacher.encode_image(torch.cat([views, halves])) - super(ColorConSE, teacher).encode_image(
        torch.cat([views, halves])
    )
    like = torch.cosine_similarity(change.unsqueeze(1), teacher.colors.unsqueeze(0), dim=2)
    assert like[:-1].argmax(dim=1).tolist() == list(range(len(COLORS)))
    assert sorted(like[-1].topk(2).indices.tolist()) == [list(COLORS).index("blue"), list(COLORS).index("red")]
