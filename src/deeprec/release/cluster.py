"""The cluster as a release sees it: InferenceServices and what belongs to them, through Kubernetes' own client."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import urllib3

from deeprec.errors import ConfigError, ReleaseError
from deeprec.retrying import Again, keep_asking
from deeprec.types import JsonDict

MANAGER = "deeprec"
"""Field manager of everything that a release applies."""
GROUP, VERSION, SERVICES, RUNTIMES = "serving.kserve.io", "v1beta1", "inferenceservices", "servingruntimes"
CRD = f"{SERVICES}.{GROUP}"
Kind = Literal["services", "pods"]
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_SECONDS = 30.0
_PAUSE = 0.5
PATIENCE_SECONDS = 15.0
"""After which a request that a busy or restarting API server fails is not made again."""
_CONFLICT, _GONE, _NOT_FOUND, _FORBIDDEN = 409, 410, 404, 403


class ConflictError(ReleaseError):
    """Another manager owns a field that would be changed."""


class ForbiddenError(ReleaseError):
    """This account has no right to it."""


class UnreachableError(ReleaseError):
    """The API server cannot be reached, or fails again and again."""


class Cluster:
    """A namespace of a cluster: of the pod that this runs in, or of ``KUBECONFIG``'s current context.

    A request that fails as a busy or restarting API server does is made again for some seconds; all that is asked for
    may be asked for twice.

    Args:
        namespace: where InferenceServices are; empty is the context's own.

    Raises:
        ConfigError: there is no configuration of a cluster.
    """

    def __init__(self, namespace: str = "") -> None:
        from kubernetes import client, config
        from kubernetes.config.config_exception import ConfigException

        self.inside = bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and not os.environ.get("KUBECONFIG")
        try:
            if self.inside:
                config.load_incluster_config()
                found = _NAMESPACE.read_text(encoding="utf-8").strip() if _NAMESPACE.is_file() else "default"
            else:
                file = os.environ.get("KUBECONFIG")  # which the client itself looks at when it is imported
                config.load_kube_config(file)
                _, context = config.list_kube_config_contexts(file)
                found = context["context"].get("namespace", "default")
        except ConfigException as error:
            raise ConfigError(f"there is no cluster to release to ({error}); set KUBECONFIG") from error
        self.namespace = namespace or found
        api = client.ApiClient()
        self._api, self._core = api, client.CoreV1Api(api)
        self._custom, self._rights = client.CustomObjectsApi(api), client.AuthorizationV1Api(api)

    # ------------------------------------------------------------------------------------------------------- objects

    def get(self, name: str, plural: str = SERVICES, version: str = VERSION) -> JsonDict | None:
        """An object; None where there is none.

        Raises:
            UnreachableError: see ``Cluster``.
        """
        with _refusing(f"read {plural} {name}"):
            found: JsonDict | None = self._missing_is_none(
                lambda: self._custom.get_namespaced_custom_object(
                    GROUP, version, self.namespace, plural, name, _request_timeout=_SECONDS
                )
            )
        return found

    def services(self) -> list[JsonDict]:
        """All InferenceServices of the namespace."""
        with _refusing(f"list {SERVICES}"):
            found: JsonDict = _patiently(
                lambda: self._custom.list_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, SERVICES, _request_timeout=_SECONDS
                )
            )
        return list(found["items"])

    def apply(self, service: JsonDict, *, force: bool = False) -> JsonDict:
        """Bring an InferenceService about by server-side apply; one request.

        Raises:
            ConflictError: another manager owns a field with another value, unless ``force``.
            ReleaseError: the cluster refuses it.
        """
        name = service["metadata"]["name"]
        with _refusing(f"apply InferenceService {name}"):
            found: JsonDict = _patiently(
                lambda: self._api.call_api(
                    f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{SERVICES}/{name}",
                    "PATCH",
                    query_params=[("fieldManager", MANAGER), ("force", str(force).lower())],
                    header_params={"Content-Type": "application/apply-patch+yaml", "Accept": "application/json"},
                    body=service,
                    response_type="object",
                    auth_settings=["BearerToken"],
                    _return_http_data_only=True,
                    _request_timeout=_SECONDS,
                )
            )
        return found

    def delete(self, name: str) -> None:
        """Delete an InferenceService; no error where there is none."""
        with _refusing(f"delete InferenceService {name}"):
            self._missing_is_none(
                lambda: self._custom.delete_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, SERVICES, name, _request_timeout=_SECONDS
                )
            )

    def wait(self, name: str, until: Callable[[JsonDict | None], bool], seconds: float) -> JsonDict | None:
        """An InferenceService as soon as ``until`` holds of it, or as it is when the time is over.

        It is watched; a watch that ends, is refused (410) or breaks begins again with a fresh look.
        """
        from kubernetes.client.exceptions import ApiException
        from kubernetes.watch import Watch

        end = time.monotonic() + seconds
        while True:
            now = self.get(name)
            left = end - time.monotonic()
            if until(now) or left <= 0:
                return now
            seen = now["metadata"]["resourceVersion"] if now else None
            watch = Watch()
            try:
                for event in watch.stream(
                    self._custom.list_namespaced_custom_object,
                    GROUP,
                    VERSION,
                    self.namespace,
                    SERVICES,
                    field_selector=f"metadata.name={name}",
                    resource_version=seen,
                    timeout_seconds=max(1, min(30, int(left))),
                    _request_timeout=_SECONDS + 5,
                ):
                    thing = None if event["type"] == "DELETED" else event["object"]
                    if until(thing):
                        return thing
            except (ApiException, urllib3.exceptions.HTTPError):
                time.sleep(min(_PAUSE, max(0.0, left)))
            finally:
                watch.stop()

    # ------------------------------------------------------------------------------------------- around the objects

    def definition(self) -> JsonDict | None:
        """The CRD of InferenceServices; None where it is not installed."""
        with _refusing(f"read the definition {CRD}"):
            found: JsonDict | None = self._missing_is_none(
                lambda: self._api.call_api(
                    f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD}",
                    "GET",
                    header_params={"Accept": "application/json"},
                    response_type="object",
                    auth_settings=["BearerToken"],
                    _return_http_data_only=True,
                    _request_timeout=_SECONDS,
                )
            )
        return found

    def may(self, verb: str, resource: str, group: str = GROUP) -> bool:
        """Whether this account has a right in the namespace; ``resource`` may name a part, ``pods/proxy``."""
        from kubernetes import client

        plural, _, part = resource.partition("/")
        asked = client.V1ResourceAttributes(
            verb=verb, resource=plural, subresource=part or None, group=group, namespace=self.namespace
        )
        review = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=asked))
        with _refusing("ask for its rights"):
            answer = _patiently(
                lambda: self._rights.create_self_subject_access_review(review, _request_timeout=_SECONDS)
            )
        return bool(answer.status.allowed)

    def quotas(self) -> dict[str, tuple[str, str]]:
        """Resource of a ResourceQuota → (used, hard)."""
        with _refusing("read resourcequotas"):
            found = _patiently(
                lambda: self._core.list_namespaced_resource_quota(self.namespace, _request_timeout=_SECONDS)
            )
        return {
            name: ((quota.status.used or {}).get(name, "0"), hard)
            for quota in found.items
            if quota.status
            for name, hard in (quota.status.hard or {}).items()
        }

    def pods(self, app: str) -> dict[str, str]:
        """The ready pods of a predictor, by the label that KServe gives them: name → address."""
        with _refusing("list pods"):
            found = _patiently(
                lambda: self._core.list_namespaced_pod(
                    self.namespace, label_selector=f"app={app}", _request_timeout=_SECONDS
                )
            )
        return {
            pod.metadata.name: pod.status.pod_ip or ""
            for pod in found.items
            if any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions or ())
        }

    @cached_property
    def verify(self) -> ssl.SSLContext | bool:
        """What addresses are verified with: the authority of the configuration, where it names one."""
        settings = self._api.configuration
        if not settings.verify_ssl:
            return False
        return ssl.create_default_context(cafile=settings.ssl_ca_cert or None)

    @property
    def headers(self) -> dict[str, str]:
        """What is sent to addresses from outside: this account's token."""
        header: JsonDict = {}
        if not self.inside:
            self._api.update_params_for_auth(header, [], ["BearerToken"])
        return dict(header)

    def address(self, kind: Kind, name: str, port: int, inside: str = "") -> str:
        """The base address of a Service or pod.

        In a pod that is the Service's own name, or the pod's address ``inside``; from outside the API server's proxy.
        """
        if self.inside:
            return f"http://{inside or f'{name}.{self.namespace}.svc'}:{port}"
        return f"{self._api.configuration.host}/api/v1/namespaces/{self.namespace}/{kind}/{name}:{port}/proxy"

    def _missing_is_none(self, ask: Callable[[], Any]) -> Any:
        from kubernetes.client.exceptions import ApiException

        try:
            return _patiently(ask)
        except ApiException as error:
            if error.status == _NOT_FOUND:
                return None
            raise


