import datasets
import pytest
from accelerate import PartialState


@pytest.fixture(scope="module")
def logging_state():
    """What accelerate's loggers ask for."""
    PartialState(cpu=True)
    yield
    PartialState._reset_state()


@pytest.fixture(scope="module")
def datasets_cache(tmp_path_factory):
    """A cache of data sets of a module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield
