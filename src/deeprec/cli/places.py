"""Where a command finds what it was not told: a bundle, or the artifacts and the configuration of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deeprec.config import Config, ExploreConfig, FeaturesConfig, TextConfig
from deeprec.errors import ArtifactError, ConfigError, StoreError

if TYPE_CHECKING:
    from deeprec.features.place import FeaturePlace

RUNS = Path("runs")
RUN_HELP = "Directory of a run, such as runs/quickstart: what is not named is taken from it."


def find_bundle(place: str | None) -> str:
    """The address that ``place`` stands for, see ``opening.locate``.

    Without a place, the run under ``runs/`` whose bundle was written last.

    Raises:
        ConfigError: there is none.
    """
    from deeprec.bundle.opening import locate

    if place is None:
        found = sorted(RUNS.glob("*/bundle/bundle.json"), key=lambda path: path.stat().st_mtime_ns)
        if not found:
            raise ConfigError(f"there is no run with a bundle in {RUNS}/; make one with deeprec run, or name a bundle")
        place = str(found[-1].parent.parent)
    return locate(place)


def find_features(config: Config, named: Path | None = None, beside: str | None = None) -> FeaturesConfig | None:
    """The feature place of a command: the directory ``named``, else the section ``features`` where it names a place.

    Else the directory beside the bundle at the address ``beside``; None where there is none.
    """
    if named is not None:
        return FeaturesConfig(path=str(named))
    if config.features.place == "cluster" or config.features.path:
        return config.features
    from deeprec.bundle.opening import features_beside

    found = None if beside is None else features_beside(beside)
    return None if found is None else FeaturesConfig(path=str(found))


def place_at(named: str) -> FeaturePlace:
    """The feature place in a directory, or that a configuration file's section ``features`` names.

    Raises:
        ConfigError: the file names none, or cannot be read.
    """
    from deeprec.features.places import open_place

    if not named.endswith((".yaml", ".yml")):
        return open_place(FeaturesConfig(path=named))
    from deeprec.cli.profiles import read_config

    return open_place(read_config(named, None).features)


@dataclass(frozen=True)
class Workshop:
    """Where a policy command works: what was named, and what a run has for the rest."""

    made: dict[str, Path]
    run: Path | None

    @classmethod
    def open(cls, run: Path | None) -> Workshop:
        """
        Raises:
            ArtifactError: ``run`` is no run's directory.
        """
        if run is None:
            return cls({}, None)
        from deeprec.pipelines.made import made

        return cls(made(run), run)

    def place(self, kind: str, named: Path | None, option: str) -> Path:
        """The artifact that was named, or the run's.

        Raises:
            ConfigError: it was not named, and there is no run or the run has not made it yet.
        """
        if named is not None:
            return named
        if kind in self.made:
            return self.made[kind]
        if self.run is not None:
            raise ConfigError(f"the run in {self.run} has made no {kind} yet; wait for it, or name one with {option}")
        raise ConfigError(f"{option} is missing; name a directory, or a run that has one with --run")

    def config(self, name: str | None, overrides: list[str] | None, policy: Path | None = None) -> Config:
        """The configuration of ``--config``, else the run's, else the defaults; with the overrides.

        Without a file the section ``explore`` is that of ``policy``, which was built for it.

        Raises:
            ConfigError: see ``profiles.read_config``.
            ArtifactError: ``policy`` is no policy artifact.
        """
        from deeprec.cli.profiles import read_config

        if name is None and self.run is not None:
            name = str(self.run / "config.yaml")
        if name is not None or policy is None:
            return read_config(name, overrides)

        from deeprec.config import apply_override, parse_config
        from deeprec.config.environment import environment_overrides

        raw = {"explore": explore_of(policy).model_dump(mode="json")}
        for override in (*environment_overrides(Config, os.environ), *(overrides or ())):
            apply_override(raw, override)
        return parse_config(raw, "command line")


def part_at(place: str | Path, kind: Literal["trm", "policy"], cache: str = "") -> Path:
    """The artifact at ``place``, or that part of the bundle that ``place`` names.

    Args:
        cache: directory where what comes from object storage is kept, ``serving.cache``.

    Raises:
        ArtifactError: there is neither, or a file of the bundle differs from its hash.
    """
    from deeprec.store import MANIFEST, read_artifact

    folder = Path(place)
    if (folder / MANIFEST).is_file() and read_artifact(folder, verify=False).kind != "bundle":
        return folder
    from deeprec.bundle.opening import open_bundle

    try:
        address = find_bundle(str(place))
    except ConfigError:
        read_artifact(folder, kind, verify=False)
        raise
    return open_bundle(address, lambda serve: (kind,), cache).part(kind)


def explore_of(policy: Path) -> ExploreConfig:
    """The exploration that a policy artifact was built for.

    Raises:
        ArtifactError: there is no policy artifact, or it cannot be read.
    """
    from deeprec.policy.build import read_explore
    from deeprec.store import read_artifact

    read_artifact(policy, "policy", verify=False)
    try:
        return read_explore(policy)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {policy / 'explore.json'}: {error}; build the policy again") from error


def text_of(trm: Path) -> TextConfig:
    """The text encoder that a TRM was trained with: no other fits it.

    Raises:
        ArtifactError: there is no TRM, or it cannot be read.
    """
    from deeprec.trm.artifact import read_record

    return read_record(trm).text


def check_absent(out: Path) -> None:
    """
    Raises:
        StoreError: there is something at ``out`` already; better said before an hour of training.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StoreError(f"{out} exists; name another directory with --out, or remove it first")
