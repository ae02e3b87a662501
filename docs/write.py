"""Writes the reference pages that follow from the code: configuration, command line, HTTP. `make docs` calls it.

The page on HTTP is of a server's own document, that on artifacts of a run's manifests: they are written by the tests
that have one.

python docs/write.py
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from deeprec.cli import app
from deeprec.config import Config
from deeprec.config.explained import below, keys

PLACE = Path(__file__).parent / "reference"
_MARKUP = re.compile(r"\[/?(?:bold|dim|italic)[^\]]*\]")


def configuration() -> str:
    """The page of every key."""
    lines = [
        "# Configuration",
        "",
        "One tree, from a YAML file (`--config`), the environment over it (`DEEPREC__TRM__EPOCHS=5`) and",
        "`--set trm.epochs=5` over both. Unknown keys are refused. `deeprec config show` prints what they come to,",
        "`deeprec config explain KEY` says of a key what stands here, `deeprec config schema` is a schema for editors.",
        "",
    ]
    sections = [key for key in keys(Config) if key.is_section]
    lines += _table([key for key in below(Config) if not key.is_section])
    for section in sections:
        level = "##" if "." not in section.name else "###"
        lines += [f"{level} {section.name}", "", _plain(section.text), ""]
        own = [key for key in below(Config, section.name) if not key.is_section]
        lines += _table(own) if own else []
    return "\n".join(lines)


def _table(rows: list[Any]) -> list[str]:
    said = [
        f"| `{key.name}` | {_cell(key.kind)} | `{key.default.replace('|', chr(92) + '|')}` | {_cell(key.text)} |"
        for key in rows
    ]
    return ["| key | values | default | |", "|---|---|---|---|", *said, ""]


def command_line() -> str:
    """The page of every command."""
    lines = ["# Command line", "", "Exit status: 0, or 1 for a failed gate or task, or 2 for bad input.", ""]
    for path, command in _commands(get_command(app), ("deeprec",)):
        lines += [f"## {' '.join(path)}", "", _plain(inspect.cleandoc(command.help or "")), ""]
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [one for one in command.params if one.param_type_name == "option" and "--help" not in one.opts]
        if arguments or options:
            rows = [f"| `{_name(one)}` | {_cell(getattr(one, 'help', '') or '')} |" for one in (*arguments, *options)]
            lines += ["| | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name in sorted(inner):
        yield from _commands(inner[name], (*path, name))


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    return ", ".join(sorted(parameter.opts, key=len, reverse=True))


def http(document: dict[str, Any]) -> str:
    """The page of what a recommender takes and answers, from its OpenAPI document."""
    lines = [
        "# HTTP",
        "",
        "What `deeprec serve recommender` takes and answers; `GET /openapi.json` says it to programs. The servers",
        "`deeprec serve trm` and `deeprec serve events` have the parts of it that are theirs. Models are called",
        "`deeprec`, `deeprec-trm`, `deeprec-events` unless `serving.name` says otherwise. What is taken in a request",
        "beside its types, and what is refused with which sentence: `docs/reference/requests.md`.",
        "",
        "| | | answers |",
        "|---|---|---|",
    ]
    schemas: dict[str, Any] = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            given = [f"`{one['name']}`" for one in operation.get("parameters", ())]
            said = f"{operation['summary']}{'; ' + ', '.join(given) if given else ''}"
            statuses = ", ".join(sorted(operation["responses"]))
            lines.append(f"| `{method.upper()} {path}` | {_cell(said)} | {statuses} |")
    for name in sorted(_used(document)):
        schema = schemas[name]
        lines += ["", f"## {name}", "", _plain(inspect.cleandoc(schema.get("description", ""))), ""]
        required = schema.get("required", ())
        rows = [
            f"| `{key}` | {_cell(_kind(one))}{'' if key in required else ', optional'} "
            f"| {_cell(one.get('description', ''))} |"
            for key, one in schema.get("properties", {}).items()
        ]
        lines += ["| field | | |", "|---|---|---|", *rows] if rows else []
    return _tidy("\n".join(lines))


ARTIFACTS = {
    "dataset": "Cleaned interactions and the catalogue, in the one format that everything reads.",
    "features": "What was published to the feature place, by its name there.",
    "trm": "A TRM: it recommends by itself (`deeprec trm recommend`).",
    "policy": "A policy, as a Hugging Face directory: the start, or after a stage.",
    "rollouts": "What a policy did for given users, unscored.",
    "prompts": "Which examples each stage learns from.",
    "evaluation": "Every recommender on the test item.",
    "bundle": "All that serves, and which of policy and TRM it is.",
}
"""Kind of artifact → what it is."""
FILES = {
    "dataset.json": "time unit, columns, how many positions are the policy's",
    "interactions.parquet": "user, item, timestamp, in order",
    "items.parquet": "the catalogue",
    "record.json": "the publication's name, counts, and what it was made from",
    "measured.safetensors": "of one trained anew on everything: the weights of the TRM that was measured in its place",
    "model.safetensors": "weights",
    "config.json": "the model's shape and settings",
    "curves.json": "figures by step or epoch",
    "snapshot.json": "what the data looked like, for drift to compare with",
    "answers.json": "what it answered when it was published, for a release to hold its servers to",
    "metrics.json": "figures",
    "catalogue.json": "items with titles, phrases and attributes",
    "phrases.json": "phrases with their counts",
    "vectors.safetensors": "vectors of items and phrases",
    "explore.json": "the loop's limits and prompt",
    "tokenizer.json": "the tokenizer",
    "tokenizer_config.json": "the tokenizer's settings",
    "generation_config.json": "transformers' own",
    "histories.safetensors": "a start's weights before it was taught to explore",
    "rollouts.json": "for whom, how often, at which temperature, of which policy, and how long requests took",
    "trajectories.parquet": "one row a rollout: token ids, loss mask, log-probabilities, calls, answer, end, rewards",
    "stage1.parquet": "prompts of stage 1: user, history length, share of valid rollouts",
    "stage2.parquet": "prompts of stage 2: user, history length, share that answered the target",
    "report.html": "the report",
    "bundle.json": "the decision and its reason, parts by digest, the version",
    "popularity.safetensors": "how often each item occurs",
    "text.json": "which text encoder",
}
"""File of an artifact → what is in it."""


def artifacts(made: dict[str, Any]) -> str:
    """The page of what tasks hand to one another, from the manifests of a run, by task and output."""
    lines = [
        "# Artifacts",
        "",
        "What tasks hand to one another, and a run leaves: a directory with files and a `manifest.json`, which has",
        "each file's sha256, the sha256 of the manifests of what it was made from, its configuration's digest, the",
        "seed and the version. It is written whole or not at all, and checked when it is read",
        "(`deeprec.store.read_artifact`).",
        "",
    ]
    for kind, about in ARTIFACTS.items():
        of_kind = {place: one for place, one in made.items() if one.kind == kind}
        lines += [f"## {kind}", "", about, "", f"Made by {', '.join(f'`{place}`' for place in of_kind)}.", ""]
        parents = sorted({re.sub(r"-\d+$", "", name) for one in of_kind.values() for name in one.parents})
        lines += [f"Made from {', '.join(parents)}.", ""] if parents else []
        files = sorted({name for one in of_kind.values() for name in one.files})
        parts = sorted({name.partition("/")[0] for name in files if "/" in name})
        rows = [f"| `{name}` | {FILES[name]} |" for name in files if "/" not in name]
        rows += [f"| `{name}/` | the {name}, whole |" for name in parts]
        lines += ["| file | |", "|---|---|", *rows, ""]
    return _tidy("\n".join(lines))


def _used(document: dict[str, Any]) -> set[str]:
    """Schemas of ours: those of KServe's own calls, and of FastAPI's errors, are theirs to describe."""
    theirs = re.compile(
        r"^(HTTP)?Validation|Response$|^(Metadata)?Tensor|^InferenceRequest$|^Request(In|Out)put$|Tensor$"
    )
    return {name for name in document["components"]["schemas"] if not theirs.search(name)}


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    several = schema.get("anyOf") or schema.get("oneOf")
    if several:
        return " or ".join(_kind(one) for one in several)
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "any value"))


def _plain(text: str) -> str:
    return _MARKUP.sub("", text).replace("``", "`").replace("\b", "").strip()


def _cell(text: str) -> str:
    return " ".join(_plain(text).split()).replace("|", r"\|")


def written() -> dict[Path, str]:
    """What the generated pages have to hold."""
    pages = {"configuration.md": configuration(), "command-line.md": command_line()}
    return {PLACE / name: _tidy(text) for name, text in pages.items()}


def _tidy(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


if __name__ == "__main__":
    for path, content in written().items():
        path.write_text(content, encoding="utf-8")
        print(path)
