//! The ports of health and metrics: had at once, or when who has them lets go.
//!
//! kube-proxy has the same two. An agent that is to take its place serves beside it first, and may
//! not depend on them: it goes on without, says so on the board, and takes each as soon as it is free.
//! From another agent it gets them as they are, so that nobody who asks meanwhile is refused.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{net::TcpListener, sync::oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    http::{self, Answer, Asked},
    listen::ListenError,
};
use crate::{
    handover::{GivenPorts, OpenSockets},
    status::{Board, State},
    supervisor::TaskError,
};

/// The part on the board.
pub const PART: &str = "ports";
/// How often a port is tried that another program has.
const RETRY: Duration = Duration::from_secs(1);
/// How often one is tried that an agent has which leaves.
const LOOK: Duration = Duration::from_millis(10);

/// A port, open or not.
#[derive(Debug)]
pub(super) struct Port {
    what: &'static str,
    flag: &'static str,
    address: SocketAddr,
    listener: Option<TcpListener>,
    given: bool,
}

impl Port {
    /// Takes it where it was `given`, or opens it, unless another program has it. Any other failure is
    /// one of the address.
    pub(super) async fn open(
        what: &'static str,
        flag: &'static str,
        address: SocketAddr,
        given: &GivenPorts,
    ) -> Result<Self, ListenError> {
        let had = given.at(address);
        let is_given = matches!(had, Ok(Some(_)));
        let had = match had {
            Ok(Some(listener)) => Ok(listener),
            Ok(None) => bind(address).await,
            Err(error) => Err(error),
        };
        let listener = match had {
            Ok(listener) => Some(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
            Err(source) => return Err(ListenError::Tcp { what, address, flag, source }),
        };
        Ok(Self { what, flag, address, listener, given: is_given })
    }

    /// Whether another agent gave it, for which clients may have been waiting since.
    pub(super) fn is_given(&self) -> bool {
        self.given
    }
}

async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    let no_ipv6 = |error: &io::Error| error.raw_os_error() == Some(libc::EAFNOSUPPORT);
    if address.ip().is_unspecified() && bound.as_ref().is_err_and(no_ipv6) {
        // A kernel without IPv6: all addresses are those of IPv4.
        return TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await;
    }
    bound
}

/// A port that is not open yet, and who waits for it.
struct Closed {
    port: Port,
    opens: oneshot::Sender<TcpListener>,
    /// Why it was not opened when it was last tried.
    why: io::ErrorKind,
}

/// The ports that are waited for.
pub(super) struct Ports {
    closed: Vec<Closed>,
    leaving: Option<Instant>,
    board: Arc<Board>,
    /// Those that are open, for the agent after this one.
    open: Arc<OpenSockets>,
}

impl Ports {
    /// None. Until `leaving` one may be that of an agent that leaves.
    pub(super) fn new(leaving: Option<Instant>, board: Arc<Board>, open: Arc<OpenSockets>) -> Self {
        Self { closed: Vec::new(), leaving, board, open }
    }

    /// Gives the port's listener, when it is open.
    pub(super) fn listener(&mut self, mut port: Port) -> oneshot::Receiver<TcpListener> {
        let (opens, opened) = oneshot::channel();
        match port.listener.take() {
            Some(listener) => {
                self.open.note(port.address, [&listener as &dyn AsFd]);
                _ = opens.send(listener);
            }
            None => self.closed.push(Closed { port, opens, why: io::ErrorKind::AddrInUse }),
        }
        opened
    }

    /// Opens what is not, until cancelled.
    pub(super) async fn run(mut self, cancel: CancellationToken) -> Result<(), TaskError> {
        while !cancel.is_cancelled() {
            for mut closed in std::mem::take(&mut self.closed) {
                match bind(closed.port.address).await {
                    Ok(listener) => {
                        self.open.note(closed.port.address, [&listener as &dyn AsFd]);
                        // Who waited may have been told to stop.
                        _ = closed.opens.send(listener);
                    }
                    Err(error) => {
                        closed.why = error.kind();
                        self.closed.push(closed);
                    }
                }
            }
            let leaves = self.leaving.is_some_and(|until| Instant::now() < until);
            self.board.report(PART, state(&self.closed, leaves));
            let pause = async {
                match (self.closed.is_empty(), leaves) {
                    (true, _) => std::future::pending().await,
                    (false, true) => tokio::time::sleep(LOOK).await,
                    (false, false) => tokio::time::sleep(RETRY).await,
                }
            };
            tokio::select! {
                () = cancel.cancelled() => {}
                () = pause => {}
            }
        }
        Ok(())
    }
}

