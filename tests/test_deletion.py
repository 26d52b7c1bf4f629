"""Deletion and insertion curves: a classifier whose answer is known, infills by their definitions, random places beside."""

import pytest
import torch
from torch import nn

from cefam import FrozenClassifier
from cefam.attribution import deletion
from cefam.errors import CefamError


class Patch(nn.Module):
    """Says yes as strongly as the upper left quarter of the picture is bright."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 1, 1)
        with torch.no_grad():
            self.body.weight.fill_(1 / 3)
            self.body.bias.zero_()

    def forward(self, images):
        value = 8 * (self.body(images)[:, 0, :8, :8].mean(dim=(-2, -1)) - 0.5)
        return torch.stack([-value, value], dim=1)


@pytest.fixture(scope="module")
def classifier():
    return FrozenClassifier(Patch(), ["body"], input_size=(16, 16))


def scene():
    view = torch.zeros(1, 3, 16, 16)
    view[..., :8, :8] = 1
    region = torch.zeros(1, 16, 16)
    region[:, :8, :8] = torch.rand(8, 8) + 0.1
    return view, region


@pytest.mark.parametrize("infill", deletion.INFILLS)
def test_a_perfect_region_beats_random_places(classifier, infill):
    view, region = scene()
    found = deletion.deletion_and_insertion(classifier, view, region, torch.tensor([1]), infill)
    margin = 0 if infill == "blur" else 0.1  # a blur keeps the brightness that this classifier looks at
    assert found["deletion"] < found["deletion, random"] - margin
    assert found["insertion"] > found["insertion, random"] + margin


def test_the_curve_is_a_literal_one(classifier):
    view, region = scene()
    found = deletion.deletion_and_insertion(classifier, view, region, torch.tensor([1]))
    order = region[0].flatten().argsort(descending=True)
    total = 0.0
    for step in range(1, 11):
        count = round(step / 10 * 64)
        image = view[0].clone().flatten(1)
        left = torch.ones(256, dtype=torch.bool)
        left[order[:count]] = False
        image[:, ~left] = image[:, left].mean(dim=1, keepdim=True)
        total += float(classifier.probabilities(classifier(image.view(1, 3, 16, 16)).logits)[0, 1])
    assert float(found["deletion"]) == pytest.approx(total / 10, abs=1e-6)


def test_infills_by_their_definitions():
    images, hidden = torch.rand(2, 3, 20, 20), torch.zeros(2, 1, 20, 20, dtype=torch.bool)
    hidden[:, :, 5:9, 6:12] = True
    for fill in deletion.INFILLS.values():
        found = fill(images, hidden)
        kept = ~hidden.expand_as(images)
        assert torch.equal(found[kept], images[kept])
    ramp = torch.linspace(0, 1, 20).expand(1, 3, 20, 20).contiguous()
    smooth = deletion.filled_linearly(ramp, hidden[:1])
    assert (smooth - ramp).abs().max() < 0.06  # a ramp is its own mean of neighbors, but for the noise
    constant = torch.full((1, 3, 20, 20), 0.3)
    for name in ("mean", "blur"):
        torch.testing.assert_close(deletion.INFILLS[name](constant, hidden[:1]), constant)


def test_an_empty_region_and_a_wrong_infill(classifier):
    view, region = scene()
    found = deletion.deletion_and_insertion(classifier, view, torch.zeros_like(region), torch.tensor([1]))
    assert all(bool(value.isfinite().all()) for value in found.values())
    with pytest.raises(CefamError, match="Did you mean 'linear'"):
        deletion.deletion_and_insertion(classifier, view, region, torch.tensor([1]), "liner")
