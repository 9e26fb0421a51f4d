"""What importing embedcomp says of torch, fbgemm and torchrec."""

from __future__ import annotations

import pytest

from embedcomp.kernels import installed


def test_fbgemms_operators_work_here() -> None:
    assert installed.broken() == ""


def test_both_builds_are_tried_and_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "_has", lambda package: True)
    installed.check()  # they work, whichever is registered
    monkeypatch.setattr(installed, "broken", lambda: "OSError: libcuda.so is missing")
    with pytest.raises(ImportError, match=r"overwritten fbgemm-gpu-cpu \(OSError: .*run `make set"):
        installed.check()
    monkeypatch.setattr(installed, "_has", lambda package: package == "fbgemm-gpu")
    installed.check()  # the CUDA build alone


@pytest.mark.parametrize("missing", ["fbgemm_gpu", "torchrec"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(ImportError, match=f"^{missing} is not installed; run `make setup`"):
        installed.check()
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    installed.check()  # without torch, an artifact is served all the same
