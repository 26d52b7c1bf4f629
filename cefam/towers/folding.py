"""Speed up a frozen network: fold BatchNorm into convolutions and use channels-last memory."""

import copy
from collections import Counter
from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cefam.towers.outputs import first_tensor, logits_of


@torch.no_grad()
def folded(module: nn.Module, image: Tensor, kept: Collection[str] = ()) -> nn.Module:
    """Fold BatchNorm into convolutions and use channels-last memory; outputs are equal up to rounding.

    In eval mode BatchNorm is a scale and a shift per channel, which the preceding convolution can absorb. This saves one pass
    over the map in the forward and one in the backward pass. The preceding convolution is found by running the module.

    Args:
        module: network in eval mode; it is not modified.
        image: (1, 3, H, W), input to run the module with.
        kept: names of modules whose outputs must not change.

    Returns:
        A copy with the same module names, in which folded BatchNorms are replaced by their activation or an identity; or
        ``module`` itself if it cannot be folded.
    """
    pairs = _pairs(module, image, kept)
    if not pairs:
        return module
    try:
        copied = copy.deepcopy(module)
    except (
        RuntimeError,
        TypeError,
    ):  # not copyable: it holds locks, open files or tensors with an autograd graph
        return module
    for convolution, norm in pairs:
        both: Any = copied.get_submodule(convolution), copied.get_submodule(norm)
        copied.set_submodule(convolution, fuse_conv_bn_eval(*both))
        copied.set_submodule(norm, _rest(both[1]))
    copied = copied.requires_grad_(False).to(memory_format=torch.channels_last)
    # Outputs differ if a convolution's output is also used elsewhere.
    values = zip(_outputs(copied, image, kept), _outputs(module, image, kept), strict=True)
    same = all(torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max())) for a, b in values)
    return copied if same else module


def _outputs(module: nn.Module, image: Tensor, kept: Collection[str]) -> list[Tensor]:
    """The logits, then the outputs of the ``kept`` modules."""
    outputs: list[Tensor] = []
    with ExitStack() as stack:
        for name in kept:
            hook = module.get_submodule(name).register_forward_hook(
                lambda *ran: outputs.append(_tensor(ran[2]).clone())
            )
            stack.callback(hook.remove)
        return [logits_of(module(image.clone())), *outputs]


def _tensor(output: Any) -> Tensor:
    found = first_tensor(output)
    assert found is not None  # every stage returns a tensor
    return found


def _pairs(module: nn.Module, image: Tensor, kept: Collection[str]) -> list[tuple[str, str]]:
    """Names of (convolution, BatchNorm that takes its output), if both run once and satisfy :func:`_plain`."""
    names = {child: name for name, child in module.named_modules() if _plain(child)}
    runs: Counter[nn.Module] = Counter()
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # outputs by id(), kept alive so that no id is reused
    found: list[tuple[nn.Module, nn.Module]] = []

    def ran(child: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        runs[child] += 1
        if isinstance(child, nn.Conv2d):
            made[id(output)] = (child, output)
        elif id(inputs[0]) in made:
            found.append((made[id(inputs[0])][0], child))

    looked_at: set[nn.Module] = set()  # convolutions whose output is also that of a kept module

    def kept_ran(child: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        tensor = first_tensor(output)
        if id(tensor) in made:
            looked_at.add(made[id(tensor)][0])

    with ExitStack() as stack:
        for child in names:
            stack.callback(child.register_forward_hook(ran).remove)
        for name in kept:  # must run after `ran`: a convolution may itself be kept
            stack.callback(module.get_submodule(name).register_forward_hook(kept_ran).remove)
        module(image.clone())
    takers = Counter(convolution for convolution, _ in found)
    return [(names[c], names[n]) for c, n in found if runs[c] == runs[n] == takers[c] == 1 and c not in looked_at]


def _plain(child: nn.Module) -> bool:
    """Whether this is an unparametrized convolution, or a BatchNorm with running statistics, without hooks."""
    if child._forward_hooks or child._forward_pre_hooks:
        return False
    if isinstance(child, nn.BatchNorm2d):
        return child.track_running_stats and (type(child) is nn.BatchNorm2d or _has_activation(child))
    return type(child) is nn.Conv2d


def _has_activation(norm: nn.Module) -> bool:
    return type(norm).__name__ == "BatchNormAct2d"  # timm: BatchNorm, dropout and activation in one module


def _rest(norm: Any) -> nn.Module:
    """The layers of a BatchNorm module other than the normalization."""
    return nn.Sequential(norm.drop, norm.act) if _has_activation(norm) else nn.Identity()
