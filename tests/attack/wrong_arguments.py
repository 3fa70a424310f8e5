"""Wrong arguments for every public name, made from its signature, each outcome classed.

A valid call is made first; then one argument at a time is replaced by something wrong. Calls run in
child processes, so a crash or a call that never returns is an outcome like the others::

    python tests/attack/wrong_arguments.py            # all names, prints the table
    python tests/attack/wrong_arguments.py polar      # names that contain the text
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import threading
import types
import typing
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS = 120
PACKAGES = (
    "",
    "linalg",
    "layers",
    "methods",
    "lowrank",
    "diagnostics",
    "disentangle",
    "models",
    "data",
)
CLASSES = ("typed", "accepted", "raw", "silent", "hang", "crash")


@dataclass
class Outcomes:
    """Counts per class, and the calls behind all but the typed and the accepted."""

    counts: Counter[str] = field(default_factory=Counter)
    cases: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    @property
    def typed_share(self) -> float:
        """Typed refusals over all calls that were not accepted."""
        refused = sum(self.counts.values()) - self.counts["accepted"]
        return self.counts["typed"] / max(1, refused)

    def add(self, name: str, case: str, kind: str, detail: str) -> None:
        """Take in one outcome."""
        self.names.add(name)
        self.counts[kind] += 1
        if kind == "accepted":
            self.accepted.append(f"{name} {case}: {detail}")
        elif kind != "typed":
            self.cases.append(f"{kind:7} {name} {case}: {detail}")

    def table(self) -> str:
        """One line per class."""
        lines = [f"{len(self.names)} names, {sum(self.counts.values())} calls"]
        lines += [f"{kind:>9} {self.counts[kind]:6}" for kind in CLASSES]
        return "\n".join([*lines, f"typed refusals {self.typed_share:.1%}"])


# ------------------------------------------------------------------------------ valid calls


def _net() -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def _conv_net() -> Any:
    from torch import nn

    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def _generator() -> Any:
    import torch

    weight = torch.randn(4, 3 * 8 * 8, generator=torch.Generator().manual_seed(0))
    return lambda z: torch.tanh(z @ weight).reshape(len(z), 3, 8, 8)


def _spd(n: int = 4) -> Any:
    import torch

    a = torch.randn(n, 2 * n, generator=torch.Generator().manual_seed(0))
    return a @ a.mT / (2 * n) + 0.1 * torch.eye(n)


def _skew(n: int = 4) -> Any:
    a = _randn(n, n)
    return a - a.mT


def _randn(*shape: int) -> Any:
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _codes() -> dict[str, Any]:
    import torch

    factors = torch.stack([torch.arange(200) % 3, torch.arange(200) // 3 % 4], 1)
    return {"codes": factors.float() + 0.1 * _randn(200, 2), "factors": factors}


def _valid() -> dict[str, Callable[[], dict[str, Any]]]:
    """Arguments of a call that works, by public name; what is left out takes its default."""
    import torch
    from torch import nn

    import orthotrain
    from orthotrain import linalg
    from orthotrain.disentangle import FactorBudget, FeatureSpace
    from orthotrain.methods import Run

    def trained() -> dict[str, Any]:
        model = _net()
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}

    def attached() -> Any:
        return orthotrain.attach(*trained().values(), orthotrain.BasisStability(every_steps=1))

    def saved(path: str) -> str:
        model = orthotrain.compress(_net(), energy=0.9, only_if_cheaper=False)
        orthotrain.save(model, path)
        return path

    pieces = trained()
    run = Run(pieces["model"], pieces["optimizer"])
    # The run holds both weakly.
    vars(run)["kept"] = pieces if hasattr(run, "__dict__") else None
    tmp = Path(os.environ.get("TMPDIR", "/tmp"))
    images = _randn(40, 3, 8, 8).tanh()
    space = FeatureSpace("mean", lambda x: x.flatten(1))
    small_generator = {"generate": _generator(), "latent_dim": 4, "seed": 0}
    return {
        "attach": lambda: trained() | {"*methods": (orthotrain.BasisStability(every_steps=1),)},
        "compress": lambda: {"model": _net(), "energy": 0.9},
        "dense_parameters": lambda: {"model": _net()},
        "follow": lambda: {"model": _net()},
        "frozen_copy": lambda: {"model": _net()},
        "load": lambda: {"model": _net(), "path": saved(str(tmp / "saved.safetensors"))},
        "save": lambda: {"model": _net(), "path": str(tmp / "save.safetensors")},
        "rate_after_cut": lambda: {"peak": 0.1, "steps": 10, "dense_steps": 100},
        "restore_structure": lambda: {"model": _net(), "state_dict": _net().state_dict()},
        "sizes": lambda: trained() | {"shares": [0.8], "train_on": lambda branch: None},
        "teacher_loss": lambda: {
            "logits": _randn(4, 3),
            "teacher_logits": _randn(4, 3),
            "loss": torch.tensor(1.0),
        },
        "AdaptiveLowRank": dict,
        "AdaptiveLowRank.published": lambda: {
            "delay_steps": 5, "every_steps": 5, "rank_rtol": 0.1, "layer_fraction": 0.1,
        },
        "BasisStability": lambda: {"every_steps": 1},
        "ConditionMonitor": lambda: {"params": ["0"]},
        "NearestOrthogonalGradient": lambda: {"params": ["0"]},
        "OptimalLearningRate": lambda: {"params": ["0"]},
        "OrthogonalPenalty": lambda: {"params": ["0"], "weight": 0.1},
        "Retraction": lambda: {"params": ["0"]},
        "SpectralNormalization": lambda: {"params": ["0"]},
        "Energy": lambda: {"share": 0.5},
        "StoredBudget": lambda: {"share": 0.5},
        "Relative": lambda: {"rtol": 0.5},
        "to_dense": lambda: {"model": _net()},
        "to_factored": lambda: {"model": _net()},
        "cayley_transform": lambda: {"a": _skew()},
        "skew_exponential": lambda: {"a": _skew()},
        "conv_exponential": lambda: {
            "x": _randn(1, 2, 5, 5),
            "kernel": _randn(2, 2, 3, 3),
            "terms": 3,
        },
        "conv_skew_part": lambda: {"kernel": _randn(2, 2, 3, 3)},
        "conv_spectral_bound": lambda: {"kernel": _randn(2, 2, 3, 3)},
        "effective_rank": lambda: {"s": _randn(4).abs()},
        "numerical_rank": lambda: {"s": torch.tensor([3.0, 2.0, 1.0]), "rtol": 0.1},
        "basis_stability": lambda: {"before": _randn(4, 3), "after": _randn(4, 3)},
        "basis_stability_from_polar": lambda: {"q_before": _randn(4, 3), "q_after": _randn(4, 3)},
        "mixing_similarity": lambda: {"before": _randn(4, 3), "after": _randn(4, 3)},
        "condition_number": lambda: {"a": _randn(4, 3)},
        "condition_readings": lambda: {"a": _spd(), "symmetric": True},
        "eigh": lambda: {"a": _spd()},
        "svd": lambda: {"a": _randn(4, 3)},
        "thin_svd": lambda: {"a": _randn(4, 3)},
        "polar_factor": lambda: {"a": _randn(4, 3)},
        "skew_part": lambda: {"a": _randn(4, 4)},
        "spd_sqrt": lambda: {"a": _spd()},
        "spd_inv_sqrt": lambda: {"a": _spd()},
        "exponential_remainder": lambda: {"norm": 0.5, "terms": 3},
        "metric_svd": lambda: {"w": _randn(4, 3), "a": _spd(3), "b": _spd(4)},
        "ranks_within_budget": lambda: {
            "spectra": [torch.tensor([2.0, 1.0])] * 2,
            "costs": [lambda r: 4 * r] * 2,
            "budget": 12,
            "min_ranks": [1, 1],
        },
        "truncated": lambda: {
            "decomposition": linalg.metric_svd(_randn(4, 3), a=_spd(3), b=_spd(4)),
            "rank": 2,
        },
        "working_dtype": lambda: {"a": _randn(2, 2)},
        "DecorrelatedBatchNorm1d": lambda: {"num_features": 4},
        "DecorrelatedBatchNorm2d": lambda: {"num_features": 4},
        "DecorrelatedBatchNorm3d": lambda: {"num_features": 4},
        "EigenSubspace": lambda: {"num_basis": 2, "out_shape": (3, 4)},
        "GlobalCovariancePool": lambda: {"in_channels": 3},
        "LowRankLinear": lambda: {"in_features": 6, "out_features": 5, "rank": 2},
        "LowRankConv1d": lambda: {"*args": (4, 4, 3), "rank": 2},
        "LowRankConv2d": lambda: {"*args": (4, 4, 3), "rank": 2},
        "LowRankConv3d": lambda: {"*args": (4, 4, 3), "rank": 2},
        "LowRankMultiheadAttention": lambda: {"embed_dim": 8, "num_heads": 2, "rank": 2},
        "LowRankTransposedLinear": lambda: {"nf": 6, "nx": 5, "rank": 2},
        **{
            f"LowRankConvTranspose{n}d": lambda: {"*args": (4, 4, 3), "rank": 2} for n in (1, 2, 3)
        },
        "LowRankEmbedding": lambda: {"*args": (9, 6), "rank": 2},
        **{
            f"LowRank{kind}": lambda: {"*args": (5, 4), "rank": 2}
            for kind in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
        },
        "LowRankLinear.from_linear": lambda: {"linear": nn.Linear(6, 5)},
        "LowRankConv2d.from_conv": lambda: {"conv": nn.Conv2d(4, 4, 3)},
        "OrthogonalConv2d": lambda: {"in_channels": 3, "out_channels": 4, "kernel_size": 3},
        "break_even_fraction": lambda: {"m": 4, "n": 5},
        "stored_numbers": lambda: {"m": 4, "n": 5, "k": 2},
        "insert_whitening": lambda: {"model": _conv_net(), "after": "0"},
        "orthogonal_weight": lambda: {"module": nn.Linear(4, 3)},
        "find_targets": lambda: {
            "method": "a method",
            "run": run,
            "params": ["0"],
            "reads_gradient": True,
        },
        "optimal_lr": lambda: {"weight": _randn(4, 3), "gradient": _randn(4, 3)},
        "optimal_lr_matrix": lambda: {"weight": _randn(4, 3), "gradient": _randn(4, 3)},
        "select_modules": lambda: {"model": _net(), "patterns": ["0"]},
        "select_parameters": lambda: {"model": _net(), "patterns": ["0"]},
        "unwrap": lambda: {"model": _net()},
        "read_rule": lambda: {"text": "energy=0.9"},
        "Candidate": lambda: {
            "spectrum": torch.tensor([2.0, 1.0]), "cut_energy": (), "ceiling": 2, "m": 4, "n": 4,
            "may_stay_dense": True, "within_reach": True,
        },
        "Budget": dict,
        "ClassifierBudget": dict,
        "FactorBudget": dict,
        "HouseholderProjector": dict,
        "VariationClassifier": lambda: {"factors": 3},
        "FeatureSpace": lambda: {"name": "mean", "function": lambda x: x.flatten(1)},
        "activeness": lambda: small_generator | {"samples": 8},
        "beta_vae_score": lambda: {
            "encode": lambda x: x.flatten(1)[:, :2].float(), "dataset": _Dots(), "seed": 0,
            "train_votes": 8, "evaluation_votes": 8, "batch": 4,
        },
        "factor_vae_score": lambda: {
            "encode": lambda x: x.flatten(1)[:, :2].float(), "dataset": _Dots(), "seed": 0,
            "train_votes": 8, "evaluation_votes": 8, "batch": 4, "variance_samples": 32,
        },
        "chance_level": lambda: _codes()
        | {"score": orthotrain.disentangle.mig, "seed": 0, "repeats": 2},
        "classifier_features": lambda: {
            "images": images, "labels": torch.arange(40) % 2, "seed": 0, "epochs": 1, "width": 4,
            "batch_size": 8,
        },
        "dci": lambda: _codes() | {"model": "random_forest"},
        "mig": _codes,
        "modularity": _codes,
        "mutual_information": _codes,
        "sap": _codes,
        "density_coverage": lambda: {"real": _randn(20, 3), "fake": _randn(20, 3)},
        "precision_recall": lambda: {"real": _randn(20, 3), "fake": _randn(20, 3)},
        "frechet_distance": lambda: {"real": _randn(20, 3), "fake": _randn(20, 3)},
        "kernel_distance": lambda: {"real": _randn(20, 3), "fake": _randn(20, 3)},
        "fidelity": lambda: {
            "real": _randn(40, 3), "fake": _randn(40, 3), "features": "mean", "seed": 0,
            "splits": 2,
        },
        "file_features": lambda: {"path": _scripted(tmp), "name": "file"},
        "hessian_penalty": lambda: {
            "generate": _generator(), "z": _randn(5, 4), "generator": torch.Generator(),
        },
        "orojar": lambda: {
            "generate": _generator(), "z": _randn(5, 4), "generator": torch.Generator(),
        },
        "vp_loss": lambda: {
            "generate": _generator(), "z": _randn(5, 4), "generator": torch.Generator(),
            "classifier": lambda pairs: pairs.flatten(1)[:, :4],
        },
        "householder_directions": lambda: {
            "module": orthotrain.disentangle.householder_projector(nn.Linear(4, 3)),
        },
        "householder_projection": lambda: {"weight": _randn(3, 4)},
        "householder_projector": lambda: {"module": nn.Linear(4, 3)},
        "interventions": lambda: small_generator
        | {"samples": 8, "measure": lambda x: x.flatten(1)[:, :2]},
        "latent_encoder": lambda: small_generator
        | {"steps": 2, "width": 4, "held_out": 8, "batch_size": 8},
        "path_length": lambda: small_generator | {"samples": 8, "space": space},
        "pixel_pca": lambda: {"images": images, "components": 3},
        "random_features": lambda: {"seed": 0, "widths": (4, 4)},
        "random_rotation": lambda: {"dim": 4, "seed": 0},
        "reflection_product": lambda: {"vectors": _randn(4, 2)},
        "rotated": lambda: {"generate": _generator(), "directions": torch.eye(4)},
        "sefa_directions": lambda: {"weight": _randn(5, 4)},
        "signed_images": lambda: {"images": images},
        "slerp": lambda: {"a": _randn(3, 4), "b": _randn(3, 4) + 1, "t": torch.full((3,), 0.5)},
        "traversals": lambda: small_generator,
        "variation_predictability": lambda: small_generator
        | {
            "budget": orthotrain.disentangle.ClassifierBudget(
                pairs=40, epochs=1, width=4, batch_size=8, validation_fraction=0.2,
                train_fraction=0.4,
            ),
        },
        "evaluate": lambda: small_generator
        | {
            "budget": orthotrain.disentangle.Budget(
                latents=8, interventions=8, paths=8, images=40, splits=2, pca_images=20,
                classifier=orthotrain.disentangle.ClassifierBudget(
                    pairs=40, epochs=1, width=4, batch_size=8, validation_fraction=0.2,
                    train_fraction=0.4,
                ),
                factors=FactorBudget(samples=50, train_votes=8, evaluation_votes=8),
            ),
        },
        "Autoformer": lambda: {
            "series": 2, "calendar": 5, "read": 8, "known": 4, "ahead": 4, "width": 8, "heads": 2,
            "window": 3,
        },
        "GPT": lambda: {"vocabulary": 16, "context": 8, "width": 8, "depth": 1, "heads": 2},
        "EigenDiscriminator": lambda: {"size": 16, "base_channels": 2},
        "EigenGenerator": lambda: {
            "size": 16, "noise_dim": 8, "num_basis": 2, "base_channels": 2,
        },
        "LinearGenerator": lambda: {"size": 8},
        "QuadraticCritic": lambda: {"size": 8},
        "MiniViT": lambda: {
            "image_size": 8, "channels": 3, "classes": 2, "patch_size": 4, "width": 8, "depth": 1,
            "heads": 2,
        },
        "ResNet": lambda: {"width": 4, "stem_channels": 4, "classes": 2},
        "SimpleDiscriminator": lambda: {"size": 16},
        "SimpleGenerator": lambda: {"size": 16, "latent_dim": 4},
        "ema_of": lambda: {"model": _net(), "half_life_images": 100.0, "batch_size": 10},
        "Sprites": lambda: {"size": 16},
        "image_set": lambda: {"source": "sprites", "image_size": 16},
        "sprite_moments": lambda: {"images": images.abs()},
        "JsonlWriter": lambda: {"handle": attached(), "path": str(tmp / "records.jsonl")},
        "TensorBoardWriter": lambda: {"handle": attached(), "writer": _Scalars()},
    }  # fmt: skip


class _Scalars:
    """What takes a number by name and step."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        pass


