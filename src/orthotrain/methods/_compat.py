"""Private names of torch, each in one function, each held by a self-test."""

from __future__ import annotations

from torch.nn.parallel import DistributedDataParallel


def active_ddp_module() -> DistributedDataParallel | None:
    """The ``DistributedDataParallel`` whose forward is running now, or ``None``.

    A model does not know its wrapper. torch keeps the running one in a private class attribute
    for its compiler; asking there from a forward hook finds a wrapper that was made after
    ``attach``.
    """
    found = DistributedDataParallel._get_active_ddp_module()  # type: ignore[no-untyped-call]
    return found if isinstance(found, DistributedDataParallel) else None
