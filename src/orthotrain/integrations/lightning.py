"""Methods in a ``Trainer`` of Lightning: one callback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from orthotrain.errors import CheckpointError, ConfigError
from orthotrain.extras import missing_package
from orthotrain.integrations._logged import logged
from orthotrain.integrations._resumed import FittingHook
from orthotrain.lowrank import follow
from orthotrain.methods import Method, attach
from orthotrain.methods.handle import Handle

try:
    from lightning.pytorch import Callback
    from lightning.pytorch.callbacks import WeightAveraging
except ModuleNotFoundError as error:
    raise missing_package(__name__, "lightning", extra="lightning") from error


class OrthotrainCallback(Callback):  # type: ignore[misc]
    """Makes methods act in a Lightning ``Trainer``: ``callbacks=[OrthotrainCallback(method)]``.

    The module takes the structure of a checkpoint that is loaded, methods are attached when
    training starts with the ``Trainer``'s number of steps, and detached at its end. Their state
    is in the checkpoint's own state of this callback, so a resumed run goes on bit for bit.
    Averaged copies (``WeightAveraging`` and what derives from it) follow.

    Sizes and ranks go to the module's loggers every ``log_every_n_steps``, as
    ``orthotrain/...``. The loss that Lightning differentiates is observed at each backward pass,
    also where the network inside is compiled.

    Args:
        *methods: What acts, such as ``AdaptiveLowRank()``.

    Attributes:
        handle: That of the latest ``fit``; its summary and records stay after it.
    """

    def __init__(self, *methods: Method) -> None:
        if not methods:
            raise ConfigError(
                "OrthotrainCallback needs at least one method, such as AdaptiveLowRank()"
            )
        self._methods = methods
        self._saved: dict[str, Any] = {}
        self._losses = 0
        self._check: RemovableHandle | None = None
        self.handle: Handle | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let the module, and averaged copies that are there, follow what is loaded."""
        for model in (pl_module, *_averaged(trainer)):
            follow(model)
        self._end_check()
        self._check = pl_module.register_load_state_dict_pre_hook(FittingHook(trainer))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach; take back the state of the checkpoint that is resumed."""
        self._end()
        self._end_check()
        if trainer.global_step > 0 and trainer.ckpt_path is not None and not self._saved:
            raise CheckpointError(
                f"resuming needs the methods' state in {trainer.ckpt_path}, which was saved "
                "without this callback: without it they would start over; start anew, or load "
                "the weights alone"
            )
        self.handle = attach(
            pl_module,
            trainer.optimizers,
            *self._methods,
            total_steps=_steps_of(trainer),
        )
        if self._saved:
            self.handle.load_state_dict(self._saved)
            self._saved = {}
        for copy in _averaged(trainer):
            self.handle.track(copy)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Observe the loss, once, in its own scale under accumulation."""
        if self.handle is not None and self.handle.run.losses_observed == self._losses:
            self.handle.observe(loss.detach() * trainer.accumulate_grad_batches)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """What was observed so far belongs to this pass."""
        if self.handle is not None:
            self._losses = self.handle.run.losses_observed

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Give sizes and ranks to the loggers, as often as they get anything."""
        if self.handle is None or not trainer._logger_connector.should_update_logs:
            return
        values = logged(self.handle)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Detach; the module stays as it is."""
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Detach, so that the module can be trained again."""
        self._end()
        self._end_check()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take off what was put on for the load of a checkpoint."""
        self._end_check()

    def state_dict(self) -> dict[str, Any]:
        """The methods' state: tensors and plain numbers."""
        return self._saved if self.handle is None else self.handle.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the methods are attached."""
        self._saved = state_dict

    def _end_check(self) -> None:
        if self._check is not None:
            self._check.remove()
            self._check = None

    def _end(self) -> None:
        if self.handle is not None:
            self.handle.detach()
        self._losses = 0


def load_from_checkpoint(cls: type[nn.Module], path: str | Path, **kwargs: Any) -> Any:
    """``cls.load_from_checkpoint(path, **kwargs)`` of a checkpoint with low-rank layers.

    Not needed where ``cls.__init__`` ends with ``orthotrain.follow(self)``.

    Args:
        cls: The ``LightningModule``'s class.
        path: Checkpoint that a ``Trainer`` has written.
        **kwargs: As for the method itself.

    Returns:
        The module, of class ``cls``.
    """

    class Following(cls):  # type: ignore[misc]
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            follow(self)
            super().on_load_checkpoint(checkpoint)

    model = Following.load_from_checkpoint(path, **kwargs)
    model.__class__ = cls
    return model


def _averaged(trainer: Any) -> list[nn.Module]:
    """The averaged copies that callbacks hold now."""
    held = [each._average_model for each in trainer.callbacks if isinstance(each, WeightAveraging)]
    return [copy.module for copy in held if copy is not None]


def _steps_of(trainer: Any) -> int | None:
    """Steps of the whole run, where known: one is over when every optimizer has stepped."""
    steps = trainer.estimated_stepping_batches
    if steps == trainer.max_steps:  # which counts the steps of each optimizer
        steps = steps // len(trainer.optimizers)
    return int(steps) if 0 < steps < float("inf") else None
