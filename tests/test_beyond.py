"""The sum of the stages: the literal second derivation, and what the smoothing may and may not do."""

import pytest
import torch
import torch.nn.functional as F

from cefam.methods import Activated, BeyondRegions
from cefam.methods.beyond import CELLS, alike
from tests.test_explain import RAGGED, explainer_of
from tests.test_grad_cam import bench_of

KINDS = ["resnet", "vit", "swin", "bypass"]


def literal(explainer, image, concept):
    """The signed sum of one pair, by autograd through the translator alone, stage by stage and channel by channel."""
    output = explainer.classifier(image[None])
    pooled = [a.float().mean(dim=(-2, -1)).requires_grad_() for a in output.activations]
    text = explainer.concepts.require_embeddings()[concept]
    score = explainer.concepts.logit_scale * F.cosine_similarity(explainer.translator(pooled), text[None])
    total = torch.zeros(CELLS, CELLS)
    for activation, gradient in zip(output.activations, torch.autograd.grad(score.sum(), pooled), strict=True):
        stage = torch.zeros(activation.shape[-2:])
        for channel in range(activation.shape[1]):
            stage += gradient[0, channel] * activation[0, channel]
        total += F.interpolate(stage[None, None], (CELLS, CELLS), mode="bilinear", align_corners=False)[0, 0]
    return total


@pytest.mark.parametrize("kind", ["resnet", "bypass"])
def test_the_plain_sum_is_the_literal_one(kind):
    explainer, images = explainer_of(kind)
    activated = Activated(images, explainer.classifier(images))
    method = BeyondRegions(bench_of(explainer), add="signed", scales=[1.0], guide=False, sharpen=0)
    found = method.regions(activated, RAGGED, (CELLS, CELLS), 4)
    assert found.maps.shape == (len(RAGGED), 1, CELLS, CELLS)
    for row, (image, concept) in enumerate(zip(RAGGED.image.tolist(), RAGGED.concept.tolist(), strict=True)):
        wanted = literal(explainer, images[image], concept)
        wanted = (wanted / wanted.std()).relu()
        torch.testing.assert_close(found.maps[row, 0], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("add", ["signed", "relu", "normalized"])
def test_any_classifier_has_one_finite_map_per_pair(kind, add):
    explainer, images = explainer_of(kind)
    activated = Activated(images, explainer.classifier(images))
    found = BeyondRegions(bench_of(explainer), add=add, scales=[1.0]).regions(activated, RAGGED, (20, 24), 4)
    assert found.maps.shape == (len(RAGGED), 1, 20, 24)
    assert found.maps.isfinite().all()
    assert found.valid.all()
    assert found.stage.unique().tolist() == [-1]


def test_sharpening_keeps_the_ranks():
    explainer, images = explainer_of("resnet")
    activated = Activated(images, explainer.classifier(images))
    maps = [
        BeyondRegions(bench_of(explainer), scales=[1.0], sharpen=sharpen)
        .regions(activated, RAGGED, (CELLS, CELLS), 1)
        .maps.flatten(1)
        for sharpen in (1.0, 2.0)
    ]
    assert torch.equal(maps[0].argsort(dim=1, stable=True)[:, -50:], maps[1].argsort(dim=1, stable=True)[:, -50:])


def test_smoothing_stays_within_what_looks_alike():
    """A picture of two halves: a map on one side does not reach the other, and a constant map stays as it is."""
    image = torch.zeros(1, 3, 64, 64)
    image[..., 32:] = 1
    affinity = alike(image, (16, 16))
    torch.testing.assert_close(affinity.sum(dim=2), torch.ones(1, 256))
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    smoothed = (affinity[0] @ left.flatten()).view(16, 16)
    assert smoothed[:, :8].min() > 0.99
    assert smoothed[:, 8:].max() < 0.01
    grey = alike(torch.full((1, 3, 64, 64), 0.5), (16, 16))
    assert grey.isfinite().all()


def test_one_picture_does_not_touch_another():
    explainer, images = explainer_of("resnet")
    method = BeyondRegions(bench_of(explainer))
    whole = method.regions(Activated(images, explainer.classifier(images)), RAGGED, (20, 20), 1).maps
    mine = RAGGED.image == 0
    alone = RAGGED[mine.nonzero().squeeze(1)]
    found = method.regions(Activated(images[:1], explainer.classifier(images[:1])), alone, (20, 20), 1).maps
    torch.testing.assert_close(found, whole[mine], rtol=1e-3, atol=1e-4)
