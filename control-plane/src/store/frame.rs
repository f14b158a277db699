//! Frames: what the log and snapshots are made of.
//!
//! ```text
//! magic     u32  "MZF1"
//! length    u32  of the payload, in bytes
//! revision  u64  of the first change in the payload
//! payload   u32  CRC-32C of the payload
//! header    u32  CRC-32C of the 20 bytes above
//! payload
//! ```
//! Numbers are little-endian. The header has a checksum of its own, so that a damaged length is
//! told apart from a frame whose writing was cut off.

use std::io::{self, Read};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Key, Revision};

const MAGIC: u32 = u32::from_le_bytes(*b"MZF1");
/// Bytes of a frame's header.
pub(super) const HEADER: usize = 24;

/// One key's change, or one key's state in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The key.
    pub(super) key: Key,
    /// Revision at which the key was created.
    pub(super) created: Revision,
    /// Revision of the change.
    pub(super) modified: Revision,
    /// The value; `None` if the change removed the key.
    pub(super) value: Option<Bytes>,
}

/// Appends a record to a payload.
pub(super) fn put(record: &Record, payload: &mut BytesMut) {
    let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    payload.put_u64_le(record.created);
    payload.put_u64_le(record.modified);
    payload.put_u8(u8::from(record.value.is_some()));
    payload.put_u32_le(length(record.key.len()));
    payload.put_slice(record.key.as_bytes());
    if let Some(value) = &record.value {
        payload.put_u32_le(length(value.len()));
        payload.put_slice(value);
    }
}

/// Takes the next record of a payload. `None` if what is there is none.
pub(super) fn take(payload: &mut Bytes) -> Option<Record> {
    let created = payload.try_get_u64_le().ok()?;
    let modified = payload.try_get_u64_le().ok()?;
    let holds_value = payload.try_get_u8().ok()? == 1;
    let key = std::str::from_utf8(&text(payload)?).ok()?.into();
    // A copy: a slice would keep the whole file in memory for as long as the value lives.
    let value = if holds_value { Some(Bytes::copy_from_slice(&text(payload)?)) } else { None };
    Some(Record { key, created, modified, value })
}

fn text(payload: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(payload.try_get_u32_le().ok()?).ok()?;
    (length <= payload.remaining()).then(|| payload.split_to(length))
}

/// A whole frame around a payload.
pub(super) fn frame(revision: Revision, payload: &[u8]) -> BytesMut {
    let mut out = BytesMut::with_capacity(HEADER + payload.len());
    out.put_u32_le(MAGIC);
    out.put_u32_le(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    out.put_u64_le(revision);
    out.put_u32_le(crc(payload));
    let header = crc(&out);
    out.put_u32_le(header);
    out.put_slice(payload);
    out
}

/// What stands at a place where a frame should begin.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A frame: the revision of its header, and its payload.
    Frame(Revision, Bytes),
    /// The end of the file.
    End,
    /// No frame, or not all of it.
    Broken(&'static str),
}

/// Reads the frame at `offset`.
pub(super) fn read(file: &Bytes, offset: usize) -> Found {
    let rest = file.slice(offset.min(file.len())..);
    if rest.is_empty() {
        return Found::End;
    }
    let Some((length, revision, sum)) = header(&rest) else {
        return Found::Broken("its header has no valid checksum");
    };
    let payload = rest.slice(HEADER..);
    if payload.len() < length {
        return Found::Broken("it is cut off");
    }
    let payload = payload.slice(..length);
    if crc(&payload) == sum {
        Found::Frame(revision, payload)
    } else {
        Found::Broken("its checksum is wrong")
    }
}

/// Reads the next frame of a file that is not held in memory as a whole.
pub(super) fn next(file: &mut impl Read) -> io::Result<Found> {
    let mut frame = Vec::with_capacity(HEADER);
    file.by_ref().take(count(HEADER)).read_to_end(&mut frame)?;
    let Some((length, ..)) = header(&frame) else { return Ok(read(&frame.into(), 0)) };
    file.by_ref().take(count(length)).read_to_end(&mut frame)?;
    Ok(read(&frame.into(), 0))
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn header(bytes: &[u8]) -> Option<(usize, Revision, u32)> {
    let mut header = bytes.get(..HEADER)?;
    let sum = crc(&header[..HEADER - 4]);
    let magic = header.get_u32_le();
    let length = usize::try_from(header.get_u32_le()).ok()?;
    let (revision, payload_sum) = (header.get_u64_le(), header.get_u32_le());
    (magic == MAGIC && header.get_u32_le() == sum).then_some((length, revision, payload_sum))
}

/// Whether a whole header stands anywhere after `offset`: then what is broken at `offset` was not
/// the last thing written.
pub(super) fn follows(file: &Bytes, offset: usize) -> bool {
    let start = (offset + 1).min(file.len());
    file[start..]
        .windows(HEADER)
        .any(|window| window.starts_with(&MAGIC.to_le_bytes()) && header(window).is_some())
}

/// CRC-32C (Castagnoli), as in RFC 3720 appendix B.4.
pub(super) fn crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_crc_32c() {
        // RFC 3720 B.4.
        assert_eq!(crc(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let record = Record {
            key: "a/b/c".into(),
            created: 3,
            modified: 4,
            value: Some(Bytes::from("value")),
        };
        let mut payload = BytesMut::new();
        put(&record, &mut payload);
        let good = frame(4, &payload);
        let Found::Frame(4, mut payload) = read(&good.clone().freeze(), 0) else {
            panic!("no frame")
        };
        assert_eq!(take(&mut payload), Some(record));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(read(&bad.freeze(), 0), Found::Broken(_)), "bit {bit}");
        }
    }
}
