//! Processes by descriptor (pidfd_open(2)): a descriptor never comes to mean another process.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

use tokio::io::unix::AsyncFd;

use super::readiness;

/// A process that is not our child.
#[derive(Debug)]
pub(super) struct Pidfd(AsyncFd<OwnedFd>);

impl Pidfd {
    /// The process `pid` that was started at `start_ticks`; `None` where it is gone.
    pub(super) fn open(pid: i32, start_ticks: u64) -> io::Result<Option<Self>> {
        let Some(descriptor) = pidfd_open(pid)? else { return Ok(None) };
        // Compared after it was opened: the number cannot change its owner any more.
        if self::start_ticks(pid) != Some(start_ticks) {
            return Ok(None);
        }
        Ok(Some(Self(readiness::register(descriptor)?)))
    }

    /// Returns when the process has ended.
    pub(super) async fn ended(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }

    /// Kills the process; success where it has ended.
    pub(super) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.0.get_ref(), libc::SIGKILL) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            outcome => outcome,
        }
    }
}

/// When the process was started, in clock ticks since boot; `None` where it is gone or a zombie.
pub(super) fn start_ticks(pid: i32) -> Option<u64> {
    start_ticks_of(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 22 of proc_pid_stat(5), which is counted from behind the name in brackets.
fn start_ticks_of(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[expect(unsafe_code, reason = "neither std nor nix has pidfd_open")]
fn pidfd_open(pid: i32) -> io::Result<Option<OwnedFd>> {
    // SAFETY: the system call takes two integers and touches no memory of ours.
    let outcome = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if outcome < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ESRCH) { Ok(None) } else { Err(error) };
    }
    let descriptor = i32::try_from(outcome).map_err(io::Error::other)?;
    // SAFETY: the call has just returned this descriptor; nobody else owns it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

#[expect(unsafe_code, reason = "neither std nor nix has pidfd_send_signal")]
fn pidfd_send_signal(process: &OwnedFd, signal: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open, and a null pointer for the details is allowed.
    let outcome =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, info, 0) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_field_22_whatever_the_name_holds() {
        let fields: Vec<String> = (4..=52).map(|number| number.to_string()).collect();
        let stat = format!("7 (a) b (c)) S {}", fields.join(" "));
        assert_eq!(start_ticks_of(&stat), Some(22));
        assert_eq!(start_ticks_of(&stat.replace(" S ", " Z ")), None);
    }

    #[tokio::test]
    async fn a_process_is_known_by_its_start_and_not_only_by_its_number() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let ticks = start_ticks(pid).unwrap();
        assert!(Pidfd::open(pid, ticks + 1).unwrap().is_none());
        let process = Pidfd::open(pid, ticks).unwrap().unwrap();
        process.kill().unwrap();
        process.ended().await.unwrap();
        child.wait().unwrap();
        assert!(Pidfd::open(pid, ticks).unwrap().is_none());
    }
}
