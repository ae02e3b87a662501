"""The local runner on a toy pipeline: which tasks ran, when all is well, when a gate fails, when a task fails.

Its tasks are forked from a preloaded process; those of a run that is killed are processes as a user has them.
"""

import inspect
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kfp import dsl
from kfp.local import subprocess_task_handler, task_dispatcher
from kfp.local.orchestrator import orchestrator_utils

from deeprec.errors import CheckFailed, DataError, PipelineError
from deeprec.pipelines.local import TaskResult, run_pipeline
from deeprec.pipelines.records import Records, path_digest

IMAGE = "python"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def make(settings: dict, made: dsl.Output[dsl.Dataset], metrics: dsl.Output[dsl.Metrics]):
    from pathlib import Path

    from deeprec.components.boundary import reported

    with reported():
        from deeprec.errors import DataError
        from deeprec.store import write_artifact

        if settings["broken"] == "make":
            raise DataError("nothing\nto make; bring some")
        with write_artifact(Path(made.path), "toy") as folder:
            (folder / "numbers.txt").write_text(str(int(settings["number"])), encoding="utf-8")
        metrics.log_metric("number", settings["number"])
        print("made it")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def judge(least: int, made: dsl.Input[dsl.Dataset], report: dsl.Output[dsl.HTML], verdict: dsl.OutputPath(str)):
    from pathlib import Path

    from deeprec.components.boundary import reported

    with reported():
        from deeprec.checks.gate import check_metrics

        number = int((Path(made.path) / "numbers.txt").read_text(encoding="utf-8"))
        result = check_metrics("judge", [("number", number, least)], Path(report.path))
        Path(verdict).write_text(result.to_json(), encoding="utf-8")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def use(gate: str, settings: dict, made: dsl.Input[dsl.Dataset]) -> int:
    from pathlib import Path

    from deeprec.components.boundary import reported

    with reported():
        from deeprec.checks.gate import require

        require(gate)
        if settings["broken"] == "use":
            raise ValueError("a fault of the code")
        if settings["broken"] == "sleep":
            import time

            print("asleep", flush=True)
            time.sleep(60)
        return int((Path(made.path) / "numbers.txt").read_text(encoding="utf-8")) * 2


def toy_pipeline():
    @dsl.pipeline(name="toy")
    def toy(number: dict, use_settings: dict, least: int):
        made = make(settings=number).set_display_name("make")
        judged = judge(made=made.outputs["made"], least=least).set_display_name("judge")
        first = use(gate=judged.outputs["verdict"], settings=use_settings, made=made.outputs["made"])
        first.set_display_name("use-1")
        second = use(gate=judged.outputs["verdict"], settings=use_settings, made=made.outputs["made"]).after(first)
        second.set_display_name("use-2")

    return toy


@pytest.fixture(autouse=True)
def tasks_are_forked(forked: None) -> None:
    """See ``forked``."""


def run(
    workdir: Path, *, broken: str = "", number: int = 3, least: int = 1, resume: bool = False, always: str = "none"
) -> list[TaskResult]:
    arguments = {
        "number": {"number": number, "broken": broken if broken == "make" else ""},
        "use_settings": {"broken": "" if broken == "make" else broken},
        "least": least,
    }
    return run_pipeline(toy_pipeline(), arguments, workdir, resume=resume, always={always})


def states(results: list[TaskResult]) -> dict[str, str]:
    return {result.name: result.status for result in results}


def test_all_tasks_run_in_order_and_hand_their_outputs_on(tmp_path: Path) -> None:
    results = run(tmp_path)

    assert [(result.name, result.status) for result in results] == [
        ("make", "ran"),
        ("judge", "ran"),
        ("use-1", "ran"),
        ("use-2", "ran"),
    ]
    assert results[2].outputs == {"Output": 6}
    assert results[0].outputs["metrics"].metadata == {"number": 3.0}
    assert all(result.seconds > 0 for result in results)
    assert "made it" in results[0].log.read_text(encoding="utf-8")


def test_nothing_runs_after_a_failed_gate(tmp_path: Path) -> None:
    results = run(tmp_path, least=10)

    assert states(results) == {"make": "ran", "judge": "ran", "use-1": "refused"}
    assert isinstance(results[-1].error, CheckFailed)
    assert str(results[-1].error) == "judge: failed 1 of 1 checks: number: observed 3, rule: at least 10"
    assert Path(results[1].outputs["report"].path).read_text(encoding="utf-8").startswith("<!")


def test_an_error_of_ours_keeps_its_class_and_its_line(tmp_path: Path) -> None:
    results = run(tmp_path, broken="make")

    assert states(results) == {"make": "failed"}
    assert isinstance(results[0].error, DataError)
    assert str(results[0].error) == "make: nothing to make; bring some"
    assert "Traceback" not in results[0].log.read_text(encoding="utf-8")


