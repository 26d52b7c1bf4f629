"""``cefam verify``: check all files of shards, a feature cache, or an exported artefact."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cefam.datasets import storage
from cefam.datasets.contract import MANIFEST, Manifest, Shard
from cefam.datasets.shards import read_shard
from cefam.errors import CefamError, MissingError

ROWS = 4096  # feature rows per check


def verify(folders: list[str]) -> None:
    """Check shards, feature caches and artefacts against their checksums and metadata.

    All problems are printed; the exit status is 1 if there are any.

    Args:
        folders: local folders, or URLs of shards.
    """
    from rich.progress import track

    count = 0
    for folder in folders:
        checks, said = _checks(folder)
        for name, check in track(checks, f"verify {Path(folder).name}"):
            try:
                problems = list(check())
            except CefamError as error:
                problems = [str(error)]
            count += len(problems)
            for problem in problems:
                print(f"{name}: {problem}")
        print(f"{folder}: {said}")
    if count:
        raise CefamError(f"{count} problem(s) were found: copy the files again, or make them again.")


def _checks(folder: str) -> tuple[list[tuple[str, Any]], str]:
    """The checks of a folder, by name, and a description of its contents."""
    kind = _kind(folder)
    if kind is not None:
        if kind == "cefam-shards":
            manifest = Manifest.read(folder)
            known = {label["number"] for label in manifest.labels}
            checks = [(Path(s.place).name, partial(_shard, s, known)) for s in manifest.placed(folder)]
            pairs = f"{manifest.num_samples} samples, {manifest.num_pairs} (mask, label) pairs"
            return checks, f"{len(checks)} shards, {pairs}"
        if kind == "cefam-features":
            from cefam.datasets.features import FILE, FeatureManifest

            features = FeatureManifest.read(folder)
            return [(FILE, partial(_features, folder))], f"{features.num_rows} rows of features ({features.precision})"
        raise CefamError(f"{folder} holds {kind!r}: shards, features and artefacts can be verified.")
    if (Path(folder) / "config.json").is_file():
        return [("artefact", partial(_artefact, folder))], "an artefact"
    raise MissingError(f"{folder} holds neither shards nor features nor an artefact: name a folder that cefam made.")


def _kind(folder: str) -> str | None:
    """The format that a folder's manifest names; ``None`` without a manifest."""
    try:
        text = storage.read_bytes(storage.join(folder, MANIFEST))
    except MissingError:
        return None
    try:
        return str(json.loads(text)["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise CefamError(f"{storage.join(folder, MANIFEST)} is not a manifest of cefam.") from error


def _shard(shard: Shard, known: set[int]) -> Iterator[str]:
    """Check the checksum, samples, photographs, masks and labels of a shard."""
    with storage.local(shard.place, shard.sha256) as path:
        if storage.digest_of(path) != shard.sha256:
            yield "its bytes are others than when it was written"
        for sample in read_shard(replace(shard, place=str(path))):
            sample.picture()
            unknown = {label for mask in sample.masks for label in mask.labels} - known
            if unknown:
                yield f"a mask of {sample.id} has label {min(unknown)}, which the manifest does not name"


def _features(folder: str) -> Iterator[str]:
    """Check the checksum, shape and values of a feature cache."""
    import torch

    from cefam.datasets.features import FILE, FeatureManifest, load_features

    if storage.digest_of(Path(folder) / FILE) != FeatureManifest.read(folder).sha256:
        yield "its bytes are others than when it was written"
    if not all(bool(rows.isfinite().all()) for rows in torch.split(load_features(folder).matrix, ROWS)):
        yield "it holds values that are not finite"


def _artefact(folder: str) -> Iterator[str]:
    """Check an artefact without building its networks."""
    from cefam.trained import read_stored

    read_stored(folder)
    yield from ()
