//! The C library's heap: how many arenas it keeps, and when it hands free pages back.
//!
//! Passes run on many threads for moments. glibc gives each of them an arena and keeps what they freed, which would soon be more than what
//! is in use. Two arenas suffice for work that waits for the disk; free pages go back to the kernel once a minute.

use std::time::Duration;

/// Arenas that threads share.
#[cfg(target_env = "gnu")]
const ARENAS_MAX: i32 = 2;
/// How often free pages are handed back; it takes a few milliseconds.
const INTERVAL: Duration = Duration::from_secs(60);

/// Limits the arenas. Call it before there are many threads.
pub fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets a number of the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
    }
}

/// Hands free pages back to the kernel. Blocks for some milliseconds.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Hands free pages back now and then, for ever.
pub async fn give_back_regularly() {
    loop {
        tokio::time::sleep(INTERVAL).await;
        // A panic is impossible in there, and a lost round is none.
        let _ = tokio::task::spawn_blocking(give_back).await;
    }
}
