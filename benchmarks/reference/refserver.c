/* refserver.c - a reference streaming server with ground truth.
 *
 * One thread, one epoll, one timer heap.  It speaks the OpenAI streaming API (and a plain
 * POST /predict) over HTTP/1.1 on 127.0.0.1, sends every token by an absolute schedule, and
 * keeps, per request, the times at which it read the request and sent the first and the last
 * token.  Client and server share one clock on loopback, so the log it writes at SIGTERM is
 * the truth against which a load tester's own numbers can be judged.
 *
 * With --tls-cert and --tls-key it speaks TLS 1.3 instead, with session tickets.  Records pass through memory BIOs, so
 * sockets are read and written by the same code, and kernel receive stamps stay; t_first and t_last are taken before the
 * token is encrypted.
 *
 * Build: gcc -std=c11 -O2 -Wall -Wextra -o refserver refserver.c -lm -lssl -lcrypto
 * Usage: refserver --help
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* ------------------------------------------------------------------ options */
enum { ROLE_NONE, ROLE_FIRST, ROLE_EARLY };
enum fault { F_NONE, F_ERROR, F_RESET, F_STALL, F_TRUNCATE, F_GARBAGE, F_INBAND, F_COUNT };
static const char *fault_name[F_COUNT] = {"none", "error", "reset", "stall", "truncate", "garbage", "inband"};

static struct {
    int port, backlog;
    const char *model, *token, *log, *tls_cert, *tls_key;
    double ttft_ms, ttft_sigma, itl_ms, itl_sigma, predict_ms, predict_sigma, load_us, stall_ms;
    long tokens, max_tokens_cap, slots;
    double rate[F_COUNT];
    int error_status;
    uint64_t seed;
    int role, burst, spin_us;
    bool headers_late, split, number, rx_stamp, log_predict, seed_by_id, close_each, quiet;
} opt = {.port = 8000, .backlog = 16384, .model = "ref-model", .token = " tok", .ttft_ms = 200, .itl_ms = 50,
         .tokens = 100, .max_tokens_cap = 1000000, .error_status = 500, .seed = 1, .burst = 1, .rx_stamp = true,
         .log_predict = true};

/* ------------------------------------------------------------------ records */
enum outcome { O_OK, O_HTTP_ERROR, O_RESET, O_STALLED, O_TRUNCATED, O_GARBAGE, O_INBAND, O_CLIENT_CLOSED, O_UNFINISHED, O_COUNT };
static const char *outcome_name[O_COUNT] = {"ok", "http_error", "reset", "stalled", "truncated", "garbage", "inband_error", "client_closed", "unfinished"};

typedef struct {
    char id[48];
    uint64_t seq;
    int64_t t_conn;    /* connection accepted                       (CLOCK_REALTIME ns, as all t_) */
    int64_t t_arrived; /* kernel receive stamp of the request's last bytes, 0 if not known */
    int64_t t_read;    /* request fully read */
    int64_t t_start;   /* got a slot (= t_read without --slots or when one was free) */
    int64_t t_first, t_last; /* just before the first / the last token was sent */
    int64_t t_end;     /* response complete (or connection gone) */
    int64_t plan_ttft_ns;
    int64_t late_sum_ns, late_max_ns, gap_max_ns;
    uint32_t n_planned, n_sent, conn_reqs;
    uint16_t status;
    uint8_t kind, outcome, fault;
} rec_t;

#define BLK 4096
static rec_t **blocks;
static size_t nblocks, capblocks, nrec;
static rec_t *rec_new(void) {
    if (nrec == nblocks * BLK) {
        if (nblocks == capblocks) {
            capblocks = capblocks ? capblocks * 2 : 1024;
            blocks = realloc(blocks, capblocks * sizeof *blocks);
        }
        blocks[nblocks++] = malloc(sizeof(rec_t) * BLK);
    }
    rec_t *r = &blocks[nrec / BLK][nrec % BLK];
    nrec++;
    return r;
}

/* -------------------------------------------------------------- connections */
enum state { S_IDLE, S_QUEUED, S_STREAM, S_WAIT, S_STALLED, S_FINAL };
typedef struct conn {
    int fd, hidx;
    SSL *ssl; /* NULL without TLS; its BIOs are in memory */
    uint32_t nreq;
    enum state st;
    bool chat, close_after, want_out, usage, holds_slot, dead, stream, parsing, continued;
    char *ibuf;
    size_t ilen, icap, scan;
    char *obuf;
    size_t ooff, olen, ocap;
    int64_t t_conn, due, first_send, prev_send, rx_stamp;
    int64_t ttft_ns;
    double itl_ms, itl_sigma;
    uint64_t rng;
    long n, k, fault_at, prompt_tokens;
    enum fault fault;
    char *ck;            /* the prebuilt chunk, the same bytes for every token */
    size_t cklen, ckcap, numoff;
    char *model;
    size_t model_len, model_cap;
    rec_t *r;
    struct conn *qnext, *qprev, *dnext, *anext, *aprev;
} conn_t;

static conn_t *qhead, *qtail, *deadlist, *freelist, *allhead;
static int ep, lfd;
static SSL_CTX *tls;
static volatile sig_atomic_t stop;
static uint64_t seqno;
static struct {
    uint64_t accepted, closed, requests, done, chunks, bytes, predict, bad, tls_handshakes, tls_resumed, outcome[O_COUNT], late_n, eagain;
    int64_t late_max, late_sum;
    uint64_t late_hist[24]; /* bucket b: lateness < 2^b us */
    long active, active_max, queued, queued_max, open, open_max;
    int64_t t_boot;
} st;

