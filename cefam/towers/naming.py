"""Look up classes by name or index."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cefam.errors import CefamError, near

if TYPE_CHECKING:
    from cefam.towers.classifier import FrozenClassifier


def class_number(names: Sequence[str] | None, count: int, wanted: str | int) -> int:
    """The index of a class given by name or index.

    >>> class_number(["goldfinch", "canary"], 2, "Canary"), class_number(None, 10, "7")
    (1, 7)
    """
    text = str(wanted).strip()
    found = [index for index, name in enumerate(names or []) if name.lower() == text.lower()]
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        raise CefamError(
            f"{len(found)} classes are called {text!r}: name one by its index, {', '.join(map(str, found))}."
        )
    if text.isdecimal():
        if int(text) < count:
            return int(text)
        raise CefamError(f"There is no class {text}: there are {count}, counted from 0.")
    if not names:
        raise CefamError(
            f"The names of this classifier's classes are not known: give the index of {text!r}, below {count}."
        )
    by_case = {name.lower(): name for name in names}
    hint = near(text.lower(), by_case)
    raise CefamError(
        f"There is no class {text!r}.{hint} The classifier has {count} classes, from {names[0]!r} to {names[-1]!r}."
    )


def labels_of(classifier: "FrozenClassifier", names: Sequence[str]) -> list[int | None]:
    """The class of each photograph according to its folder, ``None`` if unknown.

    Folders are named like classes or, if there is one per class, in the order of the classes.
    """
    folders = sorted({name.split("/")[0] for name in names if "/" in name})
    known: dict[str, int] = {}
    for folder in folders:
        try:
            known[folder] = class_number(classifier.class_names, classifier.num_classes, folder.replace("_", " "))
        except CefamError:
            continue
    if not known and len(folders) == classifier.num_classes:
        known = {folder: index for index, folder in enumerate(folders)}
    return [known.get(name.split("/")[0]) if "/" in name else None for name in names]
