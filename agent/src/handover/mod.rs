//! From one agent to the next: the new one asks the running one by `agent.sock` for its listening
//! DNS sockets and the ports of health and metrics, serves by them, and then has it leave. What waits
//! in the sockets' queues meanwhile is the new one's to answer.
//!
//! ```text
//! new agent                                   running agent
//!   GET /v1/handover, Upgrade          -->    (HTTP, root alone)
//!   Hello: versions, node, bpffs       -->    the same node, nobody else being served?
//!                                      <--    Offer, then Sockets with the descriptors; or Refusal
//!   learns the cluster, serves
//!   Serving                            -->    stops, answers what is under way, gives up nothing
//!                                      <--    Connection: each TCP connection that is at rest
//!                                      <--    closes, as its last deed
//!   takes the lock of the tables
//! ```
//! Until `Serving` nothing has changed: a new agent that ends before leaves the old one as it was.
//! A running agent that is told to stop meanwhile says `Leaving`, and one that dies closes: then the
//! new one serves at once. There never are two writers of the tables, because the lock of the pins
//! is taken as by any other agent, when the old one has let go of it.

mod channel;
mod give;
mod message;
mod sockets;
mod take;

use std::{
    fmt, io,
    os::fd::AsFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

use self::{channel::Channel, message::Message};
pub use self::{
    give::{Asking, Giver},
    sockets::{GivenPorts, OpenSockets},
    take::{HandoverError, Opening, Predecessor, meet},
};
use crate::config::Config;

/// Where it is asked for.
pub(crate) const PATH: &str = "/v1/handover";
/// What the connection is switched to.
pub(crate) const PROTOCOL: &str = "mizzen-handover";
/// The version of the protocol.
const VERSION: u32 = 1;
/// Ports of health and metrics that are given and taken at most. What is beyond is opened anew.
const PORTS_MAX: usize = 4096;

/// Which node an agent is of: only agents of the same one take over from each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The Node object's name.
    pub node: String,
    /// The folder of its pins.
    pub bpffs: PathBuf,
}

impl Identity {
    /// That of an agent with this configuration.
    pub fn of(config: &Config) -> Self {
        Self { node: config.node_name.clone(), bpffs: config.bpffs.clone() }
    }
}

/// How this agent ends: alone, or with another one that goes on. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Departure {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    relieved: CancellationToken,
    /// The line to who goes on, from the moment in which it has the sockets. It is closed when the
    /// last clone goes, which is when all has ended.
    successor: Mutex<Option<Arc<Channel>>>,
    /// Whether somebody keeps the sockets for an agent that is about to start.
    kept: AtomicBool,
    /// What goes on without an agent.
    programs: Option<Programs>,
}

/// Says whether programs lead clients of cluster DNS on when no agent of the node answers them.
struct Programs(Box<dyn Fn() -> bool + Send + Sync>);

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Programs").finish_non_exhaustive()
    }
}

impl Departure {
    /// Of an agent that programs may outlive. Whether they lead the node's own clients of cluster
    /// DNS to other nodes' resolvers, `lead` says when it ends, by system calls.
    pub fn outlived_by(lead: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        let programs = Some(Programs(Box::new(lead)));
        Self { inner: Arc::new(Inner { programs, ..Inner::default() }) }
    }

    /// Whether another agent has the sockets: what it goes on with is not given up.
    pub fn has_successor(&self) -> bool {
        self.successor().is_some()
    }

    /// From now on the sockets are kept for an agent that is about to start.
    pub fn set_kept(&self) {
        self.inner.kept.store(true, Ordering::Release);
    }

    /// Whether the sockets outlive this agent: another one has them, or will.
    pub fn leaves_sockets(&self) -> bool {
        self.has_successor() || self.inner.kept.load(Ordering::Acquire)
    }

    /// Whether the addresses of the sockets are to stay the node's: the sockets do, or programs
    /// lead those who ask there to others, which they can as long as the addresses are the node's.
    pub fn leaves_addresses(&self) -> bool {
        let lead = |programs: &Programs| (programs.0)();
        self.leaves_sockets() || self.inner.programs.as_ref().is_some_and(lead)
    }

    /// Done when another agent serves, and this one is to leave.
    pub async fn relieved(&self) {
        self.inner.relieved.cancelled().await;
    }

    /// Whether another agent serves.
    pub fn is_relieved(&self) -> bool {
        self.inner.relieved.is_cancelled()
    }

    /// Passes a client's connection on, of which nothing was read that is not answered.
    pub async fn pass_on(&self, connection: &impl AsFd) -> io::Result<()> {
        let Some(channel) = self.successor() else { return Ok(()) };
        channel.send(&Message::Connection, &[connection.as_fd()]).await
    }

    fn successor(&self) -> Option<Arc<Channel>> {
        self.inner.successor.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_successor(&self, successor: Option<Arc<Channel>>) {
        *self.inner.successor.lock().unwrap_or_else(PoisonError::into_inner) = successor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stay_with_the_sockets_or_where_programs_lead_on_in_the_end() {
        let alone = Departure::default();
        assert!(!alone.leaves_addresses(), "nobody would answer there");
        alone.set_kept();
        assert!(alone.leaves_sockets() && alone.leaves_addresses());

        let in_force = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&in_force);
        let led = Departure::outlived_by(move || asked.load(Ordering::Acquire));
        assert!(led.leaves_addresses());
        assert!(!led.leaves_sockets(), "connections end: no process goes on with them");
        in_force.store(false, Ordering::Release);
        assert!(!led.leaves_addresses(), "they were taken out of force meanwhile");
    }
}
