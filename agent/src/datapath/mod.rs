//! The datapath in the kernel: loads the programs, pins their maps and links, attaches them, and
//! gives the rest of the agent the tables to write. The only module that knows aya and `bpf()`.
//!
//! ```text
//! Datapath::open    probe -> pins -> load (maps: the pinned ones, or new ones that are pinned)
//!   .maps()         the tables, for `crate::apply`
//!   .pods()         pods that come and go, for `crate::podnet`
//!   .counters()     what the programs counted
//!   .attach_…()     afterwards, when the tables are filled: nothing is translated before
//! ```
//!
//! Nothing here ends with the agent: programs run on, and the next agent finds maps and links at
//! their pins, and replaces the programs in place.

mod adopt;
mod affinity;
mod allocated;
mod barrier;
mod cgroup;
mod conntrack;
mod counters;
mod filter;
mod flow_events;
mod growing;
mod layout;
mod link;
mod mapped;
mod maps;
mod migrate;
mod object;
mod peers;
mod pin;
mod places;
mod pod_netns;
mod pod_rates;
mod pods;
mod probe;
mod reader;
mod release;
mod sock_diag;
mod socket_fd;
mod sweep;
mod sys;
mod tc;
mod tcp_info;
mod test_run;
mod traffic;
mod uplinks;
mod walk;
mod way;
mod xt_socket;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use self::{
    adopt::{AdoptError, Adopted},
    affinity::Clients,
    cgroup::{AttachError, Cgroup, CgroupError},
    conntrack::Flows,
    counters::{Counters, CountersError},
    flow_events::{FlowEvents, FlowRing, FollowError, now_ns},
    link::{LinkError, Outcome, id as link_id},
    maps::KernelMaps,
    migrate::MigrateError,
    object::{LoadError, LoadedProgram, Programs},
    pin::{PinError, Pins},
    places::{Place, Places},
    pods::Pods,
    probe::{Features, Missing, probe},
    reader::{ReadError, TableReader, TableReaders},
    release::{ReleaseError, is_in_force, release, services_in_force},
    sock_diag::{Connected, DESTINATIONS_MAX, SockDiag, SocketId, Translations},
    socket_fd::translations_of,
    sweep::{Entries, SweepError, Sweeper, Swept},
    sys::netns_cookie,
    tc::{LOOPBACK_PROGRAM, Leads, PacketPrograms, TcError, leads_at_loopback},
    tcp_info::LiveConnection,
    test_run::TestRun,
    uplinks::{Interface, Uplinks, UplinksError, find_uplinks},
    xt_socket::XtSocket,
};

use migrate::Older;

/// Where a node's datapath is.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder for pins, in a bpf file system.
    pub bpffs: PathBuf,
    /// Whether that is mounted where there is none: not in a pod, whose mounts end with it.
    pub mounts: bool,
    /// The cgroup below which the node's processes and pods are; else the root of the cgroup2
    /// file system that is mounted.
    pub cgroup_root: Option<PathBuf>,
    /// How many flows the packet path remembers; by the number of CPUs where none is given. The
    /// table that an earlier agent made keeps its size.
    pub flows: Option<u32>,
}

/// Mounts a bpf file system at `path`, unless there is one.
pub fn mount_bpffs(path: &Path) -> Result<(), PinError> {
    pin::ensure_mounted(path)
}

/// Why there is no datapath.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no cgroup to attach to.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The kernel or the process lacks something.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// Pins can't be made, or are of something else.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// What an older agent left can't be taken over.
    #[error("take over from an agent of an older layout")]
    Migrate(#[from] MigrateError),
    /// The programs can't be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The programs declare maps otherwise than the agent knows them.
    #[error(
        "the embedded eBPF programs are of another build than the agent: run `cargo xtask build`"
    )]
    Stale(#[source] PinError),
    /// The node's network namespace has no number.
    #[error("ask the kernel for the number of this network namespace (Linux 5.14)")]
    Netns(#[source] io::Error),
}

impl OpenError {
    /// Whether another agent has the node's tables, and may soon have left them.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Pin(PinError::Busy(_)))
    }
}

/// Programs that were loaded while another agent had the pins.
#[derive(Debug)]
pub struct Prepared {
    programs: Programs,
    /// The kernel's ids of the maps that they use, in the order of [`layout::PINNED`].
    maps: Vec<u32>,
}

/// One node's datapath. There is one at a time: it holds the lock of the node's pins.
#[derive(Debug)]
pub struct Datapath {
    pins: Arc<Pins>,
    programs: Arc<Programs>,
    cgroup: Cgroup,
    features: Features,
}

