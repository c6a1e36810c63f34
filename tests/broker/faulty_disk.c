/* A disk that fails on demand, for LD_PRELOAD. The calls of one process that touch files below a folder are counted,
 * and from a given one on they fail, write only half, do not come back until the disk is well again, kill the process,
 * or kill it and take back whatever was not synced, as a power cut does; or the process goes on twice from there as soon
 * as the test says so, the other one for some seconds, with all that it writes to logs in a file of its own. New threads
 * are counted and may fail as well. The test steers it by a file that both have mapped (disk.py knows its layout).
 *
 * What a power cut takes back: appended bytes behind the last sync, and the content of small files. Creations, renames
 * and deletions stay. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, SYNC = 4, RENAME = 8, RESIZE = 16, READ = 32, THREAD = 64 };
enum { COUNT, FAIL, SHORT, KILL, POWER_CUT, FORK, STALL };

#define OTHER_SECONDS 3

struct control {
    int32_t armed, action, error, calls;
    int64_t after, times; /* calls to let pass; calls to fail then, or -1 */
    int64_t seen, failed;
    int64_t go_on; /* set by the test: a call at which the process is to go on twice waits for it */
    char root[512], match[64]; /* a path must begin with one and contain the other */
    char spill[512]; /* the other process's file: where in the log it went on (8 bytes), and what it wrote there */
};

#define SMALL_BYTES 8192
#define FILES_MAX 4096
#define FDS_MAX 65536

struct file {
    dev_t device;
    ino_t inode;
    char path[512];
    off_t synced;
    char *content; /* of a small file, when it was synced last */
};

static struct control *control;
static struct file files[FILES_MAX];
static int file_count;
static unsigned char below[FDS_MAX];
static int spill = -1; /* in the other process only */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("FAULTY_DISK_CONTROL");
    int fd = path ? REAL(open)(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *map = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map != MAP_FAILED) control = map;
    close(fd);
}

static int is_below(const char *path) { return strncmp(path, control->root, strlen(control->root)) == 0; }

/* Whether a descriptor is a file below the root; gives its path. Numbers are reused by sockets, so it is asked anew. */
static int path_of(int fd, char *path) {
    char link[64];
    if (!control || fd < 0 || fd >= FDS_MAX || !below[fd]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, PATH_MAX - 1);
    if (len <= 0) return 0;
    path[len] = 0;
    return is_below(path);
}

static struct file *find(int fd, const char *path) {
    struct stat facts;
    if (fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode)) return NULL;
    for (int i = 0; i < file_count; i++)
        if (files[i].device == facts.st_dev && files[i].inode == facts.st_ino) {
            snprintf(files[i].path, sizeof files[i].path, "%s", path);
            return &files[i];
        }
    if (file_count == FILES_MAX) abort();
    struct file *file = &files[file_count++];
    *file = (struct file){.device = facts.st_dev, .inode = facts.st_ino};
    snprintf(file->path, sizeof file->path, "%s", path);
    return file;
}

static void note_synced(int fd, const char *path) {
    struct file *file = find(fd, path);
    struct stat facts;
    if (!file || fstat(fd, &facts) != 0) return;
    file->synced = facts.st_size;
    free(file->content);
    file->content = NULL;
    int again = facts.st_size <= SMALL_BYTES ? REAL(open)(path, O_RDONLY | O_CLOEXEC) : -1;
    if (again >= 0) {
        file->content = malloc(SMALL_BYTES);
        if (REAL(pread)(again, file->content, SMALL_BYTES, 0) != facts.st_size) abort();
        close(again);
    }
}

static void cut_power(void) {
    for (int i = 0; i < file_count; i++) {
        struct file *file = &files[i];
        struct stat facts;
        /* A file that was replaced by a rename has gone with its content. */
        if (stat(file->path, &facts) != 0 || facts.st_ino != file->inode || facts.st_dev != file->device) continue;
        int fd = REAL(open)(file->path, O_WRONLY | O_CLOEXEC);
        if (fd < 0) continue;
        if (facts.st_size > file->synced && REAL(ftruncate)(fd, file->synced) != 0) abort();
        if (file->content && REAL(pwrite)(fd, file->content, file->synced, 0) != file->synced) abort();
        close(fd);
    }
}

