"""The sum of the stages: the literal second derivation, what windows and smoothing may and may not do, and the controls."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cefam import Explainer, Trained
from cefam.attribution.fused import resolution, usual_scales, windows
from cefam.attribution.smoothing import GRID, alike, sharpened
from cefam.errors import CefamError
from cefam.evaluation.controls import others
from cefam.evaluation.evaluator import RegionEvaluator
from cefam.methods import (
    Activated,
    BeyondRegions,
    CEFAMRegions,
    GuidedRegions,
    LuminanceRegions,
    MethodContext,
)
from cefam.methods.masked import MaskedShards
from cefam.metrics.functional import normalized_region_accuracy
from cefam.pairs import ConceptPairs, RegionBatch
from cefam.towers.stages import ClassifierOutput
from examples.beyond.reference import FittedDirections
from tests.test_explain import RAGGED, explainer_of
from tests.test_grad_cam import bench_of

KINDS = ["resnet", "vit", "swin", "bypass"]
PLAIN = {"scales": [1.0], "guide": False, "compete": False, "sharpen": False}
COUNTS = {"resnet": 16 / 24, "bypass": 16 / 24}  # cells of the finest stage, of half of the map's


def activated_of(kind):
    explainer, images = explainer_of(kind)
    return explainer, Activated(images, explainer.classifier(images))


def literal(explainer, image, concept):
    """The sum of one pair, by autograd through the translator alone, stage by stage and channel by channel."""
    output = explainer.classifier(image[None])
    where = [torch.zeros(1, a.shape[1], requires_grad=True) for a in output.activations]
    text = explainer.concepts.require_embeddings()[concept]
    score = explainer.concepts.logit_scale * F.cosine_similarity(explainer.translator(where), text[None])
    total = torch.zeros(GRID)
    for activation, gradient in zip(output.activations, torch.autograd.grad(score.sum(), where), strict=True):
        stage = torch.zeros(activation.shape[-2:])
        for channel in range(activation.shape[1]):
            stage += gradient[0, channel] * activation[0, channel]
        seen = F.interpolate(stage[None, None], GRID, mode="bilinear", align_corners=False)[0, 0]
        total += torch.where(seen > 0, seen, seen / 2)  # what speaks against a concept counts half
    return total


@pytest.mark.parametrize("kind", ["resnet", "bypass"])
def test_the_plain_sum_is_the_literal_one(kind):
    explainer, activated = activated_of(kind)
    found = BeyondRegions(bench_of(explainer), **PLAIN).regions(activated, RAGGED, GRID, 4)
    assert found.maps.shape == (len(RAGGED), 1, *GRID)
    for row, (image, concept) in enumerate(zip(RAGGED.image.tolist(), RAGGED.concept.tolist(), strict=True)):
        wanted = literal(explainer, activated.images[image], concept)
        wanted = (wanted / wanted.std()).relu() * COUNTS[kind]
        torch.testing.assert_close(found.maps[row, 0], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_any_classifier_has_one_finite_map_per_pair(kind):
    explainer, activated = activated_of(kind)
    found = BeyondRegions(bench_of(explainer)).regions(activated, RAGGED, (20, 24), 4)
    assert found.maps.shape == (len(RAGGED), 1, 20, 24)
    assert found.maps.isfinite().all()
    assert found.valid.all()
    assert found.stage.unique().tolist() == [-1]


@given(st.floats(1.0, 4.0))
def test_windows_cover_the_side_and_have_its_length(scale):
    found = windows(scale)
    assert found[0][0] == 0
    assert found[-1][1] == pytest.approx(1)
    assert all(high - low == pytest.approx(1 / scale) for low, high in found)
    assert all(after[0] <= before[1] + 1e-9 for before, after in pairwise(found))


def test_windows_are_seen_enlarged_joined_and_added():
    """Literally: four windows of 40 pixels (of 64) and 30 cells (of 48), averaged by how near a cell is to a window's middle.

    The whole view has 16 cells of 24 along the side and counts 2/3, windows have 16 x 1.6 and count whole.
    """
    explainer, activated = activated_of("resnet")
    found = (
        BeyondRegions(bench_of(explainer), **{**PLAIN, "scales": [1.0, 1.6]})
        .regions(activated, RAGGED, GRID, 1)
        .maps[:, 0]
    )
    whole = BeyondRegions(bench_of(explainer), **PLAIN)
    row, image = 0, int(RAGGED.image[0])
    total, trust = torch.zeros(GRID), torch.zeros(GRID)
    for top in (0, 24):
        for left in (0, 24):
            view = activated.images[image, :, top : top + 40, left : left + 40][None]
            view = F.interpolate(view, (64, 64), mode="bilinear", align_corners=False)
            part = torch.zeros(30, 30)
            for stage, activation in enumerate(explainer.classifier(view).activations):
                direction = whole.maps.directions[stage][RAGGED.concept[row]]
                seen = torch.einsum("c,chw->hw", direction, activation[0])
                seen = F.interpolate(seen[None, None], (30, 30), mode="bilinear", align_corners=False)[0, 0]
                part += torch.where(seen > 0, seen, seen / 2)
            for y in range(30):
                for x in range(30):
                    near = (1 - abs((y + 0.5) / 15 - 1)) * (1 - abs((x + 0.5) / 15 - 1)) + 0.05
                    total[top * 3 // 4 + y, left * 3 // 4 + x] += near * part[y, x]
                    trust[top * 3 // 4 + y, left * 3 // 4 + x] += near
    coarse, wanted = literal(explainer, activated.images[image], RAGGED.concept[row]), total / trust
    wanted = COUNTS["resnet"] * coarse / coarse.std() + wanted / wanted.std()
    torch.testing.assert_close(found[row], wanted.relu(), rtol=1e-3, atol=1e-4)


def test_a_map_loses_what_its_category_shares_as_far_as_views_agree():
    """Literally: correlations of what is specific, from numpy, and the soft maximum of each cell by itself."""
    explainer, activated = activated_of("resnet")
    options = {**PLAIN, "scales": [1.0, 1.6]}
    names = [concept.category for concept in explainer.concepts.concepts]
    row, image, concept = 0, int(RAGGED.image[0]), int(RAGGED.concept[0])
    rivals = [n for n, name in enumerate(names) if name == names[concept]]
    assert len(rivals) >= 3
    pairs = ConceptPairs(torch.full((len(rivals),), image), torch.tensor(rivals))
    plain = BeyondRegions(bench_of(explainer), **options).maps
    views = [view.numpy().astype(float) for view in plain._views(activated, pairs)]

    def unit(maps):
        return [(each - each.mean()) / each.std() for each in maps]

    def most(maps):
        return np.array(
            [[2 * math.log(sum(math.exp(m[y, x] / 2) for m in maps)) for x in range(48)] for y in range(48)]
        )

    specific = [[each - most(unit(view)) for each in unit(view)] for view in views]
    agreed = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(*specific, strict=True)])
    total = unit(views[0] + views[1])
    wanted = total[rivals.index(concept)] - max(agreed, 0) * most(total)
    maps = BeyondRegions(bench_of(explainer), **{**options, "compete": True}).maps
    torch.testing.assert_close(
        maps.total(activated, RAGGED)[row].double(), torch.from_numpy(wanted), rtol=1e-3, atol=1e-3
    )


def test_a_concept_alone_in_its_place_keeps_its_map():
    explainer, activated = activated_of("resnet")
    alone = dataclasses.replace(
        explainer.concepts, concepts=explainer.concepts.concepts[:1], embeddings=explainer.concepts.embeddings[:1]
    )
    one = Explainer(explainer.classifier, explainer.translator, alone)
    pairs = ConceptPairs(torch.tensor([0, 1]), torch.tensor([0, 0]))
    with_rivals, without = (
        BeyondRegions(bench_of(one), compete=compete).regions(activated, pairs, GRID, 1).maps.flatten(1)
        for compete in (True, False)
    )
    for a, b in zip(with_rivals, without, strict=True):
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.99


@pytest.mark.parametrize(
    ("cells", "scale", "counts"),
    [
        ([56, 28, 14, 7], 1.7, [1.0, 1.0]),
        ([48, 24], 1.7, [1.0, 1.0]),
        ([24, 12], 2.0, [1.0, 1.0]),
        ([12], 4.0, [1 / 2, 1.0]),
        ([16, 8], 3.0, [2 / 3, 1.0]),
        ([3], 4.0, [1 / 8, 1 / 2]),
    ],
)
def test_coarse_stages_see_smaller_windows_that_count_more(cells, scale, counts):
    activations = [torch.zeros(1, 2, side, side + 1) for side in cells]
    activated = Activated(torch.zeros(1, 3, 96, 96), ClassifierOutput(torch.zeros(1, 3), activations, []))
    assert usual_scales(activated) == (1.0, pytest.approx(scale))
    assert [resolution(activated, each) for each in (1.0, scale)] == pytest.approx(counts)


@pytest.mark.parametrize("scales", [[], [0.5], [1.0, 0.9]])
def test_a_view_is_not_made_smaller(scales):
    explainer, _ = explainer_of("resnet")
    with pytest.raises(CefamError, match="`scales` says how much the view is enlarged"):
        BeyondRegions(bench_of(explainer), scales=scales)


def test_an_explainer_follows_a_translator_that_is_trained_further():
    explainer, images = explainer_of("resnet")
    explainer.explain(images, top_k=1)
    with torch.no_grad():
        for parameter in explainer.translator.parameters():
            parameter.data.mul_(1.3).add_(0.02)
    fresh = Explainer(explainer.classifier, explainer.translator, explainer.concepts, settings=explainer.settings)
    for one, other in zip(explainer.explain(images, top_k=2), fresh.explain(images, top_k=2), strict=True):
        for part, expected in zip(one, other, strict=True):
            torch.testing.assert_close(part.maps[-1], expected.maps[-1])


def test_a_regression_needs_a_probe():
    explainer, _ = explainer_of("resnet")
    with pytest.raises(CefamError, match="BeyondRegions needs a probe"):
        BeyondRegions(bench_of(explainer), regression=True)


def test_the_reference_is_fitted_to_masks(trained, prepared):
    """Literally: cells as rows, and one more row per channel that draws to zero; solved by numpy."""
    context, shards = MethodContext(Trained.read(trained / "artefact")), str(prepared / "broden")
    method = FittedDirections(context, shards)
    photographs = MaskedShards(context.classifier, context.concepts, shards)
    x, y = (torch.cat(part) for part in zip(*method._cells(photographs), strict=True))
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    rows = torch.cat([x, (0.01 * x.square().sum(dim=0)).sqrt().diag()])
    found = torch.cat(method.maps.directions, dim=1).double()
    common = y.square().sum(dim=0).topk(3).indices
    wanted = torch.cat([y[:, common], torch.zeros(x.shape[1], 3)])
    solved = torch.from_numpy(np.linalg.lstsq(rows.numpy(), wanted.numpy(), rcond=None)[0].T)
    for concept, each in zip(common.tolist(), solved, strict=True):
        torch.testing.assert_close(found[concept], each, rtol=1e-2, atol=1e-3 * float(each.abs().max()))


def test_sharpening_keeps_the_ranks():
    explainer, activated = activated_of("resnet")
    plain, sharp = (
        BeyondRegions(bench_of(explainer), scales=[1.0], guide=False, sharpen=sharpen)
        .regions(activated, RAGGED, (70, 90), 1)
        .maps.flatten(1)
        for sharpen in (False, True)
    )
    best = [maps.topk(50, dim=1).indices.sort(dim=1).values for maps in (plain, sharp)]
    assert torch.equal(*best)


@pytest.mark.parametrize("kind", ["resnet", "sigmoid"])
def test_a_page_shows_what_is_above_the_mean_as_bright_as_the_concept_is_present(kind):
    """Also where every S is below 0, as with SigLIP's bias: the map of what a concept has is not empty."""
    explainer, images = explainer_of("resnet")
    if kind == "sigmoid":
        concepts = dataclasses.replace(explainer.concepts, probability="sigmoid", logit_bias=-1000.0)
        explainer = Explainer(explainer.classifier, explainer.translator, concepts)
    method = BeyondRegions(bench_of(explainer))
    (found,) = explainer.explain(images[:1], top_k=len(explainer.concepts), method="beyond")
    numbers = [explainer.concepts.numbers.index(part.concept.number) for part in found]
    pairs = ConceptPairs(torch.zeros(len(numbers), dtype=torch.long), torch.tensor(numbers))
    sharp = method.regions(Activated(images, explainer.classifier(images)), pairs, GRID, 1).maps[:, 0]
    assert {part.present for part in found} == {True, False}
    for part, row in zip(found, sharp, strict=True):
        region = part.maps[-1]
        wanted = (row.log() - row.log().mean()).relu()  # sharpened: exp(4 x z-score), up to a factor
        torch.testing.assert_close(region / region.sum(), wanted / wanted.sum(), rtol=1e-3, atol=1e-6)
        above = part.similarity - found.baseline
        assert float(region.max()) * region.numel() == pytest.approx(max(above, 1), rel=1e-4)


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


