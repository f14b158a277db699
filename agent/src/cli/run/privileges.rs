//! Rights that are needed at the start alone, or for a role that this agent does not have, are given
//! up before the first thread is there: in Linux they are a thread's own, and each inherits its
//! maker's.
//!
//! What stays and why is a table in docs/privileges.md.

use rustix::thread::{
    CapabilitySet, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use crate::config::Config;

/// What the roles of a configuration take while they run. `gone_back` says that services went back
/// to kube-proxy, and what is left of them may have to be taken out of force.
pub(super) fn needed(config: &Config, gone_back: bool) -> CapabilitySet {
    let mut needed = CapabilitySet::NET_ADMIN;
    if config.dns {
        needed |= CapabilitySet::NET_BIND_SERVICE;
    }
    if config.services || config.cni || gone_back {
        needed |= CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE;
    }
    if config.services || gone_back {
        needed |= CapabilitySet::DAC_READ_SEARCH;
    }
    needed
}

/// Gives up all others, for good: no program that this process might start has them either.
pub(super) fn keep_only(needed: CapabilitySet) {
    let given_up = || -> rustix::io::Result<()> {
        set_no_new_privs(true)?;
        let mut sets = capabilities(None)?;
        // Without this right the bound stays as the supervisor set it, and with the above nothing can
        // be had of it.
        if sets.effective.contains(CapabilitySet::SETPCAP) {
            for capability in CapabilitySet::all().difference(needed).iter() {
                // A kernel need not know each.
                if capability_is_in_bounding_set(capability).unwrap_or(false) {
                    remove_capability_from_bounding_set(capability)?;
                }
            }
        }
        clear_ambient_capability_set()?;
        sets.effective &= needed;
        sets.permitted &= needed;
        sets.inheritable = CapabilitySet::empty();
        set_capabilities(None, sets)
    };
    if let Err(error) = given_up() {
        tracing::warn!(%error, "this process keeps rights that it does not need");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_that_is_off_takes_no_rights() {
        let of = |services, cni, dns| {
            needed(&Config { services, cni, dns, ..Config::default() }, false).iter().count()
        };
        assert_eq!((of(true, true, true), of(true, false, false)), (5, 4));
        assert_eq!((of(false, true, false), of(false, false, true)), (3, 2));
        let back = Config { services: false, cni: false, dns: true, ..Config::default() };
        assert_eq!(needed(&back, true).iter().count(), 5);
    }
}
