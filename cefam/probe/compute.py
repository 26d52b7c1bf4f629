"""The pass of ``cefam probe``: compute statistics per unit of photographs, and merge them."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.scores import pool
from cefam.datasets.contract import MANIFEST
from cefam.datasets.photographs import Group, Photographs, device_named, views_of
from cefam.errors import CefamError, ExistsError
from cefam.images.views import EvaluationView
from cefam.io.files import write_tensors, write_text
from cefam.io.identity import identity
from cefam.io.passes import Pass, Unit, processes, wait
from cefam.probe.regression import SAMPLE, moments, sampled
from cefam.probe.stored import MERGED, Pooling, ProbeManifest, load_tensors
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.stages import ClassifierOutput
from cefam.towers.vlm import VisionLanguageModel, encode_images

PARTS = 64  # each part holds lists and sums of all neurons, for any number of photographs: 22 MB for ResNet-50


def pooled(output: ClassifierOutput, pooling: Pooling) -> list[Tensor]:
    """Scalar activations of the neurons, (B, C_l) per stage.

    "published": the class token if the stage has one, else the mean of the map (as in CLIP-Dissect); "mean", "max": of the map.
    """
    found = []
    for activation, context in zip(output.activations, output.context, strict=True):
        if pooling == "published" and context.prefix is not None:
            found.append(context.prefix[..., 0].float())
        elif pooling == "max":
            found.append(activation.float().amax(dim=(-2, -1)))
        else:
            found.append(pool(activation.float()))
    return found


def top_of(values: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest values of every column (n, C), descending, and their rows (n, C); ties keep their order."""
    order = values.argsort(dim=0, descending=True, stable=True)[:count]
    return values.gather(0, order), rows.gather(0, order)


Sums = dict[str, Tensor]


def _added(found: Sums, more: Sums, top: int) -> Sums:
    """Merge the statistics of later photographs: sums are added, lists merged, rows appended."""
    if not found:
        return more
    joined = {}
    for name, value in found.items():
        kind, _, stage = name.partition(".")
        if kind in ("gram", "cross", "square", "mean"):
            joined[name] = value + more[name]
        elif kind == "value":
            rows = f"photograph.{stage}"
            values, photographs = (torch.cat([found[key], more[key]]) for key in (name, rows))
            joined[name], joined[rows] = top_of(values, photographs, top)
        elif kind != "photograph":
            joined[name] = torch.cat([value, more[name]])
    return joined


