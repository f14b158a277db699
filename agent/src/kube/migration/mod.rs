//! From kube-proxy to Mizzen and back, for a cluster: what is said of nodes at the API server, who
//! says it and who does it.
//!
//! ```text
//! mizzen migrate (anywhere)                        mizzen-agent (on each node)
//! look ─> Seen ─> plan::next ─> carry_out          node: does what the label asks for,
//!   └─ Node label `mizzen.dev/kube-proxy` ────────>      with crate::migrate, and reports
//!   <─ Node annotation `…/kube-proxy-report` ──────┘
//! ```
//! All that was done is written at the API server, so that whoever is stopped goes on from there:
//! [`plan`] is pure, and looks at nothing else. kube-proxy's DaemonSet keeps what it was before in an
//! annotation of its own until it is put back ([`affinity`]), and CoreDNS's Deployment how many pods it
//! had ([`core_dns`]). One way is gone at a time ([`direction`]).

pub mod affinity;
pub mod carry_out;
pub mod core_dns;
pub mod direction;
pub mod gone_back;
pub mod look;
pub mod names;
pub mod node;
pub mod plan;

use serde::{Deserialize, Serialize};

use crate::model::node::KubeProxy;

/// The label of a Node that says how far it is; its values are [`KubeProxy`]'s.
pub const LABEL: &str = "mizzen.dev/kube-proxy";
/// The annotation of a Node in which its agent reports, as JSON ([`Report`]).
pub const REPORT: &str = "mizzen.dev/kube-proxy-report";
/// The annotation of kube-proxy's DaemonSet with the affinity that it had before, as JSON; `null`
/// where it had none.
pub const BEFORE: &str = "mizzen.dev/kube-proxy-affinity";

/// The annotation of kube-proxy's DaemonSet that says which way the cluster is led, and by which run, as
/// JSON ([`direction::Direction`]).
pub const WAY: &str = "mizzen.dev/kube-proxy-way";

/// The label of a Node that asks its agent whether it answers names: seconds after 1970.
pub const NAMES_ASKED: &str = "mizzen.dev/cluster-dns-asked";
/// The annotation in which it answers, as JSON ([`names::Answer`]).
pub const NAMES_ANSWER: &str = "mizzen.dev/cluster-dns-answer";
/// The annotation of CoreDNS's Deployment with the replicas that it had.
pub const KEPT_REPLICAS: &str = "mizzen.dev/cluster-dns-replicas";

/// What an agent says of its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The label's value that it is about.
    #[serde(rename = "for")]
    pub about: String,
    /// Whether what that asks for is so.
    pub done: bool,
    /// What was done, or what it waits for.
    pub said: Vec<String>,
    /// When it was last so, in seconds after 1970.
    #[serde(default)]
    pub at: u64,
    /// Whether that agent connects the node's pods (`cni: true`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connects_pods: Option<bool>,
}

/// For how long an agent counts as one that serves after it said so, in seconds: it says so again
/// several times meanwhile. Longer than clocks of a cluster differ.
pub const FRESH_S: u64 = 120;

/// Seconds after 1970, by this machine's clock.
fn now_s() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

impl Report {
    /// Whether it says that `phase` is reached.
    pub fn is_done(&self, phase: KubeProxy) -> bool {
        self.done && self.about == phase.value()
    }

    /// What stays of it when the label becomes another: who connects the node's pods, which no label
    /// changes. All else was said of what was asked for before, and may have been undone since.
    pub fn withdrawn(&self) -> Option<Self> {
        let connects_pods = Some(self.connects_pods?);
        Some(Self { about: String::new(), done: false, said: Vec::new(), at: 0, connects_pods })
    }

    /// Whether it says so of a moment ago.
    pub fn is_fresh(&self, now_s: u64) -> bool {
        self.at.abs_diff(now_s) <= FRESH_S
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_report_that_is_withdrawn_stays_who_connects_pods() {
        let report = |connects_pods| Report {
            about: KubeProxy::Runs.value().to_owned(),
            done: true,
            said: vec!["Mizzen serves".to_owned()],
            at: 1_800_000_000,
            connects_pods,
        };
        assert_eq!(report(None).withdrawn(), None);
        for connects in [true, false] {
            let left = report(Some(connects)).withdrawn().unwrap();
            assert_eq!(left.connects_pods, Some(connects));
            let phases =
                [KubeProxy::Runs, KubeProxy::Leaving, KubeProxy::Removed, KubeProxy::Returning];
            assert!(!phases.iter().any(|phase| left.is_done(*phase)), "{left:?}");
            assert!(!phases.iter().any(|phase| left.about == phase.value()), "{left:?}");
            assert!(!left.is_fresh(1_800_000_000) && left.said.is_empty(), "{left:?}");
        }
    }
}
