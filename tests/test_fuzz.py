"""Damaged files of every kind: a reader gives something of the right form, or one sentence that names the file, and never another error.

``CEFAM_FUZZ=3600 pytest tests/test_fuzz.py`` damages files for an hour, shared out among the readers; without it, each reads some dozens.
What once failed stays in FOUND.
"""

import os
import random
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cefam.commands._runs import FILE, id_of
from cefam.concepts.sets import ConceptSet
from cefam.datasets import Manifest, read_shard
from cefam.datasets.features import load_features
from cefam.datasets.sources import open_source
from cefam.errors import CefamError
from cefam.exchange.inert import read_pickle
from cefam.images.pictures import open_mask, read_pixels
from cefam.io.passes import Pass
from cefam.report import results
from cefam.report.parts import records_in, write_part
from cefam.trained import read_stored

SECONDS = float(os.environ.get("CEFAM_FUZZ", "0"))
CASES = 60


@dataclass
class Reader:
    """A folder of whole files, the one that is damaged, and what reads it.

    ``form``: what of a reading cannot be other than that of the whole file, where the format tells it (shapes, names, checksums).
    """

    folder: Path
    name: str
    read: Callable[[Path], Any]
    form: Callable[[Any], Any] = lambda found: type(found).__name__


def tensors(stored):
    """Names and shapes of an artefact's tensors, and that all are finite."""
    return {name: tuple(value.shape) for name, value in stored.weights.items()}, bool(stored.text.isfinite().all())


def pictures(samples):
    return [(pixels.shape, pixels.dtype, len(masks)) for pixels, masks in samples]


def samples(kind, **options):
    def read(path):
        source = open_source(kind, str(path), **options)
        return list(source.samples(0, 3))

    return read


def whole_shard(folder):
    return [(sample.pixels(), sample.masks) for sample in read_shard(Manifest.read(folder).placed(folder)[0])]


@pytest.fixture(scope="session")
def readers(world, prepared, trained, tmp_path_factory):
    import torch
    import yaml

    made = tmp_path_factory.mktemp("whole")
    write_part(made / "evaluation/00000000.npz", [["a.jpg", "0", "1"]], {}, [])
    described = made / "described"
    described.mkdir()
    shutil.copytree(world / "broden/images/src", described / "src")
    about = {"images": "src/{id}.jpg", "masks": [{"category": "object", "files": "src/{id}_object.png"}]}
    labels = [f"{number},name{number},object" for number in (1, 10, 19, 30, 38, 73)]
    (described / "labels.csv").write_text("\n".join(["number,name,category", *labels]))
    (described / "a.yaml").write_text(yaml.safe_dump({**about, "labels": "labels.csv"}))
    module = torch.nn.Sequential(torch.nn.Linear(3, 2))
    (made / "published").mkdir()
    torch.save(module, made / "published/a.pth")
    (made / "pictures").mkdir()
    for name in ("000.jpg", "000_object.png"):
        shutil.copy(world / "broden/images/src" / name, made / "pictures" / name)
    (made / "journal").mkdir()
    with Pass(made / "journal", ["run"]) as work:
        work.journal.write_text('{"run": ["run"]}\n{"digest": "x", "bytes": 1, "about": {"file": "a"}}\n')
    (made / "run").mkdir()
    (made / "run" / FILE).write_text('{"id": "abc"}')
    (made / "run/run.json").write_text('{"id": "abc"}')
    return {
        "shard": Reader(prepared / "broden", "shard-000000.tar", whole_shard, pictures),
        "manifest": Reader(prepared / "broden", "manifest.json", Manifest.read),
        "labels": Reader(world / "broden", "label.csv", samples("broden")),
        "index": Reader(world / "broden", "index.csv", samples("broden")),
        "concepts": Reader(world / "broden", "label.csv", lambda f: ConceptSet.from_file(f / "label.csv")),
        "description": Reader(described, "a.yaml", lambda f: samples("described")(f / "a.yaml")),
        "features": Reader(
            prepared / "features/val", "features.npy", lambda f: load_features(f).matrix, lambda m: (m.shape, m.dtype)
        ),
        "features manifest": Reader(
            prepared / "features/val", "manifest.json", load_features, lambda found: found.matrix.shape
        ),
        "checkpoint": Reader(trained / "log/checkpoints", "best.ckpt", lambda f: read_stored(f / "best.ckpt"), tensors),
        "artefact": Reader(trained / "artefact", "config.json", read_stored, tensors),
        "weights": Reader(trained / "artefact", "model.safetensors", read_stored, tensors),
        "photograph": Reader(made / "pictures", "000.jpg", lambda f: read_pixels(f / "000.jpg", "a")),
        "mask": Reader(made / "pictures", "000_object.png", lambda f: open_mask(f / "000_object.png", "a")),
        "part": Reader(
            made / "evaluation",
            "00000000.npz",
            lambda f: list(records_in([f / "00000000.npz"])),
            lambda rows: all(isinstance(c, str) for r in rows for c in r),
        ),
        "published": Reader(made / "published", "a.pth", lambda f: read_pickle(f / "a.pth")),
        "journal": Reader(made / "journal", "journal.json", lambda f: Pass(f, ["run"]).__enter__().__exit__()),
        "run": Reader(made / "run", FILE, id_of, lambda found: found is None or isinstance(found, str)),
        "results": Reader(made / "run", "run.json", results.Run.read),
    }


