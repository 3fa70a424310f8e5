"""A model with nothing of this library on it: its pickle is read where the library is missing."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from orthotrain.layers.orthogonal_parametrization import is_ours
from orthotrain.lowrank.following import unfollow
from orthotrain.lowrank.pretrained import guard_pairs, unguard
from orthotrain.methods.copies import remove_dead_hooks


def leave_plain_(model: nn.Module) -> None:
    """Take off what earlier calls have left: hooks, reports, ``orthogonal_weight``.

    ``save_pretrained`` stays ours where two layers stand for one, and is none in a pickle. Hooks of
    a handle that is attached stay. In a pickle and in a copy they do nothing, and a
    pickle of them needs this library no more.
    """
    unfollow(model)
    for module in list(model.modules()):
        remove_dead_hooks(module)
        unguard(module)
        module.__dict__.pop("compression", None)
        if parametrize.is_parametrized(module):
            for name, maps in list(module.parametrizations.items()):  # type: ignore[union-attr, operator]
                if all(map(is_ours, maps)):
                    parametrize.remove_parametrizations(module, name)
    guard_pairs(model)
