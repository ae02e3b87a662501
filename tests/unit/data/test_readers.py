from __future__ import annotations

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from deeprec.config import DataConfig
from deeprec.data.movielens import read_movielens
from deeprec.data.recbole import read_recbole
from deeprec.data.source import Source
from deeprec.data.table import read_table
from deeprec.errors import DataError

DAT = {
    "ratings.dat": b"1::10::5::978300760\n1::20::3::978302109\n2::10::4::978301968\n",
    "movies.dat": "10::Léon: The Professional (1994)::Crime|Drama\n20::No Year::(no genres listed)\n".encode("latin-1"),
}
CSV = {
    "ratings.csv": b"userId,movieId,rating,timestamp\n1,10,4.5,978300760\n2,20,3.0,978302109\n",
    "movies.csv": b'movieId,title,genres\n10,"Leon, The (1994)",Crime|Drama\n20,Plain,(no genres listed)\n',
}
ATOMIC = {
    "x.inter": b"user_id:token\titem_id:token\trating:float\ttimestamp:float\nu1\t007\t5\t978300760\nu2\t8\t3\t9.7e8\n",
    "x.item": b"item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    b'007\tThe "Best" Film\t1994\tCrime Drama\n8\tOther\t\tComedy\n',
}


def write(place: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (place / name).write_bytes(content)
    return place


def table(place: Path, **settings: object) -> Source:
    config = DataConfig.model_validate({"source": "table", "path": str(place), **settings})
    names = (config.path, config.interactions, config.items, config.columns)
    return read_table(*names, config.text_columns, config.year_column, config.time_unit)


def test_movielens_dat(tmp_path: Path) -> None:
    found = read_movielens(write(tmp_path, DAT))
    assert found.time_unit == "seconds"
    assert found.interactions.select("user_id", "item_id", "timestamp").rows()[1] == (1, 20, 978302109)
    assert found.interactions["rating"].to_list() == [5.0, 3.0, 4.0]
    assert found.items.rows(named=True) == [
        {"item_id": 10, "title": "Léon: The Professional (1994)", "genres": "Crime|Drama", "year": 1994},
        {"item_id": 20, "title": "No Year", "genres": None, "year": None},
    ]


def test_movielens_csv(tmp_path: Path) -> None:
    found = read_movielens(write(tmp_path, CSV))
    assert found.interactions.select("user_id", "item_id", "timestamp").rows() == [
        (1, 10, 978300760),
        (2, 20, 978302109),
    ]
    assert found.items["title"].to_list() == ["Leon, The (1994)", "Plain"]
    assert found.items["year"].to_list() == [1994, None]


def test_movielens_prepared_is_an_order(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [1, 1], "item_id": [10, 20], "position": [0, 1]}).write_parquet(
        tmp_path / "interactions.parquet"
    )
    pl.DataFrame({"item_id": [10, 20], "title": ["A (2001)", "B"], "genres": ["Crime|Drama", ""]}).write_parquet(
        tmp_path / "items.parquet"
    )
    found = read_movielens(tmp_path)
    assert found.time_unit == "order"
    assert found.interactions["timestamp"].to_list() == [0, 1]
    assert found.items["genres"].to_list() == ["Crime|Drama", None]


def test_recbole(tmp_path: Path) -> None:
    found = read_recbole(write(tmp_path, ATOMIC), {}, ("genres",), "year")
    assert found.interactions.rows() == [("u1", "007", 978300760, 5.0), ("u2", "8", 970000000, 3.0)]
    assert found.items.rows(named=True) == [
        {"item_id": "007", "title": 'The "Best" Film', "genres": "Crime|Drama", "year": 1994},
        {"item_id": "8", "title": "Other", "genres": "Comedy", "year": None},
    ]


