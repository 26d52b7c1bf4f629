"""Edits of scenes: one concept gets another color or material, a part is removed, an object is removed or replaced.

All occurrences of the concept are changed, so that it is absent from the edited scene.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from cefam.brodenette.rules import RULES, held_out
from cefam.brodenette.scenes import Element, Scene, class_of, label_of
from cefam.brodenette.vocabulary import BACKGROUNDS, COLORS, LABELS, MATERIALS, OBJECTS, Label

SWAPS = 3  # number of other kinds that replace an object


@dataclass(frozen=True)
class Intervention:
    """A concept of a scene, and the edited scenes in which it is changed."""

    label: Label  # the concept
    # the scene with other values of the concept, none of which satisfies another class's rule
    alternatives: tuple[Scene, ...]
    needed: bool  # whether the rule of the scene's class includes the concept


def interventions(scene: Scene, shown: Iterable[int]) -> list[Intervention]:
    """Interventions on the concepts of a scene; those without an admissible alternative are left out."""
    needed = needs(scene.label)
    found = []
    for number in sorted(shown):
        label = LABELS[number - 1]
        changed = [each for each in _alternatives(scene, label) if admissible(scene, each)]
        if changed:
            found.append(Intervention(label, tuple(changed), (label.category, label.name) in needed))
    return found


def needs(name: str | None) -> set[tuple[str, str]]:
    """The concepts (category, name) of a class's rule: together sufficient for the class, and each of them necessary."""
    rule = next((rule for rule in RULES if rule.name == name), None)
    if rule is None:
        return set()
    parts = {*rule.colors, *rule.materials}
    return {
        ("object", rule.kind),
        *(("part", part) for part in parts),
        *(("color", color) for color in rule.colors.values()),
        *(("material", material) for material in rule.materials.values()),
    }


def admissible(scene: Scene, changed: Scene) -> bool:
    """Whether an edit satisfies no other class's rule and shows no look that is held out from the classifier's training."""
    before = {class_of(element) for element in scene.elements}
    return all(class_of(element) in (None, *before) for element in changed.elements) and not any(
        _kept(element) and element not in scene.elements for element in changed.elements
    )


def _kept(element: Element) -> bool:
    return element.kind in OBJECTS and held_out(element.kind, element.color, str(element.material))


def _alternatives(scene: Scene, label: Label) -> Iterator[Scene]:
    """Yield the scene with each alternative value of a concept."""
    if label.category == "color":
        yield from (_looking(scene, "color", label.name, other) for other in COLORS if other != label.name)
    elif label.category == "material":
        yield from (_looking(scene, "material", label.name, other) for other in MATERIALS if other != label.name)
    elif label.category == "part":
        yield without_part(scene, label.name)
    elif label.name in BACKGROUNDS:
        upper = BACKGROUNDS[label.name].upper
        others = [name for name, each in BACKGROUNDS.items() if each.upper == upper and name != label.name]
        yield from (_exchanged(scene, label.name, other) for other in others)
    else:
        yield _without_kind(scene, label.name)
        others = [name for name in OBJECTS if name != label.name]
        swaps = Random(f"{scene.name}/{label.name}").sample(others, SWAPS)
        yield from (_exchanged(scene, label.name, other) for other in swaps)


def _with(scene: Scene, elements: Sequence[Element]) -> Scene:
    return replace(scene, elements=tuple(elements), label=label_of(elements))


def _looking(scene: Scene, what: Literal["color", "material"], name: str, other: str) -> Scene:
    """Replace a color or material in every look of a scene."""
    elements = []
    for element in scene.elements:
        looks = []
        for look in element.looks:
            if getattr(look, what) == name:
                look = replace(look, color=other) if what == "color" else replace(look, material=other)
            looks.append(look)
        elements.append(replace(element, looks=tuple(looks)))
    return _with(scene, elements)


def without_part(scene: Scene, part: str) -> Scene:
    """Remove a part from all objects."""
    return _with(
        scene,
        [
            replace(element, missing=(*element.missing, part)) if part in element.parts else element
            for element in scene.elements
        ],
    )


def _without_kind(scene: Scene, kind: str) -> Scene:
    return _with(scene, [element for element in scene.elements if element.kind != kind])


def _exchanged(scene: Scene, kind: str, other: str) -> Scene:
    """Replace every element of a kind by one of another kind, of the same size, entirely in its main look."""
    found = []
    for element in scene.elements:
        if element.kind == kind:
            count = len(OBJECTS[other].parts) if other in OBJECTS else 1
            element = replace(element, kind=other, looks=(element.looks[0],) * count, missing=())
        found.append(element)
    return _with(scene, found)


def changed(scene: Scene, labels: Iterable[Label]) -> Scene:
    """Change several concepts of a scene, each to its first admissible alternative, if there is one.

    Objects are changed last, because removing an object also removes its parts.
    """
    order = {"color": 0, "material": 1, "part": 2, "object": 3}
    for label in sorted(labels, key=lambda each: (order[each.category], each.number)):
        scene = next((each for each in _alternatives(scene, label) if admissible(scene, each)), scene)
    return scene
