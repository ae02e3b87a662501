"""Sections of what follows training: evaluation, bundle and servers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deeprec.config.section import Positive, Section, Share


class EvaluationGate(Section):
    """Thresholds on the test target, read once."""

    min_valid_rate: Share = 0.0
    """Least share of valid answers after stage 2."""
    min_ndcg_10_trm: Share = 0.0
    """Least NDCG@10 of the TRM alone."""
    min_ratio_to_trm: float = Field(1.0, ge=0)
    """The policy is served when its NDCG@10 reaches this multiple of the better TRM's, its own or the one trained on
    everything; below, the bundle serves the TRM."""


class PriceConfig(Section):
    """What an hour costs, in any one currency. Where both are 0, reports show seconds and no money."""

    cpu: float = Field(0.0, ge=0)
    """An hour of a task: its CPUs and memory, without accelerators."""
    accelerator: float = Field(0.0, ge=0)
    """An hour of one accelerator."""


class EvaluationConfig(Section):
    """Evaluation on the test target."""

    bootstrap_samples: Positive = 2000
    """Resamples of the paired bootstrap."""
    trajectories: int = Field(200, ge=1, le=1000)
    """Trajectories to browse in the report, some 5 kB each: a tenth of the highest reward and a tenth of the lowest; of
    the others half hits, a quarter invalid, the rest misses, evenly spaced."""
    price_per_hour: PriceConfig = PriceConfig()
    gate: EvaluationGate = EvaluationGate()


class CompareConfig(Section):
    """What a bundle has to show beside the live one, on the same held-out interactions, before it takes its place."""

    users: Positive = 2000
    """Users that both answer for, at most."""
    min_users: Positive = 200
    """Users below which nothing can be said."""
    margin: float = Field(0.0, ge=0)
    """Share of the live one's NDCG@10 that may be lost: worse is an interval of the difference wholly below that."""
    release_inconclusive: bool = False
    """Let a bundle of which nothing can be said take the live one's place."""


class BundleConfig(Section):
    """What the bundle holds, and the shelf that it is pushed to besides the run's own artifact."""

    uri: str = ""
    """The shelf: a directory or ``s3://bucket/prefix``. Empty is ``shelf`` in the run's directory where ``promote`` is
    set, and else pushes nothing."""
    promote: bool = False
    """Let the shelf's ``live``, which servers follow, name the bundle as soon as it is pushed. Off, ``candidate`` alone
    does."""
    compare: CompareConfig = CompareConfig()
    refit: bool = True
    """Where the TRM is served, train it anew on everything, each user's last items included, which no figure measures.
    Off, the TRM that was evaluated serves; under a policy it always does, being the one the policy was trained with."""


class RequestLogConfig(Section):
    """What is kept of the answers given."""

    path: str = ""
    """Directory of Parquet files; empty keeps nothing."""
    sample: Share = 1.0
    """Share of the users whose requests are kept; all or none of a user's."""
    hash_ids: bool = True
    """User ids are kept as keyed hashes; switch off only where the log may name people."""
    rows: Positive = 10_000
    """Rows after which a file is finished."""
    seconds: Positive = 60
    """Seconds after which a file is finished, full or not."""


class DoorsConfig(Section):
    """What a server offers besides its models and its health; a door that is shut answers 404."""

    page: bool = True
    """The analyst's page at ``/``, and what it asks: ``/v1/items``, ``/v1/facets``, ``/v1/overview``,
    ``/v1/explore``."""
    users: bool = True
    """``/v1/users``: everybody's ids."""
    history: bool = True
    """``/v1/history``: what a user has had."""
    metrics: bool = True
    """``/metrics``: figures for Prometheus."""
    events: bool = True
    """``/v1/events`` and the events' model: writes into anybody's history, where there is a feature store."""


