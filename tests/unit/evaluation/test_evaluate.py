"""The evaluation task on a small world: a real TRM, artifacts and rollouts; the policies are scripts at the port."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from deeprec.config import EvaluationConfig, EvaluationGate, ExploreConfig, RewardsConfig, SelectConfig, TextConfig
from deeprec.data.dataset import read_dataset
from deeprec.data.splits import test_examples as held_out_examples
from deeprec.errors import ArtifactError, PolicyError
from deeprec.evaluation.baselines import trm_answers
from deeprec.evaluation.evaluate import Made, evaluate
from deeprec.evaluation.outcome import Outcome, ranks_of
from deeprec.evaluation.setting import Setting, measure
from deeprec.explore.loading import load_policy
from deeprec.explore.protocol import TitleBook
from deeprec.explore.scripted import explore
from deeprec.explore.trajectories import read_trajectories
from deeprec.policy.rollouts import roll_policy_out
from deeprec.store import read_artifact
from deeprec.trm.retriever import TrmRetriever
from deeprec.types import Call, Catalogue, EndReason, Example, Item, RetrievedItem, Trajectory

USERS, ITEMS, K = 30, 40, 5
EXPLORE = ExploreConfig(
    items_per_call=8, answer_size=K, max_calls=3, max_new_tokens=900, max_context=9000, prompt="compact", batch_size=7
)  # fmt: skip
TEXT = TextConfig(provider="hashing", width=32)
GATE = EvaluationGate(min_valid_rate=0.5, min_ndcg_10_trm=0.0, min_ratio_to_trm=0.0)
EVALUATION = EvaluationConfig(bootstrap_samples=200, trajectories=6, gate=GATE)
METRICS = {"recall@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr"}
BASELINES = {"popularity", "trm", "trm_everything", "one_list", "fusion"}
PARTS = ("dataset", "trm", "trm_everything", "start", "candidates", "prompts", "stage1", "stage2")
POLICIES = ("start", "stage1", "stage2")
STEPS = {
    "trm_minus_popularity", "trm_everything_minus_trm", "fusion_minus_trm", "start_minus_trm", "stage1_minus_start",
    "stage2_minus_stage1", "stage2_minus_start", "stage2_minus_trm", "stage2_minus_trm_everything",
    "stage2_minus_fusion",
}  # fmt: skip
FIGURES = {"valid_rate", "mean_calls", "candidate_recall", "tokens_per_user", "same_as_trm", "top_preference_share"}


def made(world: Path, rolled: Path, **others: str) -> Made:
    """The world's artifacts, some of them by another name, and the rollouts of its policies."""
    parts = [world / others.get(name, name) for name in PARTS]
    return Made(*parts, *(rolled / others.get(f"{name}_rollouts", name) for name in POLICIES))


def roll_out(world: Path, policies: dict[str, Any], out: Path) -> None:
    """The rollouts of the world's policies, by scripts; those of the last are there untimed too."""
    for place, name in {**dict(zip(POLICIES, POLICIES, strict=True)), "untimed": "stage2"}.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("deeprec.policy.rollouts.open_policy", lambda path, _: policies[path.name])
            roll_policy_out(
                "test", world / "dataset", world / "trm", world / name, SelectConfig(), EXPLORE, TEXT, 3, out / place,
                timed=place == "stage2", progress=lambda line: None,
            )  # fmt: skip


def opinion(examples: Sequence[Example], candidates: Sequence[Sequence[str]]) -> list[list[float]]:
    """One that likes items the better, the higher their number, more than any place in a list can say."""
    return [[10.0 * int(item[1:]) for item in items] for items in candidates]


class Run:
    """One evaluation of the world, with the policies that took part."""

    def __init__(
        self,
        world: Path,
        policy: Any,
        out: Path,
        evaluation: EvaluationConfig = EVALUATION,
        has_opinion: bool = True,
    ) -> None:
        stages = policy("comedy", repeats=1)
        self.lines: list[str] = []
        self.out, self.report = out / "evaluation", out / "html" / "report.html"
        roll_out(world, {"start": policy("drama", repeats=5), "stage1": stages, "stage2": stages}, out / "rolled")
        with pytest.MonkeyPatch.context() as patch:
            if has_opinion:
                patch.setattr("deeprec.evaluation.evaluate.open_opinion", lambda *_: opinion)
            self.verdict, self.metrics = evaluate(
                made(world, out / "rolled"),
                EXPLORE,
                RewardsConfig(),
                TEXT,
                evaluation,
                3,
                self.out,
                self.report,
                progress=self.lines.append,
            )


