"""Servers that embedcomp's is held against, in environments of their own.

An environment has the peer's packages first and then those of embedcomp's (a .pth names them),
where torch, torchrec and the model are from: both run the same torch. Triton's server and its
Python backend are in nvidia-pytriton's wheel; they are started as they are, without PyTriton.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from benchmarks.served.made import INFER
from benchmarks.served.server import ROOT, Server, free_port

PACKAGES = {
    "kserve": ["kserve==0.21.0"],
    "ray": ["ray[serve-grpc]==2.60.0"],
    "triton": ["--no-deps", "nvidia-pytriton==0.7.0"],
}
NAMES = {"kserve": "KServe", "ray": "Ray Serve's gRPC proxy", "triton": "Triton's Python backend"}
OURS = sysconfig.get_paths()["purelib"]
CONFIG = """
backend: "python"
max_batch_size: 0
input [
  {{ name: "dense" data_type: TYPE_FP32 dims: [-1, -1] }},
  {{ name: "values" data_type: TYPE_INT64 dims: [-1] }},
  {{ name: "lengths" data_type: TYPE_INT64 dims: [-1] }}
]
output [{{ name: "score" data_type: TYPE_FP32 dims: [-1] }}]
instance_group [{{ count: 1 kind: KIND_CPU }}]
parameters: {{ key: "path" value: {{ string_value: "{path}" }} }}
"""
# Triton's Python reads no PYTHONPATH, and this file is the first that it imports.
UTILS = "triton_python_backend_utils.py"
PATHS = "import sys\nsys.path[1:1] = {paths}\n"


class PeerMissing(Exception):
    """The environment cannot be made; the message says why."""


def environment(name: str, folder: Path) -> Path:
    """The Python of a peer's environment, made in a folder of `folder` if it is not there.

    Raises:
        PeerMissing: a package cannot be installed.
    """
    where = folder / name
    python, ready = where / "bin" / "python", where / ".ready"
    wanted = " ".join(PACKAGES[name])
    if not ready.exists() or ready.read_text() != wanted:
        _run([sys.executable, "-m", "venv", "--clear", str(where)])
        _run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES[name]])
        _site(where).joinpath("zz_embedcomp.pth").write_text(f"{OURS}\n")
        ready.write_text(wanted)
    return python


def versions(python: Path) -> dict[str, str]:
    """Versions of the peers' packages that have a say in the result."""
    listed = _run([str(python), "-m", "pip", "list", "--format=json", "--path", str(_of(python))])
    names = ("kserve", "ray", "nvidia-pytriton", "grpcio", "protobuf")
    return {p["name"]: p["version"] for p in json.loads(listed) if p["name"] in names}


def serve(
    name: str, python: Path, model: Path, message: bytes, work: Path, cores: Sequence[int]
) -> Server:
    """A peer that serves a model.

    Raises:
        NotServing: it did not come up.
    """
    log, grpc_port, http_port = work / f"{name}.log", free_port(), free_port()
    ports, variables = [str(grpc_port), str(http_port)], {}
    if name == "triton":
        command, variables = _triton(python, model, work / "triton", grpc_port)
    else:
        command = [str(python), "-m", f"benchmarks.served.{name}_server", str(model), *ports]
    target = f"127.0.0.1:{grpc_port}"
    return Server(command, INFER, message, log, cores=cores, target=target, variables=variables)


def _triton(python: Path, model: Path, folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """Its command and variables; the folder has its repository of models and its backend."""
    site = _of(python)
    brought = site / "pytriton" / "tritonserver"
    version = folder / "models" / "torchrec" / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.py").write_text("from benchmarks.served.triton_model import *\n")
    (version.parent / "config.pbtxt").write_text(CONFIG.format(path=model.resolve()))
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True, exist_ok=True)
    stub = f"{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
    theirs = brought / "backends" / "python"
    for file in (theirs / "libtriton_python.so", brought / "python_backend_stubs" / stub):
        (backend / file.name).unlink(missing_ok=True)
        (backend / file.name).symlink_to(file)
    paths, utils = PATHS.format(paths=[str(ROOT), OURS]), (theirs / UTILS).read_text()
    (backend / UTILS).write_text(utils.replace("import numpy", f"{paths}import numpy", 1))
    command = [str(brought / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}"]
    command += [f"--backend-directory={folder / 'backends'}", f"--grpc-port={port}"]
    command += ["--grpc-address=127.0.0.1", "--allow-http=false", "--allow-metrics=false"]
    libraries = [str(site / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
    return command, {"LD_LIBRARY_PATH": ":".join(libraries)}


def _of(python: Path) -> Path:
    return _site(python.parents[1])


def _site(folder: Path) -> Path:
    """The packages of an environment."""
    return Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        end = " ".join(done.stderr[-500:].split())
        raise PeerMissing(f"`{' '.join(command[1:])}` ended with {done.returncode}: {end}")
    return done.stdout
