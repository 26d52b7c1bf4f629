"""The vocabulary of Brodenette: kinds of objects with their parts and shapes, backgrounds, colors, materials.

Shapes are polygons with integer coordinates in the square -64 .. 64, y downwards, drawn in the listed order.
"""

from dataclasses import dataclass

SIZE = 96  # side of a scene in pixels

# Broden's eleven colors.
COLORS: dict[str, tuple[int, int, int]] = {
    "black": (26, 26, 30),
    "blue": (40, 78, 205),
    "brown": (120, 72, 36),
    "green": (44, 148, 58),
    "grey": (128, 128, 128),
    "orange": (240, 130, 24),
    "pink": (246, 152, 188),
    "purple": (130, 48, 168),
    "red": (206, 34, 40),
    "white": (238, 238, 234),
    "yellow": (246, 216, 48),
}
MATERIALS = ("brick", "fabric", "fur", "glass", "metal", "paper", "stone", "wood")

Points = tuple[tuple[int, int], ...]

# A circle of radius 64 as a polygon of sixteen corners, scaled to draw ellipses.
CIRCLE: Points = (
    *((64, 0), (59, 24), (45, 45), (24, 59), (0, 64), (-24, 59), (-45, 45), (-59, 24)),
    *((-64, 0), (-59, -24), (-45, -45), (-24, -59), (0, -64), (24, -59), (45, -45), (59, -24)),
)


def ellipse(x: int, y: int, half_width: int, half_height: int) -> Points:
    """An ellipse around (x, y) as a polygon of sixteen corners."""
    return tuple((x + half_width * a // 64, y + half_height * b // 64) for a, b in CIRCLE)


def box(left: int, top: int, right: int, bottom: int) -> Points:
    """A rectangle."""
    return ((left, top), (right, top), (right, bottom), (left, bottom))


@dataclass(frozen=True)
class Kind:
    """A kind of object: its parts (the first is the main part, whose color is the object's), and its shapes."""

    name: str
    parts: tuple[str, ...]
    shapes: tuple[tuple[str, Points], ...]


def _petals() -> tuple[tuple[str, Points], ...]:
    around = ((0, -52), (26, -37), (26, -7), (0, 8), (-26, -7), (-26, -37))
    return tuple(("petal", ellipse(x, y, 18, 18)) for x, y in around)


# fmt: off
OBJECTS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("bird", ("body", "wing", "head", "tail", "beak", "leg"), (
            ("tail", ((-30, -2), (-64, -26), (-60, 12))), ("leg", box(-10, 26, -3, 60)),
            ("leg", box(10, 26, 17, 60)), ("body", ellipse(-4, 6, 40, 27)), ("head", ellipse(32, -24, 20, 19)),
            ("beak", ((48, -32), (64, -22), (48, -14))),
            ("wing", ((18, -4), (-6, -10), (-42, -2), (-16, 22), (8, 18))),
        )),
        Kind("fish", ("body", "tail", "fin"), (
            ("tail", ((-28, 0), (-64, -30), (-54, 0), (-64, 30))), ("fin", ((-20, -14), (-6, -46), (20, -18))),
            ("fin", ((-10, 18), (-16, 42), (14, 20))), ("body", ellipse(12, 0, 50, 27)),
        )),
        Kind("butterfly", ("wing", "body"), (
            ("wing", ellipse(-32, -24, 30, 32)), ("wing", ellipse(32, -24, 30, 32)),
            ("wing", ellipse(-26, 32, 24, 26)), ("wing", ellipse(26, 32, 24, 26)), ("body", ellipse(0, 2, 9, 56)),
        )),
        Kind("cat", ("body", "head", "tail", "leg", "ear"), (
            ("tail", ((-36, 4), (-58, -38), (-48, -42), (-28, -6))), ("leg", box(-36, 14, -25, 60)),
            ("leg", box(-18, 18, -8, 60)), ("leg", box(10, 18, 20, 60)), ("leg", box(24, 14, 34, 60)),
            ("body", ellipse(-2, 10, 42, 20)), ("ear", ((20, -34), (22, -62), (36, -46))),
            ("ear", ((56, -34), (56, -62), (42, -46))), ("head", ellipse(38, -26, 23, 21)),
        )),
        Kind("flower", ("petal", "disc", "stem", "leaf"), (
            ("stem", box(-5, -10, 5, 62)), ("leaf", ((4, 44), (34, 18), (40, 40))),
            ("leaf", ((-4, 54), (-36, 30), (-40, 52))), *_petals(), ("disc", ellipse(0, -22, 17, 17)),
        )),
        Kind("tree", ("crown", "trunk"), (
            ("trunk", box(-10, 4, 10, 62)), ("crown", ellipse(0, -22, 44, 42)),
        )),
        Kind("mushroom", ("cap", "stem"), (
            ("stem", ((-14, -4), (14, -4), (20, 60), (-20, 60))),
            ("cap", ((-58, 4), (-46, -34), (-20, -56), (20, -56), (46, -34), (58, 4))),
        )),
        Kind("house", ("facade", "roof", "door", "window", "chimney"), (
            ("chimney", box(24, -58, 38, -20)), ("facade", box(-46, -12, 46, 60)),
            ("roof", ((-60, -12), (0, -60), (60, -12))), ("door", box(-9, 20, 13, 60)),
            ("window", box(-38, 4, -18, 26)), ("window", box(21, 4, 39, 26)),
        )),
        Kind("car", ("body", "window", "wheel"), (
            ("body", ((-36, -4), (-22, -36), (24, -36), (40, -4), (62, 2), (62, 30), (-62, 30), (-62, 0))),
            ("window", ((-26, -4), (-16, -28), (-2, -28), (-2, -4))),
            ("window", ((6, -4), (6, -28), (19, -28), (30, -4))), ("wheel", ellipse(-34, 30, 17, 17)),
            ("wheel", ellipse(34, 30, 17, 17)),
        )),
        Kind("boat", ("hull", "sail", "mast"), (
            ("mast", box(-5, -62, 3, 30)), ("sail", ((5, -58), (50, 20), (5, 20))),
            ("sail", ((-8, -44), (-8, 20), (-40, 20))), ("hull", ((-62, 26), (62, 26), (42, 58), (-42, 58))),
        )),
        Kind("cup", ("bowl", "handle", "rim"), (
            ("handle", ((26, -22), (56, -22), (62, 6), (52, 30), (24, 34), (24, 20), (42, 18), (48, 2), (44, -8), (26, -8))),
            ("bowl", ((-44, -40), (30, -40), (22, 54), (-36, 54))), ("rim", ellipse(-7, -40, 38, 13)),
        )),
        Kind("lamp", ("shade", "pole", "base"), (
            ("pole", box(-5, -10, 5, 54)), ("base", ellipse(0, 54, 32, 10)),
            ("shade", ((-22, -60), (22, -60), (44, -4), (-44, -4))),
        )),
        Kind("chair", ("seat", "back", "leg"), (
            ("leg", box(-36, 12, -26, 62)), ("leg", box(28, 12, 38, 62)),
            ("back", ((-44, -62), (-26, -62), (-22, 4), (-40, 4))),
            ("seat", ((-42, 0), (36, 0), (44, 20), (-42, 20))),
        )),
        Kind("umbrella", ("canopy", "handle"), (
            ("handle", ((-4, -10), (4, -10), (4, 50), (14, 50), (14, 42), (22, 42), (22, 60), (-4, 60))),
            ("canopy", ((-62, 4), (-54, -24), (-32, -46), (0, -56), (32, -46), (54, -24), (62, 4), (30, -4), (0, 4), (-30, -4))),
        )),
        Kind("balloon", ("envelope", "basket"), (
            ("basket", box(-13, 40, 13, 62)),
            ("envelope", ((-14, 36), (-40, 2), (-44, -24), (-30, -50), (0, -62), (30, -50), (44, -24), (40, 2), (14, 36))),
        )),
    )
}
# fmt: on


