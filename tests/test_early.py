"""A user's mistake is told before torch or Ray is imported, which takes many seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedcomp.log.click_log import ClickLog

# Runs lists of words as commands, one after the other, and prints of each its exit code, what it
# said and which of the slow libraries are imported then.
CHILD = """\
import contextlib, io, json, sys
from embedcomp.cli import main as command
from embedcomp.pipelines import run as job

def code(words):
    sys.argv = words if words[0] == "job" else ["embedcomp", *words]
    try:
        return job.main() if words[0] == "job" else command.main()
    except SystemExit as ended:
        return ended.code

def told(words):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        found = code(words)
    return found, said.getvalue(), [name for name in ("torch", "ray") if name in sys.modules]

print(json.dumps([told(words) for words in json.load(sys.stdin)]))
"""
JOB = 'log = "{log}"\nout = "out"\n[compress]\nbudget = "5x"\n'
SUBMIT = "submit job.toml --address http://127.0.0.1:1 --set"
COMPRESS = "compress model --log log --dry-run"
MISTAKES = [
    ("job job.toml --set compress.budget=5y", "the budget '5y' is not a positive size; write 5x"),
    ('job job.toml --set compress.methods=["lowrank"]', "there is no method 'lowrank'; the"),
    ("job job.toml --set compress.solver=best", "there is no solver 'best'; the solvers are"),
    ("job job.toml --set compress.latency_budget=1ms", "is not a time and a number of rows"),
    ("job job.toml --set model=gpt", "there is no model 'gpt'; the models are"),
    ("job job.toml --set train.epoch=3", "job.toml: train.epoch"),
    ("job job.toml --set out=job.toml/out", "job.toml/out cannot be written"),
    ("job job.toml --set out=nowhere://bucket/out", "nowhere://bucket/out cannot be opened"),
    ("job job.toml --set work=here", "is for a folder to work in where out is a URL"),
    ("job job.toml --set count_memory=much", "count_memory is 'much', but must be a size"),
    ("job job.toml --set checkpoint=none.pt", "there is no checkpoint at"),
    ("job job.toml --set workers=9601", "workers is 9601, but there are 9,600 rows to train on"),
    ("job job.toml --set log=nowhere", "no readable schema.toml"),
    ("job none.toml", "none.toml is not a readable job file"),
    (f"{SUBMIT} compress.budget=5y", "the budget '5y' is not a positive size"),
    (f"{SUBMIT} work=here", "is for a folder to work in where out is a URL"),
    ("train log --model dlrm --out o --count-memory 0", "count_memory is '0', but must be a size"),
    ("train log --teacher m --out o --counts c", "--counts is for counting ids, and a student"),
    ("log profile log --count-memory 5x", "count_memory is '5x', but must be a size"),
    (f"{COMPRESS} --budget 5y", "the budget '5y' is not a positive size"),
    (f"{COMPRESS} --budget 5x --methods lowrank", "there is no method 'lowrank'"),
    ("compress model --log log --budget 5x --out job.toml/o", "job.toml/o cannot be written"),
    ("frontier model --log log --dry-run --budgets 2x,5y", "the budget '5y' is not a positive"),
    ("measure model --log log --methods lowrank", "there is no method 'lowrank'"),
    ("measure model --log log --options 2", "at least 3 are ranked"),
    ("recompress --plan a --checkpoint b --log log --out o --set tune.epoch=1", "tune.epoch"),
    ("compare log --out o --models dlrm,gpt", "there is no model 'gpt'"),
    ("train log --model gpt --out o", "there is no model 'gpt'"),
    ("train log --model dlrm --out o --set bacht=1", "bacht"),
    ("train log --model dlrm --out o --epochs -3", "epochs is -3, but must be 0 or more"),
    ("train log --out o", "there is no model to train; give --model, or --teacher for one like it"),
    ("train log --teacher m --out o --min-count 3", "a student has its teacher's; omit it"),
    ("train log --model dlrm --out o --set distil=0.5", "give --teacher as well"),
    ("train log --teacher m --out o --set distil=1.5", "distil is 1.5, but must be between 0 and"),
    (f"{COMPRESS} --budget 5x --tune-epochs -1", "epochs is -1, but must be 0 or more"),
    (f"{COMPRESS} --budget 5x --set tune=3 --set tune.epochs=1", "tune is 3, which has no epochs"),
    (f"{COMPRESS} --budget 5x --set train.rate_factor=-1", "rate_factor is -1.0, but must be 0 or"),
    (f"{COMPRESS} --budget 5x --set train.learning_rate=nan", "learning_rate is nan, but must be"),
    (f"{COMPRESS} --budget 5x --set tune.learning_rate=inf", "learning_rate is inf, but must be"),
]

Told = tuple[int, str, list[str]]


@pytest.fixture(scope="module")
def folder(synth_log: ClickLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("early")
    (folder / "job.toml").write_text(JOB.format(log=synth_log.path))
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Told]:
    """What becomes of each command, all of them in one new process."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps([words.split() for words, _ in MISTAKES]),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(zip((words for words, _ in MISTAKES), json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("words", "sentence"), MISTAKES)
def test_a_mistake_is_told_in_a_sentence_before_torch_and_ray_are_imported(
    told: dict[str, Told], folder: Path, words: str, sentence: str
) -> None:
    code, said, imported = told[words]
    assert said.startswith("error: ") and said.count("\n") == 1 and sentence in said
    assert code == 2 and not imported
    assert [child.name for child in folder.iterdir()] == ["job.toml"]
