"""The one configuration tree, read from YAML and overridable on the command line (``--set section.key=value``).

Each section is what one group of pipeline tasks reads, and is handed to those tasks alone, so that a change of one
section leaves the others' results valid. Unknown keys are refused. Committed profiles are in ``configs/``.
"""

from deeprec.config.data import ChecksConfig, DataConfig, FeaturesConfig, SampleConfig, TextConfig
from deeprec.config.drift import DriftConfig
from deeprec.config.explore import EngineConfig, ExploreConfig, RewardsConfig, StageRewards
from deeprec.config.operation import (
    BundleConfig,
    CompareConfig,
    DoorsConfig,
    EvaluationConfig,
    EvaluationGate,
    PriceConfig,
    RequestLogConfig,
    ServingConfig,
)
from deeprec.config.pods import ClaimMount, GpuPool, PipelineConfig, PodTemplate
from deeprec.config.policy import (
    GenerationConfig,
    HealthConfig,
    HistoriesConfig,
    LoraConfig,
    ParallelConfig,
    PolicyConfig,
    SelectConfig,
    StageConfig,
    StageGate,
    TinyConfig,
    WarmStartConfig,
)
from deeprec.config.release import RampConfig, ReleaseConfig, SmokeConfig
from deeprec.config.schedule import ScheduleConfig
from deeprec.config.section import Positive, Section, Share
from deeprec.config.tree import Config, apply_override, load_config, parse_config
from deeprec.config.trm import IndexConfig, TrmConfig, TrmGate

__all__ = [
    "BundleConfig",
    "ChecksConfig",
    "ClaimMount",
    "CompareConfig",
    "Config",
    "DataConfig",
    "DoorsConfig",
    "DriftConfig",
    "EngineConfig",
    "EvaluationConfig",
    "EvaluationGate",
    "ExploreConfig",
    "FeaturesConfig",
    "GenerationConfig",
    "GpuPool",
    "HealthConfig",
    "HistoriesConfig",
    "IndexConfig",
    "LoraConfig",
    "ParallelConfig",
    "PipelineConfig",
    "PodTemplate",
    "PolicyConfig",
    "Positive",
    "PriceConfig",
    "RampConfig",
    "ReleaseConfig",
    "RequestLogConfig",
    "RewardsConfig",
    "SampleConfig",
    "ScheduleConfig",
    "Section",
    "SelectConfig",
    "ServingConfig",
    "Share",
    "SmokeConfig",
    "StageConfig",
    "StageGate",
    "StageRewards",
    "TextConfig",
    "TinyConfig",
    "TrmConfig",
    "TrmGate",
    "WarmStartConfig",
    "apply_override",
    "load_config",
    "parse_config",
]
