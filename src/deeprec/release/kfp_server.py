"""KFP's server, as the schedule and the look at drift need it: pipelines, recurring runs, runs.

Contract: every call ends within ``SECONDS`` for each attempt, and raises ``PipelineError`` in one sentence. What can be
asked twice (all but making something) is asked again for ``PATIENCE`` seconds while the server is away or answers 5xx.

Limits: KFP has no call that changes a recurring run, and lets several have one name; what to make of that is
``release.schedule``'s.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import kfp
from kfp.client import ServiceAccountTokenVolumeCredentials
from kfp_server_api import ApiException, V2beta1GetHealthzResponse
from urllib3.exceptions import HTTPError

from deeprec.errors import ConfigError, PipelineError
from deeprec.retrying import Again, keep_asking

SECONDS = (5.0, 30.0)
"""Seconds to connect, and to wait for an answer."""
PATIENCE = 15.0
"""Seconds for which what can be asked twice is asked again."""
IN_CLUSTER = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
"""Where KFP's API is in a cluster unless it was installed elsewhere."""
TOKEN = "/var/run/secrets/kubeflow/pipelines/token"
"""A pod's token for KFP, where ``KF_PIPELINES_SA_TOKEN_PATH`` names no other file."""
ENDED = frozenset({"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"})
"""States of a run that does nothing any more."""
TAKEN = 409
"""Status of an answer that says that the name is taken: somebody has just made it."""
NEWEST = 1000
"""Most runs that are looked through, the newest first."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Run:
    """A run of a pipeline; ``state`` is KFP's, such as ``RUNNING``."""

    id: str
    name: str
    state: str
    created: datetime

    @property
    def active(self) -> bool:
        return self.state not in ENDED


@dataclass(frozen=True)
class Order:
    """What a recurring run does: which version of which pipeline, when, with which arguments.

    ``cron`` has six fields and is empty for one that goes by an interval; ``alone`` is one run at a time, and none for
    ticks that were missed.
    """

    cron: str
    pipeline: str
    version: str
    arguments: Mapping[str, Any]
    alone: bool = True


@dataclass(frozen=True)
class RecurringRun:
    """A recurring run as the server has it."""

    id: str
    enabled: bool
    made: datetime
    description: str
    order: Order


class NotThere(PipelineError):
    """The server knows no such thing."""


class _Client(kfp.Client):  # type: ignore[misc]
    """The SDK's client, which asks nothing when it is made and leaves asking again to ``KfpServer``."""

    def _load_config(self, *given: Any) -> Any:
        config = super()._load_config(*given)
        config.retries = False
        return config

    def get_kfp_healthz(self, sleep_duration: int = 5) -> V2beta1GetHealthzResponse:
        return V2beta1GetHealthzResponse(multi_user=False)


