//! The HTTP API. The only module that knows actix-web.
//!
//! Handlers translate: they parse, call one flow, and show what it said. Flows run detached
//! ([`crate::flow::Detached`]), so a client that hangs up never stops one.

mod account;
mod admin;
mod catalogue;
mod connections;
mod context;
mod cors;
mod docs;
mod extract;
mod keys;
pub mod openapi;
mod operations;
mod page;
mod pages;
mod prefer;
pub mod problem;
mod query;
mod quota;
mod routes;
mod runs;
mod shape;

use std::{
    net::TcpListener,
    num::NonZero,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use actix_web::{App as ActixApp, HttpServer, middleware::from_fn, web};
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;

use self::connections::Connections;
use crate::{
    config::Origins,
    domain::{admin_token::AdminToken, api_key::KeyDigest, cursor::CursorKey, plan::Caller},
    flow::{
        self, Ctx, Detached,
        probe::{self, Probe},
    },
};

/// How long a key's owner is remembered: a revoked key stops everywhere within this.
const CALLER_TTL: Duration = Duration::from_secs(2);
const CALLERS_MAX: u64 = 100_000;
/// How long a probe's answer is given again, so that health checks do not become load.
const PROBE_TTL: Duration = Duration::from_secs(1);
/// How long a client may take to send its headers.
const HEADERS_MAX: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long a connection may be without a request in hand, whatever its client sends meanwhile.
const IDLE_MAX: Duration = Duration::from_secs(80);
/// How many connections a server serves at once; further ones wait until one is closed.
const CONNECTIONS_MAX: usize = 16_384;

/// What both servers share. A macro, because the type of a server names its whole stack.
macro_rules! start {
    ($server:expr, $threads:expr, $listener:expr, $idle_max:expr, $grace:expr, $stop:expr) => {{
        let connections = Connections::default();
        let noted = connections.clone();
        let server = $server
            .workers($threads)
            .max_connections(CONNECTIONS_MAX / $threads)
            .on_connect(move |io, data| noted.note(io, data))
            .client_request_timeout(HEADERS_MAX)
            .keep_alive(KEEP_ALIVE)
            // A client that has hung up is waited for by nobody.
            .h1_allow_half_closed(false)
            .shutdown_timeout($grace.as_secs().max(1))
            .shutdown_signal($stop.cancelled_owned());
        let server = server.listen($listener)?.run();
        Ok(async move {
            tokio::select! {
                ended = server => ended,
                () = connections.sweep($idle_max) => Ok(()),
            }
        })
    }};
}

/// What handlers act on.
pub struct App {
    cx: Arc<Ctx>,
    detached: Detached,
    public_url: String,
    origins: Origins,
    admin: Option<AdminToken>,
    idle_max: Duration,
    callers: moka::future::Cache<KeyDigest, Option<Caller>>,
    probed: Arc<Probed>,
    cursor_key: tokio::sync::OnceCell<CursorKey>,
    uncounted: quota::Outage,
}

impl App {
    /// The state of one server.
    pub fn new(cx: Arc<Ctx>, detached: Detached, public_url: String) -> Self {
        let callers =
            moka::future::Cache::builder().max_capacity(CALLERS_MAX).time_to_live(CALLER_TTL).build();
        Self {
            cx,
            detached,
            public_url,
            origins: Origins::default(),
            admin: None,
            idle_max: IDLE_MAX,
            callers,
            probed: Arc::default(),
            cursor_key: tokio::sync::OnceCell::new(),
            uncounted: quota::Outage::default(),
        }
    }

    /// The same, for browsers' pages of these origins too.
    #[must_use]
    pub fn with_origins(self, origins: Origins) -> Self {
        Self { origins, ..self }
    }

    /// The same, with an admin API for whoever has this token. Without one there is none.
    #[must_use]
    pub fn with_admin(self, token: Option<&SecretString>) -> Self {
        Self { admin: token.map(|token| AdminToken::of(token.expose_secret())), ..self }
    }

    /// The same, on connections that may be idle for this long. For tests.
    #[must_use]
    pub fn with_idle_max(self, idle_max: Duration) -> Self {
        Self { idle_max, ..self }
    }

    /// Whose key this is. Without a query while it is remembered.
    async fn caller(&self, digest: KeyDigest) -> Result<Option<Caller>, flow::Error> {
        if let Some(caller) = self.callers.get(&digest).await {
            return Ok(caller);
        }
        let cx = Arc::clone(&self.cx);
        let caller = self.detached.run(async move { flow::keys::caller(&cx, digest).await }).await;
        let caller = caller.map_err(flow::Error::from).flatten()?;
        let caller = caller.map(|(caller, untouched)| {
            if untouched {
                // Nobody waits for it.
                let (cx, key_id) = (Arc::clone(&self.cx), caller.key_id);
                drop(self.detached.run(async move { flow::keys::touch(&cx, key_id).await }));
            }
            caller
        });
        self.callers.insert(digest, caller.clone()).await;
        Ok(caller)
    }

    /// What the dependencies answer, within the second; where they do not within `patience`, what they
    /// answered last.
    async fn probe(&self, patience: Duration) -> Probe {
        // Also when nobody waits for it any more, the next is given its answer.
        let probe = self.detached.run(self.look());
        // Whether or not it came to an end, this is what is known.
        let _ = tokio::time::timeout(patience, probe).await;
        self.probed.last().map_or_else(Probe::unheard, |(_, probe)| probe)
    }

    /// Probes the dependencies, if nobody has within the second. Done before anybody asks, so that the first who
    /// does hears of those that answer, though another does not.
    pub fn look(&self) -> impl Future<Output = ()> + use<> {
        let (cx, probed) = (Arc::clone(&self.cx), Arc::clone(&self.probed));
        async move {
            let _one = probed.turn.lock().await;
            let fresh = probed.last().filter(|(at, _)| at.elapsed() < PROBE_TTL);
            if fresh.is_none() {
                let probe = Box::pin(probe::probe(&cx)).await;
                *probed.locked() = Some((Instant::now(), probe));
            }
        }
    }
}

/// The last probe, and whose turn it is to make the next.
#[derive(Default)]
struct Probed {
    turn: tokio::sync::Mutex<()>,
    last: Mutex<Option<(Instant, Probe)>>,
}

impl Probed {
    fn locked(&self) -> MutexGuard<'_, Option<(Instant, Probe)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last(&self) -> Option<(Instant, Probe)> {
        self.locked().clone()
    }
}

