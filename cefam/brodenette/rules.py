"""The classes as data: a class is a kind of object whose parts have certain colors or materials.

No object follows two rules (tested). The look of an object's other parts is arbitrary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cefam.brodenette.vocabulary import COLORS, MATERIALS, OBJECTS


@dataclass(frozen=True)
class Rule:
    """A class: name, kind, and the required colors and materials of its parts."""

    name: str
    kind: str
    colors: Mapping[str, str] = field(default_factory=dict)
    materials: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        wanted = [f"{color} {part}" for part, color in self.colors.items()]
        wanted += [f"{part} of {material}" for part, material in self.materials.items()]
        return f"{self.name}: a {self.kind} with {' and '.join(wanted)}"


RULES: tuple[Rule, ...] = (
    Rule("canary", "bird", {"body": "yellow", "wing": "yellow"}),
    Rule("goldfinch", "bird", {"body": "yellow", "wing": "black"}),
    Rule("jay", "bird", {"body": "blue", "wing": "blue"}),
    Rule("cardinal", "bird", {"body": "red", "wing": "red"}),
    Rule("raven", "bird", {"body": "black", "wing": "black"}),
    Rule("magpie", "bird", {"body": "white", "wing": "black"}),
    Rule("goldfish", "fish", {"body": "orange", "fin": "orange"}),
    Rule("clownfish", "fish", {"body": "orange", "fin": "white"}),
    Rule("monarch", "butterfly", {"wing": "orange", "body": "black"}),
    Rule("brimstone", "butterfly", {"wing": "yellow"}),
    Rule("morpho", "butterfly", {"wing": "blue"}),
    Rule("ginger cat", "cat", {"body": "orange", "head": "orange"}),
    Rule("panther", "cat", {"body": "black", "head": "black"}),
    Rule("daisy", "flower", {"petal": "white", "disc": "yellow"}),
    Rule("sunflower", "flower", {"petal": "yellow", "disc": "brown"}),
    Rule("fly agaric", "mushroom", {"cap": "red", "stem": "white"}),
    Rule("penny bun", "mushroom", {"cap": "brown", "stem": "white"}),
    Rule("maple", "tree", {"crown": "orange", "trunk": "brown"}),
    Rule("cabin", "house", {}, {"facade": "wood"}),
    Rule("townhouse", "house", {}, {"facade": "brick"}),
    Rule("castle", "house", {}, {"facade": "stone"}),
    Rule("taxi", "car", {"body": "yellow"}),
    Rule("tankard", "cup", {}, {"bowl": "metal"}),
    Rule("tumbler", "cup", {}, {"bowl": "glass"}),
)
CLASSES: tuple[str, ...] = tuple(rule.name for rule in RULES)

_KIND = {name: index for index, name in enumerate(OBJECTS)}
_COLOR = {name: index for index, name in enumerate(COLORS)}
_MATERIAL = {name: index for index, name in enumerate(MATERIALS)}


def held_out(kind: str, color: str, material: str) -> bool:
    """Whether this look of an object's main part is reserved for the evaluation: one combination in nine."""
    return (4 * _KIND[kind] + 5 * _COLOR[color] + 7 * _MATERIAL[material]) % 9 == 0


# Zero-shot: these words occur in the training captions of the vision-language model, but not in its training prompts.
CAPTION_ONLY: tuple[tuple[str, str], ...] = (
    ("object", "boat"),
    ("object", "lamp"),
    ("part", "wheel"),
    ("part", "roof"),
    ("color", "purple"),
    ("material", "brick"),
)


def uncaptioned(color: str, part: str) -> bool:
    """Whether a part of this color ("a blue wing") is excluded from all captions: one composition in five."""
    return (_COLOR[color] + 2 * sum(map(ord, part))) % 5 == 0
