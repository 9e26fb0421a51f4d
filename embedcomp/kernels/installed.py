"""Whether torch, fbgemm-gpu-cpu and torchrec fit together, told before anything else breaks."""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

FIX = (
    "run `make setup`, or: pip uninstall -y fbgemm-gpu && "
    "pip install --force-reinstall --no-deps fbgemm-gpu-cpu==1.8.0 torchrec==1.8.0"
)


def check() -> None:
    """Refuse an installation in which torchrec cannot run.

    Installing torchrec with its dependencies brings fbgemm-gpu (the CUDA build), which overwrites
    the files of fbgemm-gpu-cpu and breaks the import of both.

    Raises:
        ImportError: a package is missing or overwritten; the message names the fix.
    """
    if _has("fbgemm-gpu"):
        raise ImportError(f"fbgemm-gpu has overwritten fbgemm-gpu-cpu; {FIX}")
    missing = [name for name in ("fbgemm-gpu-cpu", "torchrec") if not _has(name)]
    if missing or find_spec("fbgemm_gpu") is None:
        raise ImportError(f"{' and '.join(missing) or 'fbgemm_gpu'} is not installed; {FIX}")
    # torchrec's import warns about a torch.fx function that embedcomp does not use
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def _has(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
