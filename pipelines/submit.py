"""A job on a Ray cluster, through Ray's Job API: sent, followed, and ended with its exit code."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from embedcomp.errors import EmbedcompError
from embedcomp.pipelines.settings import located
from embedcomp.recipes.settings import JobSettings, read_job

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

JOB_FILE = "job.toml"
ABSENT = "No module named"
STARTING, STARTING_S = "No available agent", 30


class CannotSubmit(EmbedcompError):
    """The cluster cannot be reached or cannot run jobs of embedcomp."""


def submit(job: Path, address: str, *, force: bool, changes: Sequence[str]) -> int:
    """Run a job on the cluster at `address`, its log on standard output.

    The job file travels with the submission. Relative paths in it are of the folder that this is
    called in, and the cluster must see the log and the output folder under the same paths.

    Args:
        address: Ray's dashboard, as http://HOST:8265.
        changes: settings to change, as "train.epochs=3".

    Returns:
        The exit code of the job: 0, 2 after a mistake of the user's, 1 if it broke or was stopped.

    Raises:
        BadSettings: the job file is wrong; nothing is sent then.
        CannotSubmit: no Ray answers there, or it lacks embedcomp.
    """
    settings = located(read_job(job, changes))
    client = _connect(address)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(job, Path(folder) / JOB_FILE)
        try:
            number = _sent(client, _entrypoint(settings, force, changes), folder)
        except (RuntimeError, requests.RequestException) as error:
            raise CannotSubmit(f"{address} did not take the job: {error}") from error
    try:
        absent = asyncio.run(_follow(client, number))
    except KeyboardInterrupt:
        print(
            f"the job goes on as {number}; stop it with: ray job stop --address {address} {number}",
            file=sys.stderr,
        )
        return 130
    return _ended(client, number, address, absent)


def _connect(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient  # once the job is known to be right

    from embedcomp.pipelines.cluster import AUTH_MODE

    os.environ.setdefault(AUTH_MODE, "disabled")  # see pipelines.cluster
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError, requests.RequestException) as error:
        raise CannotSubmit(
            f"no Ray dashboard answers at {address} ({str(error).splitlines()[0]}); "
            "give its address as http://HOST:8265 and check that the cluster is up"
        ) from error


def _sent(client: JobSubmissionClient, entrypoint: str, folder: str) -> str:
    """The job's number; a cluster that has just started takes no job for some seconds."""
    for _ in range(STARTING_S):
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": folder})
        except RuntimeError as error:
            if STARTING not in str(error):
                raise
            time.sleep(1)
    return client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": folder})


def _entrypoint(settings: JobSettings, force: bool, changes: Sequence[str]) -> str:
    """Runs the driver with the Python that submits, where the cluster has it, or its own."""
    names = ("log", "out", "work", "counts")
    given = {name: getattr(settings, name) for name in names}
    places = [f"{name}={json.dumps(place)}" for name, place in given.items() if place]
    words = ["-m", "embedcomp.pipelines.run", JOB_FILE, *(["--force"] if force else [])]
    for change in (*changes, *places):
        words += ["--set", change]
    python = shlex.quote(sys.executable)
    return f"P={python}; [ -x $P ] || P=python; exec $P {shlex.join(words)}"


async def _follow(client: JobSubmissionClient, number: str) -> bool:
    """Print the job's log until it ends; tells whether a module of ours was not found there."""
    absent = False
    async for text in client.tail_job_logs(number):
        absent |= ABSENT in text and "'embedcomp" in text
        print(text, end="", flush=True)
    return absent


def _ended(client: JobSubmissionClient, number: str, address: str, absent: bool) -> int:
    details = _final(client, number)
    if details.driver_exit_code == 0:
        return 0
    if absent:
        raise CannotSubmit(
            f"the cluster at {address} does not have embedcomp: start its nodes from the image "
            "in docker/, or install embedcomp in the Python that runs Ray there"
        )
    if details.driver_exit_code == 2:
        return 2  # its sentence is the end of the log
    print(f"job {number} {details.status.lower()}: {details.message}", file=sys.stderr)
    return 1


def _final(client: JobSubmissionClient, number: str) -> JobDetails:
    """The job's state once it has ended, which is known a moment after its log ends."""
    while not (details := client.get_job_info(number)).status.is_terminal():
        time.sleep(0.2)
    return details
