//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// Calls `check` until it gives a value; panics with `what` and the last reason after `limit`.
pub fn until<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return value,
            Err(reason) if Instant::now() >= deadline => panic!("waited for {what}: {reason}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