class KfpServer:
    """KFP's server at ``host``; empty is ``KF_PIPELINES_ENDPOINT``, else the cluster that this is a pod of, else the
    one of the kubeconfig.

    ``namespace`` is that of a profile; empty without profiles. No request is sent before something is asked.

    Raises:
        ConfigError: no host is named, and there is neither a cluster nor a kubeconfig.
    """

    def __init__(self, host: str = "", namespace: str = "") -> None:
        host = host or os.environ.get("KF_PIPELINES_ENDPOINT", "")
        if not host and os.environ.get("KUBERNETES_SERVICE_HOST"):
            host = IN_CLUSTER
        token = os.environ.get("KF_PIPELINES_SA_TOKEN_PATH") or TOKEN
        credentials = ServiceAccountTokenVolumeCredentials(token) if Path(token).is_file() else None
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as said:
            warnings.simplefilter("ignore")
            self._client = _Client(host=host or None, credentials=credentials)
        if "Failed to load kube config" in said.getvalue():
            raise ConfigError("no KFP server is named and no cluster is near; set schedule.host to its address")
        self._namespace = namespace or self._client.get_user_namespace() or None
        api = self._client._run_api.api_client
        self.host = str(api.configuration.host)
        api.rest_client.request = _within(api.rest_client.request)

    def find_version(self, pipeline: str, version: str) -> tuple[str, str] | None:
        """Ids of the pipeline and of its version with these names; None where either is missing."""
        found = self._pipeline(pipeline)
        if found is None:
            return None
        named = self._all("pipeline_versions", self._client.list_pipeline_versions, version, pipeline_id=found)
        return next(((found, one.pipeline_version_id) for one in named if one.display_name == version), None)

    def upload(self, file: Path, pipeline: str, version: str) -> tuple[str, str]:
        """Ids of the pipeline and of its version with these names, uploaded where they are missing."""
        doing = f"upload the pipeline {pipeline}"
        if self._pipeline(pipeline) is None:  # KFP names a pipeline's first version after the pipeline
            self._ask(doing, lambda: self._client.upload_pipeline(str(file), pipeline, None, self._namespace), TAKEN)
        found = self.find_version(pipeline, version)
        if found is None:
            at = self._pipeline(pipeline)
            self._ask(doing, lambda: self._client.upload_pipeline_version(str(file), version, pipeline_id=at), TAKEN)
            found = self.find_version(pipeline, version)
        if found is None:
            raise PipelineError(f"KFP's server at {self.host} took {version} of {pipeline} but does not list it; retry")
        return found

    def version_name(self, order: Order) -> str:
        """The name of the version that a recurring run is pinned to.

        Raises:
            NotThere: it was deleted.
        """
        ids = order.pipeline, order.version
        found = self._again(f"read the version {order.version}", lambda: self._client.get_pipeline_version(*ids))
        return str(found.display_name)

    def recurring(self, name: str) -> list[RecurringRun]:
        """The recurring runs of this name, the oldest first."""
        listed = self._all("recurring_runs", self._client.list_recurring_runs, name, namespace=self._namespace)
        found = [_recurring(one) for one in listed if one.display_name == name]
        return sorted(found, key=lambda one: (one.made, one.id))

    def make_recurring(self, name: str, order: Order, description: str, *, enabled: bool) -> None:
        """Make a recurring run in the experiment of its name."""
        experiment = self._experiment(name)

        def make() -> Any:
            return self._client.create_recurring_run(
                experiment_id=experiment,
                job_name=name,
                description=description,
                cron_expression=order.cron,
                max_concurrency=1,
                no_catchup=True,
                params=dict(order.arguments),
                pipeline_id=order.pipeline,
                version_id=order.version,
                enabled=enabled,
            )

        self._ask(f"make the recurring run {name}", make)

    def enable(self, recurring: str) -> None:
        self._again(f"enable the recurring run {recurring}", lambda: self._client.enable_recurring_run(recurring))

    def disable(self, recurring: str) -> None:
        self._again(f"disable the recurring run {recurring}", lambda: self._client.disable_recurring_run(recurring))

    def delete(self, recurring: str) -> None:
        """Delete a recurring run; its runs stay. One that is not there is no error."""
        with contextlib.suppress(NotThere):
            self._again(f"delete the recurring run {recurring}", lambda: self._client.delete_recurring_run(recurring))

    def active_runs(self, pipeline: str) -> list[Run]:
        """The runs of this pipeline that have not ended, the newest first."""
        return [run for run in self._runs(pipeline) if run.active]

    def last_run(self, pipeline: str) -> Run | None:
        """The newest run of this pipeline, ended or not; None before the first."""
        return next(self._runs(pipeline), None)

    def start(
        self, pipeline: str, *, version: str | None = None, arguments: Mapping[str, Any], name: str, experiment: str
    ) -> Run:
        """Start a run of a pipeline's version, by its id; without one of the newest.

        Raises:
            PipelineError: there is no such pipeline, or it has no version.
        """
        found = self._pipeline(pipeline)
        if found is None:
            raise PipelineError(f"KFP's server at {self.host} has no pipeline {pipeline}; run deeprec schedule set")
        if version is None:
            listed = self._all("pipeline_versions", self._client.list_pipeline_versions, pipeline_id=found)
            newest = max(listed, key=lambda one: one.created_at, default=None)
            if newest is None:
                raise PipelineError(f"the pipeline {pipeline} has no version on {self.host}; upload one")
            version = str(newest.pipeline_version_id)
        place, params = self._experiment(experiment), dict(arguments)
        return _run(
            self._ask(
                f"start a run of {pipeline}",
                lambda: self._client.run_pipeline(place, name, params=params, pipeline_id=found, version_id=version),
            )
        )

    def _pipeline(self, name: str) -> str | None:
        listed = self._all("pipelines", self._client.list_pipelines, name, namespace=self._namespace)
        return next((str(one.pipeline_id) for one in listed if one.display_name == name), None)

    def _experiment(self, name: str) -> str:
        asked = partial(self._client.create_experiment, name, None, self._namespace)
        return str(self._again(f"find or make the experiment {name}", asked).experiment_id)

    def _runs(self, pipeline: str) -> Iterator[Run]:
        found = self._pipeline(pipeline)
        listed = self._all("runs", self._client.list_runs, namespace=self._namespace) if found else iter(())
        for count, one in enumerate(listed):
            if count == NEWEST:
                return
            reference = one.pipeline_version_reference
            if reference is not None and reference.pipeline_id == found:
                yield _run(one)

    def _all(self, kind: str, page: Callable[..., Any], name: str | None = None, **where: Any) -> Iterator[Any]:
        """Everything of a kind, page by page, the newest first; that is named ``name``, where one is given."""
        equal = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
        sought = None if name is None else json.dumps({"predicates": [equal]})
        asked = {"page_size": 100, "sort_by": "created_at desc", "filter": sought, **where}
        token = ""
        while True:
            answer = self._again(f"list {kind.replace('_', ' ')}", partial(page, page_token=token, **asked))
            yield from getattr(answer, kind) or ()
            token = answer.next_page_token or ""
            if not token:
                return

    def _again(self, doing: str, call: Callable[[], Answer]) -> Answer:
        """What ``call`` returns, asked again while that may help."""

        def attempt() -> Answer:
            try:
                return _quietly(call)
            except ApiException as error:
                if error.status == 429 or error.status >= 500:
                    raise Again(self._refused(doing, error)) from error
                raise self._refused(doing, error) from error
            except (HTTPError, OSError) as error:
                raise Again(self._away(doing, error)) from error

        return keep_asking(attempt, PATIENCE)

    def _ask(self, doing: str, call: Callable[[], Any], fine: int = 0) -> Any:
        """What ``call`` returns, asked once; None where the answer's status is ``fine``."""
        try:
            return _quietly(call)
        except ApiException as error:
            if error.status == fine:
                return None
            raise self._refused(doing, error) from error
        except (HTTPError, OSError) as error:
            raise self._away(doing, error) from error

    def _refused(self, doing: str, error: ApiException) -> PipelineError:
        told = _sentence(error)
        at = f"KFP's server at {self.host}"
        if error.status in (401, 403):
            return PipelineError(
                f"{at} does not let this account {doing} ({error.status}: {told}); give it the right, or its token in "
                f"the file that KF_PIPELINES_SA_TOKEN_PATH names"
            )
        if error.status >= 500 or error.status == 429:
            return PipelineError(
                f"{at} could not {doing} ({error.status}: {told}); look at its log, then run this again"
            )
        kind = NotThere if error.status == 404 else PipelineError
        return kind(f"{at} refused to {doing} ({error.status}: {told}); correct what it names")

    def _away(self, doing: str, error: Exception) -> PipelineError:
        reason = " ".join(str(error).split())[:200]
        return PipelineError(
            f"KFP's server at {self.host} does not answer, to {doing}: {reason}; see that it runs, or correct "
            f"schedule.host, then run this again"
        )


