"""Every figure in the documents is that of the record which is named beside it."""

import subprocess

import pytest

from benchmarks.figures import comparison
from benchmarks.figures.__main__ import OTHERS, PAGES, drawn, renamed, written
from benchmarks.figures.page import blocks, like
from benchmarks.figures.record import NotSo, claim, newest, read
from benchmarks.result import RESULTS, TOP

RECORDS = sorted(RESULTS.rglob("*.json"))
SPEEDS = "training_speed.speeds training_speed/2026-11-24T18-18-08-8879082"
TRUE = "217,826, 2.76 and 4.51 times, 19,322, 1.93 and 2.11 times, 1,359 against 762 MiB"


@pytest.mark.parametrize("name", [*PAGES, *OTHERS])
def test_a_page_has_the_figures_of_its_records(name):
    page = (TOP / name).read_text()
    found, problems = written(page, strict=name in PAGES)
    assert not problems
    assert found == page, "run python -m benchmarks.figures"


@pytest.mark.parametrize("name", [*PAGES, *OTHERS])
def test_a_page_has_the_pictures_of_its_records(name):
    page = TOP / name
    for file, picture in drawn(page.read_text()).items():
        assert (page.parent / file).read_text() == picture, "run python -m benchmarks.figures"


def test_the_picture_of_the_frontier_is_in_the_readme():
    assert list(drawn((TOP / "README.md").read_text())) == ["docs/frontier.svg"]


@pytest.mark.parametrize("name", PAGES)
def test_no_figure_of_a_page_can_be_another_one(name):
    for block, _ in blocks((TOP / name).read_text()):
        figures = {"figures": block.figures, "table": block.numbers[-1:]}.get(block.kind, [])
        for number in figures:
            digit = number.start() + len(number[0].rstrip("%x")) - 1
            other = str((int(block.text[digit]) + 1) % 10)
            page = block.mark + block.text[:digit] + other + block.text[digit + 1 :]
            found, problems = written(page)
            assert problems or found != page, f"{number[0]} in {block.text[:60]!r}"


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: str(file.relative_to(RESULTS)))
def test_a_record_is_named_by_its_benchmark_date_and_commit(file):
    made = read(f"{file.parent.name}/{file.stem}")
    date = made["date"][:19].replace(":", "-")
    assert file.parent.parent == RESULTS
    assert file.parent.name == made["benchmark"]
    assert file.stem == f"{date}-{made['versions']['embedcomp']}"


@pytest.mark.skipif(not (TOP / ".git").exists(), reason="not a checkout")
def test_no_record_was_ever_edited():
    files = ":(glob)benchmarks/results/*/*.json"
    for command in (["log", "--format="], ["diff", "HEAD"]):
        edited = ["git", *command, "--name-only", "--diff-filter=M", "--", files]
        done = subprocess.run(edited, cwd=TOP, check=True, capture_output=True, text=True)
        assert not done.stdout.split()


def test_figures_are_written_as_the_record_has_them_rounded_as_before():
    text = "Rows: 1, 2.00 and 3.0, 4,000, 5 and 6, 7 and 8.1 MiB."
    page = f"# On\n\n<!-- figures: {SPEEDS} -->\n{text}\n"
    found, problems = written(page)
    assert not problems
    assert found.endswith("\nRows: 217,826, 2.76 and 4.5, 19,322, 2 and 2, 1,359 and 761.8 MiB.\n")


@pytest.mark.parametrize(
    "paragraph, reason",
    [
        (f"<!-- figures: {SPEEDS} -->\n{TRUE}, 5 times", "the text has the figures 217,826"),
        (f"<!-- figures: {SPEEDS}; given: 762 -->\n{TRUE}", "the text has the figures 217,826"),
        ("It is 3.5 times as fast.", "3.5: name the record"),
        ("| speed |\n|--:|\n| 3.5x |", "3.5x: name the record"),
        ("<!-- given: 3 -->\n3 rounds give 3.5x.", "3.5x: name the record"),
        ("<!-- figures: training_speed.speeds training_speed/2026 -->\n3", "there is no record"),
        ("<!-- figures: training_speed.other -->\n3", "has no training_speed.other"),
        (f"<!-- figures: {SPEEDS} trellis/2026-11-27T01-05-24-3f16cf1+ -->\n3", "does not fit"),
        ("<!-- table: globo.steps trellis/2026-11-27T01-05-24-3f16cf1+ -->\n3", "does not fit"),
        ("<!-- table: other.speeds -->\n| 3 |", "has no other.speeds"),
    ],
)
def test_a_number_without_a_record_is_a_problem(paragraph, reason):
    found, problems = written(paragraph)
    assert found == paragraph
    assert [reason in problem for problem in problems] == [True]


def test_what_is_given_is_left_alone():
    page = f"<!-- figures: {SPEEDS}; given: 4,096 10x -->\nBatches of 4,096, 10x: {TRUE}.\n"
    assert written(page) == (page, [])


def test_headings_code_links_and_papers_have_no_figures():
    page = "\n\n".join(
        [
            "## 1. Compress 5x\nSee [it](docs/3.md), `10x`, arXiv 2405.18146, DCN-V2 and int8.",
            "    embedcomp compress --budget 5x",
            "```python\nrows = 5\n\nbytes = 7.5\n```",
            "- an item\n\n1. another",
        ]
    )
    assert written(page) == (page, [])


