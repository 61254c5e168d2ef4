// A load program that shares nothing with plex: devices and a PushStream from sockets up, on one thread. It is there to
// be compared with `plex bench`, see ../agree.rs.
//
//   load DEVICE_PORT CONTROL_PORT SECRET PID DEVICES RATE SECONDS
//
// on 127.0.0.1; RATE 0 is full load. It warms up for a second, measures for SECONDS (up to 60, as its devices send no
// heartbeats), and prints one JSON object: pushes a second and the CPU of process PID per push, both by results that came
// in the window; latency from the time for which a push was meant to its arrival, in µs; what was lost or came twice.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define BODY 64            // bytes of a push's body
#define AHEAD 8000         // pushes without a result, at full load
#define OUT (64 << 10)     // bytes that wait for the control plane's socket
#define FRAME (16 << 10)   // bytes of an HTTP/2 frame, as long as nothing else was agreed
#define WINDOW (16 << 20)  // bytes that the gateway may send before it is told that they were read
#define PER_SOURCE 20000   // devices of one source address, fewer than there are ephemeral ports
#define SECOND 1000000000ull

typedef struct {
    int fd;
    uint64_t last;   // the number of the last push that came
    uint32_t held;   // bytes of a frame that hasn't come whole
    uint8_t rest[512];
} device_t;

static device_t *devices;
static uint64_t device_count;
static uint64_t came, doubled;

static uint64_t window_begin = UINT64_MAX, window_end;
static uint32_t *latencies;  // in 0.1 µs
static size_t latency_count, latency_room;

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

// What all threads of a process have used.
static uint64_t cpu_of(clockid_t clock) {
    struct timespec time;
    if (clock_gettime(clock, &time) != 0) fail("the process has gone");
    return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

static int dial(int port, uint64_t number) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0) fail("a socket: %s", strerror(errno));
    if (number >= PER_SOURCE) {
        struct sockaddr_in from = {.sin_family = AF_INET};
        from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)(number / PER_SOURCE));
        if (bind(fd, (struct sockaddr *)&from, sizeof from) != 0) fail("a source: %s", strerror(errno));
    }
    if (connect(fd, (struct sockaddr *)&to, sizeof to) != 0) fail("port %d: %s", port, strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void read_whole(int fd, void *into, size_t bytes) {
    for (size_t got = 0; got < bytes;) {
        ssize_t count = read(fd, (uint8_t *)into + got, bytes - got);
        if (count <= 0) fail("the gateway closed a connection");
        got += (size_t)count;
    }
}

static void unblock(int fd) {
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

// ---- Devices ----

static void put32(uint8_t *at, uint32_t value) {
    value = htonl(value);
    memcpy(at, &value, 4);
}

static uint32_t get32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, 4);
    return ntohl(value);
}

static void log_in(device_t *device, int port, uint64_t number) {
    uint8_t frame[128], answer[256];
    device->fd = dial(port, number);
    int bytes = snprintf((char *)frame + 4, sizeof frame - 4, "{\"uri\":\"/auth/server\",\"body\":\"load-%llu\"}",
                         (unsigned long long)number);
    put32(frame, (uint32_t)bytes);
    if (write(device->fd, frame, (size_t)bytes + 4) != bytes + 4) fail("a login: %s", strerror(errno));
    read_whole(device->fd, answer, 4);
    uint32_t length = get32(answer);
    if (length >= sizeof answer) fail("a login: an answer of %u bytes", length);
    read_whole(device->fd, answer, length);
    answer[length] = 0;
    if (strstr((char *)answer, "/auth/success") == NULL) fail("a login: %s", answer);
    unblock(device->fd);
}

static uint64_t hex(const char *digits) {
    char text[17];
    memcpy(text, digits, 16);
    text[16] = 0;
    return strtoull(text, NULL, 16);
}

// A body begins with the push's number for its device, from 1 on, and the time for which it was meant.
static void on_message(device_t *device, const uint8_t *message, size_t bytes) {
    static const char before[] = "\"body\":\"";
    const char *body = memmem(message, bytes, before, sizeof before - 1);
    if (body == NULL || (const char *)message + bytes < body + sizeof before - 1 + 32) return;
    body += sizeof before - 1;
    uint64_t number = hex(body), meant = hex(body + 16), at = now();
    if (number <= device->last) {  // one stream: they come in order
        doubled++;
        return;
    }
    device->last = number;
    came++;
    if (meant < window_begin || meant >= window_end) return;
    if (latency_count == latency_room) {
        latency_room = latency_room ? 2 * latency_room : 1 << 20;
        latencies = realloc(latencies, latency_room * sizeof *latencies);
        if (latencies == NULL) fail("no memory");
    }
    uint64_t tenths = (at - meant) / 100;
    latencies[latency_count++] = tenths < UINT32_MAX ? (uint32_t)tenths : UINT32_MAX;
}

