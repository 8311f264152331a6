# Batches in the Arrow C data interface. No system calls.

from fastsock._columns cimport Columns

cdef object export_schema(const Columns *columns, int ancillary, bint named)
cdef object export_array(
    object owner, const char *arena, const Columns *columns, int ancillary, list peers
)
