"""``deeprec config``: what a configuration comes to, what a key is about, and a schema for editors."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from deeprec.cli.profiles import CONFIG_HELP, SET_HELP, read_config

app = typer.Typer(
    help="Show a configuration, explain its keys, write its schema.", no_args_is_help=True, rich_markup_mode="markdown"
)


@app.command()
def show(
    section: Annotated[str, typer.Argument(help="A section or key, such as trm or trm.gate; all without.")] = "",
    config: Annotated[str | None, typer.Option("--config", "-c", help=CONFIG_HELP)] = None,
    override: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help=SET_HELP)] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only what differs from the defaults.")] = False,
) -> None:
    """Print what a file, the environment and --set come to, as YAML that can be read again.

    Examples:

    `deeprec config show --config cluster --changed`

    `deeprec config show trm --config quickstart --set trm.epochs=3`
    """
    import yaml

    from deeprec.config import Config
    from deeprec.config.explained import explain

    found: Any = read_config(config, override).model_dump(mode="json")
    if changed:
        found = _differences(found, Config().model_dump(mode="json"))
    if section:
        explain(Config, section)
        for part in section.split("."):
            found = found.get(part, {}) if isinstance(found, dict) else {}
    print(yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=120), end="")


@app.command()
def explain(
    key: Annotated[str, typer.Argument(help="A section or key, such as trm or trm.epochs; all sections without.")] = "",
) -> None:
    """Say what a key is about, which values it takes, its default, and how it is set.

    Examples: `deeprec config explain`, `deeprec config explain trm`, `deeprec config explain serving.deadline_ms`
    """
    from deeprec.config import Config
    from deeprec.config.explained import below
    from deeprec.config.explained import explain as look_up

    if not key:
        for one in below(Config):
            print(f"{one.name:12}{_plain(one.text)}")
        return
    found, inner = look_up(Config, key)
    print(f"{found.name}: {_plain(found.text)}")
    if found.is_section:
        print()
        width = max(len(one.name) for one in inner) + 2
        for one in inner:
            print(f"{one.name:{width}}{'…' if one.is_section else one.default:12}  {_plain(one.text)}")
        return
    print(f"\nvalues       {_plain(found.kind)}\ndefault      {found.default}")
    print(f"set it       --set {found.name}=…\n             {found.variable}=…")


@app.command()
def schema() -> None:
    """Print the JSON schema of a configuration, for editors that complete and check YAML.

    Example: `deeprec config schema > deeprec.schema.json`, and in the YAML's first line
    `# yaml-language-server: $schema=deeprec.schema.json`
    """
    from deeprec.config import Config

    print(json.dumps({**Config.model_json_schema(), "title": "DeepRec"}, indent=2, ensure_ascii=False))


def _plain(text: str) -> str:
    return text.replace("`", "")


def _differences(found: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, dict) and isinstance(default.get(name), dict):
            inner = _differences(value, default[name])
            kept |= {name: inner} if inner else {}
        elif value != default.get(name):
            kept[name] = value
    return kept
