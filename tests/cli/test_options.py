"""Options that are made of a dataclass of settings."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from embedcomp.cli import main
from embedcomp.cli.options import from_fields
from embedcomp.compare import run
from embedcomp.errors import BadSettings
from embedcomp.log import click_log
from embedcomp.recipes.settings import CompareSettings, CompressSettings, read_changes, validated
from embedcomp.serving.settings import ServerSettings


def given_to(settings: type[Any], *names: str, words: str) -> dict[str, Any]:
    """What a command with options for these fields is given by these words of a command line."""
    found: list[dict[str, Any]] = []

    @from_fields(settings, *names)
    def command(given: dict[str, Any]) -> None:
        found.append(given)

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, words.split(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return found[0]


def test_only_what_is_given_is_handed_on() -> None:
    assert given_to(ServerSettings, words="") == {}
    assert given_to(ServerSettings, words="--port 0 --grace-s 2") == {"port": 0, "grace_s": 2.0}


def test_a_field_of_a_field_is_an_option_and_set_changes_the_others() -> None:
    fields = "budget", "methods", "tune.epochs"
    words = "--budget 5x --methods svd,half --tune-epochs 2 --set tune.distil=0.5 --set rest=[]"
    given = given_to(CompressSettings, *fields, words=words)
    assert given == {
        "budget": "5x",
        "methods": ("svd", "half"),
        "tune": {"epochs": 2, "distil": 0.5},
        "rest": [],
    }
    settings = validated(CompressSettings, given, "--set")
    assert (settings.tune.epochs, settings.methods) == (2, ("svd", "half"))


def test_numbers_with_commas_between_them_are_numbers() -> None:
    given = given_to(
        CompareSettings, "models", "tune_epochs", words="--models dlrm --tune-epochs 0,2"
    )
    assert validated(CompareSettings, given, "--set").tune_epochs == (0, 2)


@pytest.mark.parametrize(
    ("words", "alone"),
    [
        ("", None),
        ("--alone all", None),
        ("--alone none", ()),
        ("--alone svd,half", ("svd", "half")),
    ],
)
def test_methods_compared_alone_may_be_all_or_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, alone: tuple[str, ...] | None
) -> None:
    found: list[CompareSettings] = []
    monkeypatch.setattr(run, "compare", lambda log, settings, *_: found.append(settings) or [])
    monkeypatch.setattr(click_log, "ClickLog", lambda path: None)
    command = f"compare log --out {tmp_path} --models dlrm {words}".split()
    assert CliRunner().invoke(main.app, command, catch_exceptions=False).exit_code == 0
    assert [settings.alone for settings in found] == [alone]


def test_help_is_the_comment_beside_the_field_with_its_default() -> None:
    @from_fields(CompareSettings, "budgets", "seeds")
    def command(given: dict[str, Any]) -> None: ...

    app = typer.Typer()
    app.command()(command)
    shown = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output.split())
    assert "How many, from 0 on. [default: 1]" in shown
    assert "5x, 20% or 4MiB (comma-separated). [default: 5x]" in shown


def test_a_setting_of_a_number_is_refused() -> None:
    with pytest.raises(BadSettings, match="tune is 3, which has no epochs"):
        read_changes(["tune=3", "tune.epochs=1"])


def test_every_option_says_what_it_is() -> None:
    """Whose help is the comment beside a field, which a formatter may have moved away from it."""
    for command in main.app.registered_commands:
        assert command.callback is not None
        for name, given in inspect.signature(command.callback, eval_str=True).parameters.items():
            for option in getattr(given.annotation, "__metadata__", ()):
                text = option.help or ""
                assert text and text == text.strip(), f"{command.callback.__name__} --{name}"
