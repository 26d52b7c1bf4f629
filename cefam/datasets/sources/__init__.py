"""Raw data sets as sources of samples. SOURCES maps each ``--kind`` of ``cefam prepare`` to a module and class."""

from importlib import import_module
from inspect import signature
from typing import Any

from cefam.datasets.sources.base import Source
from cefam.errors import CefamError, near

SOURCES = {
    "images": "images:ImageFolder",
    "broden": "broden:Broden",
    "brodenette": "brodenette:Brodenette",
    "imagenet": "imagenet:ImageNet",
    "imagenet_s": "imagenet_s:ImageNetS",
    "awa2": "awa2:AwA2",
    "described": "described:Described",
}


def open_source(kind: str, place: str, **options: Any) -> Source:
    """Open the source of this kind; options that are ``None`` are ignored.

    Raises:
        CefamError: for an unknown kind, or an option that does not apply to it.
    """
    if kind not in SOURCES:
        kinds = ", ".join(map(repr, SOURCES))
        raise CefamError(f"kind must be one of {kinds}, got {kind!r}.{near(kind, SOURCES)}")
    module, _, name = SOURCES[kind].partition(":")
    source: Any = getattr(import_module(f"{__name__}.{module}"), name)
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in signature(source).parameters:
            why = f" {kind!r} is taken whole." if option == "count" else ""
            raise CefamError(f"{option} does not apply to {kind!r}: leave it out.{why}")
    opened: Source = source(place, **given)
    return opened


__all__ = ["SOURCES", "Source", "open_source"]
