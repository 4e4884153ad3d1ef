"""The model serves transformers' own `Trainer` as it is, to train and to evaluate."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import EvalPrediction, Trainer, TrainingArguments

from datasets_scripts.loading import load_multifold
from modeling_mxmclr import MXMCLRModel
from tests.references.corpus import write_corpus
from tests.references.tiny import tiny_model, tiny_processor
from training.data import FoldCollator, named_splits
from training.encoding import encode_rows
from training.protocol import load_protocol
from training.retrieval import retrieval_report
from training.trainer_metrics import EVALUATION_ARGUMENTS, RetrievalMetrics, TrainerCollator, WholeRows

# Torch warns of pinned memory without an accelerator.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PROCESSOR = tiny_processor()


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    corpus = write_corpus(folder / "corpus", (("train", 12), ("validation", 7)))
    return named_splits(load_multifold(str(corpus), cache_dir=folder / "cache"))


def make_trainer(splits, folder, metrics=None, model=None, **arguments) -> Trainer:
    metrics = metrics or RetrievalMetrics()
    defaults = {
        "per_device_train_batch_size": 6,
        "per_device_eval_batch_size": 4,  # the last batch holds three instances of seven, but six images
        "max_steps": 12,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }
    return Trainer(
        model or tiny_model(),
        TrainingArguments(str(folder), **defaults | EVALUATION_ARGUMENTS | arguments),
        data_collator=TrainerCollator(FoldCollator(PROCESSOR, 1, 1), FoldCollator(PROCESSOR)),
        train_dataset=splits["train"],
        eval_dataset=WholeRows(splits["validation"]),
        compute_metrics=metrics,
        preprocess_logits_for_metrics=metrics.collect,
    )


def test_the_trainer_trains_the_model_with_our_collator_alone(splits, tmp_path):
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=6,
        max_steps=12,
        learning_rate=3e-3,
        logging_steps=1,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        seed=0,
    )
    trainer = Trainer(
        tiny_model(), arguments, data_collator=FoldCollator(PROCESSOR, 1, 1), train_dataset=splits["train"]
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 12
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 20])
def test_evaluation_is_the_report_of_the_same_rows(splits, tmp_path, batch_size):
    trainer = make_trainer(splits, tmp_path, per_device_eval_batch_size=batch_size)
    scores = trainer.evaluate()
    report = retrieval_report(encode_rows(trainer.model, PROCESSOR, splits["validation"]))
    names = ("rr@1", "rr@5", "recall@5", "precision@5", "ndcg@5", "mrr", "map", "r_precision", "median_rank")
    for direction in ("text_to_instance", "instance_to_text"):
        assert report[direction]["queries"] in (7, 10)
        for name in names:
            assert scores[f"eval_{direction}_{name}"] == pytest.approx(report[direction][name], abs=1e-5), name
    assert np.isfinite(scores["eval_loss"])


SAVED = {
    "eval_strategy": "steps",
    "eval_steps": 3,
    "save_strategy": "steps",
    "save_steps": 3,
    "max_steps": 9,
    "metric_for_best_model": "text_to_instance_mrr",
}


def train_and_take_the_best(trainer: Trainer) -> float:
    """The best score of a training with `SAVED`."""
    trainer.train()
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    scores = [entry["eval_text_to_instance_mrr"] for entry in evaluated]
    assert [entry["step"] for entry in evaluated] == [3, 6, 9]
    assert len(set(scores)) > 1
    assert trainer.state.best_metric == max(scores)
    return max(scores)


def test_the_best_checkpoint_is_loaded_at_the_end(splits, tmp_path):
    model = tiny_model(vision="clip_vision_model")
    trainer = make_trainer(splits, tmp_path, model=model, load_best_model_at_end=True, **SAVED)
    best = train_and_take_the_best(trainer)
    assert trainer.evaluate()["eval_text_to_instance_mrr"] == pytest.approx(best)


def test_the_best_checkpoint_of_a_vit_loads_with_from_pretrained(splits, tmp_path):
    trainer = make_trainer(splits, tmp_path / "run", **SAVED)
    best = train_and_take_the_best(trainer)
    model = MXMCLRModel.from_pretrained(trainer.state.best_model_checkpoint)
    scores = make_trainer(splits, tmp_path / "again", model=model).evaluate()
    assert scores["eval_text_to_instance_mrr"] == pytest.approx(best)


def test_the_protocol_decides_the_search(splits, tmp_path):
    protocol = replace(load_protocol("multifold/observation"), hit_ks=(2,))
    trainer = make_trainer(splits, tmp_path, RetrievalMetrics(protocol))
    scores = trainer.evaluate()
    report = retrieval_report(encode_rows(trainer.model, PROCESSOR, splits["validation"]), protocol)
    assert scores["eval_text_to_instance_rr@2"] == pytest.approx(report["text_to_instance"]["rr@2"])
    assert scores["eval_text_to_instance_mrr"] == pytest.approx(report["text_to_instance"]["mrr"], abs=1e-5)


def batch_of(metrics: RetrievalMetrics, seed: int) -> torch.Tensor:
    embeds = torch.nn.functional.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)), dim=1)
    ids = torch.arange(2) + 10 * seed
    return metrics.collect((embeds[:2], embeds[2:]), (ids, ids))


def test_batches_of_an_evaluation_that_broke_off_do_not_count():
    metrics, alone = RetrievalMetrics(), RetrievalMetrics()
    batch_of(metrics, seed=1)
    for each in (metrics, alone):
        stands_for = torch.cat([batch_of(each, seed=2), batch_of(each, seed=3)])
    prediction = EvalPrediction(stands_for.numpy(), ())
    assert metrics(prediction) == alone(prediction)


def test_a_trainer_without_targets_is_told_what_it_needs(splits, tmp_path):
    with pytest.raises(ValueError, match=r"`label_names` must be \['image_group_ids', 'text_group_ids'\]"):
        make_trainer(splits, tmp_path, label_names=None).evaluate()


def test_a_trainer_without_collect_is_told_what_it_needs(splits, tmp_path):
    trainer = make_trainer(splits, tmp_path)
    trainer.preprocess_logits_for_metrics = None
    with pytest.raises(ValueError, match="`preprocess_logits_for_metrics` must be `collect` of the same object"):
        trainer.evaluate()


def test_outputs_of_a_model_that_ignores_other_keys_are_an_error(splits, tmp_path):
    model = tiny_model()
    model.config.keys_to_ignore_at_inference = []
    with pytest.raises(ValueError, match="`outputs` must be the two embeddings of an MXMCLRModel, got 6 parts"):
        make_trainer(splits, tmp_path, model=model).evaluate()


def test_several_processes_are_refused_before_they_hang(monkeypatch):
    monkeypatch.setattr("training.trainer_metrics.PartialState", lambda: type("State", (), {"num_processes": 2})())
    with pytest.raises(ValueError, match="`RetrievalMetrics` must run on one process, got 2"):
        batch_of(RetrievalMetrics(), seed=1)


def test_protocols_that_need_more_than_embeddings_are_refused():
    for protocol in (
        load_protocol("zero-shot"),
        replace(load_protocol("multifold/instance"), identical_captions="drop_shared"),
    ):
        with pytest.raises(ValueError, match="`protocol` must search no classes and keep identical captions"):
            RetrievalMetrics(protocol)
