import pytest

from orthotrain.errors import ConfigError
from orthotrain.lab.run.schedule import warmup_cosine

SETTINGS = {"total_steps": 100, "warmup_steps": 10, "final": 0.1}


def test_rises_to_one_then_falls_to_the_end():
    values = [warmup_cosine(step, **SETTINGS) for step in range(100)]
    assert values[0] == pytest.approx(1 / 11)
    assert values[10] == 1
    assert values[99] == pytest.approx(0.1)
    assert values[:11] == sorted(values[:11])
    assert values[10:] == sorted(values[10:], reverse=True)
    # Half way down the cosine is the mean of its ends.
    assert warmup_cosine(10 + 89 // 2, **SETTINGS) == pytest.approx(0.55, abs=0.01)
    assert warmup_cosine(500, **SETTINGS) == pytest.approx(0.1)


def test_no_warmup_starts_at_the_peak():
    assert warmup_cosine(0, total_steps=5, warmup_steps=0, final=0) == 1


def test_a_run_of_one_step():
    assert warmup_cosine(0, total_steps=1, warmup_steps=0, final=0.5) == 0.5


@pytest.mark.bad_input
@pytest.mark.parametrize("warmup_steps", [-1, 100])
def test_a_warmup_as_long_as_the_run_is_refused(warmup_steps):
    with pytest.raises(ConfigError, match=r"must lie in \[0, 100\)"):
        warmup_cosine(0, total_steps=100, warmup_steps=warmup_steps, final=0)
