/* A device of a plex gateway: the device protocol, version 2, in C11 with POSIX sockets and no library.
 *
 * Each line on stdout is a JSON object that tells what happens:
 *
 *   {"event":"connected","address":"127.0.0.1:9578","node":"a"}
 *   {"event":"push","seq":1795480045325479,"uri":"/greeting","body":"hello"}
 *   {"event":"error","reason":"malformed","detail":"..."}          the gateway didn't understand the last frame
 *   {"event":"kick","reason":"draining","reconnect":true,"after_ms":1200}
 *   {"event":"closed","detail":"..."}                              no connection, or none any more
 *   {"event":"waiting","ms":1200}                                  until the next try
 *
 * Exit codes: 1 told not to come back, 2 bad usage, 3 the credential is refused.
 */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    CONNECT_MS = 10 * 1000,
    LOGIN_MS = 40 * 1000, /* a gateway may hold its answer back for 30 s */
    WAIT_FIRST_MS = 1000,
    WAIT_LONGEST_MS = 60 * 1000,
    FRAME_BYTES_MAX = 16 << 20, /* no gateway can be set to more */
    ANSWER_BYTES_MAX = 64 << 10, /* of the host look-up */
    CREDENTIAL_BYTES_MAX = 4 << 10, /* no frame before authentication may have more */
    JSON_DEPTH_MAX = 64,
};

/* ---- What went wrong last, for people ---- */

static char problem[256];

static bool fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(problem, sizeof problem, format, arguments);
    va_end(arguments);
    return false;
}

static void die(int code, const char *message)
{
    fprintf(stderr, "device: %s\n", message);
    exit(code);
}

/* ---- Text: UTF-8 in somebody else's buffer, with a length, as it may hold U+0000 ---- */

struct text {
    unsigned char *at;
    size_t length;
};

static struct text text_of(const char *string)
{
    return (struct text){(unsigned char *)string, strlen(string)};
}

static bool is(struct text text, const char *string)
{
    size_t length = strlen(string);
    return text.length == length && (length == 0 || memcmp(text.at, string, length) == 0);
}

static bool begins(struct text text, const char *string)
{
    size_t length = strlen(string);
    return text.length >= length && memcmp(text.at, string, length) == 0;
}

/* The bytes of the character at `at`; 0: that isn't UTF-8. */
static size_t utf8_length(const unsigned char *at, size_t left)
{
    unsigned char first = at[0];
    size_t length = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
    if (length > left)
        return 0;
    for (size_t i = 1; i < length; i++)
        if ((at[i] & 0xC0) != 0x80)
            return 0;
    /* Not the shortest form, a surrogate, beyond U+10FFFF. */
    if ((first == 0xE0 && at[1] < 0xA0) || (first == 0xED && at[1] > 0x9F) || (first == 0xF0 && at[1] < 0x90) ||
        (first == 0xF4 && at[1] > 0x8F))
        return 0;
    return length;
}

/* ---- Reading JSON: strings are decoded where they stand, as none grows by it; so nothing is allocated ---- */

enum kind { ABSENT, STRING, INTEGER, BOOLEAN, OTHER }; /* ABSENT: null, too */

struct value {
    enum kind kind;
    struct text string;
    int64_t integer; /* of a BOOLEAN: 0 or 1 */
};

/* A field that is looked for; `value` begins as what counts where it is missing. */
struct field {
    const char *name;
    enum kind kind;
    struct value value;
};

struct input {
    unsigned char *at, *end;
};

/* What stands behind a backslash, but for `u`, and what it means. The slash is never written so. */
static const char escapes[] = "\"\\bfnrt/", meanings[] = "\"\\\b\f\n\r\t/";

static bool read_value(struct input *in, struct value *value, int depth);

static void skip_space(struct input *in)
{
    while (in->at < in->end && (*in->at == ' ' || *in->at == '\t' || *in->at == '\n' || *in->at == '\r'))
        in->at++;
}

static bool take(struct input *in, char wanted)
{
    if (in->at == in->end || *in->at != (unsigned char)wanted)
        return false;
    in->at++;
    return true;
}

static bool take_token(struct input *in, char wanted)
{
    skip_space(in);
    return take(in, wanted);
}

