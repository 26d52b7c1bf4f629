"""Artefacts on the Hugging Face hub, fetched by file name: JSON and safetensors alone."""

from functools import cache
from pathlib import Path

from cefam.errors import CefamError, MissingError

PREFIX = "hf:"
NEEDED = ("config.json", "model.safetensors")
OPTIONAL = ("doubts.json", "probe/manifest.json", "probe/probe.safetensors")


@cache
def fetched(name: str) -> Path:
    """The local copy of an artefact; files that have not changed are taken from huggingface_hub's cache.

    Args:
        name: "hf:user/name", or "hf:user/name@revision".
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    folder = Path()
    for file in (*NEEDED, *OPTIONAL):
        try:
            found = hf_hub_download(repository, file, revision=revision or None)
        except LocalEntryNotFoundError as error:  # not cached, and no connection
            if file in NEEDED:
                raise CefamError(
                    f"{name}: {file} cannot be fetched, and is not in the cache: {_line(error)}"
                ) from error
        except EntryNotFoundError as error:
            if file in NEEDED:
                raise MissingError(f"{name} has no {file}: it is no artefact. Share one with `hf upload`.") from error
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            raise MissingError(f"There is no artefact {name} that can be read: {_line(error)}") from error
        except (HfHubHTTPError, OSError) as error:
            raise CefamError(f"{name}: {file} cannot be fetched: {_line(error)}") from error
        else:
            folder = Path(found).parent if file in NEEDED else folder
    return folder


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
