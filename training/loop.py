"""The training loop: batches to steps, with a log entry and an evaluation every so often."""

from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from training.batches import Batches
from training.cached_step import MicroBatchSizes, take_gradients
from training.guards import Guards
from training.memory import BatchMemory
from training.meter import Meter
from training.models import set_training_mode
from training.optimization import build_optimizer
from training.session import Session
from training.stages import evaluate_and_keep
from training.training_state import TrainingState, fix_bucket_order


def train(session: Session, batches: Batches) -> None:
    """The loop: batches to steps, with a log entry and an evaluation every so often."""
    accelerator, options = session.accelerator, session.arguments.optimization
    optimizer = build_optimizer(session.model, options)
    scheduler = get_cosine_schedule_with_warmup(optimizer, options.warmup_steps, options.max_steps)
    model, optimizer = accelerator.prepare(session.model, optimizer)
    fix_bucket_order(model)
    meter, guards, memory = Meter(accelerator), Guards(session), BatchMemory.of(session)
    state = TrainingState(session, optimizer, scheduler, batches, meter, memory)
    step, best = state.restore()
    # TensorBoard leaves out what a run that was killed logged after the step it is resumed from.
    accelerator.init_trackers("", init_kwargs={"tensorboard": {"purge_step": step + 1}})
    bar = tqdm(total=options.max_steps, initial=step, desc="training", disable=not accelerator.is_main_process)
    set_training_mode(session.model)
    micro_batch_sizes = MicroBatchSizes(
        options.micro_batch_images, options.micro_batch_texts, options.micro_batch_tokens
    )
    for batch in state.on(guards.clock.time(batches)):
        with accelerator.accumulate(model):
            output = take_gradients(accelerator, model, batch | memory.inputs(), micro_batch_sizes)
            guards.check_loss(step + 1, batch, output)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(model.parameters(), options.max_grad_norm or float("inf"))
                guards.check_gradient(step + 1, norm)
            optimizer.step()
            optimizer.zero_grad()
        meter.add(batch, output)
        memory.keep(batch, output)
        if not accelerator.sync_gradients:
            continue
        rate = scheduler.get_last_lr()[0]
        scheduler.step()
        step += 1
        if step % options.log_every == 0 or step == options.max_steps:
            values = meter.read() | guards.read(step) | {"train/grad_norm": float(norm), "train/lr": rate}
            bar.set_postfix(loss=f"{values['train/loss']:.3f}", refresh=False)
            session.log(step, values)
        if step % options.eval_every == 0 or step == options.max_steps:
            guards.settle()
            best = evaluate_and_keep(session, step, best)
            meter.restart_clock()
        if state.is_due(step):
            guards.settle()
            state.keep(step, best)
        bar.update()
    bar.close()
