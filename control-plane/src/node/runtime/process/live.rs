//! A sandbox that runs: the node part's connection to its init, and what init said last.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    sync::watch,
};

use super::{
    pidfd::Pidfd,
    wire::{LINE_MAX, Process, Reply, Request, SOCKET},
};

/// Init answers everything but executed commands at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two attempts at watching an init that lives but dropped us.
const RECONNECT: Duration = Duration::from_millis(200);

/// Init could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum InitError {
    /// No connection, or it broke.
    #[error("talking to the sandbox's init")]
    Io(#[from] io::Error),
    /// No answer in time.
    #[error("the sandbox's init did not answer in time")]
    Timeout,
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// What is known of a sandbox, replaced whole.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// Grows with every change.
    pub revision: u64,
    /// When init ended, where it did.
    pub ended_at: Option<Timestamp>,
    /// The processes of the containers. `None` until init was heard.
    pub processes: Option<Vec<Process>>,
}

/// A running sandbox.
#[derive(Debug)]
pub(super) struct Live {
    dir: PathBuf,
    /// The folder, opened: its number makes an address for the socket that is never too long.
    folder: File,
    process: Pidfd,
    view: watch::Sender<View>,
    changes: watch::Sender<u64>,
}

impl Live {
    /// Takes up the sandbox in `dir` with its init. [`Self::follow`] has to be run.
    pub(super) fn new(dir: &Path, process: Pidfd) -> io::Result<Arc<Self>> {
        let (view, _) = watch::channel(View::default());
        let (changes, _) = watch::channel(0);
        let folder = File::open(dir)?;
        Ok(Arc::new(Self { dir: dir.to_owned(), folder, process, view, changes }))
    }

    /// What is known.
    pub(super) fn view(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// The number of the last change.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Init has not ended.
    pub(super) fn alive(&self) -> bool {
        self.view.borrow().ended_at.is_none()
    }

    /// Keeps the view up to date until init ends.
    pub(super) async fn follow(self: Arc<Self>) {
        loop {
            tokio::select! {
                ended = self.process.ended() => {
                    if let Err(error) = ended {
                        tracing::warn!(dir = %self.dir.display(), %error, "init is not watched");
                    }
                    self.update(|view| view.ended_at = Some(Timestamp::now()));
                    return;
                }
                outcome = self.watch() => {
                    tracing::debug!(dir = %self.dir.display(), ?outcome, "init went silent");
                    tokio::time::sleep(RECONNECT).await;
                }
            }
        }
    }

    /// Takes in what init says until the connection ends.
    async fn watch(&self) -> Result<(), InitError> {
        let mut stream = self.connect().await?;
        send(&mut stream, &Request::Watch).await?;
        let mut reader = BufReader::new(stream);
        loop {
            if let Reply::Processes { processes } = receive(&mut reader).await? {
                self.update(|view| view.processes = Some(processes));
            }
        }
    }

    fn update(&self, change: impl FnOnce(&mut View)) {
        let mut revision = 0;
        self.view.send_modify(|view| {
            change(view);
            view.revision += 1;
            revision = view.revision;
        });
        self.changes.send_replace(revision);
    }

    /// Waits until init was heard once, or is gone.
    pub(super) async fn heard(&self) {
        let mut view = self.view();
        let known = view.wait_for(|view| view.processes.is_some() || view.ended_at.is_some());
        let _known_or_late = tokio::time::timeout(ANSWER_TIMEOUT, known).await;
    }

    /// Asks init, and waits for its answer a short time.
    pub(super) async fn ask(&self, request: &Request) -> Result<Reply, InitError> {
        self.ask_within(request, ANSWER_TIMEOUT).await
    }

    /// Asks init. Giving up closes the connection, which ends a command that was executed.
    pub(super) async fn ask_within(
        &self,
        request: &Request,
        limit: Duration,
    ) -> Result<Reply, InitError> {
        let asked = async {
            let mut stream = self.connect().await?;
            send(&mut stream, request).await?;
            receive(&mut BufReader::new(stream)).await
        };
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok(Reply::Refused { message })) => Err(InitError::Refused(message)),
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(InitError::Timeout),
        }
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        let path = format!("/proc/self/fd/{}/{SOCKET}", self.folder.as_raw_fd());
        UnixStream::connect(path).await
    }

    /// Kills init, and with it everything in its process namespace; returns when it is gone.
    pub(super) async fn kill(&self) -> Result<(), InitError> {
        self.process.kill()?;
        match tokio::time::timeout(ANSWER_TIMEOUT, self.process.ended()).await {
            Ok(outcome) => Ok(outcome?),
            Err(_elapsed) => Err(InitError::Timeout),
        }
    }
}

async fn send(stream: &mut UnixStream, request: &Request) -> Result<(), InitError> {
    let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
    line.push(b'\n');
    Ok(stream.write_all(&line).await?)
}

async fn receive(reader: &mut BufReader<UnixStream>) -> Result<Reply, InitError> {
    let mut line = Vec::new();
    reader.take(LINE_MAX as u64).read_until(b'\n', &mut line).await?;
    if line.last() != Some(&b'\n') {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(serde_json::from_slice(&line).map_err(io::Error::from)?)
}
