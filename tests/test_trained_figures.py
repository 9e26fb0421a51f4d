"""Figures of benchmarks of forms that train, from made-up records."""

from typing import Any

import numpy as np
import pytest

from benchmarks.figures import born_again, choosing, forms, ordered, rate_bound, students
from benchmarks.figures.record import NotSo
from benchmarks.rate_bound import least_loss

SPEEDS = {"1": 10.0, "64": 100.0, "1024": 200.0}


def figures(auc: float, tables: int = 64, **more: Any) -> dict[str, Any]:
    made = {"auc": auc, "logloss": 0.5, "rows_per_second": SPEEDS, "tables": tables, **more}
    return {"bytes": {"total": tables + 100, "tables": tables}, **made}


def of_forms(results: dict[str, Any], **settings: Any) -> dict[str, Any]:
    beside = {"original": figures(0.80, 640), "control": figures(0.81, 640)}
    asked = {"ratios": [10.0, 100.0], "methods": ["hashed", "untrained"], **settings}
    return {
        "benchmark": "forms-log",
        "data": {"name": "log"},
        "seeds": [0, 1],
        "settings": asked,
        "results": {"beside-0": beside, "beside-1": beside, **results},
    }


FORMS = of_forms(
    {
        "untrained-10x-model-0": figures(0.79, trained_rows_per_second=[None]),
        "hashed-10x-model-0": figures(0.78, trained_rows_per_second=[None, 300, 500]),
        "hashed-10x-model-1": figures(0.76, trained_rows_per_second=[None, 400]),
        "hashed-100x-model-0": figures(0.7, 32, floor="why", trained_rows_per_second=[]),
        "hashed-100x-log-0": {"reason": "nothing is stored"},
    }
)


def test_a_form_has_its_seeds_mean_its_floor_and_its_speeds() -> None:
    head, _, *rows = forms.methods(FORMS)
    assert head.startswith("| method | begins from | 10x | 100x |")
    assert rows == [
        "| original | | 0.80000 ± 0.00000, 0.5000 | | | 100 |",
        "| control | | 0.81000 ± 0.00000, 0.5000 | | | 100 |",
        "| `untrained` | model | 0.79000, 0.5000 | - | | 100 |",
        "| `hashed` | model | 0.77000 ± 0.01414, 0.5000 | 0.70000, 0.5000 at 32 B | 400 | 100 |",
    ]


def test_a_size_that_one_record_lacks_is_left_open_in_its_rows() -> None:
    of_log = {"hashed-100x-log-0": figures(0.6, 32, trained_rows_per_second=[])}
    fewer = of_forms(of_log, ratios=[100.0])
    head, _, *rows = forms.methods(FORMS, fewer)
    assert head.startswith("| method | begins from | 10x | 100x |")
    assert rows[-1] == "| `hashed` | log | - | 0.60000, 0.5000 | | 100 |"


def test_written_forms_are_named_without_their_seed() -> None:
    beside = {"original": figures(0.8, 640), "control": figures(0.81, 640)}
    record = {
        "results": {"beside 0": beside, "hashed 1 0": figures(0.7), "hashed 1 1": figures(0.8)}
    }
    assert forms.written(record)[2:] == [
        "| original | 640 | 0.80000 | 0.50000 |",
        "| control | 640 | 0.81000 | 0.50000 |",
        "| hashed 1 | 64 | 0.75000 ± 0.07071 | 0.50000 ± 0.00000 |",
    ]


def test_the_picture_has_how_much_smaller_tables_are_and_what_that_loses() -> None:
    (axes,) = choosing.picture(FORMS).get_axes()
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines["hashed (trained)"] == [pytest.approx([10, -0.04]), pytest.approx([20, -0.11])]
    assert lines["plan, post-training"] == [pytest.approx([10, -0.02])]


