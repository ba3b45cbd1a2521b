"""Models and tokenizers of toy size, made in the process; the architectures differ where token trees could go wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3NextConfig,
    RwkvConfig,
    StableLmConfig,
)

from saywhy.lm import bind
from saywhy.lm.encode import make_encoder, render
from saywhy.lm.forward import read_paths
from saywhy.lm.last import spare_last
from saywhy.lm.products import quick_products
from saywhy.predict import Classifier, TextClassifier
from saywhy.prompts import task_instruction
from saywhy.records import Task

VOCABULARY = 400
WINDOW = 6
SENTENCES = (
    "i feel so alone tonight and nobody calls",
    "what a lovely morning, the birds are singing and so am i",
    "Label: joy",
    "Label: sadness",
    "Label: yes and no",
    "Reasoning: the writer says that nobody calls, which is a loss.",
    "Reasoning: lovely and singing are words of pleasure.",
    "Question: what does 12 plus 30 give?\nAnswer: 42",
    "Which emotion does the writer express?\n- sadness: loss, regret\n- joy: pleasure, pride",
    "the the the and and and of of of to to to in in in <s> </s> <|im_start|> [INST]",
)

# Weights are drawn wide, so that every token has an answer of its own and rounding cannot exchange two of them.
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MIXED = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**{**SMALL, "num_key_value_heads": 4}, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL, tie_word_embeddings=True),
    "gemma2": Gemma2Config(
        **SMALL,
        sliding_window=WINDOW,
        layer_types=MIXED,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
        query_pre_attn_scalar=8,
    ),
    "gemma3": Gemma3TextConfig(**SMALL, sliding_window=WINDOW, layer_types=MIXED, query_pre_attn_scalar=8),
    "mixtral": MixtralConfig(**SMALL, num_local_experts=3, num_experts_per_tok=2, tie_word_embeddings=False),
    "mistral": MistralConfig(**SMALL, sliding_window=WINDOW, tie_word_embeddings=False),
    # Its layers hand nothing on to their attention that they do not know.
    "stablelm": StableLmConfig(**{key: value for key, value in SMALL.items() if key != "head_dim"}),
    # Its values are of another size than its keys.
    "deepseek": DeepseekV3Config(
        **{**{key: value for key, value in SMALL.items() if key != "head_dim"}, "num_key_value_heads": 4},
        kv_lora_rank=16,
        q_lora_rank=None,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=6,
        first_k_dense_replace=2,
    ),
}
# These carry state from token to token, or measure distance by place: they cannot read a tree.
STATEFUL: dict[str, PreTrainedConfig] = {
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "mamba": MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4),
    "rwkv": RwkvConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, bos_token_id=1, eos_token_id=2),
    "qwen3-next": Qwen3NextConfig(
        **SMALL,
        layer_types=["linear_attention", "full_attention"],
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=0,
        mlp_only_layers=[0, 1],
    ),
}


def model(name: str, dtype: torch.dtype = torch.float32, attention: str | None = None, seed: int = 0) -> Any:
    """Make a model with random weights, prepared as a loaded base is."""
    config = type(CONFIGS[name] if name in CONFIGS else STATEFUL[name]).from_dict(
        (CONFIGS.get(name) or STATEFUL[name]).to_dict()
    )
    torch.manual_seed(seed)
    chosen = {} if attention is None else {"attn_implementation": attention}
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **chosen).to(dtype)
    made.config.use_cache = False
    made.eval()
    read_paths(made)
    spare_last(made)
    quick_products(made)
    return made


def byte_level(
    specials: Sequence[str] = (),
    template: str | None = None,
    bos: str | None = "<bos>",
    end: str = "<eos>",
    plain_added: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; `plain_added` are added tokens that are not special, like Qwen 3's <think>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    first = ["<pad>", *([bos] if bos else ["<none>"]), end, *specials]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8,
        special_tokens=list(dict.fromkeys(first)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_tokens(list(plain_added))
    if bos and template is None:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 1)])
    names = {"bos_token": bos} if bos else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token="<pad>", **names)
    fast.chat_template = template
    return fast


def sentence_piece(
    kind: str, template: str | None = None, spells_controls: bool = False, specials: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Make a BPE tokenizer with a word-start mark and byte fallback, as SentencePiece ones are after conversion.

    `kind` "prepend" puts the mark before every piece of text by its normalizer (Llama 2), "metaspace" before the first
    one (Llama 2 not legacy, Mistral), "bare" before none (Gemma). With `spells_controls` the merges can spell `</s>`
    and `<s>`, as those of some converted tokenizers can.
    """
    learnt = Tokenizer(models.BPE())
    learnt.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learnt.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=200, show_progress=False, max_token_length=12))
    found = json.loads(learnt.to_str())["model"]
    merges = [merge for merge in found["merges"] if "".join(merge) not in ("<s>", "</s>")]
    pieces = [piece for piece in found["vocab"] if piece not in ("<s>", "</s>")]
    if spells_controls:
        merges = [["<", "/"], ["s", ">"], ["</", "s>"], ["<", "s>"], *merges]
        pieces += [piece for piece in ("</", "s>") if piece not in pieces]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *dict.fromkeys(pieces)]
    model = models.BPE(
        vocab={name: i for i, name in enumerate(names)},
        merges=[(left, right) for left, right in merges],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    if kind == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    strips = [] if kind == "bare" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strips]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", *specials])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    return fast


def spelled(
    specials: Sequence[str], template: str | None, end: str, plain_added: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Make a byte-level tokenizer without merges: every byte is a token, so that ids can be told without it."""
    names = ["<pad>", "<bos>", *dict.fromkeys([end, *specials])]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE(vocab={name: i for i, name in enumerate([*names, *alphabet])}, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(names)
    tokenizer.add_tokens(list(plain_added))
    if template is None:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token=end, pad_token="<pad>")
    fast.chat_template = template
    return fast


def door(task: Task, arm: str = "both", tokenizer: Any = None, limit: int = 6, room: int = 60) -> TextClassifier:
    """Make a classifier with random weights that is asked for the label, and is unsure of half of them."""
    made = tokenizer or byte_level(["<|eot_id|>"])
    encoder = make_encoder(made, replace(render(made, task_instruction(task)), limit=limit, room=room))
    known = model("llama")
    known.resize_token_embeddings(max(VOCABULARY, len(made)), mean_resizing=False)
    return TextClassifier(Classifier(bind(known, encoder), task, arm, {}, 0.5), "label")


LLAMA3 = """{{- bos_token }}{%- set said = '' %}
{%- if messages[0].role == 'system' %}{%- set said = messages[0].content | trim %}{%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + strftime_now('%d %b %Y') }}
{{- '\\n\\n' + said + '<|eot_id|>' }}
{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
QWEN3 = """{%- if tools is defined and tools %}{{- '<tool_call></tool_call>' }}{%- endif %}
{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{{- m.content + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
GEMMA = """{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}
{%- for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}
{{- '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
# It writes a space of its own where it has trimmed the content, and closes with the tokenizer's end token.
INST = """{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}
{%- for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content | trim + ' [/INST]' }}
{%- else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"""
CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TURNS = ("<|im_start|>", "<|im_end|>")
