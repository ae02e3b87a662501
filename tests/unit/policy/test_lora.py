"""Adapters: what trains, what is written, and a stage that goes on; through the real trainer on the toy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deeprec.config import LoraConfig, PolicyConfig
from deeprec.errors import PolicyError
from deeprec.policy.health import StartModel
from deeprec.policy.lora import adapters, without_wrapper
from deeprec.policy.trl_adapter import newest_checkpoint
from tests.unit.policy import toy

LORA = PolicyConfig(lora=LoraConfig(rank=4, alpha=8.0))


def train(place: Path, steps: int, policy: PolicyConfig = LORA) -> tuple[Any, list[Any], list[list[str]]]:
    stage = toy.STAGE.model_copy(update={"steps": steps})
    return toy.train(place, stage, policy=policy, progress=lambda line: None)


def test_without_a_rank_there_are_no_adapters() -> None:
    assert adapters(LoraConfig()) is None


def test_a_missing_package_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PolicyError, match=r"policy\.lora\.rank is 2, and peft cannot be imported.*deeprec\[train\]"):
        adapters(LoraConfig(rank=2))


class TestTraining:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("peft", reason="the extra `lora` is not installed")

    def test_a_plain_model_comes_out_that_learned_in_its_linear_layers_alone(self, tmp_path: Path) -> None:
        start, _ = toy.build()
        model, records, _ = train(tmp_path, 8)
        before, after = start.state_dict(), model.state_dict()
        assert before.keys() == after.keys()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        layer = "model.layers.0."
        projections = {f"{layer}self_attn.{part}_proj.weight" for part in "qkvo"}
        assert changed == projections | {f"{layer}mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
        for name in changed:
            assert int(torch.linalg.matrix_rank((after[name] - before[name]).float(), atol=1e-5)) <= 4
        assert records[-1]["reward"] > records[0]["reward"]
        assert all(record["logprob_gap"] < 1e-4 for record in records)
        model.save_pretrained(tmp_path / "plain")
        assert "adapter" not in " ".join(path.name for path in (tmp_path / "plain").iterdir())
        again = type(model).from_pretrained(tmp_path / "plain")
        ids = torch.tensor([toy.PROMPT])
        torch.testing.assert_close(again(ids).logits, model(ids).logits)

    def test_the_start_is_the_model_without_its_adapters(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """No copy of it is kept, and its divergence is the one from a copy."""
        beside: list[tuple[float | None, float | None]] = []
        copied = StartModel(toy.build()[0], temperature=1.0, pad_id=0, most=32)
        measured = StartModel.divergence

        def both(start: StartModel, made: Any, trained: Any) -> float | None:
            assert start._copy is None
            found = measured(start, made, trained)
            beside.append((found, measured(copied, made, trained)))
            return found

        monkeypatch.setattr(StartModel, "divergence", both)
        _, records, _ = train(tmp_path, 4)
        assert [record["kl"] for record in records] == [found for found, _ in beside]
        assert records[0]["kl"] == pytest.approx(0, abs=1e-9)
        assert records[-1]["kl"] > 1e-4
        for found, copy in beside:
            assert found == pytest.approx(copy, abs=1e-7)

    def test_only_the_named_layers_get_adapters(self, tmp_path: Path) -> None:
        policy = PolicyConfig(lora=LoraConfig(rank=2, targets=("q_proj",)))
        start, _ = toy.build()
        model, _, _ = train(tmp_path, 1, policy)
        after = model.state_dict()
        changed = [name for name, value in start.state_dict().items() if not torch.equal(value, after[name])]
        assert changed == ["model.layers.0.self_attn.q_proj.weight"]

    def test_a_stage_goes_on_from_its_adapters(self, tmp_path: Path) -> None:
        whole, _, _ = train(tmp_path / "whole", 4)
        train(tmp_path / "cut", 2)
        last = newest_checkpoint(tmp_path / "cut")
        assert last is not None
        assert (last / "adapter_model.safetensors").is_file()
        resumed, records, keys = train(tmp_path / "cut", 4)
        assert len(keys) == 2
        assert [record["step"] for record in records] == [1, 2, 3, 4]
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(resumed.state_dict()[name], value, rtol=1e-5, atol=1e-6)

    def test_the_wrapper_is_taken_off_for_generating(self) -> None:
        import peft

        model, _ = toy.build()
        wrapped = peft.get_peft_model(model, adapters(LoraConfig(rank=2)))
        assert without_wrapper(wrapped) is model
        assert without_wrapper(model) is model
