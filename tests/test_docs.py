"""Documents that are derived from the code are those of the code."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_the_settings_page_is_that_of_the_settings() -> None:
    page = runpy.run_path(str(DOCS / "build_settings.py"))["page"]
    assert (DOCS / "settings.md").read_text() == page(), "run python docs/build_settings.py"
