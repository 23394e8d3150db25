/* Makes UCX fail: preloaded into a worker, it answers some calls with an error of the list and holds others up.
 *
 * UCX_SHIM_ON      a file; while it exists faults are injected
 * UCX_SHIM_LOG     a file; one line for each injected fault
 * UCX_SHIM_SEED    an unsigned integer
 * UCX_SHIM_SHARE   faults per million calls
 *
 * Statuses are those of ucs/type/status.h; a call that fails at once is what UCX's API promises for all of these
 * functions. A stall sleeps in the calling thread (ucxx's progress thread), as a driver that does not answer does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <ucp/api/ucp.h>

static const struct {
    const char *name;
    ucs_status_t status;
} FAULTS[] = {
    {"CONNECTION_RESET", UCS_ERR_CONNECTION_RESET},
    {"ENDPOINT_TIMEOUT", UCS_ERR_ENDPOINT_TIMEOUT},
    {"IO_ERROR", UCS_ERR_IO_ERROR},
    {"NO_MEMORY", UCS_ERR_NO_MEMORY},
    {"STALL", UCS_OK},
};
enum { KINDS = sizeof FAULTS / sizeof FAULTS[0] };

static _Atomic uint64_t calls;

/* splitmix64 over seed and call number: the same seed gives the same faults at the same calls. */
static uint64_t draw(void) {
    const char *seed = getenv("UCX_SHIM_SEED");
    uint64_t x = (seed ? strtoull(seed, NULL, 10) : 1) * 0x9E3779B97F4A7C15u + atomic_fetch_add(&calls, 1);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static void note(const char *call, const char *what) {
    const char *path = getenv("UCX_SHIM_LOG");
    char line[128];
    int file = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644) : -1;
    if (file >= 0) {
        int length = snprintf(line, sizeof line, "%s %s\n", call, what);
        if (write(file, line, (size_t)length) < 0) {
            perror("ucx_shim log");
        }
        close(file);
    }
}

/* UCS_OK: go on. */
static ucs_status_t fault(const char *call) {
    const char *on = getenv("UCX_SHIM_ON"), *share = getenv("UCX_SHIM_SHARE");
    if (on == NULL || access(on, F_OK) != 0) {
        return UCS_OK;
    }
    uint64_t drawn = draw();
    if (drawn % 1000000 >= (share ? strtoull(share, NULL, 10) : 1000)) {
        return UCS_OK;
    }
    unsigned kind = (unsigned)(drawn >> 40) % KINDS;
    note(call, FAULTS[kind].name);
    if (FAULTS[kind].status == UCS_OK) {
        usleep(100000u + (unsigned)(drawn >> 20) % 1900000u);
    }
    return FAULTS[kind].status;
}

/* libucp is loaded by path, outside the global scope: RTLD_NEXT would not find it. */
static void *real(const char *name) {
    void *library = dlopen("libucp.so.0", RTLD_LAZY | RTLD_NOLOAD);
    void *found = library ? dlsym(library, name) : NULL;
    if (found == NULL) {
        fprintf(stderr, "ucx_shim: no %s in libucp.so.0\n", name);
        abort();
    }
    return found;
}

ucs_status_ptr_t ucp_tag_send_nbx(ucp_ep_h ep, const void *buffer, size_t count, ucp_tag_t tag,
                                  const ucp_request_param_t *param) {
    static ucs_status_ptr_t (*next)(ucp_ep_h, const void *, size_t, ucp_tag_t, const ucp_request_param_t *);
    ucs_status_t status = fault("tag_send");
    if (status != UCS_OK) {
        return UCS_STATUS_PTR(status);
    }
    if (next == NULL) {
        next = real("ucp_tag_send_nbx");
    }
    return next(ep, buffer, count, tag, param);
}

ucs_status_ptr_t ucp_tag_recv_nbx(ucp_worker_h worker, void *buffer, size_t count, ucp_tag_t tag, ucp_tag_t mask,
                                  const ucp_request_param_t *param) {
    static ucs_status_ptr_t (*next)(ucp_worker_h, void *, size_t, ucp_tag_t, ucp_tag_t, const ucp_request_param_t *);
    ucs_status_t status = fault("tag_recv");
    if (status != UCS_OK) {
        return UCS_STATUS_PTR(status);
    }
    if (next == NULL) {
        next = real("ucp_tag_recv_nbx");
    }
    return next(worker, buffer, count, tag, mask, param);
}

ucs_status_t ucp_ep_create(ucp_worker_h worker, const ucp_ep_params_t *params, ucp_ep_h *ep) {
    static ucs_status_t (*next)(ucp_worker_h, const ucp_ep_params_t *, ucp_ep_h *);
    ucs_status_t status = fault("ep_create");
    if (status != UCS_OK) {
        return status;
    }
    if (next == NULL) {
        next = real("ucp_ep_create");
    }
    return next(worker, params, ep);
}
