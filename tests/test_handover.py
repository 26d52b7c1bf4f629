"""Views that come from data workers through shared memory."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from cefam.datasets.handover import PREFETCH, Handover, pack, unpack
from cefam.errors import CefamError

SHAPES = st.lists(st.tuples(st.just(3), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=5)


def views_of(task, shapes):
    return [(torch.arange(3 * h * w) + task).to(torch.uint8).view(c, h, w) for c, h, w in shapes]


@given(shapes=SHAPES)
def test_packed_views_come_back(shapes):
    views = views_of(0, shapes)
    assert all(torch.equal(found, view) for found, view in zip(unpack(pack(views)), views, strict=True))


class Tasks(Dataset):
    """Task n: n % 4 views, of sizes that fit into a slot and of others that do not."""

    def __init__(self, handover):
        self.handover = handover

    def __len__(self):
        return 40

    @staticmethod
    def views(task):
        return views_of(task, [(3, 4 + task % 5, 4)] * (task % 4))

    @staticmethod
    def taken(task):
        """The same views as they arrive: (h, w, 3)."""
        return [view.permute(1, 2, 0) for view in Tasks.views(task)]

    def __getitem__(self, task):
        views = [view.permute(1, 2, 0).contiguous().permute(2, 0, 1) for view in self.views(task)]  # channels last
        views[1:] = [view.permute(0, 2, 1).contiguous().permute(0, 2, 1) for view in views[1:]]  # or otherwise
        return self.handover.put(task, views, [f"task {task}"])


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("size", [0, 3 * 3 * 6 * 4, 10_000])
def test_every_task_gives_its_own_views(workers, size):
    handover = Handover(workers, size)
    ahead = PREFETCH if workers else None
    loader = DataLoader(Tasks(handover), batch_size=None, num_workers=workers, prefetch_factor=ahead)
    for task, handed in enumerate(loader):
        views = [view.clone() for view in handover.take(task, handed)]
        assert handed.reasons == [f"task {task}"]
        room = size if workers else 0
        assert (not handed.rest) == (sum(view.numel() for view in views) <= room)
        assert len(views) == len(Tasks.views(task))
        assert all(torch.equal(found, view) for found, view in zip(views, Tasks.taken(task), strict=True))


def test_a_pass_that_is_left_early_does_not_disturb_the_next():
    handover = Handover(2, 10_000)
    loader = DataLoader(
        Tasks(handover), batch_size=None, num_workers=2, prefetch_factor=PREFETCH, persistent_workers=True
    )
    for stop in (3, 1, 40):
        for task, handed in enumerate(loader):
            views = [view.clone() for view in handover.take(task, handed)]
            assert all(torch.equal(found, view) for found, view in zip(views, Tasks.taken(task), strict=True))
            if task == stop:
                break


def test_a_slot_is_not_written_again_before_its_task_is_taken():
    handover = Handover(2, 100)
    tasks = 2 * PREFETCH + 1
    handed = [handover.put(task, views_of(task, [(3, 2, 2)]), []) for task in range(tasks)]
    for task in range(tasks):
        assert torch.equal(handover.take(task, handed[task])[0].permute(2, 0, 1), views_of(task, [(3, 2, 2)])[0])


@pytest.mark.skipif(not Path("/dev/shm").exists(), reason="shared memory is elsewhere")
def test_too_little_shared_memory_is_said():
    place = os.statvfs("/dev/shm")
    with pytest.raises(CefamError, match=r"1 data worker\(s\) need \d+ MB of shared memory.*--shm-size"):
        Handover(1, place.f_frsize * place.f_blocks // 3 + 2**20)


def test_a_crop_that_finds_no_room_leaves_its_photograph_behind():
    photograph = torch.zeros(3, 100, 100, dtype=torch.uint8)
    (crop,) = Handover(0, 0).put(0, [photograph[:, :10, :20]], []).rest
    assert crop.shape == (10, 20, 3)
    assert crop.untyped_storage().nbytes() == 600