def test_smoothing_tells_textures_apart():
    """Both halves have the same mean color; one is striped."""
    image = torch.full((1, 3, 96, 96), 0.5)
    image[..., ::2, :48] = 1.0
    image[..., 1::2, :48] = 0.0
    affinity = alike(image, (16, 16)).view(16, 16, 8, 8)
    across, within = affinity[8, 5, 4, 5], affinity[8, 5, 4, 1]  # as far away, on the other side and on its own
    assert within > 2 * across


def test_one_picture_does_not_touch_another():
    explainer, activated = activated_of("resnet")
    method = BeyondRegions(bench_of(explainer))
    whole = method.regions(activated, RAGGED, (20, 20), 1).maps
    mine = RAGGED.image == 0
    alone = RAGGED[mine.nonzero().squeeze(1)]
    images = activated.images[:1]
    found = method.regions(Activated(images, explainer.classifier(images)), alone, (20, 20), 1).maps
    torch.testing.assert_close(found, whole[mine], rtol=1e-3, atol=1e-4)


def test_a_guided_map_is_the_methods_own_smoothed_and_sharpened():
    explainer, activated = activated_of("resnet")
    found = GuidedRegions(bench_of(explainer), LuminanceRegions).regions(activated, RAGGED, GRID, 4)
    plain = LuminanceRegions().regions(activated, RAGGED, GRID, 1).maps[:, 0]
    affinity = alike(activated.images, GRID)
    for row, image in enumerate(RAGGED.image.tolist()):
        wanted = plain[row]
        for _ in range(2):
            wanted = (affinity[image] @ F.avg_pool2d(wanted[None, None], 2).flatten()).view(GRID)
        wanted = (4 * (wanted - wanted.mean()) / wanted.std()).exp()
        region = found.maps[row, 0]
        torch.testing.assert_close(region / region.max(), wanted / wanted.max(), rtol=1e-3, atol=1e-4)


