"""Two processes train as one: in the loop, through the command line, divided (FSDP2) or not, and when one is killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
import toy
from saywhy import store
from saywhy.config import Train
from saywhy.train import loop, ranks
from test_train import assert_close, losses, run, settings, some_examples

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="this torch has no gloo"
)
# Uneven rows, fewer than processes in the last case: packs differ between the processes.
EXAMPLES = some_examples(11)
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
LAUNCHES = {"ddp": {}, "fsdp": FSDP}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(rank: int, port: int, launch: str, world: int = 2) -> dict[str, str]:
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
        **LAUNCHES[launch],
    }


def plain_steps(model: Any, chosen: Train) -> list[Any]:
    """SGD in place of AdamW, which magnifies rounding in tiny gradients."""
    return [torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)]


Job = tuple[str, bool, dict[str, Any]]
# The model, whether it steps by SGD, and settings: packs of every length; one for all; row by row; one row for two.
SHORT = {"rows_per_step": 5, "pack_tokens": 40, "learning_rate": 0.05}
ADAMW = {"steps": 20, "rows_per_step": 5, "pack_tokens": 40, "checkpoint_every": 8}
JOBS: dict[str, Job] = {
    "llama": ("llama", True, {**SHORT, "steps": 20}),
    "tied": ("llama-tied", True, {**SHORT, "steps": 20}),
    "experts": ("mixtral", True, {**SHORT, "steps": 3}),
    "windows": ("gemma3", True, {**SHORT, "steps": 3}),
    "one-pack": ("llama", True, {**SHORT, "steps": 3, "pack_tokens": 4096}),
    "rows": ("llama", True, {**SHORT, "steps": 3, "layout": "rows"}),
    "one-row": ("llama", True, {**SHORT, "steps": 3, "rows_per_step": 1}),
    "adamw": ("llama", False, ADAMW),
    "goes-on": ("llama", False, ADAMW),
}


def one_of(rank: int, port: int, folder: str, launch: str) -> None:
    """Do the trainings one after another in a process of several."""
    torch.set_num_threads(1)
    os.environ |= environment(rank, port, launch)
    for name, job in JOBS.items():
        found = trained(Path(folder) / name, job)
        if rank == 0:
            torch.save(found, Path(folder) / f"{name}.pt")
    torch.distributed.destroy_process_group()


def trained(folder: Path, job: Job) -> tuple[list[float], dict[str, Any], dict[str, Any]]:
    """Give losses, weights, and the gradients of the first step."""
    folder.mkdir(parents=True, exist_ok=True)
    name, sgd, changes = job
    gradients: dict[str, Any] = {}
    clipped = loop._clipped

    def seen(model: Any, most: float, accelerator: Any) -> float:
        if not gradients:
            gradients.update({key: full(p.grad).clone() for key, p in model.named_parameters()})
        return clipped(model, most, accelerator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_clipped", seen)
        if sgd:
            patch.setattr(loop.optimizers, "make", plain_steps)
        told, weights = run(folder, settings(**changes), name, examples=EXAMPLES)
    return losses(told), weights if ranks.is_first() else {}, gradients


def full(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The trainings in one process; a checkpoint of the last is left for others to go on from."""
    where = tmp_path_factory.mktemp("one")
    return {"folder": where} | {name: trained(where / name, job) for name, job in JOBS.items()}