static void on_device(device_t *device) {
    static uint8_t buffer[(64 << 10) + sizeof device->rest];
    memcpy(buffer, device->rest, device->held);
    ssize_t count = read(device->fd, buffer + device->held, 64 << 10);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (count <= 0) fail("the gateway closed a device");
    size_t have = device->held + (size_t)count, at = 0;
    while (have - at >= 4 && have - at - 4 >= get32(buffer + at)) {
        uint32_t length = get32(buffer + at);
        on_message(device, buffer + at + 4, length);
        at += 4 + length;
    }
    if (have - at > sizeof device->rest) fail("a frame that is no push of this program");
    device->held = (uint32_t)(have - at);
    memcpy(device->rest, buffer + at, device->held);
}

// ---- PushStream: gRPC over HTTP/2, one stream of one connection ----

enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE };

static int control;
static uint8_t out[OUT + 4096];
static size_t out_bytes, out_at;
static uint8_t *last_data;  // the DATA frame with which `out` ends, if it does
static int64_t send_connection = 65535, send_stream = 65535, send_initial = 65535;
static uint64_t unread;  // bytes of DATA that the gateway hasn't been told of
static uint64_t pushed, results, refused;
static uint8_t in[128 << 10];
static size_t in_bytes;
static uint8_t grpc[1 << 20];  // gRPC messages that haven't come whole
static size_t grpc_bytes;

static uint8_t *begin_frame(uint8_t type, uint8_t flags, uint32_t stream, uint32_t bytes) {
    uint8_t *at = out + out_bytes;
    if (out_bytes + 9 + bytes > sizeof out) fail("too much waits for the control plane");
    at[0] = (uint8_t)(bytes >> 16), at[1] = (uint8_t)(bytes >> 8), at[2] = (uint8_t)bytes;
    at[3] = type, at[4] = flags;
    put32(at + 5, stream);
    out_bytes += 9 + bytes;
    last_data = type == DATA ? at : NULL;
    return at + 9;
}

static void window_update(uint32_t stream, uint32_t bytes) {
    put32(begin_frame(WINDOW_UPDATE, 0, stream, 4), bytes);
}

static size_t literal(uint8_t *at, const char *name, const char *value) {
    size_t name_bytes = strlen(name), value_bytes = strlen(value);
    if (value_bytes > 126) fail("the secret is too long");
    *at++ = 0;  // not indexed, a new name; both as they are
    *at++ = (uint8_t)name_bytes;
    memcpy(at, name, name_bytes), at += name_bytes;
    *at++ = (uint8_t)value_bytes;
    memcpy(at, value, value_bytes);
    return name_bytes + value_bytes + 3;
}

static void open_stream(int port, const char *secret) {
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    uint8_t headers[1024], *settings;
    char bearer[160];
    size_t bytes = 0;
    control = dial(port, 0);
    memcpy(out, preface, sizeof preface - 1);
    out_bytes = sizeof preface - 1;
    settings = begin_frame(SETTINGS, 0, 0, 6);
    settings[0] = 0, settings[1] = 4;  // INITIAL_WINDOW_SIZE
    put32(settings + 2, WINDOW);
    window_update(0, WINDOW - 65535);
    snprintf(bearer, sizeof bearer, "Bearer %s", secret);
    bytes += literal(headers + bytes, ":method", "POST");
    bytes += literal(headers + bytes, ":scheme", "http");
    bytes += literal(headers + bytes, ":path", "/plex.v1.Gateway/PushStream");
    bytes += literal(headers + bytes, ":authority", "127.0.0.1");
    bytes += literal(headers + bytes, "te", "trailers");
    bytes += literal(headers + bytes, "content-type", "application/grpc");
    bytes += literal(headers + bytes, "authorization", bearer);
    memcpy(begin_frame(HEADERS, 4 /* END_HEADERS */, 1, (uint32_t)bytes), headers, bytes);
    unblock(control);
}

// Room for a gRPC message. Those that are written at once share a frame, as libraries have it.
static uint8_t *begin_message(uint32_t bytes) {
    if (last_data == NULL) return begin_frame(DATA, 0, 1, bytes);
    uint32_t have = (uint32_t)(last_data[0] << 16 | last_data[1] << 8 | last_data[2]), all = have + bytes;
    if (all > FRAME) return begin_frame(DATA, 0, 1, bytes);
    last_data[0] = (uint8_t)(all >> 16), last_data[1] = (uint8_t)(all >> 8), last_data[2] = (uint8_t)all;
    out_bytes += bytes;
    return last_data + 9 + have;
}

