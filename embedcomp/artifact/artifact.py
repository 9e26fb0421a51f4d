"""Trained and compressed models on disk: a folder NAME/VERSION/ without pickle.

    manifest.json       what the model is, its quality, a checksum a file
    origin.json.gz      how it was made: its plan, settings and history
    model.safetensors   every tensor that is served, once; its metadata has the other names of those
                        that layers share
    scoring.json.gz     the dense part as a graph, its inputs and tables (engine/standalone.py)
    dense.pt2           where the engine cannot run that: the dense part as torch.export wrote it,
                        without weights
    features/           vocabularies (Parquet) and dense scales: from raw columns to model inputs

A trained model is an artifact whose layers are all kept as they are, so every command takes
either. Each save makes a new version; nothing is overwritten. Reading what a scorer needs imports
no torch, which takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from embedcomp.artifact.proof import Proof
from embedcomp.engine.standalone import FILE, OLD_FILE, PROGRAM, Standalone
from embedcomp.engine.tensors import bytes_by_layer
from embedcomp.errors import BadArtifact, BadSettings
from embedcomp.log import known
from embedcomp.log.features import VOCABULARIES, Features
from embedcomp.log.schema import first_problem
from embedcomp.storage.prefixes import Cut, Ranks, ranks_within
from embedcomp.support.files import read_json, replacing, sha256, write_json
from embedcomp.support.mapped import OTHER_NAMES, mapped, other_names
from embedcomp.support.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from embedcomp.artifact.source import ModelSource
    from embedcomp.planning.plan import Plan

FORMAT = 3  # 1: without what a scorer needs; 2: nothing gzipped, and always with dense.pt2
CUT = 4  # format of artifacts whose tables lie in slots, most of them elsewhere (sharding/)
MANIFEST, TENSORS = "manifest.json", "model.safetensors"
ORIGIN, FEATURES = "origin.json.gz", "features"


@dataclass(frozen=True, kw_only=True)
class StandsAlone:
    """All that an artifact has to hold so that its scorer needs none of the model's code."""

    standalone: Standalone
    program: ExportedProgram
    held: dict[str, Tensor]  # every tensor that is served


class Manifest(BaseModel):
    """manifest.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    embedcomp: str = __version__
    created: str
    source: dict[str, Any] | None = None  # None: a model that only its owner's code can build
    metrics: dict[str, Any] = {}  # by split: a Proof's to_metrics
    needs_code: str = ""  # why only the model's own code can score it; empty: it needs none
    bytes: dict[str, int]
    checksums: dict[str, str]  # sha256 by file
    plan: dict[str, Any] | None = None  # of formats 1 and 2, as in Origin
    training: dict[str, Any] = {}  # likewise


class Origin(BaseModel):
    """origin.json.gz: how a model was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: dict[str, Any] | None = None  # None: a trained model, nothing compressed
    training: dict[str, Any] = {}  # settings and history
    cuts: tuple[Cut, ...] = ()  # that make it smaller when it is opened, one after another


