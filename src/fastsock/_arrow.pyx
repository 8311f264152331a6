# Batches in the Arrow C data interface: a struct array, whose children are the columns of a receive.
# See "The Arrow C data interface", "The Arrow PyCapsule Interface" and, for payloads, "Variable-size Binary
# View Layout" at arrow.apache.org/docs/format. Pure. May import _linux, _cmsg, _columns and _sockaddr.
#
# Who owns what: a consumer may move a column out and release the rest, in any thread. So each column has
# a reference to the owner of the batch's memory, and what was made for it, in a Held of its own.

from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from cpython.ref cimport Py_INCREF
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint8_t, uint16_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy
from fastsock cimport _linux as c
from fastsock._cmsg cimport DROP_COUNTER, HARDWARE_TIMESTAMPS, PKTINFO, TIMESTAMPS, TOS, TTL, Host
from fastsock._columns cimport Columns
from fastsock._sockaddr cimport decode_host

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

# --- the interface's own structures ------------------------------------------------------------

cdef enum:
    ARROW_FLAG_NULLABLE = 2

cdef struct ArrowSchema:
    const char *format
    const char *name
    const char *metadata
    int64_t flags
    int64_t n_children
    ArrowSchema **children
    ArrowSchema *dictionary
    void (*release)(ArrowSchema *) noexcept nogil
    void *private_data

cdef struct ArrowArray:
    int64_t length
    int64_t null_count
    int64_t offset
    int64_t n_buffers
    int64_t n_children
    const void **buffers
    ArrowArray **children
    ArrowArray *dictionary
    void (*release)(ArrowArray *) noexcept nogil
    void *private_data

cdef enum:
    INLINE = 12             # bytes of a payload that lie in its view itself
    CHUNK_BITS = 30         # a view's offset is an int32: beyond so many bytes it counts from another buffer

cdef struct View:
    int32_t size
    char prefix[4]          # the first of the bytes; INLINE of them where the payload is no longer than that
    int32_t buffer
    int32_t offset

# --- what columns there are ----------------------------------------------------------------------

cdef enum Kind:
    PAYLOADS
    PLAIN                   # a column of the batch, as it is
    TIMES                   # the same, where 0 stands for unknown
    BITS
    HOSTS
    PORTS
    LOCAL_HOSTS

cdef struct Field:
    Kind kind
    const char *name
    const char *format
    bint nullable
    const void *values      # of PLAIN and TIMES

cdef enum:
    MOST_FIELDS = 13

cdef struct Fields:
    int count
    Field all[MOST_FIELDS]


cdef void find_fields(Fields *fields, const Columns *columns, int ancillary, bint named) noexcept:
    """What a batch recorded, under the names that a Datagram has for it."""
    fields.count = 0
    add_field(fields, PAYLOADS, b"payload", b"vz", False, NULL)
    add_field(fields, PLAIN, b"length", b"i", False, columns.lengths)
    add_field(fields, BITS, b"truncated", b"b", False, columns.truncated)
    if named:
        add_field(fields, HOSTS, b"address", b"u", True, NULL)
        add_field(fields, PORTS, b"port", b"S", True, NULL)
    if ancillary & TIMESTAMPS:
        add_field(fields, TIMES, b"timestamp", b"tsn:UTC", True, columns.timestamps_ns)
    if ancillary & HARDWARE_TIMESTAMPS:
        # By the device's clock, which may be any: without a time zone.
        add_field(fields, TIMES, b"hardware_timestamp", b"tsn:", True, columns.hardware_timestamps_ns)
    if ancillary & TOS:
        add_field(fields, PLAIN, b"ecn", b"C", False, columns.ecn)
        add_field(fields, PLAIN, b"dscp", b"C", False, columns.dscp)
    if ancillary & TTL:
        add_field(fields, PLAIN, b"ttl", b"C", False, columns.ttls)
    if ancillary & PKTINFO:
        add_field(fields, LOCAL_HOSTS, b"local_address", b"u", True, columns.locals)
        add_field(fields, PLAIN, b"interface_index", b"i", False, columns.interface_indexes)
    if ancillary & DROP_COUNTER:
        add_field(fields, PLAIN, b"drop_counter", b"I", False, columns.drop_counters)


