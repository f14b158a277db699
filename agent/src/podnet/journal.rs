//! What survives the agent: who has which address, as records appended to a file.
//!
//! One JSON record per line. The file is keyed by the boot: after a reboot no link exists and no
//! address is taken, whatever the file says. A last line that was cut off by a crash is a record
//! that nobody was told of, and is dropped. On tmpfs there is nothing to sync.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use mizzen_cni::wire::{Attachment, Pod, Requested};
use serde::{Deserialize, Serialize};

use super::netns::NetnsId;
use crate::model::node::Cidr;

/// Version of the records.
const VERSION: u32 = 1;
/// The file is rewritten when it holds this many records more than it has to.
const SLACK: usize = 1024;

/// How far an attachment has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It has addresses; its link is being made. Nobody was told of it yet.
    Reserved,
    /// ADD has answered.
    Live,
    /// It is being unmade; what a failure leaves is unmade later.
    Leaving,
}

/// What we know of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The CNI network's name.
    pub network: String,
    /// Whose it is.
    pub pod: Pod,
    /// The pod's namespace.
    pub netns: NetnsId,
    /// The number of that namespace, which the kernel gives to no other (`SO_NETNS_COOKIE`); `None`
    /// where it has none, or an earlier agent did not ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_cookie: Option<u64>,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Of the link, in bytes.
    pub mtu: u32,
    /// How far it has come.
    pub phase: Phase,
    /// What the runtime asked for.
    #[serde(default, skip_serializing_if = "Requested::is_empty")]
    pub requested: Requested,
    /// Which of the attachments of this boot it is, counted from 1: the later ones of two are those
    /// with the greater number.
    #[serde(default)]
    pub serial: u64,
    /// When it became live, by [`mizzen_cni::wire::uptime`]; `None` where it is not, or an earlier
    /// agent did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub born: Option<u64>,
    /// Index of the host's end while this agent runs; 0: not known.
    #[serde(skip)]
    pub ifindex: u32,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "lowercase")]
pub enum Record {
    /// The first line: which boot the rest is about.
    Boot {
        /// [`VERSION`].
        version: u32,
        /// `/proc/sys/kernel/random/boot_id`.
        boot: String,
    },
    /// The node's `podCIDRs`, for a start without an API server.
    Ranges {
        /// As text.
        ranges: Vec<String>,
    },
    /// An attachment is there.
    Attached {
        /// Which.
        attachment: Attachment,
        /// What is known of it.
        entry: Box<Entry>,
    },
    /// It went on.
    Phase {
        /// Which.
        attachment: Attachment,
        /// How far.
        phase: Phase,
        /// See [`Entry::born`]; said of one that becomes live.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        born: Option<u64>,
    },
    /// It is gone and its addresses are free.
    Released {
        /// Which.
        attachment: Attachment,
    },
    /// What is left of such records when the file is written anew: addresses that became free not
    /// long before.
    Freed {
        /// In the order in which they became free.
        addresses: Vec<IpAddr>,
    },
}

/// What the records add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// The node's ranges, as last known.
    pub ranges: Vec<Cidr>,
    /// All attachments.
    pub entries: BTreeMap<Attachment, Entry>,
    /// Addresses that became free, and are with nobody now.
    pub freed: Vec<IpAddr>,
    /// Lines that could not be read.
    pub unreadable: usize,
}

impl Replayed {
    /// Adds up the lines of a journal of this boot; one of another boot adds up to nothing.
    pub fn from_lines(bytes: &[u8], boot: &str) -> Self {
        let mut state = Self::default();
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
        let first = lines.next().map(serde_json::from_slice::<Record>);
        match first {
            Some(Ok(Record::Boot { version: VERSION, boot: written })) if written == boot => {}
            _ => return state,
        }
        for line in lines {
            match serde_json::from_slice(line) {
                Ok(record) if line.ends_with(b"\n") => state.apply(record),
                _ => state.unreadable += 1,
            }
        }
        let mut known: BTreeSet<IpAddr> =
            state.entries.values().flat_map(|entry| entry.addresses.iter().copied()).collect();
        // Of one that became free more than once the last time counts.
        state.freed.reverse();
        state.freed.retain(|address| known.insert(*address));
        state.freed.reverse();
        state
    }

