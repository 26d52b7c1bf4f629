"""Loading photographs: the data module against the bare calls in as many processes, and decoders against each other.

    python -m benchmarks.loading --images photographs --workers 2

The reference is literal: each process decodes its share and cuts a view of it, nothing else. Images per second, and their share of the
reference in the same round ("view", or "decoding"): medians of five rounds, since the speed of a machine drifts.
"""

import argparse
import io
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor

from cefam.commands import main as cefam
from cefam.datamodules import ImagesData
from cefam.datasets.sources.images import list_images
from cefam.datasets.streams import SHUFFLED
from cefam.images.pictures import read_pixels
from cefam.images.views import drawn, training_view

ROUNDS = 5
PREFETCH = 2  # items per worker in advance: torch's default
BATCH = 64
SHARD = 256  # photographs: as `cefam prepare` makes them


def resized(path: Path, side: int) -> bytes:
    """A photograph of another size, as JPEG."""
    picture, stream = Image.open(path).convert("RGB"), io.BytesIO()
    scale = side / min(picture.size)
    picture.resize((round(scale * picture.width), round(scale * picture.height))).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def decoded(content: bytes) -> Any:
    """What cefam does."""
    return read_pixels(content, "photograph")


def viewed(view: Callable[[torch.Tensor], torch.Tensor], content: bytes) -> Any:
    """The bare calls of training."""
    return drawn(view, read_pixels(content, "photograph"), "benchmark")


def recipe(transform: Callable[[Any], Any], content: bytes) -> Any:
    """The same view as most people write it."""
    return transform(pil_to_tensor(Image.open(io.BytesIO(content)).convert("RGB")))


def by_pillow(content: bytes) -> Any:
    """Pillow's pixels, without orientation and checks."""
    return Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def by_torchvision(content: bytes) -> Any:
    """Torchvision's own decoder (libjpeg-turbo)."""
    return decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)


def share_of(act: Callable[[bytes], Any], contents: Sequence[bytes]) -> None:
    """One process's part of the reference."""
    torch.set_num_threads(1)
    for content in contents:
        act(content)


def bare(act: Callable[[bytes], Any], contents: Sequence[bytes], processes: int) -> float:
    """Photographs per second of so many processes that do nothing else."""
    parts = [contents[place::processes] for place in range(processes)]
    workers = [multiprocessing.Process(target=share_of, args=(act, part)) for part in parts]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return len(contents) / (time.perf_counter() - start)


def loaded(loader: Any, ahead: int) -> float:
    """Photographs per second that reach the training process while its workers read; what the device does is not counted.

    Up to ``ahead`` photographs lie in buffers: the clock runs from when these are full to when the last photograph is inputs for.
    """
    first = math.ceil(ahead / BATCH)
    last, start = len(loader) - first - 1, 0.0
    for number, _ in enumerate(loader):
        if number == first:
            start = time.perf_counter()
        if number == last:
            break
    return (last - first) * BATCH / (time.perf_counter() - start)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--side", type=int, help="resize photographs to this short side first (ImageNet's is often 375)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    paths = [path for path, _ in list_images(options.images)][: options.count]
    measures: dict[str, Callable[[], float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        source, shards = Path(folder) / "files", Path(folder) / "shards"
        source.mkdir()
        for place, path in enumerate(islice(cycle(paths), options.count)):  # an epoch of a few seconds
            content = resized(path, options.side) if options.side else path.read_bytes()
            (source / f"{place:05d}.jpg").write_bytes(content)
        cefam(["prepare", "--kind=images", f"--source={source}", f"--folder={shards}", f"--samples_per_shard={SHARD}"])
        # Each in memory of its own, as those that are loaded.
        contents = [path.read_bytes() for path, _ in list_images(source)]
        usual = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()])
        for name, act in {
            "decoding: Pillow": by_pillow,
            "decoding: torchvision": by_torchvision,
            "decoding": decoded,
            "view: torchvision": partial(recipe, usual),
            "view": partial(viewed, training_view()),
        }.items():
            measures[name] = partial(bare, act, contents, options.workers)
        for kind, place in (("files", source), ("shards", shards)):
            data = ImagesData(str(place), str(place), batch_size=BATCH, num_workers=options.workers)
            ahead = PREFETCH * options.workers * (BATCH if kind == "files" else SHARD)
            ahead += 0 if kind == "files" else SHUFFLED + SHARD
            measures[f"ImagesData from {kind}"] = partial(loaded, data.train_dataloader(), ahead)
        rounds = [{name: measure() for name, measure in measures.items()} for _ in range(ROUNDS)]
    for name in measures:
        references = ("view",) if "view" in name or "ImagesData" in name else ("decoding",)
        shares = [f"{median(found[name] / found[by] for found in rounds):.2f} of {by}" for by in references]
        print(f"{name:45} {median(found[name] for found in rounds):6.0f} images/s; {', '.join(shares)}")
    print(json.dumps(rounds))


if __name__ == "__main__":
    main()
