//! The system calls of containers with the seccomp profile `RuntimeDefault`: those that Linux 6.18
//! has, without those that reach past a container. A call that is kept for a capability may be made
//! by who has it.
//!
//! Two filters, of which the kernel takes the stricter answer (seccomp(2)). One refuses what it does
//! not know as an older kernel would (`ENOSYS`), so that programs do without; the other refuses what
//! it knows and does not want (`EPERM`).

use std::collections::BTreeMap;

use anyhow::Context;
use libc::c_long;
use rustix::thread::CapabilitySet;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The numbers of Linux 6.18's calls, first and last; x32's, behind them, are not among them.
#[cfg(target_arch = "x86_64")]
const KNOWN: &[(c_long, c_long)] = &[(0, 335), (424, 469)];
/// See above.
#[cfg(not(target_arch = "x86_64"))]
const KNOWN: &[(c_long, c_long)] = &[(0, 294), (424, 469)];

/// What no container may do: the kernel's keys belong to all, and what io_uring and userfaultfd do
/// no filter sees.
const NEVER: &[c_long] = &[
    libc::SYS_add_key,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_nfsservctl,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
];
/// What only some processors' kernels have.
#[cfg(target_arch = "x86_64")]
const NEVER_HERE: &[c_long] = &[libc::SYS_sysfs, libc::SYS_uselib, libc::SYS_ustat];
/// See above.
#[cfg(not(target_arch = "x86_64"))]
const NEVER_HERE: &[c_long] = &[];

/// What is for those who have one of these capabilities.
const KEPT: &[(CapabilitySet, &[c_long])] = &[
    (
        CapabilitySet::SYS_ADMIN,
        &[
            libc::SYS_fanotify_init,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fsopen,
            libc::SYS_fspick,
            libc::SYS_lookup_dcookie,
            libc::SYS_mount,
            libc::SYS_mount_setattr,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            OPEN_TREE_ATTR,
            libc::SYS_pivot_root,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
            libc::SYS_setdomainname,
            libc::SYS_sethostname,
            libc::SYS_setns,
            libc::SYS_swapoff,
            libc::SYS_swapon,
            libc::SYS_umount2,
            libc::SYS_unshare,
        ],
    ),
    (ADMIN_OR_BPF, &[libc::SYS_bpf]),
    (ADMIN_OR_PERFMON, &[libc::SYS_perf_event_open]),
    (ADMIN_OR_SYSLOG, &[libc::SYS_syslog]),
    (CapabilitySet::DAC_READ_SEARCH, &[libc::SYS_open_by_handle_at]),
    (CapabilitySet::SYS_BOOT, &[libc::SYS_kexec_file_load, libc::SYS_kexec_load, libc::SYS_reboot]),
    (
        CapabilitySet::SYS_MODULE,
        &[libc::SYS_delete_module, libc::SYS_finit_module, libc::SYS_init_module],
    ),
    (
        CapabilitySet::SYS_NICE,
        &[
            libc::SYS_mbind,
            libc::SYS_migrate_pages,
            libc::SYS_move_pages,
            libc::SYS_set_mempolicy,
            libc::SYS_set_mempolicy_home_node,
        ],
    ),
    (CapabilitySet::SYS_PACCT, &[libc::SYS_acct]),
    (
        CapabilitySet::SYS_PTRACE,
        &[
            libc::SYS_kcmp,
            libc::SYS_pidfd_getfd,
            libc::SYS_process_madvise,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
        ],
    ),
    #[cfg(target_arch = "x86_64")]
    (CapabilitySet::SYS_RAWIO, &[libc::SYS_ioperm, libc::SYS_iopl]),
    (CapabilitySet::SYS_TIME, &[libc::SYS_clock_settime, libc::SYS_settimeofday]),
    (CapabilitySet::SYS_TTY_CONFIG, &[libc::SYS_vhangup]),
];
const ADMIN_OR_BPF: CapabilitySet = CapabilitySet::SYS_ADMIN.union(CapabilitySet::BPF);
const ADMIN_OR_PERFMON: CapabilitySet = CapabilitySet::SYS_ADMIN.union(CapabilitySet::PERFMON);
const ADMIN_OR_SYSLOG: CapabilitySet = CapabilitySet::SYS_ADMIN.union(CapabilitySet::SYSLOG);
/// open_tree_attr(2) of Linux 6.15, the same number everywhere.
const OPEN_TREE_ATTR: c_long = 467;

/// Flags of clone(2) that make namespaces.
const NAMESPACES: &[libc::c_int] = &[
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];
/// What personality(2) may be: Linux, without random addresses for debuggers, 32-bit `uname`, and
/// the question.
const PERSONALITIES: &[u64] = &[0, 0x0008, 0x0002_0000, 0x0002_0008, 0x0004_0000, 0xffff_ffff];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The filters for a container with these capabilities, in the order in which they are loaded.
pub(super) fn programs(capabilities: CapabilitySet) -> anyhow::Result<[BpfProgram; 2]> {
    let allow = SeccompAction::Allow;
    let errno = |number: i32| SeccompAction::Errno(number.unsigned_abs());
    let known = compile(known(capabilities), errno(libc::ENOSYS), allow.clone())?;
    let unwanted = compile(unwanted(capabilities)?, allow, errno(libc::EPERM))?;
    Ok([known, unwanted])
}

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> anyhow::Result<BpfProgram> {
    let processor = std::env::consts::ARCH.try_into().context("no filters for this processor")?;
    let filter = SeccompFilter::new(rules, otherwise, matched, processor);
    filter.and_then(TryInto::try_into).context("compiling the system call filter")
}

