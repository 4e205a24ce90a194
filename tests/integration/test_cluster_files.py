"""The cluster files are what Ray accepts, and their resources and labels bring an actor to the right node.

The two-node cluster runs in a process of its own (`python test_cluster_files.py`), because a process can be
connected to one Ray only and the other integration tests share theirs.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHER = REPOSITORY / "ray_cluster.yaml"
KUBERAY = REPOSITORY / "deploy" / "kuberay.yaml"


def load_launcher() -> dict[str, Any]:
    return yaml.safe_load(LAUNCHER.read_text(encoding="utf-8"))


def load_kuberay() -> dict[str, dict[str, Any]]:
    """Returns the manifests of the file by kind."""
    return {
        manifest["kind"]: manifest for manifest in yaml.safe_load_all(KUBERAY.read_text(encoding="utf-8"))
    }


@pytest.fixture
def launcher() -> dict[str, Any]:
    return load_launcher()


@pytest.fixture
def ray_cluster() -> dict[str, Any]:
    return load_kuberay()["RayCluster"]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Does what `ray up` does before it talks to the cloud: fills in defaults, validates by Ray's schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def _derive(cluster: dict[str, Any]) -> dict[str, Any]:
    """Does what the autoscaler does in the head pod: reads node types from the RayCluster, validates them."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    return _derive_autoscaling_config_from_ray_cr(copy.deepcopy(cluster))


def test_launcher_file_passes_rays_schema(launcher: dict[str, Any]) -> None:
    prepared = _prepare(launcher)
    assert prepared["cluster_name"] == "graft"
    assert prepared["head_node_type"] == "head"
    assert prepared["available_node_types"]["gpu_worker"]["min_workers"] == 0
    assert prepared["available_node_types"]["gpu_worker"]["max_workers"] == prepared["max_workers"] == 4


def test_launcher_schema_refuses_an_unknown_key(launcher: dict[str, Any]) -> None:
    import jsonschema

    launcher["available_node_types"]["gpu_worker"]["resource"] = {"graft_generator": 1}
    with pytest.raises(jsonschema.ValidationError, match="resource"):
        _prepare(launcher)


def test_launcher_sets_up_every_node_from_this_repository(launcher: dict[str, Any]) -> None:
    prepared = _prepare(launcher)
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^setup:", makefile, re.MULTILINE)
    for commands in (prepared["head_setup_commands"], prepared["worker_setup_commands"]):
        steps = [
            next(i for i, command in enumerate(commands) if step in command)
            for step in (
                "git clone",
                "git -C ~/graft fetch",
                "make -C ~/graft setup",
                "graft/.venv/bin:$PATH",
            )
        ]
        assert steps == sorted(steps)
    assert prepared["file_mounts"] == {}


@pytest.mark.parametrize("key", ["setup_commands", "head_setup_commands", "head_start_ray_commands"])
def test_launcher_commands_are_valid_shell(launcher: dict[str, Any], key: str) -> None:
    for command in launcher[key]:
        subprocess.run(["bash", "-n", "-c", command], check=True, timeout=10)


def test_launcher_start_commands_use_options_ray_has(launcher: dict[str, Any]) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    by_hand = [line for line in LAUNCHER.read_text(encoding="utf-8").splitlines() if line.startswith("#   ")]
    starts = [
        command
        for command in (
            *launcher["head_start_ray_commands"],
            *launcher["worker_start_ray_commands"],
            *by_hand,
        )
        if "ray start" in command
    ]
    assert len(starts) == 4
    for command in starts:
        used = set(re.findall(r"(?<=\s)--[a-z-]+", command.split("ray start", 1)[1]))
        assert used
        assert used <= known


def test_kuberay_manifest_gives_ray_its_node_types(ray_cluster: dict[str, Any]) -> None:
    derived = _derive(ray_cluster)
    head, worker = (derived["available_node_types"][name] for name in ("headgroup", "gpu-worker"))
    assert "GPU" not in head["resources"]
    assert worker["resources"]["GPU"] == worker["resources"]["graft_generator"] == 1
    assert (worker["min_workers"], worker["max_workers"]) == (0, 4)
    assert derived["idle_timeout_minutes"] == 15


def test_kuberay_parser_refuses_a_bad_label(ray_cluster: dict[str, Any]) -> None:
    ray_cluster["spec"]["headGroupSpec"]["labels"] = {"graft role": "index"}
    with pytest.raises(ValueError, match="graft role"):
        _derive(ray_cluster)


def test_both_files_give_the_same_resources_and_labels(
    launcher: dict[str, Any], ray_cluster: dict[str, Any]
) -> None:
    machines = _prepare(launcher)["available_node_types"]
    pods = _derive(ray_cluster)["available_node_types"]
    for machine, pod in (("head", "headgroup"), ("gpu_worker", "gpu-worker")):
        ours = {name: n for name, n in pods[pod]["resources"].items() if name.startswith("graft_")}
        assert machines[machine]["resources"] == ours
        assert machines[machine]["labels"] == pods[pod]["labels"]


