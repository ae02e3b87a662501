"""A policy artifact's model directory as a ``Policy``: weights and tokenizer from that directory alone, no download."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeprec.config import EngineConfig
from deeprec.errors import PolicyError
from deeprec.explore.prompt import NEXT
from deeprec.explore.tokens import FINGERPRINT
from deeprec.store import Manifest, config_digest, read_artifact

if TYPE_CHECKING:
    from deeprec.explore.engine import TransformersPolicy
    from deeprec.explore.tokens import TokenizedPolicy

HISTORIES = "histories.safetensors"
"""File of a start's artifact: its weights after plain histories, before it was taught to explore (``opinion``)."""
LOGS = frozenset({"curves.json", "metrics.json", HISTORIES})
"""Files of a policy artifact that say how it came about and change nothing of what it does."""


def open_policy(path: Path, engine: EngineConfig) -> TokenizedPolicy:
    """The policy on the engine that the configuration names; see ``docs/how-to/engines.md``. Close it after use.

    Raises:
        ArtifactError: no policy artifact there, or a file differs from its hash.
        PolicyError: the engine is not installed, cannot read the directory, or its server cannot be reached.
    """
    if engine.kind == "transformers":
        return load_policy(path, dtype=engine.dtype)
    manifest = read_artifact(path, "policy", verify=engine.kind == "vllm")
    tokenizer = _load_tokenizer(path)
    if engine.kind == "vllm":
        from deeprec.explore.vllm_engine import load_vllm

        return load_vllm(path, tokenizer, engine)
    from deeprec.explore.server_engine import ServerPolicy

    return ServerPolicy(tokenizer, engine, fingerprint(manifest))


def load_policy(path: Path, *, dtype: str = "auto") -> TransformersPolicy:
    """The policy on the accelerator when there is one; ``dtype`` as in torch, ``auto`` is the type of the weights.

    Raises:
        ArtifactError: no policy artifact there, or a file differs from its hash.
        PolicyError: transformers cannot read the directory, or it holds no safetensors weights.
    """
    read_artifact(path, "policy")
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from deeprec.explore.engine import TransformersPolicy

    disable_progress_bar()
    tokenizer = _load_tokenizer(path)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, local_files_only=True, use_safetensors=True, dtype=dtype, attn_implementation="sdpa"
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise PolicyError(f"cannot load the policy in {path}: {error}; build or train it again") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TransformersPolicy(model.to(device).eval(), tokenizer)


def unwritable(path: Path, titles: Sequence[str]) -> list[str]:
    """Those titles that the policy artifact's tokenizer does not give back, so that the policy cannot write them.

    Raises:
        ArtifactError: no policy artifact there.
        PolicyError: its tokenizer cannot be read.
    """
    read_artifact(path, "policy", verify=False)
    tokenizer = _load_tokenizer(path)

    def written(title: str) -> str:
        tokens = tokenizer.encode(title, add_special_tokens=False)
        return str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

    return [title for title in titles if written(title).strip() != title]


def _load_tokenizer(path: Path) -> Any:
    """The tokenizer as its file says.

    ``AutoTokenizer`` gives every Qwen2 model Qwen2's own pre-tokenizer, whatever ``tokenizer.json`` says, and the tiny
    policy's titles would be lost.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    as_saved = PreTrainedTokenizerFast if (path / "tokenizer.json").is_file() else AutoTokenizer
    try:
        tokenizer = as_saved.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise PolicyError(f"cannot load the tokenizer of the policy in {path}: {error}; build it again") from error
    _refuse_another_prompts(path, tokenizer)
    return tokenizer


def _refuse_another_prompts(path: Path, tokenizer: Any) -> None:
    """A tiny policy knows what its prompts were made of when it was built, and would read anything else as unknown."""
    described = path / "explore.json"
    if not described.is_file() or json.loads(described.read_text(encoding="utf-8")).get("prompt") != "compact":
        return
    read = tokenizer.decode(tokenizer.encode(NEXT, add_special_tokens=False))
    if read != NEXT:
        raise PolicyError(
            f"the policy in {path} was built for prompts without the line {NEXT.strip()!r}, which it would read as "
            f"{read!r}; build and train it again"
        )


def fingerprint(manifest: Manifest) -> str:
    """A name for a policy artifact's files, logs aside: what a server says that it serves.

    Artifacts of one name answer alike; a stage that took no steps has its start's.
    """
    files = {name: digest for name, digest in manifest.files.items() if name not in LOGS}
    return FINGERPRINT + config_digest(files)[:12]
