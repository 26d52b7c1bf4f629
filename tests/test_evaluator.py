"""The evaluator on regions whose values are known, and the chance rows."""

import math

import numpy as np
import pytest
import torch

from cefam import ConceptPairs, ConceptSet
from cefam.classifier import ClassifierOutput
from cefam.concepts import Concept
from cefam.evaluator import RegionBatch, RegionEvaluator
from cefam.methods import CenterRegions, LuminanceRegions, RandomChannelRegions, RandomMapRegions
from cefam.methods.base import Candidates
from cefam.methods.chance import hashed_uniform
from cefam.metrics.functional import energy_pointing_game, normalized_region_accuracy
from cefam.report import records as record_files
from cefam.report.bootstrap import differences

CONCEPTS = ConceptSet(
    (
        Concept(3, "wing", ("part", "object"), "a wing"),
        Concept(9, "red", ("color",), "red"),
        Concept(4, "sky", ("object",), "sky"),
        Concept(5, "bedroom", ("scene",), "bedroom"),
    )
)
NOTHING = ClassifierOutput(torch.zeros(2, 1), [torch.rand(2, 6, 5, 5), torch.rand(2, 8, 3, 3)], [])


def batch_of():
    masks = torch.zeros(3, 20, 20, dtype=torch.int32)
    masks[0, 2:8, 2:8] = 3
    masks[0, 12:18, 10:16] = 4
    masks[1, :, :10] = 9
    masks[2, 5:9, 5:15] = 3
    masks[2, 0, 0] = 77  # not in the concept set
    return RegionBatch(
        image=torch.randint(0, 255, (2, 3, 40, 40), dtype=torch.uint8),
        ids=["a", "b"],
        masks=masks,
        mask_image=torch.tensor([0, 1, 1]),
        mask_category=["object", "color", "object"],
        pair_mask=torch.tensor([0, 0, 1, 2, 2]),
        pair_label=torch.tensor([3, 4, 9, 3, 77]),
    )


class Given:
    """Regions that are handed in: (P, Q, H, W), some of them invalid."""

    def __init__(self, maps, valid=None):
        self.maps = maps
        self.valid = torch.ones(maps.shape[:2], dtype=torch.bool) if valid is None else valid

    def regions(self, images, activations, pairs, size, num_candidates):
        order = torch.arange(self.maps.shape[1], 0, -1).expand(len(pairs), -1).double()
        rows = (pairs.keys().unsqueeze(1) == self.keys.unsqueeze(0)).long().argmax(dim=1)
        return Candidates(self.maps[rows], order, order.long(), self.valid[rows])


def evaluate(method, preset="published", **options):
    evaluator = RegionEvaluator({"given": method}, CONCEPTS, preset=preset, **options)
    batch = batch_of()
    masks = batch.pair_mask[:4]
    method.keys = evaluator._keys(batch, masks, torch.tensor([0, 0, 0, 1]), batch.pair_label[:4])
    return evaluator, evaluator.evaluate(batch, NOTHING)


def boolean_masks():
    batch = batch_of()
    return batch.masks[batch.pair_mask[:4]] == batch.pair_label[:4].view(-1, 1, 1)


@pytest.mark.parametrize("memory_limit", [1000.0, 1e-6])
def test_top1_takes_the_first_candidate_and_the_oracle_the_best(memory_limit):
    maps = torch.rand(4, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    maps[1, 2] += boolean_masks()[1] * 5
    _, found = evaluate(Given(maps), memory_limit=memory_limit)
    masks, values = boolean_masks(), found.values["given"]
    nra = torch.stack([normalized_region_accuracy(maps[:, q], masks) for q in range(3)], dim=1)
    epg = torch.stack([energy_pointing_game(maps[:, q], masks) for q in range(3)], dim=1)
    best = nra.argmax(dim=1)
    torch.testing.assert_close(values["top1"].nra, nra[:, 0])
    torch.testing.assert_close(values["oracle"].nra, nra.max(dim=1).values)
    torch.testing.assert_close(values["oracle"].epg, epg[torch.arange(4), best])
    calibrated = normalized_region_accuracy(maps[:, 0], masks, "constant")
    torch.testing.assert_close(values["top1"].nra_calibrated, calibrated)
    assert values["oracle"].hit.tolist() == (nra.max(dim=1).values > 0.5).double().tolist()
    assert best[1] == 2
    assert found.outside == 1
    assert found.pairs.image.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("held", [0.5, math.nan, math.inf])
def test_what_an_invalid_map_holds_changes_nothing(held):
    maps = torch.rand(4, 2, 20, 20, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[True, True], [False, False], [True, False], [True, True]])
    clean = evaluate(Given(maps, valid))[1].values["given"]
    found = evaluate(Given(maps.masked_fill(~valid[..., None, None], held), valid))[1].values["given"]
    for protocol in ("top1", "oracle"):
        for name in ("nra", "epg", "hit", "nra_calibrated"):
            wanted = getattr(clean[protocol], name)
            assert torch.equal(getattr(found[protocol], name), wanted)
            assert wanted.isfinite().all()  # undefined is a matter of the mask alone
        assert found[protocol].expressible.tolist() == [True, False, True, True]


