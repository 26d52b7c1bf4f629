"""What torchmetrics asks of its own metrics, asked of ours: collections, wrappers, pickling, other precisions, two processes."""

import pickle
import socket
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from torch import multiprocessing
from torchmetrics import MetricCollection
from torchmetrics.wrappers import BootStrapper, MetricTracker

from cefam.metrics import EnergyPointingGame, HitRate, NormalizedRegionAccuracy, functional
from cefam.metrics.functional import Bounds, area_bounds
from cefam.metrics.modular import FormulaMean
from cefam.metrics.table import METRICS, Measured
from tests.commands import ROOT

CATEGORIES = ("object", "part")
MAKERS = {
    "epg": EnergyPointingGame,
    "epg, raw": lambda *args, **kwargs: EnergyPointingGame(*args, normalize=None, **kwargs),
    "nra": NormalizedRegionAccuracy,
    "calibrated": lambda *args, **kwargs: NormalizedRegionAccuracy(*args, chance="constant", **kwargs),
    "hit": HitRate,
    "low hit": lambda *args, **kwargs: HitRate(*args, threshold=0.1, **kwargs),
    "pointing": lambda *args, **kwargs: FormulaMean(*(args or (CATEGORIES,)), functional.pointing_game, **kwargs),
    "iou": lambda *args, **kwargs: FormulaMean(*(args or (CATEGORIES,)), functional.iou_at_area, **kwargs),
}


