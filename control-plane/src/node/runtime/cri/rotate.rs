//! Keeps the logs of containers small: runtimes write them, and leave it to the node part to move one
//! away that has grown too large, and to say so.

use std::{path::Path, time::Duration};

use k8s_cri::v1 as cri;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{
    Client,
    call::{self, CallError, bounded},
    translate,
};

/// Octets after which a log is moved to `.1`, in place of the one before; twice that is kept, and
/// what is written between two looks.
const LOG_MAX: u64 = 10 << 20;
/// Between two looks, as by the kubelet.
const PERIOD: Duration = Duration::from_secs(10);

/// Looks until `stop`.
pub(super) async fn keep_small(client: Client, logs: std::path::PathBuf, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = look(&client, &logs).await {
            tracing::debug!(%error, "logs were not looked at");
        }
    }
}

async fn look(client: &Client, logs: &Path) -> Result<(), CallError> {
    let running = cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning.into() };
    let filter = cri::ContainerFilter { state: Some(running), ..cri::ContainerFilter::default() };
    let request = cri::ListContainersRequest { filter: Some(filter) };
    let listed = bounded(call::LOOK, client.runtime().list_containers(request)).await?;
    for container in listed.containers {
        let Some(path) = translate::log_of(&container, logs) else { continue };
        if !move_away(&path, LOG_MAX) {
            continue;
        }
        let request = cri::ReopenContainerLogRequest { container_id: container.id.clone() };
        let reopened = bounded(call::LOOK, client.runtime().reopen_container_log(request)).await;
        if let Err(error) = reopened {
            tracing::warn!(container = container.id, %error, "its log goes on in the file that was moved");
        }
    }
    Ok(())
}

/// Moves a log away that is larger than `max`. True where it was.
fn move_away(path: &Path, max: u64) -> bool {
    if std::fs::metadata(path).map_or(0, |meta| meta.len()) <= max {
        return false;
    }
    let mut old = path.to_owned().into_os_string();
    old.push(".1");
    match std::fs::rename(path, &old) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(log = %path.display(), %error, "a large log was not moved");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_large_log_is_moved_in_place_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        assert!(!move_away(&path, 3), "there is none");
        std::fs::write(&path, "abc").unwrap();
        assert!(!move_away(&path, 3));
        std::fs::write(&path, "abcd").unwrap();
        std::fs::write(dir.path().join("0.log.1"), "older").unwrap();
        assert!(move_away(&path, 3));
        assert!(!path.exists());
        assert_eq!(std::fs::read_to_string(dir.path().join("0.log.1")).unwrap(), "abcd");
    }
}