def test_a_valid_region_that_is_not_finite_is_refused():
    maps = torch.rand(4, 2, 20, 20)
    maps[2, 1, 3, 3] = math.nan
    with pytest.raises(ValueError, match="given gave a region that holds values which are not finite"):
        evaluate(Given(maps))


def test_a_mask_keeps_its_place_where_the_first_one_has_no_concept_of_the_set():
    without_color = ConceptSet(tuple(c for c in CONCEPTS.concepts if c.number != 9))
    evaluator = RegionEvaluator({"map": RandomMapRegions()}, without_color)
    found = evaluator.evaluate(batch_of(), NOTHING)
    assert found.label.tolist() == [3, 4, 3]
    assert found.place.tolist() == [0, 0, 1]  # image "b": the color mask comes first, and has no pair here
    rows = list(record_files.rows_of(found, ["a", "b"], evaluator.categories, without_color))
    assert [row[:3] for row in rows[:3]] == [["a", 0, 3], ["a", 0, 4], ["b", 1, 3]]
    whole = RegionEvaluator({"map": RandomMapRegions()}, CONCEPTS).evaluate(batch_of(), NOTHING)
    assert found.pairs.keys().tolist() == whole.pairs.keys()[[0, 1, 3]].tolist()


def test_the_published_category_is_the_labels_first_and_the_papers_is_the_masks():
    evaluator, found = evaluate(Given(torch.rand(4, 1, 20, 20)))
    assert [evaluator.categories[c] for c in found.category.tolist()] == ["part", "object", "color", "part"]
    evaluator, found = evaluate(Given(torch.rand(4, 1, 20, 20)), preset="paper")
    assert [evaluator.categories[c] for c in found.category.tolist()] == ["object", "object", "color", "object"]
    assert "scene" not in evaluator.categories


def test_a_map_that_misses_has_no_energy_as_published_and_some_in_the_paper():
    maps = (~boolean_masks()).float().unsqueeze(1) + boolean_masks().float().unsqueeze(1) * 0.5
    maps[:, :, 19] = 0  # the lowest value lies elsewhere, so that min-max leaves the mask some energy
    assert (energy_pointing_game(maps[:, 0], boolean_masks())[:2] > 0).all()
    published = evaluate(Given(maps))[1].values["given"]["top1"]
    paper = evaluate(Given(maps), preset="paper")[1].values["given"]["top1"]
    assert published.nra[0] == 0
    assert published.epg[0] == 0
    inside = int(boolean_masks()[0].sum())
    outside = 400 - 20 - inside
    assert paper.epg[0].item() == pytest.approx(0.5 * inside / (0.5 * inside + outside))


def test_a_concept_without_candidates_is_inexpressible():
    valid = torch.ones(4, 2, dtype=torch.bool)
    valid[0] = False
    valid[1, 0] = False
    _, found = evaluate(Given(torch.rand(4, 2, 20, 20), valid))
    values = found.values["given"]
    assert values["top1"].expressible.tolist() == [False, True, True, True]
    assert values["top1"].stage[1] == 1  # the second candidate, since the first is invalid


def test_chance_rows_depend_on_the_pair_alone():
    methods = {"map": RandomMapRegions(), "channel": RandomChannelRegions()}
    batch = batch_of()
    whole = RegionEvaluator(methods, CONCEPTS).evaluate(batch, NOTHING)
    second = RegionBatch(
        batch.image[1:], ["b"], batch.masks[1:], torch.tensor([0, 0]), ["color", "object"],
        torch.tensor([0, 1]), torch.tensor([9, 3]),
    )  # fmt: skip
    output = ClassifierOutput(NOTHING.logits[1:], [a[1:] for a in NOTHING.activations], [])
    alone = RegionEvaluator(methods, CONCEPTS, memory_limit=1e-6).evaluate(second, output)
    for name in methods:
        for protocol in ("top1", "oracle"):
            torch.testing.assert_close(whole.values[name][protocol].nra[2:], alone.values[name][protocol].nra)


def test_hashed_numbers_are_uniform_and_independent():
    values = hashed_uniform(torch.arange(200), 500)
    assert values.min() >= 0
    assert values.max() < 1
    assert values.mean().item() == pytest.approx(0.5, abs=0.01)
    assert values.var().item() == pytest.approx(1 / 12, abs=0.002)
    assert abs(torch.corrcoef(values[:, :2].t())[0, 1]) < 0.2
    assert abs(torch.corrcoef(values[:2])[0, 1]) < 0.15
    assert torch.equal(hashed_uniform(torch.tensor([5]), 3), hashed_uniform(torch.arange(9), 3)[5:6])
    assert not torch.equal(hashed_uniform(torch.tensor([5]), 3, seed=1), hashed_uniform(torch.tensor([5]), 3))


PAIRS = ConceptPairs(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]))


