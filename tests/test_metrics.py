"""EPG, NRA and Hit Rate: closed forms, a literal second derivation, properties, and merging over processes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_average_precision

from cefam.metrics import EnergyPointingGame, HitRate, NormalizedRegionAccuracy, PairMean
from cefam.metrics.functional import (
    area_bounds,
    average_precision,
    energy_pointing_game,
    iou_at_area,
    iou_curves,
    normalized_region_accuracy,
    pointing_game,
)


def literal_nra(region, mask, chance="published"):
    """The rule of the golden files, pixel by pixel, with the tie rule written as an average over orders."""
    values, inside = region.flatten().tolist(), mask.flatten().tolist()
    total, size = len(values), sum(inside)
    step = total // 100
    order = sorted(range(total), key=lambda i: -values[i])
    expected, position = [], 0
    while position < total:  # runs of equal values contribute evenly
        end = position
        while end < total and values[order[end]] == values[order[position]]:
            end += 1
        share = sum(inside[i] for i in order[position:end]) / (end - position)
        expected += [share] * (end - position)
        position = end
    weights = []
    for rank in range(total):
        if step == 0 or rank < step:
            weights.append(1 / total)
        else:
            weights.append(1 / 100 if rank % step == 0 else 0.0)

    def area(shares):
        positives, result = 0.0, 0.0
        for rank in range(total):
            positives += shares[rank]
            result += weights[rank] * positives / ((rank + 1 - positives) + size)
        return result

    ideal = sum(w * (r / size if r < size else size / r) for r, w in enumerate(weights))
    predicted = area(expected)
    if chance == "published":
        low = size / (2 * total)
        return max(predicted - low, 0) / (ideal - low)
    low = area([size / total] * total)
    return (predicted - low) / (ideal - low)


def random_case(seed, side=13, levels=None, share=0.2):
    generator = torch.Generator().manual_seed(seed)
    region = torch.rand(1, side, side, generator=generator)
    if levels:
        region = (region * levels).floor()
    mask = torch.rand(1, side, side, generator=generator) < share
    mask[0, 0, 0], mask[0, 0, 1] = True, False
    return region, mask


@pytest.mark.parametrize("chance", ["published", "constant"])
@pytest.mark.parametrize("levels", [None, 1, 2, 7])
@pytest.mark.parametrize("side", [5, 9, 10, 13, 24])
def test_nra_is_the_literal_rule(side, levels, chance):
    for seed in range(3):
        region, mask = random_case(seed, side, levels)
        expected = literal_nra(region[0], mask[0], chance)
        assert normalized_region_accuracy(region, mask, chance).item() == pytest.approx(expected, abs=1e-12)


def test_true_positives_of_the_worked_tie_example():
    region = torch.zeros(1, 10, 10)
    region[0, :2, :5] = torch.tensor([[5.0, 4, 4, 3, 3], [3, 2, 2, 1, 1]])
    mask = torch.zeros(1, 10, 10, dtype=torch.bool)
    mask[0, :3, :4] = True
    iou = iou_curves(region, mask).predicted[0, :12]
    taken = torch.arange(1.0, 13).double()
    true_positives = iou * (taken + 12) / (1 + iou)  # from IoU = TP / (n - TP + |M|)
    expected = [1, 2, 3, 3.6667, 4.3333, 5, 6, 7, 7.5, 8, 8.0444, 8.0889]
    torch.testing.assert_close(true_positives, torch.tensor(expected).double(), atol=5e-5, rtol=0)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_ideal_ranking_has_the_known_area(share):
    mask = torch.zeros(1, 200, 200, dtype=torch.bool)
    mask.view(-1)[: int(share * 40_000)] = True
    # integral of r / m up to m, and of m / r after: m (1/2 - ln m); the published grid is a coarse Riemann sum of it
    assert area_bounds(mask).high.item() == pytest.approx(share * (0.5 - math.log(share)), abs=6e-3)


def test_random_maps_score_above_zero_as_published_and_zero_calibrated():
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(200, 56, 56, dtype=torch.bool)
    mask[:, 10:30, 20:40] = True
    region = torch.rand(200, 56, 56, generator=generator)
    assert 0.1 < normalized_region_accuracy(region, mask).mean() < 0.16
    assert abs(normalized_region_accuracy(region, mask, "constant").mean()) < 0.005


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_a_constant_map_is_finite_and_worth_nothing(value):
    _, mask = random_case(1)
    region = torch.full((1, 13, 13), value)
    assert normalized_region_accuracy(region, mask, "constant").item() == pytest.approx(0, abs=1e-12)
    assert math.isfinite(normalized_region_accuracy(region, mask).item())
    assert energy_pointing_game(region, mask).item() == 0
    raw = energy_pointing_game(region, mask, normalize=None).item()
    assert raw == pytest.approx(mask.double().mean().item() if value else 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_in_half_precision_are_measured_as_the_same_numbers_in_single(dtype):
    generator = torch.Generator().manual_seed(0)
    region = (torch.rand(3, 112, 112, generator=generator) * 50).to(dtype)  # their sum is beyond float16
    mask = torch.rand(3, 112, 112, generator=generator) < 0.3
    for function in (energy_pointing_game, normalized_region_accuracy):
        torch.testing.assert_close(function(region, mask), function(region.float(), mask), rtol=0, atol=0)


def test_empty_and_full_masks_are_undefined_and_counted():
    region = torch.rand(3, 12, 12)
    mask = torch.zeros(3, 12, 12, dtype=torch.bool)
    mask[1] = True
    mask[2, 3:5] = True
    for function in (energy_pointing_game, normalized_region_accuracy):
        assert function(region, mask).isnan().tolist() == [True, True, False]
    for metric in (NormalizedRegionAccuracy(["a"]), EnergyPointingGame(["a"]), HitRate(["a"])):
        metric.update(region, mask, category=torch.zeros(3, dtype=torch.long))
        assert metric.undefined.tolist() == [2, 0]
        assert metric.count.tolist() == [1, 0]
        assert not metric.compute()["a"].isnan()


def test_epg_from_a_pencil():
    region = torch.tensor([[[1.0, 3.0], [0.0, 4.0]]])
    mask = torch.tensor([[[False, True], [False, False]]])
    assert energy_pointing_game(region, mask, normalize=None).item() == pytest.approx(3 / 8)
    assert energy_pointing_game(region + 1, mask, normalize=None).item() == pytest.approx(4 / 12)
    assert energy_pointing_game(region + 1, mask).item() == pytest.approx(3 / 8)  # the shift is taken out


@pytest.mark.parametrize("function", [energy_pointing_game, normalized_region_accuracy, iou_curves])
def test_bad_arguments_are_refused_with_advice(function):
    with pytest.raises(ValueError, match="resize the region to the mask"):
        function(torch.rand(1, 4, 4), torch.ones(1, 5, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="compare with the label"):
        function(torch.rand(1, 4, 4), torch.ones(1, 4, 4))


def test_a_region_that_is_not_a_number_has_no_score():
    region, mask = random_case(0)
    region[0, 5, 5] = torch.nan
    assert normalized_region_accuracy(region, mask).isnan().all()


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([2, 3, 50]), share=st.floats(0.02, 0.9))
def test_properties_of_nra(seed, levels, share):
    region, mask = random_case(seed, 12, levels, share)
    value = normalized_region_accuracy(region, mask)
    permutation = torch.randperm(144, generator=torch.Generator().manual_seed(seed))
    shuffled = [t.flatten()[permutation].view(1, 12, 12) for t in (region, mask)]
    assert normalized_region_accuracy(*shuffled).item() == pytest.approx(value.item(), abs=1e-12)  # no raster order
    assert normalized_region_accuracy(region.exp() * 7, mask).item() == pytest.approx(
        value.item(), abs=1e-12
    )  # ranks only
    best = normalized_region_accuracy(mask.float() + region / 1e3, mask)
    assert value <= best + 1e-12
    mirrored = normalized_region_accuracy(-region, mask, "constant") + normalized_region_accuracy(
        region, mask, "constant"
    )
    assert mirrored.item() <= 1 + 1e-9


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), cut=st.integers(0, 40))
def test_any_split_over_processes_gives_the_same_average(seed, cut):
    generator = torch.Generator().manual_seed(seed)
    value = torch.rand(40, generator=generator).double()
    value[value > 0.9] = torch.nan
    category = torch.randint(0, 3, (40,), generator=generator)
    expressible = torch.rand(40, generator=generator) > 0.2
    whole, parts = HitRate(["a", "b", "c"]), [HitRate(["a", "b", "c"]) for _ in range(2)]
    whole.update(value=value, category=category, expressible=expressible)
    for part, rows in zip(parts, (slice(0, cut), slice(cut, 40)), strict=True):
        part.update(value=value[rows], category=category[rows], expressible=expressible[rows])
    for name in ("total", "count", "undefined", "missing"):
        merged = getattr(parts[0], name) + getattr(parts[1], name)
        torch.testing.assert_close(merged, getattr(whole, name), rtol=0, atol=1e-12)
        setattr(parts[0], name, merged)
    parts[0]._update_count = 1
    for name, mean in whole.compute().items():
        assert parts[0].compute()[name].item() == pytest.approx(mean.item(), abs=1e-12)


def test_hit_rate_counts_what_a_method_cannot_express_as_a_miss_and_averages_leave_it_out():
    mask = torch.zeros(2, 12, 12, dtype=torch.bool)
    mask[:, 2:5, 2:5] = True
    region, expressible = mask.float(), torch.tensor([True, False])
    region[1] = torch.nan  # whatever a method writes where it has nothing to say
    hit, nra = HitRate(), NormalizedRegionAccuracy()
    for metric in (hit, nra):
        metric.update(region, mask, torch.zeros(2, dtype=torch.long), expressible)
    assert hit.compute()["object"].item() == 0.5
    assert nra.compute()["object"].item() == pytest.approx(normalized_region_accuracy(region, mask)[0].item())
    assert nra.missing.tolist()[0] == 1


def test_the_mean_is_over_categories_not_pairs():
    metric = PairMean(["a", "b"])
    metric.update(value=torch.tensor([1.0, 1.0, 1.0, 0.0]).double(), category=torch.tensor([0, 0, 0, 1]))
    assert metric.compute()["mean"].item() == 0.5


def test_sums_stay_in_double_precision():
    metric = PairMean(["a"]).half()
    assert metric.total.dtype == torch.double


def test_an_epoch_without_pairs_has_no_mean():
    assert all(value.isnan() for value in PairMean(["a"]).compute().values())


def test_masks_may_come_from_numpy():
    mask = torch.from_numpy(np.eye(112, dtype=bool))[None]
    assert normalized_region_accuracy(mask.float(), mask).item() > 0.99


def test_the_pointing_game_is_whether_the_largest_value_is_inside():
    region, mask = torch.zeros(3, 2, 2), torch.tensor([[[True, False], [False, False]]]).expand(3, -1, -1)
    region[0, 0, 0], region[1, 1, 1] = 1, 1
    assert pointing_game(region, mask).tolist() == [1, 0, 0.25]  # four equal values, one inside


@given(st.integers(0, 2**16), st.integers(1, 6))
def test_iou_at_the_masks_area_is_the_literal_one_in_expectation(seed, levels):
    random = torch.Generator().manual_seed(seed)
    region = torch.randint(0, levels, (1, 6, 6), generator=random).float()
    mask = torch.rand(1, 6, 6, generator=random) < 0.4
    size = int(mask.sum())
    if not 0 < size < 36:
        return
    values, inside = region.flatten(), mask.flatten()
    cut = values.sort(descending=True).values[size - 1]
    above, equal = values > cut, values == cut
    found = (above & inside).sum() + (size - above.sum()) * (equal & inside).sum() / equal.sum()
    assert iou_at_area(region, mask)[0].item() == pytest.approx(float(found / (2 * size - found)))


@given(st.integers(0, 2**16), st.integers(1, 8))
def test_average_precision_is_torchmetrics(seed, levels):
    random = torch.Generator().manual_seed(seed)
    region = torch.randint(0, levels, (4, 5, 7), generator=random).float() / levels
    mask = torch.rand(4, 5, 7, generator=random) < 0.3
    mask[:, 0, 0], mask[:, 0, 1] = True, False
    found = average_precision(region, mask)
    for row in range(4):
        wanted = binary_average_precision(region[row].flatten(), mask[row].flatten().long())
        assert found[row].item() == pytest.approx(float(wanted), abs=1e-6)


@pytest.mark.parametrize("function", [pointing_game, iou_at_area, average_precision])
def test_secondary_metrics_of_empty_and_full_masks_are_undefined(function):
    region = torch.rand(2, 4, 4)
    mask = torch.stack([torch.zeros(4, 4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)])
    assert function(region, mask).isnan().all()
    assert function(region[:0], mask[:0]).shape == (0,)
