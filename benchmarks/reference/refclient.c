/* refclient.c - the floor: a closed-loop client in C that does the least a client can do.
 *
 * N connections, each sending the same request again as soon as its answer is whole.  It looks for
 * "data: " (the time of the first is the TTFT) and for the end of the answer, and parses nothing else.
 * Used to prove that the server keeps its schedule and to say what one core can take in at best.
 *
 * Build: gcc -std=c11 -O2 -Wall -Wextra -o refclient refclient.c
 * Usage: refclient PORT CONNECTIONS SECONDS STAGGER_S FROM_S PATH BODY
 * The starts are spread over STAGGER_S seconds.  TTFT and ITL are those of requests sent between FROM_S and
 * SECONDS after the start, by CLOCK_REALTIME; the counts are of all.  Prints one JSON line.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct { int fd; int64_t t_sent, t_first; long events; } conn_t;
static int64_t real(void) { struct timespec t; clock_gettime(CLOCK_REALTIME, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }
static double *ttft, *itl; static size_t nt, cap;
static int cmp(const void *a, const void *b) { double x = *(const double *)a, y = *(const double *)b; return (x > y) - (x < y); }
static double pct(double *v, double p) { return nt ? v[(size_t)(p * (nt - 1) + 0.5)] : 0; }
static char req[65536]; static size_t rl;
static uint64_t events, done, failed;
static int ep, port;

static void ask(conn_t *c) {
    c->events = 0;
    c->t_sent = real();
    if (send(c->fd, req, rl, MSG_NOSIGNAL) != (ssize_t)rl) failed++;
}
static void dial(conn_t *c) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (void *)&a, sizeof a)) { perror("connect"); exit(1); }
    int one = 1; setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c}; epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
}
static void keep(conn_t *c, int64_t now) {
    if (nt == cap) { cap = cap ? cap * 2 : 65536; ttft = realloc(ttft, cap * sizeof *ttft); itl = realloc(itl, cap * sizeof *itl); }
    ttft[nt] = (c->t_first - c->t_sent) / 1e6;
    itl[nt] = c->events > 3 ? (now - c->t_first) / 1e6 / (c->events - 3) : 0; /* beside tokens: the finish reason and [DONE] */
    nt++;
}
int main(int argc, char **argv) {
    if (argc != 8) { fprintf(stderr, "usage: refclient PORT CONNECTIONS SECONDS STAGGER_S FROM_S PATH BODY\n"); return 2; }
    port = atoi(argv[1]);
    int n = atoi(argv[2]), started = 0, live = n;
    double seconds = atof(argv[3]), stagger = atof(argv[4]), from = atof(argv[5]);
    rl = snprintf(req, sizeof req, "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                  argv[6], strlen(argv[7]), argv[7]);
    ep = epoll_create1(0);
    conn_t *cs = calloc(n, sizeof *cs);
    for (int i = 0; i < n; i++) dial(&cs[i]);
    int64_t t0 = real(), begin = t0 + (int64_t)(from * 1e9), end = t0 + (int64_t)(seconds * 1e9);
    static struct epoll_event ev[512]; static char buf[1 << 18];
    for (int64_t now = t0; live > 0 && now < end + 20000000000LL; now = real()) {
        while (started < n && now >= t0 + (int64_t)(stagger * 1e9 * started / n)) { ask(&cs[started++]); now = real(); }
        int k = epoll_wait(ep, ev, 512, started < n ? 0 : 100);
        for (int i = 0; i < k; i++) {
            conn_t *c = ev[i].data.ptr;
            ssize_t r = recv(c->fd, buf, sizeof buf, MSG_DONTWAIT);
            if (r < 0 && errno == EAGAIN) continue;
            if (r <= 0) { failed++; close(c->fd); live--; continue; }
            for (char *p = buf, *e = buf + r; (p = memmem(p, e - p, "data: ", 6)); p += 6)
                if (events++, !c->events++) c->t_first = real();
            bool whole = (r >= 5 && !memcmp(buf + r - 5, "0\r\n\r\n", 5)) || (!c->events && buf[r - 1] == '}');
            if (!whole) continue;
            done++;
            int64_t t = real();
            if (c->events && c->t_sent >= begin && c->t_sent < end) keep(c, t);
            if (t < end) ask(c); else { close(c->fd); live--; }
        }
    }
    double wall = (real() - t0) / 1e9;
    qsort(ttft, nt, sizeof *ttft, cmp);
    double sum = 0;
    for (size_t i = 0; i < nt; i++) sum += itl[i];
    printf("{\"wall_s\":%.3f,\"requests\":%lu,\"failed\":%lu,\"events\":%lu,\"ttft_p50_ms\":%.3f,\"ttft_p99_ms\":%.3f,\"itl_mean_ms\":%.4f}\n",
           wall, done, failed, events, pct(ttft, .5), pct(ttft, .99), nt ? sum / nt : 0);
    return 0;
}