// A message with one push. All lengths are below 128, so each is one byte.
static void push(uint64_t meant) {
    char uid[32], body[BODY + 1];
    static const char uri[] = "/bench";
    uint8_t uid_bytes = (uint8_t)snprintf(uid, sizeof uid, "load-%llu", (unsigned long long)(pushed % device_count));
    snprintf(body, sizeof body, "%016llx%016llx", (unsigned long long)(1 + pushed / device_count),
             (unsigned long long)meant);
    memset(body + 32, 'x', BODY - 32);
    uint8_t request = (uint8_t)(2 + uid_bytes + 2 + (sizeof uri - 1) + 2 + BODY);
    uint32_t bytes = 5 + 2 + request;
    uint8_t *at = begin_message(bytes);
    *at++ = 0;  // not compressed
    put32(at, bytes - 5), at += 4;
    *at++ = 0x0a, *at++ = request;  // pushes = 1
    *at++ = 0x0a, *at++ = uid_bytes, memcpy(at, uid, uid_bytes), at += uid_bytes;
    *at++ = 0x12, *at++ = sizeof uri - 1, memcpy(at, uri, sizeof uri - 1), at += sizeof uri - 1;
    *at++ = 0x1a, *at++ = BODY, memcpy(at, body, BODY);
    send_connection -= bytes, send_stream -= bytes;
    pushed++;
}

static int has_room(void) {
    return out_bytes < OUT && send_connection > 256 && send_stream > 256;
}

static void flush(void) {
    while (out_at < out_bytes) {
        ssize_t count = write(control, out + out_at, out_bytes - out_at);
        if (count < 0 && errno == EAGAIN) break;
        if (count < 0) fail("the control plane: %s", strerror(errno));
        out_at += (size_t)count;
    }
    memmove(out, out + out_at, out_bytes - out_at);
    out_bytes -= out_at, out_at = 0;
    last_data = NULL;
}

static uint64_t varint(const uint8_t **at, const uint8_t *end) {
    uint64_t value = 0;
    for (int shift = 0; *at < end && shift < 64; shift += 7) {
        uint8_t byte = *(*at)++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return value;
    }
    fail("a result that can't be read");
    return 0;
}

// The results of one PushStreamResponse; of each its status, field 1.
static void on_results(const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        if (*at++ != 0x0a) fail("a response with something new");
        uint64_t bytes = varint(&at, end);
        if (bytes > (uint64_t)(end - at)) fail("a response that is cut off");
        const uint8_t *next = at + bytes;
        results++;
        if (at == next || *at++ != 0x08 || varint(&at, next) != 1) refused++;
        at = next;
    }
}

static void on_data(const uint8_t *bytes, size_t count) {
    if (grpc_bytes + count > sizeof grpc) fail("a response that is too long");
    memcpy(grpc + grpc_bytes, bytes, count);
    grpc_bytes += count;
    size_t at = 0;
    while (grpc_bytes - at >= 5 && grpc_bytes - at - 5 >= get32(grpc + at + 1)) {
        uint32_t length = get32(grpc + at + 1);
        on_results(grpc + at + 5, grpc + at + 5 + length);
        at += 5 + length;
    }
    memmove(grpc, grpc + at, grpc_bytes - at);
    grpc_bytes -= at;
}

static void on_settings(const uint8_t *at, size_t bytes) {
    for (; bytes >= 6; at += 6, bytes -= 6) {
        if (at[0] == 0 && at[1] == 4) {
            send_stream += (int64_t)get32(at + 2) - send_initial;
            send_initial = get32(at + 2);
        }
    }
    begin_frame(SETTINGS, 1 /* ACK */, 0, 0);
}

static void on_frame(uint8_t type, uint8_t flags, uint32_t stream, const uint8_t *at, size_t bytes) {
    switch (type) {
    case DATA:
        if (flags & 8 /* PADDED */) fail("padding");
        on_data(at, bytes);
        unread += bytes;
        break;
    case SETTINGS:
        if (!(flags & 1)) on_settings(at, bytes);
        break;
    case PING:
        if (!(flags & 1)) memcpy(begin_frame(PING, 1, 0, 8), at, 8);
        break;
    case WINDOW_UPDATE:
        *(stream == 0 ? &send_connection : &send_stream) += get32(at) & 0x7fffffff;
        break;
    case HEADERS:
        if (flags & 1 /* END_STREAM */) fail("the gateway ended the stream: is the secret right?");
        break;
    case RST_STREAM:
    case GOAWAY:
        fail("the gateway ended the stream");
    }
}

// Reads once; gives whether there may be more.
static int on_control(void) {
    ssize_t count = read(control, in + in_bytes, sizeof in - in_bytes);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (count <= 0) fail("the gateway closed the control plane");
    in_bytes += (size_t)count;
    size_t at = 0;
    while (in_bytes - at >= 9) {
        size_t bytes = (size_t)in[at] << 16 | (size_t)in[at + 1] << 8 | in[at + 2];
        if (in_bytes - at - 9 < bytes) break;
        on_frame(in[at + 3], in[at + 4], get32(in + at + 5) & 0x7fffffff, in + at + 9, bytes);
        at += 9 + bytes;
    }
    memmove(in, in + at, in_bytes - at);
    in_bytes -= at;
    if (unread > WINDOW / 4) {
        window_update(0, (uint32_t)unread);
        window_update(1, (uint32_t)unread);
        unread = 0;
    }
    return 1;
}

