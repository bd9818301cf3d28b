/* The load: any number of WebSocket clients in one thread, on epoll.
 *
 * Client 0 publishes and all clients receive (fan-out), each client sends and waits for its own message
 * (echo), or all reconnect at once for messages that the server has kept (resume). Payloads begin with
 * "bench:" and a number that rises by one, so that a message that is lost, doubled or out of order is noticed. One
 * line of JSON is printed when all clients are members, a second one with the measurements. load.py starts this
 * program and describes the options; they all have the form --name=value.
 */
#include "websocket.h"

#include <poll.h>

#define MARK "bench:"
#define MARK_SIZE (sizeof MARK - 1)
#define DIGITS 10
#define RING (1 << 16) /* messages that may be outstanding */
#define LARGEST_LIST 8
#define BUCKETS (64 * 64)
#define MS 1000000u /* in ns, as all times are */

typedef struct {
    const char *values[LARGEST_LIST];
    size_t size;
} List;

static struct {
    const char *mode, *path, *ready, *message, *receipt, *receipt_after;
    List hello, replies;
    uint64_t port, publish_port, server, clients, stalled, channels, connecting, outstanding, size, messages;
    double rate, settle, warmup, seconds, patience, deadline;
} options = {.mode = "fanout", .path = "/", .ready = "", .message = "{}", .clients = 1, .connecting = 64,
             .outstanding = 1, .size = 128, .seconds = 1, .patience = 5, .deadline = 60};

typedef enum { CONNECTING, OPENING, JOINING, MEMBER, GONE } State;

typedef struct {
    Link link;
    State state;
    bool is_stalled;
    uint64_t sent, received; /* numbers of the next message; a client sends one only in an echo */
    uint64_t skipped;        /* messages that it lacks although it has later ones */
    uint64_t sent_at;
    size_t mark; /* offset of the payload in the last frame */
} Client;

static bool echoes, idles, resumes; /* the mode */
static int epoll;
static Client *clients;
static size_t started, opening, joined, lost, stalled_ended;
static char buffer[1 << 20];

static char *message; /* a payload within the template */
static size_t message_size, number_at;

static uint64_t next_number, oldest;       /* the next to be published, the oldest that a client still lacks */
static uint64_t sent, arrived;             /* by all clients and at all clients, from the beginning */
static uint64_t last_arrival, waited;      /* time of the last one, and time spent waiting, in ns */
static uint64_t misordered, stalled_bytes; /* from the beginning */
static uint64_t sent_at[RING];
static uint64_t receivers[RING];
static bool is_incomplete[RING]; /* a client has lost it */

static bool measuring, is_ending;
static uint64_t deliveries, completed; /* while measuring, like all below */

typedef struct {
    uint64_t histogram[BUCKETS], longest;
} Latencies;

static Latencies own, others; /* of the client that publishes, if it has a server of its own; of the others */

/* Latencies: 64 buckets for each power of two, so that a bucket is off by 1.6 % at the most. */
static void record(Latencies *latencies, uint64_t ns) {
    if (ns > latencies->longest) latencies->longest = ns;
    const int shift = ns < 64 ? 0 : 63 - __builtin_clzll(ns) - 6;
    latencies->histogram[(uint64_t)shift * 64 + (ns >> shift)]++;
}

static double percentile_us(const Latencies *latencies, double share) {
    uint64_t total = 0, seen = 0;
    for (size_t i = 0; i < BUCKETS; i++) total += latencies->histogram[i];
    for (size_t i = 0; i < BUCKETS; i++)
        if ((seen += latencies->histogram[i]) && (double)seen >= share * (double)total) {
            const size_t shift = i < 128 ? 0 : i / 64 - 1;
            return (double)((i - shift * 64) << shift) / 1000;
        }
    return 0;
}

/* Connections */

static long index_of(const Client *client) { return client - clients; }

static bool is_apart(const Client *client) { return options.publish_port && client == clients; }

