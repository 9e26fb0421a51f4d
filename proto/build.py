"""Generate the messages' Python code from the .proto files: `python proto/build.py`.

The code goes to serving/wire and not beside its source, since `proto` is already the import name
of another package (proto-plus, which Ray brings along). It is never committed.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from grpc_tools import protoc

SOURCES = Path(__file__).resolve().parent
TARGET = SOURCES.parent / "serving" / "wire"


def build(sources: Path = SOURCES, target: Path = TARGET) -> list[Path]:
    """Generate what is missing or older than its source; returns the sources it did.

    Raises:
        SystemExit: a .proto file is wrong; protoc has printed file and line.
    """
    stale = [s for s in sorted(sources.rglob("*.proto")) if not _is_fresh(s, sources, target)]
    if stale:
        target.mkdir(parents=True, exist_ok=True)
        out = [f"--python_out={target}", f"--pyi_out={target}"]
        if protoc.main(["protoc", f"-I{sources}", *out, *map(str, stale)]):
            raise SystemExit(f"{', '.join(s.name for s in stale)}: no code was generated")
        for source in stale:  # a wheel brings the source along
            shutil.copy(source, target / source.relative_to(sources))
    return stale


def _is_fresh(source: Path, sources: Path, target: Path) -> bool:
    stem = target / source.relative_to(sources).with_suffix("")
    built = [stem.with_name(stem.name + ending) for ending in ("_pb2.py", "_pb2.pyi")]
    return all(b.exists() and b.stat().st_mtime > source.stat().st_mtime for b in built)


if __name__ == "__main__":
    done = build()
    print(f"generated {len(done)} of the .proto files' modules in {TARGET}", file=sys.stderr)
