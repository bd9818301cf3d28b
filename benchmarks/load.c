/* The load: any number of WebSocket clients in one thread, on epoll.
 *
 * Client 0 publishes and all clients receive (fan-out), or each client sends and waits for its own message
 * (echo). Payloads begin with "bench:" and a number that rises by one, so that a message that is lost,
 * doubled or out of order is noticed. One line of JSON tells when all clients are members, and a second one
 * what was measured. load.py starts this program and describes the options; they all have the form
 * --name=value.
 */
#include "websocket.h"

#define MARK "bench:"
#define DIGITS 10
#define RING (1 << 16) /* messages that may be outstanding */
#define LARGEST_LIST 8
#define BUCKETS (64 * 64)

typedef struct {
    const char *from, *to;
} Reply;

static struct {
    const char *host, *path, *ready, *message, *mode, *receipt, *receipt_after;
    const char *hello[LARGEST_LIST];
    Reply replies[LARGEST_LIST];
    int hellos, reply_count, port, clients, stalled, outstanding, channels, connecting;
    size_t size;
    uint64_t messages;
    double seconds, settle, warmup, rate, deadline;
} options = {.host = "127.0.0.1", .path = "/", .ready = "", .message = "{}", .mode = "fanout", .receipt_after = "", .clients = 1,
             .outstanding = 1, .connecting = 64, .size = 128, .seconds = 1, .deadline = 60};

typedef enum { NEW, CONNECTING, OPENING, JOINING, MEMBER, GONE } State;

typedef struct {
    int fd, close_code;
    State state;
    bool is_stalled;
    uint64_t received, sent_at;
    size_t mark; /* where in a frame the payload was found last */
    Bytes in;
} Client;

static int epoll;
static Client *clients;
static int started, opening, joined, gone;
static char buffer[1 << 20];

static char *template_end; /* what follows the payload in a message */
static char *message;      /* payload and what the template puts around it */
static size_t message_size, number_at;

static uint64_t next_number, oldest, deliveries, completed, misordered;
static uint64_t sent_at[RING];
static uint32_t receivers[RING];
static bool measuring;
static uint64_t histogram[BUCKETS], longest;

/* Latencies: 64 buckets for each power of two, so that a bucket is off by 1.6 % at the most. */
static void record(uint64_t ns) {
    if (ns > longest) longest = ns;
    int shift = ns < 64 ? 0 : 63 - __builtin_clzll(ns) - 6;
    histogram[shift < 0 ? ns : (uint64_t)shift * 64 + (ns >> shift)]++;
}

static double percentile_us(double share) {
    uint64_t total = 0, seen = 0;
    for (int i = 0; i < BUCKETS; i++) total += histogram[i];
    for (int i = 0; i < BUCKETS; i++)
        if ((seen += histogram[i]) && (double)seen >= share * (double)total) {
            const int shift = i < 128 ? 0 : i / 64 - 1;
            return (double)((uint64_t)(i - shift * 64) << shift) / 1000;
        }
    return 0;
}

