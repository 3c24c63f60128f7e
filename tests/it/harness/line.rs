//! A line to a server that can be cut or go dead: between DPP and anything that it reaches over TCP.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::chaos::servers::steady_port;

/// How a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It passes everything on.
    Up,
    /// Nothing listens, and what was open is closed.
    Refused,
    /// Connections are accepted, or were, and nothing is passed on or answered.
    Hangs,
}

/// One line. It ends with the test.
#[derive(Clone)]
pub struct Line {
    state: Arc<watch::Sender<State>>,
    port: u16,
}

impl Line {
    /// A line to `upstream`, up.
    pub fn to(upstream: SocketAddr) -> Self {
        let (state, port) = (Arc::new(watch::Sender::new(State::Up)), steady_port());
        tokio::spawn(serve(upstream, port, state.subscribe()));
        Self { state, port }
    }

    /// Where its near end is.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    pub fn set(&self, state: State) {
        self.state.send_replace(state);
    }
}

async fn serve(upstream: SocketAddr, port: u16, mut state: watch::Receiver<State>) {
    let theirs = state.clone();
    while state.wait_for(|state| *state != State::Refused).await.is_ok() {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        // Dropped with the listener: what was open is closed.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                refused = state.wait_for(|state| *state == State::Refused) => {
                    if refused.is_err() {
                        return;
                    }
                    break;
                }
                Ok((near, _)) = listener.accept() => {
                    connections.spawn(pass_on(near, upstream, theirs.clone()));
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

/// Passes on until either end closes, or the line hangs: then this connection is dead, and its near end never
/// learns of it, as when a machine is gone or a firewall has forgotten it.
async fn pass_on(mut near: TcpStream, upstream: SocketAddr, mut state: watch::Receiver<State>) {
    tokio::select! {
        biased;
        _ = state.wait_for(|state| *state == State::Hangs) => {}
        _ = through(&mut near, upstream) => return,
    }
    std::future::pending().await
}

async fn through(near: &mut TcpStream, upstream: SocketAddr) -> std::io::Result<()> {
    let mut far = TcpStream::connect(upstream).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    copy_bidirectional(near, &mut far).await.map(drop)
}
