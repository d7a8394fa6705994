/* The k-th call that changes a file below one folder fails with a number of our choice.
 *
 * Preloaded, so that it stands between a program and the system's library for every call that makes, opens for writing,
 * fills, syncs, renames, links or removes a file. `faults_arm` starts to count; `faults_seen` says how many calls came.
 * Calls on other folders go through uncounted. Left out: reading, mmap, and calls past the library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char root[PATH_MAX];
static long at, seen;
static int number;
static char names[1 << 16];

void faults_arm(const char *folder, long k, int error) {
    strncpy(root, folder, sizeof root - 1);
    at = k; number = error; seen = 0; names[0] = 0;
}
long faults_seen(void) { return seen; }
const char *faults_names(void) { return names; }

static int below(const char *path) { size_t n = strlen(root); return n && !strncmp(path, root, n) && (path[n] == '/' || !path[n]); }

static int known(int fd, char *path) {
    char link[64]; snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    if (n < 0) return 0;
    path[n] = 0; return 1;
}

static int ours_at(int dir, const char *path) {
    char whole[2 * PATH_MAX], base[PATH_MAX];
    if (path[0] == '/') return below(path);
    if (dir == AT_FDCWD) { if (!getcwd(base, sizeof base)) return 0; }
    else if (!known(dir, base)) return 0;
    snprintf(whole, sizeof whole, "%s/%s", base, path);
    return below(whole);
}
static int ours(int fd) { char path[PATH_MAX]; return root[0] && known(fd, path) && below(path); }

/* True where this call is the one to fail. */
static int fails(const char *what) {
    long now = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    if (at <= 0 && strlen(names) + strlen(what) + 2 < sizeof names) { strcat(names, what); strcat(names, " "); }
    if (now != at) return 0;
    errno = number; return 1;
}

#define NEXT(type, name) static type (*next)(); if (!next) next = (type (*)())dlsym(RTLD_NEXT, #name)
#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }
#define CHANGES (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)

int open(const char *p, int flags, ...) { MODE NEXT(int, open); if ((flags & CHANGES) && ours_at(AT_FDCWD, p) && fails("open")) return -1; return next(p, flags, mode); }
int open64(const char *p, int flags, ...) { MODE NEXT(int, open64); if ((flags & CHANGES) && ours_at(AT_FDCWD, p) && fails("open")) return -1; return next(p, flags, mode); }
int openat(int d, const char *p, int flags, ...) { MODE NEXT(int, openat); if ((flags & CHANGES) && ours_at(d, p) && fails("open")) return -1; return next(d, p, flags, mode); }
int openat64(int d, const char *p, int flags, ...) { MODE NEXT(int, openat64); if ((flags & CHANGES) && ours_at(d, p) && fails("open")) return -1; return next(d, p, flags, mode); }
ssize_t write(int fd, const void *b, size_t n) { NEXT(ssize_t, write); if (ours(fd) && fails("write")) return -1; return next(fd, b, n); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { NEXT(ssize_t, pwrite64); if (ours(fd) && fails("pwrite")) return -1; return next(fd, b, n, o); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { NEXT(ssize_t, pwrite); if (ours(fd) && fails("pwrite")) return -1; return next(fd, b, n, o); }
ssize_t sendfile64(int out, int in, off64_t *o, size_t n) { NEXT(ssize_t, sendfile64); if (ours(out) && fails("sendfile")) return -1; return next(out, in, o, n); }
ssize_t sendfile(int out, int in, off_t *o, size_t n) { NEXT(ssize_t, sendfile); if (ours(out) && fails("sendfile")) return -1; return next(out, in, o, n); }
int fsync(int fd) { NEXT(int, fsync); if (ours(fd) && fails("fsync")) return -1; return next(fd); }
int fdatasync(int fd) { NEXT(int, fdatasync); if (ours(fd) && fails("fsync")) return -1; return next(fd); }
int flock(int fd, int op) { NEXT(int, flock); if (ours(fd) && fails("flock")) return -1; return next(fd, op); }
int rename(const char *a, const char *b) { NEXT(int, rename); if ((ours_at(AT_FDCWD, a) || ours_at(AT_FDCWD, b)) && fails("rename")) return -1; return next(a, b); }
int renameat(int d, const char *a, int e, const char *b) { NEXT(int, renameat); if ((ours_at(d, a) || ours_at(e, b)) && fails("rename")) return -1; return next(d, a, e, b); }
int link(const char *a, const char *b) { NEXT(int, link); if (ours_at(AT_FDCWD, b) && fails("link")) return -1; return next(a, b); }
int linkat(int d, const char *a, int e, const char *b, int f) { NEXT(int, linkat); if (ours_at(e, b) && fails("link")) return -1; return next(d, a, e, b, f); }
int unlink(const char *p) { NEXT(int, unlink); if (ours_at(AT_FDCWD, p) && fails("unlink")) return -1; return next(p); }
int unlinkat(int d, const char *p, int f) { NEXT(int, unlinkat); if (ours_at(d, p) && fails("unlink")) return -1; return next(d, p, f); }
int rmdir(const char *p) { NEXT(int, rmdir); if (ours_at(AT_FDCWD, p) && fails("unlink")) return -1; return next(p); }
int mkdir(const char *p, mode_t m) { NEXT(int, mkdir); if (ours_at(AT_FDCWD, p) && fails("mkdir")) return -1; return next(p, m); }
