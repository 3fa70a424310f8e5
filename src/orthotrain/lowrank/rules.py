"""The rank rules, the table of their names, and how one of them is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from orthotrain._checks import require_share
from orthotrain._doors import checked
from orthotrain.errors import ConfigError
from orthotrain.layers import stored_numbers
from orthotrain.linalg import numerical_rank, ranks_within_budget
from orthotrain.lowrank.rank_rule import Candidate, LayerRule, RankRule


@checked
@dataclass(frozen=True)
class Relative(LayerRule):
    """Drop singular values below a share of the layer's largest one. Short form: ``rank_rtol=``.

    Args:
        rtol: The share, in ``[0, 1)``: the paper's beta. 0 keeps all singular values.

    Raises:
        ConfigError: ``rtol`` is outside its range.

    Source:
        Coquelin et al., arXiv:2401.08505.
    """

    rtol: float

    def __post_init__(self) -> None:
        require_share("Relative", "rtol (short form rank_rtol)", self.rtol, zero=True)

    def rank(self, layer: Candidate) -> int:
        """The most that a block of the layer needs."""
        return int(numerical_rank(layer.spectrum, rtol=self.rtol).max())


@checked
@dataclass(frozen=True)
class Energy(LayerRule):
    """Keep a share of the energy of each layer. Short form: ``energy=``.

    Energy is the sum of squared singular values, counted for each block of a layer. Energy that
    was cut before counts as lost, so repeated cuts do not compound.

    Args:
        share: The share to keep, in ``(0, 1]``.

    Raises:
        ConfigError: ``share`` is outside its range.
    """

    share: float

    def __post_init__(self) -> None:
        require_share("Energy", "share (short form energy)", self.share, one=True)

    def rank(self, layer: Candidate) -> int:
        """The most that a block of the layer needs."""
        s = layer.spectrum.double()
        total = s.square().sum(-1)
        if layer.cut_energy:
            total = total + total.new_tensor(layer.cut_energy)
        return int(numerical_rank(s, energy=self.share, total_energy=total).max())


@checked
@dataclass(frozen=True)
class StoredBudget(RankRule):
    """Cut until the model stores a share of the dense model's numbers. Short: ``stored_budget=``.

    The whole model is counted. Ranks fall first where a saved number costs least: one threshold
    over all layers. The cost is the estimated loss where the loss was measured, and else each
    layer's share of its own energy, since energies of different layers do not compare.

    Args:
        share: The share to store, in ``(0, 1]``.

    Raises:
        ConfigError: ``share`` is outside its range. When attached: the smallest ranks that the
            guards allow already exceed the budget.
    """

    one_cut: ClassVar[bool] = True

    share: float

    def __post_init__(self) -> None:
        require_share("StoredBudget", "share (short form stored_budget)", self.share, one=True)

    def ranks(
        self, layers: Sequence[Candidate], *, min_ranks: Sequence[int], other_numbers: int
    ) -> list[int]:
        """Ranks that together lose least within the budget."""
        self.require_reachable(layers, min_ranks=min_ranks, other_numbers=other_numbers)
        spectra = [layer.spectrum.double().square().sum(0).sqrt() for layer in layers]
        return ranks_within_budget(
            spectra, costs=[_stored_cost(layer) for layer in layers],
            budget=self._budget(layers, other_numbers), min_ranks=min_ranks,
            weights=[layer.weight for layer in layers],
        )  # fmt: skip

    def promise(self, numbers: int, *, stored: int) -> str:
        """The stored size, and what shrinks with it."""
        if int(self.share * numbers) > stored:
            return f"{stored:,} of {numbers:,} numbers are stored already: nothing is left to cut"
        return (
            f"then at most {int(self.share * numbers):,} of {numbers:,} numbers are stored; with "
            "trained bases gradients and optimizer state shrink alike"
        )

    def _budget(self, layers: Sequence[Candidate], other_numbers: int) -> int:
        """Numbers that these layers may hold."""
        dense = sum(layer.blocks * layer.m * layer.n for layer in layers)
        return int(self.share * (dense + other_numbers)) - other_numbers

    def require_reachable(
        self, layers: Sequence[Candidate], *, min_ranks: Sequence[int], other_numbers: int
    ) -> None:
        """Refuse a budget below what the smallest ranks hold."""
        budget = self._budget(layers, other_numbers)
        costs = [_stored_cost(layer) for layer in layers]
        least = [cost(rank) for cost, rank in zip(costs, min_ranks, strict=True)]
        if sum(least) > budget:
            dense = sum(layer.blocks * layer.m * layer.n for layer in layers) + other_numbers
            # Rounded up to three digits, so that it is met.
            reachable = math.ceil(1000 * (sum(least) + other_numbers) / dense) / 1000
            largest = sorted(zip(least, layers, strict=True), key=lambda each: -each[0])[:3]
            named = ", ".join(f"{layer.name}: {count:,}" for count, layer in largest if layer.name)
            raise ConfigError(
                f"stored_budget={self.share} leaves {budget:,} numbers for the low-rank layers. "
                f"At their smallest ranks they hold {sum(least):,}{f' ({named})' * bool(named)}, "
                f"and the rest of the model holds {other_numbers:,}. Raise stored_budget to "
                f"{reachable:.3g} or more, or skip fewer layers"
            )


def _stored_cost(layer: Candidate) -> Callable[[int], int]:
    """Stored numbers of a layer as a function of its rank; it may stay dense until that pays.

    Counted at the rank it is rounded up to: that is what is stored.
    """

    def cost(rank: int) -> int:
        dense = layer.m * layer.n
        factored = stored_numbers(layer.m, layer.n, layer.rounded(rank), bases=layer.bases)
        return layer.blocks * (min(dense, factored) if layer.may_stay_dense else factored)

    return cost


# One row per rule: its name in texts such as "energy=0.9". The first three names are keywords
# of AdaptiveLowRank and compress, too.
RANK_RULES: Final[dict[str, Callable[[float], RankRule]]] = {
    "rank_rtol": Relative,
    "energy": Energy,
    "stored_budget": StoredBudget,
}
DEFAULT_RULE: Final = StoredBudget(0.5)


def chosen_rule(rank: object, **short_forms: object) -> RankRule:
    """The one rule that was given, as an object or as a short form.

    Args:
        rank: A rule, or ``None`` where a short form is given.
        short_forms: Values by their name in ``RANK_RULES``; ``None`` is left out.

    Raises:
        ConfigError: No rule, two of them, something else than a rule, or a value out of range.
    """
    given = {"rank": rank, **short_forms}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) == 1:
        ((name, value),) = given.items()
        if name != "rank":
            return RANK_RULES[name](value)  # type: ignore[arg-type]  # the rule checks it
        if isinstance(value, RankRule):
            return value
    got = ", ".join(f"{name}={value!r}" for name, value in given.items()) or "none"
    objects = ", ".join(
        f"rank={getattr(rule, '__name__', rule)}(...)" for rule in RANK_RULES.values()
    )
    raise ConfigError(
        f"need one rank rule, got {got}; choose one of {objects}, or one of the short forms "
        f"{', '.join(f'{name}=' for name in short_forms)}"
    )


@checked
def read_rule(text: str) -> RankRule:
    """The rule that a text such as ``"energy=0.9"`` names.

    Raises:
        ConfigError: No rule of that name, no number, or a number out of range.

    Example:
        >>> read_rule("energy=0.9")
        Energy(share=0.9)
    """
    name, _, value = text.partition("=")
    try:
        rule, number = RANK_RULES[name.strip()], float(value)
    except (KeyError, ValueError) as error:
        forms = ", ".join(f"{each}=NUMBER" for each in RANK_RULES)
        raise ConfigError(f"rank needs one of the forms {forms}, got {text!r}") from error
    return rule(number)
