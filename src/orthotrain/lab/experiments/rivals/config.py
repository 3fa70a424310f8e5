"""What a run of rivals has besides the settings of its family.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from orthotrain.lab.experiments.language.config import LanguageRun
from orthotrain.lab.experiments.lowrank.config import LowRankRun
from orthotrain.lab.run.config import RunConfig, at_least, below_one, need, positive


@dataclass(frozen=True)
class RivalSettings:
    """Settings that a rival's user chooses by hand, the same for every layer.

    Attributes:
        rank_fraction: Rank of projected gradients and of low-rank updates, over the smaller side.
        dense_fraction: Share of the run before the two factors or the restarts of updates begin.
        adapt_fraction: Share of the run before the adapters of PEFT begin.
        refreshes: How often per run the projections of gradients are renewed.
        restarts: How often low-rank updates are merged and begin anew.
        rewarm_fraction: Share of the run in which the rate rises again after each beginning.
        looks: How often per run stable ranks are measured.
        settled: The two factors begin when the mean relative change of stable ranks between two
            looks is at most this.
    """

    rank_fraction: float = 0.25
    dense_fraction: float = 0.25
    adapt_fraction: float = 0.5
    refreshes: int = 20
    restarts: int = 5
    rewarm_fraction: float = 0.02
    looks: int = 20
    settled: float = 0.05

    def __post_init__(self) -> None:
        positive(self, "rivals", "rank_fraction", "settled")
        need(
            self.rank_fraction <= 1,
            f"rivals.rank_fraction={self.rank_fraction} must lie in (0, 1]: no layer can take a "
            "rank above its smaller side",
        )
        below_one(self, "rivals", "dense_fraction", "adapt_fraction", "rewarm_fraction")
        at_least(self, 1, "rivals", "refreshes", "restarts", "looks")


@dataclass(frozen=True)
class RivalsRun(RunConfig):
    """A network trained by every rival.

    Attributes:
        rivals: Settings by hand.
    """

    rivals: RivalSettings = field(default_factory=RivalSettings)

    # Settings of the family that no rival reads.
    _unread: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, config: RunConfig, **others: object) -> Self:
        """The same run with rivals, without what they do not read."""
        read: dict[str, Any] = {
            one.name: getattr(config, one.name)
            for one in fields(config)
            if one.name not in cls._unread
        }
        return cls(**{**read, "variants": (), "own": {}, **others})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self._unread:
            given = getattr(self, name)
            need(
                given == type(given)(),
                f"{name}: rivals do not read it. Their settings are rivals.*, their learning rate "
                "is optim.lr. One rival has its own rate under own",
            )


@dataclass(frozen=True)
class LanguageRivals(RivalsRun, LanguageRun):
    """A byte-level GPT, trained by every rival."""

    _unread: ClassVar[tuple[str, ...]] = ("branch",)


@dataclass(frozen=True)
class ViTRivals(RivalsRun, LowRankRun):
    """A mini vision transformer, trained by every rival."""

    _unread: ClassVar[tuple[str, ...]] = ("paper", "tuned", "branch")
