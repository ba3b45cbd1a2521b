"""How much memory a step really takes, beside what the formula of saywhy.train.memory reckons.

    python benchmarks/memory.py WIDTH LAYERS VOCABULARY PACK_TOKENS float32|bf16

Takes two steps of two packs each in this process, of made-up rows with 45-token answers, and prints the growth of its
resident memory in MiB since the weights were made. Linux and macOS only.
"""

from __future__ import annotations

import argparse
import resource
import sys

import numpy as np
import psutil
import torch
from transformers import LlamaConfig

from saywhy.config import Train
from saywhy.lm.load import random_of
from saywhy.train import memory, optimizers
from saywhy.train.loss import Losses
from saywhy.trees import Branch, pack_trees

TRUNK, ANSWER = 40, 45
MIB = 2**20


def rows(vocabulary: int, count: int) -> list[Branch]:
    draw = np.random.default_rng(0)
    trunk = draw.integers(3, vocabulary, TRUNK)
    found = []
    for _ in range(count):
        ids = np.concatenate([trunk, draw.integers(3, vocabulary, int(draw.integers(10, 40)) + ANSWER)])
        weights = np.zeros(len(ids))
        weights[-ANSWER:] = 1 / ANSWER
        found.append(Branch(ids, weights))
    return found


def main(width: int, layers: int, vocabulary: int, pack_tokens: int, precision: str) -> None:
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        tie_word_embeddings=False,
    )
    losses = Losses(random_of(config, layers, "cpu"), precision)
    before = psutil.Process().memory_info().rss
    branches = rows(vocabulary, pack_tokens // 30 + 2)
    fixed, each = memory.step_bytes(losses, pack_trees, branches, pack_tokens)
    packs = pack_trees(branches, pack_tokens)
    (adamw,) = optimizers.make(losses.model, Train())
    for _ in range(2):
        for pack in packs[:2]:
            losses(pack).backward()
        adamw.step()
        adamw.zero_grad()
    unit = 1 if sys.platform == "darwin" else 1024
    took = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before
    parameters = sum(parameter.numel() for parameter in losses.parameters())
    reckoned = fixed + each * packs[0].ids.size
    print(f"{parameters / 1e6:.0f} M parameters, {packs[0].ids.size} tokens, {precision}: ", end="")
    print(f"{took / MIB:.0f} MiB beside the weights, {reckoned / MIB:.0f} reckoned")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("width", "layers", "vocabulary", "pack_tokens"):
        parser.add_argument(name, type=int)
    parser.add_argument("precision", choices=["float32", "bf16"])
    given = parser.parse_args()
    main(given.width, given.layers, given.vocabulary, given.pack_tokens, given.precision)
