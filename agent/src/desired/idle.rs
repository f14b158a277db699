//! Why an endpoint that is there takes no new flows. Its id stays its own meanwhile, and the tables
//! say why ([`Idle::flags`]): an agent that starts tells by it what became of the endpoint while none
//! ran ([`crate::diff::late`]).

use mizzen_ebpf_abi::service::backend_flags;

use crate::model::endpoints::Endpoint;

/// Why that is. Of several slices that have it, what comes last here counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Idle {
    /// It does not serve, and others of its set do, whose clients may as well have those: a datagram
    /// socket that is connected to it is ended, as kube-proxy ends the entry of conntrack. Only of
    /// sets of UDP, and never of what terminates.
    Unserving,
    /// Nothing is lost by flows that stay with it.
    Unready,
    /// It left its service otherwise than by being terminated, and lives.
    Stray,
    /// It terminates, or did when it left: gone from every slice it is deleted.
    Terminating,
}

impl Idle {
    /// Why an endpoint of a slice is idle, in a set whose flows `move` to others that serve, or not.
    pub fn of(endpoint: &Endpoint, moves: bool) -> Self {
        if endpoint.terminating {
            Self::Terminating
        } else if endpoint.serving || endpoint.ready || !moves {
            Self::Unready
        } else {
            Self::Unserving
        }
    }

    /// As the tables have it: bits of [`backend_flags`].
    pub fn flags(self) -> u16 {
        match self {
            Self::Unserving => backend_flags::UNSERVING,
            Self::Unready => 0,
            Self::Stray => backend_flags::STRAY,
            Self::Terminating => backend_flags::TERMINATING,
        }
    }
}
