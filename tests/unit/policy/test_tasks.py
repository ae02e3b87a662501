"""The policy's tasks one after another on the small sample: build, select, both stages; and a foreign model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from deeprec.config import (
    ExploreConfig,
    HistoriesConfig,
    PolicyConfig,
    RewardsConfig,
    SelectConfig,
    StageConfig,
    TinyConfig,
    TrmConfig,
    WarmStartConfig,
)
from deeprec.data.dataset import Dataset
from deeprec.data.splits import policy_examples
from deeprec.errors import ArtifactError, PolicyError
from deeprec.explore.loading import HISTORIES, load_policy
from deeprec.explore.opinion import read_histories
from deeprec.explore.protocol import MARKUP, TitleBook
from deeprec.explore.rollout import stop_ids
from deeprec.policy.build import add_markup, build_policy, read_curves, read_explore, warm_start_policy
from deeprec.policy.select import read_prompts
from deeprec.policy.stage import train_stage
from deeprec.store import read_artifact, write_artifact
from deeprec.trm.training import train
from tests.unit.policy.world import EXPLORE, TEXT, choose_prompts

STAGE = StageConfig(
    steps=2, prompts_per_step=4, rollouts=4, sequences_per_update=8, micro_batch=4, learning_rate=1e-3, save_every=1
)
POLICY = PolicyConfig(
    tiny=TinyConfig(width=32, layers=2, heads=2, inner=64),
    warm_start=WarmStartConfig(trajectories=300, epochs=6, batch_size=16, learning_rate=1e-2),
    select=SelectConfig(candidates=24, rollouts=2),
    stage1=STAGE,
    stage2=STAGE.model_copy(update={"kl": 0.05}),
)
REWARDS = RewardsConfig()
UPPER = "model.layers.2.self_attn.o_proj.weight"
"""What the layer above the two of ``POLICY`` adds, where there is one."""


def quiet(line: str) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def trm(sample_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("trm")
    train(sample_dataset, TrmConfig(width=32, layers=1, epochs=1), TEXT, 0, place / "trm", place / "trm.html")
    return place / "trm"


@pytest.fixture(scope="module")
def start(sample_dataset: Path, trm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("start") / "policy"
    build_policy(sample_dataset, trm, POLICY, EXPLORE, TEXT, 0, out, progress=quiet)
    return out


@pytest.fixture(scope="module")
def prompts(sample_dataset: Path, trm: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prompts") / "prompts"
    choose_prompts(sample_dataset, trm, start, POLICY, EXPLORE, REWARDS, TEXT, 0, out)
    return out


def weights(policy: Path) -> dict[str, torch.Tensor]:
    return dict(load_policy(policy).model.state_dict())


def test_the_start_is_a_hugging_face_directory(dataset: Dataset, start: Path) -> None:
    names = set(read_artifact(start, "policy").files)
    assert {"model.safetensors", "tokenizer.json", "config.json", "explore.json", "curves.json"} <= names
    assert read_explore(start) == EXPLORE
    curve = read_curves(start)
    assert curve[-1]["loss"] < curve[0]["loss"]
    actor = load_policy(start)
    assert actor.model.config.model_type == "qwen2"
    assert len(stop_ids(actor)) == 3
    assert all(len(actor.encode(title)) == 1 for title in TitleBook(dataset.catalogue).titles)


def test_a_changed_file_is_refused(start: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(start, copy)
    (copy / "explore.json").write_text("{}")
    with pytest.raises(ArtifactError):
        load_policy(copy)


def test_prompts_are_disjoint_examples_of_the_policy(dataset: Dataset, prompts: Path) -> None:
    examples = policy_examples(dataset)
    first, second = (read_prompts(prompts, stage, examples) for stage in ("stage1", "stage2"))
    assert first
    assert second
    assert not {example.key for example in first} & {example.key for example in second}
    assert pl.read_parquet(prompts.with_name("prompts.rollouts") / "trajectories.parquet").height == 48
    with pytest.raises(PolicyError, match="not among"):
        read_prompts(prompts, "stage1", [])


def test_a_stage_trains_and_reports(
    sample_dataset: Path, trm: Path, start: Path, prompts: Path, tmp_path: Path
) -> None:
    def stage(name: Any, before: Path, after: Path, seed: int = 0) -> Any:
        return train_stage(
            name, sample_dataset, trm, before, prompts, POLICY, EXPLORE, REWARDS, TEXT, seed, after,
            tmp_path / f"{after.name}.html", tmp_path / "checkpoints", progress=quiet,
        )  # fmt: skip

    verdict, metrics = stage("stage1", start, tmp_path / "one")
    assert verdict.passed
    assert 0 <= metrics["valid_rate"] <= 1
    assert {"mean_calls", "top_preference_share", "candidate_recall", "ndcg@10"} <= metrics.keys()
    curves = read_curves(tmp_path / "one")
    assert [record["step"] for record in curves] == [1, 2]
    assert {"format", "interaction", "diversity", "valid_rate", "entropy", "logprob_gap"} <= curves[0].keys()
    assert curves[0]["logprob_gap"] < 1e-3
    assert "<svg" in (tmp_path / "one.html").read_text()
    assert not (tmp_path / "checkpoints").exists()
    trained = weights(tmp_path / "one")
    assert any(not torch.equal(value, trained[name]) for name, value in weights(start).items())

    stage("stage1", start, tmp_path / "again")
    assert all(torch.equal(value, trained[name]) for name, value in weights(tmp_path / "again").items())
    stage("stage2", tmp_path / "one", tmp_path / "two")
    assert {"format", "listwise", "pointwise", "kl"} <= read_curves(tmp_path / "two")[0].keys()


def test_no_steps_copy_the_start_and_a_gate_can_fail(
    sample_dataset: Path, trm: Path, start: Path, tmp_path: Path
) -> None:
    gate = {"min_valid_rate": 1.0, "min_mean_calls": 9.0}
    idle = POLICY.model_copy(update={"stage1": StageConfig.model_validate({"steps": 0, "gate": gate})})
    learnt, chosen = tmp_path / "learnt", tmp_path / "prompts"
    with write_artifact(learnt, "policy") as work:
        for name in read_artifact(start, "policy").files:
            shutil.copyfile(start / name, work / name)
        (work / HISTORIES).write_bytes(b"weights after histories")
    choose_prompts(sample_dataset, trm, learnt, idle, EXPLORE, REWARDS, TEXT, 0, chosen)
    assert read_prompts(chosen, "stage1", []) == [], "a stage without steps has no prompts"
    verdict, _ = train_stage(
        "stage1", sample_dataset, trm, learnt, chosen, idle, EXPLORE, REWARDS, TEXT, 0,
        tmp_path / "out", tmp_path / "report.html", None, progress=quiet,
    )  # fmt: skip
    assert HISTORIES not in read_artifact(tmp_path / "out", "policy").files, "which is the start's alone"
    assert not verdict.passed
    assert "mean_calls" in verdict.reason
    assert (tmp_path / "report.html").is_file()
    before = weights(start)
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path / "out").items())
    assert json.loads((tmp_path / "out" / "curves.json").read_text()) == []


def foreign_model(place: Path) -> Path:
    """A random two-layer Llama with a byte-level tokenizer that knows no markup, as a hub directory."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator([], trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet))
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>").save_pretrained(place)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=raw.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=8192, tie_word_embeddings=False,
        )
    ).save_pretrained(place)  # fmt: skip
    return place


