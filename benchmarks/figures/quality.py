"""Figures of `benchmarks.quality`: DCN-V2 over seeds, against the control."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figures.markdown import each, plus_minus, table
from benchmarks.figures.record import Record, claim


def models(*records: Record) -> list[str]:
    """Original, control and compressed models of each log; bytes are the largest seed's."""
    head = ["log", "model", "bytes", "AUC", "log loss", "AUC - control"]
    rows = [
        [
            record["data"]["name"],
            _words(name),
            f"{max(one['total'] for one in made['bytes']):,}",
            plus_minus(made["auc"]),
            f"{made['logloss']['mean']:.5f}",
            each(made["auc_minus_control"]),
        ]
        for record in records
        for name, made in record["results"]["models"].items()
        if "failed" not in made
    ]
    return table(head, rows, text=(0, 1))


SVD_AHEAD = ("kuairand", "5x", True)  # log, budget and whether tuned: there alone


def against_svd(*records: Record) -> Iterator[float]:
    """By how much svd is ahead of low_rank where it is."""
    for record in records:
        log = record["data"]["name"]
        for pair in record["results"]["low_rank_against_svd"]:
            gain, tuned = pair["auc_gain"]["mean"], pair["tune_epochs"] > 0
            where = f"{log} at {pair['budget']}, {pair['tune_epochs']} tuning epochs"
            if (log, pair["budget"], tuned) == SVD_AHEAD:
                claim(gain < 0, f"svd is ahead of low_rank on {where}")
                yield -gain
            else:
                claim(gain > 0, f"low_rank is ahead of svd on {where}")


FUXICTR = {"movielens_1m": (0.8179, 0.5138), "kuairand": (0.7215, 0.6044)}  # AUC, log loss


def against_fuxictr(*records: Record) -> list[float]:
    """No figures of ours: the original's AUC is above FuxiCTR's, its log loss is not below."""
    for record in records:
        log, made = record["data"]["name"], record["results"]["models"]["original"]
        auc, logloss = FUXICTR[log]
        claim(made["auc"]["mean"] > auc, f"FuxiCTR's AUC is beaten on {log}")
        claim(made["logloss"]["mean"] > logloss, f"FuxiCTR's log loss is not beaten on {log}")
    return []


def _words(name: str) -> str:
    """ "planned 5x, tuned" of "all_5x_tuned_1"."""
    if "_" not in name:
        return name
    method, budget, tuned = name.removesuffix("_1").rsplit("_", 2)
    return f"{method.replace('all', 'planned')} {budget}, {tuned}"
