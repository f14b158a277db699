//! What the kernel and this process must have, asked before anything is changed: each lack is an
//! error that names it and the remedy. What differs between kernels that are good enough comes
//! back as data ([`Features`]) and goes into the programs as constants.

use std::io;

use aya::{
    maps::MapType,
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};

/// What kernels that are good enough may or may not have. A program branches on it by a constant
/// that the verifier knows, so that the branch that a kernel lacks is never looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `bpf_loop` (Linux 5.17). Without it a datagram socket may change its backend whenever its
    /// service's endpoints change.
    pub loops: bool,
    /// `bpf_set_retval` (Linux 5.18). Without it a refused connection fails with EPERM.
    pub set_retval: bool,
}

/// What is missing.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// The process may not use eBPF.
    #[error(
        "this process may not use eBPF: run the agent as root, or with the capabilities BPF, \
         NET_ADMIN, PERFMON, SYS_ADMIN and SYS_PTRACE"
    )]
    Permission,
    /// The kernel has no eBPF system call.
    #[error("this kernel was built without eBPF (CONFIG_BPF_SYSCALL)")]
    Bpf,
    /// The kernel lacks a type of program.
    #[error("this kernel lacks eBPF programs of type {what}; it needs {remedy}")]
    ProgramType {
        /// The type.
        what: &'static str,
        /// The version or option that has it.
        remedy: &'static str,
    },
    /// The kernel lacks a type of map.
    #[error("this kernel lacks eBPF maps of type {what}; it needs {remedy}")]
    MapType {
        /// The type.
        what: &'static str,
        /// The version or option that has it.
        remedy: &'static str,
    },
    /// The kernel lacks a helper.
    #[error("this kernel lacks the eBPF helper {what}; it needs {remedy}")]
    Helper {
        /// The helper.
        what: &'static str,
        /// The version or option that has it.
        remedy: &'static str,
    },
    /// A question to the kernel failed.
    #[error("ask the kernel whether it has {what}")]
    Probe {
        /// What was asked for.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: ProgramError,
    },
}

/// A question to the kernel: does it have this?
#[derive(Clone, Copy, Debug)]
enum Question {
    Program(ProgramType),
    Map(MapType),
    /// For programs at sockets.
    Helper(BpfHelper),
    /// For programs at packets.
    PacketHelper(BpfHelper),
}

const PROGRAM_TYPES: &[(ProgramType, &str, &str)] = &[
    (ProgramType::CgroupSockAddr, "cgroup/sock_addr", "Linux 5.10 and CONFIG_CGROUP_BPF"),
    (ProgramType::SchedClassifier, "classifier", "Linux 5.10 and CONFIG_NET_CLS_ACT"),
];

const MAP_TYPES: &[(MapType, &str, &str)] = &[
    (MapType::Hash, "hash", "Linux 5.10"),
    (MapType::PerCpuArray, "per-CPU array", "Linux 5.10"),
    (MapType::LpmTrie, "longest-prefix trie", "Linux 5.10"),
    (MapType::ArrayOfMaps, "array of maps", "Linux 5.10"),
    (MapType::SkStorage, "socket storage", "Linux 5.10"),
];

const SOCKET_HELPERS: &[(BpfHelper, &str, &str)] = &[
    (BpfHelper::BPF_FUNC_sk_storage_get, "sk_storage_get", "Linux 5.10"),
    (BpfHelper::BPF_FUNC_get_socket_cookie, "get_socket_cookie", "Linux 5.10"),
    (BpfHelper::BPF_FUNC_get_netns_cookie, "get_netns_cookie", "Linux 5.10"),
];

const PACKET_HELPERS: &[(BpfHelper, &str, &str)] = &[
    (BpfHelper::BPF_FUNC_redirect_neigh, "redirect_neigh", "Linux 5.10"),
    (BpfHelper::BPF_FUNC_redirect_peer, "redirect_peer", "Linux 5.10"),
    (BpfHelper::BPF_FUNC_ktime_get_coarse_ns, "ktime_get_coarse_ns", "Linux 5.11"),
    (BpfHelper::BPF_FUNC_check_mtu, "check_mtu", "Linux 5.12"),
];

/// Asks the kernel for everything. Needs no more rights than loading does, and changes nothing.
pub fn probe() -> Result<Features, Missing> {
    judge(|question| match question {
        Question::Program(kind) => is_program_supported(kind),
        Question::Map(kind) => is_map_supported(kind).map_err(ProgramError::from),
        Question::Helper(helper) => is_helper_supported(ProgramType::CgroupSockAddr, helper),
        Question::PacketHelper(helper) => is_helper_supported(ProgramType::SchedClassifier, helper),
    })
}

