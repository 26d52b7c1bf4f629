"""Trained: a trained translator with its classifier, concepts and settings; storing and loading it, without Lightning.

An exported folder holds ``model.safetensors``, ``config.json`` and ``README.md`` (a model card); a training checkpoint
holds the same description under the key "cefam". All content is plain types and tensors, so nothing is unpickled. The class
paths of the towers may name only ``torch.nn.Module`` classes and functions annotated to return a module.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from cefam import __version__
from cefam.attribution.explainer import Explainer
from cefam.concepts.sets import ConceptSet
from cefam.doctor import doubts
from cefam.errors import CefamError, ExistsError, MissingError
from cefam.io import hub
from cefam.io.files import write_tensors, write_text
from cefam.probe.stored import Probe, probe_beside
from cefam.settings import MethodSettings
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.identity import CLASSIFIER_KEYS, VLM_KEYS, check_identity
from cefam.towers.loading import load_source
from cefam.towers.vlm import VisionLanguageModel
from cefam.towers.zoo import read_state_dict
from cefam.translator import Translator

MARK = "library_name: cefam"
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained translator, the classifier and concepts it was trained for, and the settings to use it with.

    Args:
        classifier: the frozen classifier.
        translator: trained for its stages.
        concepts: the concept set, embedded by the vision-language model that the translator mimics.
        vlm_identity: identity of that model in plain types (``VisionLanguageModel.identity``), or ``None``.
        settings: settings of the method.
        training: how the translator was trained, in plain types, for the model card.
        doubts: reasons not to trust a concept, by concept number (:mod:`cefam.doctor.doubts`).
        probe: of the classifier and the vision-language model, for regions of all stages; found beside an artefact when it is read.

    >>> import tempfile
    >>> from cefam import load_classifier, load_vlm
    >>> classifier, concepts = load_classifier("brodenette"), ConceptSet.brodenette().embed(load_vlm("brodenette"))
    >>> trained = Trained(classifier, Translator(classifier.channels, embedding_dim=64), concepts)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = Trained.read(trained.write(folder))
    >>> again.settings == trained.settings, len(again.explainer().concepts) == len(concepts)
    (True, True)
    """

    classifier: FrozenClassifier
    translator: Translator
    concepts: ConceptSet
    vlm_identity: dict[str, Any] | None = None
    settings: MethodSettings = field(default_factory=MethodSettings)
    training: dict[str, Any] = field(default_factory=dict)
    doubts: dict[int, str] = field(default_factory=dict)
    probe: Probe | None = None

    def explainer(self, vlm: VisionLanguageModel | None = None, settings: MethodSettings | None = None) -> Explainer:
        """The explainer of this translator.

        Args:
            vlm: only needed for texts that are not in ``concepts``.
            settings: used instead of the stored settings.

        Raises:
            CefamError: if ``vlm`` is not the model that the translator mimics.
        """
        self.check_vlm(vlm)
        return Explainer(
            self.classifier, self.translator, self.concepts, vlm, settings or self.settings, self.doubts, self.probe
        )

    def check_vlm(self, vlm: VisionLanguageModel | None) -> None:
        """Check that ``vlm`` is the translator's vision-language model.

        Raises:
            CefamError: naming the first difference.
        """
        if vlm is not None and self.vlm_identity is not None:
            check_identity("vision-language model", self.vlm_identity, vlm.freeze().identity(), VLM_KEYS)

    def describe(self) -> dict[str, Any]:
        """The content without tensors, in plain types."""
        return {
            "format": "cefam",
            "version": __version__,
            "translator": {
                "channels": self.translator.channels,
                "embedding_dim": self.translator.embedding_dim,
                "hidden_dims": self.translator.hidden_dims,
            },
            "classifier": {**self.classifier.identity(), "class_names": self.classifier.class_names},
            "vlm": self.vlm_identity,
            "concepts": {
                "identity": self.concepts.identity,
                "logit_scale": self.concepts.logit_scale,
                "logit_bias": self.concepts.logit_bias,
                "probability": self.concepts.probability,
                "records": self.concepts.to_records(),
            },
            "settings": self.settings.to_dict(),
            "training": self.training,
        }

    def check(self, stored: Mapping[str, Any] | None) -> None:
        """Check that a stored description was made for this classifier, VLM and concept set.

        Raises:
            CefamError: naming the first difference.
        """
        if not stored or stored.get("format") != "cefam":
            raise CefamError(
                "This checkpoint was not made by cefam: it does not say which classifier and concepts it belongs to. Name a .ckpt of "
                "`cefam fit`."
            )
        mine = self.describe()
        check_identity("classifier", stored["classifier"], mine["classifier"], CLASSIFIER_KEYS)
        if stored["vlm"] and mine["vlm"]:
            check_identity("vision-language model", stored["vlm"], mine["vlm"], VLM_KEYS)
        check_identity("concept set", stored["concepts"], mine["concepts"], ("identity",))
        shape = ("channels", "embedding_dim", "hidden_dims")
        check_identity("translator", stored["translator"], mine["translator"], shape)

    def write(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write ``model.safetensors``, ``config.json`` and a model card.

        Args:
            folder: destination; it must not hold an artefact unless ``overwrite`` is set.
            overwrite: replace existing files.

        Raises:
            ExistsError: if the folder already holds an artefact, or other files with these names.
        """
        weights = {name: value.detach().cpu() for name, value in self.translator.state_dict().items()}
        stored = Stored(self.describe(), weights, self.concepts.require_embeddings().detach().cpu())
        return _write(stored, Path(folder), overwrite)

    @classmethod
    def read(cls, path: str | Path, classifier: FrozenClassifier | None = None) -> Self:
        """Read an exported folder or a training checkpoint (.ckpt).

        Args:
            path: see :func:`find_artefact`.
            classifier: the classifier it was made for; ``None`` loads the one named in the artefact.

        Raises:
            MissingError: if it does not exist.
            CefamError: if it is damaged, or was made for another classifier.
        """
        stored = read_stored(path)
        about = stored.about
        if classifier is None:
            classifier = load_source("classifier", about["classifier"]["source"])
        if not isinstance(classifier, FrozenClassifier):
            raise CefamError(
                f"The classifier must be a FrozenClassifier, got a {type(classifier).__name__}: wrap it, "
                f"`FrozenClassifier(module, stages)`."
            )
        classifier.class_names = classifier.class_names or about["classifier"].get("class_names")
        kinds = {key: about["concepts"][key] for key in ("logit_scale", "logit_bias", "probability")}
        concepts = ConceptSet.from_records(about["concepts"]["records"], embeddings=stored.text, **kinds)
        translator = Translator(**about["translator"])
        translator.load_state_dict(stored.weights)
        settings = MethodSettings().changed(**about["settings"])
        trained = cls(classifier, translator.eval(), concepts, about["vlm"], settings, about["training"])
        trained.check(about)
        place = find_artefact(path)
        key = doubts.key_of(classifier, trained.translator, concepts)
        return replace(trained, doubts=doubts.read(place, key), probe=probe_beside(place, about["classifier"]))


def find_artefact(path: str | Path) -> Path:
    """The artefact that a path names.

    Args:
        path: the artefact, a folder of `cefam study`, a run of `cefam fit` (its best checkpoint), or "hf:user/name" on the hub.
    """
    if str(path).startswith(hub.PREFIX):
        return hub.fetched(str(path))
    folder = Path(path)
    for place in (folder / "artefact", folder / "checkpoints/best.ckpt", folder / "fit/checkpoints/best.ckpt"):
        if not (folder / CONFIG).is_file() and place.exists():
            return place
    return folder


def write_artefact(path: str | Path, folder: str | Path, overwrite: bool = False) -> Path:
    """Export a checkpoint, without building its networks; see :meth:`Trained.write`."""
    return _write(read_stored(path), Path(folder), overwrite)


class Stored(NamedTuple):
    """Content of an artefact: the description, the translator's weights by name, and the text embeddings (T, D)."""

    about: dict[str, Any]
    weights: dict[str, Tensor]
    text: Tensor


def read_stored(path: str | Path) -> Stored:
    """Read an exported folder or a checkpoint without building networks."""
    path = find_artefact(path)
    stored = _read_folder(path) if path.is_dir() else _read_checkpoint(path)
    damage = _damage(stored)
    if damage:
        raise CefamError(f"The artefact {path} is damaged ({damage}): export it again.")
    return stored


def _damage(stored: Stored) -> str:
    """Why the artefact is invalid (missing keys, or sizes that do not match the tensors), or '' if it is valid."""
    about = stored.about
    try:
        with torch.device("meta"):  # shapes alone: nothing is allocated
            translator = Translator(**about["translator"])
        translator.load_state_dict(stored.weights, assign=True)
        lacking = {"source", *CLASSIFIER_KEYS} - set(about["classifier"]) | {"vlm"} - set(about)
        lacking |= {"identity", "logit_scale", "logit_bias", "probability"} - set(about["concepts"])
        size = len(about["concepts"]["records"]), about["translator"]["embedding_dim"]
        {**about["settings"], **about["training"]}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if lacking:
        return f"its description lacks {', '.join(sorted(lacking))}"
    if tuple(stored.text.shape) != size:
        return f"its text embeddings are {tuple(stored.text.shape)}"
    finite = all(bool(value.isfinite().all()) for value in (stored.text, *stored.weights.values()))
    return "" if finite else "its weights are not finite numbers"


def _read_checkpoint(path: Path) -> Stored:
    if not path.is_file():
        raise MissingError(
            f"There is no artefact {path}: name a folder made by `cefam export`, or a .ckpt of `cefam fit`."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch raises many exception types for a broken file
        raise CefamError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}): it is truncated, empty, or holds pickled "
            f"objects. Take another checkpoint of the run."
        ) from error
    keys = {"cefam", "cefam_text", "state_dict"}
    if not isinstance(checkpoint, dict) or keys - set(checkpoint) or not isinstance(checkpoint["cefam"], dict):
        raise CefamError(f"{path} is not a checkpoint of cefam: it does not say what its translator belongs to.")
    weights = {name.removeprefix("translator."): value for name, value in checkpoint["state_dict"].items()}
    return Stored(checkpoint["cefam"], weights, checkpoint["cefam_text"].float())


