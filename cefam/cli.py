"""All verbs of ``cefam``: Lightning's CLI for those that run a Trainer, light parsers for the rest.

Heavy imports stand inside the verbs, so that ``cefam --help`` comes at once. Bad input ends with one sentence and a
non-zero exit; what nobody expected does so, too, and leaves its traceback in a file (CEFAM_TRACEBACK=1 shows it at once).
"""

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from cefam import signals

USAGE = """usage: cefam VERB [options]     (cefam VERB --help explains a verb)

  demo       the whole job in a miniature world that comes with cefam: no download, minutes
  prepare    convert a folder of images, Broden, or scenes of the miniature world, into shards
  features   run both frozen towers once and cache what they say
  fit        train a translator
  validate   losses, agreement with the VLM, and regions of a checkpoint
  evaluate   measure regions against masks, beside chance
  export     write a checkpoint as safetensors + JSON + model card

Configs are named by path, or by their name among those that come with cefam (`--config train/features`):
{configs}"""


CONFIG_OPTIONS = ("-c", "--config", "--confi", "--conf", "--con", "--co")  # all that the parser takes for it


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb.

    Returns:
        The exit status: 0 done, 1 bad input, 2 bad options, 70 unexpected, 128 + n stopped by signal n.
    """
    status = 0
    try:
        status = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # `cefam --help | head`: who reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try once more at its end
    return status


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(configs="\n".join(f"  {name}" for name in _shipped_configs())))
        return 0
    if arguments[0] == "--version":
        from cefam import __version__

        print(f"cefam {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        print(f"cefam: there is no verb {verb!r}.{hint} The verbs are {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    with signals.caught():
        return _run(verb, rest)


def _run(verb: str, arguments: list[str]) -> int:
    """Run a verb; bad input and signals become a sentence and a status."""
    try:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # a class_path may name a class in the user's folder
        VERBS[verb](_with_shipped_configs(arguments))
    except (KeyboardInterrupt, signals.Ended, SystemExit) as error:
        return _stopped(verb, error)
    except Exception as error:
        if signals.first():  # in the middle of an import, or in a data worker, a signal turns into whatever fails there
            return _stopped(verb, error)
        if os.environ.get("CEFAM_TRACEBACK"):
            raise
        if _lost_a_peer(error):
            print(
                f"cefam {verb}: another process has ended, and this one with it: see what that one said.",
                file=sys.stderr,
            )
            return 1
        said = _said(error)
        print(f"cefam {verb}: {_sentence(error) if said else _unexpected(verb, error)}", file=sys.stderr)
        return getattr(error, "status", 1) if said else 70
    return 0


def _import_torch() -> None:
    """Import torch, and look at signals afterwards: an exception in the middle of its C++ part aborts the process."""
    with signals.held("torch"):
        import torch  # noqa: F401


def _stopped(verb: str, error: BaseException) -> int:
    """The status of a verb that was stopped; a Trainer, say, turns Ctrl-C into an exit of its own."""
    number = signals.first() or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else None)
    if number is None:
        raise error  # --help and its kind
    if isinstance(error, SystemExit) and error.code == 128 + number:
        return 128 + number  # a verb inside this one has said so
    word = "interrupted" if number == signal.SIGINT else "told to end"
    with suppress(OSError):  # the terminal may be gone
        print(f"cefam {verb}: {word}; finished files are kept.", file=sys.stderr)
    return 128 + number


def _said(error: Exception) -> bool:
    """Whether an error's message was written for the user; others come from a library, or are defects of ours."""
    # Lightning's word for a Trainer that cannot be (no GPU, say) derives from Exception alone; of its callbacks, from RuntimeError.
    if type(error).__name__ == "MisconfigurationException" or isinstance(error, ValueError | OSError):
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return type(error) is RuntimeError and str(frame.f_globals.get("__name__")).startswith("lightning.")


def _lost_a_peer(error: Exception) -> bool:
    """Whether this process of several ends because another one has."""
    words = str(error)
    connection = "gloo" in words and (
        "Connection closed" in words or "Connection reset" in words or "Broken pipe" in words
    )
    return connection or type(error).__name__ in ("DistNetworkError", "DistStoreError")


def _unexpected(verb: str, error: Exception) -> str:
    """A sentence on an error that nobody has foreseen; whoever looks for its cause finds the traceback in a file."""
    with tempfile.NamedTemporaryFile("w", prefix=f"cefam-{verb}-", suffix=".txt", delete=False) as file:
        file.write("".join(traceback.format_exception(error)))
    return (
        f"{type(error).__name__}: {_sentence(error)} Nobody has foreseen this here: look for an option, a class or a file that makes "
        f"no sense, and if there is none, report it with the traceback in {file.name}."
    )


