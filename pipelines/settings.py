"""What a job is asked for, made whole and refused where it cannot be, without torch and Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from embedcomp.errors import BadSettings
from embedcomp.log.click_log import ClickLog
from embedcomp.recipes.settings import JobSettings
from embedcomp.support.files import refuse_unwritable
from embedcomp.support.filesystems import absolute
from embedcomp.train.settings import refuse_too_many

TRAIN, VALID, TEST = "train", "valid", "test"


def located(settings: JobSettings) -> JobSettings:
    """This job with paths that do not depend on the folder it was called from.

    Raises:
        BadSettings: `out` is not a folder.
    """
    if "://" in settings.out:
        raise BadSettings(
            f"out is {settings.out}, but must be a folder (on storage that all nodes share)"
        )
    start = str(Path(settings.checkpoint).absolute()) if settings.checkpoint else ""
    return replace(
        settings,
        log=absolute(settings.log),
        out=absolute(settings.out),
        counts=absolute(settings.counts) if settings.counts else "",
        checkpoint=start,
    )


def refuse(settings: JobSettings) -> None:
    """Find out, on the machine that drives the job, whether it could end well.

    Raises:
        BadSettings: `out` cannot be written, there is no such checkpoint, or there are more workers
            than rows to train on.
        BadSchema, BadLog: the log cannot be read.
    """
    refuse_unwritable(Path(settings.out))
    if settings.checkpoint and not Path(settings.checkpoint).is_file():
        raise BadSettings(f"there is no checkpoint at {settings.checkpoint}")
    refuse_too_many(settings.workers, ClickLog(settings.log).rows(TRAIN))
