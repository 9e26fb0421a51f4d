"""From a log's columns to what a model reads, and the same for a request's columns."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from embedcomp.errors import BadRequest
from embedcomp.kernels import native
from embedcomp.kernels.native import address
from embedcomp.log import vocabulary
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import Each, LogCounts, numbers, transformed
from embedcomp.log.rows import Bag, Rows
from embedcomp.log.schema import Side
from embedcomp.log.vocabulary import Vocabulary, WrongType

T = TypeVar("T")

VOCABULARIES = "vocabularies.parquet"


@dataclass(frozen=True)
class IdFeature:
    """A categorical column and its vocabulary."""

    name: str
    side: Side
    multi_valued: bool
    vocabulary: Vocabulary

    @property
    def rows(self) -> int:
        return self.vocabulary.rows


@dataclass(frozen=True)
class DenseFeature:
    """A dense column; models see (transform(x) - mean) / scale, and 0 for null."""

    name: str
    side: Side
    transform: str
    mean: float
    scale: float

    def fill(self, struct: native.Feature) -> None:
        """Say to the engine what it is."""
        struct.is_dense, struct.is_user = True, self.side == "user"
        struct.transform = native.TRANSFORMS.index(self.transform)
        struct.mean, struct.scale = self.mean, self.scale

    def standardise(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers float32 [n] as models see them; 0 for NaN, which stands for null.

        Raises:
            WrongType: one is infinite.
        """
        library = native.library()
        if np.isinf(numbers).any():
            raise WrongType("holds an infinite value; send null where there is no number")
        if library is not None:  # which reads requests, so that rows of a log are the same
            found = np.array(numbers, np.float32, order="C")
            struct = native.Feature()
            self.fill(struct)
            library.embedcomp_standards(ctypes.addressof(struct), address(found), len(found))
            return found
        values = transformed(numbers, self.transform)
        standard: np.ndarray = (values - np.float32(self.mean)) / np.float32(self.scale)
        return np.nan_to_num(standard, nan=0.0)


