//! The log of the control plane's store, as it may stand on a disk.

use std::path::Path;

use futures::FutureExt as _;
use mizzen_control_plane::store::{self, Embedded, Options, Store as _};

/// The first four octets of a frame.
const MAGIC: &[u8; 4] = b"MZF1";

/// A log of frames: before each stand four octets in which its length is, and one that says whether
/// its checksums are right, without which nothing but the checksums would be read.
///
/// # Panics
///
/// Where what was read once is not read again.
pub(crate) fn log(octets: &[u8]) {
    let Ok(folder) = tempfile::tempdir() else { return };
    let first = folder.path().join(format!("{:020}.log", 1));
    std::fs::write(&first, frames(octets)).expect("write a log to a folder for it");
    let Some(revision) = open(folder.path()) else { return };
    assert_eq!(open(folder.path()), Some(revision), "what was cut off stays so");
}

fn open(folder: &Path) -> Option<u64> {
    let store = Embedded::open(folder, &Options::default()).ok()?;
    store.revision().now_or_never()?.ok()
}

fn frames(mut octets: &[u8]) -> Vec<u8> {
    let mut log = Vec::new();
    while let Some(([flags, length, revision], rest)) = octets.split_first_chunk() {
        let (payload, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        let mut frame = MAGIC.to_vec();
        frame.extend(u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        frame.extend(u64::from(*revision).to_le_bytes());
        frame.extend(store::checksum(payload).to_le_bytes());
        let mut header = store::checksum(&frame);
        // One of eight is damaged.
        header ^= u32::from(flags & 7 == 7);
        frame.extend(header.to_le_bytes());
        frame.extend(payload);
        if flags & 0x38 == 0x38 {
            frame.truncate(frame.len() - 1);
        }
        log.extend(frame);
        octets = rest;
    }
    log
}

/// Two changes in frames of their own, and what removes one of them again.
pub(crate) fn logs() -> Vec<Vec<u8>> {
    let record = |modified: u64, key: &str, value: Option<&str>| {
        let length = |text: &str| u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes();
        let mut record = 1_u64.to_le_bytes().to_vec();
        record.extend(modified.to_le_bytes());
        record.push(u8::from(value.is_some()));
        record.extend(length(key));
        record.extend(key.as_bytes());
        if let Some(value) = value {
            record.extend(length(value));
            record.extend(value.as_bytes());
        }
        record
    };
    let framed = |revision: u8, payload: Vec<u8>| {
        let length = u8::try_from(payload.len()).unwrap_or(u8::MAX);
        [vec![0, length, revision], payload].concat()
    };
    let one = framed(1, record(1, "/a/b/c", Some("{}")));
    let two = framed(2, [record(2, "/a/b/d", Some("{}")), record(3, "/a/b/c", None)].concat());
    vec![one.clone(), [one, two].concat()]
}
