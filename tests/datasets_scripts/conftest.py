import datasets
import pytest


@pytest.fixture(autouse=True)
def _quiet_builders_in_a_cache_of_their_own(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
