"""The engine: what is asked together is answered as alone, labels overtake reasonings, and nobody waits for ever."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
import toy
from saywhy import predict, store
from saywhy.lm.cache import Reading
from saywhy.predict import TextClassifier, engine
from saywhy.predict.engine import Engine, about, open_engine, settled
from saywhy.records import LABEL_CUE, Prediction, RequestError, Task
from saywhy.serve import Answer, Event, Failure, Full, Piece, Stopped

pytest_plugins = ["runs"]
TASK = Task("moods", "Which mood?", ("joy", "no"))
TEXTS = ["so alone tonight", "a lovely morning", "", "tonight 7", "the birds are singing and so am i, " * 3, "in to of"]
PATIENCE = 60


@pytest.fixture(scope="module")
def asked() -> TextClassifier:
    return tiny.door(TASK, limit=12)


@pytest.fixture
def made(asked: TextClassifier) -> Iterator[Engine]:
    one = Engine(lambda: (asked, about(asked)), max_queue=20)
    yield one
    one.close()


def test_the_thread_that_asks_a_model_has_loaded_it(asked: TextClassifier) -> None:
    threads: list[threading.Thread] = []

    def load() -> Any:
        threads.append(threading.current_thread())
        return asked, about(asked)

    made = Engine(load)
    listener = Listener(then=lambda _: threads.append(threading.current_thread()))
    made.submit(["7"], "label", listener)
    listener.wait()
    made.close()
    assert len(threads) == 2 and threads[0] is threads[1] is not threading.current_thread()


def test_freed_memory_is_given_back_when_idle_and_now_and_then_when_busy(
    made: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = threading.Semaphore(0)
    monkeypatch.setattr(engine, "give_back_freed", given_back.release)
    # Neither holds yet: the thread has waited before, for as long as it was told then.
    ask(made, ["7"], "label").wait()
    monkeypatch.setattr(engine, "IDLE_SECONDS", 0.01)
    ask(made, ["7"], "label").wait()
    assert given_back.acquire(timeout=PATIENCE)
    monkeypatch.setattr(engine, "IDLE_SECONDS", float(PATIENCE))
    ask(made, ["7"], "label").wait()
    assert not given_back.acquire(timeout=0.1)
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.0)
    ask(made, ["7"], "label").wait()
    assert given_back.acquire(timeout=PATIENCE)


class Listener:
    """Takes down what an engine tells; `then` is called with each event, in the engine's own thread."""

    def __init__(self, texts: int = 1, then: Callable[[Event], None] | None = None) -> None:
        self.events: list[Event] = []
        self.left, self.then = texts, then
        self.done = threading.Event()

    def __call__(self, one: Event) -> None:
        self.events.append(one)
        if self.then is not None:
            self.then(one)
        self.left -= isinstance(one, Answer)
        if not self.left or isinstance(one, Failure):
            self.done.set()

    def wait(self) -> list[Prediction]:
        assert self.done.wait(PATIENCE), "nobody answered"
        found = {one.index: one.prediction for one in self.events if isinstance(one, Answer)}
        return [found[at] for at in sorted(found)]

    def written(self, index: int = 0) -> str:
        return "".join(one.text for one in self.events if isinstance(one, Piece) and one.index == index)


def ask(made: Engine, texts: Sequence[str], mode: str, pieces: bool = False) -> Listener:
    listener = Listener(len(texts))
    made.submit(texts, mode, listener, pieces)
    return listener


def hold(made: Engine) -> threading.Event:
    """Keep the engine's thread busy until the event is set."""
    held, begun = threading.Event(), threading.Event()

    def wait(_: Event) -> None:
        begun.set()
        held.wait(PATIENCE)

    made.submit(["7"], "label", Listener(1, wait))
    assert begun.wait(PATIENCE)
    return held


def same(one: Prediction, other: Prediction) -> bool:
    near = all(abs(share - other.probabilities[name]) < 1e-5 for name, share in one.probabilities.items())
    return near and (one.label, one.reasoning, one.forced) == (other.label, other.reasoning, other.forced)


