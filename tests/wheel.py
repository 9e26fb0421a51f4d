"""The wheel does its work outside the tree: `make wheel`, or `python -m tests.wheel`.

Builds it, and runs synth -> train -> compress in an empty environment with all extras, and inspect
-> serve -> predict by a scorer in another one with `serve` alone, which has no torch. Takes some
minutes, most of which are downloads.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
import venv
from pathlib import Path

from benchmarks import slim

ROOT = Path(__file__).parent.parent
LARGEST_MIB = 350  # of the environment that serves
SCORE = """
import sys
import pyarrow as pa
import pyarrow.parquet as pq
from embedcomp.client import Client
rows = pq.read_table("clicks/test.parquet").slice(0, 3)
with Client(sys.argv[1]) as client:
    whole = client.metadata()
    names = [feature.name for feature in whole.features]
    items = rows.select(names).to_batches()[0]
    found = client.predict(items, None)
assert len(found) == 3 and (found > 0).all() and (found < 1).all(), found
assert "torch" not in sys.modules
print("scores:", found)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wheel = slim.wheel(folder)
        whole, serving = folder / "whole", folder / "serving"
        install(whole, "torch==2.13.0")
        install(whole, f"{wheel}[serve,compress,ray,report]")
        install(whole, "--no-deps", "torchrec==1.8.0")
        install(serving, f"{wheel}[serve]")
        told(serving)
        embedcomp = whole / "bin" / "embedcomp"
        run(embedcomp, "log", "synth", "clicks", "--rows", "4000", cwd=folder)
        run(
            embedcomp,
            *["train", "clicks", "--model", "dlrm", "--out", "model", "--epochs", "1"],
            cwd=folder,
        )
        run(
            embedcomp,
            *["compress", "model", "--log", "clicks", "--budget", "4x", "--out", "small"],
            cwd=folder,
        )
        served(serving, folder)


def install(environment: Path, *what: str) -> None:
    if not environment.exists():
        venv.create(environment, with_pip=True)
    run(environment / "bin" / "pip", "install", "-q", "-c", ROOT / "constraints.txt", *what)


def told(environment: Path) -> None:
    """Refuse an environment that is too large, or has what serving does without."""
    size = sum(f.stat().st_size for f in environment.rglob("*") if f.is_file()) / 2**20
    packages = {path.name for path in environment.glob("lib/*/site-packages/*")}
    print(f"the environment that serves has {size:.0f} MiB", flush=True)
    assert size < LARGEST_MIB and not packages & {"torch", "ray", "pandas"}, (size, packages)


def served(environment: Path, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    binaries = environment / "bin"
    run(binaries / "embedcomp", "inspect", "small", cwd=folder)
    command = [binaries / "embedcomp", "serve", "small", "--port", str(port)]
    server = subprocess.Popen(command, cwd=folder, env=clean())
    try:
        wait_for(port)
        run(binaries / "python", "-c", SCORE, f"127.0.0.1:{port}", cwd=folder)
    finally:
        server.terminate()
        assert server.wait(30) == 0


def wait_for(port: int) -> None:
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"nothing listens on {port}")


def run(*command: object, cwd: Path | None = None) -> None:
    print("$", *(str(part).splitlines()[0] if str(part) else "" for part in command), flush=True)
    subprocess.run([str(part) for part in command], cwd=cwd, env=clean(), check=True)


def clean() -> dict[str, str]:
    """Without what would let the tree be imported."""
    return {name: of for name, of in os.environ.items() if name != "PYTHONPATH"}


if __name__ == "__main__":
    main()
