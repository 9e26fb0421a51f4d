from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from embedcomp.compare import results
from embedcomp.compare.report import figures, markdown, picture, report, verdicts
from embedcomp.compare.sections import sections
from embedcomp.errors import BadResults
from tests.compare.records import comparison, record


def row(table: tuple[list[str], list[list[str]]], *begins: str) -> dict[str, str]:
    head, rows = table
    (found,) = (r for r in rows if r[: len(begins)] == list(begins))
    return dict(zip(reversed(head), reversed(found), strict=True))  # of two "std", the first


def test_figures_are_means_over_seeds_and_differences_are_taken_seed_by_seed():
    (section,) = sections(comparison())
    planned = row(figures(section), "5x", "planned")
    assert planned["bytes"] == "200" and planned["size"] == "1/5.0" and planned["seeds"] == "2"
    assert planned["AUC"] == "0.81000" and planned["std"] == "0.02828"
    assert planned["AUC - original"] == "+0.00000"
    assert figures(section)[1][1][9] == "0.01414"  # of -0.01 and +0.01
    assert row(figures(section), "-", "original")["AUC"] == "0.81000"
    assert row(figures(section), "5x", "svd")["AUC - original"] == "-0.00500"
    assert row(figures(section), "5x", "row_int8")["seeds"] == "1"


def test_the_planned_mix_is_held_against_the_best_method_that_has_all_its_seeds():
    (section,) = sections(comparison())
    told = row(verdicts(section), "5x")
    assert told["best single method"] == "svd" and told["its AUC"] == "0.80500"
    assert told["difference"] == "+0.00500" and told["its std"] == "0.02121"
    assert told["spread of AUC over seeds"] == "0.02828"
    assert told["planned is"] == "within the spread"


@pytest.mark.parametrize(
    ("planned", "said"),
    [
        ((0.70, 0.71), "worse"),
        ((0.90, 0.91), "better"),
        ((0.801, 0.811), "within the spread, better at every seed"),
        ((0.799, 0.809), "within the spread, worse at every seed"),
        ((0.80, 0.81), "within the spread"),
    ],
)
def test_a_difference_below_the_seeds_spread_is_called_so(planned, said):
    found = [record("svd", s, auc, "5x") for s, auc in enumerate((0.80, 0.81))]
    found += [record("planned", s, auc, "5x") for s, auc in enumerate(planned)]
    (section,) = sections(found)
    assert str(section.verdict("5x")) == said


def test_one_seed_has_no_spread():
    (section,) = sections([record("svd", 0, 0.8, "5x"), record("planned", 0, 0.9, "5x")])
    told = row(verdicts(section), "5x")
    assert told["planned is"] == "one seed: cannot be told" and told["its std"] == "-"


def test_tuned_models_are_held_against_the_control():
    found = [record("original", 0, 0.80), record("control", 0, 0.85, tune_epochs=1)]
    found += [record("svd", 0, 0.84, "5x", tune_epochs=1), record("svd", 0, 0.79, "5x")]
    untuned, tuned = sections(found)
    assert row(figures(untuned), "5x", "svd")["AUC - original"] == "-0.01000"
    assert row(figures(tuned), "5x", "svd")["AUC - control"] == "-0.01000"
    assert [level.name for level in picture(tuned).levels] == ["original", "control"]


@pytest.mark.slow
def test_trained_forms_are_held_against_the_control_that_got_the_same_epochs(tmp_path: Path):
    how = {"train_epochs": 2, "form": "a"}
    found = [record("original", 0, 0.80), record("svd", 0, 0.79, "5x")]
    found += [record("control", 0, 0.85, **how), record("hashed", 0, 0.84, "5x", **how)]
    found += [record("control", 0, 0.86, **how, tune_epochs=1)]
    found += [record("hashed", 0, 0.83, "5x", **how, tune_epochs=1)]
    drawn = {**how, "from_log": True}
    found += [record("control", 0, 0.85, **drawn), record("hashed", 0, 0.80, "5x", **drawn)]
    found += [record("control", 0, 0.90, **how | {"form": "b"})]
    found += [record("hashed", 0, 0.82, "5x", **how | {"form": "b"})]
    every = sections(found)
    trained = [s.title.removeprefix("dcnv2 on clicks, ") for s in every]
    assert trained == [
        "not tuned",
        "trained for 2 epochs",
        "trained for 2 epochs, tuned for 1 epoch",
        "trained for 2 epochs",
        "trained for 2 epochs from the log",
    ]
    rows = [row(figures(section), "5x", "hashed") for section in every[1:]]
    assert [r["AUC - control"] for r in rows] == ["-0.01000", "-0.03000", "-0.08000", "-0.05000"]
    assert [level.auc for level in picture(every[2]).levels] == [0.80, 0.86]
    assert [curve.name for curve in picture(every[0]).curves] == ["svd"]
    for one in found:
        results.append(tmp_path / results.NAME, one)
    assert len({file.name for file in report(tmp_path)}) == 2 + len(every)