/// What there is. What clone3(2) is to do lies where no filter can look: without it programs take
/// clone(2).
fn known(capabilities: CapabilitySet) -> Rules {
    let all = KNOWN.iter().flat_map(|&(first, last)| first..=last);
    let may_clone3 = capabilities.contains(CapabilitySet::SYS_ADMIN);
    all.filter(|&number| may_clone3 || number != libc::SYS_clone3)
        .map(|number| (number, Vec::new()))
        .collect()
}

fn unwanted(capabilities: CapabilitySet) -> anyhow::Result<Rules> {
    let kept = KEPT.iter().filter(|(for_whom, _)| !capabilities.intersects(*for_whom));
    let whole = NEVER.iter().chain(NEVER_HERE).chain(kept.flat_map(|(_, calls)| *calls));
    let mut rules: Rules = whole.map(|&number| (number, Vec::new())).collect();
    let odd = PERSONALITIES
        .iter()
        .map(|&value| condition(SeccompCmpOp::Ne, value))
        .collect::<anyhow::Result<_>>()?;
    rules.insert(libc::SYS_personality, vec![rule(odd)?]);
    let machines = u64::from(libc::AF_VSOCK.unsigned_abs());
    rules.insert(libc::SYS_socket, vec![rule(vec![condition(SeccompCmpOp::Eq, machines)?])?]);
    if !capabilities.contains(CapabilitySet::SYS_ADMIN) {
        let makes = |flag: &libc::c_int| {
            let flag = u64::from(flag.unsigned_abs());
            rule(vec![condition(SeccompCmpOp::MaskedEq(flag), flag)?])
        };
        let any = NAMESPACES.iter().map(makes).collect::<anyhow::Result<_>>()?;
        rules.insert(libc::SYS_clone, any);
    }
    Ok(rules)
}

/// On the first argument, of which the kernel reads 32 bits.
fn condition(operation: SeccompCmpOp, value: u64) -> anyhow::Result<SeccompCondition> {
    SeccompCondition::new(0, SeccompCmpArgLen::Dword, operation, value)
        .context("writing the system call filter")
}

fn rule(all_of: Vec<SeccompCondition>) -> anyhow::Result<SeccompRule> {
    SeccompRule::new(all_of).context("writing the system call filter")
}

/// Loads filters for the calling process, which has `CAP_SYS_ADMIN` or promised to gain no
/// privileges.
#[expect(unsafe_code, reason = "the crate's own loader makes that promise unasked")]
pub(super) fn load(programs: &[BpfProgram]) -> std::io::Result<()> {
    for program in programs {
        let length = u16::try_from(program.len()).map_err(std::io::Error::other)?;
        let filter = program.as_ptr().cast::<libc::sock_filter>().cast_mut();
        let filter = libc::sock_fprog { len: length, filter };
        // SAFETY: the kernel reads `length` instructions from the pointer into a live slice, whose
        // elements have the layout of `struct sock_filter`; it writes nothing.
        let outcome = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter)
        };
        if outcome != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_refused(number: c_long, capabilities: CapabilitySet) -> bool {
        // A call without conditions is refused whatever its arguments are.
        unwanted(capabilities).unwrap().get(&number).is_some_and(Vec::is_empty)
    }

    #[test]
    fn what_reaches_past_a_container_is_for_those_who_may() {
        let none = CapabilitySet::empty();
        for (number, capability) in [
            (libc::SYS_mount, CapabilitySet::SYS_ADMIN),
            (libc::SYS_bpf, CapabilitySet::BPF),
            (libc::SYS_bpf, CapabilitySet::SYS_ADMIN),
            (libc::SYS_settimeofday, CapabilitySet::SYS_TIME),
            (libc::SYS_init_module, CapabilitySet::SYS_MODULE),
            (libc::SYS_reboot, CapabilitySet::SYS_BOOT),
        ] {
            assert!(is_refused(number, none), "{number}");
            assert!(!is_refused(number, capability), "{number}");
        }
        assert!(is_refused(libc::SYS_keyctl, CapabilitySet::all()));
        for number in [libc::SYS_read, libc::SYS_execve, libc::SYS_ptrace, libc::SYS_socket] {
            assert!(!is_refused(number, none), "{number}");
        }
    }

    #[test]
    fn what_linux_has_is_known_and_clone3_is_for_those_who_may_make_namespaces() {
        let is_known = |number: c_long, capabilities| known(capabilities).contains_key(&number);
        let none = CapabilitySet::empty();
        for number in
            [libc::SYS_read, libc::SYS_rseq, libc::SYS_landlock_restrict_self, libc::SYS_clone]
        {
            assert!(is_known(number, none), "{number}");
        }
        assert!(!is_known(libc::SYS_clone3, none));
        assert!(is_known(libc::SYS_clone3, CapabilitySet::SYS_ADMIN));
        assert!(!is_known(0x4000_0000, none) && !is_known(470, none));
    }

    /// The kernel takes no more (`BPF_MAXINSNS`).
    #[test]
    fn filters_are_not_longer_than_the_kernel_takes() {
        for capabilities in [CapabilitySet::empty(), CapabilitySet::all()] {
            for program in programs(capabilities).unwrap() {
                assert!(program.len() <= 4096, "{}", program.len());
            }
        }
    }
}
