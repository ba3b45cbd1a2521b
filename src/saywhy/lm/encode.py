"""The one path from text to tokens: training, writing, prediction and serving all come through here.

Segments are tokenized one by one and their ids joined, so a label's ids never depend on what stands before it. The chat
template is rendered once a run around a marker, split there, and never rendered again: templates print the date.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jinja2
import numpy as np
from tokenizers import Tokenizer

from saywhy.controls import Tokens
from saywhy.data import half_character
from saywhy.prompts import REASONER, Part, target
from saywhy.records import LABEL_CUE, REASONING_CUE, RequestError
from saywhy.trees import Branch

MARKER = "%%the text of the row%%"
# A template that trims its content loses this; none writes one of its own, as some do with a space.
SPACE = "\u2003"
ANSWER_MARKER = "%%the answer%%"
GUARDS = ("\n", "\t", "0", "~", "x")
# No text needs more characters than this for each token of its room.
CHARACTERS_A_TOKEN = 64
# Of a base from scratch these are tokens.
CUES = (f"\n{LABEL_CUE}", f"\n{REASONING_CUE}", LABEL_CUE, REASONING_CUE)
GOLDEN = "A text with a <|control|> look, 3 digits and ünïcode."


@dataclass(frozen=True)
class Prompt:
    """What stands around a row's text, fixed for a run and kept in `prompt.json`.

    `before` and `after` are the two halves of the rendered template; `end` is the token that closes an answer; `strip`
    says that the template trims its content. `room` is how many tokens a text may have, 0 while that is not known;
    `limit` how many a written reasoning may have. `golden` are the ids of a fixed text, compared on loading.
    """

    before: str
    after: str
    end: str
    strip: bool
    template_hash: str
    room: int = 0
    limit: int = 0
    golden: tuple[int, ...] = ()


@dataclass(frozen=True)
class Encoder:
    """A tokenizer together with the prompt it is used in.

    `plain` is a copy of the tokenizer in which control tokens are ordinary characters. `guard` is what a text is
    encoded behind where the tokenizer puts a word-start mark before whatever it is given, "" where it does not.
    `unknown` is the control token that stands for what the tokenizer cannot write: it alone may stand for text.
    `steering` are the tokens that no row's text becomes: the controls, and the cues where they are tokens of their own.
    """

    tokenizer: Any
    plain: Tokenizer
    guard: str
    prompt: Prompt
    before: tuple[int, ...]
    after: tuple[int, ...]
    end: int
    controls: frozenset[int]
    unknown: int | None
    steering: frozenset[int]


def render(tokenizer: Any, instruction: str) -> Prompt:
    """Render the prompt of a run: the tokenizer's chat template, or a plain text form where it has none.

    Raises RequestError where the template cannot carry the instruction, or where the instruction holds a control token
    or half of a character.
    """
    if half_character(instruction):
        raise RequestError("the instruction or a label holds half of a character (a lone surrogate); remove it")
    for token in control_tokens(tokenizer):
        if token in instruction:
            raise RequestError(f"the instruction or a label holds the control token {token!r}; write it another way")
    if not _template(tokenizer):
        adds_bos = tokenizer.bos_token_id is not None and tokenizer.bos_token_id in tokenizer("").input_ids
        before = (tokenizer.bos_token if adds_bos else "") + f"{instruction}\n\n"
        if tokenizer.eos_token is None:
            raise RequestError("the tokenizer has no end token; set eos_token in its tokenizer_config.json")
        return Prompt(before, "\n", tokenizer.eos_token, False, template_hash(tokenizer))
    messages, text = _fill(tokenizer, instruction)
    before, _, after = text.partition(MARKER)
    strip = not after.startswith(SPACE)
    end = _end_of_answer(tokenizer, messages)
    return Prompt(before, after.removeprefix(SPACE), end, strip, template_hash(tokenizer))


def _fill(tokenizer: Any, instruction: str) -> tuple[list[dict[str, str]], str]:
    with_system = [{"role": "system", "content": instruction}, {"role": "user", "content": MARKER + SPACE}]
    in_user_turn = [{"role": "user", "content": f"{instruction}\n\n{MARKER}{SPACE}"}]
    for messages in (with_system, in_user_turn):
        try:
            text = _apply(tokenizer, messages, True)
        except jinja2.exceptions.TemplateError:
            continue
        if text.count(MARKER) == 1 and instruction.strip() in text:
            return messages, text
    raise RequestError("the chat template loses the instruction or the text; use a base model, or repair the template")


def takes_system(tokenizer: Any, instruction: str) -> bool:
    """Tell whether the instruction of a run stands in a system turn; it is part of the user's where one is refused."""
    return not _template(tokenizer) or _fill(tokenizer, instruction)[0][0]["role"] == "system"


