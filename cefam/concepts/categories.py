"""The categories of Broden's labels, and the prompts that the paper gives them (Table A1)."""

CATEGORIES = ("object", "part", "color", "material")  # those with masks, in the order of the paper's tables
IMAGE_LEVEL = ("scene", "texture")  # labels of whole images: no masks, not measured
DEFAULT_TEMPLATE = "a photo of a {}"
# Scene and texture, which Table A1 leaves out, are the published program's.
TEMPLATES = {
    "object": "a photo of a {}",
    "part": "a photo of a {}",
    "color": "a photo of a {} object",
    "material": "a photo of an object made of {}",
    "scene": "a photo of an object on {}",
    "texture": "a photo of a {} object",
}
IGNORED = 65535  # in an index map: neither inside nor outside of any label


def category_of(text: str) -> str:
    """A category as people write it: a known one in any case, another one as it is.

    >>> category_of(" Color"), category_of("Shape")
    ('color', 'Shape')
    """
    text = text.strip()
    return text.lower() if text.lower() in TEMPLATES else text