class ServingConfig(Section):
    """The servers' addresses and limits."""

    host: str = "127.0.0.1"
    """Address to listen on; ``0.0.0.0`` or ``::`` for all."""
    port: int = Field(8080, ge=0, le=65535)
    """HTTP port; 0 takes a free one."""
    admin_port: int | None = Field(None, ge=0, le=65535)
    """HTTP port of the doors, which are then not on ``port``: for analysts and Prometheus, not for the public."""
    doors: DoorsConfig = DoorsConfig()
    name: str = Field("", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,99})?$")
    """Name of the server's first model, as KServe knows the InferenceService; empty is ``deeprec``, ``deeprec-trm`` or
    ``deeprec-events``. The recommender's others are called after it: ``NAME-trm`` and ``NAME-events``."""
    origins: tuple[str, ...] = ()
    """Origins (``https://shop.example``) whose pages may call this server from a browser; ``*`` for all."""
    hosts: tuple[str, ...] = ()
    """Names (``Host``) that this server answers to, ``*.example.org`` among them; empty is any, but on a loopback
    address only that address and ``localhost``, so that no page of another name reaches it through a browser."""
    events_token: str = ""
    """File with the token that whoever sends events names (``Authorization: Bearer``); empty asks for none."""
    drain_seconds: float = Field(0.0, ge=0)
    """How long a server that was told to stop is not ready but still takes new requests, until those who route to it
    look elsewhere."""
    stop_seconds: float = Field(0.0, ge=0)
    """How long after that accepted requests may take to be answered; 0 is as long as the largest deadline needs."""
    stuck_seconds: float = Field(60.0, gt=0)
    """A server whose model has been at one batch for so long is no longer alive, and is to be started again."""
    log_format: Literal["text", "json"] = "text"
    """Lines for people, or JSON objects for what collects logs."""
    deadline_ms: Positive = 1000
    """Default deadline of a recommendation; after it the TRM answers."""
    max_deadline_ms: Positive = 30000
    """Largest deadline a request may ask for."""
    max_k: Positive = 100
    """Largest k a request may ask for."""
    max_history: Positive = 2000
    """Longest history a request may carry."""
    max_instances: Positive = 32
    """Most requests in one body."""
    max_body_bytes: Positive = 262144
    """Largest request body."""
    max_waiting: Positive = 256
    """Requests being answered at a time, each of a body's counted; those beyond are refused with 429."""
    retry_after: Positive = 1
    """Seconds that a refused client is told to wait."""
    threads: Positive = 1
    """Threads that torch computes with, in the server, the policy's process and the text encoder's each."""
    batch: Positive = 64
    """Most requests that share one call of a model."""
    prepare: int = Field(10000, ge=0)
    """Users of the feature store, those with the newest interactions first, whose histories the TRM encodes before the
    server is ready or a new bundle serves: about 3 ms each, which their first requests would take otherwise."""
    store_share: Share = 0.2
    """Share of a request's time that the feature store may take; the user is answered as unknown after it."""
    text_share: Share = 0.2
    """Share of a request's time that its new phrases may take to be encoded, and of the encoder's time, over some
    seconds, that one client's may take while others use it too; what is beyond is left out."""
    client_header: str = ""
    """Header that names the client, for servers behind a proxy; empty takes the peer's address."""
    explorations: Positive = 64
    """Explorations waiting or running; beyond, the TRM answers."""
    grace_ms: Positive = 2000
    """A policy that has not given up this long after a request's deadline is stuck: its process is replaced."""
    policy_url: str = ""
    """Address of a policy server; empty runs the policy in a process beside the server."""
    policy_model: str = ""
    """The name that server gives the policy; empty takes the policy's fingerprint or ``deeprec-policy`` where one is
    listed, else the only model."""
    poll_seconds: float = Field(5.0, ge=0)
    """How often the bundle's address is looked at for a new one; 0 never."""
    cache: str = ""
    """Directory where the parts of bundles in object storage are kept; empty is ``~/.cache/deeprec``, or one in the
    temporary directory where there is no home to write in."""
    shadow: bool = False
    """Answer with the TRM, let the policy run beside, and only log what it would have answered."""
    log: RequestLogConfig = RequestLogConfig()

    @property
    def most_instances(self) -> int:
        """Requests that one body may hold: never more than are answered at a time."""
        return min(self.max_instances, self.max_waiting)

    @property
    def answer_seconds(self) -> float:
        """How long accepted requests may take after the drain: ``stop_seconds``, or what the largest deadline needs."""
        return self.stop_seconds or (self.max_deadline_ms + self.grace_ms) / 1000 + 5
