"""Teachers on several workers write what one process writes, whoever dies."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toy
from faulty import Act, completion, serving
from saywhy import cli, journal, pipeline, reasonings, store
from saywhy import spread as room
from saywhy.config import Reasonings
from saywhy.reasonings import Job, writing
from saywhy.records import Candidate, RequestError, Row, Task, WorkError
from saywhy.spread import Crew, Worker, crew_of, ray_engine, spread
from saywhy.teachers import Draft, Group, Question, Teacher, Writer
from saywhy.teachers import given as brought
from saywhy.version import VERSION

pytest_plugins = ("runs",)

TASK = Task("t", "Which one?", ("a", "b"), {"a": "the first"})
ROWS = tuple(Row(f"r{i}", "text " * (i * 7 % 11) + "\ud83d é", "ab"[i % 2]) for i in range(90))
Asked = list[tuple[str, ...]]


def dealt(writer: Writer, tasks: Sequence[str], workers: int = 3, version: str = VERSION) -> Iterator[str]:
    """Workers as Ray has them, but in this process, and what they answer in no order."""
    crew = [Worker(writer.begin, ".", version, lambda: 1, 3) for _ in range(workers)]
    mixed = list(tasks)
    Random(0).shuffle(mixed)
    for at, task in enumerate(mixed):
        yield crew[at % workers].answer(task)


def company(asked: Asked) -> Teacher:
    """Write who was asked together: another group is another text."""

    def write(group: Group) -> Iterator[tuple[int, Draft]]:
        names = tuple(f"{q.row_id} {q.index}" for q in group)
        asked.append(names)
        for at, q in reversed(list(enumerate(group))):
            yield at, Draft(f"{q.row_id} {q.index} of {store.hash_of(names)} é", False, 3, 9, 0.1, 0.3)

    return write


def about_some(task: Task, row: Row, candidate: Candidate) -> bool:
    """Drop enough that rows are asked again, some to the end."""
    return int(row.id[1:]) % 5 == 0 and (candidate.index < 3 or row.id == "r10")


def write(folder: Path, writers: Sequence[Writer], merger: Writer | None = None, **settings: object) -> Path:
    out = folder / "reasonings"
    out.mkdir(parents=True)
    told = Reasonings.model_validate({"candidates": 2, **settings})
    with journal.opened(folder / journal.FILE) as book:
        reasonings.write(out, Job(TASK, ROWS, writers, [about_some], told, merger), book)
    return folder


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "reasonings").glob("part-*"))}


def spent(folder: Path) -> dict[str, dict[str, float | None]]:
    with journal.opened(folder / journal.FILE) as book:
        return journal.spent(book)


@pytest.mark.parametrize(("settings", "merges"), [({}, False), ({"top_up": 1.0}, False), ({}, True)])
def test_workers_are_asked_the_same_groups_and_the_parts_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], merges: bool
) -> None:
    monkeypatch.setattr(writing, "ROWS_PER_PART", 20)
    monkeypatch.setattr(writing, "PARTS_AHEAD", 3)
    here: Asked = []
    there: Asked = []

    def writers(asked: Asked) -> list[Writer]:
        column = Writer("column", {}, lambda: brought({"r3": "a column", "r5": "another"}), given=True)
        one = Writer("w", {"name": "w"}, partial(company, asked), at_once=7)
        return [column, one]

    merging = replace(writers(here)[1], name="merge:m", identity={"name": "m"})
    merger = merging if merges else None
    alone = write(tmp_path / "alone", writers(here), merger, **settings)
    told = [spread(dealt, one) for one in writers(there)]
    if merges:
        merger = spread(dealt, replace(merging, begin=partial(company, there)))
    several = write(tmp_path / "several", told, merger, **settings)
    assert parts(several) == parts(alone)
    assert len(parts(alone)) == 5
    assert sorted(there) == sorted(here)
    assert max(map(len, here)) == 7
    assert spent(several) == {name: pytest.approx(of) for name, of in spent(alone).items()}


def test_several_parts_are_given_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "ROWS_PER_PART", 20)
    monkeypatch.setattr(writing, "PARTS_AHEAD", 4)
    calls: list[int] = []

    def deal(writer: Writer, tasks: Sequence[str]) -> Iterator[str]:
        calls.append(len(tasks))
        return dealt(writer, tasks)

    write(tmp_path, [spread(deal, Writer("w", {}, partial(company, []), at_once=8))], max_tries=1)
    # Of 40 candidates a part: five groups in each of the first four, three in the last.
    assert calls == [20, 3]


def test_what_came_with_the_rows_stays_here() -> None:
    column = Writer("column", {}, lambda: brought({}), given=True)
    assert spread(dealt, column) is column


def failing(error: Exception) -> Teacher:
    def write(group: Group) -> Iterator[tuple[int, Draft]]:
        for at, q in enumerate(group):
            if q.row_id == "r40":
                raise error
            yield at, Draft("", failed="busy")
            yield at, Draft(f"said {q.row_id}")

    return write


@pytest.mark.parametrize("error", [RequestError("no key"), WorkError("a dead server")])
def test_an_error_of_a_teacher_ends_the_work_and_answers_are_kept(tmp_path: Path, error: Exception) -> None:
    for remote, most in ((True, 179), (False, 176)):
        writer = Writer("w", {}, partial(failing, error), at_once=4, remote=remote)
        with pytest.raises(type(error), match=str(error)):
            write(tmp_path / str(remote), [spread(dealt, writer)])
        answers = spent(tmp_path / str(remote)).get("w", {}).get("answers") or 0
        assert 0 < answers <= most
        # Of a local teacher no group is kept in part.
        assert remote or answers % 4 == 0


def test_what_other_workers_were_told_by_a_server_is_kept(tmp_path: Path) -> None:
    """One worker ends with its first task; the other has been asked meanwhile, and is paid."""
    asked: list[str] = []

    def ends(group: Group) -> Iterator[tuple[int, Draft]]:
        raise WorkError("the quota is spent")
        yield

    def works(group: Group) -> Iterator[tuple[int, Draft]]:
        for at, q in enumerate(group):
            asked.append(q.row_id)
            yield at, Draft(f"said {q.row_id}")

    def deal(writer: Writer, tasks: Sequence[str]) -> Iterator[str]:
        crew = [Worker(lambda one=one: one, ".", VERSION, lambda: 1, 9) for one in (ends, works)]  # type: ignore[misc]
        for at, task in enumerate(tasks[:20]):
            yield crew[at % 2].answer(task)

    with pytest.raises(WorkError, match="the quota is spent"):
        write(tmp_path, [spread(deal, Writer("w", {}, lambda: works, at_once=4, remote=True))])
    assert len(asked) == 10 and spent(tmp_path)["w"]["answers"] == 10


def test_a_worker_that_ended_asks_nobody_else() -> None:
    calls: list[int] = []

    def ends(group: Group) -> Iterator[tuple[int, Draft]]:
        calls.append(1)
        raise WorkError("the quota is spent")
        yield

    worker = Worker(lambda: ends, ".", VERSION, lambda: 1, 9)
    task = json.dumps({"group": 0, "places": [0], "questions": [["r0", ["", "text"], 0]]})
    found = [json.loads(worker.answer(task))["error"] for _ in range(3)]
    assert found == [["WorkError", "the quota is spent"]] * 3 and calls == [1]


def test_answers_of_a_server_go_one_by_one(tmp_path: Path) -> None:
    asked: Asked = []
    kept: list[int] = []

    def deal(writer: Writer, tasks: Sequence[str]) -> Iterator[str]:
        for text in dealt(writer, tasks):
            yield text
            kept.append(int(spent(tmp_path)["w"]["answers"] or 0))

    write(tmp_path, [spread(deal, Writer("w", {}, partial(company, asked), remote=True))], max_tries=1)
    assert {len(names) for names in asked} == {1}
    assert kept == list(range(1, 181))


def test_workers_of_another_version_or_that_died_too_often_are_refused() -> None:
    writer = Writer("w", {}, partial(company, []))
    one = spread(partial(dealt, version="0.0.1"), writer)
    with pytest.raises(RequestError, match=r"the driver 0\.0\.1"):
        list(one.spread([[Question("r", ("x",), 0)]]) if one.spread else [])
    dying = Worker(writer.begin, ".", VERSION, lambda: 4, 3)
    assert "died again and again" in dying.answer('{"group": 0, "places": [], "questions": []}')


@given(
    machines=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=5),
    workers=st.none() | st.integers(1, 12),
)
def test_a_crew_fits_on_its_machines(machines: list[tuple[int, int]], workers: int | None) -> None:
    processors, gpus = (sum(column) for column in zip(*machines, strict=True))
    count = workers or gpus or max(1, sum(cpu > 0 for cpu, _ in machines))
    if count > processors:
        with pytest.raises(RequestError, match=f"--workers {count}: the cluster has {processors} processors"):
            crew_of(machines, workers)
        return
    crew = crew_of(machines, workers)
    assert crew.workers == count
    assert sum(cpu // crew.processors for cpu, _ in machines) >= count
    assert (crew.gpus > 0) == (gpus > 0)
    if gpus:
        assert int(1 / crew.gpus) * gpus >= count


def test_without_a_number_there_is_a_worker_for_each_gpu_or_machine() -> None:
    assert crew_of([(8, 0)]) == Crew(1, 8, 0.0)
    assert crew_of([(8, 0), (6, 0), (0, 0)]) == Crew(2, 6, 0.0)
    assert crew_of([(8, 2), (8, 2)]) == Crew(4, 4, 1.0)
    assert crew_of([(8, 1)], 2) == Crew(2, 4, 0.5)


# The command line.


def test_reason_spreads_its_teachers_where_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[int | None, str]] = []

    @contextmanager
    def engine(workers: int | None) -> Iterator[Callable[[Writer], Writer]]:
        def wrapped(writer: Writer) -> Writer:
            told.append((workers, writer.name))
            return writer

        yield wrapped

    monkeypatch.setattr(room, "ray_engine", engine)
    config = toy.write_config(toy.write_data(tmp_path / "data"), **toy.quick())
    assert cli.main(["reason", str(config), "-o", str(tmp_path / "run")]) == 0
    assert told == []
    words = ["reason", str(config), "-o", str(tmp_path / "ray"), "--engine", "ray", "--workers", "3"]
    assert cli.main(words) == 0
    assert told == [(3, "column")]
    assert parts(tmp_path / "ray") == parts(tmp_path / "run")
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["reason", "--engine", "spark"], "--engine spark: there is no such engine; name here or ray"),
        (["reason", "--workers", "2"], "--workers is for --engine ray"),
        (["reason", "--resume", "sometimes"], "--resume sometimes: there is no such way; name one of never, always"),
        (["run", "--resume", "sometimes"], "--resume sometimes: there is no such way; name one of never, always"),
        (["reason", "--resume", "always"], "there are no answers to go on from"),
    ],
)
def test_wrong_words_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    config = toy.write_config(toy.write_data(tmp_path / "data"), **toy.quick())
    assert cli.main([words[0], str(config), "-o", str(tmp_path / "run"), *words[1:]]) == 2
    assert says in capsys.readouterr().err


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match=r"pip install 'saywhy\[ray\]'"), ray_engine():
        pass


@pytest.mark.parametrize("verb", ["reason", "run"])
def test_resume_says_what_becomes_of_earlier_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    told: list[str] = []

    def noted(*given: object, resume: str, **named: object) -> Path:
        told.append(resume)
        raise RequestError("enough")

    monkeypatch.setattr(pipeline, "run", noted)
    config = toy.write_config(toy.write_data(tmp_path / "data"), **toy.quick())
    for words in ([], ["--resume", "never"], ["--resume", "always"]):
        assert cli.main([verb, str(config), *words]) == 2
    assert told == ["if_possible", "never", "always"]


# A cluster of two workers. Each driver is a process of its own, as a user's is.

on_a_cluster = [
    pytest.mark.soak,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'saywhy[ray]'"),
    pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL"),
]
ROWS_PER_PART, AT_ONCE = 16, 8
DRIVER = "import sys, test_spread; test_spread.drive(*sys.argv[1:])"


def deadly(begin: Callable[[], Teacher], marker: str) -> Teacher:
    """Kill the process that is asked for one row, the first time that it is."""
    teacher = begin()

    def write(group: Group) -> Iterator[tuple[int, Draft]]:
        if any(q.row_id == "train-30" for q in group) and not Path(marker).exists():
            Path(marker).write_text(str(os.getpid()), encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        yield from teacher(group)

    return write


def settings_of(url: str) -> dict[str, Any]:
    """The changes of a run whose teacher is the reasoner, or where there is a `url` the server there."""
    api = {"base_url": url, "model": "m", "concurrency": 2}
    return toy.quick(reasonings__teacher="api", reasonings__api=api) if url else toy.with_reasoner()


def drive(data: str, folder: str, marker: str, dies_after: str, url: str) -> None:
    """Write the reasonings with two workers; the driver dies when it has kept so many groups."""
    writing.ROWS_PER_PART = ROWS_PER_PART
    keep, kept = journal.keep, []

    def counted(book: journal.Journal, attempts: Sequence[journal.Attempt]) -> None:
        keep(book, attempts)
        kept.append(None)
        if len(kept) == int(dies_after):
            os.kill(os.getpid(), signal.SIGKILL)

    journal.keep = counted
    config = toy.load(Path(data), **settings_of(url))
    with ray_engine(2) as engine:

        def several(writer: Writer) -> Writer:
            return engine(replace(writer, at_once=AT_ONCE, begin=partial(deadly, writer.begin, marker)))

        pipeline.run(config, Path(folder), until="reason", spread=several)


def driven(
    data: Path, folder: Path, marker: Path, dies_after: int = 0, url: str = ""
) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, "-c", DRIVER, str(data), str(folder), str(marker), str(dies_after), url]
    found = [str(Path(room.__file__).parents[1]), str(Path(__file__).parent)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    # Ray's workers let everybody go first; on a busy machine they would hardly begin.
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(found), "RAY_worker_niceness": "0"}
    environment["OPENAI_API_KEY"] = "none"
    return subprocess.run(script, capture_output=True, text=True, env=environment, timeout=500)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data, and the run of one process."""
    where = tmp_path_factory.mktemp("alone")
    data = toy.write_data(where / "data")
    config = toy.load(data, **toy.with_reasoner())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "ROWS_PER_PART", ROWS_PER_PART)
        spread = partial(replace, at_once=AT_ONCE)
        pipeline.run(config, where / "run", until="reason", spread=spread)
    return data, where / "run"


