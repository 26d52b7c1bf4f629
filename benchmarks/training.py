"""Training from cached features against the same step with the towers, and the memory of the mapped cache.

    python -m benchmarks.training --towers resnet50 ViT-B-16 --device cpu

The reference is literal: the same module, optimizer and batch, with the photographs going through both networks. Weights and values are
random. The epoch of ImageNet (1.28 million rows) is projected from the rate. On a GPU: `--device cuda --batch 8192 --resident`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cefam import CEFAM, ConceptSet, load_classifier
from cefam.datamodules.features import _as_it_is
from cefam.datasets.features import Features
from cefam.datasets.samplers import ShuffledSampler
from cefam.translator import distillation_losses

IMAGENET = 1_281_167


def step(module: CEFAM, optimizer: torch.optim.Optimizer, teacher: Tensor, pooled: list[Tensor]) -> None:
    """One step of the training."""
    concepts = module.concepts
    losses = distillation_losses(
        module.translator(pooled), teacher, module.text, concepts.logit_scale, concepts.logit_bias, 0.001
    )
    optimizer.zero_grad(set_to_none=True)
    losses.total.backward()
    optimizer.step()


def seconds(act: Any, device: torch.device, repeats: int) -> float:
    """Seconds of one call, best of three runs of so many."""
    best = float("inf")
    for _ in range(3):
        _wait(device)
        start = time.perf_counter()
        for _ in range(repeats):
            act()
        _wait(device)
        best = min(best, (time.perf_counter() - start) / repeats)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def written(folder: Path, rows: int, width: int) -> Tensor:
    """A cache of random rows in float16, mapped into memory."""
    path = folder / f"{rows}.npy"
    every = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, width))
    random = np.random.default_rng(0)
    for start in range(0, rows, 20_000):
        stop = min(start + 20_000, rows)
        every[start:stop] = random.standard_normal((stop - start, width), dtype=np.float32)
    every.flush()
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def memory(rows: int) -> float:
    """Megabytes that an epoch over a mapped cache takes of a process's own memory, beyond what it had before."""
    with tempfile.TemporaryDirectory() as folder:
        features = Features(written(Path(folder), rows, 1472), [960, 512])
        sampler = ShuffledSampler(rows, 0)
        loader = DataLoader(features, batch_size=1024, sampler=sampler, drop_last=True, collate_fn=_as_it_is)
        before = _anonymous()
        for batch in loader:
            batch["embedding"].sum()
        return _anonymous() - before


def _anonymous() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.split("\n")[0])
    parser.add_argument("--towers", nargs=2, default=["resnet50", "ViT-B-16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--tower_batch", type=int, default=8)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--resident", action="store_true", help="rows lie on the device")
    parser.add_argument("--memory", type=int, help="only the memory of an epoch over so many rows")
    options = parser.parse_args()
    if options.memory:
        print(memory(options.memory))
        return
    found: dict[str, Any] = measured(options)
    for rows in (20_000, 200_000):
        command = [sys.executable, "-m", "benchmarks.training", "--memory", str(rows)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[f"megabytes of an epoch over {rows} mapped rows"] = float(printed.splitlines()[-1])
    for name, value in found.items():
        print(f"{name:60} {value:,.3f}")
    print(json.dumps(found))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Rates of both ways."""
    import open_clip

    device = torch.device(options.device)
    classifier = load_classifier(options.towers[0], weights=None).to(device)
    vlm = open_clip.create_model(options.towers[1]).visual.eval().to(device)
    dim = int(vlm.output_dim)
    random = torch.Generator().manual_seed(0)
    words = [f"concept {index}" for index in range(1197)]
    text = torch.nn.functional.normalize(torch.randn(len(words), dim, generator=random), dim=1)
    concepts = ConceptSet(ConceptSet.from_words(words).concepts, text, 100.0)
    module = CEFAM(classifier, None, concepts).to(device)
    optimizer = torch.optim.SGD(module.translator.parameters(), lr=1e-4)
    widths = [*classifier.channels, dim]
    with tempfile.TemporaryDirectory() as folder:
        matrix = written(Path(folder), options.rows, sum(widths))
        features = Features(matrix, widths)
        features = features.to(device) if options.resident else features
        sampler = ShuffledSampler(options.rows, 0)
        loader = DataLoader(features, batch_size=options.batch, sampler=sampler, drop_last=True, collate_fn=_as_it_is)
        batches = iter(loader)

        def cached() -> None:
            nonlocal batches
            batch = next(batches, None)
            if batch is None:
                batches = iter(loader)
                batch = next(batches)
            step(module, optimizer, batch["embedding"].to(device), [part.to(device) for part in batch["pooled"]])

        cached()
        of_cache = seconds(cached, device, 20) / options.batch
    images = torch.rand(options.tower_batch, 3, 224, 224, generator=random).to(device)

    def whole() -> None:
        with torch.no_grad():
            pooled = [activation.mean(dim=(-2, -1)) for activation in classifier(images).activations]
            teacher = vlm(images)
        step(module, optimizer, teacher, pooled)

    whole()
    of_towers = seconds(whole, device, 2) / options.tower_batch
    return {
        "samples per second from the cache": 1 / of_cache,
        "samples per second with the towers": 1 / of_towers,
        "times": of_towers / of_cache,
        "seconds of an epoch of 1,281,167 rows": IMAGENET * of_cache,
    }


if __name__ == "__main__":
    main()
