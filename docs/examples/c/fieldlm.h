/* fieldlm.h - ask a fieldlm server on this machine from C99 or C++, over its unix socket; libc is all it needs.

   One .c file of a program defines FIELDLM_IMPLEMENTATION before it includes this file, the others include it alone.
   Include it before any system header, or compile with -D_POSIX_C_SOURCE=200809L.

       static int on_text(void *context, const char *text, size_t length) {
           fwrite(text, 1, length, stdout);
           return 0;                           (a positive number stops the answer)
       }
       fieldlm_request request = {0};
       request.prompt = "Where is the charging station?";
       fieldlm_answer answer;
       if (fieldlm_ask(&answer, "/run/fieldlm/fieldlm.sock", &request, on_text, NULL) < 0)
           fprintf(stderr, "%s\n", answer.error);

   A control loop that may not wait uses fieldlm_open, then fieldlm_next with a timeout of 0 in every turn (answer.fd is
   there for poll), then fieldlm_close. Closing is cancelling: the server stops computing. Nothing is allocated, no
   signal is raised, no clock but the monotonic one is read. An answer belongs to one thread; fieldlm_cancel alone may
   be called from another one or from a signal handler.

   An answer that ended before it was whole (a deadline, a server that went away) is an error, never a short answer.
   Apache-2.0. */

#ifndef FIELDLM_H
#define FIELDLM_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef FIELDLM_EVENT_BYTES
#define FIELDLM_EVENT_BYTES 65536 /* of one event at most: a piece of an answer, all of a fallback, an error */
#endif

enum { FIELDLM_ERROR = -1, FIELDLM_END = 0, FIELDLM_TEXT = 1, FIELDLM_WAIT = 2 };

/* What is asked; zero it first. Texts are UTF-8. */
typedef struct fieldlm_request {
    const char *prompt;   /* what the user says */
    const char *system;   /* NULL: the bundle's own */
    const char *messages; /* a conversation as a JSON array, in place of prompt and system */
    const char *model;    /* NULL: the device's own */
    const char *fields;   /* more members of the request as JSON: "\"deadline_ms\":500,\"priority\":\"safety\"" */
    int max_tokens;       /* 0: the server's own bound */
    int silence_ms;       /* fieldlm_ask gives up after so long without a piece; 0: 60 s, negative: never */
} fieldlm_request;

/* A running answer. Read fd, status, finish_reason and error; the rest is this file's own. */
typedef struct fieldlm_answer {
    int fd;                 /* for poll(POLLIN); -1 when closed */
    int status;             /* HTTP's, once it is known */
    char finish_reason[24]; /* "stop", "length", "tool_calls"; empty before the end */
    char error[256];        /* one line, after FIELDLM_ERROR */
    int state, is_chunked, is_stream, is_done;
    long long left;   /* bytes of the body, or of this chunk, that have not come; -1: unknown */
    char head[512];   /* a line of the head, or of what stands between chunks */
    size_t line_end, raw_at, raw_end;
    char raw[4096];                 /* as received */
    char line[FIELDLM_EVENT_BYTES]; /* of the stream; what is no stream, whole */
} fieldlm_answer;

/* Called with every piece, not terminated; returns 0 to go on, a positive number to stop the answer. */
typedef int (*fieldlm_on_text)(void *context, const char *text, size_t length);

/* Send a request. Returns 0, or FIELDLM_ERROR: then the answer is closed already. */
int fieldlm_open(fieldlm_answer *answer, const char *socket_path, const fieldlm_request *request);

/* Wait up to timeout_ms (0: not at all, negative: for ever) for the next piece. Returns FIELDLM_TEXT with a piece that is
   good until the next call; FIELDLM_WAIT; FIELDLM_END when the answer is whole; FIELDLM_ERROR. */
int fieldlm_next(fieldlm_answer *answer, const char **text, size_t *length, int timeout_ms);

/* Free the socket; a running answer is cancelled. May be called twice. */
void fieldlm_close(fieldlm_answer *answer);

/* End a running answer from another thread or a signal handler, while its own has not closed it; next is an error then. */
void fieldlm_cancel(fieldlm_answer *answer);

/* All of the above. Returns FIELDLM_END, FIELDLM_ERROR, or what on_text returned to stop. */
int fieldlm_ask(fieldlm_answer *answer, const char *socket_path, const fieldlm_request *request, fieldlm_on_text on_text,
                void *context);

