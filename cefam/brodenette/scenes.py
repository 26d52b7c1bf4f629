"""Scenes as values: described by seeded draws, edited, and drawn elsewhere (:mod:`cefam.brodenette.drawing`).

Every element of a scene has a random stream of its own, so that a change of one leaves the others alone; all draws are
uniform, all numbers whole. Lengths are in half pixels: a scene is drawn at twice its size and averaged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

from cefam.brodenette.rules import CLASSES, RULES, Rule, held_out
from cefam.brodenette.vocabulary import BACKGROUNDS, COLORS, MATERIALS, OBJECTS, PATCH, PATCHES, SIZE
from cefam.errors import CefamError, near

FULL = 2 * SIZE  # half pixels in a side


@dataclass(frozen=True)
class Look:
    """What a part looks like: its color, the shade of it (added to red, green and blue), and its material, if any."""

    color: str
    material: str | None
    shade: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Element:
    """One thing in a scene.

    Args:
        kind: an object, a background, or "patch".
        looks: one per part, in the order of the kind's parts; backgrounds and patches have one.
        x: center, in half pixels; of a background: where it begins.
        y: as ``x``.
        width: half of the width, in half pixels.
        height: half of the height.
        turn: rotation in steps of 1/64 of a radian.
        flip: mirrored.
        variant: shape of a patch.
        texture: where the material's texture is cut out.
        missing: names of parts that are not drawn.
    """

    kind: str
    looks: tuple[Look, ...]
    x: int = 0
    y: int = 0
    width: int = FULL
    height: int = FULL
    turn: int = 0
    flip: bool = False
    variant: int = 0
    texture: int = 0
    missing: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts, the main one first; none for backgrounds and patches."""
        return OBJECTS[self.kind].parts if self.kind in OBJECTS else ()

    @property
    def color(self) -> str:
        """Color of the main part."""
        return self.looks[0].color

    @property
    def material(self) -> str | None:
        """Material of the main part."""
        return self.looks[0].material

    def look(self, part: str) -> Look:
        """Look of a part.

        Raises:
            CefamError: for a part that this kind does not have.
        """
        if part not in self.parts:
            raise CefamError(f"A {self.kind} has no part {part!r}; it has {', '.join(self.parts) or 'none'}.")
        return self.looks[self.parts.index(part)]


@dataclass(frozen=True)
class Light:
    """Brightness in 256ths at the center, and its change from edge to edge, rightwards and downwards."""

    level: int = 256
    right: int = 0
    down: int = 0


@dataclass(frozen=True)
class Scene:
    """A scene: elements from back to front, light and noise.

    Args:
        name: split and index, "train/000012"; seeds the noise.
        elements: back to front.
        light: of the whole scene.
        noise: largest change of a pixel's brightness, in 255ths.
        label: class of the one object that follows a rule, or ``None``.
    """

    name: str
    elements: tuple[Element, ...]
    light: Light = Light()
    noise: int = 0
    label: str | None = None

    @property
    def objects(self) -> list[int]:
        """Positions of the objects among the elements."""
        return [position for position, element in enumerate(self.elements) if element.kind in OBJECTS]

    def edited(
        self, position: int, part: str | None = None, color: str | None = None, material: str | None = None
    ) -> "Scene":
        """The same scene with another color or material of one element, or of one part of it.

        Raises:
            CefamError: for a color, material or part that there is not.
        """
        for given, known, what in ((color, COLORS, "color"), (material, MATERIALS, "material")):
            if given is not None and given not in known:
                raise CefamError(f"There is no {what} {given!r}.{near(given, known)}")
        element = self.elements[position]
        if part is not None:
            element.look(part)
        looks = tuple(
            replace(look, color=color or look.color, material=material or look.material)
            if part is None or element.parts[index] == part
            else look
            for index, look in enumerate(element.looks)
        )
        return self.with_element(position, replace(element, looks=looks))

    def with_element(self, position: int, element: Element) -> "Scene":
        """The same scene with another element in this place; its class is that of the objects that are then there."""
        elements = (*self.elements[:position], element, *self.elements[position + 1 :])
        return replace(self, elements=elements, label=label_of(elements))

    def without(self, position: int, part: str | None = None) -> "Scene":
        """The same scene without one element, or without one part of it.

        Raises:
            CefamError: for a part that the element does not have.
        """
        if part is not None:
            element = self.elements[position]
            element.look(part)
            missing = tuple(name for name in element.parts if name == part or name in element.missing)
            return self.with_element(position, replace(element, missing=missing))
        elements = (*self.elements[:position], *self.elements[position + 1 :])
        return replace(self, elements=elements, label=label_of(elements))


