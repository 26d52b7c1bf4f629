"""One view for both towers, and the way back to the photograph."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from cefam.images.pictures import to_pixels
from cefam.images.views import IMAGENET, EvaluationView, Preprocessing, to_photograph, training_view


def photograph(height, width, marker=None):
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    if marker:
        row, column = marker
        pixels[row : row + 9, column : column + 9] = 255
    return torch.from_numpy(pixels).permute(2, 0, 1)


def center_of_mass(values):
    values = values.double()
    rows, columns = torch.meshgrid(*(torch.arange(n).double() for n in values.shape), indexing="ij")
    return float((rows * values).sum() / values.sum()), float((columns * values).sum() / values.sum())


@pytest.mark.parametrize("size", [(300, 500), (500, 300), (256, 256), (700, 431)])
def test_a_marker_lands_in_the_same_place_in_both_towers_and_comes_back(size):
    height, width = size
    marker = (height // 2 + 20, width // 2 - 40)
    pixels = EvaluationView(256, 224)(photograph(height, width, marker))
    assert pixels.shape == (3, 224, 224)
    one = Preprocessing()(pixels[None])[0, 0]
    other = Preprocessing((0.5,) * 3, (0.5,) * 3, (336, 336), "bicubic")(pixels[None])[0, 0] * 0.5 + 0.5
    for a, b in zip(center_of_mass(one), center_of_mass(other), strict=True):
        assert (a + 0.5) / 224 == pytest.approx((b + 0.5) / 336, abs=2e-3)
    back = to_photograph(one[None], EvaluationView(256, 224).placement(height, width), size)[0]
    assert back.shape == size
    row, column = center_of_mass(back)
    assert row == pytest.approx(marker[0] + 4, abs=0.8)
    assert column == pytest.approx(marker[1] + 4, abs=0.8)


def test_outside_the_view_there_is_no_region():
    back = to_photograph(torch.ones(1, 7, 7), EvaluationView(256, 224).placement(300, 600), (300, 600))[0]
    placement = EvaluationView(256, 224).placement(300, 600)
    assert back[:, : int(placement.left)].sum() == 0
    assert back[150, 300] == 1
    assert float(back.sum()) == pytest.approx(placement.height * placement.width, rel=0.02)


def test_a_view_can_leave_photographs_as_they_are():
    pixels = photograph(112, 90, (50, 40))
    assert torch.equal(EvaluationView(None, None)(pixels), pixels)
    assert EvaluationView(None, None).placement(112, 90) == (0, 0, 112, 90)


def test_masks_are_cut_like_photographs_and_labels_are_never_mixed():
    index_map = torch.zeros(300, 500, dtype=torch.int32)
    index_map[:, 250:] = 700
    cut = EvaluationView(256, 224).mask(index_map)
    assert cut.shape == (224, 224)
    assert cut.unique().tolist() == [0, 700]
    assert 0.48 < (cut == 700).double().mean() < 0.52


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_pictures_of_any_mode_become_three_channels(mode):
    picture = Image.new("RGB", (64, 48), "white").convert(mode) if mode != "I;16" else Image.new(mode, (64, 48), 65535)
    pixels = to_pixels(picture)
    assert pixels.shape == (3, 48, 64)
    assert (pixels == 255).all()


def test_the_training_view_is_the_published_one():
    """Torchvision's v1 transforms, which the published program composes, with the same random numbers."""
    rng = np.random.default_rng(0)
    pixels = to_pixels(Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)))
    literal = transforms.Compose([transforms.RandomResizedCrop(32, antialias=True), transforms.RandomHorizontalFlip()])
    view = training_view(32)
    for seed in range(20):
        torch.manual_seed(seed)
        expected = literal(pixels)
        torch.manual_seed(seed)
        assert (view(pixels).int() - expected.int()).abs().max() <= 1  # v1 resizes in floating point


def test_preprocessing_from_a_pencil_and_in_plain_types():
    images = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    expected = [(1 - m) / s for m, s in zip(IMAGENET.mean, IMAGENET.std, strict=True)]
    torch.testing.assert_close(IMAGENET(images)[0, :, 0, 0], torch.tensor(expected))
    torch.testing.assert_close(IMAGENET(images), IMAGENET(torch.ones(1, 3, 4, 4)))
    assert IMAGENET.to_dict()["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("build", "advice"),
    [
        (lambda: EvaluationView(0, None), "must be positive"),
        (lambda: EvaluationView(200, 224), "does not fit"),
        (lambda: EvaluationView(None, 224)(photograph(100, 100)), "set `resize`"),
        (lambda: Preprocessing((0.5,), ()), "same length"),
        (lambda: Preprocessing(interpolation="nearest"), "'bilinear' or 'bicubic'"),
        (lambda: Preprocessing()(torch.zeros(3, 4, 4)), "must be \\(B, 3, H, W\\)"),
    ],
)
def test_impossible_views_are_refused(build, advice):
    with pytest.raises(ValueError, match=advice):
        build()


def test_sixteen_bits_become_eight_and_a_range_that_nobody_knows_is_refused():
    values = np.array([[0, 1000, 30_000, 65_535]])
    pixels = to_pixels(Image.fromarray(values.astype(np.uint16)))
    assert pixels[0].tolist() == [[0, 4, 117, 255]]
    for mode in (np.int32, np.float32):
        with pytest.raises(ValueError, match="A picture has 32-bit pixels"):
            to_pixels(Image.fromarray(values.astype(mode)))


def test_images_of_other_whole_numbers_are_refused():
    with pytest.raises(ValueError, match=r"must be uint8 or floats in \[0, 1\], got torch.int64"):
        IMAGENET(torch.zeros(1, 3, 4, 4, dtype=torch.long))
