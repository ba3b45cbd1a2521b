"""What goes wrong in a training is told with the rows, the reason and what to change."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from saywhy import machine, store
from saywhy.lm import adapters
from saywhy.lm.forward import log_probs
from saywhy.records import RequestError, WorkError
from saywhy.train import failures, loop, memory
from saywhy.train.folder import Lesson, encode
from saywhy.train.loss import Losses
from saywhy.train.state import Trained
from saywhy.train.steps import Example, plan_steps
from saywhy.trees import Branch, pack_rows, pack_trees
from test_train import EXAMPLES, course, lesson, run, settings, weights_of

NAMED = [replace(example, id=f"row-{at}") for at, example in enumerate(EXAMPLES)]
Said = Callable[[], str]
# A token that no example has.
STRANGE = tiny.VOCABULARY - 1


def strange(example: Example) -> Example:
    """Put a token into a row that the model cannot read."""
    changed = [Branch(np.append(branch.ids, STRANGE), np.append(branch.weights, 1.0)) for branch in example.branches]
    return replace(example, branches=tuple(replace(b, ids=np.insert(b.ids[:-1], 9, STRANGE)) for b in changed))


def blind() -> Any:
    """A model that gives no number for one token, whose weights are all numbers."""
    model = tiny.model("llama")
    model.get_input_embeddings().register_forward_hook(
        lambda _, read, found: found.masked_fill((read[0] == STRANGE)[..., None], math.nan)
    )
    return model


def test_rows_that_make_the_loss_no_number_are_named(tmp_path: Path) -> None:
    rows = [strange(row) if at in (3, 7) else row for at, row in enumerate(NAMED)]
    chosen = settings(steps=3, rows_per_step=11, precision="bf16")
    before = weights_of(model := blind())
    with pytest.raises(WorkError) as told:
        run(tmp_path, chosen, examples=rows, model=model)
    order = [f"row-{row}" for row in plan_steps(rows, chosen, 5)[0] if row in (3, 7)]
    assert f"rows {', '.join(order)} give it by themselves: look at these, or leave them out" in str(told.value)
    assert "lower learning_rate (0.002), for example to 0.0002, or set precision to float32" in str(told.value)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())
    assert not list(tmp_path.glob("step-*"))


def test_where_no_row_does_it_by_itself_all_of_the_step_are_named(tmp_path: Path) -> None:
    model = tiny.model("llama")
    model.lm_head.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(WorkError, match=r"the step has rows row-\d+(, row-\d+){3}, and none gives it by itself; lower"):
        run(tmp_path, settings(), examples=NAMED, model=model)


def test_many_rows_are_named_in_part() -> None:
    assert failures.named(["a"]) == "row a"
    assert failures.named([str(at) for at in range(20)]) == "rows 0, 1, 2, 3, 4, 5, 6, 7 and 12 more"


def test_rows_without_a_token_to_learn_are_refused_by_name(base: Path) -> None:
    taught = [lesson(name, "so alone", "sadness", ()) for name in ("a", "b", "c")]
    silent = [Lesson(one.id, one.pieces, ((replace(one.targets[0][0], loss=""),),), "") for one in taught[:2]]
    with pytest.raises(RequestError, match=r"rows a, b: no token of the answer has a weight.*give each a label"):
        encode(course(base), [*silent, taught[2]])
    assert [example.id for example in encode(course(base), taught).examples] == ["a", "b", "c"]


def curve(*losses: float) -> Trained:
    return Trained(steps=len(losses), curve=tuple((at + 1, loss) for at, loss in enumerate(losses)))


def watched(losses: Sequence[float]) -> None:
    for upto in range(1, len(losses) + 1):
        failures.watch("arm", curve(*losses[:upto]), 400, settings())


def test_a_diverging_training_is_warned_once_and_stopped_where_it_knows_nothing(said: Said) -> None:
    watched([2.0] * 12 + [5.0] * 30)  # ln(400) is 6: a guess would do worse
    told = said()
    assert told.count("arm: the loss has risen from 2.00 to 4.40") == 1
    assert "diverges; lower learning_rate (0.002), for example to 0.0002" in told
    with pytest.raises(WorkError, match=r"risen from 2\.00 to .*knows less than a guess among all tokens; lower learn"):
        watched([2.0] * 12 + [15.0] * 30)


@given(
    st.lists(st.floats(0.0, 0.6), min_size=0, max_size=60),
    st.floats(0.001, 8.0),
    st.integers(0, 59),
)
def test_a_healthy_training_is_not_stopped(noise: list[float], level: float, spike: int) -> None:
    """Whatever falls, stays within twice its level, or jumps once."""
    losses = [level] * 5 + [min(level, 1.0) * part + level * 0.99**at for at, part in enumerate(noise)]
    if spike < len(losses):
        losses[spike] += 3.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failures, "say", pytest.fail)
        watched(losses)


def test_a_rate_far_too_high_is_told(tmp_path: Path) -> None:
    chosen = settings(steps=60, learning_rate=2.0, warmup=0.0, schedule="constant")
    with pytest.raises(WorkError, match=r"the training diverges.* lower learning_rate \(2\.0\), for example to 0\.2"):
        run(tmp_path, chosen)


def exhausted(*at: int, step: Callable[..., float] = loop._step) -> Callable[..., float]:
    """A step that runs out of a GPU's memory at these calls, when half of it is done."""
    calls = []

    def taking(losses: Any, packs: Any, rows: Any, accelerator: Any) -> float:
        calls.append(packs)
        if len(calls) in at:
            losses(packs[0]).backward()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return step(losses, packs, rows, accelerator)

    return taking