def test_one_random_channel_per_stage():
    found = RandomChannelRegions().regions(batch_of().image, NOTHING, PAIRS, (5, 5), 4)
    assert found.maps.shape == (3, 2, 5, 5)
    assert found.stage.sort(dim=1).values.tolist() == [[0, 1]] * 3
    for pair in range(3):
        first = found.maps[pair, (found.stage[pair] == 0).nonzero().item()]
        channels = NOTHING.activations[0][PAIRS.image[pair]]
        assert any(torch.equal(first, channel) for channel in channels)
    one = RandomChannelRegions().regions(batch_of().image, NOTHING.activations, PAIRS, (5, 5), 1)
    assert torch.equal(one.maps[:, 0], found.maps[:, 0])


def test_center_and_luminance():
    images = torch.zeros(2, 3, 40, 40, dtype=torch.uint8)
    images[1, 1] = 255
    center = CenterRegions().regions(images, NOTHING, PAIRS, (21, 31), 4)
    assert center.maps.shape == (3, 1, 21, 31)
    assert center.maps[0, 0].flatten().argmax() == 10 * 31 + 15
    light = LuminanceRegions().regions(images, NOTHING, PAIRS, (20, 20), 4)
    assert light.maps[1, 0, 3, 3].item() == pytest.approx(0.587)
    assert light.maps[1, 1, 3, 3].item() == pytest.approx(1 - 0.587)
    assert light.maps[0, 0].abs().sum() == 0


def test_a_random_map_is_not_better_than_chance():
    mask = torch.zeros(400, 30, 30, dtype=torch.bool)
    mask[:, 5:15, 8:20] = True
    pairs = ConceptPairs(torch.zeros(400).long(), torch.arange(400))
    maps = RandomMapRegions().regions(batch_of().image, NOTHING, pairs, (30, 30), 1).maps[:, 0]
    calibrated = normalized_region_accuracy(maps, mask, "constant")
    assert abs(calibrated.mean()) < 3 * calibrated.std() / math.sqrt(400)


def test_a_batch_without_pairs_gives_none():
    batch = batch_of()
    empty = RegionBatch(
        batch.image, batch.ids, batch.masks[:0], batch.mask_image[:0], [], batch.pair_mask[:0], batch.pair_label[:0]
    )
    found = RegionEvaluator({"map": RandomMapRegions()}, CONCEPTS).evaluate(empty, NOTHING)
    assert len(found.pairs) == 0
    assert found.values["map"]["top1"].nra.shape == (0,)


def test_a_difference_is_that_of_the_tables_averages_and_its_interval_is_paired():
    """Two methods that differ by exactly 0.1 on every pair: no draw can give another difference."""
    random = np.random.default_rng(0)
    records = [
        {
            "image": f"{image}",
            "category": category,
            "method": method,
            "protocol": "top1",
            "nra": base + extra,
            "expressible": True,
        }
        for image in range(8)
        for category in ("object", "color", "color")
        for base in [random.random()]
        for method, extra in (("ours", 0.1), ("other", 0.0))
    ]
    (found,) = differences(records, repeats=50)
    assert (found.protocol, found.method, found.other) == ("top1", "ours", "other")
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert differences(records[:2]) == []


def test_the_interval_covers_the_standard_error():
    """One pair per image and one category: the bootstrap of a mean, whose standard error is known."""
    random = np.random.default_rng(1)
    values = random.normal(0.2, 1, 400)
    common = {"category": "object", "protocol": "oracle", "expressible": True}
    records = [
        {"image": str(i), "method": method, "nra": value, **common}
        for i, v in enumerate(values)
        for method, value in (("ours", v), ("other", 0.0))
    ]
    (found,) = differences(records)
    error = values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(
        (found.value - 1.96 * error, found.value + 1.96 * error), abs=0.15 * error
    )


def test_a_metric_more_is_a_column_more(monkeypatch):
    """As the contributor's page says: its name in METRICS, its value in MethodValues, and records take it from there."""
    more = (*record_files.METRICS, "extra")
    values = (*more, *record_files.VALUES[len(record_files.METRICS) :])
    columns = [c for c in record_files.COLUMNS if c not in record_files.VALUES]
    columns[columns.index("stage") : columns.index("stage")] = values
    for name, value in (("METRICS", more), ("VALUES", values), ("COLUMNS", tuple(columns))):
        monkeypatch.setattr(record_files, name, value)
    evaluator, found = evaluate(Given(boolean_masks()[:, None].float()))
    for protocols in found.values.values():
        for measured in protocols.values():
            object.__setattr__(measured, "extra", measured.nra * 2 + 7)
    rows = list(record_files.rows_of(found, ["a", "b"], evaluator.categories, CONCEPTS))
    assert len(rows) == 8
    for row in rows:
        record = dict(zip(columns, row, strict=True))
        assert record["extra"] == pytest.approx(record["nra"] * 2 + 7)
        assert (record["stage"], record["expressible"], record["method"]) == (1, 1, "given")
        assert 0 <= record["auc_low"] < record["auc_high"] <= 1
