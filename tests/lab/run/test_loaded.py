"""What is loaded: a training loads what it uses, and weights are read without the laboratory."""

import pytest

from processes import run_python

# Whole packages of which one default training may load any module,
PACKAGES = (
    "orthotrain.cli",
    "orthotrain.diagnostics",
    "orthotrain.lab.experiments.language",
    # The table at the end is a part of the experiment's page, of which nothing is drawn.
    "orthotrain.lab.experiments.branches",
    "orthotrain.lab.report",
    "orthotrain.lab.run",
    "orthotrain.layers",
    "orthotrain.linalg",
    "orthotrain.lowrank",
    "orthotrain.methods",
)
# single modules,
MODULES = {
    *("orthotrain", "orthotrain._version", "orthotrain.errors", "orthotrain.files"),
    *(
        "orthotrain._checks",
        "orthotrain._doors",
        "orthotrain._resized",
        "orthotrain._sharded",
        "orthotrain._names",
        "orthotrain.extras",
    ),
    *("orthotrain.data", "orthotrain.data.lazy", "orthotrain.data.splits"),
    "orthotrain.data._pixels",  # of which parts of text are named like parts of images
    # AdamW with its schedule,
    *("orthotrain.lab.experiments.classifier", "orthotrain.lab.experiments.classifier.optim"),
    *("orthotrain.data.stdlib_text", "orthotrain.data.windows"),
    *("orthotrain.models", "orthotrain.models.gpt"),
    *("orthotrain.models.transformer", "orthotrain.lab.experiments.narrow"),
    *("orthotrain.lab.report.ranks", "orthotrain.lab.experiments.sizes"),
    "orthotrain.lab.experiments.search",
    *("orthotrain.lab", "orthotrain.lab.experiments", "orthotrain.lab.experiments.catalog"),
    "orthotrain.lab.named",
    "orthotrain.lab.experiments.treatments",
}
FAMILIES = (
    "classifier", "lowrank", "latent", "spectral", "forecasting", "rivals", "settling",
)  # fmt: skip
# and the settings of the other families, which the command line names.
SETTINGS = [f"orthotrain.lab.experiments.{family}" for family in FAMILIES]
MOST = 270


def allowed(module: str) -> bool:
    if module in MODULES or module in SETTINGS:
        return True
    parts = ("config", "recipes", "tuning", "variants", "table", "image_config", "image_tuning")
    if any(module.startswith(f"{family}.{part}") for family in SETTINGS for part in parts):
        return True
    return any(module == package or module.startswith(f"{package}.") for package in PACKAGES)


@pytest.mark.slow
def test_one_default_training_loads_what_it_uses(tmp_path):
    line = [
        "train", "--scale", "smoke", "--variants", "oialr-paper", "--optim.steps", "30",
        "--workers", "1", "--report", "false", "--run-dir", str(tmp_path / "run"),
    ]  # fmt: skip
    output = run_python(
        "from orthotrain.cli import main\n"
        f"assert main({line!r}) == 0\n"
        "assert 'matplotlib' not in sys.modules\n"
        "print('LOADED', *sorted(m for m in sys.modules if m.split('.')[0] == 'orthotrain'))"
    )
    loaded = output.splitlines()[-1].split()[1:]
    assert "orthotrain.models.gpt" in loaded
    assert [module for module in loaded if not allowed(module)] == []
    assert len(loaded) <= MOST


def test_weights_and_networks_are_read_without_the_laboratory(tmp_path):
    path = tmp_path / "checkpoint.pt"
    other = [
        "yaml", "jsonargparse", "rich", "matplotlib", "sklearn", "PIL", "scipy", "jinja2",
    ]  # fmt: skip
    run_python(
        f"for name in {other!r}: sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from orthotrain.lab.experiments.classifier.config import ModelConfig\n"
        "from orthotrain.lab.experiments.lowrank.networks import build_vit, entry_of\n"
        "from orthotrain.lab.run.checkpoint import save_checkpoint\n"
        "from orthotrain.lab.run.restore import read_network, read_weights\n"
        "config = ModelConfig(width=8, depth=1)\n"
        "settings = {'image_shape': (1, 8, 8), 'classes': 3}\n"
        "model = build_vit(config, **settings)\n"
        f"path = Path({str(path)!r})\n"
        "network = entry_of(config, **settings)\n"
        "training = {'model': model.state_dict()}\n"
        "save_checkpoint(path, {'training': training, 'network': network})\n"
        "assert set(read_weights(path)) == set(read_network(path).state_dict())\n"
        "import orthotrain.lab.experiments.spectral.networks\n"
        "import orthotrain.lab.experiments.latent.build\n"
    )