@dataclass(frozen=True)
class Features:
    """Every feature of a model, in the log's order: what turns columns into model inputs."""

    ids: tuple[IdFeature, ...]
    dense: tuple[DenseFeature, ...]

    @classmethod
    def from_counts(
        cls, log: ClickLog, counts: LogCounts, min_count: int, each: Each = map
    ) -> Features:
        """Vocabularies of the ids seen at least `min_count` times, and dense scales.

        Args:
            each: goes over shares of a column's ids, where they are more than memory may hold.
        """
        ids = tuple(
            IdFeature(
                name,
                column.side,
                pa.types.is_list(log.types[name]),
                Vocabulary.from_counts(counts.ids[name], min_count, column.dense_ids, each),
            )
            for name, column in log.schema.categorical.items()
        )
        dense = tuple(
            DenseFeature(name, column.side, column.transform, *counts.dense[name].mean_and_scale())
            for name, column in log.schema.dense.items()
        )
        return cls(ids, dense)

    @cached_property
    def single(self) -> tuple[IdFeature, ...]:
        return tuple(f for f in self.ids if not f.multi_valued)

    @cached_property
    def multi(self) -> tuple[IdFeature, ...]:
        return tuple(f for f in self.ids if f.multi_valued)

    @cached_property
    def user(self) -> Features:
        """Those that are the same for all candidates of a request."""
        return self._of(lambda side: side == "user")

    @cached_property
    def item(self) -> Features:
        """The others."""
        return self._of(lambda side: side != "user")

    def _of(self, wanted: Callable[[Side], bool]) -> Features:
        ids = tuple(f for f in self.ids if wanted(f.side))
        return Features(ids, tuple(f for f in self.dense if wanted(f.side)))

    @property
    def names(self) -> list[str]:
        return [f.name for f in self.ids] + [f.name for f in self.dense]

    @property
    def keys(self) -> list[str]:
        """Order of the ids in a KeyedJaggedTensor: single-valued features, then multi-valued."""
        return [f.name for f in (*self.single, *self.multi)]

    def column_type(self, name: str) -> pa.DataType:
        """Arrow type of a raw column: int64, string, a list of either, or float32."""
        for feature in self.ids:
            if feature.name == name:
                inner = feature.vocabulary.type
                return pa.list_(inner) if feature.multi_valued else inner
        return pa.float32()

    def encode(self, columns: Mapping[str, pa.Array], rows: int) -> Rows:
        """Raw columns to encoded rows, with labels of 0. What is not a feature is left alone.

        Args:
            columns: by feature name, each of `rows` values or of one, which then holds for all.
            rows: candidates.

        Raises:
            BadRequest: a feature is missing or its values are of the wrong type.
        """
        dense = self.encode_dense(columns, rows)
        single = np.empty((rows, len(self.single)), np.int32)
        for i, id_feature in enumerate(self.single):
            single[:, i] = _named(id_feature.name, columns, id_feature.vocabulary.encode)
        bags = tuple(_named(f.name, columns, partial(_bag, f.vocabulary)) for f in self.multi)
        bags = tuple(bag if len(bag) == rows else bag.repeat(rows) for bag in bags)
        return Rows(np.zeros(rows, np.float32), dense, single, bags)

    def encode_dense(self, columns: Mapping[str, pa.Array], rows: int) -> np.ndarray:
        """The dense columns alone: float32 [rows, D].

        Raises:
            BadRequest: as for `encode`.
        """
        dense = np.empty((rows, len(self.dense)), np.float32)
        for i, feature in enumerate(self.dense):
            dense[:, i] = _named(feature.name, columns, partial(_standardised, feature))
        return dense

    def save(self, folder: Path) -> None:
        """Write features.json and the vocabularies into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        ids = [{"name": f.name, "side": f.side, "multi_valued": f.multi_valued} for f in self.ids]
        dense = [f.__dict__ for f in self.dense]
        text = json.dumps({"ids": ids, "dense": dense}, indent=1)
        (folder / "features.json").write_text(text + "\n")
        vocabulary.save([feature.vocabulary for feature in self.ids], folder / VOCABULARIES)

    @classmethod
    def load(cls, folder: Path, table: Path | None = None) -> Features:
        """What `save` wrote.

        Args:
            table: file in which known ids are looked up, made if it is not there; None: they are
                read into memory.
        """
        stored = json.loads((folder / "features.json").read_text())
        if (folder / VOCABULARIES).exists():
            file = folder / VOCABULARIES
            found = vocabulary.load(file) if table is None else vocabulary.opened(file, table)
        else:  # artifacts of the first two formats have a file a vocabulary
            files = (f"vocabulary.{quote(f['name'], safe='')}.parquet" for f in stored["ids"])
            found = [vocabulary.load_one(folder / file) for file in files]
        ids = tuple(
            IdFeature(**f, vocabulary=known) for f, known in zip(stored["ids"], found, strict=True)
        )
        return cls(ids, tuple(DenseFeature(**f) for f in stored["dense"]))


def _named(name: str, columns: Mapping[str, pa.Array], convert: Callable[[pa.Array], T]) -> T:
    """Convert the column called `name`; an error names it."""
    if name not in columns:
        raise BadRequest(name, "is missing; every feature of the artifact is needed")
    try:
        return convert(columns[name])
    except WrongType as error:
        raise BadRequest(name, str(error)) from error


def _standardised(feature: DenseFeature, column: pa.Array) -> np.ndarray:
    if column.null_count == len(column):  # nulls may come without a type
        return np.zeros(len(column), np.float32)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise WrongType(f"holds {column.type} values, but must hold numbers")
    return feature.standardise(numbers(column))


def _bag(vocabulary: Vocabulary, column: pa.Array) -> Bag:
    if column.null_count == len(column):
        column = pa.nulls(len(column), pa.list_(vocabulary.type))
    if not pa.types.is_list(column.type):
        raise WrongType(f"holds {column.type} values, but must hold lists")
    lengths = column.value_lengths().fill_null(1).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(column) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    values = vocabulary.encode(column.flatten())
    if column.null_count:  # a null list is a bag of the null row
        at_null = np.repeat(column.is_null().to_numpy(zero_copy_only=False), lengths)
        filled = np.full(offsets[-1], vocabulary.null_row, np.int32)
        filled[~at_null] = values
        values = filled
    return Bag(offsets, values)
