/* Mock worker of bench.gateway: answers as fast as epoll can, so that what is measured is the gateway before it.
 *
 *   worker PORT INFO_FILE
 *
 * GET /baton/v1/worker   INFO_FILE;  any other GET: a model list (health checks of the peers)
 * POST                   a whole chat answer of 16 tokens or, with "stream":true, max_tokens SSE events, one write each:
 *                        back to back below 128 of them, else every 20 ms
 * HTTP/1.1 keep-alive, requests with Content-Length or chunked ones (skipped to their end), no pipelining.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 8192, IN_BYTES = 1 << 17, PACED_FROM = 128 };
#define PACE_S 0.020

struct connection {
    char *in;
    size_t used;
    long events_left; /* of the running stream */
    double due_s;
    int paced, out_full;
    char *pending; /* unsent bytes */
    size_t pending_len;
};

static struct connection connections[MAX_CONNECTIONS];
static int epoll_fd;
static char info[65536];
static int paced_count;

static const char WHOLE[] =
    "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"bench\",\"choices\":[{\"index\":0,"
    "\"message\":{\"role\":\"assistant\",\"content\":\"one two three four five six seven eight nine ten eleven twelve a b c d\"},"
    "\"logprobs\":null,\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":1000,\"completion_tokens\":16,"
    "\"total_tokens\":1016,\"prompt_tokens_details\":{\"cached_tokens\":0}}}";
static const char MODELS[] = "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1,"
                             "\"owned_by\":\"bench\",\"max_model_len\":32768}]}";
static const char EVENT[] =
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"bench\",\"choices\":"
    "[{\"index\":0,\"delta\":{\"content\":\" token\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
static const char LAST[] =
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"bench\",\"choices\":"
    "[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\"}]}\n\n";
static const char USAGE[] =
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"bench\",\"choices\":[],"
    "\"usage\":{\"prompt_tokens\":1000,\"completion_tokens\":64,\"total_tokens\":1064}}\n\n";
static const char DONE[] = "data: [DONE]\n\n";

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void drop(int fd) {
    struct connection *c = &connections[fd];
    paced_count -= c->events_left && c->paced;
    free(c->in);
    free(c->pending);
    memset(c, 0, sizeof *c);
    close(fd);
}

static int put(int fd, const char *data, size_t len) {
    struct connection *c = &connections[fd];
    if (!c->pending_len) {
        ssize_t sent = write(fd, data, len);
        if (sent < 0 && errno != EAGAIN) return -1;
        if (sent > 0) data += sent, len -= sent;
    }
    if (len) {
        c->pending = realloc(c->pending, c->pending_len + len);
        memcpy(c->pending + c->pending_len, data, len);
        c->pending_len += len;
        struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &e);
    }
    return 0;
}

static int put_whole(int fd, const char *status, const char *body) {
    char out[70000];
    int len = snprintf(out, sizeof out, "HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
                       status, strlen(body), body);
    return put(fd, out, len);
}

static int put_chunk(int fd, const char *event) {
    char out[1024];
    int len = snprintf(out, sizeof out, "%zx\r\n%s\r\n", strlen(event), event);
    return put(fd, out, len);
}

/* One event of the running stream; the end of it after the last. */
static int step(int fd) {
    struct connection *c = &connections[fd];
    if (put_chunk(fd, EVENT)) return -1;
    if (--c->events_left) return 0;
    paced_count -= c->paced;
    return put_chunk(fd, LAST) || put_chunk(fd, USAGE) || put_chunk(fd, DONE) || put(fd, "0\r\n\r\n", 5);
}

static long number_after(const char *body, const char *name) {
    const char *at = strstr(body, name);
    if (!at) return 0;
    at += strlen(name);
    while (*at == ' ' || *at == ':' || *at == '"') at++;
    return atol(at);
}

static int wants_stream(const char *body) {
    const char *at = strstr(body, "\"stream\"");
    return at && strncmp(at + 8 + strspn(at + 8, " :"), "true", 4) == 0;
}

