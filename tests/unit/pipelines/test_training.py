"""The compiled training pipeline: pinned by a golden file, all but its components' source, and contract by contract.

After an intended change: ``make golden``, and read the diff.
"""

import copy
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp.local import graph_utils

from deeprec.config import Config, DataConfig, PolicyConfig, load_config
from deeprec.config.run import PARTS, SECTIONS
from deeprec.errors import ConfigError, PipelineError
from deeprec.pipelines import training
from deeprec.release import STEPS

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parent / "golden" / "train.yaml"
TAGS = ("pipeline.allow_tags=true",)
IN_PODS: dict[str, Any] = {
    "features": {"path": "/features"},
    "pipeline": {"allow_tags": True, "default": {"volumes": [{"claim": "features", "path": "/features"}]}},
}
"""What the default configuration lacks for pods."""
BEHIND = {
    "require-data": "check-data",
    "require-trm": "train-trm",
    "require-stage-1": "train-stage-1",
    "require-stage-2": "train-stage-2",
    "require-evaluation": "evaluate",
}
"""What stands behind each gate of a compiled pipeline."""
GATED = {
    "publish-features": "require-data",
    "train-trm": "require-data",
    "build-policy": "require-trm",
    "train-stage-1": "require-trm",
    "train-stage-2": "require-stage-1",
    "rollout-candidates": "require-trm",
    "rollout-start": "require-trm",
    "rollout-stage-1": "require-stage-1",
    "rollout-stage-2": "require-stage-2",
    "train-trm-everything": "require-trm",
    "evaluate": "require-stage-2",
    "refit": "require-evaluation",
    "publish-bundle": "require-evaluation",
}


