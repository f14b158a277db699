//! A process inside a node: in its network namespace and below its cgroup, as a pod's are. What
//! it opens and dials, a test tells it line by line (`src/bin/mizzen-test-actor.rs`).

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    str::FromStr as _,
};

use nix::sched::{CloneFlags, setns};

use crate::{netns::Netns, storm::Plan};

/// The process. It ends with the guard.
#[derive(Debug)]
pub struct Actor {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// One of the actor's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket(u32);

/// What became of a load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// Questions that were answered, from where they were asked.
    pub done: u64,
    /// Those that were not.
    pub failed: u64,
    /// Why the first of these was not.
    pub first_failure: String,
}

impl Actor {
    /// Starts one in the namespace, as a member of the cgroup.
    pub fn start(netns: &Netns, cgroup: &Path) -> Self {
        let members = OpenOptions::new()
            .write(true)
            .open(cgroup.join("cgroup.procs"))
            .expect("the cgroup's list of members");
        let namespace = File::open(netns.path()).expect("the namespace's file");
        let mut command = Command::new(program());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: two system calls and nothing else between fork and exec.
        unsafe {
            command.pre_exec(move || {
                nix::unistd::write(members.as_fd(), b"0")?;
                setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
            });
        }
        let mut child = command.spawn().expect("start the actor");
        let commands = child.stdin.take().expect("its standard input");
        let answers = BufReader::new(child.stdout.take().expect("its standard output"));
        Self { child, commands, answers }
    }