def test_out_of_memory_the_step_is_taken_again_with_half_the_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    chosen = settings(pack_tokens=64, checkpoint_every=3)
    wanted, weights = run(tmp_path / "whole", chosen)
    monkeypatch.setattr(loop, "_step", exhausted(5))
    trained, found = run(tmp_path / "full", chosen)
    assert "the GPU's memory is full with packs of 64 tokens; the step is taken again with 32" in said()
    assert trained.pack_tokens == 32 and wanted.pack_tokens == 64
    assert trained.tokens > wanted.tokens
    for name, weight in weights.items():
        assert torch.norm(found[name] - weight) <= 1e-3 * torch.norm(weight), "what was left of the first try is gone"
    # Killed behind it and resumed from before it, the same step runs out of memory again.
    monkeypatch.setattr(loop, "_step", exhausted(2))
    for kept in (tmp_path / "full").glob("step-*"):
        assert store.read_json(kept / "state.json")["pack_tokens"] == 32
    again, _ = run(tmp_path / "full", chosen)
    assert again.pack_tokens == 16, "of a training that goes on, half of what it had come to"


def test_resumed_before_it_ran_out_of_memory_a_training_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(pack_tokens=64, checkpoint_every=3)
    monkeypatch.setattr(loop, "_step", exhausted(5))
    trained, weights = run(tmp_path / "whole", chosen)

    def killed(*_: Any) -> float:
        raise KeyboardInterrupt

    taking, calls = exhausted(5), []

    def until_killed(*given: Any) -> float:
        calls.append(None)
        return killed() if len(calls) == 6 else taking(*given)

    monkeypatch.setattr(loop, "_step", until_killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", chosen)
    monkeypatch.setattr(loop, "_step", exhausted(2))
    again, found = run(tmp_path / "killed", chosen)
    assert replace(again, seconds=0) == replace(trained, seconds=0)
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


def test_the_second_try_starts_without_what_the_first_has_left() -> None:
    model = tiny.model("llama")
    found = []

    def step(tokens: int) -> None:
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        if tokens == 64:
            model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
            raise torch.OutOfMemoryError("full")

    assert memory.halved(step, 64, model, "arm") == (None, 32)
    assert found == [[], []]


def test_out_of_memory_twice_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_step", exhausted(5, 6))
    with pytest.raises(WorkError, match=r"full with packs of 32 tokens, too \(CUDA .* GiB\.\); set pack_tokens to 16"):
        run(tmp_path, settings(pack_tokens=64))


def test_out_of_memory_among_several_processes_ends_the_training_at_once() -> None:
    def step(_: int) -> None:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(WorkError, match="set pack_tokens to 32 and run again"):
        memory.halved(step, 64, tiny.model("llama"), "arm", alone=False)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("lay", [pack_trees, pack_rows])
def test_what_a_forward_pass_keeps_is_measured(precision: str, lay: Any) -> None:
    """Against what is freed with it, counted by torch's own profiler."""
    model = tiny.model("llama")
    losses = Losses(model, precision)
    branches = [branch for example in EXAMPLES * 3 for branch in example.branches]
    pack = lay(branches, 400)[0]
    losses(pack).backward()
    with torch.profiler.profile(profile_memory=True) as seen:
        loss = losses(pack)
    held = sum(event.self_device_memory_usage + event.self_cpu_memory_usage for event in seen.key_averages())
    assert memory.kept_bytes(losses, pack) == pytest.approx(held, rel=0.25)
    del loss


def test_packs_shrink_until_they_fit(said: Said) -> None:
    losses = Losses(tiny.model("llama"), "float32")
    branches = [branch for example in EXAMPLES * 9 for branch in example.branches]
    fixed, each = memory.step_bytes(losses, pack_trees, branches, 512)
    assert memory.fitting(losses, pack_trees, branches, 512, lambda: 1 << 40) == 512
    assert not said()
    half = int((fixed + each * 256) / memory.PLANNED) + 1
    assert memory.fitting(losses, pack_trees, branches, 512, lambda: half) == 256
    assert "packs of 512 tokens need" in (told := said()) and "packs of 256" in told
    assert memory.fitting(losses, pack_trees, branches, 512, lambda: int(fixed)) == 16
    assert "the system may kill it; close other programs or take a smaller base" in said()


def test_a_row_that_fits_nowhere_is_named(said: Said) -> None:
    losses = Losses(tiny.model("llama"), "float32")
    branches = [branch for example in EXAMPLES * 9 for branch in example.branches]
    fixed, each = memory.step_bytes(losses, pack_trees, branches, 512)
    free = int((fixed + each * 600) / memory.PLANNED)
    assert memory.fitting(losses, pack_trees, branches, 512, lambda: free, ("r7", 590)) == 512 and not said()
    assert memory.fitting(losses, pack_trees, branches, 512, lambda: free, ("r7", 620)) == 512
    assert "row r7 has 620 tokens, needs about" in said()


def test_layers_that_are_computed_again_keep_less(said: Said) -> None:
    branches = [branch for example in EXAMPLES * 9 for branch in example.branches]
    model = tiny.model("llama")
    fixed, each = memory.step_bytes(Losses(model, "float32"), pack_trees, branches, 512)
    free = int((fixed + each * 256) / memory.PLANNED) + 1
    assert memory.fitting(Losses(model, "float32"), pack_trees, branches, 512, lambda: free) == 256
    adapters.prepare(model, settings(gradient_checkpointing=True), 0)
    assert memory.fitting(Losses(model, "float32"), pack_trees, branches, 512, lambda: free) > 256
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    less = memory.recomputed(each, model.config)
    assert less == pytest.approx(each / layers + memory.PEAK * 4 * width * layers) and less < each


def test_what_does_not_fit_beside_a_step_is_named() -> None:
    full = r"arm: the GPU's memory is full with the optimizer \(CUDA out of memory\); set lora, take a smaller base"
    with pytest.raises(WorkError, match=full), memory.enough("arm", "the optimizer"):
        raise torch.OutOfMemoryError("CUDA out of memory\nmore")


def test_a_training_keeps_its_packs_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    monkeypatch.setattr(memory.fitting, "__defaults__", (lambda: 1_500_000, ("", 0)))
    trained, weights = run(tmp_path / "a", settings(pack_tokens=256, checkpoint_every=3))
    assert 16 <= trained.pack_tokens < 256 and "are free" in said()
    monkeypatch.undo()
    again, found = run(tmp_path / "a", settings(pack_tokens=256, checkpoint_every=3))
    assert again.pack_tokens == trained.pack_tokens
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    less, _ = run(tmp_path / "a", settings(pack_tokens=16, checkpoint_every=3))
    assert less.pack_tokens == 16, "what the user sets lower holds from the checkpoint on"


def group(root: Path, lines: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


STAT = "anon 5\ninactive_file 300\nactive_file 7\n"


@pytest.mark.parametrize(
    ("lines", "files", "free", "kills"),
    [
        ("0::/\n", {"memory.max": "1000\n", "memory.current": "900\n", "memory.stat": STAT}, 400, None),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "1000\n", "a/memory.current": "100\n"}, 900, None),
        ("0::/a\n", {"a/memory.events": "low 0\noom 3\noom_kill 2\n"}, None, 2),
        ("0::/a\n", {"a/memory.max": "1000\n", "a/memory.current": "1700\n"}, 0, None),
        (
            "4:cpu,memory:/a\n0::/\n",
            {
                "memory/a/memory.limit_in_bytes": "1000\n",
                "memory/a/memory.usage_in_bytes": "700\n",
                "memory/a/memory.stat": "inactive_file 9\ntotal_inactive_file 100\n",
                "memory/a/memory.oom_control": "oom_kill_disable 0\noom_kill 1\n",
            },
            400,
            1,
        ),
        # A container sees only its own group, and the path of the machine's.
        ("4:memory:/x\n", {"memory/memory.limit_in_bytes": "1000", "memory/memory.usage_in_bytes": "1"}, 999, None),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None, None),
        ("3:cpu:/\n", {}, None, None),
    ],
)  # fmt: skip
def test_the_limits_of_control_groups_are_read(
    lines: str, files: dict[str, str], free: int | None, kills: int | None, tmp_path: Path
) -> None:
    root = group(tmp_path, lines, files)
    found = machine.free_bytes(root)
    assert found > 2**20 if free is None else found == free
    assert machine.memory_kills(root) == kills


