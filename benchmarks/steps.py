"""A folder with the results of a long benchmark's steps, so that it can be stopped and go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import result
from embedcomp.errors import BadSettings
from embedcomp.support.files import replacing

T = TypeVar("T")


class Steps:
    """Results by step name, in `folder`.

    Args:
        settings: of the whole benchmark, as JSON.

    Raises:
        BadSettings: the folder holds steps that were run with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = folder
        wanted = json.loads(json.dumps(settings))
        found = self.run("settings", lambda: wanted)
        differing = sorted(k for k in found.keys() | wanted if found.get(k) != wanted.get(k))
        if differing:
            key = differing[0]
            raise BadSettings(
                f"{folder} holds steps run with {key} {found.get(key)!r}, and {wanted.get(key)!r} "
                "is asked for now; give another --work folder or delete this one"
            )

    def run(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a step: read if it is there, otherwise made and kept."""
        file = self.folder / f"{name}.json"
        if file.exists():
            stored: dict[str, Any] = json.loads(file.read_text())
            return stored
        made = make()
        with replacing(file) as fresh:
            fresh.write_text(json.dumps(made, indent=1) + "\n")
        return made

    def run_of(
        self, name: str, make: Callable[[T], dict[str, Any]], of: Callable[[], T]
    ) -> dict[str, Any]:
        """The result of a step of something that is only made where the step is not done yet."""
        return self.run(name, lambda: make(of()))

    def record(self, name: str, **content: Any) -> Path:
        """Write the record of a run (`result.write`), unless these very results have one already.

        So the same command, started again when all is done, makes no second record of one run.
        """
        written = json.dumps([name, content], default=str).encode()
        step = f"records/{hashlib.sha256(written).hexdigest()[:12]}"
        return Path(self.run(step, lambda: {"file": str(result.write(name, **content))})["file"])
