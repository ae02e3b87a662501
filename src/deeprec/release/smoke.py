"""The smoke test: a new version is asked on its own Service, before users are.

Both protocols, known, unknown and empty histories, filters, the version that answers, the bundle's check answers, and a
few dozen requests whose times and paths are set beside the stable version's.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from deeprec.bundle.answers import CheckAnswer, read_answers
from deeprec.bundle.bundle import Bundle
from deeprec.config import SmokeConfig
from deeprec.errors import ReleaseError
from deeprec.release.asking import ask
from deeprec.release.cluster import Cluster
from deeprec.types import JsonDict

_K = 5
_SECONDS = 60.0
_UNKNOWN = "release-smoke-test"


class Door:
    """A Service of a predictor, asked over HTTP. Close it after use."""

    def __init__(self, cluster: Cluster, service: str) -> None:
        self.service = service
        self._client = httpx.Client(headers=cluster.headers, verify=cluster.verify, timeout=_SECONDS)
        self._base = cluster.address("services", service, 80)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, path: str) -> httpx.Response:
        """What a path answers.

        Raises:
            ReleaseError: it cannot be reached, or refuses.
        """
        return ask(self._client, self.service, self._client.build_request("GET", f"{self._base}{path}"))

    def post(self, path: str, body: JsonDict) -> JsonDict:
        """What a path answers to a body.

        Raises:
            ReleaseError: it cannot be reached, or refuses.
        """
        request = self._client.build_request("POST", f"{self._base}{path}", json=body)
        found: JsonDict = ask(self._client, self.service, request).json()
        return found

    def predict(self, model: str, instances: Sequence[JsonDict]) -> list[JsonDict]:
        """Answers by the V1 protocol."""
        return list(self.post(f"/v1/models/{model}:predict", {"instances": list(instances)})["predictions"])

    def infer(self, model: str, instance: JsonDict) -> JsonDict:
        """An answer by the V2 protocol: a request and its answer are each a text of JSON."""
        tensor = {"name": "request", "shape": [1], "datatype": "BYTES", "data": [json.dumps(instance)]}
        answer = self.post(f"/v2/models/{model}/infer", {"inputs": [tensor]})
        found: JsonDict = json.loads(answer["outputs"][0]["data"][0])
        return found


@dataclass(frozen=True)
class Smoked:
    """What a smoke test found: why it failed, nothing where it passed, and figures."""

    failures: tuple[str, ...]
    figures: JsonDict

    @property
    def sentence(self) -> str:
        """The first of the failures, or what was seen."""
        if self.failures:
            more = f" (and {len(self.failures) - 1} more)" if len(self.failures) > 1 else ""
            return f"{self.failures[0]}{more}"
        return ", ".join(f"{name} {value}" for name, value in self.figures.items() if value is not None)


def smoke(
    door: Door, model: str, bundle: Bundle, settings: SmokeConfig, *, stable: Door | None, kind: str = "recommender"
) -> Smoked:
    """Ask a new version, and the stable one beside it where there is one.

    Args:
        model: the name that both give their model.
        bundle: an index is enough.
        kind: ``recommender`` or ``trm``, whose server has the TRM alone.

    Raises:
        ReleaseError: it cannot be asked at all.
    """
    failures: list[str] = []
    figures: JsonDict = {}
    for part in (_ready, _protocols, _answers, _filters):
        failures += part(door, model, bundle)
    if not failures:
        trm = model if kind == "trm" else f"{model}-trm"
        failures += _held_to_lists(door, trm, bundle, settings, figures)
        if kind == "recommender":
            failures += _held_to_policy(door, model, bundle, settings, figures)
        failures += _beside(door, stable, model, bundle, settings, figures)
    return Smoked(tuple(failures), figures)


def smoke_policy(door: Door) -> Smoked:
    """Ask a policy's server, vLLM's, for a completion."""
    models = [one["id"] for one in door.get("/v1/models").json().get("data", ())]
    if not models:
        return Smoked((f"{door.service} serves no model",), {})
    answer = door.post("/v1/completions", {"model": models[0], "prompt": "History:", "max_tokens": 4})
    choices = answer.get("choices") or []
    return Smoked(() if choices else (f"{door.service} completes nothing",), {"completions": len(choices)})


def _ready(door: Door, model: str, bundle: Bundle) -> Iterator[str]:
    for path in ("/v2/health/ready", f"/v2/models/{model}/ready", f"/v1/models/{model}"):
        try:
            door.get(path)
        except ReleaseError as error:
            yield str(error)


def _protocols(door: Door, model: str, bundle: Bundle) -> Iterator[str]:
    [first] = door.predict(model, [{"user_id": _known(bundle), "k": _K}])
    if first["bundle"] != bundle.version:
        yield f"{door.service} answers with version {first['bundle']}, and is to be {bundle.version}"
    if len(door.infer(model, {"user_id": _known(bundle), "k": _K})["items"]) != len(first["items"]):
        yield f"{door.service} answers the V2 protocol otherwise than V1"


def _answers(door: Door, model: str, bundle: Bundle) -> Iterator[str]:
    k = min(_K, len(bundle.catalogue))
    asked: dict[str, JsonDict] = {
        "a known user": {"user_id": _known(bundle), "k": k},
        "an unknown user": {"user_id": _UNKNOWN, "k": k},
        "an empty history": {"history": [], "k": k},
    }
    for name, answer in zip(asked, door.predict(model, list(asked.values())), strict=True):
        ids = [item["id"] for item in answer["items"]]
        if len(set(ids)) != k:
            yield f"{door.service} answers {name} with {len(set(ids))} items instead of {k}"
        elif not all(item in bundle.catalogue for item in ids):
            yield f"{door.service} answers {name} with items that are not in the catalogue"


def _filters(door: Door, model: str, bundle: Bundle) -> Iterator[str]:
    excluded = [item.item_id for item in bundle.catalogue.items[:3]]
    [answer] = door.predict(model, [{"history": [], "k": _K, "exclude": excluded}])
    if {item["id"] for item in answer["items"]} & set(excluded):
        yield f"{door.service} recommends what a request excludes"
    for column, value in _filterable(bundle):
        [answer] = door.predict(model, [{"history": [], "k": 1, "filters": [{"column": column, "value": value}]}])
        for one in answer["items"]:
            if value not in _values(bundle.catalogue[one["id"]].attributes.get(column)):
                yield f"{door.service} recommends {one['id']}, which the filter {column} = {value} leaves out"


def _held_to_lists(door: Door, model: str, bundle: Bundle, settings: SmokeConfig, figures: JsonDict) -> Iterator[str]:
    checks = read_answers(bundle.index)
    worst, differing = 0.0, 0
    for check, answer in _asked(door, model, checks):
        told = dict(check.trm)
        found = {item["id"]: item["score"] for item in answer["items"]}
        gap = max((abs(found[item] - told[item]) for item in found.keys() & told.keys()), default=0.0)
        differing += not _same_list(check, found, settings.max_score_gap)
        worst = max(worst, gap)
    figures |= {"check answers": len(checks), "largest score gap": round(worst, 6), "lists that differ": differing}
    if worst > settings.max_score_gap or differing:
        yield (
            f"the TRM of {door.service} lists other items than the bundle's for {differing} of {len(checks)} check "
            f"answers, scores apart by {worst:.2g} at most; {settings.max_score_gap:g} is allowed"
        )


def _held_to_policy(door: Door, model: str, bundle: Bundle, settings: SmokeConfig, figures: JsonDict) -> Iterator[str]:
    checks = [one for one in read_answers(bundle.index) if one.policy]
    if bundle.serve != "policy" or not checks:
        return
    overlaps = []
    for check, answer in _asked(door, model, checks):
        if answer["path"] == "policy":
            kept = set(check.policy or ())
            overlaps.append(len(kept & {item["id"] for item in answer["items"]}) / len(kept))
    mean = statistics.fmean(overlaps) if overlaps else 0.0
    figures |= {"answered by the policy": f"{len(overlaps)} of {len(checks)}", "overlap": round(mean, 3)}
    if mean < settings.min_overlap:
        yield (
            f"the policy of {door.service} answers {len(overlaps)} of {len(checks)} check answers, with a mean overlap "
            f"of {mean:.2f}; {settings.min_overlap:g} is needed"
        )


def _beside(
    door: Door, stable: Door | None, model: str, bundle: Bundle, settings: SmokeConfig, figures: JsonDict
) -> Iterator[str]:
    asked: list[JsonDict] = [{"history": list(one.history), "k": _K} for one in read_answers(bundle.index)]
    asked = asked or [{"history": [], "k": _K}]
    doors = [door] if stable is None else [door, stable]
    seconds: list[list[float]] = [[] for _ in doors]
    by_policy = [0] * len(doors)
    for count in range(settings.requests):  # in turn, so that a slow moment is both sides'
        for place, one in enumerate(doors):
            started = time.perf_counter()
            [answer] = one.predict(model, [asked[count % len(asked)]])
            seconds[place].append(time.perf_counter() - started)
            by_policy[place] += answer["path"] == "policy"
    p99 = [sorted(one)[max(0, -(-len(one) * 99 // 100) - 1)] * 1000 for one in seconds]
    figures |= {"p99 ms": round(p99[0], 1), "by the policy": round(by_policy[0] / settings.requests, 3)}
    if stable is not None:
        figures |= {"p99 ms of the stable": round(p99[1], 1)}
        if p99[0] > settings.max_p99_ratio * p99[1]:
            yield (
                f"p99 of {door.service} is {p99[0]:.0f} ms, the stable one's {p99[1]:.0f}: more than "
                f"{settings.max_p99_ratio:g} times"
            )


def _asked(door: Door, model: str, checks: Sequence[CheckAnswer]) -> Iterator[tuple[CheckAnswer, JsonDict]]:
    for check in checks:
        k = len(check.policy or check.trm)
        [answer] = door.predict(model, [{"history": list(check.history), "k": k}])
        yield check, answer


def _same_list(check: CheckAnswer, found: dict[str, float], gap: float) -> bool:
    """Whether the same items were listed; where the last ones' scores are as good as level, either may be there."""
    told = dict(check.trm)
    edge = min(told.values(), default=0.0) + gap
    return all(told[item] <= edge for item in told.keys() - found.keys()) and all(
        found[item] <= edge for item in found.keys() - told.keys()
    )


def _known(bundle: Bundle) -> str:
    return str(bundle.info.get("example_user") or _UNKNOWN)


def _filterable(bundle: Bundle) -> list[tuple[str, Any]]:
    """Columns that can be filtered on, two at most, each with a value that an item has."""
    found: dict[str, Any] = {}
    for item in bundle.catalogue.items[:50]:
        for column, told in item.attributes.items():
            if _values(told):
                found.setdefault(column, _values(told)[0])
    return list(found.items())[:2]


def _values(told: Any) -> list[Any]:
    """The values of an attribute: several in one cell are joined by ``|``."""
    return told.split("|") if isinstance(told, str) else [] if told is None else [told]
