"""The command line: one verb a stage, one clear message for each mistake."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from saywhy.cli.tables import percent, results, setting_results, voters, votes
from saywhy.config import commented_example, load, load_study
from saywhy.records import Prediction, RequestError, WorkError
from saywhy.version import VERSION

STOPPED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train small text classifiers that say why, and measure whether saying why helped.",
)

ConfigFile = Annotated[Path, typer.Argument(help="the config; `saywhy init` writes one", show_default=False)]
Folder = Annotated[Path | None, typer.Option("--output", "-o", help="the run's folder; default runs/<task.name>")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="replace a value of the config: data.rows=64")]
Keep = Annotated[
    float | None, typer.Option(help="budget: this share of reasoning's gain on dev, such as 0.9, at the least cost")
]
TokensPerRow = Annotated[
    float | None, typer.Option("--tokens-per-row", help="budget: at most so many computed tokens a row on average")
]

Resume = Annotated[
    str, typer.Option(help="teachers' earlier answers: never (ask anew), always (there must be some), if_possible")
]


@app.callback(invoke_without_command=True)
def about(
    version: Annotated[bool, typer.Option("--version", help="print the version and leave")] = False,
) -> None:
    """Answer --version."""
    if version:
        print(f"saywhy {VERSION}")
        raise typer.Exit


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="the run's folder")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="of the tickets, the models and every draw")] = 0,
    write_data: Annotated[
        Path | None, typer.Option(help="only write the tickets into this folder, for examples/tickets.yaml")
    ] = None,
) -> None:
    """Do the whole method on the bundled task, offline, on a CPU."""
    from saywhy import demo as bundled

    if write_data is not None:
        bundled.write_data(write_data, seed)
        print(f"tickets are in {write_data}")
        return
    _finish(bundled.run(output, seed))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="where to write it")] = Path("config.yaml"),
    from_openai: Annotated[
        Path | None, typer.Option("--from-openai", help='a .jsonl file of {"messages": …} to make rows and config from')
    ] = None,
) -> None:
    """Write a commented config.yaml, or rows and a config from a file that finetunes a model of OpenAI's."""
    if from_openai is not None:
        from saywhy.data.messages import import_messages

        for line in import_messages(from_openai, path):
            print(line)
        print(f"{path} is written; name a base there, then run: saywhy check {path}")
        return
    if path.exists():
        raise RequestError(f"{path}: there is a file already and it is left as it is; name another one")
    try:
        path.write_text(commented_example(), encoding="utf-8")
    except OSError as problem:
        raise RequestError(f"{path}: cannot be written ({problem.strerror}); name another folder") from problem
    print(f"{path} is written; fill in task and data, then run: saywhy check {path}")


@app.command()
def check(config: ConfigFile, sets: Sets = None) -> None:
    """Dry run: what the model will see, lengths and cuts, the data's audit, steps, memory and time of each arm."""
    from saywhy import dryrun

    _quiet()
    settings = load(config, sets or ())
    dryrun.show(settings)
    if settings.study is not None:
        from saywhy.study.cells import lines, plan

        print("\n".join(lines(plan(load_study(config, sets or ())[1], Path()))))


@app.command()
def run(
    config: ConfigFile,
    output: Folder = None,
    sets: Sets = None,
    keep: Keep = None,
    tokens_per_row: TokensPerRow = None,
    resume: Resume = "if_possible",
) -> None:
    """Do the whole method, from labelled rows to a report."""
    _finish(_until("report", config, output, [*(sets or ()), *_budget(keep, tokens_per_row)], resume))


@app.command()
def reason(
    config: ConfigFile,
    output: Folder = None,
    sets: Sets = None,
    resume: Resume = "if_possible",
    engine: Annotated[
        str, typer.Option(help="where teachers write: here, or ray (the cluster of RAY_ADDRESS, else a local one)")
    ] = "here",
    workers: Annotated[
        int | None, typer.Option(min=1, help="with --engine ray; default: one a GPU, else one a machine")
    ] = None,
) -> None:
    """Train the reasoner and write the reasonings."""
    print(f"reasonings are in {_until('reason', config, output, sets, resume, engine, workers)}")


@app.command()
def train(config: ConfigFile, output: Folder = None, sets: Sets = None) -> None:
    """Train the arms, after what they need."""
    print(f"the arms are in {_until('train', config, output, sets)}")


