//! The packet programs' places: uplinks, the host's ends of pods' veths, and the loopback interface.
//!
//! At an uplink and the loopback interface a place is a tcx link, pinned under the interface's index,
//! so that it stays when the agent is gone and the next agent replaces the program in it without a gap.
//! Kernels before 6.6 have no tcx: there, and at pods' veths everywhere, the program is a
//! [`super::filter`].
//! What belongs to an interface goes with it; its pin is removed by [`Datapath::attach_uplinks`].

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::util::KernelVersion;
use mizzen_ebpf_abi::node;

use super::{
    Datapath,
    filter::{self, Filter, Place},
    link::{self, LinkError, Outcome, Target},
    object::Programs,
    pin::Pins,
    sys,
    uplinks::Interface,
};
use crate::podnet::netlink::{Netlink, NetlinkError};

/// The first kernel with tcx links.
const TCX_SINCE: KernelVersion = KernelVersion::new(6, 6, 0);

/// Which way packets go at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the interface into the node.
    Ingress,
    /// From the node to the interface.
    Egress,
}

impl Direction {
    /// `enum bpf_attach_type`.
    const fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }
}

/// A program and the way that it looks.
#[derive(Clone, Copy, Debug)]
struct Hook {
    program: &'static str,
    direction: Direction,
}

/// What a device leads to, and so which programs belong there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leads {
    /// Pods of this node.
    ToPods,
    /// Other hosts.
    ToHosts,
}

const UPLINK: [Hook; 2] = [
    Hook { program: "tc_uplink_ingress", direction: Direction::Ingress },
    Hook { program: "tc_uplink_egress", direction: Direction::Egress },
];

const POD: [Hook; 2] = [
    Hook { program: "tc_pod_ingress", direction: Direction::Ingress },
    Hook { program: "tc_pod_egress", direction: Direction::Egress },
];

/// Before the others, at the devices of pods whose bandwidth is limited.
const POD_RATE: [Hook; 1] = [Hook { program: "tc_pod_rate", direction: Direction::Ingress }];

const TUNNEL: [Hook; 2] = [
    Hook { program: "tc_tunnel_ingress", direction: Direction::Ingress },
    Hook { program: "tc_tunnel_egress", direction: Direction::Egress },
];

/// Where the node answers for cluster DNS.
const LOOPBACK: [Hook; 1] = [Hook { program: LOOPBACK_PROGRAM, direction: Direction::Egress }];

/// The program of the loopback interface.
pub const LOOPBACK_PROGRAM: &str = "tc_loopback_egress";

