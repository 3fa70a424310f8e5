"""Which tensors of a state dict are weights that can be held low-rank, and why others cannot.

There is no network, so names and shapes tell what a weight belongs to. What they do not tell: the
groups of a convolution, whether a convolution without bias is a transposed one, and whether a
matrix without bias belongs to a linear layer or an embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from orthotrain._checks import is_dense, require_finite
from orthotrain.layers import Bases, stored_numbers
from orthotrain.layers._factor_names import pair_name
from orthotrain.layers._factors import LowRankModule
from orthotrain.linalg.decompose import leading_factors, singular_values_by_gram, thin_svd
from orthotrain.linalg.factor_pair import balanced_pair, halves, orthonormal_form
from orthotrain.linalg.matrices import WeightLayout, stored_layout, weight_layout
from orthotrain.lowrank.no_form import COMPUTED, KINDS, acts_on_rows
from orthotrain.lowrank.rank_rule import Candidate
from orthotrain.lowrank.sites import CONV_RANK_MULTIPLE, too_thin
from orthotrain.lowrank.storage import StoredLayout

#: Why a tensor with fewer than two dimensions is left.
VECTOR: Final = "bias, norm or other vector"

_ATTENTION: Final = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_COMPUTED: Final = re.compile(r"(.*\.)?(parametrizations\..*|weight_(g|v|u|orig|mask))")
_RECURRENT: Final = re.compile(r"weight_(ih|hh|hr)(_l\d+(_reverse)?)?")
_EMBEDDING: Final = re.compile(
    r"(.*_)?(emb|embed|embedding|embeddings|embedder|wte|wpe|shared)(_.*)?"
    r"|tokens?|positions?|vocab|vocabulary|lookup|relative_attention_bias"
)


@dataclass(frozen=True)
class LeftOut:
    """A tensor that stays as it is, and why.

    Attributes:
        name: In the state dict.
        shape: Its shape.
        dtype: Its dtype, such as ``"float32"``.
        numbers: How many it holds; 0 where another name of it is counted.
        bytes: Of these numbers.
        reason: Why.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    numbers: int
    bytes: int
    reason: str


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """A weight of a state dict that is, or can be, held in factors.

    Attributes:
        key: Name of its tensor: of the dense weight, the pair or the core.
        kind: What it belongs to, as far as that can be told, such as ``"linear"``.
        layout: How the dense weight is read as matrices.
        held: ``(weight,)``, ``(pair,)``, or ``(u, core, vh)``.
        form: Which of these.
        aliases: Other names of the same weight, of its pair or of its core.
        multiple: Ranks are rounded up to a multiple of this.
        stays: Why it is not cut unless a setting asks for it; empty where it may be.
    """

    key: str
    kind: str
    layout: WeightLayout
    held: tuple[Tensor, ...]
    form: Literal["dense", "pair", "core"] = "dense"
    aliases: tuple[str, ...] = ()
    multiple: int = 1
    stays: str = ""

    @property
    def name(self) -> str:
        """The layer's name: without ``.weight``, ``.pair`` or ``.core``."""
        stem = re.sub(r"(^|[._])(weight|pair|core)$", "", self.key)
        return stem or self.key

    @property
    def rank(self) -> int:
        """Its rank; the full one while it is dense."""
        if self.form == "dense":
            return self.layout.full_rank
        return self.held[0].shape[-2] if self.form == "pair" else self.held[1].shape[-1]

    @property
    def finite(self) -> bool:
        """Whether none of its numbers is NaN or infinite."""
        return all(bool(tensor.isfinite().all()) for tensor in self.held)

    @property
    def dense_numbers(self) -> int:
        """Numbers of the dense weight."""
        return self.layout.blocks * self.layout.m * self.layout.n

    @property
    def stored(self) -> int:
        """Numbers that hold it now."""
        return sum(tensor.numel() for tensor in self.held)

    @property
    def bases(self) -> Bases:
        """The form of its factors, also of those that it would get."""
        return "frozen" if self.form == "core" else "trained"

    def stored_at(self, rank: int) -> int:
        """Numbers of its factors at a rank; of a dense weight, those of two factors."""
        m, n = self.layout.m, self.layout.n
        return self.layout.blocks * stored_numbers(m, n, rank, bases=self.bases)

    def bytes_at(self, rank: int | None) -> int:
        """Bytes of its factors at a rank; None is what holds it now."""
        numbers = self.stored if rank is None else self.stored_at(rank)
        return numbers * self.held[0].element_size()

    @property
    def break_even_rank(self) -> int:
        """The largest rank at which factors hold fewer numbers than the dense weight; may be 0."""
        ranks = range(self.layout.full_rank, 0, -1)
        return next((k for k in ranks if self.stored_at(k) < self.dense_numbers), 0)

    def spectrum(self, function: str) -> Tensor:
        """``(blocks, r)`` singular values from large to small, in float64.

        Raises:
            NonFiniteError: It holds NaN or infinity; the message names the tensor.
        """
        for tensor in self.held:
            require_finite(function, self.key, tensor)
        if self.form == "dense":
            return singular_values_by_gram(self.layout.matrices(self.held[0]))
        core = self._orthonormal()[1]
        return thin_svd(core.reshape(-1, *core.shape[-2:]))[1]

    def factors(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """``p, s, qh`` of its best approximation of a rank, in float64."""
        if self.form == "dense":
            return leading_factors(self.layout.matrix(self.held[0]), rank)
        u, core, vh = self._orthonormal()
        p, s, qh = thin_svd(core)
        return u @ p[..., :rank], s[..., :rank], qh[..., :rank, :] @ vh

    def candidate(self, spectrum: Tensor, *, only_if_cheaper: bool) -> Candidate:
        """What a rank rule is told of it."""
        return Candidate(
            spectrum=spectrum, cut_energy=(), ceiling=self.rank, m=self.layout.m, n=self.layout.n,
            may_stay_dense=only_if_cheaper and self.form == "dense", within_reach=True,
            multiple=self.multiple, bases=self.bases,
            name=self.name,
        )  # fmt: skip

    def cut(self, rank: int) -> dict[str, Tensor]:
        """Tensors of its factors at a rank, under the names that ``save`` gives them."""
        p, s, qh = self.factors(rank)
        if self.form == "core":
            stem = self.key.removesuffix("core")
            values = {"u": p, "core": torch.diag_embed(s), "vh": qh}
            return {stem + name: value.to(self.held[1].dtype) for name, value in values.items()}
        return {self.pair_keys()[0]: balanced_pair(p, s, qh).to(self.held[0].dtype)}

    def pair_keys(self) -> tuple[str, ...]:
        """Names of its pair under each of its names."""
        keys = (self.key, *self.aliases)
        return keys if self.form == "pair" else tuple(pair_key(key) for key in keys)

    def approximation(self, rank: int) -> Tensor:
        """The dense weight at a rank, in its own shape and dtype; only while it is dense."""
        p, s, qh = self.factors(rank)
        return self.layout.tensor((p * s.unsqueeze(-2)) @ qh).to(self.held[0].dtype).contiguous()

    def _orthonormal(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.form == "pair":
            return orthonormal_form(*halves(self.held[0], self.layout.m))
        u, core, vh = (tensor.double() for tensor in self.held)
        return u, core, vh


def pair_key(key: str) -> str:
    """Name of the pair of a weight with this name: ``a.weight`` gives ``a.pair``."""
    stem, dot, last = key.rpartition(".")
    return f"{stem}{dot}{pair_name(last)}"


@dataclass(frozen=True)
class Reader:
    """Reads one state dict.

    Attributes:
        tensors: By name.
        layouts: How dense weights that are held in factors were read, where that is known.
        owners: Modules by name, where the network is known.
        also: Kinds on request that are wanted.
        max_aspect: A weight whose larger side is this many times the smaller stays dense.
    """

    tensors: Mapping[str, Tensor]
    layouts: Mapping[str, StoredLayout]
    owners: Mapping[str, nn.Module]
    also: Sequence[str]
    max_aspect: float

    def look(self, key: str) -> StoredWeight | str:
        """The weight that a tensor is, or why it is none."""
        tensor = self.tensors[key]
        if tensor.ndim < 2:
            return VECTOR
        if not is_dense(tensor) or tensor.is_meta:
            return _no_numbers(tensor)
        if tensor.numel() == 0:
            return "empty"
        last = key.rpartition(".")[2].rpartition("_")[2]
        if last in ("core", "u", "vh") and (weight := self._of_core(key, last)) is not None:
            return weight
        if last == "pair" and tensor.ndim in (2, 3):
            return self._of_pair(key, tensor)
        return self._of_dense(key, tensor)

    def _of_dense(self, key: str, tensor: Tensor) -> StoredWeight | str:
        stem, _, last = key.rpartition(".")
        shape = tuple(tensor.shape)
        if _COMPUTED.fullmatch(key):
            return COMPUTED
        recurrent = _RECURRENT.fullmatch(last)
        named = last == "weight" or last in _ATTENTION or recurrent
        if not named or (tensor.ndim > 2 and last != "weight") or tensor.ndim > 5:
            return f"not the weight of a layer, by its name ({last}) and shape"
        bias = self.tensors.get(f"{stem}.bias" if stem else "bias")
        bias = bias if bias is not None and bias.ndim == 1 else None
        owner = self.owners.get(stem)
        if owner is not None and (reason := acts_on_rows(owner)) is not None:
            return reason
        layout = weight_layout(owner, last, shape) if owner else stored_layout(key, shape, bias)
        kind = self._kind(key, layout, bias is not None, owner)
        if kind == "embedding":
            layout = WeightLayout.of_inputs_first(shape)
        if kind == "conv" and shape[1] == 1 and shape[0] > 1:
            return "depthwise convolution, or one input channel: nothing to factor"
        if layout.full_rank == 1:
            return "a single row or column: nothing to factor"
        if kind in KINDS:  # on request, and then whatever the shape
            stays = "" if kind in self.also else f"{_NAMES[kind]}, cut on request: also {kind}"
        else:
            stays = too_thin(layout, self.max_aspect) or ""
        multiple = CONV_RANK_MULTIPLE if kind in ("conv", "transposed") else 1
        return StoredWeight(key, kind, layout, (tensor,), multiple=multiple, stays=stays)

    def _kind(self, key: str, layout: WeightLayout, bias: bool, owner: nn.Module | None) -> str:
        stem, _, last = key.rpartition(".")
        if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
            return "embedding"
        if _RECURRENT.fullmatch(last):
            return self._gates(key)
        if last in _ATTENTION:
            return "attention"
        if len(layout.shape) > 2:
            transposed = isinstance(owner, _ConvTransposeNd) or layout.inputs_first
            return "transposed" if transposed else "conv"
        words = stem.split(".")[-2:]
        if (
            owner is None
            and not bias
            and any(map(_EMBEDDING.fullmatch, map(str.lower, words[-1:])))
        ):
            return "embedding"
        return "linear"

    def _gates(self, key: str) -> str:
        """Which recurrent layer, by how many gates of the hidden size its rows hold."""
        hidden = self.tensors.get(re.sub(r"weight_(ih|hr)", "weight_hh", key))
        projected = self.tensors.get(re.sub(r"weight_(ih|hh)", "weight_hr", key))
        if hidden is None or hidden.ndim != 2:
            return "rnn"
        width = hidden.shape[1] if projected is None else projected.shape[1]
        return {4: "lstm", 3: "gru"}.get(hidden.shape[0] // width if width else 0, "rnn")

    def _of_core(self, key: str, last: str) -> StoredWeight | str | None:
        """A weight between two bases, found by its core."""
        stem = key.removesuffix(last)
        names = [stem + part for part in ("u", "core", "vh")]
        if not all(name in self.tensors for name in names):
            return None
        if last != "core":
            return FACTOR
        u, core, vh = held = tuple(self.tensors[name] for name in names)
        blocks, m, n = core.shape[:-2].numel(), u.shape[-2], vh.shape[-1]
        if not u.shape[-1] == core.shape[-1] == core.shape[-2] == vh.shape[-2]:
            return f"its factors do not fit each other: {[tuple(t.shape) for t in held]}"
        layout = WeightLayout((blocks * m, n), blocks, m, n)
        return StoredWeight(key, "low-rank", layout, held, "core")

    def _of_pair(self, key: str, pair: Tensor) -> StoredWeight | str:
        stem, _, last = key.rpartition(".")
        blocks, both = pair.shape[:-2].numel(), pair.shape[-1]
        prefix = key.removesuffix("pair")
        owner, bias, m = self.owners.get(stem), self.tensors.get(f"{prefix}bias"), 0
        if isinstance(owner, LowRankModule):
            m = owner.layout_of_pair(last).m
        elif key in self.layouts:
            m = self.layouts[key].m
        elif bias is not None:
            m = bias.numel() // blocks
        if not 0 < m < both:
            return "low-rank already; where its two factors part, the model alone can tell"
        layout = WeightLayout((blocks * m, both - m), blocks, m, both - m)
        return StoredWeight(key, "low-rank", layout, (pair,), "pair")


FACTOR: Final = "part of a low-rank weight"
_NAMES: Final = {
    "embedding": "an embedding by its name",
    "gru": "weight of a GRU",
    "lstm": "weight of an LSTM",
    "rnn": "weight of a recurrent layer",
    "transposed": "transposed convolution",
}


def dtype_name(tensor: Tensor) -> str:
    """Its dtype without torch's prefix, such as ``"float32"``."""
    return str(tensor.dtype).removeprefix("torch.")


def _no_numbers(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "on the meta device: no values"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return "sparse or nested"
    kind = dtype_name(tensor)
    if tensor.dtype in (torch.bool, torch.int64) or tensor.is_complex():
        return f"{kind} numbers: no weight"
    return f"{kind} numbers: quantized weights, or counts"
