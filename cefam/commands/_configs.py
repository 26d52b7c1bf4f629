"""Config files: lookup of shipped configs by name, and checks before the parser reads a config."""

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from cefam.errors import CefamError, near

CONFIG_OPTIONS = ("-c", "--config", "--confi", "--conf", "--con", "--co")  # all abbreviations that the parser accepts


def _root() -> Path:
    return Path(str(files("cefam") / "configs"))


def shipped_configs() -> list[str]:
    """Names of the configs shipped with cefam."""
    return sorted(path.relative_to(_root()).with_suffix("").as_posix() for path in _root().rglob("*.yaml"))


def with_configs_first(arguments: Sequence[str]) -> list[str]:
    """Resolve configs to paths and move them to the front, so that options override them regardless of their position."""
    configs, options = [], []
    words = iter(arguments)
    for word in words:
        option, equals, name = word.partition("=")
        if option not in CONFIG_OPTIONS:
            options.append(word)
            continue
        name = name if equals else next(words, "")
        configs.append(f"--config={_path(name)}")
    return configs + options


def _path(name: str) -> str:
    name = os.path.expanduser(name)
    if Path(name).is_file():
        _check(name)
        return name
    shipped = _root() / f"{name.removesuffix('.yaml')}.yaml"
    if shipped.is_file():
        return str(shipped)
    raise CefamError(f"There is no config {name!r}.{near(name, shipped_configs(), 0.3)}")


def _check(name: str) -> None:
    """Reject errors that the parser would miss or report unclearly."""
    import yaml

    from cefam.io.reading import read_text

    class Strict(yaml.SafeLoader):
        """Rejects duplicate keys, of which YAML would keep the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys: list[Any] = []
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    continue
                keys.append(self.construct_object(key, deep=True))
                if keys.count(keys[-1]) > 1:
                    where = f"{name}, line {key.start_mark.line + 1}"
                    raise CefamError(f"The config {where}: the key {keys[-1]!r} is repeated; keep one of them.")
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(read_text(Path(name)), Strict)
    except yaml.YAMLError as error:
        raise CefamError(f"The config {name} is not YAML: {error}.") from error
    if not isinstance(content, dict):
        what = "empty" if content is None else "not a mapping"
        raise CefamError(f"The config {name} is {what}: it needs options, as `name: value`.")
