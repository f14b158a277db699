//! What one agent of a node has at a time: the command line's socket and the tables. The ports of
//! health and metrics are the node's too, but nothing waits for them: the agent before gives its own,
//! and where another program has one, such as a kube-proxy that is about to leave, it is taken later
//! ([`crate::serve::ports`]).

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::{
    config::Config,
    datapath::{Datapath, OpenError, Prepared, TableReaders, leads_at_loopback},
    dns::others::Elsewhere,
    handover::{Departure, GivenPorts},
    serve::listen::{ListenError, Listeners},
};

/// How long what an agent had that has left may be in use.
const LEFT: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// All of it.
pub(super) struct Own {
    pub(super) listeners: Listeners,
    pub(super) datapath: Option<Datapath>,
    /// Ports that the agent before gave.
    pub(super) given: GivenPorts,
}

impl Own {
    /// Takes it, where no agent has it.
    pub(super) async fn open(config: &Config) -> anyhow::Result<Self> {
        let (listeners, datapath) = take(config, &mut None, &GivenPorts::default(), None).await?;
        Ok(Self { listeners, datapath, given: GivenPorts::default() })
    }

    /// As [`Self::open`], when the agent before has let go, with the ports that it gave.
    pub(super) async fn wait(
        config: &Config,
        mut prepared: Option<Prepared>,
        given: GivenPorts,
    ) -> anyhow::Result<Self> {
        let deadline = Instant::now() + LEFT;
        let in_use = |error: &anyhow::Error| {
            error.downcast_ref::<ListenError>().is_some_and(ListenError::is_in_use)
                || error.downcast_ref::<OpenError>().is_some_and(OpenError::is_busy)
        };
        loop {
            match take(config, &mut prepared, &given, Some(deadline)).await {
                Err(error) if in_use(&error) && Instant::now() < deadline => {
                    tokio::time::sleep(LOOK).await;
                }
                outcome => {
                    let (listeners, datapath) = outcome?;
                    return Ok(Self { listeners, datapath, given });
                }
            }
        }
    }
}

/// How this agent ends: what its resolver holds stays where programs are in force, whichever agent
/// put them there.
pub(super) fn departure(config: &Config) -> Departure {
    let bpffs = config.bpffs.clone();
    Departure::outlived_by(move || leads_at_loopback(&bpffs))
}

/// Where the tables lead clients of cluster DNS while this node's resolver is silent, whichever agent
/// writes them.
pub(super) fn elsewhere(config: &Config) -> Option<Elsewhere> {
    if !(config.services && config.dns) {
        return None;
    }
    let readers = TableReaders::of_another(&config.bpffs)?;
    let addresses = config.cluster_dns.iter().map(|ip| (*ip, config.dns_port).into());
    let addresses: Vec<_> = addresses.collect();
    Some(Elsewhere::new(move || {
        readers.lead_elsewhere(&addresses).unwrap_or_else(|error| {
            tracing::warn!(%error, "the tables don't tell whether other nodes answer cluster DNS");
            BTreeSet::new()
        })
    }))
}

/// Until `leaving` ports may be those of an agent that leaves.
async fn take(
    config: &Config,
    prepared: &mut Option<Prepared>,
    given: &GivenPorts,
    leaving: Option<Instant>,
) -> anyhow::Result<(Listeners, Option<Datapath>)> {
    let listeners = Listeners::open(config, given, leaving).await?;
    let open = || Datapath::open_with(&config.datapath(), prepared);
    let datapath = config.services.then(open).transpose()?;
    Ok((listeners, datapath))
}
