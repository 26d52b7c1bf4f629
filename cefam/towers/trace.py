"""Inspect a module before use: its image size and, from a Trace of one forward pass, its stages."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from cefam.errors import CefamError
from cefam.towers.outputs import StandIn, describe_value, first_tensor
from cefam.towers.stages import MapLayout, Stage


class Trace:
    """Records the start, end, inputs and outputs of every submodule, and which outputs are modified in place later.

    A context manager: run the module once inside it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.names = {child: name for name, child in module.named_modules()}
        self.events: list[tuple[str, bool]] = []  # (name, True for start or False for end)
        self.outputs: dict[str, Any] = {}
        self.leaves: list[tuple[int, int]] = []  # (event index, number of elements)
        self.convolved: list[tuple[int, int]] = []  # height and width of every convolution's output
        self._taken: list[tuple[str, nn.Module, list[Tensor]]] = []
        self._versions: dict[str, list[tuple[Tensor, int]]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for child in self.names:
            self._handles.append(child.register_forward_pre_hook(self._starts, with_kwargs=True))
            self._handles.append(child.register_forward_hook(self._ended))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _starts(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        name = self.names[module]
        self._taken.append((name, module, [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]))
        self.events.append((name, True))

    def _ended(self, module: nn.Module, inputs: Any, output: Any) -> None:
        name = self.names[module]
        if not any(True for _ in module.children()) and isinstance(output, Tensor):
            self.leaves.append((len(self.events), output.numel()))
        if isinstance(module, nn.Conv2d):
            self.convolved.append((output.shape[-2], output.shape[-1]))
        self.events.append((name, False))
        self.outputs[name] = output
        tensors = [value for value in tree_leaves(output) if isinstance(value, Tensor)]
        if any(value.is_inference() for value in tensors):
            raise CefamError(
                f"The classifier runs {name or 'its forward'!r} under torch.inference_mode(), so no gradient reaches what stands before: "
                f"remove the mode from its forward, and leave it to the caller."
            )
        self._versions[name] = [(value, value._version) for value in tensors]

    def start(self, name: str) -> int:
        """Index of the event at which the module starts."""
        runs = self.events.count((name, True))
        if runs != 1:
            ran = [other for other, starts in self.events if starts and other.startswith(f"{name}.")]
            inside = (
                f" It was traced: only inner modules can still be tapped, as {', '.join(ran)}."
                if ran and runs == 0
                else ""
            )
            raise CefamError(
                f"Stage {name!r} ran {runs} times in one forward pass; a stage must run exactly once.{inside}"
            )
        return self.events.index((name, True))

    def final_norm(self, name: str) -> str | None:
        """Name of the final norm of a vision transformer: the LayerNorm that is the only consumer of a module's tokens.

        The map of the last block is taken after this norm. Other blocks give ``None``: their tokens also feed the next block.
        """
        tokens = first_tensor(self.outputs.get(name))
        if tokens is None or tokens.dim() != 3:
            return None
        same = [tokens]  # the tokens, and outputs that are the same tensor (dropout, identity)
        takers: list[tuple[str, nn.Module]] = []
        for taker, module, values in self._taken:
            if any(value is known for value in values for known in same):
                passed = first_tensor(self.outputs.get(taker))
                if passed is not None and passed.data_ptr() == tokens.data_ptr() and passed.shape == tokens.shape:
                    same.append(passed)
                elif not isinstance(module, nn.Sequential):  # nn.Sequential passes them to its first module
                    takers.append((taker, module))
        outer = [(t, m) for t, m in takers if not any(t.startswith(f"{other}.") for other, _ in takers)]
        return outer[0][0] if len(outer) == 1 and isinstance(outer[0][1], nn.LayerNorm) else None

    def describe(
        self, stage: Stage, num_prefix_tokens: int | None, module: nn.Module, input_size: tuple[int, int]
    ) -> None:
        """Set a stage's layout, channels, token grid, elements and stand-ins from the trace."""
        begin = self.start(stage.tap)
        raw = first_tensor(self.outputs[stage.tap])
        if raw is None or raw.dim() not in (3, 4):
            raise CefamError(
                f"Stage {stage.name!r} returns {describe_value(self.outputs[stage.tap] if raw is None else raw)}; a stage "
                f"must return a map (B, C, H, W) or (B, H, W, C), or tokens (B, N, C), as its first tensor."
            )
        check_batch(stage.name, raw, 1)
        if stage.layout == "auto":
            stage.layout = _layout(raw, stage.name, input_size)
        stage.channels = raw.shape[1] if stage.layout == "channels_first" else raw.shape[-1]
        if stage.layout == "tokens":
            stage.probed_size = input_size
            stage.probed_grid = self._token_grid(stage.name, raw.shape[1], num_prefix_tokens, module, input_size)
            stage.num_prefix = raw.shape[1] - stage.probed_grid[0] * stage.probed_grid[1]
        stage.elements = sum(elements for when, elements in self.leaves if when > begin)
        stage.output = self._stand_in(stage.tap)
        stage.stand_ins = {name: self._stand_in(name) for name in self._finished_before(begin)}

    def _token_grid(
        self, name: str, count: int, stated: int | None, module: nn.Module, input_size: tuple[int, int]
    ) -> tuple[int, int]:
        """Rows and columns of the patches among ``count`` tokens, from a convolution's output or a ``patch_size`` attribute.

        If patches were merged before the stage, its grid has 1/2, 1/4, ... 1/32 as many rows and columns.
        """
        if stated is None:
            known = (getattr(child, "num_prefix_tokens", None) for child in module.modules())  # timm
            stated = next((number for number in known if isinstance(number, int)), None)
        shown = sorted(set(self.convolved) | _stated_grids(module, input_size), key=lambda grid: -grid[0] * grid[1])
        merged = [(-(-rows // by), -(-columns // by)) for by in (2, 4, 8, 16, 32) for rows, columns in shown[:1]]
        for grid in (*shown, *merged):
            prefix = count - grid[0] * grid[1]
            if prefix == stated or (stated is None and 0 <= prefix < (count / 2 if grid in shown else 2)):
                return grid
        if stated is not None:  # assume square patches
            rows = round(math.sqrt(max(count - stated, 0) * input_size[0] / input_size[1]))
            columns = round(rows * input_size[1] / input_size[0])
            if rows * columns == count - stated > 0:
                return rows, columns
        raise CefamError(
            f"Stage {name!r} gives {count} tokens for a {input_size[0]} x {input_size[1]} image, and the network shows no grid of patches "
            f"that fits, without {'an unknown number of' if stated is None else stated} prefix token(s): pass the number of prefix tokens "
            f"as `num_prefix_tokens`."
        )

    def _finished_before(self, begin: int) -> list[str]:
        """Names of the outermost modules whose calls all end before the event ``begin``."""
        last = {name: when for when, (name, starts) in enumerate(self.events) if not starts}
        finished = {name for name, when in last.items() if when < begin}
        return [
            name for name in finished if not any(name.startswith(f"{other}.") for other in finished if other != name)
        ]

    def _stand_in(self, name: str) -> StandIn:
        written = any(value._version != version for value, version in self._versions[name])
        return StandIn(tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, self.outputs[name]), written)


def check_batch(name: str, raw: Tensor, images: int) -> None:
    """Check that a stage's batch size equals the number of images."""
    if len(raw) != images:
        raise CefamError(
            f"Stage {name!r} gives a batch of {len(raw)} for {images} image(s): the classifier makes views of an image, or has the batch "
            f"in another dimension. Wrap the network that takes one view of each image, the batch first."
        )


def _layout(raw: Tensor, name: str, input_size: tuple[int, int]) -> MapLayout:
    """Infer the layout of a square image's map: the two equal dimensions are height and width."""
    if raw.dim() == 3:
        return "tokens"
    if input_size[0] != input_size[1]:
        raise CefamError(
            f"Stage {name!r} gives a map {tuple(raw.shape)} for an image of {input_size[0]} x {input_size[1]}, whose layout can only be "
            f"told from a square one: give a square `input_size`, or FrozenClassifier its `layout` ('channels_first' or 'channels_last')."
        )
    _, first, second, third = raw.shape
    return "channels_last" if first == second != third else "channels_first"


def _stated_grids(module: nn.Module, input_size: tuple[int, int]) -> set[tuple[int, int]]:
    """Patch grids computed from the modules' ``patch_size`` attributes."""
    grids = set()
    for child in module.modules():
        size = getattr(child, "patch_size", None)
        size = (size, size) if isinstance(size, int) else size
        if isinstance(size, tuple | list) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size):
            grids.add((input_size[0] // size[0], input_size[1] // size[1]))
    return grids - {(0, 0)}


def refuse_untappable(module: nn.Module) -> nn.Module:
    """Check that the module can be tapped; returns it, unwrapped from torch.compile."""
    # Do not import torch._dynamo (slow): if it is not loaded, nothing is compiled.
    compiled = sys.modules["torch._dynamo"].OptimizedModule if "torch._dynamo" in sys.modules else ()
    if isinstance(module, compiled):
        module = module._orig_mod
    for name, child in module.named_modules():
        where = f"Its module {name!r}" if name else "The classifier"
        if isinstance(child, torch.jit.ScriptModule):
            raise CefamError(
                f"{where} is TorchScript, whose inner maps cannot be tapped: pass the torch.nn.Module that it was made from."
            )
        exported = isinstance(child, torch.fx.GraphModule) and not any(n.op == "call_module" for n in child.graph.nodes)
        if exported or type(child).__module__.startswith("torch.export"):
            raise CefamError(
                f"{where} was made by torch.export, and inner maps of an exported network cannot be tapped: pass the torch.nn.Module that "
                f"it was made from."
            )
        if isinstance(child, compiled) or child._compiled_call_impl is not None:
            raise CefamError(
                f"{where} is compiled, so its inner maps cannot be tapped: pass the module as it was before torch.compile."
            )
        if ".quantized" in type(child).__module__ or any(v.is_quantized for v in child.parameters(recurse=False)):
            raise CefamError(f"{where} is quantized and has no gradients: pass the network before it was quantized.")
    return module


def probe_size(module: nn.Module, given: Sequence[int] | None) -> tuple[int, int, int]:
    """Channels, height and width of the probe image."""
    if given is not None:
        if len(given) not in (2, 3) or min(given) < 1:
            raise CefamError(
                f"input_size must be (height, width) or (channels, height, width), all positive, got {list(given)}."
            )
        channels = given[0] if len(given) == 3 else 3
        return channels, given[-2], given[-1]
    fixed = getattr(module, "image_size", None) or getattr(getattr(module, "patch_embed", None), "img_size", None)
    config = getattr(module, "pretrained_cfg", None)  # timm
    channels = 3
    if isinstance(config, Mapping):
        channels = config.get("input_size", (3,))[0]
        fixed = fixed or config.get("input_size", (3, 224, 224))[1:]
    if fixed is None:
        return channels, 224, 224
    return (channels, fixed, fixed) if isinstance(fixed, int) else (channels, fixed[0], fixed[1])
