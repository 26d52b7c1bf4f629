"""Raw data as others store it: zips, webdatasets, AwA2, and folders that a YAML file describes."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import yaml
from PIL import Image

from cefam import ConceptSet
from cefam.datasets import Manifest, read_shard
from tests.commands import run
from tests.conftest import draw


def samples_of(folder):
    return [sample for shard in Manifest.read(folder).placed(folder) for sample in read_shard(shard)]


def same(one, other):
    assert [(s.id, s.image, s.label, s.present) for s in one] == [(s.id, s.image, s.label, s.present) for s in other]
    for a, b in zip(one, other, strict=True):
        assert [mask.category for mask in a.masks] == [mask.category for mask in b.masks]
        assert all(np.array_equal(x.index_map, y.index_map) for x, y in zip(a.masks, b.masks, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_zip_of_broden_is_read_as_it_is(world, tmp_path, workers):
    """Shards from the zip, with and without workers, are those of the folder, byte for byte."""
    shutil.make_archive(str(tmp_path / "broden1_224"), "zip", world, "broden")
    for source, name in ((world / "broden", "folder"), (tmp_path / "broden1_224.zip", "zip")):
        options = ["--source", source, "--folder", tmp_path / name, "--samples_per_shard", 4]
        assert run("prepare", "--kind=broden", *options, "--num_workers", workers) == 0
    names = [f"shard-{index:06d}.tar" for index in range(4)]
    assert sorted(path.name for path in (tmp_path / "zip").glob("*.tar")) == names
    for name in names:
        assert (tmp_path / "zip" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()
    numbers = [concept.number for concept in ConceptSet.from_file(tmp_path / "zip" / "labels.csv").concepts]
    assert numbers == [label["number"] for label in Manifest.read(tmp_path / "zip").labels]


def test_what_is_no_zip_of_broden(tmp_path, capsys):
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and nothing else")
    assert run("prepare", "--kind=broden", f"--source={tmp_path}/cut.zip", "--folder=out") == 1
    assert "cut.zip cannot be read as a zip" in capsys.readouterr().err
    shutil.make_archive(str(tmp_path / "other"), "zip", tmp_path, "cut.zip")
    assert run("prepare", "--kind=broden", f"--source={tmp_path}/other.zip", "--folder=out") == 1
    assert "is not a zip of Broden: it holds no index.csv" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def write_webdataset(folder, shards=3, samples=4):
    """As timm's imagenet-1k-wds: photograph, class, and a json of more."""
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"train-{shard:04d}.tar", "w") as tar:
            for index in range(samples):
                key, content = f"n{shard}_{index}", io.BytesIO()
                Image.fromarray(draw(10 * shard + index, 40)).save(content, format="JPEG")
                members = {"jpg": content.getvalue(), "cls": str(index).encode(), "json": b'{"filename": "x"}'}
                for suffix, value in members.items():
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(value)
                    tar.addfile(member, io.BytesIO(value))
    return folder


@pytest.mark.parametrize("source", ["wds", "wds/train-*.tar", "wds/train-{0000..0002}.tar"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_existing_webdataset_is_used_where_it_lies(world, tmp_path, source, workers):
    write_webdataset(tmp_path / "wds")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "wds").iterdir()}
    options = ["--source", tmp_path / source, "--folder", tmp_path / "out", "--num_workers", workers]
    assert run("prepare", "--kind=webdataset", *options) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]
    found = samples_of(tmp_path / "out")
    assert [(sample.id, sample.label) for sample in found] == [(f"n{s}_{i}", i) for s in range(3) for i in range(4)]
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "wds").iterdir()} == before
    options = ["--config", world / "towers.yaml", "--size", 32, "--resize", 36, "--device", "cpu"]
    assert run("features", *options, "--images", tmp_path / "out", "--folder", tmp_path / "features") == 0
    assert run("verify", tmp_path / "out", tmp_path / "features") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "train-0001.tar").write_bytes(b"no tar"), "cannot be read"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "No shard (.tar) was found"),
    ],
)
def test_a_webdataset_that_cannot_be_described(tmp_path, capsys, change, message):
    change(write_webdataset(tmp_path / "wds"))
    assert run("prepare", "--kind=webdataset", f"--source={tmp_path}/wds", "--folder=out") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("option", ["shuffle=true", "count=3", "masks=[]", "split=test"])