@dataclass(frozen=True)
class Artifact:
    """One version of a model on disk.

    ranks: of layers that are cut, so that it is served within a budget (`within`).
    """

    folder: Path  # NAME/VERSION
    manifest: Manifest
    ranks: Ranks = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Open NAME (its newest version) or NAME/VERSION.

        Raises:
            BadArtifact: there is none, or its files are not those that were written.
        """
        folder = version_folder(Path(path))
        manifest = _read_manifest(folder)
        for name, wanted in manifest.checksums.items():
            if _checksum(folder / name) != wanted:
                raise BadArtifact(
                    f"{folder / name} is not the file that was written (its checksum differs); "
                    "copy the artifact again"
                )
        return cls(folder, manifest)

    def within(self, budget: str) -> Artifact:
        """The largest of its forms within a budget, by the ranks of the layers that can be cut.

        Args:
            budget: bytes of the whole model, as "300kB", or a share of the original's, as "20x".

        Raises:
            BadSettings: it is no budget, or all of its forms are larger.
        """
        from embedcomp.planning.goal import ByteBudget

        full, plan, cuts = self.manifest.bytes["total"], self.plan, self.origin.cuts
        most = ByteBudget.parse(budget).of(full if plan is None else plan.bytes_before)
        if full <= most:
            return replace(self, ranks={})
        ranks = ranks_within(cuts, most)
        if ranks is None:
            raise BadSettings(f"{budget} is {most:,} bytes, but {self._floor(full, cuts)}")
        return replace(self, ranks=ranks)

    def _floor(self, full: int, cuts: Sequence[Cut]) -> str:
        """Why it is not served in fewer bytes, for a person."""
        if not cuts:
            return (
                f"{self.folder} has no layers of ordered ranks that could be cut, and is served in "
                f"its {full:,} bytes alone; compress it by ordered_rank, or at that budget"
            )
        ranks, alone = {cut.layer: cut.rank for cut in cuts}, self.standalone
        held = mapped(self.tensors_file)
        if alone is not None:
            held = alone.cut_held(held, ranks)
        layers = ranks if self.plan is None else [planned.layer for planned in self.plan.layers]
        sizes = bytes_by_layer(held, layers)
        largest = max(sizes, key=lambda name: sizes[name])
        return (
            f"{self.folder} is served in {cuts[-1].bytes:,} at least, the ranks of its "
            f"{len(ranks)} layers that can be cut being as low as they go; {largest or 'the rest'} "
            f"alone is {sizes[largest]:,}; give that budget, or compress it at a smaller one"
        )

    @property
    def name(self) -> str:
        return self.folder.parent.name

    @property
    def version(self) -> int:
        return int(self.folder.name)

    @property
    def plan(self) -> Plan | None:
        from embedcomp.planning.plan import Plan

        return Plan.from_dict(self.origin.plan) if self.origin.plan is not None else None

    @cached_property
    def origin(self) -> Origin:
        """How it was made.

        Raises:
            BadArtifact: the file does not hold together.
        """
        file = self.folder / ORIGIN
        if not file.exists():
            return Origin(plan=self.manifest.plan, training=self.manifest.training)
        try:
            return Origin.model_validate(read_json(file))
        except (OSError, ValueError) as error:
            raise BadArtifact(f"{file} cannot be read: {error}") from error

    @property
    def proof(self) -> Proof | None:
        """What was measured of its quality; None: it was made before there were proofs, or is its
        owner's."""
        return Proof.from_metrics(self.manifest.metrics)

    @property
    def source(self) -> ModelSource:
        """Where the model comes from.

        Raises:
            BadArtifact: it was saved from its owner's program, which alone can build it.
        """
        from embedcomp.artifact.source import ModelSource

        if self.manifest.source is None:
            raise BadArtifact(
                f"{self.folder} was saved with embedcomp.save, and only the program that holds its "
                "model can train or compress it; here it can be served"
            )
        return ModelSource(**self.manifest.source)

    @property
    def has_features(self) -> bool:
        """Whether it scores raw columns; else what the model itself takes."""
        return (self.folder / FEATURES).is_dir()

    @property
    def disk_bytes(self) -> dict[str, int]:
        """Bytes of all files, "disk", and of two parts of them: "vocabularies" and "program"."""
        return disk_bytes(self.folder)

    @property
    def has_program(self) -> bool:
        """Whether it holds the dense part as torch.export wrote it."""
        return (self.folder / PROGRAM).exists()

    @cached_property
    def features(self) -> Features:
        written = self.manifest.checksums.get(f"{FEATURES}/{VOCABULARIES}")
        table = None if written is None else known.cached(written)
        return Features.load(self.folder / FEATURES, table)

    @cached_property
    def standalone(self) -> Standalone | None:
        """What a scorer needs; None: only the model's own code can score."""
        found = self._in_full
        return found if found is None or not self.ranks else found.cut(self.ranks)

    @cached_property
    def _in_full(self) -> Standalone | None:
        return Standalone.load(self.folder)

    @property
    def tensors_file(self) -> Path:
        return self.folder / TENSORS

    def arrays(self) -> dict[str, np.ndarray]:
        """Every tensor that is served, where it lies in the file; those that are cut are copies.

        Raises:
            BadArtifact: the file is not readable.
        """
        return self._cut(mapped(self.tensors_file))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that is served.

        Raises:
            BadArtifact: the file is not readable.
        """
        return self._cut(self._stored())

    def _cut(self, held: dict[str, Any]) -> dict[str, Any]:
        alone = self._in_full
        return held if alone is None or not self.ranks else alone.cut_held(held, self.ranks)

    def _stored(self) -> dict[str, Tensor]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.tensors_file, "pt") as file:
                # cloned, since a mapped file is not aligned and BLAS then differs in the last bit
                found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                others = other_names(file.metadata())
        except SafetensorError as error:
            raise BadArtifact(f"{self.folder} does not hold its model: {error}") from error
        return found | {name: found[kept] for name, kept in others.items()}

    def model(self, like: nn.Module | None = None) -> nn.Module:
        """The model with its stored tensors, in evaluation mode.

        Args:
            like: a model of this artifact, whose tensors it takes in the place of its own.

        Raises:
            BadArtifact: the tensors do not fit the manifest's model.
        """
        from embedcomp.modules.layout import cut_
        from embedcomp.swapping.swap import empty_like

        model = self.source.build_empty(self.features)
        if self.plan is not None:
            model = empty_like(model, self.plan)
        tensors = self._stored() if like is None else like.state_dict()
        extra = {name for name, _ in model.named_buffers()} - model.state_dict().keys()
        try:
            state = {name: t for name, t in tensors.items() if name not in extra}
            model.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise BadArtifact(f"{self.folder} does not hold its model: {error}") from error
        cut_(model, self.ranks)
        return model.eval()


def save(
    out: str | Path,
    model: nn.Module,
    *,
    bytes: Mapping[str, int],
    alone: StandsAlone | None,
    needs_code: str = "",
    features: Features | None = None,
    source: ModelSource | None = None,
    plan: Plan | None = None,
    training: Mapping[str, Any] | None = None,
    proof: Proof | None = None,
    cuts: Sequence[Cut] = (),
) -> Artifact:
    """Write a new version of the model under `out`, whole or not at all.

    Args:
        alone: what it takes to score without the model's code.
        needs_code: why there is no such thing.
        cuts: by which it can be served within smaller budgets.
    """
    import torch

    target = next_version(Path(out))
    with replacing(target) as fresh:
        fresh.mkdir()
        if features is not None:
            features.save(fresh / FEATURES)
        tensors = alone.held if alone is not None else model.state_dict()
        write_tensors(fresh / TENSORS, tensors)
        if alone is not None:
            alone.standalone.save(fresh)
            if alone.standalone.graph is None:
                torch.export.save(alone.program, fresh / PROGRAM)
        planned = None if plan is None else plan.to_dict()
        origin = Origin(plan=planned, training=dict(training or {}), cuts=tuple(cuts))
        write_json(fresh / ORIGIN, origin.model_dump())
        manifest = Manifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            source=source.model_dump() if source is not None else None,
            metrics=proof.to_metrics() if proof is not None else {},
            needs_code=needs_code,
            bytes=dict(bytes),
            checksums={},
        )
        seal(fresh, manifest)
    return Artifact.open(target)


def seal(folder: Path, manifest: Manifest, apart: Collection[Path] = ()) -> None:
    """Write the manifest of a version whose other files are there, with their checksums.

    Args:
        apart: files that have their checksums elsewhere.
    """
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f not in apart)
    checksums = {str(f.relative_to(folder)): sha256(f) for f in files}
    sealed = manifest.model_copy(update={"checksums": checksums})
    text = sealed.model_dump_json(indent=1, exclude={"plan", "training"})
    (folder / MANIFEST).write_text(text + "\n")


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], said: Mapping[str, str] | None = None
) -> None:
    """Write tensors as `mapped` reads them, each once.

    Args:
        said: metadata of the file.
    """
    from safetensors.torch import save_file

    kept, others = _once(tensors)
    metadata = {**(said or {}), **({OTHER_NAMES: json.dumps(others)} if others else {})}
    save_file(kept, file, metadata or None)
    file.chmod(0o644)  # it is written for its owner alone


def disk_bytes(folder: Path) -> dict[str, int]:
    """Bytes of an artifact's files: of its "vocabularies", of its "program", and of all, "disk"."""
    sizes = {f.relative_to(folder): f.stat().st_size for f in folder.rglob("*") if f.is_file()}
    program = {Path(name) for name in (FILE, OLD_FILE, PROGRAM)}
    return {
        "vocabularies": sum(size for f, size in sizes.items() if f.parts[0] == FEATURES),
        "program": sum(size for f, size in sizes.items() if f in program),
        "disk": sum(sizes.values()),
    }


