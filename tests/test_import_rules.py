"""Who may import whom, read from the syntax tree; docs/architecture.md gives the reasons."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Our modules that each file of modeling_mxmclr may import. A new file gets its line here.
SIBLINGS = {
    "__init__": {
        "configuration_mxmclr",
        "folds_mxmclr",
        "modeling_mxmclr",
        "objectives_mxmclr",
        "processing_mxmclr",
        "version",
    },
    "version": set(),
    "configuration_mxmclr": set(),
    "buckets_mxmclr": set(),
    "folds_mxmclr": set(),
    "queries_mxmclr": set(),
    "tiles_mxmclr": set(),
    "blockwise_mxmclr": {"folds_mxmclr", "queries_mxmclr", "tiles_mxmclr"},
    "relation_mxmclr": {"blockwise_mxmclr", "tiles_mxmclr"},
    "contrast_mxmclr": {"blockwise_mxmclr", "folds_mxmclr", "queries_mxmclr", "relation_mxmclr"},
    "mfh_mxmclr": {"contrast_mxmclr", "folds_mxmclr", "relation_mxmclr"},
    "multiview_objectives_mxmclr": {"contrast_mxmclr", "folds_mxmclr"},
    "pmrl_mxmclr": {"contrast_mxmclr", "folds_mxmclr"},
    "siglip_mxmclr": {"contrast_mxmclr", "folds_mxmclr", "tiles_mxmclr"},
    "softmax_objectives_mxmclr": {"contrast_mxmclr", "folds_mxmclr"},
    "tcl_mxmclr": {"contrast_mxmclr", "folds_mxmclr"},
    "terms_mxmclr": {"contrast_mxmclr", "folds_mxmclr"},
    "tuple_objectives_mxmclr": {"contrast_mxmclr", "folds_mxmclr", "multiview_objectives_mxmclr"},
    "weighted_objectives_mxmclr": {"contrast_mxmclr", "folds_mxmclr", "queries_mxmclr", "relation_mxmclr"},
    "objectives_mxmclr": {
        "contrast_mxmclr",
        "folds_mxmclr",
        "mfh_mxmclr",
        "multiview_objectives_mxmclr",
        "pmrl_mxmclr",
        "siglip_mxmclr",
        "softmax_objectives_mxmclr",
        "tcl_mxmclr",
        "terms_mxmclr",
        "tuple_objectives_mxmclr",
        "weighted_objectives_mxmclr",
    },
    "distributed_mxmclr": {"folds_mxmclr"},
    "scale_mxmclr": set(),
    "towers_mxmclr": {"configuration_mxmclr"},
    "modeling_mxmclr": {
        "buckets_mxmclr",
        "configuration_mxmclr",
        "contrast_mxmclr",
        "folds_mxmclr",
        "objectives_mxmclr",
        "distributed_mxmclr",
        "scale_mxmclr",
        "towers_mxmclr",
    },
    "pixels_mxmclr": set(),
    "processing_mxmclr": {"folds_mxmclr", "pixels_mxmclr"},
    "sentence_transformers_mxmclr": set(),
    "probe_mxmclr": {"modeling_mxmclr", "processing_mxmclr"},
    "adapters_mxmclr": {"modeling_mxmclr", "processing_mxmclr", "probe_mxmclr"},
}
# Each of these becomes a requirement of whoever loads a checkpoint with `trust_remote_code`.
CHECKPOINT_PACKAGES = {"torch", "transformers", "huggingface_hub"}
# And what single files may import beside them. Only the first two of these go into checkpoints.
MORE_PACKAGES = {
    "pixels_mxmclr": {"numpy", "PIL"},
    "processing_mxmclr": {"numpy", "PIL"},
    "probe_mxmclr": {"safetensors"},
    "adapters_mxmclr": {"peft", "safetensors"},
    "sentence_transformers_mxmclr": {"numpy", "PIL", "sentence_transformers"},
}
# What training may import beside the names that a package exports.
OPEN_MODULES = {
    "modeling_mxmclr": (
        "modeling_mxmclr.adapters_mxmclr",
        "modeling_mxmclr.buckets_mxmclr",
        "modeling_mxmclr.contrast_mxmclr",  # above how many logits there are tiles, for training/exactness.py
        "modeling_mxmclr.distributed_mxmclr",  # what all ranks observed, for training/memory.py
        "modeling_mxmclr.folds_mxmclr",
        "modeling_mxmclr.objectives_mxmclr",
        "modeling_mxmclr.probe_mxmclr",
        "modeling_mxmclr.tiles_mxmclr",  # and how large these are
    ),
    "datasets_scripts": ("datasets_scripts.schema", "datasets_scripts.loading", "datasets_scripts.raw_images"),
}
# How `save_pretrained` finds the files to copy: in the text, so in docstrings too.
COPIED_LINE = re.compile(r"^\s*from\s+\.(\S+)\s+import", re.MULTILINE)


class Import(NamedTuple):
    """One imported name: `from <dots><module> import <name>`, or `import <module>` where name is empty."""

    level: int
    module: str
    name: str

    def __str__(self) -> str:
        source = "." * self.level + self.module
        return f"from {source} import {self.name}" if self.name else f"import {source}"

    def reaches(self, module: str) -> bool:
        """Whether this loads a module or anything below it."""
        return self.level == 0 and f"{self.module}.{self.name}.".startswith(f"{module}.")


def imports_of(source: str) -> Iterator[Import]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(0, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (Import(node.level, node.module or "", alias.name) for alias in node.names)


def public_names(package: str) -> set[str]:
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return set(names)


def violations(path: str, source: str, public: dict[str, set[str]]) -> list[str]:
    """What is wrong with a file's imports; `path` is relative to the repository."""
    folder, _, _ = path.partition("/")
    broken = [f"{found}: nothing imports the script train.py" for found in imports_of(source) if is_train(found)]
    if folder == "modeling_mxmclr":
        broken += violations_of_library(Path(path).stem, source)
    elif folder == "datasets_scripts":
        broken += [f"{found}: data sets know no model" for found in imports_of(source) if knows_models(found)]
    elif folder == "training":
        broken += [f"{found}: not public" for found in imports_of(source) if not is_open_to_training(found, public)]
    return broken


