from typing import Any, NamedTuple

class ErrorRecord(NamedTuple):
    errno: int
    origin: str
    type: int
    code: int
    address: Any = None
    offender: str | None = None
    mtu: int | None = None
    payload: bytes = b""
    ids: range | None = None
    timestamp_ns: int | None = None
    copied: bool = False

def decode(control: bytes, payload: bytes = b"", name: bytes = b"") -> ErrorRecord | None: ...
