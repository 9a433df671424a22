/* A power cut at a chosen file operation, for tests: preloaded into a process, it counts what changes files below a
   folder, in that process and those it starts, and kills their process group before (or just after) the n-th.

   POWER_CUT_ROOT  the folder; a relative path counts if the working folder is in it
   POWER_CUT_TALLY a file of eight bytes, the count that all processes share
   POWER_CUT_AT    n; 0 only counts
   A process may set them late: it calls power_cut_arm(). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static _Atomic long *tally;
static long cut_at;
static const char *root;
static char written[4096]; /* descriptors of files that count */

void power_cut_arm(void) {
    const char *at = getenv("POWER_CUT_AT"), *path = getenv("POWER_CUT_TALLY");
    root = getenv("POWER_CUT_ROOT");
    tally = NULL;
    if (!at || !path || !root) return;
    cut_at = atol(at);
    int descriptor = open(path, O_RDWR);
    if (descriptor < 0) return;
    void *mapped = mmap(NULL, sizeof *tally, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (mapped != MAP_FAILED) tally = mapped;
}

__attribute__((constructor)) static void start(void) { power_cut_arm(); }

static int below_root(const char *path) {
    char working[PATH_MAX];
    if (!tally || !path || strstr(path, "__pycache__")) return 0;
    if (path[0] != '/') path = getcwd(working, sizeof working);
    size_t length = strlen(root);
    return path && !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static void operation(int counts) {
    if (counts && atomic_fetch_add(tally, 1) + 1 == cut_at) kill(0, SIGKILL);
}

#define NEXT(name) static __typeof__(name) *next; if (!next) next = dlsym(RTLD_NEXT, #name)
/* Before and after: a rename that has happened and one that has not are different worlds. */
#define AROUND(path, call) do { int counts = below_root(path); operation(counts); int result = call; operation(counts); return result; } while (0)

int rename(const char *a, const char *b) { NEXT(rename); AROUND(b, next(a, b)); }
int renameat(int d, const char *a, int e, const char *b) { NEXT(renameat); AROUND(b, next(d, a, e, b)); }
int renameat2(int d, const char *a, int e, const char *b, unsigned f) { NEXT(renameat2); AROUND(b, next(d, a, e, b, f)); }
int link(const char *a, const char *b) { NEXT(link); AROUND(b, next(a, b)); }
int linkat(int d, const char *a, int e, const char *b, int f) { NEXT(linkat); AROUND(b, next(d, a, e, b, f)); }
int symlink(const char *a, const char *b) { NEXT(symlink); AROUND(b, next(a, b)); }
int unlink(const char *a) { NEXT(unlink); AROUND(a, next(a)); }
int unlinkat(int d, const char *a, int f) { NEXT(unlinkat); AROUND(a, next(d, a, f)); }
int mkdir(const char *a, mode_t m) { NEXT(mkdir); AROUND(a, next(a, m)); }
int rmdir(const char *a) { NEXT(rmdir); AROUND(a, next(a)); }
int truncate(const char *a, off_t n) { NEXT(truncate); AROUND(a, next(a, n)); }

static int opened(int descriptor, int counts) {
    if (descriptor >= 0 && descriptor < (int)sizeof written) written[descriptor] = counts;
    operation(counts); /* it is there now, and empty */
    return descriptor;
}
#define MODE(flags) mode_t mode = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }
#define CHANGES(path, flags) (((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) && below_root(path))
int open(const char *p, int flags, ...) { NEXT(open); MODE(flags); int c = CHANGES(p, flags); operation(c); return opened(next(p, flags, mode), c); }
int open64(const char *p, int flags, ...) { NEXT(open64); MODE(flags); int c = CHANGES(p, flags); operation(c); return opened(next(p, flags, mode), c); }
int openat(int d, const char *p, int flags, ...) { NEXT(openat); MODE(flags); int c = CHANGES(p, flags); operation(c); return opened(next(d, p, flags, mode), c); }
int openat64(int d, const char *p, int flags, ...) { NEXT(openat64); MODE(flags); int c = CHANGES(p, flags); operation(c); return opened(next(d, p, flags, mode), c); }

static int counted(int descriptor) { return tally && descriptor >= 0 && descriptor < (int)sizeof written && written[descriptor]; }
ssize_t write(int d, const void *b, size_t n) { NEXT(write); operation(counted(d)); return next(d, b, n); }
ssize_t pwrite(int d, const void *b, size_t n, off_t o) { NEXT(pwrite); operation(counted(d)); return next(d, b, n, o); }
ssize_t pwrite64(int d, const void *b, size_t n, off64_t o) { NEXT(pwrite64); operation(counted(d)); return next(d, b, n, o); }
int ftruncate(int d, off_t n) { NEXT(ftruncate); operation(counted(d)); return next(d, n); }
int close(int d) { NEXT(close); if (d >= 0 && d < (int)sizeof written) written[d] = 0; return next(d); }
