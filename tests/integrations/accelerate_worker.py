"""One of two processes of a loop of Accelerate; started by ``test_two_processes.py``."""

from integrations.join import held, main  # isort: skip  # before the frameworks

import torch.distributed as dist

from integrations.test_accelerate import SAVED, loop

LOOPS = [(before, accumulate) for before in (True, False) for accumulate in (1, 2)]


def scenarios(rank, folder):
    results = {}
    for before, accumulate in LOOPS:
        name = f"{'before' if before else 'after'}, {accumulate}"
        settings = {"before": before, "accumulate": accumulate, "rank": rank}
        model, _, handle = loop(folder / name, **settings)
        total = handle.summary().total
        results[f"{name}, whole"] = {
            "held": held(model), "shrunk": total.stored < total.dense,
            "summary": str(handle.summary()),
        }  # fmt: skip
        dist.barrier()
        for at in SAVED:
            model, _, handle = loop(folder / name, resume=at, **settings)
            results[f"{name}, resumed at {at}"] = {
                "held": held(model), "summary": str(handle.summary()),
            }  # fmt: skip
    return results


if __name__ == "__main__":
    main(scenarios)
