"""Inputs that the engine cannot read where they lie are refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embedcomp
from embedcomp.errors import BadRequest
from tests.cases import DENSE, Case, dlrm, tabular, weighted

Scorers = dict[str, embedcomp.Scorer]
ROWS, KEYS = 2, ["a", "b", "c", "d"]
IDS, LENGTHS = torch.arange(8), torch.ones(8, dtype=torch.long)
DENSE_PART = torch.randn(ROWS, DENSE, generator=torch.manual_seed(0))
MATRIX = torch.arange(8).view(2, 4)


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> Scorers:
    folder = tmp_path_factory.mktemp("odd")
    return {
        "bags": scorer(dlrm(), folder / "bags", user=["a"]),
        "weighted": scorer(weighted(), folder / "weighted"),
        "matrix": scorer(tabular(), folder / "matrix"),
    }


def scorer(case: Case, folder: Path, **settings: Any) -> embedcomp.Scorer:
    case.model.eval()
    example = case.inputs(1)
    made = embedcomp.save(case.model, folder, score=case.score, example=example, **settings)
    return embedcomp.Scorer(made)


def bags(values: Tensor = IDS, lengths: Tensor | None = LENGTHS, **more: Any) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(keys=KEYS, values=values, lengths=lengths, **more)


def dense_and(sparse: KeyedJaggedTensor) -> tuple[Tensor, KeyedJaggedTensor]:
    return DENSE_PART, sparse


def matrix(ids: Tensor, dense: Any = DENSE_PART) -> dict[str, Any]:
    return {"ids": ids, "dense": dense}


def weigh(weights: Tensor) -> KeyedJaggedTensor:
    return bags(weights=weights)


BACKWARDS = torch.tensor([0, 5, 4, 3, 4, 5, 6, 7, 8])
HUGE = torch.tensor([1 << 62, 1 << 62, 1 << 62, 1 << 62, 8, 0, 0, 0])  # their sum is 8 in 64 bits
REFUSED: dict[str, tuple[str, Callable[[], Any], str]] = {
    "ids that are fractions": (
        "bags", lambda: dense_and(bags(IDS + 0.5)), "values of .* must be int64, but is .*float32"),
    "complex ids": (
        "matrix", lambda: matrix(MATRIX.to(torch.complex64)), "must be int64, but is .*complex64"),
    "ids without memory": (
        "bags", lambda: dense_and(bags(IDS.to("meta"))), "on meta; give a dense tensor on the CPU"),
    "lengths without memory": (
        "bags", lambda: dense_and(bags(IDS, LENGTHS.to("meta"))), "lengths of .* on meta; give"),
    "a matrix without memory": ("matrix", lambda: matrix(MATRIX.to("meta")), "on meta; give"),
    "numbers without memory": (
        "matrix", lambda: matrix(MATRIX, DENSE_PART.to("meta")), "on meta; give"),
    "sparse numbers": (
        "matrix", lambda: matrix(MATRIX, DENSE_PART.to_sparse()), "sparse_coo on cpu; give"),
    "an array": (
        "matrix", lambda: matrix(MATRIX, DENSE_PART.numpy()), r"float32 \['B', 3\], a tensor"),
    "a number": ("matrix", lambda: matrix(torch.tensor(1)), r"int64 \['B', 4\], a tensor"),
    "whole numbers": (
        "matrix", lambda: matrix(MATRIX, DENSE_PART.long()), "must be float32, but is .*int64"),
    "another width": ("matrix", lambda: matrix(MATRIX[:, :3]), r"must be int64 \['B', 4\]"),
    "fewer rows": ("matrix", lambda: matrix(MATRIX[:1]), "dense.* has 2 rows, but .*ids.* 1"),
    "weights without memory": (
        "weighted", lambda: weigh(torch.ones(8, device="meta")), "weights of .* on meta; give"),
    "whole weights": ("weighted", lambda: weigh(LENGTHS), "weights of .* must be float32"),
    "fewer weights": ("weighted", lambda: weigh(torch.ones(5)), "not as many weights as ids"),
    "weights that are none": ("weighted", lambda: weigh(torch.full((8,), torch.nan)), "has none"),
    "offsets that go back": (
        "bags", lambda: dense_and(bags(IDS, None, offsets=BACKWARDS)), "do not fit its values"),
    "few offsets": (
        "bags", lambda: dense_and(bags(IDS, None, offsets=BACKWARDS[:2])), "one bag a feature"),
    "lengths that overflow": ("bags", lambda: dense_and(bags(IDS, HUGE)), "do not fit its values"),
    "fewer ids": ("bags", lambda: dense_and(bags(IDS[:1])), "do not fit its values"),
    "more ids": ("bags", lambda: dense_and(bags(torch.arange(9))), "do not fit its values"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused(scorers: Scorers, name: str) -> None:
    which, made, message = REFUSED[name]
    assert scorers[which].engine.startswith("compiled engine")
    with pytest.raises(BadRequest, match=message):
        scorers[which].score(made())
    if which == "bags":  # nor as one user's, whose bags are compared first
        with pytest.raises(BadRequest, match=message):
            scorers[which].score(made(), one_user=True)


def apart(tensor: Tensor) -> Tensor:
    """A tensor of these numbers, with others between them in memory."""
    wide = torch.full((*tensor.shape, 2), 77, dtype=tensor.dtype)
    wide[..., 0] = tensor
    return wide[..., 0]


READ: dict[str, tuple[str, Callable[[], Any]]] = {
    "ids of 32 bits": ("bags", lambda: dense_and(bags(IDS.int(), LENGTHS.int()))),
    "ids apart": ("bags", lambda: dense_and(bags(apart(IDS)))),
    "lengths apart": ("bags", lambda: dense_and(bags(IDS, apart(LENGTHS)))),
    "offsets": ("bags", lambda: dense_and(bags(IDS, None, offsets=torch.arange(9)))),
    "numbers of 64 bits": ("matrix", lambda: matrix(MATRIX, DENSE_PART.double())),
    "numbers apart": ("matrix", lambda: matrix(apart(MATRIX), apart(DENSE_PART))),
    "weights apart": ("weighted", lambda: weigh(apart(torch.full((8,), 0.5)))),
}
PLAIN: dict[str, Any] = {
    "bags": dense_and(bags()),
    "matrix": matrix(MATRIX),
    "weighted": weigh(torch.full((8,), 0.5)),
}


@pytest.mark.parametrize("name", READ)
def test_the_same_numbers_in_another_form_have_the_same_scores(scorers: Scorers, name: str) -> None:
    which, made = READ[name]
    wanted = scorers[which].score(PLAIN[which])
    assert wanted[0] != wanted[1] and np.array_equal(scorers[which].score(made()), wanted)