def test_a_student_is_held_against_its_seeds_control() -> None:
    def seeds(*aucs: float) -> list[dict[str, Any]]:
        return [{"auc": 0.9, "test": figures(auc)} for auc in aucs]

    results = {"control": seeds(0.8, 0.7), "50x-1": seeds(0.79, 0.68), "50x-auto": [{"test": {}}]}
    record = {"data": {"name": "log"}, "results": results}
    *_, made, missing = students.forms(record)
    assert "-0.01500 (-0.01000 -0.02000)" in made
    assert missing == "| log | 50x-auto | - | - | - | - | - | - | - |"


def test_words_on_students_are_held_against_their_record() -> None:
    def seeds(auc: float, speed: float = 1.0) -> list[dict[str, Any]]:
        test = figures(auc) | {"rows_per_second": {"64": speed}}
        return [{"auc": 0.7, "floats": {"auc": 0.71}, "test": test}]

    at_100 = {"100x-direct": seeds(0.6), "100x-0": seeds(0.61), "100x-1": seeds(0.62)}
    at_50 = {"50x-direct": seeds(0.75), "50x-0.7": seeds(0.74)}
    results = {"control": seeds(0.8), **at_100, "100x-0.7": seeds(0.65, 2.0), **at_50}
    found = [*students.said({"results": results})]
    assert found == pytest.approx([0.2, 0.15, 0.19, 0.18, 0.01, 0.05, 0.06])
    results["100x-0.7"] = seeds(0.615, 2.0)
    with pytest.raises(NotSo):
        [*students.said({"results": results})]


def test_one_artifact_at_a_budget_has_the_bytes_of_its_file() -> None:
    made = {"served-5x-0": figures(0.8, same_bytes=True), "apart-5x-0": figures(0.79)}
    settings = {"budgets": ["5x"], "tune_epochs": [0]}
    results = {**made, "planned-5x-tuned-0-0": {"reason": "too small"}}
    record = {"seeds": [0], "settings": settings, "results": results}
    assert ordered.budgets(record)[2:] == ["| 5x | 164 | 0.80000 | 164 | 0.79000 | - | - |"]
    made["served-5x-0"]["same_bytes"] = False
    with pytest.raises(NotSo):
        ordered.budgets(record)


def test_a_plan_is_held_against_the_yardstick() -> None:
    one = {"budget_bytes": 1000, "least_loss": 2e-3}
    results = {"original-50x": {**one, "plan": 5e-3}, "student-50x": {**one, "reason": "none"}}
    assert rate_bound.bounds({"data": {"name": "log"}, "results": results})[2:] == [
        "| log | original | 50x | 1,000 | 2.0e-03 | 5.0e-03 | 2.5x |",
        "| log | student | 50x | 1,000 | 2.0e-03 | - | - |",
    ]


def test_words_on_the_paper_are_held_against_its_record() -> None:
    names = {"original": 0.8, "control": 0.8, "born_again": 0.8, "3x-exact": 0.7}
    results = {f"nfm-{n}-0": figures(auc) for n, auc in {**names, "3x-activated": 0.9}.items()}
    settings = {"model": ["nfm"], "ratios": [3.0]}
    record = {"data": {"name": "log"}, "seeds": [0], "settings": settings, "results": results}
    assert "| log | nfm | 3x-exact | 164 | 0.70000 | -0.10000 (-0.10000) |" in "".join(
        born_again.forms(record)
    )
    with pytest.raises(NotSo):
        list(born_again.said(record))


def test_equal_numbers_lose_what_theory_says_and_worthless_ones_take_no_bits() -> None:
    """100 numbers in 25 bytes have two bits each, which leave a sixteenth of their loss."""
    worth = np.full(100, 3e-4)
    assert least_loss(worth, 25) == pytest.approx(100 * 3e-4 / 16)
    assert least_loss(np.append(worth, 1e-7), 25) == pytest.approx(100 * 3e-4 / 16 + 1e-7)