static void watch(Client *client, int operation) {
    const bool writes = client->state == CONNECTING || client->link.out.size;
    struct epoll_event event = {.events = EPOLLIN | (writes ? EPOLLOUT : 0), .data.ptr = client};
    epoll_ctl(epoll, operation, client->link.fd, &event);
}

/* Data that the socket does not take at once is sent when it does: a server may be waiting for us to read first.
 * If the connection has ended, reading finds out. */
static void send_to_server(Client *client, const char *data, size_t size) {
    const bool was_empty = !client->link.out.size;
    if (send_or_keep(&client->link, data, size) && was_empty && client->link.out.size)
        watch(client, EPOLL_CTL_MOD);
}

static void send_frame(Client *client, int opcode, const char *payload, size_t size) {
    char *frame = allocate(NULL, size + LARGEST_HEADER);
    send_to_server(client, frame, write_frame(frame, opcode, payload, size, true));
    free(frame);
}

static void send_text(Client *client, const char *text) { send_frame(client, TEXT, text, strlen(text)); }

static void join(Client *client) {
    client->state = MEMBER;
    opening--;
    joined++;
    if (client->is_stalled) epoll_ctl(epoll, EPOLL_CTL_DEL, client->link.fd, NULL);
}

static void lose(Client *client, const char *how) {
    if (client->state != MEMBER)
        die("expected client %ld to become a member, but the server %s", index_of(client), how);
    client->state = GONE;
    client->is_stalled ? stalled_ended++ : lost++;
    close_link(&client->link);
}

/* Messages */

static void prepare_message(void) {
    const char *brackets = strstr(options.message, "{}");
    if (!brackets) die("expected --message to have {} for the payload, but got %s", options.message);
    if (options.size < MARK_SIZE + DIGITS) options.size = MARK_SIZE + DIGITS;
    const size_t before = (size_t)(brackets - options.message), after = strlen(brackets + 2);
    message_size = before + options.size + after;
    if (message_size + LARGEST_HEADER > sizeof buffer / 2)
        die("expected a --size of less than %zu KiB, but got %zu bytes", sizeof buffer / 2048, message_size);
    message = allocate(NULL, message_size);
    memset(message, 'x', message_size);
    memcpy(message, options.message, before);
    memcpy(message + before, MARK, MARK_SIZE);
    memcpy(message + before + options.size, brackets + 2, after);
    number_at = before + MARK_SIZE;
}

static size_t write_message(char *out, uint64_t number) {
    for (size_t i = DIGITS; i-- > 0; number /= 10) message[number_at + i] = (char)('0' + number % 10);
    sent++;
    return write_frame(out, TEXT, message, message_size, true);
}

/* Send the next `count` messages in one write, as a busy publisher does. */
static void publish(Client *client, uint64_t count) {
    char *frames = allocate(NULL, count * (message_size + LARGEST_HEADER));
    size_t size = 0;
    const uint64_t now = nanoseconds();
    for (; count; count--, next_number++) {
        size += write_message(frames + size, next_number);
        sent_at[next_number % RING] = now;
        receivers[next_number % RING] = 0;
        is_incomplete[next_number % RING] = false;
    }
    send_to_server(client, frames, size);
    free(frames);
}

static void echo(Client *client) {
    char *frame = allocate(NULL, message_size + LARGEST_HEADER);
    const size_t size = write_message(frame, client->sent++);
    client->sent_at = nanoseconds();
    send_to_server(client, frame, size);
    free(frame);
}

static uint64_t number_in(const char *digits) {
    uint64_t number = 0;
    for (int i = 0; i < DIGITS; i++) number = number * 10 + (uint64_t)(digits[i] - '0');
    return number;
}

