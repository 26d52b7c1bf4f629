"""Rebuild a tower from the class path and arguments stored in an artefact."""

from importlib import import_module
from typing import Any, get_type_hints

from torch import nn

from cefam.errors import CefamError


def load_source(kind: str, source: dict[str, Any] | None) -> Any:
    """Rebuild a tower from its ``source``."""
    if not source:
        raise CefamError(
            f"This artefact does not say how its {kind} was loaded: load it yourself and pass it as `{kind}`."
        )
    return _build(kind, source)


def _build(kind: str, spec: Any) -> Any:
    """Call ``class_path`` with its ``init_args``, which may contain nested specifications."""
    if not isinstance(spec, dict) or "class_path" not in spec:
        return spec
    module, _, name = str(spec["class_path"]).rpartition(".")
    try:
        build = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CefamError(
            f"The {kind} was loaded by {spec['class_path']!r}, which cannot be imported ({error}): install it, put its file into the "
            f"working folder, or load the {kind} yourself and pass it as `{kind}`."
        ) from error
    returned = build if isinstance(build, type) else get_type_hints(build).get("return")
    if not (isinstance(returned, type) and issubclass(returned, nn.Module)):
        # Artefacts are untrusted: they may build networks, but not call arbitrary functions.
        raise CefamError(
            f"The artefact says that its {kind} is loaded by {spec['class_path']!r}, which is neither a network nor a function annotated "
            f"to return one: it is not called. Load the {kind} yourself and pass it as `{kind}`."
        )
    return build(**{key: _build(kind, value) for key, value in (spec.get("init_args") or {}).items()})