def test_any_causal_model_takes_the_same_path(sample_dataset: Path, trm: Path, tmp_path: Path) -> None:
    explore = ExploreConfig(
        prompt="full", items_per_call=5, answer_size=3, prompt_history=2, max_calls=2, max_new_tokens=8,
        max_context=4000, batch_size=16,
    )  # fmt: skip
    stage = STAGE.model_copy(update={"steps": 1, "prompts_per_step": 2, "sequences_per_update": 8, "micro_batch": 8})
    policy = POLICY.model_copy(
        update={
            "model": str(foreign_model(tmp_path / "base")),
            "select": SelectConfig(candidates=4, rollouts=2),
            "stage1": stage,
        }
    )
    start, prompts, out = tmp_path / "start", tmp_path / "prompts", tmp_path / "out"
    metrics = build_policy(sample_dataset, trm, policy, explore, TEXT, 0, start, progress=quiet)
    assert metrics["vocabulary"] == 257 + len(MARKUP)
    choose_prompts(sample_dataset, trm, start, policy, explore, REWARDS, TEXT, 0, prompts)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("deeprec.policy.stage.VALIDATION_USERS", 4)
        _, metrics = train_stage(
            "stage1", sample_dataset, trm, start, prompts, policy, explore, REWARDS, TEXT, 0,
            out, tmp_path / "report.html", progress=quiet,
        )  # fmt: skip
    assert metrics["valid_rate"] == 0
    assert read_curves(out)[0]["policy_tokens"] > 0


def test_markup_becomes_single_tokens_that_start_as_the_mean(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = foreign_model(tmp_path / "base")
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModelForCausalLM.from_pretrained(place)
    means = [model.get_input_embeddings().weight.mean(0), model.get_output_embeddings().weight.mean(0)]
    add_markup(model, tokenizer)
    for text in MARKUP:
        ids = tokenizer.encode(f"a{text}b", add_special_tokens=False)
        assert len(ids) == 3
        assert tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) == f"a{text}b"
        torch.testing.assert_close(model.get_input_embeddings().weight[ids[1]], means[0])
        torch.testing.assert_close(model.get_output_embeddings().weight[ids[1]], means[1])
    size = len(tokenizer)
    add_markup(model, tokenizer)
    assert len(tokenizer) == size


