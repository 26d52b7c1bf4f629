"""Checks when a network is wrapped: each output depends on one image only, and gradients flow between stages."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cefam.errors import CefamError
from cefam.towers.outputs import logits_of
from cefam.towers.stages import Stage
from cefam.towers.taps import stacked_gradients, tapped
from cefam.towers.trace import check_batch


def check_default_precision() -> None:
    """Check that torch's default dtype is float32, as for weights, embeddings and artefacts."""
    if torch.get_default_dtype() != torch.float32:
        raise CefamError(
            f"torch's default precision is {torch.get_default_dtype()}: networks would be built in it, and would not be those of an "
            f"artefact. Call torch.set_default_dtype(torch.float32) first."
        )


def usable(module: nn.Module) -> nn.Module:
    """Copy inference tensors, which block autograd, and turn off gradient checkpointing, which reruns modules; in place."""
    child: Any
    for child in module.modules():
        if getattr(child, "grad_checkpointing", False) is True:  # timm
            child.grad_checkpointing = False
        for name, value in child._parameters.items():
            if value is not None and value.is_inference():
                child._parameters[name] = nn.Parameter(value.clone())
        for name, buffer in child._buffers.items():
            if buffer is not None and buffer.is_inference():
                child._buffers[name] = buffer.clone()
    return module


def alike(logits: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether logits computed in ``dtype`` differ only by rounding."""
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 1e-2
    return torch.allclose(logits, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@torch.no_grad()
def among_others(
    module: nn.Module, stages: Sequence[Stage], size: tuple[int, int], image: Tensor, logits: Tensor
) -> list[Any]:
    """Run an image together with a second one; returns what :func:`~cefam.towers.taps.tapped` captures."""
    captured: list[Any] = [None] * len(stages)
    darker = 0.25 * image.flip(-1)  # different pixel statistics
    try:
        with tapped(module, stages, captured, size):
            both = logits_of(module(torch.cat([image, darker])))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        if isinstance(error, CefamError | torch.OutOfMemoryError):
            raise
        raise CefamError(
            f"The classifier takes one image and not two at once ({error}): explanations run many images in a batch. Build it without a "
            f"fixed batch size."
        ) from error
    for stage, found in zip(stages, captured, strict=True):
        check_batch(stage.name, found[0], 2)
    if len(both) != 2:
        raise CefamError(f"The classifier gives logits {tuple(both.shape)} for 2 images: they must be (B, classes).")
    if alike(both[:1], logits, image.dtype):
        return captured
    again = logits_of(module(image.clone()))
    if not alike(again, logits, image.dtype):
        raise CefamError(
            f"The classifier's outputs for the same image differ by up to {_largest(again - logits)} from run to run: it draws random "
            f"numbers in eval mode, too (dropout that `eval()` does not stop). Explanations would be random: switch that off."
        )
    raise CefamError(
        f"The classifier's outputs for an image change by up to {_largest(both[:1] - logits)} with the other image of its batch: it uses "
        f"statistics of the batch (BatchNorm without running statistics, a mean over the batch). Explanations would depend on the "
        f"neighbors: use running statistics."
    )


def _largest(difference: Tensor) -> str:
    return f"{float(difference.abs().max()):.2g}"


def can_be_batched(stages: Sequence[Stage], activations: Sequence[Tensor], sources: Sequence[Tensor]) -> bool:
    """Whether torch.vmap can compute the gradients for regions; otherwise they are computed one by one."""
    for before, stage, raw in zip(stages, stages[1:], sources[1:], strict=False):
        if not raw.requires_grad:
            raise CefamError(
                f"No gradient flows from stage {before.name!r} to stage {stage.name!r}: the network runs what is between under "
                f"torch.no_grad() or torch.inference_mode(), detaches it, or checkpoints it (`use_reentrant=True`). Remove that, or name "
                f"{stage.name!r} as the only stage."
            )
    with torch.enable_grad():
        pooled = [activation.float().mean(dim=(-2, -1)) for activation in activations]
    ones = [torch.ones_like(z).unsqueeze(0) for z in pooled]
    for batched in (True, False):
        try:
            stacked_gradients(pooled, sources[:-1], ones, batched)
            return batched
        except (RuntimeError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = error
    raise CefamError(
        f"No gradient of the stages {', '.join(stage.name for stage in stages)} can be computed ({str(reason).splitlines()[0]}): look for "
        f"gradient checkpointing, or operations that have no gradient. The last stage alone needs none."
    ) from reason


def refused_probe(module: nn.Module, channels: int, size: tuple[int, int], error: Exception) -> CefamError:
    """The error for a probe image that the network rejects because of its channels or size."""
    first = next((child for child in module.modules() if isinstance(child, nn.Conv2d)), None)
    if first is not None and first.in_channels != channels:
        return CefamError(
            f"The classifier's first convolution takes {first.in_channels} channel(s), the images have {channels}: pass "
            f"`input_size=({first.in_channels}, {size[0]}, {size[1]})`."
        )
    return CefamError(
        f"The classifier does not accept an image of {size[0]} x {size[1]} ({error}): pass the size it wants as `input_size`."
    )
