//! What another service proxy's rules translated, entered into the table of flows before the packet
//! programs see it (ADR 31):
//! - flows of datagrams become flows of ours, with the same backend and the same ports: to a
//!   program, a datagram of no flow opens a new one;
//! - connections of TCP stay the stack's, which goes on to translate them (ADR 21). Of those that
//!   are masqueraded the answers have an entry that changes nothing, so that no flow of ours is given
//!   their source port.

use std::{
    fs, io,
    ops::ControlFlow,
    os::fd::{AsFd as _, OwnedFd},
};

use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    conntrack::{Flow, FlowKey, flow_flags},
    flow_state::state,
    nat::{self, Entries, Translation},
    select::{self, Window},
    service::{Frontend, NO_SET},
};

use super::{
    Datapath,
    layout::{self, MapLayout},
    pin::PinError,
    reader::{ReadError, TableReader},
    sys,
};
use crate::{
    netfilter::{
        TalkError,
        conntrack::{self, Translated, Tuple},
    },
    why::live::Live as _,
};

/// Of how much of the table of flows nothing is taken: one part in so many.
const KEPT_FREE: usize = 2;

/// Why not all was taken over: datagrams may go to other backends.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// Connection tracking does not answer.
    #[error("ask the kernel for the connections that it translates: {0}")]
    Conntrack(#[from] TalkError),
    /// The tables can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The table of flows can't be opened.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The table of flows can't be read or written.
    #[error("write to map {}", layout::FLOWS.name)]
    Write(#[source] io::Error),
}

/// What was taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Flows of datagrams.
    pub flows: usize,
    /// Source ports of connections that stay the stack's.
    pub ports: usize,
}

impl Datapath {
    /// Whether programs are in force, of this agent or of one before.
    pub fn is_attached(&self) -> io::Result<bool> {
        Ok(fs::read_dir(self.pins.links())?.next().is_some())
    }

    /// Takes over what connection tracking translates in the calling thread's network namespace, as
    /// far as the tables, which are filled, would lead it to the same backend. What the table of
    /// flows has already stays as it is; half of it at least is left to what is new.
    pub fn adopt(&self) -> Result<Adopted, AdoptError> {
        let map = self.pins.open_map(&layout::FLOWS)?;
        let found = MapLayout::of(map.as_fd(), &layout::FLOWS).map_err(AdoptError::Write)?;
        let now_s = sys::boot_seconds().map_err(AdoptError::Write)?;
        self.table_readers().ask(|tables| {
            let room = found.entries as usize / KEPT_FREE;
            let mut adopter = Adopter { tables, map, now_s, room, adopted: Adopted::default() };
            let mut failed = Ok(());
            conntrack::each_translated(|connection| match adopter.take(connection) {
                Ok(()) if adopter.room > 0 => ControlFlow::Continue(()),
                Ok(()) => ControlFlow::Break(()),
                Err(error) => {
                    failed = Err(AdoptError::Write(error));
                    ControlFlow::Break(())
                }
            })?;
            failed.map(|()| adopter.adopted)
        })?
    }
}

/// Takes over one connection after another.
struct Adopter<'a> {
    tables: &'a TableReader,
    map: OwnedFd,
    now_s: u32,
    /// Entries that may still be made.
    room: usize,
    adopted: Adopted,
}

impl Adopter<'_> {
    fn take(&mut self, connection: &Translated) -> io::Result<()> {
        if let Some((key, entries)) = self.flow(connection) {
            // The answers' entry first, as the programs do.
            if self.insert(&entries.reply_key, &entries.reply)? {
                match self.insert(&key, &entries.original) {
                    Ok(true) => self.adopted.flows += 1,
                    other => {
                        sys::delete(self.map.as_fd(), &entries.reply_key)?;
                        other?;
                    }
                }
            }
        } else if let Some((key, flow)) = self.reservation(connection)
            && self.insert(&key, &flow)?
        {
            self.adopted.ports += 1;
        }
        Ok(())
    }

    fn insert(&mut self, key: &FlowKey, flow: &Flow) -> io::Result<bool> {
        let inserted = sys::insert(self.map.as_fd(), key, flow)?;
        self.room = self.room.saturating_sub(usize::from(inserted));
        Ok(inserted)
    }

    fn is_of_node(&self, at: &Addr) -> bool {
        select::Tables::node_addr_flags(self.tables, at).is_some()
    }

    /// The flow of a connection; none of what is not for the packet path, or leads elsewhere by now.
    fn flow(
        &self,
        Translated { original, reply, assured }: &Translated,
    ) -> Option<(FlowKey, Entries)> {
        let (key, answers) = (key(original), key(reply));
        // The node's own leave by a device that is not known here.
        if original.protocol != protocol::UDP || self.is_of_node(&key.source) {
            return None;
        }
        let (addr, port) = (key.destination, key.destination_port);
        let frontend = select::frontend(self.tables, addr, port, key.protocol)?;
        let to = Translation {
            source: answers.destination,
            source_port: answers.destination_port,
            destination: answers.source,
            destination_port: answers.source_port,
        };
        let backend = backend(self.tables, &frontend, &to)?;
        let mut entries = Entries::default();
        entries.fill(&key, &to, self.now_s);
        if self.is_of_node(&to.destination) {
            entries.original.flags |= flow_flags::TO_NODE;
        }
        if *assured {
            // Both sides go on: not one of the first to make room, and silent for longer.
            (entries.original.state, entries.original.peer_state) = (state::SEEN, state::SEEN);
            (entries.reply.state, entries.reply.peer_state) = (state::SEEN, state::SEEN);
        }
        entries.set_backend(frontend.set, backend);
        Some((key, entries))
    }

    /// What keeps the source port of a masqueraded connection that stays the stack's: its answers, as
    /// they are.
    fn reservation(&self, connection: &Translated) -> Option<(FlowKey, Flow)> {
        let answers = key(&connection.reply);
        let (first, last) = nat::source_ports(&self.tables.node_config());
        let port = connection.reply.destination.port();
        if !(first..=last).contains(&port) || !self.is_of_node(&answers.destination) {
            return None;
        }
        let [opened, ..] = self.now_s.to_le_bytes();
        let flow = Flow {
            source: answers.source,
            destination: answers.destination,
            source_port: answers.source_port,
            destination_port: answers.destination_port,
            flags: flow_flags::TO_NODE,
            opened,
            state: state::SEEN,
            peer_state: state::SEEN,
            seen_s: self.now_s,
            backend: 0,
            set: NO_SET,
            device: 0,
        };
        Some((answers, flow))
    }
}

/// The id of the backend that a translation leads to, if the frontend has it.
fn backend(tables: &TableReader, frontend: &Frontend, to: &Translation) -> Option<u32> {
    let windows = [Window::Internal, Window::External, Window::Nearby];
    let slots = windows.iter().filter_map(|window| select::slots(tables, frontend, *window).ok());
    let mut ids = slots.flat_map(|slots| slots.first..slots.first.saturating_add(slots.count));
    ids.find_map(|slot| {
        let id = select::Tables::slot(tables, slot);
        let v4 = to.destination.is_v4();
        let found = select::Tables::backend(tables, frontend.set, id, v4)?;
        found.is_at(&to.destination, to.destination_port).then_some(found.id)
    })
}

fn key(tuple: &Tuple) -> FlowKey {
    FlowKey {
        source: tuple.source.ip().into(),
        destination: tuple.destination.ip().into(),
        source_port: tuple.source.port().to_be_bytes(),
        destination_port: tuple.destination.port().to_be_bytes(),
        protocol: tuple.protocol,
        pad: [0; 3],
    }
}
