"""The manifests fit one another, the settings, and the code that they run."""

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import infra
from infra.flink_cluster import LOCK_FILE
from infra.services import flink_services
from infra.settings import Settings, load_settings

DIRECTORY = Path(infra.__file__).parent / "kubernetes"
OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"
FILES = [path for path in DIRECTORY.glob("*.yaml") if path.name != "kustomization.yaml"]
MANIFESTS: list[dict[str, Any]] = list(
    itertools.chain.from_iterable(yaml.safe_load_all(path.read_text()) for path in FILES)
)
DEPLOYMENTS = [each for each in MANIFESTS if each["kind"] == "Deployment"]
OURS = "lockstep:latest"


def test_every_file_is_part_of_what_is_applied() -> None:
    listed = yaml.safe_load((DIRECTORY / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(path.name for path in FILES)


def test_every_manifest_says_what_it_is_and_no_two_are_the_same() -> None:
    names = [(each["apiVersion"], each["kind"], each["metadata"]["name"]) for each in MANIFESTS]
    assert len(set(names)) == len(names) > 0


def test_every_name_that_is_referred_to_is_here_or_in_the_instructions() -> None:
    here = {(each["kind"], each["metadata"]["name"]) for each in MANIFESTS}
    referred = set()
    for deployment in DEPLOYMENTS:
        for volume in _pod(deployment)["volumes"]:
            if "persistentVolumeClaim" in volume:
                referred.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
            if "configMap" in volume:
                referred.add(("ConfigMap", volume["configMap"]["name"]))
        for container in _containers(deployment):
            referred |= {("ConfigMap", each["configMapRef"]["name"]) for each in container.get("envFrom", [])}
            secrets = [each["valueFrom"]["secretKeyRef"]["name"] for each in container.get("env", [])]
            referred |= {("Secret", name) for name in secrets}
    by_hand = referred - here
    assert by_hand == {("ConfigMap", "lockstep-catalog"), ("Secret", "lockstep-clickhouse")}
    text = OPERATIONS.read_text()
    assert "create configmap lockstep-catalog" in text
    assert "create secret generic lockstep-clickhouse" in text


def test_selectors_find_the_pods_they_are_for() -> None:
    labels = {each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"] for each in DEPLOYMENTS}
    for deployment in DEPLOYMENTS:
        assert deployment["spec"]["selector"]["matchLabels"] == labels[deployment["metadata"]["name"]]
    for each in MANIFESTS:
        if each["kind"] == "Service":
            assert each["spec"]["selector"] == labels[each["metadata"]["name"]]
        if each["kind"] == "NetworkPolicy":
            assert each["spec"]["podSelector"]["matchLabels"] == labels[each["metadata"]["name"]]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda each: str(each["metadata"]["name"]))
def test_every_mount_is_of_a_volume_and_the_data_directory_is_shared(
    deployment: dict[str, Any], settings_there: Settings
) -> None:
    volumes = {volume["name"]: volume for volume in _pod(deployment)["volumes"]}
    mounts = [mount for container in _containers(deployment) for mount in container.get("volumeMounts", [])]
    assert {mount["name"] for mount in mounts} == set(volumes)
    shared = {mount["name"] for mount in mounts if mount["mountPath"] == str(settings_there.data_dir)}
    assert [volumes[name]["persistentVolumeClaim"]["claimName"] for name in shared] == ["lockstep-data"]


def test_every_setting_exists_and_its_value_is_allowed(settings_there: Settings) -> None:
    for name, value in _values("lockstep-settings").items():
        field = name.removeprefix("LOCKSTEP_").lower()
        assert str(getattr(settings_there, field)) == value
    for container in itertools.chain.from_iterable(map(_containers, DEPLOYMENTS)):
        for variable in container.get("env", []):
            assert variable["name"].removeprefix("LOCKSTEP_").lower() in Settings.model_fields


def test_the_flink_that_is_named_is_the_one_that_is_there_with_slots_enough(settings_there: Settings) -> None:
    host, port = settings_there.flink_master.split(":")
    [service] = [each for each in MANIFESTS if each["kind"] == "Service"]
    assert service["metadata"]["name"] == host
    assert int(port) in {each["port"] for each in service["spec"]["ports"]}
    flink = yaml.safe_load(_values("flink-properties")["FLINK_PROPERTIES"])
    assert flink["jobmanager.rpc.address"] == host
    [workers] = [each for each in DEPLOYMENTS if each["metadata"]["name"] == "flink-taskmanager"]
    assert workers["spec"]["replicas"] * flink["taskmanager.numberOfTaskSlots"] >= settings_there.parallelism
    mounts = {mount["mountPath"] for container in _containers(workers) for mount in container.get("volumeMounts", [])}
    assert flink["io.tmp.dirs"] in mounts


def test_images_are_ours_or_the_flink_that_the_tests_run() -> None:
    version = LOCK_FILE.read_text().split(" ", 1)[0].split("==")[1]
    images = {container["image"] for deployment in DEPLOYMENTS for container in _containers(deployment)}
    assert images == {OURS, f"flink:{version}-java17"}


def test_every_command_of_ours_exists_and_is_asked_at_its_own_port(settings_there: Settings, tmp_path: Path) -> None:
    here = settings_there.model_copy(update={"data_dir": tmp_path})
    services = {service.name: service for service in flink_services(here)}
    ran = set()
    for container in itertools.chain.from_iterable(map(_containers, DEPLOYMENTS)):
        if container["image"] != OURS:
            continue
        python, flag, module, *arguments = container["command"]
        assert (python, flag) == ("python", "-m")
        assert importlib.util.find_spec(module)
        if module == "infra":
            assert arguments == ["run", container["name"]]
            assert container["startupProbe"]["tcpSocket"]["port"] in services[container["name"]].ports.values()
        if container["name"] in services:
            ran.add(container["name"])
    assert ran == set(services)


def test_the_worker_pool_is_beside_every_task_manager_and_asked_where_it_listens(settings_there: Settings) -> None:
    [workers] = [each for each in DEPLOYMENTS if each["metadata"]["name"] == "flink-taskmanager"]
    [pool] = [each for each in _containers(workers) if each["image"] == OURS]
    host, port = settings_there.worker_endpoint.split(":")
    assert f"('{host}', {port})" in pool["startupProbe"]["exec"]["command"][-1]
    compile(pool["startupProbe"]["exec"]["command"][-1], "probe", "exec")


@pytest.fixture
def settings_there(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings as the containers read them."""
    for name, value in _values("lockstep-settings").items():
        monkeypatch.setenv(name, value)
    return load_settings()


def _values(name: str) -> dict[str, str]:
    [found] = [each for each in MANIFESTS if each["kind"] == "ConfigMap" and each["metadata"]["name"] == name]
    return dict(found["data"])


def _pod(deployment: dict[str, Any]) -> dict[str, Any]:
    return dict(deployment["spec"]["template"]["spec"])


def _containers(deployment: dict[str, Any]) -> Iterator[dict[str, Any]]:
    pod = _pod(deployment)
    yield from pod.get("initContainers", [])
    yield from pod["containers"]
