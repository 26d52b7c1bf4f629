"""MethodSettings: the settings of the CE-FAM method, immutable and stored in every artefact."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, TypedDict, Unpack, get_args

from cefam.errors import CefamError, near

Preset = Literal["published", "paper"]
Derivative = Literal["total", "branch"]


class SettingsChanges(TypedDict, total=False):
    """Settings to change, by name. Commands and classes that take settings have these options.

    Args:
        preset: "published" (follows the authors' program) or "paper" (follows the text); see docs/reference/conformance.md.
        derivative: the derivative of the score that gives the channel weights. "total" also includes the later stages of the
            classifier (published program); "branch" includes only the translator and needs no backward pass. Both are equal
            at the last stage.
        num_channels: K, the number of channels masked for association and contribution.
        channel_share: maximum of K as a share of a stage's channels (0.125 for narrow networks).
        memory_limit: megabytes for the intermediate results of a chunk of pairs.
    """

    preset: Preset
    derivative: Derivative
    num_channels: int
    channel_share: float
    memory_limit: float


@dataclass(frozen=True)
class MethodSettings:
    """Settings of the CE-FAM method; :class:`SettingsChanges` describes the fields.

    Raises:
        CefamError: for a value out of range.

    >>> MethodSettings().changed(derivative="branch").derivative
    'branch'
    """

    preset: Preset = "published"
    derivative: Derivative = "total"
    num_channels: int = 20
    channel_share: float = 1.0
    memory_limit: float = 1024.0

    def __post_init__(self) -> None:
        for name, choices in (("preset", get_args(Preset)), ("derivative", get_args(Derivative))):
            if getattr(self, name) not in choices:
                raise CefamError(f"{name} must be {' or '.join(map(repr, choices))}, got {getattr(self, name)!r}.")
        if self.num_channels < 1:
            raise CefamError(f"num_channels must be at least 1, got {self.num_channels}.")
        if not 0 < self.channel_share <= 1:
            raise CefamError(f"channel_share must be above 0 and at most 1, got {self.channel_share}.")
        if not 0 < self.memory_limit < float("inf"):
            raise CefamError(f"memory_limit must be positive and finite (megabytes), got {self.memory_limit}.")

    def changed(self, **changes: Unpack[SettingsChanges]) -> Self:
        """A copy with some settings changed.

        Raises:
            CefamError: for an unknown name or a value out of range.
        """
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise CefamError(f"Unknown setting {name!r}.{near(name, known)} The settings are {', '.join(known)}.")
        return replace(self, **changes)

    def masked_count(self, channels: int) -> int:
        """K for a stage with ``channels`` channels: limited by ``num_channels`` and ``channel_share``, and at least 1.

        >>> [MethodSettings(channel_share=1 / 8).masked_count(channels) for channels in (4, 64, 2048)]
        [1, 8, 20]
        """
        return min(self.num_channels, max(1, int(self.channel_share * channels)))

    def to_dict(self) -> dict[str, Any]:
        """The settings in plain types, as stored in artefacts."""
        return asdict(self)