@pytest.mark.parametrize("mode", ["label", "reason", "vote", "ensemble", "adaptive"])
def test_texts_asked_together_are_answered_as_alone(asked: TextClassifier, made: Engine, mode: str) -> None:
    alone = [asked(text, mode) for text in TEXTS]
    listeners = [ask(made, [text], mode) for text in TEXTS]
    assert all(same(one.wait()[0], wanted) for one, wanted in zip(listeners, alone, strict=True))
    together = ask(made, TEXTS, mode).wait()
    assert all(same(one, wanted) for one, wanted in zip(together, alone, strict=True))
    assert len({round(one.probabilities["joy"], 4) for one in alone}) == len(TEXTS)


def test_modes_may_be_asked_at_the_same_time(asked: TextClassifier, made: Engine) -> None:
    modes = ["label", "reason", "ensemble", "label", "reason", "vote"]
    alone = [asked(text, mode) for text, mode in zip(TEXTS, modes, strict=True)]
    listeners = [ask(made, [text], mode) for text, mode in zip(TEXTS, modes, strict=True)]
    assert all(same(one.wait()[0], wanted) for one, wanted in zip(listeners, alone, strict=True))


@pytest.mark.parametrize(("arm", "mode"), [("both", "reason"), ("both", "ensemble"), ("label_then_reason", "explain")])
def test_pieces_are_the_reasoning_as_it_is_written(arm: str, mode: str) -> None:
    door = tiny.door(TASK, arm, limit=12)
    made = Engine(lambda: (door, about(door)))
    listener = ask(made, TEXTS, mode, pieces=True)
    found = listener.wait()
    made.close()
    assert [listener.written(at) for at in range(len(TEXTS))] == [one.reasoning for one in found]
    pieces = [one for one in listener.events if isinstance(one, Piece) and one.index == 0]
    assert len(pieces) > 2 and listener.events.index(pieces[1]) < len(pieces) * len(TEXTS)
    # A piece comes before the answer it belongs to.
    last = {one.index: at for at, one in enumerate(listener.events) if isinstance(one, Piece)}
    answers = {one.index: at for at, one in enumerate(listener.events) if isinstance(one, Answer)}
    assert all(last[at] < answers[at] for at in last)


def test_pieces_are_told_to_whoever_wants_them(made: Engine) -> None:
    listener = ask(made, TEXTS, "reason")
    voted = ask(made, TEXTS[:1], "vote", pieces=True)
    listener.wait()
    voted.wait()
    assert not any(isinstance(one, Piece) for one in [*listener.events, *voted.events])


@given(st.text(st.sampled_from("Label: xé�\n"), max_size=30), st.data())
def test_what_is_shown_of_a_reasoning_stays_as_it_is(text: str, data: st.DataObject) -> None:
    begun = settled(text[: data.draw(st.integers(0, len(text)))])
    assert " ".join(text.partition(LABEL_CUE)[0].split()).startswith(begun)
    assert settled("a b Label: joy") == settled("a b Lab") == settled("a b") == "a b"
    assert settled("a bLa") == "a b" and settled("a La x") == "a La x"


def test_labels_overtake_reasonings_that_are_being_written(asked: TextClassifier, made: Engine) -> None:
    order: list[str] = []
    label = Listener(1, lambda one: order.append("label"))

    def first(one: Event) -> None:
        if "piece" not in order:
            made.submit(["a lovely morning"], "label", label)
        order.append("piece" if isinstance(one, Piece) else "reason")

    reason = Listener(1, first)
    made.submit(["so alone tonight"], "reason", reason, pieces=True)
    found = reason.wait()[0]
    assert order.index("piece") < order.index("label") < order.index("reason")
    assert order[order.index("label") :].count("piece") > 2
    assert same(found, asked("so alone tonight", "reason")) and same(label.wait()[0], asked("a lovely morning"))


def test_reasonings_get_on_however_many_labels_are_wanted(made: Engine) -> None:
    reason = Listener(1)
    count = 0

    def again(one: Event) -> None:
        nonlocal count
        count += 1
        if not reason.done.is_set() and count < 500:
            made.submit(["7"], "label", Listener(1, again))

    made.submit(["7"], "label", Listener(1, again))
    made.submit(["so alone tonight"], "reason", reason)
    assert reason.wait()
    assert 5 < count < 500