    /// What one record changes. The running agent's state changes by the same function.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Boot { .. } => {}
            Record::Ranges { ranges } => {
                self.ranges = ranges.iter().filter_map(|text| text.parse().ok()).collect();
            }
            Record::Attached { attachment, entry } => {
                self.entries.insert(attachment, *entry);
            }
            Record::Phase { attachment, phase, born } => {
                if let Some(entry) = self.entries.get_mut(&attachment) {
                    entry.phase = phase;
                    entry.born = born.or(entry.born);
                }
            }
            Record::Released { attachment } => {
                let entry = self.entries.remove(&attachment);
                self.freed.extend(entry.into_iter().flat_map(|entry| entry.addresses));
            }
            Record::Freed { addresses } => self.freed.extend(addresses),
        }
    }

    /// The fewest records that add up to this.
    fn records(&self) -> impl Iterator<Item = Record> {
        let ranges = self.ranges.iter().map(ToString::to_string).collect();
        let attached = self.entries.iter().map(|(attachment, entry)| Record::Attached {
            attachment: attachment.clone(),
            entry: Box::new(entry.clone()),
        });
        let freed =
            (!self.freed.is_empty()).then(|| Record::Freed { addresses: self.freed.clone() });
        std::iter::once(Record::Ranges { ranges }).chain(freed).chain(attached)
    }
}

/// The open file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    boot: String,
    file: File,
    records: usize,
}

impl Journal {
    /// Reads what an earlier agent left at `path`, and starts the file anew with what counts.
    pub fn open(path: &Path, boot: &str) -> io::Result<(Self, Replayed)> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other?,
        };
        let state = Replayed::from_lines(&bytes, boot);
        let (file, records) = write_anew(path, boot, &state)?;
        Ok((Self { path: path.to_owned(), boot: boot.to_owned(), file, records }, state))
    }

    /// Whether the next record has the file written anew.
    pub fn is_long(&self, before: &Replayed) -> bool {
        self.records > SLACK + 2 * before.entries.len()
    }

    /// Appends a record to those that add up to `before`, from which the file is rewritten when it
    /// has grown too long. After an error the record is not in the file.
    pub fn append(&mut self, record: &Record, before: &Replayed) -> io::Result<()> {
        if self.is_long(before) {
            (self.file, self.records) = write_anew(&self.path, &self.boot, before)?;
        }
        let length = self.file.metadata()?.len();
        self.file.write_all(&line(record)?).inspect_err(|_| {
            // Half a line would spoil the next one as well.
            if let Err(error) = self.file.set_len(length) {
                tracing::warn!(%error, "cut the journal back after a failed write");
            }
        })?;
        self.records += 1;
        Ok(())
    }

    /// Goes on in another file, and gives the former one.
    #[cfg(test)]
    pub(super) fn exchange_file(&mut self, file: File) -> File {
        std::mem::replace(&mut self.file, file)
    }
}

fn write_anew(path: &Path, boot: &str, state: &Replayed) -> io::Result<(File, usize)> {
    let boot = Record::Boot { version: VERSION, boot: boot.to_owned() };
    let mut bytes = Vec::new();
    let mut records = 0;
    for record in std::iter::once(boot).chain(state.records()) {
        bytes.extend(line(&record)?);
        records += 1;
    }
    let temporary = path.with_extension("tmp");
    let options = || {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        options
    };
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = options().open(&temporary)?;
    file.write_all(&bytes)?;
    fs::rename(&temporary, path)?;
    Ok((file, records))
}

fn line(record: &Record) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests;
