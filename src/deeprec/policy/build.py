"""Policies on disk, and the first one: the tiny model with its warm start, or a language model by name or path.

A policy artifact is a Hugging Face model directory (safetensors weights, tokenizer) with ``explore.json`` (the
exploration it was built for), ``curves.json`` (what its last training logged, a list of dicts) and the manifest; a
start that has learnt from histories also holds its weights after them, for its opinion (``explore.opinion``);
``explore.loading`` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deeprec.config import ExploreConfig, PolicyConfig, TextConfig
from deeprec.errors import PolicyError
from deeprec.explore.loading import HISTORIES, load_policy
from deeprec.explore.opinion import read_histories
from deeprec.explore.prompt import PromptBuilder
from deeprec.explore.protocol import MARKUP
from deeprec.policy.setting import Setting, derived_seed
from deeprec.policy.teaching import Taught, Teaching
from deeprec.policy.tiny import build_model, build_tokenizer
from deeprec.store import write_artifact
from deeprec.types import JsonDict

KIND = "policy"
EXPLORE = "explore.json"
CURVES = "curves.json"


def build_policy(
    dataset: Path,
    trm: Path,
    policy: PolicyConfig,
    explore: ExploreConfig,
    text: TextConfig,
    seed: int,
    out: Path,
    *,
    progress: Callable[[str], None] = print,
) -> dict[str, float]:
    """Write the policy that the stages start from; returns its size and, after a warm start, its last loss.

    Raises:
        PolicyError: the model cannot be loaded, built or warm-started as configured.
    """
    if policy.model == "tiny" and policy.warm_start.asks_the_unlearnt:
        raise _unlearnt("a new policy")
    setting = Setting.open(dataset, trm, text)
    taught = Taught([], {})
    if policy.model == "tiny":
        model, tokenizer = _build_tiny(setting, policy, explore, seed)
        if policy.warm_start.trajectories or policy.warm_start.histories.passes:
            taught = Teaching(setting, model, tokenizer, policy, explore, seed, progress).teach()
    else:
        model, tokenizer = _load_base(policy.model, policy.dtype)
        add_markup(model, tokenizer)
    return _write(model, tokenizer, taught, policy, explore, [dataset, trm], seed, out)


def warm_start_policy(
    dataset: Path,
    trm: Path,
    start: Path,
    policy: PolicyConfig,
    explore: ExploreConfig,
    text: TextConfig,
    seed: int,
    out: Path,
    *,
    progress: Callable[[str], None] = print,
) -> dict[str, float]:
    """Write the policy that a policy artifact becomes by the warm start; see ``build_policy``.

    Where no histories are taught, those that ``start`` has learnt stay its opinion, and may be the teacher's judge.

    Raises:
        ArtifactError, PolicyError: ``start`` cannot be read, or not be warm-started as configured.
    """
    actor, learnt = load_policy(start, dtype="float32"), read_histories(start)
    if policy.warm_start.asks_the_unlearnt and not learnt:
        raise _unlearnt(f"the policy in {start}")
    setting = Setting.open(dataset, trm, text)
    taught = Teaching(setting, actor.model, actor.tokenizer, policy, explore, seed, progress).teach()
    if not taught.histories:
        taught = replace(taught, histories=learnt)
    return _write(actor.model, actor.tokenizer, taught, policy, explore, [dataset, trm, start], seed, out)


def _unlearnt(what: str) -> PolicyError:
    return PolicyError(
        f"policy.warm_start.judge is 'histories' and policy.warm_start.histories.passes is 0, but {what} has learnt "
        f"from no history, so that it has no opinion to rank answers by; set passes to 1 or more, or judge to 'lists'"
    )


def _write(
    model: Any,
    tokenizer: Any,
    taught: Taught,
    policy: PolicyConfig,
    explore: ExploreConfig,
    parents: Sequence[Path],
    seed: int,
    out: Path,
) -> dict[str, float]:
    from safetensors.torch import save_file

    config = {"policy": policy.model_dump(mode="json"), "explore": explore.model_dump(mode="json")}
    with write_artifact(out, KIND, config=config, parents=parents, seed=seed) as work:
        write_policy(work, model, tokenizer, explore, taught.curve)
        if taught.histories:
            save_file(taught.histories, work / HISTORIES)
    metrics = {
        "parameters": float(sum(parameter.numel() for parameter in model.parameters())),
        "vocabulary": float(len(tokenizer)),
    }
    if taught.curve:
        last = taught.curve[-1]
        metrics |= {"warm_start_loss": last["loss"], "warm_start_accuracy": last["accuracy"]}
    return metrics


def write_policy(
    work: Path,
    model: Any,
    tokenizer: Any,
    explore: ExploreConfig,
    curves: Sequence[JsonDict],
    weights: Mapping[str, Any] | None = None,
) -> None:
    """Fill an artifact's directory; ``weights`` stand in for the model's own where those are shards."""
    _quiet()
    model.save_pretrained(work, state_dict=weights)
    tokenizer.save_pretrained(work)
    (work / EXPLORE).write_text(explore.model_dump_json(indent=1), encoding="utf-8")
    (work / CURVES).write_text(json.dumps(list(curves), indent=1), encoding="utf-8")


def read_explore(path: str | Path) -> ExploreConfig:
    """The exploration a policy artifact was built for."""
    return ExploreConfig.model_validate_json((Path(path) / EXPLORE).read_text(encoding="utf-8"))


def read_curves(path: str | Path) -> list[JsonDict]:
    """What the policy's last training logged."""
    curves: list[JsonDict] = json.loads((Path(path) / CURVES).read_text(encoding="utf-8"))
    return curves


