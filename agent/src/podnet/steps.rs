//! The steps of ADD and DEL. An agent may end after any of them, killed or without power: what it
//! leaves is found by the next one, or goes with the next DEL or GC. Tests end it there.

/// What was done last. The order is that of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// ADD: the addresses are in the journal.
    Reserved,
    /// ADD: the link is there, with its addresses and routes on both ends.
    LinkMade,
    /// ADD: the programs are attached, and the tables know the pod.
    Attached,
    /// ADD: its host ports are in force.
    HostPortsOpen,
    /// ADD: the journal says that it is done.
    Live,
    /// DEL: the journal says that it has begun.
    Leaving,
    /// DEL: its host ports are no longer asked for.
    HostPortsClosed,
    /// DEL: the tables don't know the pod any more.
    Detached,
    /// DEL: the link is gone.
    LinkGone,
    /// DEL: the journal says that it is done.
    Released,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Reserved,
        Self::LinkMade,
        Self::Attached,
        Self::HostPortsOpen,
        Self::Live,
        Self::Leaving,
        Self::HostPortsClosed,
        Self::Detached,
        Self::LinkGone,
        Self::Released,
    ];

    /// Whether it is one of an ADD.
    pub fn is_of_add(self) -> bool {
        self < Self::Leaving
    }
}

/// Is told of each step before the next one begins.
pub type Observer = fn(Step);

/// Does nothing.
pub fn unobserved(_: Step) {}
