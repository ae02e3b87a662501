"""How a task's end is told to whoever runs it."""

import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from deeprec.checks.gate import CheckRow, Verdict
from deeprec.components.boundary import CHECKPOINTS, CLAIM, KEPT_DAYS, checkpoints, flatten, read_error, reported, show
from deeprec.components.require import require
from deeprec.config import TrmConfig
from deeprec.errors import CheckFailed, DataError, StoreError


def ends(error: Exception, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as caught, reported():
        raise error
    return caught.value.code, capsys.readouterr().out


def test_an_error_of_ours_is_one_line_and_its_own_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(DataError("no\n  rows"), capsys) == (2, "error: DataError: no rows\n")
    assert ends(CheckFailed("too few"), capsys) == (1, "error: CheckFailed: too few\n")


def test_a_full_disk_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    status, line = ends(OSError(errno.ENOSPC, "No space left on device", "/a/b"), capsys)
    assert status == 2
    assert line.startswith("error: StoreError: the disk is full while writing /a/b")


def test_a_verdict_is_an_artifact_that_is_shown(tmp_path: Path) -> None:
    artifact = SimpleNamespace(path=str(tmp_path / "outcome"), metadata={"kept": 1})
    show(Verdict.of("data", [CheckRow("a | b", "1\n2", "r", True), CheckRow("c", "3", "r", None)]), artifact)
    assert artifact.metadata == {"kept": 1, "gate": "data", "passed": True}
    assert (tmp_path / "outcome").read_text().splitlines() == [
        "**data: passed, 1 of 1 checks (1 skipped)**",
        "",
        "| check | observed | rule | outcome |",
        "| --- | --- | --- | --- |",
        "| a \\| b | 1 2 | r | passed |",
        "| c | 3 | r | skipped |",
    ]


def test_a_section_that_is_not_valid_is_a_configuration_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, reported():
        TrmConfig.model_validate({"epochs": 0})
    assert caught.value.code == 2
    assert capsys.readouterr().out.startswith("error: ConfigError: TrmConfig:")


def test_other_errors_pass_through() -> None:
    with pytest.raises(ZeroDivisionError), reported():
        raise ZeroDivisionError


def test_read_error_is_the_inverse() -> None:
    found = read_error("error: StoreError: the disk: is full\n")
    assert type(found) is StoreError
    assert str(found) == "the disk: is full"


@pytest.mark.parametrize("line", ["", "error: 3", "error: Path: x", "error: Unknown: x", "Traceback"])
def test_read_error_of_another_line_is_none(line: str) -> None:
    assert read_error(line) is None


def test_flatten_keeps_numbers_under_dotted_names() -> None:
    nested = {"a": {"b": 1, "c": {"d": 0.5}}, "e": None, "f": "text", "g": True}
    assert flatten(nested) == {"a.b": 1.0, "a.c.d": 0.5}


def test_checkpoints_are_kept_where_the_next_attempt_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner names a task's own directory; on a claim that all share, what goes into the task names it."""
    for name in (CHECKPOINTS, CLAIM):
        monkeypatch.delenv(name, raising=False)
    assert checkpoints("stage1", {"steps": 3}) is None
    monkeypatch.setenv(CLAIM, str(tmp_path / "claim"))
    first = checkpoints("stage1", {"steps": 3, "clip": 0.2}, 7)
    assert first is not None
    assert first.parent == tmp_path / "claim"
    assert first == checkpoints("stage1", {"clip": 0.2, "steps": 3}, 7)
    assert (
        len({first, checkpoints("stage2", {"steps": 3, "clip": 0.2}, 7), checkpoints("stage1", {"steps": 4}, 7)}) == 3
    )
    monkeypatch.setenv(CHECKPOINTS, str(tmp_path / "own"))
    assert checkpoints("stage1", {"steps": 3}) == tmp_path / "own"


def test_checkpoints_of_dead_runs_are_removed_when_a_task_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's are named by its inputs, so that nobody comes back for those of one that has ended."""
    monkeypatch.setenv(CLAIM, str(tmp_path))
    monkeypatch.setenv(KEPT_DAYS, "2")
    monkeypatch.delenv(CHECKPOINTS, raising=False)
    own, old, busy, foreign = (
        checkpoints("stage1", 1),
        tmp_path / ("0" * 32),
        tmp_path / ("1" * 32),
        tmp_path / "models",
    )
    assert own is not None
    long_ago = time.time() - 3 * 86400
    for place in (own, old, busy, foreign):
        (place / "step-1").mkdir(parents=True)
        (place / "step-1" / "weights").write_text("x")
        for path in (place / "step-1" / "weights", place / "step-1", place):
            os.utime(path, (long_ago, long_ago))
    (busy / "step-1" / "weights").write_text("y")
    assert checkpoints("stage1", 1) == own
    assert sorted(tmp_path.iterdir()) == sorted([own, busy, foreign])
    assert str(old) in capsys.readouterr().out


@pytest.mark.parametrize("passed", [True, False])
def test_what_stands_behind_a_gate_hands_a_verdict_on_or_ends_with_its_reason(
    tmp_path: Path, passed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = Verdict.of("data", [CheckRow("users", "3", "at least 100", passed)]).to_json()
    given = {"gate": verdict, "passed": str(tmp_path / "passed")}
    if passed:
        require.python_func(**given)
        assert (tmp_path / "passed").read_text() == verdict
        return
    with pytest.raises(SystemExit):
        require.python_func(**given)
    assert capsys.readouterr().out.startswith("error: CheckFailed: data")
    assert not (tmp_path / "passed").exists()
