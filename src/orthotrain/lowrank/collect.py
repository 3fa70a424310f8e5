"""What each layer's inputs and output gradients are like, gathered from ordinary passes."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from orthotrain.errors import NonFiniteError
from orthotrain.linalg import working_dtype
from orthotrain.lowrank.metric import moment_shapes
from orthotrain.lowrank.moments import Moments, Pass
from orthotrain.lowrank.observed_attention import attention_observed
from orthotrain.lowrank.observed_recurrence import recurrence_observed
from orthotrain.lowrank.samples import (
    chosen_samples,
    count_samples,
    input_samples,
    output_samples,
)
from orthotrain.lowrank.sites import Site
from orthotrain.methods.weak_hook import WeakHook

#: Of one call of a layer, at most this many samples are read.
MOST_SAMPLES: Final = 4096
# Where few are wanted: of one call at least so many, and this part of the weight's larger side.
_FEWEST: Final = 128
_PART_OF_SIDE: Final = 4

_Key = tuple[str, int]  # name of a site, and which of its projections


class Collector:
    """Gathers ``A = E[x x^T]`` and ``B = E[g g^T]`` of each site while it is active.

    Samples are tokens of a linear layer and output places of a convolution (patches, each group
    its own). A call is counted when the gradient at its output arrives: a forward pass that
    nothing is learnt from is left out, a layer that is called twice counts twice, and what
    gradient checkpointing computes again counts once.

    All layers share one scale of the loss. ``A`` is a mean over samples. ``B`` is a sum over the
    samples of a pass, because the loss feels the change of a weight at every place where it is
    used.

    Copies of the model carry none of its hooks.

    Args:
        sites: The layers.
        gradients: Whether output gradients are gathered, too.
        wait: Whether a call counts only once a gradient arrives at its output, as it does where
            gradients are gathered. Otherwise every forward pass counts.
        seed: Of the generator that chooses samples where a call has more than are read.
        few: Read of one call 128 samples or a quarter of the weight's larger side, whichever
            is more, so that eight calls show twice as many as that side.
        most: Read of one call at most, where ``few`` is not set.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        *,
        gradients: bool,
        wait: bool = False,
        seed: int = 0,
        few: bool = False,
        most: int = MOST_SAMPLES,
    ) -> None:
        self._sites = list(sites)
        self._gradients = gradients
        self._wait = wait or gradients
        self._most = {
            site.name: max(_FEWEST, max(site.layout.m, site.layout.n) // _PART_OF_SIDE)
            if few
            else most
            for site in sites
        }
        self._generator = torch.Generator().manual_seed(seed)
        self._moments: dict[_Key, Moments] = {}
        self._pass: dict[_Key, Pass] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Gather until the context ends; nothing is left on the model then."""
        with ExitStack() as stack:
            by_attention: dict[nn.Module, dict[int, _Key]] = {}
            recurrent: dict[nn.Module, dict[str, _Key]] = {}
            for site in self._sites:
                for module, weight in site.owners:
                    if isinstance(module, nn.MultiheadAttention):
                        parts = by_attention.setdefault(module, {})
                        parts |= {part: (site.name, i) for i, part in enumerate(_parts(weight))}
                    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
                        recurrent.setdefault(module, {})[weight] = (site.name, 0)
                    else:
                        hook = module.register_forward_hook(
                            _Called(self, (site.name, 0)), with_kwargs=True
                        )
                        stack.callback(hook.remove)
            for module, parts in by_attention.items():
                stack.enter_context(attention_observed(module, _Projected(self, module, parts)))
            for module, keys in recurrent.items():
                seen = partial(self._see, module, keys)
                stack.enter_context(recurrence_observed(module, seen))
            yield

    # --- passes -------------------------------------------------------------------------------

    @property
    def saw_nothing(self) -> bool:
        """Whether no call was counted, in this pass or before."""
        return not self._pass and not self._moments

    @property
    def knows_any(self) -> bool:
        """Whether any pass that was closed had calls."""
        return bool(self._moments)

    def traces_of_pass(self) -> Tensor:
        """Sums over all layers of the traces of this pass's sums: of inputs, of gradients.

        float64, on the CPU. Not finite where an input or a gradient is not. The second one
        carries the scale of the loss, the same for all layers.
        """
        total = torch.zeros(2, dtype=torch.float64)
        for each in self._pass.values():
            for i, side in enumerate((each.a, each.b)):
                if side is not None:
                    total[i] += side.diagonal(dim1=-2, dim2=-1).sum().cpu()
        return total

    def sum_pass(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Add what this pass has shown to other processes, whose sites are the same.

        One projection after the other, so that one of them at a time is there twice.

        Args:
            summed: Gives the sum of a one-dimensional float64 tensor over all processes.
        """
        first = self._sites[0].parameter
        device, dtype = first.device, working_dtype(first)
        for site in self._sites:
            for part, shapes in enumerate(moment_shapes(site)):
                key = (site.name, part)
                mine = self._pass.get(key, Pass())
                flat = [torch.tensor([float(mine.samples)], dtype=torch.float64, device=device)]
                for side, shape in zip((mine.a, mine.b), shapes, strict=True):
                    zero = torch.zeros(math.prod(shape), dtype=torch.float64, device=device)
                    flat.append(zero if side is None else side.double().flatten())
                total = torch.split(summed(torch.cat(flat)), [len(each) for each in flat])
                if samples := int(total[0]):
                    held = self._pass.setdefault(key, Pass())
                    held.samples, held.a = samples, total[1].view(shapes[0]).to(dtype)
                    held.b = total[2].view(shapes[1]).to(dtype) if self._gradients else None

    def end_pass(self, scale: float | None = None) -> None:
        """Close one backward pass, or one step of several.

        Args:
            scale: What this pass's gradients are multiplied by, squared. By default the square
                of the size of the pass: a loss that is a mean over a smaller last batch counts
                no more than its examples do.
        """
        if scale is None:
            scale = float(max((each.samples for each in self._pass.values()), default=0)) ** 2
        for key, each in self._pass.items():
            each.end(self._moments.setdefault(key, Moments()), scale)
        self._pass.clear()

    def drop_pass(self) -> None:
        """Forget what this pass has added."""
        self._pass.clear()

    def forget(self, name: str) -> None:
        """Forget all that was seen of one site."""
        for known in (self._pass, self._moments):
            for key in [key for key in known if key[0] == name]:
                del known[key]

    def moments(self, site: Site) -> list[Moments]:
        """One for each projection that was seen; most sites have one projection.

        Raises:
            NonFiniteError: An input or a gradient held NaN or infinity; the layer is named.
        """
        found = [
            m for (name, _), m in sorted(self._moments.items(), key=_by_key) if name == site.name
        ]
        for moments in found:
            for what, value in (("inputs", moments.a), ("output gradients", moments.b)):
                if value is not None and not bool(torch.isfinite(value).all()):
                    raise NonFiniteError(
                        f"the {what} of {site.name} hold NaN or infinity, or overflow when "
                        "squared; finite ones are needed. Check the data and the loss, or run in "
                        "float32 or bfloat16"
                    )
        return found

    # --- state --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What is known after the last pass that was closed, and the generator; copies."""
        known = [
            {"site": name, "part": part, "a": m.a, "a_samples": m.a_samples, "b": m.b}
            for (name, part), m in sorted(self._moments.items(), key=_by_key)
        ]
        return {"moments": _copied(known), "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave; what was seen of other layers is forgotten."""
        devices = {site.name: site.parameter.device for site in self._sites}
        self._moments = {
            (each["site"], each["part"]): Moments(
                _on(each["a"], devices[each["site"]]),
                each["a_samples"],
                _on(each["b"], devices[each["site"]]),
            )
            for each in state["moments"]
            if each["site"] in devices
        }
        self._pass.clear()
        self._generator.set_state(state["generator"].cpu())

    # --- what the hooks call ------------------------------------------------------------------

    def _see(
        self, module: nn.Module, keys: Mapping[str, _Key], weight: str, x: Tensor, y: Tensor
    ) -> None:
        if weight in keys:
            self.take(keys[weight], module, x, y)

    @torch.no_grad()
    def take(self, key: _Key, module: nn.Module, x: Tensor, output: Tensor) -> None:
        """Read the input now, and count it now or with the gradient that comes later."""
        count = count_samples(module, output)
        if count == 0 or (self._wait and not output.requires_grad):
            return
        blocks = module.groups if isinstance(module, nn.modules.conv._ConvNd) else 1
        words = module.num_embeddings if isinstance(module, nn.Embedding) else 0
        index = chosen_samples(count, self._most[key[0]], self._generator)
        rows = input_samples(module, x.detach(), output, index)
        if not self._wait:
            self._pass.setdefault(key, Pass()).add(rows, None, count, blocks, words=words)
            return

        @torch.no_grad()
        def arrived(gradient: Tensor) -> None:
            g = output_samples(module, gradient, index) if self._gradients else None
            self._pass.setdefault(key, Pass()).add(rows, g, count, blocks, words=words)

        output.register_hook(arrived)  # type: ignore[no-untyped-call]


class _Called(WeakHook[Collector]):
    """Shows a collector each call of a module."""

    def __init__(self, owner: Collector | None = None, key: _Key = ("", 0)) -> None:
        super().__init__(owner)
        self._key = key

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        # No graph holds it: a compiled forward runs uncompiled where it has to be seen.
        if not torch.compiler.is_compiling() and (collector := self.owner) is not None:
            x = args[0] if args else next(iter(kwargs.values()))
            collector.take(self._key, module, x, output)


class _Projected(WeakHook[Collector]):
    """Shows a collector each projection of an attention layer."""

    def __init__(
        self,
        owner: Collector | None = None,
        module: nn.Module | None = None,
        parts: Mapping[int, _Key] | None = None,
    ) -> None:
        super().__init__(owner)
        self._module = None if module is None else weakref.ref(module)
        self._parts = parts or {}

    def __call__(self, part: int, x: Tensor, y: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        module = None if self._module is None else self._module()
        if (collector := self.owner) is not None and module is not None and part in self._parts:
            collector.take(self._parts[part], module, x, y)


def _parts(weight: str) -> Sequence[int]:
    """Which of query, key and value a weight of attention projects."""
    return {"q_proj_weight": (0,), "k_proj_weight": (1,), "v_proj_weight": (2,)}.get(
        weight, (0, 1, 2)
    )


def _by_key(entry: tuple[_Key, Moments]) -> _Key:
    return entry[0]


def _on(x: Tensor | None, device: torch.device) -> Tensor | None:
    return None if x is None else x.to(device, copy=True)


def _copied(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: v.clone() if isinstance(v, Tensor) else v for key, v in entry.items()}
        for entry in entries
    ]
