"""One door for arguments: every public name has it, and it says what is wrong and what to try."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor, nn

import orthotrain
from orthotrain import disentangle, layers, linalg
from orthotrain._doors import checked, kind_of
from orthotrain.errors import ConfigError

pytestmark = pytest.mark.bad_input

PACKAGES = (
    "linalg", "layers", "methods", "lowrank", "diagnostics", "disentangle", "models", "data",
)  # fmt: skip
# Bases that users derive from, what the library hands out itself, and two doors of their own kind.
NO_DOOR = {
    "Bound", "Branch", "ChanceLevel", "CompressedLayer", "Compression", "ConditionReadings",
    "ConvSpectralBound", "DciScore", "DensityCoverage", "Evaluation", "FactorDataset",
    "FactorVaeScore", "Fidelity", "GradientMethod", "Handle", "ImageSet", "Interventions",
    "LatentEncoder", "LayerRule", "Method", "MetricSVD", "PathLength", "Phase",
    "PrecisionRecall", "RankRule", "RotatedGenerator", "Row", "Run", "Score", "Sizes",
    "SpriteMoments", "Summary", "Target",
    "Total", "VariationPredictability", "VoteScore", "WeightMethod", "attach", "pixel_features",
}  # fmt: skip


def public() -> dict[str, Any]:
    homes = [orthotrain, *(getattr(orthotrain, name) for name in PACKAGES)]
    found = {name: getattr(home, name) for home in homes for name in home.__all__}
    callables = (type, types.FunctionType)
    return {name: value for name, value in found.items() if isinstance(value, callables)}


def is_door(value: Any) -> bool:
    return getattr(getattr(value, "__code__", None), "co_name", "") == "held"


def test_every_public_name_has_a_door():
    without = set()
    for name, value in public().items():
        door = value.__init__ if inspect.isclass(value) else value
        door = inspect.unwrap(door, stop=is_door)  # polar_factor has a lean way in front of it
        if not is_door(door):
            without.add(name)
    assert without == NO_DOOR & set(public())


TENSOR = torch.ones(2, 2)
NESTED = torch.nested.nested_tensor([TENSOR], layout=torch.jagged)
KINDS: list[tuple[Any, list[Any], list[Any]]] = [
    (Float[Tensor, "m n"], [TENSOR, TENSOR.half(), TENSOR.to("meta")],
     [None, "x", TENSOR.numpy(), [[1.0]], TENSOR.long(), TENSOR > 0, TENSOR.to(torch.complex64),
      TENSOR.to(torch.float8_e4m3fn), TENSOR.to_sparse(),
      NESTED, Tensor]),
    (Float[Tensor, ""] | float, [TENSOR, 1.0, 2], ["x", None, float("nan"), True]),
    (Integer[Tensor, "n"], [TENSOR.long(), TENSOR.byte()], [TENSOR, TENSOR > 0, 3]),
    (Int64[Tensor, "n"], [TENSOR.long()], [TENSOR, TENSOR.int()]),
    (Bool[Tensor, "n"], [TENSOR > 0], [TENSOR]),
    (int, [3, -1, np.int64(3)], [True, 1.5, 3.0, float("nan"), float("inf"), "3", None, [3]]),
    (float, [3, 0.5, np.float32(0.5), float("inf")], [float("nan"), True, "1", None, 1j, TENSOR]),
    (bool, [True, False], [1, 0, None, "yes", np.ones(2)]),
    (str, ["x", ""], [b"x", 3, None, Path("x")]),
    (int | None, [None, 3], [1.5, "x"]),
    (Literal["a", 1], ["a", 1], ["b", True, None, 1.0, np.ones(2), ["a"]]),
    (Sequence[int], [[1], (1, 2), []], ["12", 3, [1.5], [None], np.ones(2), TENSOR]),
    (Collection[str], [["a"], ("a",), {"a"}, frozenset("a"), set()],
     ["a", b"a", 3, None, {1}, [1], {"a": 1}]),
    (Mapping[str, int], [{"a": 1}], [[1], None, "x"]),
    (Callable[[int], int], [len, nn.ReLU()], ["f", None, 3]),
    (nn.Module, [nn.ReLU()], [nn.ReLU, "model", None, TENSOR]),
    (torch.device | str | None, [None, "cpu", torch.device("cpu")], ["nonsense", 1.5, []]),
    (torch.dtype | None, [None, torch.float32], ["float32", float]),
]  # fmt: skip


@pytest.mark.parametrize(("hint", "right", "wrong"), KINDS, ids=[str(k[0])[:40] for k in KINDS])
def test_what_an_annotation_takes(hint, right, wrong):
    kind = kind_of(hint)
    assert kind is not None
    assert all(kind.holds(value) for value in right)
    assert not any(kind.holds(value) for value in wrong)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: linalg.svd(np.ones((2, 2))), r"svd needs a .*numpy.ndarray; .*as_tensor\(a\)"),
        (lambda: linalg.svd([TENSOR]), r"got a list; make one with torch.tensor"),
        (lambda: linalg.svd(None), "got None; give a a value"),
        (lambda: linalg.svd(TENSOR.long()), r"dtype torch.int64; .*a.to\(torch.float32\)"),
        (lambda: linalg.svd(TENSOR.to_sparse()), r"sparse .*a.to_dense\(\)"),
        (lambda: linalg.svd(NESTED), "nested .*to_padded_tensor"),
        (lambda: linalg.svd(TENSOR.to("meta")), "meta device.*to_empty"),
        (lambda: linalg.polar_factor(TENSOR, method="SVD"), "one of auto, svd, .*got 'SVD'"),
        (lambda: layers.LowRankLinear(8, 4, rank=None), "rank to be a whole number, got None"),
        (lambda: layers.LowRankLinear(8, 4, rank=1.5), r"rank .*got 1.5; .*int\(...\)"),
        (lambda: layers.LowRankLinear(8, 4, rank=2, device="gpu"), "device to be a device"),
        (lambda: orthotrain.AdaptiveLowRank(rank=None), r"got none; .*rank=Relative\(...\)"),
        (lambda: orthotrain.compress("model", energy=0.5), "model to be a Module, got 'model'"),
        (lambda: orthotrain.compress(nn.ReLU, energy=0.5), "got the class ReLU"),
        (lambda: orthotrain.OrthogonalPenalty("0", weight=-1000), "weight .*above 0, got -1000"),
        (lambda: orthotrain.ConditionMonitor("0", every_steps=1.5), "every_steps"),
        (lambda: linalg.ranks_within_budget([TENSOR[0], 3], costs=[], budget=1, min_ranks=[]),
         r"spectra\[1\] to be a torch tensor, got 3"),
        (lambda: layers.LowRankMultiheadAttention(8, 3), "a multiple of num_heads, got 8 and 3"),
        (lambda: layers.LowRankMultiheadAttention("8", 2), "embed_dim .*got .8."),
        (lambda: layers.LowRankMultiheadAttention(8, 2, rank="x"), "rank .*got 'x'"),
        (lambda: layers.LowRankTransposedLinear("8", 6), "nf .*got '8'"),
        (lambda: layers.LowRankTransposedLinear(8, -6), "nx .*got -6"),
        (lambda: layers.LowRankConv2d(4, 6, 3, groups=4, rank=1), "that one says: .*divisible"),
        (lambda: layers.OrthogonalConv2d(3, 4, 3, max_norm=50), "max_norm below 2.7, got 50"),
    ],
)  # fmt: skip
def test_what_was_given_what_is_needed_what_to_try(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


@pytest.mark.parametrize("name", ["hessian_penalty", "orojar"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("step", [1e-30, 1e-17, 0.0, -1.0, 1e30, float("nan"), float("inf")])
def test_a_penalty_with_a_step_of_rounding_is_refused(name, dtype, step):
    z = torch.ones(3, 2, dtype=dtype)
    with pytest.raises(ConfigError, match=r"step"):
        getattr(disentangle, name)(torch.sin, z, generator=torch.Generator(), step=step)


@pytest.mark.parametrize("kernel", [linalg.skew_exponential, linalg.cayley_transform])
def test_a_rotation_by_more_radians_than_rounding_leaves_is_refused(kernel):
    a = torch.tensor([[0.0, 1.0, 2.0], [-1.0, 0.0, 3.0], [-2.0, -3.0, 0.0]], dtype=torch.float64)
    a = a / a.norm()
    unit = torch.eye(3, dtype=torch.float64)
    for size in (1.0, 1e3, 6e7):
        q = kernel(a * size)
        assert (q @ q.mT - unit).abs().max() < 1e-16 * max(100, 10 * size)
    for size in (1e8, 1e15, 1e18, 1e30, 1e200):
        with pytest.raises(ConfigError, match=r"norm up to 6.7e\+07"):
            kernel(a * size)


def unit(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_slerp_without_a_direction_is_refused():
    t = torch.tensor(0.5)
    for a, b in ((unit(0, 0), unit(1, 0)), (unit(1, 0), unit(0, 0))):
        with pytest.raises(ConfigError, match="not zero"):
            disentangle.slerp(a, b, t)
    with pytest.raises(ConfigError, match="not opposite"):
        disentangle.slerp(unit(1, 2), unit(-3, -6), t)


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1.0, 1e22, 1e30])
def test_slerp_of_vectors_whose_squares_leave_the_dtype(size):
    found = disentangle.slerp(unit(2 * size, 0), unit(0, 4 * size), torch.tensor(0.5))
    torch.testing.assert_close(found / size, unit(3, 3) / 2**0.5)


def test_reflections_of_a_zero_vector_are_refused_and_of_a_tiny_one_exact():
    vectors = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]])
    with pytest.raises(ConfigError, match="zero column"):
        disentangle.reflection_product(vectors * torch.tensor([1.0, 0.0]))
    expected = disentangle.reflection_product(vectors)
    for size in (1e-30, 1e30):
        torch.testing.assert_close(disentangle.reflection_product(vectors * size), expected)


def test_a_door_keeps_name_signature_and_defaults():
    assert linalg.svd.__name__ == "svd"
    assert list(inspect.signature(linalg.svd).parameters) == ["a", "gradient", "drop_last"]
    assert inspect.signature(layers.LowRankLinear).parameters["rank"].kind.name == "KEYWORD_ONLY"


def test_a_door_stands_open_while_a_graph_is_traced():
    seen = []

    @checked
    def double(a: Float[Tensor, "*batch n"]) -> Tensor:
        seen.append(torch.compiler.is_compiling())
        return 2 * a

    compiled = torch.compile(double, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(torch.ones(3)), torch.full((3,), 2.0))
    with pytest.raises(ConfigError, match="double needs a"):
        double("x")
    torch.testing.assert_close(torch.vmap(double)(torch.ones(2, 3)), torch.full((2, 3), 2.0))
