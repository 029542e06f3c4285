// Thread-local variables without the cost of lazy initialisation.
#pragma once

// C++'s `extern thread_local` calls a wrapper at every access, because the variable could have a
// dynamic initialiser; `__thread` promises that it has none.  glibc keeps a reserve of static
// thread storage for dlopened libraries, so there the access needs no call at all.
#if defined(__GLIBC__) || defined(__GNU_LIBRARY__)
#define EAGER_TLS_MODEL __attribute__((tls_model("initial-exec")))
#else
#define EAGER_TLS_MODEL
#endif
#define EAGER_THREAD_LOCAL(linkage, type, name) linkage __thread type name EAGER_TLS_MODEL
