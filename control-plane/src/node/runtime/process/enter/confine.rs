//! Gives up what a program may not have. Each step needs what a later one takes away: the system
//! call filter is loaded while that needs no promise about privileges, the bounding set is emptied
//! while that may still be done, and users change before capabilities do.

use anyhow::Context;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

use super::super::{seccomp, wire::Confinement};

/// Where a process says how soon it may be killed (proc(5)).
const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";

/// Confines the calling process.
pub(super) fn confine(confinement: &Confinement) -> anyhow::Result<()> {
    set_oom_score(confinement.oom_score_adj)?;
    if confinement.no_new_privileges {
        set_no_new_privs(true).context("promising no new privileges")?;
    }
    let wanted = CapabilitySet::from_bits_retain(confinement.capabilities);
    if confinement.seccomp {
        seccomp::load(&seccomp::programs(wanted)?).context("filtering system calls")?;
    }
    let permitted = capabilities(None).context("looking at our own capabilities")?.permitted;
    limit(wanted).context("giving up capabilities")?;
    become_user(confinement)?;
    // Another user than root has lost them with that, and gains none by a program of its own.
    let kept = if confinement.uid == 0 { wanted & permitted } else { CapabilitySet::empty() };
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    clear_ambient_capability_set().context("giving up ambient capabilities")?;
    set_capabilities(None, sets).context("giving up capabilities")
}

/// No program that is started from now on gets what is not in `wanted`.
fn limit(wanted: CapabilitySet) -> rustix::io::Result<()> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(one) {
            Ok(true) if !wanted.contains(one) => remove_capability_from_bounding_set(one)?,
            Ok(_) => {}
            // The kernel knows no more.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn become_user(confinement: &Confinement) -> anyhow::Result<()> {
    let (uid, gid) = (Uid::from_raw(confinement.uid), Gid::from_raw(confinement.gid));
    let groups: Vec<Gid> = confinement.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).context("joining the container's groups")?;
    setresgid(gid, gid, gid).with_context(|| format!("becoming the group {gid}"))?;
    setresuid(uid, uid, uid).with_context(|| format!("becoming the user {uid}"))
}

/// Without `CAP_SYS_RESOURCE` nobody may be made less likely to be killed than he is.
fn set_oom_score(wanted: i32) -> anyhow::Result<()> {
    match std::fs::write(OOM_SCORE_ADJ, wanted.to_string()) {
        Err(error) if error.kind() != std::io::ErrorKind::PermissionDenied => {
            Err(error).with_context(|| format!("writing {wanted} to {OOM_SCORE_ADJ}"))
        }
        _ => Ok(()),
    }
}
