"""A run of a classifier with branches, without any training. Every number here is made up."""

from lab.report.synthetic import write_folder

DENSE, WORK = 100_000, 1e12
#: Test accuracy, stored share, compute in dense runs in it and before it, accuracy after a cut.
PLANS = {
    "dense": (0.95, 1.0, 1.0, 0, None),
    "oialr-paper": (0.93, 1.4, 0.97, 0, None),
    "branch-50": (0.945, 0.5, 0.15, 1, 0.90),
    "half-50": (0.942, 0.5, 0.75, 0, 0.91),
    "narrow-50": (0.935, 0.51, 0.5, 0, None),
    "narrow-50-short": (0.80, 0.51, 0.15, 0, None),
    "narrow-50-teacher": (0.95, 0.51, 0.83, 1, None),
    "frozen-50": (0.938, 0.5, 0.72, 0, 0.89),
    "frozen-50-plain": (0.932, 0.5, 0.72, 0, 0.85),
}


def branched_run(folder, *, names=tuple(PLANS), counted=True):
    """Three seeds of each; ``counted=False`` is a run from before operations were counted."""
    info = {
        "recipe": "digits-minivit",
        "page": "orthotrain.lab.experiments.lowrank.page:PAGE",
        "baseline": "dense",
        "variants": [{"name": name, "title": name, "note": ""} for name in names],
    }

    def training(index, seed):
        accuracy, stored, work, before, cut = PLANS[names[index]]
        accuracy += 0.001 * seed
        rows = [
            {"kind": "step", "step": 1, "loss": 1.0, "step_ms": 5.0},
            {"kind": "eval", "step": 100, "split": "validation", "accuracy": accuracy - 0.01},
        ]
        if cut is not None:
            rows.insert(1, {"kind": "cut", "step": 8, "accuracy": cut, "accuracy_before": 0.94})
        result = {
            "test_accuracy": accuracy, "validation_accuracy": accuracy - 0.01,
            "stored": int(DENSE * stored), "stored_folded": int(DENSE * stored), "dense": DENSE,
            "trainable": int(DENSE * stored), "steps": 100, "seconds": 1.0,
            "training_bytes": 1600, "step_ms_final": 5.0,
            "switch_step": None if cut is None else 8,
        }  # fmt: skip
        if counted:
            result |= {"compute": work * WORK, "compute_before": before * WORK}
            for row in rows:
                if row["kind"] == "cut":
                    row["compute"] = 0.08 * work * WORK
        return rows, result

    return write_folder(folder, names, (0, 1, 2), training, info)