/// How the ports are. While an agent `leaves`, they are waited for.
fn state(closed: &[Closed], leaves: bool) -> State {
    if closed.is_empty() {
        return State::Ready;
    }
    let named = closed.iter().map(|Closed { port, why, .. }| {
        let Port { what, flag, address, .. } = port;
        let why = match why {
            io::ErrorKind::AddrInUse => "another program has it".to_owned(),
            other => other.to_string(),
        };
        format!("port {} of {} for {what} ({flag}): {why}", address.port(), address.ip())
    });
    let named = named.collect::<Vec<_>>().join("; ");
    if leaves {
        return State::Waiting(format!("{named}; the agent before lets go of it"));
    }
    State::Degraded(format!(
        "{named}; kube-proxy has it where it runs on this node, and it is taken when that ends \
         (`mizzen migrate`); else stop the other program, or set the flag"
    ))
}

/// Serves a port from when it is open until cancelled.
pub(super) async fn serve<R, F>(
    listener: oneshot::Receiver<TcpListener>,
    routes: R,
    cancel: CancellationToken,
) -> Result<(), TaskError>
where
    R: Fn(Asked) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    tokio::select! {
        () = cancel.cancelled() => Ok(()),
        // Who opens it ends when this is cancelled.
        Ok(listener) = listener => http::serve_tcp(listener, routes, cancel.clone()).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    async fn until(board: &Board, holds: impl Fn(&State) -> bool) -> State {
        let looked = async {
            loop {
                match board.parts().remove(PART) {
                    Some(state) if holds(&state) => return state,
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        tokio::time::timeout(LIMIT, looked).await.expect("the board to say so")
    }

    async fn port(address: SocketAddr) -> Port {
        let none = GivenPorts::default();
        Port::open("metrics", "--metrics-bind-address", address, &none).await.unwrap()
    }

    #[tokio::test]
    async fn a_port_that_another_program_has_is_named_and_taken_when_that_ends() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let (board, cancel) = (Arc::<Board>::default(), CancellationToken::new());
        let mut ports = Ports::new(None, Arc::clone(&board), Arc::default());
        let free = ports.listener(port("127.0.0.1:0".parse().unwrap()).await);
        free.await.unwrap();
        let opened = ports.listener(port(address).await);
        let task = tokio::spawn(ports.run(cancel.clone()));
        let State::Degraded(said) = until(&board, |state| *state != State::Ready).await else {
            panic!("{:?}", board.parts())
        };
        for word in
            [&*address.port().to_string(), "metrics", "--metrics-bind-address", "kube-proxy"]
        {
            assert!(said.contains(word), "{said}");
        }
        drop(taken);
        let listener = tokio::time::timeout(LIMIT, opened).await.unwrap().unwrap();
        assert_eq!(listener.local_addr().unwrap(), address);
        until(&board, |state| *state == State::Ready).await;
        cancel.cancel();
        task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_port_of_an_agent_that_leaves_is_waited_for_until_it_should_have_left() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (board, cancel) = (Arc::<Board>::default(), CancellationToken::new());
        let leaving = Instant::now() + Duration::from_millis(300);
        let mut ports = Ports::new(Some(leaving), Arc::clone(&board), Arc::default());
        let _opened = ports.listener(port(taken.local_addr().unwrap()).await);
        let task = tokio::spawn(ports.run(cancel.clone()));
        until(&board, |state| matches!(state, State::Waiting(_))).await;
        until(&board, |state| matches!(state, State::Degraded(_))).await;
        cancel.cancel();
        task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_address_that_is_nobodys_is_an_error_with_the_flag() {
        let nobodys = "192.0.2.1:1".parse().unwrap();
        let (flag, none) = ("--metrics-bind-address", GivenPorts::default());
        let error = Port::open("metrics", flag, nobodys, &none).await.unwrap_err();
        assert!(error.to_string().contains("--metrics-bind-address"), "{error}");
    }
}
