"""Modules of a network that can be stages: those whose output is a map."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cefam.errors import CefamError
from cefam.towers.outputs import first_tensor
from cefam.towers.trace import probe_size

CHOSEN = 4  # stages that are chosen by default, at most


@dataclass(frozen=True)
class StageCandidate:
    """A module whose output is a map of ``channels`` x ``rows`` x ``columns``, or tokens (``rows`` 0: their grid is found by wrapping)."""

    name: str
    channels: int
    rows: int
    columns: int


@torch.no_grad()
def stage_candidates(module: nn.Module, input_size: tuple[int, int] | None = None) -> list[StageCandidate]:
    """Run the network on a probe image; the modules that give maps, in the order in which they finish.

    Args:
        module: the network.
        input_size: (H, W) of the probe image; ``None``: as for :class:`cefam.FrozenClassifier`.
    """
    channels, height, width = probe_size(module, input_size)
    found: list[StageCandidate] = []

    def hook(name: str, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is None or not tensor.is_floating_point():
            return
        if tensor.dim() == 4 and min(tensor.shape[2:]) > 1 and tensor.shape[2] != tensor.shape[1]:
            found.append(StageCandidate(name, tensor.shape[1], tensor.shape[2], tensor.shape[3]))
        elif tensor.dim() == 4 and min(tensor.shape[1:3]) > 1:  # channels last
            found.append(StageCandidate(name, tensor.shape[3], tensor.shape[1], tensor.shape[2]))
        elif tensor.dim() == 3 and tensor.shape[1] > 1:
            found.append(StageCandidate(name, tensor.shape[2], 0, 0))

    was_training = {child: child.training for child in module.modules()}
    hooks = [
        child.register_forward_hook(lambda _, __, output, name=name: hook(name, output))
        for name, child in module.named_modules()
        if name
    ]
    try:
        device = next((value.device for value in module.parameters()), torch.device("cpu"))
        image: Tensor = torch.rand(1, channels, height, width, device=device)
        module.eval()(image)
    finally:
        for each in hooks:
            each.remove()
        for child, training in was_training.items():
            child.training = training
    return found


def chosen_by_resolution(found: list[StageCandidate]) -> list[str]:
    """The last module of each resolution, of the :data:`CHOSEN` coarsest; of a transformer, the last block.

    Raises:
        CefamError: if no module gives a map.
    """
    last: dict[tuple[int, int], str] = {}
    for each in found:
        last.pop((each.rows, each.columns), None)
        last[each.rows, each.columns] = each.name
    maps = [name for (rows, _), name in last.items() if rows]
    if maps:
        return maps[-CHOSEN:]
    blocks = [each.name for each in found if each.name.rpartition(".")[2].isdigit()]
    if not blocks:
        raise CefamError("No module of this network gives a map: name modules as `stages`.")
    return blocks[-1:]
