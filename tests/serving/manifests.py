"""What docker/ gives a cluster, and the schemas that packages bring for it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "kubernetes"
FILES = sorted(file.name for file in FOLDER.glob("*.yaml"))
KUBERNETES = ("1.30", "1.37")  # the oldest that has all of it, and the newest with schemas
ADAPTER = {"<<.Series>>": "", "<<.LabelMatchers>>": 'pod="p"', "<<.GroupBy>>": "pod"}
_OVER_TLS = re.compile(r"^#   (sed .+) \| kubectl apply -f -$", re.MULTILINE)
_DEFINITIONS = "kubernetes-json-schema/v{}.0-local-strict/_definitions.json"
_PLACES = (  # of a type's name in Kubernetes' definitions
    "io.k8s.api.core.v1.",
    "io.k8s.apimachinery.pkg.apis.meta.v1.",
    "io.k8s.api.apps.v1.",
    "io.k8s.api.autoscaling.v2.",
    "io.k8s.apimachinery.pkg.api.resource.",
)
_SIMPLE = {"str": "string", "int": "integer", "bool": "boolean", "float": "number"}


def every() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each document by its name, in each form that its file says how to make."""
    for name in FILES:
        for one in documents(name):
            yield f"{name}: {one['kind']}", one
        if _OVER_TLS.search((FOLDER / name).read_text()):
            for one in documents(name, tls=True):
                yield f"{name}: {one['kind']} over TLS", one


def documents(name: str, *, tls: bool = False) -> list[dict[str, Any]]:
    """Those of a file, as they are or by the command that makes those over TLS."""
    text = (FOLDER / name).read_text()
    if tls:
        told = _OVER_TLS.search(text)
        assert told is not None, f"{name} does not say how it is used over TLS"
        done = subprocess.run(
            told[1], shell=True, cwd=ROOT, check=True, capture_output=True, text=True
        )
        text = done.stdout
    return list(yaml.safe_load_all(text))


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that serve, in whatever the document holds."""
    if isinstance(document, dict):
        found = [one for each in document.values() for one in containers(each)]
        serves = "image" in document and document.get("args", [""])[0] == "serve"
        return [document, *found] if serves else found
    if isinstance(document, list):
        return [one for each in document for one in containers(each)]
    return []


def validate(document: dict[str, Any]) -> None:
    """Hold a document against the schema of its kind: no unknown field, none of a wrong type.

    Skips where a package that brings the schema is not installed.
    """
    group = document["apiVersion"].split("/")[0]
    if group == "monitoring.coreos.com":
        _same_as_model(document)
    elif group == "serving.kserve.io":
        _validate_kserve(document)
    else:
        known = pytest.importorskip("kubernetes_validate", reason="extra dev: kubernetes-validate")
        for version in KUBERNETES:
            known.validate(document, version, strict=True)


def pod_templates(document: Any) -> Iterator[dict[str, Any]]:
    """Templates of pods within a document of a kind that no package has a schema of."""
    if isinstance(document, dict):
        template = document.get("template")
        if isinstance(template, dict) and "spec" in template:
            metadata = {"name": "one"}
            yield {
                "apiVersion": "v1",
                "kind": "PodTemplate",
                "metadata": metadata,
                "template": template,
            }
        for each in document.values():
            yield from pod_templates(each)
    elif isinstance(document, list):
        for each in document:
            yield from pod_templates(each)


def _same_as_model(document: dict[str, Any]) -> None:
    """By pydantic models of the CRDs; what they do not know, they leave out without a word."""
    pytest.importorskip(
        "cloudcoil.models.prometheus_operator",
        reason="extra dev: cloudcoil-models-prometheus-operator",
    )
    kinds = import_module("cloudcoil.models.prometheus_operator.v1")
    read = getattr(kinds, document["kind"]).model_validate(document)
    known = read.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert known == document, "a field that the CRD does not have"


def _validate_kserve(document: dict[str, Any]) -> None:
    """By a schema of the fields and types that KServe's own package has, and Kubernetes' own."""
    jsonschema = pytest.importorskip("jsonschema")
    referencing = pytest.importorskip("referencing")
    known = pytest.importorskip("kubernetes_validate", reason="extra dev: kubernetes-validate")
    if find_spec("kserve") is None:
        pytest.skip("kserve is installed by `make setup`, without its dependencies")
    version = document["apiVersion"].split("/")[1].capitalize()
    definitions = known.utils.schema_contents(_DEFINITIONS.format(KUBERNETES[1]), KUBERNETES[1])
    registry = referencing.Registry().with_resource(
        definitions["$id"], referencing.Resource.from_contents(definitions)
    )
    schema = _of_type(f"{version}{document['kind']}", definitions)
    jsonschema.Draft202012Validator(schema, registry=registry).validate(document)


def _of_type(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of a type as openapi-generator writes it, with those that it is made of."""
    if name in _SIMPLE:
        return {"type": _SIMPLE[name]}
    inner = re.fullmatch(r"(list\[|dict\(str, )(\w+)[\])]", name)
    if inner:
        of = _of_type(inner[2], definitions)
        if inner[1] == "list[":
            return {"type": "array", "items": of}
        return {"type": "object", "additionalProperties": of}
    found = _own_types().get(name)
    if found is None:
        plain = re.sub(r"^(V1|K8sIoApi(AppsV1|AutoscalingV2)|Resource(?=Quantity))", "", name)
        for place in _PLACES:
            if f"{place}{plain}" in definitions["$defs"]:
                return {"$ref": f"{definitions['$id']}#/$defs/{place}{plain}"}
        return {"not": {}}  # nobody knows it, so nothing may be of that type
    text = found.read_text()
    types, names = (
        ast.literal_eval(re.search(rf"{part} = (\{{.*?\}})", text, re.DOTALL)[1])
        for part in ("openapi_types", "attribute_map")
    )
    needed = set(re.findall(r"Invalid value for `(\w+)`, must not be `None`", text))
    return {
        "type": "object",
        "properties": {names[one]: _of_type(kind, definitions) for one, kind in types.items()},
        "required": [names[one] for one in needed],
        "additionalProperties": False,
    }


@cache
def _own_types() -> dict[str, Path]:
    """Files of KServe's types, by name. They are read, since importing them takes all of KServe."""
    spec = find_spec("kserve")
    assert spec is not None and spec.submodule_search_locations
    files = (Path(spec.submodule_search_locations[0]) / "models").glob("v1*.py")
    named = ((re.search(r"^class (\w+)\(object\)", f.read_text(), re.MULTILINE), f) for f in files)
    return {match[1]: file for match, file in named if match}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docker" / "grafana.json").read_text())
    return found


def adapter_rules() -> list[dict[str, Any]]:
    """Rules of prometheus-adapter."""
    maps = (one for one in documents("autoscaling.yaml") if one["kind"] == "ConfigMap")
    found: list[dict[str, Any]] = yaml.safe_load(next(maps)["data"]["config.yaml"])["rules"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """All PromQL, with what it is for."""
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")
    for one in documents("monitoring.yaml"):
        for group in one["spec"].get("groups", []):
            for rule in group["rules"]:
                yield rule["alert"], rule["expr"]
    for rule in adapter_rules():
        yield rule["name"]["as"], rule["seriesQuery"]
        query = rule["metricsQuery"]
        for mark, stands_for in ADAPTER.items():
            series = rule["seriesQuery"].partition("{")[0]
            query = query.replace(mark, stands_for or series)
        yield rule["name"]["as"], query
