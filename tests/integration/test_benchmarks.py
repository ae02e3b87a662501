"""Every benchmark runs at toy size, and its figures agree with one another. How good they are is not asserted here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    feature_store,
    policy_learning,
    retraining,
    rollout_throughput,
    serving,
    serving_faults,
    serving_life,
    serving_overload,
    trm_ablation,
    trm_accuracy,
    trm_cold,
    trm_large,
    trm_training,
)
from deeprec.data.dataset import Dataset
from deeprec.data.splits import standalone_sequences
from deeprec.recommender import loading
from deeprec.recommender.worker.explorer import WorkerExplorer
from tests import forkserver
from tests.integration.parts import make_run
from tests.integration.taught import teach

ROOT = Path(__file__).parents[2]
TOY = [
    f"--set={change}"
    for change in ("trm.epochs=2", "trm.width=16", "trm.max_length=16", "text.provider=hashing", "text.width=32")
]


def figures(benchmark: Any, monkeypatch: pytest.MonkeyPatch, place: Path, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "--out", str(place / "figures.json")])
    benchmark.main()
    return json.loads((place / "figures.json").read_text())


def test_accuracy(
    sample_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", str(sample_dataset), "--profiles", "ml-1m", "--seeds", "3", "4", *TOY)
    rows = figures(trm_accuracy, monkeypatch, tmp_path, *arguments)
    assert [row["seed"] for row in rows] == [3, 4]
    assert all(0 < row["test ndcg@10"] < 1 for row in rows)
    assert f"test: NDCG@10 {rows[0]['test ndcg@10']:.4f}" in capsys.readouterr().out


def test_accuracy_measures_on_test_what_was_chosen_on_validation(
    sample_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", str(sample_dataset), "--profiles", "ml-1m", "--seeds", "3", *TOY, "--keep", str(tmp_path))
    [chosen] = figures(trm_accuracy, monkeypatch, tmp_path, *arguments, "--splits", "validation")
    assert "test ndcg@10" not in chosen
    assert "epoch 2/2" in capsys.readouterr().out
    [measured] = figures(trm_accuracy, monkeypatch, tmp_path, *arguments)
    assert "epoch" not in capsys.readouterr().out
    assert measured["minutes"] >= chosen["minutes"]
    assert measured["validation ndcg@10"] == chosen["validation ndcg@10"]
    assert measured["test ndcg@10"] > 0


def test_cold(
    sample_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(trm_cold, monkeypatch, tmp_path, "--data", str(sample_dataset), *TOY)
    assert found["others after"] > 0
    assert {"recall@50", "over chance", "history 1", "popularity 5", "preference alone"} <= found.keys()
    assert "new items: 4 of 80" in capsys.readouterr().out


def test_ablation(sample_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ("everything", "no bias by distance", "no short convolution")
    longer = ("--set", "trm.epochs=6", "--set", "trm.average=0")
    found = figures(trm_ablation, monkeypatch, tmp_path, "--data", str(sample_dataset), *TOY, *longer, "--rows", *rows)
    assert tuple(found) == rows
    assert len({row["preference_recall@10"] + row["mrr"] for row in found.values()}) == 3


def test_retraining(
    sample_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", str(sample_dataset), *TOY, "--keep", str(tmp_path / "kept"))
    found = figures(retraining, monkeypatch, tmp_path, *arguments)
    told = capsys.readouterr().out
    assert (found["new tenth"], found["chosen"]["epochs"]) == ("by time", 1)
    assert 0 < found["users of validation"] <= found["users"] < 150
    rows = ["as it was", "continued", "afresh", "afresh, as short"]
    assert list(found["intervals"]) == list(found["seconds"]) == rows
    assert len(found["validation ndcg@10"]) == 6
    for name, difference in found["differences"].items():
        means = [found["intervals"][one]["mean"] for one in ("continued", name)]
        assert difference["mean"] == pytest.approx(means[0] - means[1])
        assert f"continued minus {name}: {difference['mean']:+.4f}" in told
    again = figures(retraining, monkeypatch, tmp_path, *arguments)
    assert "epoch" not in capsys.readouterr().out.partition("users whose last item")[0], "nothing is trained again"
    assert again == found


def test_retraining_has_seen_no_target(dataset: Dataset) -> None:
    """Where there is only an order, each user's own last tenth is new."""
    for unit in ("seconds", "order"):
        world = retraining.split(replace(dataset, info={**dataset.info, "time_unit": unit}))
        for examples in (world.validation, world.test):
            for one in examples:
                assert one.target not in world.before.sequences.get(one.user_id, ())
                assert one.target not in standalone_sequences(world.now)[one.user_id]
        total = sum(map(len, dataset.sequences.values()))
        assert sum(map(len, world.before.sequences.values())) == pytest.approx(0.9 * total, rel=0.05)