/// Why a packet program is not in its place.
#[derive(Debug, thiserror::Error)]
pub enum TcError {
    /// The object lacks a program.
    #[error("the eBPF object has no program {0}: the agent and its object are of different builds")]
    NoProgram(&'static str),
    /// The link could not be made.
    #[error("attach the eBPF program {program} to the interface {interface}")]
    Link {
        /// The program.
        program: &'static str,
        /// The interface.
        interface: String,
        /// Why not.
        #[source]
        source: LinkError,
    },
    /// The filters could not be made.
    #[error(
        "attach eBPF programs to the interface {interface} as filters of clsact, which needs \
         CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF"
    )]
    Filter {
        /// The interface.
        interface: String,
        /// Why not.
        #[source]
        source: NetlinkError,
    },
    /// The link of an older agent, in whose place the filter is, can't be removed.
    #[error("remove the eBPF link {} of an older agent", path.display())]
    Former {
        /// Its pin.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The program of the loopback interface can't be detached.
    #[error(
        "detach the eBPF program tc_loopback_egress from the loopback interface; until then it leads \
         questions to cluster DNS for which nobody listens on this node to other nodes' resolvers"
    )]
    Detach(#[source] io::Error),
    /// The pins can't be listed or removed.
    #[error("tidy up the pinned eBPF links in {}", .0.display())]
    Tidy(PathBuf, #[source] io::Error),
}

impl Datapath {
    /// Attaches the packet programs to the uplinks, or finds them attached; those of an earlier
    /// agent are replaced in place. To be called when the tables are filled, and again whenever
    /// an interface may have come or gone: it mends what is missing and is cheap otherwise.
    ///
    /// What is no uplink any more keeps its programs until its interface goes: they leave alone
    /// what is no service's.
    pub fn attach_uplinks(
        &self,
        uplinks: &[Interface],
    ) -> Result<Vec<(&'static str, Outcome)>, TcError> {
        tidy(&self.pins)?;
        let mut outcomes = Vec::new();
        for uplink in uplinks {
            outcomes.extend(attach(&UPLINK, uplink, &self.programs, &self.pins)?);
        }
        Ok(outcomes)
    }

    /// Attaches the program of the loopback interface, or finds it attached; where the node is not
    /// `wanted` to answer for cluster DNS, detaches what an earlier agent left there. As for
    /// [`attach_uplinks`](Self::attach_uplinks), to be called again and again.
    pub fn attach_loopback(&self, wanted: bool) -> Result<Vec<(&'static str, Outcome)>, TcError> {
        let interface = loopback();
        if wanted {
            return attach(&LOOPBACK, &interface, &self.programs, &self.pins);
        }
        detach(&LOOPBACK, &interface, &self.pins).map_err(TcError::Detach)?;
        Ok(Vec::new())
    }
}

/// Whether the program of the loopback interface is in force in this thread's network namespace,
/// put there by an agent with its pins below `bpffs`: what the node asks of itself at a cluster DNS
/// address is led to other nodes' resolvers then, whether an agent runs or not.
pub fn leads_at_loopback(bpffs: &Path) -> bool {
    let interface = loopback();
    let runs = |hook: &Hook| {
        if has_tcx() {
            return pin_of(&Pins::of_another(bpffs), hook.program, &interface).exists();
        }
        let running = Netlink::open().and_then(|mut netlink| {
            filter::running(&mut netlink, interface.index, hook.direction, Place::Main)
        });
        running.is_ok_and(|program| program.is_some())
    };
    LOOPBACK.iter().all(runs)
}

fn loopback() -> Interface {
    Interface { index: node::LOOPBACK, name: "lo".to_owned() }
}

/// The packet programs, to be put where another CNI plugin lets the packets of pods pass.
#[derive(Clone, Debug)]
pub struct PacketPrograms {
    programs: Arc<Programs>,
    pins: Arc<Pins>,
}

impl Datapath {
    /// The packet programs.
    pub fn packet_programs(&self) -> PacketPrograms {
        PacketPrograms { programs: Arc::clone(&self.programs), pins: Arc::clone(&self.pins) }
    }
}

impl PacketPrograms {
    /// Attaches the programs to a device, or finds them attached. Pins of devices that are gone
    /// are removed by [`Datapath::attach_uplinks`].
    pub fn attach(
        &self,
        interface: &Interface,
        leads: Leads,
    ) -> Result<Vec<(&'static str, Outcome)>, TcError> {
        let hooks = match leads {
            Leads::ToPods => &POD,
            Leads::ToHosts => &UPLINK,
        };
        attach(hooks, interface, &self.programs, &self.pins)
    }
}

/// Attaches the packet programs to the host's end of a pod's veth; where its bandwidth `is_limited`,
/// the one that sees to that, too.
pub(super) fn attach_pod(
    interface: &Interface,
    is_limited: bool,
    programs: &Programs,
    pins: &Pins,
) -> Result<Vec<(&'static str, Outcome)>, TcError> {
    let mut outcomes = Vec::new();
    if is_limited {
        outcomes.extend(attach_filters(&POD_RATE, Place::First, interface, programs)?);
    }
    outcomes.extend(attach_filters(&POD, Place::Main, interface, programs)?);
    // Agents before this one had links here, which see packets first. Now none needs to.
    for hook in POD {
        let path = pin_of(pins, hook.program, interface);
        match link::remove(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(TcError::Former { path, source });
            }
            _ => {}
        }
    }
    Ok(outcomes)
}

