"""A recurrent layer that is observed computes what torch computes, and shows each product."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from lowrank.nets import batch, filled
from orthotrain.lowrank.observed_recurrence import recurrence_observed

LAYERS = {
    "lstm": lambda: nn.LSTM(5, 4, 2, bidirectional=True, batch_first=True),
    "lstm-narrowed": lambda: nn.LSTM(5, 4, 2, proj_size=3, bias=False),
    "gru": lambda: nn.GRU(5, 4, 2, bidirectional=True),
    "rnn": lambda: nn.RNN(5, 4),
    "rnn-relu": lambda: nn.RNN(5, 4, nonlinearity="relu", bidirectional=True),
}
CELLS = {
    "lstm": lambda: nn.LSTMCell(5, 4),
    "gru": lambda: nn.GRUCell(5, 4),
    "rnn": lambda: nn.RNNCell(5, 4, bias=False, nonlinearity="relu"),
}


def tensors(output):
    if isinstance(output, torch.Tensor):
        return [output]
    return [t for each in output if each is not None for t in tensors(each)]


def same(first, second):
    for a, b in zip(tensors(first), tensors(second), strict=True):
        torch.testing.assert_close(a, b)


def observed(layer, *given):
    """Its output while it is observed, and what was shown by name of the weight."""
    shown = {}
    with recurrence_observed(layer, lambda name, x, y: shown.setdefault(name, []).append((x, y))):
        output = layer(*given)
    assert "forward" not in layer.__dict__
    return output, shown


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_what_torch_computes(name):
    layer = filled(LAYERS[name]())
    for x in (batch(0, 3, 6, 5), batch(1, 6, 5)):
        output, shown = observed(layer, x)
        same(output, layer(x))
        same(observed(layer, x, layer(x)[1])[0], layer(x, layer(x)[1]))
    assert {*shown} == {n for n, _ in layer.named_parameters() if n.startswith("weight")}
    assert all(len(seen) == 1 for seen in shown.values())
    for weight, seen in shown.items():  # the gradient of a weight, from what is shown of it
        (entered, left), y = seen[0], tensors(output)[0]
        of = getattr(layer, weight), left
        wanted, given = torch.autograd.grad((y**3).sum(), of, retain_graph=True)
        same(given.flatten(0, -2).mT @ entered.flatten(0, -2), wanted)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_computes_what_torch_computes(name):
    cell = filled(CELLS[name]())
    for x in (batch(0, 3, 5), batch(1, 5)):
        same(observed(cell, x)[0], cell(x))
        output, shown = observed(cell, x, cell(x))
        same(output, cell(x, cell(x)))
    assert {*shown} == {"weight_ih", "weight_hh"}


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn-relu"])
@pytest.mark.parametrize("lengths", [(2, 6, 4, 4), (6, 4, 4, 2)])
def test_packed_sequences(name, lengths):
    layer = filled(LAYERS[name]())
    x = pack_padded_sequence(
        batch(0, 6, 4, 5), torch.tensor(lengths), enforce_sorted=lengths[0] == 6
    )
    output, shown = observed(layer, x)
    same(output, layer(x))
    assert sum(len(entered) for entered, _ in shown["weight_ih_l0"]) == sum(lengths)
    assert sum(len(entered) for entered, _ in shown["weight_hh_l0"]) == sum(lengths)
