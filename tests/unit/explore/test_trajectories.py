"""Trajectories to Parquet and back."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deeprec.errors import ArtifactError, StoreError
from deeprec.explore.trajectories import TrajectoryWriter, read_trajectories, write_trajectories
from deeprec.types import Call, EndReason, RetrievedItem, RewardPart, Trajectory


def make(row):
    calls = (Call("anything", (), (RetrievedItem("a", 0.97), RetrievedItem("b", 0.1))), Call("x; y", ("x", "y"), ()))
    return Trajectory(
        example_key=f"u{row}@3",
        user_id=f"u{row}",
        prompt_ids=(1, 2, row),
        completion_ids=(3, 4),
        loss_mask=(1, 0),
        logprobs=(-0.5, 0.0),
        text="é\n<think>",
        calls=calls if row else (),
        answer=("a", None) if row else (),
        end=EndReason.ANSWERED if row else EndReason.CALL_LIMIT,
        rewards=(RewardPart("format", -1.0, 1.0), RewardPart("listwise", None, 1.0)) if row else (),
    )


def test_round_trip(tmp_path):
    rows = [make(row) for row in range(7)]
    path = tmp_path / "deep" / "trajectories.parquet"
    write_trajectories(path, rows, rows_per_group=3)
    assert pq.ParquetFile(path).num_row_groups == 3
    assert list(read_trajectories(path, batch_size=2)) == rows
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_no_rows(tmp_path):
    write_trajectories(tmp_path / "t.parquet", [])
    assert list(read_trajectories(tmp_path / "t.parquet")) == []


def test_a_failed_block_leaves_nothing(tmp_path):
    def fail():
        with TrajectoryWriter(tmp_path / "t.parquet") as writer:
            writer.write([make(1)])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "t.parquet"
    write_trajectories(path, [make(1)])
    earlier = path.read_bytes()

    def interrupted():
        with TrajectoryWriter(path) as writer:
            writer.write([make(2), make(3)])
            assert path.read_bytes() == earlier
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == earlier


def test_a_file_of_any_length_is_written_and_read_in_the_same_memory(tmp_path):
    """Bytes that Arrow holds between two rows: those of a batch, however many batches there are."""
    group = [replace(make(row), completion_ids=tuple(range(row, row + 400))) for row in range(1, 17)]
    most = {}
    for groups in (2, 24):
        before = pa.total_allocated_bytes()
        held = []
        with TrajectoryWriter(tmp_path / f"{groups}.parquet") as writer:
            for _ in range(groups):
                writer.write(group)
                held.append(pa.total_allocated_bytes() - before)
        rows = 0
        for _ in read_trajectories(tmp_path / f"{groups}.parquet", batch_size=8):
            rows += 1
            held.append(pa.total_allocated_bytes() - before)
        assert rows == 16 * groups
        most[groups] = max(held)
    whole = pq.read_table(tmp_path / "24.parquet").nbytes
    assert most[24] < 2 * most[2]
    assert most[24] < whole / 3


def test_refused_writes_are_store_errors(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write trajectories"):
        write_trajectories(tmp_path / "file" / "t.parquet", [make(1)])


def test_unreadable_files(tmp_path):
    with pytest.raises(ArtifactError, match="cannot read trajectories"):
        list(read_trajectories(tmp_path / "none.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ArtifactError, match=r"bad\.parquet"):
        list(read_trajectories(tmp_path / "bad.parquet"))
    pq.write_table(pq.read_table(_written(tmp_path)).select(["text"]), tmp_path / "other.parquet")
    with pytest.raises(ArtifactError, match="does not hold trajectories"):
        list(read_trajectories(tmp_path / "other.parquet"))


def _written(folder):
    write_trajectories(folder / "t.parquet", [make(1)])
    return folder / "t.parquet"