def test_a_model_that_is_not_there_is_one_message(sample_dataset: Path, trm: Path, tmp_path: Path) -> None:
    policy = POLICY.model_copy(update={"model": str(tmp_path / "nowhere")})
    with pytest.raises(PolicyError, match="cannot be loaded with transformers"):
        build_policy(sample_dataset, trm, policy, EXPLORE, TEXT, 0, tmp_path / "out", progress=quiet)
    assert not (tmp_path / "out").exists()


def test_a_warm_start_in_two_halves_is_the_one_at_a_stretch(sample_dataset: Path, trm: Path, tmp_path: Path) -> None:
    """Histories, then scripted explorations whose answers what was learnt from the histories has a say in."""
    histories = HistoriesConfig(passes=2, learning_rate=1e-2, rehearse=0.5)
    whole = WarmStartConfig(trajectories=40, epochs=1, judge="histories", histories=histories)

    def policy(warm_start: WarmStartConfig) -> PolicyConfig:
        tiny = POLICY.tiny.model_copy(update={"upper_layers": 1})
        return POLICY.model_copy(update={"warm_start": warm_start, "tiny": tiny})

    build_policy(sample_dataset, trm, policy(whole), EXPLORE, TEXT, 0, tmp_path / "whole", progress=quiet)
    first = whole.model_copy(update={"trajectories": 0})
    build_policy(sample_dataset, trm, policy(first), EXPLORE, TEXT, 0, tmp_path / "first", progress=quiet)
    second = whole.model_copy(update={"histories": HistoriesConfig(passes=0, rehearse=0.5)})
    warm_start_policy(
        sample_dataset, trm, tmp_path / "first", policy(second), EXPLORE, TEXT, 0, tmp_path / "second", progress=quiet
    )
    parts = weights(tmp_path / "second")
    assert all(torch.equal(weight, parts[name]) for name, weight in weights(tmp_path / "whole").items())
    after = weights(tmp_path / "first")
    for name in ("whole", "first", "second"):
        kept = read_histories(tmp_path / name)
        assert len(kept) > 10
        assert all(torch.equal(weight, after[parameter]) for parameter, weight in kept.items())
    curve = read_curves(tmp_path / "whole")
    assert list(dict.fromkeys(point["part"] for point in curve)) == ["histories", "warm start"]
    assert [point["step"] for point in curve] == sorted({point["step"] for point in curve})
    learnt = [point["loss"] for point in curve if point["part"] == "histories"]
    assert learnt[-1] < learnt[0]
    untouched, taught = (weights(tmp_path / name)[UPPER] for name in ("first", "second"))
    assert not untouched.any(), "histories pass by the upper layer"
    assert taught.any(), "which explorations teach"
    upper = TinyConfig(width=32, layers=2, upper_layers=2, heads=2)
    taller = policy(second).model_copy(update={"tiny": upper})
    with pytest.raises(PolicyError, match=r"has 3 layers, but policy\.tiny says 2 and 2 upper_layers"):
        warm_start_policy(
            sample_dataset, trm, tmp_path / "first", taller, EXPLORE, TEXT, 0, tmp_path / "taller", progress=quiet
        )
    nothing = policy(WarmStartConfig(trajectories=0))
    with pytest.raises(PolicyError, match="no scripted trajectory to learn from"):
        warm_start_policy(
            sample_dataset, trm, tmp_path / "first", nothing, EXPLORE, TEXT, 0, tmp_path / "nothing", progress=quiet
        )
    full = EXPLORE.model_copy(update={"prompt": "full"})
    with pytest.raises(PolicyError, match=r"continue the compact prompt.*histories\.passes and rehearse to 0"):
        build_policy(sample_dataset, trm, policy(first), full, TEXT, 0, tmp_path / "full", progress=quiet)


def test_a_judge_is_asked_by_a_policy_that_has_learnt_from_histories_alone(start: Path, tmp_path: Path) -> None:
    """It is refused before dataset and TRM are opened: here there are none."""
    policy = POLICY.model_copy(update={"warm_start": WarmStartConfig(trajectories=40, judge="histories")})
    nowhere, out = tmp_path / "nowhere", tmp_path / "out"
    cure = r"has learnt from no history, .*; set passes to 1 or more, or judge to 'lists'"
    with pytest.raises(PolicyError, match=f"passes is 0, but a new policy {cure}"):
        build_policy(nowhere, nowhere, policy, EXPLORE, TEXT, 0, out, progress=quiet)
    with pytest.raises(PolicyError, match=f"passes is 0, but the policy in .* {cure}"):
        warm_start_policy(nowhere, nowhere, start, policy, EXPLORE, TEXT, 0, out, progress=quiet)
    assert not out.exists()
