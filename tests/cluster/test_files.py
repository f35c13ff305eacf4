"""What is in ``cluster/`` is what Ray and its operator take: by Ray's own schema, and by the fields of the operator's resources."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "cluster"
LAUNCHER = ("local.yaml", "aws.yaml", "gcp.yaml")
MANIFESTS = ("raycluster.yaml", "rayjob.yaml")
TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
    "any": object,
    "int-or-string": (int, str),
}


@pytest.mark.parametrize("name", LAUNCHER)
def test_a_file_for_ray_up_fits_rays_schema(name: str) -> None:
    config = yaml.safe_load((FOLDER / name).read_text())
    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    validate_config(prepare_config(config))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"head_start_commands": []}, schema)


@pytest.mark.parametrize("name", LAUNCHER)
def test_a_head_has_no_work_of_its_own_keeps_its_storage_and_all_show_metrics(name: str) -> None:
    config = yaml.safe_load((FOLDER / name).read_text())
    head, worker = (" ".join(config[f"{kind}_start_ray_commands"]) for kind in ("head", "worker"))
    assert "--num-cpus=0" in head and "--num-cpus" not in worker
    assert "RAY_gcs_storage=rocksdb RAY_gcs_storage_path=$HOME/ray-gcs" in head
    assert "--metrics-export-port=8080" in head and "--metrics-export-port=8080" in worker


def test_workers_in_clouds_are_spot_machines_and_heads_are_not() -> None:
    aws, gcp = (yaml.safe_load((FOLDER / name).read_text())["available_node_types"] for name in ("aws.yaml", "gcp.yaml"))
    assert aws["worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert gcp["worker"]["node_config"]["scheduling"] == [{"preemptible": True}]
    assert "InstanceMarketOptions" not in aws["head"]["node_config"] and "scheduling" not in gcp["head"]["node_config"]


@pytest.mark.parametrize("name", [*LAUNCHER, *(f"kubernetes/{one}" for one in MANIFESTS)])
def test_a_file_has_three_places_to_edit(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert sorted(re.findall(r"EDIT (\d)", text)) == ["1", "2", "3"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_has_only_fields_that_its_resource_has(name: str) -> None:
    manifest = yaml.safe_load((FOLDER / "kubernetes" / name).read_text())
    fields = json.loads(Path(__file__).with_name("crd_fields.json").read_text())
    assert manifest["apiVersion"] == "ray.io/v1"
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    assert list(_wrong(manifest["spec"], fields[manifest["kind"]], "spec")) == []
    assert list(_wrong(manifest["spec"] | {"headGroup": {}}, fields[manifest["kind"]], "spec")) == ["spec.headGroup: no such field"]


def test_all_files_name_one_version_of_ray() -> None:
    texts = [path.read_text() for path in FOLDER.rglob("*") if path.is_file()]
    found = {version for text in texts for version in re.findall(r"(?:==|ray:|rayVersion: \")(2\.\d+\.\d+)", text)}
    assert found == {"2.60.0"}


def _wrong(value: Any, fields: Any, where: str) -> Any:
    """What in a manifest does not fit the fields: unknown names, missing ones, other types, values not in an enumeration."""
    if isinstance(fields, str):
        if not isinstance(value, TYPES[fields]):
            yield f"{where}: not of type {fields}"
    elif isinstance(fields, dict):
        for name in fields.get("*required", ()):
            if name not in value:
                yield f"{where}.{name}: missing"
        for name, inner in value.items():
            if name in fields:
                yield from _wrong(inner, fields[name], f"{where}.{name}")
            else:
                yield f"{where}.{name}: no such field"
    elif isinstance(fields[0], dict):
        for number, inner in enumerate(value):
            yield from _wrong(inner, fields[0], f"{where}[{number}]")
    elif value not in fields:
        yield f"{where}: not one of {fields}"