/* All of it or nothing left to say: what clients send is small, so that it fits into the socket. */
static void send_all(Client *client, const char *data, size_t size) {
    while (size) {
        const ssize_t sent = send(client->fd, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return;
        if (sent > 0) data += sent, size -= (size_t)sent;
    }
}

static void send_frame(Client *client, int opcode, const char *payload, size_t size) {
    char *frame = allocate(NULL, size + LARGEST_HEADER);
    send_all(client, frame, write_frame(frame, opcode, payload, size, true));
    free(frame);
}

static void prepare_message(void) {
    const char *brackets = strstr(options.message, "{}");
    if (!brackets) die("expected {} in --message");
    const size_t before = (size_t)(brackets - options.message);
    template_end = (char *)brackets + 2;
    if (options.size < strlen(MARK) + DIGITS) options.size = strlen(MARK) + DIGITS;
    message_size = before + options.size + strlen(template_end);
    message = allocate(NULL, message_size);
    memcpy(message, options.message, before);
    memset(message + before, 'x', options.size);
    memcpy(message + before, MARK, strlen(MARK));
    memcpy(message + before + options.size, template_end, strlen(template_end));
    number_at = before + strlen(MARK);
}

/* Frame the next `count` messages and send them in one write, as a busy publisher does. */
static void publish(Client *client, int count) {
    char *frames = allocate(NULL, (size_t)count * (message_size + LARGEST_HEADER));
    size_t size = 0;
    const uint64_t now = nanoseconds();
    for (int i = 0; i < count; i++, next_number++) {
        char digits[DIGITS + 1];
        snprintf(digits, sizeof digits, "%0*llu", DIGITS, (unsigned long long)next_number);
        memcpy(message + number_at, digits, DIGITS);
        size += write_frame(frames + size, TEXT, message, message_size, true);
        sent_at[next_number % RING] = now;
        receivers[next_number % RING] = 0;
    }
    send_all(client, frames, size);
    free(frames);
}

static void echo(Client *client) {
    client->sent_at = nanoseconds();
    send_frame(client, TEXT, message, message_size);
}

static uint64_t number_in(const char *digits) {
    uint64_t number = 0;
    for (int i = 0; i < DIGITS; i++) number = number * 10 + (uint64_t)(digits[i] - '0');
    return number;
}

/* Some protocols want an answer to each message, with an id that stands in it. */
static void send_receipt(Client *client, const Frame *frame) {
    const size_t length = strlen(options.receipt_after);
    const char *id = memmem(frame->payload, frame->size, options.receipt_after, length);
    const char *brackets = strstr(options.receipt, "{}");
    if (!id || !brackets) return;
    id += length;
    const char *quote = memchr(id, '"', (size_t)(frame->payload + frame->size - id));
    char text[1024];
    const int size = snprintf(text, sizeof text, "%.*s%.*s%s", (int)(brackets - options.receipt), options.receipt,
                              quote ? (int)(quote - id) : 0, id, brackets + 2);
    send_frame(client, TEXT, text, (size_t)size);
}

static void deliver(Client *client, const Frame *frame, uint64_t now) {
    const char *payload = frame->payload + client->mark;
    if (options.receipt) send_receipt(client, frame);
    if (!strcmp(options.mode, "echo")) {
        if (measuring) deliveries++, record(now - client->sent_at);
        client->received++;
        echo(client);
        return;
    }
    const uint64_t number = number_in(payload + strlen(MARK));
    if (number != client->received) misordered++;
    client->received = number + 1;
    receivers[number % RING]++;
    if (measuring) deliveries++, record(now - sent_at[number % RING]);
}

static void join(Client *client) {
    client->state = MEMBER;
    opening--;
    joined++;
    if (client->is_stalled) epoll_ctl(epoll, EPOLL_CTL_DEL, client->fd, NULL);
}

static void lose(Client *client) {
    if (client->state != MEMBER) die("client %d was refused, or lost before it was a member", (int)(client - clients));
    client->state = GONE;
    gone++;
    close(client->fd);
}

static void take(Client *client, const Frame *frame, uint64_t now) {
    if (frame->opcode == PING) return send_frame(client, PONG, frame->payload, frame->size);
    if (frame->opcode == CLOSE) {
        if (frame->size >= 2)
            client->close_code = (unsigned char)frame->payload[0] << 8 | (unsigned char)frame->payload[1];
        return;
    }
    if (frame->opcode != TEXT && frame->opcode != BINARY) return;
    const size_t length = strlen(MARK);
    if (client->mark + length + DIGITS <= frame->size && !memcmp(frame->payload + client->mark, MARK, length))
        return deliver(client, frame, now);
    const char *found = memmem(frame->payload, frame->size, MARK, length);
    if (found && (size_t)(frame->payload + frame->size - found) >= length + DIGITS) {
        client->mark = (size_t)(found - frame->payload);
        return deliver(client, frame, now);
    }
    for (int i = 0; i < options.reply_count; i++) {
        const Reply *reply = &options.replies[i];
        if (frame->size >= strlen(reply->from) && !memcmp(frame->payload, reply->from, strlen(reply->from)))
            return send_frame(client, TEXT, reply->to, strlen(reply->to));
    }
    if (client->state == JOINING && memmem(frame->payload, frame->size, options.ready, strlen(options.ready)))
        join(client);
}

/* Read the answer to the handshake. How many bytes it took, or 0 if it is not whole yet. */
static size_t open_client(Client *client, const char *data, size_t size) {
    const char *end = memmem(data, size, "\r\n\r\n", 4);
    if (!end) return 0;
    if (strncmp(data, "HTTP/1.1 101", 12)) {
        errno = 0;
        die("expected HTTP/1.1 101, but got %.*s", (int)strcspn(data, "\r"), data);
    }
    client->state = JOINING;
    for (int i = 0; i < options.hellos; i++)
        send_frame(client, TEXT, options.hello[i], strlen(options.hello[i]));
    if (!*options.ready) join(client);
    return (size_t)(end + 4 - data);
}

static void receive(Client *client) {
    if (client->in.size) memcpy(buffer, client->in.data, client->in.size);
    const ssize_t got = recv(client->fd, buffer + client->in.size, sizeof buffer - client->in.size, 0);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN) lose(client);
        return;
    }
    const size_t available = client->in.size + (size_t)got;
    size_t used = client->state == OPENING ? open_client(client, buffer, available) : 0;
    const uint64_t now = nanoseconds();
    Frame frame;
    if (client->state >= JOINING)
        for (size_t took; (took = parse_frame(buffer + used, available - used, &frame)); used += took)
            take(client, &frame, now);
    if (client->in.size || used < available) keep(&client->in, buffer + used, available - used);
}