cdef void add_field(
    Fields *fields, Kind kind, const char *name, const char *format, bint nullable, const void *values
) noexcept:
    cdef Field *field = &fields.all[fields.count]
    field.kind = kind
    field.name = name
    field.format = format
    field.nullable = nullable
    field.values = values
    fields.count += 1


# --- the schema ------------------------------------------------------------------------------------

# What a schema's children lie in. Formats and names are constants.
cdef struct SchemaChildren:
    ArrowSchema *pointers[MOST_FIELDS]
    ArrowSchema fields[MOST_FIELDS]


cdef object export_schema(const Columns *columns, int ancillary, bint named):
    """A capsule that holds an ArrowSchema."""
    cdef Fields fields
    cdef ArrowSchema *child
    cdef ArrowSchema *schema = <ArrowSchema *>calloc(1, sizeof(ArrowSchema))
    cdef SchemaChildren *children = <SchemaChildren *>calloc(1, sizeof(SchemaChildren))
    cdef int i
    if schema == NULL or children == NULL:
        free(schema)
        free(children)
        raise MemoryError()
    find_fields(&fields, columns, ancillary, named)
    schema.format = b"+s"
    schema.name = b""
    schema.n_children = fields.count
    schema.children = children.pointers
    schema.release = release_schema
    schema.private_data = children
    for i in range(fields.count):
        child = children.pointers[i] = &children.fields[i]
        child.format = fields.all[i].format
        child.name = fields.all[i].name
        child.flags = ARROW_FLAG_NULLABLE if fields.all[i].nullable else 0
        child.release = release_field
    try:
        return PyCapsule_New(schema, b"arrow_schema", drop_schema)
    except MemoryError:
        release_schema(schema)
        free(schema)
        raise


cdef void release_field(ArrowSchema *field) noexcept nogil:
    field.release = NULL


cdef void release_schema(ArrowSchema *schema) noexcept nogil:
    cdef int64_t i
    for i in range(schema.n_children):
        if schema.children[i].release != NULL:
            schema.children[i].release(schema.children[i])
    free(schema.private_data)
    schema.release = NULL


cdef void drop_schema(object capsule) noexcept:
    cdef ArrowSchema *schema = <ArrowSchema *>PyCapsule_GetPointer(capsule, b"arrow_schema")
    if schema.release != NULL:      # nobody has moved it out
        schema.release(schema)
    free(schema)


# --- the array ----------------------------------------------------------------------------------------

cdef struct ArrayChildren:
    const void *buffers[1]          # the struct array's own: no validity bitmap
    ArrowArray *pointers[MOST_FIELDS]
    ArrowArray columns[MOST_FIELDS]

# Behind it lie the pointers to the column's buffers.
cdef struct Held:
    PyObject *owner
    void *made[3]                   # buffers that are not the batch's
    int n_made


cdef object export_array(
    object owner, const char *arena, const Columns *columns, int ancillary, list peers
):
    """A capsule that holds an ArrowArray, which keeps `owner`.

    `peers` is None where they are not recorded; else each is a (host, port, ...) tuple or None.
    """
    cdef Fields fields
    cdef Field *field
    cdef ArrowArray *array = <ArrowArray *>calloc(1, sizeof(ArrowArray))
    cdef ArrayChildren *children = <ArrayChildren *>calloc(1, sizeof(ArrayChildren))
    cdef int i
    if array == NULL or children == NULL:
        free(array)
        free(children)
        raise MemoryError()
    array.length = columns.count
    array.n_buffers = 1
    array.buffers = children.buffers
    array.children = children.pointers
    array.release = release_array
    array.private_data = children
    # First of all: it frees what is there whenever the rest fails.
    try:
        capsule = PyCapsule_New(array, b"arrow_array", drop_array)
    except MemoryError:
        release_array(array)
        free(array)
        raise
    find_fields(&fields, columns, ancillary, peers is not None)
    for i in range(fields.count):
        field = &fields.all[i]
        if field.kind == PAYLOADS:
            add_payloads(array, owner, arena, columns)
        elif field.kind == PLAIN:
            add_column(array, owner, 2).buffers[1] = field.values
        elif field.kind == TIMES:
            add_times(array, owner, <const int64_t *>field.values)
        elif field.kind == BITS:
            add_bits(array, owner, <const uint8_t *>field.values)
        elif field.kind == HOSTS:
            add_texts(array, owner, [None if peer is None else (<tuple>peer)[0] for peer in peers])
        elif field.kind == PORTS:
            add_ports(array, owner, peers)
        else:
            add_texts(array, owner, local_hosts(<const Host *>field.values, columns.count))
    return capsule