static bool take_word(struct input *in, const char *word)
{
    for (; *word != '\0'; word++)
        if (!take(in, *word))
            return false;
    return true;
}

static bool read_hex4(struct input *in, uint32_t *unit)
{
    *unit = 0;
    for (int i = 0; i < 4; i++, in->at++) {
        if (in->at == in->end)
            return false;
        unsigned char c = *in->at;
        uint32_t digit = c >= '0' && c <= '9'   ? c - '0' + 0u
                         : c >= 'a' && c <= 'f' ? c - 'a' + 10u
                         : c >= 'A' && c <= 'F' ? c - 'A' + 10u
                                                : 16u;
        if (digit == 16)
            return false;
        *unit = *unit << 4 | digit;
    }
    return true;
}

/* What stands behind `\u`, as UTF-8. A surrogate without its other half is no text. */
static bool read_unicode(struct input *in, unsigned char **to)
{
    uint32_t code, low;
    if (!read_hex4(in, &code) || (code >= 0xDC00 && code <= 0xDFFF))
        return false;
    if (code >= 0xD800 && code <= 0xDBFF) {
        if (!take_word(in, "\\u") || !read_hex4(in, &low) || low < 0xDC00 || low > 0xDFFF)
            return false;
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    if (code < 0x80) {
        *(*to)++ = (unsigned char)code;
        return true;
    }
    int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const unsigned char first[] = {0, 0xC0, 0xE0, 0xF0};
    *(*to)++ = (unsigned char)(first[more] | code >> (6 * more));
    while (more-- > 0)
        *(*to)++ = (unsigned char)(0x80 | (code >> (6 * more) & 0x3F));
    return true;
}

/* A string, behind its first quote. */
static bool read_string(struct input *in, struct text *string)
{
    unsigned char *to = in->at;
    string->at = to;
    while (in->at < in->end) {
        unsigned char c = *in->at;
        if (c == '"') {
            in->at++;
            string->length = (size_t)(to - string->at);
            return true;
        }
        if (c == '\\') {
            if (++in->at == in->end)
                return false;
            c = *in->at++;
            const char *escape = c != '\0' ? strchr(escapes, c) : NULL;
            if (escape != NULL)
                *to++ = (unsigned char)meanings[escape - escapes];
            else if (c != 'u' || !read_unicode(in, &to))
                return false;
            continue;
        }
        size_t length = c < 0x20 ? 0 : utf8_length(in->at, (size_t)(in->end - in->at));
        if (length == 0)
            return false;
        memmove(to, in->at, length);
        to += length;
        in->at += length;
    }
    return false;
}

static size_t skip_digits(struct input *in)
{
    const unsigned char *begin = in->at;
    while (in->at < in->end && *in->at >= '0' && *in->at <= '9')
        in->at++;
    return (size_t)(in->at - begin);
}

static bool read_number(struct input *in, struct value *value)
{
    bool negative = take(in, '-'), integral = true;
    const unsigned char *digits = in->at;
    size_t length = skip_digits(in);
    if (length == 0 || (digits[0] == '0' && length > 1))
        return false;
    int64_t integer = 0;
    for (size_t i = 0; i < length && integral; i++) { /* below zero, where there is room for one more */
        int digit = digits[i] - '0';
        integral = integer >= (INT64_MIN + digit) / 10;
        if (integral)
            integer = integer * 10 - digit;
    }
    if (take(in, '.')) {
        integral = false;
        if (skip_digits(in) == 0)
            return false;
    }
    if (take(in, 'e') || take(in, 'E')) {
        integral = false;
        if (!take(in, '+'))
            take(in, '-');
        if (skip_digits(in) == 0)
            return false;
    }
    if (!negative && integer == INT64_MIN)
        integral = false;
    value->kind = integral ? INTEGER : OTHER;
    value->integer = integral && !negative ? -integer : integer;
    return true;
}

/* An object's members, behind its brace. Of a field given twice the last one counts; null leaves what was there. */
static bool read_members(struct input *in, struct field *fields, size_t count, int depth)
{
    if (take_token(in, '}'))
        return true;
    do {
        struct text name;
        struct value value = {0};
        if (!take_token(in, '"') || !read_string(in, &name) || !take_token(in, ':') || !read_value(in, &value, depth))
            return false;
        for (size_t i = 0; i < count && value.kind != ABSENT; i++) {
            if (!is(name, fields[i].name))
                continue;
            if (value.kind != fields[i].kind)
                return false;
            fields[i].value = value;
        }
    } while (take_token(in, ','));
    return take_token(in, '}');
}

static bool read_elements(struct input *in, int depth)
{
    if (take_token(in, ']'))
        return true;
    do {
        struct value value = {0};
        if (!read_value(in, &value, depth))
            return false;
    } while (take_token(in, ','));
    return take_token(in, ']');
}

static bool read_value(struct input *in, struct value *value, int depth)
{
    skip_space(in);
    if (in->at == in->end || depth == 0)
        return false;
    value->kind = OTHER;
    switch (*in->at) {
    case '"':
        in->at++;
        value->kind = STRING;
        return read_string(in, &value->string);
    case '{':
        in->at++;
        return read_members(in, NULL, 0, depth - 1);
    case '[':
        in->at++;
        return read_elements(in, depth - 1);
    case 't':
        value->kind = BOOLEAN;
        value->integer = true;
        return take_word(in, "true");
    case 'f':
        value->kind = BOOLEAN;
        value->integer = false;
        return take_word(in, "false");
    case 'n':
        value->kind = ABSENT;
        return take_word(in, "null");
    default:
        return read_number(in, value);
    }
}

/* Fills in the fields of an object. An empty text, as of a body that was left out, has none, and neither has null.
 * The text is changed by it, and strings point into it. */
static bool read_object(struct text text, struct field *fields, size_t count)
{
    struct input in = {text.at, text.at + text.length};
    if (text.length == 0)
        return true;
    bool good = take_token(&in, '{') ? read_members(&in, fields, count, JSON_DEPTH_MAX) : take_word(&in, "null");
    skip_space(&in);
    return good && in.at == in.end ? true : fail("not the JSON of this protocol");
}

#define READ_OBJECT(text, fields) read_object(text, fields, sizeof(fields) / sizeof((fields)[0]))

/* ---- Writing JSON ---- */

struct buffer {
    unsigned char *at;
    size_t length, capacity;
};

static void reserve(struct buffer *buffer, size_t more)
{
    size_t capacity = buffer->capacity > 0 ? buffer->capacity : 4096;
    while (capacity - buffer->length < more)
        capacity *= 2;
    if (capacity == buffer->capacity)
        return;
    unsigned char *at = realloc(buffer->at, capacity);
    if (at == NULL)
        die(1, "out of memory");
    buffer->at = at;
    buffer->capacity = capacity;
}

static void put(struct buffer *buffer, const void *bytes, size_t length)
{
    reserve(buffer, length);
    memcpy(buffer->at + buffer->length, bytes, length);
    buffer->length += length;
}

static void put_text(struct buffer *buffer, struct text text)
{
    if (text.length > 0)
        put(buffer, text.at, text.length);
}

static void put_string(struct buffer *buffer, struct text string)
{
    put(buffer, "\"", 1);
    for (size_t i = 0, length; i < string.length; i += length > 0 ? length : 1) {
        const unsigned char *at = string.at + i;
        const char *meaning = *at != '\0' && *at != '/' ? strchr(meanings, *at) : NULL;
        char escape[8];
        length = utf8_length(at, string.length - i);
        if (length == 0) /* only of this side's own texts: a path, a credential, a message that was cut off */
            put(buffer, "\xEF\xBF\xBD", 3); /* U+FFFD */
        else if (meaning != NULL)
            put(buffer, escape, (size_t)snprintf(escape, sizeof escape, "\\%c", escapes[meaning - meanings]));
        else if (*at < 0x20)
            put(buffer, escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", *at));
        else
            put(buffer, at, length);
    }
    put(buffer, "\"", 1);
}

static void put_name(struct buffer *buffer, const char *name)
{
    if (buffer->at[buffer->length - 1] != '{')
        put(buffer, ",", 1);
    put_string(buffer, text_of(name));
    put(buffer, ":", 1);
}

static void add_string(struct buffer *buffer, const char *name, struct text string)
{
    put_name(buffer, name);
    put_string(buffer, string);
}

static void add_integer(struct buffer *buffer, const char *name, int64_t integer)
{
    char digits[24];
    put_name(buffer, name);
    put(buffer, digits, (size_t)snprintf(digits, sizeof digits, "%" PRId64, integer));
}

static void add_boolean(struct buffer *buffer, const char *name, bool value)
{
    put_name(buffer, name);
    put(buffer, value ? "true" : "false", value ? 4 : 5);
}

/* ---- Lines on stdout ---- */

static struct buffer line;

static void begin_event(const char *event)
{
    line.length = 0;
    put(&line, "{", 1);
    add_string(&line, "event", text_of(event));
}

static void end_event(void)
{
    put(&line, "}\n", 2);
    if (fwrite(line.at, 1, line.length, stdout) != line.length || fflush(stdout) != 0)
        exit(0); /* nobody reads any more */
}

/* ---- Time and chance ---- */

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int64_t clamp(int64_t value, int64_t least, int64_t most)
{
    return value < least ? least : value > most ? most : value;
}

/* Waits for a socket, or for -1 just for the time. False: it is over. */
static bool wait_until(int64_t until, int socket, short events)
{
    for (;;) {
        struct pollfd poller = {.fd = socket, .events = events};
        int ready = poll(&poller, 1, (int)clamp(until - now_ms(), 0, INT_MAX));
        if (ready > 0)
            return true;
        if (now_ms() >= until)
            return false;
    }
}

/* From half of the doubled time to all of it. From the system's source of chance, since devices that start together
 * after a power cut have the same clock and process number, and would all come back at the same moment. */
static int64_t backoff_ms(int failures)
{
    uint32_t chance = 0;
    FILE *source = fopen("/dev/urandom", "rb");
    if (source == NULL || fread(&chance, sizeof chance, 1, source) != 1)
        chance = (uint32_t)now_ms();
    if (source != NULL)
        fclose(source);
    int64_t most = clamp((int64_t)WAIT_FIRST_MS << clamp(failures, 0, 10), 0, WAIT_LONGEST_MS);
    return most / 2 + chance % (most / 2 + 1);
}

/* ---- A connection ---- */

struct connection {
    int socket;
    bool little_endian;
    int64_t silence_ms; /* a gateway that is silent for longer is gone, whatever TCP says */
    size_t frame_bytes_max; /* that the gateway takes */
    struct buffer input, output;
    size_t taken; /* bytes of `input` that were handed out */
};

enum arrival { ARRIVED, LATE, ENDED, BROKEN };

static bool set_nonblocking(int socket)
{
    int flags = fcntl(socket, F_GETFL), on = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return flags >= 0 && fcntl(socket, F_SETFL, flags | O_NONBLOCK) == 0 && fcntl(socket, F_SETFD, FD_CLOEXEC) == 0;
}

static bool connect_one(int socket, const struct addrinfo *address, int64_t until)
{
    int error = 0;
    socklen_t length = sizeof error;
    if (!set_nonblocking(socket))
        return fail("%s", strerror(errno));
    if (connect(socket, address->ai_addr, address->ai_addrlen) == 0)
        return true;
    if (errno != EINPROGRESS && errno != EINTR)
        return fail("%s", strerror(errno));
    if (!wait_until(until, socket, POLLOUT))
        return fail("no answer in time");
    if (getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &length) != 0 || error != 0)
        return fail("%s", strerror(error != 0 ? error : errno));
    return true;
}

/* HOST:PORT, with an IPv6 address in brackets, into its parts. */
static bool split(struct text address, char host[256], char port[6])
{
    size_t colon = address.length, digits;
    while (colon > 0 && address.at[colon - 1] != ':')
        colon--;
    digits = address.length - colon;
    bool brackets = colon > 2 && address.at[0] == '[' && address.at[colon - 2] == ']';
    size_t begin = brackets ? 1 : 0, length = colon > 1 ? colon - 1 - 2 * begin : 0;
    if (length == 0 || length > 255 || digits == 0 || digits > 5 || memchr(address.at, '\0', address.length) != NULL)
        return fail("no HOST:PORT");
    for (size_t i = colon; i < address.length; i++)
        if (address.at[i] < '0' || address.at[i] > '9')
            return fail("no HOST:PORT");
    memcpy(host, address.at + begin, length);
    host[length] = '\0';
    memcpy(port, address.at + colon, digits);
    port[digits] = '\0';
    return true;
}

static bool open_connection(struct connection *connection, struct text address)
{
    char host[256], port[6];
    if (!split(address, host, port))
        return false;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *all;
    int error = getaddrinfo(host, port, &hints, &all);
    if (error != 0)
        return fail("%s: %s", host, gai_strerror(error));
    int64_t until = now_ms() + CONNECT_MS;
    connection->socket = -1;
    for (struct addrinfo *one = all; one != NULL && connection->socket < 0; one = one->ai_next) {
        int attempt = socket(one->ai_family, one->ai_socktype, one->ai_protocol);
        if (attempt < 0)
            fail("%s", strerror(errno));
        else if (connect_one(attempt, one, until))
            connection->socket = attempt;
        else
            close(attempt);
    }
    freeaddrinfo(all);
    return connection->socket >= 0;
}

static void close_connection(struct connection *connection)
{
    if (connection->socket >= 0)
        close(connection->socket);
    free(connection->input.at);
    free(connection->output.at);
}

/* Sends what is in `output`. */
static bool flush(struct connection *connection)
{
    int64_t until = now_ms() + connection->silence_ms;
    const unsigned char *at = connection->output.at;
    size_t left = connection->output.length;
    while (left > 0) {
        ssize_t sent = send(connection->socket, at, left, MSG_NOSIGNAL);
        if (sent >= 0) {
            at += sent;
            left -= (size_t)sent;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            if (!wait_until(until, connection->socket, POLLOUT))
                return fail("the gateway doesn't read");
        } else if (errno != EINTR) {
            return fail("%s", strerror(errno));
        }
    }
    return true;
}

/* Adds to `input` what comes next. The room grows with what has come, and never by the word of the peer. */
static enum arrival fill(struct connection *connection, int64_t until)
{
    struct buffer *input = &connection->input;
    if (connection->taken > 0) {
        input->length -= connection->taken;
        memmove(input->at, input->at + connection->taken, input->length);
        connection->taken = 0;
    }
    reserve(input, 1);
    for (;;) {
        ssize_t got = recv(connection->socket, input->at + input->length, input->capacity - input->length, 0);
        if (got > 0) {
            input->length += (size_t)got;
            return ARRIVED;
        }
        if (got == 0) {
            fail("the gateway closed the connection");
            return ENDED;
        }
        if (errno == EAGAIN || errno == EWOULDBLOCK) {
            if (!wait_until(until, connection->socket, POLLIN)) {
                fail("the gateway is silent");
                return LATE;
            }
        } else if (errno != EINTR) {
            fail("%s", strerror(errno));
            return BROKEN;
        }
    }
}

/* ---- Frames: a length of four bytes, then that many of JSON ---- */

static uint32_t read_length(const unsigned char at[4], bool little_endian)
{
    uint32_t length = 0;
    for (int i = 0; i < 4; i++)
        length = length << 8 | at[little_endian ? 3 - i : i];
    return length;
}

/* The next frame's message, which stands until the next call. */
static enum arrival receive(struct connection *connection, int64_t until, struct text *message)
{
    for (;;) {
        unsigned char *at = connection->input.at + connection->taken;
        size_t have = connection->input.length - connection->taken;
        if (have >= 4) {
            uint32_t length = read_length(at, connection->little_endian);
            if (length > FRAME_BYTES_MAX) {
                fail("a frame of %" PRIu32 " bytes (is the byte order right?)", length);
                return BROKEN;
            }
            if (have - 4 >= length) {
                *message = (struct text){at + 4, length};
                connection->taken += 4 + (size_t)length;
                return ARRIVED;
            }
        }
        enum arrival arrival = fill(connection, until);
        if (arrival != ARRIVED)
            return arrival;
    }
}

/* Puts one frame into `output`; gives its message's length. */
static size_t encode(struct connection *connection, int64_t seq, const char *uri, struct text body, int v)
{
    struct buffer *output = &connection->output;
    output->length = 0;
    put(output, "\0\0\0\0{", 5);
    if (seq != 0)
        add_integer(output, "seq", seq);
    add_string(output, "uri", text_of(uri));
    if (body.length > 0)
        add_string(output, "body", body);
    if (v != 0)
        add_integer(output, "v", v);
    put(output, "}", 1);
    size_t length = output->length - 4;
    for (int i = 0; i < 4; i++)
        output->at[i] = (unsigned char)(length >> 8 * (connection->little_endian ? i : 3 - i));
    return length;
}

static bool say(struct connection *connection, const char *uri, const char *body, int v)
{
    encode(connection, 0, uri, text_of(body), v);
    return flush(connection);
}

/* ---- What a device does ---- */

struct options {
    const char *gateway, *credential;
    bool echo, little_endian;
};

/* How a login or a connection came out. */
enum outcome { LOST, AUTHENTICATED, KICKED, EXPELLED, REFUSED };

static bool show_error(struct text body)
{
    struct field error[] = {{.name = "reason", .kind = STRING}, {.name = "detail", .kind = STRING}};
    if (!READ_OBJECT(body, error))
        return false;
    begin_event("error");
    add_string(&line, "reason", error[0].value.string);
    add_string(&line, "detail", error[1].value.string);
    end_event();
    return true;
}

/* What to authenticate with. A file is read at each login, so that a new token counts. */
static bool read_credential(const char *source, char credential[CREDENTIAL_BYTES_MAX + 1])
{
    size_t length = strlen(source);
    if (source[0] != '@') {
        if (length > CREDENTIAL_BYTES_MAX)
            return fail("the credential is too long");
        memcpy(credential, source, length + 1);
        return true;
    }
    FILE *file = fopen(source + 1, "rb");
    if (file == NULL)
        return fail("%s: %s", source + 1, strerror(errno));
    length = fread(credential, 1, CREDENTIAL_BYTES_MAX, file);
    bool whole = feof(file) || fgetc(file) == EOF;
    bool good = !ferror(file);
    fclose(file);
    if (!good || !whole)
        return fail("%s: %s", source + 1, good ? "the credential is too long" : "it can't be read");
    if (length > 0 && credential[length - 1] == '\n')
        length--;
    credential[length] = '\0';
    return true;
}

/* Authenticates. `settings` becomes the body of the answer, empty from a gateway that knows only version 1. */
static enum outcome login(struct connection *connection, const struct options *options, struct text *settings)
{
    char credential[CREDENTIAL_BYTES_MAX + 1];
    int64_t until = now_ms() + LOGIN_MS;
    if (!read_credential(options->credential, credential) || !say(connection, "/auth/server", credential, 2))
        return LOST;
    for (;;) {
        struct text message;
        if (receive(connection, until, &message) != ARRIVED)
            return LOST;
        struct field fields[] = {{.name = "uri", .kind = STRING}, {.name = "body", .kind = STRING}};
        if (!READ_OBJECT(message, fields))
            return LOST;
        struct text uri = fields[0].value.string;
        *settings = fields[1].value.string;
        if (is(uri, "/auth/success"))
            return AUTHENTICATED;
        if (is(uri, "/auth/failed")) {
            struct field reason[] = {{.name = "reason", .kind = STRING}};
            if (!READ_OBJECT(*settings, reason))
                return LOST;
            if (!is(reason[0].value.string, "unavailable"))
                return REFUSED;
            fail("the gateway can't check credentials at this time");
            return LOST;
        }
        if (is(uri, "/plex/error") && !show_error(*settings))
            return LOST;
    }
}

/* Tells that a push was taken. A reply that is too long for a frame would end the connection. */
static bool acknowledge(struct connection *connection, int64_t seq, struct text reply)
{
    if (encode(connection, seq, "/plex/ack", reply, 0) > connection->frame_bytes_max)
        encode(connection, seq, "/plex/nack", text_of("the reply is too long"), 0);
    return flush(connection);
}

/* One connection, from its login to its end. `after_ms` becomes how long a kick told to wait, where one did. */
static enum outcome live(struct connection *connection, const struct options *options, struct text address,
                         int64_t *after_ms)
{
    struct text body;
    enum outcome outcome = login(connection, options, &body);
    if (outcome != AUTHENTICATED)
        return outcome;
    struct field settings[] = {
        {.name = "node", .kind = STRING},
        {.name = "heartbeat_seconds", .kind = INTEGER, .value.integer = 60},
        {.name = "heartbeat_timeout_seconds", .kind = INTEGER, .value.integer = 120},
        {.name = "max_frame_bytes", .kind = INTEGER, .value.integer = 64 << 10},
    };
    if (!READ_OBJECT(body, settings))
        return LOST;
    begin_event("connected");
    add_string(&line, "address", address);
    add_string(&line, "node", settings[0].value.string);
    end_event();

    connection->silence_ms = clamp(settings[2].value.integer, 1, 86400) * 1000;
    connection->frame_bytes_max = (size_t)clamp(settings[3].value.integer, 0, FRAME_BYTES_MAX);
    /* Both are told in whole seconds, rounded up, so a heartbeat goes out twice in the time-out at least. */
    int64_t beat_ms = clamp(clamp(settings[1].value.integer, 0, 86400) * 1000, 100, connection->silence_ms / 2);
    int64_t heard = now_ms(), beat = heard + beat_ms;
    for (;;) {
        if (now_ms() >= beat) {
            if (!say(connection, "/heartbeat", "", 0))
                return LOST;
            beat = now_ms() + beat_ms;
        }
        struct text message;
        int64_t silent = heard + connection->silence_ms;
        enum arrival arrival = receive(connection, beat < silent ? beat : silent, &message);
        if (arrival == LATE && now_ms() < silent)
            continue;
        if (arrival != ARRIVED)
            return LOST;
        heard = now_ms();

        struct field fields[] = {
            {.name = "seq", .kind = INTEGER},
            {.name = "uri", .kind = STRING},
            {.name = "body", .kind = STRING},
        };
        if (!READ_OBJECT(message, fields))
            return LOST;
        int64_t seq = fields[0].value.integer;
        struct text uri = fields[1].value.string;
        body = fields[2].value.string;
        if (is(uri, "/plex/kick")) {
            struct field kick[] = {
                {.name = "reason", .kind = STRING},
                {.name = "reconnect", .kind = BOOLEAN, .value.integer = true},
                {.name = "after_ms", .kind = INTEGER},
            };
            if (!READ_OBJECT(body, kick))
                return LOST;
            struct text reason = kick[0].value.string;
            bool reconnect = kick[1].value.integer;
            begin_event("kick");
            add_string(&line, "reason", reason);
            add_boolean(&line, "reconnect", reconnect);
            add_integer(&line, "after_ms", kick[2].value.integer);
            end_event();
            if (kick[2].value.kind != ABSENT)
                *after_ms = clamp(kick[2].value.integer, 0, INT_MAX);
            if (reconnect) {
                fail("kicked");
                return KICKED;
            }
            fail("told not to come back: %.*s", (int)clamp((int64_t)reason.length, 0, 100),
                 reason.length > 0 ? (const char *)reason.at : "");
            return EXPELLED;
        }
        if (is(uri, "/plex/error")) {
            if (!show_error(body))
                return LOST;
        } else if (uri.length > 0 && !is(uri, "/heartbeat") && !begins(uri, "/auth/") && !begins(uri, "/plex/")) {
            /* A device with something to do does it here: the ack says that it is done. */
            begin_event("push");
            add_integer(&line, "seq", seq);
            add_string(&line, "uri", uri);
            add_string(&line, "body", body);
            end_event();
            if (!acknowledge(connection, seq, options->echo ? body : text_of("")))
                return LOST;
        }
    }
}

/* Asks http://HOST:PORT where to connect; `address` stands as long as the connection's buffers. */
static bool look_up(struct connection *http, const char *url, struct text *address)
{
    int64_t until = now_ms() + CONNECT_MS;
    struct text path = text_of(url + strlen("http://")), host = {path.at, strcspn((const char *)path.at, "/")};
    while (path.length > host.length && path.at[path.length - 1] == '/')
        path.length--;
    path.at += host.length;
    path.length -= host.length;
    if (!open_connection(http, host))
        return false;
    put_text(&http->output, text_of("GET "));
    put_text(&http->output, path);
    put_text(&http->output, text_of("/plex/v1/host HTTP/1.0\r\nHost: "));
    put_text(&http->output, host);
    put_text(&http->output, text_of("\r\n\r\n"));
    if (!flush(http))
        return false;
    enum arrival arrival = ARRIVED;
    while (arrival == ARRIVED && http->input.length < ANSWER_BYTES_MAX)
        arrival = fill(http, until);
    if (arrival == ARRIVED)
        return fail("the answer to the look-up is too long");
    if (arrival != ENDED)
        return false;
    put(&http->input, "", 1); /* for strstr */
    const char *answer = (const char *)http->input.at, *end = strstr(answer, "\r\n\r\n");
    if (strncmp(answer, "HTTP/1.", 7) != 0 || strlen(answer) < 12 || end == NULL)
        return fail("the look-up wasn't answered in HTTP");
    if (strncmp(answer + 8, " 200", 4) != 0)
        return fail("the look-up was answered with%.4s", answer + 8);
    size_t head = (size_t)(end + 4 - answer);
    struct text body = {http->input.at + head, http->input.length - 1 - head};
    struct field found[] = {{.name = "host", .kind = STRING}};
    if (!READ_OBJECT(body, found))
        return false;
    *address = found[0].value.string;
    return true;
}

/* Finds a gateway, connects, and is a device there until the end of that connection. */
static enum outcome visit(const struct options *options, int64_t *after_ms)
{
    struct connection http = {.socket = -1, .silence_ms = CONNECT_MS};
    struct connection device = {.socket = -1, .silence_ms = LOGIN_MS, .little_endian = options->little_endian};
    struct text address = text_of(options->gateway);
    enum outcome outcome = LOST;
    /* Asked each time: the answer changes. */
    if ((strstr(options->gateway, "://") == NULL || look_up(&http, options->gateway, &address)) &&
        open_connection(&device, address))
        outcome = live(&device, options, address, after_ms);
    close_connection(&device);
    close_connection(&http);
    return outcome;
}

static void usage(FILE *to)
{
    fputs("usage: device [--echo] [--little-endian] GATEWAY CREDENTIAL\n"
          "  GATEWAY          HOST:PORT, or the URL to ask for that: http://HOST:9579\n"
          "  CREDENTIAL       what to authenticate with; @FILE: what that file holds at each login\n"
          "  --echo           reply to each push with its own body\n"
          "  --little-endian  for a gateway with device.little_endian\n",
          to);
}

static bool read_arguments(int count, char **arguments, struct options *options)
{
    char host[256], port[6];
    for (int i = 1; i < count; i++) {
        if (strcmp(arguments[i], "--help") == 0) {
            usage(stdout);
            exit(0);
        }
        if (strcmp(arguments[i], "--echo") == 0)
            options->echo = true;
        else if (strcmp(arguments[i], "--little-endian") == 0)
            options->little_endian = true;
        else if (arguments[i][0] == '-')
            return fail("what is %s?", arguments[i]);
        else if (options->gateway == NULL)
            options->gateway = arguments[i];
        else if (options->credential == NULL)
            options->credential = arguments[i];
        else
            return fail("too many arguments");
    }
    if (options->credential == NULL)
        return fail("GATEWAY and CREDENTIAL are needed");
    if (strstr(options->gateway, "://") == NULL)
        return split(text_of(options->gateway), host, port);
    return strncmp(options->gateway, "http://", 7) == 0 || fail("of URLs only http:// is spoken here");
}

int main(int count, char **arguments)
{
    struct options options = {0};
    if (!read_arguments(count, arguments, &options)) {
        fprintf(stderr, "device: %s\n", problem);
        usage(stderr);
        return 2;
    }
    for (int failures = 0;;) {
        int64_t begun = now_ms(), wait = -1;
        enum outcome outcome = visit(&options, &wait);
        if (outcome == EXPELLED)
            die(1, problem);
        if (outcome == REFUSED)
            die(3, "the credential is refused");
        begin_event("closed");
        add_string(&line, "detail", text_of(problem));
        end_event();
        /* A connection that lasted was a good one. Not every one is: a gateway that takes a device and loses it at once
         * must not be hammered. */
        if (now_ms() - begun > WAIT_LONGEST_MS)
            failures = 0;
        if (wait < 0)
            wait = backoff_ms(failures++);
        begin_event("waiting");
        add_integer(&line, "ms", wait);
        end_event();
        wait_until(now_ms() + wait, -1, 0);
    }
}
