"""A plugin of pytest: all files are collected, and one in 25 is run."""

from __future__ import annotations

import pytest

EVERY = 25


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = items[::EVERY]