def test_any_other_error_names_the_log(tmp_path: Path) -> None:
    results = run(tmp_path, broken="use")

    assert states(results) == {"make": "ran", "judge": "ran", "use-1": "failed"}
    assert type(results[-1].error) is PipelineError
    assert "use-1 ended with exit status 1: ValueError: a fault of the code" in str(results[-1].error)
    assert str(tmp_path / "logs" / "use-1.log") in str(results[-1].error)


def test_resume_runs_only_what_had_not_finished(tmp_path: Path) -> None:
    before = run(tmp_path, broken="use")
    after = run(tmp_path, resume=True)

    assert states(after) == {"make": "cached", "judge": "cached", "use-1": "ran", "use-2": "ran"}
    assert after[0].seconds == before[0].seconds
    assert after[0].outputs["metrics"].metadata == {"number": 3.0}
    assert after[-1].outputs == {"Output": 6}


def test_resume_runs_again_what_looks_at_the_world_outside(tmp_path: Path) -> None:
    """What comes after it is kept where it found what it had found before."""
    run(tmp_path)
    after = run(tmp_path, resume=True, always="judge")
    assert states(after) == {"make": "cached", "judge": "ran", "use-1": "cached", "use-2": "cached"}


def test_without_resume_everything_runs_again(tmp_path: Path) -> None:
    run(tmp_path)
    assert set(states(run(tmp_path)).values()) == {"ran"}


def test_resume_sees_a_changed_parameter_and_what_depends_on_it(tmp_path: Path) -> None:
    run(tmp_path)

    assert states(run(tmp_path, number=4, resume=True)) == {
        "make": "ran",
        "judge": "ran",
        "use-1": "ran",
        "use-2": "ran",
    }
    assert states(run(tmp_path, number=4, least=2, resume=True))["make"] == "cached"


def test_resume_does_not_trust_a_changed_artifact(tmp_path: Path) -> None:
    made = Path(run(tmp_path)[0].outputs["made"].path)
    (made / "numbers.txt").write_text("5", encoding="utf-8")

    after = run(tmp_path, resume=True)

    assert after[0].status == "ran"
    assert after[-1].outputs == {"Output": 6}


def test_a_killed_run_takes_its_task_along_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPREC_TEST_FORK", "0")
    script = (
        "import sys, pathlib, importlib.util as u\n"
        f"spec = u.spec_from_file_location('toy', {__file__!r})\n"
        "toy = u.module_from_spec(spec); sys.modules['toy'] = toy; spec.loader.exec_module(toy)\n"
        f"toy.run(pathlib.Path({str(tmp_path)!r}), broken='sleep')\n"
    )
    log = tmp_path / "logs" / "use-1.log"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL) as runner:
        _wait(lambda: log.exists() and "asleep" in log.read_text(encoding="utf-8"))
        runner.send_signal(signal.SIGKILL)
    _wait(lambda: not _processes(str(tmp_path)))

    assert states(run(tmp_path, resume=True)) == {"make": "cached", "judge": "cached", "use-1": "ran", "use-2": "ran"}


def test_a_record_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "abc.json").write_text("{", encoding="utf-8")
    (tmp_path / "abd.json").write_text(json.dumps({"outputs": {}}), encoding="utf-8")
    records = Records(tmp_path)

    assert records.find("abc") is None
    assert records.find("abd") is None
    assert records.find("absent") is None


def test_path_digest_follows_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1", encoding="utf-8")
    before = path_digest(tmp_path)
    (tmp_path / "a").write_text("2", encoding="utf-8")

    assert path_digest(tmp_path) != before
    assert path_digest(tmp_path / "absent") == ""


def test_kfp_has_the_functions_that_are_hooked() -> None:
    called = inspect.getsource(orchestrator_utils.OrchestratorUtils.execute_single_task)
    assert "task_dispatcher.run_single_task_implementation(" in called
    parameters = inspect.signature(task_dispatcher.run_single_task_implementation).parameters
    assert {"component_name", "executor_spec", "arguments"} <= set(parameters)
    assert list(inspect.signature(subprocess_task_handler.run_local_subprocess).parameters) == ["full_command"]
    assert list(inspect.signature(subprocess_task_handler.replace_python_executable).parameters) == [
        "full_command",
        "new_executable",
    ]


def _processes(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if text in command and "executor_input" in command:
            found.append(command)
    return found


def _wait(condition, limit: float = 60.0) -> None:
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            pytest.fail("waited too long")
        time.sleep(0.1)