impl Datapath {
    /// Looks, without touching anything, for what [`Self::open`] would fail of: how an agent finds
    /// out before it has the one before it leave.
    pub fn check(options: &Options) -> Result<(), OpenError> {
        probe()?;
        Cgroup::open(options.cgroup_root.as_deref())?;
        netns_cookie().map_err(OpenError::Netns)?;
        Ok(pin::refuse_newer(&options.bpffs)?)
    }

    /// Loads the programs while another agent runs, with that one's maps, so that when it has left
    /// nobody waits for the kernel to verify them. None where those maps are not what they need: then
    /// there is more to do than load.
    pub fn prepare(options: &Options) -> Result<Option<Prepared>, OpenError> {
        let (features, netns) = (probe()?, netns_cookie().map_err(OpenError::Netns)?);
        let pins = Pins::of_another(&options.bpffs);
        let Some(maps) = pins.map_ids() else { return Ok(None) };
        let room = conntrack::room(options.flows);
        let programs = Programs::load(&pins, features, netns, room)?;
        Ok(Some(Prepared { programs, maps }))
    }

    /// Loads the programs with the maps pinned by an earlier agent, or new ones. Attaches nothing
    /// and writes to no map.
    ///
    /// The node's network namespace is the one of the calling thread.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        Self::open_with(options, &mut None)
    }

    /// As [`Self::open`], with the programs that are `prepared` where they fit; taken when the lock
    /// of the pins is.
    pub fn open_with(
        options: &Options,
        prepared: &mut Option<Prepared>,
    ) -> Result<Self, OpenError> {
        Self::open_for(options, probe()?, prepared)
    }

    /// As [`Self::open`], for a kernel with these features, which the one at hand has: how tests
    /// see what an older kernel would run.
    pub fn open_for(
        options: &Options,
        features: Features,
        prepared: &mut Option<Prepared>,
    ) -> Result<Self, OpenError> {
        let cgroup = Cgroup::open(options.cgroup_root.as_deref())?;
        let netns = netns_cookie().map_err(OpenError::Netns)?;
        let pins = Arc::new(Pins::open(&options.bpffs, options.mounts)?);
        let older = Older::find(&options.bpffs)?;
        if let Some(older) = &older {
            older.share(&pins)?;
        }
        counters::make_room(&pins)?;
        let new = pins.check_maps()?;
        let fits = |prepared: &Prepared| pins.map_ids().is_some_and(|ids| ids == prepared.maps);
        let programs = match prepared.take().filter(fits) {
            Some(prepared) => prepared.programs,
            None => Programs::load(&pins, features, netns, conntrack::room(options.flows))?,
        };
        let programs = Arc::new(programs);
        pins.check_maps().map_err(|error| {
            pins.remove_maps(&new);
            OpenError::Stale(error)
        })?;
        growing::begin(&pins)?;
        flow_events::forget(&pins)?;
        conntrack::tell_other_size(&pins, options.flows)?;
        if let Some(older) = older {
            older.hand_over(&pins)?;
        }
        tracing::info!(bpffs = %options.bpffs.display(), ?features, "loaded the eBPF programs");
        for (program, loaded) in programs.iter() {
            let instructions = loaded.verified_instructions;
            tracing::debug!(program, id = loaded.id, instructions, "loaded an eBPF program");
        }
        Ok(Self { pins, programs, cgroup, features })
    }

    /// The tables, for their one writer.
    pub fn maps(&self) -> Result<KernelMaps, PinError> {
        KernelMaps::open(&self.pins)?.counting(&self.pins)
    }

    /// Attaches pods.
    pub fn pods(&self) -> Result<Pods, PinError> {
        Pods::open(Arc::clone(&self.programs), Arc::clone(&self.pins))
    }

    /// What the programs counted.
    pub fn counters(&self) -> Result<Counters, PinError> {
        Counters::open(&self.pins)
    }

    /// What is known of sockets' translations.
    pub fn translations(&self) -> Result<Translations, PinError> {
        Translations::open(&self.pins)
    }

    /// Whether tables that an agent before this one filled are in force: only then programs are put
    /// at the node's cgroup. To be asked before [`Self::attach_sockets`].
    pub fn was_in_force(&self) -> bool {
        cgroup::programs().all(|program| self.pins.link(program).exists())
    }

    /// The cgroup below which the node's processes are.
    pub fn cgroup_path(&self) -> &Path {
        self.cgroup.path()
    }

    /// Attaches the socket programs to the node's cgroup, or replaces those of an earlier agent
    /// in place. To be called when the tables are filled; called again it mends what was detached
    /// by hand.
    pub fn attach_sockets(&self) -> Result<Vec<(&'static str, Outcome)>, AttachError> {
        self.cgroup.attach(&self.programs, &self.pins)
    }

    /// The programs in the kernel.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The pins.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// What the kernel has.
    pub fn features(&self) -> Features {
        self.features
    }
}
