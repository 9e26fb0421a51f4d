"""The command line, as the README shows it and as other programs use it."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from embedcomp.artifact.artifact import Artifact
from embedcomp.cli import main
from embedcomp.kernels import native
from embedcomp.log.features import Features
from embedcomp.models._layers import embedding_bags
from embedcomp.planning.bound import SURE

README = (Path(__file__).parents[2] / "README.md").read_text()
COMPRESS = ["compress", "model", "--log", "log", "--out", "o"]
FRONTIER = ["frontier", "model", "--log", "log", "--out", "o"]
COMPARE = ["compare", "log", "--out", "o"]
RECOMPRESS = ["recompress", "--plan", "small", "--checkpoint", "no.pt", *COMPRESS[2:]]
AFTER = ("evaluate", "inspect", "verify")
QUICK = ["--set", "batch_rows=1024"]
# of few candidates; a plan of one's own model has all methods
FEW = ["--methods", "row_int4,half,column_quantized"]
PLAN = ["compress", "model", "--log", "log", "--out", "o"]


class Plain(nn.Module):
    """A model that embedcomp has never seen."""

    def __init__(self, features: Features):
        super().__init__()
        self.bags = embedding_bags(features, 4)
        self.out = nn.Linear(4 * len(features.ids) + len(features.dense), 1)

    def forward(self, dense: torch.Tensor, sparse: Any) -> torch.Tensor:
        logits: torch.Tensor = self.out(torch.cat([self.bags(sparse).values(), dense], 1))
        return logits


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["embedcomp", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    code = ended.value.code
    return code if isinstance(code, int) else 0


def commands() -> list[list[str]]:
    """The README's one-by-one commands that need no server."""
    found = re.findall(r"^    embedcomp (.*?)(?:\s+#.*)?$", README, re.MULTILINE)
    doable = ("log", "train clicks --model dcnv2", "compress model --log clicks --budget 5x")
    return [shlex.split(c) for c in found if c.startswith((*doable, *AFTER))]


def test_the_readmes_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    listed = commands()
    assert [c[0] for c in listed] == ["log", "log", "train", "compress", *AFTER]
    for command in listed:
        smaller = [part.replace("100000", "4000") for part in command]
        more = {"train": ["--epochs", "2", *QUICK], "compress": FEW}.get(command[0], [])
        assert run(monkeypatch, *smaller, *more) == 0, command
    assert "clicks" in capsys.readouterr().out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, a model and an artifact."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(patch, "log", "synth", "log", "--rows", 6000, "--seed", 3) == 0
        train = ["train", "log", "--model", "deepfm", "--out", "model", "--epochs", 1, *QUICK]
        assert run(patch, *train) == 0
        compress = ["compress", "model", "--log", "log", "--budget", "20%", "--out", "small", *FEW]
        assert run(patch, *compress) == 0
    return folder


