//! Connections: one on which nothing is asked for is let go.
//!
//! actix limits how long the first head of a connection may take, and how long a connection may be silent, but
//! not a client that has had one answer and sends its next head a byte at a time, or never reads what it asked
//! for. Such a connection is shut down here, whatever it says.

use std::{
    any::Any,
    net::{Shutdown, TcpStream},
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use actix_web::{HttpRequest, dev::Extensions, rt};
use tokio::time::interval;

const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The open connections of one server.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<Vec<Weak<Connection>>>>);

struct Connection {
    /// The same socket again: the server's own handle cannot be reached from outside.
    socket: TcpStream,
    /// Since when no request is in hand.
    idle_since: Mutex<Option<Instant>>,
}

impl Connection {
    fn idle_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in hand. Its end begins the connection's idleness, also where its handler is dropped.
pub struct InHand(Arc<Connection>);

impl InHand {
    /// Of a request, where its connection is known.
    pub fn of(request: &HttpRequest) -> Option<Self> {
        let connection = Arc::clone(request.conn_data::<Arc<Connection>>()?);
        *connection.idle_since() = None;
        Some(Self(connection))
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        *self.0.idle_since() = Some(Instant::now());
    }
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, Vec<Weak<Connection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a new connection, and lets its requests find it.
    pub fn note(&self, io: &dyn Any, data: &mut Extensions) {
        let Some(stream) = io.downcast_ref::<rt::net::TcpStream>() else { return };
        // Out of descriptors: it is served, and not watched.
        let Ok(socket) = stream.as_fd().try_clone_to_owned() else { return };
        let idle_since = Mutex::new(Some(Instant::now()));
        let connection = Arc::new(Connection { socket: socket.into(), idle_since });
        self.open().push(Arc::downgrade(&connection));
        data.insert(connection);
    }

    /// Shuts down, for ever, what has been idle for longer than `idle_max`.
    pub async fn sweep(&self, idle_max: Duration) {
        let mut ticks = interval(SWEEP_INTERVAL);
        loop {
            ticks.tick().await;
            self.open().retain(|connection| {
                let Some(connection) = connection.upgrade() else { return false };
                if connection.idle_since().is_some_and(|since| since.elapsed() > idle_max) {
                    // One that the client has shut down meanwhile is as good.
                    let _ = connection.socket.shutdown(Shutdown::Both);
                }
                true
            });
        }
    }
}
