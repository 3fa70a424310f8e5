"""Looks at large weights: by a Gram matrix, against float64; what is left out, and what is kept."""

import json

import pytest
import torch
from torch import nn

from orthotrain.diagnostics import BasisStability, ConditionMonitor, JsonlWriter, conditioning
from orthotrain.diagnostics._look import compared, kept, look_at, nothing_like
from orthotrain.errors import ConfigError, NonFiniteError, OrthotrainWarning
from orthotrain.linalg import condition_readings, mixing_similarity
from orthotrain.linalg.subspace import polar_and_triangle
from orthotrain.methods import attach
from reference.matrices import from_spectrum, generator, log_spectrum

SHAPES = [(128, 128), (128, 320), (320, 128)]


def pair_of(shape, condition, *, null=0, dtype=torch.float32):
    """A weight and what a step made of it."""
    spectrum = log_spectrum(128, condition)
    if null:
        spectrum[-null:] = 0
    before = from_spectrum(spectrum, *shape)
    turn = torch.randn(shape[1], shape[1], generator=generator(3), dtype=torch.float64)
    after = before + 0.3 * before @ turn / shape[1] ** 0.5
    return before.to(dtype), after.to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("condition", "null"), [(3.0, 0), (300.0, 0), (1e4, 0), (1e3, 20), (1e3, 60)], ids=str
)
def test_a_look_agrees_with_float64(shape, condition, null):
    before, after = pair_of(shape, condition, null=null)
    stability, mixing = compared(kept(look_at(before)), look_at(after))
    exact = _over_kept(before, after)
    assert stability == pytest.approx(exact, abs=1e-5)
    # Without the rounding of what is kept: 1e-6, and 8e-6 where the root is made in float32.
    stability, _ = compared(look_at(before), look_at(after))
    assert stability == pytest.approx(exact, abs=3e-6)
    expected = mixing_similarity(before.double(), after.double()).item()
    assert mixing == pytest.approx(expected, abs=1e-5)


def _over_kept(before, after):
    """In float64, over the directions that there are by the rank in float32."""
    qs = []
    for w in (before, after):
        u, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
        kept = s > max(w.shape) * torch.finfo(torch.float32).eps * s[0]
        qs.append((u[:, kept] @ vh[kept], int(kept.sum())))
    return ((qs[0][0] * qs[1][0]).sum() / min(qs[0][1], qs[1][1])).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_polar_factor_and_triangle_in_parts(shape, dtype, monkeypatch):
    monkeypatch.setattr("orthotrain.linalg._gram_in_parts._PART", 128 * 50)
    a = from_spectrum(log_spectrum(128, 30.0), *shape).to(dtype)
    q, r = polar_and_triangle(a, rtol=1e-3)
    u, _, vh = torch.linalg.svd(a.double(), full_matrices=False)
    tall = a if shape[0] >= shape[1] else a.mT
    exact = torch.linalg.qr(tall.double()).R
    exact *= exact.diagonal().sign()[:, None]
    torch.testing.assert_close(q.double(), u @ vh, rtol=0, atol=1e-5)
    torch.testing.assert_close(r.double(), exact, rtol=0, atol=1e-6)
    assert q.dtype == r.dtype == torch.float32
    stacked, _ = polar_and_triangle(torch.stack([a, -a]), rtol=1e-3)
    assert torch.equal(stacked, torch.stack([q, -q]))
    a[0, 0] = torch.nan
    with pytest.raises(NonFiniteError):
        polar_and_triangle(a, rtol=1e-3)


def test_a_few_small_directions_beside_large_ones_are_right_too():
    """Their eigenvalues, down to 1e-7, are rounding in float32."""
    small = torch.logspace(-2.5, -3.4, 8, dtype=torch.float64)
    spectrum = torch.cat([torch.linspace(1, 0.5, 120, dtype=torch.float64), small])
    a = from_spectrum(spectrum, 160, 128).float()
    q, _ = polar_and_triangle(a, rtol=1e-4)
    u, _, vh = torch.linalg.svd(a.double(), full_matrices=False)
    torch.testing.assert_close(q.double() @ vh.mT, u, rtol=0, atol=5e-5)  # measured 1.3e-5


def test_a_look_takes_eigenvectors_in_float32_and_in_float64_where_few_need_it(monkeypatch):
    seen, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: seen.append((a.dtype, len(a))) or eigh(a))
    line, few = torch.linspace(1, 0.1, 128), torch.cat([torch.ones(120), torch.full((8,), 1e-3)])
    for spectrum, expected in (
        (line, [(torch.float32, 128)]),
        (few, [(torch.float32, 128), (torch.float64, 8)]),
    ):
        seen.clear()
        look_at(from_spectrum(spectrum, 160, 128).float())
        assert seen == expected


