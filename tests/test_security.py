"""What SECURITY.md promises, promise by promise."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import hf_hub_download
from transformers import AutoModel, AutoProcessor, BertModel, CLIPConfig, CLIPModel

from modeling_mxmclr import MXMCLRConfig, MXMCLRModel
from tests.references.hub_server import hub_server
from tests.references.hub_state import Repo
from tests.references.tiny import CLIP_TEXT, CLIP_VISION, tiny_model, tiny_processor, tower_config

ROOT = Path(__file__).resolve().parents[1]
# Whoever imports it leaves a trace.
EVIL = "from pathlib import Path\nPath({trace!r}).touch()\nclass Evil:\n    pass\n"
FOREIGN = {
    "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]},
    "custom_pipelines": {"x": {"impl": "evil.Evil"}},
    "trust_remote_code": True,
}


@pytest.fixture
def trace(tmp_path):
    return tmp_path / "evil-code-ran"


@pytest.fixture
def checkpoint(tmp_path, trace):
    folder = tmp_path / "checkpoint"
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    (folder / "evil.py").write_text(EVIL.format(trace=str(trace)))
    return folder


def rewrite(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def pickled(folder):
    """Replace a folder's weights by pickled ones, which leave a trace when they are read."""
    folder.joinpath("model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    return folder


def test_code_in_a_checkpoint_is_ours_and_small(checkpoint):
    (checkpoint / "evil.py").unlink()
    files = list(checkpoint.rglob("*.py"))
    assert all(file.read_text() == (ROOT / "modeling_mxmclr" / file.name).read_text() for file in files)
    assert sum(file.stat().st_size for file in files) < 250_000


@pytest.mark.parametrize("tower", ["text_config", "vision_config"])
def test_a_towers_config_neither_keeps_nor_hands_on_trust_in_foreign_code(tower, checkpoint, trace, tmp_path):
    rewrite(checkpoint / "config.json", lambda config: config[tower].update(FOREIGN, nested={"deeper": FOREIGN}))
    model = AutoModel.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path / "again")
    for text in (json.dumps(model.config.to_dict()[tower]), (tmp_path / "again" / "config.json").read_text()):
        assert "evil" not in text
        assert "trust_remote_code" not in text
    assert not trace.exists()


def test_a_config_object_of_a_tower_is_cleaned_too():
    text = tower_config("bert", **FOREIGN)
    config = MXMCLRConfig(text_config=text, vision_config={"model_type": "vit", **CLIP_VISION}, projection_dim=16)
    assert "evil" not in json.dumps(config.to_dict())


def test_foreign_entries_of_the_auto_map_are_not_saved_again(tmp_path):
    model = tiny_model()
    model.config.auto_map = {"AutoModelForCausalLM": "evil/repo--evil.Evil"}
    model.save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert {value.partition(".")[0] for value in auto_map.values()} == {"configuration_mxmclr", "modeling_mxmclr"}


def test_a_tower_with_code_of_its_own_is_built_without_it(tmp_path, trace):
    tower = tmp_path / "tower"
    BertModel(tower_config("bert")).save_pretrained(tower)
    (tower / "evil.py").write_text(EVIL.format(trace=str(trace)))
    rewrite(tower / "config.json", lambda config: config.update(FOREIGN))
    model = MXMCLRModel.from_text_vision_pretrained(tower, {"model_type": "vit", **CLIP_VISION}, projection_dim=16)
    model.save_pretrained(tmp_path / "run")
    assert "evil" not in (tmp_path / "run" / "config.json").read_text()
    assert not trace.exists()


def test_a_tower_that_only_its_own_code_could_build_is_refused(tmp_path, trace):
    tower = tmp_path / "tower"
    BertModel(tower_config("bert")).save_pretrained(tower)
    (tower / "evil.py").write_text(EVIL.format(trace=str(trace)))
    rewrite(tower / "config.json", lambda config: config.update(FOREIGN, model_type="evil"))
    with pytest.raises(ValueError, match=r"evil|trust_remote_code"):
        MXMCLRModel.from_text_vision_pretrained(tower, {"model_type": "vit", **CLIP_VISION}, projection_dim=16)
    assert not trace.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_a_checkpoint_of_ours_needs_no_code_from_its_folder_whatever_its_files_name(file, checkpoint, trace):
    rewrite(checkpoint / file, lambda config: config.update(FOREIGN))
    AutoModel.from_pretrained(checkpoint, trust_remote_code=False)
    AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    assert not trace.exists()


