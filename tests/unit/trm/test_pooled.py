"""Encoders of the common form give the vectors that sentence-transformers gives, and others are left to it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeprec.config import TextConfig
from deeprec.trm.pooled import PooledEncoder, is_pooled
from deeprec.trm.text import encoder_directory, load_embedder, loads_with

TEXTS = [
    "",
    "comedy",
    "A film about Krakow, 1939 – ウォーターゲート事件 😀",
    "slow burning Scandinavian crime with a tired detective",
    " ".join(["long"] * 700),
]
PLACE = encoder_directory(TextConfig())


def test_the_vectors_are_those_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(PLACE)).encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    for batch in (1, 3):
        ours = PooledEncoder(PLACE).encode(TEXTS, batch)
        ours /= np.linalg.norm(ours, axis=1, keepdims=True)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_packaged_encoder_imports_no_more_than_it_needs() -> None:
    code = (
        "import sys; from deeprec.config import TextConfig; from deeprec.trm.text import load_embedder; "
        "load_embedder(TextConfig()).embed(['x']); print([name for name in ('sentence_transformers', 'sklearn') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert "sentence_transformers" not in loads_with(TextConfig())
    assert loads_with(TextConfig(provider="hashing")) == ()


def test_an_encoder_that_is_not_there_is_told_by_who_loads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    assert "torch" in loads_with(TextConfig(provider="sentence-transformers", model="nobody/nothing"))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("modules.json", lambda read: [*read[:1], {"idx": 1, "name": "1", "path": "1", "type": "m.Dense"}]),
        ("modules.json", lambda read: read[:1]),
        ("modules.json", lambda read: [{**read[0], "path": "0_Transformer"}, *read[1:]]),
        ("1_Pooling/config.json", lambda read: {**read, "pooling_mode_cls_token": True}),
        ("1_Pooling/config.json", lambda read: {**read, "pooling_mode_mean_tokens": False}),
        ("sentence_bert_config.json", lambda read: {**read, "do_lower_case": True}),
        ("sentence_bert_config.json", lambda read: {**read, "transformer_task": "fill-mask"}),
        ("config_sentence_transformers.json", lambda read: {**read, "default_prompt_name": "query"}),
        ("modules.json", None),
    ],
)
def test_other_forms_are_left_to_the_library(tmp_path: Path, file: str, change: Any) -> None:
    place = tmp_path / "encoder"
    shutil.copytree(PLACE, place, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "onnx"))
    assert is_pooled(place)
    path = place / file
    path.write_text("[" if change is None else json.dumps(change(json.loads(path.read_text()))))
    assert not is_pooled(place)
    text = TextConfig(provider="sentence-transformers", model=str(place))
    assert "sentence_transformers" in loads_with(text)


def test_what_the_library_reads_is_still_read(tmp_path: Path) -> None:
    place = tmp_path / "encoder"
    shutil.copytree(PLACE, place)
    path = place / "sentence_bert_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_lower_case": True}))
    other = load_embedder(TextConfig(provider="sentence-transformers", model=str(place)))
    own = load_embedder(TextConfig())
    np.testing.assert_allclose(other.embed(["a quiet film"]), own.embed(["a quiet film"]), atol=1e-6)