    /// Says a line; what was answered, or the error of the call it led to.
    fn say(&mut self, line: &str) -> io::Result<String> {
        self.tell(line);
        self.hear()
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.commands, "{line}").expect("the actor listens");
    }

    fn hear(&mut self) -> io::Result<String> {
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the actor answers");
        let (kind, rest) = answer.trim_end().split_once(' ').unwrap_or((answer.trim_end(), ""));
        match kind {
            "ok" => Ok(rest.to_owned()),
            "error" => {
                let number = rest.split(' ').next().and_then(|word| word.parse().ok());
                match number {
                    Some(number) if number != 0 => Err(io::Error::from_raw_os_error(number)),
                    _ => Err(io::Error::other(rest.to_owned())),
                }
            }
            _ => panic!("the actor went away"),
        }
    }

    /// Becomes a process of a user who is not root.
    pub fn become_user(&mut self, user: u32) {
        self.say(&format!("become {user}")).unwrap();
    }

    /// Opens a socket of the kind `tcp4`, `tcp6`, `mptcp4`, `mptcp6`, `udp4` or `udp6`.
    pub fn open(&mut self, kind: &str) -> Socket {
        Socket(self.say(&format!("open {kind}")).unwrap().parse().unwrap())
    }

    /// `bind()`.
    pub fn bind(&mut self, socket: Socket, to: SocketAddr) {
        self.say(&format!("bind {} {to}", socket.0)).unwrap();
    }

    /// `connect()`; TCP gives up after less than a second with `ETIMEDOUT`.
    pub fn connect(&mut self, socket: Socket, to: SocketAddr) -> io::Result<()> {
        self.say(&format!("connect {} {to}", socket.0)).map(drop)
    }

    /// `connect()` of a socket that waits for nobody, from now on: `EINPROGRESS` where it asked the
    /// network.
    pub fn begin(&mut self, socket: Socket, to: SocketAddr) -> io::Result<()> {
        self.say(&format!("begin {} {to}", socket.0)).map(drop)
    }

    /// `connect()` to `AF_UNSPEC`.
    pub fn disconnect(&mut self, socket: Socket) {
        self.say(&format!("disconnect {}", socket.0)).unwrap();
    }

    /// `getpeername()`.
    pub fn peer(&mut self, socket: Socket) -> SocketAddr {
        self.say(&format!("peer {}", socket.0)).unwrap().parse().unwrap()
    }

    /// `send()` of a line on a connected socket.
    pub fn send(&mut self, socket: Socket, text: &str) {
        self.say(&format!("send {} {text}", socket.0)).unwrap();
    }

    /// `sendto()` of an unconnected TCP socket with `MSG_FASTOPEN`: connects, too.
    pub fn send_fast(&mut self, socket: Socket, to: SocketAddr, text: &str) {
        self.say(&format!("fastopen {} {to} {text}", socket.0)).unwrap();
    }

    /// `send()`, and what comes of it instead of an answer.
    pub fn send_in_vain(&mut self, socket: Socket, text: &str) -> io::Error {
        let sent = self.say(&format!("send {} {text}", socket.0));
        let answer = sent.and_then(|_| self.say(&format!("receive {}", socket.0)));
        answer.expect_err("nobody answers")
    }

    /// `sendto()`.
    pub fn send_to(&mut self, socket: Socket, to: SocketAddr, text: &str) {
        self.say(&format!("sendto {} {to} {text}", socket.0)).unwrap();
    }

    /// As [`Self::send_to`], but returns at once; [`Self::sent`] waits.
    pub fn begin_send_to(&mut self, socket: Socket, to: SocketAddr, text: &str) {
        self.tell(&format!("sendto {} {to} {text}", socket.0));
    }

    /// Waits for the end of [`Self::begin_send_to`].
    pub fn sent(&mut self) {
        self.hear().unwrap();
    }

    /// What a datagram says, and where it came from.
    pub fn receive_from(&mut self, socket: Socket) -> (SocketAddr, String) {
        let (from, text) = self.receive_words(socket);
        (SocketAddr::from_str(&from).expect("a datagram's source"), text)
    }

    /// What a connection says.
    pub fn receive(&mut self, socket: Socket) -> String {
        self.receive_words(socket).1
    }

    /// Waits until there is something to receive.
    pub fn until_readable(&mut self, socket: Socket) {
        self.say(&format!("peek {}", socket.0)).expect("something to receive");
    }

    /// Begins to wait for something to receive; [`Self::received`] tells what became of it.
    pub fn begin_receive(&mut self, socket: Socket) {
        self.tell(&format!("receive {}", socket.0));
    }

    /// The end of [`Self::begin_receive`].
    pub fn received(&mut self) -> io::Result<String> {
        self.hear()
    }

    fn receive_words(&mut self, socket: Socket) -> (String, String) {
        let answer = self.say(&format!("receive {}", socket.0)).expect("something to receive");
        let (from, text) = answer.split_once(' ').unwrap_or((&answer, ""));
        (from.to_owned(), text.to_owned())
    }

    /// `shutdown()` of the sending side.
    pub fn end(&mut self, socket: Socket) {
        self.say(&format!("end {}", socket.0)).unwrap();
    }

    /// Closes a socket with a reset.
    pub fn abort(&mut self, socket: Socket) {
        self.say(&format!("abort {}", socket.0)).unwrap();
    }

    /// Closes a socket.
    pub fn close(&mut self, socket: Socket) {
        self.say(&format!("close {}", socket.0)).unwrap();
    }

    /// Asks `to` again and again, each time from a new socket, until [`Self::stop`].
    pub fn load(&mut self, kind: &str, to: SocketAddr) {
        self.say(&format!("load {kind} {to}")).unwrap();
    }

    /// As [`Self::load`], about a thousand times a second; an answer that does not begin with `name`
    /// is a failure too.
    pub fn load_of(&mut self, kind: &str, to: SocketAddr, name: &str) {
        self.say(&format!("load {kind} {to} {name}")).unwrap();
    }

    /// Has a service be used as by a busy client, until [`Self::stop`].
    pub fn storm(&mut self, plan: &Plan) {
        let Plan { to, name, rate, lasting } = plan;
        self.say(&format!("storm {to} {name} {rate} {lasting}")).unwrap();
    }

    /// Asks the DNS server for the A records of a name again and again, until [`Self::stop`]: see
    /// [`crate::names`] for the kinds, and what a retry is.
    pub fn load_of_names(&mut self, kind: &str, server: SocketAddr, name: &str, retries: u32) {
        self.say(&format!("names {kind} {server} {name} {retries}")).unwrap();
    }

    /// Asks the DNS server for the A records of a name so many times a second, until [`Self::stop`]:
    /// see [`crate::rate`].
    pub fn rate_of_names(&mut self, server: SocketAddr, name: &str, rate: u32, retries: u32) {
        self.say(&format!("rate {server} {name} {rate} {retries}")).unwrap();
    }

    /// Asks once.
    pub fn ask_name(
        &mut self,
        kind: &str,
        server: SocketAddr,
        name: &str,
        retries: u32,
    ) -> io::Result<()> {
        self.say(&format!("name {kind} {server} {name} {retries}")).map(drop)
    }

    /// Ends the load.
    pub fn stop(&mut self) -> Load {
        let answer = self.say("stop").unwrap();
        let mut words = answer.splitn(3, ' ');
        let mut next = || words.next().unwrap_or_default().to_owned();
        Load {
            done: next().parse().unwrap(),
            failed: next().parse().unwrap(),
            first_failure: next(),
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Cargo puts the binaries of this package a folder above its tests.
fn program() -> PathBuf {
    let this = std::env::current_exe().expect("the path of this test");
    let folder = this.parent().and_then(Path::parent).expect("cargo's folder of binaries");
    folder.join("mizzen-test-actor")
}
