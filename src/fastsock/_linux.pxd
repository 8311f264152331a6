# The C library's and the kernel's declarations, under their own names; one block per
# header. Nothing else lives here. Used as `from fastsock cimport _linux as c`, so that
# every crossing into C reads `c.name`.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "_compat.h" nogil:
    enum:
        SO_ATTACH_REUSEPORT_CBPF
        SO_DETACH_REUSEPORT_BPF
        SO_MEMINFO
        FASTSOCK_MEMINFO_VARS
        FASTSOCK_MEMINFO_DROPS
        FASTSOCK_ERESTARTSYS
        FASTSOCK_SOL_UDP
        MFD_NOEXEC_SEAL
        UDP_SEGMENT
        UDP_GRO
        UDP_CORK
        SO_ZEROCOPY
        MSG_ZEROCOPY
        SO_TXTIME
        SCM_TXTIME
        SO_EE_ORIGIN_ZEROCOPY
        SO_EE_CODE_ZEROCOPY_COPIED
        SO_EE_ORIGIN_TXTIME
    int fastsock_sendmmsg(int fd, mmsghdr *msgvec, unsigned int vlen, int flags)
    int fastsock_recvmmsg(int fd, mmsghdr *msgvec, unsigned int vlen, int flags)
    void fastsock_count(int64_t *counter, int64_t more)
    bint fastsock_flag_acquire(uint64_t *flag, int epoch)
    void fastsock_flag_release(uint64_t *flag)
    int fastsock_exchange(int *value, int desired)
    void fastsock_keep_heap(size_t nbytes)
    void fastsock_decref(PyObject *object)

cdef extern from "_compat.h":
    bint fastsock_is_sole(PyObject *bytes)
    void fastsock_again(PyObject *bytes)

cdef extern from "<errno.h>" nogil:
    int errno
    enum:
        EACCES
        EAGAIN
        EBADF
        EBUSY
        ECONNREFUSED
        ECONNRESET
        EHOSTDOWN
        EHOSTUNREACH
        EINPROGRESS
        EINTR
        EINVAL
        EIO
        EISCONN
        EMSGSIZE
        ENODEV
        ENETDOWN
        ENETUNREACH
        ENOPROTOOPT
        EOWNERDEAD
        EOPNOTSUPP
        EPIPE

cdef extern from "<sys/time.h>" nogil:
    struct timeval:
        long tv_sec
        long tv_usec

cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_MONOTONIC
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *ts)

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    ctypedef unsigned short sa_family_t
    enum:
        AF_UNIX
        AF_INET
        AF_INET6
        AF_NETLINK
        AF_PACKET
        AF_VSOCK
        SOCK_STREAM
        SOCK_DGRAM
        SOCK_SEQPACKET
        SOCK_NONBLOCK
        SOCK_CLOEXEC
        SOL_SOCKET
        SOMAXCONN
        SO_ERROR
        SO_PROTOCOL
        SO_RCVLOWAT
        SO_RCVBUFFORCE
        SO_RXQ_OVFL
        SO_SNDBUFFORCE
        SO_SNDTIMEO
        SO_TIMESTAMP
        SO_TIMESTAMPING
        SO_TIMESTAMPNS
        SO_TYPE
        SCM_TIMESTAMPING
        SCM_TIMESTAMPNS
        MSG_CTRUNC
        MSG_DONTWAIT
        MSG_ERRQUEUE
        MSG_FASTOPEN
        MSG_MORE
        MSG_PEEK
        MSG_TRUNC
        MSG_WAITALL
        MSG_WAITFORONE
    struct sockaddr:
        sa_family_t sa_family
    struct sockaddr_storage:
        sa_family_t ss_family
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cmsghdr *CMSG_FIRSTHDR(msghdr *msg)
    cmsghdr *CMSG_NXTHDR(msghdr *msg, cmsghdr *cmsg)
    unsigned char *CMSG_DATA(cmsghdr *cmsg)
    size_t CMSG_LEN(size_t length)
    size_t CMSG_SPACE(size_t length)
    int socket(int family, int type, int protocol)
    int bind(int fd, const sockaddr *addr, socklen_t addrlen)
    int connect(int fd, const sockaddr *addr, socklen_t addrlen)
    int listen(int fd, int backlog)
    int accept4(int fd, sockaddr *addr, socklen_t *addrlen, int flags)
    int shutdown(int fd, int how)
    int getsockname(int fd, sockaddr *addr, socklen_t *addrlen)
    int getpeername(int fd, sockaddr *addr, socklen_t *addrlen)
    int getsockopt(int fd, int level, int optname, void *optval, socklen_t *optlen)
    int setsockopt(int fd, int level, int optname, const void *optval, socklen_t optlen)
    ssize_t recvfrom(int fd, void *buf, size_t size, int flags, sockaddr *addr, socklen_t *addrlen)
    ssize_t sendto(int fd, const void *buf, size_t size, int flags, const sockaddr *addr, socklen_t addrlen)
    ssize_t recvmsg(int fd, msghdr *msg, int flags)
    ssize_t sendmsg(int fd, const msghdr *msg, int flags)

