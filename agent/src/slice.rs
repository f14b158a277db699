//! Threads that others wait for have short turns at the processor, and soon; one that works through
//! bursts of changes gives way to them ([ADR 36](../../docs/adr/0036-short-turns.md)).
//!
//! A thread that wakes takes the processor from another one only if its turns are shorter; else it
//! waits for the other's turn to end, which is more than a millisecond away (EEVDF, Linux 6.12 and
//! later). Its share stays what it was: who asks for less at a time has it sooner. It does so only
//! while it has not had more than its share, which under many questions it may have; then a lesser
//! share of the other's is what lets it in. Neither takes a privilege. Older kernels don't know turns
//! of a thread's own, and those stay as they are.

use std::{
    io,
    mem::{size_of, zeroed},
    time::Duration,
};

/// The shortest turn that the kernel knows: some answers.
pub(crate) const SHORT: Duration = Duration::from_micros(100);

/// The niceness of a thread that gives way: a third of the weight of others. Where agents have a
/// control group of their own, it counts among the agent's threads alone (cgroups(7), `cpu`).
const BEHIND: i32 = 5;

/// The calling thread, where the kernel takes a number.
const THIS_THREAD: libc::pid_t = 0;
/// No flags.
const NONE: libc::c_uint = 0;

/// Has the calling thread take turns of this length. A thread that somebody made a real-time one
/// has none and stays as it is.
pub(crate) fn take_turns_of(turn: Duration) -> io::Result<()> {
    let turn = u64::try_from(turn.as_nanos()).map_err(io::Error::other)?;
    change(|attr| attr.sched_runtime = turn)
}

/// Has the calling thread, and those that it starts, give way to the agent's others. One that is
/// nicer already stays as it is.
pub(crate) fn give_way() -> io::Result<()> {
    change(|attr| {
        attr.sched_nice = attr.sched_nice.max(BEHIND);
        attr.sched_runtime = 0; // turns as long as the kernel has them
    })
}

/// Changes how the calling thread is scheduled, unless somebody gave it another class.
fn change(how: impl FnOnce(&mut libc::sched_attr)) -> io::Result<()> {
    let mut attr = attributes()?;
    if attr.sched_policy != libc::SCHED_OTHER.cast_unsigned() {
        return Ok(());
    }
    how(&mut attr);
    // SAFETY: the kernel reads as much of the record as it says that it has, and keeps nothing of it.
    let result = unsafe {
        libc::syscall(libc::SYS_sched_setattr, THIS_THREAD, std::ptr::from_ref(&attr), NONE)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How the calling thread is scheduled.
fn attributes() -> io::Result<libc::sched_attr> {
    // SAFETY: it is made of integers, which all may be zero.
    let mut attr: libc::sched_attr = unsafe { zeroed() };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: the kernel writes no more into the record than the size that it is told.
    let result = unsafe {
        let to = std::ptr::from_mut(&mut attr);
        libc::syscall(libc::SYS_sched_getattr, THIS_THREAD, to, size, NONE)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(attr) }
}

/// How nice the calling thread is.
#[cfg(test)]
pub(crate) fn niceness() -> i32 {
    attributes().unwrap().sched_nice
}

/// How long turns of the calling thread are; zero from kernels that know no such thing.
#[cfg(test)]
pub(crate) fn turn() -> Duration {
    Duration::from_nanos(attributes().unwrap().sched_runtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_a_threads_own_and_nothing_else_changes() {
        let before = attributes().unwrap();
        let after = std::thread::spawn(|| {
            take_turns_of(SHORT).unwrap();
            attributes().unwrap()
        });
        let after = after.join().unwrap();
        let rest = |attr: &libc::sched_attr| (attr.sched_policy, attr.sched_nice, attr.sched_flags);
        assert_eq!(rest(&after), rest(&before));
        // A kernel that knows turns tells how long they are.
        if before.sched_runtime != 0 {
            assert_eq!(Duration::from_nanos(after.sched_runtime), SHORT);
            assert!(turn() > SHORT, "those of others stay");
        }
    }

    #[test]
    fn who_gives_way_is_nicer_and_so_are_its_threads() {
        let (own, theirs) = std::thread::spawn(|| {
            give_way().unwrap();
            (niceness(), std::thread::spawn(niceness).join().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!((own, theirs), (BEHIND.max(niceness()), own));
        let nicer = std::thread::spawn(|| {
            change(|attr| attr.sched_nice = 15).unwrap();
            give_way().unwrap();
            niceness()
        });
        assert_eq!(nicer.join().unwrap(), 15);
    }
}
