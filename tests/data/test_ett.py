"""The ETT files: parts, scale, calendar, and what damage is told."""

import pytest
import torch

from data.series import HOURS, written
from orthotrain.data.ett import load_ett
from orthotrain.errors import ConfigError, DataError


def test_parts_follow_each_other_and_only_the_past_is_shared(tmp_path):
    written(tmp_path, rows=HOURS + 100)
    data = load_ett("etth2", data=str(tmp_path), read=48)
    assert data.names == ("A", "OT")
    year, months = 12 * 30 * 24, 4 * 30 * 24
    sizes = [len(part.values) for part in (data.train, data.validation, data.read_test())]
    assert sizes == [year, 48 + months, 48 + months]
    # The first series counts the hours, so each step says where in the file it stood.
    mean, deviation = (year - 1) / 2, torch.arange(year, dtype=torch.float64).std(correction=0)
    for part, first in ((data.train, 0), (data.validation, year - 48),
                        (data.read_test(), year + months - 48)):  # fmt: skip
        hours = part.values[:, 0].double() * deviation + mean
        torch.testing.assert_close(
            hours, first + torch.arange(len(hours)).double(), atol=2e-3, rtol=0
        )
    torch.testing.assert_close(data.train.values.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train.values.std(0), torch.ones(2), atol=1e-3, rtol=0)


def test_windows_read_and_forecast_next_to_each_other(tmp_path):
    written(tmp_path, name="ETTh2.csv.gz")
    part = load_ett("etth2", data=str(tmp_path), read=8).train
    assert part.places(read=8, ahead=4) == len(part.values) - 11
    past, dates, future = part.windows(torch.tensor([0, 5]), read=8, ahead=4)
    assert (past.shape, dates.shape, future.shape) == ((2, 8, 2), (2, 12, 5), (2, 4, 2))
    assert torch.equal(torch.cat((past, future), 1)[1], part.values[5:17])
    assert torch.equal(dates[1], part.dates[5:17])


def test_the_calendar_runs_from_minus_to_plus_a_half(tmp_path):
    written(tmp_path)
    dates = load_ett("etth2", data=str(tmp_path), read=8).train.dates
    assert dates.abs().max() <= 0.5
    # Friday, the first of July 2016, which is the 183rd day of a leap year, at 00:00.
    expected = torch.tensor([-0.5, -0.5, 4 / 6 - 0.5, -0.5, 182 / 365 - 0.5])
    torch.testing.assert_close(dates[0], expected)
    torch.testing.assert_close(dates[23, 1], torch.tensor(0.5))


@pytest.mark.bad_input
def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean ettm[12]\? choose from ettm1, ettm2"):
        load_ett("ettm", data=str(tmp_path), read=8)
    with pytest.raises(DataError, match=r"has no ETTm2.csv or ETTm2.csv.gz"):
        load_ett("ettm2", data=str(tmp_path), read=8)
    path = written(tmp_path, rows=100)
    with pytest.raises(DataError, match="has 100 rows, need 14400"):
        load_ett("etth2", data=str(path), read=8)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no table of dates and numbers: its first line is 'a,b'"):
        load_ett("etth2", data=str(path), read=8)
    path.write_text("date,A\n2016-07-01 00:00:00,\n")
    with pytest.raises(DataError, match="no table"):
        load_ett("etth2", data=str(path), read=8)
    packed = written(tmp_path, name="ETTm1.csv.gz", rows=100)
    packed.write_bytes(packed.read_bytes()[:50])
    with pytest.raises(DataError, match="cannot be read"):
        load_ett("ettm1", data=str(packed), read=8)
    whole = written(tmp_path)
    part = load_ett("etth2", data=str(whole), read=8).train
    with pytest.raises(DataError, match="too short for windows that read 9000"):
        part.places(read=9000, ahead=96)


@pytest.mark.data
@pytest.mark.parametrize("name", ["ettm1", "ettm2", "etth1", "etth2"])
def test_the_published_files(name):
    data = load_ett(name, read=96)
    per_month = 30 * (96 if name.startswith("ettm") else 24)
    assert len(data.train.values) == 12 * per_month
    assert len(data.read_test().values) == 4 * per_month + 96
    assert data.names[-1] == "OT"
