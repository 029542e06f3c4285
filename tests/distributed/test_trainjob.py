"""The Kubernetes manifest: a TrainJob as Kubeflow defines it, and one that our launcher takes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from eager.distributed.run import make_job
from eager.errors import ArgumentError

FOLDER = Path(__file__).parents[2] / "tutorials" / "kubernetes"


@pytest.fixture
def manifest() -> dict[str, Any]:
    found = yaml.safe_load((FOLDER / "trainjob.yaml").read_text())
    assert isinstance(found, dict)
    return found


def validate(manifest: dict[str, Any]) -> None:
    """Reads the manifest with the models that the `kubeflow` package sends to the cluster, and
    writes it back: what they do not know is lost on the way."""
    job = TrainerV1alpha1TrainJob.from_dict(manifest)
    assert job is not None and job.to_dict() == manifest


def test_the_manifest_is_a_trainjob(manifest: dict[str, Any]) -> None:
    validate(manifest)
    assert manifest["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    assert manifest["kind"] == "TrainJob"


@pytest.mark.parametrize(
    "path",
    [(), ("spec",), ("spec", "trainer"), ("spec", "runtimeRef"), ("spec", "trainer", "env", 0)],
)
def test_unknown_fields_are_found(manifest: dict[str, Any], path: tuple[Any, ...]) -> None:
    place: Any = manifest
    for step in path:
        place = place[step]
    place["numberOfNodes"] = 2
    with pytest.raises(AssertionError):
        validate(manifest)


def test_wrong_types_are_found(manifest: dict[str, Any]) -> None:
    manifest["spec"]["trainer"]["numNodes"] = "two"
    with pytest.raises(ValueError, match="numNodes"):
        validate(manifest)


def pod(manifest: dict[str, Any], index: int) -> dict[str, str]:
    """The variables of a pod: the job's, with the secret's value, and Kubeflow's."""
    trainer, name = manifest["spec"]["trainer"], manifest["metadata"]["name"]
    own = {e["name"]: e.get("value", "from the secret") for e in trainer["env"]}
    assert not any(n.startswith("PET_") for n in own)  # Kubeflow keeps these for itself
    return {
        "PET_NNODES": str(trainer["numNodes"]),
        "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
        "PET_NODE_RANK": str(index),
        "PET_MASTER_ADDR": f"{name}-node-0-0.{name}",
        "PET_MASTER_PORT": "29500",
        **own,
    }


def test_the_launcher_understands_it(manifest: dict[str, Any]) -> None:
    trainer = manifest["spec"]["trainer"]
    assert trainer["command"] == ["python", "-m", "eager.distributed.run"]
    for index in range(trainer["numNodes"]):
        job = make_job(trainer["args"], pod(manifest, index))
        assert (job.rules.min_nodes, job.rules.max_nodes, job.workers) == (2, 2, 2)
        assert (job.node_rank, job.serves) == (index, index == 0)
        assert (job.host, job.port) == ("eager-ddp-node-0-0.eager-ddp", 29500)
        assert job.secret == "from the secret"
        assert job.command[1:] == ["-u", *trainer["args"][trainer["args"].index("/app/train.py") :]]
        grace = manifest["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]
        pods = grace["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        assert job.grace < pods["terminationGracePeriodSeconds"]


def test_nodes_do_not_start_without_the_secret(manifest: dict[str, Any]) -> None:
    environ = pod(manifest, 0)
    secret = next(e for e in manifest["spec"]["trainer"]["env"] if "valueFrom" in e)
    assert secret["valueFrom"]["secretKeyRef"]["name"] == manifest["metadata"]["name"]
    del environ[secret["name"]]
    with pytest.raises(ArgumentError, match="needs a secret"):
        make_job(manifest["spec"]["trainer"]["args"], environ)


def test_its_variables_are_eager_s(manifest: dict[str, Any]) -> None:
    source = "".join(
        f.read_text() for f in (Path(__file__).parents[2] / "eager" / "distributed").rglob("*.py")
    )
    for entry in manifest["spec"]["trainer"]["env"]:
        assert entry["name"] in source


def test_the_script_takes_its_arguments(manifest: dict[str, Any]) -> None:
    arguments = manifest["spec"]["trainer"]["args"]
    flags = [a.partition("=")[0] for a in arguments[arguments.index("/app/train.py") + 1 :]]
    script = (FOLDER / os.path.basename("/app/train.py")).read_text()
    assert set(flags) <= set(re.findall(r'add_argument\("(--[\w-]+)"', script))
