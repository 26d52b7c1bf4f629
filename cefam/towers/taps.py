"""Forward hooks that capture stage outputs, stand-ins to run a module from a stage, and a scores-only wrapper."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cefam.errors import CefamError
from cefam.towers.outputs import class_scores, first_tensor, logits_of, with_first_tensor
from cefam.towers.stages import Stage, StageContext

# Held while a network has hooks or stand-ins, so that other threads do not run with them. All networks share one lock, because
# `FrozenClassifier.rerun` selects attention kernels for the whole process.
LOCK = threading.RLock()


@contextmanager
def tapped(
    module: nn.Module, stages: Sequence[Stage], captured: list[Any], size: Sequence[int], first: int | None = None
) -> Iterator[None]:
    """While active, store (raw output, map, context) of every stage that runs in ``captured``."""

    def hook(index: int) -> Callable[..., Any]:
        stage = stages[index]

        def capture(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            raw = first_tensor(output)
            if raw is None:
                raise CefamError(f"Stage {stage.name!r} returned no tensor this time.")
            if index == first:
                with torch.enable_grad():  # the stage itself may run under no_grad
                    raw = raw.detach().requires_grad_()
                    following = raw.clone()
            else:
                following = raw.clone()
            grid = stage.grid(raw, size)
            taken = first_tensor((args, kwargs)) if stage.tap != stage.name else None
            before = None if taken is None else stage.to_map(taken, grid)[0]
            activation, prefix = stage.to_map(raw, grid)
            captured[index] = (raw, activation, StageContext(prefix, before))
            return with_first_tensor(output, following)  # a copy: later modules may modify it in place

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
    """Gradients with respect to the sources, for S gradients of the outputs: batched, or one at a time.

    torch.vmap batches the backward pass of convolutions; ``is_grads_batched=True`` would run them one at a time. Some
    mixed-precision operations do not support torch.vmap.
    """
    if batched:
        return list(torch.vmap(lambda *g: torch.autograd.grad(outputs, list(sources), g, True))(*gradients))
    rows = [torch.autograd.grad(outputs, sources, each, True) for each in zip(*gradients, strict=True)]
    return [torch.stack(each) for each in zip(*rows, strict=True)]


@contextmanager
def standing_in(module: nn.Module, stage: Stage, raw: Tensor) -> Iterator[Tensor]:
    """While active, the module starts at a stage with the raw output ``raw``; yields a NaN of its dtype and device."""
    nothing = raw.detach().new_full((), torch.nan)
    forwards = {name: value.answering(nothing, len(raw)) for name, value in stage.stand_ins.items()}
    if stage.output is not None:
        forwards[stage.tap] = stage.output.answering(nothing, len(raw), raw)
    with _replaced_forwards({module.get_submodule(name): forward for name, forward in forwards.items()}):
        yield nothing


@contextmanager
def _replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """While active, calls of these modules run the given functions instead."""
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
    """A classifier for attribution libraries: maps views to class scores (B, classes), differentiably.

    ``module`` is the given network without folding, so its layers can be referenced by name.
    """

    def __init__(self, module: nn.Module, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.prepare = module, prepare

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (B, classes) of views (B, 3, H, W), uint8 or floats in [0, 1]."""
        return class_scores(logits_of(self.module(self.prepare(images))))
