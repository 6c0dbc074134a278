/* The yardstick: a recursive inotify watcher that makes only the necessary calls. Per directory: inotify_add_watch,
 * open, getdents64 until it says 0 (normally twice), close. It speaks the JSON of `refork watch --json`, but filters
 * nothing, debounces nothing, recovers from nothing, follows no symlinks, and escapes no names: a measure, not a tool.
 *
 *   watch [-n] [-d MS] ROOT
 *   -n     do not open a directory of link count 2: it has no subdirectory (link count 1 means "cannot say": opened)
 *   -d MS  read the queue MS milliseconds after it became readable instead of at once
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MASK = IN_CREATE | IN_MODIFY | IN_CLOSE_WRITE | IN_ATTRIB | IN_DELETE | IN_MOVE | IN_ONLYDIR | IN_DONT_FOLLOW };

struct entry { /* what getdents64(2) writes */
    uint64_t ino;
    int64_t off;
    unsigned short len;
    unsigned char type;
    char name[];
};

struct node { /* a directory */
    int parent; /* index; -1: the root */
    char *name;
};

static struct node *nodes;
static int node_count, node_room;
static int *node_of_wd, wd_room;
static int queue, skip_leaves;

static char *out; /* the line being made */
static size_t out_len, out_room;

static void die(const char *what) {
    fprintf(stderr, "watch: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *grown(void *at, int *room, int need, size_t each) {
    if (need <= *room) return at;
    *room = need * 2;
    if (!(at = realloc(at, *room * each))) die("memory");
    return at;
}

static int add_node(int parent, const char *name) {
    nodes = grown(nodes, &node_room, node_count + 1, sizeof *nodes);
    nodes[node_count].parent = parent;
    if (!(nodes[node_count].name = strdup(name))) die("memory");
    return node_count++;
}

/* Writes the directory's path at `to`; returns its end. */
static char *path_of(int node, char *to) {
    if (nodes[node].parent >= 0) {
        to = path_of(nodes[node].parent, to);
        *to++ = '/';
    }
    return stpcpy(to, nodes[node].name);
}

static void report(int node, const char *name) {
    if (out_room < out_len + 2 * PATH_MAX) {
        out_room = 2 * out_room + 4 * PATH_MAX;
        if (!(out = realloc(out, out_room))) die("memory");
    }
    char *end = out + out_len;
    if (out_len) *end++ = ',';
    *end++ = '"';
    end = path_of(node, end);
    *end++ = '/';
    end = stpcpy(end, name);
    *end++ = '"';
    out_len = end - out;
}

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void flush_report(void) {
    if (!out_len) return;
    printf("{\"t_ns\":%lld,\"paths\":[", now());
    fwrite(out, 1, out_len, stdout);
    fputs("]}\n", stdout);
    fflush(stdout);
    out_len = 0;
}

/* Watches, then lists: what comes after the watch is an event, what came before is in the listing. Breadth first; the
 * list of nodes is the list of what is left to do. */
static void arm(int from, int is_new) {
    static char listing[1 << 16];
    char path[2 * PATH_MAX];
    for (int node = from; node < node_count; node++) {
        path_of(node, path);
        int wd = inotify_add_watch(queue, path, MASK);
        if (wd < 0) {
            if (is_new) continue; /* it went as it came */
            die(path);
        }
        node_of_wd = grown(node_of_wd, &wd_room, wd + 1, sizeof *node_of_wd);
        node_of_wd[wd] = node;
        if (skip_leaves && !is_new) {
            struct stat st;
            if (stat(path, &st) == 0 && st.st_nlink == 2) continue;
        }
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0) continue;
        long len;
        while ((len = syscall(SYS_getdents64, fd, listing, sizeof listing)) > 0) {
            for (char *at = listing; at < listing + len; at += ((struct entry *)at)->len) {
                struct entry *e = (struct entry *)at;
                if (!strcmp(e->name, ".") || !strcmp(e->name, "..")) continue;
                if (e->type == DT_DIR) add_node(node, e->name);
                else if (is_new) report(node, e->name);
            }
        }
        close(fd);
    }
}

static void take(const char *events, long len) {
    int last_wd = -1;
    const char *last_name = "";
    for (const char *at = events; at < events + len;) {
        const struct inotify_event *e = (const void *)at;
        at += sizeof *e + e->len;
        if (e->mask & IN_Q_OVERFLOW) {
            fputs("watch: the queue overflowed\n", stderr);
            exit(1);
        }
        if (e->wd < 0 || e->len == 0) continue; /* about the directory itself */
        int node = node_of_wd[e->wd];
        if (e->mask & IN_ISDIR) {
            if (e->mask & (IN_CREATE | IN_MOVED_TO)) arm(add_node(node, e->name), 1);
        } else if (e->wd != last_wd || strcmp(e->name, last_name)) {
            report(node, e->name);
            last_wd = e->wd;
            last_name = e->name;
        }
    }
}

int main(int argc, char **argv) {
    static char events[1 << 18] __attribute__((aligned(8)));
    int delay = 0, opt;
    while ((opt = getopt(argc, argv, "nd:")) != -1) {
        if (opt == 'n') skip_leaves = 1;
        else if (opt == 'd') delay = atoi(optarg);
        else return 2;
    }
    if (optind != argc - 1) return 2;
    if ((queue = inotify_init1(IN_CLOEXEC | IN_NONBLOCK)) < 0) die("inotify_init1");
    add_node(-1, argv[optind]);
    arm(0, 0);
    printf("{\"ready\":true,\"t_ns\":%lld}\n", now());
    fflush(stdout);
    struct pollfd readable = {queue, POLLIN, 0};
    for (;;) {
        poll(&readable, 1, -1);
        if (delay) poll(NULL, 0, delay);
        long len;
        while ((len = read(queue, events, sizeof events)) > 0) take(events, len);
        if (len < 0 && errno != EAGAIN) die("read");
        flush_report();
    }
}
