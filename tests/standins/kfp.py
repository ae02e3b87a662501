"""KFP's API over HTTP (v2beta1, as of 2.16) for the real ``kfp.Client``, with the controller that starts what is due.

It refuses what a real server refuses: a cron that robfig/cron 1.2 cannot read, an experiment or version that is not
there, names of pipelines and versions that are taken. As there, recurring runs cannot be changed and may share a name,
and times are in whole seconds. ``tick`` is the controller: one zone for all, one look at the clock.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

from deeprec.release.cron import Cron
from tests.standins.listening import Handler, Listening

Thing = dict[str, Any]
_PATH = re.compile(
    r"/apis/v2beta1/(?P<kind>\w+)(?:/(?P<id>[^/:]+))?(?:/(?P<part>versions)(?:/(?P<version>[^/:]+))?)?"
    r"(?::(?P<verb>\w+))?$"
)
_ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


class Refused(Exception):
    """An answer with an error's status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Dropped(Exception):
    """The connection ends without an answer."""


@dataclass(frozen=True)
class Asked:
    """A request: its number from 0, ``POST``, ``/apis/v2beta1/…`` without the query, the Authorization header."""

    number: int
    method: str
    path: str
    token: str | None = None


@dataclass
class KfpApi:
    """The server.

    ``before`` and ``after`` are called around what a request does and may raise ``Refused`` or ``Dropped``, or wait;
    ``now`` is the server's clock, and ``zone`` its ``CRON_SCHEDULE_TIMEZONE``.
    """

    before: Callable[[Asked], None] = lambda asked: None
    after: Callable[[Asked], None] = lambda asked: None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    zone: str = "UTC"
    page: int = 100
    pipelines: dict[str, Thing] = field(default_factory=dict)
    versions: dict[str, Thing] = field(default_factory=dict)
    experiments: dict[str, Thing] = field(default_factory=dict)
    recurring: dict[str, Thing] = field(default_factory=dict)
    runs: dict[str, Thing] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock, self._ids = threading.RLock(), itertools.count(1)
        self._last: dict[str, datetime] = {}
        server = self

        class Here(_Handler):
            api = server

        self._http = Listening(Here)
        self.url = self._http.url

    def close(self) -> None:
        self._http.close()

    @property
    def enabled(self) -> list[Thing]:
        return [one for one in self.recurring.values() if one["mode"] == "ENABLE"]

    def end_runs(self, state: str = "SUCCEEDED") -> None:
        for run in self.runs.values():
            run.update(state=state, finished_at=self.stamp())

    def stamp(self, at: datetime | None = None) -> str:
        return (at or self.now()).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def new_id(self, kind: str) -> str:
        return f"{kind}-{next(self._ids)}"

    def tick(self, now: datetime) -> list[Thing]:
        """Start the runs of the recurring runs that are due, and say which."""
        started = []
        with self.lock:
            for one in self.enabled:
                due, active = self._due(one, now), self._active(one)
                if due is None or len(active) >= int(one["max_concurrency"]):
                    continue
                self._last[one["recurring_run_id"]] = due
                written = {"[[ScheduledTime]]": f"{due.astimezone(UTC):%Y%m%d%H%M%S}"}
                given = one.get("runtime_config", {}).get("parameters", {})
                run = {
                    **{key: one[key] for key in ("experiment_id", "display_name", "pipeline_version_reference")},
                    "recurring_run_id": one["recurring_run_id"],
                    "scheduled_at": self.stamp(due),
                    "runtime_config": {"parameters": {key: written.get(value, value) for key, value in given.items()}},
                }
                started.append(self.add_run(run, now))
        return started

    def add_run(self, run: Thing, now: datetime | None = None) -> Thing:
        made = {**run, "run_id": self.new_id("run"), "state": "PENDING", "created_at": self.stamp(now)}
        self.runs[made["run_id"]] = made
        return made

    def _active(self, one: Thing) -> list[Thing]:
        own = (run for run in self.runs.values() if run.get("recurring_run_id") == one["recurring_run_id"])
        return [run for run in own if run["state"] not in _ENDED]

    def _due(self, one: Thing, now: datetime) -> datetime | None:
        """The tick to start: the first after the last one, or after making; without catching up the newest of these."""
        made = datetime.fromisoformat(one["created_at"])
        cron = Cron.read(one["trigger"]["cron_schedule"]["cron"], self.zone)
        ticks = cron.ticks(self._last.get(one["recurring_run_id"], made).astimezone(ZoneInfo(self.zone)))
        missed = list(itertools.takewhile(lambda tick: tick <= now, ticks))
        if not missed:
            return None
        return missed[-1] if one.get("no_catchup") else missed[0]

    def answer(self, asked: Asked, query: dict[str, str], body: bytes, content_type: str) -> Thing:
        found = _PATH.match(asked.path)
        if found is None:
            raise Refused(404, f"no such path {asked.path}")
        kind, one, verb = found["kind"], found["id"], found["verb"]
        if kind == "healthz":
            return {"multi_user": False}
        if kind == "pipelines" and one in ("upload", "upload_version"):
            return self._upload(one, query, _file_of(body, content_type))
        if found["part"]:
            own = {key: value for key, value in self.versions.items() if value["pipeline_id"] == one}
            if found["version"]:
                return _get(own, found["version"])
            return self._listed("pipeline_versions", own, query)
        table, name = {
            "pipelines": (self.pipelines, "pipelines"),
            "experiments": (self.experiments, "experiments"),
            "runs": (self.runs, "runs"),
            "recurringruns": (self.recurring, "recurringRuns"),
        }[kind]
        if asked.method == "GET":
            return _get(table, one) if one else self._listed(name, table, query)
        if asked.method == "DELETE":
            _get(table, one)
            return table.pop(one) and {}
        if verb in ("enable", "disable"):
            _get(table, one).update(mode=verb.upper(), status=f"{verb.upper()}D")
            return {}
        return {"experiments": self._experiment, "runs": self._run, "recurringruns": self._recurring}[kind](
            json.loads(body)
        )

    def _listed(self, name: str, table: dict[str, Thing], query: dict[str, str]) -> Thing:
        wanted = _name_of(json.loads(query.get("filter") or "{}"))
        found = [one for one in table.values() if wanted in (None, one["display_name"])]
        if query.get("sort_by") == "created_at desc":
            found.sort(key=lambda one: one["created_at"], reverse=True)
        at, size = int(query.get("page_token") or 0), min(int(query.get("page_size") or 20), self.page)
        rest = {"next_page_token": str(at + size)} if at + size < len(found) else {}
        return {name: found[at : at + size], "total_size": len(found), **rest}

    def _upload(self, kind: str, query: dict[str, str], file: bytes) -> Thing:
        if not re.search(rb"^pipelineInfo:", file, re.MULTILINE):
            raise Refused(400, "Failed to parse the pipeline spec")
        if kind == "upload":
            if any(one["display_name"] == query["name"] for one in self.pipelines.values()):
                raise Refused(409, f"Already exist error: The name {query['name']} already exist")
            pipeline = {"pipeline_id": self.new_id("pipeline"), "display_name": query["name"]}
            self.pipelines[pipeline["pipeline_id"]] = {**pipeline, "created_at": self.stamp()}
            self._version(pipeline["pipeline_id"], query["name"])
            return self.pipelines[pipeline["pipeline_id"]]
        _get(self.pipelines, query["pipelineid"])
        return self._version(query["pipelineid"], query["name"])

    def _version(self, pipeline: str, name: str) -> Thing:
        if any((one["pipeline_id"], one["display_name"]) == (pipeline, name) for one in self.versions.values()):
            raise Refused(409, f"Already exist error: The name {name} already exist")
        made = {"pipeline_id": pipeline, "pipeline_version_id": self.new_id("version"), "display_name": name}
        self.versions[made["pipeline_version_id"]] = {**made, "created_at": self.stamp()}
        return self.versions[made["pipeline_version_id"]]

    def _experiment(self, given: Thing) -> Thing:
        if any(one["display_name"] == given["display_name"] for one in self.experiments.values()):
            raise Refused(409, f"Already exist error: experiment {given['display_name']}")
        made = {**given, "experiment_id": self.new_id("experiment"), "created_at": self.stamp()}
        self.experiments[made["experiment_id"]] = made
        return made

    def _run(self, given: Thing) -> Thing:
        self._check_reference(given)
        return self.add_run(given)

    def _recurring(self, given: Thing) -> Thing:
        self._check_reference(given)
        cron = given.get("trigger", {}).get("cron_schedule", {}).get("cron", "")
        try:
            _read_as_robfig(cron)
        except ValueError as error:
            raise Refused(400, f"Schedule cron is not a supported format. Error: {error}") from error
        if not 1 <= int(given.get("max_concurrency") or 0) <= 10:
            raise Refused(400, "Max concurrency of a recurring run must be at least 1 and at most 10")
        if given.get("mode") not in ("ENABLE", "DISABLE"):
            raise Refused(400, "mode is required")
        made = {**given, "recurring_run_id": self.new_id("recurring"), "created_at": self.stamp()}
        made.update(updated_at=made["created_at"], status=f"{given['mode']}D")
        self.recurring[made["recurring_run_id"]] = made
        return made

    def _check_reference(self, given: Thing) -> None:
        _get(self.experiments, given.get("experiment_id"))
        reference = given.get("pipeline_version_reference") or {}
        version = _get(self.versions, reference.get("pipeline_version_id"))
        if version["pipeline_id"] != reference.get("pipeline_id"):
            raise Refused(400, "the version is of another pipeline")


