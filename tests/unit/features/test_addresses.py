"""Addresses of a feature place's stores: what they refer to is there, and says what the store's library reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from deeprec.errors import ConfigError
from deeprec.features.database import redis_address, resolved, server_url


@pytest.mark.parametrize(
    ("value", "said"), [(None, "STORE, which is not in the environment; set it"), ("", "STORE, which is empty; set it")]
)
@pytest.mark.parametrize("read", [resolved, redis_address, server_url])
def test_a_variable_that_says_nothing_is_named(
    read: object, value: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STORE", raising=False)
    if value is not None:
        monkeypatch.setenv("STORE", value)
    with pytest.raises(ConfigError, match=said):
        read("${STORE}", "features.redis")  # type: ignore[operator]


def test_a_file_that_says_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "address").write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="which is empty"):
        resolved(f"file:{tmp_path / 'address'}", "features.database")


@pytest.mark.parametrize("address", ["redis", "redis://redis:6379", "redis:port", "password=s3cret", ":6379", "a:1,b"])
def test_an_address_that_feast_would_misread_is_refused_without_telling_it(address: str) -> None:
    with pytest.raises(ConfigError, match=r"features\.redis is not HOST:PORT") as refused:
        redis_address(address, "features.redis")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("address", ["redis:6379", "a.b:1,c-d:2,db=1,password=x:y"])
def test_addresses_that_feast_reads_are_taken(address: str) -> None:
    assert redis_address(address, "features.redis") == address
