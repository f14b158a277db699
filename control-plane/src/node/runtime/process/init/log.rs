//! A container's log, in the format that runtimes and kubelet agree on (CRI): each line is
//! `TIME STREAM TAG TEXT` with the tag `F` for a whole line and `P` for a part of one.
//!
//! Bounded: past its size the file becomes `FILE.1`, in place of the one before.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use k8s_openapi::jiff::Timestamp;

/// A longer line is written in parts, as container runtimes do.
const LINE_MAX: usize = 16 * 1024;

/// Which output a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// The log of one container. What cannot be written is lost: a full disk stops no container.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    size_max: u64,
    size: u64,
    file: Option<File>,
}

impl Log {
    /// A log that is appended to.
    pub(super) fn open(path: &Path, size_max: u64) -> Self {
        let mut log = Self { path: path.to_owned(), size_max, size: 0, file: None };
        log.reopen();
        log
    }

    fn reopen(&mut self) {
        self.file = OpenOptions::new().create(true).append(true).open(&self.path).ok();
        self.size = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |m| m.len());
    }

    /// Writes the whole lines of `pending` and leaves the rest; at the `end` also the rest.
    pub(super) fn write(&mut self, stream: Stream, pending: &mut Vec<u8>, end: bool) {
        let now = Timestamp::now();
        let mut text = Vec::new();
        let mut rest = pending.as_slice();
        while !rest.is_empty() {
            let line = rest.iter().take(LINE_MAX).position(|&byte| byte == b'\n');
            let (part, tag, skip) = match line {
                Some(length) => (&rest[..length], 'F', length + 1),
                None if rest.len() >= LINE_MAX => (&rest[..LINE_MAX], 'P', LINE_MAX),
                None if end => (rest, 'F', rest.len()),
                None => break,
            };
            let stream = match stream {
                Stream::Stdout => "stdout",
                Stream::Stderr => "stderr",
            };
            text.extend_from_slice(format!("{now:.9} {stream} {tag} ").as_bytes());
            text.extend_from_slice(part);
            text.push(b'\n');
            rest = &rest[skip..];
        }
        *pending = rest.to_vec();
        self.append(&text);
    }

    fn append(&mut self, text: &[u8]) {
        if self.size > 0 && self.size + text.len() as u64 > self.size_max {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            let _kept_or_lost = std::fs::rename(&self.path, old);
            self.reopen();
        }
        if let Some(file) = &mut self.file
            && file.write_all(text).is_ok()
        {
            self.size += text.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn whole_lines_are_written_and_the_rest_waits_for_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path, 1 << 20);
        let mut pending = b"one\ntwo\nthr".to_vec();
        log.write(Stream::Stdout, &mut pending, false);
        assert_eq!(pending, b"thr");
        assert_eq!(lines(&path), ["stdout F one", "stdout F two"]);
        log.write(Stream::Stderr, &mut pending, true);
        assert_eq!(lines(&path)[2], "stderr F thr");
        assert!(pending.is_empty());
    }

    #[test]
    fn a_long_line_is_written_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut pending = vec![b'x'; LINE_MAX + 3];
        pending.push(b'\n');
        Log::open(&path, 1 << 20).write(Stream::Stdout, &mut pending, false);
        let lines = lines(&path);
        assert_eq!(lines[0], format!("stdout P {}", "x".repeat(LINE_MAX)));
        assert_eq!(lines[1], "stdout F xxx");
    }

    #[test]
    fn the_log_is_bounded_by_twice_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path, 200);
        for number in 0..50 {
            log.write(Stream::Stdout, &mut format!("line {number}\n").into_bytes(), false);
        }
        let total: u64 = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .sum();
        assert!(total <= 400, "{total}");
        assert_eq!(lines(&path).last().unwrap(), "stdout F line 49");
    }
}
