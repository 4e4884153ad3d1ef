"""Retrieval scores inside transformers' own `Trainer`, which evaluates batches of instances with ragged folds."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import EvalPrediction

from modeling_mxmclr.folds_mxmclr import Observations
from training.data import RawRows, Row
from training.protocol import DEFAULT_PROTOCOL, Protocol, load_protocol
from training.retrieval import score_search
from training.searches import Embeddings, searches

Batch = dict[str, Tensor]

# What `TrainingArguments` needs: which inputs are targets, and that all columns of a row reach the collator.
EVALUATION_ARGUMENTS: dict[str, Any] = {
    "label_names": ["image_group_ids", "text_group_ids"],
    "remove_unused_columns": False,
}


class WholeRows(torch.utils.data.Dataset):
    """The rows of an evaluation split, marked so that `TrainerCollator` takes all of their observations."""

    def __init__(self, rows: RawRows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index] | {"whole": True}


class TrainerCollator:
    """`Trainer` has one collator for both; this one draws for training and takes `WholeRows` whole.

    Args:
        train: The collator of training rows.
        evaluate: The collator of `WholeRows`, such as a `FoldCollator` that draws all.
    """

    def __init__(self, train: Callable[[Sequence[Row]], Batch], evaluate: Callable[[Sequence[Row]], Batch]) -> None:
        self.train, self.evaluate = train, evaluate

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """The flat batch of these rows."""
        return self.evaluate(rows) if "whole" in rows[0] else self.train(rows)


class RetrievalMetrics:
    """`compute_metrics` of a `Trainer`: "text_to_instance_rr@1" and the like, as `retrieval_report` counts them.

    `Trainer` cuts every tensor of the last batch to the number of its instances, which would lose observations. So
    `collect` keeps each batch whole before that, and must be passed with the metrics::

        metrics = RetrievalMetrics()
        trainer = Trainer(
            model,
            TrainingArguments("run", eval_strategy="epoch", **EVALUATION_ARGUMENTS),
            data_collator=TrainerCollator(FoldCollator(processor, 4, 2), FoldCollator(processor)),
            train_dataset=rows["train"],
            eval_dataset=WholeRows(rows["validation"]),
            compute_metrics=metrics,
            preprocess_logits_for_metrics=metrics.collect,
        )

    On several processes `Trainer` takes all to have equally many rows; there, evaluate with `training/evaluate.py`.
    Where the image tower is a ViT, DINOv2 or Swin, `load_best_model_at_end` of transformers 5.23 leaves it as it is
    (https://github.com/huggingface/transformers/issues/48805); load `trainer.state.best_model_checkpoint` instead, with
    `from_pretrained`.

    Args:
        protocol: `multifold/instance` by default; one that needs neither the texts of captions nor classes.

    Raises:
        ValueError: For a protocol that needs them.
    """

    def __init__(self, protocol: Protocol | None = None) -> None:
        self.protocol = protocol or load_protocol(DEFAULT_PROTOCOL)
        if self.protocol.gallery_unit == "class" or self.protocol.identical_captions != "keep":
            raise ValueError(
                "`protocol` must search no classes and keep identical captions, which "
                f"'{self.protocol.name}' does not; score the checkpoint under it with training/evaluate.py."
            )
        self._batches: list[Observations] = []

    def collect(self, outputs: Any, group_ids: Any) -> Tensor:
        """`preprocess_logits_for_metrics`: keep a batch, and return one number that stands for it, `(1,)`.

        Args:
            outputs: The image and the text embeddings of the batch.
            group_ids: Their group ids.

        Raises:
            ValueError: On several processes, when `Trainer` was not told which inputs are targets, or when its outputs
                are not those of our model.
        """
        if PartialState().num_processes > 1:
            raise ValueError(
                f"`RetrievalMetrics` must run on one process, got {PartialState().num_processes}; train with "
                "`eval_strategy='no'` and score the checkpoint with training/evaluate.py."
            )
        if group_ids is None:
            raise ValueError(
                f"`label_names` must be {EVALUATION_ARGUMENTS['label_names']}; pass `**EVALUATION_ARGUMENTS` to "
                "`TrainingArguments`."
            )
        if len(outputs) != 2:
            raise ValueError(
                f"`outputs` must be the two embeddings of an MXMCLRModel, got {len(outputs)} parts; leave its "
                "`config.keys_to_ignore_at_inference` as it is."
            )
        self._batches.append(Observations(*(part.cpu() for part in (*outputs, *group_ids))))
        return torch.zeros(1, device=outputs[0].device)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """The metrics of the evaluation that has just ended, by direction and name.

        Raises:
            ValueError: When `collect` was not called for its batches.
        """
        # An evaluation that broke off may have left batches before these.
        batches, self._batches = self._batches[-len(prediction.predictions) :], []
        if not batches:
            raise ValueError(
                "`preprocess_logits_for_metrics` must be `collect` of the same object; pass it to `Trainer`."
            )
        images, texts, image_group_ids, text_group_ids = map(
            torch.cat, zip(*(batch[:4] for batch in batches), strict=True)
        )
        embeddings = Embeddings(images, image_group_ids, texts, text_group_ids, [""] * len(texts), {}, {})
        return {
            f"{direction}_{name}": value
            for direction, search in searches(embeddings, self.protocol).items()
            for name, value in score_search(search, self.protocol).as_dict().items()
            if not name.startswith(("chance_", "queries"))
        }