/* Some protocols want an answer to each message, with the id that the message has. */
static void send_receipt(Client *client, const Frame *frame) {
    const size_t length = strlen(options.receipt_after);
    const char *id = memmem(frame->payload, frame->size, options.receipt_after, length);
    if (!id) return;
    id += length;
    const char *end = memchr(id, '"', (size_t)(frame->payload + frame->size - id));
    if (!end) return;
    const char *brackets = strstr(options.receipt, "{}");
    char *text;
    if (asprintf(&text, "%.*s%.*s%s", (int)(brackets - options.receipt), options.receipt, (int)(end - id), id,
                 brackets + 2) < 0)
        die("out of memory");
    send_text(client, text);
    free(text);
}

/* Messages before `number` are lost, or will arrive out of order: the run does not wait for them. */
static void skip(Client *client, uint64_t number) {
    for (; client->received < number; client->received++) {
        client->skipped++;
        receivers[client->received % RING]++;
        is_incomplete[client->received % RING] = true;
    }
}

static void deliver(Client *client, const Frame *frame, uint64_t now) {
    if (client->is_stalled) return;
    if (idles) {
        last_arrival = now;
        arrived++;
        return;
    }
    if (options.receipt) send_receipt(client, frame);
    const uint64_t number = number_in(frame->payload + client->mark + MARK_SIZE);
    if (number != client->received) misordered++;
    if (number >= (echoes ? client->sent : next_number)) return; /* no client has sent it */
    if (number < client->received) {
        /* It is late, and not lost; or doubled, which is no delivery. A client that waits for some is taken to
         * have got one of those. */
        if (client->skipped) client->skipped--, arrived++, last_arrival = now;
        return;
    }
    if (!echoes) skip(client, number);
    client->received = number + 1;
    last_arrival = now;
    arrived++;
    if (measuring) {
        deliveries++;
        record(is_apart(client) ? &own : &others, now - (echoes ? client->sent_at : sent_at[number % RING]));
    }
    if (!echoes) receivers[number % RING]++;
    else if (!is_ending) echo(client);
}

static bool has_payload_at(const Frame *frame, size_t at) {
    return at + MARK_SIZE + DIGITS <= frame->size && !memcmp(frame->payload + at, MARK, MARK_SIZE);
}

static void take_message(Client *client, const Frame *frame, uint64_t now) {
    if (!has_payload_at(frame, client->mark)) {
        const char *found = memmem(frame->payload, frame->size, MARK, MARK_SIZE);
        if (found) client->mark = (size_t)(found - frame->payload);
    }
    if (has_payload_at(frame, client->mark)) {
        deliver(client, frame, now);
        return;
    }
    for (size_t i = 0; i < options.replies.size; i++) {
        const char *reply = options.replies.values[i], *equals = strchr(reply, '=');
        if (frame->size == (size_t)(equals - reply) && !memcmp(frame->payload, reply, frame->size)) {
            send_text(client, equals + 1);
            return;
        }
    }
    if (client->state == JOINING && memmem(frame->payload, frame->size, options.ready, strlen(options.ready)))
        join(client);
}

static void take(Client *client, const Frame *frame, uint64_t now) {
    const unsigned char *payload = (const unsigned char *)frame->payload;
    if (frame->opcode == PING) {
        send_frame(client, PONG, frame->payload, frame->size);
    } else if (frame->opcode == CLOSE) {
        char how[32];
        snprintf(how, sizeof how, "closed it with %d", frame->size < 2 ? 1005 : payload[0] << 8 | payload[1]);
        lose(client, how);
    } else if (!frame->is_final) {
        die("expected whole messages, but client %ld got a fragment", index_of(client));
    } else if (frame->opcode == TEXT || frame->opcode == BINARY) {
        take_message(client, frame, now);
    }
}

/* Read the answer to the handshake. Returns its length, or 0 if it is not complete. */
static size_t open_client(Client *client, const char *data, size_t size) {
    const char *end = memmem(data, size, "\r\n\r\n", 4);
    if (!end) return 0;
    if (strncmp(data, "HTTP/1.1 101", 12)) {
        char how[128];
        snprintf(how, sizeof how, "answered %.*s", (int)strcspn(data, "\r"), data);
        lose(client, how);
    }
    client->state = JOINING;
    for (size_t i = 0; i < options.hello.size; i++) send_text(client, options.hello.values[i]);
    if (!*options.ready) join(client);
    return (size_t)(end + 4 - data);
}

