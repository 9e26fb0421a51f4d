"""What a user can fix. Every message is one sentence with the numbers and the way out."""

from __future__ import annotations

from typing import Any


class EmbedcompError(Exception):
    """Base of every error that a user can mend; the command line prints it and exits with 2.

    plain: the message as logs may have it, where it holds values of a request; None: it holds none.
    """

    plain: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is sent to other processes, whatever it was made of."""
        return _with_message, (type(self), self.args, self.__dict__)


def _with_message(kind: type[EmbedcompError], args: tuple[Any, ...], values: Any) -> Exception:
    error = kind.__new__(kind, *args)
    error.__dict__.update(values)
    return error


class BadSchema(EmbedcompError):
    """schema.toml does not describe a click log."""


class BadLog(EmbedcompError):
    """The click log's files do not hold what its schema says."""


class BadModel(EmbedcompError):
    """A model, checkpoint or factory that cannot be used."""


class BadArtifact(EmbedcompError):
    """A folder that is not a readable artifact."""


class BadSettings(EmbedcompError):
    """Settings that cannot be met together."""


class BadResults(EmbedcompError):
    """A file of results that cannot be read or reported."""


class BadRequest(EmbedcompError):
    """A request for scores that does not fit the artifact's features.

    Args:
        values: the rest of the message, which holds values of the request.
    """

    def __init__(self, feature: str, message: str, *, values: str = ""):
        self.feature = feature
        self.plain = f"feature {feature!r}: {message}"
        super().__init__(f"{self.plain}{values}")


class LimitsTooSmall(EmbedcompError):
    """No plan keeps to what was asked of bytes and time."""


class BudgetTooSmall(LimitsTooSmall):
    """No plan fits the byte budget.

    Args:
        smallest: bytes of the smallest plan that was found.
        largest: the layer that has most bytes in it, and those.
        fixed: bytes in it that are not compressed.
    """

    def __init__(self, budget: int, smallest: int, largest: tuple[str, int], fixed: int):
        self.smallest = smallest
        layer, most = largest
        super().__init__(
            f"the budget is {budget:,} bytes, but the smallest plan needs {smallest:,}, of which "
            f"{layer} takes {most:,}, more than any other layer, and {fixed:,} are not compressed; "
            f"raise the budget by {smallest - budget:,} or allow more methods"
        )


class LatencyTooSmall(LimitsTooSmall):
    """No plan keeps to the time of a call; all in microseconds."""

    def __init__(self, budget: float, rows: int, fastest: float, fixed: float):
        super().__init__(
            f"the latency budget is {budget:,.1f} us a call of {rows:,} rows, but the fastest plan "
            f"found is predicted to take {fastest:,.1f}, of which {fixed:,.1f} are outside the "
            f"layers; raise the budget by {fastest - budget:,.1f}, score fewer rows a call or "
            "allow more methods"
        )
