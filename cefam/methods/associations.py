"""Associations of neurons with concepts, as computed by CLIP-Dissect, WWW and Network Dissection; stored as an artefact."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor

from cefam.concepts.sets import ConceptSet
from cefam.errors import CefamError, ExistsError, MissingError
from cefam.io.files import write_tensors, write_text
from cefam.io.reading import read_description
from cefam.methods.base import MethodContext
from cefam.pairs import slots
from cefam.probe import Probe
from cefam.towers.identity import CLASSIFIER_KEYS, check_identity

Across = Literal["raw", "zscore", "rank"]
CONFIG, TENSORS = "associations.json", "associations.safetensors"


@dataclass(frozen=True)
class AssociationsAbout:
    """Provenance of associations: method and options, and identities of classifier, concepts, and the probe with its VLM."""

    method: str
    options: dict[str, Any]
    classifier: dict[str, Any]
    concepts: str
    words: list[str]
    probe: dict[str, Any] | None = None
    format: str = "cefam-associations"
    version: int = 1

    @classmethod
    def of(cls, context: MethodContext, method: str, options: dict[str, Any], probe: Probe | None = None) -> Self:
        """Provenance of associations of a context's classifier and concepts."""
        found = cls(method, options, context.classifier.identity(), context.concepts.identity, context.concepts.words)
        if probe is None:
            return found
        keys = ("photographs", "vlm", "pooling", "top")
        return replace(found, probe={key: getattr(probe.manifest, key) for key in keys})


class Neurons(NamedTuple):
    """The best neurons of every concept, each (T, Q): ``stage``, ``channel``, ``score``, and ``valid``: entry exists."""

    stage: Tensor
    channel: Tensor
    score: Tensor
    valid: Tensor


@dataclass(frozen=True, eq=False)
class Associations:
    """M associations of neurons with concepts, in any order: ``stage``, ``channel``, ``concept`` and ``score`` (M,)."""

    about: AssociationsAbout
    stage: Tensor
    channel: Tensor
    concept: Tensor
    score: Tensor

    @classmethod
    def of_stages(cls, about: AssociationsAbout, found: Sequence[tuple[int, Tensor, Tensor, Tensor]]) -> Self:
        """Concatenate the associations of several stages, each (stage, channel, concept, score)."""
        stage = torch.cat([torch.full_like(channel, number) for number, channel, _, _ in found])
        channel, concept, score = (torch.cat(column) for column in zip(*(entry[1:] for entry in found), strict=True))
        return cls(about, stage, channel, concept, score.double())

    def check(self, context: MethodContext) -> None:
        """Reject associations of another classifier or concept set."""
        check_identity("classifier", self.about.classifier, context.classifier.identity(), CLASSIFIER_KEYS)
        given = {"identity": context.concepts.identity}
        check_identity("concept set", {"identity": self.about.concepts}, given, ("identity",))

    def best(self, count: int, across: Across = "raw", stages: Sequence[int] | None = None) -> Neurons:
        """The best neurons of every concept, in descending order of score; ties from shallow to deep.

        Args:
            count: maximum number of neurons per concept, Q.
            across: normalization of scores across stages: "raw" (as published), "zscore" or "rank" within the stage.
            stages: indices of the stages to use; ``None``: all.
        """
        if across not in get_args(Across):
            raise CefamError(f"across must be {', '.join(map(repr, get_args(Across)))}, got {across!r}.")
        score = self.score.clone()
        for number in self.stage.unique().tolist() if across != "raw" else ():  # type: ignore[no-untyped-call]
            mine = self.stage == number
            if across == "zscore":
                score[mine] = (score[mine] - score[mine].mean()) / score[mine].std(correction=0).clamp_min(1e-12)
            else:
                every = score[mine].sort().values  # rank: share of the scores that are not higher
                score[mine] = torch.searchsorted(every, score[mine], right=True).double() / len(every)
        among = torch.ones_like(self.stage, dtype=torch.bool)
        if stages is not None:
            among = torch.isin(self.stage, torch.tensor(list(stages)))
        rows = among.nonzero().squeeze(1)
        rows = rows[(self.stage[rows] * (1 << 32) + self.channel[rows]).argsort(stable=True)]
        rows = rows[score[rows].argsort(descending=True, stable=True)]
        place = slots(self.concept[rows], len(self.about.words))
        rows, place = rows[place < count], place[place < count]
        shape = (len(self.about.words), count)
        found = Neurons(
            torch.full(shape, -1), torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.double),
            torch.zeros(shape, dtype=torch.bool),
        )  # fmt: skip
        where = (self.concept[rows], place)
        for table, values in zip(found, (self.stage[rows], self.channel[rows], score[rows]), strict=False):
            table[where] = values
        found.valid[where] = True
        return found

    def write(self, folder: str | Path) -> Path:
        """Write ``associations.safetensors`` and ``associations.json``."""
        folder = Path(folder)
        if (folder / CONFIG).exists():
            raise ExistsError(f"{folder} already holds associations: name another folder.")
        tensors = {name: getattr(self, name).contiguous() for name in ("stage", "channel", "concept", "score")}
        write_tensors(folder / TENSORS, tensors)
        write_text(folder / CONFIG, json.dumps(asdict(self.about), indent=1))
        return folder

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read associations from a folder."""
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in (CONFIG, TENSORS):
            if not (folder / name).is_file():
                raise MissingError(
                    f"{folder} holds no associations (no {name}): make them with `cefam associate` or `cefam import`."
                )
        place, advice = folder / CONFIG, "make the associations again"
        about = read_description(place.read_bytes(), AssociationsAbout, place, advice)
        try:
            return cls(about, **load_file(folder / TENSORS))
        except Exception as error:  # safetensors raises its own exception types
            raise CefamError(f"{folder / TENSORS} cannot be read ({error}): {advice}.") from error


def prompts_of(concepts: ConceptSet, prompt: str | None) -> tuple[list[str], Tensor]:
    """The distinct prompts of a concept set, and the index of each concept's prompt (T,).

    Duplicate prompts would be duplicate columns, which split the softmax probability and waste candidates.

    Args:
        concepts: the concept set.
        prompt: prompt template, with one ``{}`` for the word; ``None``: each concept's own prompt.
    """
    if prompt is not None and prompt.count("{}") != 1:
        raise CefamError(f"prompt must hold one {{}} for the concept's word, got {prompt!r}.")
    every = concepts.prompts if prompt is None else [prompt.format(word) for word in concepts.words]
    different = list(dict.fromkeys(every))
    place = {text: index for index, text in enumerate(different)}
    return different, torch.tensor([place[text] for text in every])


def per_concept(channel: Tensor, prompt: Tensor, score: Tensor, of_concept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Expand associations with prompts to all concepts that have the prompt: channel, concept, score."""
    matches = (prompt.unsqueeze(1) == of_concept).nonzero()
    row, concept = matches[:, 0], matches[:, 1]
    return channel[row], concept, score[row]