static void receive(Client *client) {
    const ssize_t available = read_link(&client->link, buffer, sizeof buffer);
    if (available < 0) lose(client, "ended the connection");
    if (available <= 0) return;
    const size_t size = (size_t)available;
    if (client->is_stalled) stalled_bytes += size - client->link.in.size;
    size_t used = client->state == OPENING ? open_client(client, buffer, size) : 0;
    const uint64_t now = nanoseconds();
    Frame frame;
    for (size_t took; (client->state == JOINING || client->state == MEMBER) &&
                      (took = parse_frame(buffer + used, size - used, &frame));
         used += took)
        take(client, &frame, now);
    if (client->state != GONE && (client->link.in.size || used < size))
        keep(&client->link.in, buffer + used, size - used);
}

static void start(size_t index) {
    Client *client = &clients[index];
    *client = (Client){.state = CONNECTING, .is_stalled = index >= options.clients - options.stalled};
    client->link.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (client->link.fd < 0) die("cannot have a socket for client %zu: %m", index);
    set_no_delay(client->link.fd);
    /* Reset on close, so that no run leaves thousands of ports waiting behind. */
    setsockopt(client->link.fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    const uint64_t port = is_apart(client) ? options.publish_port : options.port;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(client->link.fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        die("cannot connect client %zu: %m", index);
    watch(client, EPOLL_CTL_ADD);
    opening++;
}

static void request(Client *client) {
    socklen_t length = sizeof errno;
    getsockopt(client->link.fd, SOL_SOCKET, SO_ERROR, &errno, &length);
    if (errno) die("cannot connect client %ld: %m", index_of(client));
    const char *brackets = strstr(options.path, "{}");
    const uint64_t channels = options.channels ? options.channels : options.clients;
    char number[24] = "", *text;
    if (brackets) snprintf(number, sizeof number, "%llu", (unsigned long long)index_of(client) % channels);
    const int size = asprintf(&text,
                              "GET %.*s%s%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
                              "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                              "Sec-WebSocket-Version: 13\r\n\r\n",
                              (int)(brackets ? brackets - options.path : (long)strlen(options.path)), options.path,
                              number, brackets ? brackets + 2 : "", (int)options.port);
    if (size < 0) die("out of memory");
    client->state = OPENING;
    send_to_server(client, text, (size_t)size);
    watch(client, EPOLL_CTL_MOD);
    free(text);
}

/* One round: wait for at most `wait` ns, then handle the events. */
static void turn(uint64_t wait) {
    struct epoll_event events[1024];
    int ready = epoll_wait(epoll, events, 1024, 0);
    if (ready == 0 && wait > 0) {
        const uint64_t begin = nanoseconds();
        /* epoll_wait counts in milliseconds. */
        const struct timespec timeout = {.tv_nsec = (long)wait};
        if (wait < MS) ppoll(&(struct pollfd){.fd = epoll, .events = POLLIN}, 1, &timeout, NULL);
        ready = epoll_wait(epoll, events, 1024, (int)(wait / MS));
        waited += nanoseconds() - begin;
    }
    for (int i = 0; i < ready; i++) {
        Client *client = events[i].data.ptr;
        if (!client) continue;
        if (client->state == CONNECTING) {
            request(client);
            continue;
        }
        if (events[i].events & EPOLLOUT) {
            flush(&client->link);
            if (!client->link.out.size) watch(client, EPOLL_CTL_MOD);
        }
        if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) receive(client);
    }
}

/* Runs */

static uint64_t in_ns(double seconds) { return (uint64_t)(seconds * 1e9); }

static void connect_all(void) {
    const uint64_t begin = nanoseconds();
    while (joined < options.clients) {
        while (started < options.clients && opening < options.connecting) start(started++);
        turn(10 * MS);
        if (lost) die("expected all clients to stay, but one of %zu members was lost while others joined", joined);
        if (nanoseconds() - begin > in_ns(options.deadline))
            die("expected %zu members, but after %g s there are %zu", (size_t)options.clients, options.deadline,
                joined);
    }
    printf("{\"connected\": %zu, \"seconds\": %.6f}\n", joined, (double)(nanoseconds() - begin) / 1e9);
    fflush(stdout);
}

/* Count the messages that all clients have. Each client gets them in order, so the oldest is complete first. */
static void complete(void) {
    while (oldest < next_number && receivers[oldest % RING] >= options.clients - options.stalled) {
        if (measuring && !is_incomplete[oldest % RING]) completed++;
        oldest++;
    }
}

/* Publish the messages that are due. Returns the time to wait for events. */
static uint64_t refill(uint64_t now) {
    static uint64_t next; /* its time, if there is a rate */
    uint64_t count = options.outstanding - (options.rate > 0 ? 0 : next_number - oldest);
    uint64_t wait = 20 * MS;
    if (options.rate > 0) {
        if (!next) next = now;
        count = next <= now && next_number - oldest < RING;
        if (count) next += in_ns(1 / options.rate);
        if (next < now + wait) wait = next <= now ? 0 : next - now;
    }
    if (options.messages && count > options.messages - next_number) count = options.messages - next_number;
    if (count) publish(&clients[0], count);
    return wait;
}

static double seconds_of(clockid_t clock) {
    struct timespec used;
    return clock_gettime(clock, &used) ? 0 : (double)used.tv_sec + (double)used.tv_nsec / 1e9;
}

static double server_cpu(void) {
    clockid_t clock;
    return options.server && !clock_getcpuclockid((pid_t)options.server, &clock) ? seconds_of(clock) : 0;
}

typedef struct {
    uint64_t at, waited;
    double cpu, server_cpu;
} Clocks;

static Clocks read_clocks(void) {
    return (Clocks){nanoseconds(), waited, seconds_of(CLOCK_PROCESS_CPUTIME_ID), server_cpu()};
}

static void print_result(const Clocks *from, const Clocks *to, uint64_t expected, uint64_t outstanding) {
    const double seconds = (double)(to->at - from->at + 1) / 1e9;
    printf("{\"deliveries\": %llu, \"messages\": %llu, \"outstanding\": %llu, \"seconds\": %.6f,"
           " \"load_cpu\": %.4f, \"load_idle\": %.4f, \"server_cpu\": %.4f,"
           " \"misordered\": %llu, \"missing\": %llu, \"expected\": %llu, \"lost_clients\": %zu",
           (unsigned long long)deliveries, (unsigned long long)completed, (unsigned long long)outstanding, seconds,
           (to->cpu - from->cpu) / seconds, (double)(to->waited - from->waited) / 1e9 / seconds,
           (to->server_cpu - from->server_cpu) / seconds, (unsigned long long)misordered,
           (unsigned long long)(expected - arrived), (unsigned long long)expected, lost);
    printf(", \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f",
           percentile_us(&others, .5), percentile_us(&others, .9), percentile_us(&others, .99),
           percentile_us(&others, .999), (double)others.longest / 1000);
    printf(", \"own_p50_us\": %.1f, \"own_p99_us\": %.1f, \"own_max_us\": %.1f", percentile_us(&own, .5),
           percentile_us(&own, .99), (double)own.longest / 1000);
}

static void run(void) {
    /* Some servers let a client in a while after its WebSocket is open. */
    for (const uint64_t settled = nanoseconds() + in_ns(options.settle); nanoseconds() < settled;) turn(10 * MS);
    Clocks from = read_clocks();
    const uint64_t begin = from.at, deadline = begin + in_ns(options.deadline);
    const uint64_t measure = begin + in_ns(options.warmup), until = measure + in_ns(options.seconds);
    const uint64_t patience = in_ns(options.patience);
    last_arrival = begin;
    if (echoes)
        for (size_t i = 0; i < options.clients; i++) echo(&clients[i]);
    for (uint64_t now = begin; !lost && now < deadline; now = nanoseconds()) {
        if (!measuring && now >= measure) {
            measuring = true;
            from = read_clocks();
        }
        if (options.messages ? oldest == options.messages || now > last_arrival + patience : now >= until) break;
        turn(echoes ? 20 * MS : refill(now));
        complete();
    }
    const Clocks to = read_clocks();
    const uint64_t outstanding = echoes ? sent - arrived : next_number - oldest;

    /* Wait for messages that are under way, without measuring them, to know whether they are lost. */
    const uint64_t expected = sent * (echoes ? 1 : options.clients - options.stalled);
    measuring = false;
    is_ending = true;
    last_arrival = to.at;
    while (!options.messages && !lost && arrived < expected && nanoseconds() < deadline &&
           nanoseconds() < last_arrival + patience)
        turn(10 * MS);
    print_result(&from, &to, expected, outstanding);
}

/* All clients resume at once, and each gets the messages that it has missed. */
static void resume(void) {
    const Clocks from = read_clocks();
    const uint64_t expected = options.clients * options.messages;
    const uint64_t deadline = from.at + in_ns(options.deadline), patience = in_ns(options.patience);
    next_number = options.messages;
    for (uint64_t i = 0; i < next_number; i++) sent_at[i] = from.at;
    measuring = true;
    connect_all();
    last_arrival = nanoseconds();
    for (uint64_t now = last_arrival; !lost && arrived < expected && now < deadline && now < last_arrival + patience;
         now = nanoseconds())
        turn(20 * MS);
    complete();
    const Clocks to = read_clocks();
    print_result(&from, &to, expected, 0);
}

/* Read at last the data that wait for the clients that did not read, to see whether their connections have ended: until
 * nothing has come for 2 s. */
static void read_stalled(void) {
    for (size_t i = options.clients - options.stalled; i < options.clients; i++)
        watch(&clients[i], EPOLL_CTL_ADD);
    uint64_t last = nanoseconds(), seen = 0;
    while (stalled_ended < options.stalled && nanoseconds() < last + in_ns(2)) {
        turn(20 * MS);
        if (stalled_bytes > seen) seen = stalled_bytes, last = nanoseconds();
    }
    printf(", \"stalled\": %llu, \"stalled_ended\": %zu, \"stalled_bytes\": %llu",
           (unsigned long long)options.stalled, stalled_ended, (unsigned long long)stalled_bytes);
}

/* Stay connected until stdin is closed, and then as long as messages arrive. */
static void idle(void) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event);
    set_not_blocking(STDIN_FILENO);
    for (char byte; read(STDIN_FILENO, &byte, 1) != 0;) turn(900 * MS);
    epoll_ctl(epoll, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
    while (arrived && nanoseconds() < last_arrival + in_ns(options.patience)) turn(20 * MS);
    printf("{\"lost_clients\": %zu, \"arrived\": %llu", lost, (unsigned long long)arrived);
}

