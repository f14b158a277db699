//! The threads that answer datagrams and do nothing else. The kernel divides the processor between
//! them and what else the agent does, in short turns, so that a long list that is read, or a burst of
//! changes that is followed, delays no answer (docs/adr/0036).

use std::{io, thread};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use crate::{dns::metrics, slice};

/// What ends the name of each.
const NAME: &str = "dns-udp";

/// The threads. They end when this is dropped, and all that they hold is then closed.
#[derive(Debug)]
pub(super) struct Workers {
    handles: Vec<Handle>,
    threads: Vec<thread::JoinHandle<()>>,
    stop: CancellationToken,
}

impl Workers {
    /// Starts so many. With fewer, where the system admits no more, datagrams are answered too.
    pub(super) fn start(count: usize) -> Self {
        let mut this =
            Self { handles: Vec::new(), threads: Vec::new(), stop: CancellationToken::new() };
        for number in 0..count {
            if let Err(error) = this.add(number) {
                tracing::warn!(%error, "no thread for datagrams; those that are there answer all");
                break;
            }
        }
        this
    }

    fn add(&mut self, number: usize) -> io::Result<()> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (handle, stop) = (runtime.handle().clone(), self.stop.clone());
        let work = move || {
            metrics::count_apart(number);
            if let Err(error) = slice::take_turns_of(slice::SHORT) {
                tracing::debug!(%error, "datagrams are answered in turns as long as others'");
            }
            runtime.block_on(stop.cancelled());
        };
        let thread = thread::Builder::new().name(format!("{NAME}-{number}")).spawn(work)?;
        self.handles.push(handle);
        self.threads.push(thread);
        Ok(())
    }

    /// Where tasks for datagrams run: on each thread, or where there is none on the caller's
    /// runtime.
    pub(super) fn handles(&self) -> Vec<Handle> {
        if self.handles.is_empty() { vec![Handle::current()] } else { self.handles.clone() }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            // They wait for nobody, so this takes no time.
            if thread.join().is_err() {
                tracing::error!("a thread for datagrams panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_wait_for_no_long_turn_of_another_thread() {
        let workers = Workers::start(1);
        let (told, turn) = std::sync::mpsc::channel();
        let handles = workers.handles();
        handles[0].spawn(async move { told.send(slice::turn()) });
        let (ours, others) = (turn.recv().unwrap(), slice::turn());
        // Kernels before 6.12 know no turns of a thread's own.
        assert!(ours == slice::SHORT && others > ours || ours.is_zero(), "{ours:?} {others:?}");
    }
}
