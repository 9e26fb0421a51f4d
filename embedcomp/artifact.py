"""Trained and compressed models on disk: a folder NAME/VERSION/ without pickle.

    manifest.json       what the model is, how it was made, its quality, a checksum a file
    model.safetensors   every tensor that is served
    features/           vocabularies (Parquet) and dense scales: from raw columns to model inputs

A trained model is an artifact whose layers are all kept as they are, so every command takes
either. Each save makes a new version; nothing is overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

import embedcomp
from embedcomp.compress.plan import Plan
from embedcomp.compress.swap import empty_like
from embedcomp.errors import BadArtifact
from embedcomp.files import replacing, sha256
from embedcomp.log.features import Features
from embedcomp.log.schema import first_problem
from embedcomp.source import ModelSource

FORMAT = 1


class Manifest(BaseModel):
    """manifest.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    embedcomp: str = embedcomp.__version__
    created: str
    source: ModelSource
    plan: dict[str, Any] | None = None  # None: a trained model, nothing compressed
    training: dict[str, Any] = {}  # settings and history
    metrics: dict[str, Any] = {}  # by split
    bytes: dict[str, int]
    checksums: dict[str, str]  # sha256 by file


@dataclass(frozen=True)
class Artifact:
    """One version of a model on disk."""

    folder: Path  # NAME/VERSION
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Open NAME (its newest version) or NAME/VERSION.

        Raises:
            BadArtifact: there is none, or its files are not those that were written.
        """
        folder = _version_folder(Path(path))
        manifest = _read_manifest(folder)
        for name, wanted in manifest.checksums.items():
            if _checksum(folder / name) != wanted:
                raise BadArtifact(
                    f"{folder / name} is not the file that was written (its checksum differs); "
                    "copy the artifact again"
                )
        return cls(folder, manifest)

    @property
    def name(self) -> str:
        return self.folder.parent.name

    @property
    def version(self) -> int:
        return int(self.folder.name)

    @property
    def plan(self) -> Plan | None:
        return Plan.from_dict(self.manifest.plan) if self.manifest.plan is not None else None

    @cached_property
    def features(self) -> Features:
        return Features.load(self.folder / "features")

    def model(self) -> nn.Module:
        """The model with its stored tensors, in evaluation mode.

        Raises:
            BadArtifact: the tensors do not fit the manifest's model.
        """
        model = self.manifest.source.build_empty(self.features)
        if self.plan is not None:
            model = empty_like(model, self.plan)
        try:
            tensors = load_file(self.folder / "model.safetensors")
            # cloned, since a mapped file is not aligned and BLAS then differs in the last bit
            aligned = {name: tensor.clone() for name, tensor in tensors.items()}
            model.load_state_dict(aligned, assign=True)
        except (SafetensorError, RuntimeError) as error:
            raise BadArtifact(f"{self.folder} does not hold its model: {error}") from error
        return model.eval()


def save(
    out: str | Path,
    model: nn.Module,
    features: Features,
    source: ModelSource,
    *,
    bytes: Mapping[str, int],
    plan: Plan | None = None,
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write a new version of the model under `out`, whole or not at all."""
    versions = _versions(Path(out))
    target = Path(out) / str(versions[-1] + 1 if versions else 1)
    with replacing(target) as fresh:
        features.save(fresh / "features")
        tensors = {name: t.detach().contiguous() for name, t in model.state_dict().items()}
        save_file(tensors, fresh / "model.safetensors")
        (fresh / "model.safetensors").chmod(0o644)  # it is written for its owner alone
        files = sorted(f for f in fresh.rglob("*") if f.is_file())
        manifest = Manifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            source=source,
            plan=plan.to_dict() if plan is not None else None,
            training=dict(training or {}),
            metrics=dict(metrics or {}),
            bytes=dict(bytes),
            checksums={str(f.relative_to(fresh)): sha256(f) for f in files},
        )
        (fresh / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n")
    return Artifact.open(target)


def _versions(out: Path) -> list[int]:
    if not out.is_dir():
        return []
    return sorted(int(child.name) for child in out.iterdir() if child.name.isdecimal())


def _version_folder(path: Path) -> Path:
    if (path / "manifest.json").is_file():
        return path.resolve()
    versions = _versions(path)
    if not versions:
        raise BadArtifact(
            f"{path} is not a model or artifact: it has no manifest.json and no numbered version; "
            "make one with `embedcomp train` or `embedcomp compress`"
        )
    return (path / str(versions[-1])).resolve()


def _read_manifest(folder: Path) -> Manifest:
    file = folder / "manifest.json"
    try:
        manifest = Manifest.model_validate_json(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BadArtifact(f"{file} cannot be read: {error}") from error
    except ValidationError as error:
        raise BadArtifact(f"{file} is not a manifest: {first_problem(error)}") from error
    if manifest.format > FORMAT:
        raise BadArtifact(
            f"{file} has format {manifest.format}, and this embedcomp reads up to {FORMAT}; "
            "install a newer embedcomp"
        )
    return manifest


def _checksum(file: Path) -> str:
    try:
        return sha256(file)
    except OSError as error:
        raise BadArtifact(f"{file} is missing or cannot be read: {error}") from error