@pytest.mark.slow
def test_a_form_is_trained_from_the_model_and_from_the_log(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    compress = ["compress", "model", "--log", "log", "--budget", "40%", "--methods", "hashed,half"]
    trained = [*compress, "--train-epochs", 1, "--set", "train.batch_rows=1024"]
    assert run(monkeypatch, *trained, "--out", "trained") == 0
    assert run(monkeypatch, *trained, "--from-log", "--out", "from_log") == 0
    assert "hashed" in capsys.readouterr().out
    plans = [Artifact.open(made / name).plan for name in ("trained", "from_log")]
    assert plans[0] is not None and plans[1] is not None and plans[0].layers == plans[1].layers
    assert {"hashed"} <= {planned.method for planned in plans[0].layers}
    assert run(monkeypatch, *compress, "--out", "never") == 2
    assert "give --train-epochs too" in capsys.readouterr().err
    assert run(monkeypatch, *compress[:-2], "--from-log", "--out", "never") == 2
    assert "give --train-epochs as well" in capsys.readouterr().err
    assert run(monkeypatch, *compress[:-2], "--student", "auto", "--dry-run") == 2
    assert "a student has to be trained before it is planned" in capsys.readouterr().err
    both = [*trained, "--from-log", "--set", "train.distil=0.7", "--out", "never"]
    assert run(monkeypatch, *both) == 2
    assert "of which nothing is learnt with from_log" in capsys.readouterr().err
    again = ["recompress", "--plan", "trained", "--checkpoint", "no.pt", "--log", "log"]
    assert run(monkeypatch, *again, "--out", "never") == 2
    assert "the plan uses hashed, whose form is good only" in capsys.readouterr().err
    assert run(monkeypatch, *again, "--set", "student=auto", "--out", "never") == 2
    assert "student is for `embedcomp compress`" in capsys.readouterr().err
    assert not (made / "never").exists()


@pytest.mark.slow
def test_json_on_standard_output_is_alone_there(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    capsys.readouterr()
    assert run(monkeypatch, "evaluate", "small", "--log", "log", "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert {"auc", "logloss", "calibration", "rows", "bytes", "rows_per_second"} <= set(found)
    assert list(found["bytes"]) == [
        *("total", "tables", "dense", "resident", "vocabularies", "program", "disk")
    ]
    assert set(found["rows_per_second"]) == {"1", "64", "1024"}
    assert found["rows"] == 600
    evaluated = found["bytes"]["resident"]
    assert run(monkeypatch, "inspect", "small", "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"]["resident"] == sum(found["resident"].values()) == evaluated
    assert found["resident"].keys() >= {layer["layer"] for layer in found["plan"]["layers"]}
    if native.library() is not None:
        assert found["plan"]["bytes_resident"] == pytest.approx(evaluated, rel=0.1)
        for layer in found["plan"]["layers"]:
            predicted, counted = layer["bytes_resident"], found["resident"][layer["layer"]]
            assert predicted == counted or layer["method"] == "frequency_tiers"


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["model", "small"])
def test_a_student_is_like_its_teacher_but_for_what_is_changed(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, teacher: str
) -> None:
    """Of a trained model, and of a compressed one."""
    monkeypatch.chdir(made)
    command = ["train", "log", "--teacher", teacher, "--out", tmp_path / "student", "--epochs", 1]
    changes = ["--model-set", "hidden=[8]", "--set", "distil=0.6", "--seed", 7, *QUICK]
    assert run(monkeypatch, *command, *changes) == 0
    taught, student = Artifact.open(teacher), Artifact.open(tmp_path / "student")
    assert student.source.model == "deepfm"
    assert student.source.settings == {**taught.source.settings, "hidden": [8]}
    assert student.features.keys == taught.features.keys
    told = student.origin.training
    digest = hashlib.sha256((taught.folder / "manifest.json").read_bytes()).hexdigest()
    assert told["teacher"] == {"folder": str(taught.folder), "digest": digest}
    assert told["settings"]["distil"] == 0.6
    assert student.proof is not None and taught.proof is not None
    assert student.proof.original == taught.proof.model
    assert student.proof.seeds == {"train": 7, "teacher.train": 0}


@pytest.mark.slow
def test_a_student_may_be_another_model(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(made)
    command = ["train", "log", "--teacher", "model", "--model", "dlrm", "--out", tmp_path / "other"]
    assert run(monkeypatch, *command, "--epochs", 1, *QUICK) == 0
    student = Artifact.open(tmp_path / "other")
    assert student.source.model == "dlrm"
    assert 0 <= student.origin.training["history"][0]["distil"] <= 1


@pytest.mark.slow
def test_a_loss_of_auc_is_asked_for_instead_of_a_budget(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    sizes, common = [], ["compress", "model", "--log", "log", *FEW, "--dry-run", "--out", "dry"]
    for bound in (0.0001, 0.01):
        assert run(monkeypatch, *common, "--max-auc-loss", bound, "--json", "-") == 0
        plan = json.loads(capsys.readouterr().out)
        found = plan["outcome"]
        assert found["auc_loss"] + SURE * found["auc_error"] <= bound == plan["max_auc_loss"]
        assert plan["auc_loss"] > 0 and found["where"] == "valid"
        sizes.append(plan["bytes_after"])
    assert sizes[0] > sizes[1]
    assert run(monkeypatch, *common[:-3], "--max-auc-loss", 0.01, "--out", "by_auc") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "AUC loss at most 0.01), " in said and ", predicted log loss +" in said
    command = ["evaluate", "model", "by_auc", "--log", "log", "--split", "valid", "--json", "-"]
    assert run(monkeypatch, *command) == 0
    before, after = json.loads(capsys.readouterr().out)["models"].values()
    assert after["bytes"]["total"] == sizes[1]
    assert before["auc"] - after["auc"] == pytest.approx(found["auc_loss"], abs=1e-5)
    assert after["calibration"] == pytest.approx(before["calibration"], rel=1e-3)


@pytest.mark.slow
def test_a_latency_is_kept_to_that_a_calibrated_machine_is_predicted_to_take(
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    even_machine: None,
) -> None:
    monkeypatch.chdir(made)
    assert run(monkeypatch, "calibrate", "--out", "machine.json") == 0
    assert "machine.json: the cost of" in capsys.readouterr().out
    given = ["compress", "model", "--log", "log", "--methods", "half,svd"]
    given += ["--cost-model", "machine.json"]
    dry = [*given, "--out", "dry", "--dry-run", "--json", "-"]
    assert run(monkeypatch, *dry, "--latency-budget", "1000ms@64") == 0
    slow = json.loads(capsys.readouterr().out)
    assert {layer["method"] for layer in slow["layers"]} == {"keep"}
    assert slow["microseconds"] == slow["microseconds_before"] > 0
    budget = f"{0.9 * slow['microseconds']:.1f}us@64"
    limits = ["--latency-budget", budget, "--budget", "3x"]
    assert run(monkeypatch, *given, *limits, "--out", "quick") == 0
    assert f"us a call (budget {budget}; measured" in " ".join(capsys.readouterr().out.split())
    from embedcomp.artifact.artifact import Artifact
    from embedcomp.engine import calibrate

    plan = Artifact.open("quick").plan
    assert plan is not None and plan.microseconds is not None
    assert plan.latency_budget == budget and plan.microseconds <= 0.9 * slow["microseconds"] + 0.1
    assert plan.bytes_after <= plan.budget_bytes == plan.bytes_before // 3
    assert plan.measured_microseconds and plan.measured_microseconds_before
    of_another = Path("machine.json").read_text().replace(calibrate.cpu(), "another machine")
    Path("machine.json").write_text(of_another)
    assert run(monkeypatch, *dry, "--latency-budget", budget) == 0
    assert json.loads(capsys.readouterr().out)["measured_microseconds"] is None
    assert run(monkeypatch, *dry, "--latency-budget", "1ns@64") == 2
    told = capsys.readouterr().err
    assert "the latency budget is 0.0 us a call of 64 rows, but the fastest plan found" in told


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["highs", "welore"])
def test_other_solvers_plan_on_the_command_line(
    made: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], solver: str
) -> None:
    monkeypatch.chdir(made)
    common = ["compress", "model", "--log", "log", "--dry-run", "--out", "dry", "--json", "-"]
    assert run(monkeypatch, *common, "--budget", "3x", "--solver", solver, "--methods", "svd") == 0
    plan = json.loads(capfd.readouterr().out)
    assert plan["solver"] == solver and plan["bytes_after"] <= plan["budget_bytes"]


def test_the_artifact_keeps_to_its_budget(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    capsys.readouterr()
    run(monkeypatch, "evaluate", "model", "small", "--log", "log", "--json", "-")
    found = json.loads(capsys.readouterr().out)["models"]
    assert found["small"]["bytes"]["total"] <= 0.2 * found["model"]["bytes"]["total"]


@pytest.mark.slow
def test_a_dry_run_prints_the_plan_and_writes_nothing(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    command = ["compress", "model", "--log", "log", "--budget", "4x", "--out", "dry", "--dry-run"]
    assert run(monkeypatch, *command, *FEW) == 0
    assert "predicted log loss" in capsys.readouterr().out
    assert not Path("dry").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*PLAN, "--budget", "1000000x", *FEW], "raise the"),
        (["compress", "model", "--log", "log", "--budget", "big", "--out", "o"], "not a positive"),
        (PLAN, "either a budget or max_auc_loss, but neither was given"),
        ([*PLAN, "--budget", "5x", "--max-auc-loss", "0.1"], "max_auc_loss, but both were given"),
        ([*PLAN, "--latency-budget", "200"], "'200' is not a time and a number of rows; write"),
        (
            [*PLAN, "--latency-budget", "1us@1", "--max-auc-loss", "0.1"],
            "give latency_budget alone or with a budget",
        ),
        (
            [*PLAN, "--latency-budget", "1us@1", "--budget", "5x", "--solver", "greedy"],
            "the solver greedy keeps to one limit, but a budget and a latency_budget are two",
        ),
        ([*PLAN, "--budget", "5x", "--cost-model", "x"], "cost_model is for a latency_budget"),
        (
            [*PLAN, "--latency-budget", "1ms@1", "--cost-model", "log/schema.toml"],
            "log/schema.toml is not a cost model",
        ),
        (
            [*COMPRESS, "--latency-budget", "1ms"],
            "is not a time and a number of rows",
        ),
        ([*PLAN, "--max-auc-loss", "0.6"], "max_auc_loss is 0.6, but must be above 0 and below"),
        ([*PLAN, "--budget", "5x", "--solver", "best"], "no solver 'best'; the solvers are"),
        (
            ["compress", "model", "--log", "log", "--budget", "5x", "--out", "o", "--methods", "x"],
            "no method 'x'",
        ),
        (["evaluate", "nothing", "--log", "log"], "is not a model or artifact"),
        (["evaluate", "model", "--log", "nowhere"], "no readable schema.toml"),
        (["evaluate", "model", "--log", "log", "--split", "later"], "no split 'later'"),
        (["train", "log", "--model", "gpt", "--out", "o"], "no model 'gpt'"),
        (["train", "log", "--model", "no.such:model", "--out", "o"], "cannot be imported"),
        (["train", "log", "--model", "dlrm", "--out", "o", "--set", "bacht=1"], "bacht"),
        (["train", "log", "--model", "dlrm", "--out", "o", "--model-set", "widht=1"], "widht"),
        (["train", "log", "--teacher", "model", "--out", "o", "--model-set", "widht=1"], "widht"),
        (["train", "log", "--teacher", "nothing", "--out", "o"], "is not a model or artifact"),
        (["train", "log", "--teacher", "model", "--out", "o", "--epochs", 0], "teaches nothing"),
        (["log", "synth", "log", "--rows", 5000], "holds a log already"),
        (["log", "synth", "tiny", "--rows", 10], "too small"),
        (["measure", "small", "--log", "log"], "has no layer that the methods would change"),
        (["measure", "model", "--log", "log", "--options", 2], "at least 3 are ranked"),
        (["measure", "model", "--log", "log", "--rows", 1], "takes at least 2"),
        (["measure", "model", "--log", "log", "--split", "later"], "no split 'later'"),
        (["measure", "model", "--log", "log", "--methods", "x"], "no method 'x'"),
        (["measure", "model", "--log", "log", "--set", "measured=1"], "measured"),
        (["predict", "--target", "127.0.0.1:1", "--log", "log"], "127.0.0.1:1"),
        ([*COMPRESS], "either a budget or max_auc_loss, but neither"),
        ([*COMPRESS[:-2], "--budget", "5x"], "there is nowhere to write; give --out, or --dry"),
        ([*COMPRESS[:-1], "log/schema.toml/x", "--budget", "5x"], "cannot be written"),
        ([*FRONTIER[:-2], "--budgets", "5x"], "there is nowhere to write; give --out, or --dry"),
        ([*FRONTIER, "--budgets", "5x,big"], "'big' is not a positive"),
        ([*FRONTIER, "--budgets", ","], "has no budgets"),
        ([*FRONTIER, "--budgets", "5x", "--baselines", "svt"], "no method 'svt'"),
        ([*FRONTIER, "--budgets", "5x", "--split", "later"], "no split 'later'"),
        (
            [*FRONTIER, "--budgets", "2x,3x", "--methods", "keep"],
            "none of the budgets can be met; at 2x, the budget is",
        ),
        (
            [*FRONTIER, "--budgets", "5x", "--set", "student=auto"],
            "student is for `embedcomp compress`, and a frontier makes none",
        ),
        ([*FRONTIER, "--budgets", "5x", "--methods", "hashed"], "give --train-epochs too"),
        (
            [*RECOMPRESS, "--set", "train.epochs=1", "--set", "from_log=true"],
            "from_log draws new numbers, and recompress is given some",
        ),
        (
            [*RECOMPRESS, "--set", "student=auto"],
            "student is for `embedcomp compress`, and an old plan makes none",
        ),
        (
            [*COMPRESS, "--max-auc-loss", 0.001, "--train-epochs", 1, "--from-log"],
            "max_auc_loss is held on the model's own numbers, and from_log draws others",
        ),
        (["compare", "--out", "o"], "give a LOG to compare on, or --report"),
        (["compare", "--out", "o", "--report"], "has no results.jsonl"),
        ([*COMPARE], "no models to compare"),
        ([*COMPARE, "--models", "gpt"], "no model 'gpt'"),
        ([*COMPARE, "--models", "dlrm", "--methods", "svt"], "no method 'svt'"),
        ([*COMPARE, "--models", "dlrm", "--budgets", "5x,big"], "'big' is not a positive"),
        ([*COMPARE, "--models", "dlrm", "--seeds", 0], "needs at least 1"),
        ([*COMPARE, "--models", "dlrm", "--tune-epochs", "few"], "tune_epochs"),
        ([*COMPARE, "--models", "dlrm", "--train-epochs", "0,-1"], "0 is not to train"),
        ([*COMPARE, "--models", "dlrm", "--from-log"], "give --train-epochs as well"),
        (
            [*COMPARE, "--models", "dlrm", "--methods", "hashed", "--train-epochs", "0,1"],
            "none to plan with where train_epochs is 0",
        ),
        ([*COMPARE, "--models", "dlrm", "--split", "later"], "no split 'later'"),
        (
            [*COMPARE, "--models", "dlrm", "--set", "train.bacht=1"],
            "bacht: there is no such",
        ),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[object],
    message: str,
) -> None:
    monkeypatch.chdir(made)
    assert run(monkeypatch, *arguments) == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told
    assert not Path("o").exists()


@pytest.mark.slow
def test_predicted_losses_are_held_against_measured_ones(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    command = ["measure", "model", "--log", "log", "--methods", "low_rank, row_int4"]
    assert run(monkeypatch, *command, "--rows", 300, "--least", 1e-8, "--json", "found.json") == 0
    told = capsys.readouterr()
    assert "Spearman" in told.out and "ranked most wrongly" in told.out
    assert "60 options on 300 rows of valid" in told.out
    found = json.loads(Path("found.json").read_text())
    assert (found["split"], found["rows"], len(found["options"])) == ("valid", 300, 60)
    assert {o["method"] for o in found["options"]} == {"low_rank", "row_int4"}
    assert {o["layer"] for o in found["options"]} == set(found["layers"])
    assert sum(layer["options"] for layer in found["layers"].values()) == 60
    assert -1 <= found["spearman"] <= 1 and found["spearman_expected"] > 0.9
    few = ["measure", "model", "--log", "log", "--methods", "row_int4", "--json", "-"]
    capsys.readouterr()
    assert run(monkeypatch, *few) == 0
    found = json.loads(capsys.readouterr().out)  # one option a layer, all that there are
    assert found["layers"] and all(one["options"] == 1 for one in found["layers"].values())


@pytest.mark.slow
def test_a_users_own_model_is_loaded_and_compressed(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    from embedcomp.artifact.artifact import Artifact

    features = Artifact.open("model").features
    weights = Plain(features)
    torch.save(weights.state_dict(), "weights.pt")
    factory = "tests.cli.test_commands:Plain"
    load = ["train", "log", "--model", factory, "--checkpoint", "weights.pt", "--out", "own"]
    assert run(monkeypatch, *load) == 0
    found = Artifact.open("own").model().state_dict()
    assert all(torch.equal(t, found[name]) for name, t in weights.state_dict().items())
    small = ["compress", "own", "--log", "log", "--budget", "3x", "--out", "own_small"]
    assert run(monkeypatch, *small) == 0


def test_a_damaged_artifact_is_refused(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(made / "small", tmp_path / "damaged")
    file = tmp_path / "damaged/1/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert run(monkeypatch, "inspect", tmp_path / "damaged") == 2
    assert "checksum differs" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_fit_is_refused(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    Path("bad.pt").write_bytes(b"not tensors")
    torch.save({"out.weight": torch.zeros(2, 2)}, "other.pt")
    for file, message in (("bad.pt", "cannot be read"), ("other.pt", "does not fit")):
        load = ["train", "log", "--model", "deepfm", "--checkpoint", file, "--out", "o"]
        assert run(monkeypatch, *load) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_new_weights_are_compressed_by_an_old_plan_which_says_when_it_no_longer_fits(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    from embedcomp.artifact.artifact import Artifact

    model, small = Artifact.open("model"), Artifact.open("small")
    state = model.model().state_dict()
    torch.save(state, "same.pt")
    torch.save({n: 8 * t if "embedding_bags" in n else t for n, t in state.items()}, "other.pt")
    told = {}
    for name in ("same", "other"):
        options = ["--plan", "small", "--checkpoint", f"{name}.pt", "--log", "log"]
        few = ["--set", 'methods=["row_int4", "half", "column_quantized"]']
        assert run(monkeypatch, "recompress", *options, *few, "--out", name) == 0
        told[name] = " ".join(capsys.readouterr().out.split())
        made_of = Artifact.open(name)
        assert made_of.plan is not None and small.plan is not None
        choices = [[(p.layer, p.settings) for p in a.plan.layers] for a in (made_of, small)]
        assert choices[0] == choices[1]
        assert made_of.manifest.bytes == small.manifest.bytes
    assert "the plan still holds" in told["same"]
    assert "the log has drifted" in told["other"]
    same, before = Artifact.open("same").model(), small.model()
    assert all(torch.equal(t, same.state_dict()[n]) for n, t in before.state_dict().items())
    options = ["--plan", "model", "--checkpoint", "same.pt", "--log", "log", "--out", "o"]
    assert run(monkeypatch, "recompress", *options) == 2
    assert "is a trained model without a plan" in capsys.readouterr().err


@pytest.mark.slow
def test_bench_prints_rows_and_the_share_of_the_limit(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setattr("embedcomp.scorer.bench.SECONDS", 0.001)
    monkeypatch.setattr("embedcomp.scorer.bench.BATCHES", (1, 64))
    arguments = ["bench", "small", "--against", "model", "--precision", "bfloat16"]
    assert run(monkeypatch, *arguments, "--json", "-") == 0
    import json

    found = json.loads(capsys.readouterr().out)
    assert found["engines"]["artifact"] == "compiled engine, bfloat16"
    first = found["measured"][0]
    assert first["batch"] == "1" and first["threads"] == 1 and first["rows_per_second"] > 0
    assert 0 < first["share"] < 2 and found["limits"]["against"]["products"]["float32"] > 0
    assert run(monkeypatch, "bench", "small", "--precision", "float8") == 2
    assert "precision is 'float8'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_frontier_is_an_artifact_a_budget_with_a_table_and_pictures(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setattr("embedcomp.recipes.evaluate.SPEED_SECONDS", 0.01)
    command = ["frontier", "model", "--log", "log", "--budgets", "2x,3x,1000000x", "--out", "f"]
    command += ["--methods", "row_int8,half", "--baselines", "row_int8", "--tune-epochs", 1]
    assert run(monkeypatch, *command, "--dry-run") == 0
    assert not Path("f").exists() and "1000000x: the budget is 0" in capsys.readouterr().out
    assert run(monkeypatch, *command) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "planned at 1000000x: the budget is 0 bytes, but the smallest plan needs" in told
    found = json.loads(Path("f/frontier.json").read_text())
    points = {(p["method"], p["budget"]): p for p in found["points"]}
    budgets = ("2x", "3x", "1000000x")
    compared = [(m, b) for m in ("planned", "row_int8") for b in budgets]
    assert list(points) == [("original", ""), ("control", ""), *compared]
    whole = points["original", ""]["bytes"]["total"]
    for budget in (2, 3):
        small, alone = points["planned", f"{budget}x"], points["row_int8", f"{budget}x"]
        assert small["bytes"]["total"] <= whole / budget
        assert Path(small["path"]) == (made / f"f/{budget}x/1") and Path(small["path"]).is_dir()
        assert set(alone["mix"]) <= {"keep", "row_int8"} and "path" not in alone
    assert found["split"] == "valid" and points["planned", "2x"]["rows"] == 600
    assert found["machine"]["cpu"] and found["versions"]["torch"] and found["date"]
    assert Path("f/frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "row_int8" in Path("f/frontier.html").read_text()
    assert ", valid split, tuned for 1 epoch" in Path("f/frontier.html").read_text()
    left = {child.name for child in Path("f").iterdir()}
    assert left == {"2x", "3x", "control", "frontier.json", "frontier.png", "frontier.html"}


@pytest.mark.slow
def test_compare_goes_on_where_it_was_and_reports(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setattr("embedcomp.recipes.evaluate.SPEED_SECONDS", 0.01)
    command = ["compare", "log", "--models", "deepfm", "--methods", "row_int8", "--budgets", "3x"]
    command += ["--set", "train.epochs=1", "--set", "train.batch_rows=1024", "--out", "c"]
    assert run(monkeypatch, *command, "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert [r["method"] for r in found] == ["original", "row_int8", "planned"]
    assert run(monkeypatch, *command, "--report") == 0
    told = capsys.readouterr()
    assert "3 of 3 are there already" in told.err and "c/report.md" in told.out
    assert "deepfm on log, not tuned" in Path("c/report.md").read_text()
    command[command.index("row_int8")] = "hashed,row_int8"
    more = ["--alone", "none", "--train-epochs", "0,1"]
    more += ["--set", "form_train.batch_rows=1024", "--report", "--json", "-"]
    assert run(monkeypatch, *command, *more) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)["results"]
    assert [r["method"] for r in found] == ["original", "planned", "control", "planned"]
    assert [r["train_epochs"] for r in found] == [0, 0, 1, 1] and "hashed" in found[-1]["mix"]
    assert "2 of 4 are there already" in told.err
    written = Path("c/report.md").read_text()
    assert "deepfm on log, trained for 1 epoch" in written and "AUC - control" in written
