"""Loading a policy artifact, and telling whether two hold the same policy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deeprec.config import EngineConfig, ExploreConfig, TinyConfig
from deeprec.errors import ArtifactError, PolicyError
from deeprec.explore.engine import TransformersPolicy
from deeprec.explore.loading import fingerprint, load_policy, open_policy, unwritable
from deeprec.markup import MARKUP
from deeprec.policy.tiny import build_model, build_tokenizer
from deeprec.store import read_artifact, write_artifact

TITLES = ("First Film", "Second Film (1999)")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifacts") / "policy"
    tokenizer = build_tokenizer(TITLES, ["comedy"], [], MARKUP, ["History:\n1. "], ExploreConfig(prompt="compact"))
    model = build_model(tokenizer, TinyConfig(width=16, layers=1, heads=2, inner=16), seed=0)
    with write_artifact(path, "policy") as work:
        tokenizer.save_pretrained(work)
        model.save_pretrained(work)
        (work / "curves.json").write_text(json.dumps([]), encoding="utf-8")
    return path


def test_a_saved_policy_reads_and_writes_the_protocol(policy: Path) -> None:
    loaded = load_policy(policy)
    text = f"History:\n1. {TITLES[1]}\n2. {TITLES[0]}\n{MARKUP[0]}"
    tokens = loaded.encode(text)
    assert loaded.decode(tokens) == text
    generation = loaded.start([tokens], seed=0)
    [segment] = generation.generate([0], stop_ids=frozenset({loaded.eos_id}), max_new_tokens=3, temperature=0.0)
    assert 1 <= len(segment.token_ids) <= 3
    [again] = (
        load_policy(policy)
        .start([tokens])
        .generate([0], stop_ids=frozenset({loaded.eos_id}), max_new_tokens=3, temperature=0.0)
    )
    assert again.token_ids == segment.token_ids


def test_the_engine_is_the_configured_one(policy: Path, tmp_path: Path) -> None:
    import torch

    opened = open_policy(policy, EngineConfig(dtype="bfloat16"))
    assert isinstance(opened, TransformersPolicy)
    assert opened.model.dtype == torch.bfloat16
    for engine in (EngineConfig(), EngineConfig(kind="vllm"), EngineConfig(kind="server", url="http://127.0.0.1:9")):
        with pytest.raises(ArtifactError, match="does not exist"):
            open_policy(tmp_path / "nothing", engine)


def test_an_exploration_that_was_saved_before_there_were_engines_is_read() -> None:
    saved = ExploreConfig(max_calls=3).model_dump(mode="json")
    del saved["engine"]
    assert ExploreConfig.model_validate_json(json.dumps(saved)) == ExploreConfig(max_calls=3)


def test_a_tiny_policy_that_was_built_for_other_prompts_is_refused(policy: Path, tmp_path: Path) -> None:
    for name, line in (("known", r"\nNext: "), ("unknown", r"\nElse: ")):
        with write_artifact(tmp_path / name, "policy") as work:
            for file in policy.glob("*.json"):
                if file.name != "manifest.json":
                    (work / file.name).write_text(file.read_text("utf-8").replace(r"\nNext: ", line), encoding="utf-8")
            (work / "model.safetensors").write_bytes((policy / "model.safetensors").read_bytes())
            (work / "explore.json").write_text('{"prompt": "compact"}', encoding="utf-8")
    load_policy(tmp_path / "known")
    with pytest.raises(
        PolicyError, match=r"unknown was built for prompts without the line 'Next:'.*build and train it"
    ):
        load_policy(tmp_path / "unknown")


def test_a_changed_weight_file_is_refused(policy: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(policy, copy)
    with (copy / "model.safetensors").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        load_policy(copy)


def test_logs_do_not_make_another_policy_but_weights_do(policy: Path) -> None:
    manifest = read_artifact(policy)
    logged = replace(manifest, files={**manifest.files, "curves.json": "other"})
    trained = replace(manifest, files={**manifest.files, "model.safetensors": "other"})
    opinion = replace(manifest, files={**manifest.files, "histories.safetensors": "other"})
    assert fingerprint(manifest) == fingerprint(logged) == fingerprint(opinion) != fingerprint(trained)


def test_a_policy_knows_its_longest_sequence(policy: Path) -> None:
    assert load_policy(policy).longest == 4096


def test_titles_that_a_policy_cannot_write_are_named(policy: Path, tmp_path: Path) -> None:
    assert unwritable(policy, TITLES) == []
    assert unwritable(policy, [*TITLES, "Third Film"]) == ["Third Film"]
    with write_artifact(tmp_path / "bare", "policy") as work:
        (work / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(PolicyError, match="cannot load the tokenizer"):
        unwritable(tmp_path / "bare", TITLES)