/* Options */

static const struct {
    const char *name;
    enum { TEXTUAL, LISTED, COUNT, TIME } kind;
    void *value;
} KNOWN[] = {
    {"mode", TEXTUAL, &options.mode},
    {"path", TEXTUAL, &options.path},
    {"ready", TEXTUAL, &options.ready},
    {"message", TEXTUAL, &options.message},
    {"receipt", TEXTUAL, &options.receipt},
    {"receipt_after", TEXTUAL, &options.receipt_after},
    {"hello", LISTED, &options.hello},
    {"reply", LISTED, &options.replies},
    {"port", COUNT, &options.port},
    {"publish_port", COUNT, &options.publish_port},
    {"server", COUNT, &options.server},
    {"clients", COUNT, &options.clients},
    {"stalled", COUNT, &options.stalled},
    {"channels", COUNT, &options.channels},
    {"connecting", COUNT, &options.connecting},
    {"outstanding", COUNT, &options.outstanding},
    {"size", COUNT, &options.size},
    {"messages", COUNT, &options.messages},
    {"rate", TIME, &options.rate},
    {"settle", TIME, &options.settle},
    {"warmup", TIME, &options.warmup},
    {"seconds", TIME, &options.seconds},
    {"patience", TIME, &options.patience},
    {"deadline", TIME, &options.deadline},
};