def test_where_there_are_no_control_groups_the_system_is_asked(tmp_path: Path) -> None:
    assert machine.free_bytes(tmp_path) > 2**20
    assert machine.memory_kills(tmp_path) is None


def test_a_killed_training_says_so_when_it_goes_on(tmp_path: Path, said: Said) -> None:
    with failures.marked(tmp_path, "arm", 2048, lambda: 0):
        marker = (tmp_path / "running.json").read_bytes()
        assert store.read_json(tmp_path / "running.json")["process"] == os.getpid()
    assert not (tmp_path / "running.json").exists() and not said()
    with pytest.raises(KeyboardInterrupt), failures.marked(tmp_path, "arm", 2048, lambda: 0):
        raise KeyboardInterrupt
    assert not (tmp_path / "running.json").exists(), "who stops it knows that"
    (tmp_path / "running.json").write_bytes(marker)
    with failures.marked(tmp_path, "arm", 2048, lambda: 0):
        pass
    assert "arm: the training before was killed before its first checkpoint; if that was for want of memory, set " \
        "pack_tokens to 1024: it goes on from the checkpoint all the same" in said()  # fmt: skip
    run(tmp_path, settings(checkpoint_every=3, pack_tokens=256))
    (tmp_path / "running.json").write_bytes(marker)
    with failures.marked(tmp_path, "arm", 2048, lambda: 1):
        pass
    told = said()
    assert "after its checkpoint of step 6 by the system, which had no memory left: set pack_tokens to 128" in told


def test_of_several_processes_one_leaves_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with failures.marked(tmp_path, "arm", 2048):
        assert not list(tmp_path.iterdir())


def test_what_bounds_memory_decides_no_model() -> None:
    chosen = settings()
    less = chosen.model_copy(update={"pack_tokens": 64, "checkpoint_every": 7})
    assert chosen.deciding() == less.deciding()
    assert chosen.deciding() != chosen.model_copy(update={"learning_rate": 1.0}).deciding()


def test_log_probs_are_what_is_measured() -> None:
    """The measured pass is the one that trains: it gives the same loss."""
    losses = Losses(tiny.model("llama"), "float32")
    pack = pack_trees(EXAMPLES[0].branches, 4096)[0]
    before = -(torch.from_numpy(pack.weight) * log_probs(losses.model, pack)).sum()
    memory.kept_bytes(losses, pack)
    assert losses(pack).item() == pytest.approx(before.item())
    assert all(parameter.grad is None for parameter in losses.parameters())
