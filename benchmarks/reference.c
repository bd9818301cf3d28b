/* The limit: the speed of one core with nothing between the sockets and the kernel.
 *
 * A WebSocket server on epoll with the features that the bench uses. On /echo it sends each message back; on
 * any other path it sends each message to every client on such a path. Messages that arrive in one round of
 * epoll are framed once and leave in one write for each client.
 *
 * Usage: reference PORT
 */
#include "websocket.h"

#define LARGEST_BACKLOG (1 << 20) /* bytes that may wait for a client that does not read */

typedef struct {
    Link link;
    bool is_open, echoes, is_member;
    size_t member; /* its index among members */
} Client;

static int epoll;
static Client **members;
static size_t member_count, member_space;
static char buffer[1 << 20];
static Bytes outgoing; /* the bytes for all members at the end of this round */

/* SHA-1 (FIPS 180-4) of fewer than 120 bytes: the handshake needs nothing longer. */
static void sha1(const char *text, size_t size, unsigned char digest[20]) {
    unsigned char message[128] = {0};
    const size_t blocks = size < 56 ? 1 : 2;
    memcpy(message, text, size);
    message[size] = 0x80;
    for (int i = 0; i < 4; i++) message[blocks * 64 - 1 - (size_t)i] = (unsigned char)(size * 8 >> 8 * i);

    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
#define ROTATE(x, n) ((x) << (n) | (x) >> (32 - (n)))
    for (size_t block = 0; block < blocks; block++) {
        uint32_t w[80], v[5];
        for (int t = 0; t < 16; t++) {
            const unsigned char *four = message + block * 64 + t * 4;
            w[t] = (uint32_t)four[0] << 24 | (uint32_t)four[1] << 16 | (uint32_t)four[2] << 8 | four[3];
        }
        for (int t = 16; t < 80; t++) w[t] = ROTATE(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
        memcpy(v, h, sizeof v);
        for (int t = 0; t < 80; t++) {
            uint32_t f, k;
            if (t < 20) f = (v[1] & v[2]) | (~v[1] & v[3]), k = 0x5a827999;
            else if (t < 40) f = v[1] ^ v[2] ^ v[3], k = 0x6ed9eba1;
            else if (t < 60) f = (v[1] & v[2]) | (v[1] & v[3]) | (v[2] & v[3]), k = 0x8f1bbcdc;
            else f = v[1] ^ v[2] ^ v[3], k = 0xca62c1d6;
            const uint32_t next = ROTATE(v[0], 5) + f + v[4] + k + w[t];
            v[4] = v[3], v[3] = v[2], v[2] = ROTATE(v[1], 30), v[1] = v[0], v[0] = next;
        }
        for (int i = 0; i < 5; i++) h[i] += v[i];
    }
    for (int i = 0; i < 20; i++) digest[i] = (unsigned char)(h[i / 4] >> (24 - 8 * (i % 4)));
}

static void base64(const unsigned char *data, size_t size, char *out) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < size; i += 3) {
        uint32_t three = (uint32_t)data[i] << 16;
        if (i + 1 < size) three |= (uint32_t)data[i + 1] << 8;
        if (i + 2 < size) three |= data[i + 2];
        *out++ = letters[three >> 18 & 63];
        *out++ = letters[three >> 12 & 63];
        *out++ = i + 1 < size ? letters[three >> 6 & 63] : '=';
        *out++ = i + 2 < size ? letters[three & 63] : '=';
    }
    *out = 0;
}

static void watch(Client *client, int operation) {
    struct epoll_event event = {.events = EPOLLIN | (client->link.out.size ? EPOLLOUT : 0), .data.ptr = client};
    epoll_ctl(epoll, operation, client->link.fd, &event);
}

/* Only marks it: the members are being walked when a send fails. Its next event frees it. */
static void drop(Client *client) { shutdown(client->link.fd, SHUT_RDWR); }

static void release(Client *client) {
    if (client->is_member) {
        members[client->member] = members[--member_count];
        members[client->member]->member = client->member;
    }
    close_link(&client->link);
    free(client);
}

static void send_to(Client *client, const char *data, size_t size) {
    const bool was_empty = !client->link.out.size;
    if (!send_or_keep(&client->link, data, size) || client->link.out.size > LARGEST_BACKLOG) drop(client);
    if (was_empty && client->link.out.size) watch(client, EPOLL_CTL_MOD);
}

static void send_backlog(Client *client) {
    flush(&client->link);
    if (!client->link.out.size) watch(client, EPOLL_CTL_MOD);
}

/* Answer the request. Returns its length, or 0 if it is incomplete or not from a WebSocket client. */
static size_t open_client(Client *client, char *data, size_t size) {
    const char *end = memmem(data, size, "\r\n\r\n", 4);
    if (!end) return 0;
    const char *key = memmem(data, (size_t)(end - data), "Sec-WebSocket-Key: ", 19);
    if (!key) return drop(client), (size_t)0;
    char accept[64], text[96], answer[256];
    unsigned char digest[20];
    snprintf(text, sizeof text, "%.24s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key + 19);
    sha1(text, strlen(text), digest);
    base64(digest, sizeof digest, accept);
    const int length = snprintf(answer, sizeof answer,
                                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                                "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
                                accept);
    client->is_open = true;
    client->echoes = !strncmp(data, "GET /echo", 9);
    send_to(client, answer, (size_t)length);
    if (!client->echoes) {
        if (member_count == member_space)
            members = allocate(members, sizeof *members * (member_space = member_space * 2 + 1024));
        client->is_member = true;
        client->member = member_count;
        members[member_count++] = client;
    }
    return (size_t)(end + 4 - data);
}

/* Returns false if the client has disconnected. */
static bool receive(Client *client) {
    const ssize_t available = read_link(&client->link, buffer, sizeof buffer);
    if (available <= 0) return available == 0;
    const size_t size = (size_t)available;
    size_t used = client->is_open ? 0 : open_client(client, buffer, size);
    Frame frame;
    for (size_t took; client->is_open && (took = parse_frame(buffer + used, size - used, &frame)); used += took) {
        if (frame.opcode == CLOSE) return false;
        if (frame.opcode != TEXT && frame.opcode != BINARY) continue;
        char *framed = allocate(NULL, frame.size + LARGEST_HEADER);
        const size_t length = write_frame(framed, frame.opcode, frame.payload, frame.size, false);
        if (client->echoes) send_to(client, framed, length);
        else append(&outgoing, framed, length);
        free(framed);
    }
    if (client->link.in.size || used < size) keep(&client->link.in, buffer + used, size - used);
    return true;
}

int main(int count, char **arguments) {
    if (count != 2) die("Usage: reference PORT");
    epoll = epoll_create1(0);
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    const int one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(arguments[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 2048))
        die("cannot listen on port %s: %m", arguments[1]);
    set_not_blocking(listener);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[1024];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);

    for (;;) {
        const int ready = epoll_wait(epoll, events, 1024, -1);
        for (int i = 0; i < ready; i++) {
            Client *client = events[i].data.ptr;
            if (!client) {
                for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
                    set_no_delay(fd);
                    client = allocate(NULL, sizeof *client);
                    *client = (Client){.link = {.fd = fd}};
                    watch(client, EPOLL_CTL_ADD);
                }
                continue;
            }
            if (events[i].events & EPOLLOUT) send_backlog(client);
            if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP) && !receive(client)) release(client);
        }
        if (outgoing.size) {
            for (size_t i = 0; i < member_count; i++) send_to(members[i], outgoing.data, outgoing.size);
            outgoing.size = 0;
        }
    }
}