@dataclass(frozen=True)
class Background:
    """Background of the upper or lower part of a scene, with usual colors and materials (none: it has its own texture)."""

    name: str
    upper: bool
    colors: tuple[str, ...]
    materials: tuple[str, ...] = ()


BACKGROUNDS: dict[str, Background] = {
    background.name: background
    for background in (
        Background("sky", True, ("blue", "grey", "orange", "pink", "purple", "white")),
        Background("wall", True, tuple(COLORS), ("brick", "fabric", "metal", "paper", "stone", "wood")),
        Background("grass", False, ("green", "yellow", "brown")),
        Background("water", False, ("blue", "green", "grey", "purple")),
        Background("sand", False, ("yellow", "orange", "brown", "white")),
        Background("road", False, ("grey", "black", "brown")),
        Background("snow", False, ("white", "blue", "grey")),
        Background("floor", False, tuple(COLORS), ("fabric", "glass", "metal", "stone", "wood")),
    )
}

PATCH = "patch"  # a shape with color and material that is not an object
PATCHES: tuple[Points, ...] = (
    box(-60, -60, 60, 60),
    ellipse(0, 0, 62, 62),
    ((-62, 58), (0, -60), (62, 58)),
    ((-60, -20), (0, -62), (60, -20), (36, 60), (-36, 60)),
    ((-62, 0), (0, -62), (62, 0), (0, 62)),
)

PARTS: tuple[str, ...] = tuple(sorted({part for kind in OBJECTS.values() for part in kind.parts}))


@dataclass(frozen=True)
class Label:
    """A row of ``label.csv``: number (from 1), name, category."""

    number: int
    name: str
    category: str


LABELS: tuple[Label, ...] = tuple(
    Label(number, name, category)
    for number, (category, name) in enumerate(
        [
            *(("color", name) for name in COLORS),
            *(("object", name) for name in (*OBJECTS, *BACKGROUNDS)),
            *(("part", name) for name in PARTS),
            *(("material", name) for name in MATERIALS),
        ],
        start=1,
    )
)
# Colored parts ("blue wing"), for zero-shot queries; not a category of Broden.
COMPOSITIONS: tuple[Label, ...] = tuple(
    Label(number, f"{color} {part}", "composition")
    for number, (color, part) in enumerate(
        ((color, part) for color in COLORS for part in PARTS), start=LABELS[-1].number + 1
    )
)
NUMBER: dict[tuple[str, str], int] = {(label.category, label.name): label.number for label in (*LABELS, *COMPOSITIONS)}