def pairs(count=24, seed=0, share=0.25):
    """Regions that look at their masks, more or less; one mask is empty, one full, one region all zero."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(count, 20, 20, generator=random) < share
    mask[0], mask[1] = False, True
    region = torch.rand(count, 20, 20, generator=random) + mask * torch.rand(count, 1, 1, generator=random)
    region[2] = 0
    return {
        "region": region,
        "mask": mask,
        "category": torch.randint(0, 2, (count,), generator=random),
        "expressible": torch.rand(count, generator=random) > 0.2,
    }


def rows(given, where):
    return {name: value[where] for name, value in given.items()}


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=1e-12, equal_nan=True, msg=name)


FIRST = {
    "an empty batch": lambda: rows(pairs(), slice(0)),
    "an empty mask": lambda: rows(pairs(), slice(0, 1)),
    "full masks": lambda: rows(pairs(), slice(1, 2)),
    "nothing expressible": lambda: {**rows(pairs(), slice(3, 6)), "expressible": torch.zeros(3, dtype=torch.bool)},
    "misses of every metric": lambda: {**(given := rows(pairs(), slice(3, 6))), "region": -given["mask"].float()},
    "usual pairs": lambda: rows(pairs(), slice(3, 9)),
}


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("groups", [True, False])
def test_in_a_collection_each_metric_gives_what_it_gives_alone(first, groups):
    alone = {name: make(CATEGORIES) for name, make in MAKERS.items()}
    together = MetricCollection({name: make(CATEGORIES) for name, make in MAKERS.items()}, compute_groups=groups)
    for batch in (FIRST[first](), pairs(seed=1), pairs(seed=2)):
        for metric in alone.values():
            metric.update(**batch)
        together.update(**batch)
    found = together.compute()
    for name, metric in alone.items():
        same(
            metric.compute(),
            {key.removeprefix(f"{name}_"): v for key, v in found.items() if key.startswith(f"{name}_")},
        )
    means = {round(float(metric.compute()["mean"]), 6) for metric in alone.values()}
    assert len(means) == len(alone)  # else merged sums would not be seen


def test_metrics_of_other_processes_keep_their_own_sums(tmp_path):
    """Numbers that count instances would begin anew there."""
    code = "import pickle, sys; from cefam.metrics import HitRate; pickle.dump(HitRate(('object', 'part')), sys.stdout.buffer)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)
    together = MetricCollection({"hit": pickle.loads(done.stdout), "nra": NormalizedRegionAccuracy(CATEGORIES)})
    for batch in (FIRST["an empty batch"](), pairs()):
        together.update(**batch)
    alone = NormalizedRegionAccuracy(CATEGORIES)
    alone.update(**pairs())
    assert float(together.compute()["nra_mean"]) == pytest.approx(float(alone.compute()["mean"]), abs=1e-12)
    assert len(together.compute_groups) == 2


def test_a_collection_works_after_a_reset_and_as_a_copy():
    together = MetricCollection({name: make(CATEGORIES) for name, make in MAKERS.items()})
    together.update(**FIRST["an empty batch"]())
    together.reset()
    copied = together.clone(prefix="val/")
    for each in (together, copied):
        each.update(**pairs())
    found = copied.compute()
    same({f"val/{name}": value for name, value in together.compute().items()}, found)


@pytest.mark.parametrize("name", MAKERS)
def test_what_torchmetrics_tests_of_every_metric(name):
    metric = MAKERS[name](CATEGORIES)
    for constant in ("is_differentiable", "higher_is_better"):
        with pytest.raises(RuntimeError, match="Can't change const"):
            setattr(metric, constant, None)
    assert metric.state_dict() == {}
    batches = [pairs(seed=1), FIRST["an empty batch"](), pairs(seed=2)]
    for batch in batches:
        alone = MAKERS[name](CATEGORIES)
        alone.update(**batch)
        same(metric(**batch), alone.compute())  # forward gives the batch's value, and adds it
    whole = MAKERS[name](CATEGORIES)
    whole.update(**{key: torch.cat([batch[key] for batch in batches]) for key in batches[0]})
    same(metric.compute(), whole.compute())
    for copied in (pickle.loads(pickle.dumps(metric)), deepcopy(metric), metric.clone()):
        same(copied.compute(), whole.compute())
        copied.update(**batches[0])  # has sums of its own
    same(metric.compute(), whole.compute())
    other = MAKERS[name](CATEGORIES)
    other.update(**batches[0])
    other.merge_state(metric)
    assert int((other.count + other.undefined + other.missing).sum()) > int((whole.count + whole.undefined).sum())
    assert hash(metric) != hash(other)
    metric.reset()
    assert all(value.isnan() for value in metric.compute().values())


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double])
def test_regions_in_other_precisions_give_nearly_the_same(name, dtype):
    given = pairs()
    given["region"] = (given["region"] * 64).round() / 64  # the same number in each of them
    single, other = MAKERS[name](CATEGORIES), MAKERS[name](CATEGORIES).to(dtype)
    single.update(**given)
    other.update(**{**given, "region": given["region"].to(dtype)})
    assert other.total.dtype == torch.double
    for key, value in single.compute().items():
        assert float(other.compute()[key]) == pytest.approx(float(value), abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", MAKERS)
def test_wrappers_of_torchmetrics_take_them(name):
    tracker = MetricTracker(MAKERS[name](CATEGORIES, average="macro"), maximize=True)
    many = MetricTracker(MetricCollection({"one": MAKERS[name](CATEGORIES)}), maximize=True)
    means = []
    for batch in (pairs(seed=1), FIRST["an empty batch"](), rows(pairs(seed=3), slice(3, 8))):
        metric = MAKERS[name](CATEGORIES)
        metric.update(**batch)
        means.append(float(metric.compute()["mean"]))
        for each in (tracker, many):
            each.increment()
            each.update(**batch)
    assert tracker.compute_all().tolist() == pytest.approx(means, nan_ok=True)
    assert many.compute_all()["mean"].tolist() == pytest.approx(means, nan_ok=True)
    drawn = BootStrapper(MAKERS[name](CATEGORIES, average="macro"), num_bootstraps=40)
    torch.manual_seed(0)
    drawn.update(*rows(pairs(), slice(3, None)).values())
    metric = MAKERS[name](CATEGORIES)
    metric.update(**rows(pairs(), slice(3, None)))
    found = drawn.compute()
    assert abs(float(found["mean"] - metric.compute()["mean"])) <= float(found["std"])


@pytest.mark.parametrize("average", [None, "macro"])
def test_values_are_plotted(average):
    metric = NormalizedRegionAccuracy(CATEGORIES, average=average)
    metric.update(**pairs())
    _, axis = metric.plot()
    assert axis.lines or axis.collections or axis.containers
    metric.plot([metric.compute(), metric.compute()])
    with pytest.raises(ValueError, match="average must be 'macro' or None, got 'micro'"):
        NormalizedRegionAccuracy(average="micro")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("name", [*MAKERS, "auprc"])
def test_a_region_that_is_not_finite_is_undefined_in_every_metric(name, bad, everywhere):
    make = {**MAKERS, "auprc": lambda categories: FormulaMean(categories, functional.average_precision)}[name]
    given = rows(pairs(), slice(3, 5))
    given["expressible"][:] = True
    given["category"] = torch.tensor([0, 1])
    given["region"][0, 0 if not everywhere else slice(None), 0 if not everywhere else slice(None)] = bad
    metric = make(CATEGORIES)
    metric.update(**given)
    assert metric.undefined.tolist() == [1, 0, 0]
    assert metric.compute()["object"].isnan()
    assert metric.compute()["part"].isfinite()


@pytest.mark.parametrize("preset", ["published", "paper"])
def test_class_and_table_give_one_number(preset):
    """EPG of a region whose NRA is 0 is 0 in the published program, wherever it is measured."""
    given = rows(pairs(), slice(3, None))
    given["region"][:8] = -given["mask"][:8].float()
    given["expressible"][:] = True
    bounds = area_bounds(given["mask"])
    measured = Measured(given["region"], given["mask"], Bounds(*bounds), preset)
    for name, row in METRICS.items():
        metric = (
            EnergyPointingGame(CATEGORIES, normalize=None)
            if (name, preset) == ("epg", "paper")
            else row.metric(CATEGORIES)
        )
        metric.update(**given)
        values = row.formula(measured)
        means = [values[given["category"] == category].mean() for category in (0, 1)]
        assert float(metric.compute()["mean"]) == pytest.approx(float(sum(means) / 2), abs=1e-12), name


def _sync(rank, world, port, found):
    """Each process sees every n-th pair, the last one none at first; torchmetrics adds the states up."""
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        together = MetricCollection({name: make(CATEGORIES) for name, make in MAKERS.items()})
        if rank == world - 1:
            together.update(**FIRST["an empty batch"]())
        for seed in (0, 1):
            together.update(**rows(pairs(25, seed), slice(rank, None, world)))
        found.put((rank, {name: float(value) for name, value in together.compute().items()}))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.processes
def test_two_processes_give_what_one_gives():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    started = [context.Process(target=_sync, args=(rank, 2, port, found)) for rank in range(2)]
    for process in started:
        process.start()
    results = dict(found.get(timeout=120) for _ in started)
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    whole = MetricCollection({name: make(CATEGORIES) for name, make in MAKERS.items()})
    for seed in (0, 1):
        whole.update(**pairs(25, seed))
    expected = {name: float(value) for name, value in whole.compute().items()}
    for result in results.values():
        assert result == pytest.approx(expected, abs=1e-12, nan_ok=True)
