"""ImageNet and ImageNet-S as they lie on disk: the sources, both readings of masks, and each through a command."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from cefam.concepts.categories import IGNORED
from cefam.concepts.sets import ConceptSet
from cefam.datasets import Manifest, read_shard
from cefam.datasets.sources.imagenet import class_of, wnids
from cefam.images.views import EvaluationView
from cefam.report import records
from tests.commands import csv_logger, feature_options, images_data, run
from tests.conftest import draw

TENCH, GOLDFISH, WHITE_SHARK = "n01440764", "n01443537", "n01484850"


def jpeg(seed, side=72, mode="RGB"):
    data = io.BytesIO()
    Image.fromarray(draw(seed, side)).convert(mode).save(data, "JPEG")
    return data.getvalue()


def samples_of(folder):
    manifest = Manifest.read(folder)
    return [sample for shard in manifest.placed(folder) for sample in read_shard(shard)]


def test_wnids_are_in_the_order_of_our_class_names():
    assert len(wnids()) == 1000
    assert wnids() == sorted(wnids())
    names = ConceptSet.imagenet().words
    assert names[class_of(TENCH)].lower().startswith("tench")
    assert "goldfish" in names[class_of(GOLDFISH)].lower()
    assert "shark" in names[class_of(WHITE_SHARK)].lower()
    with pytest.raises(ValueError, match="Did you mean 'n01440764'"):
        class_of("n0144076")


def write_folder(root, per_class=4):
    for index, wnid in enumerate((GOLDFISH, TENCH)):
        (root / wnid).mkdir(parents=True)
        for number in range(per_class):
            (root / wnid / f"{wnid}_{number}.JPEG").write_bytes(jpeg(10 * index + number))
    return root


def write_train_tar(path, folder):
    """A tar of tars, one per class, as it is downloaded."""
    with tarfile.open(path, "w") as outer:
        for of_class in sorted(folder.iterdir()):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for image in sorted(of_class.iterdir()):
                    tar.add(image, image.name)
            member = tarfile.TarInfo(f"{of_class.name}.tar")
            member.size = len(inner.getvalue())
            outer.addfile(member, io.BytesIO(inner.getvalue()))


def test_folder_and_tar_give_the_same_samples(tmp_path):
    folder = write_folder(tmp_path / "train")
    (tmp_path / "tars").mkdir()
    write_train_tar(tmp_path / "tars" / "ILSVRC2012_img_train.tar", folder)
    sources = {"a": folder, "b": tmp_path / "tars", "c": tmp_path / "tars" / "ILSVRC2012_img_train.tar"}
    for name, source in sources.items():
        options = ["--folder", name, "--samples_per_shard=3", "--shuffle=false"]
        assert run("prepare", "--kind=imagenet", "--source", source, *options) == 0
    found = [[(s.id, s.image, s.label) for s in samples_of(tmp_path / name)] for name in sources]
    assert found[0] == found[1] == found[2]
    assert [label for _, _, label in found[0]] == [class_of(TENCH)] * 4 + [class_of(GOLDFISH)] * 4
    assert found[0][0][1] == (folder / TENCH / f"{TENCH}_0.JPEG").read_bytes()


def test_the_validation_tar_has_classes_where_the_devkit_is_there(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as tar:
        for number in (1, 2):
            member = tarfile.TarInfo(f"ILSVRC2012_val_{number:08d}.JPEG")
            member.size = len(jpeg(number))
            tar.addfile(member, io.BytesIO(jpeg(number)))
    assert run("prepare", "--kind=imagenet", f"--source={tmp_path}", "--folder=without") == 0
    assert [sample.label for sample in samples_of(tmp_path / "without")] == [None, None]
    synsets = np.array([(1, GOLDFISH), (2, TENCH)], dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "U9")])
    meta = io.BytesIO()
    scipy_io.savemat(meta, {"synsets": synsets})
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        for name, data in (("meta.mat", meta.getvalue()), ("ILSVRC2012_validation_ground_truth.txt", b"2\n1\n")):
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert run("prepare", "--kind=imagenet", f"--source={tmp_path}", "--folder=with") == 0
    assert [sample.label for sample in samples_of(tmp_path / "with")] == [class_of(TENCH), class_of(GOLDFISH)]


def test_a_tar_of_class_folders_keeps_names_and_classes_apart(tmp_path):
    folder = write_folder(tmp_path / "train", 2)
    for wnid in (TENCH, GOLDFISH):
        for index, path in enumerate(sorted((folder / wnid).iterdir())):
            path.rename(path.with_name(f"{index}.JPEG"))
    with tarfile.open(tmp_path / "ILSVRC2012_img_small.tar", "w") as tar:
        tar.add(folder, ".")
    assert run("prepare", "--kind=imagenet", f"--source={tmp_path}/ILSVRC2012_img_small.tar", "--folder=out") == 0
    found = [(sample.id, sample.label) for sample in samples_of(tmp_path / "out")]
    expected = [(f"{wnid}/{n}.JPEG", class_of(wnid)) for wnid in (TENCH, GOLDFISH) for n in range(2)]
    assert sorted(found) == expected
    assert found != expected  # training batches would be of one class else


def test_a_broken_devkit_is_said(tmp_path, capsys):
    pytest.importorskip("scipy.io")
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w"):
        pass
    devkit = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(devkit, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("noise"))
    for content in (b"nothing", devkit.read_bytes()[:-20]):
        devkit.write_bytes(content)
        assert run("prepare", "--kind=imagenet", f"--source={tmp_path}", "--folder=out") == 1
        assert "ILSVRC2012_devkit_t12.tar.gz cannot be read" in capsys.readouterr().err


def test_imagenet_trains_a_translator(world, tmp_path):
    """From the folder on disk through shards to a trained checkpoint."""
    for part in ("train", "val"):
        source = write_folder(tmp_path / part, 8 if part == "train" else 2)
        options = [f"--source={source}", f"--folder={tmp_path}/shards/{part}", "--samples_per_shard=4"]
        assert run("prepare", "--kind=imagenet", *options) == 0
    data = images_data(tmp_path / "shards/train", tmp_path / "shards/val")
    options = ["--config", world / "model.yaml", f"--data={data}", "--model.concepts=imagenet", csv_logger(tmp_path)]
    assert run("fit", *options, "--trainer.max_epochs=1", "--trainer.accelerator=cpu") == 0
    assert (tmp_path / "log/checkpoints/best.ckpt").is_file()


def write_imagenet_s(root):
    """Five photographs of two classes: two classes in one mask, ignored pixels, odd sizes, a grey one, an object out of the view."""
    sizes = {TENCH: [(72, 72), (60, 91), (72, 72)], GOLDFISH: [(75, 64), (150, 60)]}
    for index, (wnid, each) in enumerate(sizes.items()):
        for number, (height, width) in enumerate(each):
            name = f"ILSVRC2012_val_{10 * index + number:08d}"
            (root / "validation" / wnid).mkdir(parents=True, exist_ok=True)
            (root / "validation-segmentation" / wnid).mkdir(parents=True, exist_ok=True)
            pixels = np.random.RandomState(10 * index + number).randint(0, 255, (height, width, 3)).astype(np.uint8)
            picture = Image.fromarray(pixels).convert("L" if (index, number) == (0, 2) else "RGB")
            picture.save(root / "validation" / wnid / f"{name}.JPEG")
            mask = np.zeros((height, width), np.int64)
            mask[20:40, 10:30] = index + 1
            if (index, number) == (0, 0):
                mask[45:60, 30:60] = 2  # another class
            if number == 1:
                mask[:10] = 1000  # ignored
            if (index, number) == (1, 1):
                mask[:] = 0
                mask[:10] = 2  # leaves the central crop
            rgb = np.stack([mask % 256, mask // 256, mask * 0], axis=-1).astype(np.uint8)
            Image.fromarray(rgb).save(root / "validation-segmentation" / wnid / f"{name}.png")
    return root


def test_both_readings_of_imagenet_s_masks(tmp_path, capsys):
    root = write_imagenet_s(tmp_path / "ImageNetS2")
    for reading in ("published", "paper"):
        options = [f"--source={root}", f"--folder={tmp_path}/{reading}", f"--reading={reading}"]
        assert run("prepare", "--kind=imagenet_s", *options) == 0
        # Two classes in one mask, and ignored pixels in another: there the largest number is not the folder's class.
        assert "The two readings differ on 2 of 5 masks" in capsys.readouterr().out
    published, paper = samples_of(tmp_path / "published"), samples_of(tmp_path / "paper")
    assert [s.id for s in published] == [s.id for s in paper]
    tench = class_of(TENCH) + 1
    first, second = (sample.masks[0].index_map for sample in published[:2])
    assert (first == tench).sum() == 15 * 30  # the goldfish's pixels, which have the larger number, under tench's name
    assert (second == tench).sum() == 10 * 91  # the ignored ones
    first, second = (sample.masks[0].index_map for sample in paper[:2])
    assert (first == tench).sum() == 20 * 20
    assert (second == tench).sum() == 20 * 20
    assert (second == IGNORED).sum() == 10 * 91
    assert Manifest.read(tmp_path / "published").mask_cut == "cover"
    assert {label["number"] for label in Manifest.read(tmp_path / "paper").labels} == {tench, class_of(GOLDFISH) + 1}


def test_a_published_mask_grows_at_its_edges_and_a_papers_does_not():
    index_map = torch.zeros(97, 141, dtype=torch.int32)
    index_map[31:60, 20:70] = 5
    view = EvaluationView(48, 40)
    covered, nearest = view.mask(index_map, "cover") == 5, view.mask(index_map) == 5
    assert bool((covered >= nearest).all())
    assert int(covered.sum()) > int(nearest.sum())
    # By hand: the antialiased bilinear resize of the 0/1 mask, cut, above 0.
    resized = torch.nn.functional.interpolate(
        (index_map == 5).float()[None, None], (48, 69), mode="bilinear", antialias=True
    )
    assert torch.equal(covered, resized[0, 0, 4:44, 14:54] > 0)


@pytest.mark.parametrize("reading", ["published", "paper"])
def test_imagenet_s_is_evaluated(reading, world, prepared, tmp_path):
    """A translator of the last stage with ImageNet's concepts; a mask that the crop leaves out is undefined, and counted."""
    root = write_imagenet_s(tmp_path / "ImageNetS2")
    options = [f"--source={root}", f"--folder={tmp_path}/shards", f"--reading={reading}"]
    assert run("prepare", "--kind=imagenet_s", *options) == 0
    fit = [
        *feature_options(world, prepared),
        "--trainer.max_epochs=1",
        csv_logger(tmp_path),
        "--model.concepts=imagenet",
    ]
    assert run("fit", *fit) == 0
    options = ["--config=evaluate/imagenet_s", f"--model.artefact={tmp_path}/log/checkpoints/best.ckpt"]
    options += [
        "--data.resize=48",
        "--data.crop=40",
        f"--data.shards={tmp_path}/shards",
        f"--model.output={tmp_path}/out",
    ]
    assert run("evaluate", *options, "--trainer.accelerator=cpu", "--trainer.logger=false") == 0
    rows = [
        r for r in records.read(tmp_path / "out" / "records.csv") if r["method"] == "CE-FAM" and r["protocol"] == "top1"
    ]
    assert len(rows) == 5
    undefined = [row["image"] for row in rows if row["nra"] != row["nra"]]
    assert undefined == [f"{GOLDFISH}/ILSVRC2012_val_00000011.JPEG"]


