"""FrozenClassifier: any image classifier as stages and a head, without changing its code.

``forward`` returns the logits and one map (B, C, H, W) per stage; ``resume`` runs the rest of the network from a modified
map; ``rerun`` connects maps and logits by autograd. All three run the module's own ``forward``. In ``resume``, every
submodule that finishes before the stage is replaced by a stand-in that returns NaN. Nothing before the stage is recomputed,
and if anything bypasses the stage, the logits become NaN. The constructor uses this to check that each stage is a cut.

All three are thread-safe: a lock serializes the calls.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cefam.errors import CefamError, near
from cefam.images.pictures import to_grey
from cefam.images.views import Preprocessing
from cefam.io.identity import weights_fingerprint
from cefam.towers import outputs as O
from cefam.towers.folding import folded
from cefam.towers.stages import ClassifierOutput, MapLayout, Rerun, Stage, StageContext
from cefam.towers.taps import LOCK, LogitsModel, stacked_gradients, standing_in, tapped
from cefam.towers.trace import Trace, probe_size, refuse_untappable
from cefam.towers.wrapping import alike, among_others, can_be_batched, check_default_precision, refused_probe, usable


class FrozenClassifier(nn.Module):
    """A frozen classifier with named stages; build it with :meth:`from_module` or :func:`load_classifier`.

    The given module is modified: it is put into eval mode, ``requires_grad`` of its parameters is set to ``False``, and
    gradient checkpointing is turned off.

    Args:
        module: the classifier; its ``forward`` takes images and returns logits (B, Y), an output with ``.logits``, or an
            output whose first tensor is the logits. Half and double precision weights are supported.
        stages: names of the tapped submodules, in the order they run (``module.named_modules()`` lists them).
        input_size: (H, W) of the probe image, or (C, H, W) if the number of channels is not three; ``None``: taken from
            the module's attributes, else 224 x 224.
        layout: axis order of the stages' outputs; "auto" infers it from the probe.
        num_prefix_tokens: number of prefix tokens in token outputs; ``None``: taken from the module, or inferred from its
            patch grid.
        preprocessing: applied to the images in ``forward``; default: none, so images must match the module's input format.
        class_names: class names for display.
        source: how the classifier was loaded, in plain Python types; saved in checkpoints (set by ``load_classifier``).
        fold: run a faster copy with BatchNorm folded into the convolutions and channels-last memory
            (:func:`cefam.towers.folding.folded`), equal up to rounding; ``False`` runs the module unchanged.
        outputs: type of the module's outputs: "softmax" or "sigmoid" logits, or "probabilities"; ``None``: inferred from
            the probe (:func:`cefam.towers.outputs.meaning`). A single output is the score of the second of two classes.

    Raises:
        CefamError: if a stage does not exist (similar names are suggested), does not run exactly once, is out of order, or
            returns no map; if the module cannot be tapped (TorchScript, exported, quantized) or rejects the probe image; if
            outputs are random or depend on other images of the batch; if no gradient reaches a stage; if torch's default
            dtype is not float32.

    >>> layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    >>> classifier = FrozenClassifier(nn.Sequential(*layers), stages=["1", "2"], input_size=(32, 32))
    >>> output = classifier(torch.rand(5, 3, 32, 32))
    >>> output.logits.shape, [tuple(activation.shape) for activation in output.activations]
    (torch.Size([5, 4]), [(5, 8, 15, 15), (5, 4, 13, 13)])
    >>> torch.allclose(classifier.resume(0, output.activations[0]), output.logits, atol=1e-5)
    True
    """

    @torch.inference_mode(False)  # autograd uses its tensors, even if the caller is in inference mode
    def __init__(
        self,
        module: nn.Module,
        stages: Sequence[str],
        input_size: Sequence[int] | None = None,
        layout: MapLayout = "auto",
        num_prefix_tokens: int | None = None,
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
        source: dict[str, Any] | None = None,
        fold: bool = True,
        outputs: O.Outputs | None = None,
    ) -> None:
        super().__init__()
        check_default_precision()
        module = usable(refuse_untappable(module))
        self.module = module.requires_grad_(False)
        self.preprocessing = preprocessing or Preprocessing()
        self.class_names = list(class_names) if class_names else None
        self.source = source
        self.eval()
        self.input_channels, *size = probe_size(module, input_size)
        self.input_size = (size[0], size[1])
        self.preprocessing.check_channels(self.input_channels)
        names = dict(module.named_modules())
        for name in stages:
            if not name or name not in names:
                hint = near(name, names, 0.5) or near(name, [n for n in names if "." not in n], 0)
                raise CefamError(f"The classifier has no module {name!r}.{hint}")
        if not stages:
            raise CefamError("Name at least one stage of the classifier.")
        self.stages = [Stage(name, name, layout) for name in stages]
        self._probe(num_prefix_tokens, outputs)
        # Hash before the weights are folded, moved to a GPU or converted to another precision.
        self.fingerprint = weights_fingerprint(module, salt=repr(self.stage_names))
        self._given = (
            module,
        )  # a tuple, so that it is not registered as a submodule and not moved or saved with the classifier
        if fold:
            self.module = folded(module, self._probe_image(), {stage.tap for stage in self.stages})
        self._batched_gradients = True
        if len(self.stages) > 1:
            image = self._probe_image()
            again = self.rerun(self(image), image, torch.tensor([0]))
            self._batched_gradients = can_be_batched(self.stages, again.activations, again.sources)

    @classmethod
    def from_module(cls, module: nn.Module, stages: Sequence[str], **options: Any) -> Self:
        """Wrap any module with named stages; ``options`` are passed to the constructor."""
        return cls(module, stages, **options)

    @property
    def channels(self) -> list[int]:
        """C_l of every stage, shallow to deep."""
        return [stage.channels for stage in self.stages]

    @property
    def stage_names(self) -> list[str]:
        """Names of the stages, as given."""
        return [stage.name for stage in self.stages]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the module's weights and computation; maps and logits are used in single precision."""
        kinds = (value.dtype for value in self.module.parameters() if value.is_floating_point())
        return next(kinds, torch.float32)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, so that ``Trainer.fit`` does not update BatchNorm's running statistics."""
        return super().train(False)

    def identity(self) -> dict[str, Any]:
        """The fields that an artefact must match to be used with this classifier, in plain Python types."""
        return {
            "source": self.source,
            "fingerprint": self.fingerprint,
            "stages": self.stage_names,
            "channels": self.channels,
            "preprocessing": self.preprocessing.to_dict(),
        }

    def class_name(self, index: int) -> str:
        """The name of a class, or its index if names are unknown."""
        return self.class_names[index] if self.class_names else str(index)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class probabilities in double precision: (V, Y) -> (V, classes)."""
        return O.log_probabilities(logits, self.outputs).exp()

    def log_probability(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Log-probability of one class per row, in double precision: (V, Y), (V,) -> (V,)."""
        return O.log_probabilities(logits, self.outputs).gather(1, classes.unsqueeze(1)).squeeze(1)

    @property
    def device(self) -> torch.device:
        """Device of the module's weights."""
        return next((value.device for value in self.module.parameters()), torch.device("cpu"))

    def unfolded(self) -> LogitsModel:
        """The given network without folding, on the classifier's device, for libraries that need its layers."""
        return LogitsModel(self._given[0].to(self.device), self._input)

    def _input(self, images: Tensor) -> Tensor:
        """Convert views to the module's input channels, normalization and dtype."""
        if self.input_channels == 1 and images.dim() == 4 and images.shape[1] == 3:
            images = to_grey(images)
        prepared = self.preprocessing(images).to(self.dtype)
        return prepared.clone() if self._writes_input and prepared is images else prepared

    @torch.inference_mode(False)  # autograd uses its outputs, even if the caller is in inference mode
    @torch.no_grad()
    def forward(self, images: Tensor) -> ClassifierOutput:
        """Compute logits, stage maps and context, without an autograd graph.

        Args:
            images: views (B, 3, H, W), uint8 or floats in [0, 1], which ``preprocessing`` normalizes; without it,
                floats in the module's input format.
        """
        images = self._input(images)
        captured: list[Any] = [None] * len(self.stages)
        with LOCK, tapped(self.module, self.stages, captured, images.shape[-2:]):
            logits = O.logits_of(self.module(images))
        return ClassifierOutput(logits, [c[1] for c in captured], [c[2] for c in captured])

    @torch.inference_mode(False)
    def resume(self, stage: int, activation: Tensor, context: Sequence[StageContext] | None = None) -> Tensor:
        """Logits (P, Y) with a stage's map replaced by ``activation``, which is not modified.

        Args:
            stage: index of the stage, from 0.
            activation: (P, C_l, H, W).
            context: the images' context from ``forward``, one row per row of ``activation``; required if the stage has
                prefix tokens.

        Raises:
            CefamError: if something bypasses the stage, or a required context is missing.
        """
        if not self.stages[stage].resumable:
            raise CefamError(
                f"Stage {self.stages[stage].name!r} is not a cut of the classifier: something by-passes it, so the network "
                f"cannot be run on from its map. Regions are possible there, contributions are not; choose another stage."
            )
        with LOCK, self._standing_in(stage, activation, context) as image:
            return O.logits_of(self.module(image)).to(activation.dtype)

    @torch.inference_mode(False)
    def rerun(self, output: ClassifierOutput, images: Tensor, chosen: Tensor, first: int = 0) -> Rerun:
        """Maps and logits of some images, connected by autograd to the map of one stage.

        Args:
            output: result of ``forward(images)``.
            images: (B, 3, H, W).
            chosen: indices of the images to rerun (b,).
            first: index of the stage to start from; negative indices count from the last stage.

        Returns:
            The maps and raw outputs of the stages from ``first`` on, and the logits.
        """
        first %= len(self.stages)
        captured: list[Any] = [None] * len(self.stages)
        size = self.preprocessing.size or images.shape[-2:]
        with LOCK, ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            # Fused attention does not support batched gradients.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if self.stages[first].resumable:
                activation = output.activations[first][chosen]
                context = [c.select(chosen) for c in output.context]
                pixels = stack.enter_context(self._standing_in(first, activation, context))
            else:  # something bypasses the stage: run the whole network
                pixels = self._input(images[chosen])
            stack.enter_context(tapped(self.module, self.stages, captured, size, first))
            logits = O.logits_of(self.module(pixels))
        return Rerun([c[1] for c in captured[first:]], [c[0] for c in captured[first:]], logits)

    def gradients(
        self, outputs: Sequence[Tensor], sources: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> list[Tensor]:
        """Backpropagate S gradients of the outputs, one (S, *output.shape) each, at once through the graph of :meth:`rerun`.

        Returns:
            One gradient per source, of shape (S, *source.shape).
        """
        return stacked_gradients(outputs, sources, gradients, self._batched_gradients)

    def as_map(self, stage: int, raw: Tensor, like: Tensor) -> Tensor:
        """Convert a tensor in the stage's raw layout to a map with the height and width of ``like`` (P, C, H, W)."""
        return self.stages[stage].to_map(raw, (like.shape[-2], like.shape[-1]))[0]

    @torch.inference_mode(False)
    def through_norm(self, stage: int, gradient: Tensor, before_norm: Tensor) -> Tensor:
        """Backpropagate a gradient (P, C, H, W) through the final LayerNorm to the map before it (P, C, H, W)."""
        norm = self.module.get_submodule(self.stages[stage].tap)
        with torch.enable_grad():
            source = before_norm.detach().requires_grad_()
            normed = norm(source.permute(0, 2, 3, 1).to(self.dtype)).permute(0, 3, 1, 2)
            return torch.autograd.grad(normed, source, gradient.to(normed.dtype))[0]

    @contextmanager
    def _standing_in(self, index: int, activation: Tensor, context: Sequence[StageContext] | None) -> Iterator[Tensor]:
        """Make the module start at the given stage while active; yields a dummy input to call it with."""
        stage = self.stages[index]
        prefix = None if context is None else context[index].prefix
        if stage.num_prefix and prefix is None:
            raise CefamError(
                f"Stage {stage.name!r} has {stage.num_prefix} prefix token(s) beside its map: pass the context of the "
                f"classifier's output."
            )
        if activation.shape[1] != stage.channels:
            raise CefamError(
                f"Stage {stage.name!r} has {stage.channels} channels, the given map {activation.shape[1]}: it belongs to another stage."
            )
        raw = stage.to_raw(activation, None if prefix is None else prefix.to(activation.dtype))
        raw = raw.to(self.dtype)  # maps may come from autocast
        with standing_in(self.module, stage, raw) as nothing:
            image = nothing.expand(len(raw), self.input_channels, *self.input_size)
            yield image.clone() if self._writes_input else image

    def _probe_image(self) -> Tensor:
        """Uniform noise in [0, 1) from a fixed seed."""
        reference = next(self.module.parameters(), torch.zeros(()))
        generator = torch.Generator().manual_seed(0)
        return torch.rand(1, self.input_channels, *self.input_size, generator=generator).to(reference)

    @torch.enable_grad()  # the type of the outputs is inferred from their autograd graph
    def _probe(self, num_prefix_tokens: int | None, outputs: O.Outputs | None) -> None:
        """Run one image through the module to find layouts, channels and stand-ins, and check stage order and cuts."""
        image = self._probe_image().requires_grad_().clone()  # not a leaf: some networks modify their input in place
        probe, version = image.detach().clone(), image._version
        trace = Trace(self.module)
        with trace:
            try:
                logits = O.logits_of(self.module(image))
            except (RuntimeError, AssertionError, ValueError, TypeError) as error:
                if isinstance(error, CefamError | torch.OutOfMemoryError):
                    raise
                raise refused_probe(self.module, self.input_channels, self.input_size, error) from error
        self._writes_input = image._version != version
        if logits.dim() != 2:
            raise CefamError(f"The classifier must return logits (B, classes), got {O.describe_value(logits)}.")
        if not bool(logits.isfinite().all()):
            raise CefamError("The classifier's logits are not finite: its weights hold NaN, or values that overflow.")
        self.outputs = O.meaning(logits, outputs)
        self.num_classes = max(logits.shape[1], 2)
        if self.class_names and len(self.class_names) != self.num_classes:
            raise CefamError(
                f"The classifier has {self.num_classes} classes, but {len(self.class_names)} class_names were given."
            )
        for stage in self.stages:
            trace.start(stage.name)
            stage.tap = trace.final_norm(stage.name) or stage.name
            trace.describe(stage, num_prefix_tokens, self.module, self.input_size)
        starts = [trace.start(stage.tap) for stage in self.stages]
        if starts != sorted(starts):
            order = [stage.name for _, stage in sorted(zip(starts, self.stages, strict=True), key=lambda pair: pair[0])]
            raise CefamError(f"Stages must be given in the order they run: {order}, got {self.stage_names}.")
        self._check_cuts(probe, logits.detach(), sum(elements for _, elements in trace.leaves))

    @torch.no_grad()
    def _check_cuts(self, image: Tensor, logits: Tensor, all_elements: int) -> None:
        """Mark a stage as resumable if the network reproduces the logits from its map alone."""
        captured = among_others(self.module, self.stages, self.input_size, image, logits)
        for index, (_, activation, _) in enumerate(captured):
            with self._standing_in(index, activation[:1], [c[2].select(slice(1)) for c in captured]) as nothing:
                try:
                    again = O.logits_of(self.module(nothing))
                except Exception as error:  # a bypass may also cause mismatched shapes
                    if isinstance(error, MemoryError | torch.OutOfMemoryError):
                        raise
                    again = torch.full_like(logits, torch.nan)
            self.stages[index].resumable = alike(again, logits, self.dtype)
            if not self.stages[index].resumable:  # a rerun computes the whole network
                self.stages[index].elements = all_elements
