"""What the runs behind the kept records were, by stem of their files; see ``ledger.py``."""

from __future__ import annotations

from typing import Final

from ledger import Record


def _searched(recipe: str, scale: str) -> str:
    """A search, then the comparison with what it found for each variant."""
    found = f"runs/{recipe}-{scale}-tune/chosen.yaml"
    return f"orthotrain tune {recipe} --scale {scale}; orthotrain train --config {found}"


RECORDS: Final[dict[str, Record]] = {
    "stdlib_gpt_cpu": Record(
        "GPT of 0.43 M on Python's sources, 4,000 steps, 3 seeds",
        "orthotrain train stdlib-gpt --scale cpu",
    ),
    "digits_minivit_cpu": Record(
        "small ViT on digits, 3 seeds", "orthotrain train digits-minivit --scale cpu"
    ),
    "digits_minivit_branch_cpu": Record(
        "small ViT on digits, 3 seeds", "orthotrain train digits-minivit --scale cpu"
    ),
    "cifar10_minivit_cpu": Record(
        "small ViT on a part of CIFAR-10, 3 seeds", "orthotrain train cifar10-minivit --scale cpu"
    ),
    "cifar10_minivit_branch_cpu": Record(
        "small ViT on a part of CIFAR-10, 3 seeds", "orthotrain train cifar10-minivit --scale cpu"
    ),
    "cifar10_dbn_cpu": Record(
        "narrow ResNet-18, whitened stem, 2,000 images of CIFAR-10, 8 epochs, 3 seeds",
        "orthotrain train cifar10-dbn --scale cpu",
    ),
    "cifar10_dbn_cpu_long": Record(
        "ResNet-18 of width 16, whitened stem, 20,000 images of CIFAR-10, 15 epochs",
        "orthotrain train cifar10-dbn --scale cpu-long",
    ),
    "texture_gcp_cpu": Record(
        "narrow ResNet-18, covariance pooling, 640 textures, 16 epochs, 3 seeds",
        "orthotrain train texture-gcp --scale cpu",
    ),
    "texture_gcp_cpu_long": Record(
        "ResNet-18 of width 16, covariance pooling, 640 textures, 100 epochs",
        "orthotrain train texture-gcp --scale cpu-long",
    ),
    "clothing_gcp_cpu": Record(
        "narrow ResNet-18, covariance pooling, 1,500 garments, 6 epochs, 3 seeds",
        "orthotrain train clothing-gcp --scale cpu",
    ),
    "latent_linear_cpu": Record(
        "linear EigenGAN on Gaussian data, 2,000 steps, 5 seeds",
        "orthotrain train latent-linear --scale cpu",
        decide=5,
    ),
    "sprites_eigengan_five": Record(
        "EigenGAN on sprites (re-rendered), 16 pixels, 1,500 steps, 5 seeds",
        "orthotrain train sprites-eigengan --scale cpu --seeds 0 1 2 3 4",
        decide=5,
    ),
    "sprites_eigengan_cpu": Record(
        "EigenGAN on sprites (re-rendered), 16 pixels, 1,500 steps, 3 seeds",
        "orthotrain train sprites-eigengan --scale cpu",
        decide=5,
    ),
    "digits_settling_cpu": Record(
        "small ViT on digits, dense", "orthotrain train digits-settling --scale cpu"
    ),
    "ettm2_autoformer_cpu": Record(
        "narrow Autoformer on ETTm2, 96 steps ahead, 600 steps, 3 seeds",
        "orthotrain train --config benchmarks/results/ettm2_autoformer_cpu_chosen.yaml",
    ),
    "cifar10_resnet_cpu_long": Record(
        "ResNet-18 of width 32, 20,000 images of CIFAR-10, 6 epochs, 3 seeds",
        "orthotrain train --config benchmarks/results/cifar10_resnet_cpu_long_chosen.yaml",
    ),
    "stdlib_gpt_rivals_cpu": Record(
        "GPT of 0.43 M on Python's sources, 1,200 steps, five rates each, 3 seeds",
        "orthotrain train --config benchmarks/results/stdlib_gpt_rivals_cpu_chosen.yaml",
    ),
    "cifar10_minivit_rivals_cpu": Record(
        "small ViT on CIFAR-10, equal tuning", _searched("cifar10-minivit-rivals", "cpu")
    ),
}
