"""The manifests are what Kubernetes, prometheus-operator and KServe take, and the server too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from manifests import (
    ROOT,
    adapter_rules,
    containers,
    documents,
    every,
    pod_templates,
    validate,
)
from toy_scorer import ToyScorer
from typer.testing import CliRunner

from embedcomp.cli.main import app
from embedcomp.errors import BadArtifact
from embedcomp.scorer.scorer import Scorer
from embedcomp.serving import repository as serving_repository
from embedcomp.serving import security, server
from embedcomp.serving.repository import Repository
from embedcomp.serving.settings import ServerSettings
from embedcomp.support.files import cache_folder

NO_SCHEMA = {"RayJob"}  # no package has KubeRay's; its templates of pods are looked at
EVERY = dict(every())
SERVING = {
    name: (document, one) for name, document in EVERY.items() for one in containers(document)
}


@pytest.mark.parametrize("name", EVERY)
def test_a_document_is_of_its_schema(name: str) -> None:
    document = EVERY[name]
    if document["kind"] in NO_SCHEMA:
        templates = list(pod_templates(document))
        assert templates
        for one in templates:
            validate(one)
    else:
        validate(document)


@pytest.mark.parametrize("name", [n for n, one in EVERY.items() if one["kind"] not in NO_SCHEMA])
def test_an_unknown_field_and_a_wrong_type_are_found(name: str) -> None:
    document = EVERY[name]
    part = "spec" if "spec" in document else "data"
    for wrong in ({**document[part], "no_such_field": 1}, [7]):
        with pytest.raises((ValueError, AssertionError, _validation_error())):
            validate({**document, part: wrong})


def _validation_error() -> type[Exception]:
    found: type[Exception] = pytest.importorskip("jsonschema").ValidationError
    return found


def test_both_a_deployment_and_kserve_serve() -> None:
    kinds = {document["kind"] for document, _ in SERVING.values()}
    assert kinds == {"Deployment", "ServingRuntime"}
    assert any("over TLS" in name for name in SERVING)


def read(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> ServerSettings:
    """What the command line makes of a container's arguments."""
    found: list[ServerSettings] = []
    monkeypatch.setattr(Scorer, "open", lambda *_, **__: None)
    monkeypatch.setattr(
        serving_repository, "Repository", lambda paths, settings, opened: SimpleNamespace()
    )
    monkeypatch.setattr(server, "serve", lambda repository, settings: found.append(settings))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return found[0]


@pytest.mark.parametrize("name", SERVING)
def test_the_arguments_are_those_of_the_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, container = SERVING[name]
    settings = read(container["args"], monkeypatch)
    security.refuse_open_door(settings)
    open_ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert open_ports == {"grpc": settings.port, "metrics": settings.metrics_port}
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        (asked,) = (container[kind][way] for way in ("grpc", "httpGet") if way in container[kind])
        by_grpc = "grpc" in container[kind]
        assert asked["port"] == (settings.port if by_grpc else settings.metrics_port)
        assert not (by_grpc and settings.tls_cert), "kubelet's gRPC probes speak no TLS"
        if not by_grpc:
            assert (asked.get("scheme") == "HTTPS") == (settings.tls_cert is not None)
            assert settings.token_file is None or "health" in settings.without_token