def _read_as_robfig(cron: str) -> None:
    """
    Raises:
        ValueError: robfig/cron 1.2's ``Parse`` does not know a field, or there are not six (of five it would take the
            first for seconds, which nobody means).
    """
    fields, bounds = cron.split(), ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
    names = ("", "", "", "", "JANFEBMARAPRMAYJUNJULAUGSEPOCTNOVDEC", "SUNMONTUEWEDTHUFRISAT")
    if len(fields) != 6:
        raise ValueError(f"Expected exactly 6 fields, found {len(fields)}: {cron}")
    for text, (least, most), known in zip(fields, bounds, names, strict=True):
        for part in text.split(","):
            span, _, step = part.partition("/")
            low, _, high = span.partition("-")
            ends = [least, most] if low in ("*", "?") else [_number(end, known, least) for end in (low, high or low)]
            if ends[0] < least or ends[1] > most or ends[0] > ends[1] or (step and int(step) < 1):
                raise ValueError(f"out of range: {part}")


def _number(text: str, names: str, least: int) -> int:
    at = names.find(text.upper()) if len(text) == 3 else -1
    return at // 3 + least if at >= 0 and at % 3 == 0 else int(text)


def _get(table: dict[str, Thing], key: str | None) -> Thing:
    if key not in table:
        raise Refused(404, f"ResourceNotFoundError: {key} not found")
    return table[key]


