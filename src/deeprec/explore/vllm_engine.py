"""vLLM in this process as a ``Policy`` (the extra ``gpu``). What it runs inside of vLLM is in ``vllm_rules``.

vLLM is handed token ids and returns token ids: its own tokenizer is not loaded, since it would read the tiny policy's
titles with Qwen2's pre-tokenizer. Prefix caching keeps what a turn has read for the next. Log-probabilities are those
of the distribution sampled from; greedy ones are the model's own. A row's seed fixes its samples on one machine with
one set of settings; rows without a seed are sampled faster.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from deeprec.config import EngineConfig
from deeprec.errors import PolicyError
from deeprec.explore.sequences import Request, SequenceGeneration
from deeprec.explore.tokens import TokenizedPolicy
from deeprec.types import Generation, Segment

RULE_ARGUMENT = "deeprec_rule"
"""The extra argument of a request by which ``vllm_rules`` is told its rule."""


class VllmPolicy(TokenizedPolicy):
    """A ``vllm.LLM`` and the policy's own tokenizer."""

    def __init__(self, llm: Any, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self._llm = llm
        self._longest = int(llm.llm_engine.model_config.max_model_len)

    @property
    def longest(self) -> int:
        """The sequences that vLLM keeps room for."""
        return self._longest

    def start(self, prompts: Sequence[Sequence[int]], *, seed: int | None = None) -> Generation:
        """Begin a batch. A prompt of no tokens is refused with PolicyError."""
        return SequenceGeneration(prompts, seed, self._longest, self._complete)

    def close(self) -> None:
        """Stop vLLM, so that what it held of the accelerator is free for whoever comes next."""
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        gc.collect()

    def _complete(self, requests: Sequence[Request], stop_ids: AbstractSet[int], temperature: float) -> list[Segment]:
        vllm = _vllm()
        prompts = [{"prompt_token_ids": list(one.tokens)} for one in requests]
        settings = [_settings(vllm, one, sorted(stop_ids), max(temperature, 0.0)) for one in requests]
        try:
            outputs = self._llm.generate(prompts, settings, use_tqdm=False)
        except (ValueError, RuntimeError) as error:
            raise PolicyError(f"vLLM cannot generate: {error}; lower explore.batch_size or its memory use") from error
        return [_segment(output.outputs[0]) for output in outputs]


def load_vllm(path: Path, tokenizer: Any, engine: EngineConfig) -> VllmPolicy:
    """Start vLLM on a policy directory; it holds its share of the accelerator's memory as long as the policy lives.

    Raises:
        PolicyError: vLLM is not installed, or cannot serve the directory as configured.
    """
    vllm = _vllm()
    try:
        llm = vllm.LLM(
            model=str(path),
            skip_tokenizer_init=True,
            dtype=engine.dtype,
            tensor_parallel_size=engine.tensor_parallel,
            gpu_memory_utilization=engine.gpu_memory_utilization,
            max_model_len=engine.max_model_len or None,
            enforce_eager=engine.enforce_eager,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise PolicyError(
            f"vLLM cannot serve the policy in {path}: {error}; see explore.engine, or set its kind to transformers"
        ) from error
    return VllmPolicy(llm, tokenizer)


def _settings(vllm: Any, request: Request, stop_ids: list[int], temperature: float) -> Any:
    """Untruncated sampling that stops at ``stop_ids`` alone, whatever the model's generation config adds."""
    return vllm.SamplingParams(
        temperature=temperature,
        seed=request.seed if temperature > 0 else None,
        max_tokens=request.limit,
        stop_token_ids=stop_ids,
        ignore_eos=True,
        include_stop_str_in_output=True,
        logprobs=0,
        detokenize=False,
        extra_args={RULE_ARGUMENT: request.rule} if request.rule else None,
    )


def _segment(output: Any) -> Segment:
    tokens = tuple(int(token) for token in output.token_ids)
    logprobs = tuple(float(found[token].logprob) for token, found in zip(tokens, output.logprobs or (), strict=False))
    return Segment(tokens, logprobs)


def _vllm() -> Any:
    try:
        import vllm  # type: ignore[import-not-found]
    except ImportError as error:
        raise PolicyError(
            f"explore.engine.kind is 'vllm', and vLLM cannot be imported ({error}); install deeprec[gpu], or set the "
            f"kind to 'transformers' or 'server'"
        ) from error
    return vllm
