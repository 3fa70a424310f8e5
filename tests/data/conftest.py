"""Tests of data see no folder of real data, but where they undo it."""

import pytest


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("ORTHOTRAIN_DATA", raising=False)
