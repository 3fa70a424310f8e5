"""A plugin of pytest: a test that meets the error which names the extra ``lab`` is skipped."""

from __future__ import annotations

from collections.abc import Generator

import pytest


def _skip_if_extra(error: Exception) -> None:
    if "pip install" in str(error) and "orthotrain[" in str(error):
        pytest.skip("needs the extra")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    try:
        return (yield)
    except Exception as error:
        _skip_if_extra(error)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    try:
        return (yield)
    except Exception as error:
        _skip_if_extra(error)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.failed and "No module named 'sklearn" in str(report.longrepr):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, "needs the extra")
    return report
