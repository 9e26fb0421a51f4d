"""Scores of a version that answers nobody, held against those of the one that does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from embedcomp.errors import EmbedcompError
from embedcomp.serving.metrics import Metrics
from embedcomp.serving.served import Served, Work

WAITING = 4  # calls that may wait to be compared; others are not, so that no answer is late for it

logger = logging.getLogger(__name__)


class Shadows:
    """Scores calls once more when they have been answered, in a thread of its own.

    Args:
        score: scores what a version has read.
    """

    def __init__(self, score: Callable[[Served, Work], np.ndarray], metrics: Metrics):
        self._score, self._metrics = score, metrics
        self._thread = ThreadPoolExecutor(1, "shadow")
        self._room = threading.BoundedSemaphore(WAITING)

    def compare(self, shadow: Served, answered: np.ndarray, read: Callable[[Served], Work]) -> None:
        """Have a shadow score a call too, if there is room for it.

        Args:
            answered: the scores that the caller got.
            read: reads the call for a version.
        """
        if self._room.acquire(blocking=False):
            self._thread.submit(self._compare, shadow, answered, read)
        else:
            self._metrics.not_shadowed(shadow, "busy")

    def _compare(
        self, shadow: Served, answered: np.ndarray, read: Callable[[Served], Work]
    ) -> None:
        try:
            differences = np.abs(self._score(shadow, read(shadow)) - answered)
            self._metrics.shadowed(shadow, differences)
        except EmbedcompError as error:
            logger.debug("a shadow did not score: %s", error)
            self._metrics.not_shadowed(shadow, "failed")
        except Exception:  # a fault of ours, which has no caller to be told
            logger.exception("a shadow failed")
            self._metrics.not_shadowed(shadow, "failed")
        finally:
            self._room.release()