def trained(run: Path, folder: Path) -> Path:
    """Copy a run without what its teacher wrote."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("reasonings", f"{journal.FILE}*", ".lock"))
    return folder


def answers(folder: Path) -> int:
    return int(spent(folder)["reasoner"]["answers"] or 0)


class TestCluster:
    pytestmark = on_a_cluster

    def test_a_worker_that_is_killed_loses_nothing(self, alone: tuple[Path, Path], tmp_path: Path) -> None:
        data, run = alone
        folder, marker = trained(run, tmp_path / "run"), tmp_path / "killed"
        ended = driven(data, folder, marker)
        assert ended.returncode == 0, ended.stderr
        assert int(marker.read_text(encoding="utf-8")) > 0, "no worker was killed"
        assert parts(folder) == parts(run)
        assert len(parts(run)) == 4
        one, other = spent(folder)["reasoner"], spent(run)["reasoner"]
        assert (one["attempts"], one["answers"], one["tokens"]) == (
            other["attempts"],
            other["answers"],
            other["tokens"],
        )

    def test_a_driver_that_is_killed_goes_on(self, alone: tuple[Path, Path], tmp_path: Path) -> None:
        data, run = alone
        folder, marker = trained(run, tmp_path / "run"), tmp_path / "nobody"
        marker.touch()
        ended = driven(data, folder, marker, 3)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert answers(folder) == 3 * AT_ONCE
        assert not (folder / "reasonings").exists()
        ended = driven(data, folder, marker)
        assert ended.returncode == 0, ended.stderr
        assert parts(folder) == parts(run)
        assert spent(folder)["reasoner"]["attempts"] == answers(run)

    def test_workers_ask_a_server_and_one_that_is_killed_loses_no_answer(
        self, alone: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def because(body: dict[str, Any], before: int) -> Act:
            told = json.dumps([body["messages"], body["seed"]])
            return Act(completion("because " + store.hash_of(told)[:8]), delay=0.01)

        data, _ = alone
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        monkeypatch.setattr(writing, "ROWS_PER_PART", ROWS_PER_PART)
        with serving(because) as server:
            spread = partial(replace, at_once=AT_ONCE)
            config = toy.load(data, **settings_of(server.url))
            pipeline.run(config, tmp_path / "alone", until="reason", spread=spread)
            alone_asked = [(body["messages"], body["seed"]) for body in server.bodies]
            del server.bodies[:]
            ended = driven(data, tmp_path / "run", marker := tmp_path / "killed", url=server.url)
            assert ended.returncode == 0, ended.stderr
            asked = [(body["messages"], body["seed"]) for body in server.bodies]
        assert int(marker.read_text(encoding="utf-8")) > 0, "no worker was killed"
        assert parts(tmp_path / "run") == parts(tmp_path / "alone")
        assert spent(tmp_path / "run")["api"]["answers"] == len(alone_asked)
        assert all(one in asked for one in alone_asked)
        # The worker that died had answers of one group that it had not handed over, and no others are asked for twice.
        assert len(alone_asked) <= len(asked) <= len(alone_asked) + AT_ONCE
