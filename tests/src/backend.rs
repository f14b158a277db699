//! Servers for tests: each says its name to whoever asks. They listen inside a namespace and are
//! served by threads of the test.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use socket2::SockRef;

use crate::netns::Netns;

/// A server of TCP and UDP at one address and port. It ends with the guard.
#[derive(Debug)]
pub struct Backend {
    listener: TcpListener,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Backend {
    /// Listens at `addr`, which has to be one of the namespace's.
    pub fn start(netns: &Netns, addr: SocketAddr, name: &str) -> Self {
        let (listener, datagrams) = netns.run(|| {
            let listener = TcpListener::bind(addr).expect("listen");
            (listener, UdpSocket::bind(addr).expect("bind"))
        });
        let stop = Arc::new(AtomicBool::new(false));
        let streams = listener.try_clone().expect("a second descriptor");
        let (said, stopped) = (name.to_owned(), Arc::clone(&stop));
        let by_stream = std::thread::spawn(move || {
            while let Ok((mut stream, _)) = streams.accept() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let _gone = stream.write_all(said.as_bytes());
            }
        });
        // A datagram socket can't be woken from outside: it looks up now and then.
        datagrams.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        let (said, stopped) = (name.to_owned(), Arc::clone(&stop));
        let by_datagram = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((_, from)) = datagrams.recv_from(&mut [0; 512]) {
                    let _gone = datagrams.send_to(said.as_bytes(), from);
                }
            }
        });
        Self { listener, stop, threads: vec![by_stream, by_datagram] }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _woken = SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}