static int answer(int fd, const char *head, const char *body) {
    struct connection *c = &connections[fd];
    if (!strncmp(head, "GET /baton/v1/worker", 20)) return put_whole(fd, "200 OK", info);
    if (!strncmp(head, "GET ", 4)) return put_whole(fd, "200 OK", MODELS);
    const char *line_end = strstr(head, "\r\n");
    if (memmem(head, line_end - head, "/render", 7)) return put_whole(fd, "404 Not Found", "{\"error\":{\"message\":\"no\"}}");
    if (!wants_stream(body)) return put_whole(fd, "200 OK", WHOLE);
    long count = number_after(body, "\"max_tokens\"");
    if (!count) count = number_after(body, "\"max_completion_tokens\"");
    c->events_left = count ? count : 16;
    c->paced = c->events_left >= PACED_FROM;
    c->due_s = now_s() + PACE_S;
    paced_count += c->paced;
    static const char HEAD[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    if (put(fd, HEAD, sizeof HEAD - 1)) return -1;
    while (!c->paced && c->events_left)
        if (step(fd)) return -1;
    return 0;
}

/* Length of the whole request at the start of `in`, 0 when not all of it is here yet. Sets where the body begins. */
static size_t request_len(struct connection *c, char **body) {
    char *end = memmem(c->in, c->used, "\r\n\r\n", 4);
    if (!end) return 0;
    *end = 0;
    char *field = strcasestr(c->in, "\r\ncontent-length:"), *chunked = strcasestr(c->in, "\r\ntransfer-encoding: chunked");
    size_t length = field ? strtoul(field + 17, NULL, 10) : 0;
    *end = '\r';
    *body = end + 4;
    if (chunked) {
        char *last = memmem(*body, c->used - (*body - c->in), "\r\n0\r\n\r\n", 7);
        return last ? last + 7 - c->in : 0;
    }
    size_t whole = *body - c->in + length;
    return whole <= c->used ? whole : 0;
}

static int readable(int fd) {
    struct connection *c = &connections[fd];
    if (!c->in) c->in = malloc(IN_BYTES + 1);
    ssize_t got = read(fd, c->in + c->used, IN_BYTES - c->used);
    if (got <= 0) return got < 0 && errno == EAGAIN ? 0 : -1;
    c->used += got;
    char *body;
    size_t len;
    while (!c->events_left && (len = request_len(c, &body))) {
        char kept = c->in[len];
        c->in[len] = 0;
        int bad = answer(fd, c->in, body);
        c->in[len] = kept;
        if (bad) return -1;
        memmove(c->in, c->in + len, c->used - len);
        c->used -= len;
    }
    return c->used == IN_BYTES ? -1 : 0;
}

static int writable(int fd) {
    struct connection *c = &connections[fd];
    ssize_t sent = write(fd, c->pending, c->pending_len);
    if (sent < 0) return errno == EAGAIN ? 0 : -1;
    memmove(c->pending, c->pending + sent, c->pending_len - sent);
    if (!(c->pending_len -= sent)) {
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &e);
    }
    return 0;
}

static void accept_all(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_CONNECTIONS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        memset(&connections[fd], 0, sizeof connections[fd]);
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
    }
}

static void pace(void) {
    double now = now_s();
    for (int fd = 0; fd < MAX_CONNECTIONS; fd++) {
        struct connection *c = &connections[fd];
        if (c->events_left && c->paced && c->due_s <= now) {
            c->due_s += PACE_S;
            if (step(fd)) drop(fd);
        }
    }
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "worker PORT INFO_FILE\n"), 2;
    FILE *file = fopen(argv[2], "r");
    if (!file) return perror(argv[2]), 1;
    info[fread(info, 1, sizeof info - 1, file)] = 0;
    fclose(file);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) return perror("bind"), 1;
    epoll_fd = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener}, ready[512];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int count = epoll_wait(epoll_fd, ready, 512, paced_count ? 2 : 1000);
        for (int i = 0; i < count; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener)
                accept_all(listener);
            else if ((ready[i].events & EPOLLOUT && writable(fd)) || (ready[i].events & ~EPOLLOUT && readable(fd)))
                drop(fd);
        }
        if (paced_count) pace();
    }
}