def test_a_request_that_nobody_waits_for_ends_between_two_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    door = tiny.door(TASK, limit=400, room=20)
    made = Engine(lambda: (door, about(door)))
    steps = 0
    step = Reading.step

    def counted(self: Reading, ids: Any) -> None:
        nonlocal steps
        steps += 1
        step(self, ids)

    monkeypatch.setattr(Reading, "step", counted)
    handles: list[Any] = []
    given_up = Listener(1, lambda one: handles[0].cancel())
    held = hold(made)
    handles.append(made.submit(["so alone tonight", "7"], "reason", given_up, pieces=True))
    held.set()
    after = ask(made, ["a lovely morning"], "label")
    after.wait()
    made.close()
    assert steps < 10
    assert [type(one) for one in given_up.events] == [Piece]


def test_what_is_not_begun_is_left_out_where_nobody_waits(made: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_of: list[list[str]] = []
    rows = TextClassifier.rows

    def noted(self: TextClassifier, some: Any, **more: Any) -> list[Prediction]:
        asked_of.append([row.text for row in some])
        return rows(self, some, **more)

    monkeypatch.setattr(TextClassifier, "rows", noted)
    held = hold(made)
    gone = made.submit(["gone", "gone too"], "label", Listener(2))
    gone.cancel()
    after = ask(made, ["after"], "label")
    held.set()
    after.wait()
    assert asked_of[-1] == ["after"] and not any("gone" in texts for texts in asked_of)
    assert made.waiting() == 0


def test_texts_of_like_length_are_asked_together(asked: TextClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Engine(lambda: (replace(asked, max_tokens_in_flight=100), about(asked)))
    batches: list[list[str]] = []
    rows = TextClassifier.rows

    def noted(self: TextClassifier, some: Any, **more: Any) -> list[Prediction]:
        batches.append([row.text for row in some])
        return rows(self, some, **more)

    monkeypatch.setattr(TextClassifier, "rows", noted)
    held = hold(made)
    listeners = [ask(made, [text], "label") for text in ["a" * 120, "b", "c" * 100, "d", "e" * 300]]
    held.set()
    for one in listeners:
        one.wait()
    made.close()
    # 120 characters count for 38 tokens: two of them fit into 100, and the oldest text is in the first batch.
    assert batches[1:] == [["a" * 120, "c" * 100], ["b", "d"], ["e" * 300]]


def test_a_full_queue_refuses_and_says_when_to_come_back(made: Engine) -> None:
    held = hold(made)
    waiting = [ask(made, ["7"] * 10, "label"), ask(made, ["7"] * 20, "reason")]
    with pytest.raises(Full) as refused:
        made.submit(["7"], "vote", Listener())
    assert refused.value.seconds >= 1 and made.waiting() == 31
    # What is reasoned takes no place of those that want the label alone.
    waiting.append(ask(made, ["7"] * 10, "label"))
    with pytest.raises(Full):
        made.submit(["7"], "label", Listener())
    held.set()
    assert [len(one.wait()) for one in waiting] == [10, 20, 10]
    assert len(ask(made, ["7"] * 20, "label").wait()) == 20


def test_closing_finishes_what_was_taken_and_takes_no_more(asked: TextClassifier) -> None:
    made = Engine(lambda: (asked, about(asked)))
    listeners = [ask(made, TEXTS, mode) for mode in ("label", "reason", "vote")]
    made.close()
    assert [len(one.wait()) for one in listeners] == [6, 6, 6]
    assert not made.ready()
    with pytest.raises(Stopped):
        made.submit(["7"], "label", Listener())
    made.close()


def test_an_idle_engine_closes_at_once_and_is_ready_before(asked: TextClassifier) -> None:
    made = Engine(lambda: (asked, about(asked)))
    ask(made, ["7"], "label").wait()
    assert made.ready()
    made.close()
    assert not made.ready()


def test_a_batch_that_fails_is_told_so_and_the_next_is_answered(
    made: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: TextClassifier, rows: Any, **__: Any) -> list[Prediction]:
        raise RuntimeError(rows[0].text)

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(TextClassifier, "rows", broken)
        listener = ask(made, ["my secret"], "label")
        listener.wait()
    (failure,) = listener.events
    assert isinstance(failure, Failure) and not failure.stopped and "secret" not in failure.message
    assert "RuntimeError" in caplog.text and "test_engine.py" in caplog.text and "secret" not in caplog.text
    assert ask(made, ["7"], "label").wait()


@pytest.mark.parametrize("mode", ["label", "reason"])
def test_a_text_that_a_model_fails_on_costs_no_other_its_answer(
    asked: TextClassifier, made: Engine, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    rows, wanted = TextClassifier.rows, [asked(text, mode) for text in TEXTS]

    def broken(self: TextClassifier, some: Any, **more: Any) -> list[Prediction]:
        if any(row.text == "bad" for row in some):
            raise AssertionError
        return rows(self, some, **more)

    held = hold(made)
    monkeypatch.setattr(TextClassifier, "rows", broken)
    listeners = [ask(made, [text], mode, pieces=True) for text in (*TEXTS[:3], "bad", *TEXTS[3:])]
    held.set()
    bad = listeners.pop(3)
    assert not bad.wait() and [type(one) for one in bad.events] == [Failure]
    assert all(same(one.wait()[0], other) for one, other in zip(listeners, wanted, strict=True))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_where_the_engine_itself_breaks_nobody_is_left_waiting(
    asked: TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Engine(lambda: (asked, about(asked)))
    held = hold(made)

    def broken(*_: Any, **__: Any) -> list[Prediction]:
        raise SystemError

    monkeypatch.setattr(TextClassifier, "rows", broken)
    listeners = [ask(made, ["7"], mode) for mode in ("label", "reason")]
    held.set()
    for one in listeners:
        one.wait()
        assert [event.stopped for event in one.events if isinstance(event, Failure)] == [True]
    made._thread.join(PATIENCE)
    assert not made.ready()
    with pytest.raises(Stopped):
        made.submit(["7"], "label", Listener())


def test_a_text_that_cannot_be_asked_is_refused_before_it_waits(made: Engine) -> None:
    with pytest.raises(RequestError, match="text 1 holds half of a character"):
        made.submit(["7", "\ud800"], "label", Listener())
    assert made.waiting() == 0


def test_what_is_served_is_described_with_the_figures_of_its_run(finished: toy.Done) -> None:
    made = open_engine(finished.folder / "both")
    made.close()
    told, test = made.about, finished.metrics["arms"]["both"]["modes"]["label"]["test"]
    assert (told.name, told.task.labels, told.recommended) == ("animals", toy.LABELS, "label")
    assert told.modes["label"].accuracy == test["accuracy"] > 0.5
    assert told.modes["label"].tokens_per_row == test["tokens_per_row"]
    assert told.modes["label"].rows_per_second == test["rows_per_second"]
    assert told.modes["vote"].accuracy is None and list(told.modes) == [
        "label",
        "reason",
        "vote",
        "ensemble",
        "adaptive",
    ]
    recommended = open_engine(finished.folder, name="mine")
    recommended.close()
    assert recommended.about.name == "mine"
    assert recommended.about.recommended == finished.metrics["recommended"]["mode"]


def test_figures_of_other_weights_or_of_another_tool_are_not_shown(finished: toy.Done, tmp_path: Path) -> None:
    run = shutil.copytree(finished.folder, tmp_path / "run")
    asked = predict.open_classifier(run / "both")
    assert about(asked).modes["label"].accuracy
    stamp = store.read_json(run / "both" / "stamp.json")
    store.write_json(run / "both" / "stamp.json", stamp | {"fingerprint": "another training"})
    assert about(asked).modes["label"].accuracy is None
    store.write_json(run / "metrics.json", {"accuracy": 0.9})
    assert about(asked).modes["label"].accuracy is None


def test_a_model_without_a_run_has_no_figures(asked: TextClassifier) -> None:
    told = about(asked)
    assert all(figures.accuracy is None for figures in told.modes.values()) and told.recommended == "label"
    never = replace(asked, classifier=replace(asked.classifier, threshold=None))
    assert "adaptive" not in about(never).modes


def test_a_task_whose_rows_bring_their_choices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    picks = tiny.door(Task("picks", "Which answer?", (), choices="choices"))
    monkeypatch.setattr(engine, "open_classifier", lambda *_: picks)
    with pytest.raises(RequestError, match="brings its own choices"):
        open_engine("somewhere")
    assert predict.open_classifier is not engine.open_classifier
