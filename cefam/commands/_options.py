"""Option parsing with jsonargparse; errors are reported in one sentence, with suggestions of similar names."""

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from cefam.errors import CefamError, near


class OptionError(CefamError):
    """An option that is unknown, missing, or has a wrong value."""

    status = 2


class OneSentence:
    """Mixin of parsers that raises errors in one sentence."""

    bases: tuple[type, ...] = ()  # classes whose subclasses can be given as options

    def error(self: Any, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message with similar names; errors in jsonargparse's internal type trials are not changed."""
        if not self.exit_on_error:
            super().error(message, ex)  # type: ignore[misc]
        flat = _innermost(" ".join(message.split()).rstrip(".")) + "."
        names = [*_names(self), *(sub.__name__ for base in self.bases for sub in _subclasses(base))]
        raise OptionError(
            f"{flat}{suggestion(flat, names)} (`{self.prog.replace(' [options]', '')} --help` lists the options.)"
        ) from ex


def _innermost(message: str) -> str:
    r"""What a class or function lacks or does not take, where the parser reports every type that it has tried.

    >>> _innermost("Parser key \"data\": Problem with given class_path 'a.B': the following arguments are required: c, d")
    '`data`: a.B needs the argument(s) c, d'
    """
    key = re.match(r'Parser key "([\w.]+)"', message)
    found = re.search(r"arguments are required: ([\w, ]+)|Option '(\w+)' is not accepted", message)
    word = re.search(r"Expected a dot import path string: ([^ ]+)$", message)
    if key and word:
        return f"`{key[1]}` must name a class or function, as `class_path: cefam.load_classifier`, got {word[1]!r}"
    absent = re.search(
        r"class_path '([\w.]+)': (module '[\w.]+' has no attribute '\w+'|No module named '[\w.]+')", message
    )
    if key and absent:
        return f"`{key[1]}`: {absent[1]} cannot be imported ({absent[2]})"
    if key is None or found is None:
        return message
    paths = re.findall(r"class_path[ =]'([\w.]+)'", message[: found.start()])
    paths = paths[-1:] or re.findall(r"class_path='([\w.]+)'", message)
    what = f"needs the argument(s) {found[1].strip()}" if found[1] else f"has no argument '{found[2]}'"
    return f"`{key[1]}`: {paths[0] if paths else 'the class'} {what}"


def suggestion(message: str, names: list[str]) -> str:
    """Suggest a known name similar to an unknown word of a message, including parameters of classes in the message.

    >>> suggestion("unrecognized arguments: --seeed=1.", ["--seed", "--folder"])
    " Did you mean '--seed'?"
    """
    # User input is quoted or begins with dashes; the rest is the parser's text.
    quoted = [a or b for a, b in re.findall(r"(--[\w.\-]+)|'([\w.\-]+)'", message)]
    words = [word.strip(".") for word in (*quoted, *re.findall(r"[\w.\-]+", message))]
    known = [*names, *(parameter for word in words for parameter in _parameters(word))]
    known = list(dict.fromkeys([*known, *(name.rpartition(".")[2] for name in known)]))
    for word in quoted if message.startswith("`") else words:  # cefam's own sentences quote what may be misspelt
        hint = near(word, known, 0.8) or near(f"--{word}", known, 0.8)
        if hint and word not in known and f"--{word}" not in known:
            return hint
    return ""


def _parameters(path: str) -> list[str]:
    """Parameter names of the class or function at a dotted path, if its module is imported."""
    module, _, name = path.rpartition(".")
    try:
        return list(inspect.signature(getattr(sys.modules[module], name)).parameters)
    except (KeyError, AttributeError, ValueError, TypeError):
        return []


def _names(parser: Any) -> Iterator[str]:
    """All option names of a parser and of its verbs."""
    for action in parser._actions:
        yield from (name for name in action.option_strings if name.startswith("--"))
        if isinstance(action.choices, dict):
            for verb in action.choices.values():
                yield from _names(verb)


def _subclasses(base: type) -> Iterator[type]:
    subclasses: list[type] = base.__subclasses__()
    for subclass in subclasses:
        yield subclass
        yield from _subclasses(subclass)


def expand_home(options: Namespace) -> None:
    """Expand a leading ``~/`` in all values, which shells do not expand after ``=`` or in config files."""
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


def completed(function: Callable[..., Any], arguments: list[str]) -> list[str]:
    """Rewrite arguments for the parser: whole names, a list of strings as one JSON value, a switch with an explicit "true".

    The parser appends to a list where ``+`` follows the option's name; otherwise a repeated option would replace it.

    >>> def draw(methods: list[str] | None = None, out: str = "", open: bool = False) -> None: ...
    >>> completed(draw, ["--meth", "a b", "c", "--open", "--out", "x.png", "--methods=d"])
    ['--methods', '["a b", "c"]', '--open', 'true', '--out', 'x.png', '--methods+', '["d"]']
    """
    hints = {f"--{name}": str(each.annotation) for name, each in inspect.signature(function).parameters.items()}
    found: list[str] = []
    at = 0
    while at < len(arguments):
        (word, is_, value), at = arguments[at].partition("="), at + 1
        longer = [name for name in hints if name.startswith(word)] if word.startswith("--") else []
        name = longer[0] if len(longer) == 1 else word
        hint = hints.get(name, "")
        if "list[str]" in hint or "Sequence[str]" in hint:
            end = next((n for n in range(at, len(arguments)) if arguments[n].startswith("--")), len(arguments))
            values, at = [value] * bool(is_) + arguments[at:end], end
            written = len(values) == 1 and values[0].startswith("[")
            found.append(f"{name}+" if name in found else name)
            found += values if written or not values else [json.dumps(values, ensure_ascii=False)]
        elif hint == "<class 'bool'>" and not is_ and arguments[at : at + 1] not in (["true"], ["false"]):
            found += [name, "true"]
        else:
            found.append(f"{name}{is_}{value}")
    return found


class OptionParser(OneSentence, ArgumentParser):
    """Parser for the options of a function."""


def call(verb: str, function: Callable[..., Any], arguments: list[str]) -> Any:
    """Parse the options of a function from its signature and docstring, and call it.

    ``--why-not`` is the same as ``--why_not``; a list option can be followed by several values (``--concept fur wing``) and can be
    repeated; a switch needs no value (``--open``). A first parameter that is a required list of strings is given without its name.
    """
    arguments = [re.sub(r"^--[\w-]+", lambda name: f"--{name[0][2:].replace('-', '_')}", word) for word in arguments]
    arguments = completed(function, arguments)
    documented = function.__doc__ or ""
    parser = OptionParser(prog=f"cefam {verb}", description=documented.split("\n")[0])
    parser.add_argument("--config", action="config", help="a YAML file of these options")
    first = next(iter(inspect.signature(function).parameters.values()))
    positional: set[str | int] = (
        {first.name} if first.annotation == list[str] and first.default is first.empty else set()
    )
    for name in positional:
        about = re.search(rf"\n +{name}: (.+)", documented)
        parser.add_argument(str(name), nargs="+", type=str, help=about[1] if about else None)
    parser.add_function_arguments(function, fail_untyped=False, skip=positional)
    parsed = parser.parse_args(arguments)
    expand_home(parsed)
    options = vars(parser.instantiate(parsed))
    return function(**{name: value for name, value in options.items() if name != "config"})
