"""What a trained translator is stored as: translator weights, text embeddings, and what both belong to.

An exported folder holds ``model.safetensors``, ``config.json`` and ``README.md`` (a model card); a training checkpoint
holds the same description under the key "cefam". Everything is plain types and tensors: nothing is unpickled, and the class
paths of the towers may name networks (``torch.nn.Module``) or functions annotated to return one, nothing else.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cefam import __version__
from cefam.files import write_tensors, write_text
from cefam.identity import CLASSIFIER_KEYS, VLM_KEYS, check_identity
from cefam.zoo import read_state_dict

if TYPE_CHECKING:
    from cefam.module import CEFAM

MARK = "library_name: cefam"
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def describe(module: "CEFAM") -> dict[str, Any]:
    """What the translator of a module belongs to, in plain types."""
    concepts = module.concepts
    return {
        "format": "cefam",
        "version": __version__,
        "translator": {
            "channels": module.translator.channels,
            "embedding_dim": module.translator.embedding_dim,
            "hidden_dims": module.translator.hidden_dims,
        },
        "classifier": {**module.classifier.identity(), "class_names": module.classifier.class_names},
        "vlm": module.vlm_identity,
        "concepts": {
            "identity": concepts.identity,
            "logit_scale": concepts.logit_scale,
            "logit_bias": concepts.logit_bias,
            "probability": concepts.probability,
            "records": concepts.to_records(),
        },
        "settings": {
            "similarity_weight": module.similarity_weight,
            "preset": module.preset,
            "channel_share": module.channel_share,
        },
    }


def check(module: "CEFAM", stored: dict[str, Any] | None) -> None:
    """Refuse what was made for another classifier, VLM or concept set.

    Raises:
        ValueError: with the first thing that differs.
    """
    if not stored or stored.get("format") != "cefam":
        raise ValueError(
            "This checkpoint was not made by cefam: it does not say which classifier and concepts it belongs to. Name a .ckpt of "
            "`cefam fit`."
        )
    mine = describe(module)
    check_identity("classifier", stored["classifier"], mine["classifier"], CLASSIFIER_KEYS)
    if stored["vlm"] and mine["vlm"]:
        check_identity("vision-language model", stored["vlm"], mine["vlm"], VLM_KEYS)
    check_identity("concept set", stored["concepts"], mine["concepts"], ("identity",))
    check_identity("translator", stored["translator"], mine["translator"], ("channels", "embedding_dim", "hidden_dims"))


def export(module: "CEFAM", folder: Path, overwrite: bool = False) -> Path:
    """Write a trained translator as safetensors, JSON and a model card.

    Args:
        module: the trained module.
        folder: where to; it must not hold an artefact, unless ``overwrite``.
        overwrite: replace what is there.

    Raises:
        FileExistsError: where the folder holds an artefact already.
    """
    if (folder / CONFIG).exists() and not overwrite:
        raise FileExistsError(f"{folder} already holds an artefact: name another folder, or say `--overwrite true`.")
    card, weights = folder / CARD, folder / WEIGHTS
    ours = card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")
    if not overwrite and not ours and (card.exists() or weights.exists()):
        raise FileExistsError(f"{folder} holds a {CARD} or {WEIGHTS} of something else: name another folder.")
    tensors = {
        f"translator.{name}": v.detach().cpu().contiguous() for name, v in module.translator.state_dict().items()
    }
    tensors["concepts.embeddings"] = module.concepts.require_embeddings().detach().cpu().contiguous()
    stored = describe(module)
    (folder / CONFIG).unlink(missing_ok=True)  # it comes last: old and new files are never taken for one artefact
    write_text(card, _card(stored))  # first: it says whose files these are, if nothing else is written
    write_tensors(weights, tensors)
    write_text(folder / CONFIG, json.dumps(stored, indent=1))
    return folder


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
    """Description, translator weights and text embeddings of an exported folder or a checkpoint.

    Raises:
        FileNotFoundError: where nothing is there.
        ValueError: where it is truncated, empty, pickled, or not of cefam.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no artefact {path}: name a folder made by `cefam export`, or a .ckpt of `cefam fit`."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(checkpoint, dict) and "cefam" in checkpoint:
            state, text = dict(checkpoint["state_dict"]), checkpoint["cefam_text"].float()
    except Exception as error:  # torch has many words for a broken file
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}): it is truncated, empty, or holds pickled "
            f"objects. Take another checkpoint of the run."
        ) from error
    if not isinstance(checkpoint, dict) or "cefam" not in checkpoint:
        raise ValueError(f"{path} is no checkpoint of cefam: it does not say what its translator belongs to.")
    weights = {name.removeprefix("translator."): value for name, value in state.items()}
    return checkpoint["cefam"], weights, text


def _read_folder(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} is no exported artefact: it has no {name}. Make one with `cefam export`.")
    try:
        stored = json.loads((path / CONFIG).read_text())
    except ValueError as error:
        raise ValueError(f"{path / CONFIG} is not JSON ({error}): export the artefact again.") from error
    if not isinstance(stored, dict) or stored.get("format") != "cefam":
        raise ValueError(
            f"{path / CONFIG} does not describe an artefact of cefam: name a folder made by `cefam export`."
        )
    tensors = read_state_dict(path / WEIGHTS)
    if "concepts.embeddings" not in tensors:
        raise ValueError(f"{path / WEIGHTS} holds no text embeddings: export the artefact again.")
    weights = {n.removeprefix("translator."): v for n, v in tensors.items() if n.startswith("translator.")}
    return stored, weights, tensors["concepts.embeddings"].float()


def load_source(kind: str, source: dict[str, Any] | None) -> Any:
    """Build a tower again as its ``source`` says.

    Raises:
        ValueError: where the artefact does not say how, or the class is not there.
    """
    if not source:
        raise ValueError(
            f"This artefact does not say how its {kind} was loaded: load it yourself and pass it as `{kind}`."
        )
    return _build(kind, source)


def _build(kind: str, spec: Any) -> Any:
    """Call what ``class_path`` names with its ``init_args``, which may hold such entries themselves."""
    if not isinstance(spec, dict) or "class_path" not in spec:
        return spec
    module, _, name = str(spec["class_path"]).rpartition(".")
    try:
        build = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"The {kind} was loaded by {spec['class_path']!r}, which cannot be imported ({error}): install it, put its file into the "
            f"working folder, or load the {kind} yourself and pass it as `{kind}`."
        ) from error
    returned = build if isinstance(build, type) else getattr(build, "__annotations__", {}).get("return")
    if not (isinstance(returned, type) and issubclass(returned, nn.Module)):
        # An artefact may come from anywhere: it can name networks, not programs.
        raise ValueError(
            f"The artefact says that its {kind} is loaded by {spec['class_path']!r}, which is no network and no function annotated to "
            f"return one: it is not called. Load the {kind} yourself and pass it as `{kind}`."
        )
    return build(**{key: _build(kind, value) for key, value in (spec.get("init_args") or {}).items()})


def _card(stored: dict[str, Any]) -> str:
    classifier, concepts, vlm = stored["classifier"], stored["concepts"], stored["vlm"] or {}
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
| similarity weight | {stored["settings"]["similarity_weight"]} |
| preset | {stored["settings"]["preset"]} |

```python
from cefam import CEFAM

explainer = CEFAM.from_pretrained("this/folder").explainer
```
"""
