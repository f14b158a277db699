//! Runs a packet program on a packet of one's own (`BPF_PROG_TEST_RUN`): for tests, and for the
//! time that a packet takes. Nothing is sent; a redirect is only a verdict here.

use std::{io, os::fd::AsFd as _, time::Duration};

use super::{object::LoadedProgram, sys};

/// What a program made of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// What it returned: one of the kernel's `TC_ACT_…`.
    pub verdict: i32,
    /// The packet as it is afterwards.
    pub packet: Vec<u8>,
    /// The time that one run took on average.
    pub duration: Duration,
}

impl LoadedProgram {
    /// Runs the program `repeat` times on a packet that begins with an Ethernet header, as if it
    /// had come by the loopback interface of this thread's network namespace. The packet is not
    /// restored between runs.
    pub fn test_run(&self, packet: &[u8], repeat: u32) -> io::Result<TestRun> {
        // Room for what an ICMP error puts in front.
        let mut after = vec![0; packet.len() + 128];
        let ran = sys::test_run(self.as_fd(), packet, &mut after, repeat)?;
        after.truncate(ran.length);
        Ok(TestRun {
            verdict: ran.result.cast_signed(),
            packet: after,
            duration: Duration::from_nanos(ran.nanoseconds.into()),
        })
    }
}
