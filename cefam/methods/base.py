"""The interface of a method that gives regions, and what it is given."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar, cast

from torch import Tensor

from cefam.concepts.sets import ConceptSet
from cefam.errors import CefamError, near
from cefam.pairs import Candidates, ConceptPairs
from cefam.probe import Probe
from cefam.settings import MethodSettings
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.types import ClassifierOutput
from cefam.towers.vlm import VisionLanguageModel
from cefam.trained import Trained
from cefam.translator import Translator

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Activated:
    """A batch of images and the classifier's output for them, shared by all methods.

    Args:
        images: views (B, 3, H, W), uint8 or floats in [0, 1].
        output: logits, stage maps and context of the classifier.
    """

    images: Tensor
    output: ClassifierOutput
    _kept: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What depends on the batch alone, computed for the first chunk of pairs and kept for the others.

        Args:
            key: names it among all methods.
            compute: called once.
        """
        if key not in self._kept:
            self._kept[key] = compute()
        return cast(T, self._kept[key])


@dataclass(frozen=True, eq=False)
class MethodContext:
    """What a method may ask for, once the classifier is loaded.

    Args:
        trained: classifier, translator, settings, and the concepts that are measured.
        vlm: the vision-language model, where it is loaded.
        probe: of the classifier and the VLM, where there is one.
    """

    trained: Trained
    vlm: VisionLanguageModel | None = None
    probe: Probe | None = None

    @classmethod
    def untrained(
        cls,
        classifier: FrozenClassifier,
        concepts: ConceptSet,
        vlm: VisionLanguageModel | None = None,
        probe: Probe | None = None,
    ) -> Self:
        """A context for methods that need no translator: those that associate neurons with concepts."""
        return cls(Trained(classifier, Translator(classifier.channels, 1), concepts), vlm, probe)

    @property
    def classifier(self) -> FrozenClassifier:
        """The frozen classifier; ``classifier.unfolded()`` is its network as attribution libraries want it."""
        return self.trained.classifier

    @property
    def concepts(self) -> ConceptSet:
        """The concepts that are measured, with embeddings; the pairs' ``concept`` counts in them."""
        return self.trained.concepts

    @property
    def settings(self) -> MethodSettings:
        """How CE-FAM is computed."""
        return self.trained.settings


class RegionMethod(ABC):
    """Anything that gives regions for (image, concept) pairs.

    In a config a method is named by its class, and made by calling it with the context:
    ``methods: {my row: {class_path: my_methods.Mine, init_args: {power: 2}}}`` calls ``Mine(context, power=2)``.

    Args:
        context: classifier, concepts, settings, and what was trained.
    """

    def __init__(self, context: MethodContext | None = None) -> None:
        self.context = context

    @abstractmethod
    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """Candidate regions.

        Methods that explain a class take a further argument ``target``: the class of each image (B,), or ``None`` for the
        most probable one.

        Args:
            activated: images and the classifier's output for them.
            pairs: P pairs.
            size: (H, W) of the regions wanted.
            num_candidates: at most so many per pair.
        """

    def presence(self, activated: Activated) -> Tensor | None:
        """How much each image seems to show each concept (B, T), NaN for concepts that the method cannot express.

        ``None``: the method has no opinion.
        """
        return None


MethodFactory = Callable[[MethodContext], RegionMethod]


def chosen_stages(names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Numbers of stages that are given by name.

    Raises:
        CefamError: for a stage that the classifier does not have.
    """
    for name in names:
        if name not in known:
            raise CefamError(f"The classifier has no stage {name!r}.{near(name, known)} It has {', '.join(known)}.")
    return sorted({list(known).index(name) for name in names})