@pytest.mark.parametrize(
    ("damage", "advice"),
    [
        (lambda root: next(root.rglob("*_00000001.png")).unlink(), "ILSVRC2012_val_00000001.png is not in"),
        (lambda root: Image.new("RGB", (5, 5)).save(next(root.rglob("*_00000001.png"))), "its photograph"),
        (
            lambda root: Image.new("CMYK", (91, 60)).save(next(root.rglob("*_00000001.png")), "TIFF"),
            "encoded as 'CMYK'",
        ),
        (
            lambda root: Image.new("L", (91, 60), 77).save(next(root.rglob("*_00000001.png"))),
            "has labels [77], but there are 2",
        ),
        (lambda root: (root / "validation").rename(root / "val"), "There is no folder"),
        (lambda root: (root / "validation" / TENCH).rename(root / "validation" / "tench"), "'tench' is not the wnid"),
    ],
)
def test_a_broken_imagenet_s_is_refused(damage, advice, tmp_path, capsys):
    root = write_imagenet_s(tmp_path / "ImageNetS2")
    damage(root)
    assert run("prepare", "--kind=imagenet_s", f"--source={root}", f"--folder={tmp_path}/out") == 1
    assert advice in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.tar"))


def test_options_of_another_kind_are_refused(world, tmp_path, capsys):
    for option in ("--count=5", "--ignore=255", "--reading=paper"):
        options = [f"--source={world}/images/val", f"--folder={tmp_path}/out", option]
        assert run("prepare", "--kind=images", *options) == 1
        assert option.strip("-").split("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_stopped_preparation_keeps_what_is_finished(world, tmp_path, monkeypatch):
    """The second run writes what is missing, and the result is that of an uninterrupted one."""
    from cefam.datasets.sources.images import ImageFolder

    options = [f"--source={world}/images/train", "--samples_per_shard=5"]
    assert run("prepare", "--kind=images", *options, "--folder=whole") == 0
    read, original = [], ImageFolder.sample

    def sample(self, index):
        read.append(index)
        if len(read) == 13:
            raise KeyboardInterrupt
        return original(self, index)

    monkeypatch.setattr(ImageFolder, "sample", sample)
    assert run("prepare", "--kind=images", *options, "--folder=again") == 130
    assert sorted(path.name for path in (tmp_path / "again").glob("*.tar")) == ["shard-000000.tar", "shard-000001.tar"]
    assert run("prepare", "--kind=images", *options, "--folder=again") == 0
    assert read == [*range(13), *range(10, 24)]
    one, other = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("whole", "again"))
    assert one == other
    for shard in one["shards"]:
        assert (tmp_path / "whole" / shard["file"]).read_bytes() == (tmp_path / "again" / shard["file"]).read_bytes()
    assert not (tmp_path / "again" / "journal.json").exists()


def test_a_stopped_preparation_with_other_options_is_refused(world, tmp_path, monkeypatch, capsys):
    from cefam.datasets.sources.images import ImageFolder

    original = ImageFolder.sample
    monkeypatch.setattr(
        ImageFolder, "sample", lambda self, i: original(self, i) if i < 7 else (_ for _ in ()).throw(KeyboardInterrupt)
    )
    options = [f"--source={world}/images/train", "--folder=again"]
    assert run("prepare", "--kind=images", *options, "--samples_per_shard=5") == 130
    assert run("prepare", "--kind=images", *options, "--samples_per_shard=6") == 1
    assert "the work of a run with other inputs or options" in capsys.readouterr().err


def test_a_preparation_that_finished_nothing_is_not_in_the_way(world, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    assert run("prepare", "--kind=images", "--source=images", "--folder=out", "--samples_per_shard=5") == 1
    options = ["--kind=images", f"--source={world}/images/val", "--folder=out", "--samples_per_shard=6"]
    assert run("prepare", *options) == 0
    assert Manifest.read(tmp_path / "out").num_samples == 11
