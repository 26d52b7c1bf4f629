"""The key of a result that is kept: everything it was computed with, by content. All caches and resumed passes use it.

What is left out here is taken for the same when it has changed: a new input of a result belongs into its key.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cefam import __version__
from cefam.towers.identity import weights_fingerprint


def identity(**inputs: Any) -> dict[str, str]:
    """A digest of each input, and cefam's version: equal where a result computed again would be the same.

    Args:
        inputs: plain values, tensors, networks, dataclasses, objects with an ``identity()``, and lists or dicts of these.

    Raises:
        TypeError: for anything else, whose content is not known.

    >>> one = identity(translator=nn.Linear(2, 2), top_k=8)
    >>> sorted(one), one == identity(translator=nn.Linear(2, 2), top_k=8)
    (['cefam', 'top_k', 'translator'], False)
    """
    return {"cefam": __version__, **{name: digest(value) for name, value in inputs.items()}}


def digest(value: Any) -> str:
    """The first 16 digits of a SHA-256 of a value's content."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """The value in JSON's types; what is large, as a digest."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if callable(getattr(value, "identity", None)):
        found = value.identity()
        # Where it was loaded from does not change it.
        return _plain({k: v for k, v in found.items() if k != "source"} if isinstance(found, dict) else found)
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return [str(value.dtype), list(value.shape), hashlib.sha256(flat.numpy().tobytes()).hexdigest()]
    if isinstance(value, nn.Module):
        return weights_fingerprint(value)
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [_plain(each) for each in value]
    raise TypeError(f"The content of a {type(value).__name__} is not known: give it an `identity()`.")


def differing(one: Any, other: Any) -> str:
    """Names of the inputs in which two keys differ, for a message."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return "inputs or options"
    return ", ".join(sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)))
