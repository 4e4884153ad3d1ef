"""Train a checkpoint further with transformers' own `Trainer`.

Usage:
    python examples/hf_trainer.py --checkpoint runs/shapes_cpu --dataset shapes --output runs/hf_trainer
"""

import argparse
import random

from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments

import modeling_mxmclr  # noqa: F401 - registers MXM-CLR with the Auto classes
from datasets_scripts import load_multifold

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--checkpoint", default="runs/shapes_cpu")
parser.add_argument("--dataset", default="shapes", help="What `load_multifold` takes, such as a folder of yours.")
parser.add_argument("--output", default="runs/hf_trainer")
parser.add_argument("--views", type=int, default=2, help="Views drawn of each instance in a step.")
parser.add_argument("--batch_size", type=int, default=64, help="Instances in a step.")
parser.add_argument("--max_steps", type=int, default=20)
parser.add_argument("--learning_rate", type=float, default=1e-4)
chosen = parser.parse_args()

model = AutoModel.from_pretrained(chosen.checkpoint)
processor = AutoProcessor.from_pretrained(chosen.checkpoint)
rows = load_multifold(chosen.dataset)


def draw(instances):
    """The flat batch of some instances: a few views of each, and all captions."""
    views = [random.sample(row["images"], min(chosen.views, len(row["images"]))) for row in instances]
    names = [row["instance_id"] for row in instances]
    return processor(images=views, text=[row["captions"] for row in instances], instance_ids=names)


arguments = TrainingArguments(
    chosen.output,
    per_device_train_batch_size=chosen.batch_size,
    per_device_eval_batch_size=chosen.batch_size,
    max_steps=chosen.max_steps,
    learning_rate=chosen.learning_rate,
    logging_steps=max(1, chosen.max_steps // 10),
    remove_unused_columns=False,  # the rows go to `draw` as they are
    label_names=["image_group_ids", "text_group_ids"],  # what makes `evaluate` ask for the loss
    prediction_loss_only=True,
    save_strategy="no",
    report_to=[],
)
trainer = Trainer(
    model,
    arguments,
    data_collator=draw,
    train_dataset=rows["train"],
    eval_dataset=rows["validation"],
)
before = trainer.evaluate()["eval_loss"]
trainer.train()
print(f"loss on validation: {before:.3f} before, {trainer.evaluate()['eval_loss']:.3f} after")
model.save_pretrained(chosen.output)  # `trainer.save_model` would add a pickle of the arguments
processor.save_pretrained(chosen.output)
print(f"saved in {chosen.output}")