def in_pods(**sections: Any) -> Config:
    """The default configuration as pods need it, ``pipeline`` over that."""
    pipeline = {**IN_PODS["pipeline"], **sections.pop("pipeline", {})}
    return Config.model_validate({**IN_PODS, **sections, "pipeline": pipeline})


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp("compiled") / "train.yaml"
    training.compile(load_config(ROOT / "configs" / "cluster.yaml", TAGS), path, data_version="v1")
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def tasks(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {task["taskInfo"]["name"]: task for task in documents[0]["root"]["dag"]["tasks"].values()}


def test_compiled_pipeline_is_the_golden_one(documents: list[dict[str, Any]]) -> None:
    compiled = without_source(documents)
    if os.environ.get("DEEPREC_UPDATE_GOLDEN"):
        text = yaml.safe_dump_all(compiled, sort_keys=True, width=120, allow_unicode=True)
        GOLDEN.write_text(text, encoding="utf-8")
    assert list(yaml.safe_load_all(GOLDEN.read_text(encoding="utf-8"))) == compiled


def without_source(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The documents without what each task's command runs, which the components' own tests are about.

    Its interface, image, resources, environment and volumes stay, and so does the command's shell line.
    """
    found = copy.deepcopy(documents)
    for name, executor in found[0]["deploymentSpec"]["executors"].items():
        *shell, source = executor["container"]["command"]
        function = executor["container"]["args"][-1]
        assert f"def {function}(" in source, name
        executor["container"]["command"] = [*shell, f"the source of {function}"]
    return found


def test_tasks_and_their_order(tasks: dict[str, Any]) -> None:
    assert set(tasks) == {*training.TASKS, *BEHIND}
    spec = training.build(Config().pipeline, in_turn=True).pipeline_spec.root.dag.tasks
    names = {name: task.task_info.name for name, task in spec.items()}
    order = graph_utils.topological_sort_tasks(spec)[::-1]
    assert tuple(names[name] for name in order) == training.TASKS
    waits = {names[name]: {names[other] for other in task.dependent_tasks} for name, task in spec.items()}
    pairs = zip(training.TASKS, training.TASKS[1:], strict=False)
    assert all(earlier in waits[later] for earlier, later in pairs), "no other order is possible"


def test_every_task_has_its_own_component(tasks: dict[str, Any]) -> None:
    assert len({task["componentRef"]["name"] for task in tasks.values()}) == len(tasks)


def test_each_gate_is_an_input_of_what_follows_it(tasks: dict[str, Any]) -> None:
    names = {task["componentRef"]["name"].removeprefix("comp-"): name for name, task in tasks.items()}
    found = {}
    for name, task in tasks.items():
        gate = task["inputs"]["parameters"].get("gate")
        if gate:
            source = gate["taskOutputParameter"]
            assert source["outputParameterKey"] == ("verdict" if name in BEHIND else "passed")
            found[name] = names[source["producerTask"]]
    assert found == GATED | BEHIND


def test_what_a_run_needs_is_looked_for_before_anything_else(tasks: dict[str, Any]) -> None:
    assert "dependentTasks" not in tasks["preflight"]
    told = tasks["preflight"]["inputs"]["parameters"]["pods"]["runtimeValue"]["constant"]
    assert told["pipeline"]["tasks"]["train-stage-1"] == {"gpus": 1, "image": ""}
    assert told["pipeline"]["gpu_pool"]["accelerator"] == "nvidia.com/gpu"
    assert told["mounted"]["data"] == {"preflight": ["/data"], "resolve-data": ["/data"], "ingest": ["/data"]}


def test_every_task_is_given_what_the_first_has_settled(tasks: dict[str, Any]) -> None:
    """So that what somebody overrides in the form that starts a run reaches all of them, and KFP's cache sees it."""
    for name, task in tasks.items():
        given = task["inputs"].get("parameters", {})
        asked = {one["componentInputParameter"] for one in given.values() if "componentInputParameter" in one}
        if name == "preflight":
            assert asked == {"name", "overrides", "seed", *SECTIONS, *PARTS}
        else:
            assert asked == ({"data_version"} if name == "resolve-data" else set())


def test_the_form_that_starts_a_run_says_what_each_parameter_is(documents: list[dict[str, Any]]) -> None:
    parameters = documents[0]["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == {"name", "data_version", "overrides", "seed", *SECTIONS, *PARTS}
    assert all(one["description"].endswith(".") for one in parameters.values())
    assert parameters["overrides"]["description"].startswith("Lines section.key=value, laid over")
    kinds = {name: one["parameterType"] for name, one in parameters.items()}
    assert {name for name, kind in kinds.items() if kind == "STRING"} == {"name", "data_version", "overrides"}
    assert parameters["name"]["defaultValue"] == "cluster"
    assert parameters["overrides"]["defaultValue"] == ""


def test_reports_gates_and_figures_are_artifacts_of_their_types(documents: list[dict[str, Any]]) -> None:
    """What KFP's page shows of a task: HTML, Markdown, and tables of metrics."""
    found: dict[str, dict[str, str]] = {}
    for name, component in documents[0]["components"].items():
        for key, one in component.get("outputDefinitions", {}).get("artifacts", {}).items():
            found.setdefault(name.removeprefix("comp-"), {})[key] = one["artifactType"]["schemaTitle"]
    for name in ("check-data", "train-trm", "train-stage", "train-stage-2", "evaluate"):
        assert (found[name]["report"], found[name]["outcome"]) == ("system.HTML", "system.Markdown")
    measured = {name for name, outputs in found.items() if outputs.get("metrics") == "system.Metrics"}
    assert measured == {
        "check-data", "publish-features", "train-trm", "build-policy", "rollout", "rollout-2", "rollout-3", "rollout-4",
        "select-prompts", "train-stage", "train-stage-2", "train-trm-everything", "evaluate",
    }  # fmt: skip


def test_a_refusal_takes_no_accelerator_and_is_not_tried_again(
    documents: list[dict[str, Any]], tasks: dict[str, Any]
) -> None:
    assert "retryPolicy" not in tasks["preflight"], "nor is a configuration that cannot be"
    for name in BEHIND:
        assert "retryPolicy" not in tasks[name]
        container = documents[0]["deploymentSpec"]["executors"][executor(tasks, name)]["container"]
        assert "accelerator" not in container["resources"]
        assert (container["resources"]["resourceCpuRequest"], container["resources"]["resourceMemoryRequest"]) == (
            "250m",
            "1Gi",
        )
    local = training.build(Config().pipeline, in_turn=True).pipeline_spec.root.dag.tasks
    assert {task.task_info.name for task in local.values()} == set(training.TASKS), "locally a refusal costs nothing"


def test_a_task_of_days_is_tried_again(tasks: dict[str, Any]) -> None:
    """KFP's SDK ends all attempts an hour after the first one began."""
    for name in set(training.TASKS) - {"preflight"}:
        assert int(tasks[name]["retryPolicy"]["backoffMaxDuration"].removesuffix("s")) > 10 * 365 * 86400


def executor(tasks: dict[str, Any], name: str) -> str:
    return str(tasks[name]["componentRef"]["name"]).replace("comp-", "exec-")


def artifacts_of(tasks: dict[str, Any], name: str) -> dict[str, tuple[str, str]]:
    """Artifact inputs of a task: the task each comes from, and its output."""
    names = {task["componentRef"]["name"].removeprefix("comp-"): other for other, task in tasks.items()}
    sources = {key: given["taskOutputArtifact"] for key, given in tasks[name]["inputs"]["artifacts"].items()}
    return {key: (names[one["producerTask"]], one["outputArtifactKey"]) for key, one in sources.items()}


def test_the_trm_on_everything_is_trained_beside_the_policy(tasks: dict[str, Any]) -> None:
    """It needs no policy, so that on a cluster neither waits for the other."""
    assert set(tasks["train-trm-everything"]["dependentTasks"]) == {"ingest", "preflight", "require-2"}
    given = tasks["train-trm-everything"]["inputs"]["parameters"]
    assert given["trm"] == tasks["train-trm"]["inputs"]["parameters"]["trm"]
    assert artifacts_of(tasks, "train-trm-everything") == {"dataset": ("ingest", "dataset")}


def test_evaluation_is_given_all_that_took_time(tasks: dict[str, Any]) -> None:
    assert artifacts_of(tasks, "evaluate") == {
        "dataset": ("ingest", "dataset"),
        "trm": ("train-trm", "model"),
        "trm_everything": ("train-trm-everything", "model"),
        "start": ("build-policy", "start"),
        "candidates": ("rollout-candidates", "rollouts"),
        "prompts": ("select-prompts", "prompts"),
        "stage1": ("train-stage-1", "trained"),
        "stage2": ("train-stage-2", "trained"),
        "start_rollouts": ("rollout-start", "rollouts"),
        "stage1_rollouts": ("rollout-stage-1", "rollouts"),
        "stage2_rollouts": ("rollout-stage-2", "rollouts"),
    }


def test_what_fails_after_a_rollout_does_not_roll_out_again(tasks: dict[str, Any]) -> None:
    """Each policy is rolled out by tasks of its own, that KFP's cache keeps, as soon as there is one."""
    policies = {
        "rollout-candidates": ("build-policy", "start"),
        "rollout-start": ("build-policy", "start"),
        "rollout-stage-1": ("train-stage-1", "trained"),
        "rollout-stage-2": ("train-stage-2", "trained"),
    }
    for name, policy in policies.items():
        found = artifacts_of(tasks, name)
        assert found["policy"] == policy
        assert tasks[name]["cachingOptions"]["enableCache"]
        assert "evaluation" not in tasks[name]["inputs"]["parameters"]
    assert artifacts_of(tasks, "select-prompts") == {
        "dataset": ("ingest", "dataset"),
        "rollouts": ("rollout-candidates", "rollouts"),
    }


def test_the_bundle_takes_its_trm_from_the_refit_and_that_from_the_policys_own(tasks: dict[str, Any]) -> None:
    assert artifacts_of(tasks, "refit") == {
        "dataset": ("ingest", "dataset"),
        "policy_trm": ("train-trm", "model"),
    }, "the evaluation says what serves, and another with the same outcome trains nothing anew"
    bundle = artifacts_of(tasks, "publish-bundle")
    assert bundle["trm"] == ("refit", "model")
    assert bundle["policy"] == ("train-stage-2", "trained")


def test_tasks_with_side_effects_and_those_that_look_outside_are_never_cached(tasks: dict[str, Any]) -> None:
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}
    assert cached == {*training.TASKS, *BEHIND} - {"preflight", "resolve-data", "publish-features", "publish-bundle"}


def test_data_are_read_again_when_their_name_has_changed(tasks: dict[str, Any]) -> None:
    """KFP's cache asks for equal inputs: the one that changes is what a task that is never cached has found."""
    given = tasks["ingest"]["inputs"]["parameters"]["data_version"]["taskOutputParameter"]
    assert given == {"producerTask": "resolve-data", "outputParameterKey": "version"}


def test_nothing_is_installed_when_a_task_starts(documents: list[dict[str, Any]]) -> None:
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        assert "pip install" not in " ".join(executor["container"]["command"])


def test_configuration_sections_are_parameters(documents: list[dict[str, Any]]) -> None:
    parameters = documents[0]["root"]["inputDefinitions"]["parameters"]
    assert parameters["trm"]["parameterType"] == "STRUCT"
    assert parameters["trm"]["defaultValue"]["epochs"] == 40
    assert parameters["seed"]["defaultValue"] == 7
    assert parameters["data_version"]["defaultValue"] == "v1"
    assert not {"pipeline", "serving"} & set(parameters)


def test_arguments_hold_the_whole_policy_in_parts() -> None:
    config = Config()
    found = training.arguments(config)
    parts = {name: found[name] for name in ("warm_start", "select", "stage1", "stage2")}
    assert PolicyConfig.model_validate({**found["policy"], **parts}) == config.policy


def test_resources_retries_and_image(documents: list[dict[str, Any]], tasks: dict[str, Any]) -> None:
    executors = documents[0]["deploymentSpec"]["executors"]
    stage = executors[tasks["train-stage-1"]["componentRef"]["name"].replace("comp-", "exec-")]["container"]
    assert stage["image"] == "deeprec-train:0.2.0"
    assert stage["resources"]["resourceCpuRequest"] == stage["resources"]["resourceCpuLimit"] == "8"
    assert stage["resources"]["resourceMemoryRequest"] == stage["resources"]["resourceMemoryLimit"] == "128Gi"
    assert stage["resources"]["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert stage["resources"]["accelerator"]["resourceCount"] == "1"
    assert {"name": "DEEPREC_GPUS", "value": "1"} in stage["env"]
    assert "accelerator" not in executors["exec-ingest"]["container"]["resources"]
    assert tasks["train-stage-1"]["retryPolicy"]["maxRetryCount"] == 2
    assert tasks["evaluate"]["retryPolicy"]["maxRetryCount"] == 1


def test_gpu_pool_is_given_to_tasks_with_accelerators_only(documents: list[dict[str, Any]]) -> None:
    pods = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    pods = {name: pod for name, pod in pods.items() if "nodeSelector" in pod}
    assert set(pods) == {
        "exec-train-trm",
        "exec-rollout",
        "exec-rollout-2",
        "exec-rollout-3",
        "exec-rollout-4",
        "exec-train-stage",
        "exec-train-stage-2",
        "exec-train-trm-everything",
        "exec-refit",
    }
    for pod in pods.values():
        assert pod["nodeSelector"]["labels"] == {"nvidia.com/gpu.present": "true"}
        assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        assert pod["emptyDirMounts"][1:] == [
            {"volumeName": "shared-memory", "mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "16Gi"}
        ]


def test_training_tasks_keep_their_checkpoints_on_the_claim(documents: list[dict[str, Any]], tmp_path: Path) -> None:
    """A pod's own disk ends with it, and KFP starts a failed task in another."""
    assert "/mnt/checkpoints" not in json.dumps(documents)
    training.compile(in_pods(pipeline={"checkpoints_claim": "kept"}), tmp_path / "train.yaml")
    graph, platforms = yaml.safe_load_all((tmp_path / "train.yaml").read_text())
    pods = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    mounted = {"exec-train-trm", "exec-train-stage", "exec-train-stage-2", "exec-train-trm-everything", "exec-refit"}
    claims = {name: [one for one in pod.get("pvcMount", ()) if one["constant"] == "kept"] for name, pod in pods.items()}
    assert {name for name, found in claims.items() if found} == mounted
    for name, executor in graph["deploymentSpec"]["executors"].items():
        told = {"name": "DEEPREC_CHECKPOINTS_CLAIM", "value": "/mnt/checkpoints"} in executor["container"].get(
            "env", []
        )
        assert told == (name in mounted)
        if told:
            [claim] = claims[name]
            assert (claim["mountPath"], claim["constant"]) == ("/mnt/checkpoints", "kept")


def test_a_task_that_does_not_exist_is_refused() -> None:
    settings = Config.model_validate({"pipeline": {"tasks": {"train": {}}}}).pipeline
    with pytest.raises(ConfigError, match=r"pipeline.tasks.train: there is no such task; the tasks are preflight"):
        training.build(settings)


def test_a_quantity_that_does_not_exist_is_refused() -> None:
    settings = Config.model_validate({"pipeline": {"tasks": {"ingest": {"memory": "lots"}}}}).pipeline
    with pytest.raises(ConfigError, match=r"pipeline\.tasks\.ingest"):
        training.build(settings)


def test_a_server_cannot_be_the_engine_of_a_run(tmp_path: Path) -> None:
    """It would have to serve policies that the run is yet to make; what can be told before hours of training is."""
    config = Config.model_validate({"explore": {"engine": {"kind": "server", "url": "http://policy:8000"}}})
    for submit in (lambda: training.arguments(config), lambda: training.compile(config, tmp_path / "train.yaml")):
        with pytest.raises(ConfigError, match=r"explore\.engine\.kind is 'server'.*http://policy:8000 cannot"):
            submit()
    assert list(tmp_path.iterdir()) == []
    in_process = Config.model_validate({"explore": {"engine": {"kind": "vllm"}}})
    assert training.arguments(in_process)["explore"]["engine"]["kind"] == "vllm"


def test_a_judge_without_histories_is_refused_before_anything_is_trained() -> None:
    warm_start = {"judge": "histories"}
    with pytest.raises(ConfigError, match=r"histories\.passes is 0, .* set passes to 1 or more, or judge to 'lists'"):
        training.arguments(Config.model_validate({"policy": {"warm_start": warm_start}}))
    training.arguments(Config.model_validate({"policy": {"model": "some/model", "warm_start": warm_start}}))


def test_a_file_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="cannot write"):
        training.compile(in_pods(), tmp_path / "absent" / "train.yaml")


def test_parameters_hold_no_null_and_say_the_same(tmp_path: Path) -> None:
    config = in_pods(data={"year_column": None}, explore={"prompt": "compact"})
    given = training.arguments(config)
    assert "null" not in json.dumps(given)
    assert DataConfig.model_validate(given["data"]) == config.data
    training.compile(config, tmp_path / "train.yaml")


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"nodes": 2, "per_node": 8}, r"nodes is 2, but a task of the pipeline is one pod; .*deeprec policy trainjob"),
        ({"per_node": 8}, r"train-stage-1\.gpus is 4, but policy\.parallel\.per_node is 8"),
    ],
)
def test_processes_that_do_not_fit_their_pod_are_refused(parallel: dict[str, int], message: str) -> None:
    tree = {"policy": {"parallel": parallel}, "pipeline": {"tasks": {"train-stage-1": {"gpus": 4}}}}
    with pytest.raises(ConfigError, match=message):
        training.arguments(Config.model_validate(tree))