def follows(element: Element, rule: Rule) -> bool:
    """Whether an element is an instance of a class; a part that is missing cannot be what a rule wants."""
    return not {*rule.colors, *rule.materials} & set(element.missing) and compatible(element, rule)


def compatible(element: Element, rule: Rule) -> bool:
    """Whether nothing that can be seen of an element speaks against a class."""
    return (
        element.kind == rule.kind
        and set(element.parts) != set(element.missing)
        and all(part in element.missing or element.look(part).color == color for part, color in rule.colors.items())
        and all(part in element.missing or element.look(part).material == m for part, m in rule.materials.items())
    )


@lru_cache(maxsize=4096)  # edits ask for the same elements again and again
def class_of(element: Element) -> str | None:
    """Class of an object, or ``None``."""
    return next((rule.name for rule in RULES if follows(element, rule)), None)


def label_of(elements: Sequence[Element]) -> str | None:
    """Class of a scene: that of its one object of a class; ``None`` where there is none, or several."""
    found = [name for name in map(class_of, elements) if name is not None]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Split:
    """A kind of scenes: "class" scenes show one object of a class, "free" ones any objects.

    ``held_out``: none of the looks kept for the evaluation ("never"), or at least one ("always").
    """

    name: str
    kind: str
    held_out: str
    purpose: str


SPLITS: dict[str, Split] = {
    split.name: split
    for split in (
        Split("train", "class", "never", "the classifier and the translator learn from it"),
        Split("val", "class", "never", "the translator's validation, early stopping"),
        Split("test", "class", "never", "the classifier's accuracy"),
        Split("captioned", "free", "never", "the vision-language model learns from it, and from train"),
        Split("retrieval", "free", "never", "the vision-language model's quality"),
        Split("evaluation", "free", "always", "regions are measured on it"),
        Split("development", "class", "never", "contributions may be looked at on it as often as one likes"),
        Split("confirmation", "class", "never", "finalists, named before, are looked at once"),
        Split("final", "class", "never", "the table of contributions"),
        Split("regions_development", "free", "always", "region methods may be looked at on it as often as one likes"),
        Split("regions_confirmation", "free", "always", "finalists, named before, are looked at once"),
        Split("regions_fresh", "free", "always", "a first table of region methods that go beyond the paper"),
        Split("regions_final", "free", "always", "a second one, with smaller windows for coarse stages"),
        Split("regions_last", "free", "always", "a third one, with directions from a regression"),
        Split("regions_fourth", "free", "always", "the table of region methods that go beyond the paper"),
        Split("tuning", "free", "always", "the clutter was chosen on it, with rows that know nothing"),
    )
}


