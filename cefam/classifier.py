"""FrozenClassifier: any image classifier as stages and a head, tapped without touching its code.

``forward`` gives the logits and one map (B, C, H, W) per stage; ``resume`` runs the rest of the network from a changed
map; ``rerun`` connects the maps of images by autograd, from the first stage on. All three run the module's own
``forward``. For ``resume`` every submodule that has done all its work before the stage is answered by a stand-in filled
with NaN: nothing in front of the stage is computed again, and if anything by-passes the stage, NaN reaches the logits.
That is the cut check, made once at construction.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from cefam.folding import folded
from cefam.identity import weights_fingerprint
from cefam.stages import Layout, Stage, StageContext, Trace, describe_value
from cefam.views import Preprocessing

Context = Sequence[StageContext]


@dataclass(frozen=True)
class ClassifierOutput:
    """``logits`` (B, Y); ``activations``: one map (B, C_l, H_l, W_l) per stage, shallow to deep; ``context``: the rest."""

    logits: Tensor
    activations: list[Tensor]
    context: list[StageContext]


class FrozenClassifier(nn.Module):
    """A classifier that never changes, with its stages; build it with :meth:`from_module` or :func:`load_classifier`.

    Args:
        module: the classifier; its ``forward`` takes images and returns logits (B, Y).
        stages: names of the tapped submodules, in the order they run (``module.named_modules()`` lists them).
        input_size: (H, W) of the probe image; ``None``: read off the module, else 224 x 224.
        layout: how the stages' outputs are laid out; "auto" tells from the probe.
        num_prefix_tokens: prefix tokens of token outputs; ``None``: read off the module or from the square grid.
        preprocessing: applied to the images in ``forward``; default: none, they come as the module wants them.
        class_names: names of the Y classes, for people.
        source: how the classifier was loaded, in plain types, kept in checkpoints (``load_classifier`` sets it).
        fold: run a copy with BatchNorm folded into the convolutions and channels last (:func:`cefam.folding.folded`), which
            gives the same values to rounding, faster; ``False`` runs the module as it is.

    Raises:
        ValueError: for stages that do not exist (near names are given), run twice, run in another order, or give
            outputs that are no maps; for a probe that the module does not accept.
    """

    def __init__(
        self,
        module: nn.Module,
        stages: Sequence[str],
        input_size: Sequence[int] | None = None,
        layout: Layout = "auto",
        num_prefix_tokens: int | None = None,
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
        source: dict[str, Any] | None = None,
        fold: bool = True,
    ) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.preprocessing = preprocessing or Preprocessing()
        self.class_names = list(class_names) if class_names else None
        self.source = source
        self.eval()
        self.input_size = _input_size(module, input_size)
        names = dict(module.named_modules())
        for name in stages:
            if not name or name not in names:
                raise ValueError(f"The classifier has no module {name!r}.{_near(name, names)}")
        if not stages:
            raise ValueError("Name at least one stage of the classifier.")
        self.stages = [Stage(name, _final_norm(module, name) or name, layout) for name in stages]
        self._probe(num_prefix_tokens)
        # Hashed now: later the weights may be folded, lie on a GPU, or in another precision.
        self.fingerprint = weights_fingerprint(module, salt=repr(self.stage_names))
        if fold:
            self.module = folded(module, self._probe_image(), {stage.tap for stage in self.stages})

    @classmethod
    def from_module(cls, module: nn.Module, stages: Sequence[str], **options: Any) -> Self:
        """Wrap any module with named stages; ``options`` are those of the class."""
        return cls(module, stages, **options)

    @property
    def channels(self) -> list[int]:
        """C_l of every stage, shallow to deep."""
        return [stage.channels for stage in self.stages]

    @property
    def stage_names(self) -> list[str]:
        """Names of the stages, as given."""
        return [stage.name for stage in self.stages]

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: ``Trainer.fit`` must not move BatchNorm's running statistics."""
        return super().train(False)

    def identity(self) -> dict[str, Any]:
        """What an artefact must agree with to be used with this classifier, in plain types."""
        return {
            "source": self.source,
            "fingerprint": self.fingerprint,
            "stages": self.stage_names,
            "channels": self.channels,
            "preprocessing": self.preprocessing.to_dict(),
        }

    @torch.no_grad()
    def forward(self, images: Tensor) -> ClassifierOutput:
        """Logits, stage maps and context, without a graph.

        Args:
            images: views (B, 3, H, W), uint8 or floats in [0, 1], which ``preprocessing`` normalizes; without one, floats as
                the module wants them.
        """
        images = self.preprocessing(images)
        captured: list[Any] = [None] * len(self.stages)
        with self._tapped(captured, images.shape[-2:]):
            logits = self.module(images)
        return ClassifierOutput(logits, [c[1] for c in captured], [c[2] for c in captured])

    def resume(self, stage: int, activation: Tensor, context: Context | None = None) -> Tensor:
        """Logits (P, Y) when the map that leaves a stage is ``activation``.

        Args:
            stage: from 0.
            activation: (P, C_l, H, W).
            context: that of the images, as in the output of ``forward``, one row per row of ``activation``; needed where
                the stage has prefix tokens.

        Raises:
            ValueError: where something by-passes the stage, or a needed context is missing.
        """
        if not self.stages[stage].resumable:
            raise ValueError(
                f"Stage {self.stages[stage].name!r} is not a cut of the classifier: something by-passes it, so the network "
                f"cannot be run on from its map. Regions are possible there, contributions are not; choose another stage."
            )
        with self._standing_in(stage, activation, context) as image:
            logits: Tensor = self.module(image)
            return logits

    def rerun(self, output: ClassifierOutput, images: Tensor, chosen: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Stage maps of some images, connected by autograd to the first stage's.

        Args:
            output: of ``forward(images)``.
            images: (B, 3, H, W).
            chosen: which of them (b,).

        Returns:
            Maps, one (b, C_l, H_l, W_l) per stage, and the raw stage outputs they are views of, to derive by; a raw
            gradient becomes a map's gradient by :meth:`as_map`.
        """
        captured: list[Any] = [None] * len(self.stages)
        size = self.preprocessing(images[:1]).shape[-2:]
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            # Fused attention has no rule for a backward pass with many gradients at once.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if self.stages[0].resumable:
                first = output.activations[0][chosen]
                context = [c.select(chosen) for c in output.context]
                pixels = stack.enter_context(self._standing_in(0, first, context))
            else:  # nothing may stand in for what by-passes the first stage
                pixels = self.preprocessing(images[chosen])
            stack.enter_context(self._tapped(captured, size, differentiable=True))
            self.module(pixels)
        return [c[1] for c in captured], [c[0] for c in captured]

    def as_map(self, stage: int, raw: Tensor, like: Tensor) -> Tensor:
        """A tensor laid out as the stage's raw output, as a map of the size of ``like`` (P, C, H, W)."""
        return self.stages[stage].to_map(raw, (like.shape[-2], like.shape[-1]))[0]

    def through_norm(self, stage: int, gradient: Tensor, before_norm: Tensor) -> Tensor:
        """Carry a gradient (P, C, H, W) at the map after the final LayerNorm to the map before it (P, C, H, W)."""
        norm = self.module.get_submodule(self.stages[stage].tap)
        with torch.enable_grad():
            source = before_norm.detach().requires_grad_()
            normed = norm(source.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return torch.autograd.grad(normed, source, gradient)[0]

    @contextmanager
    def _tapped(self, captured: list[Any], size: Sequence[int], differentiable: bool = False) -> Iterator[None]:
        """While open, fill ``captured`` with (raw output, map, context) of every stage that runs."""

        def hook(index: int) -> Callable[..., Tensor]:
            stage = self.stages[index]

            def capture(module: nn.Module, inputs: tuple[Tensor, ...], raw: Tensor) -> Tensor:
                if differentiable and index == 0:
                    raw = raw.detach().requires_grad_()
                grid = stage.grid(raw, size)
                before = stage.to_map(inputs[0], grid)[0] if stage.tap != stage.name else None
                activation, prefix = stage.to_map(raw, grid)
                captured[index] = (raw, activation, StageContext(prefix, before))
                return raw.clone()  # what follows may work in place, and must not reach the captured map

            return capture

        with ExitStack() as stack:
            for index, stage in enumerate(self.stages):
                handle = self.module.get_submodule(stage.tap).register_forward_hook(hook(index))
                stack.callback(handle.remove)
            yield

    @contextmanager
    def _standing_in(self, index: int, activation: Tensor, context: Context | None) -> Iterator[Tensor]:
        """While open, the module runs from the given stage on; yields the image to call it with (it is not looked at)."""
        stage, batch = self.stages[index], len(activation)
        prefix = None if context is None else context[index].prefix
        if stage.num_prefix and prefix is None:
            raise ValueError(
                f"Stage {stage.name!r} has {stage.num_prefix} prefix token(s) beside its map: pass the context of the "
                f"classifier's output."
            )
        if activation.shape[1] != stage.channels:
            raise ValueError(
                f"Stage {stage.name!r} has {stage.channels} channels, the given map {activation.shape[1]}: it belongs to another stage."
            )
        raw = stage.to_raw(activation, None if prefix is None else prefix.to(activation.dtype))
        nothing = raw.detach().new_full((), torch.nan)

        def answer(shapes: Any) -> Callable[..., Any]:
            """An output of the same structure; what is no tensor in it (a number, None) is what it was."""
            return lambda *_, **__: tree_map(
                lambda s: nothing.expand(batch, *s) if isinstance(s, torch.Size) else s,
                shapes,
                is_leaf=lambda s: isinstance(s, torch.Size),
            )

        forwards = {name: answer(shapes) for name, shapes in stage.stand_ins.items()}
        forwards[stage.tap] = lambda *_, **__: raw
        with _replaced_forwards({self.module.get_submodule(name): forward for name, forward in forwards.items()}):
            yield nothing.expand(batch, 3, *self.input_size)

    def _probe_image(self) -> Tensor:
        reference = next(self.module.parameters(), torch.zeros(()))
        generator = torch.Generator().manual_seed(0)
        return torch.rand(1, 3, *self.input_size, generator=generator).to(reference)

    @torch.no_grad()
    def _probe(self, num_prefix_tokens: int | None) -> None:
        """Run one image through the module: learn layouts, channels and stand-ins, and check the order and the cuts."""
        image = self._probe_image()
        trace = Trace(self.module)
        with trace:
            try:
                logits = self.module(image)
            except (RuntimeError, AssertionError, ValueError) as error:
                raise ValueError(
                    f"The classifier does not accept an image of {self.input_size[0]} x {self.input_size[1]} ({error}): "
                    f"pass the size it wants as `input_size`."
                ) from error
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            raise ValueError(f"The classifier must return logits (B, classes), got {describe_value(logits)}.")
        if not bool(logits.isfinite().all()):
            raise ValueError("The classifier's logits are not finite: its weights hold NaN, or values that overflow.")
        if self.class_names and len(self.class_names) != logits.shape[1]:
            raise ValueError(
                f"The classifier has {logits.shape[1]} classes, but {len(self.class_names)} class_names were given."
            )
        for stage in self.stages:
            trace.describe(stage, num_prefix_tokens, self.module, self.input_size)
        starts = [trace.start(stage.tap) for stage in self.stages]
        if starts != sorted(starts):
            order = [stage.name for _, stage in sorted(zip(starts, self.stages, strict=True), key=lambda pair: pair[0])]
            raise ValueError(f"Stages must be given in the order they run: {order}, got {self.stage_names}.")
        captured: list[Any] = [None] * len(self.stages)
        with self._tapped(captured, self.input_size):
            self.module(image)
        for index, (_, activation, _) in enumerate(captured):
            with self._standing_in(index, activation, [c[2] for c in captured]) as nothing:
                try:
                    again = self.module(nothing)
                except RuntimeError:  # what by-passes the stage does not even fit
                    again = torch.full_like(logits, torch.nan)
            stage = self.stages[index]
            stage.resumable = torch.allclose(again, logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
            if not stage.resumable:  # then everything runs again
                stage.elements = sum(elements for _, elements in trace.leaves)


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


def _near(name: str, known: Mapping[str, Any]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, [n for n in known if n], n=3, cutoff=0.5) or [n for n in known if n and "." not in n]
    return f" Did you mean {', '.join(map(repr, near))}?"


def _input_size(module: nn.Module, given: Sequence[int] | None) -> tuple[int, int]:
    """Height and width of the images the module is probed with."""
    if given is not None:
        if len(given) != 2 or min(given) < 1:
            raise ValueError(f"input_size must be (height, width), both positive, got {list(given)}.")
        return given[0], given[1]
    fixed = getattr(module, "image_size", None) or getattr(getattr(module, "patch_embed", None), "img_size", None)
    config = getattr(module, "pretrained_cfg", None)  # timm
    if fixed is None and isinstance(config, Mapping):
        fixed = config.get("input_size", (3, 224, 224))[1:]
    if fixed is None:
        return 224, 224
    return (fixed, fixed) if isinstance(fixed, int) else (fixed[0], fixed[1])


def _final_norm(module: nn.Module, stage: str) -> str | None:
    """The LayerNorm that takes the output of ``stage``, where that is the last block of a vision transformer.

    The stage's map is then taken after the norm (golden rule); torchvision and timm transformers are recognized.
    """
    for blocks, norm in (("encoder.layers", "encoder.ln"), ("blocks", "norm")):
        try:
            last, following = list(module.get_submodule(blocks).named_children())[-1][0], module.get_submodule(norm)
        except (AttributeError, IndexError):
            continue
        if stage == f"{blocks}.{last}" and isinstance(following, nn.LayerNorm):
            return norm
    return None
