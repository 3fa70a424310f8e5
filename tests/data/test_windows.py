from functools import partial

import pytest
import torch

from orthotrain.data.windows import WindowStream, even_starts, places, windows_at
from orthotrain.errors import DataError

TEXT = torch.arange(50, dtype=torch.uint8)


def stream(seed=0):
    at = partial(windows_at, TEXT, length=6)
    return WindowStream(places(TEXT, length=6), at, batch_size=4, seed=seed)


def test_what_is_told_is_what_is_read_one_symbol_on():
    for _ in range(20):
        read, told = stream().next_batch()
        assert read.shape == told.shape == (4, 6)
        assert read.dtype == torch.int64
        assert torch.equal(told, read + 1)


def test_every_window_can_be_drawn():
    batches = stream()
    first = torch.cat([batches.next_batch()[0][:, 0] for _ in range(300)])
    assert set(first.tolist()) == set(range(44))


def test_a_stream_goes_on_where_its_state_stood():
    one, other = stream(), stream(seed=1)
    assert not torch.equal(one.next_batch()[0], other.next_batch()[0])
    other.load_state_dict(one.state_dict())
    for _ in range(3):
        assert torch.equal(one.next_batch()[0], other.next_batch()[0])


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    stream().next_batch()
    assert torch.equal(torch.get_rng_state(), before)


def test_fixed_windows_are_spread_over_the_text():
    starts = even_starts(places(TEXT, length=6), count=4)
    assert starts.tolist() == [0, 11, 22, 33]
    assert windows_at(TEXT, starts, length=6)[1][:, -1].tolist() == [6, 17, 28, 39]
    every = even_starts(places(TEXT, length=6), count=1000)
    assert every.tolist() == list(range(44))


@pytest.mark.bad_input
def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(DataError, match="a text of 50 bytes is too short for windows of 51"):
        places(TEXT, length=50)
