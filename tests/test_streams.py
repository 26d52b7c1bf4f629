"""Random streams of the data: processes and epochs see other crops, a resumed run sees what it would have seen."""

import gc
import pickle
import tarfile
import warnings
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from cefam.commands import main
from cefam.datamodules import ImagesData
from cefam.datamodules.regions import every_row
from cefam.datasets import Manifest, read_shard
from cefam.datasets.batches import Batches
from cefam.datasets.photographs import Photographs
from cefam.datasets.streams import ShardLoader, Skipped, count_batches
from cefam.errors import CefamError
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
    for module in ("datasets.streams", "datasets.samplers", "datasets.batches", "datamodules.regions"):
        monkeypatch.setattr(f"cefam.{module}.world", lambda: (rank, ranks))


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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_of_persistent_workers_sees_the_epochs_it_would_have_seen(photographs, workers):
    def loader():
        return ImagesData(
            str(photographs / "shards"), str(photographs / "shards"), size=16, batch_size=5, num_workers=workers
        ).train_dataloader()

    def views(loader, epoch):
        loader.sampler.set_epoch(epoch)
        return torch.cat([batch["image"] for batch in loader])

    whole, resumed = loader(), loader()
    epochs = [views(whole, epoch) for epoch in range(4)]
    next(iter(resumed))  # a Trainer makes an iterator before it sets the epoch
    assert torch.equal(views(resumed, 2), epochs[2])
    assert torch.equal(views(resumed, 3), epochs[3])
    assert len(torch.cat(epochs).flatten(1).unique(dim=0)) == 40


def test_shards_of_others_are_streamed_without_a_manifest(photographs, tmp_path):
    """The number of photographs is given; the shards are read for the first time in the epoch."""
    for path in (photographs / "shards").glob("*.tar"):
        (tmp_path / path.name).symlink_to(path)
    pattern = str(tmp_path / "shard-{000000..000003}.tar")
    for source in (pattern, str(tmp_path)):
        data = ImagesData(source, str(photographs / "shards"), size=16, batch_size=3, num_workers=2, train_samples=24)
        loader = data.train_dataloader()
        batches = [batch["image"] for batch in loader]
        assert [len(batch) for batch in batches] == [3] * 8 == [3] * len(loader)
        assert len(torch.cat(batches).flatten(1).unique(dim=0)) == 24
    with pytest.raises(FileNotFoundError, match="No shard"):
        ImagesData(str(tmp_path / "gone-*.tar"), source, train_samples=24).train_dataloader()


@pytest.mark.parametrize(("max_skipped", "message"), [(0, "holds no photograph"), (2, "More than 2 sample")])
def test_an_empty_shard_is_named(photographs, tmp_path, max_skipped, message):
    tarfile.open(tmp_path / "shard-000000.tar", "w").close()
    options = {"size": 16, "batch_size": 3, "num_workers": 0, "train_samples": 24, "max_skipped": max_skipped}
    loader = ImagesData(str(tmp_path), str(photographs / "shards"), **options).train_dataloader()
    with warnings.catch_warnings(action="ignore"), pytest.raises(CefamError, match=message):
        next(iter(loader))


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
            shards = Manifest.read(folder).placed(folder)
            batches = count_batches(24, 2, "shards")
            loader = ShardLoader(shards, lambda pixels: pixels[:, 0, 70], 2, batches, 0, 5, Skipped(0))
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
        batches = Batches(Manifest.read(folder), str(folder), 3, names)
        pretend(monkeypatch, 0, 1)
        sent = pickle.loads(pickle.dumps(batches))
        found |= {batch["number"]: batch["ids"] for batch in DataLoader(sent, batch_size=None, num_workers=workers)}
    every = [sample.id for shard in Manifest.read(folder).placed(folder) for sample in read_shard(shard)]
    assert [found[number] for number in range(5)] == [every[:3], every[3:6], every[6:9], every[9:12], every[12:]]


def names(samples, number):
    return {"number": number, "ids": [sample.id for sample in samples]}


def test_photographs_to_cache_can_be_sent_to_a_worker(world):
    (group,) = Photographs.read(world / "images" / "val").groups
    unit = group.open()
    assert len(unit) == group.count
    assert torch.equal(pickle.loads(pickle.dumps(unit))[0](), unit[0]())


def test_a_process_without_a_row_to_validate_is_refused(monkeypatch):
    pretend(monkeypatch, 0, 2)
    assert len(every_row(3, "cache")) == 2
    with pytest.raises(ValueError, match=r"cache holds 1 row\(s\) for 2 processes: use fewer devices"):
        every_row(1, "cache")
