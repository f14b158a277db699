//! DELs that the plugin noted while no agent was there.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    sync::PoisonError,
    time::Duration,
};

use mizzen_cni::wire::{Attachment, DEL_JOURNAL};

use super::pods::{Pods, chain};

/// A call that is at work on the same attachment ends before this.
const LIMIT: Duration = Duration::from_secs(8);

impl Pods {
    /// Does all that is noted in the state folder. The file is moved aside first, so that what a
    /// plugin notes meanwhile is in the next one; a file that an earlier agent moved and did not
    /// finish is done again, which changes nothing. A note that comes into the file after it was read
    /// is lost, and its pod is released when its namespace goes, which [`Pods::reconcile`] finds.
    ///
    /// Every ADD does this first: a DEL of the same attachment that was noted before comes before it,
    /// and not some time after.
    pub(super) fn drain_noted(&self) -> io::Result<()> {
        let journal = self.state_dir.join(DEL_JOURNAL);
        let aside = journal.with_extension("draining");
        if !journal.exists() && !aside.exists() {
            return Ok(());
        }
        let _alone = self.draining.lock().unwrap_or_else(PoisonError::into_inner);
        if !aside.exists() {
            match fs::rename(&journal, &aside) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            }
        }
        for line in BufReader::new(File::open(&aside)?).split(b'\n') {
            match serde_json::from_slice::<Attachment>(&line?) {
                Ok(attachment) => {
                    tracing::info!(%attachment, "doing a DEL that was noted while no agent ran");
                    if let Err(refusal) = self.del(&attachment, LIMIT) {
                        tracing::warn!(%attachment, reason = refusal.details, "do a noted DEL");
                    }
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), "unreadable line among noted DELs");
                }
            }
        }
        fs::remove_file(&aside)
    }
}