def test_sharpening_a_single_peak_stays_finite_and_in_order():
    maps = torch.zeros(2, *GRID)
    maps[0, 3, 4] = 1.0
    maps[1].flatten()[:] = torch.arange(48 * 48) / 1e9
    maps[1, 0, 0] = 1.0
    found = sharpened(maps)
    assert torch.isfinite(found).all()
    assert found[0].argmax() == maps[0].argmax()
    assert found[1].argmax() == maps[1].argmax()
    assert (found > 0).all()


def test_specific_is_nra_minus_that_of_three_others_and_present_of_one_in_the_photograph():
    """Literally, by measuring every other concept's region alone."""
    explainer, activated = activated_of("resnet")
    categories = [concept.category for concept in explainer.concepts.concepts]
    numbers = explainer.concepts.numbers
    masks = torch.zeros(2, 16, 16, dtype=torch.long)
    here = [n for n, category in enumerate(categories) if category == categories[0]][1:3]  # number 0 is no label
    masks[0, :8], masks[0, 8:], masks[1, 4:12, 4:12] = numbers[here[0]], numbers[here[1]], numbers[here[0]]
    pairs = (torch.tensor([0, 0, 1]), torch.tensor([numbers[here[0]], numbers[here[1]], numbers[here[0]]]))
    batch = RegionBatch(activated.images[:2], ["a", "b"], masks, torch.arange(2), [categories[0]] * 2, *pairs)
    method = CEFAMRegions(bench_of(explainer))
    evaluator = RegionEvaluator({"m": method}, explainer.concepts, 1, explainer.settings, ["specific", "present"])
    output = explainer.classifier(batch.image)
    values = evaluator.evaluate(batch, output).values["m"]["top1"].metrics
    assert values["present"].isnan().tolist() == [False, False, True]  # the second photograph has no other one
    wanted = others(explainer.concepts, evaluator.find(batch).pairs)
    assert all(categories[n] == categories[0] and n != here[row % 2] for row in range(3) for n in wanted[row, :3])
    assert wanted[:, 3].tolist() == [here[1], here[0], -1]
    for row, (image, label) in enumerate(zip([0, 0, 1], pairs[1].tolist(), strict=True)):

        def nra(concept):
            one = ConceptPairs(torch.tensor([image]), torch.tensor([concept]))  # noqa: B023
            region = method.regions(Activated(batch.image, output), one, (16, 16), 1).maps[:, 0]
            return float(normalized_region_accuracy(region, masks[image : image + 1] == label))  # noqa: B023

        own = nra(here[row % 2])
        mean = sum(nra(int(n)) for n in wanted[row, :3]) / 3
        assert float(values["specific"][row]) == pytest.approx(own - mean, abs=1e-6)
        if row < 2:
            assert float(values["present"][row]) == pytest.approx(own - nra(here[1 - row]), abs=1e-6)
