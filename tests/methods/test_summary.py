from __future__ import annotations

import torch
from torch import nn

from methods.doubles import Idle, backward, small_model
from orthotrain.methods import attach
from orthotrain.methods.summary import Row, summarize


class LowRank(nn.Module):
    """A 8 x 6 weight at rank 2: a 2 x 2 core between frozen factors, and a bias."""

    def __init__(self):
        super().__init__()
        self.core = nn.Parameter(torch.ones(2, 2))
        self.bias = nn.Parameter(torch.ones(8))
        self.register_buffer("u", torch.ones(8, 2))
        self.register_buffer("vh", torch.ones(2, 6))


FACTORED = Row("0", (8, 6), 2, trainable=4, stored=32, dense=48, form="factored")
DENSE = Row("1", (3, 8), None, trainable=24, stored=24, dense=24, form="dense", note="last")


def mixed():
    model = nn.Sequential(LowRank(), nn.Linear(8, 3), nn.BatchNorm1d(3))
    return model, torch.optim.Adam(model.parameters())


def test_totals_count_the_whole_model_each_number_once():
    model, optimizer = mixed()
    total = summarize(model, optimizer, rows=[FACTORED, DENSE]).total
    biases_and_norm = 8 + 3 + 2 * 3
    assert total.trainable == 4 + 24 + biases_and_norm
    assert total.stored == 32 + 24 + biases_and_norm
    assert total.dense == 48 + 24 + biases_and_norm


def test_a_frozen_core_is_stored_but_not_trained():
    model, optimizer = mixed()
    model[0].core.requires_grad_(False)
    row = Row("0", (8, 6), 2, trainable=0, stored=32, dense=48, form="factored", buffers=28)
    total = summarize(model, optimizer, rows=[row, DENSE]).total
    assert total.trainable == 24 + 17
    assert (total.stored, total.dense) == (32 + 24 + 17, 48 + 24 + 17)


def test_a_frozen_dense_weight_is_counted_once():
    model = small_model().requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    row = Row("0", (4, 3), None, trainable=0, stored=12, dense=12, form="dense")
    total = summarize(model, optimizer, rows=[row]).total
    assert (total.trainable, total.stored, total.dense, total.gradient_bytes) == (0, 26, 26, 0)


def test_bytes_are_those_of_the_tensors():
    model, optimizer = mixed()
    model[1].to(torch.float64)
    total = summarize(model, optimizer).total
    parameters = 4 * (4 + 8 + 6) + 8 * 27
    # u, vh, running mean and variance in float32, the count of batches in int64
    assert total.weight_bytes == parameters + 4 * (16 + 12 + 6) + 8
    assert total.gradient_bytes == parameters
    assert total.state_bytes == 0
    model[0].core.grad = torch.ones(2, 2)
    model[1].weight.grad = torch.ones(3, 8, dtype=torch.float64)
    optimizer.step()
    # two moments of each stepped parameter, and its float32 step count
    moments = 2 * (4 * 4 + 8 * 24) + 2 * 4
    assert summarize(model, optimizer).total.state_bytes == moments


def test_a_tied_weight_is_counted_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    total = summarize(model, torch.optim.SGD(model.parameters(), lr=1.0)).total
    assert (total.trainable, total.weight_bytes) == (16, 64)


def test_the_table_is_aligned_and_leaves_out_empty_columns():
    model, optimizer = mixed()
    text = str(summarize(model, optimizer, rows=[FACTORED, DENSE], notes=["switched at 3"]))
    assert text.splitlines() == [
        "layer  shape  rank  trainable     stored  dense  form      note",
        "-----  -----  ----  ---------  ---------  -----  --------  ----",
        "0        8x6     2   4   8.3%  32  66.7%     48  factored",
        "1        3x8     -  24 100.0%  24 100.0%     24  dense     last",
        "trainable 45 of 89 (50.6%), stored 73 (82.0%)",
        "memory: weights 324 B, gradients 180 B, optimizer state 0 B",
        "switched at 3",
    ]
    assert "note" not in str(summarize(model, optimizer, rows=[FACTORED]))


def test_the_summary_of_a_run_takes_rows_and_notes_of_its_methods():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    handle = attach(model, optimizer, Idle())
    backward(model)
    summary = handle.summary()
    assert (summary.rows, summary.notes) == ((), ())
    assert str(summary) == (
        "trainable 26 of 26 (100.0%), stored 26 (100.0%)\n"
        "memory: weights 104 B, gradients 104 B, optimizer state 0 B"
    )
