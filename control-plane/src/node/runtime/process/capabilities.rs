//! Which capabilities a container has: a default set, with what it adds and without what it drops.
//! Pure.

use rustix::thread::CapabilitySet;

use super::super::Privileges;

/// What containers have unless they ask for more or less: the set of Docker, which container
/// runtimes share.
const DEFAULT: CapabilitySet = CapabilitySet::AUDIT_WRITE
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SYS_CHROOT);
/// Stands for all of them.
const ALL: &str = "ALL";

/// A name that is none of a capability.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("securityContext.capabilities: there is no capability {0:?}")]
pub(super) struct UnknownCapability(String);

/// The capabilities of a container. As with containerd, dropping all comes before adding some.
pub(super) fn of(privileges: &Privileges) -> Result<CapabilitySet, UnknownCapability> {
    if privileges.privileged {
        return Ok(CapabilitySet::all());
    }
    let (add, add_all) = named(&privileges.add_capabilities)?;
    let (drop, drop_all) = named(&privileges.drop_capabilities)?;
    let base = match (add_all, drop_all) {
        (_, true) => CapabilitySet::empty(),
        (true, false) => CapabilitySet::all(),
        (false, false) => DEFAULT,
    };
    Ok((base | add) - drop)
}

/// The capabilities of these names, and whether all are meant.
fn named(names: &[String]) -> Result<(CapabilitySet, bool), UnknownCapability> {
    let mut found = CapabilitySet::empty();
    let mut all = false;
    for name in names {
        let plain = name.to_ascii_uppercase();
        let plain = plain.strip_prefix("CAP_").unwrap_or(&plain);
        if plain == ALL {
            all = true;
        } else {
            let one = CapabilitySet::from_name(plain);
            found |= one.ok_or_else(|| UnknownCapability(name.clone()))?;
        }
    }
    Ok((found, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(privileged: bool, add: &[&str], drop: &[&str]) -> Result<CapabilitySet, String> {
        let owned = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
        let privileges = Privileges {
            privileged,
            add_capabilities: owned(add),
            drop_capabilities: owned(drop),
            ..Privileges::default()
        };
        of(&privileges).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_added_and_dropped_changes_the_default() {
        let all = CapabilitySet::all();
        let admin = CapabilitySet::NET_ADMIN;
        for (privileged, add, drop, expected) in [
            (false, &[][..], &[][..], DEFAULT),
            (false, &["NET_ADMIN"], &[], DEFAULT | admin),
            (false, &["cap_net_admin"], &["CHOWN"], (DEFAULT | admin) - CapabilitySet::CHOWN),
            (false, &[], &["ALL"], CapabilitySet::empty()),
            (false, &["NET_ADMIN"], &["ALL"], admin),
            (false, &["ALL"], &["CHOWN"], all - CapabilitySet::CHOWN),
            (true, &[], &["ALL"], all),
        ] {
            assert_eq!(made(privileged, add, drop), Ok(expected), "{add:?} {drop:?}");
        }
        // What container runtimes give, as /proc/PID/status shows it.
        assert_eq!(DEFAULT.bits(), 0xa804_25fb);
        let error = made(false, &["FLY"], &[]).unwrap_err();
        assert_eq!(error, "securityContext.capabilities: there is no capability \"FLY\"");
    }
}
