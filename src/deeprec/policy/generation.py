"""What generates the rollouts of a stage while it trains: the trained model itself, or vLLM with its present weights.

vLLM runs in every training process beside the trainer, or as a server elsewhere; either is started and sent weights by
TRL, and asked through the engines that evaluation uses too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deeprec.config import EngineConfig, GenerationConfig
from deeprec.policy.lora import without_wrapper
from deeprec.policy.sharding import whole
from deeprec.types import Policy


class TrainingEngine:
    """The engine of one stage, for one rollout batch after the other."""

    def __init__(self, generation: GenerationConfig) -> None:
        self._generation = generation
        self._server: Policy | None = None

    @contextmanager
    def rolling(self, trainer: Any) -> Iterator[Policy]:
        """The policy to roll a batch out with. TRL has sent vLLM the weights before; all processes enter together.

        Raises:
            PolicyError: the engine is not installed, or the server cannot be reached or does not speak in tokens.
        """
        if self._generation.engine == "trainer":
            with _the_model_itself(trainer) as policy:
                yield policy
        elif self._generation.engine == "vllm":
            with _beside_the_trainer(trainer) as policy:
                yield policy
        else:
            # Only process 0 sends weights; the others are not to ask before it is done.
            trainer.accelerator.wait_for_everyone()
            if self._server is None:
                self._server = self._connect(trainer.processing_class)
            yield self._server

    def _connect(self, tokenizer: Any) -> Policy:
        from deeprec.explore.server_engine import ServerPolicy

        where, timeout = self._generation.url, self._generation.timeout
        return ServerPolicy(tokenizer, EngineConfig(kind="server", url=where, timeout=timeout, prompts="tokens"))


@contextmanager
def _the_model_itself(trainer: Any) -> Iterator[Policy]:
    from deeprec.explore.engine import TransformersPolicy

    model = without_wrapper(trainer.model)
    training = trainer.model.training
    trainer.model.eval()
    try:
        with whole(trainer.model):
            yield TransformersPolicy(model, trainer.processing_class)
    finally:
        trainer.model.train(training)


@contextmanager
def _beside_the_trainer(trainer: Any) -> Iterator[Policy]:
    from deeprec.explore.vllm_engine import VllmPolicy

    beside = trainer.vllm_generation
    if beside.enable_sleep_mode:
        beside.llm.wake_up(tags=["kv_cache"])
    try:
        yield VllmPolicy(beside.llm, trainer.processing_class)
    finally:
        if beside.enable_sleep_mode:
            # Asleep it forgets its weights: TRL has to send them again, even if no update came between.
            beside.llm.sleep(level=2)
            trainer._last_loaded_step = -1
