/* Load driver of bench.gateway: CONNECTIONS keep-alive connections send REQUESTS requests in all, one at a time each.
 *
 *   load PORT CONNECTIONS REQUESTS MAX_TOKENS STREAM PROMPT_BYTES PREFIXES SEED
 *
 * Prompts: one of PREFIXES shared prefixes (7/8 of the bytes; 0: none), then text of this request alone, of 20,000 words: a
 * gateway that remembers words does not know them all after the warm-up. Prints one JSON line:
 * requests, events (SSE "data:" lines), errors (status other than 200, broken connections), wall_s, p50_us, p99_us.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { IN_BYTES = 1 << 16, HEAD_BYTES = 1 << 14, VOCABULARY = 20000, LETTERS = 12 };

struct connection {
    int fd;
    char head[HEAD_BYTES];
    size_t head_len;
    int in_body, chunked, matched; /* `matched`: bytes of "data:" at a line's start seen so far */
    long left;                     /* of the body or of the chunk */
    int chunk_state;               /* 0 size, 1 data, 2 CRLF after data, 3 trailer */
    int trailer_len, line_start;
    double began_s;
};

static int port, max_tokens, streamed, prompt_bytes, prefixes;
static long wanted, started, finished, errors, events;
static double *latencies;
static unsigned long long seed;
static char vocabulary[VOCABULARY][LETTERS + 1];

