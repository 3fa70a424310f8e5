"""Several optimizers over parts of one model: when a step of training ends, and what is untouched.

A GAN steps its discriminator several times per generator step. Muon and AdamW step one after the
other on the same gradients. ``GradScaler`` skips one of them and not the other. One rule holds for
all: a step of training ends when each optimizer has stepped since the last one ended.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from orthotrain.methods.weak_hook import WeakHook


class Round:
    """Who has stepped since the last step of training ended.

    Args:
        count: How many optimizers there are; each is meant by its place among them.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._stepped: set[int] = set()
        self._passes = 0
        self._passes_at_step = [0] * count

    def stepped(self, which: Collection[int]) -> bool:
        """Take notice that some have stepped; whether that ends a step of training."""
        for place in which:
            self._passes_at_step[place] = self._passes
        self._stepped.update(which)
        ends = len(self._stepped) == self._count
        if ends:
            self._stepped.clear()
        return ends

    def pass_seen(self) -> None:
        """Take notice that a gradient was computed."""
        self._passes += 1

    def is_untouched(self, place: int) -> bool:
        """Whether no backward pass was seen since that optimizer's own step.

        Then its parameters have no gradient that a step still needs, and every graph that holds
        their values is as stale as its own step left it.
        """
        return self._passes_at_step[place] == self._passes

    def state_dict(self) -> dict[str, list[int]]:
        """Places of those that have stepped, and of those that are untouched since."""
        untouched = [place for place in range(self._count) if self.is_untouched(place)]
        return {"stepped": sorted(self._stepped), "untouched": untouched}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave; without entries, a step of training begins."""
        self._stepped = set(state.get("stepped", ()))
        untouched = state.get("untouched", range(self._count))
        self._passes = 0
        self._passes_at_step = [0 if i in untouched else -1 for i in range(self._count)]


class PassHook(WeakHook[Round]):
    """On two parameters of each optimizer: tells of every backward pass that reaches them."""

    def put_on(self, parameter: nn.Parameter) -> RemovableHandle:
        """Fire whenever the gradient of ``parameter`` is complete."""
        hook: RemovableHandle = parameter.register_post_accumulate_grad_hook(self)  # type: ignore[no-untyped-call]
        return hook

    def __call__(self, parameter: Tensor) -> None:
        # Compiled autograd traces through here, and a counter would compile it anew at each pass.
        if not torch.compiler.is_compiling() and (owner := self.owner) is not None:
            owner.pass_seen()
