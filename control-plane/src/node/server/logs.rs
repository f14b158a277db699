//! A container's log: from the file that its runtime writes, line by line in the format of the CRI
//! (`TIME STREAM TAG TEXT`), to the text that `kubectl logs` shows.

use std::{
    collections::{BTreeMap, VecDeque},
    io::SeekFrom,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::{Request, Response, StatusCode, body::Frame};
use k8s_openapi::jiff::Timestamp;
use tokio::{
    fs::File,
    io::{AsyncBufReadExt, AsyncSeekExt, BufReader},
};

use super::{
    super::runtime::{Container, ContainerState, Runtime},
    Body, Refusal, Server, respond,
};

/// Between two looks at a log that is followed.
const LOOK: Duration = Duration::from_millis(200);
/// So much is sent at a time.
const CHUNK: usize = 32 * 1024;

/// What is asked of a log (`PodLogOptions`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Options {
    /// Of the container before this one.
    previous: bool,
    /// On as it grows.
    follow: bool,
    /// Each line begins with its time.
    timestamps: bool,
    /// Only the last so many lines.
    tail: Option<usize>,
    /// No more octets than this.
    limit: Option<usize>,
    /// No line that is older.
    since: Option<Timestamp>,
}

impl Options {
    fn parse(query: &str, now: Timestamp) -> Result<Self, String> {
        let all: BTreeMap<_, _> = form_urlencoded::parse(query.as_bytes()).collect();
        let flag = |name: &str| all.get(name).is_some_and(|value| matches!(&**value, "true" | "1"));
        let number = |name: &str| match all.get(name) {
            None => Ok(None),
            Some(value) => value
                .parse::<usize>()
                .map(Some)
                .map_err(|_| format!("{name} {value:?} is not a number from 0")),
        };
        let mut since = None;
        if let Some(seconds) = number("sinceSeconds")? {
            let age = Duration::from_secs(seconds as u64);
            since = now.checked_sub(age).ok();
        }
        if let Some(text) = all.get("sinceTime") {
            let time = text.parse().map_err(|_| format!("sinceTime {text:?} is not a time"))?;
            since = Some(time);
        }
        Ok(Self {
            previous: flag("previous"),
            follow: flag("follow"),
            timestamps: flag("timestamps"),
            tail: number("tailLines")?,
            limit: number("limitBytes")?,
            since,
        })
    }

    /// What is shown of a line of the file; nothing of one that is too old or no line at all.
    fn shown<'a>(&self, line: &'a [u8], into: &mut Vec<u8>) -> Option<&'a [u8]> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut parts = line.splitn(4, |&octet| octet == b' ');
        let (time, _stream, tag, text) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next().unwrap_or_default());
        let time_text = std::str::from_utf8(time).ok()?;
        if let Some(since) = self.since
            && time_text.parse::<Timestamp>().ok()? < since
        {
            return None;
        }
        if self.timestamps {
            into.extend_from_slice(time);
            into.push(b' ');
        }
        into.extend_from_slice(text);
        // A part of a line goes on with the next.
        if tag.first() != Some(&b'P') {
            into.push(b'\n');
        }
        Some(text)
    }
}

