"""A source in object storage: fetched whole, named by its objects' ETags, and told of by its address."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from deeprec.config import DataConfig
from deeprec.data.dataset import read_dataset
from deeprec.data.ingest import ingest
from deeprec.data.version import check_source, source_version
from deeprec.errors import DataError, StoreError

ROWS = [(f"u{user}", f"i{(user + step) % 9}", 1000 * user + step) for user in range(9) for step in range(6)]
CONFIG = DataConfig(
    source="table", path="s3://models/shop/2026/", interactions="orders/all.csv", items="items.csv",
    text_columns=(), year_column=None, min_item_interactions=1,
)  # fmt: skip


@pytest.fixture
def shop(client: Any) -> Any:
    orders = "user_id,item_id,timestamp\n" + "".join(f"{user},{item},{at}\n" for user, item, at in ROWS)
    put(client, "orders/all.csv", orders)
    put(client, "items.csv", "item_id,title\n" + "".join(f"i{number},Item {number}\n" for number in range(9)))
    return client


def put(client: Any, name: str, text: str) -> None:
    client.put_object("models", f"shop/2026/{name}", io.BytesIO(text.encode()), len(text))


def test_objects_are_read_as_files_are(shop: Any, tmp_path: Path) -> None:
    report = ingest(CONFIG, 0, tmp_path / "dataset")
    assert (report.users, report.items, report.interactions) == (9, 9, 54)
    assert read_dataset(tmp_path / "dataset").sequences["u3"][:2] == ("i3", "i4")


def test_the_version_follows_the_objects(shop: Any) -> None:
    before = source_version(CONFIG)
    assert source_version(CONFIG) == before
    put(shop, "items.csv", "item_id,title\ni1,Another\n")
    assert source_version(CONFIG) != before


def test_what_is_wrong_is_told_by_the_address(shop: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s3://models/shop/2026/.*gone\.csv"):
        ingest(CONFIG.model_copy(update={"items": "gone.csv"}), 0, tmp_path / "dataset")
    assert not list(tmp_path.iterdir())
    nowhere = CONFIG.model_copy(update={"path": "s3://models/nowhere"})
    for look in (check_source, source_version):
        with pytest.raises(DataError, match="there is nothing at s3://models/nowhere"):
            look(nowhere)
    with pytest.raises(StoreError, match="s3://bucket/prefix"):
        check_source(CONFIG.model_copy(update={"path": "gs://models/shop"}))


def test_an_object_whose_name_leads_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deeprec.data import ingest as room

    class Objects:
        def names(self) -> list[Any]:
            return [type("Listed", (), {"name": "../../etc/passwd"})]

    monkeypatch.setattr(room, "open_objects", lambda address: Objects())
    with pytest.raises(DataError, match="which is no path"):
        ingest(CONFIG, 0, tmp_path / "dataset")