cdef ArrowArray *add_column(ArrowArray *array, object owner, Py_ssize_t n_buffers) except NULL:
    """One more child, as long as `array`, whose buffers are yet to be set."""
    cdef ArrayChildren *children = <ArrayChildren *>array.private_data
    cdef ArrowArray *column = &children.columns[array.n_children]
    cdef Held *held = <Held *>calloc(1, sizeof(Held) + <size_t>n_buffers * sizeof(void *))
    if held == NULL:
        raise MemoryError()
    Py_INCREF(owner)
    held.owner = <PyObject *>owner
    column.length = array.length
    column.n_buffers = n_buffers
    column.buffers = <const void **>(held + 1)
    column.release = release_column
    column.private_data = held
    children.pointers[array.n_children] = column
    array.n_children += 1
    return column


cdef void *make_buffer(ArrowArray *column, Py_ssize_t index, Py_ssize_t size) except NULL:
    """Zeros for buffer `index`."""
    cdef Held *held = <Held *>column.private_data
    cdef void *made = calloc(1, <size_t>max(size, 1))
    if made == NULL:
        raise MemoryError()
    held.made[held.n_made] = made
    held.n_made += 1
    column.buffers[index] = made
    return made


cdef void release_column(ArrowArray *column) noexcept nogil:
    cdef Held *held = <Held *>column.private_data
    cdef int i
    column.release = NULL
    for i in range(held.n_made):
        free(held.made[i])
    c.fastsock_decref(held.owner)
    free(held)


cdef void release_array(ArrowArray *array) noexcept nogil:
    cdef int64_t i
    for i in range(array.n_children):
        if array.children[i].release != NULL:
            array.children[i].release(array.children[i])
    free(array.private_data)
    array.release = NULL


cdef void drop_array(object capsule) noexcept:
    cdef ArrowArray *array = <ArrowArray *>PyCapsule_GetPointer(capsule, b"arrow_array")
    if array.release != NULL:
        array.release(array)
    free(array)


# --- its columns -----------------------------------------------------------------------------------------

cdef int add_payloads(ArrowArray *array, object owner, const char *arena, const Columns *columns) except -1:
    """Views of the arena, where datagrams lie in order: the buffers are the stretches with long payloads."""
    cdef Py_ssize_t i, size
    cdef int64_t start, chunk
    cdef int64_t first = -1
    cdef int64_t last = -1
    cdef Py_ssize_t chunks = 0
    cdef ArrowArray *column
    cdef View *views
    cdef int64_t *sizes
    for i in range(columns.count):
        if columns.lengths[i] > INLINE:
            last = columns.offsets[i]
            if first < 0:
                first = last
    if first >= 0:
        chunks = <Py_ssize_t>(last - first >> CHUNK_BITS) + 1
    column = add_column(array, owner, 2 + chunks + 1)
    views = <View *>make_buffer(column, 1, columns.count * <Py_ssize_t>sizeof(View))
    sizes = <int64_t *>make_buffer(column, 2 + chunks, chunks * <Py_ssize_t>sizeof(int64_t))
    for i in range(chunks):
        column.buffers[2 + i] = arena + first + (<int64_t>i << CHUNK_BITS)
    for i in range(columns.count):
        start = columns.offsets[i]
        size = columns.lengths[i]
        views[i].size = <int32_t>size
        if size <= INLINE:
            memcpy(views[i].prefix, arena + start, <size_t>size)
            continue
        memcpy(views[i].prefix, arena + start, sizeof(views[i].prefix))
        chunk = start - first >> CHUNK_BITS
        start -= first + (chunk << CHUNK_BITS)
        views[i].buffer = <int32_t>chunk
        views[i].offset = <int32_t>start
        sizes[chunk] = start + size
    return 0