@pytest.mark.parametrize("name", SERVING)
def test_a_pod_has_longer_than_the_servers_grace(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, container = SERVING[name]
    settings = read(container["args"], monkeypatch)
    if document["kind"] == "ServingRuntime":  # whose pods are the service's
        (pods,) = (
            one["spec"]["predictor"]
            for one in documents("kserve.yaml")
            if one["kind"] == "InferenceService"
        )
    else:
        pods = document["spec"]["template"]["spec"]
    waits = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert pods["terminationGracePeriodSeconds"] > settings.grace_s + waits


@pytest.mark.parametrize("name", SERVING)
def test_a_server_needs_neither_root_nor_a_writable_filesystem(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, container = SERVING[name]
    pods = document["spec"].get("template", document)["spec"]
    has = {**pods.get("securityContext", {}), **container["securityContext"]}
    assert has["runAsNonRoot"] and has["runAsUser"] and has["readOnlyRootFilesystem"]
    assert not has["allowPrivilegeEscalation"] and has["capabilities"] == {"drop": ["ALL"]}
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")  # tests/serving/test_images.py
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    volumes = {one["name"]: one for one in pods["volumes"]}
    assert "emptyDir" in volumes[mounts[str(cache_folder())]]
    assert set(mounts.values()) <= volumes.keys()


@pytest.mark.parametrize("name", [name for name in SERVING if "TLS" in name])
def test_what_tls_and_tokens_are_read_from_is_mounted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, container = SERVING[name]
    settings = read(container["args"], monkeypatch)
    mounted = {Path(one["mountPath"]) for one in container["volumeMounts"]}
    for file in (settings.tls_cert, settings.tls_key, settings.token_file):
        assert file is not None and file.parent in mounted
    (monitor,) = (
        one for one in documents("monitoring.yaml", tls=True) if one["kind"] == "ServiceMonitor"
    )
    assert monitor["spec"]["endpoints"][0]["scheme"] == "https"
    assert "metrics" in settings.without_token


def test_selectors_find_the_pods_and_the_service() -> None:
    deployment, service, budget = documents("serving.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    monitor = documents("monitoring.yaml")[0]
    assert monitor["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    ports = {one["name"] for one in service["spec"]["ports"]}
    assert monitor["spec"]["endpoints"][0]["port"] in ports


def test_the_autoscaler_asks_for_the_metric_that_the_adapter_makes() -> None:
    scaler = documents("autoscaling.yaml")[0]
    (asked,) = (one["pods"]["metric"]["name"] for one in scaler["spec"]["metrics"])
    assert asked in {rule["name"]["as"] for rule in adapter_rules()}
    assert (
        scaler["spec"]["scaleTargetRef"]["name"] == documents("serving.yaml")[0]["metadata"]["name"]
    )


def test_kserves_runtime_and_service_fit_each_other() -> None:
    runtime, service = documents("kserve.yaml")
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    formats = [(one["name"], one["version"]) for one in runtime["spec"]["supportedModelFormats"]]
    assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in formats


@pytest.mark.parametrize(
    "uri, laid, name",
    [("s3://bucket/models/", "clicks/3", "clicks"), ("s3://bucket/models/clicks", "3", "models")],
)
def test_kserves_models_have_the_names_that_the_manifest_says(
    tmp_path: Path, uri: str, laid: str, name: str
) -> None:
    place = tmp_path / "mnt" / "models" / laid  # what is below the URI
    place.mkdir(parents=True)
    (place / "manifest.json").write_text("a toy")
    toy: Any = ToyScorer()
    toy.name, toy.version = place.parent.name, int(place.name)
    found = Repository([tmp_path / "mnt" / "models"], ServerSettings(), lambda _: toy)
    assert [(one.name, one.version) for one in found.models.loaded()] == [(name, 3)]


def test_an_artifact_without_its_folders_has_no_name(tmp_path: Path) -> None:
    place = tmp_path / "mnt" / "models"
    place.mkdir(parents=True)
    (place / "manifest.json").write_text("a toy")
    with pytest.raises(
        BadArtifact, match=r"named by no version, .*serve the folder that holds NAME/VERSION"
    ):
        Repository([place], ServerSettings(), lambda _: None)


def test_the_images_are_those_that_the_dockerfile_says_how_to_build() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    built = set(re.findall(r"-t (\S+)", text))
    used = set(re.findall(r'"image": "([^"]+)"', json.dumps(list(EVERY.values()))))
    assert used == built == {"embedcomp-serve", "embedcomp-jobs"}
