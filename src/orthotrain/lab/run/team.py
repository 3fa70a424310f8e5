"""Processes that train one model together, each on its part of every batch.

Every process draws the same batch from the same seed and takes its part, so that what is trained
does not depend on how many there are, but for the order in which numbers are added up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Protocol, cast, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from orthotrain.errors import ConfigError, OrthotrainError, WorkerError
from orthotrain.methods.processes import Processes

# The main process evaluates alone, and a look at a large validation part may take long.
_PATIENCE: Final = timedelta(hours=2)


@dataclass(frozen=True)
class Team:
    """This process among those that train together; by default it is alone.

    Attributes:
        rank: Which one it is. Process 0 writes the files and tells the progress.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes what is written."""
        return self.rank == 0

    @property
    def processes(self) -> Processes:
        """For comparing what must be the same on all of them."""
        return Processes(dist.group.WORLD if self.count > 1 else None)

    def part(self, batch: int) -> slice:
        """The part of a batch that this process takes; parts differ by one entry at most.

        Raises:
            ConfigError: The batch has fewer entries than there are processes.
        """
        if batch < self.count:
            raise ConfigError(
                f"a batch of {batch} cannot be divided among {self.count} processes; need one "
                "entry for each: raise --data.batch_size, or start fewer processes"
            )
        size, more = divmod(batch, self.count)
        first = self.rank * size + min(self.rank, more)
        return slice(first, first + size + (self.rank < more))

    def wrapped(self, model: nn.Module) -> nn.Module:
        """What to call in training: it averages gradients and shares batch statistics.

        Every process calls this, with models of the same shapes; all get the weights of the main
        one. The model itself stays what evaluations and checkpoints use.
        """
        if self.count == 1:
            return model
        from orthotrain.lab.run.batch_norm import share_statistics  # for teams alone

        share_statistics(model)
        return DistributedDataParallel(model)

    def weighted(self, loss: Tensor, *, part: int, batch: int) -> Tensor:
        """A mean over a part, as the term whose mean over processes is that over the batch.

        Args:
            loss: Mean over the entries of this process.
            part: How many these are.
            batch: Entries of the whole batch.
        """
        return loss if self.count == 1 else loss * (part * self.count / batch)

    def mean(self, value: Tensor) -> Tensor:
        """Mean over processes of one number, detached."""
        value = value.detach()
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.count
        return value

    def total(self, count: int) -> int:
        """Sum of whole numbers over processes."""
        return self._reduced(count, dist.ReduceOp.SUM)

    def agreed(self, signal: int | None) -> int | None:
        """The signal that came to any process, at the same step for all."""
        return self._reduced(signal or 0, dist.ReduceOp.MAX) or None

    def wait(self) -> None:
        """Until all processes are here."""
        self.total(0)

    def _reduced(self, number: int, operation: Any) -> int:
        if self.count == 1:
            return number
        value = torch.tensor(number)  # on the CPU: nothing waits for a GPU
        dist.all_reduce(value, operation)
        return int(value)


ALONE: Final = Team()


@runtime_checkable
class Shared(Protocol):
    """A trainer that several processes can run together."""

    def join(self, team: Team) -> None:
        """Train on this process's part of each batch from now on.

        Called once, after a checkpoint was loaded, by every process.
        """


def join(trainer: object, team: Team, *, variant: str) -> None:
    """Let a trainer take part in a team.

    Raises:
        ConfigError: It cannot, or its batches are smaller than the team.
    """
    if team.count == 1:
        return
    if not isinstance(trainer, Shared):
        raise ConfigError(
            f"variant {variant} cannot be trained by {team.count} processes together: its trainer "
            f"({type(trainer).__name__}) has no method join. Start it without torchrun; "
            "--workers and --storage run several trainings at a time"
        )
    trainer.join(team)


@contextmanager
def joined(device: str, *, count: int) -> Iterator[Team]:
    """The team of the processes that torchrun started; this process alone where count is one.

    Args:
        device: As configured.
        count: Processes that were started.

    Raises:
        ConfigError: A machine has fewer GPUs than processes.
        WorkerError: Another process ended before this one.
    """
    if count == 1:
        yield ALONE
        return
    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        _take_gpu(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_PATIENCE)
    team = Team(dist.get_rank(), dist.get_world_size())
    try:
        yield team
    except RuntimeError as error:
        if not _lost_others(error):
            raise
        raise WorkerError(
            f"process {team.rank} of {team.count} stopped because another one did not go on; the "
            "error of that one says why. The same command goes on from the last checkpoint "
            f"({str(error).splitlines()[0][:200]})"
        ) from error
    finally:
        dist.destroy_process_group()


def _take_gpu(local: int) -> None:
    if local >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local} of this machine has no GPU of its own, there are "
            f"{torch.cuda.device_count()}; start fewer processes, or take --device cpu"
        )
    torch.cuda.set_device(local)


def _lost_others(error: RuntimeError) -> bool:
    """Whether communication failed. Gloo has no type of its own for it."""
    if isinstance(error, OrthotrainError):
        return False
    if isinstance(error, cast("type[Exception]", dist.DistError)):
        return True
    return any(word in str(error) for word in ("gloo", "NCCL", "Connection closed by peer"))
