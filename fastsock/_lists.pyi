from typing import final

from fastsock._recvbatch import RecvBatch

@final
class ListBatch(RecvBatch): ...
