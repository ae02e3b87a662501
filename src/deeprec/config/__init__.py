"""The one configuration tree, read from YAML and overridable on the command line (``--set section.key=value``).

Each section is what one group of pipeline tasks reads, and is handed to those tasks alone, so that a change of one
section leaves the others' results valid. Unknown keys are refused. Committed profiles are in ``configs/``.
"""

from deeprec.config.data import ChecksConfig, DataConfig, FeaturesConfig, SampleConfig, TextConfig
from deeprec.config.explore import EngineConfig, ExploreConfig, RewardsConfig, StageRewards
from deeprec.config.operation import (
    BundleConfig,
    DoorsConfig,
    EvaluationConfig,
    EvaluationGate,
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
from deeprec.config.section import Positive, Section, Share
from deeprec.config.tree import Config, apply_override, load_config, parse_config
from deeprec.config.trm import IndexConfig, TrmConfig, TrmGate

__all__ = [
    "BundleConfig",
    "ChecksConfig",
    "ClaimMount",
    "Config",
    "DataConfig",
    "DoorsConfig",
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
    "RequestLogConfig",
    "RewardsConfig",
    "SampleConfig",
    "Section",
    "SelectConfig",
    "ServingConfig",
    "Share",
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
