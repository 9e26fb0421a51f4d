"""schema.toml: the click log's label, splits and columns."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from embedcomp.errors import BadSchema

Side = Literal["user", "item"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Categorical(_Strict):
    """A column of ids: int64 or string, or a list of either (multi-valued)."""

    side: Side = "item"  # "user": the same for every candidate of a request
    dense_ids: bool = False  # ids are already row numbers 0..n-1: no vocabulary is built


class Dense(_Strict):
    """A column of numbers."""

    side: Side = "item"
    transform: Literal["none", "log1p"] = "none"  # log1p keeps the sign: sign(x) log(1 + |x|)


class Schema(_Strict):
    """The columns of a click log, in the order in which models see them."""

    label: str
    splits: Annotated[dict[str, str], Field(min_length=1)]  # split -> file, folder or glob
    categorical: Annotated[dict[str, Categorical], Field(min_length=1)]
    dense: dict[str, Dense] = {}

    @model_validator(mode="after")
    def _names_are_unique(self) -> Schema:
        names = [self.label, *self.categorical, *self.dense]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"column {twice[0]!r} is named twice (as label, categorical or dense); keep one"
            )
        return self

    @property
    def columns(self) -> list[str]:
        """Every column that is read: label, categorical, dense."""
        return [self.label, *self.categorical, *self.dense]


def parse_schema(text: str, where: str) -> Schema:
    """The schema in `text`; `where` names its file in errors.

    Raises:
        BadSchema: the text is not TOML, names a column twice, or has a key that is not known.
    """
    try:
        return Schema.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        hint = "; is a column named twice?" if "overwrite" in str(error) else ""
        raise BadSchema(f"{where} is not valid TOML: {error}{hint}") from error
    except ValidationError as error:
        raise BadSchema(f"{where}: {first_problem(error)}") from error


def unknown_setting(kind: type[Any], values: Iterable[str]) -> str | None:
    """What a dataclass has not, of these names, and what it has; None: it has all."""
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(values) - set(known))
    return f"no setting {unknown[0]!r}; it has: {', '.join(known)}" if unknown else None


def first_problem(error: ValidationError, kind: type[Any] | None = None) -> str:
    """The first of pydantic's complaints, as one sentence with the number of the others.

    Args:
        kind: the dataclass that was validated, to say what there is in place of an unknown name.
    """
    problem, *others = error.errors()
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "unexpected_keyword_argument":
        for part in problem["loc"][:-1]:
            kind = kind and get_type_hints(kind).get(str(part))
        if is_dataclass(kind):
            names = ", ".join(field.name for field in fields(kind))
            message = f"there is no such setting; there are {names}"
    more = f" (and {len(others)} more)" if others else ""
    return f"{place}: {message}{more}" if place else f"{message}{more}"