/// Serves the API on `listener` until `stop`, then lets open requests end.
///
/// # Errors
/// When the listener cannot be used.
pub fn serve(
    listener: TcpListener,
    app: App,
    grace: Duration,
    stop: CancellationToken,
) -> std::io::Result<impl Future<Output = std::io::Result<()>> + Send + use<>> {
    let idle_max = app.idle_max;
    let admin = app.admin.is_some();
    let app = web::Data::new(app);
    let server = HttpServer::new(move || {
        ActixApp::new()
            .app_data(web::Data::clone(&app))
            .app_data(web::PayloadConfig::new(extract::BODY_BYTES_MAX))
            .configure(routes::api)
            .configure(|config| {
                if admin {
                    routes::admin(config);
                }
            })
            .wrap(from_fn(context::surround))
    });
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    start!(server, threads, listener, idle_max, grace, stop)
}

/// Serves a process's metrics and health on `listener` until `stop`.
///
/// # Errors
/// When the listener cannot be used.
pub fn serve_ops(
    listener: TcpListener,
    app: App,
    stop: CancellationToken,
) -> std::io::Result<impl Future<Output = std::io::Result<()>> + Send + use<>> {
    let app = web::Data::new(app);
    let server = HttpServer::new(move || {
        ActixApp::new()
            .app_data(web::Data::clone(&app))
            .configure(routes::ops)
            .wrap(from_fn(context::surround))
    });
    start!(server, 1, listener, IDLE_MAX, Duration::from_secs(1), stop)
}