def _once(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Contiguous tensors that share no memory, as safetensors wants them, each under one name.

    Returns:
        The tensors, and the name that each of the other names stands for.
    """
    found: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    seen: dict[int, str] = {}
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous()
        first = seen.setdefault(own.data_ptr(), name)
        if first == name or not own.numel():
            found[name] = own
        elif (own.shape, own.dtype) == (found[first].shape, found[first].dtype):
            others[name] = first
        else:
            found[name] = own.clone()
    return found, others


def take_over(made: Artifact, out: Path) -> Artifact:
    """An artifact of another folder as a new version under `out`, whole or not at all."""
    target = next_version(out)
    with replacing(target) as fresh:
        copytree(made.folder, fresh)
    return Artifact.open(target)


def next_version(out: Path) -> Path:
    found = versions(out)
    return out / str(found[-1] + 1 if found else 1)


def versions(out: Path) -> list[int]:
    """Numbers of the versions in a folder, oldest first."""
    if not out.is_dir():
        return []
    return sorted(int(child.name) for child in out.iterdir() if child.name.isdecimal())


def version_folder(path: Path) -> Path:
    """The folder of NAME (its newest version) or of NAME/VERSION. Raises BadArtifact."""
    if (path / MANIFEST).is_file():
        return path.resolve()
    found = versions(path)
    if not found:
        raise BadArtifact(
            f"{path} is not a model or artifact: it has no {MANIFEST} and no numbered version; "
            "make one with `embedcomp train` or `embedcomp compress`"
        )
    return (path / str(found[-1])).resolve()


def _read_manifest(folder: Path) -> Manifest:
    file = folder / "manifest.json"
    try:
        manifest = Manifest.model_validate_json(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BadArtifact(f"{file} cannot be read: {error}") from error
    except ValidationError as error:
        raise BadArtifact(f"{file} is not a manifest: {first_problem(error)}") from error
    if manifest.format > CUT:
        raise BadArtifact(
            f"{file} has format {manifest.format}, and this embedcomp reads up to {CUT}; "
            "install a newer embedcomp"
        )
    return manifest


def _checksum(file: Path) -> str:
    try:
        return sha256(file)
    except OSError as error:
        raise BadArtifact(f"{file} is missing or cannot be read: {error}") from error