/// Which of the packet programs of the host's end of a pod's veth are in force at an interface.
pub(super) fn look_at_pod(
    ifindex: u32,
    programs: &Programs,
) -> Result<[(&'static str, bool); 2], NetlinkError> {
    let mut netlink = Netlink::open()?;
    let mut seen = POD.map(|hook| (hook.program, false));
    for (hook, (_, in_force)) in POD.iter().zip(&mut seen) {
        let expected = programs.get(hook.program).map(|program| program.id);
        let running = filter::running(&mut netlink, ifindex, hook.direction, Place::Main)?;
        *in_force = running.is_some() && running == expected;
    }
    Ok(seen)
}

/// Attaches the packet programs to the tunnel's device.
pub(super) fn attach_tunnel(
    interface: &Interface,
    programs: &Programs,
    pins: &Pins,
) -> Result<Vec<(&'static str, Outcome)>, TcError> {
    attach(&TUNNEL, interface, programs, pins)
}

/// Whether this kernel has tcx links.
pub(super) fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= TCX_SINCE)
}

fn attach(
    hooks: &[Hook],
    interface: &Interface,
    programs: &Programs,
    pins: &Pins,
) -> Result<Vec<(&'static str, Outcome)>, TcError> {
    if !has_tcx() {
        return attach_filters(hooks, Place::Main, interface, programs);
    }
    let mut outcomes = Vec::new();
    for hook in hooks {
        let name = hook.program;
        let program = programs.get(name).ok_or(TcError::NoProgram(name))?;
        let pin = pin_of(pins, name, interface);
        let target = Target::Interface(interface.index);
        let outcome = link::ensure(&pin, program, target, hook.direction.attach_type()).map_err(
            |source| TcError::Link { program: name, interface: interface.name.clone(), source },
        )?;
        outcomes.push((name, outcome));
    }
    Ok(outcomes)
}

fn detach(hooks: &[Hook], interface: &Interface, pins: &Pins) -> io::Result<()> {
    for hook in hooks {
        if !has_tcx() {
            filter::remove(interface, hook.direction, Place::Main).map_err(io::Error::other)?;
        }
        match link::remove(&pin_of(pins, hook.program, interface)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn attach_filters(
    hooks: &[Hook],
    place: Place,
    interface: &Interface,
    programs: &Programs,
) -> Result<Vec<(&'static str, Outcome)>, TcError> {
    let filter = |hook: &Hook| {
        let (name, direction) = (hook.program, hook.direction);
        let program = programs.get(name).ok_or(TcError::NoProgram(name))?;
        Ok(Filter { name, program, direction, place })
    };
    let filters = hooks.iter().map(filter).collect::<Result<Vec<_>, TcError>>()?;
    let outcomes = filter::ensure(interface, &filters)
        .map_err(|source| TcError::Filter { interface: interface.name.clone(), source })?;
    Ok(hooks.iter().map(|hook| hook.program).zip(outcomes).collect())
}

/// Where the link of a program at an interface is pinned. By index: names may hold dots, which the
/// bpf file system keeps for itself.
fn pin_of(pins: &Pins, program: &str, interface: &Interface) -> PathBuf {
    pins.link(&format!("{program}-{}", interface.index))
}

/// Removes the pins of links whose interface is gone.
fn tidy(pins: &Pins) -> Result<(), TcError> {
    let folder = pins.links();
    let failed = |source| TcError::Tidy(folder.clone(), source);
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().to_string_lossy().starts_with("tc_") {
            continue;
        }
        let path = entry.path();
        let gone = sys::open_pin(&path)
            .and_then(|link| sys::link_info(link.as_fd()))
            .is_ok_and(|info| info.ifindex() == 0);
        if gone {
            fs::remove_file(&path).map_err(failed)?;
            tracing::debug!(path = %path.display(), "removed the link of an interface that is gone");
        }
    }
    Ok(())
}