def test_options_that_a_webdataset_has_not_are_refused(tmp_path, capsys, option):
    write_webdataset(tmp_path / "wds")
    assert run("prepare", "--kind=webdataset", f"--source={tmp_path}/wds", "--folder=out", f"--{option}") == 1
    assert f"{option.split('=')[0]} does not apply to 'webdataset': its shards are used" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_awa2_knows_the_attributes_of_its_classes(tmp_path):
    names = ConceptSet.awa2().concepts
    root = tmp_path / "awa2"
    random = np.random.default_rng(0)
    matrix = random.integers(0, 2, (2, len(names)))
    for index, animal in enumerate(("antelope", "zebra")):
        (root / "JPEGImages" / animal).mkdir(parents=True)
        for number in range(3):
            picture = Image.fromarray(draw(10 * index + number, 48))
            picture.save(root / "JPEGImages" / animal / f"{animal}_1000{number}.jpg")
    (root / "classes.txt").write_text("      1\tantelope\n      2\tzebra\n")
    (root / "predicates.txt").write_text("".join(f"{c.number:7}\t{c.word}\n" for c in names))
    (root / "predicate-matrix-binary.txt").write_text("\n".join(" ".join(map(str, row)) for row in matrix) + "\n")
    assert run("prepare", "--kind=awa2", f"--source={root}", f"--folder={tmp_path}/out") == 0
    found = samples_of(tmp_path / "out")
    assert [sample.label for sample in found] == [0, 0, 0, 1, 1, 1]
    for sample in found:
        assert list(sample.present) == [n + 1 for n in range(len(names)) if matrix[sample.label, n]]
    (root / "predicate-matrix-binary.txt").write_text("0 1\n")
    assert run("prepare", "--kind=awa2", f"--source={root}", f"--folder={tmp_path}/other") == 1


VOC = {
    "name": "small voc",
    "images": "JPEGImages/{id}.jpg",
    "ids": "val.txt",
    "masks": [{"category": "object", "files": "SegmentationClass/{id}.png", "ignore": 255}],
    "labels": {"object": ["aeroplane", "bicycle", "bird"]},
}


def write_voc(folder):
    """Three photographs, the masks of two as palette PNGs whose border is 255."""
    for name in ("JPEGImages", "SegmentationClass"):
        (folder / name).mkdir(parents=True)
    maps = {}
    for index in range(3):
        Image.fromarray(draw(index, 40)).save(folder / "JPEGImages" / f"{index}.jpg")
        if index < 2:
            maps[index] = np.full((40, 40), 255, np.uint8)
            maps[index][1:20, 1:-1], maps[index][20:-1, 1:-1] = index + 1, 0
            mask = Image.fromarray(maps[index]).convert("P")
            mask.putdata(maps[index].ravel().tolist())
            mask.save(folder / "SegmentationClass" / f"{index}.png")
    (folder / "val.txt").write_text("1\n0\n2\n")
    (folder / "voc.yaml").write_text(yaml.safe_dump(VOC))
    return maps


def test_pascal_voc_by_a_description(tmp_path):
    maps = write_voc(tmp_path / "voc")
    assert run("prepare", "--kind=described", f"--source={tmp_path}/voc/voc.yaml", f"--folder={tmp_path}/out") == 0
    found = samples_of(tmp_path / "out")
    assert [sample.id for sample in found] == ["1", "0", "2"]
    for sample in found[:2]:
        expected = np.where(maps[int(sample.id)] == 255, 65535, maps[int(sample.id)].astype(int))
        assert np.array_equal(sample.masks[0].index_map, expected)
    assert found[2].masks == ()
    assert Manifest.read(tmp_path / "out").num_pairs == 2


def test_a_description_finds_its_photographs_and_labels(tmp_path):
    write_voc(tmp_path / "voc")
    about = {**VOC, "labels": "labels.csv"}
    del about["ids"]
    (tmp_path / "voc" / "labels.csv").write_text("number,name,category\n1,wing,part\n2,wheel,part\n")
    (tmp_path / "voc" / "voc.yaml").write_text(yaml.safe_dump(about))
    assert run("prepare", "--kind=described", f"--source={tmp_path}/voc/voc.yaml", f"--folder={tmp_path}/out") == 0
    assert [sample.id for sample in samples_of(tmp_path / "out")] == ["0", "1", "2"]
    assert [label["name"] for label in Manifest.read(tmp_path / "out").labels] == ["wing", "wheel"]