/* Write text as the inside of a JSON string, terminated. Returns the bytes needed, as snprintf does; bytes that are no
   UTF-8 become U+FFFD. */
size_t fieldlm_escape(char *into, size_t size, const char *text);

#ifdef __cplusplus
}
#endif
#endif /* FIELDLM_H */

#if defined(FIELDLM_IMPLEMENTATION) && !defined(FIELDLM_IMPLEMENTED)
#define FIELDLM_IMPLEMENTED

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { FIELDLM_STATUS_LINE, FIELDLM_HEADERS, FIELDLM_BODY, FIELDLM_CHUNK_HEAD, FIELDLM_CHUNK_TAIL, FIELDLM_TRAILERS };
enum { FIELDLM_SEND_S = 10, FIELDLM_SILENCE_MS = 60000, FIELDLM_DEEPEST = 64 };

/* ---- JSON, written ---- */

/* Return how many bytes at s are one character of UTF-8, 0 where they are none: too long, too high, a surrogate, cut. */
static int fieldlm__utf8(const unsigned char *s) {
    static const unsigned least[5] = {0, 0, 0x80, 0x800, 0x10000};
    int i, bytes = s[0] < 0x80 ? 1 : s[0] < 0xC0 ? 0 : s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : s[0] < 0xF8 ? 4 : 0;
    unsigned code;
    if (bytes < 2) return bytes;
    code = s[0] & (0x7Fu >> bytes);
    for (i = 1; i < bytes; i++) {
        if ((s[i] & 0xC0) != 0x80) return 0; /* the zero at the end is such a byte, so nothing behind it is read */
        code = code << 6 | (s[i] & 0x3Fu);
    }
    return code < least[bytes] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000) ? 0 : bytes;
}

static int fieldlm__fail(fieldlm_answer *answer, const char *what, const char *why) {
    char *c = answer->error;
    snprintf(answer->error, sizeof answer->error, "%s%s%s", what, *why ? ": " : "", why);
    while (*c) { /* one line of UTF-8, whatever a server says and wherever it was cut */
        int taken = fieldlm__utf8((unsigned char *)c);
        if (!taken || (unsigned char)*c < ' ' || *c == 0x7F) *c = taken ? ' ' : '?';
        c += taken ? taken : 1;
    }
    fieldlm_close(answer);
    return FIELDLM_ERROR;
}

size_t fieldlm_escape(char *into, size_t size, const char *text) {
    const unsigned char *s = (const unsigned char *)text;
    size_t need = 0;
    int is_full = size == 0; /* what did not fit ends the text: no half of a character is written */
    while (*s) {
        char piece[8];
        int i, taken = fieldlm__utf8(s), made;
        if (*s < ' ' || *s == 0x7F) {
            made = snprintf(piece, sizeof piece, "\\u%04x", (unsigned)*s);
        } else if (*s == '"' || *s == '\\') {
            piece[0] = '\\';
            piece[1] = (char)*s;
            made = 2;
        } else if (taken) {
            memcpy(piece, s, (size_t)(made = taken));
        } else {
            memcpy(piece, "\xEF\xBF\xBD", (size_t)(made = 3));
        }
        if (need + (size_t)made >= size) is_full = 1;
        for (i = 0; !is_full && i < made; i++) into[need + (size_t)i] = piece[i];
        if (!is_full) into[need + (size_t)made] = 0;
        need += (size_t)made;
        s += taken ? taken : 1;
    }
    if (size && !need) into[0] = 0;
    return need;
}

/* ---- JSON, read: NULL is what cannot be read, and passes through every function ---- */

static const char *fieldlm__space(const char *s, const char *end) {
    while (s && s < end && (*s == ' ' || *s == '\t' || *s == '\n' || *s == '\r')) s++;
    return s && s < end ? s : NULL;
}

static const char *fieldlm__skip_string(const char *s, const char *end) {
    if (!s || s >= end || *s != '"') return NULL;
    for (s++; s < end; s++) {
        if (*s == '"') return s + 1;
        if (*s == '\\') s++;
    }
    return NULL;
}

