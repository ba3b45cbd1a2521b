"""The last layer of a decoder, whose feed-forward part is computed only for the tokens that somebody reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# A layer of these parts in this order, each half added to what came in: that of Llama, Mistral, Qwen and most others.
PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")


def states_at(model: Any, asked: dict[str, Any], places: Tensor | None) -> Tensor:
    """Run a model's decoder and give the states (k, d) of `places` (k,), None for all.

    Places count the tokens of the batch in rows, padding included. `asked` is what the decoder is called with.
    """
    if places is not None and _spares(model):
        states: Tensor = model.get_decoder()(**asked, kept=places).last_hidden_state[0]
        return states
    states = model.get_decoder()(**asked).last_hidden_state.flatten(0, 1)
    return states if places is None else states[places]


def layers_of(model: Any) -> nn.ModuleList | None:
    """Find the layers: the list among the decoder's parts that has as many entries as the config says."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [part for part in model.get_decoder().children() if isinstance(part, nn.ModuleList) and len(part) == count]
    return lists[0] if lists else None


@torch.no_grad()
def spare_last(model: Any) -> None:
    """Let a model's last layer leave out what follows its attention, but for the places that `states_at` names.

    Behind the last attention a token's state is its own affair: a tenth of ten layers' products are made for prompt
    tokens whose state nobody reads. Layers of another form stay as they are; a trial tells them apart.
    """
    layers = layers_of(model)
    if layers is None or not _has_parts(layers[-1]):
        return
    last: Any = layers[-1]
    plain, weight = type(last), last.input_layernorm.weight
    # So small that what the layers add is what is compared.
    states = torch.linspace(-1, 1, 4 * len(weight)).sin_().mul_(0.01).reshape(1, 4, -1).to(weight.device, model.dtype)
    asked, places = {"inputs_embeds": states, "use_cache": False}, torch.tensor([1, 3], device=weight.device)
    wanted = states_at(model, asked, places)
    last.__class__ = _sparing(plain)
    try:
        found = states_at(model, asked, places)
    except (TypeError, RuntimeError):
        found = wanted.new_empty(0)
    # Products of other shapes round otherwise.
    most = torch.finfo(wanted.dtype).eps ** 0.5 * float(wanted.float().std())
    if found.shape != wanted.shape or not float((found - wanted).abs().max()) <= most:
        last.__class__ = plain


def _has_parts(layer: nn.Module) -> bool:
    """Tell whether a layer has the parts, and no dropout of its own, which a trial would not see."""
    drops = any(isinstance(part, nn.Dropout) and part.p > 0 for part in layer.children())
    return not drops and all(isinstance(getattr(layer, name, None), nn.Module) for name in PARTS)


def _spares(model: Any) -> bool:
    layers = layers_of(model)
    return layers is not None and getattr(type(layers[-1]), "spares", False)


def _sparing(plain: type[nn.Module]) -> type[nn.Module]:
    """Make the class of a layer that takes `kept` (k,), and then gives (1, k, d) for (b, n, d)."""

    def forward(self: Any, hidden_states: Tensor, kept: Tensor | None = None, **told: Any) -> Any:
        if kept is None:
            return plain.forward(self, hidden_states, **told)
        heard = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **told)[0]
        states = (hidden_states.flatten(0, 1)[kept] + heard.flatten(0, 1)[kept])[None]
        return states + self.mlp(self.post_attention_layernorm(states))

    return type(plain.__name__, (plain,), {"forward": forward, "spares": True})
