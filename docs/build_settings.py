"""Writes settings.md from the settings themselves: `python docs/build_settings.py`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from embedcomp import models
from embedcomp.pipelines.deploying.settings import DeploySettings
from embedcomp.recipes.settings import CompareSettings, CompressSettings, JobSettings
from embedcomp.serving.settings import AccessSettings, LoadSettings, ServerSettings
from embedcomp.serving.shards.settings import ShardSettings
from embedcomp.support.fields import meanings
from embedcomp.swapping.settings import TuneSettings
from embedcomp.train.settings import FormTrainSettings, TrainSettings

HEAD = """\
# Settings

Written by docs/build_settings.py from the dataclasses in the code. A job file has the keys of the
first table, with the others as sub-tables. `--set name=value` of `embedcomp train` takes those of
`[train]`, of `embedcomp compress` those of `[compress]` (`--set tune.learning_rate=0.001`), of
`embedcomp submit` all of them with dots, of `embedcomp compare` those of its own table, likewise
with dots; `--model-set` of `embedcomp train` takes the model's. `embedcomp serve` has a flag for
each of its settings, such as `--max-rows`, and so have `embedcomp shard` and `embedcomp load`;
`embedcomp deploy` has those of its own table, and of `embedcomp serve` all but `host`, `shards` and
`workers`.
"""


def page() -> str:
    """The whole page."""
    parts = [
        ("The job", JobSettings),
        ("`[train]`", TrainSettings),
        ("`[compress]`", CompressSettings),
        ("`[compress.train]`", FormTrainSettings),
        ("`[compress.tune]`", TuneSettings),
        ("`embedcomp compare`", CompareSettings),
        ("`embedcomp serve`", ServerSettings),
        ("`embedcomp shard`", ShardSettings),
        ("`embedcomp deploy`", DeploySettings),
        ("`embedcomp load`", LoadSettings),
        ("`embedcomp predict` and `load`, to get in", AccessSettings),
        *((f"`[model_settings]` of {name}", models.get(name).Settings) for name in models.names()),
    ]
    return "\n".join([HEAD, *(_section(title, settings) for title, settings in parts)])


def _section(title: str, settings: Any) -> str:
    told = meanings(settings)
    rows = [
        f"| `{field.name}` | `{_type(field)}` | {_default(field)} | {told[field.name]} |"
        for field in dataclasses.fields(settings)
    ]
    head = ["| name | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([f"## {title}", "", *head, *rows, ""])


def _type(field: dataclasses.Field[Any]) -> str:
    return str(field.type).replace("|", "or")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    return "required" if field.default_factory is dataclasses.MISSING else "its own defaults"


if __name__ == "__main__":
    Path(__file__).with_name("settings.md").write_text(page())