@app.command()
def evaluate(
    config: ConfigFile,
    output: Folder = None,
    sets: Sets = None,
    keep: Keep = None,
    tokens_per_row: TokensPerRow = None,
) -> None:
    """Let every arm answer dev and test and write metrics.json, after what that needs."""
    print(f"the figures are in {_until('evaluate', config, output, [*(sets or ()), *_budget(keep, tokens_per_row)])}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="a finished run", show_default=False)]) -> None:
    """Draw the report of a run again."""
    from saywhy import report as drawn

    _finish(drawn.write(folder))


@app.command()
def study(config: ConfigFile, output: Folder = None, sets: Sets = None) -> None:
    """Do the grid of the config's study, every cell a run, and write one report of them all.

    Stages that are the same in two cells are done once. Stopped or killed, the same command goes on.
    """
    settings, cells = load_study(config, sets or ())
    _quiet()
    from saywhy.store import read_json
    from saywhy.study.run import run as run_study

    folder = output or Path("runs") / f"{settings.task.name}-study"
    path = run_study(settings, cells, folder, _command("study", [config], sets, output))
    _finish_study(read_json(path.parent / "study.json"), path)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="finished runs", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="the page to write")] = Path("compare.html"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file at --output")] = False,
) -> None:
    """Set finished runs side by side, from their saved predictions alone.

    Runs that differ in their seed alone count as one.
    """
    from saywhy.study.compare import compare as compare_runs

    if output.exists() and not overwrite:
        raise RequestError(f"{output}: there is a file already; name another with -o, or add --overwrite")
    _finish_study(compare_runs(folders, output, _command("compare", folders, None, None)), output)


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(help="a run or the folder of an arm", show_default=False)],
    texts: Annotated[list[str] | None, typer.Argument(help="texts to classify", show_default=False)] = None,
    source: Annotated[
        str | None,
        typer.Option("--input", help="csv, tsv, jsonl, parquet, a folder or a hub id, with the columns training read"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="where the rows of --input go: .csv, .tsv, .jsonl or .parquet")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file at --output")] = False,
    mode: Annotated[
        str | None, typer.Option(help="label, reason, explain, vote, ensemble, adaptive; default: the recommended one")
    ] = None,
    abstain_below: Annotated[
        float | None,
        typer.Option("--abstain-below", help="the least probability of a label, 0 to 1; default: the run's own"),
    ] = None,
    keep: Keep = None,
    tokens_per_row: TokensPerRow = None,
    max_tokens_in_flight: Annotated[
        int, typer.Option("--max-tokens-in-flight", help="tokens held at one time; less needs less memory")
    ] = 16384,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """Classify texts, or the rows of a file of any length.

    The output has all columns of the input, then label, probability, probabilities, expected (ratings),
    abstained, reasoning, tokens, forced, pruned.

    Where the input has a column of such a name, those of the answer begin with predicted_: predicted_label.

    Stopped or killed, the same command goes on.
    """
    from saywhy import predict as room

    if (source is None) == (not texts):
        raise RequestError("predict takes either texts or --input FILE; give one of them")
    if output is not None:
        if source is None:
            raise RequestError(
                "--output takes the rows of --input; answers to texts are printed, with --json for programs"
            )
        room.check_output(source, output, overwrite)
    _quiet()
    classifier = room.open_classifier(
        folder,
        mode,
        abstain_below,
        keep=keep,
        tokens_per_row=tokens_per_row,
        max_tokens_in_flight=max_tokens_in_flight,
    )
    if not classifier.is_calibrated:
        print(
            f"the probabilities of mode {classifier.mode} are not calibrated; a run with that mode in "
            "evaluate.modes fits a temperature for it on dev rows",
            file=sys.stderr,
        )
    if classifier.mode == "adaptive" and not classifier.classifier.threshold:
        print("reasoning gained nothing on dev, so mode adaptive gives what mode label gives", file=sys.stderr)
    if source is not None and output is not None:
        count = room.answer_file(classifier, source, output, overwrite)
        print(f"{count} answers are in {output}")
        return
    if source is not None:
        answers = room.answer_source(classifier, source)
    else:
        rows = [room.text_row(classifier.classifier.task, text, str(at)) for at, text in enumerate(texts or ())]
        found = classifier.rows(rows, "predict" if len(rows) > room.SHOW_PROGRESS_FROM else "")
        answers = zip(rows, found, strict=True)
    if as_json:
        for row, prediction in answers:
            print(json.dumps({"id": row.id, **asdict(prediction)}, ensure_ascii=False), flush=True)
    else:
        _show((row.text, prediction) for row, prediction in answers)


@app.command()
def label(
    config: ConfigFile,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="where the labelled rows go; default label.output")
    ] = None,
    sets: Sets = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file at --output")] = False,
) -> None:
    """Label texts without labels by the vote of teachers and prompts, ready as data.train.

    Answers are kept beside the output as they come. Stopped or killed, the same command goes on.
    """
    settings = load(config, sets or ())
    _quiet()
    from saywhy.labelling import label as label_texts

    path, counted = label_texts(settings, output, overwrite)
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(voters(counted))
    for line in votes(counted):
        print(line)
    print(f"labelled rows are in {path}")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="a run or the folder of an arm", show_default=False)],
    to: Annotated[Path, typer.Option("--to", help="a new or an empty folder", show_default=False)],
    rows: Annotated[
        bool | None,
        typer.Option("--rows/--no-rows", help="the training rows for other trainers; default: where they can be had"),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--input", help="rows to score again; default: those of the run's predictions")
    ] = None,
) -> None:
    """Write what transformers, vLLM and other trainers load, scored again with transformers alone."""
    from saywhy import export as room

    _quiet()
    for line in room.write(folder, to, rows, source):
        print(line)


