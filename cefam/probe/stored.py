"""Storage format of a finished probe."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from cefam.errors import CefamError, MissingError
from cefam.io.reading import read_description
from cefam.towers.identity import CLASSIFIER_KEYS

Pooling = Literal["published", "mean", "max"]
MANIFEST, MERGED = "manifest.json", "probe.safetensors"
BY_STAGE = ("value", "photograph", "cross", "square", "mean")
OF_ALL = ("embedding", "gram", "scale", "correlation", "covariance")


@dataclass
class ProbeManifest:
    """Contents and options of a probe; classifier, VLM and photographs are identified by content."""

    classifier: dict[str, Any]
    vlm: dict[str, Any]
    photographs: str
    pooling: Pooling
    top: int
    kept: bool
    view: dict[str, Any]
    num_photographs: int = 0
    files: list[dict[str, Any]] = field(default_factory=list)
    format: str = "cefam-probe"
    version: int = 2

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read the manifest of a folder.

        Raises:
            MissingError: if the folder holds no finished probe.
            CefamError: if it has another format or version.
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise MissingError(f"{folder} is not a finished probe (no {MANIFEST}): make it with `cefam probe`.")
        return read_description(path.read_bytes(), cls, path, "run `cefam probe` again", lambda found: found.files)


@dataclass(frozen=True, eq=False)
class Probe:
    """Statistics of every neuron on a probe set; C_l neurons of stage l, N photographs, D dimensions.

    ``value``: per stage the K largest pooled activations (K, C_l), descending, ties in the order of the photographs;
    ``photograph``: their photographs, as rows of ``embedding``; ``embedding`` (S, D): unit embeddings of the S photographs
    selected by at least one neuron; ``cross``: per stage sum_i a_ik e_i (C_l, D); ``square``: per stage sum_i a_ik^2 (C_l,);
    ``gram``: sum_i e_i e_i^T (D, D); ``mean``: per stage the mean of z, the pooled maps (C_l,). The sums are doubles.

    For z of all stages, concatenated to C channels, on a sample of the photographs: ``scale`` (C,), each channel's standard
    deviation times sqrt(C_l L / C), so that all L stages have the same weight; ``correlation`` (C, C) of z / scale;
    ``covariance`` (C, D) of z / scale with the unit embeddings.
    """

    manifest: ProbeManifest
    folder: Path
    value: list[Tensor]
    photograph: list[Tensor]
    embedding: Tensor
    cross: list[Tensor]
    square: list[Tensor]
    gram: Tensor
    mean: list[Tensor]
    scale: Tensor
    correlation: Tensor
    covariance: Tensor

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read a finished probe.

        Raises:
            MissingError: if it is unfinished.
            CefamError: if a file is damaged.
        """
        manifest = ProbeManifest.read(folder)
        merged = load_tensors(Path(folder) / MERGED)
        stages = range(len(manifest.classifier["channels"]))
        try:
            fields: dict[str, Any] = {name: [merged[f"{name}.{stage}"] for stage in stages] for name in BY_STAGE}
            fields |= {name: merged[name] for name in OF_ALL}
            return cls(manifest, Path(folder), **fields)
        except KeyError as error:
            raise CefamError(f"{Path(folder) / MERGED} lacks {error}: run `cefam probe` again.") from error

    def identity(self) -> Any:
        """Contents of the probe as a key; see :mod:`cefam.io.identity`."""
        return [asdict(self.manifest), {name: getattr(self, name) for name in (*BY_STAGE, *OF_ALL)}]

    def everything(self, stage: int) -> tuple[Tensor, Tensor]:
        """Unit embeddings (N, D) and pooled activations (N, C_l) of all photographs, read from the files of the pass.

        Raises:
            CefamError: if they were not kept.
        """
        if not self.manifest.kept:
            raise CefamError(
                f"This similarity needs the pooled activations of all photographs, which {self.folder} does not hold: run `cefam probe` "
                f"again with `--keep_pooled true`."
            )
        parts = [load_tensors(self.folder / entry["file"]) for entry in self.manifest.files]
        return torch.cat([part["embedding"] for part in parts]), torch.cat([part[f"pooled.{stage}"] for part in parts])


def probe_beside(path: Path, classifier: dict[str, Any]) -> Probe | None:
    """The probe of a classifier in the folder ``probe`` of an artefact's folder, or of one of the three folders above it."""
    for folder in (path, *path.resolve().parents[:3]):
        place = folder / "probe"
        if (place / MANIFEST).is_file():
            stored = ProbeManifest.read(place).classifier
            same = all(stored.get(key) == classifier.get(key) for key in CLASSIFIER_KEYS)
            return Probe.read(place) if same else None
    return None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load a file of the probe."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own exceptions for a truncated file
        raise CefamError(f"{path} cannot be read ({error}): remove it and run `cefam probe` again.") from error
