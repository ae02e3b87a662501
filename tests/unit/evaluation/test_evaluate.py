"""The evaluation task on a small world: a real TRM, artifacts and loop; the policies are scripts at the port."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest

from deeprec.config import EngineConfig, EvaluationConfig, EvaluationGate, ExploreConfig, RewardsConfig, TextConfig
from deeprec.data.dataset import read_dataset
from deeprec.data.splits import test_examples as held_out_examples
from deeprec.errors import ArtifactError, ConfigError, PolicyError
from deeprec.evaluation.evaluate import evaluate
from deeprec.evaluation.setting import Setting, measure
from deeprec.explore.loading import load_policy
from deeprec.explore.protocol import TitleBook
from deeprec.explore.trajectories import read_trajectories
from deeprec.store import read_artifact
from deeprec.types import Call, Catalogue, EndReason, Example, Item, RetrievedItem, Trajectory

USERS, ITEMS, K = 30, 40, 5
EXPLORE = ExploreConfig(
    items_per_call=8, answer_size=K, max_calls=3, max_new_tokens=900, max_context=9000, prompt="compact", batch_size=7,
    engine=EngineConfig(kind="vllm"),
)  # fmt: skip
TEXT = TextConfig(provider="hashing", width=32)
GATE = EvaluationGate(min_valid_rate=0.5, min_ndcg_10_trm=0.0, min_ratio_to_trm=0.0)
EVALUATION = EvaluationConfig(bootstrap_samples=200, trajectories=6, gate=GATE)
METRICS = {"recall@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr"}
FIGURES = {"valid_rate", "mean_calls", "candidate_recall", "tokens_per_user", "same_as_trm", "top_preference_share"}


class Run:
    """One evaluation of the world, with the policies that took part."""

    def __init__(self, world: Path, policy: Any, out: Path, evaluation: EvaluationConfig = EVALUATION) -> None:
        self.policies = {"start": policy("drama", repeats=5), "stage1": policy("comedy", repeats=1)}
        self.lines: list[str] = []
        self.opened: list[Any] = []
        self.out, self.report = out / "evaluation", out / "html" / "report.html"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("deeprec.evaluation.evaluate.open_policy", self.open)
            self.verdict, self.metrics = evaluate(
                *(world / name for name in ("dataset", "trm", "start", "stage1", "stage2")),
                EXPLORE,
                RewardsConfig(),
                TEXT,
                evaluation,
                3,
                self.out,
                self.report,
                progress=self.lines.append,
            )

    def open(self, path: Path, engine: EngineConfig) -> Any:
        """As ``open_policy``, of an engine that has room for one policy at a time."""
        assert engine is EXPLORE.engine
        assert all(policy.closed for policy in self.opened)
        self.opened.append(self.policies[path.name])
        return self.opened[-1]


@pytest.fixture(scope="module")
def run(world: Path, scripted_policy: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(world, scripted_policy, tmp_path_factory.mktemp("run"))


def test_metrics_have_the_promised_structure(run: Run) -> None:
    metrics = run.metrics
    assert set(metrics) == {"data", "baselines", "policy", "users_evaluated", "significance", "serve"}
    assert metrics["data"] == {"users": USERS, "items": ITEMS, "interactions": 9 * USERS}
    assert metrics["users_evaluated"] == USERS
    assert set(metrics["baselines"]) == {"popularity", "trm", "scripted"}
    assert set(metrics["policy"]) == {"start", "stage1", "stage2"}
    assert all(set(found) == METRICS for found in metrics["baselines"].values())
    assert all(set(found) == METRICS | FIGURES for found in metrics["policy"].values())
    assert set(metrics["significance"]["intervals"]) == {*metrics["baselines"], *metrics["policy"]}
    differences = metrics["significance"]["differences"]
    assert set(differences) == {"stage2_minus_trm", "stage2_minus_start", "stage2_minus_stage1"}
    assert all(set(difference) == {"ndcg@10", "recall@10"} for difference in differences.values())
    assert metrics["serve"] == "policy"


def test_the_artifact_is_whole_and_says_the_same(run: Run) -> None:
    manifest = read_artifact(run.out, "evaluation")
    assert set(manifest.files) == {"metrics.json", "trajectories.parquet", "report.html"}
    assert manifest.seed == 3
    assert {"dataset", "trm", "policy"} <= set(manifest.parents)
    assert json.loads((run.out / "metrics.json").read_text(encoding="utf-8")) == run.metrics
    assert run.report.read_bytes() == (run.out / "report.html").read_bytes()


def test_an_equal_policy_is_not_rolled_out_again(run: Run) -> None:
    assert run.metrics["policy"]["stage2"] == run.metrics["policy"]["stage1"]
    assert run.policies["stage1"].starts == -(-USERS // EXPLORE.batch_size)
    assert any("stage2: the same files as stage1" in line for line in run.lines)
    assert run.policies["stage1"].temperatures == {0.0}
    assert run.metrics["policy"]["start"] != run.metrics["policy"]["stage1"]


def test_the_policies_have_the_configured_engine_to_themselves(run: Run) -> None:
    assert run.opened == list(run.policies.values())
    assert [policy.closed for policy in run.opened] == [1, 1]
    assert EXPLORE.engine.kind == "vllm"


def test_a_server_has_one_policy_and_is_refused_for_three(world: Path, tmp_path: Path) -> None:
    engine = EngineConfig(kind="server", url="http://policy:8000")
    served = EXPLORE.model_copy(update={"engine": engine})
    places = [world / name for name in ("dataset", "trm", "start", "stage1", "stage2")]
    with pytest.raises(ConfigError, match="what http://policy:8000 serves cannot be the start and both"):
        evaluate(*places, served, RewardsConfig(), TEXT, EVALUATION, 0, tmp_path / "out", tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_every_user_counts_and_the_trajectories_are_kept(run: Run, world: Path) -> None:
    kept = list(read_trajectories(run.out / "trajectories.parquet"))
    examples = held_out_examples(read_dataset(world / "dataset"))
    assert [one.example_key for one in kept] == [example.key for example in examples]
    assert all({part.name for part in one.rewards} == {"format", "listwise", "pointwise"} for one in kept)
    repeated = [len(set(one.answer)) < K for one in kept]
    assert 0 < sum(repeated) < USERS
    figures = run.metrics["policy"]["stage2"]
    assert figures["valid_rate"] == pytest.approx(1 - sum(repeated) / USERS)
    hits = [example.target in one.answer for one, example in zip(kept, examples, strict=True)]
    counted = [hit and not bad for hit, bad in zip(hits, repeated, strict=True)]
    assert figures["recall@10"] == pytest.approx(sum(counted) / USERS)
    assert figures["mean_calls"] == 2.0


def test_the_policy_that_copies_the_broad_list_is_the_trm_where_it_is_valid(run: Run) -> None:
    figures = run.metrics["policy"]["stage2"]
    assert figures["same_as_trm"] == pytest.approx(figures["valid_rate"])
    assert figures["top_preference_share"] == 1.0


def test_the_report_holds_this_run(run: Run) -> None:
    page = run.report.read_text(encoding="utf-8")
    data = json.loads(re.findall(r'id="trajectories-data">(.*?)</script>', page)[0])
    assert len(data["trajectories"]) == 6
    assert all(title.startswith("<b>Film</b> ") for title in data["titles"])
    assert [part[0] for part in data["trajectories"][0]["rewards"]] == ["format", "listwise", "pointwise"]
    assert "<b>Film" not in page
    assert "After stage 2, with its reward. 6 of 30 rollouts" in page
    assert "The bundle serves the policy" in page
    assert "Learning curves of stage 2" in page
    assert "This stage took no steps" in page


def test_a_failed_gate_still_writes_everything(world: Path, scripted_policy: Any, tmp_path: Path) -> None:
    strict = EVALUATION.model_copy(update={"gate": EvaluationGate(min_valid_rate=1.0, min_ratio_to_trm=100.0)})
    run = Run(world, scripted_policy, tmp_path, strict)
    assert not run.verdict.passed
    assert "valid_rate" in run.verdict.reason
    assert run.metrics["serve"] == "trm" or run.metrics["baselines"]["trm"]["ndcg@10"] == 0
    assert "Gate failed" in run.report.read_text(encoding="utf-8")
    assert read_artifact(run.out, "evaluation").files


def test_the_same_seed_gives_the_same_metrics(run: Run, world: Path, scripted_policy: Any, tmp_path: Path) -> None:
    assert Run(world, scripted_policy, tmp_path).metrics == run.metrics


def test_a_missing_policy_is_named_and_nothing_is_written(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="absent"):
        evaluate(
            *(world / name for name in ("dataset", "trm", "start", "absent", "stage2")),
            EXPLORE,
            RewardsConfig(),
            TEXT,
            EVALUATION,
            0,
            tmp_path / "out",
            tmp_path / "report.html",
            progress=lambda line: None,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_policy_directory_without_a_model_is_refused(world: Path) -> None:
    with pytest.raises(PolicyError, match="cannot load the tokenizer of the policy"):
        load_policy(world / "start")


CATALOGUE = Catalogue(tuple(Item(name, f"Title {name}") for name in "abcdef"))


def _answered(user: str, answer: tuple[str | None, ...]) -> Trajectory:
    call = Call("anything", (), tuple(RetrievedItem(name, 0.5) for name in "abcdef"))
    return Trajectory(f"{user}@0", user, (1,), (1, 2), (1, 0), (-0.1, 0.0), "", (call,), answer, EndReason.ANSWERED)


def test_invalid_answers_are_misses_even_where_they_name_the_target() -> None:
    examples = [Example(user, (), "a") for user in "uvwx"]
    setting = Setting(
        catalogue=CATALOGUE,
        examples=examples,
        retriever=cast(Any, None),
        embedder=cast(Any, None),
        titles=TitleBook(CATALOGUE),
        explore=ExploreConfig(answer_size=2),
        rewards=RewardsConfig(),
        trm_answers=[("a", "b")] * 4,
        seed=0,
    )
    answers: list[tuple[Any, ...]] = [("a", "b"), ("a", "a"), ("b", "c", "a"), ()]
    trajectories = [_answered(example.user_id, answer) for example, answer in zip(examples, answers, strict=True)]
    outcome = measure(setting, trajectories, [(), ("distinct",), (), ("answer",)])
    assert outcome.ranks.tolist() == [0, -1, -1, -1]
    assert outcome.metrics["recall@10"] == 0.25
    assert outcome.metrics["mrr"] == 0.25
    assert outcome.figures["valid_rate"] == 0.5
    assert outcome.figures["candidate_recall"] == 1.0
    assert outcome.figures["tokens_per_user"] == 1.0