def _name_of(sought: Thing) -> str | None:
    """The display name that a filter asks for; None without a filter."""
    if not sought:
        return None
    [each] = sought["predicates"]
    if each["operation"] not in ("EQUALS", 1) or each["key"] != "display_name":
        raise Refused(400, f"this stand-in does not know the filter {sought}")
    return str(each["stringValue"])


def _file_of(body: bytes, content_type: str) -> bytes:
    """The file ``uploadfile`` of a multipart form."""
    form = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    parts: Iterator[Any] = (part for part in form.walk() if part.get_filename())
    return next(parts).get_payload(decode=True)  # type: ignore[no-any-return]


class _Handler(Handler):
    api: KfpApi

    def _answer(self) -> None:
        url, body = urlsplit(self.path), self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        status, answer = 200, {}
        with self.api.lock:
            asked = Asked(len(self.api.asked), self.command, url.path, self.headers.get("Authorization"))
            self.api.asked.append(asked)
        try:
            self.api.before(asked)
            with self.api.lock:
                answer = self.api.answer(asked, query, body, self.headers.get("Content-Type", ""))
            self.api.after(asked)
        except Dropped:
            self.close_connection = True
            return
        except Refused as error:
            status, answer = error.status, {"message": error.message, "code": 3}
        sent = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    do_GET = do_POST = do_DELETE = _answer
