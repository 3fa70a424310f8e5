"""Optimizers around others, written anew in the forms that libraries give them."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch.optim import Optimizer


class SAM(Optimizer):
    """Two passes per step: uphill, back, and the step of ``base_optimizer``."""

    def __init__(self, params, base, **options):
        super().__init__(params, options)
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def _parameters(self):
        return (p for group in self.param_groups for p in group["params"] if p.grad is not None)

    @torch.no_grad()
    def first_step(self):
        for p in self._parameters():
            self.state[p]["old_p"] = p.clone()
            p.add_(p.grad, alpha=0.05)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p in self._parameters():
            p.copy_(self.state[p]["old_p"])
        self.base_optimizer.step()
        self.zero_grad()

    def step(self, closure):
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


def _sync(state, p, key):
    slow = state.setdefault(key, p.detach().clone())
    slow.lerp_(p, 0.5)
    p.copy_(slow)


class Lookahead(Optimizer):
    """Slow weights under a name of its own in its own state; every second step is drawn back."""

    def __init__(self, optimizer, key="slow_params"):
        self.inside = optimizer
        super().__init__(optimizer.param_groups, {})
        self.param_groups = optimizer.param_groups
        self.key, self.steps = key, 0

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.inside.step(closure)
        self.steps += 1
        if self.steps % 2 == 0:
            for p in (p for group in self.param_groups for p in group["params"]):
                _sync(self.state[p], p, self.key)
        return loss


class BareLookahead(Optimizer):
    """Without ``Optimizer.__init__``, so without hooks; slow weights in the state of the other."""

    def __init__(self, optimizer):
        self._base_optimizer = optimizer
        self.param_groups, self.defaults = optimizer.param_groups, optimizer.defaults
        self.state = defaultdict(dict)
        self.steps = 0
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}

    @torch.no_grad()
    def step(self, closure=None):
        loss = self._base_optimizer.step(closure)
        self.steps += 1
        if self.steps % 2 == 0:
            for p in (p for group in self.param_groups for p in group["params"]):
                _sync(self._base_optimizer.state[p], p, "lookahead_slow_buff")
        return loss


class Listed:
    """No optimizer by type; slow weights in a list."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.slow = [[p.detach().clone() for p in g["params"]] for g in optimizer.param_groups]

    def step(self):
        self.optimizer.step()


class Slotted:
    """Has room for nothing but the optimizer."""

    __slots__ = ("optimizer",)

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        self.optimizer.step()


class Mixture(Optimizer):
    """Steps matrices itself and leaves the rest to an optimizer that it holds."""

    def __init__(self, params):
        params = list(params)
        super().__init__(params, {"lr": 0.1})
        self.rest = torch.optim.SGD([p for p in params if p.ndim < 2], lr=0.1)

    @torch.no_grad()
    def step(self):
        self.rest.step()
        for p in (p for group in self.param_groups for p in group["params"] if p.ndim > 1):
            p.sub_(p.grad, alpha=0.1)


class Two(Optimizer):
    """Holds two over the same parameters, such as for a length and a direction."""

    def __init__(self, params, *, whole):
        params = list(params)
        if whole:
            super().__init__(params, {"lr": 0.1})
        self.parts = {"length": torch.optim.SGD(params, lr=0.1), "way": torch.optim.Adam(params)}

    def step(self):
        for part in self.parts.values():
            part.step()


class EverySecond(Optimizer):
    """Adds up gradients over two calls and steps at the second."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups, {})
        self.held, self.calls = [optimizer], 0

    def step(self):
        self.calls += 1
        if self.calls % 2 == 0:
            self.held[0].step()
            self.zero_grad()
