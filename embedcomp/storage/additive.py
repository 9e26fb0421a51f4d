"""Codes of additive codebooks: a row is the sum of one word of each of some codebooks.

The best codes of a row are found by a beam search, codebook after codebook, and then one code after
the other with the others fixed (Babenko and Lempitsky, CVPR 2014; Liu et al., arXiv 1509.05195).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedcomp.storage.kmeans import means, sampled, words_of
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

BEAM = 4  # sums that go on to the next codebook
ROUNDS = 2  # of finding codes and fitting words in turns
SWEEPS = 1  # over the codes of a row
COMPARED = 1 << 22  # distances at a time, so that they fit
SAMPLED = 1 << 16  # rows that words are fitted to


def summed(words: Sequence[Tensor], codes: Tensor) -> Tensor:
    """Sums [n, k] of the words [K, k] that codes [n, codebooks] name, from the first one on."""
    found = words[0].index_select(0, codes[:, 0])
    for own, code in zip(words[1:], codes.unbind(1)[1:], strict=True):
        found = found + own.index_select(0, code)
    return found


def encoded(rows: Tensor, words: Sequence[Tensor], known: Tensor | None = None) -> Tensor:
    """Codes int64 [n, codebooks] whose sums of words are near to rows [n, k].

    Args:
        known: codes that the rows have; a row whose are not farther keeps them.
    """
    if not words:
        return torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)
    some = max(COMPARED // (BEAM * max(len(own) for own in words)), 1)
    parts = [
        _encoded(rows[at : at + some], words, None if known is None else known[at : at + some])
        for at in range(0, len(rows), some)
    ]
    return torch.cat(parts) if parts else torch.empty(0, len(words), dtype=torch.int64)


def _encoded(rows: Tensor, words: Sequence[Tensor], known: Tensor | None) -> Tensor:
    found = _beam(rows, words)
    if known is not None:
        found = _nearer(rows, words, found, known)
    for _ in range(SWEEPS if len(words) > 1 else 0):
        for place in range(len(words)):
            others = summed(words, found) - words[place].index_select(0, found[:, place])
            tried = found.clone()
            tried[:, place] = _distances(rows - others, words[place]).argmin(1)
            found = _nearer(rows, words, tried, found)
    return found


def _beam(rows: Tensor, words: Sequence[Tensor]) -> Tensor:
    """Codes [n, codebooks], of which the first ones were among the BEAM best alone."""
    left = rows[:, None]  # [n, beam, k], what is not summed yet
    codes = torch.empty(len(rows), 1, 0, dtype=torch.int64, device=rows.device)
    for own in words:
        far = _distances(left, own).flatten(1)  # [n, beam * K]
        best = far.topk(min(BEAM, far.shape[1]), largest=False).indices
        of, code = (best // len(own))[..., None], (best % len(own))[..., None]
        left = left.gather(1, of.expand(-1, -1, rows.shape[1])) - own[code[..., 0]]
        codes = torch.cat([codes.gather(1, of.expand(-1, -1, codes.shape[2])), code], 2)
    nearest = left.square().sum(2).argmin(1)
    return codes[torch.arange(len(rows), device=rows.device), nearest]


def _distances(rows: Tensor, words: Tensor) -> Tensor:
    """Squared distances of rows [..., k] to words [K, k]: [..., K]."""
    far = words.square().sum(1) - 2 * rows @ words.T
    return far + rows.square().sum(-1, keepdim=True)


def _nearer(rows: Tensor, words: Sequence[Tensor], tried: Tensor, known: Tensor) -> Tensor:
    """The codes that were tried, of rows that they are nearer to than those that are known."""
    far = [(summed(words, codes) - rows).square().sum(1) for codes in (tried, known)]
    return torch.where((far[0] < far[1])[:, None], tried, known)


def fitted(rows: Tensor, weights: Tensor, codes: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Codebooks of small weighted squared distance, float32 [size, k] each.

    Each is fitted to what those before it leave, and then all of them in turns with the codes.

    Args:
        rows: float32 [n, k].
        weights: [n].
        codes: how many codes each row has [n], the first ones.
        sizes: words of each codebook.
    """
    weights = weights.double()
    if len(rows) > SAMPLED:
        kept, stands_for = sampled(weights, SAMPLED)
        rows, codes, weights = rows[kept], codes[kept], weights[kept] * stands_for
    left, words = rows.clone(), []
    for place, size in enumerate(sizes):
        has = codes > place
        words.append(words_of(left[has], weights[has], size))
        if has.any():
            own = _distances(left[has], words[-1]).argmin(1)
            left[has] = left[has] - words[-1][own]
    return _in_turns(rows, weights, codes, words) if len(words) > 1 else words


def _in_turns(rows: Tensor, weights: Tensor, codes: Tensor, words: list[Tensor]) -> list[Tensor]:
    """Words [size, k] each after some rounds of finding codes and fitting words to them."""
    parts = [(codes == number).nonzero()[:, 0] for number in range(1, len(words) + 1)]
    found = [encoded(rows[part], words[: n + 1]) for n, part in enumerate(parts)]
    for _ in range(ROUNDS):
        for place, own in enumerate(words):
            some = [(n, part) for n, part in enumerate(parts) if n >= place and len(part)]
            if not some:
                continue
            left = [
                rows[part] - summed(words[: n + 1], found[n]) + own[found[n][:, place]]
                for n, part in some
            ]
            of = torch.cat([found[n][:, place] for n, _ in some])
            heavy = torch.cat([weights[part] for _, part in some])
            words[place] = means(torch.cat(left), heavy, of, own)
        found = [encoded(rows[p], words[: n + 1], found[n]) for n, p in enumerate(parts)]
    return words
