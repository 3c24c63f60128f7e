//! `dpp dev`: all roles and all services on one machine, nothing set up beforehand.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};

use super::{lifecycle::Lifecycle, parts, start_api, start_ops, start_reaper, start_worker};
use crate::{
    config::Settings,
    domain::{api_key::ApiKey, money::UsdMicros},
    flow::{Ctx, deposit},
    local::{
        postgres::Durability,
        services::{Binaries, Services},
    },
    store, telemetry,
};

const TENANT: &str = "dev";
const PLAN: &str = "enterprise";
const FIRST_DEPOSIT: UsdMicros = UsdMicros::constant(100_000_000);
const FIRST_DEPOSIT_REFERENCE: &str = "dpp-dev-first-deposit";
const DATABASE: &str = "dpp";
const PLACES: &str = "dpp-runs";
/// The queue's own default; every receive names its own.
const VISIBILITY_SECS: u64 = 120;

/// What `dpp dev` was asked for.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// The API's port; `None` for the setting's.
    pub port: Option<u16>,
    /// Where state lives.
    pub data_dir: PathBuf,
    /// Only the services.
    pub services_only: bool,
}

/// Runs until a signal. `true` when it ended well.
///
/// # Errors
/// When something cannot start.
pub async fn run(environment: BTreeMap<String, String>, wishes: &Wishes) -> anyhow::Result<bool> {
    // Judged before anything starts; the services' own settings come later.
    let mut environment = environment;
    environment.insert("DPP_ENV".to_owned(), "dev".to_owned());
    if let Some(port) = wishes.port {
        environment.insert("DPP_PORT".to_owned(), port.to_string());
    }
    let settings = Settings::resolve(&environment)?;
    let (filter, json) = settings.log();
    telemetry::init(&filter, json)?;
    telemetry::metrics::init();
    let (_lock, directory) = lock(&wishes.data_dir)?;
    let binaries = Binaries {
        postgres: environment.get("DPP_PG_BIN").map(PathBuf::from),
        redis: environment.get("DPP_REDIS_BIN").map(PathBuf::from),
    };
    let life = Lifecycle::new(settings.shutdown_grace());
    // A signal during the start must end it too; dropping what has started stops it.
    let services = tokio::select! {
        services = Services::start(&directory, &binaries, Durability::Durable) => services?,
        signal = super::lifecycle::interrupted() => { signal?; return Ok(true) }
    };
    for child in services.children() {
        let (name, exited, soft) = (child.name(), child.exited(), life.soft());
        life.run(name, async move {
            tokio::select! {
                how = exited => format!("the service ended: {how}"),
                () = soft.cancelled() => "stopped".to_owned(),
            }
        });
    }
    let outcome = run_on(&services, environment, wishes, &directory, &life).await;
    if outcome.is_err() {
        life.soft().cancel();
        services.stop().await;
        return outcome.map(|()| false);
    }
    let well = life.wait().await;
    services.stop().await;
    Ok(well?)
}

async fn run_on(
    services: &Services,
    mut environment: BTreeMap<String, String>,
    wishes: &Wishes,
    directory: &Path,
    life: &Lifecycle,
) -> anyhow::Result<()> {
    services.postgres.ensure_database(DATABASE).await?;
    let places = services.cloud.places(PLACES, VISIBILITY_SECS).await?;
    let own = services.settings(DATABASE, 0, &places);
    // This one process can have the usual port; the others that the list is for cannot share it.
    let ours = own.iter().filter(|(name, _)| !name.starts_with("AWS_") && *name != "DPP_OPS_ADDR");
    environment.extend(ours.map(|(name, value)| ((*name).to_owned(), value.clone())));
    let settings = Settings::resolve(&environment)?;
    store::migrate(&settings.database_for_migrations()?).await?;
    let lines: String = own.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    private_file(&directory.join("env"), &lines)?;
    let mut out = std::io::stdout();
    if wishes.services_only {
        out.write_all(lines.as_bytes())?;
        writeln!(out, "ready")?;
        return Ok(out.flush()?);
    }
    let cx = Arc::new(parts::context(&settings, &services.cloud.aws())?);
    let key = first_tenant(&cx, directory).await?;
    // The local queue forgets when it stops.
    cx.store.resend_all().await?;
    start_ops(&settings, &cx, life)?;
    start_api(&settings, &cx, life)?;
    start_worker(&settings, &cx, life);
    start_reaper(&cx, life);
    out.write_all(welcome(&settings.public_url(), &key).as_bytes())?;
    Ok(out.flush()?)
}

/// Makes the data directory ours alone.
fn lock(directory: &Path) -> anyhow::Result<(File, PathBuf)> {
    let cannot = || format!("cannot use the data directory {}", directory.display());
    fs::create_dir_all(directory).with_context(cannot)?;
    let directory = directory.canonicalize().with_context(cannot)?;
    let file = File::create(directory.join("lock")).with_context(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok((file, directory)),
        Err(TryLockError::WouldBlock) => bail!(
            "another `dpp dev` is running on {}; stop it, or give this one a --data-dir of its own",
            directory.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(cannot),
    }
}

/// The tenant `dev` with its first $100 and its key, made once.
async fn first_tenant(cx: &Ctx, directory: &Path) -> anyhow::Result<ApiKey> {
    let tenant = match cx.store.tenants_named(TENANT).await?.into_iter().next() {
        Some(tenant) => tenant,
        None => cx.store.create_tenant(TENANT, PLAN).await?,
    };
    deposit::deposit(cx, tenant.tenant_id, FIRST_DEPOSIT, FIRST_DEPOSIT_REFERENCE).await?;
    let path = directory.join("api_key");
    let kept = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<ApiKey>().ok());
    if let Some(key) = kept
        && cx.store.find_caller(key.digest()).await?.is_some()
    {
        return Ok(key);
    }
    let key = ApiKey::generate();
    cx.store.create_key(tenant.tenant_id, "dpp dev", key.digest()).await?;
    private_file(&path, key.reveal())?;
    Ok(key)
}

/// Writes a file that only its owner can read.
fn private_file(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

fn welcome(url: &str, key: &ApiKey) -> String {
    let key = key.reveal();
    format!(
        r#"
  DPP is ready at {url}
  API key: {key}

  Submit a run:

curl -s {url}/v1/runs \
  -H "Authorization: Bearer {key}" \
  -H "Content-Type: application/json" \
  -H "Idempotency-Key: $(date +%s)-$RANDOM" \
  -d '{{"pack_type":"decision","max_cost_usd":"1.00","inputs":{{"criteria":[{{"name":"price","weight":2,"direction":"minimize"}},{{"name":"speed","weight":1}}],"options":[{{"name":"A","scores":{{"price":10,"speed":3}}}},{{"name":"B","scores":{{"price":14,"speed":9}}}}]}}}}'

  Ctrl-C stops everything; state stays.

"#
    )
}
