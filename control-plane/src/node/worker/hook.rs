//! Doing what a container's `lifecycle` says, once.

use std::time::Duration;

use super::super::{
    pod::state::{Hook, ProbeTarget},
    probe,
    runtime::Runtime,
};

/// Does it for the container, no longer than `limit`. `Err` says, for people, what went wrong.
pub(super) async fn run<R: Runtime>(
    runtime: &R,
    hook: &Hook,
    container: &str,
    limit: Duration,
) -> Result<(), String> {
    match hook {
        Hook::Sleep(time) => {
            tokio::time::sleep((*time).min(limit)).await;
            Ok(())
        }
        Hook::Ask(target) => {
            let target = ProbeTarget { container: container.to_owned(), ..(**target).clone() };
            let outcome = probe::attempt(runtime, &target, limit).await;
            outcome.map(drop).map_err(|error| error.to_string())
        }
    }
}
