from collections.abc import Iterable
from typing import Any

from typing_extensions import Buffer

from fastsock._receive import ReceiveSocket
from fastsock._sendbatch import SendBatch

class SendSocket(ReceiveSocket):
    gso: bool
    def send_many(self, payloads: Iterable[Buffer], flags: int = 0) -> int: ...
    def sendto_many(self, payloads: Iterable[Buffer], address: Any, flags: int = 0) -> int: ...
    def send_batch(self, batch: SendBatch, flags: int = 0) -> int: ...
    def send_segments(self, payload: Buffer, segment_size: int, address: Any = None, flags: int = 0) -> int: ...
    def send_zerocopy(
        self, payload: Buffer, address: Any = None, *, segment_size: int | None = None, flags: int = 0
    ) -> int: ...
