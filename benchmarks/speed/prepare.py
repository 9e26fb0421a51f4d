"""The rows of a task: embedcomp's own vocabularies and encoding, as arrays for the other tools."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.speed.task import Arrays
from embedcomp.log.batches import read_rows
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from embedcomp.log.features import Features
from embedcomp.log.rows import Bag, Rows


def prepare(log: ClickLog, min_count: int, rows: int, seed: int, folder: Path) -> Features:
    """Count the log; write its features and up to `rows` shuffled rows into `folder`.

    The rows come from row groups all over the log, so that their ids repeat as in training.
    """
    pieces = log.pieces("train")
    features = Features.from_counts(log, count(log, pieces), min_count)
    features.save(folder / "features")
    rng = np.random.default_rng(seed)
    parts, held = [], 0
    for part in read_rows(log, features, (pieces[i] for i in rng.permutation(len(pieces)))):
        parts.append(part)
        held += len(part)
        if held >= rows:
            break
    gathered = Rows.concatenate(parts)
    to_arrays(gathered.take(rng.permutation(held)[:rows]), features).save(folder)
    return features


def to_arrays(rows: Rows, features: Features) -> Arrays:
    """Columns in the features' own order."""
    found: dict[str, np.ndarray] = {}
    for i, feature in enumerate(features.single):
        found[feature.name] = rows.single[:, i] + 1
    for feature, bag in zip(features.multi, rows.bags, strict=True):
        found[feature.name] = padded(bag)
    ids = {feature.name: found[feature.name] for feature in features.ids}
    dense = {feature.name: rows.dense[:, i] for i, feature in enumerate(features.dense)}
    return Arrays(ids, {f.name: f.rows + 1 for f in features.ids}, dense, rows.labels)


def padded(bag: Bag) -> np.ndarray:
    """The bags' ids plus one, int32 [bags, longest], with 0 after the end of each."""
    lengths = np.diff(bag.offsets)
    places = np.arange(max(int(lengths.max(initial=0)), 1))
    filled = np.zeros((len(bag), len(places)), np.int32)
    filled[places < lengths[:, None]] = bag.values[: bag.offsets[-1]] + 1
    return filled
