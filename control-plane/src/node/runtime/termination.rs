//! What a container says of its end (`terminationMessagePath`): a file of its own, mounted where it
//! wants to write it; where it left that empty and failed, the end of its log, if it wants that.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use anyhow::Context;

/// Octets of a message that count, the last ones (as in the kubelet).
const MESSAGE_MAX: u64 = 4_096;
/// Octets and lines of a log that stand for one.
const LOG_MAX: usize = 2_048;
/// See [`LOG_MAX`].
const LOG_LINES: usize = 80;
/// How much of a log is read for that: each line has a time and more before it.
const LOG_READ: u64 = 16 << 10;

/// Makes the file, which any user of a container may write to. One that is there stays.
pub(super) fn make(path: &Path) -> anyhow::Result<()> {
    let make = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = File::options().create(true).append(true).mode(0o666).open(path)?;
        // Whatever our own mask is.
        file.set_permissions(Permissions::from_mode(0o666))
    };
    make().with_context(|| format!("making {}", path.display()))
}

/// The message of a container that ended. `log` is where it may be taken from the log.
pub(super) fn message(path: &Path, log: Option<&Path>) -> Option<String> {
    let said = end_of(path, MESSAGE_MAX).unwrap_or_default();
    if !said.is_empty() {
        return Some(String::from_utf8_lossy(&said).into_owned());
    }
    let text = end_of_log(&end_of(log?, LOG_READ).ok()?);
    (!text.is_empty()).then_some(text)
}

/// The last octets of a regular file; the container may have made anything of it.
fn end_of(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    let status = file.metadata()?;
    if !status.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    file.seek(SeekFrom::Start(status.len().saturating_sub(most)))?;
    let mut octets = Vec::new();
    file.take(most).read_to_end(&mut octets)?;
    Ok(octets)
}

/// What a container wrote, from the end of its log: `<time> <stream> <F or P> <text>` in each line, P
/// where the line goes on.
fn end_of_log(log: &[u8]) -> String {
    let lines: Vec<&[u8]> = log.split_inclusive(|octet| *octet == b'\n').collect();
    let mut text = Vec::new();
    for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
        let mut fields = line.splitn(4, |octet| *octet == b' ').skip(2);
        // The first may be the end of a line that is cut.
        let (Some(tag), Some(said)) = (fields.next(), fields.next()) else { continue };
        match tag.first() {
            Some(b'P') => text.extend_from_slice(said.strip_suffix(b"\n").unwrap_or(said)),
            Some(b'F') => text.extend_from_slice(said),
            _ => {}
        }
    }
    let text = &text[text.len().saturating_sub(LOG_MAX)..];
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_file_counts_before_the_log_and_its_end_before_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let (path, log) = (dir.path().join("termination/main-0"), dir.path().join("log"));
        make(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        assert_eq!(message(&path, None), None);
        assert_eq!(message(&path, Some(&log)), None, "there is no log either");
        let lines = "2026-11-30T00:00:00Z stdout F first\n\
                     2026-11-30T00:00:01Z stderr P half and \n\
                     2026-11-30T00:00:01Z stderr F half\n";
        fs::write(&log, lines).unwrap();
        assert_eq!(message(&path, Some(&log)).unwrap(), "first\nhalf and half\n");
        fs::write(&path, format!("{}end", "x".repeat(5_000))).unwrap();
        let said = message(&path, Some(&log)).unwrap();
        assert!(said.len() == 4_096 && said.ends_with("xend"), "{said}");
        make(&path).unwrap();
        assert_eq!(message(&path, None), Some(said), "one that is there stays");
    }

    #[test]
    fn of_a_log_the_last_lines_are_shown() {
        let line = |number: usize| format!("2026-11-30T00:00:00Z stdout F line {number}\n");
        let text = end_of_log((0..100).map(line).collect::<String>().as_bytes());
        assert!(text.starts_with("line 20\n") && text.ends_with("line 99\n"), "{text}");
        let long = format!("2026-11-30T00:00:00Z stdout F {}\n", "y".repeat(3_000));
        assert_eq!(end_of_log(long.as_bytes()).len(), 2_048);
        assert_eq!(end_of_log(b"cut off\n"), "");
    }

    /// A container may put a link there to what the node part can read and it can't.
    #[test]
    fn what_is_no_file_any_more_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("main-0");
        symlink("/proc/self/environ", &path).unwrap();
        assert_eq!(message(&path, None), None);
    }
}
