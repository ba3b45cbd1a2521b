"""Leave saywhy: an arm as plain files that transformers, vLLM and other trainers read, scored again before it is there.

Nothing here is served or trained: what is written is what others load, and the proof that they load the same model is
made with transformers alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.decision import DecisionConfig
from transformers.decision.template_utils import MARK, SPLIT, label_token_ids

from saywhy import config, store
from saywhy.config import Reasoner, Reasonings
from saywhy.data import read
from saywhy.data.read import open_table
from saywhy.data.rows import rows_to_predict
from saywhy.evaluate import load_answers
from saywhy.lm.encode import (
    GOLDEN,
    Encoder,
    Prompt,
    control_tokens,
    decode,
    make_encoder,
    part_ids,
    prompt_ids,
    takes_system,
)
from saywhy.lm.folder import save
from saywhy.predict import Classifier, answer, columns_of, load, recommended_in
from saywhy.progress import track
from saywhy.prompts import Part, read_target, row_pieces, target, task_instruction
from saywhy.records import LABEL_CUE, RequestError, Row, WorkError
from saywhy.trees import Floats

# What saywhy itself needs of a model folder beside the model and its prompt.
COPIED = ("task.json", "calibration.json", "prior.json", "README.md")
SCORED_AGAIN = 50
AGREEMENT = 0.99
# Labels whose probabilities are as near as this may change places by rounding.
TIE = 1e-3

T = TypeVar("T")


@dataclass(frozen=True)
class Taught:
    """A training row with one of its targets: `parts` as they were trained, the last of them the end token."""

    row: Row
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Asked:
    """A row with saywhy's own answer; `reasoning` is what the labels were scored behind, None for the label alone."""

    row: Row
    label: str
    reasoning: str | None


@dataclass(frozen=True)
class Agreement:
    """Of `rows` scored again: how many have another label by a tie, and the ids of those that plainly have another.

    Of all of them, when the prompt is encoded as one text: how many give the `same_tokens` as in training, and how many
    have the `same_label` then.
    """

    rows: int
    ties: int
    other: tuple[str, ...]
    same_tokens: int
    same_label: int

    @property
    def share(self) -> float:
        """Give the share of rows with the same label."""
        return 1 - len(self.other) / self.rows


def write(model: Path, to: Path, rows: bool | None = None, source: str | None = None) -> list[str]:
    """Write an arm's folder, or a run's recommended one, for others to load; give the lines that say what is there.

    `rows` asks for the training rows: None writes them where they can be had. `source` is a file of rows to score
    again, None takes those of the run's predictions. An adapter is merged into its base. Raises RequestError for a
    reasoner or a `to` that holds files, WorkError where transformers alone gives other labels; nothing is left then.
    """
    folder = recommended_in(model).folder
    to = to.resolve()
    if os.path.lexists(to) and (not to.is_dir() or any(to.iterdir())):
        raise RequestError(f"{to}: holds something already and is left as it is; name a new or an empty folder")
    classifier = load(folder)
    asked = _asked(classifier, folder, source)
    taught, why_none = _taught_or_why(classifier, folder, rows)
    with _in_its_place(to) as partial:
        save(partial, classifier.arm, classifier.lm.model, classifier.lm.encoder)
        for name in COPIED:
            if (folder / name).exists():
                shutil.copyfile(folder / name, partial / name)
        found = score_again(partial, classifier, asked)
        if found.share < AGREEMENT:
            raise WorkError(
                f"{to}: nothing was written: scored again with transformers alone, {len(found.other)} of {found.rows} "
                f"rows have another label than saywhy gives them (rows {', '.join(found.other[:3])}). If {folder} was "
                "trained after its run was evaluated, run `saywhy evaluate` again"
            )
        decision = write_decision(partial, classifier)
        told = write_rows(partial, classifier, taught) if taught else why_none
    return [
        f"{to}: the arm {folder.name}, as transformers and vLLM load it",
        f"scored again with transformers alone: {found.rows - len(found.other) - found.ties} of {found.rows} rows have "
        f"the same label ({100 * found.share:.1f}% agree, {found.ties} of them ties)",
        f"with the prompt encoded as one text: {found.same_tokens} of {found.rows} give the tokens of training, "
        f"{found.same_label} have the same label",
        decision,
        told,
    ]