def _read_folder(path: Path) -> Stored:
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise MissingError(f"{path} is not an exported artefact: it has no {name}. Make one with `cefam export`.")
    try:
        about = json.loads((path / CONFIG).read_text())
    except ValueError as error:
        raise CefamError(f"{path / CONFIG} is not JSON ({error}): export the artefact again.") from error
    if not isinstance(about, dict) or about.get("format") != "cefam":
        raise CefamError(
            f"{path / CONFIG} does not describe an artefact of cefam: name a folder made by `cefam export`."
        )
    tensors = read_state_dict(path / WEIGHTS)
    if "concepts.embeddings" not in tensors:
        raise CefamError(f"{path / WEIGHTS} holds no text embeddings: export the artefact again.")
    weights = {n.removeprefix("translator."): v for n, v in tensors.items() if n.startswith("translator.")}
    return Stored(about, weights, tensors["concepts.embeddings"].float())


def _write(stored: Stored, folder: Path, overwrite: bool) -> Path:
    if (folder / CONFIG).exists() and not overwrite:
        raise ExistsError(f"{folder} already holds an artefact: name another folder, or pass `--overwrite true`.")
    card, weights = folder / CARD, folder / WEIGHTS
    ours = card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")
    if not overwrite and not ours and (card.exists() or weights.exists()):
        raise ExistsError(f"{folder} holds a {CARD} or {WEIGHTS} of something else: name another folder.")
    tensors = {f"translator.{name}": value.contiguous() for name, value in stored.weights.items()}
    tensors["concepts.embeddings"] = stored.text.contiguous()
    (folder / CONFIG).unlink(missing_ok=True)  # removed first, written last: old and new files never form an artefact
    write_text(card, _card(stored.about))  # first: it marks the folder as ours if the export is interrupted
    write_tensors(weights, tensors)
    write_text(folder / CONFIG, json.dumps(stored.about, indent=1))
    return folder


def _card(stored: dict[str, Any]) -> str:
    classifier, concepts, vlm = stored["classifier"], stored["concepts"], stored["vlm"] or {}
    training = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in stored["training"].items())
    return f"""---
{MARK}
tags: [explainable-ai, concepts, ce-fam]
---
# A CE-FAM translator

Made with cefam {stored["version"]}, an independent implementation of CE-FAM (ICCV 2025).

| | |
|---|---|
| classifier | `{json.dumps(classifier["source"])}` |
| weights (SHA-256) | `{classifier["fingerprint"]}` |
| stages | {", ".join(f"{n} ({c})" for n, c in zip(classifier["stages"], classifier["channels"], strict=True))} |
| vision-language model | `{json.dumps(vlm.get("source"))}` |
| concepts | {len(concepts["records"])}, {concepts["probability"]} |
| settings | `{json.dumps(stored["settings"])}` |
{training}

```python
from cefam import Trained

explainer = Trained.read("this/folder").explainer()
```
"""
