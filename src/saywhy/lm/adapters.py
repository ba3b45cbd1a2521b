"""Adapters: small changes to a base that itself stays as it is (LoRA, 2106.09685), made by peft."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from saywhy import store
from saywhy.config import Lora, Train
from saywhy.lm.load import base_hash, model_of, skeleton_of
from saywhy.records import RequestError

# peft's own name for the only adapter of a model.
NAME = "default"
WEIGHTS, CONFIG, BASE = "adapter_model.safetensors", "adapter_config.json", "base.json"
# What peft puts before the name of every tensor in its files.
PREFIX = "base_model.model."
# Their code reads the weights of its layers, or scales them, past whatever is put around them.
PAST_LAYERS = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h", "rwkv"}


def linear_layers(model: Any, targets: str | Sequence[str]) -> list[str]:
    """List the layers that an adapter changes: `all` linear layers of the decoder, or those whose names end so.

    Raises RequestError for a name that no linear layer ends with, for a head that shares its weights with the embedding
    (merged into the head, the change would reach the embedding too), and for a base that has no place for adapters or
    no linear layers.
    """
    kind = model.config.get_text_config().model_type
    if kind in PAST_LAYERS:
        raise RequestError(f"lora: a base of the type {kind} reads past adapters; leave lora out and train it whole")
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if targets == "all":
        inside = {id(module) for module in model.get_decoder().modules()}
        found = [name for name in linear if id(model.get_submodule(name)) in inside]
        if not found:
            raise RequestError(
                f"lora: a base of the type {kind} has no linear layers that an adapter fits; leave lora out and train "
                "it whole, or take another base"
            )
        return found
    for target in targets:
        if not any(_ends_with(name, target) for name in linear):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise RequestError(f"lora.targets: no linear layer of the base ends with {target!r}; there are {known}")
    found = [name for name in linear if any(_ends_with(name, target) for target in targets)]
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is table.weight and any(model.get_submodule(name) is head for name in found):
        raise RequestError(
            "lora.targets: the head of this base shares its weights with the embedding, so it cannot have a change of "
            "its own; leave it out, or set targets to all"
        )
    return found


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def attach(model: Any, lora: Lora, seed: int) -> None:
    """Put an adapter that changes nothing yet into a model, and freeze all else; the model stays what it was.

    Its first matrices are drawn from the seed, as peft draws them, and from no global generator; the second are zero.
    """
    names = linear_layers(model, lora.targets)
    with torch.random.fork_rng(devices=[]):
        # Behind a door: of a mixture of experts that it knows, peft would adapt the experts instead of what is named.
        inject_adapter_in_model(_as_peft(lora, [f"base.{name}" for name in names]), nn.ModuleDict({"base": model}))
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        first = model.get_submodule(name).lora_A[NAME].weight
        drawn = torch.empty(first.shape, dtype=torch.float32)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        first.data.copy_(drawn)
    model.eval()


def _as_peft(lora: Lora, names: Sequence[str]) -> LoraConfig:
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(names),
        task_type="CAUSAL_LM",
    )


def merge(model: Any) -> None:
    """Add adapters to the weights that they change, and leave a model as if it had been trained whole.

    A base in 4 bits becomes what its 4 bits stand for, in float32: the adapter was trained on that. A model without
    adapters stays as it is.
    """
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name in adapted:
        layer = model.get_submodule(name)
        plain = _plain(layer.get_base_layer())
        plain.weight.data += layer.get_delta_weight(NAME).to(plain.weight)
        model.set_submodule(name, plain)
    if not adapted:
        return
    for name, module in list(model.named_modules()):
        if _is_quantized(module):
            model.set_submodule(name, _plain(module))
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    model.requires_grad_(True)


def _plain(layer: Any) -> Any:
    """Give a linear layer with the weights that 4 bits stand for; any other as it is."""
    if not _is_quantized(layer):
        return layer
    weight = dequantize_module_weight(layer).float()
    made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    made.weight = nn.Parameter(weight)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.data.float())
    return made


def _is_quantized(layer: Any) -> bool:
    return type(getattr(layer, "weight", None)).__name__ == "Params4bit"


def tensors_of(model: Any) -> dict[str, Tensor]:
    """Give the adapter's own tensors under the names that they have in peft's files."""
    return {
        PREFIX + name.replace(f".{NAME}.", "."): parameter
        for name, parameter in model.named_parameters()
        if f".{NAME}." in name
    }


def save(folder: Path, model: Any, lora: Lora, base: str) -> None:
    """Write the adapter as peft does, and beside it which base it changes.

    A base in the folder that `folder` lies in is named from there, so that both can be moved together.
    """
    near = Path(base).is_dir() and Path(base).resolve().parent == folder.resolve().parent
    named = f"../{Path(base).resolve().name}" if near else str(Path(base).resolve()) if Path(base).is_dir() else base
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    endings = sorted({name.rpartition(".")[2] for name in adapted})
    plain = [name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not set(endings).isdisjoint(plain):
        # Others end so too and have no adapter: these are named in full.
        endings = adapted
    told = _as_peft(lora, ()).to_dict()
    written = {**told, "base_model_name_or_path": named, "target_modules": endings, "inference_mode": True}
    save_file({name: tensor.data.contiguous().cpu() for name, tensor in tensors_of(model).items()}, folder / WEIGHTS)
    store.write_json(folder / CONFIG, written)
    store.write_json(folder / BASE, {"base": named, "hash": base_hash(base)})


def load(folder: Path) -> Any:
    """Load the base of an adapter, in float32, and merge the adapter into it.

    Raises RequestError where the base is missing or another than in training, and for files that do not fit it.
    """
    told, known = store.read_json(folder / CONFIG), store.read_json(folder / BASE)
    try:
        lora = Lora(rank=told["r"], alpha=told["lora_alpha"], targets=tuple(told["target_modules"]))
        named, wanted = str(known["base"]), str(known["hash"])
    except (KeyError, TypeError, ValueError) as problem:
        raise RequestError(f"{folder}: {CONFIG} or {BASE} is not one that saywhy wrote; restore it") from problem
    # A folder next to this one is named from here; a hub id has a commit, and that commit is loaded.
    base = str(folder / named) if named.startswith("..") else named
    revision = wanted.rpartition("@")[2] if "@" in wanted and not Path(base).is_dir() else None
    if revision is None and not Path(base).is_dir():
        raise RequestError(
            f"{folder} holds an adapter, and its base {base} is not there; bring it back, or write where it is now "
            f"into {BASE}"
        )
    if revision is None and base_hash(base) != wanted:
        raise RequestError(
            f"{folder} holds an adapter, and its base {base} is not what it was in training; bring that back, or "
            "train again"
        )
    model = model_of(base, revision=revision)
    attach(model, lora, 0)
    _read(model, folder / WEIGHTS)
    merge(model)
    return model


@torch.no_grad()
def _read(model: Any, path: Path) -> None:
    try:
        saved: Mapping[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as problem:
        raise RequestError(f"{path}: cannot be read ({problem}); restore it") from problem
    own = tensors_of(model)
    if {name: tensor.shape for name, tensor in own.items()} != {name: tensor.shape for name, tensor in saved.items()}:
        raise RequestError(f"{path}: does not fit {CONFIG} and the base; restore the folder as it was written")
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def refuse(base: str | None, trust_remote_code: bool, train: Train, place: str) -> None:
    """Refuse what could only fail once a training begins: no GPU or package for 4 bits, targets that are not there.

    `base` is None where it is not made yet; `place` is the key of the settings.
    """
    if train.bits is not None and find_spec("bitsandbytes") is None:
        raise RequestError(f"{place}.bits: a base in 4 bits needs bitsandbytes; pip install 'saywhy[quantized]'")
    if train.bits is not None and not torch.cuda.is_available():
        raise RequestError(
            f"{place}.bits: a base in 4 bits needs a GPU, and torch {torch.__version__} sees none; leave bits out, or "
            "take a machine with one"
        )
    if base is None or (train.lora is None and not train.gradient_checkpointing):
        return
    model = skeleton_of(base, trust_remote_code)
    try:
        check(model, train)
    except RequestError as problem:
        raise RequestError(f"{place}.{problem}") from problem


def check(model: Any, train: Train) -> None:
    """Refuse settings that a model has no place for; it may be one without weights."""
    if train.lora is not None:
        linear_layers(model, train.lora.targets)
    if train.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise RequestError("gradient_checkpointing: this base does not support it; leave it out")


def prepare(model: Any, train: Train, seed: int) -> None:
    """Make a base ready for its training: with an adapter, and with layers that are computed again, where told so."""
    check(model, train)
    if train.lora is not None:
        attach(model, train.lora, seed)
    if train.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def trained_parameters(model: Any, train: Train) -> int:
    """Count the parameters that a training changes; the model may be one without weights, before `prepare`."""
    if train.lora is None:
        return sum(parameter.numel() for parameter in model.parameters())
    layers = [model.get_submodule(name) for name in linear_layers(model, train.lora.targets)]
    return sum(train.lora.rank * (layer.in_features + layer.out_features) for layer in layers)