static void start(int index) {
    Client *client = &clients[index];
    *client = (Client){.state = CONNECTING, .is_stalled = index >= options.clients - options.stalled};
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (client->fd < 0) die("cannot have a socket for client %d", index);
    set_no_delay(client->fd);
    /* Reset on close, so that no run leaves thousands of ports waiting behind. */
    setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port)};
    inet_pton(AF_INET, options.host, &address.sin_addr);
    if (connect(client->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        die("cannot connect client %d", index);
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = client};
    epoll_ctl(epoll, EPOLL_CTL_ADD, client->fd, &event);
    opening++;
}

static void request(Client *client) {
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if ((errno = error)) die("cannot connect client %d", (int)(client - clients));
    char path[512], text[1024];
    const char *brackets = strstr(options.path, "{}");
    const int index = (int)(client - clients) % (options.channels ? options.channels : options.clients);
    if (brackets)
        snprintf(path, sizeof path, "%.*s%d%s", (int)(brackets - options.path), options.path, index, brackets + 2);
    else
        snprintf(path, sizeof path, "%s", options.path);
    const int size = snprintf(text, sizeof text,
                              "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                              "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
                              path, options.host, options.port);
    send_all(client, text, (size_t)size);
    client->state = OPENING;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
    epoll_ctl(epoll, EPOLL_CTL_MOD, client->fd, &event);
}

/* One round: wait for at most `wait` ms, then handle what has come. */
static void turn(int wait) {
    struct epoll_event events[1024];
    const int ready = epoll_wait(epoll, events, 1024, wait);
    for (int i = 0; i < ready; i++) {
        Client *client = events[i].data.ptr;
        if (!client) continue;
        if (client->state == CONNECTING) request(client);
        else receive(client);
    }
}

static void connect_all(void) {
    const uint64_t begin = nanoseconds();
    while (joined < options.clients) {
        while (started < options.clients && opening < options.connecting) start(started++);
        turn(1000);
        if ((double)(nanoseconds() - begin) / 1e9 > options.deadline)
            die("%d of %d clients are members after %g s", joined, options.clients, options.deadline);
    }
    printf("{\"connected\": %d, \"seconds\": %.6f}\n", joined, (double)(nanoseconds() - begin) / 1e9);
    fflush(stdout);
}

/* Which messages everybody has; all of them are in order, so the oldest is the first to be complete. */
static void complete(void) {
    const uint32_t wanted = (uint32_t)(options.clients - options.stalled);
    while (oldest < next_number && receivers[oldest % RING] >= wanted) {
        oldest++;
        if (measuring) completed++;
    }
}

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void run(void) {
    /* Some servers let a client in a while after its WebSocket is open. */
    for (const uint64_t settled = nanoseconds() + (uint64_t)(options.settle * 1e9); nanoseconds() < settled;) turn(10);
    const uint64_t begin = nanoseconds(), deadline = begin + (uint64_t)(options.deadline * 1e9);
    const uint64_t from = begin + (uint64_t)(options.warmup * 1e9);
    const uint64_t until = from + (uint64_t)(options.seconds * 1e9);
    const bool echoes = !strcmp(options.mode, "echo");
    uint64_t now = begin, next = begin, measured_from = begin;
    double cpu = cpu_seconds();
    measuring = options.warmup <= 0;
    if (echoes)
        for (int i = 0; i < options.clients; i++)
            for (int k = 0; k < options.outstanding; k++) echo(&clients[i]);
    for (;; now = nanoseconds()) {
        if (!measuring && now >= from) {
            measuring = true;
            measured_from = now;
            cpu = cpu_seconds();
        }
        const bool enough = options.messages ? next_number >= options.messages : now >= until;
        if (enough && (echoes || !options.messages || oldest == next_number)) break;
        if (now >= deadline) break;
        int wait = 100;
        if (!echoes && !enough) {
            int count = options.outstanding - (int)(next_number - oldest);
            if (options.rate > 0) {
                count = next > now ? 0 : 1;
                if (count) next += (uint64_t)(1e9 / options.rate);
                wait = next > now ? (int)((next - now) / 1000000) : 0;
            }
            if (options.messages && (uint64_t)count > options.messages - next_number)
                count = (int)(options.messages - next_number);
            if (count > 0) publish(&clients[0], count);
        }
        turn(wait);
        complete();
        if (gone == options.clients) break;
    }
    const double seconds = (double)(now - measured_from) / 1e9;
    printf("{\"deliveries\": %llu, \"messages\": %llu, \"outstanding\": %llu, \"seconds\": %.6f, \"load_cpu\": %.4f,"
           " \"misordered\": %llu, \"lost_clients\": %d, \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f,"
           " \"p999_us\": %.1f, \"max_us\": %.1f",
           (unsigned long long)deliveries, (unsigned long long)completed,
           (unsigned long long)(next_number - oldest), seconds, (cpu_seconds() - cpu) / seconds,
           (unsigned long long)misordered, gone, percentile_us(.5), percentile_us(.9), percentile_us(.99),
           percentile_us(.999), (double)longest / 1000);
}

