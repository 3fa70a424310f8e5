"""Several sizes from one dense start: measured once, cut, each trained on, one table."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from orthotrain._checks import require_share
from orthotrain._doors import checked
from orthotrain._sharded import require_whole
from orthotrain.errors import ConfigError, OrthotrainWarning
from orthotrain.lowrank.branch import Branch, Sizes
from orthotrain.lowrank.change import cut_trained_site_
from orthotrain.lowrank.compression_report import Compression, cut_and_report
from orthotrain.lowrank.cut import (
    KnownWeights,
    chosen_layers,
    known_weights,
    require_data_for,
    stored_in,
)
from orthotrain.lowrank.look import Decomposition
from orthotrain.lowrank.measure import LossFunction, mean_loss
from orthotrain.lowrank.no_form import Kind
from orthotrain.lowrank.pretrained import guard
from orthotrain.lowrank.rules import StoredBudget
from orthotrain.lowrank.sites import (
    Refusal,
    Selection,
    Site,
    find_sites,
    other_numbers,
    require_sites,
    require_supported,
)
from orthotrain.methods._optimizer import is_no_step, require_model
from orthotrain.methods._wrapped_optimizer import outermost_optimizer
from orthotrain.methods.copies import copy_together, frozen_copy, require_own_parameters
from orthotrain.methods.optimizer_state import check_shapes
from orthotrain.methods.select import unwrap

_logger = logging.getLogger("orthotrain")

#: Trains a branch; gives its final loss, or None.
TrainOn = Callable[[Branch], float | Tensor | None]


@checked
def sizes(  # noqa: PLR0913  # what is cut, measured and trained
    model: nn.Module,
    optimizer: Optimizer,
    shares: Sequence[float],
    *,
    train_on: TrainOn,
    data: Iterable[Any] | None = None,
    loss: LossFunction | None = None,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    also: Collection[Kind] = (),
    count_operations: bool = False,
) -> Sizes:
    """Make several smaller models of one, each trained on; the model stays as it is.

    The model is measured once, as :func:`compress` does. Then, for each share, model and
    optimizer are copied together and cut to ``StoredBudget(share)``; each cut layer becomes two
    trained factors, and the optimizer's state follows. ``train_on(branch)`` trains it.

    Methods attached to the model do not act on a branch; attach those you want in ``train_on``.
    Every branch stays in memory with its optimizer, on the model's device.

    Args:
        model: The start, dense or low-rank, finished or not. Wrappers are left out: a branch
            holds the inner model.
        optimizer: Over its parameters alone. Weights it does not train stay as they are.
        shares: Shares of the dense model's numbers to store, in ``(0, 1)``, each once, in the
            order they are to be trained. The whole model is counted.
        train_on: ``train_on(branch)`` trains ``branch.model`` with ``branch.optimizer`` and
            returns the final loss, or None. Set the learning rate there: the copied one is what
            the original's schedule left.
        data: Batches as for ``compress``; all are read, once, and kept until the end.
        loss: ``loss(model, batch)`` as for ``compress``.
        only: ``fnmatch`` patterns on qualified module names to cut; all others stay as they are.
        skip: Patterns on modules that stay as they are.
        also: Kinds of layers that are cut on request, as for ``compress``.
        count_operations: Count floating-point operations of ``train_on`` by
            ``torch.utils.flop_counter``: products and convolutions, the teacher's, too; torch
            leaves out attention on a CPU. It slows small models down by about half, so seconds
            are then not those of plain training.

    Returns:
        The branches and their table.

    Raises:
        ConfigError: Before anything is trained: no share, a share outside ``(0, 1)``, twice, or
            not smaller than the model is; a budget that cannot be met, with the layers that stand
            in the way; no layer that can be cut; an optimizer that holds other parameters or
            cannot train factors; a model that is sharded over processes; or data and a loss that
            ``compress`` refuses.
        NonFiniteError: A weight, an input, a gradient or a loss holds NaN or infinity.

    Note:
        An error in ``train_on`` goes on to the caller. What was trained before is on it:
        ``error.sizes`` is the result so far.

    Warns:
        OrthotrainWarning: ``train_on`` returned neither a number nor None; its loss is left out.
    """
    require_model("sizes", model, optimizer)
    require_whole("sizes", model)
    optimizer, start = outermost_optimizer("sizes", optimizer), unwrap(model)
    rules = _rules(shares)
    selection = chosen_layers("sizes", only=only, skip=skip, also=also)
    require_data_for("sizes", data, loss)
    _check_start(start, optimizer, selection, rules)
    teacher = frozen_copy(start)
    sites, refusals = _sites(teacher, start, optimizer, selection)
    batches = None if data is None else list(data)
    known = known_weights(
        teacher, sites, refusals, rules=rules, data=batches, loss=loss, only_if_cheaper=True,
        bases="trained", what="sizes",
    )  # fmt: skip

    def measured(network: nn.Module) -> float | None:
        return None if batches is None or loss is None else mean_loss(network, batches, loss)

    result = Sizes(known.other_numbers + sum(map(stored_in, sites)), measured(teacher))
    try:
        for rule in rules:
            twin, own = copy_together(start, optimizer, what="sizes")
            ranks = known.ranks(sites, rule)
            compression = _cut(twin, own, selection, known, ranks)
            guard(twin)
            twin.__dict__["compression"] = compression
            branch = Branch(
                share=rule.share, model=twin, optimizer=own, teacher=teacher,
                compression=compression, lost=sum(known.lost(ranks)) / (known.most or 1.0),
                loss_before=result.dense_loss, loss_after=measured(twin),
            )  # fmt: skip
            _train(branch, train_on, count_operations=count_operations)
            result.branches.append(branch)
            _logger.info("sizes: a share of %g is trained\n%s", rule.share, result)
    except BaseException as error:
        vars(error)["sizes"] = result
        error.add_note(
            f"sizes: {len(result.branches)} of {len(rules)} sizes are trained; they are the "
            "branches of this error's attribute .sizes"
        )
        raise
    return result


def _rules(shares: Sequence[float]) -> list[StoredBudget]:
    """One budget for each share."""
    if isinstance(shares, str) or not isinstance(shares, Sequence) or not shares:
        raise ConfigError(
            f"sizes needs one share or more in a list, such as [0.75, 0.5, 0.3], got {shares!r}"
        )
    for share in shares:
        require_share("sizes", "each of shares", share)
    if len(set(shares)) < len(shares):
        raise ConfigError(f"sizes needs each share once, got {list(shares)!r}")
    return [StoredBudget(share) for share in shares]


def _check_start(
    start: nn.Module, optimizer: Optimizer, selection: Selection, rules: Sequence[StoredBudget]
) -> None:
    """Refuse what no data are needed for to see that it cannot work."""
    require_own_parameters(start, optimizer, what="sizes")
    sites, _ = _trained_sites(start, optimizer, selection)
    for site in sites:
        require_supported(optimizer, site, shape=site.layout.pair_shape(1), what="sizes cannot cut")
    others = other_numbers(start, sites)
    dense = others + sum(site.dense_numbers for site in sites)
    stored = others + sum(map(stored_in, sites))
    for rule in rules:
        if int(rule.share * dense) >= stored:
            raise ConfigError(
                f"sizes needs shares that make the model smaller, got {rule.share}: it holds "
                f"{stored:,} numbers, {stored / dense:.3f} of its dense form; leave that share out"
            )


def _trained_sites(
    model: nn.Module, optimizer: Optimizer, selection: Selection
) -> tuple[list[Site], list[Refusal]]:
    """The weights that are cut: those that the optimizer trains; and why others are not."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    sites, refusals = find_sites(model, selection, trained=trained)
    require_sites(sites, refusals, "sizes")
    return sites, refusals