/* Return what follows the value at s. */
static const char *fieldlm__skip(const char *s, const char *end) {
    int depth = 0;
    while ((s = fieldlm__space(s, end))) {
        if (*s == '"') {
            if (!(s = fieldlm__skip_string(s, end))) return NULL;
        } else if (*s == '{' || *s == '[') {
            if (++depth > FIELDLM_DEEPEST) return NULL;
            s++;
        } else if (*s == '}' || *s == ']') {
            if (--depth < 0) return NULL;
            s++;
        } else if (*s == ',' || *s == ':') {
            if (!depth) return NULL;
            s++;
            continue;
        } else {
            while (s < end && !strchr(",:{}[]\" \t\r\n", *s)) s++;
            if (s < end && *s == '\0') return NULL;
        }
        if (!depth) return s;
    }
    return NULL;
}

/* Return the value of a member of the object at s. Names are compared as written: the server escapes none of its own. */
static const char *fieldlm__member(const char *s, const char *end, const char *name) {
    size_t length = strlen(name);
    if (!(s = fieldlm__space(s, end)) || *s != '{') return NULL;
    s++;
    while ((s = fieldlm__space(s, end)) && *s == '"') {
        const char *key = s + 1;
        int is_it;
        if (!(s = fieldlm__skip_string(s, end))) return NULL;
        is_it = (size_t)(s - 1 - key) == length && !memcmp(key, name, length);
        if (!(s = fieldlm__space(s, end)) || *s != ':') return NULL;
        if (!(s = fieldlm__space(s + 1, end)) || is_it) return s;
        s = fieldlm__space(fieldlm__skip(s, end), end);
        if (!s || *s != ',') return NULL;
        s++;
    }
    return NULL;
}

static const char *fieldlm__first(const char *s, const char *end) {
    s = fieldlm__space(s, end);
    return s && *s == '[' ? fieldlm__space(s + 1, end) : NULL;
}

static int fieldlm__hex4(const char *s, const char *end, unsigned *code) {
    int i;
    *code = 0;
    for (i = 0; i < 4; i++, s++) {
        static const char digits[] = "0123456789abcdef0123456789ABCDEF";
        const char *digit = s < end && *s ? strchr(digits, *s) : NULL;
        if (!digit) return 0;
        *code = *code << 4 | (unsigned)((digit - digits) & 15);
    }
    return 1;
}

/* Decode the string at s into `into`, terminated, cut at size. Returns its bytes, -1 where s is no string. `into` may be
   s itself: what is decoded is never longer. */
static long fieldlm__string(const char *s, const char *end, char *into, size_t size) {
    static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
    size_t made = 0;
    if (!s || s >= end || *s++ != '"') return -1;
    while (s < end && *s != '"') {
        char piece[4];
        size_t bytes = 1;
        const char *named;
        unsigned code, low;
        if (*s != '\\') {
            piece[0] = *s++;
        } else if (++s >= end || !*s) {
            return -1;
        } else if (*s != 'u') {
            named = strchr(from, *s);
            piece[0] = named ? to[named - from] : *s;
            s++;
        } else {
            if (!fieldlm__hex4(s + 1, end, &code)) return -1;
            s += 5;
            if (code >= 0xD800 && code < 0xDC00 && end - s > 6 && s[0] == '\\' && s[1] == 'u' &&
                fieldlm__hex4(s + 2, end, &low) && low >= 0xDC00 && low < 0xE000) {
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                s += 6;
            } else if (code >= 0xD800 && code < 0xE000) {
                code = 0xFFFD;
            }
            bytes = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
            if (bytes == 1) {
                piece[0] = (char)code;
            } else {
                size_t i;
                for (i = bytes - 1; i > 0; i--, code >>= 6) piece[i] = (char)(0x80 | (code & 0x3F));
                piece[0] = (char)((0xF00u >> bytes & 0xF0u) | code);
            }
        }
        if (made + bytes < size) memcpy(into + made, piece, bytes);
        else size = made + 1; /* no later character, however short, may follow one that is missing */
        if (made + bytes < size) made += bytes;
    }
    if (s >= end) return -1;
    if (size) into[made] = 0;
    return (long)made;
}

/* ---- asking ---- */

/* The body is written twice: into nothing, to learn how long it is, and to the server. */
typedef struct fieldlm__out {
    fieldlm_answer *answer; /* NULL: count */
    size_t bytes, held;
    int is_broken;
    char hold[2048];
} fieldlm__out;

static void fieldlm__flush(fieldlm__out *out) {
    size_t at = 0;
    while (out->answer && !out->is_broken && at < out->held) {
        ssize_t sent = send(out->answer->fd, out->hold + at, out->held - at, MSG_NOSIGNAL);
        if (sent > 0) at += (size_t)sent;
        else if (sent == 0 || errno != EINTR) out->is_broken = 1;
    }
    out->held = 0;
}