@pytest.fixture(scope="module")
def run(world: Path, scripted_policy: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(world, scripted_policy, tmp_path_factory.mktemp("run"))


def test_metrics_have_the_promised_structure(run: Run) -> None:
    metrics = run.metrics
    assert set(metrics) == {
        "data", "baselines", "policy", "users_evaluated", "minutes", "intervals", "steps", "verdict", "cost"
    }  # fmt: skip
    assert metrics["data"] == {"users": USERS, "items": ITEMS, "interactions": 9 * USERS}
    assert metrics["users_evaluated"] == USERS
    assert set(metrics["baselines"]) - {"scripted"} == BASELINES
    assert set(metrics["policy"]) == {"start", "stage1", "stage2"}
    assert all(set(found) >= METRICS for found in metrics["baselines"].values())
    assert set(metrics["baselines"]["one_list"]) == METRICS | {"candidate_recall", "mean_length"}
    assert all(set(found) == METRICS | FIGURES for found in metrics["policy"].values())
    assert set(metrics["intervals"]) == {*metrics["baselines"], *metrics["policy"]}
    assert set(metrics["steps"]) == STEPS
    for difference in metrics["steps"].values():
        assert set(difference) == {"ndcg@10", "recall@10"}
        assert all(set(found) == {"mean", "low", "high"} for found in difference.values())


def test_the_verdict_agrees_with_the_figures(run: Run) -> None:
    metrics = run.metrics
    verdict, baselines = metrics["verdict"], metrics["baselines"]
    assert set(verdict) == {"serve", "over", "ratio", "low", "high", "ms_per_request", "sentence"}
    assert verdict["serve"] == "policy"
    best = max(found["ndcg@10"] for found in baselines.values())
    assert baselines[verdict["over"]]["ndcg@10"] == best
    assert verdict["ratio"] == pytest.approx(metrics["policy"]["stage2"]["ndcg@10"] / best)
    assert verdict["low"] <= verdict["ratio"] <= verdict["high"]
    assert set(verdict["ms_per_request"]) == {"policy", "trm"}
    assert all(value > 0 for value in verdict["ms_per_request"].values())
    assert "The bundle serves the policy, with the TRM it was trained with" in verdict["sentence"]


def test_minutes_are_those_of_the_artifacts(run: Run, world: Path) -> None:
    seconds = {name: read_artifact(world / name).seconds for name in PARTS}
    assert run.metrics["minutes"]["trm_everything"] == pytest.approx(seconds["trm_everything"] / 60, abs=0.001)
    policy = sum(seconds[name] for name in ("trm", "start", "candidates", "prompts", "stage1", "stage2"))
    assert run.metrics["minutes"]["policy"] == pytest.approx(policy / 60, abs=0.001)


def test_what_every_task_spent_is_in_the_figures_and_the_report(run: Run, world: Path) -> None:
    found = run.metrics["cost"]
    assert found["tasks"]["train-stage-1"]["seconds"] == read_artifact(world / "stage1").seconds
    assert found["total"]["seconds"] == pytest.approx(sum(row["seconds"] for row in found["tasks"].values()), abs=0.01)
    milliseconds = run.metrics["verdict"]["ms_per_request"]
    assert found["per_1000"]["policy"]["seconds"] == pytest.approx(milliseconds["policy"], abs=0.001)
    page = run.report.read_text(encoding="utf-8")
    assert "What it costs" in page
    assert "evaluation.price_per_hour gives prices" in page
    assert "1,000 recommendations, policy" in page


def test_baselines_are_what_they_are_called(run: Run, world: Path) -> None:
    data = read_dataset(world / "dataset")
    examples = held_out_examples(data)
    everything = TrmRetriever.load(world / "trm_everything")
    baselines = run.metrics["baselines"]
    assert baselines["trm_everything"] == Outcome(ranks_of(trm_answers(everything, examples, K), examples, K)).metrics
    calls = {one.user_id: one.calls for one in read_trajectories(run.out / "trajectories.parquet")}
    trm = TrmRetriever.load(world / "trm")
    longest = trm_answers(trm, examples, 24)
    lengths = [sum(len(call.items) for call in calls[example.user_id]) for example in examples]
    long = [items[:length] for items, length in zip(longest, lengths, strict=True)]
    held = [example.target in items for example, items in zip(examples, long, strict=True)]
    assert baselines["one_list"]["candidate_recall"] == pytest.approx(sum(held) / USERS)
    assert baselines["one_list"]["mean_length"] == pytest.approx(sum(lengths) / USERS)
    assert baselines["one_list"]["ndcg@10"] == baselines["trm"]["ndcg@10"]
    liked = [sorted(items[:8], key=lambda item: -int(item[1:]))[:K] for items in longest]
    assert baselines["fusion"] == Outcome(ranks_of(liked, examples, K)).metrics


def test_a_policy_without_an_opinion_of_titles_has_no_fusion(world: Path, scripted_policy: Any, tmp_path: Path) -> None:
    found = Run(world, scripted_policy, tmp_path, has_opinion=False)
    assert found.metrics["baselines"]["fusion"] is None
    assert "fusion" not in found.metrics["intervals"]
    assert not any("fusion" in pair for pair in found.metrics["steps"])
    assert any(line.startswith("fusion: left out, ") for line in found.lines)
    assert "fusion" not in found.report.read_text(encoding="utf-8").split("How the policy explores")[0]


def test_the_scripted_explorer_is_a_row_only_where_it_differs(
    run: Run, world: Path, scripted_policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "scripted" not in run.metrics["baselines"]

    def reversed_answers(*arguments: Any) -> list[Trajectory]:
        return [replace(one, answer=one.answer[::-1]) for one in explore(*arguments)]

    monkeypatch.setattr("deeprec.explore.scripted.explore", reversed_answers)
    found = Run(world, scripted_policy, tmp_path).metrics
    assert found["baselines"]["scripted"]["ndcg@10"] != found["baselines"]["trm"]["ndcg@10"]
    assert set(found["intervals"]["scripted"]) == METRICS


def test_the_artifact_is_whole_and_says_the_same(run: Run) -> None:
    manifest = read_artifact(run.out, "evaluation")
    assert set(manifest.files) == {"metrics.json", "trajectories.parquet", "report.html"}
    assert manifest.seed == 3
    assert {"dataset", "trm", "policy", "rollouts"} <= set(manifest.parents)
    assert json.loads((run.out / "metrics.json").read_text(encoding="utf-8")) == run.metrics
    assert run.report.read_bytes() == (run.out / "report.html").read_bytes()


def test_each_policy_is_measured_by_its_own_rollouts(run: Run) -> None:
    assert run.metrics["policy"]["stage2"] == run.metrics["policy"]["stage1"]
    assert run.metrics["policy"]["start"] != run.metrics["policy"]["stage1"]


@pytest.mark.parametrize(
    ("others", "complaint"),
    [
        ({"stage1_rollouts": "start"}, "start were not made with .*stage1; "),
        ({"stage2_rollouts": "untimed"}, "untimed were not timed"),
        ({"start_rollouts": "absent"}, "absent"),
    ],
)
def test_rollouts_of_another_policy_are_refused(
    run: Run, world: Path, tmp_path: Path, others: dict[str, str], complaint: str
) -> None:
    parts = made(world, run.out.parent / "rolled", **others)
    with pytest.raises(ArtifactError, match=complaint):
        evaluate(
            parts, EXPLORE, RewardsConfig(), TEXT, EVALUATION, 3, tmp_path / "out", tmp_path / "report.html",
            progress=lambda line: None,
        )  # fmt: skip
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
    assert run.metrics["baselines"]["trm"]["ndcg@10"] > 0
    assert run.metrics["verdict"]["serve"] == "trm"
    assert "Gate failed" in run.report.read_text(encoding="utf-8")
    assert read_artifact(run.out, "evaluation").files


def test_the_same_seed_gives_the_same_metrics(run: Run, world: Path, scripted_policy: Any, tmp_path: Path) -> None:
    again = Run(world, scripted_policy, tmp_path).metrics
    measured = {"verdict", "minutes", "cost"}
    assert {key: again[key] for key in set(again) - measured} == {
        key: run.metrics[key] for key in set(again) - measured
    }
    assert [again["verdict"][key] for key in ("serve", "over", "ratio", "low", "high")] == [
        run.metrics["verdict"][key] for key in ("serve", "over", "ratio", "low", "high")
    ]


def test_a_missing_policy_is_named_and_nothing_is_written(run: Run, world: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="absent"):
        evaluate(
            made(world, run.out.parent / "rolled", stage1="absent"),
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