def test_a_line_from_before_there_was_training_is_read(tmp_path: Path):
    whole = record("svd", 0, 0.79, "5x", tune_epochs=1)
    old = whole.model_dump(mode="json")
    for name in ("train_epochs", "from_log", "form"):
        del old[name]
    (tmp_path / results.NAME).write_text(json.dumps(old) + "\n")
    assert results.read(tmp_path / results.NAME) == [whole]


def test_the_newest_of_two_results_counts_unless_it_was_planned_over_fewer_methods():
    wide, narrow = {"methods": ["a", "b"]}, {"methods": ["a"]}
    found = [record("svd", 0, 0.1, "5x"), record("svd", 0, 0.2, "5x")]
    found += [record("planned", 0, 0.3, "5x", settings=wide)]
    found += [record("planned", 0, 0.4, "5x", settings=narrow)]
    (section,) = sections(found)
    assert section.group("svd", "5x").auc.values == (0.2,)
    assert section.group("planned", "5x").auc.values == (0.3,)
    assert section.planned_over == ["a", "b"]


def test_models_are_side_by_side_where_there_are_several():
    other = [r.model_copy(update={"model": "dlrm", "setup": "t"}) for r in comparison()]
    text = markdown(sections([*comparison(), *other]), comparison())
    lines = [line for line in text.splitlines() if line.startswith("| dlrm |")]
    assert lines == [
        "| dlrm | clicks | not tuned | 0.81000 | - | 0.81000 | +0.00000 | 0.01414 | 200 | 1/5.0 "
        "| 60 | 1.50 |"
    ]
    assert "### At 5x" in text


@pytest.mark.slow
def test_the_report_says_what_was_not_made_and_where_everything_comes_from(tmp_path: Path):
    for one in comparison():
        results.append(tmp_path / results.NAME, one)
    files = report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "- row_int8 at 5x: the budget is too small" in text
    assert "Planned over row_int8, svd." in text and "**planned**" in text
    assert "0.1.0 abc" in text and "A CPU, 2 cores" in text and "from 2026-01-02" in text
    assert [f.suffix for f in files] == [".md", ".html", ".png"] and all(f.exists() for f in files)
    assert f"({files[-1].name})" in text


@pytest.mark.slow
def test_the_page_needs_no_network(tmp_path: Path):
    for one in comparison():
        results.append(tmp_path / results.NAME, one)
    report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page)
    assert len(page) > 500_000 and "planned" in page and "dcnv2 on clicks" in page
    (png,) = tmp_path.glob("*.png")
    assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 10_000


def test_points_far_below_the_others_do_not_squeeze_the_picture():
    found = [record("original", 0, 0.8), record("planned", 0, 0.79, "5x")]
    (section,) = sections([*found, record("svd", 0, 0.5, "5x")])
    drawn = picture(section)
    assert 0.78 < drawn.shown[0] < 0.79 and drawn.hidden == 1
    assert [c.name for c in drawn.curves if c.emphasised] == ["planned"]


def test_a_file_without_results_is_refused(tmp_path: Path):
    with pytest.raises(BadResults, match=r"has no results\.jsonl; run"):
        report(tmp_path)


def test_a_line_that_was_cut_short_is_passed_over_and_replaced(tmp_path: Path):
    file = tmp_path / results.NAME
    first, second = comparison()[:2]
    results.append(file, first)
    with file.open("ab") as stream:
        stream.write(second.model_dump_json().encode()[:-20])
    assert results.read(file) == [first]
    results.append(file, second)
    assert results.read(file) == [first, second]


def test_another_line_that_is_no_result_is_named(tmp_path: Path):
    file = tmp_path / results.NAME
    results.append(file, comparison()[0])
    file.write_bytes(file.read_bytes() + b'{"key": 1}\n')
    with pytest.raises(BadResults, match=r"line 2 is not a result: .*delete the line"):
        results.read(file)
