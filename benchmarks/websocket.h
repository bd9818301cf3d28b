/* Shared by load.c and reference.c: time, sockets, and the frames of RFC 6455. */
#ifndef WEBSOCKET_H
#define WEBSOCKET_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { TEXT = 0x1, BINARY = 0x2, CLOSE = 0x8, PING = 0x9, PONG = 0xA };

#define LARGEST_HEADER 14

/* The format has %m where errno has the reason. */
__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

static inline void *allocate(void *old, size_t size) {
    void *memory = realloc(old, size);
    if (!memory && size) die("out of memory");
    return memory;
}

static inline uint64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void set_no_delay(int fd) {
    const int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static inline void set_not_blocking(int fd) {
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

typedef struct {
    char *data;
    size_t size;
} Bytes;

/* Replace the content of `bytes` by a copy of `data`, which may be a part of it. */
static inline void keep(Bytes *bytes, const char *data, size_t size) {
    char *copy = NULL;
    if (size) {
        copy = allocate(NULL, size);
        memcpy(copy, data, size);
    }
    free(bytes->data);
    *bytes = (Bytes){copy, size};
}

static inline void append(Bytes *bytes, const char *data, size_t size) {
    bytes->data = allocate(bytes->data, bytes->size + size);
    memcpy(bytes->data + bytes->size, data, size);
    bytes->size += size;
}

/* One end of a connection. `in` has come and is not a whole frame yet, `out` could not be sent yet. */
typedef struct {
    int fd;
    Bytes in, out;
} Link;

/* Send as much as the socket takes and keep the rest for flush(). False if the connection has ended. */
static inline bool send_or_keep(Link *link, const char *data, size_t size) {
    if (!link->out.size) {
        const ssize_t sent = send(link->fd, data, size, MSG_NOSIGNAL);
        if (sent == (ssize_t)size) return true;
        if (sent < 0 && errno != EAGAIN) return false;
        if (sent > 0) data += sent, size -= (size_t)sent;
    }
    append(&link->out, data, size);
    return true;
}

static inline void flush(Link *link) {
    if (!link->out.size) return;
    const ssize_t sent = send(link->fd, link->out.data, link->out.size, MSG_NOSIGNAL);
    if (sent > 0) keep(&link->out, link->out.data + sent, link->out.size - (size_t)sent);
}

/* Read into `buffer`, behind earlier data; keep() the rest of it afterwards. How much `buffer`
 * holds then, 0 if there is nothing new, -1 if the connection has ended. */
static inline ssize_t read_link(const Link *link, char *buffer, size_t size) {
    if (link->in.size >= size) die("expected frames of less than %zu bytes, but got a larger one", size);
    const ssize_t got = recv(link->fd, buffer + link->in.size, size - link->in.size, 0);
    if (got <= 0) return got < 0 && errno == EAGAIN ? 0 : -1;
    if (link->in.size) memcpy(buffer, link->in.data, link->in.size);
    return (ssize_t)link->in.size + got;
}

static inline void close_link(Link *link) {
    close(link->fd);
    keep(&link->in, NULL, 0);
    keep(&link->out, NULL, 0);
}

typedef struct {
    int opcode;
    bool is_final;
    char *payload;
    size_t size;
} Frame;

/* Parse one frame; unmask a masked payload in place. Returns its length, or 0 if it is incomplete. */
static inline size_t parse_frame(char *data, size_t available, Frame *frame) {
    const unsigned char *bytes = (const unsigned char *)data;
    if (available < 2) return 0;
    size_t header = 2;
    uint64_t size = bytes[1] & 0x7f;
    if (size == 126) {
        if (available < 4) return 0;
        size = (uint64_t)bytes[2] << 8 | bytes[3];
        header = 4;
    } else if (size == 127) {
        if (available < 10) return 0;
        size = 0;
        for (int i = 2; i < 10; i++) size = size << 8 | bytes[i];
        header = 10;
    }
    const bool masked = bytes[1] & 0x80;
    const size_t mask = header;
    if (masked) header += 4;
    if (available < header || available - header < size) return 0;
    *frame = (Frame){bytes[0] & 0x0f, bytes[0] & 0x80, data + header, size};
    if (masked)
        for (size_t i = 0; i < size; i++) frame->payload[i] ^= data[mask + i % 4];
    return header + size;
}

/* Write a frame to `out`, masked with zeros if it is a client's. Returns its length. */
static inline size_t write_frame(char *out, int opcode, const char *payload, size_t size, bool masked) {
    unsigned char *bytes = (unsigned char *)out;
    size_t header = 2;
    bytes[0] = (unsigned char)(0x80 | opcode);
    if (size < 126) {
        bytes[1] = (unsigned char)size;
    } else if (size < 65536) {
        bytes[1] = 126;
        bytes[2] = (unsigned char)(size >> 8);
        bytes[3] = (unsigned char)size;
        header = 4;
    } else {
        bytes[1] = 127;
        for (int i = 0; i < 8; i++) bytes[2 + i] = (unsigned char)(size >> (56 - 8 * i));
        header = 10;
    }
    if (masked) {
        bytes[1] |= 0x80;
        memset(bytes + header, 0, 4);
        header += 4;
    }
    memcpy(out + header, payload, size);
    return header + size;
}

#endif