def _sentence(error: Exception) -> str:
    """The message of an error in one line; of one that a data worker passed on, what stands below its traceback."""
    from cefam.options import plain

    text = str(error).strip()
    if "Original Traceback" in text:
        text = text.splitlines()[-1].split(": ", 1)[-1]
    return plain(text)


def _shipped_configs() -> list[str]:
    root = Path(str(files("cefam") / "configs"))
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def _with_shipped_configs(arguments: Sequence[str]) -> list[str]:
    """Replace names of shipped configs after ``--config``, however it is written, by their paths."""
    result = list(arguments)
    for position, argument in enumerate(result):
        option, equals, name = argument.partition("=")
        if option not in CONFIG_OPTIONS:
            continue
        if equals:
            result[position] = f"{option}={_config_path(name)}"
        elif position + 1 < len(result):
            result[position + 1] = _config_path(result[position + 1])
    return result


def _parsable(name: str) -> str:
    """The same name, once its file has been found to be good; the parser would not name the file, nor see a key that is there twice."""
    import yaml

    from cefam.files import read_text

    class Strict(yaml.SafeLoader):
        """Refuses a mapping with the same key twice, of which YAML would take the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys: list[Any] = []
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    continue
                keys.append(self.construct_object(key, deep=True))
                if keys.count(keys[-1]) > 1:
                    where = f"{name}, line {key.start_mark.line + 1}"
                    raise ValueError(f"The config {where}: the key {keys[-1]!r} is there already; keep one of them.")
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(read_text(Path(name)), Strict)
    except yaml.YAMLError as error:
        raise ValueError(f"The config {name} is not YAML: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"The config {name} is {'empty' if content is None else 'no mapping'}: it needs options, as `name: value`."
        )
    return name


def _config_path(name: str) -> str:
    name = os.path.expanduser(name)
    if Path(name).is_file():
        return _parsable(name)
    shipped = Path(str(files("cefam") / "configs" / f"{name.removesuffix('.yaml')}.yaml"))
    if shipped.is_file():
        return str(shipped)
    near = get_close_matches(name, _shipped_configs(), n=3, cutoff=0.3)
    raise ValueError(
        f"There is no config {name!r}.{' Did you mean ' + ', '.join(map(repr, near)) + '?' if near else ''}"
    )


def _lightning(arguments: list[str], verb: str) -> None:
    _import_torch()
    from cefam.lightning_cli import run

    run(verb, arguments)


def _function(
    arguments: list[str], verb: str, function: Callable[..., Any], before: Callable[[], None] | None = None
) -> Any:
    """Parse the options of a function from its signature and docstring, and call it, something else ``before`` it."""
    from cefam.options import OptionParser, expand_home

    parser = OptionParser(prog=f"cefam {verb}", description=(function.__doc__ or "").split("\n")[0])
    parser.add_argument("--config", action="config", help="a YAML file of these options")
    parser.add_function_arguments(function, fail_untyped=False)
    parsed = parser.parse_args(arguments)
    expand_home(parsed)
    options = parser.instantiate(parsed)
    if before is not None:
        before()
    return function(**{name: value for name, value in vars(options).items() if name != "config"})


def _prepare(arguments: list[str]) -> None:
    from cefam.prepare import prepare

    writer = _function(arguments, "prepare", prepare, _import_torch)  # webdataset imports it in the middle of the work
    manifest = writer.manifest
    print(
        f"{manifest.num_samples} images with {manifest.num_pairs} (mask, label) pairs in {len(manifest.shards)} shard(s): {writer.folder}"
    )


def _features(arguments: list[str]) -> None:
    _import_torch()
    from cefam.features import compute_features

    manifest = _function(arguments, "features", compute_features)
    print(f"{manifest.num_rows} rows of features.")


def _export(arguments: list[str]) -> None:
    def export(checkpoint: str, folder: str, overwrite: bool = False) -> Path:
        """Write a training checkpoint as safetensors, JSON and a model card.

        Args:
            checkpoint: a .ckpt of `cefam fit`.
            folder: where to.
            overwrite: replace an artefact that is there.
        """
        from cefam.module import CEFAM

        return CEFAM.from_pretrained(checkpoint).export(folder, overwrite)

    print(f"Exported to {_function(arguments, 'export', export, _import_torch)}.")


def _demo(arguments: list[str]) -> None:
    from cefam.demo import demo

    _function(arguments, "demo", demo)


VERBS: dict[str, Callable[[list[str]], None]] = {
    "demo": _demo,
    "prepare": _prepare,
    "features": _features,
    "fit": lambda arguments: _lightning(arguments, "fit"),
    "validate": lambda arguments: _lightning(arguments, "validate"),
    "evaluate": lambda arguments: _lightning(arguments, "evaluate"),
    "export": _export,
}