@app.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="a run or the folder of an arm", show_default=False)],
    host: Annotated[str, typer.Option(help="the address to bind; others than 127.0.0.1 need a key")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free")] = 8000,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", help="the environment variable that holds the key")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="asked where a request names none; default: the recommended")] = None,
    name: Annotated[str | None, typer.Option(help="what clients call the model; default: the task's name")] = None,
    max_queue: Annotated[int, typer.Option("--max-queue", min=1, help="texts that may wait; more are told 429")] = 1024,
    max_body: Annotated[int, typer.Option("--max-body", min=1, help="bytes of a request")] = 2 * 2**20,
    max_texts: Annotated[int, typer.Option("--max-texts", min=1, help="texts of a request")] = 256,
    max_characters: Annotated[int, typer.Option("--max-characters", min=1, help="characters of a text")] = 20_000,
    deadline: Annotated[float, typer.Option(min=0.1, help="seconds that a request may take")] = 60.0,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="write the texts into the log")] = False,
) -> None:
    """Serve a model: a page, /v1/classify, and /v1/chat/completions for OpenAI's clients."""
    if max_texts > max_queue:
        raise RequestError(f"--max-texts {max_texts} never fit into --max-queue {max_queue}; change one of them")
    try:
        from saywhy.serve import run as room
        from saywhy.serve.shapes import Limits
    except ModuleNotFoundError as missing:
        raise RequestError(f"serving needs {missing.name}; install it with: pip install 'saywhy[serve]'") from missing

    def load_model() -> Any:
        from saywhy.predict.engine import open_engine

        _quiet()
        return open_engine(folder, mode, name, max_queue)

    room.serve(
        load_model,
        host,
        port,
        api_key_env,
        Limits(max_body, max_texts, max_characters, deadline),
        log_texts,
        lambda line: print(line, flush=True),
    )


@app.command()
def doctor() -> None:
    """Say which versions, devices and precisions are here."""
    from saywhy import doctor as room

    table = Table(show_header=False, box=None)
    for name, value in room.findings():
        table.add_row(name, value)
    Console().print(table)


def _command(verb: str, places: Sequence[Path], sets: Sequence[str] | None, output: Path | None) -> str:
    """Write a command as it was given, for the page that it makes."""
    words = ["saywhy", verb, *map(str, places), *(f"--set {one}" for one in sets or ())]
    return " ".join([*words, f"-o {output}"] if output else words)


def _budget(keep: float | None, tokens_per_row: float | None) -> list[str]:
    """Write a budget given on the command line as settings of the config."""
    given = {"keep": keep, "tokens_per_row": tokens_per_row}
    return [f"evaluate.budget.{name}={value}" for name, value in given.items() if value is not None]


