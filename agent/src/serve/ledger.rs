//! What services were sent: what the tables counted, by the names of the loop that writes them, and
//! what the kernel says of connections that live.

use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::spawn_blocking,
};

use crate::{
    reconcile::Query,
    traffic::{
        accounts::{Highest, PortTraffic},
        live::LiveSockets,
    },
};

/// Answers what services were sent, to one after the other.
#[derive(Debug)]
pub struct Ledger {
    queries: mpsc::Sender<Query>,
    live: LiveSockets,
    /// What was told the last time.
    highest: Mutex<Highest>,
}

impl Ledger {
    /// A ledger over the loop's tables and the node's sockets.
    pub fn new(queries: mpsc::Sender<Query>, live: LiveSockets) -> Self {
        Self { queries, live, highest: Mutex::default() }
    }

    /// What each service port was sent, or why that is not known.
    ///
    /// The tables are read first: a connection that ends meanwhile is then missed for once, rather
    /// than counted twice.
    pub(super) async fn read(&self) -> Result<Vec<PortTraffic>, String> {
        let mut highest = self.highest.lock().await;
        let stopping = || "the agent is stopping".to_owned();
        let (reply, answer) = oneshot::channel();
        self.queries.send(Query::Traffic(reply)).await.map_err(|_| stopping())?;
        let mut accounts = answer.await.map_err(|_| stopping())??;
        let live = self.live.clone();
        let live = spawn_blocking(move || live.count()).await.map_err(|_| stopping())?;
        match live {
            Ok(live) => accounts.add(&live),
            // What ended is known all the same.
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "connections that live are not counted");
            }
        }
        accounts.not_below(&mut highest);
        Ok(accounts.ports)
    }
}