static unsigned next_random(unsigned long long *state) {
    *state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
    return *state >> 33;
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* Made-up words of 2 to LETTERS letters, the same in every run; frequent ones tend to be short. */
static void make_vocabulary(void) {
    static const char *LETTERS_OF[] = {"tnshrdlcmpgbfwvk", "aeiouaey"};
    unsigned long long state = 1;
    for (int rank = 0; rank < VOCABULARY; rank++) {
        int longest = 4 + (LETTERS - 4) * log2(rank + 1) / log2(VOCABULARY);
        int len = 2 + next_random(&state) % (longest - 1), vowel = next_random(&state) % 2;
        for (int i = 0; i < len; i++) {
            const char *of = LETTERS_OF[(i + vowel) % 2];
            vocabulary[rank][i] = of[next_random(&state) % strlen(of)];
        }
    }
}

/* Up to `end` and a little beyond: the word of rank k has a share of about 1/k (Zipf). One in 14 ends a sentence, one in 14
 * has a comma, one in 50 is a number, one in 30 is capitalised inside a sentence. */
static char *words(char *at, char *end, unsigned long long state) {
    int capital = 1;
    while (at < end) {
        double share = next_random(&state) / (double)(1U << 31);
        unsigned chance = next_random(&state) % 2100;
        char *begin = at;
        if (chance % 50 == 0) at += sprintf(at, "%u", next_random(&state) % 10000);
        else at = stpcpy(at, vocabulary[(int)pow(VOCABULARY, share) - 1]);
        if (capital || chance % 30 == 1) *begin = toupper(*begin);
        capital = chance % 14 == 2;
        if (capital || chance % 14 == 3) *at++ = capital ? '.' : ',';
        *at++ = ' ';
    }
    return at;
}

static int dial(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) return perror("connect"), exit(1), -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

/* Requests are far smaller than a socket's buffer, so a blocking write does not wait. */
static void send_next(struct connection *c) {
    static char body[1 << 17], out[(1 << 17) + 512];
    unsigned long long unique = seed + 1000003ULL * ++started;
    char *at = body + sprintf(body, "{\"model\":\"bench\",\"max_tokens\":%d,\"stream\":%s,\"messages\":[{\"role\":\"user\",\"content\":\"",
                              max_tokens, streamed ? "true" : "false");
    char *begin = at;
    if (prefixes) at = words(at, begin + prompt_bytes * 7 / 8, 17 + next_random(&unique) % prefixes);
    at = words(at, begin + prompt_bytes, unique);
    at = stpcpy(at, "\"}]}");
    int len = sprintf(out, "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer sk-bench\r\n"
                           "content-type: application/json\r\ncontent-length: %zu\r\n\r\n", (size_t)(at - body));
    memcpy(out + len, body, at - body);
    len += at - body;
    c->head_len = c->in_body = c->matched = 0;
    c->line_start = 1;
    c->began_s = now_s();
    if (write(c->fd, out, len) != len) errors++;
}

static void count_events(struct connection *c, const char *data, size_t len) {
    static const char PATTERN[] = "data:";
    for (size_t i = 0; i < len; i++) {
        if (data[i] == '\n') {
            c->line_start = 1, c->matched = 0;
        } else if (c->line_start && data[i] == PATTERN[c->matched]) {
            if (++c->matched == 5) events++, c->line_start = 0;
        } else {
            c->line_start = 0;
        }
    }
}

static int chunked_body(struct connection *c, const char *data, size_t len) {
    for (size_t i = 0; i < len;) {
        char b = data[i];
        if (c->chunk_state == 1) {
            size_t take = (size_t)c->left < len - i ? (size_t)c->left : len - i;
            count_events(c, data + i, take);
            i += take;
            if (!(c->left -= take)) c->chunk_state = 2;
            continue;
        }
        i++;
        if (c->chunk_state == 0) {
            if (b == '\n') c->chunk_state = c->left ? 1 : 3, c->trailer_len = 0;
            else if (b != '\r') c->left = c->left * 16 + (b <= '9' ? b - '0' : (b | 32) - 'a' + 10);
        } else if (c->chunk_state == 2) {
            if (b == '\n') c->chunk_state = 0, c->left = 0;
        } else if (b == '\n') {
            if (!c->trailer_len) return 1;
            c->trailer_len = 0;
        } else if (b != '\r') {
            c->trailer_len++;
        }
    }
    return 0;
}

/* 1: the answer is complete. */
static int body(struct connection *c, const char *data, size_t len) {
    if (c->chunked) return chunked_body(c, data, len);
    return (c->left -= len) <= 0;
}

static int head_done(struct connection *c) {
    char *end = memmem(c->head, c->head_len, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t rest = c->head + c->head_len - (end + 4);
    *end = 0;
    if (strncmp(c->head + 9, "200", 3)) errors++;
    char *field = strcasestr(c->head, "\r\ncontent-length:");
    c->chunked = strcasestr(c->head, "\r\ntransfer-encoding: chunked") != NULL;
    c->left = field ? atol(field + 17) : 0;
    c->chunk_state = 0;
    c->in_body = 1;
    return body(c, end + 4, rest);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void again(struct connection *c) {
    latencies[finished++] = now_s() - c->began_s;
    if (started < wanted) send_next(c);
}

static void readable(struct connection *c, int epoll_fd) {
    static char in[IN_BYTES];
    char *to = c->in_body ? in : c->head + c->head_len;
    ssize_t got = read(c->fd, to, c->in_body ? IN_BYTES : HEAD_BYTES - c->head_len);
    if (got <= 0) {
        errors++;
        close(c->fd);
        c->fd = dial();
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
        again(c);
        return;
    }
    if (!c->in_body) c->head_len += got;
    if (c->in_body ? body(c, in, got) : head_done(c)) again(c);
}

int main(int argc, char **argv) {
    if (argc != 9) return fprintf(stderr, "load PORT CONNECTIONS REQUESTS MAX_TOKENS STREAM PROMPT_BYTES PREFIXES SEED\n"), 2;
    port = atoi(argv[1]);
    int count = atoi(argv[2]);
    wanted = atol(argv[3]), max_tokens = atoi(argv[4]), streamed = atoi(argv[5]), prompt_bytes = atoi(argv[6]);
    prefixes = atoi(argv[7]);
    seed = strtoull(argv[8], NULL, 10);
    make_vocabulary();
    latencies = calloc(wanted, sizeof *latencies);
    struct connection *all = calloc(count, sizeof *all);
    int epoll_fd = epoll_create1(0);
    for (int i = 0; i < count; i++) {
        all[i].fd = dial();
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, all[i].fd, &e);
    }
    double began_s = now_s();
    for (int i = 0; i < count && started < wanted; i++) send_next(&all[i]);
    struct epoll_event ready[256];
    while (finished < wanted) {
        int found = epoll_wait(epoll_fd, ready, 256, 60000);
        if (found == 0) return fprintf(stderr, "no answer for 60 s\n"), 1;
        for (int i = 0; i < found; i++) readable(ready[i].data.ptr, epoll_fd);
    }
    double wall_s = now_s() - began_s;
    qsort(latencies, finished, sizeof *latencies, by_value);
    printf("{\"requests\":%ld,\"events\":%ld,\"errors\":%ld,\"wall_s\":%.6f,\"p50_us\":%.1f,\"p99_us\":%.1f}\n", finished,
           events, errors, wall_s, 1e6 * latencies[finished / 2], 1e6 * latencies[finished * 99 / 100]);
}