def _apply(tokenizer: Any, messages: list[dict[str, str]], ask: bool) -> str:
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=ask, enable_thinking=False
    )
    return text


def _end_of_answer(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """Find the token that the template closes an assistant turn with; its own end token where it closes with none."""
    text = _apply(tokenizer, [*messages, {"role": "assistant", "content": ANSWER_MARKER}], False)
    behind = text.partition(ANSWER_MARKER)[2]
    found = [(behind.index(token), -len(token), token) for token in control_tokens(tokenizer) if token in behind]
    end = min(found)[2] if found else tokenizer.eos_token
    if end is None:
        raise RequestError("neither the chat template nor the tokenizer has an end token; set eos_token")
    return str(end)


def template_hash(tokenizer: Any) -> str:
    """Name the form of the prompt: a hash of the chat template, or of the plain form's absence of one."""
    return hashlib.sha256(_template(tokenizer).encode()).hexdigest()[:16]


def _template(tokenizer: Any) -> str:
    return str(tokenizer.get_chat_template()) if tokenizer.chat_template else ""


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Give the tokens that steer a model: the special ones, and added ones that stand in the chat template."""
    template = _template(tokenizer)
    special = set(tokenizer.all_special_tokens)
    return {
        token.content: index
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special or token.content in special or token.content in template
    }


def make_encoder(tokenizer: Any, prompt: Prompt) -> Encoder:
    """Bind a tokenizer to the prompt of a run."""
    if not getattr(tokenizer, "is_fast", False):
        raise RequestError(f"{type(tokenizer).__name__} has no tokenizer.json; convert it to the tokenizers format")
    controls = control_tokens(tokenizer)
    plain = _without_controls(tokenizer.backend_tokenizer, set(controls))
    guard = _guard(plain)
    if prompt.end not in controls and prompt.end != tokenizer.eos_token:
        raise RequestError(f"the tokenizer lacks the end token {prompt.end!r} of prompt.json; restore its files")
    before = tokenizer.backend_tokenizer.encode(prompt.before, add_special_tokens=False).ids
    after = _behind(tokenizer.backend_tokenizer, guard, prompt.after) if guard else None
    if after is None:
        after = tokenizer.backend_tokenizer.encode(prompt.after, add_special_tokens=False).ids
    end = int(tokenizer.convert_tokens_to_ids(prompt.end))
    known = frozenset([*controls.values(), end])
    cues = {i for i, token in tokenizer.added_tokens_decoder.items() if token.content in CUES}
    return Encoder(
        tokenizer, plain, guard, prompt, tuple(before), tuple(after), end, known, tokenizer.unk_token_id, known | cues
    )


def _without_controls(backend: Tokenizer, controls: set[str]) -> Tokenizer:
    """Copy a tokenizer with its control tokens marked special, and special tokens read as ordinary characters."""
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["special"] or token["content"] in controls
    content["truncation"] = content["padding"] = None
    plain = Tokenizer.from_str(json.dumps(content))
    plain.encode_special_tokens = True
    return plain


def _guard(plain: Tokenizer) -> str:
    """Find what to encode a text behind: "" where the tokenizer puts nothing before what it is given."""
    probes = ("x", "Label:", "7", ".")
    behind = [_behind(plain, GUARDS[0], probe) for probe in probes]
    alone = [plain.encode(probe, add_special_tokens=False).ids for probe in probes]
    return "" if behind == alone else GUARDS[0]


def _behind(tokenizer: Tokenizer, guard: str, text: str) -> list[int] | None:
    """Encode a text behind a guard and drop the guard's ids; None where a token spans the two."""
    guarded = tokenizer.encode(guard, add_special_tokens=False).ids
    ids = tokenizer.encode(guard + text, add_special_tokens=False).ids
    return ids[len(guarded) :] if ids[: len(guarded)] == guarded else None


def text_ids(encoder: Encoder, text: str) -> list[int]:
    """Encode a text as ordinary characters: no control token, and no space that is not in it."""
    return _without(encoder, text, encoder.controls)


def row_ids(encoder: Encoder, text: str) -> list[int]:
    """Encode what a row brings, as `text_ids` does: a cue in it is none of the tokens that ask for an answer either."""
    return _without(encoder, text, encoder.steering)


def _without(encoder: Encoder, text: str, tokens: frozenset[int]) -> list[int]:
    if not text:
        return []
    for guard in GUARDS if encoder.guard else ("",):
        ids = _behind(encoder.plain, guard, text)
        if ids is not None:
            spelt = [at for at, token in enumerate(ids) if token in tokens and token != encoder.unknown]
            return _apart(encoder, guard, text, [at - len(ids) for at in spelt], tokens) if spelt else ids
    raise RequestError(f"the tokenizer joins {text[:40]!r} with whatever stands before it; use another base")


def _apart(encoder: Encoder, guard: str, text: str, places: Sequence[int], tokens: frozenset[int]) -> list[int]:
    """Encode a text whose characters spell some of `tokens` at `places` of its ids: each of those words is cut in two.

    Reading control tokens as characters is not enough where the vocabulary's own merges lead from those characters back
    to the token.
    """
    offsets = encoder.plain.encode(guard + text, add_special_tokens=False).offsets
    cuts = [offsets[place][0] - len(guard) + 1 for place in places]
    for cut in cuts:
        if not 0 < cut < len(text):
            last = text[cut - 1]
            raise RequestError(f"the tokenizer knows {last!r} as a control token only; take it out of the text")
    parts = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    return [i for part in parts for i in _without(encoder, part, tokens)]


def decode(encoder: Encoder, ids: Sequence[int]) -> str:
    """Give the text of ids that stand behind others, without the control tokens among them."""
    kept = [i for i in ids if i not in encoder.controls]
    if not encoder.guard:
        return str(encoder.tokenizer.decode(kept, clean_up_tokenization_spaces=False))
    for guard in GUARDS:
        guarded = encoder.plain.encode(guard, add_special_tokens=False).ids
        text = str(encoder.tokenizer.decode([*guarded, *kept], clean_up_tokenization_spaces=False))
        # A guard that is a byte makes one broken run with the bytes of half a character behind it.
        if guard in text:
            return text[text.index(guard) + len(guard) :]
    raise RequestError("the tokenizer cannot decode what stands behind other text; use another base")


def prompt_ids(encoder: Encoder, pieces: Sequence[str]) -> tuple[list[int], bool]:
    """Encode a whole prompt around a row's pieces; tell whether the text had to be cut to fit the room.

    What does not fit is cut from the middle of the longest column, never from what stands around it.
    """
    text = _trimmed(encoder, "".join(pieces))
    room = encoder.prompt.room
    # A book is not encoded whole only to learn that it does not fit.
    body = None if room and len(text) > CHARACTERS_A_TOKEN * room else row_ids(encoder, text)
    was_cut = body is None or 0 < room < len(body)
    if body is None or was_cut:
        body = _cut(encoder, list(pieces), room)
    return [*encoder.before, *body, *encoder.after], was_cut


def _trimmed(encoder: Encoder, text: str) -> str:
    return text.strip() if encoder.prompt.strip else text


def _cut(encoder: Encoder, pieces: list[str], room: int) -> list[int]:
    columns = range(1, len(pieces), 2)
    for column in sorted(columns, key=lambda i: -len(pieces[i])):
        value = pieces[column]
        around = sum(map(len, pieces)) - len(value)
        least, most = -1, min(len(value), CHARACTERS_A_TOKEN * room - around)
        # From `far` characters on there are twice too many tokens, and no need to count them.
        far = room
        while far < most and len(_body(encoder, pieces, column, value, far)) <= 2 * room:
            far *= 2
        while least < most:
            middle = (least + most + 1) // 2
            if (middle < far or far >= most) and len(_body(encoder, pieces, column, value, middle)) <= room:
                least = middle
            else:
                most = middle - 1
        if least >= 0:
            return _body(encoder, pieces, column, value, least)
        pieces[column] = ""
    raise RequestError(f"what stands around the columns of a text is alone longer than the {room} tokens there are")


def _body(encoder: Encoder, pieces: list[str], column: int, value: str, kept: int) -> list[int]:
    """Encode the pieces with `kept` characters of one column, half of them from its start and half from its end."""
    shortened = f"{value[: kept - kept // 2]} … {value[len(value) - kept // 2 :]}" if kept < len(value) else value
    text = "".join([*pieces[:column], shortened, *pieces[column + 1 :]])
    return row_ids(encoder, _trimmed(encoder, text))


def golden_ids(encoder: Encoder) -> tuple[int, ...]:
    """Encode a fixed text in the run's prompt: what a loaded folder must still give."""
    return (*encoder.before, *text_ids(encoder, GOLDEN), *encoder.after)


def part_ids(encoder: Encoder, part: Part) -> list[int]:
    """Encode one piece of a target."""
    return [encoder.end] if part.name == "end" else text_ids(encoder, part.text)


def reasoning_tokens(encoder: Encoder) -> Tokens:
    """Give the tokens of reasonings, as `controls` needs them to write some of the same length."""

    def ids(reasoning: str) -> list[int]:
        return part_ids(encoder, target(REASONER, "", reasoning)[1])

    spelt = tuple(control_tokens(encoder.tokenizer))
    return Tokens(ids, lambda some: decode(encoder, some), plain_tokens(encoder), spelt)


def plain_tokens(encoder: Encoder) -> tuple[int, ...]:
    """Give the ids that stand for ordinary text: no added token, no part of a character, nothing unprintable."""
    added = encoder.tokenizer.added_tokens_decoder
    ids = sorted(set(encoder.tokenizer.get_vocab().values()) - encoder.controls - set(added))
    texts = [decode(encoder, [i]) for i in ids]
    return tuple(i for i, text in zip(ids, texts, strict=True) if text.isprintable() and text and "\ufffd" not in text)


@dataclass(frozen=True)
class Segment:
    """A named piece of a prompt or target with its token ids and, token by token, its loss weight."""

    name: str
    ids: tuple[int, ...]
    weight: float


def segments(
    encoder: Encoder, parts: Sequence[Part], label_weight: str | float = "balanced", class_weight: float = 1.0
) -> list[Segment]:
    """Turn the parts of a target into weighted segments.

    `balanced` gives the label with what ends it one half and the reasoning with what ends it the other, each spread
    evenly over its tokens, or all to the only one there is. `tokens` weighs every token but the leading cue 1 (the
    plain token mean of both papers). A number weighs label tokens so much and reasoning tokens 1. `class_weight`
    multiplies the label's tokens. The weight of a segment is that of each of its tokens.
    """
    ids = [tuple(part_ids(encoder, part)) for part in parts]
    count = {
        loss: sum(len(i) for i, part in zip(ids, parts, strict=True) if part.loss == loss)
        for loss in {part.loss for part in parts if part.loss}
    }
    if label_weight == "balanced":
        each = {loss: 1.0 / (len(count) * n) for loss, n in count.items()}
    else:
        each = {"reasoning": 1.0, "label": 1.0 if label_weight == "tokens" else float(label_weight)}
    each["label"] = each.get("label", 0.0) * class_weight
    return [Segment(part.name, i, each.get(part.loss, 0.0)) for i, part in zip(ids, parts, strict=True)]


def branch(head: Sequence[int], target: Sequence[Segment], share: float = 1.0) -> Branch:
    """Join a prompt and a target into one branch; `share` is the target's part of its row, 1/m of m targets."""
    ids = np.array([*head, *(i for segment in target for i in segment.ids)], dtype=np.int64)
    weights = np.zeros(len(ids))
    weights[len(head) :] = [segment.weight * share for segment in target for _ in segment.ids]
    return Branch(ids, weights)
