"""The evaluator on regions whose values are known, and the chance rows."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from cefam import ConceptPairs, ConceptSet
from cefam.concepts.categories import IGNORED
from cefam.concepts.sets import Concept
from cefam.evaluation.evaluator import RegionEvaluator
from cefam.methods import (
    Activated,
    CenterRegions,
    LuminanceRegions,
    RandomChannelRegions,
    RandomMapRegions,
    RegionMethod,
)
from cefam.methods.chance import hashed_uniform
from cefam.metrics import METRICS, MetricRow, PairMean
from cefam.metrics.functional import energy_pointing_game, normalized_region_accuracy
from cefam.pairs import Candidates, RegionBatch
from cefam.report import records as record_files
from cefam.report import tables
from cefam.report.bootstrap import differences
from cefam.report.sums import Sums
from cefam.settings import MethodSettings
from cefam.towers.stages import ClassifierOutput

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


class Given(RegionMethod):
    """Regions that are handed in: (P, Q, H, W), some of them invalid."""

    def __init__(self, maps, valid=None):
        self.maps = maps
        self.valid = torch.ones(maps.shape[:2], dtype=torch.bool) if valid is None else valid

    def regions(self, activated, pairs, size, num_candidates):
        order = torch.arange(self.maps.shape[1], 0, -1).expand(len(pairs), -1).double()
        rows = (pairs.keys().unsqueeze(1) == self.keys.unsqueeze(0)).long().argmax(dim=1)
        return Candidates(self.maps[rows], order, order.long(), self.valid[rows])


def evaluate(method, keep=(), **settings):
    evaluator = RegionEvaluator({"given": method}, CONCEPTS, settings=MethodSettings().changed(**settings))
    batch = batch_of()
    found = evaluator.find(batch)
    method.keys = found.pairs.keys()
    return evaluator, evaluator.evaluate(batch, NOTHING, found, keep)


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
    torch.testing.assert_close(values["top1"].metrics["nra"], nra[:, 0])
    torch.testing.assert_close(values["oracle"].metrics["nra"], nra.max(dim=1).values)
    torch.testing.assert_close(values["oracle"].metrics["epg"], epg[torch.arange(4), best])
    calibrated = normalized_region_accuracy(maps[:, 0], masks, "constant")
    torch.testing.assert_close(values["top1"].metrics["nra_calibrated"], calibrated)
    assert values["oracle"].metrics["hit"].tolist() == (nra.max(dim=1).values > 0.5).double().tolist()
    assert best[1] == 2
    assert found.found.outside == 1
    assert found.found.pairs.image.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("held", [0.5, math.nan, math.inf])
def test_what_an_invalid_map_holds_changes_nothing(held):
    maps = torch.rand(4, 2, 20, 20, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[True, True], [False, False], [True, False], [True, True]])
    clean = evaluate(Given(maps, valid))[1].values["given"]
    found = evaluate(Given(maps.masked_fill(~valid[..., None, None], held), valid))[1].values["given"]
    for protocol in ("top1", "oracle"):
        for name in ("nra", "epg", "hit", "nra_calibrated"):
            wanted = clean[protocol].metrics[name]
            assert torch.equal(found[protocol].metrics[name], wanted)
            assert wanted.isfinite().all()  # undefined is a matter of the mask alone
        assert found[protocol].expressible.tolist() == [True, False, True, True]


def test_a_valid_region_that_is_not_finite_is_refused():
    maps = torch.rand(4, 2, 20, 20)
    maps[2, 1, 3, 3] = math.nan
    with pytest.raises(ValueError, match="given gave a region with values that are not finite"):
        evaluate(Given(maps))


def test_a_mask_keeps_its_place_where_the_first_one_has_no_concept_of_the_set():
    without_color = ConceptSet(tuple(c for c in CONCEPTS.concepts if c.number != 9))
    evaluator = RegionEvaluator({"map": RandomMapRegions()}, without_color)
    found = evaluator.evaluate(batch_of(), NOTHING)
    assert found.found.label.tolist() == [3, 4, 3]
    assert found.found.place.tolist() == [0, 0, 1]  # image "b": the color mask comes first, and has no pair here
    rows = list(record_files.rows_of(found, ["a", "b"], evaluator.categories, without_color))
    assert [row[:3] for row in rows[:3]] == [["a", 0, 3], ["a", 0, 4], ["b", 1, 3]]
    whole = RegionEvaluator({"map": RandomMapRegions()}, CONCEPTS).evaluate(batch_of(), NOTHING)
    assert found.found.pairs.keys().tolist() == whole.found.pairs.keys()[[0, 1, 3]].tolist()


def test_the_published_category_is_the_labels_first_and_the_papers_is_the_masks():
    evaluator, found = evaluate(Given(torch.rand(4, 1, 20, 20)))
    assert [evaluator.categories[c] for c in found.found.category.tolist()] == ["part", "object", "color", "part"]
    evaluator, found = evaluate(Given(torch.rand(4, 1, 20, 20)), preset="paper")
    assert [evaluator.categories[c] for c in found.found.category.tolist()] == ["object", "object", "color", "object"]
    assert "scene" not in evaluator.categories


def test_a_map_that_misses_has_no_energy_as_published_and_some_in_the_paper():
    maps = (~boolean_masks()).float().unsqueeze(1) + boolean_masks().float().unsqueeze(1) * 0.5
    maps[:, :, 19] = 0  # the lowest value lies elsewhere, so that min-max leaves the mask some energy
    assert (energy_pointing_game(maps[:, 0], boolean_masks())[:2] > 0).all()
    published = evaluate(Given(maps))[1].values["given"]["top1"]
    paper = evaluate(Given(maps), preset="paper")[1].values["given"]["top1"]
    assert published.metrics["nra"][0] == 0
    assert published.metrics["epg"][0] == 0
    inside = int(boolean_masks()[0].sum())
    outside = 400 - 20 - inside
    assert paper.metrics["epg"][0].item() == pytest.approx(0.5 * inside / (0.5 * inside + outside))


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
    small = MethodSettings(memory_limit=1e-6)
    alone = RegionEvaluator(methods, CONCEPTS, settings=small).evaluate(second, output)
    for name in methods:
        for protocol in ("top1", "oracle"):
            one, other = (found.values[name][protocol].metrics["nra"] for found in (whole, alone))
            torch.testing.assert_close(one[2:], other)


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
    found = RandomChannelRegions().regions(Activated(batch_of().image, NOTHING), PAIRS, (5, 5), 4)
    assert found.maps.shape == (3, 2, 5, 5)
    assert found.stage.sort(dim=1).values.tolist() == [[0, 1]] * 3
    for pair in range(3):
        first = found.maps[pair, (found.stage[pair] == 0).nonzero().item()]
        channels = NOTHING.activations[0][PAIRS.image[pair]]
        assert any(torch.equal(first, channel) for channel in channels)
    one = RandomChannelRegions().regions(Activated(batch_of().image, NOTHING), PAIRS, (5, 5), 1)
    assert torch.equal(one.maps[:, 0], found.maps[:, 0])


def test_center_and_luminance():
    images = torch.zeros(2, 3, 40, 40, dtype=torch.uint8)
    images[1, 1] = 255
    center = CenterRegions().regions(Activated(images, NOTHING), PAIRS, (21, 31), 4)
    assert center.maps.shape == (3, 1, 21, 31)
    assert center.maps[0, 0].flatten().argmax() == 10 * 31 + 15
    light = LuminanceRegions().regions(Activated(images, NOTHING), PAIRS, (20, 20), 4)
    assert light.maps[1, 0, 3, 3].item() == pytest.approx(0.587)
    assert light.maps[1, 1, 3, 3].item() == pytest.approx(1 - 0.587)
    assert light.maps[0, 0].abs().sum() == 0


def test_a_random_map_is_not_better_than_chance():
    mask = torch.zeros(400, 30, 30, dtype=torch.bool)
    mask[:, 5:15, 8:20] = True
    pairs = ConceptPairs(torch.zeros(400).long(), torch.arange(400))
    maps = RandomMapRegions().regions(Activated(batch_of().image, NOTHING), pairs, (30, 30), 1).maps[:, 0]
    calibrated = normalized_region_accuracy(maps, mask, "constant")
    assert abs(calibrated.mean()) < 3 * calibrated.std() / math.sqrt(400)


def test_a_batch_without_pairs_gives_none():
    batch = batch_of()
    empty = RegionBatch(
        batch.image, batch.ids, batch.masks[:0], batch.mask_image[:0], [], batch.pair_mask[:0], batch.pair_label[:0]
    )
    found = RegionEvaluator({"map": RandomMapRegions()}, CONCEPTS).evaluate(empty, NOTHING)
    assert len(found.found.pairs) == 0
    assert found.values["map"]["top1"].metrics["nra"].shape == (0,)


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
    (found,) = differences(Sums.of_records(records), repeats=50)
    assert (found.protocol, found.method, found.other) == ("top1", "ours", "other")
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert differences(Sums.of_records(records[:2])) == []


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
    (found,) = differences(Sums.of_records(records))
    error = values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(
        (found.value - 1.96 * error, found.value + 1.96 * error), abs=0.15 * error
    )


def test_a_metric_more_is_one_row_of_the_table(monkeypatch):
    """As the contributor's page says: a formula, a state and a row of METRICS; records, tables and loggers follow."""

    class Doubled(PairMean):
        def formula(self, region, mask):
            return 2 * normalized_region_accuracy(region, mask) + 7

    extra = MetricRow("Extra", lambda measured: 2 * measured.nra + 7, Doubled)
    monkeypatch.setitem(METRICS, "extra", extra)
    maps = torch.rand(4, 1, 20, 20, generator=torch.Generator().manual_seed(2))
    evaluator, found = evaluate(Given(maps))
    rows = list(record_files.rows_of(found, ["a", "b"], evaluator.categories, CONCEPTS))
    assert len(rows) == 8
    lines = [dict(zip(record_files.columns(), row, strict=True)) for row in rows]
    for record in lines:
        assert float(record["extra"]) == pytest.approx(float(record["nra"]) * 2 + 7)
        assert (record["stage"], record["expressible"], record["method"]) == (1, 1, "given")
        assert 0 <= float(record["auc_low"]) < float(record["auc_high"]) <= 1
    numbers = [{**record, **{name: float(record[name]) for name in record_files.values()}} for record in lines]
    table = tables.summarize(Sums.of_records(numbers), evaluator.categories, 4)
    assert "Extra" in tables.to_text(table)
    metric = extra.metric(evaluator.categories)
    metric.update(maps[:, 0], boolean_masks(), found.found.category)
    assert table.rows[0].means["extra"][-1] == pytest.approx(metric.compute()["mean"].item())


