"""How many processes read."""

import torch


def world() -> tuple[int, int]:
    """Rank and number of the processes that run together now; environment variables may be left over from another run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
