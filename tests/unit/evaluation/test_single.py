"""One policy beside the TRM alone and popularity, on the small world with a scripted policy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from deeprec.config import ExploreConfig, RewardsConfig, TextConfig
from deeprec.data.dataset import read_dataset
from deeprec.data.splits import test_examples as held_out_examples
from deeprec.data.splits import validation_examples
from deeprec.errors import ConfigError
from deeprec.evaluation.baselines import trm_answers
from deeprec.evaluation.outcome import Outcome, ranks_of
from deeprec.evaluation.single import PolicyEvaluation, evaluate_policy
from deeprec.trm.retriever import TrmRetriever

EXPLORE = ExploreConfig(
    items_per_call=8, answer_size=5, max_calls=3, max_new_tokens=900, max_context=9000, prompt="compact", batch_size=16
)


@pytest.fixture
def evaluate(world: Path, scripted_policy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(repeats: int = 0, **options: Any) -> PolicyEvaluation:
        policy = scripted_policy(repeats=repeats)
        monkeypatch.setattr("deeprec.evaluation.single.open_policy", lambda *_: policy)
        text = TextConfig(provider="hashing", width=32)
        places = (world / "dataset", world / "trm", world / "stage1")
        found = evaluate_policy(
            *places, EXPLORE, RewardsConfig(), text, 3, progress=lambda line: None, **{"read": 4, **options}
        )
        assert policy.closed == 1
        return found

    return run


def test_a_policy_that_copies_the_trm_has_its_figures(evaluate: Any, world: Path) -> None:
    found = evaluate()
    assert (found.split, found.users) == ("validation", 30)
    accuracy = ("recall@1", "recall@5", "ndcg@10", "mrr")
    assert [found.metrics["policy"][name] for name in accuracy] == [found.metrics["trm"][name] for name in accuracy]
    assert found.metrics["policy"]["valid_rate"] == found.metrics["policy"]["same_as_trm"] == 1.0
    data = read_dataset(world / "dataset")
    examples = validation_examples(data)
    own = trm_answers(TrmRetriever.load(world / "trm"), examples, 5)
    assert found.metrics["trm"] == Outcome(ranks_of(own, examples, 5)).metrics
    assert found.ends == {"answered": 30}
    assert found.violations == {}


def test_an_invalid_answer_is_a_miss_and_is_counted(evaluate: Any) -> None:
    found = evaluate(repeats=5)
    assert 0 < found.metrics["policy"]["valid_rate"] < 1
    assert found.violations["distinct_items"] == round(30 * (1 - found.metrics["policy"]["valid_rate"]))
    assert found.metrics["policy"]["recall@5"] <= found.metrics["trm"]["recall@5"]


def test_some_users_of_the_test_split(evaluate: Any, world: Path) -> None:
    found = evaluate(split="test", users=7, read=99)
    assert found.users == len(found.trajectories) == 7
    titles = {
        f"{example.user_id}": read_dataset(world / "dataset").catalogue[example.target].title
        for example in held_out_examples(read_dataset(world / "dataset"))
    }
    assert all(titles[one.user_id] == one.target for one in found.trajectories)
    assert [one.user_id for one in evaluate(split="test", users=7).trajectories] != []
    assert found.to_json() == evaluate(split="test", users=7, read=99).to_json()


def test_the_table_and_the_page(evaluate: Any) -> None:
    found = evaluate(repeats=3)
    header, rows = found.table()
    assert header[:3] == ("", "ndcg@10", "recall@10")
    assert [row[0] for row in rows] == ["popularity", "TRM alone", "policy"]
    assert rows[1][1] == f"{found.metrics['trm']['ndcg@10']:.4f}"
    assert rows[0][4] == ""
    page = found.page("Policy <b>")
    assert "<h1>Policy &lt;b&gt;</h1>" in page
    assert "4 of 30 rollouts" in page
    data = json.loads(re.findall(r'id="trajectories-data">(.*?)</script>', page)[0])
    assert len(data["trajectories"]) == 4


def test_a_split_that_does_not_exist(evaluate: Any) -> None:
    with pytest.raises(ConfigError, match="no split 'train'"):
        evaluate(split="train")
