"""``deeprec schedule`` and the real KFP client against the stand-in of KFP's API."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deeprec.cli.schedule import app
from deeprec.config import Config
from deeprec.errors import ConfigError, DeepRecError, PipelineError
from deeprec.release import kfp_server
from deeprec.release.cron import Cron
from deeprec.release.kfp_server import KfpServer
from deeprec.release.schedule import settle, to_pause, to_remove, to_set
from tests.standins.kfp import Asked, Dropped, KfpApi, Refused

pytestmark = pytest.mark.heavy

NAME = "deeprec-training"
MONDAY = "0 4 * * 1"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Config, Path], None]:
    """``training.compile`` that compiles each configuration once."""
    from deeprec.pipelines import training

    folder, compile_now, known = tmp_path_factory.mktemp("compiled"), training.compile, dict[str, Path]()

    def compile_once(config: Config, path: Path, data_version: str = "") -> None:
        key = config.model_copy(update={"schedule": None}).model_dump_json(warnings=False)
        if key not in known:
            known[key] = folder / f"{len(known)}.yaml"
            compile_now(config, known[key], data_version)
        shutil.copy(known[key], path)

    return compile_once


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, compiled: Callable[[Config, Path], None]) -> Iterator[KfpApi]:
    from deeprec.pipelines import training

    monkeypatch.setattr(training, "compile", compiled)
    monkeypatch.setattr(kfp_server, "PATIENCE", 0.3)
    monkeypatch.setenv("DEEPREC_DATABASE", "postgresql://nobody")
    monkeypatch.setenv("DEEPREC_REDIS_PASSWORD", "nothing")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", "/nowhere")
    server = KfpApi()
    yield server
    server.close()


def deeprec(api: KfpApi, command: str, *settings: str, dry: bool = False) -> str:
    """What ``deeprec schedule`` prints.

    Raises:
        DeepRecError: as the command does.
    """
    overrides = [f"schedule.host={api.url}", "pipeline.allow_tags=true", *settings]
    asked = [command, *(["--dry-run"] if dry else []), *(part for each in overrides for part in ("--set", each))]
    done = CliRunner().invoke(app, asked)
    if done.exception is not None:
        raise done.exception
    return done.output


def crons(api: KfpApi) -> list[tuple[str, str]]:
    return [(one["trigger"]["cron_schedule"]["cron"], one["mode"]) for one in api.recurring.values()]


def writes(api: KfpApi) -> list[Asked]:
    return [asked for asked in api.asked if asked.method != "GET"]


def age(api: KfpApi, days: float) -> None:
    for one in api.recurring.values():
        one["created_at"] = api.stamp(datetime.now(UTC) - timedelta(days=days))


def test_set_makes_one_recurring_run_of_the_compiled_pipeline(api: KfpApi) -> None:
    told = deeprec(api, "set")
    [one] = api.recurring.values()
    [pipeline] = api.pipelines.values()
    version = api.versions[one["pipeline_version_reference"]["pipeline_version_id"]]
    assert (one["display_name"], pipeline["display_name"]) == (NAME, NAME)
    assert crons(api) == [("0 0 3 * * 0", "ENABLE")]
    assert (one["no_catchup"], one["max_concurrency"]) == (True, 1)
    assert one["runtime_config"]["parameters"] == {"data_version": "[[ScheduledTime]]"}
    assert f"uploaded version {version['display_name']} of the pipeline {NAME}" in told
    assert "At 03:00, only on Sunday (UTC)" in told
    assert told.count(" 03:00 UTC") == 3
    assert "details" not in told


def test_set_again_does_nothing_and_says_so(api: KfpApi) -> None:
    deeprec(api, "set")
    before = writes(api)
    assert f"nothing to do for {NAME}" in deeprec(api, "set")
    assert writes(api) == before


def test_a_changed_cron_replaces_the_recurring_run_only(api: KfpApi) -> None:
    deeprec(api, "set")
    told = deeprec(api, "set", f"schedule.cron={MONDAY}")
    assert crons(api) == [("0 0 4 * * 1", "ENABLE")]
    assert len(api.versions) == 2  # KFP's own first version, and ours
    assert "uploaded" not in told


def test_a_changed_pipeline_is_a_new_version_and_going_back_finds_the_old_one(api: KfpApi) -> None:
    deeprec(api, "set")
    [first] = api.recurring.values()
    deeprec(api, "set", "pipeline.default.cpu=3")
    [second] = api.recurring.values()
    old, new = first["pipeline_version_reference"], second["pipeline_version_reference"]
    assert old["pipeline_id"] == new["pipeline_id"]
    assert old["pipeline_version_id"] != new["pipeline_version_id"]
    assert "uploaded" not in deeprec(api, "set")
    [third] = api.recurring.values()
    assert third["pipeline_version_reference"] == old
    assert len(api.versions) == 3


def test_a_version_is_named_by_what_it_says_not_by_its_comments(tmp_path: Path) -> None:
    from deeprec.release.schedule import content_name

    texts = ("# {a: 1, b: 2}\nroot: {a: 1}\n", "# {b: 2, a: 1}\nroot: {a: 1}\n", "# {a: 1, b: 2}\nroot: {a: 3}\n")
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.yaml").write_text(text)
    first, second, other = (content_name(tmp_path / f"{number}.yaml") for number in range(3))
    assert first == second != other


@pytest.mark.parametrize("command", ["set", "pause", "resume", "remove"])
def test_a_dry_run_foretells_and_changes_nothing(api: KfpApi, command: str) -> None:
    changed = (f"schedule.cron={MONDAY}", "pipeline.default.cpu=3") if command == "set" else ()
    deeprec(api, "set")
    if command == "resume":
        deeprec(api, "pause")
    before, things = writes(api), str(api.recurring)
    foretold = [line for line in deeprec(api, command, *changed, dry=True).splitlines() if line.startswith("would ")]
    assert foretold
    assert (writes(api), str(api.recurring)) == (before, things)
    done = [line for line in deeprec(api, command, *changed).splitlines() if " recurring run" in line]
    assert len(done) == len([line for line in foretold if " recurring run" in line])


def test_a_dry_run_of_the_first_set_makes_nothing(api: KfpApi) -> None:
    told = deeprec(api, "set", dry=True)
    assert "would upload version" in told
    assert "would make a recurring run\n" in told
    assert writes(api) == []


def test_show_says_what_is_there(api: KfpApi) -> None:
    assert f"no schedule {NAME}" in deeprec(api, "show")
    deeprec(api, "set", "schedule.timezone=Asia/Tokyo")
    told = deeprec(api, "show", "schedule.timezone=Asia/Tokyo")
    assert f"{NAME}: enabled, version " in told
    assert "At 18:00, only on Saturday (UTC)" in told
    assert told.count("Sun 20") == told.count(" 03:00 JST") == 3
    assert "deeprec schedule set changes it" not in told
    deeprec(api, "pause")
    told = deeprec(api, "show", f"schedule.cron={MONDAY}")
    assert f"{NAME}: paused" in told
    assert f"the configuration says '{MONDAY}' in UTC; deeprec schedule set changes it" in told


@pytest.mark.parametrize("trigger", [{"cron_schedule": {"cron": "0 0 3 ? * 1"}}, {"periodic_schedule": {}}])
def test_one_that_somebody_else_made_is_shown_and_replaced(api: KfpApi, trigger: dict[str, Any]) -> None:
    deeprec(api, "set")
    next(iter(api.recurring.values()))["trigger"] = trigger
    assert "which deeprec schedule did not make" in deeprec(api, "show")
    deeprec(api, "set")
    assert crons(api) == [("0 0 3 * * 0", "ENABLE")]


def test_show_of_a_version_that_was_deleted(api: KfpApi) -> None:
    deeprec(api, "set")
    api.versions.clear()
    assert "enabled, a version that was deleted" in deeprec(api, "show")


def test_what_was_paused_stays_paused_until_it_is_resumed(api: KfpApi) -> None:
    deeprec(api, "set")
    deeprec(api, "pause")
    assert crons(api) == [("0 0 3 * * 0", "DISABLE")]
    assert "nothing to do" in deeprec(api, "pause")
    assert f"nothing to do for {NAME}, which is paused" in deeprec(api, "set")
    assert "is paused; deeprec schedule resume" in deeprec(api, "set", f"schedule.cron={MONDAY}")
    assert crons(api) == [("0 0 4 * * 1", "DISABLE")]
    deeprec(api, "resume")
    assert crons(api) == [("0 0 4 * * 1", "ENABLE")]
    assert "nothing to do" in deeprec(api, "resume")
    assert "nothing to do" in deeprec(api, "set", f"schedule.cron={MONDAY}")


def test_remove_leaves_nothing_of_the_name_and_all_others(api: KfpApi) -> None:
    deeprec(api, "set", "schedule.name=another")
    deeprec(api, "set")
    [one] = (one for one in api.recurring.values() if one["display_name"] == NAME)
    for number in range(7):
        api.recurring[f"copy-{number}"] = {**one, "recurring_run_id": f"copy-{number}", "mode": "DISABLE"}
    api.page = 3
    deeprec(api, "remove")
    assert [one["display_name"] for one in api.recurring.values()] == ["another"]
    assert "nothing to do" in deeprec(api, "remove")
    with pytest.raises(ConfigError, match="there is no schedule of this name"):
        deeprec(api, "pause")


# What is killed.


class Killer:
    """Ends the conversation after the effect of the request number ``at``, of those that ``counts`` says.

    What comes later is dropped before it has an effect. ``most`` is how many were enabled at a time.
    """

    def __init__(self, api: KfpApi, at: int, counts: Callable[[Asked], bool]) -> None:
        self.api, self.at, self.counts, self.count, self.most = api, at, counts, -1, 0
        api.before, api.after = self.before, self.after

    def before(self, asked: Asked) -> None:
        if self.count >= self.at:
            raise Dropped
        self.count += self.counts(asked)

    def after(self, asked: Asked) -> None:
        self.most = max(self.most, len(self.api.enabled))
        if self.count == self.at:
            raise Dropped

    def leave(self) -> None:
        self.api.before, self.at = lambda asked: None, 10_000


STARTS = {
    "nothing": (),
    "another cron": (("set",),),
    "another pipeline": (("set", "pipeline.default.cpu=3"),),
    "paused": (("set",), ("pause",)),
}
COMMANDS = {
    "set": (f"schedule.cron={MONDAY}",),
    "pause": (),
    "resume": (),
    "remove": (),
}


def wanted_after(command: str, start: str) -> list[tuple[str, str]]:
    if command == "remove":
        return []
    cron = "0 0 4 * * 1" if command == "set" else "0 0 3 * * 0"
    paused = command == "pause" or (command == "set" and start == "paused")
    return [(cron, "DISABLE" if paused else "ENABLE")]


@pytest.mark.parametrize(
    ("command", "start"),
    [
        *(("set", start) for start in STARTS),
        ("pause", "another cron"),
        ("resume", "paused"),
        ("remove", "another cron"),
    ],
)
def test_killed_at_any_request_and_run_again_it_ends_right(
    api: KfpApi, monkeypatch: pytest.MonkeyPatch, command: str, start: str
) -> None:
    monkeypatch.setattr(kfp_server, "PATIENCE", 0.0)
    every = (command, start) == ("set", "another cron")  # elsewhere after all that changes something
    kills = 0
    for at in range(40):
        for table in (api.recurring, api.versions, api.pipelines, api.experiments):
            table.clear()
        for before in STARTS[start]:
            deeprec(api, *before)
        killer = Killer(api, at, lambda asked: every or asked.method != "GET")
        try:
            deeprec(api, command, *COMMANDS[command])
        except PipelineError:
            kills += 1
            killer.leave()
            if not (command in ("pause", "remove", "resume") and not api.recurring):
                deeprec(api, command, *COMMANDS[command])
        killer.leave()
        assert crons(api) == wanted_after(command, start), f"killed after request {at}"
        assert killer.most <= 1
        if killer.count < at:
            break
    assert kills == at >= (10 if every else 1)


def test_two_of_one_name_that_were_left_become_one(api: KfpApi) -> None:
    deeprec(api, "set")
    [one] = api.recurring.values()
    for number in range(3):
        copy = {**one, "recurring_run_id": f"copy-{number}", "mode": "ENABLE", "status": "ENABLED"}
        api.recurring[f"copy-{number}"] = copy
    assert "4 of one name" in deeprec(api, "show")
    deeprec(api, "set")
    assert crons(api) == [("0 0 3 * * 0", "ENABLE")]


def test_two_that_set_at_the_same_time_end_with_one(api: KfpApi) -> None:
    deeprec(api, "set", f"schedule.cron={MONDAY}")
    [one] = api.recurring.values()
    server = KfpServer(api.url)
    [found] = server.recurring(NAME)
    cron = Cron.read("0 5 * * 2", "UTC")
    rule = to_set(replace(found.order, cron=str(cron)), cron)
    for at in range(9):
        api.recurring.clear()
        api.recurring[one["recurring_run_id"]] = dict(one)
        count = iter(range(1000))

        def meanwhile(asked: Asked, at: int = at, count: Iterator[int] = count) -> None:
            if next(count) == at:
                list(settle(KfpServer(api.url), NAME, rule))

        api.before = meanwhile
        list(settle(server, NAME, rule))
        api.before = lambda asked: None
        assert crons(api) == [("0 0 5 * * 2", "ENABLE")], f"the other one at request {at}"


# What ticks.


def sunday(hour: int = 3, weeks: int = 0) -> datetime:
    today = datetime.now(UTC).replace(hour=hour, minute=0, second=5, microsecond=0)
    return today + timedelta(days=(6 - today.weekday()) % 7 + 7 * (weeks + 1))


def test_a_tick_starts_one_run_that_reads_the_data_anew(api: KfpApi) -> None:
    deeprec(api, "set")
    assert api.tick(datetime.now(UTC)) == []
    [run] = api.tick(sunday(weeks=1))
    assert run["runtime_config"]["parameters"] == {"data_version": f"{sunday(weeks=1):%Y%m%d}030000"}
    assert api.tick(sunday(weeks=2)) == []  # the first one is still running
    api.end_runs()
    [caught_up] = api.tick(sunday(weeks=4))
    assert caught_up["scheduled_at"].startswith(f"{sunday(weeks=4):%Y-%m-%d}")


def test_resume_starts_no_tick_that_was_missed(api: KfpApi) -> None:
    deeprec(api, "set")
    deeprec(api, "pause")
    age(api, 30)
    KfpServer(api.url).enable(next(iter(api.recurring)))
    assert len(api.tick(datetime.now(UTC))) == 1  # what KFP does by itself
    api.runs.clear()
    api.recurring.clear()
    deeprec(api, "set")
    deeprec(api, "pause")
    age(api, 30)
    deeprec(api, "resume")
    assert api.tick(datetime.now(UTC)) == []
    assert crons(api) == [("0 0 3 * * 0", "ENABLE")]


def test_one_that_was_left_paused_before_a_tick_is_made_anew(api: KfpApi) -> None:
    deeprec(api, "set")

    def end_after_making(asked: Asked) -> None:
        if asked.method == "POST":
            raise Dropped

    api.after = end_after_making
    with pytest.raises(PipelineError):
        deeprec(api, "set", f"schedule.cron={MONDAY}")
    api.after = lambda asked: None
    assert sorted(crons(api)) == [("0 0 3 * * 0", "ENABLE"), ("0 0 4 * * 1", "DISABLE")]
    age(api, 30)
    deeprec(api, "set", f"schedule.cron={MONDAY}")
    assert crons(api) == [("0 0 4 * * 1", "ENABLE")]
    assert api.tick(datetime.now(UTC)) == []


@pytest.mark.parametrize(
    ("zone", "server", "day", "before", "after"),
    [
        ("Europe/Berlin", "Europe/Berlin", "2027-03-28", "02:00", "01:00"),
        ("Europe/Berlin", "Europe/Lisbon", "2027-10-31", "01:00", "02:00"),
        ("Asia/Tokyo", "UTC", "2027-03-28", "18:00", "18:00"),
    ],
)
def test_over_a_change_of_the_clock_runs_begin_at_the_hour_that_was_meant(
    api: KfpApi, zone: str, server: str, day: str, before: str, after: str
) -> None:
    api.zone = server
    deeprec(api, "set", "schedule.cron=0 3 * * *", f"schedule.timezone={zone}", f"schedule.server_timezone={server}")
    change = datetime.fromisoformat(f"{day}T12:00:00Z")
    begun = []
    for hour in range(-48, 25):
        begun += [run["scheduled_at"][11:16] for run in api.tick(change + timedelta(hours=hour))]
        api.end_runs()
    assert (begun[1], begun[-1], len(begun)) == (before, after, 4)


def test_a_zone_with_summer_time_is_refused_before_anything_is_asked(api: KfpApi) -> None:
    with pytest.raises(ConfigError, match=r"let KFP count in Europe/Berlin .* schedule\.server_timezone"):
        deeprec(api, "set", "schedule.timezone=Europe/Berlin")
    with pytest.raises(ConfigError, match=r"schedule\.cron '0 25 \* \* \*': '25' is no hour, 0 to 23"):
        deeprec(api, "set", "schedule.cron=0 25 * * *")
    with pytest.raises(ConfigError, match=r"schedule\.cron: 3 fields, and cron has five .* write for example"):
        deeprec(api, "set", "schedule.cron=0 3 *")
    assert api.asked == []


# What goes wrong.


def always(status: int, message: str) -> Callable[[Asked], None]:
    def refuse(asked: Asked) -> None:
        raise Refused(status, message)

    return refuse


def test_a_server_that_is_gone_is_one_sentence(api: KfpApi) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(PipelineError, match=rf"{closed} does not answer, to list recurring runs: .*schedule\.host"):
        deeprec(api, "show", f"schedule.host={closed}")


@pytest.mark.parametrize("status", [401, 403])
def test_a_missing_right_is_one_sentence_and_is_not_asked_twice(api: KfpApi, status: int) -> None:
    api.before = always(status, "User 'jobs' is not authorized")
    with pytest.raises(PipelineError, match=rf"not let this account list pipelines \({status}: User 'jobs' is not"):
        deeprec(api, "set")
    assert len(api.asked) == 1


def test_errors_of_the_server_that_pass_are_waited_for(api: KfpApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kfp_server, "PATIENCE", 5.0)
    left = iter([503, 500, 429, 502])

    def flaky(asked: Asked) -> None:
        status = next(left, None)
        if status:
            raise Refused(status, "busy")

    api.before = flaky
    deeprec(api, "set")
    assert crons(api) == [("0 0 3 * * 0", "ENABLE")]


def test_errors_of_the_server_that_stay_are_one_sentence(api: KfpApi) -> None:
    api.before = always(500, "database is locked")
    with pytest.raises(PipelineError, match=r"could not list recurring runs \(500: database is locked\)"):
        deeprec(api, "show")


def test_a_making_that_failed_is_not_repeated(api: KfpApi) -> None:
    def refuse(asked: Asked) -> None:
        if asked.method == "POST" and asked.path.endswith("recurringruns"):
            raise Refused(503, "try later")

    api.after = refuse
    with pytest.raises(PipelineError, match="could not make the recurring run"):
        deeprec(api, "set")
    assert len(api.recurring) == 1
    api.after = lambda asked: None
    assert "nothing to do" in deeprec(api, "set")


def test_a_server_that_does_not_answer_in_time(api: KfpApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kfp_server, "SECONDS", (0.1, 0.1))
    monkeypatch.setattr(kfp_server, "PATIENCE", 0.0)
    api.before = lambda asked: time.sleep(1)
    started = time.monotonic()
    with pytest.raises(PipelineError, match=r"does not answer, to list recurring runs: .*timed out"):
        deeprec(api, "show")
    assert time.monotonic() - started < 5


def test_a_pods_token_is_sent_and_read_again(api: KfpApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("first\n")
    server = KfpServer(api.url)
    server.recurring(NAME)
    (tmp_path / "token").write_text("second\n")
    server.recurring(NAME)
    assert [asked.token for asked in api.asked] == ["Bearer first", "Bearer second"]


def test_without_a_host_the_cluster_is_asked_or_the_cure_is_said(
    api: KfpApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"set schedule\.host to its address"):
        KfpServer()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert KfpServer().host == kfp_server.IN_CLUSTER
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", api.url)
    assert KfpServer().host == api.url


# What the look at drift uses.


def test_runs_are_started_found_and_told_apart(api: KfpApi) -> None:
    server = KfpServer(api.url)
    with pytest.raises(PipelineError, match=f"has no pipeline {NAME}; run deeprec schedule set"):
        server.start(NAME, arguments={}, name="drift", experiment=NAME)
    assert (server.last_run(NAME), server.active_runs(NAME)) == (None, [])
    deeprec(api, "set", "schedule.name=another")
    deeprec(api, "set")
    api.page = 2
    for version in api.versions.values():  # KFP's own first one is older than ours, if only by less than a second
        if version["display_name"] == NAME:
            version["created_at"] = "2020-01-01T00:00:00Z"
    server.start("another", arguments={}, name="not ours", experiment=NAME)
    runs = [
        server.start(NAME, arguments={"overrides": "seed=3"}, name=f"drift-{number}", experiment=NAME)
        for number in range(3)
    ]
    [one] = (one for one in api.recurring.values() if one["display_name"] == NAME)
    made = api.runs[runs[0].id]
    assert made["pipeline_version_reference"] == one["pipeline_version_reference"]
    assert made["runtime_config"]["parameters"] == {"overrides": "seed=3"}
    assert (runs[0].name, runs[0].state, runs[0].active) == ("drift-0", "PENDING", True)
    assert sorted(run.id for run in server.active_runs(NAME)) == sorted(run.id for run in runs)
    api.runs[runs[1].id]["state"] = "FAILED"
    assert len(server.active_runs(NAME)) == 2
    api.runs[runs[2].id]["created_at"] = "2030-01-01T00:00:00Z"
    last = server.last_run(NAME)
    assert last is not None
    assert (last.id, last.created) == (runs[2].id, datetime(2030, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("cron", ["0 3 * * 0", "TZ=UTC 0 0 3 * * 0", "0 0 3 * * 7", "0 0 25 * * *", "0 0 3 L * *"])
def test_a_cron_that_the_server_cannot_read_is_its_sentence(api: KfpApi, cron: str) -> None:
    deeprec(api, "set")
    server = KfpServer(api.url)
    [one] = server.recurring(NAME)
    with pytest.raises(PipelineError, match=r"refused to make the recurring run .* \(400: Schedule cron is not a supp"):
        server.make_recurring(NAME, replace(one.order, cron=cron), "", enabled=True)
    with pytest.raises(PipelineError, match=r"\(404: ResourceNotFoundError: gone not found\)"):
        server.make_recurring(NAME, replace(one.order, version="gone"), "", enabled=True)


def test_every_refusal_of_ours_is_ours(api: KfpApi) -> None:
    api.before = always(400, "Invalid input error: In multi-user mode, namespace cannot be empty")
    server = KfpServer(api.url)
    rules: list[Any] = [to_pause, to_remove]
    for rule in rules:
        with pytest.raises(DeepRecError, match="namespace cannot be empty"):
            list(settle(server, NAME, rule))
