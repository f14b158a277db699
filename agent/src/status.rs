//! The board on which every part of the agent says how it is; `/readyz`, `/healthz` and
//! `mizzen status` read it. Parts report changes of state, not events.

use std::{collections::BTreeMap, sync::Mutex};

use tokio::sync::Notify;

/// How a part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It serves.
    Ready,
    /// It can't serve yet; the text says what it waits for.
    Waiting(String),
    /// It serves, but not all of it works; the text says what does not, why, and the remedy.
    Degraded(String),
}

/// The board. Shared behind an `Arc`.
#[derive(Debug, Default)]
pub struct Board {
    parts: Mutex<BTreeMap<&'static str, State>>,
    changed: Notify,
}

impl Board {
    /// Says how `part` is, and logs it when that is news.
    pub fn report(&self, part: &'static str, state: State) {
        let mut parts = self.parts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if parts.get(part) == Some(&state) {
            return;
        }
        match &state {
            State::Ready => tracing::info!(part, "ready"),
            State::Waiting(reason) => tracing::info!(part, reason, "waiting"),
            State::Degraded(reason) => tracing::warn!(part, reason, "degraded"),
        }
        parts.insert(part, state);
        self.changed.notify_one();
    }

    /// Done when a part has changed since this was last done; for one who waits.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// All parts and how they are, by name.
    pub fn parts(&self) -> BTreeMap<&'static str, State> {
        self.parts.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Whether there are parts and all of them are ready.
    pub fn ready(&self) -> bool {
        let parts = self.parts();
        !parts.is_empty() && parts.values().all(|state| *state == State::Ready)
    }
}