static void go_on_twice(int fd) {
    struct stat facts;
    while (!control->go_on) usleep(1000);
    if (fstat(fd, &facts) != 0 || fork() != 0) return;
    alarm(OTHER_SECONDS);
    int64_t size = facts.st_size;
    spill = REAL(open)(control->spill, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (spill < 0 || REAL(write)(spill, &size, sizeof size) != sizeof size) _exit(1);
}

/* What is to become of a call: 0 goes on, 1 fails with errno set, 2 writes half. The lock is held while it is made. */
static int judge(int call, const char *path, int fd) {
    if (!control->armed || !(control->calls & call) || !strstr(path, control->match)) return 0;
    int64_t number = control->seen++;
    if (control->action == COUNT || number < control->after) return 0;
    if (control->times >= 0 && number >= control->after + control->times) return 0;
    control->failed++;
    if (control->action == SHORT && call == WRITE && number == control->after) return 2;
    if (control->action == FORK) {
        go_on_twice(fd);
        return 0;
    }
    if (control->action == STALL) {
        while (*(volatile int32_t *)&control->armed) {
            pthread_mutex_unlock(&lock);
            usleep(10000);
            pthread_mutex_lock(&lock);
        }
        return 0;
    }
    if (control->action == KILL || control->action == POWER_CUT) {
        if (control->action == POWER_CUT) cut_power();
        kill(getpid(), SIGKILL);
        pause();
    }
    errno = control->error;
    return 1;
}

/* Makes the call `real` on a descriptor; in it HALF(n) is n, or half of it in a write that is to be short. The other
 * process does `instead`. */
#define ON_FD(call, fd, real, instead)                          \
    char path[PATH_MAX];                                        \
    int verdict = 0, saved;                                     \
    if (!path_of(fd, path)) return real;                        \
    if (spill >= 0 && (call) != READ) return instead;           \
    pthread_mutex_lock(&lock);                                  \
    verdict = judge(call, path, fd);                            \
    __typeof__(real) result = -1;                               \
    if (verdict != 1) result = real;                            \
    saved = errno;                                              \
    if ((call) == SYNC && result == 0) note_synced(fd, path);   \
    pthread_mutex_unlock(&lock);                                \
    errno = saved;                                              \
    return result;
#define HALF(count) (verdict == 2 ? (count) / 2 : (count))

/* The same for a call on a path. */
#define ON_PATH(call, path, real)                       \
    if (!control || !is_below(path)) return real;       \
    pthread_mutex_lock(&lock);                          \
    int result = judge(call, path, -1) ? -1 : real;     \
    int saved = errno;                                  \
    pthread_mutex_unlock(&lock);                        \
    errno = saved;                                      \
    return result;

static int open_file(int at, const char *path, int flags, mode_t mode) {
    __typeof__(&openat) real = REAL(openat);
    char full[PATH_MAX];
    if (!control || !is_below(path)) {
        int fd = real(at, path, flags, mode);
        if (fd >= 0 && fd < FDS_MAX) below[fd] = 0;
        return fd;
    }
    pthread_mutex_lock(&lock);
    int is_new = access(path, F_OK) != 0, writes = flags & (O_WRONLY | O_RDWR);
    int fd = judge(is_new ? OPEN : writes ? WRITE : READ, path, -1) ? -1 : real(at, path, flags, mode);
    int saved = errno;
    if (fd >= 0 && fd < FDS_MAX) {
        below[fd] = 1;
        int known = file_count;
        /* What was there before the first time is on the disk. */
        if (writes && path_of(fd, full) && find(fd, full) && file_count > known && !is_new) note_synced(fd, full);
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
    return fd;
}

#define MODE                                    \
    mode_t mode = 0;                            \
    if (flags & (O_CREAT | __O_TMPFILE)) {      \
        va_list more;                           \
        va_start(more, flags);                  \
        mode = va_arg(more, mode_t);            \
        va_end(more);                           \
    }

int open(const char *path, int flags, ...) { MODE return open_file(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return open_file(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE return open_file(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE return open_file(at, path, flags, mode); }

static ssize_t spill_log(const char *path, const void *bytes, size_t count) {
    return strstr(path, ".log") ? REAL(write)(spill, bytes, count) : (ssize_t)count;
}

ssize_t write(int fd, const void *bytes, size_t count) { ON_FD(WRITE, fd, REAL(write)(fd, bytes, HALF(count)), spill_log(path, bytes, count)) }
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) { ON_FD(WRITE, fd, REAL(pwrite)(fd, bytes, HALF(count), at), spill_log(path, bytes, count)) }
ssize_t pwrite64(int fd, const void *bytes, size_t count, off_t at) { ON_FD(WRITE, fd, REAL(pwrite)(fd, bytes, HALF(count), at), spill_log(path, bytes, count)) }
ssize_t writev(int fd, const struct iovec *parts, int count) { ON_FD(WRITE, fd, REAL(writev)(fd, parts, count), -1) }

ssize_t read(int fd, void *bytes, size_t count) { ON_FD(READ, fd, REAL(read)(fd, bytes, count), -1) }
ssize_t pread(int fd, void *bytes, size_t count, off_t at) { ON_FD(READ, fd, REAL(pread)(fd, bytes, count, at), -1) }
ssize_t pread64(int fd, void *bytes, size_t count, off_t at) { ON_FD(READ, fd, REAL(pread)(fd, bytes, count, at), -1) }

int fsync(int fd) { ON_FD(SYNC, fd, REAL(fsync)(fd), 0) }
int fdatasync(int fd) { ON_FD(SYNC, fd, REAL(fdatasync)(fd), 0) }

int ftruncate(int fd, off_t size) { ON_FD(RESIZE, fd, REAL(ftruncate)(fd, size), 0) }
int ftruncate64(int fd, off_t size) { ON_FD(RESIZE, fd, REAL(ftruncate)(fd, size), 0) }
int fallocate(int fd, int mode, off_t from, off_t size) { ON_FD(RESIZE, fd, REAL(fallocate)(fd, mode, from, size), 0) }
int fallocate64(int fd, int mode, off_t from, off_t size) { ON_FD(RESIZE, fd, REAL(fallocate)(fd, mode, from, size), 0) }

static int rename_file(const char *from, const char *to) {
    int result = REAL(rename)(from, to);
    for (int i = 0; result == 0 && i < file_count; i++)
        if (strcmp(files[i].path, from) == 0) snprintf(files[i].path, sizeof files[i].path, "%s", to);
    return result;
}

int rename(const char *from, const char *to) { ON_PATH(RENAME, to, rename_file(from, to)) }
int link(const char *from, const char *to) { ON_PATH(RENAME, to, REAL(link)(from, to)) }
int unlink(const char *gone) { ON_PATH(RENAME, gone, REAL(unlink)(gone)) }
int mkdir(const char *made, mode_t mode) { ON_PATH(OPEN, made, REAL(mkdir)(made, mode)) }

int pthread_create(pthread_t *thread, const pthread_attr_t *with, void *(*run)(void *), void *of) {
    int refused = 0;
    if (control) {
        pthread_mutex_lock(&lock);
        refused = judge(THREAD, "", -1);
        pthread_mutex_unlock(&lock);
    }
    return refused ? control->error : REAL(pthread_create)(thread, with, run, of);
}