def test_a_7b_model_gets_eight_accelerators_for_its_eight_processes(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "qwen2.5-7b.yaml", TAGS)
    training.compile(config, tmp_path / "train.yaml")
    compiled = next(yaml.safe_load_all((tmp_path / "train.yaml").read_text(encoding="utf-8")))
    stage = compiled["deploymentSpec"]["executors"]["exec-train-stage"]["container"]
    assert stage["resources"]["accelerator"]["resourceCount"] == "8"
    assert {"name": "DEEPREC_GPUS", "value": "8"} in stage["env"]
    policy = compiled["root"]["inputDefinitions"]["parameters"]["policy"]["defaultValue"]
    assert policy["parallel"] == {"nodes": 1, "per_node": 8, "strategy": "fsdp"}
    assert policy["generation"]["engine"] == "vllm"


class TestRelease:
    """What a pipeline that releases has besides."""

    @pytest.fixture(scope="class")
    def compiled(self, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        file = tmp_path_factory.mktemp("release") / "train.yaml"
        config = in_pods(bundle={"uri": "s3://shop/bundles"}, release={"enabled": True, "name": "shop"})
        training.compile(config, file)
        found: dict[str, Any] = next(yaml.safe_load_all(file.read_text(encoding="utf-8")))
        return found

    def test_its_steps_stand_behind_the_bundle_and_the_comparison_with_what_is_live(
        self, compiled: dict[str, Any]
    ) -> None:
        tasks = compiled["root"]["dag"]["tasks"]
        shown = {task["taskInfo"]["name"]: name for name, task in tasks.items()}
        added = {"compare-with-live", "require-compare", "release-end", "release"}
        assert set(shown) - {*training.TASKS, *BEHIND} == added
        assert set(tasks[shown["release"]]["dependentTasks"]) >= {shown["publish-bundle"], shown["require-compare"]}
        inside = compiled["components"][tasks[shown["release"]]["componentRef"]["name"]]["dag"]["tasks"]
        steps = {task["taskInfo"]["name"]: (name, task) for name, task in inside.items()}
        assert set(steps) == {f"release-{step}" for step in STEPS}
        for before, after in pairwise(STEPS):
            name, _ = steps[f"release-{before}"]
            _, task = steps[f"release-{after}"]
            gate = task["inputs"]["parameters"]["gate"]["taskOutputParameter"]
            assert gate == {"producerTask": name, "outputParameterKey": "passed"}
        assert not any(task["cachingOptions"].get("enableCache") for _, task in steps.values())

    def test_its_end_runs_however_the_steps_end_and_takes_no_tasks_output(self, compiled: dict[str, Any]) -> None:
        tasks = compiled["root"]["dag"]["tasks"]
        end = tasks["release-end"]
        assert end["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
        assert not any("taskOutputParameter" in given for given in end["inputs"]["parameters"].values())
        run = end["inputs"]["parameters"]["run"]["runtimeValue"]["constant"]
        assert run == "{{$.pipeline_job_uuid}}", "which names the release in its record"

    def test_nothing_of_it_is_in_a_pipeline_that_does_not_release(self, tasks: dict[str, Any]) -> None:
        assert not any(name.startswith(("release", "compare", "exit")) for name in tasks)

    def test_a_shelf_has_to_be_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"bundle\.uri is empty"):
            training.compile(in_pods(release={"enabled": True}), tmp_path / "train.yaml")
