"""One of two processes of timm's loop; started by ``test_two_processes.py``."""

from integrations.join import held, main  # isort: skip  # before the frameworks

import torch.distributed as dist

from integrations.test_timm import SAVED, loop

LOOPS = {
    "plain": {},
    "accumulation, bf16": {"accumulate": 2, "bf16": True},
    "Lookahead": {"opt": "lookahead_adamw"},
}


def scenarios(rank, folder):
    results = {}
    for name, settings in LOOPS.items():
        here = folder / name
        here.mkdir(exist_ok=True)
        results[f"{name}, whole"] = outcome(here, rank, settings)
        dist.barrier()
        for at in SAVED:
            results[f"{name}, resumed at {at}"] = outcome(here, rank, settings, resume=at)
    return results


def outcome(folder, rank, settings, resume=None):
    model, ema, handle, _ = loop(folder, "vit", rank=rank, resume=resume, **settings)
    total = handle.summary().total
    return {
        "held": held(model) | {f"ema.{key}": value for key, value in held(ema).items()},
        "shrunk": total.stored < total.dense, "summary": str(handle.summary()),
    }  # fmt: skip


if __name__ == "__main__":
    main(scenarios)