def is_train(found: Import) -> bool:
    return found.reaches("training.train") or (found.level, found.module, found.name) == (1, "", "train")


def knows_models(found: Import) -> bool:
    return any(found.reaches(package) for package in ("torch", "modeling_mxmclr", "training"))


def is_open_to_training(found: Import, public: dict[str, set[str]]) -> bool:
    package = found.module.partition(".")[0]
    if found.level or package not in OPEN_MODULES:
        return True
    return found.module in OPEN_MODULES[package] or (found.module == package and found.name in {"", *public[package]})


def violations_of_library(stem: str, source: str) -> list[str]:
    if stem not in SIBLINGS:
        return [f"{stem}.py has no line in SIBLINGS: say what of ours it may import"]
    broken = [f"{found}: {reason}" for found in imports_of(source) if (reason := why_not_in_library(stem, found))]
    relative = sum(isinstance(node, ast.ImportFrom) and node.level > 0 for node in ast.walk(ast.parse(source)))
    if len(COPIED_LINE.findall(source)) > relative:
        broken.append("a docstring line reads as a relative import; `save_pretrained` would look for that file")
    if stem != "distributed_mxmclr" and names_distributed(source):
        broken.append("torch.distributed belongs to distributed_mxmclr")
    if stem == "__init__" and any(isinstance(node, ast.ClassDef) for node in ast.walk(ast.parse(source))):
        broken.append("__init__.py defines a class, and is not copied to the Hub")
    return broken


def why_not_in_library(stem: str, found: Import) -> str:
    if found.level > 0:
        if found.level > 1 or "." in found.module or not found.module:
            return "write `from .name_mxmclr import x`: checkpoints are flat"
        return "" if found.module in SIBLINGS[stem] else f"{stem} may import {sorted(SIBLINGS[stem])}"
    package = found.module.partition(".")[0]
    allowed = CHECKPOINT_PACKAGES | MORE_PACKAGES.get(stem, set())
    if package not in allowed and package not in sys.stdlib_module_names:
        return f"checkpoints need only {sorted(allowed)}"
    return ""