def test_a_zero_weight_has_no_direction_and_a_zero_triangle():
    q, r = polar_and_triangle(torch.zeros(200, 128), rtol=1e-4)
    assert not q.any()
    assert not r.any()
    zero, one = look_at(torch.zeros(200, 128)), look_at(torch.eye(200, 128))
    assert compared(zero, one) == (None, 0.0)
    assert compared(one, one) == (pytest.approx(1.0, abs=1e-6), 1.0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("condition", [1e1, 1e3, 5e5], ids=str)
def test_readings_by_gram_are_within_their_bound(shape, condition):
    a = from_spectrum(log_spectrum(128, condition), *shape)  # float64, which gram may be told
    exact, found = (condition_readings(a, rtol=1e-4, method=m) for m in ("svd", "gram"))
    near = {"rtol": 1e-9 + 1.7e-15 * condition**2, "atol": 0}
    assert (exact.method, found.method) == ("svd", "gram")
    assert found.rank == exact.rank
    torch.testing.assert_close(found.on_range, exact.on_range, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.naive_float64, exact.naive_float64, **near)
    torch.testing.assert_close(found.largest, exact.largest, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.norm, exact.norm, rtol=1e-12, atol=0)
    assert found.naive_float32.isnan()


def test_what_a_gram_matrix_cannot_tell_is_not_told_or_read_exactly():
    spectrum = log_spectrum(128, 1e3)
    spectrum[100:] = 1e-9
    a = from_spectrum(spectrum, 128, 160)
    found = condition_readings(a, rtol=1e-5, method="gram")
    assert (found.method, found.rank.item()) == ("gram", 100)
    assert found.naive_float64.isnan()
    # Where the rank itself lies below what it can tell, singular values are taken.
    found = condition_readings(a, rtol=1e-8, method="gram")
    assert (found.method, found.rank.item()) == ("svd", 100)
    assert condition_readings(a.float(), method="auto").method == "gram"
    assert condition_readings(a, method="auto").method == "svd"
    assert condition_readings(a[:100], method="auto").method == "svd"
    large = condition_readings(1e200 * a, rtol=1e-5, method="gram")
    assert large.largest.item() == pytest.approx(1e200, rel=1e-9)
    with pytest.raises(ConfigError, match="symmetric=True"):
        condition_readings(a @ a.mT, symmetric=True, method="gram")
    with pytest.raises(ConfigError, match="one of svd, gram, auto"):
        condition_readings(a, method="eigh")


# --- left out -------------------------------------------------------------------------------------


class Language(nn.Module):
    """A head and an embedding by their size, and a layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(70_000, 16)
        self.layer = nn.Linear(16, 16)
        self.head = nn.Linear(16, 70_000)

    def forward(self, x):
        return self.head(self.layer(self.embed(x))).square().mean()


def step_of(model, *methods, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, *methods, **settings)

    def step():
        optimizer.zero_grad()
        model(torch.arange(4)).backward()
        optimizer.step()

    return step, handle


def test_large_embeddings_and_heads_are_left_out_and_said_so():
    step, handle = step_of(
        Language(), BasisStability(every_steps=2), ConditionMonitor("*", every_steps=2)
    )
    for _ in range(4):
        step()
    told = [(r["step"], r["method"], r["layer"]) for r in handle.records if "left_out" in r]
    assert told == [
        (0, "basis_stability", "head"),
        (2, "condition_monitor", "embed.weight"), (2, "condition_monitor", "head.weight"),
    ]  # fmt: skip
    reason = "70000x16 is an embedding or a head by its size"
    assert all(r["left_out"].startswith(reason) for r in handle.records if "left_out" in r)
    assert handle.plan.count(reason) == 3
    assert {r["layer"] for r in handle.records if "left_out" not in r} == {"layer"}


@pytest.mark.parametrize("name", ["head", "h*", ("*", "head.weight")], ids=str)
def test_a_head_that_is_named_is_watched(name):
    step, handle = step_of(
        Language(), BasisStability(every_steps=1, params=name), ConditionMonitor(name)
    )
    step()
    watched = {r["method"] for r in handle.records if r["layer"] == "head" and "rank" in r}
    assert watched == {"basis_stability", "condition_monitor"}


def test_nothing_but_a_head_is_an_error_that_says_so():
    model = nn.Sequential(nn.Linear(16, 70_000))
    for method in (BasisStability(every_steps=1), ConditionMonitor("*")):
        with pytest.raises(ConfigError, match=r"0.*is left out: 70000x16"):
            attach(model, torch.optim.SGD(model.parameters()), method)


# --- memory ---------------------------------------------------------------------------------------


def test_updates_are_copied_in_turns(monkeypatch):
    monkeypatch.setattr(conditioning, "_ALWAYS_COPIED", 40)
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(5)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, ConditionMonitor("*", every_steps=2))
    assert "each in one of 3 looks" in handle.plan
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
    updates = {}
    for r in handle.records:
        if r["what"] == "update":
            updates.setdefault(r["step"], []).append(r["layer"])
        else:
            assert r["what"] in ("weight", "gradient")
    parts = (["2", "3"], ["4"], ["0", "1"])
    assert [updates[step] for step in (2, 4, 6, 8, 10, 12)] == [*parts, *parts]


def test_the_update_of_a_large_weight_is_read_as_in_float64():
    model = nn.Linear(160, 128, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, ConditionMonitor("weight"))
    before = model.weight.detach().double().clone()
    model.weight.grad = from_spectrum(torch.linspace(1, 0.01, 128), 128, 160).float()
    optimizer.step()
    exact = condition_readings(model.weight.detach().double() - before)
    (record,) = (r for r in handle.records if r["what"] == "update")
    assert record["route"] == "gram"
    assert record["norm"] == pytest.approx(exact.norm.item(), rel=1e-6)
    assert record["condition_range"] == pytest.approx(exact.on_range.item(), rel=1e-4)


def test_a_look_keeps_half_of_a_large_weight_and_its_triangle():
    model = nn.Sequential(nn.Linear(160, 128, bias=False))
    optimizer = torch.optim.SGD(model.parameters())
    handle = attach(model, optimizer, BasisStability(every_steps=1))
    for _ in range(3):
        optimizer.step()
        (look,) = handle.state_dict()["methods"]["basis_stability"]["looks"]
        kept = sum(t.untyped_storage().nbytes() for t in look["0"].values())
        assert kept == 2 * 160 * 128 + 2 * 128 * 129


@pytest.mark.parametrize("lag", [1, 2])
def test_looks_take_the_memory_of_older_ones_and_states_have_their_own(lag):
    model = nn.Linear(160, 128, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def steps(count, handle):
        for _ in range(count):
            model.weight.grad = torch.randn(128, 160, generator=generator(len(handle.records)))
            optimizer.step()
        state = handle.state_dict()["methods"]["basis_stability"]["looks"]
        looks = next(iter(handle._bound.values()))._looks
        return [e["(model)"]["q"] for e in state], {e["(model)"].q.data_ptr() for e in looks}

    first = attach(model, optimizer, BasisStability(every_steps=1, lag=lag))
    held, places = steps(lag, first)
    before = [q.clone() for q in held]
    state = first.state_dict()
    later, places_later = steps(3 * lag, first)
    assert places_later == places
    assert all(map(torch.equal, held, before))
    assert not any(map(torch.equal, held, later))
    first.detach()
    second = attach(model, optimizer, BasisStability(every_steps=1, lag=lag))
    second.load_state_dict(state)
    steps(2 * lag, second)
    again = state["methods"]["basis_stability"]["looks"]
    assert all(torch.equal(e["(model)"]["q"], q) for e, q in zip(again, before, strict=True))


def test_a_look_takes_no_memory_of_fewer_digits():
    weight = torch.randn(160, 160, generator=generator(0), dtype=torch.float64).bfloat16()
    look = look_at(weight)
    again = kept(look, instead_of=nothing_like(weight))
    assert again.r.dtype == look.r.dtype == torch.float32
    assert torch.equal(again.r, look.r)


def test_records_that_nobody_hears_are_not_dropped_in_silence(tmp_path):
    def run(*, listen):
        model = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle = attach(model, optimizer, BasisStability(every_steps=1), records=2)
        if listen:
            JsonlWriter(handle, tmp_path / "run.jsonl")
        for _ in range(5):
            optimizer.step()
        return handle

    with pytest.warns(OrthotrainWarning, match=r"holds its 2 latest records.*JsonlWriter") as said:
        handle = run(listen=False)
    assert len(said) == 1
    assert [r["step"] for r in handle.records] == [4, 5]
    handle = run(listen=True)
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [r["step"] for r in lines if r["kind"] == "stability"] == [1, 2, 3, 4, 5]
    assert any("written to its listeners" in note for note in handle.summary().notes)
