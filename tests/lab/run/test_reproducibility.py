import subprocess

import torch

from orthotrain.lab.run.reproducibility import (
    environment,
    git_state,
    peak_memory_bytes,
    reset_peak_memory,
    stream_seed,
)


def test_streams_and_seeds_are_all_different():
    seeds = [stream_seed(seed, name) for seed in range(50) for name in ("weights", "batches")]
    assert len(set(seeds)) == 100
    assert stream_seed(7, "weights") == stream_seed(7, "weights")


def test_environment_is_plain_and_names_the_versions():
    record = environment(command="x", device=torch.device("cpu"), threads=2)
    assert (record["torch"], record["threads"], record["device"]) == (torch.__version__, 2, "cpu")
    assert all(isinstance(value, str | int | bool | None) for value in record.values())


def test_git_state_knows_a_commit_and_a_change(tmp_path):
    assert git_state(tmp_path) == (None, None)

    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init")
    (tmp_path / "file").write_text("a")
    git("add", ".")
    git("commit", "-m", "first")
    assert git_state(tmp_path) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path) == (git("rev-parse", "HEAD"), True)


def test_peak_memory_counts_from_the_reset():
    if not reset_peak_memory():
        assert peak_memory_bytes() is None or peak_memory_bytes() > 0
        return
    low = peak_memory_bytes()
    block = torch.ones(64 * 2**20 // 4)
    high = peak_memory_bytes()
    del block
    assert high - low > 32 * 2**20
    assert reset_peak_memory()
    assert peak_memory_bytes() < high
