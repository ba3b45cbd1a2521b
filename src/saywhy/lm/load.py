"""Bring a base model and its tokenizer into memory, or make a small one from scratch."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from saywhy.config import Scratch
from saywhy.lm.encode import CUES
from saywhy.lm.forward import PATHS, read_paths
from saywhy.lm.last import spare_last
from saywhy.lm.products import quick_products
from saywhy.records import RequestError
from saywhy.store import even_rights, sha256_folder

ATTENTION = ("sdpa", PATHS, "eager", "flex_attention")
TREE_LAYERS = {"full_attention", "sliding_attention"}
ALIBI_MODELS = {"bloom", "mpt"}
# Recurrent models whose config names no layer types, and whose recurrence calls itself attention.
RECURRENT_MODELS = {"rwkv"}
SCRATCH_CONTEXT = 1024


def tokenizer_of(base: str | Path, trust_remote_code: bool = False) -> Any:
    """Load a base's tokenizer. Raises RequestError naming the base where there is none."""
    return _from(AutoTokenizer, base, trust_remote_code, {})


def config_of(base: str | Path, trust_remote_code: bool = False) -> Any:
    """Load a base's config. Raises RequestError naming the base where there is none."""
    _refuse_adapter(base)
    return _from(AutoConfig, base, trust_remote_code, {})


def model_of(
    base: str | Path, trust_remote_code: bool = False, bits: int | None = None, revision: str | None = None
) -> Any:
    """Load a base's weights as float32 master weights, in evaluation mode; `revision` is a commit of a hub id.

    With `bits` (4) the linear layers but the head are held in 4 bits and compute in bf16: NF4 with quantised scales, as
    2305.14314 has it. They cannot be trained.
    """
    _refuse_adapter(base)
    options: dict[str, Any] = {"dtype": torch.float32, "revision": revision or "main"}
    if bits is not None:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return _prepared(_from(AutoModelForCausalLM, base, trust_remote_code, options))


def random_of(config: Any, layers: int, device: str) -> Any:
    """Make a model of a config's shape, but with so many layers, with random float32 weights on a device."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    cuda = [torch.device(device)] if device != "cpu" else []
    with torch.random.fork_rng(devices=cuda), torch.device(device):
        torch.manual_seed(0)
        return _prepared(AutoModelForCausalLM.from_config(config, dtype=torch.float32))


def _prepared(model: Any) -> Any:
    """Make a model ready to be trained and asked, in evaluation mode."""
    model.config.use_cache = False
    model.eval()
    read_paths(model)
    spare_last(model)
    quick_products(model)
    return model


def skeleton_of(base: str | Path, trust_remote_code: bool = False) -> Any:
    """Make a base's model from its config, on no device and without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config_of(base, trust_remote_code), trust_remote_code=trust_remote_code
        )


def _refuse_adapter(base: str | Path) -> None:
    if (Path(base) / "adapter_config.json").exists():
        raise RequestError(
            f"base: {base} holds an adapter without its base; `saywhy export` writes a whole model from it, name that"
        )


def _from(kind: Any, base: str | Path, trust_remote_code: bool, options: Mapping[str, Any]) -> Any:
    try:
        return kind.from_pretrained(str(base), trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError, SafetensorError) as problem:
        closed = [path for path in Path(base).glob("*") if not os.access(path, os.R_OK)]
        if closed:
            raise RequestError(f"{closed[0]} may not be read by this user; chmod a+r lets everyone") from problem
        where = "the folder" if Path(base).exists() else "the hub id or folder"
        first = str(problem).strip().split("\n")[0]
        raise RequestError(
            f"base: {where} {str(base)!r} cannot be loaded as a causal language model: {first} "
            "Check the name, or set base to a folder with config.json and weights, or to scratch."
        ) from problem


def base_hash(base: str | Path) -> str:
    """Identify a base's content: a folder by the hash of its files, a hub id by the commit that is cached."""
    if Path(base).is_dir():
        return sha256_folder(Path(base))
    return f"{base}@{getattr(config_of(base), '_commit_hash', None)}"


def context_of(config: Any) -> int:
    """Give the number of tokens a model can read; 4096 where its config does not say."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 4096)


def why_no_tree(model: Any) -> str:
    """Say why a model cannot read token trees, "" where it can.

    A tree needs attention that takes any mask: linear attention, convolution and recurrence carry state from token to
    token in the order they are laid, and ALiBi measures distance by place, not by depth.
    """
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not layers <= TREE_LAYERS:
        return f"its layers are {', '.join(sorted(layers - TREE_LAYERS))}"
    if config.model_type in RECURRENT_MODELS:
        return "its layers are recurrent"
    if config.model_type in ALIBI_MODELS or getattr(config, "alibi", False):
        return "it measures distance with ALiBi"
    if config._attn_implementation not in ATTENTION:
        return f"its attention is {config._attn_implementation}, and token trees know {', '.join(ATTENTION)}"
    if "attention" not in " ".join(type(module).__name__.lower() for module in model.modules()):
        return "it has no attention layers"
    return ""


def make_scratch(folder: Path, texts: Iterable[str], size: Scratch, seed: int) -> None:
    """Write a small Llama with random weights and a byte-level BPE tokenizer trained on `texts`, as a model folder.

    Digits stand alone, so that sums are not learnt number by number.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # What ends a label shares the label's weight in the loss: as one token it takes little of it.
    tokenizer.add_tokens([AddedToken(cue, normalized=False) for cue in CUES])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=size.width,
        intermediate_size=-(-size.width * 8 // 3 // 32) * 32,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=SCRATCH_CONTEXT,
        # Tied, so small a model learns far more slowly: 19.5% mean recall where untied has 67.8% (LOG.md, 2026-11-20).
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    even_rights(folder, folder / "config.json")
