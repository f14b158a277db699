//! Keeps the kernel translating the connections of rules that are gone.
//!
//! A connection's translation is in its entry of connection tracking, and outlives the rule that
//! made it. But the kernel takes its hooks for translation away with the last chain of type `nat`,
//! and those of connection tracking with the last rule that looks at connections; then the packets
//! of such connections pass untranslated. So a table of our own has one of each in both families,
//! for as long as such connections live. (Tried on Linux 6.18: neither suffices alone.)
//!
//! kube-proxy's rules also drop segments that connection tracking takes for invalid: an answer outside
//! of the window would leave untranslated, and the reset that it draws end the connection. Meanwhile
//! `nf_conntrack_tcp_be_liberal` has it translate them too. What that was before stands in the rule's
//! comment.

use std::{fs, io, time::Duration};

use tokio_util::sync::CancellationToken;

use super::leftovers::Leftovers;
use crate::{
    netfilter::{
        Family, TalkError, conntrack, legacy,
        ruleset::Ruleset,
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
/// Whether segments outside of the window are part of their connections.
const LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
/// Ends the comment of a table that made it so.
const WAS_STRICT: &str = "nf_conntrack_tcp_be_liberal was 0";

fn table(family: Family, was_strict: bool) -> Table {
    let base = Base { chain: CHAIN, hook: Hook::Prerouting, priority: PRIORITY, kind: Kind::Nat };
    let mut comment = "keeps connections that kube-proxy's rules translated".to_owned();
    if was_strict {
        comment = format!("{comment}; {WAS_STRICT}");
    }
    let rule = Rule { chain: CHAIN, expressions: vec![Expression::Tracked], comment };
    Table { family, name: TABLE, hooks: vec![base], chains: Vec::new(), rules: vec![rule] }
}

/// Begins to hold, or goes on to. A family that the kernel can't translate has nothing to hold.
pub fn hold() -> Result<(), TalkError> {
    let liberal = fs::read_to_string(LIBERAL);
    let was_strict = held()? == Some(true) || liberal.is_ok_and(|value| value.trim() == "0");
    let mut kernel = NfTables::open()?;
    let mut outcome = Ok(());
    let mut any = false;
    for family in Family::ALL {
        match kernel.replace(&table(family, was_strict)) {
            Err(error) if error.is_unsupported() => outcome = Err(error),
            other => {
                other?;
                any = true;
            }
        }
    }
    if any { set_liberal("1").map_err(TalkError::from) } else { outcome }
}

/// Whether it is held at present.
pub fn is_held() -> Result<bool, TalkError> {
    Ok(held()?.is_some())
}

/// Where it is held, whether connection tracking was strict before.
fn held() -> Result<Option<bool>, TalkError> {
    let mut kernel = NfTables::open()?;
    for family in Family::ALL {
        if let Some((_, comment)) = kernel.rules(&table(family, false))?.first() {
            return Ok(Some(comment.ends_with(WAS_STRICT)));
        }
    }
    Ok(None)
}

/// Lets go.
pub fn release() -> Result<(), TalkError> {
    let Some(was_strict) = held()? else { return Ok(()) };
    if was_strict {
        set_liberal("0")?;
    }
    let mut kernel = NfTables::open()?;
    for family in Family::ALL {
        match kernel.remove(&table(family, false)) {
            Err(error) if error.is_unsupported() => {}
            other => other?,
        }
    }
    Ok(())
}

fn set_liberal(value: &str) -> io::Result<()> {
    match fs::write(LIBERAL, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Lets go once no translated connection is left, and no rule that could make one. Whether it did.
pub fn release_if_idle() -> Result<bool, TalkError> {
    if !conntrack::is_there() || !is_held()? || conntrack::any_translated()? {
        return Ok(false);
    }
    let has_none = |ruleset: &Ruleset| Leftovers::of(ruleset).is_empty();
    let (legacy, _) = legacy::tables();
    if !has_none(&NfTables::ruleset()?) || !legacy.iter().all(|table| has_none(&table.ruleset())) {
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
                "no connection is left that a rule translated; nftables table {TABLE} removed"
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
