"""Updates that decompose cores in float32: weight and optimizer state against float64."""

import pytest
import torch
from torch import nn

from orthotrain.lowrank import AdaptiveLowRank, look
from orthotrain.lowrank.change import cut_trained_site_
from orthotrain.lowrank.history import LayerHistory
from orthotrain.lowrank.look import View, leading
from orthotrain.lowrank.sites import Selection, find_sites
from orthotrain.methods import attach
from reference.matrices import from_spectrum, generator

N, KEPT = 160, 140
SETTINGS = AdaptiveLowRank.published(delay_steps=1, every_steps=1, rank_rtol=0.1, layer_fraction=1)


@pytest.fixture
def trained():
    """A site at full rank with the state of Adam after two steps, and that optimizer."""
    model = nn.Sequential(nn.Linear(N, N, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(from_spectrum(torch.linspace(1, 0.08, N), N, N))
    site = find_sites(model, Selection())[0][0]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    cut_trained_site_(site, leading(site, N), optimizer)
    for seed in range(2):
        site.parameter.grad = torch.randn(N, N, generator=generator(seed))
        optimizer.step()
    return site, optimizer


def looked_at(site, *, at_once):
    view = View(lambda _: None, at_once=at_once)
    view.look(0, site, LayerHistory(), SETTINGS, within_reach=True)
    return view


@pytest.mark.parametrize("at_once", [True, False])
def test_weight_and_state_are_those_of_float64(trained, at_once, monkeypatch):
    site, optimizer = trained
    u, core, vh = (t.double() for t in site.factors)
    state = {k: v.double() for k, v in optimizer.state[site.parameter].items()}
    p, s, qh = torch.linalg.svd(core, full_matrices=False)
    view = looked_at(site, at_once=at_once)
    assert (view.candidates[0].spectrum - s).abs().max() < 1e-5 * s[0]  # measured 2e-6
    if at_once:  # decomposed at the look
        monkeypatch.setattr(look, "float32_right_vectors", None)
    cut = view.cut(0, site, KEPT)
    assert cut.lost.item() == pytest.approx(s[KEPT:].square().sum().item(), rel=1e-4)
    cut_trained_site_(site, (cut.p, cut.s, cut.qh), optimizer)

    p, s, qh = p[:, :KEPT], s[:KEPT], qh[:KEPT]
    weight = site.owners[0][0].materialized().double()
    best = u @ (p * s) @ qh @ vh
    assert torch.linalg.matrix_norm(weight - best, 2) < 2e-5 * s[0]  # 4e-6
    first, second = (optimizer.state[site.parameter][k] for k in ("exp_avg", "exp_avg_sq"))
    moved = site.factors.u.double() @ first.double() @ site.factors.vh.double()
    turned = u @ p @ (p.mT @ state["exp_avg"] @ qh.mT) @ qh @ vh
    squares = p.mT.square() @ state["exp_avg_sq"] @ qh.mT.square()
    assert (moved - turned).norm() < 2e-5 * turned.norm()  # measured 4e-6
    assert (second - squares).norm() < 1e-5 * squares.norm()  # 1e-6
    eye = torch.eye(KEPT, dtype=torch.float64)
    for basis in (site.factors.u.mT.double(), site.factors.vh.double()):
        assert (basis @ basis.mT - eye).abs().max() < 5e-6


def test_a_layer_that_waits_is_cut_by_the_vectors_it_has_then():
    """Fused steps change a weight without counting it, so vectors of the look cannot be kept."""
    first, second, head = (nn.Linear(N, m, bias=False) for m in (N, N, 4))
    model = nn.Sequential(first, second, head)
    with torch.no_grad():
        for seed, layer in enumerate((first, second)):
            spectrum = torch.linspace(1, 0.2, N)
            layer.weight.copy_(from_spectrum(spectrum, N, N, seed=seed))
        head.weight.copy_(torch.randn(4, N, generator=generator(7)) / N**0.5)
    others = torch.optim.SGD([first.weight, head.weight], lr=0.05, fused=True)
    waits = torch.optim.SGD([second.weight], lr=0.05, fused=True)
    settings = AdaptiveLowRank(
        delay_steps=2, every_steps=4, rank_rtol=0.3, importance="weight", bases="frozen",
        spread=False, only_if_cheaper=False, core_step=1.0,
    )  # fmt: skip
    attach(model, [others, waits], settings)
    x, y = (torch.randn(64, n, generator=generator(9)) for n in (N, 4))

    def backward():
        (model(x) - y).square().mean().mul(10).backward()

    backward()
    for step in range(8):
        if step == 4:
            with torch.no_grad():
                for layer in (first, second):
                    layer.core.diagonal()[-40:] *= 0.8
        waits.step()
        waits.zero_grad()
        backward()  # so that the update comes while a gradient of the second layer is there
        others.step()
        others.zero_grad()
    assert second.rank < 140
    u = second.factors().u.double()
    assert (u.mT @ u - torch.eye(u.shape[1])).abs().max() < 2e-5
