"""The compiled engine is tested with the kernels of this CPU, and with those of earlier ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from embedcomp.kernels import native

library = native.library()
KERNELS = range(library.embedcomp_kernels(-1) if library is not None else 1)


@pytest.fixture(params=KERNELS, ids=lambda i: f"kernels_{i}")
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    native.needed().embedcomp_kernels(request.param)
    yield
    native.needed().embedcomp_kernels(0)
