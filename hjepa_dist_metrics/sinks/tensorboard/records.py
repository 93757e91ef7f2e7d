"""The first failure of tensorboard's writing thread, kept for the caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class GuardedRecords:
    """Stand between tensorboard's writing thread and the file, and keep the first failure.

    That thread would die with a traceback of its own and leave half a record, behind which a reader stops;
    here the failure is kept for the caller, and nothing is written after it.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._failure: Exception | None = None

    @classmethod
    def put_under(cls, file_writer: Any) -> GuardedRecords:
        """Wrap the record writer of a FileWriter, in the thread that writes and where it is closed.

        These are tensorboard's private names; a version without them writes as it always does.
        """
        try:
            asynchronous = file_writer.event_writer._async_writer
            records = cls(asynchronous._writer)
            asynchronous._worker._record_writer  # noqa: B018 - both names must be there before either is set
        except AttributeError:
            return cls(None)
        asynchronous._writer = asynchronous._worker._record_writer = records
        return records

    def raise_failure(self) -> None:
        """Raise what went wrong, if anything did."""
        if self._failure is not None:
            raise self._failure

    def write(self, data: bytes) -> None:
        """Write a record, unless something failed before."""
        self._attempt(lambda: self._writer.write(data))

    def flush(self) -> None:
        """Flush, unless something failed before."""
        self._attempt(lambda: self._writer.flush())

    def close(self) -> None:
        """Close, unless something failed before."""
        self._attempt(lambda: self._writer.close())

    def _attempt(self, call: Callable[[], None]) -> None:
        if self._failure is not None:
            return
        try:
            call()
        except Exception as error:  # tensorboard's file systems raise their own types besides OSError
            self._failure = error
