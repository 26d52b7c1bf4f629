"""Modules of a network that can be stages: those whose output is a map."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cefam.errors import CefamError
from cefam.towers.outputs import first_tensor
from cefam.towers.trace import Trace, probe_size
from cefam.towers.wrapping import refused_probe

CHOSEN = 4  # stages that are chosen by default, at most
REPEATING = (nn.Dropout, nn.Identity, nn.Softmax)  # inside attention their outputs can look like maps
BLOCK = re.compile(r"(^|[._])\d+$")  # names of blocks: "blocks.11", "encoder_layer_11"


@dataclass(frozen=True)
class StageCandidate:
    """A module whose output is a map of ``channels`` x ``rows`` x ``columns``, or tokens (``rows`` 0: their grid is found by wrapping)."""

    name: str
    channels: int
    rows: int
    columns: int


@torch.no_grad()
def stage_candidates(module: nn.Module) -> list[StageCandidate]:
    """Run the network on a probe image; the modules that give maps, in the order in which they finish."""
    channels, height, width = probe_size(module, None)
    reference = next(module.parameters(), torch.zeros(()))
    was_training = {child: child.training for child in module.modules()}
    try:
        with Trace(module) as trace:
            module.eval()(torch.rand(1, channels, height, width).to(reference))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        if isinstance(error, CefamError | torch.OutOfMemoryError):
            raise
        raise refused_probe(module, channels, (height, width), error) from error
    finally:
        for child, training in was_training.items():
            child.training = training
    # A stage must run exactly once.
    once = [
        n
        for n, child in module.named_modules()
        if n and trace.events.count((n, True)) == 1 and not isinstance(child, REPEATING)
    ]
    outputs = ((name, first_tensor(output)) for name, output in trace.outputs.items() if name in once)
    found = [_candidate(name, tensor, height / width) for name, tensor in outputs if tensor is not None]
    return [each for each in found if each]


def _candidate(name: str, tensor: Tensor, aspect: float) -> StageCandidate | None:
    """The map in a module's output: two sides above 1 in the image's aspect ratio, to within a cell; or tokens."""
    if tensor.dim() not in (3, 4) or len(tensor) != 1 or not tensor.is_floating_point():
        return None
    if tensor.dim() == 3:
        return StageCandidate(name, tensor.shape[2], 0, 0) if tensor.shape[1] > 1 else None
    for channels, rows, columns in ((1, 2, 3), (3, 1, 2)):
        sides = tensor.shape[rows], tensor.shape[columns]
        if min(sides) > 1 and abs(sides[0] - sides[1] * aspect) <= 1:
            return StageCandidate(name, tensor.shape[channels], *sides)
    return None


def chosen_by_resolution(found: list[StageCandidate]) -> list[str]:
    """The last module of each resolution, of the :data:`CHOSEN` coarsest; the last block if blocks of tokens come after all maps."""
    last: dict[tuple[int, int], str] = {}
    block: str | None = None  # the last one since the last map
    for each in found:
        if each.rows:
            block = None
            last.pop((each.rows, each.columns), None)
            last[each.rows, each.columns] = each.name
        elif BLOCK.search(each.name):
            block = each.name
    if block:
        return [block]
    if not last:
        raise CefamError("No module of this network gives a map: name modules as `stages`.")
    return list(last.values())[-CHOSEN:]
