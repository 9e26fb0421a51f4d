"""Documents that are derived from the code are those of the code, and their examples run."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
import torch

from embedcomp.cli import main

TOP = Path(__file__).parent.parent
DOCS = TOP / "docs"
SERVED = "127.0.0.1:50051"  # as the documents write it
NOT_RUN = 1  # examples that are not run, at most

_EXAMPLE = re.compile(
    r"(?P<mark><!--(?:(?!-->).)*-->\n)?```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)
_REASON = re.compile(r"<!-- not run: (.+?) -->", re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A Python block of a page.

    output: what the page says that it prints; None where it does not say.
    reason: why it cannot run; empty if it can.
    """

    page: Path
    line: int  # of its first line of code
    code: str
    output: str | None
    reason: str

    def run(self, names: dict[str, object], target: str) -> str:
        """What the code prints; its names are added to those of the examples before it."""
        code = "\n" * (self.line - 1) + self.code.replace(SERVED, target)
        with redirect_stdout(StringIO()) as printed:
            exec(compile(code, str(self.page), "exec"), names)
        return printed.getvalue()


def examples(page: Path) -> list[Example]:
    text, found = page.read_text(), []
    for match in _EXAMPLE.finditer(text):
        reason = _REASON.fullmatch((match["mark"] or "").rstrip())
        line = text.count("\n", 0, match.start("code")) + 1
        told = reason[1] if reason else ""
        found.append(Example(page, line, match["code"], match["output"], told))
    return found


PAGES = {
    str(page.relative_to(TOP)): found
    for page in sorted([*TOP.glob("*.md"), *DOCS.glob("*.md"), *TOP.glob("benchmarks/*.md")])
    if (found := examples(page))
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with what the README's commands make, and the address of a server of it."""
    runpy.run_path(str(TOP / "proto" / "build.py"))["build"]()
    from embedcomp.scorer.scorer import Scorer
    from embedcomp.serving.models import Models
    from embedcomp.serving.server import ScoringServer, ServerSettings

    folder = tmp_path_factory.mktemp("served")
    command(folder, "log", "synth", "clicks", "--rows", "4000")
    train = ["train", "clicks", "--model", "dcnv2", "--out", "model", "--epochs", "1"]
    command(folder, *train, "--set", "batch_rows=1024", "--set", "embedding_l2=0")
    compress = ["compress", "model", "--log", "clicks", "--budget", "5x", "--out", "small"]
    command(folder, *compress, "--methods", "row_int4,half")
    scorer = Scorer.open(folder / "small")
    settings = ServerSettings(port=0)
    with ScoringServer(Models.of(settings, scorer), settings) as server:
        yield folder, f"127.0.0.1:{server.port}"


def command(folder: Path, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["embedcomp", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
    assert not ended.value.code


def test_the_settings_page_is_that_of_the_settings() -> None:
    page = runpy.run_path(str(DOCS / "build_settings.py"))["page"]
    assert (DOCS / "settings.md").read_text() == page(), "run python docs/build_settings.py"


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run_and_print_what_it_says(
    page: str, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, target = served
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": page}
    with torch.random.fork_rng():
        for example in PAGES[page]:
            if example.reason:
                continue
            printed = example.run(names, target)
            assert example.output in (None, printed), f"{page}, line {example.line}"


def test_nearly_every_example_is_run() -> None:
    assert {"README.md", "docs/your_model.md"} <= PAGES.keys()
    every = [example for found in PAGES.values() for example in found]
    blocks = sum((TOP / page).read_text().count("```python\n") for page in PAGES)
    assert len(every) == blocks
    assert sum(bool(example.reason) for example in every) <= NOT_RUN
    assert any(example.output is not None for example in PAGES["README.md"])


def test_an_example_that_prints_something_else_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    run = "```python\nprint(x + 1)\n```\n\n```text\n2\n```\n"
    page.write_text(f"{run}\n<!-- not run: it has\nno log -->\n```python\nprint(log)\n```\n")
    found, not_run = examples(page)
    assert (found.line, found.output, found.reason) == (2, "2\n", "")
    assert found.run({"x": 1}, "") == found.output
    assert found.run({"x": 2}, "") != found.output
    assert (not_run.output, not_run.reason) == (None, "it has\nno log")
    with pytest.raises(NameError) as raised:
        not_run.run({}, "")
    assert raised.traceback[-1].lineno == not_run.line - 1


@pytest.mark.parametrize(
    "page", sorted({*TOP.glob("*.md"), *DOCS.glob("*.md")}), ids=lambda page: page.name
)
def test_the_files_that_a_page_links_are_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link