def test_table_csv_with_mapping(tmp_path: Path) -> None:
    files = {
        "orders.csv": b"customer,sku,when\n01,A,1700000000\n02,B,1700000001\n",
        "products.csv": b"id,name,category,price\nA,Chair,Seats,9\nB,Table,,10\n",
    }
    columns = {"user_id": "customer", "item_id": "sku", "items.item_id": "id", "timestamp": "when", "title": "name"}
    columns["genres"] = "category"
    found = table(write(tmp_path, files), interactions="orders.csv", items="products.csv", columns=columns)
    assert found.interactions.rows() == [("01", "A", 1700000000), ("02", "B", 1700000001)]
    assert found.items.rows(named=True)[0] == {"item_id": "A", "title": "Chair", "genres": "Seats", "price": "9"}


def test_table_parquet_with_dates_and_lists(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [1], "item_id": [2], "timestamp": [datetime(2020, 1, 1)]}).write_parquet(
        tmp_path / "interactions.parquet"
    )
    pl.DataFrame({"item_id": [2], "title": ["A"], "genres": [["x", "y"]], "year": [1999.0]}).write_parquet(
        tmp_path / "items.parquet"
    )
    found = table(tmp_path)
    assert found.interactions.rows() == [("1", "2", 1577836800)]
    assert found.items.rows() == [("2", "A", "x|y", 1999)]


def test_missing_directory_and_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; set data\.path"):
        read_movielens(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no directory named"):
        read_movielens("")
    with pytest.raises(DataError, match="no MovieLens data"):
        read_movielens(tmp_path)
    with pytest.raises(DataError, match=r"holds 0 \.inter files"):
        read_recbole(tmp_path, {}, (), None)
    with pytest.raises(DataError, match=r"interactions\.parquet does not exist"):
        table(tmp_path)
    write(tmp_path, {"ratings.dat": DAT["ratings.dat"]})
    with pytest.raises(DataError, match=r"movies\.dat does not exist; .* holds ratings\.dat"):
        read_movielens(tmp_path)


@pytest.mark.parametrize("name", ["ratings.dat", "movies.dat"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name} is empty"):
        read_movielens(write(tmp_path, {**DAT, name: b""}))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({**DAT, "ratings.dat": b"1::10::5::yesterday\n"}, r"cannot read .*ratings\.dat"),
        ({**DAT, "movies.dat": b"10,Title,Drama\n"}, r"movies\.dat, line 1"),
        ({**CSV, "ratings.csv": b"user,movieId,rating,timestamp\n1,2,3,4\n"}, "no column userId; it has user, movieId"),
        ({**CSV, "ratings.csv": b"userId,movieId,rating,timestamp\n1,2,3,4.5\n"}, r"cannot read .*ratings\.csv"),
    ],
)
def test_damaged_movielens(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_movielens(write(tmp_path, files))


def test_damaged_recbole(tmp_path: Path) -> None:
    place = write(tmp_path, {**ATOMIC, "x.inter": b"user_id\titem_id:token\ttimestamp:float\n1\t2\t3\n"})
    with pytest.raises(DataError, match="'user_id' has no type"):
        read_recbole(place, {}, ("genres",), None)
    write(tmp_path, ATOMIC)
    with pytest.raises(DataError, match="no column studio; it has item_id, movie_title"):
        read_recbole(place, {}, ("studio",), None)


@pytest.mark.parametrize("value", ["2020-01-01", "1.5", "nan", "soon"])
def test_timestamps_must_be_whole(tmp_path: Path, value: str) -> None:
    files = {
        "interactions.csv": f"user_id,item_id,timestamp\nu,a,1\nu,b,{value}\n".encode(),
        "items.csv": b"item_id,title,genres\na,A,x\nb,B,y\n",
    }
    with pytest.raises(DataError, match="timestamp column is not an integer"):
        table(write(tmp_path, files), interactions="interactions.csv", items="items.csv")


def test_wrong_mapping_and_format(tmp_path: Path) -> None:
    write(tmp_path, {"interactions.parquet": b"PAR1 not really", "items.parquet": b"x", "log.txt": b"x"})
    with pytest.raises(DataError, match=r"cannot read .*interactions\.parquet"):
        table(tmp_path)
    with pytest.raises(DataError, match="maps 'user', which is none of ours"):
        table(tmp_path, columns={"user": "x"})
    with pytest.raises(DataError, match=r"neither \.csv"):
        table(tmp_path, interactions="log.txt")
