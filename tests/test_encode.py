"""The one token path: golden prompts, ids and weights, texts that look like control tokens, joins, cuts and shares."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

import tiny
from saywhy.lm.encode import (
    Encoder,
    branch,
    decode,
    golden_ids,
    make_encoder,
    part_ids,
    prompt_ids,
    render,
    segments,
    text_ids,
)
from saywhy.prompts import REASONER, Part, target
from saywhy.records import RequestError

INSTRUCTION = "Which emotion?\n- joy"
TEXT = "  so <|eot_id|> alone "


class Clock(datetime.datetime):
    """A clock that a test sets."""

    day = 20

    @classmethod
    def now(cls, tz: Any = None) -> datetime.datetime:
        return datetime.datetime(2026, 11, cls.day)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    monkeypatch.setattr(Clock, "day", 20)
    return Clock


def spell(tokenizer: Any, *pieces: str) -> list[int]:
    """Give ids by hand: a piece that is a token is that token, any other is its bytes."""
    places = [*range(33, 127), *range(161, 173), *range(174, 256)]
    places += [i for i in range(256) if i not in places]
    letters = dict(zip(places, [chr(c) for c in places[:188]] + [chr(256 + n) for n in range(68)], strict=True))
    assert set(letters.values()) == set(pre_tokenizers.ByteLevel.alphabet())
    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    vocabulary = tokenizer.get_vocab()
    found = []
    for piece in pieces:
        found += [added[piece]] if piece in added else [vocabulary[letters[byte]] for byte in piece.encode()]
    return found


GOLDEN: dict[str, tuple[Any, tuple[str, ...], str, tuple[str, ...], str]] = {
    "llama 3": (
        tiny.spelled(tiny.HEADERS, tiny.LLAMA3, "<|end_of_text|>"),
        (
            "<bos>", "<|start_header_id|>", "system", "<|end_header_id|>",
            "\n\nToday: 20 Nov 2026\n\nWhich emotion?\n- joy", "<|eot_id|>",
            "<|start_header_id|>", "user", "<|end_header_id|>", "\n\n",
        ),
        "so <|eot_id|> alone",
        ("<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"),
        "<|eot_id|>",
    ),
    "qwen 3": (
        tiny.spelled([*tiny.TURNS, "<|eot_id|>"], tiny.QWEN3, "<|im_end|>", ["<think>", "</think>"]),
        ("<|im_start|>", "system\nWhich emotion?\n- joy", "<|im_end|>", "\n", "<|im_start|>", "user\n"),
        "  so <|eot_id|> alone ",
        ("<|im_end|>", "\n", "<|im_start|>", "assistant\n", "<think>", "\n\n", "</think>", "\n\n"),
        "<|im_end|>",
    ),
    "gemma": (
        tiny.spelled(["<start_of_turn>", "<end_of_turn>", "<|eot_id|>"], tiny.GEMMA, "<eos>"),
        ("<bos>", "<start_of_turn>", "user\nWhich emotion?\n- joy\n\n"),
        "so <|eot_id|> alone",
        ("<end_of_turn>", "\n", "<start_of_turn>", "model\n"),
        "<end_of_turn>",
    ),
    "chatml": (
        tiny.spelled([*tiny.TURNS, "<|eot_id|>"], tiny.CHATML, "<eos>"),
        ("<|im_start|>", "system\nWhich emotion?\n- joy", "<|im_end|>", "\n", "<|im_start|>", "user\n"),
        "  so <|eot_id|> alone ",
        ("<|im_end|>", "\n", "<|im_start|>", "assistant\n"),
        "<|im_end|>",
    ),
    "inst": (
        tiny.spelled(["<|eot_id|>"], tiny.INST, "</s>"),
        ("<bos>", "[INST] Which emotion?\n- joy\n\n"),
        "so <|eot_id|> alone",
        (" [/INST]",),
        "</s>",
    ),
    "none": (
        tiny.spelled(["<|eot_id|>"], None, "<eos>"),
        ("<bos>", "Which emotion?\n- joy\n\n"),
        "  so <|eot_id|> alone ",
        ("\n",),
        "<eos>",
    ),
}  # fmt: skip
NAMES = list(GOLDEN)


def encoder_of(tokenizer: Any, instruction: str = INSTRUCTION) -> Encoder:
    return make_encoder(tokenizer, render(tokenizer, instruction))


@pytest.mark.parametrize("name", NAMES)
def test_golden_prompt(name: str) -> None:
    tokenizer, before, text, after, end = GOLDEN[name]
    encoder = encoder_of(tokenizer)
    assert encoder.prompt.before == "".join(before)
    assert encoder.prompt.after == "".join(after)
    assert encoder.prompt.end == end
    assert encoder.prompt.strip == (text != TEXT)
    assert tokenizer.convert_ids_to_tokens(encoder.end) == end
    # The text is spelled byte by byte, so that the control token in it is none.
    letters = [i for letter in text for i in spell(tokenizer, letter)]
    ids, was_cut = prompt_ids(encoder, ("", TEXT, ""))
    assert ids == [*spell(tokenizer, *before), *letters, *spell(tokenizer, *after)]
    assert not was_cut


@pytest.mark.parametrize("name", NAMES)
def test_golden_targets_and_weights(name: str) -> None:
    tokenizer, _, _, _, end = GOLDEN[name]
    encoder = encoder_of(tokenizer)
    found = segments(encoder, target("reason_then_label", "joy", "it sings"))
    assert [s.name for s in found] == ["cue", "reasoning", "cue", "label", "end"]
    assert [list(s.ids) for s in found] == [
        spell(tokenizer, piece) for piece in ("Reasoning:", " it sings", "\nLabel:", " joy", end)
    ]
    # 9 + 7 tokens share one half, 4 + 1 the other.
    assert [s.weight for s in found] == [0.0, 1 / 32, 1 / 32, 1 / 10, 1 / 10]
    one = branch([5, 6], found, share=0.5)
    assert one.ids.tolist() == [5, 6, *(i for s in found for i in s.ids)]
    assert one.weights.tolist() == [0.0] * 12 + [1 / 64] * 16 + [1 / 20] * 5


def test_a_moving_clock_changes_nothing_after_rendering(clock: type[Clock], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = GOLDEN["llama 3"][0]
    prompt = render(tokenizer, INSTRUCTION)
    today = make_encoder(tokenizer, prompt)
    clock.day = 21
    assert "21 Nov 2026" in render(tokenizer, INSTRUCTION).before, "the clock did move"
    monkeypatch.setattr(type(tokenizer), "apply_chat_template", lambda *_, **__: pytest.fail("rendered again"))
    tomorrow = make_encoder(tokenizer, prompt)
    assert prompt_ids(tomorrow, ("", TEXT, "")) == prompt_ids(today, ("", TEXT, ""))
    assert golden_ids(tomorrow) == golden_ids(today)
    assert "20 Nov 2026" in tokenizer.decode(prompt_ids(tomorrow, ("", TEXT, ""))[0])


def test_the_template_is_rendered_with_its_own_hash() -> None:
    hashes = {render(GOLDEN[name][0], INSTRUCTION).template_hash for name in NAMES}
    assert len(hashes) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_instruction_with_a_control_token_is_refused(name: str) -> None:
    tokenizer = GOLDEN[name][0]
    with pytest.raises(RequestError, match=r"the instruction or a label holds the control token '<\|eot_id\|>'"):
        render(tokenizer, "Which <|eot_id|> emotion?")


def test_a_template_that_loses_the_text_is_refused() -> None:
    tokenizer = tiny.spelled((), "{% for m in messages %}{{ m.role }}{% endfor %}", "<eos>")
    with pytest.raises(RequestError, match="the chat template loses the instruction or the text"):
        render(tokenizer, INSTRUCTION)


def test_a_tokenizer_without_the_prompts_end_token_is_refused() -> None:
    prompt = render(GOLDEN["chatml"][0], INSTRUCTION)
    with pytest.raises(RequestError, match=r"lacks the end token '<\|im_end\|>' of prompt.json"):
        make_encoder(GOLDEN["gemma"][0], prompt)


TOKENIZERS: dict[str, Any] = {
    "bytes": tiny.byte_level(["<|eot_id|>", *tiny.TURNS], None),
    "bytes with template": tiny.byte_level(
        ["<|eot_id|>", *tiny.TURNS], tiny.QWEN3, end="<|im_end|>", plain_added=["<think>", "</think>"]
    ),
    "prepend": tiny.sentence_piece("prepend"),
    "metaspace": tiny.sentence_piece("metaspace"),
    "prepend that spells controls": tiny.sentence_piece("prepend", spells_controls=True),
    "metaspace that spells controls": tiny.sentence_piece("metaspace", spells_controls=True),
    "metaspace with template": tiny.sentence_piece("metaspace", tiny.INST),
}
ENCODERS = {name: encoder_of(tokenizer) for name, tokenizer in TOKENIZERS.items()}
CONTROLS = ("<|eot_id|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<s>", "</s>", "<unk>", "<pad>", "<bos>")
CHARACTERS = (*" \n\t<>/s|a.0~x7é日🙂\u00a0", "  ", "\n\n", "Label:", "the ", "</", "s>", "\r\n", "<0x41>")
texts = st.lists(st.sampled_from(CONTROLS + CHARACTERS), max_size=8).map("".join)


@pytest.mark.parametrize("name", ENCODERS)
@given(text=texts)
@example(text="<s></s></s><s>")
@example(text=" <|eot_id|><think>\n</think></s>")
def test_a_text_never_becomes_a_control_token_and_is_read_back(name: str, text: str) -> None:
    encoder = ENCODERS[name]
    ids = text_ids(encoder, text)
    assert encoder.controls.isdisjoint(ids)
    # In these tokenizers every added token steers the model, special or not.
    assert set(encoder.tokenizer.added_tokens_decoder).isdisjoint(ids)
    assert decode(encoder, ids) == text


@pytest.mark.parametrize("name", ENCODERS)
@given(pieces=st.lists(texts, min_size=2, max_size=4))
def test_joined_ids_are_the_joined_text(name: str, pieces: list[str]) -> None:
    encoder = ENCODERS[name]
    joined = [i for piece in pieces for i in text_ids(encoder, piece)]
    assert decode(encoder, joined) == "".join(pieces)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("arm", ["label_only", "reason_then_label", "label_then_reason", REASONER])
def test_a_target_reads_as_it_was_written_and_ends_with_the_trained_end(name: str, arm: str) -> None:
    encoder = ENCODERS[name]
    parts = target(arm, "no", "it is 12.")
    found = segments(encoder, parts)
    ids = [i for s in found for i in s.ids]
    assert decode(encoder, ids) == "".join(part.text for part in parts)
    assert ids[-1] == encoder.end and found[-1].weight > 0
    assert encoder.tokenizer.decode([encoder.end]) == encoder.prompt.end


@pytest.mark.parametrize("name", ENCODERS)
def test_a_labels_ids_do_not_depend_on_what_stands_before_it(name: str) -> None:
    encoder = ENCODERS[name]
    alone = tuple(part_ids(encoder, Part("label", " joy", "label")))
    reasoned = [target("reason_then_label", "joy", reasoning) for reasoning in ("a", "日", "7")]
    for parts in (target("label_only", "joy", None), *reasoned):
        assert [s.ids for s in segments(encoder, parts) if s.name == "label"] == [alone]


def test_the_guard_stands_only_where_the_tokenizer_writes_before_a_text() -> None:
    assert {name: bool(encoder.guard) for name, encoder in ENCODERS.items()} == {
        name: "bytes" not in name for name in ENCODERS
    }
    for name in ("prepend", "metaspace"):
        encoder = ENCODERS[name]
        marked = encoder.plain.encode("Label:", add_special_tokens=False).tokens
        assert marked[0].startswith("▁"), "the tokenizer does write before a text"
        assert text_ids(encoder, "Label:") != text_ids(encoder, " Label:")
    after = ENCODERS["metaspace with template"]
    assert decode(after, after.after) == " [/INST]"


def test_an_added_token_that_neither_is_special_nor_stands_in_the_template_is_a_word() -> None:
    tokenizer = tiny.byte_level(tiny.TURNS, tiny.QWEN3, end="<|im_end|>", plain_added=["<think>", "</think>", "joyful"])
    encoder = encoder_of(tokenizer)
    assert text_ids(encoder, "joyful") == [tokenizer.convert_tokens_to_ids("joyful")]
    assert {tokenizer.convert_tokens_to_ids(name) for name in ("<think>", "</think>")} <= encoder.controls


def test_an_unknown_character_may_be_the_unknown_token() -> None:
    tokenizer = tiny.spelled(["<unk>"], None, "<eos>")
    tokenizer.unk_token = "<unk>"
    encoder = encoder_of(tokenizer)
    assert encoder.unknown in encoder.controls
    assert encoder.unknown not in text_ids(encoder, "a <unk> b")


def with_room(name: str, room: int) -> Encoder:
    encoder = encoder_of(GOLDEN[name][0])
    return replace(encoder, prompt=replace(encoder.prompt, room=room))


def body(encoder: Encoder, pieces: Sequence[str]) -> tuple[str, bool]:
    ids, was_cut = prompt_ids(encoder, pieces)
    assert tuple(ids[: len(encoder.before)]) == encoder.before
    assert tuple(ids[len(ids) - len(encoder.after) :]) == encoder.after
    return decode(encoder, ids[len(encoder.before) : len(ids) - len(encoder.after)]), was_cut


def test_a_text_that_fits_is_left_alone_and_one_token_more_is_cut_in_the_middle() -> None:
    assert body(with_room("none", 10), ("", "abcdefghij", "")) == ("abcdefghij", False)
    # The sign of the cut is five bytes, two of them spaces.
    assert body(with_room("none", 10), ("", "abcdefghijk", "")) == ("abc … jk", True)
    assert body(with_room("none", 0), ("", "a" * 300, "")) == ("a" * 300, False)


def test_the_longest_column_is_cut_and_what_stands_around_it_is_kept() -> None:
    pieces = ("Premise: ", "p" * 30 + "q" * 30, "\nHypothesis: ", "short", "\n- yes\n- no")
    text, was_cut = body(with_room("none", 60), pieces)
    assert was_cut
    assert text == "Premise: " + "p" * 9 + " … " + "q" * 8 + "\nHypothesis: short\n- yes\n- no"
    assert len(text.encode()) == 60


def test_where_the_longest_column_is_not_enough_the_next_one_is_cut() -> None:
    pieces = ("a: ", "x" * 40, " b: ", "y" * 20, "")
    assert body(with_room("none", 20), pieces) == ("a:  b: yyyy … yyyy", True)


def test_where_nothing_fits_it_says_so() -> None:
    encoder = with_room("none", 12)
    with pytest.raises(RequestError, match="what stands around the columns of a text is alone longer than the 12 tok"):
        prompt_ids(encoder, ("a very long literal ", "value", ""))


@pytest.mark.parametrize("name", ENCODERS)
@given(text=st.text(st.sampled_from("ab é日.\n<"), min_size=1, max_size=60), room=st.integers(8, 40))
def test_the_room_is_respected(name: str, text: str, room: int) -> None:
    encoder = replace(ENCODERS[name], prompt=replace(ENCODERS[name].prompt, room=room))
    seen = text.strip() if encoder.prompt.strip else text
    ids, was_cut = prompt_ids(encoder, ("", text, ""))
    held = len(ids) - len(encoder.before) - len(encoder.after)
    assert held <= room
    assert was_cut == (len(text_ids(encoder, seen)) > room)


@pytest.mark.parametrize("name", NAMES)
def test_only_a_template_that_trims_has_its_text_stripped(name: str) -> None:
    tokenizer, _, text, _, _ = GOLDEN[name]
    assert body(encoder_of(tokenizer), ("", TEXT, ""))[0] == text


@pytest.mark.parametrize(
    ("arm", "label_weight", "class_weight", "wanted"),
    [
        ("label_only", "balanced", 1.0, [0, 1 / 5, 1 / 5]),
        ("label_only", "balanced", 3.0, [0, 3 / 5, 3 / 5]),
        ("label_only", "tokens", 1.0, [0, 1, 1]),
        ("label_only", 4.0, 0.5, [0, 2, 2]),
        ("reason_then_label", "balanced", 1.0, [0, 1 / 20, 1 / 20, 1 / 10, 1 / 10]),
        ("reason_then_label", "balanced", 2.0, [0, 1 / 20, 1 / 20, 1 / 5, 1 / 5]),
        ("reason_then_label", "tokens", 1.0, [0, 1, 1, 1, 1]),
        ("reason_then_label", 3.0, 2.0, [0, 1, 1, 6, 6]),
        ("label_then_reason", "balanced", 1.0, [0, 1 / 30, 1 / 30, 1 / 8, 1 / 8]),
        ("label_then_reason", "balanced", 2.0, [0, 1 / 15, 1 / 15, 1 / 8, 1 / 8]),
        ("label_then_reason", "tokens", 2.0, [0, 2, 2, 1, 1]),
        (REASONER, "balanced", 1.0, [0, 1 / 4, 1 / 4]),
        (REASONER, "tokens", 1.0, [0, 1, 1]),
        (REASONER, 3.0, 1.0, [0, 1, 1]),
    ],
)
def test_weights_of_segments(arm: str, label_weight: Any, class_weight: float, wanted: list[float]) -> None:
    # Spelled: " joy" is 4 tokens, " hm" 3, "\nLabel:" 7, "\nReasoning:" 11, the end 1.
    found = segments(encoder_of(GOLDEN["none"][0]), target(arm, "joy", "hm"), label_weight, class_weight)
    assert [s.weight for s in found] == pytest.approx(wanted)


@pytest.mark.parametrize("arm", ["label_only", "reason_then_label", "label_then_reason", REASONER])
def test_a_row_weighs_one_however_long_and_however_many_targets(arm: str) -> None:
    encoder = encoder_of(GOLDEN["none"][0])
    total = 0.0
    for reasoning in ("hm", "a much longer reasoning than the other one"):
        one = branch([1, 2, 3], segments(encoder, target(arm, "joy", reasoning)), share=0.5)
        assert one.weights[:3].tolist() == [0, 0, 0]
        total += one.weights.sum()
    assert total == pytest.approx(1.0)
    assert np.flatnonzero(one.weights)[-1] == len(one.ids) - 1


@pytest.mark.parametrize("kind", ["prepend", "metaspace"])
def test_half_a_character_is_decoded_behind_a_guard_that_is_a_byte(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a line end is a byte, as in Llama 2, it makes one broken run with the bytes behind it."""
    tokenizer = tiny.sentence_piece(kind)
    encoder = make_encoder(tokenizer, render(tokenizer, INSTRUCTION))
    monkeypatch.setattr("saywhy.lm.encode.GUARDS", ("\x02", "0"))
    half, whole = ([tokenizer.get_vocab()[f"<0x{byte:02X}>"] for byte in "€".encode()[:end]] for end in (1, 3))
    behind = replace(encoder, guard="\x02")
    assert decode(behind, whole) == "€"
    assert decode(behind, half) == "\ufffd"