@contextmanager
def _in_its_place(to: Path) -> Iterator[Path]:
    """Give a hidden folder to write in, and rename it to its name when the block ends without an error."""
    partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        if to.exists():
            to.rmdir()
        partial.rename(to)
    except (OSError, SafetensorError) as problem:
        raise WorkError(f"{to}: cannot be written ({problem}); free some space, or name another folder") from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _asked(classifier: Classifier, folder: Path, source: str | None) -> list[Asked]:
    """Choose rows, spread over a file or the run's predictions, with saywhy's answers for the label alone and reasoned.

    An arm that gives both is asked for one half of the rows each way.
    """
    modes = [mode for mode in ("label", "reason") if mode in classifier.modes]
    if source is not None:
        table = open_table(source, Path())
        given = [row for _, row in rows_to_predict(table, columns_of(classifier.task))]
        if not given:
            raise RequestError(f"{table.name}: there are no rows")
        rows = _spread(given, SCORED_AGAIN)
        parts = [(mode, rows[at :: len(modes)]) for at, mode in enumerate(modes)]
        return [
            Asked(row, found.label, found.reasoning)
            for mode, some in parts
            for row, found in zip(some, answer(classifier, some, mode), strict=True)
        ]
    saved = {mode: path for mode in modes if (path := _predictions(folder, mode)) is not None}
    if not saved:
        raise RequestError(
            f"{folder}: an export scores {SCORED_AGAIN} rows again, and there is no "
            f"predictions/{folder.resolve().name}-{modes[0]}-test.parquet of a run beside it; give --input FILE with "
            "rows such as those of the training, or evaluate the run first"
        )
    return [one for path in saved.values() for one in _spread(_saved(classifier, path), SCORED_AGAIN // len(saved))]


def _predictions(folder: Path, mode: str) -> Path | None:
    name, written = folder.resolve().name, folder.resolve().parent / "predictions"
    paths = [written / f"{name}-{mode}-{split}.parquet" for split in ("test", "dev")]
    return next((path for path in paths if path.exists()), None)


def _saved(classifier: Classifier, path: Path) -> list[Asked]:
    """Read the rows of a file of predictions that fit whole, with what was answered."""
    saved = load_answers(path, classifier.task)
    asked = [
        Asked(Row(name, text, choices=choices), label, reasoning)
        for name, text, label, reasoning, choices in zip(
            saved.ids, saved.texts, saved.labels, saved.reasonings, saved.choices, strict=True
        )
    ]
    # A file of predictions has no columns, and what does not fit is cut from the longest of them.
    fitting = [one for one in asked if not prompt_ids(classifier.lm.encoder, row_pieces(one.row))[1]]
    if not fitting:
        raise RequestError(f"{path}: none of its texts fits whole; give --input FILE with rows to score again")
    return fitting


def _spread(rows: Sequence[T], count: int) -> list[T]:
    places = np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))
    return [rows[at] for at in places]


