"""What the section of the feature place accepts, and the sentences for what it does not."""

import pytest

from deeprec.config import FeaturesConfig, parse_config
from deeprec.errors import ConfigError

CLUSTER = {"place": "cluster", "database": "${DATABASE_URL}", "redis": "redis:6379,db=1", "offline": "s3://b/features"}


def features(**values: str) -> FeaturesConfig:
    return parse_config({"features": values}, "test").features


def test_a_place_is_a_directory_or_a_cluster() -> None:
    assert features(path="/features").place == "directory"
    assert features(**CLUSTER).database == "${DATABASE_URL}"


@pytest.mark.parametrize("name", ["database", "redis", "offline"])
def test_an_address_that_a_cluster_lacks_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"place is 'cluster', but {name} is empty; set features.{name}"):
        features(**{**CLUSTER, name: ""})


@pytest.mark.parametrize("name", ["database", "redis", "offline"])
def test_an_address_that_nothing_reads_is_refused_without_its_password(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is set, but place is 'directory'") as caught:
        features(path="/features", **{name: "host:1,password=s3cret"})
    assert "s3cret" not in str(caught.value)