def _within(request: Callable[..., Any]) -> Callable[..., Any]:
    """``request`` of the generated client with a time-out, which its callers cannot name."""

    def asked(method: str, url: str, **rest: Any) -> Any:
        return request(method, url, **{**rest, "_request_timeout": SECONDS})

    return asked


def _quietly(call: Callable[[], Answer]) -> Answer:
    """What ``call`` returns, without the links that the SDK prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return call()


def _sentence(error: ApiException) -> str:
    try:
        told = json.loads(error.body)
        told = told.get("message") or told.get("error") or error.reason
    except (TypeError, ValueError, AttributeError):
        told = error.body or error.reason
    return " ".join(str(told).split())[:300]


def _run(one: Any) -> Run:
    return Run(str(one.run_id), str(one.display_name), str(one.state or "PENDING"), one.created_at)


def _recurring(one: Any) -> RecurringRun:
    reference, settings = one.pipeline_version_reference, one.runtime_config
    schedule = one.trigger.cron_schedule if one.trigger else None
    order = Order(
        cron=str(schedule.cron) if schedule else "",
        pipeline=str(reference.pipeline_id) if reference else "",
        version=str(reference.pipeline_version_id) if reference else "",
        arguments=dict((settings.parameters if settings else None) or {}),
        alone=bool(one.no_catchup) and int(one.max_concurrency or 0) == 1,
    )
    enabled = one.status == "ENABLED" if one.status else one.mode == "ENABLE"
    return RecurringRun(str(one.recurring_run_id), enabled, one.created_at, one.description or "", order)