static void fieldlm__put(fieldlm__out *out, const char *text) {
    for (; *text; text++) {
        out->hold[out->held++] = *text;
        out->bytes++;
        if (out->held == sizeof out->hold) fieldlm__flush(out);
    }
}

static void fieldlm__put_string(fieldlm__out *out, const char *text) {
    const unsigned char *s = (const unsigned char *)text;
    fieldlm__put(out, "\"");
    while (*s) {
        char one[5] = {0}, escaped[16];
        int taken = fieldlm__utf8(s);
        memcpy(one, s, (size_t)(taken ? taken : 1));
        fieldlm_escape(escaped, sizeof escaped, one);
        fieldlm__put(out, escaped);
        s += taken ? taken : 1;
    }
    fieldlm__put(out, "\"");
}

static void fieldlm__put_body(fieldlm__out *out, const fieldlm_request *request) {
    char number[32];
    fieldlm__put(out, "{\"stream\":true,\"messages\":");
    if (request->messages) {
        fieldlm__put(out, request->messages);
    } else {
        fieldlm__put(out, "[");
        if (request->system) {
            fieldlm__put(out, "{\"role\":\"system\",\"content\":");
            fieldlm__put_string(out, request->system);
            fieldlm__put(out, "},");
        }
        fieldlm__put(out, "{\"role\":\"user\",\"content\":");
        fieldlm__put_string(out, request->prompt ? request->prompt : "");
        fieldlm__put(out, "}]");
    }
    if (request->model) {
        fieldlm__put(out, ",\"model\":");
        fieldlm__put_string(out, request->model);
    }
    if (request->max_tokens) {
        snprintf(number, sizeof number, ",\"max_tokens\":%d", request->max_tokens);
        fieldlm__put(out, number);
    }
    if (request->fields && *request->fields) {
        fieldlm__put(out, ",");
        fieldlm__put(out, request->fields);
    }
    fieldlm__put(out, "}");
}

static int fieldlm__connect(fieldlm_answer *answer, const char *path) {
    struct sockaddr_un address;
    struct timeval patience;
    int done;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    if (strlen(path) >= sizeof address.sun_path) return fieldlm__fail(answer, "the socket's path is too long", path);
    memcpy(address.sun_path, path, strlen(path));
    answer->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (answer->fd < 0) return fieldlm__fail(answer, "no socket", strerror(errno));
    patience.tv_sec = FIELDLM_SEND_S;
    patience.tv_usec = 0;
    setsockopt(answer->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience); /* connect waits as long, too */
    do {
        done = connect(answer->fd, (struct sockaddr *)&address, sizeof address);
    } while (done < 0 && errno == EINTR);
    return done < 0 ? fieldlm__fail(answer, "no server answers on the socket", strerror(errno)) : 0;
}

int fieldlm_open(fieldlm_answer *answer, const char *socket_path, const fieldlm_request *request) {
    fieldlm__out out;
    char head[200];
    memset(answer, 0, offsetof(fieldlm_answer, raw));
    answer->fd = -1;
    if (fieldlm__connect(answer, socket_path) < 0) return FIELDLM_ERROR;
    memset(&out, 0, sizeof out);
    fieldlm__put_body(&out, request);
    snprintf(head, sizeof head,
             "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
             "Connection: close\r\nContent-Length: %lu\r\n\r\n",
             (unsigned long)out.bytes);
    memset(&out, 0, sizeof out);
    out.answer = answer;
    fieldlm__put(&out, head);
    fieldlm__put_body(&out, request);
    fieldlm__flush(&out);
    /* A server that refuses a request may say so before it has read it: what it said is worth more than this. */
    if (out.is_broken && errno != EPIPE && errno != ECONNRESET)
        return fieldlm__fail(answer, "the request could not be sent", strerror(errno));
    return 0;
}

/* ---- reading ---- */

static long long fieldlm__now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Return whether the line begins with a header's name; its value follows. */
static const char *fieldlm__header(const char *line, const char *name) {
    for (; *name; name++, line++)
        if ((*line >= 'A' && *line <= 'Z' ? *line + 32 : *line) != *name) return NULL;
    while (*line == ' ' || *line == '\t') line++;
    return line;
}

