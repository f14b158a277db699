//! Flows of datagrams that another service proxy's rules translated become flows of ours, with the
//! same backend and the same ports, before the packet programs see them: to a program, a datagram of
//! no flow opens a new one. Connections of TCP need none of this: their segments pass to the stack,
//! which goes on to translate them (ADR 21).

use std::{fs, io, os::fd::AsFd as _};

use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    conntrack::{FlowKey, flow_flags},
    nat::{Entries, Translation},
    select::{self, Tables, Window},
    service::Frontend,
};

use super::{Datapath, layout, pin::PinError, reader::ReadError, sys};
use crate::netfilter::conntrack::{Translated, Tuple};

/// Why flows were not taken over, or not all of them: their datagrams may go to other backends.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The tables can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The table of flows can't be opened.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The table of flows can't be written.
    #[error("write to map {}", layout::FLOWS.name)]
    Write(#[source] io::Error),
}

impl Datapath {
    /// Whether programs are in force, of this agent or of one before.
    pub fn is_attached(&self) -> io::Result<bool> {
        Ok(fs::read_dir(self.pins.links())?.next().is_some())
    }

    /// Enters the flows of these connections that the tables, which are filled, would lead to the same
    /// backend. How many there were. What is in the table already stays as it is.
    pub fn adopt(&self, connections: &[Translated]) -> Result<usize, AdoptError> {
        let now_s = sys::boot_seconds().map_err(AdoptError::Write)?;
        let flows: Vec<_> = self.table_readers().ask(|tables| {
            connections.iter().filter_map(|connection| flow(tables, connection, now_s)).collect()
        })?;
        let map = self.pins.open_map(&layout::FLOWS)?;
        let mut adopted = 0;
        for (key, entries) in flows {
            let insert = |key, flow| sys::insert(map.as_fd(), key, flow).map_err(AdoptError::Write);
            // The answers' entry first, as the programs do.
            if insert(&entries.reply_key, &entries.reply)? {
                if insert(&key, &entries.original)? {
                    adopted += 1;
                } else {
                    sys::delete(map.as_fd(), &entries.reply_key).map_err(AdoptError::Write)?;
                }
            }
        }
        Ok(adopted)
    }
}

/// The flow of a connection; none of what is not for the packet path, or leads elsewhere by now.
fn flow(tables: &impl Tables, connection: &Translated, now_s: u32) -> Option<(FlowKey, Entries)> {
    let Translated { original, reply } = connection;
    let is_of_node = |at: Addr| tables.node_addr_flags(&at).is_some();
    let key = key(original);
    // The node's own leave by a device that is not known here.
    if original.protocol != protocol::UDP || is_of_node(key.source) {
        return None;
    }
    let frontend = select::frontend(tables, key.destination, key.destination_port, key.protocol)?;
    let answers = self::key(reply);
    let to = Translation {
        source: answers.destination,
        source_port: answers.destination_port,
        destination: answers.source,
        destination_port: answers.source_port,
    };
    let backend = backend(tables, &frontend, &to)?;
    let mut entries = Entries::default();
    entries.fill(&key, &to, now_s);
    if is_of_node(to.destination) {
        entries.original.flags |= flow_flags::TO_NODE;
    }
    entries.set_backend(frontend.set, backend);
    Some((key, entries))
}

/// The id of the backend that a translation leads to, if the frontend has it.
fn backend(tables: &impl Tables, frontend: &Frontend, to: &Translation) -> Option<u32> {
    let windows = [Window::Internal, Window::External, Window::Nearby];
    let slots = windows.iter().filter_map(|window| select::slots(tables, frontend, *window).ok());
    let mut ids = slots.flat_map(|slots| slots.first..slots.first.saturating_add(slots.count));
    ids.find_map(|slot| {
        let found = tables.backend(frontend.set, tables.slot(slot), to.destination.is_v4())?;
        (found.addr == to.destination && found.port == to.destination_port).then_some(found.id)
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
