"""Rank and number of the processes."""

import torch


def world() -> tuple[int, int]:
    """Rank and world size of ``torch.distributed``, or (0, 1); environment variables are ignored, as they may be stale."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
