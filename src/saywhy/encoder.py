"""A floor on request: an encoder finetuned to tell the labels apart, as one would without a language model."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from saywhy import metrics
from saywhy.lm.load import context_of
from saywhy.metrics import Floats
from saywhy.progress import say
from saywhy.records import Prediction, RequestError, Row, Task

# Of the values that 1810.04805 (BERT), appendix A.3, recommends: 4 epochs, batches of 32, a rate of 5e-5.
EPOCHS = 4
BATCH = 32
RATE = 5e-5
# Few rows need more passes than that (2006.04884: 20 epochs where rows are few); the number is ours.
LEAST_STEPS = 200
# How often the dev rows are asked which weights are best; ours: once an epoch where there are many rows.
EVALUATIONS = 4


def refuse(base: str, trust_remote_code: bool) -> None:
    """Refuse an encoder that is not there, before anything is trained: reads its config and its tokenizer."""
    _from(AutoConfig, base, trust_remote_code)
    _from(AutoTokenizer, base, trust_remote_code)


def finetuned(
    base: str, task: Task, train: Sequence[Row], dev: Sequence[Row], seed: int, trust_remote_code: bool
) -> Callable[[Sequence[Row]], list[Prediction]]:
    """Finetune an encoder on the rows and give it as a system that answers rows, with probabilities for all labels.

    A text is the row's own, without the instruction; what is longer than the encoder reads is cut at its end. Of the
    weights after each quarter of the training those stand that have the best macro F1 on dev. Nothing is kept on disk.
    """
    tokenizer = _from(AutoTokenizer, base, trust_remote_code)
    with _own_draws(seed), tempfile.TemporaryDirectory() as folder:
        options = {"num_labels": len(task.labels), "ignore_mismatched_sizes": True, "dtype": torch.float32}
        model = _from(AutoModelForSequenceClassification, base, trust_remote_code, options)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id

        def predict(rows: Sequence[Row]) -> list[Prediction]:
            return _answered(task, model, tokenizer, rows)

        steps = max(LEAST_STEPS, EPOCHS * -(-len(train) // BATCH))
        best = _Best(lambda: _macro_f1(task, dev, predict(dev)), steps) if dev else None
        trainer = Trainer(
            model,
            _arguments(folder, steps, seed),
            DataCollatorWithPadding(tokenizer),
            _lessons(task, tokenizer, _limit(model, tokenizer), train),
            callbacks=None if best is None else [best],
        )
        # It would print to the standard output.
        trainer.remove_callback(PrinterCallback)
        say(f"floors/encoder: {steps} steps of {BATCH} rows")
        trainer.train()
        if best is not None:
            model.load_state_dict(best.weights)
    return predict


@contextmanager
def _own_draws(seed: int) -> Iterator[None]:
    """Leave everybody else's draws as they were: the trainer seeds all of them anew."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


class _Best(TrainerCallback):
    """Keep the weights that the dev rows find best, in main memory."""

    def __init__(self, score: Callable[[], float], steps: int) -> None:
        self.score, self.every = score, -(-steps // EVALUATIONS)
        self.highest, self.weights = -1.0, dict[str, Any]()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        model, reached = given["model"], self.score()
        model.train()
        if reached > self.highest:
            self.highest = reached
            self.weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _arguments(folder: str, steps: int, seed: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        # Linear decay and weight decay as in 1810.04805, appendix A.2; the warm-up is that of its published code.
        lr_scheduler_type="linear",
        warmup_steps=steps // 10,
        weight_decay=0.01,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def _lessons(task: Task, tokenizer: Any, limit: int, rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {**tokenizer(row.text, truncation=True, max_length=limit), "labels": task.labels.index(str(row.label))}
        for row in rows
    ]


def _limit(model: Any, tokenizer: Any) -> int:
    """Give the most tokens of a text; where only the model says, two less, since some count positions from two."""
    told, positions = int(tokenizer.model_max_length), context_of(model.config)
    return told if told <= positions else positions - 2


def _answered(task: Task, model: Any, tokenizer: Any, rows: Sequence[Row]) -> list[Prediction]:
    """Answer rows, the long ones with the long ones."""
    model.eval()
    limit = _limit(model, tokenizer)
    encoded = [tokenizer(row.text, truncation=True, max_length=limit) for row in rows]
    order = sorted(range(len(rows)), key=lambda at: len(encoded[at]["input_ids"]))
    found: dict[int, Prediction] = {}
    for start in range(0, len(order), BATCH):
        some = order[start : start + BATCH]
        batch = tokenizer.pad([encoded[at] for at in some], return_tensors="pt").to(model.device)
        with torch.inference_mode():
            logits = model(**batch).logits.double().cpu().numpy()
        for at, shares in zip(some, _softmax(logits), strict=True):
            tokens = float(len(encoded[at]["input_ids"]))
            probabilities = dict(zip(task.labels, shares.tolist(), strict=True))
            label = task.labels[int(shares.argmax())]
            found[at] = Prediction(label, probabilities, tokens=tokens, prompt_tokens=tokens)
    return [found[at] for at in range(len(rows))]


def _softmax(logits: Floats) -> Floats:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Floats = raised / raised.sum(axis=1, keepdims=True)
    return shares


def _macro_f1(task: Task, rows: Sequence[Row], answers: Sequence[Prediction]) -> float:
    gold = np.array([task.labels.index(str(row.label)) for row in rows])
    given = np.array([task.labels.index(one.label) for one in answers])
    return float(metrics.macro_f1(metrics.count(gold, given, len(task.labels))))


def _from(kind: Any, base: str, trust_remote_code: bool, options: Mapping[str, Any] | None = None) -> Any:
    try:
        return kind.from_pretrained(base, trust_remote_code=trust_remote_code, **(options or {}))
    except (OSError, ValueError) as problem:
        first = str(problem).strip().split("\n")[0]
        raise RequestError(
            f"evaluate.encoder: {base!r} cannot be loaded as a classifier of sequences: {first} Check the name, or set "
            "it to a folder with config.json, weights and tokenizer."
        ) from problem
