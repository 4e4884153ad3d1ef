import pytest

from modeling_mxmclr import MXMCLRModel
from modeling_mxmclr.probe_mxmclr import Probe
from tests.references.adapters import make_adapter, save_adapter, save_base
from tests.references.tiny import tiny_processor
from training.merge import check_merged, merge


def test_merging_keeps_the_results_and_needs_an_empty_folder(tmp_path):
    base, adapter = save_base(tmp_path / "base"), tmp_path / "adapter"
    save_adapter(make_adapter(base, use_dora=True), adapter)
    tiny_processor().save_pretrained(adapter)  # as in a run folder
    assert merge(str(adapter), str(base), tmp_path / "merged") < 1e-6
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    with pytest.raises(ValueError, match="`--output` must be an empty folder"):
        merge(str(adapter), None, tmp_path / "merged")


def test_a_model_that_gives_other_results_is_no_merged_one(tmp_path):
    base = save_base(tmp_path / "base")
    save_adapter(make_adapter(base), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"differ from the adapter's by up to .* allowed are 1e-04"):
        check_merged(MXMCLRModel.from_pretrained(base), Probe.load(tmp_path / "adapter"))
