"""Imports point one way, and each volatile dependency is imported in one place.

The house, from top to bottom: __main__ → cli → pipelines → components → release, serving → recommender → bundle →
policy, evaluation → explore, rewards, trm → checks, features, data → client, feature_repo, store, config, metrics →
objects → wire, types, errors, markup, retrying. A room may import rooms below its own level, and no other room of its
own level but those named in ``NEIGHBOURS``.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEVELS = (
    {"types", "errors", "extras", "markup", "wire", "retrying", "forking"},
    {"objects"},
    {"store", "config", "metrics", "feature_repo", "client"},
    {"checks", "features", "data"},
    {"explore", "rewards", "trm"},
    {"policy", "evaluation"},
    {"bundle"},
    {"recommender", "doctor"},
    {"serving", "release"},
    {"components"},
    {"pipelines"},
    {"cli"},
    {"__main__"},
)
NEIGHBOURS = {
    ("checks", "data"),
    ("features", "data"),
    ("errors", "types"),
    ("types", "errors"),
    ("markup", "types"),
    ("markup", "errors"),
    ("wire", "types"),
}
"""Importer and imported within one level: the reader of the dataset's contract is the lowest of its level."""

HOMES = {
    "kfp": {"components", "pipelines", "release"},
    "kfp_server_api": {"pipelines", "release"},
    "trl": {"policy.trl_adapter"},
    "kserve": {"serving", "release"},
    "feast": {"features", "feature_repo"},
    "great_expectations": {"checks"},
}
"""Where a volatile dependency may be imported: in a whole room, or in one module of it."""

SOURCES = {"src/deeprec": "", "components": "components", "pipelines": "pipelines", "feature_repo": "feature_repo"}


def _files(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Each source file, the room it is in and its dotted module name."""
    for folder, room in SOURCES.items():
        base = root / folder
        for path in sorted(base.rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            dotted = ".".join(("deeprec", room, *parts) if room else ("deeprec", *parts)).removesuffix(".__init__")
            if dotted != "deeprec":
                yield path, room or parts[0], dotted


def _imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported: anywhere in the file, relative or through ``import_module``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                kept = parents[: len(parents) - node.level + is_package]
                base = ".".join([*kept, *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"}:
                yield node.lineno, str(node.args[0].value)


def _level(room: str) -> int | None:
    return next((number for number, rooms in enumerate(LEVELS) if room in rooms), None)


def _objection(module: str, room: str, imported: str) -> str | None:
    """Why ``module`` of ``room`` may not import ``imported``, or None."""
    top, *rest = imported.split(".")
    if top in HOMES:
        at_home = bool({room, module.removeprefix("deeprec.")} & HOMES[top])
        return None if at_home else f"{top} is imported only in {', '.join(sorted(HOMES[top]))}"
    if top != "deeprec" or not rest or rest[0] == room or rest[0] == "configs":
        return None
    other = _level(rest[0])
    if other is None:
        return None if rest[0].startswith("__") else f"deeprec.{rest[0]} has no place in the house; add it to LEVELS"
    own = _level(room)
    if own is None:
        return f"the room {room} has no place in the house; add it to LEVELS"
    if other > own:
        return f"{rest[0]} is above {room}; imports point downwards"
    if other == own and (room, rest[0]) not in NEIGHBOURS:
        return f"{rest[0]} and {room} are on one level and know each other only through types"
    return None


def objections(root: Path) -> list[str]:
    """Every import that breaks the house's direction, with file, line and reason."""
    found = []
    for path, room, module in _files(root):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for line, imported in _imports(tree, module, path.name == "__init__.py"):
            reason = _objection(module, room, imported)
            if reason:
                found.append(f"{path.relative_to(root)}:{line} imports {imported}: {reason}")
    return found


def test_imports_point_one_way() -> None:
    assert objections(ROOT) == []


def test_what_watches_over_answers_knows_no_server() -> None:
    """Of ``serving``, only the rooms in front speak HTTP: the watcher, the metrics and the log do not."""
    servers = ("http", "events", "page")
    found = []
    for path, room, module in _files(ROOT):
        if room != "serving" or {*module.split(".")[2:3]} & {*servers}:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        imports = [name.split(".") for _, name in _imports(tree, module, path.name == "__init__.py")]
        found += [
            f"{module} imports {'.'.join(name)}"
            for name in imports
            if name[0] == "kserve" or (name[:2] == ["deeprec", "serving"] and {*name[2:3]} & {*servers})
        ]
    assert found == []


def test_every_package_is_installed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"])
    source = ROOT / "src"
    packages = {".".join(path.parent.relative_to(source).parts) for path in source.rglob("__init__.py")}
    assert packages <= listed


def test_no_tests_or_tools_are_imported_by_the_library() -> None:
    outside = []
    for path, _, module in _files(ROOT):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for line, imported in _imports(tree, module, path.name == "__init__.py"):
            if imported.split(".")[0] in {"tests", "pytest", "benchmarks"}:
                outside.append(f"{path.relative_to(ROOT)}:{line} imports {imported}")
    assert outside == []


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("src/deeprec/data/a.py", "import deeprec.cli", "cli is above data"),
        ("src/deeprec/types.py", "from deeprec.store import read_artifact", "store is above types"),
        ("src/deeprec/explore/a.py", "from deeprec.trm.retriever import TrmRetriever", "know each other only through"),
        ("src/deeprec/evaluation/a.py", "from ..policy import select", "policy and evaluation are on one level"),
        ("src/deeprec/evaluation/__init__.py", "from ..serving import x", "serving is above evaluation"),
        ("src/deeprec/rewards/a.py", "def f():\n    from trl import GRPOTrainer", "trl is imported only in policy"),
        ("src/deeprec/policy/a.py", "from trl import GRPOConfig", "trl is imported only in policy.trl_adapter"),
        ("src/deeprec/cli/a.py", "import kfp.dsl", "kfp is imported only in components, pipelines"),
        ("src/deeprec/trm/a.py", "import importlib\nimportlib.import_module('kserve')", "kserve is imported only in"),
        ("src/deeprec/policy/a.py", "import feast", "feast is imported only in feature_repo, features"),
        ("components/a.py", "from deeprec.pipelines import training", "pipelines is above components"),
        ("src/deeprec/attic/a.py", "import deeprec.types", "the room attic has no place"),
        ("src/deeprec/data/a.py", "from deeprec import attic", "deeprec.attic has no place"),
    ],
)
def test_a_wrong_import_is_named(tmp_path: Path, file: str, line: str, reason: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line + "\n", encoding="utf-8")
    [found] = objections(tmp_path)
    assert reason in found
    assert file in found


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("src/deeprec/cli/a.py", "from deeprec.pipelines import training"),
        ("src/deeprec/evaluation/a.py", "from deeprec.explore.rollout import rollout\nfrom .report import render"),
        ("src/deeprec/policy/trl_adapter.py", "import trl"),
        ("components/a.py", "from kfp import dsl\nfrom deeprec.policy import stage\nimport deeprec.configs"),
        ("src/deeprec/trm/a.py", "from deeprec import __version__\nimport torch"),
    ],
)
def test_a_right_import_passes(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line + "\n", encoding="utf-8")
    assert objections(tmp_path) == []
