"""Vision-language models: the translator's teacher, and the encoder of concept texts.

Any model that embeds images and texts in one space can be used: subclass :class:`VisionLanguageModel` and name the
class in a config (``class_path``). :func:`load_vlm` loads open_clip models.
"""

import json
import math
import os
import threading
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from cefam.errors import CefamError, MissingError, near
from cefam.images.views import Preprocessing
from cefam.io.identity import weights_fingerprint

Probability = Literal["softmax", "sigmoid"]


class VisionLanguageModel(nn.Module):
    """A frozen image encoder and text encoder with a joint embedding space.

    Subclasses set the attributes below in their constructor and define :meth:`encode_image` and :meth:`encode_text`.

    Attributes:
        embedding_dim: D.
        logit_scale: the multiplier of cosines (not its logarithm).
        logit_bias: added to the scaled cosines.
        probability: "softmax" over concepts (CLIP) or "sigmoid" (SigLIP).
        preprocessing: applied to views by the image encoder.
        source: how the model was loaded, in plain Python types; saved in artefacts.
    """

    embedding_dim: int
    logit_scale: float = 1.0
    logit_bias: float = 0.0
    probability: Probability = "softmax"
    preprocessing: Preprocessing = Preprocessing()
    source: dict[str, Any] | None = None
    _fingerprint: str | None = None

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeddings (B, D), not normalized, of views (B, 3, H, W), uint8 or floats in [0, 1]."""
        raise NotImplementedError

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (T, D) of texts; the caller normalizes them."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """The fields that an artefact must match to be used with this model, in plain Python types."""
        return {
            "source": self.source or {"class_path": f"{type(self).__module__}.{type(self).__qualname__}"},
            "embedding_dim": self.embedding_dim,
            "logit_scale": self.logit_scale,
            "logit_bias": self.logit_bias,
            "probability": self.probability,
            "preprocessing": self.preprocessing.to_dict(),
            "fingerprint": self.fingerprint,
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights at the time of :meth:`freeze`."""
        return self._fingerprint or weights_fingerprint(self)

    def freeze(self) -> Self:
        """Turn off gradients and set eval mode; must be called before the teacher is used.

        The weights are hashed here, before they are moved to a GPU or converted to another precision.

        Raises:
            CefamError: if ``logit_scale`` or ``logit_bias`` is not finite, or ``probability`` is unknown.
        """
        if self.probability not in ("softmax", "sigmoid"):
            raise CefamError(f"The VLM's probability must be 'softmax' or 'sigmoid', got {self.probability!r}.")
        if not (math.isfinite(self.logit_scale) and math.isfinite(self.logit_bias)):
            raise CefamError(
                f"The VLM's logit_scale is {self.logit_scale} and its logit_bias {self.logit_bias}: its weights are damaged."
            )
        self._fingerprint = self.fingerprint
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: the teacher is frozen."""
        return super().train(False)


def encode_images(vlm: VisionLanguageModel, images: Tensor) -> Tensor:
    """Embeddings (B, D) of views, with a check of their shape."""
    embedding = vlm.encode_image(images)
    if embedding.shape != (len(images), vlm.embedding_dim):
        raise CefamError(
            f"The VLM's encode_image gave {tuple(embedding.shape)} for {len(images)} views, its embedding_dim is {vlm.embedding_dim}: "
            f"it must give (B, D)."
        )
    return embedding


# Hugging Face's fast tokenizers fail if two threads use the same one at once.
TOKENIZING = threading.Lock()


class OpenCLIP(VisionLanguageModel):
    """Wrapper of an open_clip model (CLIP or SigLIP); :func:`load_vlm` builds it."""

    def __init__(self, model: Any, tokenizer: Any, source: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.model: Any = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.source = source
        bias = getattr(model, "logit_bias", None)
        self.logit_scale = float(model.logit_scale.exp())
        self.logit_bias = 0.0 if bias is None else float(bias)
        self.probability = "softmax" if bias is None else "sigmoid"
        visual = model.visual
        size = visual.image_size
        config = visual.preprocess_cfg
        self.preprocessing = Preprocessing(
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            size=(size, size) if isinstance(size, int) else (size[0], size[1]),
            interpolation=config.get("interpolation", "bicubic"),
        )
        self.preprocessing.check_channels(3)
        self.embedding_dim = self.encode_text(["a"]).shape[-1]

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Embeddings (B, D), not normalized, of views (B, 3, H, W)."""
        embedding: Tensor = self.model.encode_image(self.preprocessing(images)).float()
        return embedding

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (T, D) of texts, in batches."""
        device = self.model.logit_scale.device
        length: int = getattr(self.tokenizer, "context_length", None) or getattr(self.model, "context_length", 77) or 77
        parts = [list(texts[start : start + 256]) for start in range(0, len(texts), 256)]
        with TOKENIZING:
            for text in texts:
                count = self._num_tokens(text)
                if count > length:
                    raise CefamError(
                        f"The text {text[:60]!r}... has {count} tokens with both ends, the model reads {length}: shorten the concept."
                    )
            tokens = [self.tokenizer(part).to(device) for part in parts]
        return torch.cat([self.model.encode_text(part) for part in tokens]).float()

    def _num_tokens(self, text: str) -> int:
        """Number of tokens of a text without truncation, with start and end tokens; 0 if it cannot be determined."""
        if hasattr(self.tokenizer, "encode"):  # CLIP's tokenizer
            return len(self.tokenizer.encode(text)) + 2
        inner = getattr(self.tokenizer, "tokenizer", None)  # Hugging Face tokenizer
        clean = getattr(self.tokenizer, "clean_fn", str)
        return len(inner(clean(text))["input_ids"]) if callable(inner) else 0


# logit_bias by model name; None: softmax, else sigmoid. Same weights; the bias is trained in examples/brodenette_recipe.
BRODENETTE = {"brodenette": None, "brodenette_sigmoid": 0.0206}


def load_vlm(
    name: str,
    pretrained: str | None = None,
    config: str | None = None,
    cache_dir: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> VisionLanguageModel:
    """Load an open_clip vision-language model.

    Args:
        name: an open_clip model ("ViT-B-16-quickgelu", "ViT-B-16-SigLIP"), "local-dir:/folder" with
            ``open_clip_config.json`` and weights, or one of the package's small models, "brodenette" (softmax, like CLIP) and
            "brodenette_sigmoid"; with ``config``, the stem of the config file.
        pretrained: a tag ("openai", "webli") or a checkpoint file; not used with "local-dir:".
        config: a custom JSON model config (open_clip's format).
        cache_dir: folder for downloaded weights.
        mean: overrides the model's normalization.
        std: overrides the model's normalization.

    Raises:
        CefamError: for an unknown name, random weights, or OpenAI weights under a name without "quickgelu".
        MissingError: if weights are not available.

    >>> vlm = load_vlm("brodenette")
    >>> vlm.encode_text(["a photo of a wing"]).shape, vlm.probability
    (torch.Size([1, 64]), 'softmax')
    """
    import open_clip

    given = {"name": name, "pretrained": pretrained, "config": config, "cache_dir": cache_dir, "mean": mean, "std": std}
    arguments = {option: value for option, value in given.items() if value is not None}
    bias = BRODENETTE.get(name)
    if config is not None:
        name = _register(Path(config), name)
    elif name in BRODENETTE:
        name = f"local-dir:{files('cefam.brodenette') / 'weights' / 'vlm'}"
    elif not name.startswith(("local-dir:", "hf-hub:")) and name not in open_clip.list_models():
        raise CefamError(
            f"open_clip has no model {name!r}.{near(name, open_clip.list_models(), 0.4)} A folder is written 'local-dir:/path', a JSON "
            f"config of your own is given as `config`."
        )
    if not name.startswith(("local-dir:", "hf-hub:")):
        _check_weights(name, pretrained)
    override = {k: v for k, v in (("mean", mean), ("std", std)) if v is not None}
    try:
        model = open_clip.create_model(
            name, pretrained, cache_dir=cache_dir, require_pretrained=True, force_preprocess_cfg=override or None
        )
        tokenizer = open_clip.get_tokenizer(name, cache_dir=cache_dir)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # open_clip and safetensors raise their own error types for an incomplete folder
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MissingError(
            f"The vision-language model {name!r} with weights {pretrained!r} could not be loaded: {reason} "
            f"Where the hub cannot be reached, save the model once with open_clip and name the folder as 'local-dir:/path', or "
            f"give a checkpoint file as `pretrained`. (HF_HUB_OFFLINE={os.environ.get('HF_HUB_OFFLINE', 'not set')})"
        ) from error
    if bias is not None:
        model.logit_bias = nn.Parameter(torch.tensor(bias))
    return OpenCLIP(model, tokenizer, source={"class_path": "cefam.load_vlm", "init_args": arguments})


def _register(config: Path, name: str) -> str:
    """Register a JSON model config with open_clip; returns the model name, which must be the file's stem."""
    import open_clip

    if not config.is_file():
        raise MissingError(f"There is no file {config}: name a JSON file with an open_clip model config.")
    try:
        keys = json.loads(config.read_text())
    except json.JSONDecodeError as error:
        raise CefamError(f"{config} is not JSON: {error}.") from error
    if not {"embed_dim", "vision_cfg", "text_cfg"} <= set(keys):
        raise CefamError(f"{config} is not an open_clip model config: it needs embed_dim, vision_cfg and text_cfg.")
    if config.stem != name:
        raise CefamError(f"open_clip names a model by its config file: the name must be {config.stem!r}, got {name!r}.")
    open_clip.add_model_config(config)
    return name


def _check_weights(name: str, pretrained: str | None) -> None:
    """Reject missing weights, and weights trained with QuickGELU under a model name without it: open_clip only warns of these."""
    import open_clip

    if pretrained is None:
        raise CefamError(
            f"{name} has no weights, so its embeddings are random: give `pretrained` a tag or a checkpoint file."
        )
    if (open_clip.get_model_config(name) or {}).get("quick_gelu"):
        return
    advice = f"the model name {name!r} builds GELU. Use the name '{name}-quickgelu' for these weights."
    if (open_clip.get_pretrained_cfg(name, pretrained) or {}).get("quick_gelu"):
        raise CefamError(f"The weights {pretrained!r} were trained with QuickGELU, and {advice}")
    if Path(pretrained).is_file() and _is_openai_checkpoint(Path(pretrained)):
        raise CefamError(f"{pretrained} is an OpenAI checkpoint, trained with QuickGELU, and {advice}")


def _is_openai_checkpoint(path: Path) -> bool:
    """Whether this is an OpenAI checkpoint, recognized by three entries that open_clip's checkpoints do not have."""
    marks = {"input_resolution", "context_length", "vocab_size"}
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a TorchScript archive (OpenAI's format) is not a plain state dict
        try:
            state = torch.jit.load(str(path), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
        except Exception:  # unreadable: open_clip reports the error
            return False
    return isinstance(state, dict) and marks <= set(state)
