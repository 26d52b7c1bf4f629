"""What a stage is: where the network is tapped, how its output is a map, and what one forward pass tells about it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

Layout = Literal["auto", "channels_first", "channels_last", "tokens"]


@dataclass(frozen=True)
class StageContext:
    """What a stage's map does not hold of the stage's output.

    Args:
        prefix: prefix tokens (class token, registers), (B, C, n), or ``None``.
        before_norm: the map (B, C, H, W) before the final LayerNorm where the stage's map is taken after it, or ``None``.
    """

    prefix: Tensor | None = None
    before_norm: Tensor | None = None

    def select(self, index: Tensor) -> "StageContext":
        """The context of the images that ``index`` (P,) names."""
        return StageContext(*(None if v is None else v[index] for v in (self.prefix, self.before_norm)))


@dataclass
class Stage:
    """One tapped place of the network.

    Args:
        name: the module named by the user.
        tap: the module whose output is the stage's map; the final norm where ``name`` is the last block of a ViT.
        layout: how that output is laid out.
        num_prefix: prefix tokens in it.
        channels: C_l.
        resumable: whether the stage is a cut of the network.
        elements: numbers that the network computes after the stage for one image of the probe, for memory limits.
        stand_ins: modules that end before the stage, with the (batch-free) shapes of their outputs.
    """

    name: str
    tap: str
    layout: Layout = "auto"
    num_prefix: int = 0
    channels: int = 0
    resumable: bool = True
    elements: int = 0
    stand_ins: dict[str, Any] = field(default_factory=dict)

    def to_map(self, raw: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """The stage's output as a map (B, C, H, W) and its prefix tokens (B, C, n) or ``None``."""
        if self.layout == "channels_first":
            return raw, None
        if self.layout == "channels_last":
            return raw.permute(0, 3, 1, 2), None
        tokens = raw.transpose(1, 2)
        prefix, patches = tokens[..., : self.num_prefix], tokens[..., self.num_prefix :]
        return patches.unflatten(2, grid), prefix if self.num_prefix else None  # type: ignore[no-untyped-call]

    def to_raw(self, activation: Tensor, prefix: Tensor | None) -> Tensor:
        """The inverse of :meth:`to_map`."""
        if self.layout == "channels_first":
            return activation
        if self.layout == "channels_last":
            return activation.permute(0, 2, 3, 1)
        patches = activation.flatten(2)
        return torch.cat([patches] if prefix is None else [prefix, patches], dim=2).transpose(1, 2)

    def grid(self, raw: Tensor, image_size: Sequence[int]) -> tuple[int, int]:
        """Height and width of the map inside the stage's output, given the size of the images."""
        if self.layout == "channels_first":
            return raw.shape[2], raw.shape[3]
        if self.layout == "channels_last":
            return raw.shape[1], raw.shape[2]
        patches = raw.shape[1] - self.num_prefix
        height = round(math.sqrt(patches * image_size[0] / image_size[1]))
        if height < 1 or height * (patches // height) != patches:
            raise ValueError(
                f"Stage {self.name!r} gives {raw.shape[1]} tokens for a {image_size[0]} x {image_size[1]} image, which without "
                f"{self.num_prefix} prefix token(s) is no grid: pass the number of prefix tokens as `num_prefix_tokens`."
            )
        return height, patches // height


class Trace:
    """A record of one forward pass: when every submodule starts and ends, and what it returns."""

    def __init__(self, module: nn.Module) -> None:
        self.names = {child: name for name, child in module.named_modules()}
        self.events: list[tuple[str, bool]] = []  # (name, whether it starts)
        self.outputs: dict[str, Any] = {}
        self.leaves: list[tuple[int, int]] = []  # (when, number of elements)
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for child in self.names:
            self._handles.append(
                child.register_forward_pre_hook(lambda m, _: self.events.append((self.names[m], True)))
            )
            self._handles.append(child.register_forward_hook(self._ended))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _ended(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not any(True for _ in module.children()) and isinstance(output, Tensor):
            self.leaves.append((len(self.events), output.numel()))
        self.events.append((self.names[module], False))
        self.outputs[self.names[module]] = tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, output)

    def start(self, name: str) -> int:
        """When the module starts."""
        return self.events.index((name, True))

    def describe(
        self, stage: Stage, num_prefix_tokens: int | None, module: nn.Module, input_size: tuple[int, int]
    ) -> None:
        """Fill in everything about a stage that the trace tells."""
        runs = self.events.count((stage.tap, True))
        if runs != 1:
            raise ValueError(
                f"Stage {stage.name!r} ran {runs} times in one forward pass; a stage must run exactly once."
            )
        raw = self.outputs[stage.tap]
        if not isinstance(raw, Tensor) or raw.dim() not in (3, 4):
            raise ValueError(
                f"Stage {stage.name!r} returns {describe_value(raw)}; a stage must return a map (B, C, H, W), (B, H, W, C) or "
                f"tokens (B, N, C)."
            )
        if stage.layout == "auto":
            stage.layout = _layout(raw, stage.name, input_size)
        stage.channels = raw.shape[1] if stage.layout == "channels_first" else raw.shape[-1]
        if stage.layout == "tokens":
            stage.num_prefix = _prefix_tokens(module, raw.shape[1]) if num_prefix_tokens is None else num_prefix_tokens
        begin = self.start(stage.tap)
        stage.elements = sum(elements for when, elements in self.leaves if when > begin)
        stage.stand_ins = {name: self._shapes(name) for name in self._finished_before(begin)}

    def _finished_before(self, begin: int) -> list[str]:
        """Outermost modules all of whose calls end before the event ``begin``."""
        last = {name: when for when, (name, starts) in enumerate(self.events) if not starts}
        finished = {name for name, when in last.items() if when < begin}
        return [
            name for name in finished if not any(name.startswith(f"{other}.") for other in finished if other != name)
        ]

    def _shapes(self, name: str) -> Any:
        return tree_map(lambda v: v.shape[1:] if isinstance(v, Tensor) else v, self.outputs[name])


def describe_value(value: Any) -> str:
    """A few words on what a module returned, for error messages."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _layout(raw: Tensor, name: str, input_size: tuple[int, int]) -> Layout:
    """Tell the layout of a square image's map: the two equal sides are height and width."""
    if raw.dim() == 3:
        return "tokens"
    if input_size[0] != input_size[1]:
        raise ValueError(
            f"Stage {name!r} gives a map {tuple(raw.shape)} for an image of {input_size[0]} x {input_size[1]}, whose layout can only be "
            f"told from a square one: give a square `input_size`, or FrozenClassifier its `layout` ('channels_first' or 'channels_last')."
        )
    _, first, second, third = raw.shape
    return "channels_last" if first == second != third else "channels_first"


def _prefix_tokens(module: nn.Module, num_tokens: int) -> int:
    """Timm says how many prefix tokens there are; else what is left over from the largest square grid."""
    stated = getattr(module, "num_prefix_tokens", None)
    return stated if isinstance(stated, int) else num_tokens - math.isqrt(num_tokens) ** 2
