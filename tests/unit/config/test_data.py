"""What the feature store's section accepts, and the sentences for what it does not."""

import pytest

from deeprec.config import parse_config
from deeprec.errors import ConfigError


def features(**values: str) -> object:
    return parse_config({"features": values}, "test").features


@pytest.mark.parametrize(
    "address", ["redis:6379", "10.0.0.1:1,db=1,password=${REDIS_PASSWORD}", "redis.example:65535,ssl=true"]
)
def test_redis_takes_an_address(address: str) -> None:
    assert features(online="redis", redis=address).redis == address  # type: ignore[attr-defined]


@pytest.mark.parametrize("address", ["", "redis", "redis:", ":6379", "redis:port", "redis:0", "redis:65536", "db=1"])
def test_redis_without_a_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="online is 'redis'; set"):
        features(online="redis", redis=address)


def test_an_address_that_nothing_reads_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError, match="online is 'sqlite', which has no server") as caught:
        features(redis="redis:6379,password=s3cret")
    assert "s3cret" not in str(caught.value)
