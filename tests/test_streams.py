"""Random streams of the data: processes and epochs see other crops, a resumed run sees what it would have seen."""

import gc
import pickle
import random
import time
from collections import Counter
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from cefam.commands import main
from cefam.datamodules import ImagesData
from cefam.datasets import Manifest, read_shard
from cefam.datasets.batches import Batches
from cefam.datasets.handover import Views
from cefam.datasets.photographs import groups
from cefam.datasets.samplers import StripedSampler
from cefam.datasets.streams import ShardEpochs, mix
from tests.test_shards import prepared


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Twelve copies of one photograph, as files and as shards: whatever differs between two views is the crop."""
    folder = tmp_path_factory.mktemp("copies")
    ramp = np.arange(64 * 64).reshape(64, 64)
    picture = Image.fromarray(np.stack([ramp % 251, ramp // 64 * 3, ramp % 64 * 4], axis=-1).astype(np.uint8))
    (folder / "files" / "a").mkdir(parents=True)
    for index in range(12):
        picture.save(folder / "files" / "a" / f"{index}.png")
    source, target = str(folder / "files"), str(folder / "shards")
    assert (
        main(["prepare", "--kind", "images", "--source", source, "--folder", target, "--samples_per_shard", "3"]) == 0
    )
    return folder


def pretend(monkeypatch, rank, ranks):
    """Be one of several processes, as far as the data knows."""
    for module in ("streams", "samplers", "batches"):
        monkeypatch.setattr(f"cefam.datasets.{module}.world", lambda: (rank, ranks))


def views(monkeypatch, folder, rank, epoch=0, workers=0):
    """The views of one process in an epoch. The global stream is the same in every process: Lightning seeds all alike."""
    pretend(monkeypatch, rank, 2)
    torch.manual_seed(0)
    data = ImagesData(str(folder), str(folder), size=16, batch_size=3, num_workers=workers)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # as a Trainer does
    return torch.cat([batch["image"] for batch in loader])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["files", "shards"])
def test_no_two_crops_of_two_processes_and_two_epochs_are_the_same(monkeypatch, photographs, kind, workers):
    folder = photographs / kind
    every = torch.cat([views(monkeypatch, folder, rank, epoch, workers) for rank in (0, 1) for epoch in (0, 1)])
    assert len(every) == 24
    assert len(every.flatten(1).unique(dim=0)) == 24
    again = views(monkeypatch, folder, 1, 1, workers)
    assert torch.equal(again, every[-6:])


@pytest.mark.parametrize("kind", ["files", "shards"])
def test_data_workers_end_with_their_loader(photographs, kind):
    folder, others = str(photographs / kind), set(active_children())
    loader = ImagesData(folder, folder, size=16, batch_size=3, num_workers=2).train_dataloader()
    for _ in range(2):
        next(iter(loader))
        assert len(set(active_children()) - others) == 2
    gc.disable()  # without its help
    try:
        del loader
        assert set(active_children()) <= others
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["files", "shards"])
def test_crops_depend_on_neither_workers_nor_what_ran_before(monkeypatch, photographs, kind):
    one = views(monkeypatch, photographs / kind, 0, epoch=3)
    assert torch.equal(one, views(monkeypatch, photographs / kind, 0, epoch=3, workers=2))
    assert not torch.equal(one, views(monkeypatch, photographs / kind, 0, epoch=2))


@pytest.mark.parametrize("batch_size", [1, 5])
def test_views_that_wait_in_shared_memory_are_not_written_over(monkeypatch, photographs, tmp_path, batch_size):
    """Twelve shards of one photograph, in eight slots: views of several tasks make a batch, or several batches are made of one."""

    def slowly(*arguments):
        for part in mix(*arguments):
            time.sleep(0.03)  # workers are ahead as far as they may
            yield part

    monkeypatch.setattr("cefam.datasets.streams.MIXED", 2)
    monkeypatch.setattr("cefam.datasets.streams.mix", slowly)
    source, folder = f"--source={photographs / 'files'}", tmp_path / "shards"
    assert main(["prepare", "--kind=images", source, f"--folder={folder}", "--samples_per_shard=1"]) == 0
    found = []
    for workers in (0, 2):
        data = ImagesData(str(folder), str(folder), size=16, batch_size=batch_size, num_workers=workers)
        loader, batches = data.train_dataloader(), []
        for epoch in range(5):  # of the same workers
            loader.sampler.set_epoch(epoch)
            batches += [batch["image"] for batch in loader]
        found.append(torch.cat(batches))
    assert torch.equal(*found)
    assert len(found[0].flatten(1).unique(dim=0)) == 5 * (12 // batch_size) * batch_size


@given(
    counts=st.lists(st.integers(0, 5), max_size=12),
    depth=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_mixed_views_come_once_and_wait_for_less_than_so_many_tasks(counts, depth, seed):
    tasks = [[torch.tensor([task, view]) for view in range(count)] for task, count in enumerate(counts)]
    parts = [[tuple(view.tolist()) for view in part] for part in mix(tasks, depth, random.Random(seed))]
    assert sorted(view for part in parts for view in part) == [tuple(view.tolist()) for task in tasks for view in task]
    assert all(task <= taken < task + depth for taken, part in enumerate(parts[:-1]) for task, _ in part)
    assert all(task + depth > len(counts) for task, _ in parts[-1])


def test_views_are_mixed_over_all_tasks_that_may_wait():
    """A thousand tasks of ten: the waits are equally frequent, and no two views of a task stay together."""
    tasks = [[torch.tensor(task)] * 10 for task in range(1000)]
    parts = list(mix(tasks, 4, random.Random(0)))
    waits = Counter(taken - int(view) for taken, part in enumerate(parts[:-1]) for view in part)
    assert sorted(waits) == [0, 1, 2, 3]
    assert all(abs(count / 10_000 - 0.25) < 0.02 for count in waits.values())


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_an_epoch_of_shards_draws_every_photograph_about_once(monkeypatch, world, tmp_path, ranks):
    """24 photographs in 6 shards: as many batches for every process, and every shard once before any comes again."""
    source, folder = f"--source={world}/images/train", tmp_path / "shards"
    assert main(["prepare", "--kind=images", source, f"--folder={folder}", "--samples_per_shard=4"]) == 0
    orders = []
    for epoch in (0, 1):
        drawn = []
        for rank in range(ranks):
            pretend(monkeypatch, rank, ranks)
            views = Views(lambda pixels: pixels[:, 0, 70], torch.stack, 0)
            loader = ShardEpochs(str(folder), views, 2, 0, seed=5)
            loader.set_epoch(epoch)
            batches = [batch["image"] for batch in loader]
            assert [len(batch) for batch in batches] == [2] * (24 // (2 * ranks)) == [2] * len(loader)
            drawn += [tuple(view.tolist()) for batch in batches for view in batch]
        assert len(set(drawn)) == 24  # noise: no two photographs have this pixel alike
        orders.append(drawn)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_comes_once_whatever_the_processes_and_workers(monkeypatch, world, tmp_path, ranks, workers):
    """14 samples in 4 shards. A data worker that is not forked knows of no other process: the share is settled before."""
    folder = prepared(world, tmp_path)
    found = {}
    for rank in range(ranks):
        pretend(monkeypatch, rank, ranks)
        batches = Batches(str(folder), 3, names)
        pretend(monkeypatch, 0, 1)
        sent = pickle.loads(pickle.dumps(batches))
        found |= {batch["number"]: batch["ids"] for batch in DataLoader(sent, batch_size=None, num_workers=workers)}
    every = [sample.id for shard in Manifest.read(folder).placed(folder) for sample in read_shard(shard)]
    assert [found[number] for number in range(5)] == [every[:3], every[3:6], every[6:9], every[9:12], every[12:]]


def test_batches_that_are_done_are_left_out(world, tmp_path):
    folder = prepared(world, tmp_path)
    whole = {batch["number"]: batch["ids"] for batch in Batches(str(folder), 3, names)}
    rest = {batch["number"]: batch["ids"] for batch in Batches(str(folder), 3, names, done={0, 2, 3})}
    assert rest == {number: whole[number] for number in (1, 4)}


def names(samples):
    return {"ids": [sample.id for sample in samples]}


def test_photographs_to_cache_can_be_sent_to_a_worker(world):
    (group,) = groups(world / "images" / "val")
    unit = group.open()
    assert len(unit) == group.count
    assert torch.equal(pickle.loads(pickle.dumps(unit))[0](), unit[0]())


def test_a_process_without_a_row_to_validate_is_refused(monkeypatch):
    pretend(monkeypatch, 0, 2)
    assert len(StripedSampler(3, "cache")) == 2
    with pytest.raises(ValueError, match=r"cache holds 1 row\(s\) for 2 processes: use fewer devices"):
        StripedSampler(1, "cache")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["files", "shards"])
def test_views_that_are_resized_on_the_device_are_those_of_the_workers(photographs, kind, workers):
    folder = str(photographs / kind)
    found = []
    for on_device in (False, True):
        data = ImagesData(folder, folder, size=16, batch_size=3, num_workers=workers, resize_on_device=on_device)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(1)
        batches = [data.on_after_batch_transfer(batch, 0)["image"] for batch in loader]
        found.append(torch.cat(batches))
    assert found[0].shape == (12, 3, 16, 16)
    assert all(batch.is_contiguous() for batch in batches)  # not every classifier takes channels last
    assert int((found[0].int() - found[1].int()).abs().max()) <= 2
