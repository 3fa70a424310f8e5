"""Files as those of ETT: one row after the other from the first of July 2016."""

import gzip
from datetime import datetime, timedelta

HOURS = 20 * 30 * 24


def written(folder, *, rows=HOURS, name="ETTh2.csv", minutes=60):
    start = datetime(2016, 7, 1)
    lines = ["date,A,OT"]
    lines += [f"{start + timedelta(minutes=minutes * i)},{i},{i % 24}" for i in range(rows)]
    text = "\n".join(lines) + "\n"
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path