def test_kept_candidates_are_those_that_were_measured():
    """Over chunks, too: the contact sheet draws them."""
    maps = torch.rand(4, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    for limit in (1000.0, 1e-6):
        _, found = evaluate(Given(maps), keep=[1, 3], memory_limit=limit)
        kept = found.kept["given"]
        assert torch.equal(kept.candidates.maps, maps[[1, 3]])
        for protocol in ("top1", "oracle"):
            best = kept.nra.gather(1, kept.choice[protocol].unsqueeze(1)).squeeze(1)
            assert torch.equal(best, found.values["given"][protocol].metrics["nra"][[1, 3]])


def test_ignored_pixels_are_neither_inside_nor_outside():
    """The value is that of the pixels that count, taken out by hand."""
    batch = batch_of()
    ignored = torch.zeros(20, 20, dtype=torch.bool)
    ignored[:, 15:] = True
    masks = batch.masks.masked_fill(ignored, IGNORED)
    batch = dataclasses.replace(batch, masks=masks, has_ignored=True)
    maps = torch.rand(4, 2, 20, 20, generator=torch.Generator().manual_seed(3))
    evaluator = RegionEvaluator({"given": Given(maps)}, CONCEPTS)
    labeled = evaluator.find(batch)
    evaluator.methods["given"].keys = labeled.pairs.keys()
    values = evaluator.evaluate(batch, NOTHING, labeled).values["given"]["top1"].metrics
    inside = masks[labeled.mask] == labeled.label.view(-1, 1, 1)
    for pair in range(4):
        region, mask = (value[~ignored].view(1, 1, -1) for value in (maps[pair, 0], inside[pair]))
        nra = normalized_region_accuracy(region, mask)
        assert values["nra"][pair].item() == pytest.approx(nra.item(), abs=1e-12)
        if nra > 0:
            assert values["epg"][pair].item() == pytest.approx(energy_pointing_game(region, mask).item(), abs=1e-9)
