/* What the C library or an older kernel header may lack, and the few things that
   Cython cannot say: atomic flags and the allocator's own tuning. The only place
   for #ifdef. Imports nothing of fastsock. */
#ifndef FASTSOCK_COMPAT_H
#define FASTSOCK_COMPAT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif

#include <Python.h>

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <linux/errqueue.h>
#include <linux/filter.h>
#include <linux/net_tstamp.h>

/* linux/sock_diag.h: the counters of SO_MEMINFO (Linux 4.12). */
#ifndef SO_MEMINFO
#define SO_MEMINFO 55
#endif
#define FASTSOCK_MEMINFO_VARS 16
#define FASTSOCK_MEMINFO_DROPS 8

/* linux/udp.h, which cannot stand beside netinet/udp.h: segmentation (Linux 4.18) and
   aggregation (5.0). */
#define FASTSOCK_SOL_UDP 17
#ifndef UDP_CORK
#define UDP_CORK 1
#endif
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

/* asm-generic/socket.h, which a C library may be older than. The names without _NEW stand
   for layouts with the C library's own time_t. */
#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 60
#endif
#ifndef MSG_ZEROCOPY
#define MSG_ZEROCOPY 0x4000000
#endif
#ifndef SO_TXTIME
#define SO_TXTIME 61
#endif
#ifndef SCM_TXTIME
#define SCM_TXTIME SO_TXTIME
#endif
#ifndef SO_ATTACH_REUSEPORT_CBPF
#define SO_ATTACH_REUSEPORT_CBPF 51
#endif
#ifndef SO_DETACH_REUSEPORT_BPF
#define SO_DETACH_REUSEPORT_BPF 68
#endif
#ifndef IPV6_MULTICAST_ALL
#define IPV6_MULTICAST_ALL 29   /* linux/in6.h, Linux 4.20 */
#endif
#ifndef SO_EE_ORIGIN_ZEROCOPY
#define SO_EE_ORIGIN_ZEROCOPY 5
#endif
#ifndef SO_EE_CODE_ZEROCOPY_COPIED
#define SO_EE_CODE_ZEROCOPY_COPIED 1
#endif
#ifndef SO_EE_ORIGIN_TXTIME
#define SO_EE_ORIGIN_TXTIME 6
#endif

/* sys/mman.h: Linux 6.3, which complains in its log of those who do not say. */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

/* Kernel-internal, and yet user space sees it: a recvmmsg interrupted after its first
   datagram leaves it in SO_ERROR (net/socket.c, do_recvmmsg). It means EINTR. */
#define FASTSOCK_ERESTARTSYS 512

/* musl's sendmmsg loops over sendmsg, and its recvmmsg rewrites the headers' padding;
   the system calls themselves take the same structures as glibc's functions, because
   the arenas start zeroed and musl's padding is never written. */
static inline int fastsock_sendmmsg(int fd, struct mmsghdr *msgvec, unsigned int vlen, int flags)
{
#ifdef __GLIBC__
    return sendmmsg(fd, msgvec, vlen, flags);
#else
    return (int)syscall(SYS_sendmmsg, fd, msgvec, vlen, flags);
#endif
}

static inline int fastsock_recvmmsg(int fd, struct mmsghdr *msgvec, unsigned int vlen, int flags)
{
#ifdef __GLIBC__
    return recvmmsg(fd, msgvec, vlen, flags, NULL);
#else
    return (int)syscall(SYS_recvmmsg, fd, msgvec, vlen, flags, NULL);
#endif
}

/* An ownership flag that holds with and without the GIL: a number of the owning thread's
   and the process's fork epoch, or 0. In the child of a fork, what other threads held is
   free; what the surviving thread holds (it may fork inside a call) stays held. */
static inline uint64_t fastsock_thread_number(void)
{
    static uint64_t last = 0;
    static __thread uint64_t number = 0;
    if (number == 0)
        number = __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
    return number;
}

static inline int fastsock_flag_acquire(uint64_t *flag, int epoch)
{
    const uint64_t low = ((uint64_t)1 << 40) - 1;
    const uint64_t mine = (uint64_t)epoch << 40 | (fastsock_thread_number() & low);
    uint64_t seen = 0;
    if (__atomic_compare_exchange_n(flag, &seen, mine, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return 1;
    return seen >> 40 != mine >> 40 && (seen & low) != (mine & low)
        && __atomic_compare_exchange_n(flag, &seen, mine, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static inline void fastsock_flag_release(uint64_t *flag)
{
    __atomic_store_n(flag, 0, __ATOMIC_RELEASE);
}

static inline int fastsock_exchange(int *value, int desired)
{
    return __atomic_exchange_n(value, desired, __ATOMIC_ACQ_REL);
}

/* A counter of events that any thread may add to. */
static inline void fastsock_count(int64_t *counter, int64_t more)
{
#ifdef Py_GIL_DISABLED
    __atomic_add_fetch(counter, more, __ATOMIC_RELAXED);
#else
    *counter += more;
#endif
}

/* Py_DECREF from any thread, with the GIL or without. While the interpreter is taken down nobody but the thread that
   does so can get the GIL, and afterwards nobody: what is let go of then stays, and goes with the process. */
static inline void fastsock_decref(PyObject *object)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyThreadState *holder = PyThreadState_GetUnchecked();
    int finalizing = Py_IsFinalizing();
#else
    PyThreadState *holder = _PyThreadState_UncheckedGet();
    int finalizing = _Py_IsFinalizing();
#endif
    if (holder != NULL && holder == PyGILState_GetThisThreadState()) {
        Py_DECREF(object);
    } else if (Py_IsInitialized() && !finalizing) {
        PyGILState_STATE state = PyGILState_Ensure();
        Py_DECREF(object);
        PyGILState_Release(state);
    }
}

/* Let the allocator keep `nbytes` of freed heap instead of returning them to the kernel
   and faulting them in again at the next batch. glibc raises its mmap and trim
   thresholds when a mapped block is freed (mallopt(3), M_MMAP_THRESHOLD), up to 32 MiB;
   this frees one such block. Nothing is touched, so nothing is resident. A threshold
   that the user fixed through the environment stays. See docs/design/malloc.md. */
static inline void fastsock_keep_heap(size_t nbytes)
{
#ifdef __GLIBC__
    static size_t kept = 32 * 1024;
    const size_t most = 32 * 1024 * 1024 - 8192;
    size_t seen = __atomic_load_n(&kept, __ATOMIC_RELAXED);
    if (nbytes <= seen || seen >= most)
        return;
    nbytes = nbytes >= most / 2 ? most : 2 * nbytes;
    __atomic_store_n(&kept, nbytes, __ATOMIC_RELAXED);
    void *volatile block = malloc(nbytes);
    free(block);
#else
    (void)nbytes;
#endif
}

/* A bytes object that only its holder can reach may be written again, which spares an
   allocation per datagram: see docs/design/malloc.md. `fastsock_is_sole` says whether it
   may; it never may where the build has no single reference count to tell by.
   `fastsock_again` makes it a new object with the contents that are there now. */
static inline int fastsock_is_sole(PyObject *bytes)
{
#ifdef Py_GIL_DISABLED
    (void)bytes;
    return 0;
#else
    return Py_REFCNT(bytes) == 1;
#endif
}

static inline void fastsock_again(PyObject *bytes)
{
    _Py_COMP_DIAG_PUSH
    _Py_COMP_DIAG_IGNORE_DEPR_DECLS
    ((PyBytesObject *)bytes)->ob_shash = -1;
    _Py_COMP_DIAG_POP
}

#endif
