"""How a module is tapped and entered in the middle: forward hooks, stand-ins for modules, and the whole as one function."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cefam.errors import CefamError
from cefam.towers.outputs import class_scores, first_tensor, logits_of, with_first_tensor
from cefam.towers.stages import Stage, StageContext

# Held while hooks or stand-ins are on a network, so that a thread never sees those of another. One for all networks: the choice of
# attention kernels in `FrozenClassifier.rerun` holds for the whole process.
LOCK = threading.RLock()


@contextmanager
def tapped(
    module: nn.Module, stages: Sequence[Stage], captured: list[Any], size: Sequence[int], first: int | None = None
) -> Iterator[None]:
    """While open, fill ``captured`` with (raw output, map, context) of every stage that runs.

    Args:
        module: the network.
        stages: all of them.
        captured: one entry per stage.
        size: (H, W) of the images.
        first: the stage where the graph starts; ``None``: no graph, all stages.
    """

    def hook(index: int) -> Callable[..., Any]:
        stage = stages[index]

        def capture(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            raw = first_tensor(output)
            if raw is None:
                raise CefamError(f"Stage {stage.name!r} returned no tensor this time.")
            if index == first:
                with torch.enable_grad():  # the stage itself may run without
                    raw = raw.detach().requires_grad_()
                    following = raw.clone()
            else:
                following = raw.clone()
            grid = stage.grid(raw, size)
            taken = first_tensor((args, kwargs)) if stage.tap != stage.name else None
            before = None if taken is None else stage.to_map(taken, grid)[0]
            activation, prefix = stage.to_map(raw, grid)
            captured[index] = (raw, activation, StageContext(prefix, before))
            return with_first_tensor(output, following)  # a copy: what follows may work in place

        return capture

    start = 0 if first is None else first
    with ExitStack() as stack:
        for index, stage in enumerate(stages[start:], start=start):
            handle = module.get_submodule(stage.tap).register_forward_hook(hook(index), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def stacked_gradients(
    outputs: Sequence[Tensor], sources: Sequence[Tensor], gradients: Sequence[Tensor], batched: bool
) -> list[Tensor]:
    """Gradients by the sources, for S gradients of the outputs: at once, or one after another.

    torch.vmap knows how convolutions go back in batches; ``is_grads_batched=True`` runs one after another. Some operations that mix
    precisions have no rule for it.
    """
    if batched:
        return list(torch.vmap(lambda *g: torch.autograd.grad(outputs, list(sources), g, True))(*gradients))
    rows = [torch.autograd.grad(outputs, sources, each, True) for each in zip(*gradients, strict=True)]
    return [torch.stack(each) for each in zip(*rows, strict=True)]


@contextmanager
def standing_in(module: nn.Module, stage: Stage, raw: Tensor) -> Iterator[Tensor]:
    """While open, the module runs from a stage on, whose raw output is ``raw``; yields a NaN of its kind."""
    nothing = raw.detach().new_full((), torch.nan)
    forwards = {name: value.answering(nothing, len(raw)) for name, value in stage.stand_ins.items()}
    if stage.output is not None:
        forwards[stage.tap] = stage.output.answering(nothing, len(raw), raw)
    with _replaced_forwards({module.get_submodule(name): forward for name, forward in forwards.items()}):
        yield nothing


@contextmanager
def _replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """While open, calls of these modules run the given functions instead."""
    own = {module: module.__dict__["forward"] for module in forwards if "forward" in module.__dict__}
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)
            module.__dict__.update({"forward": own[module]} if module in own else {})


class LogitsModel(nn.Module):
    """A classifier as attribution libraries want it: images, as views, to class scores (B, classes), differentiable.

    ``module`` is the network as it was given, without folding, so its layers are there to be named.

    Args:
        module: the network.
        prepare: views -> what the network takes.
    """

    def __init__(self, module: nn.Module, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.prepare = module, prepare

    def forward(self, images: Tensor) -> Tensor:
        """Views (B, 3, H, W), uint8 or floats in [0, 1], to class scores (B, classes)."""
        return class_scores(logits_of(self.module(self.prepare(images))))
