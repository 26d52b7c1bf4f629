"""What several tests share: the golden files' networks, the real photographs, quiet and offline defaults."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

import numpy as np
import pytest
import torch
from torch import nn

GOLDEN = Path(__file__).parent / "golden"


def fill(module: nn.Module, seed: int) -> nn.Module:
    """Draw every floating-point tensor of a state dict, in order, from one legacy generator (the golden files' rule)."""
    random = np.random.RandomState(seed)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        shape = tuple(tensor.shape)
        if name.endswith("running_mean"):
            values = random.normal(0, 0.1, shape)
        elif name.endswith("running_var"):
            values = random.uniform(0.8, 1.2, shape)
        elif len(shape) == 1 and name.endswith("weight"):
            values = random.uniform(0.5, 1.0, shape)
        elif len(shape) == 1:
            values = random.normal(0, 0.05, shape)
        elif len(shape) == 4:
            values = random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        else:
            values = random.normal(0, np.sqrt(1 / shape[1]), shape)
        tensor.copy_(torch.from_numpy(np.asarray(values, dtype=np.float32)))
    return module


def assert_golden(actual, stored) -> None:
    """The agreement that the golden files expect: 1e-4 relative, and 1e-5 of the largest value."""
    stored = torch.as_tensor(stored).double()
    actual = torch.as_tensor(actual).double().detach()
    assert actual.shape == stored.shape
    torch.testing.assert_close(actual, stored, rtol=1e-4, atol=1e-5 * float(stored.abs().max()))


@pytest.fixture(scope="session")
def realset() -> Path:
    """The folder of real photographs."""
    folder = os.environ.get("CEFAM_REALSET")
    if not folder or not Path(folder).is_dir():
        pytest.skip("CEFAM_REALSET names no folder of real photographs")
    return Path(folder)