def describe(split: str, index: int) -> Scene:
    """The scene of a split with this index, always the same.

    Raises:
        CefamError: for an unknown split, with the near names.
    """
    if split not in SPLITS:
        raise CefamError(f"Brodenette has no split {split!r}.{near(split, SPLITS)} It has {', '.join(SPLITS)}.")
    name = f"{split}/{index:06d}"
    is_class = SPLITS[split].kind == "class"
    layout = Random(f"{name}/layout")
    rule = RULES[layout.randrange(len(RULES))] if is_class else None
    horizon = layout.randint(FULL * 9 // 24, FULL * 14 // 24)
    patches = [_patch(Random(f"{name}/patch{i}"), horizon) for i in range(layout.randint(3, 6))]
    places = _places(layout, horizon, is_class)
    objects: list[Element] = []
    for slot, (x, y, size) in enumerate(places):
        wanted = rule if slot == 0 else None
        stream = Random(f"{name}/object{slot}")
        objects.append(_object(stream, x, y, size, _allowed(split, slot, wanted), wanted, any_class=not is_class))
    if is_class:
        # The object of the class stands in front, or has one smaller thing before it.
        main, others = objects[0], sorted(objects[1:], key=lambda element: element.y)
        objects = [*others, main] if layout.randrange(2) else [*others[:-1], main, others[-1]]
    else:
        objects.sort(key=lambda element: element.y)
    light = Light(layout.randint(205, 290), layout.randint(-64, 64), layout.randint(-64, 64))
    elements = (*_backgrounds(Random(f"{name}/background"), horizon), *patches, *objects)
    return Scene(name, elements, light, layout.randint(4, 20), rule.name if rule else label_of(elements))


def _places(layout: Random, horizon: int, is_class: bool) -> list[tuple[int, int, int]]:
    """Center and half size of every object; of a class scene: the object of the class first, larger."""
    count = layout.randint(2, 4) if is_class else layout.randint(3, 5)
    slots = list(range(count))
    layout.shuffle(slots)
    places = []
    for number, slot in enumerate(slots):
        size = layout.randint(36, 58) if is_class and number == 0 else layout.randint(20, 36)
        x = FULL * (2 * slot + 1) // (2 * count) + layout.randint(-14, 14)
        y = layout.randint(horizon - size // 2, FULL - size * 3 // 4)
        places.append((min(max(x, size * 3 // 4), FULL - size * 3 // 4), y, size))
    return places


def _allowed(split: str, slot: int, rule: Rule | None) -> Callable[[Element], bool]:
    """Which looks an object may have: those kept for the evaluation, the class rules and the split decide."""
    is_class, wants = SPLITS[split].kind == "class", SPLITS[split].held_out

    def allowed(element: Element) -> bool:
        kept = held_out(element.kind, element.color, str(element.material))
        if (wants == "never" and kept) or (wants == "always" and slot == 0 and not kept):
            return False
        return not is_class or class_of(element) == (rule.name if rule else None)

    return allowed


def _object(
    stream: Random, x: int, y: int, size: int, allowed: Callable[[Element], bool], rule: Rule | None, any_class: bool
) -> Element:
    """Draw an object until it is allowed. In free scenes two of five follow a rule, so that classes occur there too."""
    turn, flip, texture = stream.randint(-14, 14), bool(stream.randrange(2)), stream.getrandbits(30)
    width, height = size * stream.randint(86, 114) // 100, size * stream.randint(86, 114) // 100
    while True:
        chosen = rule
        if rule is None and any_class and stream.randrange(5) < 2:
            chosen = RULES[stream.randrange(len(RULES))]
        kind = OBJECTS[chosen.kind if chosen else tuple(OBJECTS)[stream.randrange(len(OBJECTS))]]
        looks = _looks(stream, kind.parts, chosen)
        element = Element(kind.name, looks, x, y, width, height, turn, flip, 0, texture)
        if allowed(element):
            return element


def _looks(stream: Random, parts: Sequence[str], rule: Rule | None) -> tuple[Look, ...]:
    """Looks of an object's parts: each its own color or (one in three) the main one's, mostly of the main material."""
    main = _look(stream)
    looks = []
    for part in parts:
        look = _look(stream)
        if part == parts[0]:
            look = main
        else:
            color = main.color if stream.randrange(3) == 0 else look.color
            look = replace(look, color=color, material=main.material if stream.randrange(5) < 3 else look.material)
        if rule is not None:
            color, material = rule.colors.get(part, look.color), rule.materials.get(part, look.material)
            look = replace(look, color=color, material=material)
        looks.append(look)
    return tuple(looks)


def _look(stream: Random, colors: Sequence[str] = tuple(COLORS), materials: Sequence[str] = MATERIALS) -> Look:
    color = colors[stream.randrange(len(colors))]
    material = materials[stream.randrange(len(materials))] if materials else None
    return Look(color, material, (stream.randint(-14, 14), stream.randint(-14, 14), stream.randint(-14, 14)))


def _patch(stream: Random, horizon: int) -> Element:
    width, height = stream.randint(14, 40), stream.randint(14, 40)
    x, y = stream.randint(0, FULL), stream.randint(FULL // 8, FULL - 16)
    variant, turn = stream.randrange(len(PATCHES)), stream.randint(-20, 20)
    return Element(PATCH, (_look(stream),), x, y, width, height, turn, False, variant, stream.getrandbits(30))


def _backgrounds(stream: Random, horizon: int) -> tuple[Element, Element]:
    """The upper and the lower background, in their usual colors three times of four."""
    found = []
    for upper in (True, False):
        choice = [background for background in BACKGROUNDS.values() if background.upper == upper]
        background = choice[stream.randrange(len(choice))]
        colors = background.colors if stream.randrange(4) else tuple(COLORS)
        look = _look(stream, colors, background.materials)
        found.append(Element(background.name, (look,), y=0 if upper else horizon, texture=stream.getrandbits(30)))
    return found[0], found[1]


__all__ = [
    "CLASSES", "SPLITS", "Element", "Light", "Look", "Scene", "Split", "class_of", "compatible", "describe", "follows", "label_of",
]  # fmt: skip
