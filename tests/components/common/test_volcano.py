"""Training jobs as Volcano jobs, compared with files that a person has read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.common.training_app import TrainingJob
from components.common.volcano import Cluster, volcano_job

GOLDEN = Path(__file__).parent / "golden"
ARGUMENTS = ("--recipe", "/runs/one/recipe.yaml", "--data", "s3://bucket/$HOME's data", "--output", "/runs/one")
JOBS = {
    "one_node": TrainingJob(arguments=ARGUMENTS, output="/runs/one", processes=8),
    "elastic": TrainingJob(arguments=ARGUMENTS, output="/runs/one", processes=8, nodes=3, min_nodes=2, name="pretrain"),
}
CLUSTER = Cluster(cpus=96, memory_gib=900, gpus=8, image="registry.example/foundry@sha256:0123", priority_class="high")


def planned(job: TrainingJob) -> dict[str, Any]:
    """The job as it would be submitted, with what TorchX draws anew each time replaced."""
    text = str(volcano_job(job, CLUSTER))
    name = yaml.safe_load(text)["metadata"]["name"]
    text = text.replace(name, "NAME")
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "SESSION", text)
    return yaml.safe_load(text)


@pytest.mark.parametrize("name", JOBS)
def test_the_job_is_the_one_in_the_file(name: str, request: pytest.FixtureRequest) -> None:
    path = GOLDEN / f"{name}.yaml"
    assert planned(JOBS[name]) == yaml.safe_load(path.read_text()), f"read the difference, then write {path.name} anew"


def test_no_pod_that_trains_holds_the_meeting_point() -> None:
    tasks = {task["name"]: task for task in planned(JOBS["elastic"])["spec"]["tasks"]}
    assert list(tasks) == ["store-0", "train-0", "train-1", "train-2"]
    for number in range(3):
        script = tasks[f"train-{number}"]["template"]["spec"]["containers"][0]["command"][-1]
        assert "${VC_STORE_0_HOSTS:=localhost}:29400" in script and "is_host=0" in script and "--nnodes 2:3" in script
    assert tasks["store-0"]["template"]["spec"]["containers"][0]["command"][-2:] == ["--port", "29400"]


def test_one_lost_pod_restarts_no_other() -> None:
    specification = planned(JOBS["elastic"])["spec"]
    assert specification["minAvailable"] == 3 and "policies" not in specification  # the store and two of three nodes
    for task in specification["tasks"]:
        actions = {policy["event"]: policy["action"] for policy in task["policies"]}
        assert actions["PodEvicted"] == "RestartTask" and "RestartJob" not in actions.values()
        assert task["template"]["spec"]["restartPolicy"] == "OnFailure" and task["replicas"] == 1