static double number_of(const char *name, const char *text, bool whole) {
    char *end;
    const double number = strtod(text, &end);
    if (end == text || *end || !(number >= 0 && number < 1e9) || (whole && number != (double)(uint64_t)number))
        die("expected --%s to be a %snumber from 0, but got '%s'", name, whole ? "whole " : "", text);
    return number;
}

static void parse_option(const char *argument) {
    const char *equals = strchr(argument, '=');
    for (size_t i = 0; equals && i < sizeof KNOWN / sizeof *KNOWN; i++) {
        const char *name = KNOWN[i].name, *text = equals + 1;
        if (strncmp(argument, "--", 2) || (size_t)(equals - argument - 2) != strlen(name) ||
            strncmp(argument + 2, name, strlen(name)))
            continue;
        List *list = KNOWN[i].value;
        switch (KNOWN[i].kind) {
        case TEXTUAL: *(const char **)KNOWN[i].value = text; break;
        case COUNT: *(uint64_t *)KNOWN[i].value = (uint64_t)number_of(name, text, true); break;
        case TIME: *(double *)KNOWN[i].value = number_of(name, text, false); break;
        case LISTED:
            if (list->size == LARGEST_LIST) die("expected --%s at most %d times", name, LARGEST_LIST);
            list->values[list->size++] = text;
        }
        return;
    }
    die("expected --name=value with a name that load.py has, but got %s", argument);
}

