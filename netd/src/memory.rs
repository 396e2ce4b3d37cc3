//! What the C library's allocator keeps of what was freed.
//!
//! Every look into a namespace is a thread's, and a thread that asks for memory gets an arena of its own, up to eight for
//! each processor, which keeps what was freed in it.

#![allow(unsafe_code)]

/// Places where freed memory may lie.
const ARENAS: libc::c_int = 2;

/// To be called before the first thread is started.
pub(crate) fn bound_arenas() {
    // SAFETY: it takes two numbers; what it refuses stays as it was.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) } != 1 {
        tracing::debug!("the allocator keeps its own number of arenas");
    }
}

/// Gives free memory back to the kernel. Threads that ask for memory wait meanwhile, some milliseconds at most.
pub(crate) fn give_back() {
    // SAFETY: it takes a number, locks what it looks at, and moves nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}
