"""Interface of region methods, and their inputs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from cefam.attribution.types import Activated
from cefam.concepts.sets import ConceptSet
from cefam.errors import CefamError, near
from cefam.pairs import Candidates, ConceptPairs
from cefam.probe import Probe
from cefam.settings import MethodSettings
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.vlm import VisionLanguageModel
from cefam.trained import Trained
from cefam.translator import Translator


@dataclass(frozen=True, eq=False)
class MethodContext:
    """Inputs available to a method.

    Args:
        trained: classifier, translator, settings, and the evaluated concepts.
        vlm: the vision-language model, if loaded.
        probe: probe of the classifier and the VLM, if any.
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
        """A context for methods without a translator, such as those that associate neurons with concepts."""
        return cls(Trained(classifier, Translator(classifier.channels, 1), concepts), vlm, probe)

    @property
    def classifier(self) -> FrozenClassifier:
        """The frozen classifier; ``classifier.unfolded()`` is its original network, for attribution libraries."""
        return self.trained.classifier

    @property
    def concepts(self) -> ConceptSet:
        """The evaluated concepts, with embeddings; ``ConceptPairs.concept`` indexes them."""
        return self.trained.concepts

    @property
    def settings(self) -> MethodSettings:
        """Settings of CE-FAM."""
        return self.trained.settings


class RegionMethod(ABC):
    """Base class of methods that compute regions for (image, concept) pairs.

    A config names the method's class, which is then called with the context:
    ``methods: {my row: {class_path: my_methods.Mine, init_args: {power: 2}}}`` calls ``Mine(context, power=2)``.

    Args:
        context: classifier, translator, concepts and settings.
    """

    def __init__(self, context: MethodContext | None = None) -> None:
        self.context = context

    @abstractmethod
    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """Compute candidate regions.

        Methods that explain a class take an additional argument ``target``: the class of each image (B,), or ``None`` for
        the most probable one.

        Args:
            activated: images and the classifier's output for them.
            pairs: P pairs.
            size: (H, W) of the regions.
            num_candidates: maximum number of candidates per pair.
        """

    def presence(self, activated: Activated) -> Tensor | None:
        """Score of each concept's presence in each image (B, T); NaN for concepts that the method does not support.

        ``None`` if the method does not predict presence.
        """
        return None


MethodFactory = Callable[[MethodContext], RegionMethod]


def chosen_stages(names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Indices of stages given by name, ascending."""
    for name in names:
        if name not in known:
            raise CefamError(f"The classifier has no stage {name!r}.{near(name, known)} It has {', '.join(known)}.")
    return sorted({list(known).index(name) for name in names})
