"""ConceptSet: concept texts and their embeddings in a VLM's space.

A concept is identified by its number, because words repeat (in Broden, "orange" is both a color and a fruit).
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from cefam.concepts.categories import BACKGROUND, DEFAULT_TEMPLATE
from cefam.concepts.texts import TextEncoder, encode_texts
from cefam.concepts.vocabularies import Concept, concepts_of, label_word, read_concepts, warn_of_equal_prompts
from cefam.errors import CefamError, near
from cefam.io.files import write_tensors

__all__ = ["Concept", "ConceptSet"]

FEW = 20  # with fewer concepts, softmax scores say little


@dataclass(frozen=True, eq=False)
class ConceptSet:
    """Concepts in a fixed order, with or without embeddings.

    Args:
        concepts: in order; index t of a score refers to this order.
        embeddings: L2-normalized, (T, D); ``None`` before :meth:`embed`.
        logit_scale: the VLM's multiplier of cosines.
        logit_bias: the VLM's additive bias.
        probability: "softmax" or "sigmoid", how similarities become scores.

    Raises:
        CefamError: if there are no concepts, or two have the same number.

    >>> ConceptSet.from_words(["striped fur", "wing"]).prompts
    ['a photo of a striped fur', 'a photo of a wing']
    >>> len(ConceptSet.broden()), len(ConceptSet.imagenet()), len(ConceptSet.awa2())
    (1197, 1000, 85)
    """

    concepts: tuple[Concept, ...]
    embeddings: Tensor | None = None
    logit_scale: float = 1.0
    logit_bias: float = 0.0
    probability: str = "softmax"

    def __post_init__(self) -> None:
        if not self.concepts:
            raise CefamError("A concept set needs at least one concept; the list or file is empty.")
        seen: dict[int, str] = {}
        for concept in self.concepts:
            if concept.number in seen:
                raise CefamError(
                    f"Two concepts have number {concept.number} ({seen[concept.number]!r} and {concept.word!r}); numbers are "
                    f"identities and must differ."
                )
            seen[concept.number] = concept.word

    def __len__(self) -> int:
        return len(self.concepts)

    @property
    def words(self) -> list[str]:
        """Words, in order; they may repeat."""
        return [concept.word for concept in self.concepts]

    @property
    def numbers(self) -> list[int]:
        """Numbers, in order."""
        return [concept.number for concept in self.concepts]

    @property
    def prompts(self) -> list[str]:
        """Prompts, in order."""
        return [concept.prompt for concept in self.concepts]

    @property
    def identity(self) -> str:
        """SHA-256 of numbers, words, categories and prompts, to check that an artefact was made for this set."""
        return hashlib.sha256(json.dumps(self.to_records(), sort_keys=True).encode()).hexdigest()

    @property
    def shown(self) -> list[int]:
        """Indices of the concepts that are not background."""
        return [index for index, concept in enumerate(self.concepts) if concept.category != BACKGROUND]

    def find(self, word: str) -> list[int]:
        """Indices of all concepts with this word.

        Raises:
            CefamError: for an unknown word; the message suggests similar ones.

        >>> ConceptSet.from_words(["striped fur", "wing"]).find("wing")
        [1]
        """
        found = [index for index, concept in enumerate(self.concepts) if concept.word.lower() == word.strip().lower()]
        if not found:
            hint = near(word, self.words)
            raise CefamError(f"Unknown concept {word!r}.{hint} ({len(self)} known; ConceptSet.words lists them)")
        return found

    @classmethod
    def from_words(
        cls, words: Iterable[str], template: str = DEFAULT_TEMPLATE, category: str = "concept", start: int = 1
    ) -> Self:
        """Concepts from a list of words, numbered from ``start``, all in one category.

        Args:
            words: blank words are skipped.
            template: prompt with one ``{}``.
            category: category of all concepts.
            start: number of the first concept.
        """
        return cls(tuple(concepts_of(words, template, category, start)))

    @classmethod
    def load(cls, name: str | Path | Sequence[Any]) -> Self:
        """Concepts by name ("broden", "imagenet" ...), by file (:meth:`from_file`), or from a list of words."""
        if not isinstance(name, str | Path):
            others = [word for word in name if not isinstance(word, str)]
            if others:
                raise CefamError(
                    f"{', '.join(map(str, others))} in the list of concepts: a concept is a word, this was read as a "
                    f"{type(others[0]).__name__}. Put quotes around it, as in \"['2024', 'yes', 'red']\"."
                )
            found = cls.from_words(name)
            warn_of_equal_prompts(found.concepts, "The list of concepts")
            return found
        built_in = {
            "broden": cls.broden,
            "brodenette": cls.brodenette,
            "brodenette_zero_shot": cls.brodenette_zero_shot,
            "imagenet": cls.imagenet,
            "awa2": cls.awa2,
        }
        if str(name) in built_in:
            return built_in[str(name)]()
        if not Path(name).is_file():
            raise CefamError(
                f"There is no concept set or file {str(name)!r}.{near(str(name), built_in)} "
                f"Known sets: {', '.join(built_in)}; a file is .txt (a word per line) or .csv."
            )
        return cls.from_file(name)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Concepts from a file.

        ``.txt``: one word per line. ``.csv``: a column ``word`` or ``name``, and optionally ``number``, ``category``
        (several separated by ``;``) and ``prompt``, as in Broden's ``label.csv``. Lines that start with ``#`` are comments.
        Unknown columns and concepts with equal prompts cause a warning.

        Raises:
            CefamError: for an empty file, a missing column, or an invalid number (with its line).
        """
        concepts = tuple(read_concepts(Path(path)))
        try:
            return cls(concepts)
        except CefamError as error:
            raise CefamError(f"{path}: {error}") from error

    @classmethod
    def _shipped(cls, name: str) -> Self:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # users cannot change the shipped files
            return cls.from_file(Path(str(files("cefam") / "data" / name)))

    @classmethod
    def broden(cls) -> Self:
        """The 1,197 labels of Broden with the prompts of Table A1 (by each label's first category)."""
        return cls._shipped("broden_label.csv")

    @classmethod
    def brodenette(cls) -> Self:
        """The labels of Brodenette, the small data set of the package, with the prompts of Table A1."""
        return cls._shipped("brodenette_label.csv")

    @classmethod
    def brodenette_zero_shot(cls) -> Self:
        """The Brodenette labels in zero-shot categories, with additional color-part compositions.

        "captions only": words that occur in the VLM's training captions, but in no concept prompt. "unseen composition":
        a color and a part ("blue wing") that never occur together in its training texts.
        """
        return cls._shipped("brodenette_zero_shot.csv")

    @classmethod
    def imagenet(cls) -> Self:
        """The 1,000 class names of ImageNet, numbered from 1, in the order of the classes."""
        lines = (files("cefam") / "data" / "imagenet_classes.txt").read_text().splitlines()
        return cls.from_words(lines, category="object")

    @classmethod
    def awa2(cls) -> Self:
        """The 85 attributes of Animals with Attributes 2; the paper gives no prompt, ours is "a photo of {}"."""
        lines = (files("cefam") / "data" / "awa2_predicates.txt").read_text().splitlines()
        words = [line.split("\t")[-1].replace("+", " ") for line in lines]
        return cls.from_words(words, template="a photo of {}", category="attribute")

    def embed(self, vlm: TextEncoder, cache_dir: str | Path | None = None) -> Self:
        """The same set with the VLM's text embeddings, scale, bias and kind of probability.

        Args:
            vlm: the encoder.
            cache_dir: cache folder; the key is a hash of prompts, model identity and the embedding of one fixed text.
        """
        vlm.freeze()
        embeddings = encode_texts(vlm, self.prompts) if cache_dir is None else self._cached(vlm, Path(cache_dir))
        return replace(
            self,
            embeddings=embeddings,
            logit_scale=vlm.logit_scale,
            logit_bias=vlm.logit_bias,
            probability=vlm.probability,
        )

    def _cached(self, vlm: TextEncoder, folder: Path) -> Tensor:
        from safetensors.torch import load_file

        key = hashlib.sha256(json.dumps([self.prompts, vlm.identity()], sort_keys=True, default=str).encode())
        # The identity contains a hash of the weights; the embedding of one text covers the rest of the encoder.
        key.update(vlm.encode_text([DEFAULT_TEMPLATE]).detach().float().cpu().numpy().round(4).tobytes())
        path = folder / f"{key.hexdigest()[:32]}.safetensors"
        if path.is_file():
            return load_file(path)["embeddings"]
        embeddings = encode_texts(vlm, self.prompts).contiguous()
        write_tensors(path, {"embeddings": embeddings})
        return embeddings

    def extended(self, texts: Sequence[str | Concept], vlm: TextEncoder) -> Self:
        """A copy of this set with further texts or concepts, embedded and numbered after the existing ones.

        New texts are scored together with the stored concepts, because a softmax over a single text is always 1.

        Raises:
            CefamError: if this set was embedded by another VLM.
        """
        mine = self.require_embeddings()
        stored = (mine.shape[1], self.logit_scale, self.logit_bias, self.probability)
        given = (vlm.embedding_dim, vlm.logit_scale, vlm.logit_bias, vlm.probability)
        if stored != given:
            raise CefamError(
                f"The concepts were embedded by another VLM: its dimension, scale, bias and probability are {stored}, those of the "
                f"given one {given}. Load the VLM that the translator mimics."
            )
        made = [
            text if isinstance(text, Concept) else next(concepts_of([text], DEFAULT_TEMPLATE, "concept"))
            for text in texts
        ]
        more = type(self)(tuple(replace(c, number=n) for n, c in enumerate(made, start=max(self.numbers) + 1)))
        warn_of_equal_prompts(self.concepts + more.concepts, "The concepts with the new texts")
        vlm.freeze()
        embeddings = encode_texts(vlm, more.prompts)
        return replace(self, concepts=self.concepts + more.concepts, embeddings=torch.cat([mine, embeddings.to(mine)]))

    def check_labels(self, labels: Iterable[Mapping[str, Any]]) -> None:
        """Check that mask labels with this set's numbers also have its words.

        Args:
            labels: dicts with number, name and category, as in a manifest of shards.

        Raises:
            CefamError: if more than half of the common numbers have different words.
        """
        ours = {concept.number: concept.word for concept in self.concepts}
        common = [label for label in labels if label["number"] in ours]
        other = [label for label in common if label_word(label).lower() != ours[label["number"]].lower()]
        if 2 * len(other) > len(common):
            first = other[0]
            raise CefamError(
                f"The masks and the concepts number their labels differently: {first['number']} is {first['name']!r} there and "
                f"{ours[first['number']]!r} here. Take concepts with the numbers of the masks (Broden's: its label.csv)."
            )

    def require_embeddings(self) -> Tensor:
        """The embeddings (T, D).

        Raises:
            CefamError: if the set has no embeddings.
        """
        if self.embeddings is None:
            raise CefamError("This concept set has no text embeddings yet: call `concepts.embed(vlm)` first.")
        return self.embeddings

    def to_records(self) -> list[dict[str, Any]]:
        """The concepts in plain types, as stored in artefacts."""
        return [{**asdict(concept), "categories": list(concept.categories)} for concept in self.concepts]

    @classmethod
    def from_records(cls, records: Iterable[dict[str, Any]], **options: Any) -> Self:
        """The inverse of :meth:`to_records`; ``options`` are passed to the constructor."""
        return cls(tuple(Concept(**{**r, "categories": tuple(r["categories"])}) for r in records), **options)


def embedded(
    concepts: str | list[Any] | ConceptSet, vlm: TextEncoder | None, text_cache: str | None = None
) -> ConceptSet:
    """Load concepts by name, file or list, and embed them; a set with embeddings is returned unchanged."""
    found = concepts if isinstance(concepts, ConceptSet) else ConceptSet.load(concepts)
    if found.embeddings is not None:
        return found
    if vlm is None:
        raise CefamError("The concepts need text embeddings: set `model.vlm`, or give a ConceptSet that has them.")
    return found.embed(vlm, text_cache)
