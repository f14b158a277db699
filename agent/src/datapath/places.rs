//! Where the programs are attached at this moment, as the kernel has it: for `mizzen check`. Looks
//! and changes nothing; what is missing is put back by the loop.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use mizzen_ebpf_abi::{addr::Addr, node::Endpoint};

use super::{
    Datapath, Features, cgroup, layout,
    object::Programs,
    pin::Pins,
    sys, tc,
    walk::{self, Batch},
};

/// Looks at the places of one node's programs.
#[derive(Clone, Debug)]
pub struct Places {
    pins: Arc<Pins>,
    programs: Arc<Programs>,
    cgroup: PathBuf,
    cgroup_id: u64,
    features: Features,
}

/// A place where a program should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The program.
    pub program: String,
    /// Index of the interface; `None` for a program at the node's cgroup.
    pub interface: Option<u32>,
    /// Whether this agent's program runs there.
    pub in_force: bool,
}

impl Datapath {
    /// Looks at the places of the programs, now and later.
    pub fn places(&self) -> Places {
        Places {
            pins: Arc::clone(&self.pins),
            programs: Arc::clone(&self.programs),
            cgroup: self.cgroup.path().to_owned(),
            cgroup_id: self.cgroup.id(),
            features: self.features,
        }
    }
}

impl Places {
    /// The cgroup of the socket programs.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// What the kernel has.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Whether packet programs are links, and so can be looked at.
    pub fn has_packet_links() -> bool {
        tc::has_tcx()
    }

    /// Every socket program, every packet program that has a pin, and those at pods' devices, in the
    /// network namespace of the calling thread.
    pub fn read(&self) -> io::Result<Vec<Place>> {
        let sockets = cgroup::programs().map(|program| Place {
            program: program.to_owned(),
            interface: None,
            in_force: self
                .runs(program, &self.pins.link(program), |link| link.cgroup() == self.cgroup_id),
        });
        let mut places: Vec<Place> = sockets.collect();
        for entry in fs::read_dir(self.pins.links())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((program, index)) = name.rsplit_once('-') else { continue };
            let (true, Ok(index)) = (program.starts_with("tc_"), index.parse()) else { continue };
            let in_force = self.runs(program, &entry.path(), |link| link.ifindex() == index);
            places.push(Place { program: program.to_owned(), interface: Some(index), in_force });
        }
        for index in self.pod_devices()? {
            let seen = tc::look_at_pod(index, &self.programs).map_err(io::Error::other)?;
            places.extend(seen.map(|(program, in_force)| Place {
                program: program.to_owned(),
                interface: Some(index),
                in_force,
            }));
        }
        Ok(places)
    }

    /// The host's ends of the veths of all pods that the programs know.
    fn pod_devices(&self) -> io::Result<BTreeSet<u32>> {
        let endpoints = self.pins.open_map(&layout::ENDPOINTS).map_err(io::Error::other)?;
        let mut devices = BTreeSet::new();
        walk::visit(endpoints.as_fd(), |batch: &Batch<'_, Addr, Endpoint>| {
            devices.extend(batch.iter().map(|(_, endpoint)| endpoint.ifindex));
        })?;
        Ok(devices)
    }

    /// Whether the link at `pin` runs this agent's program where it should.
    fn runs(&self, program: &str, pin: &Path, is_there: impl Fn(&sys::LinkInfo) -> bool) -> bool {
        let link = sys::open_pin(pin).and_then(|link| sys::link_info(link.as_fd()));
        let expected = self.programs.get(program).map(|program| program.id);
        link.is_ok_and(|link| is_there(&link) && Some(link.program) == expected)
    }
}
