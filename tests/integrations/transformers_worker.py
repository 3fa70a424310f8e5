"""One of two processes of a ``Trainer``; started by ``test_two_processes.py``."""

from integrations.join import error_of, held, main  # isort: skip  # before the frameworks

import shutil

import torch.distributed as dist

from integrations.test_transformers import EVERY, gpt, trainer, vit
from orthotrain.integrations import transformers as ours
from orthotrain.lowrank.guard import LossGuard

BEST = {
    "eval_strategy": "steps", "eval_steps": EVERY, "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
}  # fmt: skip
LOOPS = {"plain": {}, "accumulation, bf16": {"gradient_accumulation_steps": 2, "bf16": True}}


def scenarios(rank, folder):
    results = {}
    for make in (gpt, vit):
        for loop, settings in LOOPS.items():
            name = f"{make.__name__}, {loop}"
            results[f"{name}, whole"] = whole(make, folder / name, settings)
            for at in (EVERY, 2 * EVERY):
                results[f"{name}, resumed at {at}"] = resumed(make, folder / name, at, settings)
        for greater in (True, False):
            results[f"{make.__name__}, best, {greater}"] = best(
                make, folder / f"best {greater} {make.__name__}", greater
            )
    results["lost state"] = lost_state(rank, folder / "gpt, plain")
    return results


def whole(make, folder, settings):
    seen, written = [], []
    observe, write = LossGuard.observe, ours.write_state
    LossGuard.observe = lambda self, loss: (seen.append(loss), observe(self, loss))[1]
    ours.write_state = lambda path, data: (written.append(str(path)), write(path, data))[1]
    try:
        made, callback = trainer(folder, make, **settings)
        made.train()
    finally:
        LossGuard.observe, ours.write_state = observe, write
    logged = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    total = callback.handle.summary().total
    return {
        "held": held(made.model), "seen": seen, "logged": logged, "written": written,
        "shrunk": total.stored < total.dense, "summary": str(callback.handle.summary()),
    }  # fmt: skip


def resumed(make, folder, at, settings):
    dist.barrier()
    here = folder.with_name(f"{folder.name} {at}")
    if dist.get_rank() == 0:
        shutil.copytree(folder / f"checkpoint-{at}", here / f"checkpoint-{at}")
    dist.barrier()
    made, callback = trainer(here, make, **settings)
    made.train(resume_from_checkpoint=True)
    return {"held": held(made.model), "summary": str(callback.handle.summary())}


def best(make, folder, greater):
    made, _ = trainer(folder, make, greater_is_better=greater, **BEST)
    made.train()
    return {
        "held": held(made.model), "at": made.state.best_model_checkpoint,
        "metric": made.state.best_metric, "evaluated": made.evaluate()["eval_loss"],
    }  # fmt: skip


def lost_state(rank, folder):
    dist.barrier()
    if rank == 0:
        (folder / f"checkpoint-{2 * EVERY}" / ours.STATE_FILE).unlink()
        shutil.rmtree(folder / f"checkpoint-{3 * EVERY}")
    dist.barrier()
    made, _ = trainer(folder)
    return error_of(lambda: made.train(resume_from_checkpoint=True))


if __name__ == "__main__":
    main(scenarios)