class _Dots:
    """A data set of four factor values and images that show them."""

    factor_sizes = (2, 2)

    def index_of(self, factors: Any) -> Any:
        return factors[..., 0] * 2 + factors[..., 1]

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        import torch

        index = torch.as_tensor(index)
        factors = torch.stack([index // 2, index % 2], -1)
        return factors.float()[..., None, None].expand(*factors.shape, 4, 4), factors


def _scripted(tmp: Path) -> str:
    import torch
    from torch import nn

    path = tmp / "features.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(192, 4))).save(str(path))
    return str(path)


# Forward passes: of which constructor, and a valid input.
FORWARDS: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = {
    "LowRankLinear.forward": ("LowRankLinear", lambda: (_randn(3, 6),)),
    "LowRankConv1d.forward": ("LowRankConv1d", lambda: (_randn(2, 4, 9),)),
    "LowRankConv2d.forward": ("LowRankConv2d", lambda: (_randn(2, 4, 6, 6),)),
    "LowRankConv3d.forward": ("LowRankConv3d", lambda: (_randn(2, 4, 5, 5, 5),)),
    "LowRankTransposedLinear.forward": ("LowRankTransposedLinear", lambda: (_randn(3, 5),)),
    "DecorrelatedBatchNorm1d.forward": ("DecorrelatedBatchNorm1d", lambda: (_randn(16, 4),)),
    "DecorrelatedBatchNorm2d.forward": ("DecorrelatedBatchNorm2d", lambda: (_randn(4, 4, 3, 3),)),
    "DecorrelatedBatchNorm3d.forward": (
        "DecorrelatedBatchNorm3d",
        lambda: (_randn(4, 4, 2, 2, 2),),
    ),
    "GlobalCovariancePool.forward": ("GlobalCovariancePool", lambda: (_randn(2, 3, 4, 4),)),
    "OrthogonalConv2d.forward": ("OrthogonalConv2d", lambda: (_randn(2, 3, 6, 6),)),
    "EigenSubspace.forward": ("EigenSubspace", lambda: (_randn(3, 2),)),
    "Autoformer.forward": ("Autoformer", lambda: (_randn(1, 8, 2), _randn(1, 12, 5))),
    "GPT.forward": ("GPT", lambda: (_randn(1, 8).abs().long(),)),
    "MiniViT.forward": ("MiniViT", lambda: (_randn(2, 3, 8, 8),)),
    "ResNet.forward": ("ResNet", lambda: (_randn(2, 3, 16, 16),)),
    "EigenDiscriminator.forward": ("EigenDiscriminator", lambda: (_randn(2, 3, 16, 16),)),
    "SimpleDiscriminator.forward": ("SimpleDiscriminator", lambda: (_randn(2, 3, 16, 16),)),
    "SimpleGenerator.forward": ("SimpleGenerator", lambda: (_randn(2, 4),)),
    "LinearGenerator.forward": ("LinearGenerator", lambda: (_randn(2, 6),)),
    "QuadraticCritic.forward": ("QuadraticCritic", lambda: (_randn(2, 8),)),
}


def public_names() -> set[str]:
    """What can be called among the public names."""
    import orthotrain

    homes = [getattr(orthotrain, package) if package else orthotrain for package in PACKAGES]
    return {
        name
        for home in homes
        for name in home.__all__
        if callable(getattr(home, name)) and not isinstance(getattr(home, name), types.ModuleType)
    }


def public_calls() -> dict[str, Callable[..., Any]]:
    """Every public function, class and named constructor that has a valid call."""
    import orthotrain

    found: dict[str, Callable[..., Any]] = {}
    for package in PACKAGES:
        home = getattr(orthotrain, package) if package else orthotrain
        for name in home.__all__:
            value = getattr(home, name)
            if callable(value) and not isinstance(value, types.ModuleType):
                found.setdefault(name, value)
    for name in (
        "AdaptiveLowRank.published",
        "LowRankLinear.from_linear",
        "LowRankConv2d.from_conv",
    ):
        owner, method = name.split(".")
        found[name] = getattr(found[owner], method)
    for name, (owner, _) in FORWARDS.items():
        found[name] = found[owner]
    return {name: found[name] for name in found if name in _valid() or name in FORWARDS}


# ----------------------------------------------------------------------------- wrong values

# Refused whatever they stand for: accepting one is silent nonsense. The others may make sense.
NONSENSE = "!"


def _tensors() -> dict[str, Callable[[Any], Any]]:
    import numpy as np
    import torch

    def nan(t: Any) -> Any:
        t = t.clone()
        t.view(-1)[:1] = torch.nan
        return t

    return {
        "!numpy": lambda t: t.numpy(),
        "!list": lambda t: t.tolist(),
        "!string": lambda t: "tensor",
        "!None": lambda t: None,
        "!int": lambda t: 3,
        "!object": lambda t: object(),
        "!type": lambda t: torch.Tensor,
        "!numpy object": lambda t: np.array([None, "x"], dtype=object),
        "!bool tensor": lambda t: t > 0,
        "!complex": lambda t: t.to(torch.complex64),
        "!float8": lambda t: t.to(torch.float8_e4m3fn),
        "!sparse": lambda t: t.to_sparse(),
        "!csr": lambda t: (t if t.ndim == 2 else t.reshape(1, -1)).to_sparse_csr(),
        "!nested": lambda t: torch.nested.nested_tensor([t, t]),
        "!meta": lambda t: t.to("meta"),
        "!quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
        "int tensor": lambda t: t.long(),
        "float tensor": lambda t: t.float(),
        "NaN": lambda t: nan(t) if t.is_floating_point() else nan(t.float()),
        "inf": lambda t: t.float() / 0.0,
        "empty": lambda t: t.new_empty(0),
        "scalar": lambda t: t.new_ones(()),
        "five dimensions": lambda t: t.new_ones(1, 1, 1, 1, 1, 2),
        "transposed": lambda t: t.mT if t.ndim > 1 else t,
        "short": lambda t: t[..., :-1] if t.ndim else t,
    }


def _numbers(kind: type) -> dict[str, Callable[[Any], Any]]:
    import numpy as np
    import torch

    pool: dict[str, Callable[[Any], Any]] = {
        "!string": lambda v: "3",
        "!None": lambda v: None,
        "!NaN": lambda v: float("nan"),
        "!list": lambda v: [3],
        "!complex": lambda v: 1j,
        "!object": lambda v: object(),
        "!array": lambda v: np.ones(3),
        "!tensor": lambda v: torch.tensor([3.0, 1.0]),
        "!bytes": lambda v: b"3",
        "bool": lambda v: True,
        "inf": lambda v: float("inf"),
        "-inf": lambda v: float("-inf"),
        "negative": lambda v: -1000,
        "zero": lambda v: 0,
    }
    if kind is int:
        pool["!1.5"] = lambda v: 1.5
        pool["!inf"] = pool.pop("inf")
        pool["!-inf"] = pool.pop("-inf")
        pool["!bool"] = pool.pop("bool")
    else:
        pool["tiny"] = lambda v: 1e-300
        pool["huge"] = lambda v: 1e300
    return pool


def _others(kind: str) -> dict[str, Callable[[Any], Any]]:
    import numpy as np
    import torch
    from torch import nn

    nothing: dict[str, Callable[[Any], Any]] = {
        "!None": lambda v: None,
        "!object": lambda v: object(),
        "!int": lambda v: 3,
        "!NaN": lambda v: float("nan"),
    }
    more: dict[str, dict[str, Callable[[Any], Any]]] = {
        "bool": {"!string": lambda v: "yes", "!list": lambda v: [], "!array": lambda v: np.ones(2)},
        "str": {"!bytes": lambda v: b"x", "!list": lambda v: ["x"], "empty": lambda v: ""},
        "choice": {
            "!nonsense": lambda v: "nonsense",
            "!list": lambda v: ["auto"],
            "!array": lambda v: np.ones(2),
        },
        "module": {
            "!string": lambda v: "model",
            "!class": lambda v: nn.Linear,
            "!list": lambda v: [v],
            "!tensor": lambda v: torch.ones(2),
            "!function": lambda v: lambda x: x,
        },
        "callable": {"!string": lambda v: "f", "!list": lambda v: [v], "!tensor": torch.ones},
        "sequence": {
            "!object in it": lambda v: [object()],
            "!None in it": lambda v: [None],
            "!NaN in it": lambda v: [float("nan")],
            "!bytes": lambda v: b"xyz",
            "empty": lambda v: [],
        },
        "mapping": {"!list": lambda v: [1], "!string": lambda v: "x"},
        "path": {"!list": lambda v: ["x"], "!missing": lambda v: "/nowhere/at/all/x.pt"},
        "device": {"!string": lambda v: "nonsense", "!list": lambda v: []},
        "any": {"!string": lambda v: "x", "!list": lambda v: [None]},
    }
    del nothing["!int" if kind in ("any", "device") else "!object" if kind == "" else "!NaN"]
    pool = nothing | more[kind]
    if kind == "callable":
        pool["!tensor"] = lambda v: torch.ones(2)
    return pool


def wrong_values(  # noqa: C901 - one line per kind of annotation
    name: str, annotation: Any, value: Any
) -> dict[str, Callable[[Any], Any]]:
    """Wrong values for a parameter, by what its annotation says."""
    import torch

    text = str(annotation)
    pool: dict[str, Callable[[Any], Any]]
    if isinstance(value, torch.Tensor):
        pool = _tensors()
    elif "Callable" in text or "Generate" in text or (callable(value) and "Module" not in text):
        pool = _others("callable")
    elif "Sequence" in text or "Collection" in text or "tuple[" in text or "Iterable" in text:
        pool = _others("sequence")
    elif "Mapping" in text:
        pool = _others("mapping")
    elif "Path" in text:
        pool = _others("path")
    elif "Module" in text:
        pool = _others("module")
    elif name == "device":
        pool = _others("device")
    elif isinstance(value, bool) or text == "<class 'bool'>":
        pool = _others("bool")
    elif "Literal" in text:
        pool = _others("choice")
    elif "float" in text and "dtype" not in text:
        pool = _numbers(float)
    elif "int" in text:
        pool = _numbers(int)
    elif "str" in text:
        pool = _others("str")
    else:
        pool = _others("any")
    if text in ("<class 'inspect._empty'>", "typing.Any") and name != "device":
        return {}
    optional = "None" in text or "Optional" in text
    return {
        case: make
        for case, make in pool.items()
        if not (optional and "None" in case and "in it" not in case)
        and not ("int" in text and "float" in text and case == "!1.5")
        and not ("bool" in text and case in ("!bool", "bool"))
        and "object" not in text
        and not (case == "!int" and any(kind in text for kind in ("int", "float", "Literal[1")))
        and not (case == "!list" and "float" in text and isinstance(value, torch.Tensor))
        # What the model itself refuses, or the caller's own function.
        and not (name in ("data", "held_out") or (name == "z" and case in ("short", "transposed")))
    }


# -------------------------------------------------------------------------------- in a child


def _cases(name: str, call: Callable[..., Any]) -> Iterator[tuple[str, Callable[[], Any], bool]]:
    """(case, what to call, whether accepting it is nonsense) for one public name."""
    if name in FORWARDS:
        owner, make = FORWARDS[name]
        for case, wrong in _tensors().items():
            yield (
                f"x={case}",
                lambda wrong=wrong: call(*_split(owner)[0], **_split(owner)[2]).eval()(
                    wrong(make()[0]), *make()[1:]
                ),
                case[0] == NONSENSE and not (name == "GPT.forward" and case == "float tensor"),
            )
        return
    arguments = _valid()[name]()
    for parameter, (annotation, default) in _parameters(call).items():
        value = arguments.get(parameter, default)
        if parameter.startswith("*") or annotation is inspect.Parameter.empty:
            continue
        for case, wrong in wrong_values(parameter, annotation, value).items():
            yield (
                f"{parameter}={case}",
                lambda p=parameter, w=wrong, v=value: _called(name, call, p, w, v),
                case[0] == NONSENSE,
            )


def _split(name: str) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    arguments = _valid()[name]()
    star = next((v for k, v in arguments.items() if k.startswith("*")), ())
    rest = {k: v for k, v in arguments.items() if not k.startswith("*")}
    return (star, {}, rest)


def _called(name: str, call: Callable[..., Any], parameter: str, wrong: Any, default: Any) -> Any:
    star, _, rest = _split(name)
    value = rest.get(parameter, default)
    rest[parameter] = wrong(value)
    return _with_star(call, star, rest)


def _with_star(call: Callable[..., Any], star: tuple[Any, ...], rest: dict[str, Any]) -> Any:
    """With ``*methods`` behind positional arguments, as ``attach`` takes them."""
    if not star:
        return call(**rest)
    kinds = inspect.signature(call).parameters.values()
    front = [p.name for p in kinds if p.kind is p.POSITIONAL_OR_KEYWORD and p.name in rest]
    return call(*(rest.pop(each) for each in front), *star, **rest)


def _parameters(call: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of every parameter."""
    init: Any = call.__init__ if isinstance(call, type) else call  # type: ignore[misc]
    init = inspect.unwrap(getattr(init, "__func__", init))
    try:
        hints = typing.get_type_hints(init, {**vars(typing), **init.__globals__})
    except Exception:
        hints = dict(getattr(init, "__annotations__", {}))
    return {
        p.name: (hints.get(p.name, p.annotation), p.default)
        for p in inspect.signature(call).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


def _finite(value: Any, depth: int = 0) -> bool:
    """Whether no tensor or number in a result is NaN; infinity may be an answer."""
    import torch

    if isinstance(value, torch.Tensor):
        dense = not value.is_meta and value.is_floating_point() and value.layout is torch.strided
        return not dense or not bool(torch.isnan(value.float()).any())
    if isinstance(value, float):
        return value == value
    if isinstance(value, Mapping):
        return all(_finite(each, depth + 1) for each in value.values())
    if isinstance(value, tuple | list) and depth < 3:
        return all(_finite(each, depth + 1) for each in value)
    return True


def _on_meta(value: Any) -> bool:
    """Whether a result is a shape without values, as asked for."""
    import torch

    return not isinstance(value, torch.Tensor) or value.is_meta


def classed(run: Callable[[], Any], *, nonsense: bool, case: str) -> tuple[str, str]:
    """Class of an outcome, and what was said."""
    from orthotrain.errors import OrthotrainError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = run()
    except OrthotrainError as error:
        return "typed", str(error).replace("\n", " ")[:200]
    except Exception as error:
        text = str(error).strip().replace("\n", " ")[:160]
        return "raw", f"{type(error).__name__}: {text}"
    if nonsense and not (case.endswith("!meta") and _on_meta(result)):
        return "silent", f"accepted, gave a {type(result).__name__}"
    if not _finite(result) and "NaN" not in case and "inf" not in case:
        return "silent", "NaN from finite numbers"
    return "accepted", type(result).__name__


def child(names: Sequence[str], skip: int) -> None:
    """Run all cases of the names but the first ``skip``, and print one JSON line per outcome."""
    import torch

    torch.set_num_threads(1)
    calls, number = public_calls(), 0
    out = os.fdopen(os.dup(1), "w", buffering=1)
    with redirect_stdout(sys.stderr):
        for name in names:
            for case, run, nonsense in _cases(name, calls[name]):
                number += 1
                if number <= skip:
                    continue
                print(json.dumps({"start": number, "name": name, "case": case}), file=out)
                kind, detail = classed(run, nonsense=nonsense, case=case)
                print(json.dumps({"end": number, "kind": kind, "detail": detail}), file=out)


# ------------------------------------------------------------------------------- in the parent


def attack(names: Sequence[str], *, seconds: int = SECONDS) -> Outcomes:
    """Run every case of these names, in as many child processes as it takes."""
    outcomes, done = Outcomes(), 0
    while True:
        started, ended = _one_child(names, done, seconds, outcomes)
        if started is None:
            return outcomes
        if ended == "finished":
            return outcomes
        outcomes.add(started["name"], started["case"], ended, "")
        done = started["start"]


def _one_child(
    names: Sequence[str], skip: int, seconds: int, outcomes: Outcomes
) -> tuple[dict[str, Any] | None, str]:
    command = [sys.executable, str(Path(__file__)), "--child", str(skip), *names]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    hung: list[bool] = []

    def stop() -> None:
        hung.append(True)
        process.kill()

    last: dict[str, Any] | None = None
    open_case = False
    timer = threading.Timer(seconds + 60, stop)
    timer.start()
    for line in process.stdout:
        timer.cancel()
        said = json.loads(line)
        if "start" in said:
            last, open_case = said, True
        else:
            assert last is not None
            open_case = False
            outcomes.add(last["name"], last["case"], said["kind"], said["detail"])
        timer = threading.Timer(seconds, stop)
        timer.start()
    timer.cancel()
    process.stdout.close()
    process.wait()
    if not open_case and process.returncode == 0:
        return last, "finished"
    if last is None:
        raise RuntimeError(f"the child process of {names} ended with {process.returncode}")
    return last, "hang" if hung else "crash"


def main(texts: Sequence[str]) -> None:
    """Attack the names that contain one of the texts, all without one."""
    verbose = "-v" in texts
    texts = [text for text in texts if text != "-v"]
    names = [n for n in sorted(public_calls()) if not texts or any(t in n for t in texts)]
    outcomes = attack(names)
    sys.stdout.write("\n".join(sorted(outcomes.cases)) + "\n")
    if verbose:
        sys.stdout.write("\n".join("accepted " + each for each in outcomes.accepted) + "\n")
    sys.stdout.write(outcomes.table() + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[3:], int(sys.argv[2]))
    else:
        main(sys.argv[1:])