def score_again(folder: Path, classifier: Classifier, asked: Sequence[Asked]) -> Agreement:
    """Score the labels of rows with an exported folder and transformers alone, and compare them with saywhy's.

    Each label's whole token sequence and its end are read behind the prompt in a forward pass of their own: no cache,
    no trie, none of saywhy's scoring. Only the tokens come from the one path that all tokens come from.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = make_encoder(tokenizer, classifier.lm.encoder.prompt)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if torch.cuda.is_available():
        model.to("cuda")
    ties, same_tokens, same_label, other = 0, 0, 0, list[str]()
    with track("scoring again", len(asked), "rows") as advance:
        for one in asked:
            text, ids = _asked_prompt(encoder, one)
            labels = one.row.choices or classifier.task.labels
            own = labels.index(one.label)
            shares = _shares(model, encoder, classifier.arm, ids, labels)
            if shares.argmax() != own:
                near = bool(shares.max() - shares[own] <= TIE)
                ties += near
                other += [] if near else [one.row.id]
            joined = tokenizer(text, add_special_tokens=False).input_ids
            same_tokens += joined == ids
            if joined != ids:
                shares = _shares(model, encoder, classifier.arm, joined, labels)
            same_label += bool(shares.max() - shares[own] <= TIE)
            advance(1, len(ids) * len(labels), "")
    return Agreement(len(asked), ties, tuple(other), same_tokens, same_label)


def _asked_prompt(encoder: Encoder, asked: Asked) -> tuple[str, list[int]]:
    """Give what stands before the labels of a row, as text and as tokens."""
    parts = [Part("cue", LABEL_CUE, "")]
    if asked.reasoning is not None:
        parts = list(target("reason_then_label", "", asked.reasoning)[:3])
    ids, _ = prompt_ids(encoder, row_pieces(asked.row))
    text = encoder.prompt.before + _shown(encoder, asked.row) + encoder.prompt.after
    return text + "".join(part.text for part in parts), [*ids, *(i for part in parts for i in part_ids(encoder, part))]


@torch.inference_mode()
def _shares(model: Any, encoder: Encoder, arm: str, prompt: Sequence[int], labels: Sequence[str]) -> Floats:
    """Give the probabilities of the labels behind a prompt: (labels,) float64."""
    follows = [encoder.end]
    if arm == "label_then_reason":
        follows.append(part_ids(encoder, target(arm, "", "")[2])[0])
    scores = []
    for label in labels:
        ids = part_ids(encoder, Part("label", f" {label}", ""))
        read = torch.tensor([[*prompt, *ids]], device=model.device)
        log_probs = model(input_ids=read, use_cache=False).logits[0, len(prompt) - 1 :].double().log_softmax(-1)
        of_label = sum(log_probs[at, token] for at, token in enumerate(ids))
        scores.append(of_label + log_probs[-1, follows].logsumexp(-1))
    return torch.stack(scores).softmax(-1).cpu().numpy()


def _shown(encoder: Encoder, row: Row) -> str:
    """Give a row's text as the model sees it: trimmed where its template trims, cut where it does not fit."""
    ids, was_cut = prompt_ids(encoder, row_pieces(row))
    if was_cut:
        return decode(encoder, ids[len(encoder.before) : len(ids) - len(encoder.after)])
    text = "".join(row_pieces(row))
    return text.strip() if encoder.prompt.strip else text


def write_decision(folder: Path, classifier: Classifier) -> str:
    """Write what transformers' decision pipeline reads, where it can ask as saywhy does; give the line that says so.

    The pipeline reads one token a label behind the prompt, so every label has to be one token. Its template renders
    saywhy's prompt around the state, and a fixed text is encoded both ways before anything is written. Three things
    remain saywhy's: what follows a label counts (the pipeline reads the label's token alone, so that its probabilities
    differ by how surely each label is followed by its end), a text that is too long is cut, and a text that spells a
    control token is encoded without a cut around that word.
    """
    task, encoder = classifier.task, classifier.lm.encoder
    if "label" not in classifier.modes:
        return f"no decision.json: {classifier.arm} is not asked for the label alone"
    if not task.labels:
        return "no decision.json: each row brings its own choices"
    if classifier.prior:
        return "no decision.json: labels were balanced in training, and the pipeline corrects no probability for that"
    ids = {label: part_ids(encoder, Part("label", f" {label}", "")) for label in task.labels}
    if several := [label for label, tokens in ids.items() if len(tokens) > 1]:
        return f"no decision.json: more than one token behind {LABEL_CUE!r}: {', '.join(several)}"
    wanted = (
        [*encoder.prompt.golden, *part_ids(encoder, Part("cue", LABEL_CUE, ""))],
        [tokens[0] for tokens in ids.values()],
    )
    # Tokenizers that mark the start of a word by themselves have their joins, and the labels' space, without help.
    for join, space in ((SPLIT, " "), ("", " "), ("", "")):
        made = DecisionConfig(
            labels={"choice": [f"{space}{label}" for label in task.labels]},
            temperature={"choice": classifier.temperatures.get("label", 1.0)},
            chat_template=_decision_template(encoder.prompt, join),
        )
        if _read_by_pipeline(folder, made, task.labels) == wanted:
            made.save_pretrained(folder)
            return "decision.json: pipeline('decision') of transformers asks it too, each label being one token"
    return "no decision.json: the decision pipeline would read other tokens than the model was trained on"


def _decision_template(prompt: Prompt, join: str) -> str:
    """Write the prompt of a run as a Jinja template around the state; `join` stands where saywhy joins tokens."""
    state = "(state | trim)" if prompt.strip else "state"
    pieces = (_literal(prompt.before + join), state, _literal(join + prompt.after + join + LABEL_CUE + MARK))
    return "{{ " + " ~ ".join(pieces) + " }}"