static inline int64_t mono(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }
static inline int64_t real(void) { struct timespec t; clock_gettime(CLOCK_REALTIME, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }

/* ----------------------------------------------------------------- 4-ary heap */
typedef struct { int64_t due; conn_t *c; } hent;
static hent *heap;
static int hn, hcap;
static void hup(int i) {
    hent e = heap[i];
    while (i > 0) {
        int p = (i - 1) >> 2;
        if (heap[p].due <= e.due) break;
        heap[i] = heap[p]; heap[i].c->hidx = i; i = p;
    }
    heap[i] = e; e.c->hidx = i;
}
static void hdown(int i) {
    hent e = heap[i];
    for (;;) {
        int b = (i << 2) + 1, m = b;
        if (b >= hn) break;
        int end = b + 4 < hn ? b + 4 : hn;
        for (int j = b + 1; j < end; j++) if (heap[j].due < heap[m].due) m = j;
        if (heap[m].due >= e.due) break;
        heap[i] = heap[m]; heap[i].c->hidx = i; i = m;
    }
    heap[i] = e; e.c->hidx = i;
}
static void hset(conn_t *c, int64_t due) {
    c->due = due;
    if (c->hidx < 0) {
        if (hn == hcap) { hcap = hcap ? hcap * 2 : 1024; heap = realloc(heap, hcap * sizeof *heap); }
        heap[hn] = (hent){due, c}; c->hidx = hn; hup(hn++);
    } else {
        int64_t old = heap[c->hidx].due;
        heap[c->hidx].due = due;
        if (due < old) hup(c->hidx); else hdown(c->hidx);
    }
}
static void hdel(conn_t *c) {
    int i = c->hidx;
    if (i < 0) return;
    c->hidx = -1;
    hent last = heap[--hn];
    if (i == hn) return;
    heap[i] = last; last.c->hidx = i;
    hup(i); hdown(last.c->hidx);
}

/* ------------------------------------------------------------ random sequence */
static inline uint64_t splitmix(uint64_t *s) {
    uint64_t z = (*s += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}
static inline double uni(uint64_t *s) { return ((splitmix(s) >> 11) + 0.5) * (1.0 / 9007199254740992.0); }
static double draw(uint64_t *s, double median, double sigma) {
    if (sigma <= 0) return median;
    double u = uni(s), v = uni(s);
    return median * exp(sigma * sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}
static uint64_t fnv(const char *p, size_t n) {
    uint64_t h = 1469598103934665603ULL;
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)p[i]) * 1099511628211ULL;
    return h;
}

/* ------------------------------------------------------------------- output */
static void conn_close(conn_t *c, bool rst);
static void watch(conn_t *c, bool out) {
    if (c->want_out == out) return;
    c->want_out = out;
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | (out ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
}
static void wire_out(conn_t *c, const char *p, size_t n) {
    if (c->dead) return;
    st.bytes += n;
    if (c->olen == c->ooff) {
        ssize_t w = send(c->fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (w == (ssize_t)n) return;
        if (w < 0) {
            if (errno != EAGAIN && errno != EINTR) { conn_close(c, false); return; }
            w = 0;
        }
        st.eagain++;
        p += w; n -= w;
        c->ooff = c->olen = 0;
    }
    if (c->olen + n > c->ocap) { c->ocap = (c->olen + n) * 2; c->obuf = realloc(c->obuf, c->ocap); }
    memcpy(c->obuf + c->olen, p, n);
    c->olen += n;
    watch(c, true);
}
static void tls_flush(conn_t *c) { /* what TLS has to say goes to the wire */
    char *p;
    BIO *b = SSL_get_wbio(c->ssl);
    long n = BIO_get_mem_data(b, &p);
    if (n <= 0) return;
    wire_out(c, p, n);
    if (!c->dead) (void)BIO_reset(b);
}
static void out(conn_t *c, const char *p, size_t n) {
    if (c->dead) return;
    if (!c->ssl) { wire_out(c, p, n); return; }
    if (SSL_write(c->ssl, p, n) <= 0) { conn_close(c, false); return; }
    tls_flush(c);
}
static void hang_up(conn_t *c) { /* after a whole answer: closed once all of it is sent */
    if (c->ssl) { SSL_shutdown(c->ssl); tls_flush(c); }
    if (c->dead) return;
    if (c->olen == c->ooff) conn_close(c, false); else c->st = S_FINAL;
}
static bool flush_out(conn_t *c) {
    while (c->ooff < c->olen) {
        ssize_t w = send(c->fd, c->obuf + c->ooff, c->olen - c->ooff, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (w < 0) {
            if (errno == EAGAIN || errno == EINTR) return true;
            conn_close(c, false);
            return false;
        }
        c->ooff += w;
    }
    c->ooff = c->olen = 0;
    watch(c, false);
    return true;
}

/* A small growing text buffer shared by everything that is not the per-token path. */
static char *tb; static size_t tlen, tcap;
static void tneed(size_t n) { if (tlen + n + 1 > tcap) { tcap = (tlen + n + 1) * 2; tb = realloc(tb, tcap); } }
static void tput(const char *p, size_t n) { tneed(n); memcpy(tb + tlen, p, n); tlen += n; tb[tlen] = 0; }
static void tfmt(const char *f, ...) __attribute__((format(printf, 1, 2)));
static void tfmt(const char *f, ...) {
    va_list a; va_start(a, f);
    va_list b; va_copy(b, a);
    int n = vsnprintf(NULL, 0, f, a); va_end(a);
    tneed(n);
    vsnprintf(tb + tlen, n + 1, f, b); va_end(b);
    tlen += n;
}
/* wraps the last `from..tlen` bytes of tb as one HTTP chunk */
static void twrap(size_t from) {
    char h[24];
    int hl = snprintf(h, sizeof h, "%zx\r\n", tlen - from);
    tneed(hl + 2);
    memmove(tb + from + hl, tb + from, tlen - from);
    memcpy(tb + from, h, hl);
    tlen += hl;
    tput("\r\n", 2);
}

/* ------------------------------------------------------------------ requests */
static void take_slot(conn_t *c);
static void process(conn_t *c);

static void head_of(conn_t *c) { /* the fields every chunk begins with */
    tfmt("{\"id\":\"%s-%" PRIu64 "\",\"object\":\"%s\",\"created\":%" PRId64 ",\"model\":\"", c->chat ? "chatcmpl" : "cmpl", c->r ? c->r->seq : 0,
         !c->stream ? (c->chat ? "chat.completion" : "text_completion") : (c->chat ? "chat.completion.chunk" : "text_completion"),
         (int64_t)time(NULL));
    tput(c->model, c->model_len);
    tput("\",", 2);
}
static void build_chunk(conn_t *c) {
    tlen = 0;
    tput("data: ", 6);
    head_of(c);
    tfmt("\"choices\":[{\"index\":0,%s\"", c->chat ? "\"delta\":{\"content\":" : "\"text\":");
    size_t num = 0;
    if (opt.number) { num = tlen; tput(" t00000", 7); } else tput(opt.token, strlen(opt.token));
    size_t mid = tlen;
    tfmt("\"%s,\"finish_reason\":null}]}\n\n", c->chat ? "}" : ",\"logprobs\":null");
    size_t plen = tlen;
    if (opt.split && !opt.number) { /* one event over two HTTP chunks, cut inside the token */
        size_t cut = mid - 1;
        char *copy = malloc(plen); memcpy(copy, tb, plen);
        tlen = 0; tput(copy, cut); twrap(0);
        size_t from = tlen; tput(copy + cut, plen - cut); twrap(from);
        free(copy);
    } else {
        twrap(0);
        if (num) num += tlen - 2 - plen;
    }
    if (tlen > c->ckcap) { c->ckcap = tlen * 2; c->ck = realloc(c->ck, c->ckcap); }
    memcpy(c->ck, tb, tlen);
    c->cklen = tlen;
    c->numoff = num ? num + 2 : 0;
}
static inline void number_chunk(conn_t *c) {
    if (!c->numoff) return;
    long v = c->k;
    for (int i = 4; i >= 0; i--) { c->ck[c->numoff + i] = '0' + v % 10; v /= 10; }
}
static void usage_json(conn_t *c, long done) {
    tfmt("\"usage\":{\"prompt_tokens\":%ld,\"completion_tokens\":%ld,\"total_tokens\":%ld}", c->prompt_tokens, done, c->prompt_tokens + done);
}
static void build_tail(conn_t *c) { /* appended to tb: finish, usage, [DONE], the last chunk */
    size_t f = tlen;
    tput("data: ", 6); head_of(c);
    tfmt("\"choices\":[{\"index\":0,%s,\"finish_reason\":\"length\"}]}\n\n", c->chat ? "\"delta\":{}" : "\"text\":\"\",\"logprobs\":null");
    twrap(f);
    if (c->usage) {
        f = tlen;
        tput("data: ", 6); head_of(c);
        tput("\"choices\":[],", 13); usage_json(c, c->n); tput("}\n\n", 3);
        twrap(f);
    }
    f = tlen; tput("data: [DONE]\n\n", 14); twrap(f);
    tput("0\r\n\r\n", 5);
}
static const char *reason_of(int s) {
    switch (s) { case 200: return "OK"; case 400: return "Bad Request"; case 404: return "Not Found"; case 405: return "Method Not Allowed";
        case 413: return "Content Too Large"; case 429: return "Too Many Requests"; case 431: return "Request Header Fields Too Large";
        case 500: return "Internal Server Error"; case 503: return "Service Unavailable"; default: return "Status"; }
}
static void reply(conn_t *c, int status, const char *body, size_t n) {
    static char *rb; static size_t rcap;
    if (n + 256 > rcap) { rcap = n + 4096; rb = realloc(rb, rcap); }
    int h = snprintf(rb, 256, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n%s\r\n", status, reason_of(status), n,
                     c->close_after ? "Connection: close\r\n" : "");
    memcpy(rb + h, body, n);
    out(c, rb, h + n);
}

static void request_over(conn_t *c, enum outcome o) { /* accounts for the end, frees the slot, starts the next in the queue */
    if (c->r) {
        c->r->t_end = real();
        c->r->outcome = o == O_CLIENT_CLOSED && c->r->fault == F_GARBAGE ? O_GARBAGE : o; /* hung up on for its garbage */
        if (!c->r->t_last && c->r->n_sent) c->r->t_last = c->r->t_first + (c->prev_send - c->first_send);
        c->r = NULL;
    }
    st.done++;
    st.outcome[o]++;
    hdel(c);
    if (c->st == S_QUEUED) {
        if (c->qprev) c->qprev->qnext = c->qnext; else qhead = c->qnext;
        if (c->qnext) c->qnext->qprev = c->qprev; else qtail = c->qprev;
        c->qnext = c->qprev = NULL;
        st.queued--;
    }
    c->st = S_IDLE;
    if (c->holds_slot) {
        c->holds_slot = false;
        st.active--;
        if (qhead && (!opt.slots || st.active < opt.slots)) {
            conn_t *q = qhead;
            qhead = q->qnext;
            if (qhead) qhead->qprev = NULL; else qtail = NULL;
            q->qnext = NULL;
            st.queued--;
            take_slot(q);
        }
    }
}
static void finished(conn_t *c, enum outcome o) { /* a response ended normally: back to the next request on this connection */
    request_over(c, o);
    if (c->dead) return;
    if (c->close_after) { hang_up(c); return; }
    /* a pipelined request may be waiting; process() is called from the loop, not from here, to keep the stack flat */
    if (c->ilen && !c->parsing) hset(c, mono());
}
static void conn_close(conn_t *c, bool rst) {
    if (c->dead) return;
    c->dead = true;
    if (c->st != S_IDLE && c->st != S_FINAL) request_over(c, c->st == S_STALLED ? O_STALLED : O_CLIENT_CLOSED);
    hdel(c);
    if (rst) {
        struct linger l = {1, 0};
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
    }
    close(c->fd);
    c->fd = -1;
    SSL_free(c->ssl);
    c->ssl = NULL;
    if (c->aprev) c->aprev->anext = c->anext; else allhead = c->anext;
    if (c->anext) c->anext->aprev = c->aprev;
    st.closed++; st.open--;
    c->dnext = deadlist; deadlist = c;
}

static inline void late(conn_t *c, int64_t now) {
    int64_t l = now - c->due;
    if (l < 0) l = 0;
    st.late_n++; st.late_sum += l;
    if (l > st.late_max) st.late_max = l;
    uint64_t us = l / 1000;
    int b = us ? 64 - __builtin_clzll(us) : 0;
    st.late_hist[b > 23 ? 23 : b]++;
    if (c->r) {
        c->r->late_sum_ns += l;
        if (l > c->r->late_max_ns) c->r->late_max_ns = l;
    }
}
static inline int64_t gap_ns(conn_t *c) {
    double ms = draw(&c->rng, c->itl_ms, c->itl_sigma);
    return (int64_t)(ms * 1e6 + opt.load_us * 1e3 * st.active);
}
static const char HEAD_SSE[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n";
static void sse_head(conn_t *c) {
    tput(HEAD_SSE, sizeof HEAD_SSE - 1);
    if (c->close_after) tput("Connection: close\r\n", 19);
    tput("\r\n", 2);
}
static void role_chunk(conn_t *c) {
    if (!c->chat) return;
    size_t f = tlen;
    tput("data: ", 6); head_of(c);
    tfmt("\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n");
    twrap(f);
}
static void take_slot(conn_t *c) {
    int64_t now = mono();
    c->holds_slot = true;
    if (++st.active > st.active_max) st.active_max = st.active;
    if (c->r) c->r->t_start = real();
    int64_t due = now + c->ttft_ns;
    if (!c->stream) { /* the whole answer after the whole time */
        for (long i = 1; i < c->n; i++) due += gap_ns(c);
        c->st = S_WAIT;
        hset(c, due);
        return;
    }
    c->st = S_STREAM;
    c->k = 0;
    build_chunk(c);
    hset(c, due);
    tlen = 0;
    if (!opt.headers_late) sse_head(c);
    if (opt.role == ROLE_EARLY && !opt.headers_late) role_chunk(c);
    if (tlen) out(c, tb, tlen);
}
static void body_answer(conn_t *c) {
    tlen = 0;
    c->stream = false;
    head_of(c);
    tput(c->chat ? "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"" : "\"choices\":[{\"index\":0,\"text\":\"",
         strlen(c->chat ? "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"" : "\"choices\":[{\"index\":0,\"text\":\""));
    for (long i = 0; i < c->n; i++) tput(opt.token, strlen(opt.token));
    tfmt("\"%s,\"finish_reason\":\"length\"}],", c->chat ? "}" : ",\"logprobs\":null");
    usage_json(c, c->n);
    tput("}", 1);
    reply(c, 200, tb, tlen);
}
static const char PREDICT[] = "{\"predictions\":[0.12,0.88],\"model\":\"ref\"}";

static void on_timer(conn_t *c, int64_t now) {
    switch (c->st) {
    case S_IDLE: hdel(c); process(c); return;
    case S_FINAL: hdel(c); return;
    case S_WAIT:
        late(c, now);
        hdel(c);
        if (c->r) { c->r->t_first = c->r->t_last = real(); c->r->n_sent = c->r->kind == 'p' ? 1 : c->n; }
        if (c->n < 0) reply(c, 200, PREDICT, sizeof PREDICT - 1); else body_answer(c);
        if (!c->dead) finished(c, O_OK);
        return;
    case S_STALLED: c->st = S_STREAM; c->fault = F_NONE; /* fall through */
    case S_STREAM: break;
    default: hdel(c); return;
    }
    if (c->fault != F_NONE && c->k >= c->fault_at) {
        enum fault f = c->fault;
        c->fault = F_NONE;
        switch (f) {
        case F_RESET: request_over(c, O_RESET); conn_close(c, true); return;
        case F_TRUNCATE: request_over(c, O_TRUNCATED); conn_close(c, false); return;
        case F_STALL:
            c->st = S_STALLED;
            if (opt.stall_ms > 0) hset(c, now + (int64_t)(opt.stall_ms * 1e6)); else hdel(c);
            return;
        case F_GARBAGE: {
            tlen = 0;
            if (c->k == 0 && opt.headers_late) sse_head(c);
            size_t x = tlen; tput("data: {\"id\": \"broken\", \"choices\": [{\"delta\": {\"conte\n\n", 54); twrap(x);
            if (c->r) c->r->fault = F_GARBAGE;
            out(c, tb, tlen);
            if (c->dead) return;
            break;
        }
        case F_INBAND: {
            tlen = 0;
            if (c->k == 0 && opt.headers_late) sse_head(c);
            size_t x = tlen;
            tfmt("data: {\"error\":{\"message\":\"injected\",\"type\":\"internal_error\",\"code\":500}}\n\n"); twrap(x);
            x = tlen; tput("data: [DONE]\n\n", 14); twrap(x);
            tput("0\r\n\r\n", 5);
            out(c, tb, tlen);
            if (!c->dead) finished(c, O_INBAND);
            return;
        }
        default: break;
        }
    }
    late(c, now);
    int m = opt.burst;
    if (m > c->n - c->k) m = c->n - c->k;
    bool last = c->k + m >= c->n;
    if (c->r) {
        if (c->k == 0) { c->r->t_first = real(); c->first_send = now; }
        else if (now - c->prev_send > c->r->gap_max_ns) c->r->gap_max_ns = now - c->prev_send;
        if (last) c->r->t_last = real();
        c->r->n_sent += m;
    }
    c->prev_send = now;
    st.chunks += m;
    if (c->k > 0 && !last && m == 1) { /* the per-token path */
        number_chunk(c);
        c->k++;
        hset(c, c->due + gap_ns(c));
        out(c, c->ck, c->cklen);
        return;
    }
    tlen = 0;
    if (c->k == 0) {
        if (opt.headers_late) sse_head(c);
        if (opt.role == ROLE_FIRST || (opt.role == ROLE_EARLY && opt.headers_late)) role_chunk(c);
    }
    int64_t due = c->due;
    for (int i = 0; i < m; i++) {
        number_chunk(c);
        tput(c->ck, c->cklen);
        c->k++;
        if (c->k < c->n) due += gap_ns(c);
    }
    if (last) build_tail(c);
    else hset(c, due);
    out(c, tb, tlen);
    if (c->dead) return;
    if (last) { enum outcome o = c->r && c->r->fault == F_GARBAGE ? O_GARBAGE : O_OK; finished(c, o); }
}

/* ------------------------------------------------------------------- parsing */
typedef struct { double ttft, ttft_sigma, itl, itl_sigma, ms; long n, max_tokens; int stream, usage; enum fault fault; long prompt_bytes;
    const char *model; size_t model_len; } req_t;

static void override(req_t *q, const char *k, size_t kl, const char *v, size_t vl) {
    char b[40];
    if (vl >= sizeof b) return;
    memcpy(b, v, vl); b[vl] = 0;
    char key[24];
    if (kl >= sizeof key) return;
    for (size_t i = 0; i < kl; i++) key[i] = k[i] == '-' ? '_' : (char)(k[i] | 0x20);
    for (size_t i = 0; i < kl; i++) if (k[i] == '_') key[i] = '_';
    key[kl] = 0;
    if (!strcmp(key, "ttft_ms")) q->ttft = atof(b);
    else if (!strcmp(key, "ttft_sigma")) q->ttft_sigma = atof(b);
    else if (!strcmp(key, "itl_ms")) q->itl = atof(b);
    else if (!strcmp(key, "itl_sigma")) q->itl_sigma = atof(b);
    else if (!strcmp(key, "ms")) q->ms = atof(b);
    else if (!strcmp(key, "n")) q->n = atol(b);
    else if (!strcmp(key, "fault")) { for (int i = 0; i < F_COUNT; i++) if (!strcmp(b, fault_name[i])) q->fault = i; }
}
/* One pass over a JSON body: top-level keys, stream_options.include_usage, sizes of "content"/"prompt"/"text" strings. */
static void walk(req_t *q, const char *p, size_t n) {
    const char *e = p + n, *k = NULL, *top = NULL; size_t kl = 0, topl = 0; int depth = 0; bool iskey = true;
    bool inobj[64] = {false};
    while (p < e) {
        char ch = *p;
        if (ch == '"') {
            const char *s = ++p;
            while (p < e) {
                const char *z = memchr(p, '"', e - p);
                if (!z) { p = e; break; }
                const char *y = z; while (y > s && y[-1] == '\\') y--;
                if ((z - y) & 1) { p = z + 1; continue; }
                p = z; break;
            }
            size_t l = p - s;
            p++;
            if (iskey) { k = s; kl = l; if (depth == 1) { top = s; topl = l; } }
            else {
                if (depth == 1 && kl == 5 && !memcmp(k, "model", 5)) { q->model = s; q->model_len = l; }
                else if (depth == 1 && kl > 4 && !memcmp(k, "ref_", 4)) override(q, k + 4, kl - 4, s, l);
                if (k && ((kl == 7 && !memcmp(k, "content", 7)) || (kl == 6 && !memcmp(k, "prompt", 6)) || (kl == 4 && !memcmp(k, "text", 4)))) q->prompt_bytes += l;
            }
            continue;
        }
        if (ch == '{' || ch == '[') { depth++; if (depth < 64) inobj[depth] = ch == '{'; iskey = ch == '{'; p++; continue; }
        if (ch == '}' || ch == ']') { depth--; p++; continue; }
        if (ch == ':') { iskey = false; p++; continue; }
        if (ch == ',') { iskey = depth > 0 && depth < 64 && inobj[depth]; p++; continue; }
        if (ch == ' ' || ch == '\n' || ch == '\r' || ch == '\t') { p++; continue; }
        const char *s = p;
        while (p < e && *p != ',' && *p != '}' && *p != ']' && *p != ' ' && *p != '\n' && *p != '\r' && *p != '\t') p++;
        if (p == s) { p++; continue; }
        if (!iskey && k) {
            size_t l = p - s;
            if (depth == 1) {
                if (kl == 6 && !memcmp(k, "stream", 6)) q->stream = *s == 't';
                else if ((kl == 10 && !memcmp(k, "max_tokens", 10)) || (kl == 21 && !memcmp(k, "max_completion_tokens", 21))) { if (*s >= '0' && *s <= '9') q->max_tokens = atol(s); }
                else if (kl > 4 && !memcmp(k, "ref_", 4)) override(q, k + 4, kl - 4, s, l);
            } else if (depth == 2 && topl == 14 && !memcmp(top, "stream_options", 14) && kl == 13 && !memcmp(k, "include_usage", 13)) q->usage = *s == 't';
        }
    }
}
static bool ieq(const char *a, size_t n, const char *b) { return strlen(b) == n && !strncasecmp(a, b, n); }

static void stats_json(void) {
    struct rusage ru; getrusage(RUSAGE_SELF, &ru);
    tlen = 0;
    tfmt("{\"uptime_s\":%.6f,\"accepted\":%" PRIu64 ",\"open\":%ld,\"open_max\":%ld,\"requests\":%" PRIu64 ",\"done\":%" PRIu64 ",\"active\":%ld,\"active_max\":%ld,"
         "\"queued\":%ld,\"queued_max\":%ld,\"chunks\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"bad\":%" PRIu64 ",\"tls_handshakes\":%" PRIu64 ",\"tls_resumed\":%" PRIu64 ",\"send_would_block\":%" PRIu64 ",\"cpu_s\":%.6f,\"rss_kb\":%ld,",
         (mono() - st.t_boot) / 1e9, st.accepted, st.open, st.open_max, st.requests, st.done, st.active, st.active_max, st.queued, st.queued_max, st.chunks, st.bytes, st.bad, st.tls_handshakes, st.tls_resumed,
         st.eagain, ru.ru_utime.tv_sec + ru.ru_stime.tv_sec + (ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) / 1e6, ru.ru_maxrss);
    tfmt("\"outcomes\":{");
    for (int i = 0; i < O_COUNT; i++) tfmt("%s\"%s\":%" PRIu64, i ? "," : "", outcome_name[i], st.outcome[i]);
    tfmt("},\"late\":{\"n\":%" PRIu64 ",\"mean_us\":%.3f,\"max_us\":%.3f,\"below_us\":{", st.late_n, st.late_n ? st.late_sum / 1e3 / st.late_n : 0, st.late_max / 1e3);
    for (int i = 0; i < 24; i++) tfmt("%s\"%d\":%" PRIu64, i ? "," : "", 1 << i, st.late_hist[i]);
    tfmt("}}}");
}
static void small(conn_t *c, int status, const char *body) { reply(c, status, body, strlen(body)); }

static void start_request(conn_t *c, req_t *q, char kind, const char *id, size_t idl, int64_t t_read) {
    st.requests++;
    uint64_t seq = ++seqno;
    uint64_t s = opt.seed * 0x2545F4914F6CDD1DULL ^ (opt.seed_by_id && idl ? fnv(id, idl) : seq * 0x9e3779b97f4a7c15ULL);
    splitmix(&s);
    c->n = kind == 'p' ? -1 : q->n > 0 ? q->n : q->max_tokens > 0 ? q->max_tokens : opt.tokens;
    if (c->n > opt.max_tokens_cap) c->n = opt.max_tokens_cap;
    double x = uni(&s), acc = 0;
    enum fault f = F_NONE;
    for (int i = 1; i < F_COUNT; i++) { acc += opt.rate[i]; if (x < acc) { f = i; break; } }
    double at = uni(&s);
    if (q->fault != F_COUNT) f = q->fault;
    c->fault_at = c->n > 1 ? 1 + (long)(at * (c->n - 1)) : 0;
    c->fault = f == F_ERROR ? F_NONE : f;
    if (kind == 'p' || !q->stream) c->fault = F_NONE;
    double ttft = kind == 'p' ? draw(&s, q->ms, opt.predict_sigma) : draw(&s, q->ttft, q->ttft_sigma);
    c->ttft_ns = (int64_t)(ttft * 1e6);
    c->itl_ms = q->itl; c->itl_sigma = q->itl_sigma; c->rng = s;
    c->stream = kind != 'p' && q->stream; c->usage = q->usage; c->chat = kind == 'c';
    c->prompt_tokens = q->prompt_bytes / 4 + 1;
    c->r = NULL;
    if (opt.log && (kind != 'p' || opt.log_predict)) {
        rec_t *r = c->r = rec_new();
        memset(r, 0, sizeof *r);
        size_t l = idl < sizeof r->id - 1 ? idl : sizeof r->id - 1;
        for (size_t i = 0; i < l; i++) r->id[i] = id[i] == ',' || (unsigned char)id[i] < 32 ? '_' : id[i];
        r->seq = seq; r->t_conn = c->t_conn; r->t_arrived = c->rx_stamp; r->t_read = r->t_start = t_read;
        r->plan_ttft_ns = c->ttft_ns; r->n_planned = kind == 'p' ? 1 : c->n; r->kind = kind == 'p' ? 'p' : c->stream ? kind : kind - 32;
        r->status = 200; r->outcome = O_UNFINISHED; r->fault = c->fault == F_GARBAGE ? F_NONE : c->fault; r->conn_reqs = c->nreq;
    }
    if (kind != 'p') {
        const char *m = q->model_len ? q->model : opt.model; size_t ml = q->model_len ? q->model_len : strlen(opt.model);
        if (ml > c->model_cap) { c->model_cap = ml * 2; c->model = realloc(c->model, c->model_cap); }
        memcpy(c->model, m, ml); c->model_len = ml;
    }
    if (f == F_ERROR) {
        if (c->r) c->r->status = opt.error_status;
        small(c, opt.error_status, "{\"error\":{\"message\":\"injected\",\"type\":\"internal_error\",\"code\":500}}");
        if (!c->dead) finished(c, O_HTTP_ERROR);
        return;
    }
    if (kind == 'p' && !opt.slots && c->ttft_ns <= 0) {
        if (c->r) { c->r->t_first = c->r->t_last = real(); c->r->n_sent = 1; }
        reply(c, 200, PREDICT, sizeof PREDICT - 1);
        if (!c->dead) finished(c, O_OK);
        return;
    }
    if (opt.slots && st.active >= opt.slots) {
        c->st = S_QUEUED;
        c->qprev = qtail; c->qnext = NULL;
        if (qtail) qtail->qnext = c; else qhead = c;
        qtail = c;
        if (++st.queued > st.queued_max) st.queued_max = st.queued;
        return;
    }
    take_slot(c);
}

static void process(conn_t *c) { /* as many whole requests as the input holds, one at a time */
    while (!c->dead && c->st == S_IDLE && c->ilen) {
        char *h = c->ibuf;
        size_t from = c->scan > 3 ? c->scan - 3 : 0;
        char *end = memmem(h + from, c->ilen - from, "\r\n\r\n", 4);
        if (!end) {
            c->scan = c->ilen;
            if (c->ilen > 65536) { st.bad++; c->close_after = true; small(c, 431, "{}"); conn_close(c, false); }
            return;
        }
        size_t hl = end + 4 - h;
        char *eol = memmem(h, hl, "\r\n", 2);
        char *sp1 = memchr(h, ' ', eol - h), *sp2 = sp1 ? memchr(sp1 + 1, ' ', eol - sp1 - 1) : NULL;
        if (!sp2) { st.bad++; c->close_after = true; small(c, 400, "{}"); conn_close(c, false); return; }
        req_t q = {.ttft = opt.ttft_ms, .ttft_sigma = opt.ttft_sigma, .itl = opt.itl_ms, .itl_sigma = opt.itl_sigma, .ms = opt.predict_ms, .fault = F_COUNT};
        const char *id = ""; size_t idl = 0; size_t clen = 0; bool chunked = false, expect = false;
        bool closing = sp2[8] == '0' || opt.close_each; /* HTTP/1.0 */
        for (char *l = eol + 2; l < end + 2;) {
            char *le = memmem(l, end + 4 - l, "\r\n", 2), *co = memchr(l, ':', le - l);
            if (co) {
                char *v = co + 1; while (v < le && (*v == ' ' || *v == '\t')) v++;
                char *ve = le; while (ve > v && ve[-1] == ' ') ve--;
                size_t kl = co - l, vl = ve - v;
                switch (*l | 0x20) {
                case 'c': if (ieq(l, kl, "content-length")) clen = strtoull(v, NULL, 10); else if (ieq(l, kl, "connection")) { if (ieq(v, vl, "close")) closing = true; else if (ieq(v, vl, "keep-alive")) closing = opt.close_each; } break;
                case 't': if (ieq(l, kl, "transfer-encoding") && memmem(v, vl, "chunked", 7)) chunked = true; break;
                case 'e': if (ieq(l, kl, "expect")) expect = true; break;
                case 'x': if (ieq(l, kl, "x-request-id")) { id = v; idl = vl; } else if (kl > 6 && !strncasecmp(l, "x-ref-", 6)) override(&q, l + 6, kl - 6, v, vl); break;
                }
            }
            l = le + 2;
        }
        size_t total; char *body = h + hl; size_t blen = clen;
        if (expect && c->ilen == hl && !c->continued) { c->continued = true; out(c, "HTTP/1.1 100 Continue\r\n\r\n", 25); if (c->dead) return; }
        if (chunked) { /* check whole first, then join in place */
            size_t p = hl; bool whole = false;
            for (;;) {
                char *x = memmem(h + p, c->ilen - p, "\r\n", 2);
                if (!x) break;
                size_t n = strtoull(h + p, NULL, 16);
                size_t nx = (x - h) + 2 + n + 2;
                if (n > (1u << 28) || nx > c->ilen) break;
                p = nx;
                if (!n) { whole = true; break; }
            }
            if (!whole) return;
            total = p; blen = 0; p = hl; char *w = body;
            for (;;) {
                char *x = memmem(h + p, total - p, "\r\n", 2);
                size_t n = strtoull(h + p, NULL, 16);
                if (!n) break;
                size_t nx = (x - h) + 2 + n + 2;
                memmove(w, x + 2, n); w += n; blen += n; p = nx;
            }
        } else {
            if (clen > (1u << 28)) { st.bad++; c->close_after = true; small(c, 413, "{}"); conn_close(c, false); return; }
            total = hl + clen;
            if (c->ilen < total) return;
        }
        int64_t t_read = real();
        c->scan = 0;
        c->continued = false;
        c->parsing = true;
        c->nreq++;
        c->close_after = closing;
        char *path = sp1 + 1; size_t pl = sp2 - path;
        char *qs = memchr(path, '?', pl);
        if (qs) {
            size_t ql = path + pl - qs - 1; pl = qs - path;
            for (char *a = qs + 1, *ae = qs + 1 + ql; a < ae;) {
                char *n = memchr(a, '&', ae - a); if (!n) n = ae;
                char *eq = memchr(a, '=', n - a);
                if (eq) override(&q, a, eq - a, eq + 1, n - eq - 1);
                a = n + 1;
            }
        }
        bool post = !memcmp(h, "POST ", 5), get = !memcmp(h, "GET ", 4);
        if (pl > 3 && !memcmp(path, "/v1/", 4)) { path += 3; pl -= 3; }
#define PATH(s) (pl == sizeof(s) - 1 && !memcmp(path, s, sizeof(s) - 1))
        if (post && PATH("/predict")) start_request(c, &q, 'p', id, idl, t_read);
        else if (post && (PATH("/chat/completions") || PATH("/completions"))) {
            walk(&q, body, blen);
            start_request(c, &q, pl == 17 ? 'c' : 't', id, idl, t_read);
        } else {
            if (get && PATH("/models")) {
                tlen = 0; tfmt("{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"ref\",\"max_model_len\":1000000}]}", opt.model);
                reply(c, 200, tb, tlen);
            } else if (get && (PATH("/health") || PATH("/"))) small(c, 200, "{\"status\":\"ok\"}");
            else if (get && PATH("/stats")) { stats_json(); reply(c, 200, tb, tlen); }
            else small(c, get || post ? 404 : 405, "{\"error\":{\"message\":\"not here\"}}");
            if (!c->dead && c->close_after) hang_up(c);
        }
        c->parsing = false;
        if (c->dead) return;
        c->ilen -= total;
        if (c->ilen) memmove(c->ibuf, c->ibuf + total, c->ilen);
    }
}

static ssize_t wire_in(conn_t *c, void *p, size_t room) { /* as recv; notes the kernel's receive stamp */
    if (!opt.rx_stamp) return recv(c->fd, p, room, MSG_DONTWAIT);
    char ctl[256];
    struct iovec v = {p, room};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = ctl, .msg_controllen = sizeof ctl};
    ssize_t n = recvmsg(c->fd, &m, MSG_DONTWAIT);
    if (n <= 0) return n;
    c->rx_stamp = 0;
    for (struct cmsghdr *k = CMSG_FIRSTHDR(&m); k; k = CMSG_NXTHDR(&m, k))
        if (k->cmsg_level == SOL_SOCKET && k->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec t; memcpy(&t, CMSG_DATA(k), sizeof t);
            c->rx_stamp = t.tv_sec * 1000000000LL + t.tv_nsec;
        }
    return n;
}
static void make_room(conn_t *c) {
    if (c->icap - c->ilen >= 2048) return;
    c->icap = c->icap ? c->icap * 2 : 4096;
    c->ibuf = realloc(c->ibuf, c->icap);
}
static void tls_decrypt(conn_t *c) { /* all that the records read so far hold */
    while (!c->dead) {
        make_room(c);
        bool fresh = !SSL_is_init_finished(c->ssl);
        ERR_clear_error();
        int n = SSL_read(c->ssl, c->ibuf + c->ilen, c->icap - c->ilen);
        int why = n > 0 ? SSL_ERROR_NONE : SSL_get_error(c->ssl, n);
        if (fresh && SSL_is_init_finished(c->ssl)) { st.tls_handshakes++; st.tls_resumed += SSL_session_reused(c->ssl); }
        tls_flush(c);
        if (c->dead) return;
        if (why == SSL_ERROR_WANT_READ) return;
        if (why != SSL_ERROR_NONE) { st.bad += why != SSL_ERROR_ZERO_RETURN; conn_close(c, false); return; }
        c->ilen += n;
        process(c);
    }
}
static void on_readable(conn_t *c) {
    static char records[1 << 16];
    for (;;) {
        if (!c->ssl) make_room(c);
        char *to = c->ssl ? records : c->ibuf + c->ilen;
        size_t room = c->ssl ? sizeof records : c->icap - c->ilen;
        ssize_t n = wire_in(c, to, room);
        if (n == 0) { conn_close(c, false); return; }
        if (n < 0) { if (errno != EAGAIN && errno != EINTR) conn_close(c, false); return; }
        if (c->ssl) {
            BIO_write(SSL_get_rbio(c->ssl), records, n);
            tls_decrypt(c);
        } else {
            c->ilen += n;
            process(c);
        }
        if (c->dead || (size_t)n < room) return;
    }
}
static SSL_CTX *tls_context(void) {
    SSL_CTX *x = SSL_CTX_new(TLS_server_method());
    if (x && SSL_CTX_set_min_proto_version(x, TLS1_3_VERSION) && SSL_CTX_use_certificate_chain_file(x, opt.tls_cert) == 1 &&
        SSL_CTX_use_PrivateKey_file(x, opt.tls_key, SSL_FILETYPE_PEM) == 1 && SSL_CTX_set_session_id_context(x, (const unsigned char *)"ref", 3)) {
        SSL_CTX_set_mode(x, SSL_MODE_RELEASE_BUFFERS);
        return x;
    }
    ERR_print_errors_fp(stderr);
    return NULL;
}
static void on_accept(void) {
    for (int i = 0; i < 256; i++) {
        int fd = accept4(lfd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED && !opt.quiet) perror("accept");
            return;
        }
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4); /* no pacing (bbr would add its own timers to ours) */
        if (opt.rx_stamp) setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);
        conn_t *c = freelist;
        if (c) {
            freelist = c->dnext;
            conn_t k = *c; memset(c, 0, sizeof *c);
            c->ibuf = k.ibuf; c->icap = k.icap; c->obuf = k.obuf; c->ocap = k.ocap; c->ck = k.ck; c->ckcap = k.ckcap; c->model = k.model; c->model_cap = k.model_cap;
        } else c = calloc(1, sizeof *c);
        c->fd = fd; c->hidx = -1; c->t_conn = real();
        if (tls) {
            c->ssl = SSL_new(tls);
            SSL_set_bio(c->ssl, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
            SSL_set_accept_state(c->ssl);
        }
        c->anext = allhead; if (allhead) allhead->aprev = c;
        allhead = c;
        struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c};
        epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
        st.accepted++;
        if (++st.open > st.open_max) st.open_max = st.open;
    }
}

/* ---------------------------------------------------------------------- main */
static void write_log(void) {
    if (!opt.log) return;
    FILE *f = fopen(opt.log, "w");
    if (!f) { perror(opt.log); return; }
    setvbuf(f, NULL, _IOFBF, 1 << 20);
    fprintf(f, "seq,id,kind,status,outcome,t_conn,t_arrived,t_read,t_start,t_first,t_last,t_end,n_planned,n_sent,conn_reqs,plan_ttft_ns,late_sum_ns,late_max_ns,gap_max_ns\n");
    for (size_t i = 0; i < nrec; i++) {
        rec_t *r = &blocks[i / BLK][i % BLK];
        fprintf(f, "%" PRIu64 ",%s,%c,%u,%s,%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64 ",%u,%u,%u,%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64 "\n",
                r->seq, r->id, r->kind, r->status, outcome_name[r->outcome], r->t_conn, r->t_arrived, r->t_read, r->t_start, r->t_first, r->t_last, r->t_end,
                r->n_planned, r->n_sent, r->conn_reqs, r->plan_ttft_ns, r->late_sum_ns, r->late_max_ns, r->gap_max_ns);
    }
    fclose(f);
}
static void on_sig(int s) { (void)s; stop = 1; }
static const char HELP[] =
    "refserver: OpenAI-like streaming server with a schedule and a ground-truth log\n"
    "  --port N (8000)          --log FILE (CSV, written at SIGTERM/SIGINT)   --no-log-predict\n"
    "  --model NAME             --token TEXT (\" tok\", must be JSON-safe)      --number (tokens t00000, t00001, ...)\n"
    "  --ttft-ms X (200)  --ttft-sigma S   --itl-ms X (50)  --itl-sigma S      sigma 0: fixed; else lognormal with median X\n"
    "  --predict-ms X (0) --predict-sigma S   --tokens N (100, if the request has no max_tokens)\n"
    "  --seed N (1)  --seed-by-id (sequence from x-request-id, not from arrival order)\n"
    "  --slots K (0 = no limit; others wait first in, first out)   --itl-per-active-us A (each token takes A us more per active request)\n"
    "  --role-chunk none|first|early   --headers-late (with the first token)   --burst M (M events in one send)   --split (an event over two HTTP chunks)\n"
    "  --error-rate P --error-status 500 --reset-rate P --stall-rate P --stall-ms X (0 = for ever) --truncate-rate P --garbage-rate P --inband-rate P\n"
    "  --close-each (Connection: close)  --no-rx-stamp  --spin-us X (poll without sleeping when a deadline is this near; -1: always)  --quiet\n"
    "  --tls-cert FILE --tls-key FILE (PEM; TLS 1.3 with session tickets, and nothing else)\n"
    "per request (query string, x-ref-* header with '-', or top-level body key with ref_ prefix): ttft_ms ttft_sigma itl_ms itl_sigma n ms fault\n"
    "GET /stats /health /v1/models, POST /v1/chat/completions /v1/completions /predict\n";

int main(int argc, char **argv) {
    enum { A = 256, PORT, LOG, NLP, MODEL, TOKEN, NUMBER, TTFT, TTFTS, ITL, ITLS, PMS, PSIG, TOKENS, SEED, SBID, SLOTS, LOADUS, ROLE, HLATE, BURST, SPLIT, ERATE, ESTAT,
        RRATE, SRATE, SMS, TRATE, GRATE, IRATE, CEACH, NRX, SPIN, TCERT, TKEY, QUIET, HELPO };
    static const struct option lo[] = {
        {"port", 1, 0, PORT}, {"log", 1, 0, LOG}, {"no-log-predict", 0, 0, NLP}, {"model", 1, 0, MODEL}, {"token", 1, 0, TOKEN}, {"number", 0, 0, NUMBER},
        {"ttft-ms", 1, 0, TTFT}, {"ttft-sigma", 1, 0, TTFTS}, {"itl-ms", 1, 0, ITL}, {"itl-sigma", 1, 0, ITLS}, {"predict-ms", 1, 0, PMS}, {"predict-sigma", 1, 0, PSIG},
        {"tokens", 1, 0, TOKENS}, {"seed", 1, 0, SEED}, {"seed-by-id", 0, 0, SBID}, {"slots", 1, 0, SLOTS}, {"itl-per-active-us", 1, 0, LOADUS}, {"role-chunk", 1, 0, ROLE},
        {"headers-late", 0, 0, HLATE}, {"burst", 1, 0, BURST}, {"split", 0, 0, SPLIT}, {"error-rate", 1, 0, ERATE}, {"error-status", 1, 0, ESTAT}, {"reset-rate", 1, 0, RRATE},
        {"stall-rate", 1, 0, SRATE}, {"stall-ms", 1, 0, SMS}, {"truncate-rate", 1, 0, TRATE}, {"garbage-rate", 1, 0, GRATE}, {"inband-rate", 1, 0, IRATE},
        {"close-each", 0, 0, CEACH}, {"no-rx-stamp", 0, 0, NRX}, {"spin-us", 1, 0, SPIN}, {"tls-cert", 1, 0, TCERT}, {"tls-key", 1, 0, TKEY}, {"quiet", 0, 0, QUIET}, {"help", 0, 0, HELPO}, {0, 0, 0, 0}};
    for (int o; (o = getopt_long(argc, argv, "", lo, NULL)) != -1;) switch (o) {
        case PORT: opt.port = atoi(optarg); break; case LOG: opt.log = optarg; break; case NLP: opt.log_predict = false; break;
        case MODEL: opt.model = optarg; break; case TOKEN: opt.token = optarg; break; case NUMBER: opt.number = true; break;
        case TTFT: opt.ttft_ms = atof(optarg); break; case TTFTS: opt.ttft_sigma = atof(optarg); break; case ITL: opt.itl_ms = atof(optarg); break; case ITLS: opt.itl_sigma = atof(optarg); break;
        case PMS: opt.predict_ms = atof(optarg); break; case PSIG: opt.predict_sigma = atof(optarg); break; case TOKENS: opt.tokens = atol(optarg); break;
        case SEED: opt.seed = strtoull(optarg, NULL, 10); break; case SBID: opt.seed_by_id = true; break; case SLOTS: opt.slots = atol(optarg); break; case LOADUS: opt.load_us = atof(optarg); break;
        case ROLE: opt.role = !strcmp(optarg, "early") ? ROLE_EARLY : !strcmp(optarg, "first") ? ROLE_FIRST : ROLE_NONE; break;
        case HLATE: opt.headers_late = true; break; case BURST: opt.burst = atoi(optarg) < 1 ? 1 : atoi(optarg); break; case SPLIT: opt.split = true; break;
        case ERATE: opt.rate[F_ERROR] = atof(optarg); break; case ESTAT: opt.error_status = atoi(optarg); break; case RRATE: opt.rate[F_RESET] = atof(optarg); break;
        case SRATE: opt.rate[F_STALL] = atof(optarg); break; case SMS: opt.stall_ms = atof(optarg); break; case TRATE: opt.rate[F_TRUNCATE] = atof(optarg); break;
        case GRATE: opt.rate[F_GARBAGE] = atof(optarg); break; case IRATE: opt.rate[F_INBAND] = atof(optarg); break; case CEACH: opt.close_each = true; break;
        case NRX: opt.rx_stamp = false; break; case SPIN: opt.spin_us = atoi(optarg); break; case TCERT: opt.tls_cert = optarg; break; case TKEY: opt.tls_key = optarg; break;
        case QUIET: opt.quiet = true; break;
        case HELPO: fputs(HELP, stdout); return 0;
        default: fputs(HELP, stderr); return 2;
        }
    if (!opt.tls_cert != !opt.tls_key) { fputs("refserver: --tls-cert and --tls-key: give both\n", stderr); return 2; }
    if (opt.tls_cert && !(tls = tls_context())) return 1;
    struct rlimit rl; getrlimit(RLIMIT_NOFILE, &rl);
    rlim_t want = 65536;
    struct rlimit up = {want, rl.rlim_max > want ? rl.rlim_max : want};
    if (setrlimit(RLIMIT_NOFILE, &up) != 0) { rl.rlim_cur = rl.rlim_max; setrlimit(RLIMIT_NOFILE, &rl); }
    prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0); /* whoever started it is gone: nobody else would end it */
    struct sigaction sa = {.sa_handler = on_sig}; sigaction(SIGTERM, &sa, NULL); sigaction(SIGINT, &sa, NULL); signal(SIGPIPE, SIG_IGN);
    lfd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1; setsockopt(lfd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in ad = {.sin_family = AF_INET, .sin_port = htons(opt.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(lfd, (void *)&ad, sizeof ad) || listen(lfd, opt.backlog)) { perror("bind/listen"); return 1; }
    socklen_t al = sizeof ad; getsockname(lfd, (void *)&ad, &al);
    if (!opt.quiet) { printf("refserver on 127.0.0.1:%d\n", ntohs(ad.sin_port)); fflush(stdout); }
    ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event le = {.events = EPOLLIN, .data.ptr = NULL}; epoll_ctl(ep, EPOLL_CTL_ADD, lfd, &le);
    st.t_boot = mono();
    sigset_t block, wait; sigemptyset(&block); sigaddset(&block, SIGTERM); sigaddset(&block, SIGINT); sigprocmask(SIG_BLOCK, &block, &wait);
    static struct epoll_event ev[512];
    for (bool last = false; !last;) {
        bool stopping = stop; /* what the sockets had to say before the signal still counts */
        struct timespec ts, *tp = NULL;
        if (stopping) { ts.tv_sec = ts.tv_nsec = 0; tp = &ts; }
        else if (hn) {
            int64_t d = heap[0].due - mono();
            if (d < 0 || opt.spin_us < 0 || d < opt.spin_us * 1000LL) d = 0;
            ts.tv_sec = d / 1000000000LL; ts.tv_nsec = d % 1000000000LL; tp = &ts;
        } else if (opt.spin_us < 0) { ts.tv_sec = ts.tv_nsec = 0; tp = &ts; }
        int n = epoll_pwait2(ep, ev, 512, tp, &wait);
        if (n < 0 && errno != EINTR) { perror("epoll"); break; }
        last = stopping && n < 512;
        for (int i = 0; i < n; i++) {
            conn_t *c = ev[i].data.ptr;
            if (!c) { on_accept(); continue; }
            if (c->dead) continue;
            if ((ev[i].events & EPOLLOUT) && c->want_out) {
                if (!flush_out(c)) continue;
                if (c->st == S_FINAL && c->ooff == c->olen) { conn_close(c, false); continue; }
            }
            if (ev[i].events & (EPOLLERR | EPOLLHUP)) { conn_close(c, false); continue; }
            if (ev[i].events & (EPOLLIN | EPOLLRDHUP)) on_readable(c);
        }
        for (int k = 0; hn && k < 128; k++) { /* at most so many sends before looking at the sockets again */
            int64_t now = mono();
            if (heap[0].due > now) break;
            on_timer(heap[0].c, now);
        }
        while (deadlist) { conn_t *c = deadlist; deadlist = c->dnext; c->dnext = freelist; freelist = c; }
    }
    if (!opt.quiet) { stats_json(); printf("%s\n", tb); fflush(stdout); }
    write_log();
    return 0;
}