/// What follows from a kernel's answers.
fn judge(ask: impl Fn(Question) -> Result<bool, ProgramError>) -> Result<Features, Missing> {
    let has = |what, question| answer(what, ask(question));
    for &(kind, what, remedy) in PROGRAM_TYPES {
        if !has(what, Question::Program(kind))? {
            return Err(Missing::ProgramType { what, remedy });
        }
    }
    for &(kind, what, remedy) in MAP_TYPES {
        if !has(what, Question::Map(kind))? {
            return Err(Missing::MapType { what, remedy });
        }
    }
    for &(helper, what, remedy) in SOCKET_HELPERS {
        if !has(what, Question::Helper(helper))? {
            return Err(Missing::Helper { what, remedy });
        }
    }
    for &(helper, what, remedy) in PACKET_HELPERS {
        if !has(what, Question::PacketHelper(helper))? {
            return Err(Missing::Helper { what, remedy });
        }
    }
    Ok(Features {
        loops: has("loop", Question::Helper(BpfHelper::BPF_FUNC_loop))?,
        set_retval: has("set_retval", Question::Helper(BpfHelper::BPF_FUNC_set_retval))?,
    })
}

/// The answer, or the reason that explains every refusal.
fn answer(what: &'static str, answer: Result<bool, ProgramError>) -> Result<bool, Missing> {
    let number = |source: &ProgramError| match source {
        // Its own source is that of the error inside.
        ProgramError::IOError(error) => error.raw_os_error(),
        other => error_number(other),
    };
    answer.map_err(|source| match number(&source) {
        Some(libc::EPERM | libc::EACCES) => Missing::Permission,
        Some(libc::ENOSYS) => Missing::Bpf,
        _ => Missing::Probe { what, source },
    })
}

/// The first error of the operating system among an error and its causes.
fn error_number(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

    /// What is said of a kernel that has everything but one thing, for each thing that is needed.
    fn lacks() -> Vec<(&'static str, &'static str, String)> {
        let mut said = Vec::new();
        let mut lack = |what, remedy, lacking: &dyn Fn(Question) -> bool| {
            let missing = judge(|question| Ok(!lacking(question))).expect_err(what);
            said.push((what, remedy, missing.to_string()));
        };
        for &(kind, what, remedy) in PROGRAM_TYPES {
            lack(what, remedy, &|asked| matches!(asked, Question::Program(it) if it == kind));
        }
        for &(kind, what, remedy) in MAP_TYPES {
            lack(what, remedy, &|asked| matches!(asked, Question::Map(it) if it == kind));
        }
        for &(helper, what, remedy) in SOCKET_HELPERS {
            let number = helper as u32;
            lack(
                what,
                remedy,
                &|asked| matches!(asked, Question::Helper(it) if it as u32 == number),
            );
        }
        for &(helper, what, remedy) in PACKET_HELPERS {
            let number = helper as u32;
            let lacks = |asked| matches!(asked, Question::PacketHelper(it) if it as u32 == number);
            lack(what, remedy, &lacks);
        }
        said
    }

    #[test]
    fn a_kernel_without_a_needed_feature_is_told_with_the_remedy() {
        let said = lacks();
        let helpers = SOCKET_HELPERS.len() + PACKET_HELPERS.len();
        assert_eq!(said.len(), PROGRAM_TYPES.len() + MAP_TYPES.len() + helpers);
        for (what, remedy, message) in said {
            assert!(message.contains("this kernel lacks"), "{message}");
            assert!(message.contains(what) && message.contains(remedy), "{message}");
        }
    }

    #[test]
    fn what_may_be_missing_is_a_feature_that_is_off() {
        let newer = |helper| {
            let loops = BpfHelper::BPF_FUNC_loop as u32;
            [loops, BpfHelper::BPF_FUNC_set_retval as u32].contains(&(helper as u32))
        };
        let older = judge(|question| Ok(!matches!(question, Question::Helper(it) if newer(it))));
        assert_eq!(older.ok(), Some(Features { loops: false, set_retval: false }));
        let all = judge(|_| Ok(true));
        assert_eq!(all.ok(), Some(Features { loops: true, set_retval: true }));
    }

    #[test]
    fn an_error_of_the_system_call_is_told_apart_from_a_no() {
        let plain = |io_error| ProgramError::IOError(io_error);
        let call = |io_error| SyscallError { call: "bpf_prog_load", io_error }.into();
        for wrap in [&plain as &dyn Fn(io::Error) -> ProgramError, &call] {
            let refuse = |number| judge(|_| Err(wrap(io::Error::from_raw_os_error(number)))).err();
            assert!(matches!(refuse(libc::EPERM), Some(Missing::Permission)));
            assert!(matches!(refuse(libc::ENOSYS), Some(Missing::Bpf)));
            assert!(matches!(refuse(libc::EINVAL), Some(Missing::Probe { .. })));
        }
    }
}
