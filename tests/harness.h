/* What ring_harness.c and feeder_harness.c have in common: checks that end the process, waiting, threads,
   the memory of a ring. */
#ifndef FASTSOCK_HARNESS_H
#define FASTSOCK_HARNESS_H

#include "_ring.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

enum { DEADLINE_MS = 20000, CANNOT = 77 };

static inline __attribute__((noreturn, format(printf, 2, 3))) void stop_with(int status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    _exit(status);
}

#define FAIL(...) stop_with(1, __FILE__ ":" LINE(__LINE__) ": " __VA_ARGS__)
#define LINE(number) QUOTED(number)
#define QUOTED(text) #text
#define CHECK(condition) do { if (!(condition)) FAIL("%s: errno %d", #condition, errno); } while (0)

/* --- time, chance, threads -------------------------------------------------------------------------------- */

static inline int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Let others go on: at once, and after a while for a little longer. */
static inline void pause_a_little(unsigned tries)
{
    const struct timespec little = {.tv_nsec = 20000};
    if (tries < 20)
        sched_yield();
    else
        nanosleep(&little, NULL);
}

/* Wait until it is so. */
#define AWAIT(condition) do { \
    const int64_t until_ = now_ms() + DEADLINE_MS; \
    for (unsigned tries_ = 0; !(condition); pause_a_little(tries_++)) \
        if (now_ms() > until_) \
            FAIL("not so in time: %s", #condition); \
} while (0)

static inline uint32_t chance(uint32_t *seed, uint32_t below)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 17;
    *seed ^= *seed << 5;
    return *seed % below;
}

static inline void dawdle(uint32_t *seed, uint32_t below)
{
    for (uint32_t left = chance(seed, below); left; left--)
        sched_yield();
}

static inline pthread_t spawn(void *(*run)(void *), void *argument)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, run, argument) == 0);
    return thread;
}

static inline void join(pthread_t thread)
{
    CHECK(pthread_join(thread, NULL) == 0);
}

static inline int new_eventfd(void)
{
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

static inline void await_readable(int fd, const char *what)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    int rc;
    while ((rc = poll(&poll_fd, 1, DEADLINE_MS)) < 0 && errno == EINTR)
        ;
    if (rc != 1)
        FAIL("no wake-up: %s", what);
}

/* Zeroed, and shared with what is forked. */
static inline void *new_memory(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

/* --- scenarios ---------------------------------------------------------------------------------------------- */

struct scenario {
    const char *name;
    void (*run)(void);
};

/* Run the one that the argument names. */
static inline int run_scenario(int argc, char **argv, const struct scenario *scenarios, size_t count)
{
    alarm(2 * DEADLINE_MS / 1000);
    for (size_t i = 0; argc == 2 && i < count; i++)
        if (strcmp(argv[1], scenarios[i].name) == 0) {
            scenarios[i].run();
            return 0;
        }
    fprintf(stderr, "usage: %s SCENARIO\n", argv[0]);
    return 2;
}

#define RUN_SCENARIO(argc, argv, scenarios) \
    run_scenario(argc, argv, scenarios, sizeof(scenarios) / sizeof((scenarios)[0]))

#endif