def test_an_id_may_stand_twice_in_a_pattern_and_hidden_files_are_no_photographs(tmp_path):
    write_voc(tmp_path / "voc")
    about = {**VOC, "images": "{id}/{id}.jpg"}
    del about["ids"]
    for name in "012":
        (tmp_path / "voc" / name).mkdir()
        shutil.move(tmp_path / "voc" / "JPEGImages" / f"{name}.jpg", tmp_path / "voc" / name)
    (tmp_path / "voc" / "0" / "1.jpg").write_bytes(b"another")
    (tmp_path / "voc" / "._0").mkdir()
    (tmp_path / "voc" / "._0" / "._0.jpg").write_bytes(b"of a Mac")
    (tmp_path / "voc" / "voc.yaml").write_text(yaml.safe_dump(about))
    assert run("prepare", "--kind=described", f"--source={tmp_path}/voc/voc.yaml", f"--folder={tmp_path}/out") == 0
    assert [sample.id for sample in samples_of(tmp_path / "out")] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"object": {1: "a", 65535: "b"}}}, "masks hold numbers from 1 to 65534"),
        ({"image": "x"}, "unknown key 'image'. Did you mean 'images'?"),
        ({"images": "JPEGImages/0.jpg"}, "`images` needs '{id}'"),
        ({"images": 3}, "`images` must be a text"),
        ({"images": "/etc/{id}"}, "leaves the folder of the description"),
        ({"images": "../{id}.jpg"}, "leaves the folder of the description"),
        ({"masks": [{"category": "object"}]}, "needs `category` and `files`"),
        ({"masks": [{"category": "object", "files": "a.png"}]}, "`files` needs '{id}'"),
        ({"masks": [{"category": "object", "file": "{id}.png"}]}, "unknown key 'file'. Did you mean 'files'?"),
        ({"labels": {"object": ["aeroplane"]}}, "has labels [2], which"),
        ({"labels": {"object": ["a", "b"], "part": ["c"]}}, "the number 1 of 'c'"),
        ({"labels": {}}, "`labels` is missing"),
        ({"ids": "none.txt"}, "`ids` names"),
        ({"masks": [{"category": "object", "files": "SegmentationClass/{id}.png"}]}, "has labels [255], which"),
    ],
)
def test_a_wrong_description_is_one_sentence(tmp_path, capsys, changes, message):
    write_voc(tmp_path / "voc")
    (tmp_path / "voc" / "voc.yaml").write_text(yaml.safe_dump({**VOC, **changes}))
    assert run("prepare", "--kind=described", f"--source={tmp_path}/voc/voc.yaml", f"--folder={tmp_path}/out") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("content", ["[]", "a: [", "images: {id}"])
def test_what_is_no_description(tmp_path, capsys, content):
    (tmp_path / "a.yaml").write_text(content)
    assert run("prepare", "--kind=described", f"--source={tmp_path}/a.yaml", f"--folder={tmp_path}/out") == 1
    assert "a.yaml" in capsys.readouterr().err


def write_coco(folder):
    """One photograph with two overlapping polygons, a crowd in run lengths, and one photograph without objects."""
    (folder / "val2017").mkdir(parents=True)
    for index in range(2):
        Image.fromarray(draw(index, 40)).save(folder / "val2017" / f"{index:012d}.jpg")
    square = [[4, 4, 20, 4, 20, 20, 4, 20]]
    corner = [[10, 10, 30, 10, 30, 30, 10, 30]]
    crowd = {"size": [40, 40], "counts": [0, 40, 1560]}  # the first column
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 18, "segmentation": square, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 1, "segmentation": corner, "iscrowd": 0},
        {"id": 3, "image_id": 7, "category_id": 18, "segmentation": crowd, "iscrowd": 1},
    ]
    images = [{"id": 7 + index, "file_name": f"{index:012d}.jpg", "height": 40, "width": 40} for index in range(2)]
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    about = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(about))
    description = {"images": "val2017/{id}", "coco": "instances.json", "category": "object"}
    (folder / "coco.yaml").write_text(yaml.safe_dump(description))


def test_coco_by_a_description(tmp_path):
    """Pixel for pixel: polygons cover what is inside of them, and what two classes share lies in two index maps."""
    write_coco(tmp_path / "coco")
    assert run("prepare", "--kind=described", f"--source={tmp_path}/coco/coco.yaml", f"--folder={tmp_path}/out") == 0
    first, second = samples_of(tmp_path / "out")
    assert second.masks == ()
    dog, person = (np.zeros((40, 40), bool) for _ in range(2))
    dog[4:20, 4:20], person[10:30, 10:30], dog[:, 0] = True, True, True
    maps = [mask.index_map for mask in first.masks]
    assert len(maps) == 2
    assert np.array_equal(maps[0] == 18, dog)
    assert np.array_equal(maps[1] == 1, person)
    assert [label["name"] for label in Manifest.read(tmp_path / "out").labels] == ["person", "dog"]


def test_annotations_that_are_none(tmp_path, capsys):
    write_coco(tmp_path / "coco")
    options = [f"--source={tmp_path}/coco/coco.yaml", f"--folder={tmp_path}/out"]
    (tmp_path / "coco" / "instances.json").write_text("[]")
    assert run("prepare", "--kind=described", *options) == 1
    assert "is not a COCO file of annotations" in capsys.readouterr().err
