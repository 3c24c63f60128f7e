//! The accept loop that both servers share: HTTP/1.1, keep-alive, one task per connection.
//!
//! It knows nothing of what is served. A connection whose peer hangs up drops the request that it
//! carried, which is how a long poll learns that nobody waits any more.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::{JoinHandle, JoinSet};

/// Every long poll holds a connection, so this is far above what a machine full of workers opens.
/// Further clients wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 2_048;

/// `accept` fails when the process is out of file descriptors; trying at once would only spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A running server. Dropping it stops the accept loop and every connection.
#[derive(Debug)]
pub(super) struct Server {
    addr: SocketAddr,
    /// Never sent on: the loop ends when this end is gone, by [`Server::stop`] or by a plain drop.
    alive: oneshot::Sender<Infallible>,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves `service` on `listener` until the handle is gone.
    pub(super) fn start<S, B>(listener: TcpListener, service: S) -> io::Result<Server>
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let addr = listener.local_addr()?;
        let (alive, gone) = oneshot::channel();
        #[expect(clippy::disallowed_methods, reason = "owned by the handle, which ends it")]
        let task = tokio::spawn(accept(listener, service, gone));
        Ok(Server { addr, alive, task })
    }

    /// `http://127.0.0.1:PORT`.
    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Stops, and returns once the listener is closed and no connection is left.
    pub(super) async fn stop(self) {
        drop(self.alive);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "a local server's accept loop ended badly");
        }
    }
}

async fn accept<S, B>(listener: TcpListener, service: S, mut gone: oneshot::Receiver<Infallible>)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut gone => break,
            Some(_ended) = connections.join_next() => {}
            (stream, permit) = next(&listener, &permits) => {
                connections.spawn(serve(stream, service.clone(), permit));
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

/// Waits for a free place, then for a client. Both waits may be abandoned without losing a client.
async fn next(listener: &TcpListener, permits: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let permit = Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => return (stream, permit),
            Err(error) => {
                tracing::warn!(%error, "a local server could not accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn serve<S, B>(stream: TcpStream, service: S, _permit: OwnedSemaphorePermit)
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // Without it, an answer in two writes waits 40 ms for the client's delayed acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to a local server ended early");
    }
}
