"""A trained model's folder: a Hugging Face model folder with prompt.json beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from saywhy import store
from saywhy.config import Lora
from saywhy.lm import LM, adapters, bind
from saywhy.lm.encode import Encoder, Prompt, golden_ids, make_encoder, template_hash
from saywhy.lm.load import model_of, tokenizer_of
from saywhy.prompts import BLIND_INSTRUCTION, REASONER
from saywhy.records import RequestError

# Tokens that others may generate behind a reasoning: cue, label and end.
ROOM_FOR_LABEL = 128


def save(folder: Path, arm: str, model: Any, encoder: Encoder, apart: tuple[Lora, str] | None = None) -> None:
    """Write the model and its prompt. Generation stops at the end token, so that any server stops where we do.

    An adapter is merged into the weights, or where it is told `apart`, with its settings and its base, written alone.
    """
    tokenizer = encoder.tokenizer
    before = model.generation_config
    stops = before.eos_token_id if before.eos_token_id is not None else tokenizer.eos_token_id
    known = [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    # A chat base may say that texts are drawn, or that words of the prompt are to be avoided, such as labels: whoever
    # asks without a word about it is to get what we scored.
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=before.bos_token_id,
        eos_token_id=[encoder.end, *(i for i in known if i != encoder.end)],
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=encoder.prompt.limit + ROOM_FOR_LABEL,
    )
    if apart is None:
        adapters.merge(model)
        model.config.use_cache = True
        model.save_pretrained(folder)
        model.config.use_cache = False
    else:
        adapters.save(folder, model, *apart)
    tokenizer.save_pretrained(folder)
    # A reasoner that is the control for it was not shown the answer.
    shown = arm == REASONER and BLIND_INSTRUCTION not in encoder.prompt.before + encoder.prompt.after
    prompt = {"arm": arm, "conditional_on_gold_label": shown, **asdict(encoder.prompt)}
    store.write_json(folder / "prompt.json", {**prompt, "seal": _seal(folder, prompt)})
    store.even_rights(folder, folder / "prompt.json")


def _seal(folder: Path, prompt: Mapping[str, Any]) -> dict[str, str]:
    """Hash, file by file, what decides the ids of a prompt; golden ids alone would miss a change to any other word."""
    return {"prompt.json": store.hash_of(prompt), "tokenizer.json": store.sha256_file(folder / "tokenizer.json")}


def load(folder: Path) -> tuple[str, LM]:
    """Load a model folder as written: what it was taught, and its model with encoder.

    An adapter is merged into its base in memory. Raises RequestError where that base, prompt.json, the tokenizer, the
    chat template or the golden ids differ from the training.
    """
    if not (folder / "prompt.json").exists():
        raise RequestError(f"{folder} is no model folder of saywhy: it has no prompt.json; name a run's arm folder")
    arm, prompt = _read_prompt(folder)
    tokenizer = tokenizer_of(folder)
    if template_hash(tokenizer) != prompt.template_hash:
        raise RequestError(f"{folder}: the chat template is not the one the model was trained with; restore its files")
    encoder = make_encoder(tokenizer, prompt)
    # The files may be the same and read otherwise, by another version of the library.
    if golden_ids(encoder) != prompt.golden:
        raise RequestError(f"{folder}: the tokenizer gives other ids than in training; restore its tokenizer files")
    model = adapters.load(folder) if (folder / adapters.CONFIG).exists() else model_of(folder)
    if torch.cuda.is_available():
        model.to("cuda")
    return arm, bind(model, encoder)


def _read_prompt(folder: Path) -> tuple[str, Prompt]:
    """Read what the model was taught and its prompt, and hold the files against their seal, which old folders lack."""
    saved = store.read_json(folder / "prompt.json")
    try:
        seal = saved.pop("seal", None)
        found = _seal(folder, saved) if seal is not None else {}
        changed = [name for name, value in found.items() if seal.get(name) != value]
        arm = saved.pop("arm")
        saved.pop("conditional_on_gold_label")
        prompt = Prompt(**{**saved, "golden": tuple(saved["golden"])})
    except (AttributeError, KeyError, TypeError) as problem:
        raise RequestError(f"{folder}: prompt.json is not one that saywhy wrote; restore it") from problem
    if changed:
        raise RequestError(f"{folder}: {changed[0]} is not what the training wrote; restore it")
    return arm, prompt
