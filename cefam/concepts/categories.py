"""The categories of Broden's labels, and their prompts from the paper (Table A1)."""

from typing import Any

from cefam.errors import CefamError

CATEGORIES = ("object", "part", "color", "material")  # categories with masks, in the order of the paper's tables
IMAGE_LEVEL = ("scene", "texture")  # labels of whole images: no masks, not measured
BACKGROUND = "background"  # concepts that scores compete with, and that are not shown or measured
DEFAULT_TEMPLATE = "a photo of a {}"
# Scene and texture are not in Table A1; their prompts follow the published program.
TEMPLATES = {
    "object": "a photo of a {}",
    "part": "a photo of a {}",
    "color": "a photo of a {} object",
    "material": "a photo of an object made of {}",
    "scene": "a photo of an object on {}",
    "texture": "a photo of a {} object",
}
IGNORED = 65535  # value of pixels in an index map that are excluded from measurement


def category_of(text: str) -> str:
    """Normalize the name of a category: strip blanks, and convert known categories to lower case.

    >>> category_of(" Color"), category_of("Shape")
    ('color', 'Shape')
    """
    text = text.strip()
    return text.lower() if text.lower() in TEMPLATES else text


def label_number(value: Any, name: str) -> int:
    """The number of a label, as masks hold it."""
    text = str(value).strip()
    if not text.isdecimal():
        raise CefamError(f"the number {text!r} of {name!r} is not a whole number.")
    if not 0 < int(text) < IGNORED:
        raise CefamError(
            f"the number of {name!r} is {int(text)}, but masks hold numbers from 1 to {IGNORED - 1} (0 means 'no label', {IGNORED} 'not "
            f"measured')."
        )
    return int(text)