def add_markup(model: Any, tokenizer: Any) -> None:
    """Make every markup string one token; tokens the base lacks are added as special ones, starting as the mean token.

    Raises:
        PolicyError: the tokenizer has no end-of-text token.
    """
    import torch
    from tokenizers import AddedToken

    if tokenizer.eos_token_id is None:
        raise PolicyError("the model's tokenizer has no end-of-text token; name a model that has one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    missing = [text for text in MARKUP if len(tokenizer.encode(text, add_special_tokens=False)) != 1]
    if not missing:
        return
    known = len(tokenizer)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in missing], special_tokens=True)
    means = [table.weight[:known].mean(dim=0) for table in _tables(model)]
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ids = tokenizer.convert_tokens_to_ids(missing)
    with torch.no_grad():
        for table, mean in zip(_tables(model), means, strict=True):
            table.weight[ids] = mean.detach()


def _tables(model: Any) -> list[Any]:
    """Input and output embeddings (one and the same weights when tied)."""
    return [model.get_input_embeddings(), model.get_output_embeddings()]


def _load_base(name: str, dtype: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PolicyError(
            f"policy.model {name!r} cannot be loaded with transformers: {reason}; name a causal language model with "
            f"safetensors weights on the Hugging Face hub, or its directory"
        ) from error
    return model, tokenizer


def _build_tiny(setting: Setting, policy: PolicyConfig, explore: ExploreConfig, seed: int) -> tuple[Any, Any]:
    from deeprec.explore.scripted import THOUGHTS

    titles, catalogue = setting.titles, setting.dataset.catalogue
    lines = dict.fromkeys(", ".join(titles.phrases(item.item_id)) for item in catalogue.items)
    texts = [PromptBuilder(explore, titles).text([catalogue.items[0].item_id]), *THOUGHTS]
    tokenizer = build_tokenizer(titles.titles, catalogue.phrases, filter(None, lines), MARKUP, texts, explore)
    vectors = setting.retriever.item_vectors().collaborative
    table = {titles.title(item.item_id): vectors[row] for row, item in enumerate(catalogue.items)}
    return build_model(tokenizer, policy.tiny, derived_seed(seed, 0), table), tokenizer


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
