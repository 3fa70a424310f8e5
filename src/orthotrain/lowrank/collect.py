"""What each layer's inputs and output gradients are like, gathered from ordinary passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from orthotrain.errors import NonFiniteError
from orthotrain.linalg import working_dtype
from orthotrain.linalg.channel_covariance import channel_covariance
from orthotrain.lowrank.observed_attention import attention_observed
from orthotrain.lowrank.samples import (
    chosen_samples,
    count_samples,
    input_samples,
    output_samples,
)
from orthotrain.lowrank.sites import Site

#: Of one call of a layer, at most this many samples are read.
MOST_SAMPLES: Final = 4096

_Key = tuple[str, int]  # name of a site, and which of its projections


@dataclass
class Moments:
    """Second moments of one layer, or of one projection of attention.

    Attributes:
        a: ``(blocks, n, n)``, mean of ``x x^T`` over the samples of the inputs; None before any.
        a_samples: How many samples that is.
        b: ``(blocks, m, m)``, sum of ``g g^T`` over the samples of a pass, as a mean over passes;
            None before any.
        b_pass: What the present pass has added so far.
        b_samples: Of how many samples.
    """

    a: Tensor | None = None
    a_samples: int = 0
    b: Tensor | None = None
    b_pass: Tensor | None = None
    b_samples: int = 0

    def add_inputs(self, x: Tensor, count: int, blocks: int) -> None:
        """Samples ``(s, blocks * n)`` that stand for ``count`` of them."""
        seen = _second_moment(x, blocks)
        total = self.a_samples + count
        self.a = seen if self.a is None else torch.lerp(self.a, seen, count / total)
        self.a_samples = total

    def add_gradients(self, g: Tensor, count: int, blocks: int) -> None:
        """Samples ``(s, blocks * m)`` that stand for ``count`` of them."""
        seen = _second_moment(g, blocks) * count
        self.b_pass = seen if self.b_pass is None else self.b_pass + seen
        self.b_samples += count

    def end_pass(self, scale: float) -> None:
        """Take what the pass has added, times ``scale``."""
        if self.b_pass is not None:
            seen = self.b_pass * scale
            self.b = seen if self.b is None else self.b + seen
        self.b_pass, self.b_samples = None, 0


class Collector:
    """Gathers ``A = E[x x^T]`` and ``B = E[g g^T]`` of each site while it is active.

    Samples are tokens of a linear layer and output places of a convolution (patches, each group
    its own). A call is counted when the gradient at its output arrives: a forward pass that
    nothing is learnt from is left out, a layer that is called twice counts twice, and what
    gradient checkpointing computes again counts once.

    All layers share one scale of the loss. ``A`` is a mean over samples. ``B`` is a sum over the
    samples of a pass, because the loss feels the change of a weight at every place where it is
    used. Each pass is weighted by the square of its size, so that a loss that is a mean over a
    smaller last batch counts no more than its examples do.

    Args:
        sites: The layers.
        gradients: Whether output gradients are gathered, too. Otherwise every forward pass
            counts.
        seed: Of the generator that chooses samples where a call has more than ``most``.
        most: Samples read of one call.
    """

    def __init__(
        self, sites: Sequence[Site], *, gradients: bool, seed: int = 0, most: int = MOST_SAMPLES
    ) -> None:
        self._sites = list(sites)
        self._gradients = gradients
        self._most = most
        self._generator = torch.Generator().manual_seed(seed)
        self._moments: dict[_Key, Moments] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Gather until the context ends; nothing is left on the model then."""
        with ExitStack() as stack:
            by_attention: dict[nn.Module, dict[int, tuple[Site, int]]] = {}
            for site in self._sites:
                for module, weight in site.owners:
                    if isinstance(module, nn.MultiheadAttention):
                        parts = by_attention.setdefault(module, {})
                        parts |= {part: (site, i) for i, part in enumerate(_parts(weight))}
                    else:
                        hook = module.register_forward_hook(
                            partial(self._called, site), with_kwargs=True
                        )
                        stack.callback(hook.remove)
            for module, parts in by_attention.items():
                observer = partial(self._projected, module, parts)
                stack.enter_context(attention_observed(module, observer))
            yield

    def end_pass(self) -> None:
        """Close one backward pass, or one step of several."""
        size = max((moments.b_samples for moments in self._moments.values()), default=0)
        for moments in self._moments.values():
            moments.end_pass(float(size) ** 2)

    def moments(self, site: Site) -> list[Moments]:
        """One for each projection that was seen; most sites have one projection.

        Raises:
            NonFiniteError: An input or a gradient held NaN or infinity; the layer is named.
        """
        found = [m for (name, _), m in sorted(self._moments.items()) if name == site.name]
        for moments in found:
            for what, value in (("inputs", moments.a), ("output gradients", moments.b)):
                if value is not None and not bool(torch.isfinite(value).all()):
                    raise NonFiniteError(
                        f"the {what} of {site.name} hold NaN or infinity, or overflow when "
                        "squared; finite ones are needed. Check the data and the loss, or run in "
                        "float32 or bfloat16"
                    )
        return found

    # --- hooks --------------------------------------------------------------------------------

    def _called(
        self, site: Site, module: nn.Module, args: Any, kwargs: Any, output: Tensor
    ) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        self._take(site, 0, module, x, output)

    def _projected(
        self, module: nn.Module, parts: dict[int, tuple[Site, int]], part: int, x: Tensor, y: Tensor
    ) -> None:
        if part in parts:
            site, i = parts[part]
            self._take(site, i, module, x, y)

    @torch.no_grad()
    def _take(self, site: Site, part: int, module: nn.Module, x: Tensor, output: Tensor) -> None:
        """Read the input now, and count it now or with the gradient that comes later."""
        count = count_samples(module, output)
        if count == 0 or (self._gradients and not output.requires_grad):
            return
        blocks = module.groups if isinstance(module, nn.modules.conv._ConvNd) else 1
        index = chosen_samples(count, self._most, self._generator)
        rows = input_samples(module, x.detach(), output, index)
        moments = self._moments.setdefault((site.name, part), Moments())
        if not self._gradients:
            moments.add_inputs(rows, count, blocks)
            return

        @torch.no_grad()
        def arrived(gradient: Tensor) -> None:
            moments.add_inputs(rows, count, blocks)
            moments.add_gradients(output_samples(module, gradient, index), count, blocks)

        output.register_hook(arrived)  # type: ignore[no-untyped-call]


def _parts(weight: str) -> Sequence[int]:
    """Which of query, key and value a weight of attention projects."""
    return {"q_proj_weight": (0,), "k_proj_weight": (1,), "v_proj_weight": (2,)}.get(
        weight, (0, 1, 2)
    )


def _second_moment(x: Tensor, blocks: int) -> Tensor:
    with torch.autocast(device_type=x.device.type, enabled=False):
        return channel_covariance(x, groups=blocks, centred=False, dtype=working_dtype(x))
