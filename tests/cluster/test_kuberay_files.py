"""The Kubernetes files have the fields that KubeRay has, and keep what the launcher's files keep."""

import shlex
from pathlib import Path

import pytest
import yaml

from rcdist.config.cli import read_config
from tests.conftest import ROOT

FOLDER = ROOT / "cluster" / "kuberay"
CLUSTER_FIELDS = {
    "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions", "headGroupSpec", "workerGroupSpecs",
    "suspend", "managedBy", "gcsFaultToleranceOptions", "headServiceAnnotations",
}  # fmt: skip
GROUP_FIELDS = {
    "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "idleTimeoutSeconds", "rayStartParams",
    "resources", "labels", "template", "scaleStrategy", "suspend",
}  # fmt: skip
JOB_FIELDS = {
    "entrypoint", "clusterSelector", "submissionMode", "runtimeEnvYAML", "rayClusterSpec", "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished", "backoffLimit", "activeDeadlineSeconds", "metadata", "jobId", "submitterPodTemplate",
}  # fmt: skip
"""Of ray.io/v1 in KubeRay 1.5."""


def read(name: str) -> list[dict]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


@pytest.fixture
def cluster() -> dict:
    found, claim = read("raycluster.yaml")
    assert (found["apiVersion"], found["kind"], claim["kind"]) == ("ray.io/v1", "RayCluster", "PersistentVolumeClaim")
    return found


def test_fields_are_those_of_kuberay(cluster: dict) -> None:
    spec = cluster["spec"]
    assert spec.keys() <= CLUSTER_FIELDS
    assert spec["headGroupSpec"].keys() <= GROUP_FIELDS | {"serviceType", "headService", "enableIngress"}
    for group in spec["workerGroupSpecs"]:
        assert group.keys() <= GROUP_FIELDS
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
    assert spec["autoscalerOptions"]["version"] == "v2" and spec["enableInTreeAutoscaling"]


def test_pods_have_no_rights_and_services_stay_inside(cluster: dict) -> None:
    spec = cluster["spec"]
    assert spec["authOptions"] == {"mode": "token"} and spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1001
        (container,) = pod["containers"]
        # Guaranteed pods: what is asked for is what there is, and Ray counts the same.
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["volumeMounts"][0]["mountPath"] == "/shared"
    assert "USER ray" in (ROOT / "cluster" / "Dockerfile").read_text()


def test_the_job_is_one_that_the_command_line_takes() -> None:
    (job,) = read("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob") and job["spec"].keys() <= JOB_FIELDS
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": "rcdist"}
    python, script, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert python == "python" and (ROOT / "jobs" / Path(script).name).is_file()
    config = read_config(arguments, "test", presets=ROOT / "jobs" / "configs")
    assert config.cluster.num_workers == (1, 8) and str(config.storage).startswith("/shared")