def _until(
    stage: str,
    config: Path,
    output: Path | None,
    sets: list[str] | None,
    resume: str = "if_possible",
    engine: str = "here",
    workers: int | None = None,
) -> Path:
    settings = load(config, sets or ())
    if engine not in ("here", "ray"):
        raise RequestError(f"--engine {engine}: there is no such engine; name here or ray")
    if engine == "here" and workers is not None:
        raise RequestError("--workers is for --engine ray; leave it out, or add --engine ray")
    _quiet()
    from saywhy import pipeline
    from saywhy.pipeline.stage import here
    from saywhy.spread import ray_engine

    with ray_engine(workers) if engine == "ray" else nullcontext(here) as spread:
        folder = output or Path("runs") / settings.task.name
        return pipeline.run(settings, folder, until=stage, resume=resume, spread=spread)


def _quiet() -> None:
    """Keep the libraries' own bars off the screen: there is one of ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _finish(report_file: Path) -> None:
    """Print the result table and where the report is."""
    from saywhy.store import read_json

    metrics = read_json(report_file.parent / "metrics.json")
    Console(markup=False, emoji=False, highlight=False).print(results(metrics))
    if metrics["recommended"]:
        print(metrics["recommended"]["why"])
    print(f"report: {report_file}")



def _finish_study(document: dict[str, Any], page: Path) -> None:
    """Print what a study found, and where its report is."""
    from saywhy.report.study_story import findings, headline

    console = Console(markup=False, emoji=False, highlight=False)
    for setting in document["settings"]:
        console.print(setting_results(setting))
    told = headline(document, findings(document))
    print(" ".join([told.verdict, told.sentence]))
    for note in document["notes"]:
        print(note)
    print(f"report: {page}")
    every = [(one["name"], run) for one in document["settings"] for run in one["failed"]]
    failed = [f"{name}, seed {run['seed']}: {run['why']}" for name, run in every]
    if failed:
        raise WorkError("\n".join(["these runs failed, and the same command tries them again:", *failed]))






def _show(answers: Iterable[tuple[str, Prediction]]) -> None:
    console = Console(highlight=False)
    for text, prediction in answers:
        # As Text, so that no bracket of a label or a text is read as a style.
        said = f"abstains (would say {prediction.label})" if prediction.abstained else prediction.label
        rating = "" if prediction.expected is None else f"  expected {prediction.expected:.2f}"
        console.print(Text.assemble((_shown(said), "bold"), f"  {_shown(_bars(prediction))}{rating}"))
        if prediction.reasoning:
            console.print(Text(f"  {_shown(prediction.reasoning)}"))
        console.print(Text(f"  {_shown(text if len(text) < 200 else text[:199] + '…')}", style="dim"))


def _shown(text: str) -> str:
    """Replace what would steer the terminal: a text may hold escape sequences, and texts come from anywhere."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(one) == "Cc" else one for one in text)


def _bars(prediction: Prediction) -> str:
    likely = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:5]
    return "  ".join(f"{label} {percent(share)}" for label, share in likely)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code: 0 done, 1 the work failed, 2 the request was wrong, 130 stopped."""
    if not _is_one_of_several():
        return _told(lambda: _do(arguments))
    from saywhy.train import folder, ranks

    _quiet()
    return ranks.together(lambda: _told(lambda: _do(arguments)), lambda: _told(folder.help_train))


def _is_one_of_several() -> bool:
    """Tell whether a launcher started other processes with the same command."""
    names = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    return any(os.environ.get(name, "1") != "1" for name in names)


def _do(arguments: Sequence[str] | None) -> int:
    try:
        # Alone it shows mistakes in the arguments itself, and leaves with a code: Ctrl-C too.
        app(None if arguments is None else list(arguments), standalone_mode=True)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 0
    return 0


def _told(work: Callable[[], int]) -> int:
    """Do work that gives an exit code, and say in one message what went wrong with it."""
    try:
        code = work()
    except KeyboardInterrupt:
        code = STOPPED
    except RequestError as problem:
        _fail(problem)
        return 2
    except WorkError as problem:
        _fail(problem)
        return 1
    if code == STOPPED:
        print("stopped; the same command goes on: checkpoints and answers are kept", file=sys.stderr)
    return code


def _fail(problem: Exception) -> None:
    print("\n".join(map(_shown, f"saywhy: {problem}".split("\n"))), file=sys.stderr)


def entry() -> None:
    """What the installed command calls."""
    sys.exit(main())