impl<R: Runtime> Server<R> {
    /// Answers with a container's log.
    pub(super) async fn logs<B>(
        &self,
        request: &Request<B>,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<Response<Body>, Refusal> {
        let query = request.uri().query().unwrap_or_default();
        let options = Options::parse(query, Timestamp::now())
            .map_err(|message| Refusal(StatusCode::BAD_REQUEST, message))?;
        let (uid, containers) = self.containers(namespace, pod, container).await?;
        let Some(chosen) = containers.get(usize::from(options.previous)).cloned() else {
            let message =
                format!("previous terminated container {container:?} in pod {pod:?} not found");
            return Err(Refusal(StatusCode::BAD_REQUEST, message));
        };
        let folder = self.logs.join(format!("{namespace}_{pod}_{uid}")).join(container);
        let path = folder.join(format!("{}.log", chosen.attempt));
        let mut log = Log::open(path, options).await.map_err(|error| {
            let message = format!("the log of container {container:?} cannot be read: {error}");
            Refusal(StatusCode::NOT_FOUND, message)
        })?;
        let runtime = Arc::clone(&self.runtime);
        let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(4);
        tokio::spawn(async move {
            loop {
                // Who follows a container that says nothing may leave all the same.
                let chunk = tokio::select! {
                    chunk = log.next(&*runtime, &chosen) => chunk,
                    () = sender.closed() => return,
                };
                let Some(chunk) = chunk else { return };
                if sender.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        let chunks = futures::stream::unfold(receiver, async |mut receiver| {
            let chunk = receiver.recv().await?;
            Some((Ok(Frame::data(chunk)), receiver))
        });
        Ok(respond(StatusCode::OK, StreamBody::new(chunks).boxed_unsync()))
    }
}

/// A log that is being read.
struct Log {
    path: PathBuf,
    options: Options,
    reader: BufReader<File>,
    inode: u64,
    /// Another file was seen in its place.
    replaced: bool,
    /// A line that is not written to its end yet.
    pending: Vec<u8>,
    sent: usize,
}

impl Log {
    async fn open(path: PathBuf, options: Options) -> std::io::Result<Self> {
        let (mut reader, inode) = open(&path).await?;
        if let Some(lines) = options.tail {
            let from = start_of_last(&mut reader, lines).await?;
            reader.seek(SeekFrom::Start(from)).await?;
        }
        let (replaced, pending, sent) = (false, Vec::new(), 0);
        Ok(Self { path, options, reader, inode, replaced, pending, sent })
    }

    /// The next part; nothing at the end.
    async fn next<R: Runtime>(&mut self, runtime: &R, container: &Container) -> Option<Bytes> {
        let mut ended = !self.options.follow;
        loop {
            let chunk = self.read().await?;
            if !chunk.is_empty() {
                return Some(chunk);
            }
            if ended && !self.replaced {
                return None;
            }
            // Looked at before the log is read once more: nothing that it wrote is missed.
            ended = !runs(runtime, container).await;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What there is now, no more than may be sent: empty where there is nothing new, nothing where
    /// all is sent that may be. A log that has grown too large is moved away and begun anew: the old
    /// one is read to its end first, once more when the new one was seen, for its writer may have
    /// made that and not turned to it yet.
    async fn read(&mut self) -> Option<Bytes> {
        let left = self.options.limit.map_or(usize::MAX, |limit| limit.saturating_sub(self.sent));
        if left == 0 {
            return None;
        }
        let is_replaced = self.options.follow && self.is_replaced().await;
        let was_replaced = std::mem::replace(&mut self.replaced, is_replaced);
        let mut chunk = Vec::new();
        let at_end = self.fill(&mut chunk).await?;
        if at_end && was_replaced && is_replaced {
            self.reopen().await;
            self.fill(&mut chunk).await?;
        }
        chunk.truncate(left);
        self.sent += chunk.len();
        Some(chunk.into())
    }

    /// Reads whole lines up to the size of a chunk. True where there are no more for now.
    async fn fill(&mut self, chunk: &mut Vec<u8>) -> Option<bool> {
        while chunk.len() < CHUNK {
            if self.reader.read_until(b'\n', &mut self.pending).await.ok()? == 0 {
                return Some(true);
            }
            if self.pending.last() != Some(&b'\n') {
                return Some(true);
            }
            self.options.shown(&self.pending, chunk);
            self.pending.clear();
        }
        Some(false)
    }

    /// Whether there is another file in its place.
    async fn is_replaced(&self) -> bool {
        let now = tokio::fs::metadata(&self.path).await;
        now.is_ok_and(|meta| meta.ino() != self.inode)
    }

    /// Goes on with the file that is in its place.
    async fn reopen(&mut self) {
        if let Ok((reader, inode)) = open(&self.path).await {
            (self.reader, self.inode, self.replaced) = (reader, inode, false);
            // A line that nobody wrote to its end is no beginning of another.
            self.pending.clear();
        }
    }
}

async fn open(path: &Path) -> std::io::Result<(BufReader<File>, u64)> {
    let file = File::open(path).await?;
    let inode = file.metadata().await?.ino();
    Ok((BufReader::new(file), inode))
}

async fn runs<R: Runtime>(runtime: &R, container: &Container) -> bool {
    match runtime.containers(&container.sandbox).await {
        Ok(all) => all.iter().any(|one| {
            one.id == container.id && !matches!(one.state, ContainerState::Exited { .. })
        }),
        // Nobody knows: the runtime is away for a moment.
        Err(_) => true,
    }
}

/// Where the last `lines` lines begin, parts of a line counting as one.
async fn start_of_last(reader: &mut BufReader<File>, lines: usize) -> std::io::Result<u64> {
    let mut starts = VecDeque::new();
    let (mut position, mut begins) = (0, true);
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line).await? as u64;
        if length == 0 {
            return Ok(starts.front().copied().unwrap_or(position));
        }
        if begins {
            starts.push_back(position);
            if starts.len() > lines {
                starts.pop_front();
            }
        }
        begins = line.splitn(4, |&octet| octet == b' ').nth(2) != Some(b"P");
        position += length;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const TEXT: &str = "2026-11-29T20:00:00Z stdout F one\n\
                        2026-11-29T20:00:01Z stderr P tw\n\
                        2026-11-29T20:00:02Z stderr F o\n\
                        2026-11-29T20:00:03Z stdout F \n\
                        2026-11-29T20:00:04Z stdout F three four\n\
                        2026-11-29T20:00:05Z stdout F not to its e";

    fn now() -> Timestamp {
        "2026-11-29T20:00:06Z".parse().unwrap()
    }

    async fn shown(query: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, TEXT).unwrap();
        let options = Options::parse(query, now()).unwrap();
        read(&mut Log::open(path, options).await.unwrap()).await
    }

    /// What is new in the log.
    async fn read(log: &mut Log) -> String {
        let chunk = log.read().await.unwrap_or_default();
        String::from_utf8(chunk.into()).unwrap()
    }

    /// Appends a line.
    fn write(path: &Path, text: &str) {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        writeln!(file, "2026-11-29T20:00:00Z stdout F {text}").unwrap();
    }

    #[tokio::test]
    async fn a_log_that_is_followed_loses_nothing_when_it_is_moved_away() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("0.log"), dir.path().join("0.log.1"));
        write(&path, "one");
        let options = Options::parse("follow=true", now()).unwrap();
        let mut log = Log::open(path.clone(), options).await.unwrap();
        assert_eq!(read(&mut log).await, "one\n");
        // Until its runtime opens the new file, the container goes on writing to the old one.
        write(&path, "two");
        std::fs::rename(&path, &old).unwrap();
        write(&old, "three");
        assert_eq!(read(&mut log).await, "two\nthree\n");
        write(&old, "four");
        write(&path, "five");
        assert_eq!(read(&mut log).await, "four\n", "and the new one is there");
        write(&old, "late");
        assert_eq!(read(&mut log).await, "late\nfive\n");
        assert_eq!(read(&mut log).await, "");
    }

    #[tokio::test]
    async fn no_more_than_the_limit_is_sent_of_a_log_that_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        write(&path, "one");
        let options = Options::parse("follow=true&limitBytes=6", now()).unwrap();
        let mut log = Log::open(path.clone(), options).await.unwrap();
        assert_eq!(read(&mut log).await, "one\n");
        assert_eq!(read(&mut log).await, "");
        write(&path, "two");
        assert_eq!(read(&mut log).await, "tw");
        assert_eq!(log.read().await, None, "all is sent that may be");
    }

    #[tokio::test]
    async fn whole_lines_are_shown_as_they_were_written() {
        assert_eq!(shown("").await, "one\ntwo\n\nthree four\n");
    }

    #[tokio::test]
    async fn lines_are_chosen_by_number_and_time() {
        assert_eq!(shown("tailLines=2").await, "three four\n", "the last is not whole yet");
        assert_eq!(shown("tailLines=4").await, "two\n\nthree four\n");
        assert_eq!(shown("tailLines=100").await, shown("").await);
        assert_eq!(shown("tailLines=0").await, "");
        assert_eq!(shown("sinceSeconds=3").await, "\nthree four\n");
        assert_eq!(shown("sinceTime=2026-11-29T20:00:04Z").await, "three four\n");
        let stamped = shown("timestamps=1&sinceSeconds=2").await;
        assert_eq!(stamped, "2026-11-29T20:00:04Z three four\n");
    }

    #[test]
    fn odd_options_are_refused_by_name() {
        for (query, name) in [
            ("tailLines=-1", "tailLines"),
            ("limitBytes=x", "limitBytes"),
            ("sinceSeconds=1.5", "sinceSeconds"),
            ("sinceTime=yesterday", "sinceTime"),
        ] {
            let error = Options::parse(query, now()).unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
    }
}
