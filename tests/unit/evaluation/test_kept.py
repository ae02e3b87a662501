"""Trajectories kept in a file, as a page."""

from __future__ import annotations

import gc
import json
import re
from pathlib import Path
from typing import Any

import pytest

from deeprec.config import ExploreConfig, RewardsConfig
from deeprec.data.dataset import read_dataset
from deeprec.data.splits import policy_examples
from deeprec.errors import ArtifactError, DataError
from deeprec.evaluation import kept
from deeprec.evaluation.kept import kept_page
from deeprec.explore.trajectories import write_trajectories
from deeprec.types import Call, EndReason, Example, RetrievedItem, RewardPart, Trajectory

EXPLORE = ExploreConfig(items_per_call=2, answer_size=1, max_calls=2)


def rolled(example: Example, value: float) -> Trajectory:
    call = Call("anything", (), (RetrievedItem(example.target, 0.9),))
    text = "<|begin_of_preference|>anything<|end_of_preference|>\n<|begin_of_item_list|>\n1. x\n<|end_of_item_list|>\n"
    reward = (RewardPart("format", value, 1.0),)
    key, user = example.key, example.user_id
    return Trajectory(key, user, (), (), (), (), text, (call,), (example.target,), EndReason.ANSWERED, reward)


def test_the_page_resolves_what_was_chosen(world: Path, tmp_path: Path) -> None:
    examples = policy_examples(read_dataset(world / "dataset"))
    made = [rolled(example, float(place)) for place, example in enumerate(examples)]
    write_trajectories(tmp_path / "kept.parquet", made, rows_per_group=7)
    page, count, total = kept_page(
        tmp_path / "kept.parquet", world / "dataset", world / "trm", EXPLORE, RewardsConfig(), 10, "Kept"
    )
    assert (count, total) == (10, len(examples))
    data = json.loads(re.findall(r'id="trajectories-data">(.*?)</script>', page)[0])
    found = data["trajectories"]
    assert len(found) == 10
    assert found[0]["user"] == examples[0].user_id
    assert found[-1]["user"] == examples[-1].user_id
    catalogue = read_dataset(world / "dataset").catalogue
    target = {example.user_id: catalogue[example.target].title for example in examples}
    assert all(data["titles"][one["target"]] == target[one["user"]] for one in found)
    assert all(len(one["trm"]) == 1 for one in found)
    assert f"10 of {len(examples)} rollouts" in page


@pytest.mark.usefixtures("few_objects")
def test_memory_holds_few_trajectories_at_a_time(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the file is looked through, one trajectory; then those that were chosen."""
    examples = policy_examples(read_dataset(world / "dataset"))
    file = tmp_path / "kept.parquet"
    write_trajectories(file, [rolled(example, 0.0) for example in examples], rows_per_group=7)
    held = {"outcome_of": 0, "read": 0}

    def counting(name: str) -> Any:
        work = getattr(kept, name)

        def counted(*arguments: Any) -> Any:
            held[name] = max(held[name], sum(isinstance(one, Trajectory) for one in gc.get_objects()))
            return work(*arguments)

        return counted

    before = sum(isinstance(one, Trajectory) for one in gc.get_objects())
    for name in held:
        monkeypatch.setattr(kept, name, counting(name))
    kept_page(file, world / "dataset", world / "trm", EXPLORE, RewardsConfig(), 4, "Kept")
    assert len(examples) == 30
    assert 0 < held["outcome_of"] - before <= 2
    assert 0 < held["read"] - before <= 5


def test_another_dataset_or_another_file_is_refused(world: Path, tmp_path: Path) -> None:
    sections = (world / "dataset", world / "trm", EXPLORE, RewardsConfig(), 10, "Kept")
    for number, example in enumerate((Example("nobody", ("i1",), "i2"), Example("u0", ("i1",) * 99, "i2"))):
        file = tmp_path / f"{number}.parquet"
        write_trajectories(file, [rolled(example, 0.0)])
        with pytest.raises(DataError, match="of no user of the dataset"):
            kept_page(file, *sections)
    with pytest.raises(ArtifactError):
        kept_page(world / "dataset" / "items.parquet", *sections)
