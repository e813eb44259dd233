"""gke.sh and gke_jobset.yaml: the rendered YAML has the structure that JobSet and Kubernetes require."""

from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from tests.helpers.launch_scripts import GKE, GPU_NODES, TPU_NODES, WORDS, run_script


def _render(*words: str) -> dict[str, Any]:
    done = run_script([*GKE, "render", *words, *WORDS])
    assert done.returncode == 0, done.stderr
    assert "__" not in done.stdout
    assert "#[" not in done.stdout
    return yaml.safe_load(done.stdout)


def _pod(found: dict[str, Any]) -> dict[str, Any]:
    return found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def _kept(written: Any, understood: Any) -> Any:
    """The part of `written` that is also in `understood`, which has defaults as well."""
    if isinstance(written, dict):
        return {key: _kept(value, understood[key]) for key, value in written.items() if key in understood}
    if isinstance(written, list):
        return [_kept(*pair) for pair in zip(written, understood, strict=True)]
    return understood


EVERYTHING = ["--spot", "--claim", "disk", "--account", "reader", "--max-restarts", "3"]


@pytest.mark.parametrize("nodes", [GPU_NODES, TPU_NODES], ids=["gpu", "tpu"])
@pytest.mark.parametrize("more", [[], EVERYTHING], ids=["least", "everything"])
def test_the_yaml_has_only_fields_of_jobset_and_kubernetes(nodes: list[str], more: list[str]) -> None:
    found = _render(*nodes, *more)
    assert _kept(found, JobsetV1alpha2JobSet.from_dict(found).to_dict()) == found  # it leaves out what it does not know
    (replicated,) = found["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, **replicated["template"]}
    for version in ("1.31", "1.37"):
        kubernetes_validate.validate(job, version, strict=True)


@pytest.mark.parametrize(("nodes", "count"), [(GPU_NODES, 2), (TPU_NODES, 4)], ids=["gpu", "tpu"])
def test_gke_renders_a_jobset(nodes: list[str], count: int) -> None:
    found = _render(*nodes, "--spot")
    assert found.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = found["spec"]
    assert spec.keys() == {"network", "failurePolicy", "replicatedJobs"}
    assert spec["network"]["enableDNSHostnames"] is True
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule.keys() == {"name", "action", "onJobFailureReasons"}
    assert rule["action"] == "FailJobSet"
    reasons = {"BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded"}
    assert set(rule["onJobFailureReasons"]) < reasons  # without PodFailurePolicy, which restarts all pods
    assert spec["failurePolicy"]["maxRestarts"] == 100

    (replicated,) = spec["replicatedJobs"]
    assert replicated.keys() == {"name", "replicas", "template"}
    assert (replicated["name"], replicated["replicas"]) == ("processes", 1)
    job = replicated["template"]["spec"]
    assert (job["completionMode"], job["parallelism"], job["completions"], job["backoffLimit"]) == (
        "Indexed",
        count,
        count,
        0,
    )
    by_code, by_node = job["podFailurePolicy"]["rules"]
    assert by_code["action"] == by_node["action"] == "FailJob"
    assert by_code["onExitCodes"] == {"containerName": "histojax", "operator": "In", "values": [75, 134]}
    assert by_node["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]

    pod = _pod(found)
    assert pod["restartPolicy"] == "Never"  # required by podFailurePolicy
    assert pod["terminationGracePeriodSeconds"] >= 30
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    (container,) = pod["containers"]
    assert container["name"] == by_code["onExitCodes"]["containerName"]
    assert container["args"] == WORDS[1:]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]} == {"memory"}


def test_gke_gives_each_gpu_pod_its_place() -> None:
    (container,) = _pod(_render(*GPU_NODES))["containers"]
    environment = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}
    # JobSet calls pod i of replicated Job r: <jobset>-<r>-0-i, in the subdomain <jobset>.
    assert environment["HISTOJAX_COORDINATOR"] == "run-a-processes-0-0.run-a:8476"
    assert environment["HISTOJAX_NUM_PROCESSES"] == "2"
    path = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert environment["HISTOJAX_PROCESS_ID"] == {"fieldRef": {"fieldPath": path}}
    assert "HISTOJAX_CLUSTER" not in environment
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert container["ports"] == [{"containerPort": 8476}]


def test_gke_lets_tpu_pods_find_each_other() -> None:
    pod = _pod(_render(*TPU_NODES))
    (container,) = pod["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["HISTOJAX_CLUSTER"] == "tpu"
    assert not {"HISTOJAX_COORDINATOR", "HISTOJAX_PROCESS_ID"} & environment.keys()
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }


def test_gke_mounts_a_claim_and_names_an_account() -> None:
    pod = _pod(_render(*GPU_NODES, "--claim", "disk", "--account", "reader", "--max-restarts", "3"))
    assert pod["serviceAccountName"] == "reader"
    assert {"name": "shared", "persistentVolumeClaim": {"claimName": "disk"}} in pod["volumes"]
    assert {"name": "shared", "mountPath": "/shared"} in pod["containers"][0]["volumeMounts"]
    assert "serviceAccountName" not in _pod(_render(*GPU_NODES))


def test_gke_keeps_arguments_unchanged() -> None:
    words = ["--config.data.tiles.labels=('a', \"b\")", "# no comment", "a: [b", "&x", "$(HOME)", "__NAME__"]
    found = yaml.safe_load(run_script([*GKE, "render", *GPU_NODES, "--", *words]).stdout)
    (container,) = _pod(found)["containers"]
    assert container["args"] == [word.replace("$(", "$$(") for word in words]  # so Kubernetes reads $(HOME)
    assert "contains a line end" in run_script([*GKE, "render", *GPU_NODES, "--", "a\nb: c"]).stderr


def test_gke_dry_run() -> None:
    done = run_script([*GKE, "apply", *GPU_NODES, "--namespace", "n", "--dry-run", *WORDS])
    assert done.stdout.splitlines()[0] == "# kubectl --namespace=n apply -f -"
    assert yaml.safe_load(done.stdout)["metadata"]["name"] == "run-a"
    assert run_script([*GKE, "delete", "--name", "a", "--dry-run"]).stdout == "kubectl delete jobset a\n"
    assert "jobset.sigs.k8s.io/jobset-name=a" in run_script([*GKE, "logs", "--name", "a", "--dry-run"]).stdout
