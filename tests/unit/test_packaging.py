"""What the package asks for: each import by some list of pyproject.toml, each list met by its lock, one version."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import deeprec
from deeprec import extras

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LISTS: dict[str, list[str]] = {"base": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
LOCKED = ("base", "policy", *extras.EXTRAS)


def asked(name: str) -> Iterator[Requirement]:
    """What a list asks for, with what the lists that it names do."""
    for text in LISTS[name]:
        requirement = Requirement(text)
        if requirement.name == "deeprec":
            for other in requirement.extras:
                yield from asked(other)
        else:
            yield requirement
    if name != "base":
        yield from asked("base")


def pinned(name: str) -> dict[str, Version]:
    """Distribution → version, of a lock."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", text, re.MULTILINE)
    return {canonicalize_name(distribution): Version(version) for distribution, version in found}


@pytest.mark.parametrize("name", LOCKED)
def test_each_lock_has_what_its_list_asks_for(name: str) -> None:
    """After a change of pyproject.toml: ``make lock``."""
    found = pinned(name) | pinned("torch")
    for requirement in asked(name):
        if requirement.marker and not requirement.marker.evaluate():
            continue
        version = found.get(canonicalize_name(requirement.name))
        assert version is not None, f"requirements/{name}.txt lacks {requirement}"
        assert version in requirement.specifier, f"requirements/{name}.txt has {requirement.name} {version}"


@pytest.mark.parametrize("name", LOCKED)
def test_a_lock_has_exact_versions_with_hashes_no_address_and_no_torch(name: str) -> None:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?|[a-zA-Z0-9._-]+(\[[a-z,_-]+\])?==\S+ .*\\", line), (
            line
        )
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        assert not line.endswith("\\") or after.startswith("    --hash="), f"{line} has no hash"
    assert "torch" not in pinned(name)


def test_locks_agree_with_one_another() -> None:
    """But the one of vLLM's environment, which wants an older Transformers."""
    whole = pinned("dev")
    for name in set(LOCKED) - {"dev", "gpu"}:
        assert pinned(name).items() <= whole.items()


def test_a_client_needs_at_most_fifteen_distributions() -> None:
    assert len(pinned("base")) + 1 <= 15


def test_every_import_is_of_a_distribution_that_some_list_asks_for() -> None:
    distributions = packages_distributions()
    for name in ("base", *LISTS):
        assert list(asked(name))
    named = {canonicalize_name(requirement.name) for name in LISTS if name != "dev" for requirement in asked(name)}
    lost = []
    for path, module in imports():
        if module not in sys.stdlib_module_names | {"deeprec"} and module != "vllm":
            found = {canonicalize_name(one) for one in distributions.get(module, ())}
            if not found & (named | {"pydantic-core"}):
                lost.append(f"{path} imports {module}")
    assert lost == []


def test_the_sentence_of_a_missing_module_names_the_list_that_has_it() -> None:
    distributions = packages_distributions()
    for path, module in imports():
        if module in sys.stdlib_module_names or module in ("deeprec", "vllm", "pydantic_core"):
            continue
        said = extras.missing(ModuleNotFoundError(f"No module named '{module}.x'", name=f"{module}.x"))
        names = {canonicalize_name(one) for one in distributions[module]}
        if names & {canonicalize_name(requirement.name) for requirement in asked("base")}:
            assert said is None, f"{module} is in every installation"
            continue
        assert said, f"{path} imports {module}, of which deeprec.extras knows nothing"
        for extra in re.findall(r"'deeprec\[(\w+)\]'", said):
            assert names & {canonicalize_name(requirement.name) for requirement in asked(extra)}, said


def imports() -> Iterator[tuple[Path, str]]:
    """The first part of each module that the library imports, anywhere in a file."""
    for folder in ("src", "components", "pipelines", "feature_repo"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
                if isinstance(node, ast.Import):
                    yield from ((path.relative_to(ROOT), name.name.split(".")[0]) for name in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    yield path.relative_to(ROOT), node.module.split(".")[0]


def test_the_changelog_tells_of_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", text, re.MULTILINE)
    assert released[0] == deeprec.__version__
