"""Teachers write on several workers: Ray Data takes groups of questions to them and brings their drafts back.

Only the asking is spread. The groups are those that one process would ask, so the texts are the same; the process that
was started keeps the journal, measures, checks and writes the parts.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saywhy.records import RequestError, WorkError
from saywhy.teachers import Answered, Draft, Group, Question, Teacher, Writer
from saywhy.version import VERSION

if TYPE_CHECKING:
    import numpy as np

# A worker that dies is started again, so often; what it was asked is asked again.
RESTARTS = 3
# Questions and drafts go through it: a few megabytes.
OBJECT_STORE_BYTES = 128 * 2**20
ERRORS: dict[str, type[RequestError] | type[WorkError]] = {"RequestError": RequestError, "WorkError": WorkError}

# Takes tasks, as text, to workers that have this writer's teacher, and gives their answers, as text, in any order.
Deal = Callable[[Writer, Sequence[str]], Iterator[str]]


@dataclass(frozen=True)
class Crew:
    """How many workers there are, and what each has: processors, and GPUs or a share of one."""

    workers: int
    processors: int
    gpus: float


@contextmanager
def ray_engine(workers: int | None = None) -> Iterator[Callable[[Writer], Writer]]:
    """Give a function that lets a teacher write on the cluster that RAY_ADDRESS names, or on one of this machine.

    Without `workers` there is one for each GPU, or for each machine where there are none. A cluster that was begun
    here ends with the context.

    Raises RequestError: Ray is not installed, the cluster cannot be reached or has no room for so many workers.
    """
    # Ray reads it when it begins, and nothing here sends telemetry.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Without it Ray's core warns on the terminal of what does not concern us; what ends the work is raised.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError:
        raise RequestError("--engine ray needs Ray: pip install 'saywhy[ray]'") from None
    begun = not ray.is_initialized()
    if begun:
        _begin(ray, os.environ.get("RAY_ADDRESS", ""), workers)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        crew = crew_of([(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes], workers)
        yield partial(spread, partial(_dealt, crew))
    finally:
        if begun:
            ray.shutdown()


def crew_of(machines: Sequence[tuple[float, float]], workers: int | None = None) -> Crew:
    """Divide processors and GPUs, given for each machine, among workers, each of which is on one machine."""
    gpus = int(sum(gpu for _, gpu in machines))
    machines = [machine for machine in machines if machine[0] >= 1]
    count = workers or gpus or max(1, len(machines))
    # Where workers share a GPU, all shares are equal, so that they fit.
    share = 0.0 if not gpus else 1 / -(-count // gpus)
    most = int(max((cpu for cpu, _ in machines), default=0))
    for processors in range(most, 0, -1):
        if sum(int(cpu) // processors for cpu, _ in machines) >= count:
            return Crew(count, processors, share)
    raise RequestError(
        f"--workers {count}: the cluster has {int(sum(cpu for cpu, _ in machines))} processors; ask for no more workers"
    )


def spread(deal: Deal, writer: Writer) -> Writer:
    """Let a writer's teacher be begun by workers; what came with the rows stays here."""
    return writer if writer.given else replace(writer, spread=partial(_asked, deal, writer))


def _asked(deal: Deal, writer: Writer, groups: Sequence[Group]) -> Iterator[Answered]:
    """Put groups to workers: a local teacher's are kept whole, a remote one's questions go and are kept one by one."""
    tasks = []
    for number, group in enumerate(groups):
        for places in [[at] for at in range(len(group))] if writer.remote else [list(range(len(group)))]:
            told = [astuple(group[at]) for at in places]
            tasks.append(json.dumps({"group": number, "places": places, "questions": told}))
    ended: RequestError | WorkError | None = None
    for text in deal(writer, tasks):
        answer = json.loads(text)
        drafts = [(int(at), Draft(**draft)) for at, draft in answer["drafts"]]
        if drafts and (writer.remote or not answer["error"]):
            yield int(answer["group"]), drafts
        if answer["error"] and ended is None:
            kind, message = answer["error"]
            ended = ERRORS[kind](message)
            if not writer.remote:
                break
            # What the other workers are told, to the end, is paid for and kept.
    if ended is not None:
        raise ended