/* Read at last what waits for the clients that did not, to see how their connections ended. */
static void read_stalled(void) {
    int ended = 0;
    uint64_t bytes = 0;
    for (int i = options.clients - options.stalled; i < options.clients; i++) {
        const struct timeval patience = {.tv_sec = 2};
        fcntl(clients[i].fd, F_SETFL, 0);
        setsockopt(clients[i].fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        ssize_t got;
        while ((got = recv(clients[i].fd, buffer, sizeof buffer, 0)) > 0) bytes += (uint64_t)got;
        if (got == 0 || errno != EAGAIN) ended++;
    }
    printf(", \"stalled\": %d, \"stalled_ended\": %d, \"stalled_bytes\": %llu", options.stalled, ended,
           (unsigned long long)bytes);
}

/* Stay connected until the other side of stdin is closed. */
static void idle(void) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event);
    set_not_blocking(STDIN_FILENO);
    for (char byte; read(STDIN_FILENO, &byte, 1) != 0;) turn(1000);
    printf("{\"lost_clients\": %d", gone);
}

static const char *value_of(const char *argument, const char *name) {
    const size_t length = strlen(name);
    return strncmp(argument, "--", 2) || strncmp(argument + 2, name, length) || argument[2 + length] != '='
               ? NULL
               : argument + 3 + length;
}

static void parse_option(char *argument) {
    const char *value;
    if ((value = value_of(argument, "host"))) options.host = value;
    else if ((value = value_of(argument, "port"))) options.port = atoi(value);
    else if ((value = value_of(argument, "path"))) options.path = value;
    else if ((value = value_of(argument, "mode"))) options.mode = value;
    else if ((value = value_of(argument, "ready"))) options.ready = value;
    else if ((value = value_of(argument, "message"))) options.message = value;
    else if ((value = value_of(argument, "hello")) && options.hellos < LARGEST_LIST)
        options.hello[options.hellos++] = value;
    else if ((value = value_of(argument, "reply")) && strchr(value, '=') && options.reply_count < LARGEST_LIST) {
        char *equals = strchr(value, '=');
        *equals = 0;
        options.replies[options.reply_count++] = (Reply){value, equals + 1};
    } else if ((value = value_of(argument, "clients"))) options.clients = atoi(value);
    else if ((value = value_of(argument, "stalled"))) options.stalled = atoi(value);
    else if ((value = value_of(argument, "channels"))) options.channels = atoi(value);
    else if ((value = value_of(argument, "connecting"))) options.connecting = atoi(value);
    else if ((value = value_of(argument, "outstanding"))) options.outstanding = atoi(value);
    else if ((value = value_of(argument, "size"))) options.size = (size_t)atoi(value);
    else if ((value = value_of(argument, "messages"))) options.messages = (uint64_t)atoll(value);
    else if ((value = value_of(argument, "seconds"))) options.seconds = atof(value);
    else if ((value = value_of(argument, "settle"))) options.settle = atof(value);
    else if ((value = value_of(argument, "receipt"))) options.receipt = value;
    else if ((value = value_of(argument, "receipt-after"))) options.receipt_after = value;
    else if ((value = value_of(argument, "warmup"))) options.warmup = atof(value);
    else if ((value = value_of(argument, "rate"))) options.rate = atof(value);
    else if ((value = value_of(argument, "deadline"))) options.deadline = atof(value);
    else die("expected an option of load.py, but got %s", argument);
}

int main(int count, char **arguments) {
    for (int i = 1; i < count; i++) parse_option(arguments[i]);
    raise_file_limit();
    epoll = epoll_create1(0);
    clients = allocate(NULL, sizeof *clients * (size_t)options.clients);
    prepare_message();
    connect_all();
    if (!strcmp(options.mode, "idle")) idle();
    else run();
    if (options.stalled) read_stalled();
    printf("}\n");
    return 0;
}
