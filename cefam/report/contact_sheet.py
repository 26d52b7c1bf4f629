"""The contact sheet of an evaluation: a block per pair, with the photograph, the mask, and the measured maps of every method."""

import textwrap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cefam.io.files import replacing
from cefam.report.examples import Candidate, Example

COLORMAP = "viridis"  # perceptually uniform, unlike jet
BLOCKS_ACROSS = 4
FRAMES = {"top1": "tab:red", "oracle": "tab:orange"}
NUMBERS = "Numbers: NRA. Red: the method's first choice. Orange: the ground truth's choice."
SIDE, GAP, LABEL = 112, 8, 84  # pixels: a thumbnail's longer side, space, width of the methods' names
FONT, LINE = 11, 14  # pixels: size of letters, height of a line


def write_contact_sheet(examples: Sequence[Example], path: Path, numbers: str = NUMBERS) -> None:
    """Draw one block per example: photograph and mask, then one row of measured candidates per method.

    The method's first choice has a red frame; if the oracle selects another candidate, that one has an orange frame. Every
    map is scaled separately, from its minimum (0 if it is not negative) to its maximum, because units differ. Without masks
    the photograph stands before the candidates. ``numbers`` says what those beside the maps are.
    """
    methods = list(dict.fromkeys(method for example in examples for method in example.candidates))
    width = max((len(each) for example in examples for each in example.candidates.values()), default=1)
    above = int(any(example.mask is not None for example in examples))
    across = min(BLOCKS_ACROSS if above else 1, len(examples))
    rows, columns = len(methods) + above, max(width, 2) if above else width + 1
    cell = SIDE + GAP, SIDE + GAP + LINE
    block = LABEL + columns * cell[0] + GAP, 2 * LINE + rows * cell[1]
    head = _label(numbers, across * block[0] - 2 * GAP)
    sheet = Image.new("RGB", (across * block[0], GAP + head.height + -(-len(examples) // across) * block[1]), "white")
    sheet.paste(head, (GAP, GAP))
    for number, example in enumerate(examples):
        left, top = number % across * block[0] + GAP, number // across * block[1] + GAP + head.height
        sheet.paste(_label(example.title, block[0] - 2 * GAP, 1), (left, top + LINE // 2))
        top += 2 * LINE

        def put(
            row: int, column: int, picture: Image.Image, caption: str = "", left: int = left, top: int = top
        ) -> None:
            corner = left + LABEL + column * cell[0], top + row * cell[1]
            sheet.paste(_label(caption, SIDE, 1), corner)
            sheet.paste(picture, (corner[0], corner[1] + LINE))

        put(0, 0, _thumbnail(example.image))
        if example.mask is not None:
            shown = _blended(example, np.repeat(0.25 + 0.75 * example.mask[..., None], 3, axis=2), 0.75)
            put(0, 1, _thumbnail(shown), f"mask {100 * example.mask.mean():.1f} %")
        for row, method in enumerate(methods, start=above):
            sheet.paste(_label(method, LABEL - GAP), (left, top + row * cell[1] + LINE))
            candidates = example.candidates.get(method, [])
            for column, candidate in enumerate(candidates, start=1 - above):
                put(row, column, _drawn(example, candidate), candidate.caption)
            if not candidates:
                put(row, 1 - above, _label("not expressed", SIDE))
    with replacing(path) as temporary:
        sheet.save(temporary, "png")


def _drawn(example: Example, candidate: Candidate) -> Image.Image:
    """A map over the photograph, with a frame if a protocol chose it."""
    low = min(float(candidate.map.min()), 0.0)
    scaled = (candidate.map - low) / max(float(candidate.map.max()) - low, 1e-12)
    picture = _thumbnail(_blended(example, mpl.colormaps[COLORMAP](scaled)[..., :3], 0.65))
    frame = next((color for protocol, color in FRAMES.items() if protocol in candidate.chosen), None)
    if frame is not None:
        color = mpl.colors.to_hex(frame)
        ImageDraw.Draw(picture).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=color, width=3)
    return picture


def _blended(example: Example, colors: np.ndarray, alpha: float) -> np.ndarray:
    """Colors (h, w, 3) in [0, 1], at the photograph's size, over the photograph."""
    over = Image.fromarray((255 * colors).round().astype(np.uint8)).resize(example.image.shape[1::-1])
    mixed: np.ndarray = (1 - alpha) * example.image + alpha * np.asarray(over)
    return mixed.round().astype(np.uint8)


def _thumbnail(image: np.ndarray) -> Image.Image:
    share = SIDE / max(image.shape[:2])
    size = max(1, round(share * image.shape[1])), max(1, round(share * image.shape[0]))
    return Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)


def _label(text: str, width: int, lines: int | None = None) -> Image.Image:
    """Text in lines of a width in pixels; what does not fit in ``lines`` lines is cut off."""
    font = _font()
    wrapped = textwrap.wrap(text, max(1, int(width / (0.58 * FONT)))) or [""]
    label = Image.new("RGB", (width, LINE * (lines or len(wrapped))), "white")
    ImageDraw.Draw(label).text((0, 0), text if lines == 1 else "\n".join(wrapped), fill="black", font=font, spacing=2)
    return label


@lru_cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", FONT)
