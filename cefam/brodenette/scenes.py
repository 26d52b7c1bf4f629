"""Scenes as immutable descriptions: sampled with a seed, and edited. :mod:`cefam.brodenette.drawing` draws them.

Each element of a scene has its own random stream, so that changing one does not affect the others. All random numbers are
uniform integers. Lengths are in half pixels: a scene is drawn at twice its size and averaged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

from cefam.brodenette.rules import RULES, Rule, held_out
from cefam.brodenette.vocabulary import BACKGROUNDS, COLORS, MATERIALS, OBJECTS, PATCH, PATCHES, SIZE
from cefam.errors import CefamError, near

FULL = 2 * SIZE  # side of a scene in half pixels


@dataclass(frozen=True)
class Look:
    """Look of a part: color, shade (added to red, green and blue), and material, if any."""

    color: str
    material: str | None
    shade: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Element:
    """One element of a scene."""

    kind: str  # an object, a background, or "patch"
    looks: tuple[Look, ...]  # one per part, in the order of the kind's parts; backgrounds and patches have one
    x: int = 0  # center in half pixels; for a background, its left edge
    y: int = 0  # center in half pixels; for a background, its upper edge
    width: int = FULL  # half of the width, in half pixels
    height: int = FULL  # half of the height
    turn: int = 0  # rotation in steps of 1/64 of a radian
    flip: bool = False  # mirrored
    variant: int = 0  # shape of a patch
    texture: int = 0  # seed of the texture crop
    missing: tuple[str, ...] = ()  # names of parts that are not drawn

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts, the main part first; empty for backgrounds and patches."""
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
    """Brightness at the center, and its change from left to right and from top to bottom, in 1/256."""

    level: int = 256
    right: int = 0
    down: int = 0


@dataclass(frozen=True)
class Scene:
    """A scene: elements from back to front, light and noise."""

    name: str  # split and index, "train/000012"; seeds the noise
    elements: tuple[Element, ...]  # back to front
    light: Light = Light()  # light of the whole scene
    noise: int = 0  # maximum change of a pixel value, in 1/255
    label: str | None = None  # class of the only object that follows a rule, or `None`

    @property
    def objects(self) -> list[int]:
        """Positions of the objects among the elements."""
        return [position for position, element in enumerate(self.elements) if element.kind in OBJECTS]

    def edited(
        self, position: int, part: str | None = None, color: str | None = None, material: str | None = None
    ) -> "Scene":
        """The same scene with another color or material of one element, or of one part of it.

        Raises:
            CefamError: for an unknown color, material or part.
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
        """The same scene with one element replaced and the class updated."""
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
    """Whether an element follows a rule; a missing part does not meet a requirement."""
    return not {*rule.colors, *rule.materials} & set(element.missing) and compatible(element, rule)


def compatible(element: Element, rule: Rule) -> bool:
    """Whether the visible parts of an element are compatible with a rule."""
    return (
        element.kind == rule.kind
        and set(element.parts) != set(element.missing)
        and all(part in element.missing or element.look(part).color == color for part, color in rule.colors.items())
        and all(part in element.missing or element.look(part).material == m for part, m in rule.materials.items())
    )


@lru_cache(maxsize=4096)  # edits look up the same elements repeatedly
def class_of(element: Element) -> str | None:
    """Class of an object, or ``None``."""
    return next((rule.name for rule in RULES if follows(element, rule)), None)


def label_of(elements: Sequence[Element]) -> str | None:
    """Class of a scene: that of its only object with a class; ``None`` if there is none, or several."""
    found = [name for name in map(class_of, elements) if name is not None]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Split:
    """A data split: "class" scenes show exactly one object with a class, "free" scenes any objects.

    ``held_out``: scenes show no look that is reserved for the evaluation ("never"), or at least one ("always").
    """

    name: str
    kind: str
    held_out: str


SPLITS: dict[str, Split] = {
    split.name: split
    for split in (
        Split("train", "class", "never"),  # training of the classifier and the translator
        Split("val", "class", "never"),  # validation and early stopping of the translator
        Split("test", "class", "never"),  # accuracy of the classifier
        Split("captioned", "free", "never"),  # training of the vision-language model, together with train
        Split("retrieval", "free", "never"),  # quality of the vision-language model
        Split("evaluation", "free", "always"),  # evaluation of regions
        Split("development", "class", "never"),  # development of contributions
        Split("confirmation", "class", "never"),  # a single evaluation of finalists that were fixed before
        Split("final", "class", "never"),  # the table of contributions
        Split("regions_development", "free", "always"),  # development of region methods
        Split("regions_confirmation", "free", "always"),  # a single evaluation of finalists that were fixed before
        Split("regions_fresh", "free", "always"),  # first table of region methods that go beyond the paper
        Split("regions_final", "free", "always"),  # second table, with smaller windows for coarse stages
        Split("regions_last", "free", "always"),  # third table, with directions from a regression
        Split("regions_fourth", "free", "always"),  # fourth table, with smaller windows for a ViT
        Split("regions_fifth", "free", "always"),  # fifth table, with competition between concepts
        Split("tuning", "free", "always"),  # choice of the clutter, with uninformed baselines
    )
}


def describe(split: str, index: int) -> Scene:
    """The scene of a split with this index; deterministic.

    Raises:
        CefamError: for an unknown split.
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
        # The object of the class is in front, or second behind one smaller object.
        main, others = objects[0], sorted(objects[1:], key=lambda element: element.y)
        objects = [*others, main] if layout.randrange(2) else [*others[:-1], main, others[-1]]
    else:
        objects.sort(key=lambda element: element.y)
    light = Light(layout.randint(205, 290), layout.randint(-64, 64), layout.randint(-64, 64))
    elements = (*_backgrounds(Random(f"{name}/background"), horizon), *patches, *objects)
    return Scene(name, elements, light, layout.randint(4, 20), rule.name if rule else label_of(elements))


def _places(layout: Random, horizon: int, is_class: bool) -> list[tuple[int, int, int]]:
    """Center and half size of every object; in class scenes, the object of the class comes first and is larger."""
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
    """Predicate: whether an object may appear in the split, by held-out looks and class rules."""
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
    """Sample objects until one is allowed. In free scenes, two of five samples follow a rule, so that classes occur."""
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
    """Looks of an object's parts; a part takes the main part's color with probability 1/3, its material with 3/5."""
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
    """The upper and the lower background, in their usual colors with probability 3/4."""
    found = []
    for upper in (True, False):
        choice = [background for background in BACKGROUNDS.values() if background.upper == upper]
        background = choice[stream.randrange(len(choice))]
        colors = background.colors if stream.randrange(4) else tuple(COLORS)
        look = _look(stream, colors, background.materials)
        found.append(Element(background.name, (look,), y=0 if upper else horizon, texture=stream.getrandbits(30)))
    return found[0], found[1]
