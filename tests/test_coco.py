"""COCO's annotations: objects are kept, or named when they are not; damaged ones are refused with their number."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cefam.datasets import read_shard
from cefam.datasets.sources.coco import _decompressed
from cefam.datasets.sources.described import Described
from tests.commands import run

coco = pytest.importorskip("pycocotools.mask")
HEIGHT, WIDTH = 40, 60
SQUARE = [[5, 5, 15, 5, 15, 15, 5, 15]]  # 100 pixels


def annotation(number=1, image=1, category=1, segmentation=SQUARE, **more):
    found = {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": 0,
        "segmentation": segmentation,
        **more,
    }
    return {key: value for key, value in found.items() if value is not ...}


def image(number=1, name="a.jpg", **more):
    return {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH, **more}


def kinds(*numbers):
    return [{"id": number, "name": f"kind {number}"} for number in numbers]


def described(folder, annotations, images=None, categories=None, category="object"):
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.jpg")
    about = {"images": images or [image()], "categories": categories or kinds(1, 2), "annotations": annotations}
    (folder / "a.json").write_text(json.dumps(about))
    (folder / "d.yaml").write_text(f"images: '{{id}}'\ncoco: a.json\ncategory: {category}\n")
    return folder / "d.yaml"


def areas(folder, *arguments, **options):
    """Labelled pixels of each mask of the first photograph."""
    source = Described(str(described(folder, *arguments, **options)))
    return [int((mask.index_map > 0).sum()) for mask in next(iter(source.samples(0, 1))).masks]


REFUSED = {
    "category 0": (
        {"annotations": [annotation(category=0)], "categories": kinds(0, 1)},
        "the number of 'kind 0' is 0, but masks hold numbers",
    ),
    "a category beyond 65534": (
        {"annotations": [], "categories": kinds(70_000)},
        "the number of 'kind 70000' is 70000",
    ),
    "a file listed twice": (
        {"annotations": [annotation()], "images": [image(1), image(2)]},
        "file_name 'a.jpg' is listed twice",
    ),
    "an image id listed twice": (
        {"annotations": [annotation()], "images": [image(1), image(1, "b.jpg")]},
        "id 1 is listed twice",
    ),
    "a category listed twice": ({"annotations": [], "categories": kinds(1, 1)}, "id 1 is listed twice"),
    "a category that is not listed": (
        {"annotations": [annotation(7, category=9)]},
        "annotation 7 has category 9, which is not listed",
    ),
    "no height": (
        {"annotations": [], "images": [{"id": 1, "file_name": "a.jpg"}]},
        r"image 1 \(a.jpg\) has no height and width",
    ),
    "a height in words": (
        {"annotations": [], "images": [image(height="40")]},
        r"image 1 \(a.jpg\) has no height and width",
    ),
    "no image_id": ({"annotations": [annotation(image=...)]}, "is not a COCO file of annotations"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_contradicts_itself_is_refused_with_the_entry(name, tmp_path):
    given, advice = REFUSED[name]
    with pytest.raises(ValueError, match=advice):
        Described(str(described(tmp_path, **given)))


@pytest.mark.parametrize(
    "box", [annotation(2, segmentation=...), annotation(2, segmentation=[]), annotation(2, segmentation=None)]
)
def test_boxes_without_masks_are_left_out_and_counted(box, tmp_path):
    with pytest.warns(
        UserWarning, match=r"2 annotation\(s\) are boxes without masks and are left out, as annotation 2"
    ):
        assert areas(tmp_path, [annotation(), {**box, "bbox": [1, 1, 5, 5]}, {**box, "id": 3}]) == [100]


def test_objects_of_photographs_that_are_not_listed_are_counted(tmp_path):
    with pytest.warns(UserWarning, match=r"1 annotation\(s\) belong to an image_id that is not listed .* annotation 5"):
        assert areas(tmp_path, [annotation(), annotation(5, image=9)]) == [100]


def test_an_object_that_covers_no_pixel_is_named(tmp_path):
    thin = [[5, 5, 5.01, 5, 5.01, 5.01]]
    with pytest.warns(UserWarning, match=r"annotation 2 of a.jpg covers no pixel"):
        assert areas(tmp_path, [annotation(), annotation(2, category=2, segmentation=thin)]) == [100]


def test_the_command_says_what_was_left_out_whatever_python_ignores(tmp_path):
    place = described(tmp_path, [annotation(), annotation(2, segmentation=...)])
    words = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "cefam",
        "prepare",
        "--kind=described",
        "--source",
        place,
        "--folder",
        tmp_path / "s",
    ]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "cefam prepare: warning: " in done.stderr
    assert "1 annotation(s) are boxes without masks" in done.stderr


def rle(counts, size=(HEIGHT, WIDTH)):
    return {"size": list(size), "counts": counts}


def compressed(counts, size=(HEIGHT, WIDTH)):
    return rle(coco.frPyObjects(rle(counts, size), *size)["counts"].decode(), size)


DAMAGED = {
    "not a number": [[float("nan"), 5, 15, 5, 15, 15]], "infinite": [[float("inf"), 5, 15, 5, 15, 15]],
    "far away": [[1e9, 5, 15, 5, 15, 15]], "far below": [[5, -500, 15, 5, 15, 15]], "a word": [["x", 5, 15, 5, 15, 15]],
    "two points": [[5, 5, 15, 15]], "an odd number": [[5, 5, 15, 5, 15, 15, 1]], "not nested": [5, 5, 15, 5, 15, 15],
    "runs too short": rle([100, 50]), "runs too long": rle([100, 50, 9000]), "a negative run": rle([100, -50, 2350]),
    "another size": rle([1200, 1200], (60, 40)), "no size": {"counts": [2400]}, "no counts": {"size": [HEIGHT, WIDTH]},
    "compressed, too short": rle(compressed([100, 50])["counts"]),
    "compressed, too long": rle(compressed([100, 50, 9000], (100, 100))["counts"]),
    "compressed, cut": rle(compressed([100, 50, 2250])["counts"][:-1]), "a text": "abc",
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_segmentation_is_refused_with_its_annotation(name, tmp_path):
    with pytest.raises(ValueError, match=r"annotation 3 of a.jpg: the segmentation cannot be read \("):
        areas(tmp_path, [annotation(3, segmentation=DAMAGED[name])])


def test_whole_segmentations_of_every_kind_are_read(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:15, 5:15] = 1
    encoded = coco.encode(np.asfortranarray(mask))["counts"].decode()
    counts = _decompressed(encoded)
    slightly_outside = [[-3, 5, 15, 5, 15, 15, -3, 15]]
    for segmentation, area in ((SQUARE, 100), (rle(counts), 100), (rle(encoded), 100), (slightly_outside, 150)):
        assert areas(tmp_path, [annotation(segmentation=segmentation)]) == [area]


@given(st.lists(st.integers(0, 400), min_size=1, max_size=30))
def test_compressed_run_lengths_are_those_that_pycocotools_writes(counts):
    size = (sum(counts), 1)
    assert _decompressed(coco.frPyObjects(rle(counts, size), *size)["counts"]) == counts


def test_categories_are_the_same_in_any_case(tmp_path):
    folder = tmp_path / "shards"
    place = described(tmp_path, [annotation()], category="Object")
    assert run("prepare", "--kind=described", "--source", place, "--folder", folder) == 0
    (sample,) = read_shard(folder / "shard-000000.tar")
    assert [mask.category for mask in sample.masks] == ["object"]