def test_kuberay_manifest_matches_the_installed_ray(ray_cluster: dict[str, Any]) -> None:
    import ray

    assert ray_cluster["apiVersion"] == "ray.io/v1"
    assert ray_cluster["spec"]["rayVersion"] == ray.__version__


def _containers(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    return {c["name"]: c for group in groups for c in group["template"]["spec"]["containers"]}


def test_kuberay_probes_ask_paths_that_ray_serves(ray_cluster: dict[str, Any]) -> None:
    import ray.dashboard as dashboard

    source = Path(dashboard.__file__).parent / "modules" / "reporter"
    served = {
        8265: re.findall(r'routes\.get\("(\S+)"\)', (source / "reporter_head.py").read_text()),
        52365: re.findall(r'routes\.get\("(\S+)"\)', (source / "healthz_agent.py").read_text()),
    }
    for container in _containers(ray_cluster).values():
        for probe in ("readinessProbe", "livenessProbe"):
            request = container[probe]["httpGet"]
            assert request["path"] in served[request["port"]]


def test_kuberay_gives_the_head_time_to_drain(ray_cluster: dict[str, Any]) -> None:
    from graft.config import ServerConfig
    from graft.running import STOP_PATIENCE_S

    pod = ray_cluster["spec"]["headGroupSpec"]["template"]["spec"]
    stopping = _containers(ray_cluster)["ray-head"]["lifecycle"]["preStop"]["exec"]["command"]
    assert stopping == ["graft", "down"]
    assert pod["terminationGracePeriodSeconds"] >= ServerConfig().drain_s + STOP_PATIENCE_S


def test_kuberay_volumes_mounts_and_images_belong_together(ray_cluster: dict[str, Any]) -> None:
    spec = ray_cluster["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    volumes = spec["headGroupSpec"]["template"]["spec"]["volumes"]
    claims = [v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v]
    assert claims == [load_kuberay()["PersistentVolumeClaim"]["metadata"]["name"]]
    images = {name: container["image"] for name, container in _containers(ray_cluster).items()}
    assert images == {"ray-head": "${GRAFT_IMAGE}", "ray-worker": "${GRAFT_GPU_IMAGE}"}
    ports = {port["name"]: port["containerPort"] for port in _containers(ray_cluster)["ray-head"]["ports"]}
    assert ports["graft"] == 7860


def _end_processes_of(folder: str, grace_s: float = 15) -> list[str]:
    """Returns the processes started with `folder` that outlive `grace_s`, after ending them."""
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(folder in part for part in process.info["cmdline"] or [])
    ]
    _, alive = psutil.wait_procs(found, timeout=grace_s)
    names = [" ".join(process.info["cmdline"])[:200] for process in alive]
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return names


def test_actor_lands_on_the_node_that_holds_its_resource() -> None:
    # Ray's socket paths must stay under 107 characters, which pytest's own folder would exceed.
    with tempfile.TemporaryDirectory(prefix="graft") as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        run = subprocess.run(
            [sys.executable, __file__],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        left_running = _end_processes_of(folder)
    assert run.returncode == 0, run.stderr[-4000:]
    report = json.loads(run.stdout.splitlines()[-1])
    nodes, placed = report["nodes"], report["placed"]
    assert nodes["head"] != nodes["gpu_worker"]
    assert placed == {
        "graft_index": nodes["head"],
        "graft_generator": nodes["gpu_worker"],
        "graft-role=index": nodes["head"],
        "graft-role=generator": nodes["gpu_worker"],
    }
    assert left_running == []


class Probe:
    """An actor that says on which node it runs."""

    def node(self) -> str:
        import ray

        return ray.get_runtime_context().get_node_id()


def run_two_node_cluster() -> dict[str, Any]:
    """Starts a head and a worker as the launcher file has them and returns where actors landed."""
    import ray
    from ray.cluster_utils import Cluster

    types = load_launcher()["available_node_types"]
    cluster = Cluster()
    try:
        nodes = {
            name: cluster.add_node(
                num_cpus=1,
                object_store_memory=80 * 2**20,
                include_dashboard=False,
                resources=dict(types[name]["resources"]),
                labels=dict(types[name]["labels"]),
            )
            for name in ("head", "gpu_worker")
        }
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)

        probe: Any = ray.remote(num_cpus=0)(Probe)
        wanted = {
            "graft_index": {"resources": {"graft_index": 0.01}},
            "graft_generator": {"resources": {"graft_generator": 0.01}},
            "graft-role=index": {"label_selector": {"graft-role": "index"}},
            "graft-role=generator": {"label_selector": {"graft-role": "generator"}},
        }
        actors = {name: probe.options(**options).remote() for name, options in wanted.items()}
        placed = {name: ray.get(actor.node.remote(), timeout=60) for name, actor in actors.items()}
        return {
            "nodes": {name: node.node_id for name, node in nodes.items()},
            "placed": placed,
        }
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run_two_node_cluster()) + "\n")