def test_a_table_is_written_below_its_comment():
    mark = "<!-- table: trellis.normal trellis/2026-11-27T01-05-24-3f16cf1+ -->"
    found, problems = written(f"{mark}\n\nbelow\n")
    assert not problems
    assert found.startswith(f"{mark}\n| bits | single steps |") and found.endswith("|\n\nbelow\n")


def test_words_are_held_against_the_record_too():
    claim(True, "true")
    with pytest.raises(NotSo, match="not so any more: svd is ahead"):
        claim(False, "svd is ahead")


@pytest.mark.parametrize(
    "written_as, value, expected",
    [("1,234", 9, "9"), ("+0.10", 0.256, "+0.26"), ("-1", 2, "+2"), ("3.0x", -2, "-2.0x")],
)
def test_a_number_is_written_like_another(written_as, value, expected):
    assert like(written_as, value) == expected


def test_the_newest_record_can_be_named_everywhere():
    old = "training_speed/2026-11-24T11-18-07-e3c8093"
    page = f"<!-- figures: a.b {old}; given: 1 -->\n{old}x\nother_{old}"
    new = newest("training_speed")
    assert new > old and read(new)["benchmark"] == "training_speed"
    assert (
        renamed(page, ["training_speed"]).splitlines()[0]
        == f"<!-- figures: a.b {new}; given: 1 -->"
    )
    assert renamed(page, ["training_speed"]).endswith(f"other_{old}")
    assert renamed(page, []) == page


def result(method, auc, **others):
    """A result of `benchmarks.comparison`, untuned at 10x but for `others`."""
    about = {"method": method, "auc": auc, "logloss": 0.5, "seed": 0, "budget": "10x"}
    about |= {"tune_epochs": 0, "model": "dcnv2", "setup": "s", "version": "v", "reason": None}
    return {**about, "bytes": {"total": 1}, "rows_per_second": {"1024": 10.0}, **others}


def compared(*results):
    fast = {"latency_budget": "2x@64"}
    setups = {name: {"settings": {}} for name in ("s v", "other v")}
    settings = {"setups": {**setups, "fast v": {"settings": fast}}}
    return {"data": {"name": "log"}, "settings": settings, "results": list(results)}


def test_methods_are_from_the_first_record_that_has_them_and_the_mix_from_the_last():
    first = compared(result("svd", 0.7), result("planned", 0.71))
    last = compared(result("svd", 0.8), result("half", 0.81), result("planned", 0.82))
    (log,) = comparison.logs([first, last])
    found = {name: log.seeds(name, "10x")[0]["auc"] for name in ("svd", "half", "planned")}
    assert found == {"svd": 0.7, "half": 0.81, "planned": 0.82}


def test_results_of_another_limit_tuning_budget_or_model_are_other_results():
    others = [{"setup": "fast"}, {"tune_epochs": 1}, {"budget": "5x"}, {"model": "nfm"}]
    others += [{"reason": "too small"}]
    record = compared(result("svd", 0.7), *(result("svd", 0.1, **other) for other in others))
    (log,) = comparison.logs([record])
    assert log.seeds("svd", "10x")[0]["auc"] == 0.7
    assert log.seeds("svd", "10x", latency="2x@64")[0]["auc"] == 0.1


def test_a_frontier_has_the_mean_of_each_budgets_seeds():
    def cells(method, budget, *aucs):
        sizes = {"": 1000, "10x": 100, "20x": 50}
        about = {"budget": budget, "bytes": {"total": sizes[budget]}}
        return [result(method, auc, **about, seed=seed) for seed, auc in enumerate(aucs)]

    record = compared(
        *cells("original", "", 0.80, 0.82),
        *cells("planned", "10x", 0.79, 0.81),
        *cells("planned", "20x", 0.74, 0.78),
        *cells("svd", "10x", 0.70, 0.74),
        *cells("svd", "20x", 0.60),  # a seed is missing
        *cells("half", "10x", 0.80, 0.80),  # not tried at 20x
    )
    picture = comparison.over_bytes(record)
    assert picture.whole_bytes == 1000 and picture.levels[0].auc == pytest.approx(0.81)
    (svd, planned) = picture.curves
    assert (svd.name, svd.emphasised, planned.name, planned.emphasised) == (
        *("svd", False),
        *("planned", True),
    )
    assert [(p.bytes, round(p.auc, 9)) for p in planned.points] == [(100, 0.8), (50, 0.76)]
    assert planned.points[1].spread == pytest.approx(0.04 / 2**0.5)
    assert [(p.bytes, round(p.auc, 9)) for p in svd.points] == [(100, 0.72)]


def test_a_tuned_mix_is_held_against_the_control_that_was_tuned_as_it_was():
    control = {"budget": "", "tune_epochs": 1}
    record = compared(
        result("control", 0.8, **control),
        result("planned", 0.7, tune_epochs=1),
        result("control", 0.9, setup="other", **control),
    )
    (log,) = comparison.logs([record])
    ((made, held),) = comparison.against_control(log, "10x")
    assert (made["auc"], held["auc"]) == (0.7, 0.8)
