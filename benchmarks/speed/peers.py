"""The tools embedcomp is compared with, in an environment of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TORCH = "torch==2.13.0"  # first, and the same as embedcomp's: nothing else then brings another
PEERS = ("fuxictr==2.3.10", "deepctr-torch==0.3.0")
OURS = ("-e", str(Path(__file__).parents[2]))  # embedcomp's requirements beside the peers
TORCHREC = "torchrec==1.8.0"  # without its requirements: see the Makefile


class PeersMissing(Exception):
    """The environment cannot be made; the message says why."""


def environment(folder: Path, more: Sequence[str] = ()) -> Path:
    """The Python of the peers' environment in `folder`, made if it is not there.

    Args:
        more: what else is installed, in pip's words; torchrec comes with it.

    Raises:
        PeersMissing: a package cannot be installed.
    """
    python, ready = folder / "bin" / "python", folder / ".ready"
    wanted = "\n".join((TORCH, *PEERS, *more))
    if not ready.exists() or ready.read_text() != wanted:
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", TORCH])
        _run([str(python), "-m", "pip", "install", "--quiet", *PEERS, *more])
        if more:
            _run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", TORCHREC])
        ready.write_text(wanted)
    return python


def versions(python: Path) -> dict[str, str]:
    """Versions of everything in the environment that has a say in the result."""
    listed = _run(
        [str(python), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    )
    names = ("torch", "numpy", "fuxictr", "deepctr-torch")
    return {f"peers' {p['name']}": p["version"] for p in json.loads(listed) if p["name"] in names}


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        end = " ".join(done.stderr[-500:].split())
        raise PeersMissing(f"`{' '.join(command[1:])}` ended with {done.returncode}: {end}")
    return done.stdout
