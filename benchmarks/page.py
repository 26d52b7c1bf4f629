"""A page for one photograph, 8 of 1,197 concepts: the time of ``Explainer.explain``, of both together, and the size of pages.

    python -m benchmarks.page --classifier resnet50

Also a page of 200 concepts of a photograph of 1,600 x 1,200 pixels: its size, and, where there is a Chromium, how long it takes to open.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.regions import Setting, seconds
from cefam import Photograph
from cefam.io.files import write_text


def picture(width: int, height: int) -> Image.Image:
    """Smooth noise, as large as a photograph, and about as hard to compress."""
    random = np.random.RandomState(0)
    small = Image.fromarray(random.randint(0, 256, (height // 16, width // 16, 3)).astype(np.uint8))
    grain = random.randint(-12, 12, (height, width, 3))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int) + grain
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def opened(place: Path) -> float | None:
    """Seconds until Chromium has loaded a page, the shortest of three; ``None`` where there is none."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        times = []
        for _ in range(3):
            page = browser.new_page()
            page.goto(place.as_uri())
            times.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
        browser.close()
    return float(min(times)) / 1000


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__.split("\n")[0])
    parser.add_argument("--classifier", default="resnet50")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/page.json"))
    options = parser.parse_args()
    explainer = Setting(options.classifier, 1, "cpu").explainer
    photograph = Photograph.of(picture(1600, 1200), 224, "photograph.jpg")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "page.html"
        alone = seconds(lambda: explainer.explain([photograph], top_k=8))
        both = seconds(lambda: explainer.explain([photograph], top_k=8)[0].save(place, overwrite=True))
        small = place.stat().st_size
        explainer.explain([photograph], top_k=200, num_channels=1)[0].save(place, overwrite=True)
        found = {
            "explain": alone,
            "with_page": both,
            "ratio": both / alone,
            "bytes": small,
            "bytes_200": place.stat().st_size,
            "opens_200": opened(place),
        }
    print(json.dumps(found, indent=1))
    about = {"classifier": options.classifier, "threads": torch.get_num_threads()}
    write_text(options.output, json.dumps({**about, **found}, indent=1))


if __name__ == "__main__":
    main()
