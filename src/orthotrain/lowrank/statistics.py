"""What the steps before an update tell of each layer: gathered, summed over processes, kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from orthotrain.errors import ConfigError, NonFiniteError
from orthotrain.lowrank.agree import Agreement
from orthotrain.lowrank.collect import Collector
from orthotrain.lowrank.compiled import Compiled
from orthotrain.lowrank.metric import Metric, metric_of
from orthotrain.lowrank.settings import Importance
from orthotrain.lowrank.sites import Site


class Statistics:
    """Watches ordinary training passes over the last steps before an update.

    Nothing is kept between such windows. In one, the gradients of each step count alike: they are
    divided by their total over all layers. So a loss scale (AMP) and gradient accumulation change
    nothing. A step with a value that is not finite is left out. One that ``GradScaler`` skips
    takes the next one with it, since only that ends both passes.

    Args:
        sites: The layers.
        importance: ``"loss"`` or ``"input"``.
        agreement: With the processes that train together.
        compiled: Tells whether the model is compiled, which runs uncompiled while it is watched.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        importance: Importance,
        agreement: Agreement,
        *,
        compiled: Compiled,
    ) -> None:
        self._sites = sites  # which may be others in the next window
        self._importance = importance
        self._agreement = agreement
        self._collector: Collector | None = None
        self._stack = ExitStack()
        self._steps = 0
        self._dropped = 0
        self._compiled = compiled
        self._watching = False

    @property
    def active(self) -> bool:
        """Whether passes are watched now."""
        return self._watching

    def open(self) -> None:
        """Start to watch."""
        self._collector = Collector(
            self._sites, gradients=self._importance == "loss", wait=True, few=True
        )
        self._stack.enter_context(self._collector.active())
        if self._compiled.seen():
            self._compiled.uncompiled.begin()
        self._steps = self._dropped = 0
        self._watching = True

    def stop(self) -> None:
        """Watch no longer; nothing is left on the model. What was seen stays."""
        self._stack.close()
        self._compiled.uncompiled.end()
        self._watching = False

    def close(self) -> None:
        """Watch no longer, and forget what was seen."""
        self.stop()
        self._collector = None

    def forget(self, site: Site) -> None:
        """Forget what was seen of a layer, whose sums may be of another shape from now on."""
        if self._collector is not None:
            self._collector.forget(site.name)

    def end_step(self) -> None:
        """Take what the passes of one optimizer step have shown, on all processes."""
        collector = self._collector
        if collector is None or not self._watching:
            return
        self._steps += 1
        self._compiled.uncompiled.step_ended()
        if self._agreement.shared:
            collector.sum_pass(self._agreement.summed)
        inputs, gradients = collector.traces_of_pass().tolist()
        if not (math.isfinite(inputs) and math.isfinite(gradients)):
            self._dropped += 1
            collector.drop_pass()
        elif collector.saw_nothing:
            self._compiled.uncompiled.begin()  # however it was compiled without being noticed
        elif gradients > 0 or (self._importance == "input" and inputs > 0):
            collector.end_pass(1.0 / gradients if gradients > 0 else 1.0)
        else:
            collector.drop_pass()

    def metric(self, site: Site) -> Metric | None:
        """The metric of a site; None where it saw no data. The same on all processes."""
        if self._collector is None:
            return None
        return metric_of(site, self._collector.moments(site))

    def require_data(self) -> None:
        """Refuse a window in which nothing was seen.

        Raises:
            ConfigError: No site saw any data.
            NonFiniteError: Every step showed NaN or infinity.
        """
        if self._collector is None:
            return
        if self._dropped == self._steps > 0:
            raise NonFiniteError(
                f'AdaptiveLowRank with importance="{self._importance}": the inputs or output '
                f"gradients of layers held NaN or infinity in each of the last {self._steps} "
                "steps; finite ones are needed. Check data and loss, lower the learning rate, or "
                "run in float32 or bfloat16"
            )
        if not self._collector.knows_any:
            raise ConfigError(
                f'AdaptiveLowRank with importance="{self._importance}" watches the backward '
                f"passes through its {len(self._sites)} layers in the last {self._steps} steps "
                "before an update, and saw none whose gradient is not zero. Compute gradients with "
                'loss.backward() through the attached model, or choose importance="weight"'
            )

    # --- state --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, as long as it is needed; empty else."""
        if self._collector is None:
            return {}
        return {
            "collector": self._collector.state_dict(),
            "steps": self._steps,
            "dropped": self._dropped,
            "watching": self._watching,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: watch, or do not, as it did."""
        self.close()
        if state:
            self.open()
            assert self._collector is not None
            self._collector.load_state_dict(state["collector"])
            self._steps, self._dropped = int(state["steps"]), int(state["dropped"])
            if not state["watching"]:
                self.stop()