/* Take a line of the head, without its end. Returns 0, or FIELDLM_ERROR. */
static int fieldlm__head_line(fieldlm_answer *answer) {
    const char *value;
    char *after;
    if (answer->state == FIELDLM_STATUS_LINE) {
        if (strncmp(answer->head, "HTTP/1.", 7) || !(value = strchr(answer->head, ' ')))
            return fieldlm__fail(answer, "what answers on the socket is no HTTP server", "");
        answer->status = atoi(value);
        answer->left = -1;
        answer->is_chunked = answer->is_stream = 0;
        answer->state = FIELDLM_HEADERS;
    } else if (answer->state == FIELDLM_CHUNK_HEAD) {
        errno = 0;
        answer->left = strtoll(answer->head, &after, 16);
        if (after == answer->head || errno || answer->left < 0) return fieldlm__fail(answer, "a chunk has no length", "");
        answer->state = answer->left ? FIELDLM_BODY : FIELDLM_TRAILERS;
    } else if (answer->state == FIELDLM_CHUNK_TAIL) {
        if (*answer->head) return fieldlm__fail(answer, "a chunk is longer than it says", "");
        answer->state = FIELDLM_CHUNK_HEAD;
    } else if (answer->state == FIELDLM_TRAILERS) {
        answer->is_done |= !*answer->head;
    } else if (*answer->head) {
        if ((value = fieldlm__header(answer->head, "transfer-encoding:"))) answer->is_chunked = !strncmp(value, "chunked", 7);
        if ((value = fieldlm__header(answer->head, "content-length:"))) answer->left = strtoll(value, NULL, 10);
        if ((value = fieldlm__header(answer->head, "content-type:"))) answer->is_stream = !strncmp(value, "text/event-stream", 17);
    } else if (answer->status < 200) {
        answer->state = FIELDLM_STATUS_LINE; /* 102: the server still works on it */
    } else {
        answer->state = answer->is_chunked ? FIELDLM_CHUNK_HEAD : FIELDLM_BODY;
        answer->is_done = !answer->is_chunked && answer->left == 0;
    }
    answer->head[0] = 0;
    return 0;
}

/* Take one byte of the body. Returns 1 when it ends a line of a stream, which is in answer->line then. */
static int fieldlm__body_byte(fieldlm_answer *answer, char byte) {
    int is_line = answer->is_stream && byte == '\n';
    if (!is_line && answer->line_end < sizeof answer->line) answer->line[answer->line_end++] = byte;
    if (answer->left > 0 && --answer->left == 0) {
        if (answer->is_chunked) answer->state = FIELDLM_CHUNK_TAIL;
        else answer->is_done = 1;
    }
    return is_line;
}

/* Take what was received, up to the end of a line of a stream. Returns 1 with one, 0 when more is needed, FIELDLM_ERROR. */
static int fieldlm__feed(fieldlm_answer *answer) {
    while (answer->raw_at < answer->raw_end && !answer->is_done) {
        char byte = answer->raw[answer->raw_at++];
        if (answer->state == FIELDLM_BODY) {
            if (fieldlm__body_byte(answer, byte)) return 1;
        } else if (byte != '\n') {
            size_t length = strlen(answer->head);
            if (byte != '\r' && byte && length + 1 < sizeof answer->head) { /* of a longer line the rest tells nothing */
                answer->head[length] = byte;
                answer->head[length + 1] = 0;
            }
        } else if (fieldlm__head_line(answer) < 0) {
            return FIELDLM_ERROR;
        }
    }
    return 0;
}

static int fieldlm__refused(fieldlm_answer *answer, const char *json, const char *end) {
    char why[200];
    const char *error = fieldlm__member(json, end, "error"), *message = fieldlm__member(error, end, "message");
    char status[32];
    if (fieldlm__string(message, end, why, sizeof why) < 0) why[0] = 0;
    snprintf(status, sizeof status, "the server answered %d", answer->status);
    return answer->status == 200 && *why ? fieldlm__fail(answer, why, "") : fieldlm__fail(answer, status, why);
}

