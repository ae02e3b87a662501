"""Section of releases: what a bundle becomes on KServe, and what it has to show before it serves everybody."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from deeprec.config.section import Positive, Section, Share


class SmokeConfig(Section):
    """What a canary has to show before anybody but the smallest share is answered by it."""

    requests: Positive = 50
    """Requests by which the share answered by the policy and the 99th percentile are measured, of each side."""
    max_score_gap: float = Field(1e-3, ge=0)
    """Largest difference of a score from the bundle's check answers, of which the TRM has to list the same items."""
    min_overlap: Share = 0.8
    """Least mean share of the items of a check answer of the policy that the canary answers too."""
    max_p99_ratio: float = Field(2.0, gt=0)
    """Largest ratio of the canary's 99th percentile to the stable one's, measured side by side."""


class RampConfig(Section):
    """What a canary has to show at each step, beside the one that serves."""

    steps: tuple[int, ...] = (1, 10, 50)
    """Per cent of the requests that it gets, one step after the other; the first while it becomes ready."""
    step_seconds: float = Field(300.0, ge=0)
    """Least time of a step."""
    min_requests: Positive = 200
    """Requests, of either side, below which a step is inconclusive and is waited for."""
    wait_seconds: float = Field(3600.0, ge=0)
    """Most time that an inconclusive step is waited for."""
    inconclusive: Literal["pass", "fail"] = "pass"
    """What is decided then."""
    max_error_share: Share = 0.01
    """Largest share of 5xx above the stable one's."""
    max_p99_ratio: float = Field(1.5, gt=0)
    """Largest ratio of its 99th percentile to the stable one's."""
    max_fallback_share: Share = 0.05
    """Largest share of answers that something else gave in place of what the bundle serves, above the stable one's."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not self.steps or any(not 0 < step < 100 for step in self.steps) or sorted(set(self.steps)) != [*self.steps]:
            raise ValueError(
                f"steps is {list(self.steps)}; name rising per cents between 1 and 99, such as [1, 10, 50]: a canary "
                f"of weight 0 has no pods, and everybody is what promotion is for"
            )
        return self


class ReleaseConfig(Section):
    """How a bundle reaches users: an InferenceService of KServe, canary first."""

    enabled: bool = False
    """Let the compiled pipeline release what it has published."""
    name: str = Field("deeprec", pattern=r"^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$")
    """The InferenceService, and the recommender's model."""
    namespace: str = ""
    """Where it is; empty is that of the pod, or of the current context."""
    runtime: str = ""
    """ServingRuntime of new versions; empty is the chart's of this version of deeprec, ``deeprec-recommender-…``."""
    service_account: str = "deeprec-serving"
    """Account of its pods."""
    replicas: Positive = 1
    """Least number of pods of a first release; later ones keep what is there."""
    timeout_seconds: Positive = 60
    """Seconds after which the gateway gives an answer up."""
    user: int = Field(1000, ge=0)
    """User of the pods; 0 leaves it to the cluster."""
    stop_seconds: Positive = 62
    """Seconds that a pod has for its end; ``deeprec serve recommender --print-pod`` says what it needs."""
    trm: bool = False
    """Release the TRM alone too, as the InferenceService ``NAME-trm``, by the same steps."""
    policy: bool = False
    """Policies run on vLLM, each version's as the InferenceService ``NAME-policy-VERSION``."""
    policy_runtime: str = ""
    """ServingRuntime of policies; empty is the chart's, ``deeprec-policy-…``."""
    strategy: Literal["canary", "replace"] = "canary"
    """``replace`` is for pools without room for one pod more: the old one ends before the new one starts. With
    ``policy`` that is the policy's, and the TRM answers meanwhile; without, nothing answers until the new one does."""
    approval: Literal["auto", "manual"] = "auto"
    """``manual`` stops before promotion and waits for ``deeprec release promote``."""
    approval_seconds: float = Field(86400.0, ge=0)
    """How long the pipeline waits for that, before it rolls back."""
    ready_seconds: float = Field(1800.0, gt=0)
    """How long a new pod may take to be ready."""
    soak_seconds: float = Field(600.0, ge=0)
    """How long the version before stays warm after promotion."""
    prometheus: str = ""
    """Address of Prometheus, whose figures of both sides are compared; empty asks the pods themselves."""
    smoke: SmokeConfig = SmokeConfig()
    ramp: RampConfig = RampConfig()

    @model_validator(mode="after")
    def _trm_has_no_policy(self) -> Self:
        if self.strategy == "replace" and self.trm:
            raise ValueError("strategy is 'replace', which names no room for one pod more; set trm to false beside it")
        return self