@dataclass(frozen=True)
class _Work:
    """Computes the statistics of groups of photographs."""

    classifier: FrozenClassifier
    vlm: VisionLanguageModel
    about: ProbeManifest
    loading: dict[str, int]
    device: torch.device

    def write(self, parts: Sequence[Group], first: int, path: Path) -> dict[str, Any]:
        """Run both towers over groups of photographs and write their statistics."""
        found: Sums = {}
        start = first
        for group in parts:
            found = _added(found, self._of_group(group, start), self.about.top)
            start += group.count
        write_tensors(path, {name: tensor.contiguous() for name, tensor in found.items()})
        return {"rows": start - first}

    @torch.no_grad()
    def _of_group(self, group: Group, first: int) -> Sums:
        view, batches = EvaluationView(self.about.view["resize"], self.about.view["size"]), []
        for batch in views_of(group.open(), view, 0, first, **self.loading):
            images = batch.to(self.device)
            output = self.classifier(images)
            activations = pooled(output, self.about.pooling)
            means = [pool(activation.float()) for activation in output.activations]
            embedding = F.normalize(encode_images(self.vlm, images).float(), dim=-1)
            batches.append([value.cpu() for value in (*activations, *means, embedding)])
        *pair, embedding = (torch.cat(column) for column in zip(*batches, strict=True))
        activations, means = pair[: len(pair) // 2], pair[len(pair) // 2 :]
        if not all(bool(value.isfinite().all()) for value in (*activations, *means, embedding)):
            raise CefamError(
                f"An output of the towers for the photographs from number {first} on is not finite: check their weights."
            )
        exact = embedding.double()
        found = {"embedding": embedding, "gram": exact.T @ exact}
        for stage, values in enumerate(activations):
            rows = torch.arange(first, first + len(values)).unsqueeze(1).expand_as(values)
            found[f"value.{stage}"], found[f"photograph.{stage}"] = top_of(values, rows, self.about.top)
            found[f"cross.{stage}"] = values.double().T @ exact
            found[f"square.{stage}"] = values.double().square().sum(dim=0)
            found[f"mean.{stage}"] = means[stage].double().sum(dim=0)
            if self.about.kept:
                found[f"pooled.{stage}"] = values
        chosen = sampled(first, len(embedding), self.about.num_photographs)
        return {**found, "sample.activations": torch.cat(means, dim=1)[chosen], "sample.embedding": embedding[chosen]}


def compute_probe(
    classifier: FrozenClassifier,
    vlm: VisionLanguageModel,
    images: str,
    folder: str,
    top: int = 100,
    pooling: Pooling = "published",
    keep_pooled: bool = False,
    size: int = 224,
    resize: int = 256,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
) -> ProbeManifest:
    """Find the photographs that activate each neuron most, in one pass over a probe set.

    An interrupted run is resumed. Under ``torchrun``, the processes share the photographs; the result is the same.

    Args:
        classifier: the frozen classifier, with the stages to probe.
        vlm: the vision-language model.
        images: a folder of images, or of shards.
        folder: output folder.
        top: K, photographs per neuron (100: CLIP-Dissect; WWW takes the first 40 of them).
        pooling: "published" (mean of the map, or class token of a transformer), "mean" or "max" of the map.
        keep_pooled: keep the pooled activations of all photographs, required by the similarities "rank_reorder" and
            "cos_similarity_cubed"; their size is printed at the start.
        size: side of a view.
        resize: short side before the central crop.
        batch_size: views per forward pass.
        num_workers: decoding processes.
        device: "auto", "cpu", "cuda" ...

    Raises:
        CefamError: if the probe set is smaller than ``top``.
        ExistsError: if the folder holds another probe.
    """
    if pooling not in get_args(Pooling):
        raise CefamError(f"pooling must be {', '.join(map(repr, get_args(Pooling)))}, got {pooling!r}.")
    if min(top, batch_size) < 1:
        raise CefamError(f"top and batch_size must be at least 1, got {top} and {batch_size}.")
    share = processes()
    photographs = Photographs.read(images)
    total = photographs.count
    if total < top:
        raise CefamError(
            f"{images} holds {total} photograph(s), fewer than the {top} per neuron: set `--top` to at most {total}."
        )
    view = {"size": size, "resize": resize}
    about = ProbeManifest(
        classifier.identity(), vlm.freeze().identity(), photographs.digest, pooling, top, keep_pooled, view, total
    )
    target, run = Path(folder), _run(about)
    if (target / MANIFEST).is_file():
        if _run(ProbeManifest.read(target)) != run:
            raise ExistsError(f"{target} holds another probe: name another folder, or remove it.")
        return ProbeManifest.read(target)
    if share[0] == 0:
        _say_size(about)
    where = device_named(device)
    loading = {"batch_size": batch_size, "num_workers": num_workers}
    work = _Work(classifier.to(where), vlm.to(where), about, loading, where)
    units = [
        Unit(f"probe-{first:08d}.safetensors", digest, count, partial(work.write, parts, first))
        for first, digest, count, parts in _parts(photographs.groups, max(1, total // PARTS))
    ]
    with Pass(target, identity(**run), share) as finished:
        for _ in finished.over(units, "probe", total):
            pass
        wait()
        if share[0] == 0:
            about.files = finished.finished(units)
            write_tensors(target / MERGED, merged(target, about))
            write_text(target / MANIFEST, json.dumps(asdict(about), indent=1))
            for entry in () if keep_pooled else about.files:
                (target / entry["file"]).unlink()
        wait()
    return ProbeManifest.read(target)


def _parts(found: Sequence[Group], least: int) -> Iterator[tuple[int, str, int, list[Group]]]:
    """Join consecutive groups to parts of at least ``least`` photographs: index of the first, digest, count, groups."""
    first, parts = 0, list[Group]()
    for position, group in enumerate(found, start=1):
        parts.append(group)
        count = sum(part.count for part in parts)
        if count >= least or position == len(found):
            yield first, hashlib.sha256("".join(part.digest for part in parts).encode()).hexdigest(), count, parts
            first, parts = first + count, []


def _run(about: ProbeManifest) -> dict[str, Any]:
    """Manifest fields that identify a probe."""
    stored: dict[str, Any] = json.loads(json.dumps(asdict(about), default=str))
    return {name: value for name, value in stored.items() if name not in ("num_photographs", "files")}


def merged(folder: Path, about: ProbeManifest) -> Sums:
    """Merge the parts; only lists, sums, the selected embeddings and one part at a time are held in memory."""
    found: Sums = {}
    for entry in about.files:
        part = load_tensors(folder / entry["file"])
        found = _added(found, {n: v for n, v in part.items() if n != "embedding" and "pooled" not in n}, about.top)
    lists = [name for name in found if name.startswith("photograph")]
    chosen = torch.from_numpy(np.unique(torch.cat([found[name].flatten() for name in lists]).numpy()))
    first, embedding = 0, []
    for entry in about.files:
        mine = chosen[(chosen >= first) & (chosen < first + entry["rows"])]
        embedding.append(load_tensors(folder / entry["file"])["embedding"][mine - first])
        first += entry["rows"]
    rows = {name: torch.searchsorted(chosen, found[name]) for name in lists}
    means = {name: value / first for name, value in found.items() if name.startswith("mean")}
    sample = found.pop("sample.activations"), found.pop("sample.embedding")
    linear = moments(*sample, about.classifier["channels"])
    return {**found, **means, **rows, **linear, "embedding": torch.cat(embedding), "chosen": chosen}


def _say_size(about: ProbeManifest) -> None:
    neurons, rows, dim = sum(about.classifier["channels"]), about.num_photographs, about.vlm["embedding_dim"]
    lists = neurons * about.top * 12 + neurons * (dim + 1) * 8 + dim * dim * 8
    fixed, chosen = lists + neurons * (neurons + dim + 1) * 4, min(rows, neurons * about.top) * dim * 4
    parts = min(PARTS, rows) * lists + rows * dim * 4 + min(rows, SAMPLE) * (neurons + dim) * 4
    print(
        f"{rows} photographs, {neurons} neurons: at most {_megabytes(fixed + chosen)} ({_megabytes(fixed)} of lists and sums, which do "
        f"not grow), and {_megabytes(parts)} on disk until it is finished."
    )
    if about.kept:
        print(f"Pooled activations of all photographs: {_megabytes(rows * (neurons + dim) * 4)}, kept on disk.")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
