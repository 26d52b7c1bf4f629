"""How options are parsed: by jsonargparse, but a wrong option ends in one sentence with near names."""

import inspect
import os
import re
from collections.abc import Iterator
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

DATA_CLASSES = ("FeaturesData", "ImagesData", "RegionsData")
# What jsonargparse says of a name that it does not know: an option, a key of a config file, a class.
UNKNOWN = (
    r"unrecognized arguments: (\S+)",
    r"Option '([^']+)' is not accepted",
    r"does not accept option '([^']+)'",
    r"there is no class (\S+)",
    r"Problem with given class_path '([^']+)'",
)


class OptionError(ValueError):
    """An option that is unknown, missing, or of a wrong value; ``status`` is the command's exit status."""

    status = 2


class Sentences:
    """A parser whose errors are raised, in one sentence."""

    def error(self: Any, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message with near names; jsonargparse's own trials of types go their usual way."""
        if not self.exit_on_error:
            super().error(message, ex)  # type: ignore[misc]
        hint = f"(`{self.prog.replace(' [options]', '')} --help` lists the options.)"
        raise OptionError(f"{sentence(message, list(dict.fromkeys(_names(self))))} {hint}") from ex


def sentence(message: str, names: list[str]) -> str:
    """A parser's message in one line, with names that are near to the one that was not known.

    >>> sentence("unrecognized arguments: --seeed 1", ["--seed", "--folder"])
    "unrecognized arguments: --seeed 1. Did you mean '--seed'?"
    """
    flat = plain(message).rstrip(".") + "."
    for pattern in UNKNOWN:
        found = re.search(pattern, flat)
        if found:
            asked = found[1].rstrip(".").split("=")[0]
            near = get_close_matches(asked, [*_arguments(flat), *names], n=3) or get_close_matches(
                f"--{asked}", names, n=3
            )
            return flat + (f" Did you mean {' or '.join(map(repr, near))}?" if near else "")
    return flat


def plain(message: str) -> str:
    """A message of jsonargparse in one line, without the types it has tried and the values it repeats."""
    where, _, tried = message.partition("Does not validate against any of the Union subtypes")
    if tried:
        option = f"{where.split(':')[0]}: " if where else ""
        errors = _items(tried.partition("Errors:")[2].partition("Given value type:")[0])
        unknown = re.search(r"Expected a dot import path string: (\S+)", tried)
        said = [error for error in errors if not error.startswith("Expected a ")]
        expected = re.search(r"Subtypes: \[(.*)\]", tried)
        given = re.search(r"Given value: (.*)", tried, re.DOTALL)
        if unknown:
            message = f"{option}there is no class {unknown[1]}"
        elif said:
            message = f"{option}{said[0]}"
        elif expected and given:
            message = f"{option}Expected one of {expected[1]}. Got value: {given[1]}"
    return " ".join(message.split("\nGiven value: ")[0].split())


def _items(listed: str) -> list[str]:
    r"""The points of an indented list, each with what stands below it.

    >>> _items("  - one:\n      two\n  - three\n")
    ['one: two', 'three']
    """
    first = re.search(r"^( *)- ", listed, re.MULTILINE)
    if first is None:
        return []
    return [" ".join(item.split()) for item in re.split(rf"^{first[1]}- ", listed, flags=re.MULTILINE)[1:]]


def _arguments(message: str) -> list[str]:
    """Names of the arguments of the class that a message speaks of."""
    found = re.search(r"given class_path '([^']+)\.(\w+)'", message)
    try:
        return list(inspect.signature(getattr(import_module(found[1]), found[2])).parameters) if found else []
    except (ImportError, AttributeError, ValueError):
        return []


def _names(parser: Any) -> Iterator[str]:
    """All option names of a parser and of its verbs, and the classes of data."""
    yield from DATA_CLASSES
    for action in parser._actions:
        yield from (name for name in action.option_strings if name.startswith("--"))
        if isinstance(action.choices, dict):
            for verb in action.choices.values():
                yield from _names(verb)


def expand_home(options: Namespace) -> None:
    """Replace a leading ``~/`` in all values: after ``=`` no shell does it, and in a config file nobody."""
    for name, value in options.items():
        options[name] = _at_home(value)


def _at_home(value: Any) -> Any:
    if isinstance(value, str):
        return os.path.expanduser(value) if value.startswith("~/") else value
    if isinstance(value, list):
        return [_at_home(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _at_home(entry) for key, entry in value.items()}
    if isinstance(value, Namespace):
        expand_home(value)
    return value


class OptionParser(Sentences, ArgumentParser):
    """For functions."""