/* Read the event in answer->line. Returns FIELDLM_TEXT, FIELDLM_END, FIELDLM_ERROR, or FIELDLM_WAIT: it said nothing. */
static int fieldlm__event(fieldlm_answer *answer, const char **text, size_t *length) {
    char *line = answer->line;
    const char *end = line + answer->line_end, *choice, *json = line + 5;
    long made;
    if (answer->line_end == sizeof answer->line) return fieldlm__fail(answer, "an event is longer than FIELDLM_EVENT_BYTES", "");
    if (answer->line_end < 5 || memcmp(line, "data:", 5)) return FIELDLM_WAIT; /* a comment, an empty line */
    while (json < end && *json == ' ') json++;
    if (end - json >= 6 && !memcmp(json, "[DONE]", 6)) {
        if (!*answer->finish_reason) return fieldlm__fail(answer, "the answer ended without a reason", "");
        fieldlm_close(answer);
        return FIELDLM_END;
    }
    if (!fieldlm__skip(json, end)) return fieldlm__fail(answer, "an event is no JSON", "");
    if (fieldlm__member(json, end, "error")) return fieldlm__refused(answer, json, end);
    choice = fieldlm__first(fieldlm__member(json, end, "choices"), end);
    fieldlm__string(fieldlm__member(choice, end, "finish_reason"), end, answer->finish_reason, sizeof answer->finish_reason);
    made = fieldlm__string(fieldlm__member(fieldlm__member(choice, end, "delta"), end, "content"), end, line, sizeof answer->line);
    if (made <= 0) return FIELDLM_WAIT;
    *text = line;
    *length = (size_t)made;
    return FIELDLM_TEXT;
}

int fieldlm_next(fieldlm_answer *answer, const char **text, size_t *length, int timeout_ms) {
    long long until_ms = timeout_ms > 0 ? fieldlm__now_ms() + timeout_ms : 0;
    if (answer->fd < 0) return *answer->error || !*answer->finish_reason ? FIELDLM_ERROR : FIELDLM_END;
    for (;;) {
        struct pollfd ready;
        ssize_t got;
        long long left_ms = timeout_ms > 0 ? until_ms - fieldlm__now_ms() : timeout_ms;
        int is_line = fieldlm__feed(answer), said = FIELDLM_WAIT;
        if (is_line < 0) return FIELDLM_ERROR;
        if (is_line) {
            said = fieldlm__event(answer, text, length);
            answer->line_end = 0;
            if (said != FIELDLM_WAIT) return said;
            continue;
        }
        if (answer->is_done && !answer->is_stream) return fieldlm__refused(answer, answer->line, answer->line + answer->line_end);
        if (answer->is_done) return fieldlm__fail(answer, "the answer was cut off", "");
        ready.fd = answer->fd;
        ready.events = POLLIN;
        got = poll(&ready, 1, left_ms > INT_MAX ? INT_MAX : left_ms < 0 && timeout_ms >= 0 ? 0 : (int)left_ms);
        if (got == 0 && (timeout_ms >= 0 && left_ms <= 0)) return FIELDLM_WAIT;
        if (got <= 0) {
            if (got < 0 && errno != EINTR) return fieldlm__fail(answer, "the socket cannot be read", strerror(errno));
            continue;
        }
        got = recv(answer->fd, answer->raw, sizeof answer->raw, MSG_DONTWAIT);
        if (got < 0 && (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK)) continue;
        if (got < 0) return fieldlm__fail(answer, "the socket cannot be read", strerror(errno));
        if (got == 0 && (answer->is_chunked || answer->left >= 0 || answer->state != FIELDLM_BODY))
            return fieldlm__fail(answer, "the server went away before the answer was whole", "");
        answer->is_done |= got == 0;
        answer->raw_at = 0;
        answer->raw_end = (size_t)got;
    }
}

void fieldlm_close(fieldlm_answer *answer) {
    if (answer->fd >= 0) close(answer->fd);
    answer->fd = -1;
}

void fieldlm_cancel(fieldlm_answer *answer) {
    if (answer->fd >= 0) shutdown(answer->fd, SHUT_RDWR);
}

int fieldlm_ask(fieldlm_answer *answer, const char *socket_path, const fieldlm_request *request, fieldlm_on_text on_text,
                void *context) {
    int said, stop = 0;
    const char *text;
    size_t length;
    int silence_ms = request->silence_ms ? request->silence_ms : FIELDLM_SILENCE_MS;
    if (fieldlm_open(answer, socket_path, request) < 0) return FIELDLM_ERROR;
    while ((said = fieldlm_next(answer, &text, &length, silence_ms)) == FIELDLM_TEXT)
        if (on_text && (stop = on_text(context, text, length))) break;
    if (said == FIELDLM_WAIT) return fieldlm__fail(answer, "the server has said nothing for too long", "");
    fieldlm_close(answer);
    return stop ? stop : said;
}

#endif /* FIELDLM_IMPLEMENTATION */
