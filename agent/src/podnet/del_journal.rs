//! DELs that the plugin noted while no agent was there.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    sync::{MutexGuard, TryLockError},
    thread,
    time::{Duration, Instant},
};

use mizzen_cni::{
    offline::append_journal,
    wire::{Attachment, DEL_JOURNAL},
};

use super::pods::{Pods, chain};

/// How long to wait before asking again whether another call has done what is noted.
const PAUSE: Duration = Duration::from_millis(5);

impl Pods {
    /// Does all that is noted in the state folder. The file is moved aside first, so that what a
    /// plugin notes meanwhile is in the next one; a file that was moved and not finished is done again,
    /// which changes nothing. What a call is at work on is noted again, for the next time.
    ///
    /// Every ADD does this first: a DEL of the same attachment that was noted before comes before it,
    /// and not some time after. `add` is that attachment, and when the call has to end. Until then it
    /// waits for who is at work on its own attachment, and for no other.
    pub(super) fn drain_noted(&self, add: Option<(&Attachment, Instant)>) -> io::Result<()> {
        let journal = self.state_dir.join(DEL_JOURNAL);
        let aside = journal.with_extension("draining");
        // The first again: before the one aside goes, what could not be done goes back.
        if !journal.exists() && !aside.exists() && !journal.exists() {
            return Ok(());
        }
        let deadline = add.map(|(_, deadline)| deadline);
        let _alone = self.await_drain(deadline)?;
        if !aside.exists() {
            match fs::rename(&journal, &aside) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            }
        }
        let mut own_refused = None;
        for line in BufReader::new(File::open(&aside)?).split(b'\n') {
            // What is left of the file is done by the next one.
            let left = left_until(deadline)?;
            let attachment = match serde_json::from_slice::<Attachment>(&line?) {
                Ok(attachment) => attachment,
                Err(error) => {
                    tracing::warn!(error = chain(&error), "unreadable line among noted DELs");
                    continue;
                }
            };
            tracing::info!(%attachment, "doing a DEL that was noted while no agent ran");
            let is_own = add.is_some_and(|(own, _)| *own == attachment);
            let limit = if is_own { left } else { Duration::ZERO };
            if let Err(refusal) = self.del(&attachment, limit) {
                tracing::warn!(%attachment, reason = refusal.details, "do a noted DEL");
                append_journal(&self.state_dir, &attachment)?;
                own_refused = own_refused.or(is_own.then_some(refusal.details));
            }
        }
        fs::remove_file(&aside)?;
        own_refused.map_or(Ok(()), |reason| Err(io::Error::new(io::ErrorKind::TimedOut, reason)))
    }

    /// Waits until nobody else does what is noted.
    fn await_drain(&self, deadline: Option<Instant>) -> io::Result<MutexGuard<'_, ()>> {
        loop {
            match self.draining.try_lock() {
                Ok(alone) => return Ok(alone),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => thread::sleep(PAUSE.min(left_until(deadline)?)),
            }
        }
    }
}

/// The time that is left, if there is any.
fn left_until(deadline: Option<Instant>) -> io::Result<Duration> {
    let Some(deadline) = deadline else { return Ok(Duration::MAX) };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        let text = "there are more of them than this call has time for";
        return Err(io::Error::new(io::ErrorKind::TimedOut, text));
    }
    Ok(left)
}