@pytest.fixture(scope="module", params=LAUNCHES)
def two(request: pytest.FixtureRequest, one: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trainings in two processes; that which goes on finds the checkpoint that one process left."""
    where = tmp_path_factory.mktemp("two")
    shutil.copytree(one["folder"] / "goes-on" / "step-00000016", where / "goes-on" / "step-00000016")
    torch.multiprocessing.spawn(one_of, (free_port(), str(where), request.param), nprocs=2)
    return where


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_two_processes_train_as_one(name: str, one: dict[str, Any], two: Path) -> None:
    their_losses, weights, gradients = torch.load(two / f"{name}.pt", weights_only=True)
    one_losses, one_weights, one_gradients = one[name]
    model, sgd, _ = JOBS[name]
    assert their_losses == pytest.approx(one_losses, rel=1e-5 if sgd else 1e-3)
    assert_close(weights, one_weights, 1e-5 if sgd else 1e-3)
    if name != "goes-on":
        assert_close(gradients, one_gradients, 1e-5)
    assert any(not torch.equal(weight, tiny.model(model).get_parameter(key)) for key, weight in weights.items())


@pytest.mark.slow
def test_one_process_goes_on_where_two_were_stopped(one: dict[str, Any], two: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "adamw" / "step-00000016", tmp_path / "step-00000016")
    their_losses, weights, _ = trained(tmp_path, JOBS["adamw"])
    assert their_losses == pytest.approx(one["adamw"][0], rel=1e-3)
    assert_close(weights, one["adamw"][1], 1e-3)


CONFIG = {
    "classifier__arms": ["label_only", "label_then_reason"],
    "classifier__train": {
        "steps": 12, "rows_per_step": 7, "evaluations": 2, "checkpoint_every": 3, "layout": "tree",
        "precision": "float32", "pack_tokens": 100,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> toy.Done:
    """The same run in one process."""
    where = tmp_path_factory.mktemp("alone")
    data = toy.write_data(where / "data")
    toy.write_config(data, **toy.quick(**CONFIG))
    return toy.run(data, where / "run", **toy.quick(**CONFIG))


def launched(config: Path, run: Path, launch: str, *driver: str) -> list[subprocess.Popen[str]]:
    """Start both processes of a run, as a launcher does; what the driver says comes before the command."""
    port, found = free_port(), []
    for rank in (0, 1):
        script = "import sys, torch; torch.set_num_threads(1); from saywhy import cli\n" + "\n".join(driver)
        script += "\nsys.exit(cli.main(sys.argv[1:]))"
        command = [sys.executable, "-c", script, "run", str(config), "-o", str(run)]
        told = {**os.environ, **environment(rank, port, launch), "OMP_NUM_THREADS": "1"}
        found.append(
            subprocess.Popen(command, env=told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1)
        )
    return found


def assert_same_weights(run: Path, alone: toy.Done) -> None:
    for arm in ("label_only", "label_then_reason"):
        found, wanted = (load_file(folder / arm / "model.safetensors") for folder in (run, alone.folder))
        assert_close(found, wanted, 1e-3)
        ours, theirs = (store.read_json(folder / arm / "train.json") for folder in (run, alone.folder))
        assert [loss for _, loss in ours["curve"]] == pytest.approx([loss for _, loss in theirs["curve"]], rel=1e-3)
        assert (ours["dev"], ours["best_step"]) == (theirs["dev"], theirs["best_step"])


@pytest.mark.slow
@pytest.mark.parametrize("launch", LAUNCHES)
def test_a_whole_run_in_two_processes_is_that_of_one(launch: str, alone: toy.Done, tmp_path: Path) -> None:
    both = launched(alone.data / "config.yaml", tmp_path / "run", launch)
    (out, err), (other_out, other_err) = (process.communicate(timeout=400) for process in both)
    assert [process.returncode for process in both] == [0, 0], err + other_err
    assert (tmp_path / "run" / "metrics.json").exists() and "report:" in out and "label_only: step 6" in err
    assert other_out == "" and "label_only" not in other_err, "only the first process prints"
    assert_same_weights(tmp_path / "run", alone)


STOP = """
import os, signal
from saywhy.train import loop
step, taken = loop._step, []
def stopping(*given):
    taken.append(None)
    if len(taken) == 8 and os.environ["RANK"] == "{rank}":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*given)
loop._step = stopping
"""


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "launch"), [(0, "ddp"), (1, "ddp"), (1, "fsdp")])
def test_when_one_is_killed_the_other_ends_and_the_run_goes_on(
    rank: int, launch: str, alone: toy.Done, tmp_path: Path
) -> None:
    both = launched(alone.data / "config.yaml", tmp_path / "run", launch, STOP.format(rank=rank))
    told = [process.communicate(timeout=400)[1] for process in both]
    assert both[rank].returncode == -signal.SIGKILL
    assert both[1 - rank].returncode == 1, told
    assert "Traceback" not in told[1 - rank]
    assert ("another process of this training has ended" in told[0]) == (rank == 1)
    assert list((tmp_path / "run" / ".label_only.partial" / "work").glob("step-00000006"))
    again = launched(alone.data / "config.yaml", tmp_path / "run", launch)
    told = [process.communicate(timeout=400)[1] for process in again]
    assert [process.returncode for process in again] == [0, 0], told
    assert "going on from step 6" in told[0]
    assert_same_weights(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_request_that_is_wrong_ends_all(alone: toy.Done, tmp_path: Path) -> None:
    both = launched(tmp_path / "absent.yaml", tmp_path / "run", "ddp")
    told = [process.communicate(timeout=400) for process in both]
    assert [process.returncode for process in both] == [2, 1]
    assert "there is no such file" in told[0][1]
    # torch itself may note that the line is gone.
    assert told[1][0] == "" and "saywhy:" not in told[1][1] and "Traceback" not in told[1][1]


@pytest.mark.slow
def test_accelerate_launch_starts_it(alone: toy.Done, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", str(free_port()),
        "-m", "saywhy.cli", "run", str(alone.data / "config.yaml"), "-o", str(tmp_path / "run"),
    ]  # fmt: skip
    told = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=told, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert_same_weights(tmp_path / "run", alone)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, r"FSDP version 1 is not supported; set fsdp_version: 2"),
        ({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, r"not offloaded to the CPU; set fsdp_offload_params: false"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, r"deepspeed is not supported"),
    ],
)
def test_what_is_not_supported_is_refused(
    told: dict[str, str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in told.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(ranks, "count", lambda: 2)
    with pytest.raises(ranks.RequestError, match=why):
        ranks.sharding() if "deepspeed" not in why else ranks.accelerator(torch.nn.Linear(1, 1))


def test_muon_is_refused_where_weights_are_divided(tmp_path: Path) -> None:
    with pytest.raises(ranks.RequestError, match="muon needs whole matrices, and FSDP divides them"):
        loop._wrapped(tiny.model("llama"), "float32", settings(optimizer="muon"), None, object())


def test_what_is_no_news_of_a_lost_process_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="a mistake"), ranks.lost():
        raise RuntimeError("a mistake")
