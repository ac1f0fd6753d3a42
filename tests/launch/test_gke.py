"""The JobSet that launch/gke/render.py makes: what its schema asks for, and what processes need to
find each other.
"""

import pathlib
import subprocess
import sys

import pytest
import yaml

REPO = pathlib.Path(__file__).resolve().parents[2]
JOB = ("--config=experiments/configs/tiny.py", "--workdir=/data/it's $HOME")
# Fields that the CRD (jobset.x-k8s.io/v1alpha2, release 0.9) and Kubernetes' Job and Pod require,
# by the path of the object that has them.
REQUIRED = {
    (): ("apiVersion", "kind", "metadata", "spec"),
    ("spec", "replicatedJobs", 0): ("name", "template"),
    ("spec", "replicatedJobs", 0, "template", "spec"): ("template",),
    ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec"): (
        "containers",
        "restartPolicy",
    ),
    ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0): (
        "name",
        "image",
    ),
    (
        "spec",
        "replicatedJobs",
        0,
        "template",
        "spec",
        "template",
        "spec",
        "containers",
        0,
        "volumeMounts",
        0,
    ): ("name", "mountPath"),
    ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "volumes", 0): ("name",),
}
KNOWN = {  # fields that these objects may have
    (
        "spec",
    ): "coordinator failurePolicy managedBy network replicatedJobs startupPolicy successPolicy "
    "suspend ttlSecondsAfterFinished"
    " volumeClaimPolicies",
    ("spec", "failurePolicy"): "maxRestarts restartStrategy rules",
    ("spec", "replicatedJobs", 0): "dependsOn groupName name replicas template",
    ("spec", "replicatedJobs", 0, "template", "spec"): "activeDeadlineSeconds backoffLimit "
    "backoffLimitPerIndex completionMode completions"
    " managedBy manualSelector maxFailedIndexes parallelism"
    " podFailurePolicy podReplacementPolicy selector successPolicy suspend template "
    "ttlSecondsAfterFinished",
}


def render(*options: str) -> dict:
    command = [
        sys.executable,
        "launch/gke/render.py",
        "grm",
        "--image=registry/grm:1",
        *options,
        "--",
        *JOB,
    ]
    return yaml.safe_load(
        subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True).stdout
    )


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


@pytest.fixture(scope="module")
def tpu() -> dict:
    return render(
        "--tpu=tpu-v5p-slice:4x4x4",
        "--slices=2",
        "--volume=gs://bucket",
        "--service-account=writer",
        "--restarts=7",
        "--env=A=b=c",
    )


@pytest.fixture(scope="module")
def gpu() -> dict:
    return render(
        "--gpu=nvidia-h100-80gb:8",
        "--hosts=3",
        "--volume=pvc:share",
        "--job=experiments.reward_model",
    )


@pytest.mark.parametrize("which", ["tpu", "gpu"])
def test_fields_of_the_schema(request, which):
    found = request.getfixturevalue(which)
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    for path, fields in REQUIRED.items():
        assert set(fields) <= at(found, path).keys(), path
    for path, fields in KNOWN.items():
        assert at(found, path).keys() <= set(fields.split()), path
    pod = found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    texts = [
        *pod["nodeSelector"].values(),
        *(one.get("value", "") for one in pod["containers"][0]["env"]),
    ]
    assert all(isinstance(text, str) for text in texts)
    assert pod["containers"][0]["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]


def test_tpu(tpu):
    (workers,) = tpu["spec"]["replicatedJobs"]
    job, pod = workers["template"]["spec"], workers["template"]["spec"]["template"]["spec"]
    assert (
        workers["replicas"],
        job["parallelism"],
        job["completions"],
        job["completionMode"],
        job["backoffLimit"],
    ) == (2, 16, 16, "Indexed", 0)
    assert tpu["metadata"] == {
        "name": "grm",
        "annotations": {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        },
    }
    rule = {
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    assert tpu["spec"]["failurePolicy"] == {"maxRestarts": 7, "rules": [rule]}
    # what is no failure ends the pod's Job for that reason: a preemption, and the status of a job
    # that saved or came further
    assert job["podFailurePolicy"]["rules"] == [
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]},
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": pod["containers"][0]["name"],
                "operator": "In",
                "values": [75],
            },
        },
    ]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
    }
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert container["command"] == [
        "python",
        "launch/supervise.py",
        "--restarts=0",
        "--logs=/data/it's $HOME/logs",
        "--",
        "python",
        "-m",
        "experiments.spct_rl",
        *JOB,
    ]
    assert {"name": "A", "value": "b=c"} in container["env"] and not any(
        one["name"].startswith("GRM_JAX") for one in container["env"]
    )
    attributes = {
        "bucketName": "bucket",
        "mountOptions": "implicit-dirs,metadata-cache:ttl-secs:0,rename-dir-limit=100000",
    }
    assert pod["volumes"] == [
        {
            "name": "data",
            "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes},
        }
    ]
    assert (
        job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
        and pod["serviceAccountName"] == "writer"
    )


def test_gpu(gpu):
    (workers,) = gpu["spec"]["replicatedJobs"]
    job, pod = workers["template"]["spec"], workers["template"]["spec"]["template"]["spec"]
    assert (workers["replicas"], job["parallelism"], job["completions"]) == (1, 3, 3)
    (container,) = pod["containers"]
    assert (
        container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
        and "experiments.reward_model" in container["command"]
    )
    env = {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}
    assert (env["GRM_JAX_COORDINATOR"], env["GRM_JAX_NUM_PROCESSES"]) == (
        "grm-workers-0-0.grm:8476",
        "3",
    )
    assert env["GRM_JAX_PROCESS_ID"] == {
        "fieldRef": {
            "fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        }
    }
    assert pod["volumes"] == [{"name": "data", "persistentVolumeClaim": {"claimName": "share"}}]


def test_the_supervisor_ends_before_kubernetes_kills_it(tpu):
    pod = tpu["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    command = [*pod["containers"][0]["command"][2:4], "--dry-run", "--", "true"]
    said = subprocess.run(
        [sys.executable, "launch/supervise.py", *command],
        cwd=REPO,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "SIGKILL follows after 120 s" in said and pod["terminationGracePeriodSeconds"] > 120
