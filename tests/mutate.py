"""Changes formulas of the program one after the other and sees that a test fails for each.

`python -m tests.mutate [AREA ...]` reads tests/mutations/AREA.toml (all of them where none is
named), applies each change to a copy of the tree and runs the tests named beside it. A change that
no test notices says that the formula has no test.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.build_engine import QUICKLY, build

TOP = Path(__file__).parent.parent
CHANGES = Path(__file__).parent / "mutations"
COMPILED = {".cpp", ".h", ".inc"}
ALL = "all"  # areas
FAILED = 1  # pytest's exit code where tests ran and some of them failed


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of a file, and the tests of which at least one has to fail.

    before: text that stands in the file exactly once; after: what replaces it.
    tests: as pytest is given them.
    """

    what: str
    file: str
    before: str
    after: str
    tests: list[str]

    def applied(self, text: str) -> str:
        found = text.count(self.before)
        assert found == 1, f"{self.what}: the text stands {found} times in {self.file}"
        return text.replace(self.before, self.after)


def changes(areas: Sequence[str] = ()) -> list[Change]:
    """The changes of some areas, or of all."""
    files = [CHANGES / f"{a}.toml" for a in areas] or sorted(CHANGES.glob("*.toml"))
    return [Change(**c) for file in files for c in tomllib.loads(file.read_text())["change"]]


def copy_of_the_tree(to: Path) -> None:
    """The files and links that git does not ignore, and what is built beside them."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=TOP, capture_output=True, text=True, check=True)
    built = [*TOP.glob("embedcomp/**/*.so"), *TOP.glob("serving/wire/**/*.py")]
    for name in [*files.stdout.splitlines(), *(str(b.relative_to(TOP)) for b in built)]:
        if (TOP / name).is_file() or (TOP / name).is_symlink():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TOP / name, to / name, follow_symlinks=False)
    if (TOP / "../shared").is_dir():  # logs that some tests want lie beside the tree
        (to / "../shared").symlink_to((TOP / "../shared").resolve())


def run(change: Change, tree: Path) -> int:
    """Exit code of the tests with the change in place; the tree is as before afterwards."""
    file = tree / change.file
    was = {f: f.read_bytes() for f in (file, *tree.glob("embedcomp/**/*.so"))}
    try:
        file.write_text(change.applied(file.read_text()))
        if file.suffix in COMPILED:
            build(tree, QUICKLY)
        return _pytest(change.tests, tree)
    finally:
        for kept, content in was.items():
            kept.write_bytes(content)


def _pytest(tests: Sequence[str], tree: Path) -> int:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "", "-p", "no:cacheprovider"]
    command += tests
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    found = subprocess.run(command, cwd=tree, env=environment, capture_output=True, check=False)
    return found.returncode


def results(chosen: Sequence[Change]) -> Iterator[tuple[Change, str]]:
    """Each change, and "noticed" or what was found instead."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        copy_of_the_tree(tree)
        tests = sorted({test for change in chosen for test in change.tests})
        code = _pytest(tests, tree)
        assert not code, f"the tests do not pass without a change (exit code {code})"
        for change in chosen:
            code = run(change, tree)
            said = {0: "NOT NOTICED", FAILED: "noticed"}
            crashed = "noticed" if code < 0 else f"pytest ended with {code}"
            yield change, said.get(code, crashed)


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    missed, chosen = 0, changes([] if ALL in given.areas else given.areas)
    for change, found in results(chosen):
        missed += found != "noticed"
        print(f"| {change.file} | {change.what} | {' '.join(change.tests)} | {found} |", flush=True)
    print(f"{len(chosen) - missed} passed, {missed} failed")
    return int(missed > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutate",
        description="Change formulas one after the other and see that a test fails for each.",
    )
    known = [ALL, *sorted(file.stem for file in CHANGES.glob("*.toml"))]
    named = f"of changes: {', '.join(known)}"
    parser.add_argument("areas", nargs="*", default=ALL, choices=known, metavar="AREA", help=named)
    return parser


if __name__ == "__main__":
    sys.exit(main())
