"""The model and the collator serve transformers' own `Trainer` as it is."""

import pytest
from transformers import Trainer, TrainingArguments

from datasets_scripts.loading import load_multifold
from tests.references.corpus import write_corpus
from tests.references.tiny import tiny_model, tiny_processor
from training.data import FoldCollator, named_splits


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's pinned memory without an accelerator, and the like
def test_the_trainer_of_transformers_trains_the_model(tmp_path):
    rows = named_splits(load_multifold(str(write_corpus(tmp_path / "corpus")), cache_dir=tmp_path / "cache"))["train"]
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        per_device_train_batch_size=6,
        max_steps=12,
        learning_rate=3e-3,
        logging_steps=1,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        seed=0,
    )
    trainer = Trainer(tiny_model(), arguments, data_collator=FoldCollator(tiny_processor(), 1, 1), train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 12
    assert sum(losses[-3:]) < sum(losses[:3])