// ---- The run ----

static int ascending(const void *a, const void *b) {
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return (left > right) - (left < right);
}

static double percentile(double of) {
    if (latency_count == 0) return 0;
    size_t place = (size_t)(of * (double)latency_count);
    return latencies[place < latency_count ? place : latency_count - 1] / 10.0;
}

static void watch(int epoll, int fd, uint32_t events, uint64_t tag) {
    struct epoll_event event = {.events = events, .data.u64 = tag};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) fail("epoll: %s", strerror(errno));
}

int main(int count, char **arguments) {
    if (count != 8) fail("load DEVICE_PORT CONTROL_PORT SECRET PID DEVICES RATE SECONDS");
    int device_port = atoi(arguments[1]), control_port = atoi(arguments[2]);
    uint64_t rate = strtoull(arguments[6], NULL, 10), seconds = strtoull(arguments[7], NULL, 10);
    device_count = strtoull(arguments[5], NULL, 10);
    if (device_count == 0 || seconds == 0 || seconds > 60) fail("at least one device, 1 to 60 seconds");
    clockid_t cpu_clock;
    if (clock_getcpuclockid(atoi(arguments[4]), &cpu_clock) != 0) fail("no process %s", arguments[4]);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);

    int epoll = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    devices = calloc(device_count, sizeof *devices);
    if (devices == NULL) fail("no memory");
    for (uint64_t number = 0; number < device_count; number++) {
        log_in(&devices[number], device_port, number);
        watch(epoll, devices[number].fd, EPOLLIN, number);
    }
    open_stream(control_port, arguments[3]);
    watch(epoll, control, EPOLLIN | EPOLLOUT | EPOLLET, device_count);
    watch(epoll, timer, EPOLLIN, device_count + 1);

    uint64_t begun = now(), stop = begun + (1 + seconds) * SECOND, patience = stop + 5 * SECOND;
    window_begin = begun + SECOND, window_end = stop;
    uint64_t at_begin = 0, at_end = 0, cpu_begin = 0, cpu_end = 0, time_begin = 0, time_end = 0;
    struct epoll_event events[256];
    for (;;) {
        uint64_t at = now();
        if (time_begin == 0 && at >= window_begin) time_begin = at, at_begin = results, cpu_begin = cpu_of(cpu_clock);
        if (time_end == 0 && at >= window_end) time_end = at, at_end = results, cpu_end = cpu_of(cpu_clock);
        if (at >= stop && ((results == pushed && came >= results - refused) || at >= patience)) break;
        uint64_t wake = at < window_begin ? window_begin : at < stop ? stop : patience;
        if (rate == 0) {
            while (at < stop && has_room() && pushed - results < AHEAD) push(now());
        } else {
            // Each at its time, whatever has become of those before.
            uint64_t meant;
            while ((meant = begun + pushed * SECOND / rate) <= at && meant < stop && has_room()) push(meant);
            if (meant > at && meant < wake) wake = meant;
        }
        if (at >= stop) wake = at + SECOND / 50;
        struct itimerspec alarm = {.it_value = {(time_t)(wake / SECOND), (long)(wake % SECOND)}};
        timerfd_settime(timer, TFD_TIMER_ABSTIME, &alarm, NULL);
        flush();
        int ready = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            uint64_t tag = events[i].data.u64, expired;
            if (tag < device_count) {
                on_device(&devices[tag]);
            } else if (tag == device_count) {
                while (on_control()) flush();  // it is told once of what comes
            } else if (read(timer, &expired, sizeof expired) < 0 && errno != EAGAIN) {
                fail("the timer: %s", strerror(errno));
            }
        }
    }

    qsort(latencies, latency_count, sizeof *latencies, ascending);
    double in_window = (double)(at_end - at_begin);
    printf("{\"pushesPerSecond\":%.1f,\"cpuUsPerPush\":%.3f,\"p50\":%.1f,\"p99\":%.1f,\"pushes\":%llu,\"refused\":%llu,"
           "\"lost\":%lld,\"doubled\":%llu}\n",
           in_window * SECOND / (double)(time_end - time_begin),
           (double)(cpu_end - cpu_begin) / 1000 / (in_window > 0 ? in_window : 1), percentile(0.5), percentile(0.99),
           (unsigned long long)pushed, (unsigned long long)refused, (long long)(results - refused - came),
           (unsigned long long)doubled);
    return refused || doubled || came != results;
}
