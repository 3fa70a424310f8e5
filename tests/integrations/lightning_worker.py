"""One of two processes of a Lightning ``Trainer``; started by ``test_two_processes.py``."""

from integrations.join import error_of, held, main  # isort: skip  # before the frameworks

from functools import partial

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import EMAWeightAveraging

from integrations.test_lightning import Net, fit
from orthotrain.lowrank.guard import LossGuard

LOOPS = {
    "plain": {},
    "accumulation, bf16": {"precision": "bf16-mixed", "accumulate_grad_batches": 2},
    "EMA": {"average": True},
}
SAVED = (4, 8)  # before the cut, which is after step 6, and after it


def scenarios(rank, folder):
    results = {}
    for name, settings in LOOPS.items():
        average = settings.pop("average", False)
        one = partial(fitted, average=average, **settings)
        results[f"{name}, whole"] = one(folder / name)
        for at in SAVED:
            results[f"{name}, resumed at {at}"] = one(
                folder / f"{name} {at}", resume=folder / name / f"step={at}.ckpt"
            )
    results["lost state"] = lost_state(rank, folder)
    return results


def fitted(folder, *, average, resume=None, **settings):
    seen, expected = [], []
    observe = LossGuard.observe
    LossGuard.observe = lambda self, loss: (seen.append(loss), observe(self, loss))[1]

    class Tells(Net):
        def training_step(self, batch, i):
            loss = super().training_step(batch, i)
            expected.append(loss.item())
            return loss

    callbacks = [EMAWeightAveraging(decay=0.8)] if average else []
    try:
        module, callback, trainer = fit(
            folder, module=Tells(), callbacks=callbacks, resume=resume, strategy="ddp", devices=2,
            **settings,
        )  # fmt: skip
    finally:
        LossGuard.observe = observe
    total = callback.handle.summary().total
    return {
        "held": held(module), "seen": seen, "expected": expected,
        "shrunk": total.stored < total.dense, "summary": str(callback.handle.summary()),
        "world": trainer.world_size,
    }  # fmt: skip


def lost_state(rank, folder):
    path = folder / "plain" / f"step={SAVED[1]}.ckpt"
    dist.barrier()
    if rank == 0:
        content = torch.load(path, weights_only=True)
        content["callbacks"] = {k: v for k, v in content["callbacks"].items() if "Orth" not in k}
        torch.save(content, path)
    dist.barrier()
    return error_of(lambda: fit(folder / "lost", resume=path, strategy="ddp", devices=2))


if __name__ == "__main__":
    main(scenarios)
