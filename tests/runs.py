"""Finished runs of the toy task, made once for all tests: a module that wants them has it in `pytest_plugins`."""

from __future__ import annotations

import pytest

import toy


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> toy.Done:
    """The whole method with a reasoner, all four arms and enough steps to learn the task. Tests only read it."""
    where = tmp_path_factory.mktemp("finished")
    data = toy.write_data(where / "data")
    changes = {
        "reasonings__teacher": "reasoner",
        "reasoner__worked_cases": {"data": "worked.jsonl"},
        "classifier__arms": toy.ARMS,
    }
    return toy.run(data, where / "run", toy.about_one_row, **changes)


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> toy.Done:
    """A run of seconds with a reasoner and two arms that learn nothing. Tests only read it, or copy it."""
    where = tmp_path_factory.mktemp("quick")
    data = toy.write_data(where / "data")
    return toy.run(data, where / "run", **toy.with_reasoner())
