/* Drives docs/examples/c/fieldlm.h for tests/docs/test_c_header.py.

   escape: texts from stdin, each ended by a zero, back with an end each.
   read: answers off the wire from stdin, each as two numbers in text and bytes ("CUT LENGTH\n" BYTES): what comes before
   the cut is read without waiting before the rest is there. A line for each: result, pieces, reason, text, error. */

#define FIELDLM_IMPLEMENTATION
#include "fieldlm.h"

static char given[1 << 20], text[1 << 17], escaped[1 << 19];
static fieldlm_answer answer;

static int escape(void) {
    size_t length = fread(given, 1, sizeof given - 1, stdin), at = 0;
    for (; at < length; at += strlen(given + at) + 1) {
        char few[8];
        size_t need = fieldlm_escape(escaped, sizeof escaped, given + at), few_need = fieldlm_escape(few, sizeof few, given + at);
        if (need != strlen(escaped) || need != few_need || strlen(few) >= sizeof few || strncmp(few, escaped, strlen(few))) return 1;
        fwrite(escaped, 1, need + 1, stdout);
    }
    return 0;
}

static int take(size_t *made, int *pieces) {
    const char *piece;
    size_t length;
    int said;
    while ((said = fieldlm_next(&answer, &piece, &length, 0)) == FIELDLM_TEXT) {
        if (*made + length < sizeof text) memcpy(text + *made, piece, length), *made += length;
        ++*pieces;
    }
    return said;
}

static void put(const char *what) {
    fieldlm_escape(escaped, sizeof escaped, what);
    printf("\t\"%s\"", escaped);
}

static int all_of(int fd, const char *bytes, size_t length) {
    size_t at = 0;
    while (at < length) {
        ssize_t sent = send(fd, bytes + at, length - at, MSG_NOSIGNAL);
        if (sent <= 0) return 0;
        at += (size_t)sent;
    }
    return 1;
}

static int read_answers(void) {
    unsigned cut, length;
    while (scanf("%u %u", &cut, &length) == 2 && getchar() == '\n') {
        int ends[2], size = 1 << 20, said, pieces = 0;
        size_t made = 0;
        if (length > sizeof given || cut > length || fread(given, 1, length, stdin) != length) return 1;
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) return 1;
        setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        memset(&answer, 0, sizeof answer);
        answer.fd = ends[0];
        if (!all_of(ends[1], given, cut)) return 1;
        said = take(&made, &pieces);
        if (said == FIELDLM_WAIT) {
            if (!all_of(ends[1], given + cut, length - cut)) return 1;
            shutdown(ends[1], SHUT_WR);
            said = take(&made, &pieces);
        }
        close(ends[1]);
        if (said != FIELDLM_END && said != FIELDLM_ERROR) return 1;
        if (answer.fd >= 0) return 1; /* either leaves nothing open */
        text[made] = 0;
        printf("%d\t%d", said, pieces);
        put(answer.finish_reason);
        put(text);
        put(answer.error);
        printf("\n");
    }
    return 0;
}

int main(int count, char **arguments) {
    if (count == 2 && !strcmp(arguments[1], "escape")) return escape();
    return read_answers();
}
