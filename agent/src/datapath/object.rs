//! The embedded eBPF object, and its programs in the kernel.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    programs::{Program, ProgramError},
};

use super::{conntrack::ENTRIES_OF_FLOW, layout, pin::Pins, probe::Features, traffic::Lanes};

/// The object as `cargo xtask build` made it; empty where this agent was built without it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MIZZEN_EBPF_OBJECT"));

/// How often a program is tried whose verification a signal interrupts.
const ATTEMPTS: u32 = 5;

/// Why the programs are not in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The agent was built without the programs.
    #[error(
        "this agent was built without its eBPF programs; build with `cargo xtask build`, which \
         builds them first"
    )]
    NotBuilt,
    /// The object or one of its maps was refused.
    #[error("load the eBPF object")]
    Object(#[from] EbpfError),
    /// The kernel refused a program.
    #[error("load the eBPF program {program}")]
    Program {
        /// Its name.
        program: String,
        /// What the kernel said, the verifier's log included.
        #[source]
        source: ProgramError,
    },
    /// It is not known how many CPUs there are.
    #[error("find out how many CPUs there are, from /sys/devices/system/cpu/possible")]
    Cpus(#[source] std::io::Error),
    /// A program has a type that this agent has no use for.
    #[error("the eBPF program {program} has an unexpected type")]
    UnexpectedType {
        /// Its name.
        program: String,
    },
    /// The kernel does not duplicate a descriptor.
    #[error("keep the eBPF program {program}")]
    Keep {
        /// Its name.
        program: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// A program in the kernel.
#[derive(Debug)]
pub struct LoadedProgram {
    fd: OwnedFd,
    /// The kernel's id of it.
    pub id: u32,
    /// How many instructions the verifier walked through; its limit is a million.
    pub verified_instructions: u32,
}

impl AsFd for LoadedProgram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Loads a program, again where a signal to this process ended the verifier's work.
fn verified(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    let mut outcome = load();
    for _ in 1..ATTEMPTS {
        if !outcome.as_ref().is_err_and(interrupted) {
            break;
        }
        outcome = load();
    }
    outcome
}

/// Whether a signal came between.
fn interrupted(error: &ProgramError) -> bool {
    let error = match error {
        ProgramError::LoadError { io_error, .. } => io_error,
        ProgramError::SyscallError(call) => &call.io_error,
        _ => return false,
    };
    error.raw_os_error() == Some(libc::EAGAIN)
}

/// The programs in the kernel, by name.
#[derive(Debug, Default)]
pub struct Programs(BTreeMap<String, LoadedProgram>);

impl Programs {
    /// Loads all programs. Their maps are those at `pins`, or new ones that are pinned there; a new
    /// table of flows has room for `flows`.
    pub(super) fn load(
        pins: &Pins,
        features: Features,
        netns: u64,
        flows: u32,
    ) -> Result<Self, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NotBuilt);
        }
        let mut loader = EbpfLoader::new();
        for map in layout::PINNED {
            loader.map_pin_path(map.name, pins.map(map.name));
        }
        loader.map_max_entries(layout::FLOWS.name, flows * ENTRIES_OF_FLOW);
        let lanes = Lanes::of_machine().map_err(LoadError::Cpus)?;
        let shared = u32::from(lanes.shared);
        let (loops, retval) = (u32::from(features.loops), u32::from(features.set_retval));
        loader
            .override_global("NODE_NETNS_COOKIE", &netns, true)
            .override_global("HAS_LOOP", &loops, true)
            .override_global("HAS_SET_RETVAL", &retval, true)
            .override_global("LANES", &lanes.count, true)
            .override_global("LANES_ARE_SHARED", &shared, true);
        let mut ebpf = loader.load(OBJECT)?;
        Self::from_object(&mut ebpf)
    }

    /// Loads every program and keeps its descriptor: the parsed object is several times larger.
    fn from_object(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let mut programs = BTreeMap::new();
        for (name, program) in ebpf.programs_mut() {
            let failed = |source| LoadError::Program { program: name.to_owned(), source };
            match program {
                Program::CgroupSockAddr(program) => verified(|| program.load()),
                Program::SockOps(program) => verified(|| program.load()),
                Program::SchedClassifier(program) => verified(|| program.load()),
                _ => return Err(LoadError::UnexpectedType { program: name.to_owned() }),
            }
            .map_err(failed)?;
            let info = program.info().map_err(failed)?;
            let fd = program.fd().map_err(failed)?.as_fd();
            let fd = fd
                .try_clone_to_owned()
                .map_err(|source| LoadError::Keep { program: name.to_owned(), source })?;
            let loaded = LoadedProgram {
                fd,
                id: info.id(),
                verified_instructions: info.verified_instruction_count().unwrap_or(0),
            };
            programs.insert(name.to_owned(), loaded);
        }
        Ok(Self(programs))
    }

    /// The program of this name.
    pub fn get(&self, name: &str) -> Option<&LoadedProgram> {
        self.0.get(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &LoadedProgram)> {
        self.0.iter().map(|(name, program)| (name.as_str(), program))
    }
}
