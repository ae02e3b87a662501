"""Fixtures shared by every test: a small generated dataset, a toy TRM and bundle of it, and a scripted policy.

Tests compare bits and mix what is trained with tensors of their own, so they see no GPU, whatever the machine has;
``DEEPREC_TEST_GPU=1`` shows it to those that need one (``pytest -k gpu``). They run in several workers at a time, so
each process has one thread, and a module's tests stay together, the long modules first. ``docs/how-to/test.md`` says
where a new test belongs.
"""

from __future__ import annotations

import fcntl
import functools
import gc
import inspect
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings

from deeprec.config import DataConfig, SampleConfig, TextConfig, TrmConfig
from deeprec.data.dataset import Dataset, read_dataset
from deeprec.data.ingest import ingest
from deeprec.markup import ANSWER_CLOSE, ANSWER_OPEN, MARKUP, PREFERENCE_CLOSE, PREFERENCE_OPEN, THINK_CLOSE
from deeprec.types import Catalogue, Generation, Rule, Segment
from tests import forkserver

if not os.environ.get("DEEPREC_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
settings.register_profile("deeprec", deadline=None)
settings.load_profile("deeprec")

ROOT = Path(__file__).parent
SLOW = (
    "e2e/test_quickstart.py", "e2e/test_pipeline.py", "e2e/test_tutorial.py", "e2e/test_loop.py",
    "integration/test_benchmarks.py",
    "integration/test_vllm_server.py", "integration/test_trm_learning.py",
)  # fmt: skip
"""What takes minutes, the longest first: marked ``slow``, together with the tests that are marked so by hand."""
HEAVY = (
    "integration/", "browser/", "unit/cli/test_policy.py", "unit/docs/test_readme.py",
    "unit/evaluation/test_browser.py",
    "unit/pipelines/test_local.py", "unit/pipelines/test_warm.py", "unit/policy/test_generation.py",
    "unit/policy/test_launch.py", "unit/policy/test_leak.py",
    "unit/policy/test_lora.py", "unit/policy/test_processes.py", "unit/policy/test_resume.py",
    "unit/policy/test_stops.py", "unit/policy/test_tasks.py", "unit/policy/test_trl_adapter.py",
    "unit/policy/test_warm_start.py", "unit/recommender/test_loading.py", "unit/recommender/worker/",
    "unit/trm/test_training.py",
)  # fmt: skip
"""What starts processes, trains for seconds or imports TRL or Feast: marked ``heavy``."""

BuiltOnce = Callable[[str, Callable[[Path], object]], Path]
SMALL = DataConfig(sample=SampleConfig(users=150, items=80, mean_history=16))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out whole modules that ``-m "not slow"`` and the like leave out: importing them takes seconds."""
    mark = _place_mark(collection_path)
    return True if mark and f"not {mark}" in config.option.markexpr else None


TOGETHER = {
    f"tests/{place}": "taught"
    for place in (
        "browser/test_real_server.py",
        "integration/test_call_it_howto.py",
        "integration/test_http_reference.py",
        "integration/test_recommender_api.py",
        "integration/test_servers_apart.py",
    )
}
"""Modules that share servers, and the name of what they share."""


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a module's tests on one worker, and with them those of the modules that it shares servers with.

    By the name of a test's module: xdist 3.8 hands groups on in an attribute that pytest 9.2 no longer reads.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return TOGETHER.get(module, module)

    return Together(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow and heavy by its place, and begin with what takes longest."""
    for item in items:
        if mark := _place_mark(item.path):
            item.add_marker(mark)
    items.sort(key=_rank)


def _place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""


def _place_mark(path: Path) -> str:
    """``slow`` or ``heavy`` for a module below one of these places, and nothing for any other."""
    place = _place(path)
    return "slow" if place.startswith(SLOW) else "heavy" if place.startswith(HEAVY) else ""


def _rank(item: pytest.Item) -> int:
    for rank, start in enumerate((*SLOW, *HEAVY)):
        if _place(item.path).startswith(start):
            return rank
    return len(SLOW) + len(HEAVY)


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> BuiltOnce:
    """``built_once(name, build)``: a directory that ``build(directory)`` fills, once for all workers of this run."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def built(name: str, build: Callable[[Path], object]) -> Path:
        place, done = shared / f"built-{name}", shared / f"built-{name}.done"
        with (shared / f"built-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                build(place)
                done.touch()
        return place

    return built


@pytest.fixture
def forked() -> Iterator[None]:
    """Processes that this test starts, by whatever code, are forked from one that is preloaded: see ``forkserver``."""
    with forkserver.routed():
        yield


@pytest.fixture(scope="module")
def quick_stacks() -> Iterator[None]:
    """Stacks without lines of source: KFP asks 50 times who called it, and pytest's stack is deep."""
    with mock.patch.object(inspect, "stack", functools.partial(inspect.stack, 0)):
        yield


@pytest.fixture
def few_objects() -> Iterator[None]:
    """What exists before the test is hidden from ``gc.get_objects``, which is slow on a large heap."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def sample_dataset(built_once: BuiltOnce) -> Path:
    """A dataset artifact: 150 users, about 80 items, short histories. Read it, never write into it."""
    return built_once("sample", lambda place: ingest(SMALL, 0, place / "dataset")) / "dataset"


@pytest.fixture(scope="session")
def dataset(sample_dataset: Path) -> Dataset:
    """The small dataset in memory."""
    return read_dataset(sample_dataset)


@pytest.fixture(scope="session")
def catalogue(dataset: Dataset) -> Catalogue:
    """The small dataset's catalogue."""
    return dataset.catalogue


@pytest.fixture(scope="session")
def toy_trm(sample_dataset: Path, built_once: BuiltOnce) -> Path:
    """A TRM artifact of the small dataset with the hashing encoder, its weights random. Never write into it."""
    return built_once("trm", lambda place: _build_trm(sample_dataset, place / "trm")) / "trm"


def _build_trm(sample_dataset: Path, place: Path) -> None:
    import numpy as np
    import torch

    from deeprec.data.splits import standalone_sequences
    from deeprec.trm.artifact import TrainedTrm, build_vocabulary, write_trm
    from deeprec.trm.model import Trm
    from deeprec.trm.text import load_embedder

    dataset = read_dataset(sample_dataset)
    text = TextConfig(provider="hashing", width=32)
    rows = [dataset.catalogue.index[item] for items in standalone_sequences(dataset).values() for item in items]
    counts = np.bincount(rows, minlength=len(dataset.catalogue))
    vocabulary = build_vocabulary(dataset.catalogue, load_embedder(text), counts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Trm(TrmConfig(width=16, layers=1, heads=2, max_length=12), torch.from_numpy(vocabulary.item_text))
    curves = [{"epoch": float(epoch), "loss": 4.0 - epoch, "ndcg@10": 0.1 * epoch} for epoch in (1, 2, 3)]
    trained = TrainedTrm(model.eval(), vocabulary, dataset.catalogue)
    write_trm(place, trained, text, {"ndcg@10": 0.3}, curves, parents=(sample_dataset,), seed=4)


@pytest.fixture
def make_bundle(toy_trm: Path, sample_dataset: Path) -> Callable[..., Path]:
    """``make_bundle(out, titles, serve="policy")``: a bundle of the toy TRM and a policy that knows these titles.

    The policy is a tokenizer without weights: it can be read, not run. ``trm`` takes the place of the toy TRM in the
    bundle, not as what the policy was made from.
    """
    from deeprec.bundle.publish import publish
    from deeprec.checks.gate import Verdict
    from deeprec.config import ExploreConfig
    from deeprec.markup import MARKUP
    from deeprec.policy.tiny import build_tokenizer
    from deeprec.store import write_artifact

    def make(
        out: Path, titles: Sequence[str], serve: str = "policy", trm: Path = toy_trm, publication: str = "f00d"
    ) -> Path:
        places = {name: out.parent / f"{out.name}-run" / name for name in ("policy", "evaluation", "features")}
        explore = ExploreConfig(prompt="compact")
        for name, place in places.items():
            parents = [sample_dataset, toy_trm] if name == "policy" else [sample_dataset]
            with write_artifact(place, name, parents=parents) as work:
                (work / "metrics.json").write_text(json.dumps({"verdict": {"serve": serve}}))
                (work / "record.json").write_text(json.dumps({"publication": publication}))
                if name == "policy":
                    build_tokenizer(titles, ["comedy"], [], MARKUP, ["History:\n1. "], explore).save_pretrained(work)
        text, passed = TextConfig(provider="hashing", width=32), Verdict("evaluation", True, "passed", ())
        publish(
            sample_dataset,
            trm,
            **places,
            text=text,
            explore=explore,
            verdict=passed,
            out=out,
        )
        return out

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that DEEPREC_TEST_DATA names, with ml-1m/ and ml-latest-small/; skips where it is not set."""
    folder = os.environ.get("DEEPREC_TEST_DATA", "")
    if not folder:
        pytest.skip("DEEPREC_TEST_DATA is not set; it names a folder with ml-1m/ and ml-latest-small/")
    return Path(folder)


class ScriptedPolicy:
    """One token per character or markup. Calls twice, then answers with the first ``k`` titles shown, in order.

    ``repeats`` users of ten answer with one title k times, which breaks the format. Greedy, whatever it is asked for.
    """

    eos_id = 0

    def __init__(self, preference: str = "comedy", repeats: int = 0, k: int = 5) -> None:
        self.preference, self.repeats, self.k, self.starts = preference, repeats, k, 0
        self.temperatures: set[float] = set()
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def encode(self, text: str) -> list[int]:
        pieces = re.split(f"({'|'.join(map(re.escape, MARKUP))})", text)
        return [
            token
            for piece in pieces
            for token in ([1 + MARKUP.index(piece)] if piece in MARKUP else [100 + ord(letter) for letter in piece])
        ]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join("" if t == 0 else MARKUP[t - 1] if t < 100 else chr(t - 100) for t in token_ids)

    def start(self, prompts: Sequence[Sequence[int]], *, seed: int | None = None) -> Generation:
        self.starts += 1
        return ScriptedGeneration(self, prompts)


class ScriptedGeneration:
    def __init__(self, policy: ScriptedPolicy, prompts: Sequence[Sequence[int]]) -> None:
        self.policy, self.lists = policy, [""] * len(prompts)
        self.odd = [sum(prompt) % 10 < policy.repeats for prompt in prompts]
        self.turn = [0] * len(prompts)

    def append(self, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> None:
        for row, tokens in zip(rows, token_ids, strict=True):
            self.lists[row] += self.policy.decode(tokens)

    def generate(
        self,
        rows: Sequence[int],
        *,
        stop_ids: AbstractSet[int],
        max_new_tokens: int,
        temperature: float,
        rules: Sequence[Rule] = (),
    ) -> list[Segment]:
        self.policy.temperatures.add(temperature)
        segments = []
        for row in rows:
            tokens = self.policy.encode(self._write(row))
            self.turn[row] += 1
            segments.append(Segment(tuple(tokens), (-0.5,) * len(tokens)))
        return segments

    def _write(self, row: int) -> str:
        if self.turn[row] == 0:
            return f"\nA broad look first.\n{PREFERENCE_OPEN}anything{PREFERENCE_CLOSE}"
        if self.turn[row] == 1:
            return f"Narrow it down.\n{PREFERENCE_OPEN}{self.policy.preference}{PREFERENCE_CLOSE}"
        shown = list(dict.fromkeys(re.findall(r"\d+\. (.+) \| \d+\n", self.lists[row])))
        titles = shown[:1] * self.policy.k if self.odd[row] else shown[: self.policy.k]
        lines = "".join(f"{number}. {title}\n" for number, title in enumerate(titles, 1))
        return f"Now rank what was found.\n{THINK_CLOSE}\n{ANSWER_OPEN}\n{lines}{ANSWER_CLOSE}"


@pytest.fixture(scope="session")
def scripted_policy() -> type[ScriptedPolicy]:
    """A policy that is a script at the port: ``scripted_policy(preference="comedy", repeats=0, k=5)``."""
    return ScriptedPolicy
