"""The tree of all sections, and how it is read from YAML and overridden."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from deeprec.config.data import ChecksConfig, DataConfig, FeaturesConfig, TextConfig
from deeprec.config.drift import DriftConfig
from deeprec.config.explore import ExploreConfig, RewardsConfig
from deeprec.config.operation import BundleConfig, EvaluationConfig, ServingConfig
from deeprec.config.pods import PipelineConfig
from deeprec.config.policy import PolicyConfig
from deeprec.config.release import ReleaseConfig
from deeprec.config.schedule import ScheduleConfig
from deeprec.config.section import Section
from deeprec.config.trm import TrmConfig
from deeprec.errors import ConfigError


class Config(Section):
    """The whole tree."""

    name: str = Field("run", pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    """Name of the run: its directory under ``runs/`` and its pipeline run name."""
    seed: int = Field(0, ge=0)
    """The one seed."""
    data: DataConfig = DataConfig()
    checks: ChecksConfig = ChecksConfig()
    features: FeaturesConfig = FeaturesConfig()
    text: TextConfig = TextConfig()
    trm: TrmConfig = TrmConfig()
    explore: ExploreConfig = ExploreConfig()
    rewards: RewardsConfig = RewardsConfig()
    policy: PolicyConfig = PolicyConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    bundle: BundleConfig = BundleConfig()
    serving: ServingConfig = ServingConfig()
    pipeline: PipelineConfig = PipelineConfig()
    release: ReleaseConfig = ReleaseConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    drift: DriftConfig = DriftConfig()

    @model_validator(mode="after")
    def _prompt_fits(self) -> Self:
        if self.policy.model != "tiny" and self.explore.prompt == "compact":
            raise ValueError(
                f"explore.prompt is 'compact' but policy.model is {self.policy.model!r}; only the tiny policy is "
                f"taught the protocol by a warm start, so set explore.prompt to 'full'"
            )
        return self

    @model_validator(mode="after")
    def _processes_share_batches(self) -> Self:
        count = self.policy.parallel.processes
        for name in ("stage1", "stage2"):
            stage = getattr(self.policy, name)
            for key in ("prompts_per_step", "sequences_per_update"):
                if stage.steps and getattr(stage, key) % count:
                    raise ValueError(
                        f"policy.{name}.{key} is {getattr(stage, key)}, which the {count} processes of policy.parallel "
                        f"cannot share evenly; make it a multiple of {count}"
                    )
        return self


def load_config(path: str | Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a YAML profile and apply ``section.key=value`` overrides (values are YAML).

    Raises:
        ConfigError: the file cannot be read, an override is malformed, a key is unknown or a value is out of range.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}; name a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}; correct the file") from error
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a {type(raw).__name__}, not a mapping; see configs/quickstart.yaml")
    for override in overrides:
        apply_override(raw, override)
    return parse_config(raw, str(path))


def parse_config(raw: dict[str, Any], where: str) -> Config:
    """Check a mapping against the tree.

    Raises:
        ConfigError: naming ``where``, the key, the value and the rule for every mistake found.
    """
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_describe(item) for item in error.errors())) from error


def _describe(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "configuration"
    if item["type"] == "extra_forbidden":
        return f"unknown key {key}; remove it or correct its spelling"
    told = f"{key}: {item['msg'].removeprefix('Value error, ')}"
    # a section's own rule names what it is about; other values of the section may be secret
    if isinstance(item["input"], Mapping | Section):
        return told
    return f"{told} (got {item['input']!r:.80})"


def apply_override(raw: dict[str, Any], override: str, where: str = "--set") -> None:
    """Set one key of a raw tree as ``--set section.key=value`` says; the value is YAML.

    Raises:
        ConfigError: it is malformed, or goes through a value as if it were a section; the message begins with
            ``where``.
    """
    key, separator, text = (part.strip() for part in override.partition("="))
    if not separator or not key:
        raise ConfigError(f"{where} {override!r} is not of the form section.key=value, for example trm.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} {override!r}: the value is not valid YAML: {error}") from error
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{where} {override!r}: {parent} is a value, not a section")
    node[last] = value if text else ""
