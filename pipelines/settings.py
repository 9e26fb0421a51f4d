"""What a job is asked for, made whole and refused where it cannot be, without torch and Ray."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from embedcomp.errors import BadSettings
from embedcomp.log.click_log import ClickLog
from embedcomp.recipes.settings import JobSettings
from embedcomp.support.files import cache_folder, refuse_unwritable
from embedcomp.support.filesystems import absolute, is_url, refuse_unwritable_url
from embedcomp.train.settings import refuse_too_many

TRAIN, VALID, TEST = "train", "valid", "test"


def located(settings: JobSettings) -> JobSettings:
    """This job with paths that do not depend on the folder it was called from."""
    start = str(Path(settings.checkpoint).absolute()) if settings.checkpoint else ""
    return replace(
        settings,
        log=absolute(settings.log),
        out=absolute(settings.out),
        work=absolute(settings.work) if settings.work else "",
        counts=absolute(settings.counts) if settings.counts else "",
        checkpoint=start,
    )


def working_folder(settings: JobSettings) -> Path:
    """Where the steps are made: `out`, or where that is a URL, `work` or a folder of its own."""
    if not is_url(settings.out):
        return Path(settings.out)
    name = hashlib.sha256(settings.out.encode()).hexdigest()[:16]
    return Path(settings.work) if settings.work else cache_folder() / "jobs" / name


def refuse(settings: JobSettings) -> None:
    """Find out, on the machine that drives the job, whether it could end well.

    Raises:
        BadSettings: `out` cannot be written, there is no such checkpoint, or there are more workers
            than rows to train on.
        BadSchema, BadLog: the log cannot be read.
    """
    refuse_unwritable(working_folder(settings))
    if is_url(settings.out):
        refuse_unwritable_url(settings.out)
    if settings.checkpoint and not Path(settings.checkpoint).is_file():
        raise BadSettings(f"there is no checkpoint at {settings.checkpoint}")
    refuse_too_many(settings.workers, ClickLog(settings.log).rows(TRAIN))
