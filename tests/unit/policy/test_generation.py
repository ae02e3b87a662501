"""What generates while a stage trains: the model itself for real, vLLM by what TRL and we rely on of one another."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from deeprec.config import EngineConfig, GenerationConfig, PolicyConfig
from deeprec.explore.engine import TransformersPolicy
from deeprec.policy.arguments import arguments
from deeprec.policy.generation import TrainingEngine
from tests.unit.policy import toy


class Llm:
    """vLLM as far as a rollout batch touches it."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=64))

    def wake_up(self, tags: list[str]) -> None:
        self.told.append(f"wake {' '.join(tags)}")

    def sleep(self, level: int) -> None:
        self.told.append(f"sleep {level}")


def beside(*, sleeps: bool) -> Any:
    """A trainer with vLLM beside it."""
    _, tokenizer = toy.build()
    generation = SimpleNamespace(llm=Llm(), enable_sleep_mode=sleeps)
    return SimpleNamespace(vllm_generation=generation, processing_class=tokenizer, _last_loaded_step=3)


def test_the_trained_model_generates_without_dropout_and_trains_on() -> None:
    model, tokenizer = toy.build()
    model.train()
    trainer = SimpleNamespace(model=model, processing_class=tokenizer)
    with TrainingEngine(GenerationConfig()).rolling(trainer) as policy:
        assert not model.training
        assert policy.model is model  # type: ignore[attr-defined]
        [segment] = policy.start([toy.PROMPT], seed=0).generate(
            [0], stop_ids=frozenset(), max_new_tokens=3, temperature=1.0
        )
        assert len(segment.token_ids) == 3
    assert model.training


@pytest.mark.parametrize("sleeps", [True, False])
def test_vllm_is_awake_for_a_batch_and_is_sent_its_weights_anew(sleeps: bool) -> None:
    trainer = beside(sleeps=sleeps)
    told = trainer.vllm_generation.llm.told
    with TrainingEngine(GenerationConfig(engine="vllm")).rolling(trainer) as policy:
        assert told == (["wake kv_cache"] if sleeps else [])
        assert policy.encode("5") == [5]
    assert told == (["wake kv_cache", "sleep 2"] if sleeps else [])
    assert trainer._last_loaded_step == (-1 if sleeps else 3)


def test_vllm_sleeps_after_a_batch_that_failed() -> None:
    trainer = beside(sleeps=True)
    with (
        pytest.raises(RuntimeError, match="stopped"),
        TrainingEngine(GenerationConfig(engine="vllm")).rolling(trainer),
    ):
        raise RuntimeError("stopped")
    assert trainer.vllm_generation.llm.told[-1] == "sleep 2"


def test_a_server_is_asked_in_tokens_after_process_0_has_sent_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[Any] = []

    def connect(tokenizer: Any, engine: EngineConfig) -> str:
        order.append(engine)
        return "server"

    monkeypatch.setattr("deeprec.explore.server_engine.ServerPolicy", connect)
    accelerator = SimpleNamespace(wait_for_everyone=lambda: order.append("waited"))
    trainer = SimpleNamespace(accelerator=accelerator, processing_class=None)
    engine = TrainingEngine(GenerationConfig(engine="server", url="http://rollouts:8000", timeout=9))
    for _ in range(2):
        with engine.rolling(trainer) as policy:
            assert policy == "server"
    asked = EngineConfig(kind="server", url="http://rollouts:8000", timeout=9, prompts="tokens")
    assert order == ["waited", asked, "waited"]


def test_trl_sends_the_weights_before_it_asks_for_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each update that lies between, and again when we have said that what was sent is gone."""

    class Asked(Exception):
        pass

    order: list[str] = []

    def rollout(prompts: list[str], trainer: Any) -> None:
        order.append("rollouts")
        raise Asked

    monkeypatch.setattr("trl.trainer.grpo_trainer.profiling_context", lambda *_: nullcontext())
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"), model=SimpleNamespace(training=True), rollout_func=rollout,
        use_vllm=True, vllm_generation=SimpleNamespace(sync_weights=lambda: order.append("weights")),
        state=SimpleNamespace(global_step=2), _last_loaded_step=-1,
    )  # fmt: skip

    def ask() -> list[str]:
        order.clear()
        with pytest.raises(Asked):
            GRPOTrainer._generate(trainer, ["u0@1"])
        return list(order)

    assert ask() == ["weights", "rollouts"]
    assert ask() == ["rollouts"]
    trainer._last_loaded_step = -1
    assert ask() == ["weights", "rollouts"]
    trainer.state.global_step = 4
    assert ask() == ["weights", "rollouts"]


class Beside:
    """In place of TRL's own: vLLM is a copy of the model that has the weights it was last sent."""

    def __init__(self, model: Any, processing_class: Any, enable_sleep_mode: bool, **_: Any) -> None:
        self.trained, self.enable_sleep_mode = model, enable_sleep_mode
        self.llm = Llm()
        self.llm.policy = TransformersPolicy(copy.deepcopy(model), processing_class)  # type: ignore[attr-defined]
        with torch.no_grad():
            self.llm.policy.model.lm_head.weight.zero_()  # type: ignore[attr-defined]

    def sync_weights(self) -> None:
        self.llm.told.append("weights")
        self.llm.policy.model.load_state_dict(self.trained.state_dict())  # type: ignore[attr-defined]


def test_a_stage_trains_on_what_vllm_generates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real trainer: corrected losses, rows of different lengths, and as if the model had generated."""
    told: list[list[str]] = []

    def policy_of(llm: Llm, tokenizer: Any) -> Any:
        told.append(llm.told)
        return llm.policy  # type: ignore[attr-defined]

    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Beside)
    monkeypatch.setattr("deeprec.explore.vllm_engine.VllmPolicy", policy_of)
    with_vllm = PolicyConfig(generation=GenerationConfig(engine="vllm"))
    quiet = {"progress": lambda line: None}
    model, records, seen = toy.train(tmp_path / "vllm", toy.STAGE, policy=with_vllm, **quiet)  # type: ignore[arg-type]
    alone, expected, keys = toy.train(tmp_path / "alone", toy.STAGE, **quiet)  # type: ignore[arg-type]
    assert seen == keys
    assert told[0] == ["weights", "wake kv_cache", "sleep 2"] * 2
    assert [record["reward"] for record in records] == [record["reward"] for record in expected]
    assert all(record["logprob_gap"] < 1e-5 for record in records)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("generation", "mode", "sleeps"),
    [
        (GenerationConfig(engine="vllm"), "colocate", True),
        (GenerationConfig(engine="vllm", sleep=False), "colocate", False),
        (GenerationConfig(engine="server", url="http://a:1"), "server", False),
    ],
)
def test_trl_is_asked_for_vllm_as_configured(
    generation: GenerationConfig, mode: str, sleeps: bool, tmp_path: Path
) -> None:
    given = arguments(toy.STAGE, PolicyConfig(generation=generation), {"good": 1.0}, 1.0, 640, 0, tmp_path)
    config = GRPOConfig(**given)
    assert (config.use_vllm, config.vllm_mode, config.vllm_enable_sleep_mode) == (True, mode, sleeps)
    assert config.vllm_max_model_length == 640
    assert config.vllm_importance_sampling_mode == "token_truncate"
    assert config.vllm_server_base_url == (generation.url or None)
    assert not GRPOConfig(**arguments(toy.STAGE, PolicyConfig(), {"good": 1.0}, 1.0, 0, 0, tmp_path)).use_vllm