static void check_options(void) {
    const bool is_fan_out = !strcmp(options.mode, "fanout");
    echoes = !strcmp(options.mode, "echo");
    idles = !strcmp(options.mode, "idle");
    resumes = !strcmp(options.mode, "resume");
    if (!is_fan_out && !echoes && !idles && !resumes)
        die("expected --mode to be fanout, echo, idle or resume, but got %s", options.mode);
    if (!is_fan_out && (options.stalled || (options.messages && !resumes) || options.rate > 0))
        die("expected --stalled, --messages and --rate with --mode=fanout, but got %s", options.mode);
    if (resumes && (options.messages < 1 || options.messages > RING))
        die("expected --messages from 1 to %d with --mode=resume, but got %llu", RING,
            (unsigned long long)options.messages);
    if (echoes && options.outstanding != 1) die("expected --outstanding=1, for an echo waits for its message");
    if (options.port < 1 || options.port > 65535) die("expected a --port from 1 to 65535");
    if (options.connecting < 1) die("expected --connecting to be at least 1");
    if (options.stalled >= options.clients)
        die("expected more --clients than --stalled, for one that reads has to publish");
    if (options.outstanding < 1 || options.outstanding > RING)
        die("expected --outstanding from 1 to %d, but got %llu", RING, (unsigned long long)options.outstanding);
    if (options.messages && options.warmup > 0) die("expected --warmup=0 with --messages, for all of them count");
    if (!options.receipt != !options.receipt_after || (options.receipt && !strstr(options.receipt, "{}")))
        die("expected --receipt with {} for the text behind --receipt_after");
    for (size_t i = 0; i < options.replies.size; i++)
        if (!strchr(options.replies.values[i], '=')) die("expected --reply=received=answer");
}

int main(int count, char **arguments) {
    for (int i = 1; i < count; i++) parse_option(arguments[i]);
    check_options();
    prepare_message();
    epoll = epoll_create1(0);
    clients = allocate(NULL, sizeof *clients * options.clients);
    if (!resumes) connect_all();
    if (resumes) resume();
    else if (idles) idle();
    else run();
    if (options.stalled) read_stalled();
    printf("}\n");
    return 0;
}
