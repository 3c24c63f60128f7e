//! Roles: what a process is. They compose the parts and decide nothing.

pub mod admin;
#[cfg(feature = "dev")]
pub mod dev;
pub mod lifecycle;
pub mod parts;

use std::{net::TcpListener, sync::Arc};

use anyhow::Context as _;

use self::lifecycle::Lifecycle;
use crate::{
    api,
    config::Settings,
    flow::{self, Ctx},
    reaper, telemetry, worker,
};

/// What a long-running process begins with.
fn begin(settings: &Settings, role: &'static str) -> anyhow::Result<()> {
    let (filter, json) = settings.log();
    telemetry::init(&filter, json)?;
    telemetry::metrics::init();
    tracing::info!(
        role,
        version = env!("CARGO_PKG_VERSION"),
        environment = settings.environment(),
        "starting"
    );
    Ok(())
}

/// `dpp serve`: the API. `true` when it ended well.
///
/// # Errors
/// When it cannot start.
pub async fn serve(settings: &Settings) -> anyhow::Result<bool> {
    begin(settings, "serve")?;
    parts::require_schema(settings).await?;
    let cx = Arc::new(parts::context(settings, &parts::aws().await)?);
    let life = Lifecycle::new(settings.shutdown_grace());
    start_ops(settings, &cx, &life)?;
    start_api(settings, &cx, &life)?;
    Ok(life.wait().await?)
}

/// `dpp work`: a worker. `true` when it ended well.
///
/// # Errors
/// When it cannot start.
pub async fn work(settings: &Settings) -> anyhow::Result<bool> {
    begin(settings, "work")?;
    parts::require_schema(settings).await?;
    let cx = Arc::new(parts::context(settings, &parts::aws().await)?);
    let life = Lifecycle::new(settings.shutdown_grace());
    start_ops(settings, &cx, &life)?;
    start_worker(settings, &cx, &life);
    Ok(life.wait().await?)
}

/// `dpp reap`: a reaper. `true` when it ended well.
///
/// # Errors
/// When it cannot start.
pub async fn reap(settings: &Settings) -> anyhow::Result<bool> {
    begin(settings, "reap")?;
    parts::require_schema(settings).await?;
    let cx = Arc::new(parts::context(settings, &parts::aws().await)?);
    let life = Lifecycle::new(settings.shutdown_grace());
    start_ops(settings, &cx, &life)?;
    start_reaper(&cx, &life);
    Ok(life.wait().await?)
}

fn start_api(settings: &Settings, cx: &Arc<Ctx>, life: &Lifecycle) -> anyhow::Result<()> {
    let (host, port) = settings.listen();
    let listener = TcpListener::bind((host.as_str(), port))
        .with_context(|| format!("cannot listen on {host}:{port} (DPP_HOST, DPP_PORT)"))?;
    tracing::info!(address = %listener.local_addr()?, "the API listens");
    let app = api::App::new(Arc::clone(cx), life.detached(), settings.public_url())
        .with_origins(settings.origins())
        .with_admin(settings.admin_token().as_ref());
    let look = app.look();
    let server = api::serve(listener, app, life.grace(), life.soft())?;
    life.run("api", async move { tokio::join!(server, look).0 });
    life.run("waits", flow::wait::run(Arc::clone(cx), life.soft()));
    Ok(())
}

fn start_ops(settings: &Settings, cx: &Arc<Ctx>, life: &Lifecycle) -> anyhow::Result<()> {
    let address = settings.ops_addr();
    let listener = match TcpListener::bind(address) {
        // Several of a developer's processes share a machine; in production this port is awaited.
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && settings.environment() == "dev" => {
            tracing::warn!(%address, "DPP_OPS_ADDR is in use; taking any free port");
            TcpListener::bind((address.ip(), 0))
        }
        bound => bound,
    }
    .with_context(|| format!("cannot listen on {address} (DPP_OPS_ADDR; port 0 takes any free one)"))?;
    tracing::info!(address = %listener.local_addr()?, "metrics and health are shown");
    let app = api::App::new(Arc::clone(cx), life.detached(), settings.public_url());
    life.run("ops", api::serve_ops(listener, app, life.soft())?);
    Ok(())
}

fn start_worker(settings: &Settings, cx: &Arc<Ctx>, life: &Lifecycle) {
    life.run("worker", worker::run(Arc::clone(cx), settings.worker_concurrency(), life.soft(), life.hard()));
}

fn start_reaper(cx: &Arc<Ctx>, life: &Lifecycle) {
    life.run("reaper", reaper::run(Arc::clone(cx), life.soft()));
}