def test_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures(trm_training, monkeypatch, tmp_path, "--steps", "1", "--length", "16", "--threads", "1")
    assert (found["steps measured"], found["threads"]) == (1, 1)
    ratio = found["seconds per epoch, plain"] / found["seconds per epoch"]
    assert found["times faster"] == pytest.approx(ratio)
    assert min(found.values()) > 0


def test_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures(trm_large, monkeypatch, tmp_path, "--items", "2000", "--users", "200")
    assert found["items"] == 2000
    assert 1 >= found["recall@100"] > 100 / 2000
    assert found["times chance"] == pytest.approx(found["recall@100"] / (100 / 2000))
    assert min(found.values()) > 0


def test_retrieval(tmp_path: Path) -> None:
    arguments = ("--items", "600", "--exact-only", "--seconds", "0.01", "--out", str(tmp_path / "figures.json"))
    forkserver.run([sys.executable, "-m", "benchmarks.trm_retrieval", *arguments], cwd=ROOT, check=True)
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["approximate"] == []
    assert {"plain", "exclusion"} < {row["condition"] for row in found["exact"]}
    for row in found["exact"]:
        assert row["items"] == 600
        assert min(row["ours_ms"], row["faiss_ms"], row["ratio"]) > 0


def test_rollout_throughput(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(
        rollout_throughput, monkeypatch, tmp_path, "--toy", "--users", "12", "--group", "2", "--repeats", "2"
    )
    assert found["tokens_per_rollout"] > 24
    assert found["repeats"] == 2
    assert list(found["ratio"]) == ["same calls", "lists at once", "no lists"]
    assert min(found["ratio"].values()) > 0
    parts = [found["seconds"][name] for name in ("engine", "retrieval", "parsing", "environment")]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(found["seconds"]["total"])
    assert "engine alone, same calls" in capsys.readouterr().out


TOY_POLICY = [
    *TOY,
    *(
        f"--set={change}"
        for change in (
            "explore.prompt_history=5", "explore.items_per_call=5", "explore.answer_size=5",
            "evaluation.bootstrap_samples=50",
            "policy.tiny={width: 16, layers: 1, heads: 2, inner: 16}", "policy.select={candidates: 12, rollouts: 2}",
            "policy.warm_start={trajectories: 40, epochs: 1, histories: {passes: 1}}",
            "policy.stage1={steps: 2, prompts_per_step: 4, rollouts: 2, sequences_per_update: 8, micro_batch: 8}",
            "policy.stage2={steps: 2, prompts_per_step: 4, rollouts: 2, sequences_per_update: 8, micro_batch: 8}",
        )
    ),
]  # fmt: skip


def test_policy_learning(
    sample_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    arguments = ("--data", str(sample_dataset), *TOY_POLICY, "--keep", str(kept))
    found = figures(policy_learning, monkeypatch, tmp_path, *arguments)
    assert {"popularity", "trm", "trm_everything", "one_list", "fusion"} <= set(found["baselines"])
    assert list(found["policy"]) == ["start", "stage1", "stage2"]
    assert found["baselines"]["fusion"]["ndcg@10"] > 0
    parts = ("TRM", "histories", "lessons", "candidates", "prompts", "stage 1", "stage 2", "TRM on everything")
    assert tuple(found["minutes of each"]) == parts
    assert found["verdict"]["sentence"] in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*")}
    names = ("--ablation", "without stage 1", "--ablation", "without point-wise")
    ablated = figures(policy_learning, monkeypatch, tmp_path, *arguments, "--stage-ablations", *names)
    assert [row["name"] for row in ablated["stage ablations"]] == ["without stage 1", "without point-wise"]
    assert all("ndcg@10" in row for row in ablated["stage ablations"])
    assert sorted(path.name for path in (kept / "ablations").iterdir() if path.is_dir()) == [
        "stage2-policy.stage1.steps=0",
        "stage2-rewards.stage2.pointwise=0.0",
    ], "the first stage of the main table is not trained again, and none where there is none"
    name = "answers ranked by the lists"
    started = figures(policy_learning, monkeypatch, tmp_path, *arguments, "--start-ablations", "--ablation", name)
    assert [row["name"] for row in started["start ablations"]] == [name]
    assert set(started["start ablations"][0]["minus as it is"]) == {"mean", "low", "high"}
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items() if path.is_file()), "gone on from"
    strict = ("--set", "policy.stage1.health={min_valid_rate: 1.0, patience: 1}", "--stage-ablations")
    collapsed = figures(policy_learning, monkeypatch, tmp_path, *arguments, *strict, "--ablation", "without diversity")
    assert [row["stopped"].partition(":")[0] for row in collapsed["stage ablations"]] == ["training stopped"]


def test_serving(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (str(small_run / "bundle"), "--features", str(small_run / "features"))
    found = figures(serving, monkeypatch, tmp_path, *arguments, "--at-once", "2", "--seconds", "1")
    assert list(found) == ["bare KServe", "trm", "recommender"]
    assert list(found["trm"]) == ["first time", "2"]
    for rows in found.values():
        for row in rows.values():
            assert row["per second"] > 0
            assert row["not 200"] == 0
            assert 0 < row["p50"] <= row["p99"] <= row["worst"]


def test_serving_beside_another_checkout(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (str(small_run / "bundle"), "--features", str(small_run / "features"))
    beside = (str(ROOT), str(small_run / "bundle"), str(small_run / "features"))
    few = ("--at-once", "2", "--seconds", "1", "--rounds", "1")
    found = figures(serving, monkeypatch, tmp_path, *arguments, *few, "--beside", *beside)
    assert list(found) == ["trm", "recommender"]
    assert all(rows["rates"][0][0] > 0 and len(rows["ratios"]) == 1 for rows in found.values())


@pytest.fixture
def taught_run(built_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A run whose policy answers. Read it, never write into it."""
    plain = built_once("run", make_run)
    return built_once("taught", lambda place: teach(plain, place))


def test_a_store_that_fails(taught_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (str(taught_run / "bundle"), "--features", str(taught_run / "features"), "--requests", "60")
    modes = ("store hung", "store slow", "store gone")
    found = figures(serving_faults, monkeypatch, tmp_path, *arguments, "--deadline-ms", "2000", "--modes", *modes)
    for mode in modes:
        assert (found[mode]["wrong"], found[mode]["failed"]) == (0, {})
        assert found[mode]["not asked after"] > 0
        assert found[mode]["known again after"] > 0
    assert vars(loading)["WorkerExplorer"] is WorkerExplorer, "only the measured recommender has a faulty policy"


def test_serving_life(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures(serving_life, monkeypatch, tmp_path, str(small_run), "--repeats", "1")
    assert {"port", "ready", "SIGTERM, idle", "SIGTERM, loading"} <= set(found)
    assert all(seconds > 0 for [seconds] in found.values())
    assert found["port"] <= found["ready"]


def test_serving_overload(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (str(small_run / "bundle"), "--features", str(small_run / "features"))
    found = figures(serving_overload, monkeypatch, tmp_path, *arguments, "--seconds", "1", "--clients", "12")
    assert found["ticks"] > 0
    assert found["answered a second"] > 0
    assert found["other statuses"] == 0


def test_feature_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--places", "directory", "--users", "40", "--length", "50", "--calls", "200")
    [rows] = figures(feature_store, monkeypatch, tmp_path, *arguments).values()
    assert all(value > 0 for value in rows.values() if isinstance(value, float))
