"""The reader of FunnyBirds' files, on a small folder made in their format."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cefam.errors import CefamError
from cefam.interventions.funnybirds import FunnyBirds

CLASSES = [{"beak": 0, "eye": 0, "tail": 0}, {"beak": 0, "eye": 1, "tail": 0}, {"beak": 1, "eye": 0, "tail": 0}]


@pytest.fixture
def folder(tmp_path):
    parts = {part: [{"model": f"{part}{n}.glb"} for n in range(2)] for part in ("beak", "eye", "tail")}
    (tmp_path / "parts.json").write_text(json.dumps(parts))
    classes = [{"class_idx": index, "parts": each} for index, each in enumerate(CLASSES)]
    (tmp_path / "classes.json").write_text(json.dumps(classes[::-1]))
    (tmp_path / "dataset_test.json").write_text(json.dumps([{"class_idx": 2}, {"class_idx": 0}]))
    for index, label in enumerate((2, 0)):
        for kind in ("test", "test_part_map"):
            (tmp_path / kind / str(label)).mkdir(parents=True)
        pixels = np.full((8, 8, 4), 200, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"test/{label}/{index:06d}.png")
        colors = np.zeros((8, 8, 4), np.uint8)
        colors[..., 3] = 255
        colors[0, :3, :3], colors[1, :2, :3], colors[2, :2, :3] = (255, 255, 0), (255, 255, 253), (255, 255, 254)
        Image.fromarray(colors).save(tmp_path / f"test_part_map/{label}/{index:06d}.png")
        place = tmp_path / f"test_interventions/{label}/{index:06d}"
        place.mkdir(parents=True)
        Image.fromarray(pixels // 2).save(place / "body_beak_tail.png")
    return tmp_path


def test_pictures_masks_and_interventions(folder):
    birds = FunnyBirds(folder)
    assert len(birds) == 2
    bird = birds.bird(1)
    assert bird.label == 0
    assert bird.image.shape == (3, 8, 8)
    assert set(bird.masks) == {"beak", "eye"}
    assert int(bird.masks["eye"].sum()) == 4  # both eyes are one part
    assert int(bird.masks["beak"].sum()) == 3
    assert torch.equal(birds.without(1, ["eye"]), torch.full((3, 8, 8), 100, dtype=torch.uint8))


def test_minimal_sufficient_sets(folder):
    birds = FunnyBirds(folder)
    assert birds.sufficient(1) == [frozenset({"eye"})]
    assert birds.sufficient(2) == [frozenset({"beak"})]
    assert birds.sufficient(0) == [frozenset({"beak", "eye"})]


def test_what_is_missing_or_damaged_is_named(folder):
    birds = FunnyBirds(folder)
    with pytest.raises(FileNotFoundError, match=r"lacks the picture .*body_beak.png"):
        birds.without(0, ["eye", "tail"])
    with pytest.raises(CefamError, match="has no part 'horn'"):
        birds.without(0, ["horn"])
    (folder / "classes.json").write_text("{")
    with pytest.raises(CefamError, match=r"classes.json is not JSON"):
        FunnyBirds(folder)
    (folder / "classes.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"it has no classes.json"):
        FunnyBirds(folder)