def _literal(text: str) -> str:
    """Write a text as a constant of a Jinja template."""
    return '"' + text.encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'


def _read_by_pipeline(folder: Path, made: Any, labels: Sequence[str]) -> tuple[list[int], list[int]] | None:
    """Give the tokens of a fixed text's prompt and of the labels as the pipeline reads them; None where it cannot."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = {"type": "choice", "criteria": dict.fromkeys(labels)}
    try:
        inputs, _ = made.prepare_inputs({"state": GOLDEN, "questions": {"label": question}}, tokenizer)[0]
        return inputs["input_ids"][0].tolist(), label_token_ids(tokenizer, tuple(made.labels["choice"]))
    except ValueError:
        return None


def _taught_or_why(classifier: Classifier, folder: Path, wanted: bool | None) -> tuple[list[Taught], str]:
    """Give the training rows with their targets, or a line that says why there are none."""
    if wanted is False:
        return [], "no training rows, as asked"
    try:
        return _taught(classifier, folder), ""
    except RequestError as problem:
        if wanted:
            raise
        return [], f"no training rows: {problem}"


def _taught(classifier: Classifier, folder: Path) -> list[Taught]:
    """Join the targets of an arm with the rows of its run's data; RequestError where they do not belong together."""
    written = folder.resolve().parent / "config.yaml"
    if not written.exists():
        raise RequestError(f"{folder} is in no run's folder, so its rows are not known (no {written})")
    # Rows and splits depend on neither, and what they name may be far away.
    settings = config.load(written).model_copy(update={"reasoner": Reasoner(), "reasonings": Reasonings()})
    rows = {row.id: row for row in read(settings).train}
    found, end = [], classifier.lm.encoder.prompt.end
    for line in store.read_table(folder / "trained_on.parquet").to_pylist():
        row, parts = rows.get(line["id"]), target(*read_target(line["target"].removesuffix(end)))
        if row is None or not any(part.name == "label" and part.text == f" {row.label}" for part in parts):
            raise RequestError(
                f"{settings.data.train} is not what {folder} was trained on: row {line['id']} is missing or has "
                "another label; bring the data back as it was"
            )
        found.append(Taught(row, parts))
    return found


def write_rows(folder: Path, classifier: Classifier, taught: Sequence[Taught]) -> str:
    """Write the training rows in three forms; give the line that says so.

    `rows-prompt-completion.jsonl` has the exact strings: the leading cue belongs to the prompt, for it is forced and
    never trained, and the end token to the completion. `rows-segments.jsonl` has the same text in the pieces that
    saywhy tokenizes one by one. `rows-messages.jsonl` leaves all that stands around the turns to the reader's template.
    """
    encoder, instruction = classifier.lm.encoder, task_instruction(classifier.task)
    system = takes_system(encoder.tokenizer, instruction)
    completions, messages, segments = [], [], []
    controls, spelt = control_tokens(encoder.tokenizer), 0
    for one in taught:
        text = _shown(encoder, one.row)
        cue, *trained = [encoder.prompt.end if part.name == "end" else part.text for part in one.parts]
        around = [encoder.prompt.before, text, encoder.prompt.after, cue]
        completions.append({"prompt": "".join(around), "completion": "".join(trained)})
        answer_text = "".join([cue, *trained]).removesuffix(encoder.prompt.end)
        messages.append({"messages": _messages(instruction, text, answer_text, system)})
        labelled = [(False, piece) for piece in around] + [(True, piece) for piece in trained]
        segments.append({"segments": [{"label": label, "text": piece} for label, piece in labelled if piece]})
        spelt += any(token in text for token in controls)
    for name, lines in (("prompt-completion", completions), ("messages", messages), ("segments", segments)):
        store.write_text(folder / f"rows-{name}.jsonl", "".join(_line(line) for line in lines))
    note = f"; {spelt} texts spell a control token, which other trainers do not read as characters" if spelt else ""
    return f"{len(taught)} training rows in rows-prompt-completion, rows-messages and rows-segments.jsonl{note}"


def _messages(instruction: str, text: str, answer_text: str, system: bool) -> list[dict[str, str]]:
    asked = (
        [{"role": "system", "content": instruction}, {"role": "user", "content": text}]
        if system
        else [{"role": "user", "content": f"{instruction}\n\n{text}"}]
    )
    return [*asked, {"role": "assistant", "content": answer_text}]


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
