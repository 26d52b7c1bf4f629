"""Captions of scenes, and all phrases that they may contain."""

from collections.abc import Iterator
from random import Random

from cefam.brodenette.rules import uncaptioned
from cefam.brodenette.scenes import Element, Scene
from cefam.brodenette.vocabulary import BACKGROUNDS, PATCH

Caption = tuple[str, ...]  # phrases to join with "and"


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _phrases_of(element: Element) -> Iterator[str]:
    """True phrases about one element, without the colored parts that :func:`uncaptioned` excludes."""
    if element.kind in BACKGROUNDS:
        yield f"{element.color} {element.kind}"
        return
    name = "shape" if element.kind == PATCH else element.kind
    yield _a(f"{element.color} {name}")
    yield f"{_a(name)} made of {element.material}"
    yield f"{_a(f'{element.color} {name}')} made of {element.material}"
    for part, look in zip(element.parts, element.looks, strict=False):
        if not uncaptioned(look.color, part):
            yield f"{_a(element.kind)} with {_a(f'{look.color} {part}')}"
        yield f"{_a(element.kind)} with {_a(part)} made of {look.material}"


def phrases(scene: Scene) -> list[list[str]]:
    """All phrases that the captions of a scene may contain, per element."""
    return [list(_phrases_of(element)) for element in scene.elements]


def caption(scene: Scene, variant: int = 0) -> Caption:
    """A caption of a scene: one or two phrases about different elements."""
    stream = Random(f"{scene.name}/caption{variant}")
    about = phrases(scene)
    chosen = stream.sample(range(len(about)), stream.randint(1, 2))
    return tuple(about[element][stream.randrange(len(about[element]))] for element in chosen)