cdef extern from "<netinet/in.h>" nogil:
    enum:
        INADDR_LOOPBACK
        INET6_ADDRSTRLEN
        IPPROTO_IP
        IPPROTO_IPV6
        IPPROTO_UDP
        IP_PKTINFO
        IP_RECVERR
        IP_RECVTOS
        IP_RECVTTL
        IP_TOS
        IP_TTL
        IPV6_HOPLIMIT
        IPV6_PKTINFO
        IPV6_RECVERR
        IPV6_RECVHOPLIMIT
        IPV6_RECVPKTINFO
        IPV6_RECVTCLASS
        IPV6_TCLASS
        MCAST_JOIN_GROUP
        MCAST_LEAVE_GROUP
        MCAST_JOIN_SOURCE_GROUP
        MCAST_LEAVE_SOURCE_GROUP
        IP_MULTICAST_ALL
        IPV6_MULTICAST_ALL
    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in:
        sa_family_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        sa_family_t sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    struct in_pktinfo:
        int ipi_ifindex
        in_addr ipi_spec_dst
        in_addr ipi_addr
    struct in6_pktinfo:
        in6_addr ipi6_addr
        unsigned int ipi6_ifindex
    struct ip_mreqn:
        int imr_ifindex
    struct group_req:
        uint32_t gr_interface
        sockaddr_storage gr_group
    struct group_source_req:
        uint32_t gsr_interface
        sockaddr_storage gsr_group
        sockaddr_storage gsr_source

cdef extern from "<linux/errqueue.h>" nogil:
    enum:
        SO_EE_ORIGIN_LOCAL
        SO_EE_ORIGIN_ICMP
        SO_EE_ORIGIN_ICMP6
        SO_EE_ORIGIN_TIMESTAMPING
    struct sock_extended_err:
        uint32_t ee_errno
        uint8_t ee_origin
        uint8_t ee_type
        uint8_t ee_code
        uint32_t ee_info
        uint32_t ee_data
    struct scm_timestamping:
        timespec ts[3]

cdef extern from "<linux/filter.h>" nogil:
    struct sock_filter:
        uint16_t code
        uint8_t jt
        uint8_t jf
        uint32_t k
    struct sock_fprog:
        unsigned short len
        sock_filter *filter

cdef extern from "<linux/net_tstamp.h>" nogil:
    enum:
        SOF_TIMESTAMPING_OPT_ID
        SOF_TIMESTAMPING_OPT_TSONLY
        SOF_TIMESTAMPING_RAW_HARDWARE
        SOF_TIMESTAMPING_RX_HARDWARE
        SOF_TIMESTAMPING_RX_SOFTWARE
        SOF_TIMESTAMPING_SOFTWARE
        SOF_TIMESTAMPING_TX_HARDWARE
        SOF_TIMESTAMPING_TX_SOFTWARE
        SOF_TXTIME_REPORT_ERRORS
    struct sock_txtime:
        int clockid
        uint32_t flags

cdef extern from "<sys/un.h>" nogil:
    struct sockaddr_un:
        sa_family_t sun_family
        char sun_path[108]

cdef extern from "<linux/netlink.h>" nogil:
    struct sockaddr_nl:
        sa_family_t nl_family
        uint32_t nl_pid
        uint32_t nl_groups

cdef extern from "<netpacket/packet.h>" nogil:
    struct sockaddr_ll:
        sa_family_t sll_family
        uint16_t sll_protocol
        int sll_ifindex
        unsigned short sll_hatype
        unsigned char sll_pkttype
        unsigned char sll_halen
        unsigned char sll_addr[8]

cdef extern from "<linux/vm_sockets.h>" nogil:
    struct sockaddr_vm:
        sa_family_t svm_family
        uint32_t svm_port
        uint32_t svm_cid

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *src, void *dst)
    const char *inet_ntop(int family, const void *src, char *dst, socklen_t size)
    uint16_t htons(uint16_t value)
    uint16_t ntohs(uint16_t value)
    uint32_t htonl(uint32_t value)
    uint32_t ntohl(uint32_t value)

cdef extern from "<poll.h>" nogil:
    enum:
        POLLERR
        POLLIN
        POLLOUT
        POLLHUP
        POLLRDHUP
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd *fds, unsigned long nfds, const timespec *timeout, void *sigmask)

cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLLIN
        EPOLLOUT
        EPOLLPRI
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
    union epoll_data_t:
        int fd
        uint64_t u64
    struct epoll_event:         # packed on x86_64 only: the compiler's business
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)

cdef extern from "<fcntl.h>" nogil:
    enum:
        F_ADD_SEALS
        F_DUPFD_CLOEXEC
        F_GETFL
        F_OFD_SETLK
        F_SEAL_GROW
        F_SEAL_SHRINK
        F_SETFL
        F_SETLK
        F_WRLCK
        O_CLOEXEC
        O_NONBLOCK
        O_RDWR
    struct flock:
        short l_type
        short l_whence
    int fcntl(int fd, int cmd, ...)
    int open(const char *path, int flags)

cdef extern from "<unistd.h>" nogil:
    enum:
        SEEK_SET
    int close(int fd)
    int ftruncate(int fd, int64_t length)
    ssize_t write(int fd, const void *buf, size_t count)

cdef extern from "<sys/stat.h>" nogil:
    struct struct_stat "stat":
        int64_t st_size
    int fstat(int fd, struct_stat *statbuf)

cdef extern from "<sys/mman.h>" nogil:
    enum:
        MAP_SHARED
        MFD_ALLOW_SEALING
        MFD_CLOEXEC
        PROT_READ
        PROT_WRITE
    void *MAP_FAILED
    int memfd_create(const char *name, unsigned int flags)
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, int64_t offset)
    int munmap(void *addr, size_t length)

cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned int initval, int flags)

cdef extern from "<ifaddrs.h>" nogil:
    struct ifaddrs:
        ifaddrs *ifa_next
        char *ifa_name
        sockaddr *ifa_addr
    int getifaddrs(ifaddrs **ifap)
    void freeifaddrs(ifaddrs *ifa)
