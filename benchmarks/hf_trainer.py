"""The peer of fine-tuning: Hugging Face's Trainer, on the same model and the same rows."""

import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import transformers
from parts import Stopwatch

from lensjax.models.lora import split_trainable
from lensjax.tasks.batches import collate
from lensjax.train.candidate import Candidate

PACKAGES = ("torch", "accelerate")


def installed() -> bool:
    """Whether torch and what its Trainer needs are there."""
    return all(find_spec(name) is not None for name in PACKAGES)


def make_trainer(candidate: Candidate, seed: int, model: Mapping[str, Any], **settings: Any) -> Any:
    """A Trainer of the same model on the same rows; settings are fields of its TrainingArguments."""
    import torch

    tokens, training = candidate.tokens.train[seed], candidate.spec.training
    rows = collate(tokens, range(len(tokens)), range(len(tokens)), candidate.tokens.lengths[1], candidate.padding)
    columns = {name: torch.from_numpy(array).long() for name, array in rows.items()}
    quiet = dict.fromkeys(("logging_strategy", "save_strategy", "eval_strategy", "report_to"), "no")
    arguments = transformers.TrainingArguments(
        output_dir=tempfile.gettempdir(),
        per_device_train_batch_size=training.batch_size,
        max_steps=training.max_steps,
        learning_rate=training.learning_rates[0],
        weight_decay=training.weight_decay,
        max_grad_norm=training.clip,
        optim="adamw_torch_fused",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        seed=seed,
        **(quiet | {"report_to": "none", "dataloader_pin_memory": False} | settings),
    )
    made = transformers.AutoModelForCausalLM.from_pretrained(candidate.source, dtype=torch.float32, **model)
    check_same_loss(candidate, made, {name: column[: training.batch_size] for name, column in columns.items()})
    trainer = transformers.Trainer(
        model=made,
        args=arguments,
        train_dataset=[{name: column[i] for name, column in columns.items()} for i in range(len(tokens))],
        data_collator=transformers.default_data_collator,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def check_same_loss(candidate: Candidate, peer: Any, batch: Mapping[str, Any]) -> None:
    """Fail where the two models do not compute the same."""
    import torch

    with torch.no_grad():
        theirs = float(peer.eval()(**batch).loss)
    trained, frozen = split_trainable(candidate.pretrained().params)
    arrays = candidate.placement.to_devices({name: column.numpy().astype(np.int32) for name, column in batch.items()})
    sums, counts, _ = candidate.programs.losses(trained, frozen, arrays)
    ours = float(sums.sum() / counts.sum())
    precision = 1e-5 if candidate.dtype == "float32" else 1e-2
    assert np.isclose(ours, theirs, rtol=precision), f"the contenders do not compute the same: {ours}, {theirs}"


def their_step(trainer: Any, warm_up: int) -> float:
    """Seconds of a step of the Trainer's."""
    import torch

    watch = Stopwatch(warm_up, trainer.args.max_steps)

    class Callback(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if torch.cuda.is_available() and state.global_step in (watch.first, watch.last):
                torch.cuda.synchronize()
            watch.mark(state.global_step)

    callback = Callback()
    trainer.add_callback(callback)
    trainer.train()
    trainer.remove_callback(callback)
    return watch.seconds
