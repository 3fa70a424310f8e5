"""An optimizer whose steps nobody sees: both callbacks must refuse it."""

import torch


class Hidden(torch.optim.Optimizer):
    """Takes the steps of an optimizer that nobody finds."""

    def __init__(self, parameters):
        inner = torch.optim.AdamW(parameters)
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, {}
        self._inside = lambda: inner

    def step(self, closure=None):
        return self._inside().step(closure)

    def state_dict(self):
        return self._inside().state_dict()

    def load_state_dict(self, state):
        self._inside().load_state_dict(state)