cdef int add_times(ArrowArray *array, object owner, const int64_t *values) except -1:
    """The column itself; a validity bitmap only where a time is unknown."""
    cdef ArrowArray *column = add_column(array, owner, 2)
    cdef uint8_t *valid
    cdef int64_t i
    column.buffers[1] = values
    for i in range(array.length):
        column.null_count += values[i] == 0
    if column.null_count:
        valid = make_bitmap(column, 0)
        for i in range(array.length):
            if values[i] != 0:
                set_bit(valid, i)
    return 0


cdef int add_bits(ArrowArray *array, object owner, const uint8_t *values) except -1:
    cdef ArrowArray *column = add_column(array, owner, 2)
    cdef uint8_t *bits = make_bitmap(column, 1)
    cdef int64_t i
    for i in range(array.length):
        if values[i]:
            set_bit(bits, i)
    return 0


cdef int add_texts(ArrowArray *array, object owner, list texts) except -1:
    """Strings, and None."""
    cdef ArrowArray *column = add_column(array, owner, 3)
    cdef int32_t *offsets = <int32_t *>make_buffer(column, 1, (len(texts) + 1) * <Py_ssize_t>sizeof(int32_t))
    cdef uint8_t *valid
    cdef char *bytes_
    cdef Py_ssize_t i
    cdef Py_ssize_t size = 0
    cdef int64_t total = 0
    for i in range(len(texts)):
        if texts[i] is None:
            column.null_count += 1
        else:
            PyUnicode_AsUTF8AndSize(texts[i], &size)
            total += size
        if total > INT32_MAX:
            raise OverflowError("the addresses take more than 2 GiB of text, which Arrow's utf8 cannot hold")
        offsets[i + 1] = <int32_t>total
    bytes_ = <char *>make_buffer(column, 2, <Py_ssize_t>total)
    valid = make_bitmap(column, 0) if column.null_count else NULL
    for i in range(len(texts)):
        if texts[i] is not None:
            memcpy(bytes_ + offsets[i], PyUnicode_AsUTF8AndSize(texts[i], &size), <size_t>(offsets[i + 1] - offsets[i]))
            if valid != NULL:
                set_bit(valid, i)
    return 0


cdef int add_ports(ArrowArray *array, object owner, list peers) except -1:
    cdef ArrowArray *column = add_column(array, owner, 2)
    cdef uint16_t *ports = <uint16_t *>make_buffer(column, 1, len(peers) * <Py_ssize_t>sizeof(uint16_t))
    cdef uint8_t *valid = NULL
    cdef Py_ssize_t i
    for i in range(len(peers)):
        if peers[i] is None:
            column.null_count += 1
        else:
            ports[i] = <uint16_t>(<tuple>peers[i])[1]
    if column.null_count:
        valid = make_bitmap(column, 0)
        for i in range(len(peers)):
            if peers[i] is not None:
                set_bit(valid, i)
    return 0


cdef list local_hosts(const Host *hosts, Py_ssize_t count):
    """Their texts; those that follow each other are mostly the same."""
    cdef Py_ssize_t i
    cdef list found = []
    cdef object text = None
    for i in range(count):
        if i == 0 or memcmp(&hosts[i], &hosts[i - 1], sizeof(Host)) != 0:
            text = decode_host(&hosts[i])
        found.append(text)
    return found


cdef uint8_t *make_bitmap(ArrowArray *column, Py_ssize_t index) except NULL:
    return <uint8_t *>make_buffer(column, index, <Py_ssize_t>((column.length + 7) // 8))


cdef inline void set_bit(uint8_t *bits, int64_t index) noexcept:
    bits[index >> 3] |= <uint8_t>(1 << (index & 7))