class Worker:
    """A teacher in a process of its own: begun with its first task, and asked by several threads where it is remote."""

    def __init__(self, begin: Callable[[], Teacher], folder: str, version: str, started: Callable[[], int], most: int):
        self.begin, self.version = begin, version
        self.lock = threading.Lock()
        self.teacher: Teacher | None = None
        self.ended: tuple[str, str] | None = None
        self.died = started() > most
        # Paths of the config begin where the command was given, where that is a folder of this machine too.
        if Path(folder).is_dir():
            os.chdir(folder)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Answer a batch of tasks, as Ray Data calls its actors."""
        return {"answer": [self.answer(str(task)) for task in batch["task"]]}

    def answer(self, text: str) -> str:
        """Give the drafts of a task, and the project's error where one ended it."""
        task = json.loads(text)
        drafts: list[tuple[int, dict[str, Any]]] = []
        if self.ended:
            return json.dumps({"group": task["group"], "drafts": drafts, "error": self.ended})
        error = None
        try:
            questions = [Question(row, tuple(pieces), index) for row, pieces, index in task["questions"]]
            for at, draft in self._begun()(questions):
                drafts.append((task["places"][at], asdict(draft)))
        except (RequestError, WorkError) as problem:
            error = self.ended = (type(problem).__name__, str(problem))
        return json.dumps({"group": task["group"], "drafts": drafts, "error": error})

    def _begun(self) -> Teacher:
        if self.version != VERSION:
            raise RequestError(f"a worker has saywhy {VERSION}, the driver {self.version}; install the same on both")
        if self.died:
            raise WorkError(
                "the cluster's workers died again and again, as where memory is short; take fewer --workers or a lower "
                "evaluate.max_tokens_in_flight and run the same command again: what was answered is kept"
            )
        with self.lock:
            if self.teacher is None:
                self.teacher = self.begin()
        return self.teacher


class _Count:
    """Counts how often workers were started, wherever they are."""

    def __init__(self) -> None:
        self.count = 0

    def one(self) -> int:
        self.count += 1
        return self.count


def _begin(ray: Any, address: str, workers: int | None) -> None:
    """Join a cluster, or begin one on this machine that nobody else reaches."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, workers or 1),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
    except (OSError, RuntimeError, ValueError) as problem:
        where = f"RAY_ADDRESS {address} cannot be joined" if address else "no cluster can be begun on this machine"
        raise RequestError(f"{where} ({problem})") from problem


def _dealt(crew: Crew, writer: Writer, tasks: Sequence[str]) -> Iterator[str]:
    """Deal tasks to workers with Ray Data, and give answers as they come."""
    import ray
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    counter = ray.remote(num_cpus=0)(_Count).remote()
    workers = min(crew.workers, len(tasks))
    # A server answers as many at once as the config says, from wherever they are asked.
    at_once = -(-writer.at_once // workers) if writer.remote else 1
    threads = os.environ.get("OMP_NUM_THREADS", str(crew.processors))
    answers = ray.data.from_items([{"task": task} for task in tasks], override_num_blocks=len(tasks)).map_batches(
        Worker,
        batch_size=1,
        batch_format="numpy",
        fn_constructor_args=(writer.begin, str(Path.cwd()), VERSION, partial(_started, counter), workers + RESTARTS),
        compute=ray.data.ActorPoolStrategy(
            size=workers,
            # One more waits at each worker, so that none idles between two.
            max_tasks_in_flight_per_actor=at_once + 1,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=writer.remote,
        ),
        num_cpus=crew.processors,
        num_gpus=0 if writer.remote else crew.gpus,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": threads}},
    )
    try:
        for batch in answers.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            yield from map(str, batch["answer"])
    except RayError as problem:
        raise WorkError(
            f"the cluster cannot go on ({str(problem).strip().splitlines()[-1]}); every machine needs saywhy[ray] "
            f"{VERSION} and the same Python; run the same command again: what was answered is kept"
        ) from problem


def _started(counter: Any) -> int:
    """Count this worker's start."""
    import ray

    return int(ray.get(counter.one.remote()))
