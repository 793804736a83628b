/* Ask the server on a unix socket: cc -std=c99 -o ask ask.c && ./ask SOCKET [PROMPT [SYSTEM]]; Ctrl-C stops the answer. */

#define FIELDLM_IMPLEMENTATION
#include "fieldlm.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static fieldlm_answer answer; /* 70 kB: not on a small stack */
static volatile sig_atomic_t is_stopped;

static void on_signal(int number) {
    (void)number;
    is_stopped = 1;
    fieldlm_cancel(&answer);
}

static int on_text(void *context, const char *text, size_t length) {
    (void)context;
    fwrite(text, 1, length, stdout);
    fflush(stdout);
    return is_stopped;
}

int main(int count, char **given) {
    fieldlm_request request;
    struct sigaction on_interrupt;
    int said;
    memset(&request, 0, sizeof request);
    answer.fd = -1; /* there is nothing to cancel yet */
    memset(&on_interrupt, 0, sizeof on_interrupt);
    on_interrupt.sa_handler = on_signal;
    sigaction(SIGINT, &on_interrupt, NULL);
    request.prompt = count > 2 ? given[2] : "What is a robot?";
    request.system = count > 3 ? given[3] : NULL;
    request.fields = "\"priority\":\"interactive\"";
    request.max_tokens = 128;
    said = fieldlm_ask(&answer, count > 1 ? given[1] : "/run/fieldlm/fieldlm.sock", &request, on_text, NULL);
    printf("\n");
    if (is_stopped) {
        fprintf(stderr, "stopped\n");
        return 130;
    }
    if (said == FIELDLM_ERROR) {
        fprintf(stderr, "%s\n", answer.error);
        return 1;
    }
    fprintf(stderr, "ended: %s\n", answer.finish_reason);
    return 0;
}