def _patiently(ask: Callable[[], Any]) -> Any:
    """What ``ask`` returns; a broken connection, 429 and 5xx are tried again."""
    from kubernetes.client.exceptions import ApiException

    def attempt() -> Any:
        try:
            return ask()
        except ApiException as error:
            if not _passes(error):
                raise
            raise Again(error) from error
        except urllib3.exceptions.HTTPError as error:
            raise Again(error) from error

    return keep_asking(attempt, PATIENCE_SECONDS)


def _passes(error: Any) -> bool:
    return error.status in (0, 429) or error.status >= 500


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """The client's errors as sentences."""
    from kubernetes.client.exceptions import ApiException

    try:
        yield
    except ApiException as error:
        told = _message(error)
        if error.status == _CONFLICT:
            raise ConflictError(f"cannot {what}: {told}") from error
        if error.status == _FORBIDDEN:
            raise ForbiddenError(
                f"this account may not {what} ({told}); bind it to the chart's Role, pipeline.account of the chart"
            ) from error
        if _passes(error):
            raise UnreachableError(f"cannot {what}: the API server fails ({error.status}: {told})") from error
        raise ReleaseError(f"cannot {what}: {told}") from error
    except urllib3.exceptions.HTTPError as error:
        raise UnreachableError(f"cannot {what}: the API server cannot be reached ({error})") from error


def _message(error: Any) -> str:
    import json

    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)
