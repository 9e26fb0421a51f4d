"""Whether torch, fbgemm and torchrec fit together, checked before anything else breaks."""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

FIX = (
    "run `make setup`, or: pip uninstall -y fbgemm-gpu && "
    "pip install --force-reinstall --no-deps fbgemm-gpu-cpu==1.8.0 torchrec==1.8.0"
)
BUILDS = ("fbgemm-gpu", "fbgemm-gpu-cpu")  # of fbgemm, for CUDA and for the CPU alone


def check() -> None:
    """Refuse an installation in which torchrec cannot run.

    Without torch there is nothing to check: an artifact is served without it. Installing torchrec
    with its dependencies beside fbgemm-gpu-cpu brings the CUDA build, which overwrites the files of
    the other and mostly breaks the import of both; where both are registered, fbgemm is tried.

    Raises:
        ImportError: a package is missing or does not work; the message names the fix.
    """
    if find_spec("torch") is None:
        return
    missing = [name for name in ("fbgemm_gpu", "torchrec") if find_spec(name) is None]
    if missing:
        raise ImportError(f"{' and '.join(missing)} is not installed; {FIX}")
    if all(_has(build) for build in BUILDS):
        reason = broken()
        if reason:
            raise ImportError(f"fbgemm-gpu has overwritten fbgemm-gpu-cpu ({reason}); {FIX}")
    # torchrec's import warns about a torch.fx function that embedcomp does not use
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def broken() -> str:
    """Why fbgemm's operators do not work; empty where they do."""
    import torch

    try:
        import fbgemm_gpu  # noqa: F401 - registers them

        rows = torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(torch.ones(1, 4), 4)
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "" if rows.shape == (1, 6) else f"a row of four numbers takes {rows.shape[1]} bytes"


def _has(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
