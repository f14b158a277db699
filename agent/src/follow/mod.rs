//! What becomes of connections, for those who follow it (`mizzen flows --follow`): the programs' events
//! with the names of pods and services in them.
//!
//! ```text
//! programs -> ring buffer -> Hub (one reader) -> each follower: names, filter -> agent.sock
//! ```
//! Every buffer has its bound, and what a bound cost is told to who follows. While nobody does, there
//! is no buffer, no reader and no work.

pub mod filter;
pub mod hub;
pub mod names;

use serde::{Deserialize, Serialize};

use mizzen_ebpf_abi::counters::Counter;

/// A line of the stream: `mizzen flows --follow -o json`. Fields are added, never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// Something happened.
    Event(Box<Event>),
    /// Events are missing here.
    Lost {
        /// How many, of all that happened and not only of those asked for.
        lost: u64,
    },
}

/// What became of a connection, or of a packet or call that did not get far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// When (RFC 3339).
    pub time: String,
    /// What became of it.
    pub verdict: Verdict,
    /// What the programs counted it as (`mizzen_datapath_events_total`).
    pub reason: String,
    /// `socket` or `packet`: where it was decided.
    pub path: String,
    /// `TCP`, `UDP`, `SCTP`, or a number.
    pub protocol: String,
    /// Who dials: address and port, the address alone while a socket has no port; empty where it is not
    /// known.
    pub source: String,
    /// Namespace and name of the pod that dials; empty where it is none that is known.
    pub source_pod: String,
    /// What is dialled: address and port.
    pub destination: String,
    /// Namespace and name of the service; empty where it is none's.
    pub service: String,
    /// The name of the service's port; may be empty.
    pub port: String,
    /// Where it goes: address and port; empty where it goes nowhere.
    pub backend: String,
    /// Namespace and name of the pod there; empty where it is none that is known.
    pub backend_pod: String,
    /// The source that the backend sees; empty where it is the client's own.
    pub masqueraded: String,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It goes to a backend, or out of the cluster under the node's address.
    #[default]
    Translated,
    /// The client was told that nobody is there.
    Refused,
    /// The connection was ended: its backend was deleted.
    Reset,
    /// It was dropped, for the reason that is named.
    Dropped,
}

impl Verdict {
    /// Of what the programs counted.
    pub fn of(what: Counter) -> Self {
        match what {
            Counter::SocketTranslated | Counter::FlowCreated => Self::Translated,
            Counter::SocketRefused | Counter::Rejected => Self::Refused,
            Counter::ResetGone => Self::Reset,
            _ => Self::Dropped,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Translated => "translated",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Dropped => "dropped",
        }
    }
}

impl std::str::FromStr for Verdict {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Translated, Self::Refused, Self::Reset, Self::Dropped];
        let found = all.into_iter().find(|verdict| verdict.name() == text);
        found.ok_or_else(|| {
            format!("{text} is no verdict; there is {}", all.map(Self::name).join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_of_a_drop_is_a_drop_and_no_other() {
        for counter in Counter::ALL {
            if counter.name().starts_with("drop_") {
                assert_eq!(Verdict::of(*counter), Verdict::Dropped, "{}", counter.name());
            }
        }
        assert_eq!(Verdict::of(Counter::SocketTranslated), Verdict::Translated);
        assert_eq!(Verdict::of(Counter::FlowCreated), Verdict::Translated);
        assert_eq!(Verdict::of(Counter::SocketRefused), Verdict::Refused);
        assert_eq!(Verdict::of(Counter::Rejected), Verdict::Refused);
        assert_eq!(Verdict::of(Counter::ResetGone), Verdict::Reset);
    }

    #[test]
    fn lines_are_told_apart() {
        let event = Line::Event(Box::new(Event { source: "a".into(), ..Event::default() }));
        for line in [event, Line::Lost { lost: 7 }] {
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line, "{text}");
        }
        assert_eq!("dropped".parse(), Ok(Verdict::Dropped));
        assert!("lost".parse::<Verdict>().unwrap_err().contains("translated, refused"));
    }
}