def _sites(
    teacher: nn.Module, start: nn.Module, optimizer: Optimizer, selection: Selection
) -> tuple[list[Site], list[Refusal]]:
    """The same weights in the teacher, where nothing is trained; and why others are not cut."""
    trained, refusals = _trained_sites(start, optimizer, selection)
    names = {site.name for site in trained}
    sites = [site for site in find_sites(teacher, selection)[0] if site.name in names]
    return sites, refusals


def _cut(
    twin: nn.Module,
    optimizer: Optimizer,
    selection: Selection,
    known: KnownWeights,
    ranks: Sequence[int | None],
) -> Compression:
    """Cut a copy, its optimizer's state with it."""

    def cut(site: Site, kept: Decomposition) -> None:
        cut_trained_site_(site, kept, optimizer, bases=known.bases)

    sites, refusals = _trained_sites(twin, optimizer, selection)
    compression = cut_and_report(known, sites, ranks, cut=cut, refusals=refusals)
    check_shapes(optimizer)
    return compression


def _train(branch: Branch, train_on: TrainOn, *, count_operations: bool) -> None:
    """Let it be trained, and write down what that took."""

    def count(optimizer: Optimizer, *_: object) -> None:
        branch.steps += not is_no_step(optimizer)

    hook = branch.optimizer.register_step_post_hook(count)
    counter = FlopCounterMode(display=False) if count_operations else None
    started = time.perf_counter()
    try:
        with counter or nullcontext():
            given = train_on(branch)
    finally:
        hook.remove()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    branch.seconds = time.perf_counter() - started
    branch.operations = None if counter is None else counter.get_total_flops()
    if isinstance(given, Tensor) and given.numel() == 1:
        given = float(given.detach())
    if given is None or isinstance(given, Real):
        branch.final_loss = None if given is None else float(given)
        return
    warnings.warn(
        f"train_on returned a {type(given).__name__} for the share {branch.share}, a number or "
        "None is needed; the table leaves its loss out",
        OrthotrainWarning,
        stacklevel=3,
    )