def names_distributed(source: str) -> bool:
    attributes = (ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    return "torch.distributed" in attributes or any(found.reaches("torch.distributed") for found in imports_of(source))


def python_files() -> list[str]:
    folders = ("modeling_mxmclr", "datasets_scripts", "training", "tests")
    return sorted(str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.py"))


PUBLIC = {"modeling_mxmclr": {"MXMCLRModel"}, "datasets_scripts": {"load_multifold"}}


@pytest.mark.parametrize("path", python_files())
def test_imports_point_down(path):
    public = {package: public_names(package) for package in OPEN_MODULES}
    assert violations(path, (ROOT / path).read_text(), public) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("modeling_mxmclr/folds_mxmclr.py", "from .objectives_mxmclr import clip"),
        ("modeling_mxmclr/processing_mxmclr.py", "from .configuration_mxmclr import MXMCLRConfig"),
        ("modeling_mxmclr/modeling_mxmclr.py", "from . import folds_mxmclr"),
        ("modeling_mxmclr/modeling_mxmclr.py", "from .losses.mfh import mfh"),
        ("modeling_mxmclr/modeling_mxmclr.py", "from ..training import metrics"),
        ("modeling_mxmclr/modeling_mxmclr.py", "from modeling_mxmclr.folds_mxmclr import Observations"),
        ("modeling_mxmclr/modeling_mxmclr.py", "def lazy():\n    import accelerate"),
        ("modeling_mxmclr/modeling_mxmclr.py", "import torch.distributed as dist"),
        ("modeling_mxmclr/modeling_mxmclr.py", "from torch import distributed"),
        ("modeling_mxmclr/modeling_mxmclr.py", "import torch\n\nranks = torch.distributed.get_world_size()"),
        ("modeling_mxmclr/modeling_mxmclr.py", '"""Say this:\n\nfrom .folds_mxmclr import x\n"""'),
        ("modeling_mxmclr/modeling_mxmclr.py", "import numpy"),
        ("modeling_mxmclr/helpers.py", "import torch"),
        ("modeling_mxmclr/__init__.py", "class MXMCLRModel: ..."),
        ("datasets_scripts/shapes.py", "import torch"),
        ("datasets_scripts/shapes.py", "from torch.utils.data import Dataset"),
        ("datasets_scripts/shapes.py", "from modeling_mxmclr.folds_mxmclr import hash_instance_id"),
        ("training/data.py", "from modeling_mxmclr import LogitScale"),
        ("training/data.py", "from modeling_mxmclr.modeling_mxmclr import MXMCLRModel"),
        ("training/data.py", "from datasets_scripts.shapes import Shapes"),
        ("training/data.py", "from datasets_scripts import shapes"),
        ("training/data.py", "import datasets_scripts.shapes"),
        ("training/data.py", "from training.train import main"),
        ("tests/training/test_data.py", "from training import train"),
    ],
)
def test_a_broken_rule_is_found(path, line):
    assert len(violations(path, line, PUBLIC)) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("modeling_mxmclr/distributed_mxmclr.py", "import torch.distributed as dist"),
        ("modeling_mxmclr/modeling_mxmclr.py", "from .objectives_mxmclr import get_objective"),
        ("modeling_mxmclr/modeling_mxmclr.py", "from transformers.utils import logging"),
        ("modeling_mxmclr/processing_mxmclr.py", "import numpy\nfrom PIL import Image"),
        ("datasets_scripts/shapes.py", "import datasets\nimport trimesh"),
        ("training/data.py", "from modeling_mxmclr import MXMCLRModel"),
        ("training/data.py", "from modeling_mxmclr.folds_mxmclr import flatten_folds"),
        ("training/data.py", "from datasets_scripts.schema import FEATURES"),
        ("training/data.py", "from datasets_scripts import load_multifold"),
        ("training/train.py", "from training.trainer import Trainer"),
    ],
)
def test_a_kept_rule_is_silent(path, line):
    assert violations(path, line, PUBLIC) == []
