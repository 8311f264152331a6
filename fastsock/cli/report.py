"""How a subcommand says what happens: for people or, with --json, one object per line.

For people, progress goes to stderr (one self-updating line on a terminal, else a line per
interval) and the summary to stdout; with --json all of it goes to stdout, and only warnings
and errors to stderr. May import histogram; rich only for the terminal's line.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from errno import EINVAL
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fastsock.bench.histogram import Histogram

if TYPE_CHECKING:
    from rich.live import Live

Fields = Mapping[str, Any]


def rates(datagrams: int, nbytes: int, elapsed_s: float) -> dict[str, float | None]:
    """Per second; None where no time has passed. Bits are the payload's."""
    return {"datagrams_per_s": ratio(datagrams, elapsed_s), "bits_per_s": ratio(8 * nbytes, elapsed_s)}


def ratio(value: float, of: float) -> float | None:
    """None where nothing is there to divide by."""
    return value / of if of > 0 else None


def number(value: float | None, digits: int = 0) -> str:
    """A number for people."""
    return "-" if value is None else f"{value:,.{digits}f}"


def rate_text(fields: Fields) -> str:
    bits_per_s = fields["bits_per_s"]
    megabits = None if bits_per_s is None else bits_per_s / 1e6
    return f"{number(fields['datagrams_per_s'])} datagrams/s, {number(megabits, 1)} Mbit/s"


def delay_fields(delays: Histogram) -> dict[str, int | None]:
    """Percentiles, in nanoseconds."""
    return {
        "delay_min_ns": delays.minimum,
        "delay_p50_ns": delays.percentile(50),
        "delay_p90_ns": delays.percentile(90),
        "delay_p99_ns": delays.percentile(99),
        "delay_p99_9_ns": delays.percentile(99.9),
        "delay_max_ns": delays.maximum,
    }


def delay_text(fields: Fields) -> str:
    names = (("p50", "p50"), ("p90", "p90"), ("p99", "p99"), ("p99.9", "p99_9"), ("max", "max"))
    texts = []
    for shown, name in names:
        ns = fields[f"delay_{name}_ns"]
        texts.append(f"{shown} {number(None if ns is None else ns / 1000, 1)}")
    return f"{', '.join(texts)} us"


class Reporter:
    """Writes a subcommand's events. Enter it around the work, so that the terminal is left clean."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_live()

    def event(self, kind: str, text: str, fields: Fields) -> None:
        """Say something once, before the numbers run."""
        if self.as_json:
            self._write_json(kind, fields)
        else:
            print(text, file=sys.stderr, flush=True)

    def interval(self, text: str, fields: Fields) -> None:
        """Say how it goes; on a terminal the next interval overwrites it."""
        if self.as_json:
            self._write_json("interval", fields)
        elif sys.stderr.isatty():
            self._show_live(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def summary(self, rows: Sequence[tuple[str, str]], fields: Fields) -> None:
        """Say how it ended: rows of a label and its text."""
        self.close_live()
        if self.as_json:
            self._write_json("summary", fields)
            return
        width = max(len(label) for label, _ in rows) + 2
        print("\n".join(f"{label:<{width}}{text}" for label, text in rows), flush=True)

    def close_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show_live(self, text: str) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            # No thread of its own, nothing redirected: it is drawn once per interval.
            self._live = Live(
                console=Console(stderr=True),
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)

    def _write_json(self, kind: str, fields: Fields) -> None:
        print(json.dumps({"type": kind, **fields}), flush=True)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show different warnings as one line each on stderr, without the source line that raised them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        warn(message)


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"fastsock: warning: {message}", file=sys.stderr, flush=True)


@contextmanager
def naming(action: str) -> Iterator[None]:
    """Put what was tried in front of an OSError's text."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{action}: {error.strerror or error}") from error
    except UnicodeError as error:  # a host name that IDNA cannot write
        raise OSError(EINVAL, f"{action}: {error}") from error