def test_trust_in_a_checkpoint_is_not_handed_on_to_its_tokenizer(checkpoint, trace):
    rewrite(checkpoint / "tokenizer_config.json", lambda config: config["auto_map"].update(FOREIGN["auto_map"]))
    AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    assert not trace.exists()


def test_pickled_weights_are_refused_for_what_they_are(checkpoint, tmp_path):
    folder = pickled(checkpoint)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModel.from_pretrained(folder)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        MXMCLRModel.from_pretrained(folder)
    with pytest.raises(ValueError, match="`use_safetensors` must be True, got False: weights are never unpickled"):
        MXMCLRModel.from_pretrained(folder, use_safetensors=False)


def test_pickled_towers_are_refused(tmp_path):
    BertModel(tower_config("bert")).save_pretrained(tmp_path / "text")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        MXMCLRModel.from_text_vision_pretrained(pickled(tmp_path / "text"), {"model_type": "vit", **CLIP_VISION})
    CLIPModel(CLIPConfig(text_config=CLIP_TEXT, vision_config=CLIP_VISION, projection_dim=12)).save_pretrained(
        tmp_path / "clip"
    )
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        MXMCLRModel.from_clip_pretrained(pickled(tmp_path / "clip"))


def test_a_config_can_name_neither_a_file_of_weights_nor_a_kernel_to_fetch(checkpoint):
    names = {"transformers_weights": "adapter_model.bin", "attn_implementation": "evil/kernel"}
    rewrite(checkpoint / "config.json", lambda config: config.update(names))
    model = AutoModel.from_pretrained(checkpoint)
    assert not hasattr(model.config, "transformers_weights")
    assert model.config._attn_implementation != "evil/kernel"


@pytest.mark.parametrize("name", ["../outside.txt", "../../../outside.txt", "/tmp/outside-of-it.txt"])
def test_a_file_name_from_the_hub_can_not_leave_its_folder(name, tmp_path):
    with hub_server() as server:
        repo = server.repos["model", "org/evil"] = Repo(private=False)
        repo.add("main", {name: b"evil", name.lstrip("/"): b"evil"}, "evil")
        with pytest.raises((ValueError, OSError)):
            hf_hub_download("org/evil", name, endpoint=server.endpoint, cache_dir=tmp_path / "a" / "b" / "cache")
    assert not Path("/tmp/outside-of-it.txt").exists()
    inside = tmp_path / "a" / "b" / "cache"
    assert [path for path in tmp_path.rglob("*outside*") if inside not in path.parents] == []


def calls():
    """Where our code, tests aside, calls what, and with which constants by keyword."""
    for folder in ("modeling_mxmclr", "datasets_scripts", "training", "examples", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    keywords = {each.arg: getattr(each.value, "value", None) for each in node.keywords}
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), keywords


def test_nothing_of_ours_unpickles():
    unpickling = re.compile(r"(torch|pickle|joblib|dill|cloudpickle|shelve)\.(load|loads|open)|.*Unpickler")
    found = [
        (place, called)
        for place, called, keywords in calls()
        if unpickling.fullmatch(called) or keywords.get("allow_pickle") is True
    ]
    assert found == []


def test_trust_in_remote_code_is_given_by_users_alone():
    given = [place for place, _, keywords in calls() if keywords.get("trust_remote_code") is True]
    assert [place for place in given if not place.startswith("examples/")] == []  # where we play the user


def test_the_promises_name_tests_that_exist():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"\]\((tests/[\w/]+\.py)\)", text)
    assert len(named) >= 6
    assert [path for path in named if not (ROOT / path).is_file()] == []
    for path, name in re.findall(r"\((tests/[\w/]+\.py)\)[^\n]*?`(test_\w+)`", text):
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), name
