//! DELs that the plugin noted while no agent was there.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    path::Path,
    sync::{MutexGuard, TryLockError},
    thread,
    time::{Duration, Instant},
};

use mizzen_cni::{
    offline::append_journal,
    wire::{Attachment, DEL_JOURNAL},
};

use super::pods::{Pods, chain};

/// How long to wait before asking again whether another call has done what is noted, or is done with
/// the attachment.
const PAUSE: Duration = Duration::from_millis(20);

/// What is noted still, because a call is at work on it.
#[derive(Debug, Default)]
struct Refused {
    /// Why, of the ADD's own attachment.
    own: Option<String>,
    /// Whether there are others.
    others: bool,
}

impl Pods {
    /// Does all that is noted in the state folder. What a call is at work on is noted again, for the
    /// next time; whether there is any such.
    ///
    /// Every ADD does this first: a DEL of the same attachment that was noted before comes before it,
    /// and not some time after. `add` is that attachment, and when the call has to end. Until then it
    /// waits for who is at work on its own attachment, and for no other.
    pub(super) fn drain_noted(&self, add: Option<(&Attachment, Instant)>) -> io::Result<bool> {
        let (own, deadline) = (add.map(|(own, _)| own), add.map(|(_, deadline)| deadline));
        loop {
            // Held for no longer than what is free takes: every other ADD waits for it.
            let alone = self.await_drain(deadline)?;
            let refused = self.drain(own, deadline)?;
            drop(alone);
            let Some(reason) = refused.own else { return Ok(refused.others) };
            match left_until(deadline) {
                Ok(left) => thread::sleep(PAUSE.min(left)),
                Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, reason)),
            }
        }
    }

    /// Does what an earlier call moved aside and did not finish, then what is noted. The journal is
    /// moved aside first, so that what a plugin notes meanwhile is in the next one. Where this fails,
    /// what was done already is done again by the next call, before its ADD: that changes nothing.
    fn drain(&self, own: Option<&Attachment>, deadline: Option<Instant>) -> io::Result<Refused> {
        let journal = self.state_dir.join(DEL_JOURNAL);
        let aside = journal.with_extension("draining");
        let mut refused = Refused::default();
        if aside.exists() {
            self.do_noted(&aside, own, deadline, &mut refused)?;
        }
        match fs::rename(&journal, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(refused),
            other => other?,
        }
        // What the first file had of them is in this one.
        refused = Refused::default();
        self.do_noted(&aside, own, deadline, &mut refused)?;
        Ok(refused)
    }

    /// Does what is in a file, and removes it.
    fn do_noted(
        &self,
        file: &Path,
        own: Option<&Attachment>,
        deadline: Option<Instant>,
        refused: &mut Refused,
    ) -> io::Result<()> {
        for line in BufReader::new(File::open(file)?).split(b'\n') {
            // What is left of the file is done by the next one.
            left_until(deadline)?;
            let attachment = match serde_json::from_slice::<Attachment>(&line?) {
                Ok(attachment) => attachment,
                Err(error) => {
                    tracing::warn!(error = chain(&error), "unreadable line among noted DELs");
                    continue;
                }
            };
            tracing::info!(%attachment, "doing a DEL that was noted while no agent ran");
            if let Err(refusal) = self.del(&attachment, Duration::ZERO) {
                tracing::warn!(%attachment, reason = refusal.details, "do a noted DEL");
                append_journal(&self.state_dir, &attachment)?;
                if own == Some(&attachment) {
                    refused.own = Some(refusal.details);
                } else {
                    refused.others = true;
                }
            }
        }
        fs::remove_file(file)
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
