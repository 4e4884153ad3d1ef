import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.multifold_retrieval.bootstrap import bootstrap_intervals
from training.multifold_retrieval.metrics import score_queries
from training.multifold_retrieval.multifold_retrieval import MultifoldRetrieval

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "training" / "multifold_retrieval"
CUTOFFS = {"hit_ks": (1, 5), "ndcg_ks": (5,), "recall_ks": (5,), "precision_ks": (3,)}


def unit_rows(num_rows: int, dim: int = 8, seed: int = 0) -> Tensor:
    rows = torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


QUERIES, QUERY_IDS = unit_rows(20), torch.arange(20) // 2
GALLERY, GALLERY_IDS = unit_rows(30, seed=1), torch.arange(30) // 3


@pytest.fixture
def metric(tmp_path) -> MultifoldRetrieval:
    return MultifoldRetrieval(cache_dir=str(tmp_path))


def test_scores_are_those_of_score_queries_with_intervals(metric):
    scores = metric.compute(
        query_embeds=QUERIES,
        query_group_ids=QUERY_IDS,
        gallery_embeds=GALLERY,
        gallery_group_ids=GALLERY_IDS,
        **CUTOFFS,
    )
    expected = score_queries(QUERIES, GALLERY, QUERY_IDS, GALLERY_IDS, **CUTOFFS)
    intervals, spread = scores.pop("ci95"), scores.pop("rank_spread")
    assert scores == expected.as_dict()
    by_instance = bootstrap_intervals({"map": expected.values["map"]}, QUERY_IDS)
    assert intervals["map"] == pytest.approx(by_instance["map"])
    assert intervals.keys() == expected.values.keys() - {"rank"} | {"mean_rank"}
    pairs = expected.values["rank"].reshape(10, 2)
    assert spread == pytest.approx(pairs.std(dim=1, correction=0).mean().item())
    assert json.loads(json.dumps(scores)) == scores


def test_batches_of_queries_score_as_the_whole(metric):
    for start in range(0, 20, 7):
        metric.add_batch(
            query_embeds=QUERIES[start : start + 7].tolist(), query_group_ids=QUERY_IDS[start : start + 7].tolist()
        )
    scores = metric.compute(gallery_embeds=GALLERY.numpy(), gallery_group_ids=GALLERY_IDS.numpy(), resamples=0)
    assert "ci95" not in scores
    assert scores["mrr"] == score_queries(QUERIES, GALLERY, QUERY_IDS, GALLERY_IDS).as_dict()["mrr"]
    assert scores["queries"] == 20


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_embeddings_keep_their_precision_up_to_float32(metric, dtype):
    queries, gallery = QUERIES.to(dtype), GALLERY.to(dtype)
    scores = metric.compute(
        query_embeds=queries,
        query_group_ids=QUERY_IDS,
        gallery_embeds=gallery,
        gallery_group_ids=GALLERY_IDS,
        resamples=0,
    )
    expected = score_queries(queries, gallery, QUERY_IDS, GALLERY_IDS).as_dict()
    assert {name: scores[name] for name in expected} == pytest.approx(expected)


GOOD = {
    "query_embeds": [[1.0, 0.0]],
    "query_group_ids": [7],
    "gallery_embeds": [[1.0, 0.0], [0.0, 1.0]],
    "gallery_group_ids": [7, 8],
    "hit_ks": [1],
    "ndcg_ks": [1],
}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"gallery_embeds": None}, ValueError, "`compute` needs `gallery_embeds` and `gallery_group_ids`"),
        ({"gallery_group_ids": None}, ValueError, "`compute` needs `gallery_embeds` and `gallery_group_ids`"),
        ({"gallery_embeds": [[1.0, 0.0], [1.0]]}, ValueError, "`gallery_embeds` must hold rows of one length"),
        (
            {"query_embeds": [[1.0, 0.0], [1.0]], "query_group_ids": [7, 8]},
            ValueError,
            "`query_embeds` must hold rows of one length",
        ),
        ({"query_group_ids": [7, 8]}, ValueError, "Mismatch in the number of query_embeds"),
        ({"query_embeds": [[2.0, 0.0]]}, ValueError, "`query_embeds` must have unit norm"),
        ({"query_group_ids": [9]}, ValueError, "No query has a relevant item in the gallery"),
        ({"gallery_group_ids": [7.0, 8.0]}, TypeError, "`gallery_group_ids` must be int64"),
        ({"hit_ks": [3]}, ValueError, "k of `hit_ks` must be from 1 to the 2 items of the gallery, got 3"),
        ({"resamples": -1}, ValueError, "`resamples` must be at least 1, got -1"),
        ({"top_k": [1]}, TypeError, "unexpected keyword argument 'top_k'"),
    ],
)
def test_bad_input_names_the_culprit(metric, changes, error, message):
    with pytest.raises(error, match=message):
        metric.compute(**GOOD | changes)


def siblings_of(name: str) -> set[str]:
    """The files of the folder that one of them imports."""
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    return {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level and node.module}


def test_every_file_that_the_module_needs_is_imported_by_itself():
    direct = siblings_of("multifold_retrieval")
    needed, found = set(direct), direct
    while found:
        found = set().union(*map(siblings_of, found)) - needed
        needed |= found
    assert needed == direct


def run(code: str, folder: Path, home: Path, **environment: str) -> str:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    variables |= {"HF_HOME": str(home), "TOKENIZERS_PARALLELISM": "false"} | environment
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def readme_example() -> tuple[str, str]:
    code, output = re.search(
        r"```python\n(.*?)```\n\n```text\n(.*?)```", (FOLDER / "README.md").read_text(), re.S
    ).groups()
    return code, output


def test_the_folder_alone_loads_offline_and_the_readme_tells_the_truth(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "training" / FOLDER.name, ignore=shutil.ignore_patterns("__pycache__"))
    code, output = readme_example()
    assert run(code, tmp_path, tmp_path / "home", HF_HUB_OFFLINE="1") == output


@pytest.mark.slow
def test_the_folder_loads_from_a_hub(tmp_path):
    revision = tmp_path / "site" / "spaces" / "org" / FOLDER.name / "resolve" / "main"
    shutil.copytree(FOLDER, revision, ignore=shutil.ignore_patterns("__pycache__"))
    code, output = readme_example()
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "site")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        code = code.replace("training/multifold_retrieval", "org/multifold_retrieval")
        assert run(code, tmp_path, tmp_path / "home", HF_ENDPOINT=address) == output
        server.shutdown()
