import datasets
import pytest


@pytest.fixture(autouse=True)
def _quiet_builders():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