NAMES = (
    "shard", "manifest", "labels", "index", "concepts", "description", "features", "features manifest", "checkpoint",
    "artefact", "weights", "photograph", "mask", "part", "published", "journal", "run", "results",
)  # fmt: skip
FOUND = [  # (reader, seed) of damages that once gave another error
    ("manifest", 1), ("manifest", 68106), ("concepts", 29325), ("description", 141), ("description", 5356), ("features", 335),
    ("features manifest", 0), ("artefact", 16348), ("part", 2279), ("journal", 1), ("journal", 7),
]  # fmt: skip


def damaged(content, seed):
    """The same content, cut, with other bytes, a part twice, or a part gone; text is changed by words, too."""
    draws = random.Random(seed)
    content = bytearray(content)
    for _ in range(draws.choice((1, 1, 2, 5))):
        place = draws.randrange(len(content) + 1)
        kind = draws.randrange(6)
        if kind == 0:
            del content[place:]
        elif kind == 1 and content:
            content[min(place, len(content) - 1)] ^= 1 << draws.randrange(8)
        elif kind == 2:
            content[place:place] = draws.randbytes(draws.randrange(1, 20))
        elif kind == 3:
            del content[place : place + draws.randrange(1, 600)]
        elif kind == 4:
            content[place:place] = content[place : place + 300]
        else:
            words = (
                b"null",
                b"-1",
                b"{}",
                b"[]",
                b'"',
                b"1e999",
                b"\x00",
                b"NaN",
                b"../../x",
                b",",
                b"\n",
                b"99999999999",
            )
            content[place : place + draws.randrange(8)] = draws.choice(words)
    return bytes(content)


def try_one(reader, folder, content, seed, whole):
    path = folder / reader.name
    path.write_bytes(damaged(content, seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = reader.read(folder)
        except CefamError as error:
            said = str(error)
            assert len(said.split()) > 4, said
            assert len(said.splitlines()) == 1, said
            assert folder.name in said or Path(reader.name).stem in said or "000" in said or " a " in said, said
            return
    assert reader.form(found) == whole, "something else was read, without a word"


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_end_in_a_sentence(name, readers, tmp_path):
    reader = readers[name]
    folder = tmp_path / "copy"
    shutil.copytree(reader.folder, folder)
    content = (folder / reader.name).read_bytes()
    whole = reader.form(reader.read(folder)) if name != "results" else "Run"
    seeds = [seed for found, seed in FOUND if found == name]
    end = time.monotonic() + SECONDS / len(NAMES)
    seed = 0
    while seeds or seed < CASES or time.monotonic() < end:
        chosen = seeds.pop() if seeds else seed
        try:
            try_one(reader, folder, content, chosen, whole)
        except Exception as error:
            raise AssertionError(f"{name}, seed {chosen}: {type(error).__name__}: {error}") from error
        seed += 1
    print(f"{name}: {seed} damaged files")
