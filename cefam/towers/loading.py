"""Build a tower from a class path and arguments, as an artefact stores them."""

from importlib import import_module
from typing import Any, get_type_hints

from torch import nn

from cefam.errors import CefamError


def load_source(kind: str, source: dict[str, Any] | None) -> Any:
    """Call a tower's ``class_path`` with its ``init_args``, which may hold further such sources."""
    if source is None or not _is_source(source):
        raise CefamError(
            f"This artefact does not say how its {kind} was loaded: load it yourself and pass it as `{kind}`."
        )
    module, _, name = str(source["class_path"]).rpartition(".")
    try:
        build = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CefamError(
            f"The {kind} was loaded by {source['class_path']!r}, which cannot be imported ({error}): install it, put its file into the "
            f"working folder, or load the {kind} yourself and pass it as `{kind}`."
        ) from error
    returned = build if isinstance(build, type) else get_type_hints(build).get("return")
    if not (isinstance(returned, type) and issubclass(returned, nn.Module)):
        # Artefacts are untrusted: they may build networks, but not call arbitrary functions.
        raise CefamError(
            f"The {kind} is loaded by {source['class_path']!r}, which is neither a network nor a function annotated to return one "
            f"(`def birds() -> nn.Module`): it is not called. Annotate it, or load the {kind} yourself and pass it as `{kind}`."
        )
    arguments = source.get("init_args") or {}
    return build(**{key: load_source(kind, each) if _is_source(each) else each for key, each in arguments.items()})


def _is_source(value: Any) -> bool:
    return isinstance(value, dict) and "class_path" in value
