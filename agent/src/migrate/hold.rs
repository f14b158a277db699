//! Keeps the kernel translating the connections of rules that are gone.
//!
//! A connection's translation is in its entry of connection tracking, and outlives the rule that
//! made it. But the kernel takes its hooks for translation away with the last chain of type `nat`,
//! and those of connection tracking with the last rule that looks at connections; then the packets
//! of such connections pass untranslated. So a table of our own has one of each in both families,
//! for as long as such connections live. (Tried on Linux 6.18: neither suffices alone.)

use std::{io, time::Duration};

use tokio_util::sync::CancellationToken;

use super::leftovers::Leftovers;
use crate::{
    netfilter::{
        Family, TalkError, conntrack,
        tables::{Base, Expression, Hook, Kind, NfTables, Rule, Table},
    },
    supervisor::TaskError,
};

/// The table's name, one for each family.
pub const TABLE: &str = "mizzen-nat";
/// Where kube-proxy translates destinations.
const PRIORITY: i32 = -100;
/// How often it is looked whether it is needed yet.
const PAUSE: Duration = Duration::from_secs(10);
const CHAIN: &str = "prerouting";

fn table(family: Family) -> Table {
    let base = Base { chain: CHAIN, hook: Hook::Prerouting, priority: PRIORITY, kind: Kind::Nat };
    let comment = "keeps connections that kube-proxy's rules translated".to_owned();
    let rule = Rule { chain: CHAIN, expressions: vec![Expression::Tracked], comment };
    Table { family, name: TABLE, hooks: vec![base], chains: Vec::new(), rules: vec![rule] }
}

/// Begins to hold, or goes on to.
pub fn hold() -> Result<(), TalkError> {
    let mut kernel = NfTables::open()?;
    Family::ALL.iter().try_for_each(|family| kernel.replace(&table(*family)))
}

/// Whether it is held at present.
pub fn is_held() -> Result<bool, TalkError> {
    let mut kernel = NfTables::open()?;
    for family in Family::ALL {
        if !kernel.rules(&table(family))?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Lets go.
pub fn release() -> Result<(), TalkError> {
    let mut kernel = NfTables::open()?;
    Family::ALL.iter().try_for_each(|family| kernel.remove(&table(*family)))
}

/// Lets go once no translated connection is left, and no rule that could make one. Whether it did.
pub fn release_if_idle() -> Result<bool, TalkError> {
    if !conntrack::is_there() || !is_held()? || conntrack::count_translated()? > 0 {
        return Ok(false);
    }
    if !Leftovers::of(&NfTables::open()?.ruleset()?).is_empty() {
        return Ok(false);
    }
    release()?;
    Ok(true)
}

/// Looks now and then whether what is held is still needed, until cancelled.
pub async fn run(cancel: CancellationToken) -> Result<(), TaskError> {
    while !cancel.is_cancelled() {
        let looked = tokio::task::spawn_blocking(release_if_idle).await;
        match looked.unwrap_or_else(|error| Err(io::Error::other(error).into())) {
            Ok(true) => tracing::info!(
                "the last connection that kube-proxy's rules translated is over; nftables table \
                 {TABLE} removed"
            ),
            Ok(false) => {}
            // A kernel without nftables holds nothing.
            Err(error) if error.is_unsupported() => {
                cancel.cancelled().await;
                return Ok(());
            }
            Err(error) => tracing::warn!(
                %error,
                "can't look whether connections of kube-proxy's rules are left; nftables table \
                 {TABLE} stays if it is there, which does no harm"
            ),
        }
        tokio::select! {
            () = cancel.cancelled() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
    Ok(())
}
