//! Admin commands: what operators do from a shell.
//!
//! With `--json` a command writes one document to stdout and nothing else; diagnostics go to stderr.

use std::{io::Write as _, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::parts;
use crate::{
    api::openapi,
    config::Settings,
    domain::{
        api_key::ApiKey,
        id::{KeyId, RunId, TenantId},
        money::UsdMicros,
        plan::Plan,
        scope::Scopes,
    },
    flow::{
        self, Ctx, deposit,
        keys::{self, Made},
        operator::{Operator, Refused},
        plans::{self, Edit},
        resolve::Resolved,
        tenants::{self, Created},
    },
    pack::Registry,
    store::{self, NewKey, NewLimits, SchemaState, Store, TenantRecord},
    telemetry,
};

const PAGE_ROWS: i64 = 500;
const REASON_CHARS_MAX: usize = 500;

/// The command was asked for something that cannot be: wrong usage, which exits with 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongUsage(pub String);

macro_rules! wrong_usage {
    ($($text:tt)*) => {
        return Err(WrongUsage(format!($($text)*)).into())
    };
}

/// Where a command's answer goes, and in which form.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// One JSON document instead of lines for people.
    pub json: bool,
}

impl Output {
    fn show(self, document: &Value, lines: impl FnOnce() -> String) -> anyhow::Result<()> {
        let text = if self.json { format!("{document}\n") } else { lines() };
        match std::io::stdout().write_all(text.as_bytes()) {
            // Whoever read us has heard enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }
}

fn store(settings: &Settings) -> anyhow::Result<Store> {
    let (url, _) = settings.database()?;
    Store::new(&url, 2)
}

async fn context(settings: &Settings) -> anyhow::Result<Arc<Ctx>> {
    Ok(Arc::new(parts::context(settings, &parts::aws().await)?))
}

/// A tenant by its id, or by a name that only it has.
async fn tenant(store: &Store, wanted: &str) -> anyhow::Result<TenantRecord> {
    if let Ok(id) = wanted.parse::<TenantId>() {
        return store.find_tenant(id).await?.with_context(|| format!("there is no tenant {id}"));
    }
    let mut named = store.tenants_named(wanted).await?;
    match (named.pop(), named.is_empty()) {
        (Some(tenant), true) => Ok(tenant),
        (Some(_), false) => {
            bail!("several tenants are called {wanted:?}; give the id (`dpp tenant list` has it)")
        }
        (None, _) => bail!("there is no tenant {wanted:?}; `dpp tenant list` has them all"),
    }
}

/// Whatever changes something logs it, as the admin API does.
fn begin(settings: &Settings) -> anyhow::Result<()> {
    let (filter, json) = settings.log();
    telemetry::init(&filter, json)
}

/// What a refusal is to somebody at a shell. Of wrong fields it names the options.
fn refused(refused: Refused) -> anyhow::Error {
    match refused {
        Refused::Fields(errors) => {
            let lines: Vec<_> =
                errors.iter().map(|error| format!("{} {}", option(&error.pointer), error.detail)).collect();
            WrongUsage(lines.join("\n")).into()
        }
        Refused::NoPlan(_) => anyhow!("{refused}; `dpp plan list` has them all"),
        Refused::Failed(error) => error.into(),
        refused => anyhow!("{refused}"),
    }
}

/// The option that sets a field: `/run_cost_max_usd` is `--run-cost-max`.
fn option(pointer: &str) -> String {
    let (field, pack) = pointer[1..].split_once('/').unwrap_or((&pointer[1..], ""));
    let name = match field {
        "allowed_packs" => "packs".to_owned(),
        field => field.trim_end_matches("_usd").replace("_secs", "_sec").replace('_', "-"),
    };
    if pack.is_empty() { format!("--{name}") } else { format!("--{name} {pack}=") }
}

/// `dpp migrate`
///
/// # Errors
/// When the database cannot be reached or a migration fails.
pub async fn migrate(settings: &Settings, output: Output) -> anyhow::Result<bool> {
    begin(settings)?;
    let applied = store::migrate(&settings.database_for_migrations()?).await?;
    output.show(&json!({ "applied": applied }), || match applied.len() {
        0 => "the database is up to date\n".to_owned(),
        _ => applied.iter().map(|name| format!("applied {name}\n")).collect(),
    })?;
    Ok(true)
}

/// `dpp migrate --check`
///
/// # Errors
/// When the database cannot be reached.
pub async fn check_schema(settings: &Settings, output: Output) -> anyhow::Result<bool> {
    let state = store::schema_state(&settings.database_for_migrations()?).await?;
    let (word, details) = match &state {
        SchemaState::Current => ("current", Vec::new()),
        SchemaState::Pending(names) => ("pending", names.clone()),
        SchemaState::Ahead(names) => ("ahead", names.clone()),
        SchemaState::Drifted(lines) => ("drifted", lines.clone()),
    };
    output.show(&json!({ "schema": word, "details": details }), || {
        details.iter().fold(format!("the schema is {word}\n"), |text, line| text + "  " + line + "\n")
    })?;
    Ok(state == SchemaState::Current)
}

/// Prints the catalogue of a migrated database, for `src/store/schema.txt`.
///
/// # Errors
/// When the database cannot be reached.
pub async fn print_schema(settings: &Settings) -> anyhow::Result<bool> {
    let listing = store::schema_listing(&settings.database_for_migrations()?).await?;
    std::io::stdout().write_all(listing.as_bytes())?;
    Ok(true)
}

/// `dpp openapi`
///
/// # Errors
/// When stdout takes nothing.
pub fn print_openapi() -> anyhow::Result<bool> {
    std::io::stdout().write_all(openapi::text().as_bytes())?;
    Ok(true)
}

/// `dpp tenant create`
///
/// # Errors
/// When it cannot be made; a tenant without its deposit is named in the error.
pub async fn create_tenant(
    settings: &Settings,
    output: Output,
    name: &str,
    plan: &str,
    deposit: Option<UsdMicros>,
) -> anyhow::Result<bool> {
    begin(settings)?;
    let created = tenants::create(&store(settings)?, Operator::Cli, name, plan, None).await;
    let (Created::New(tenant) | Created::Replayed(tenant)) = created.map_err(refused)?;
    if let Some(amount) = deposit.filter(|amount| !amount.is_zero()) {
        let reference = format!("tenant-create-{}", tenant.tenant_id);
        let posted = post(settings, tenant.tenant_id, amount, &reference).await;
        posted.with_context(|| {
            format!("tenant {} was made, but its deposit was not; repeat it with `dpp budget deposit --tenant {} --amount {amount} --reference {reference}`", tenant.tenant_id, tenant.tenant_id)
        })?;
    }
    output.show(&json!(tenant), || {
        let deposited = deposit.map(|amount| format!(", with ${amount}")).unwrap_or_default();
        format!("tenant {} ({}) on plan {}{deposited}\n", tenant.tenant_id, tenant.name, tenant.plan)
    })?;
    Ok(true)
}

/// `dpp tenant list`
///
/// # Errors
/// When the database cannot be reached.
pub async fn list_tenants(settings: &Settings, output: Output) -> anyhow::Result<bool> {
    let store = store(settings)?;
    let mut tenants = Vec::new();
    while let page =
        store.tenants(tenants.last().map(|tenant: &TenantRecord| tenant.tenant_id), PAGE_ROWS).await?
        && !page.is_empty()
    {
        tenants.extend(page);
    }
    output.show(&json!(tenants), || {
        tenants
            .iter()
            .map(|tenant| {
                format!("{}  {:<10} {:<12} {}\n", tenant.tenant_id, tenant.status, tenant.plan, tenant.name)
            })
            .collect()
    })?;
    Ok(true)
}

/// `dpp tenant suspend` and `resume`
///
/// # Errors
/// When there is no such tenant, or the database cannot be reached.
pub async fn suspend_tenant(
    settings: &Settings,
    output: Output,
    wanted: &str,
    suspended: bool,
) -> anyhow::Result<bool> {
    begin(settings)?;
    let store = store(settings)?;
    let found = tenant(&store, wanted).await?;
    let tenant = tenants::set_suspended(&store, Operator::Cli, found.tenant_id, suspended).await;
    let tenant = tenant.map_err(refused)?;
    output.show(&json!(tenant), || format!("tenant {} is {}\n", tenant.tenant_id, tenant.status))?;
    Ok(true)
}

/// What a new key may do, until when, and within which limits.
#[derive(Debug)]
pub struct Rights {
    /// What it may do.
    pub scopes: Scopes,
    /// Until when, if it ends by itself.
    pub expires_at: Option<DateTime<Utc>>,
    /// What it is limited to.
    pub limits: NewLimits,
}

/// `dpp key create`
///
/// # Errors
/// When there is no such tenant, or the database cannot be reached.
pub async fn create_key(
    settings: &Settings,
    output: Output,
    wanted: &str,
    label: &str,
    rights: Rights,
) -> anyhow::Result<bool> {
    begin(settings)?;
    let store = store(settings)?;
    let tenant_id = tenant(&store, wanted).await?.tenant_id;
    let Rights { mut scopes, expires_at, limits } = rights;
    if let Scopes::Only(scopes) = &mut scopes {
        scopes.sort();
        scopes.dedup();
    }
    let key = NewKey { tenant_id, label: label.to_owned(), scopes, expires_at, limits };
    match keys::create_by_operator(&store, Operator::Cli, key).await.map_err(refused)? {
        Made::Key(record, key) => show_secret(output, &record, &key),
        Made::Ended => bail!("--expires-at must be in the future"),
        _ => bail!("the key was not made"),
    }
}

fn show_secret(output: Output, record: &store::KeyRecord, key: &ApiKey) -> anyhow::Result<bool> {
    let document = json!({
        "key_id": record.key_id,
        "tenant_id": record.tenant_id,
        "key": key.reveal(),
        "label": record.label,
        "created_at": record.created_at,
    });
    output.show(&document, || {
        format!(
            "key {} of tenant {}\n{}\nThis is the only time that the key is shown.\n",
            record.key_id,
            record.tenant_id,
            key.reveal()
        )
    })?;
    Ok(true)
}

/// `dpp key list`
///
/// # Errors
/// When there is no such tenant, or the database cannot be reached.
pub async fn list_keys(settings: &Settings, output: Output, wanted: &str) -> anyhow::Result<bool> {
    let store = store(settings)?;
    let tenant = tenant(&store, wanted).await?;
    let keys = store.keys(tenant.tenant_id).await?;
    output.show(&json!(keys), || {
        let state = |key: &store::KeyRecord| match (key.revoked_at, key.expires_at) {
            (Some(at), _) => format!("revoked {}", at.to_rfc3339()),
            (None, Some(at)) => format!("until {}", at.to_rfc3339()),
            (None, None) => "active".to_owned(),
        };
        keys.iter().map(|key| format!("{}  {:<36} {}\n", key.key_id, state(key), key.label)).collect()
    })?;
    Ok(true)
}

/// `dpp key rotate`
///
/// # Errors
/// When there is no such working key, or the database cannot be reached.
pub async fn rotate_key(
    settings: &Settings,
    output: Output,
    key_id: KeyId,
    grace: Duration,
) -> anyhow::Result<bool> {
    begin(settings)?;
    let made = keys::rotate_by_operator(&store(settings)?, Operator::Cli, key_id, grace).await;
    match made.map_err(refused)? {
        Made::Key(record, key) => show_secret(output, &record, &key),
        _ => bail!("there is no key {key_id} that works and has no successor"),
    }
}

/// `dpp key revoke`
///
/// # Errors
/// When there is no such key, or the database cannot be reached.
pub async fn revoke_key(settings: &Settings, output: Output, key_id: KeyId) -> anyhow::Result<bool> {
    begin(settings)?;
    let record = keys::revoke_by_operator(&store(settings)?, Operator::Cli, key_id).await?;
    let record = record.with_context(|| format!("there is no key {key_id}"))?;
    output.show(&json!(record), || format!("key {} is revoked\n", record.key_id))?;
    Ok(true)
}

/// `dpp plan list`
///
/// # Errors
/// When the database cannot be reached.
pub async fn list_plans(settings: &Settings, output: Output) -> anyhow::Result<bool> {
    let plans = store(settings)?.plans().await?;
    output.show(&json!(plans), || plans.iter().map(plan_line).collect())?;
    Ok(true)
}

fn plan_line(plan: &Plan) -> String {
    let amount = |amount: UsdMicros| match amount.is_zero() {
        true => "unlimited".to_owned(),
        false => format!("${amount}"),
    };
    let count = |count: i32| if count == 0 { "unlimited".to_owned() } else { count.to_string() };
    let packs = plan.allowed_packs.as_ref().map_or("all".to_owned(), |packs| packs.join(","));
    let caps: String = plan.pack_cost_max.iter().map(|(pack, cap)| format!(" ({pack} ${cap})")).collect();
    format!(
        "{:<12} packs {packs}, run cost max ${}{caps}, runs per minute {}, polls per minute {}, \
         concurrent runs max {}, monthly spend max {}, timebox max {} s, retention {} days\n",
        plan.plan,
        plan.reservation_max(),
        count(plan.runs_per_minute),
        count(plan.polls_per_minute),
        count(plan.concurrent_runs_max),
        amount(plan.monthly_spend_max),
        plan.timebox_secs_max,
        plan.retention_days,
    )
}

/// `dpp plan set`: makes a plan, or changes what is named of one.
///
/// # Errors
/// When a limit is out of its bounds, a new plan is not named in full, or the database cannot be reached.
pub async fn set_plan(settings: &Settings, output: Output, name: &str, edit: Edit) -> anyhow::Result<bool> {
    begin(settings)?;
    let packs = Registry::new(parts::packs(settings));
    let set = plans::edit(&store(settings)?, &packs, Operator::Cli, name, edit).await.map_err(refused)?;
    output.show(&json!(set.plan), || plan_line(&set.plan))?;
    Ok(true)
}

/// `dpp plan assign`
///
/// # Errors
/// When there is no such tenant or plan, or the database cannot be reached.
pub async fn assign_plan(
    settings: &Settings,
    output: Output,
    wanted: &str,
    plan: &str,
) -> anyhow::Result<bool> {
    begin(settings)?;
    let store = store(settings)?;
    let found = tenant(&store, wanted).await?;
    let tenant = tenants::assign_plan(&store, Operator::Cli, found.tenant_id, plan).await.map_err(refused)?;
    output.show(&json!(tenant), || format!("tenant {} is on plan {}\n", tenant.tenant_id, tenant.plan))?;
    Ok(true)
}

/// `dpp budget show`
///
/// # Errors
/// When there is no such tenant, or the database cannot be reached.
pub async fn show_budget(settings: &Settings, output: Output, wanted: &str) -> anyhow::Result<bool> {
    let store = store(settings)?;
    let tenant = tenant(&store, wanted).await?;
    show_balance(output, &store, tenant.tenant_id).await
}

async fn show_balance(output: Output, store: &Store, tenant_id: TenantId) -> anyhow::Result<bool> {
    let balance = store.balance(tenant_id).await?;
    let document = json!({
        "tenant_id": tenant_id,
        "deposited_usd": balance.deposited,
        "available_usd": balance.available,
        "held_usd": balance.held,
        "charged_usd": balance.charged,
    });
    output.show(&document, || {
        format!(
            "deposited ${}\navailable ${}\nheld      ${}\ncharged   ${}\n",
            balance.deposited, balance.available, balance.held, balance.charged
        )
    })?;
    Ok(true)
}

/// `dpp budget deposit`
///
/// # Errors
/// When it cannot be posted, or its reference was used for another amount.
pub async fn deposit(
    settings: &Settings,
    output: Output,
    wanted: &str,
    amount: UsdMicros,
    reference: &str,
) -> anyhow::Result<bool> {
    begin(settings)?;
    let store = store(settings)?;
    let tenant = tenant(&store, wanted).await?;
    if post(settings, tenant.tenant_id, amount, reference).await? {
        eprint_line(&format!("reference {reference:?} was deposited before; nothing changed"));
    }
    show_balance(output, &store, tenant.tenant_id).await
}

/// Whether it was deposited before.
async fn post(
    settings: &Settings,
    tenant_id: TenantId,
    amount: UsdMicros,
    reference: &str,
) -> anyhow::Result<bool> {
    let cx = context(settings).await?;
    let posted = deposit::by_operator(&cx, Operator::Cli, tenant_id, amount, reference).await;
    Ok(posted.map_err(refused)?.replayed)
}

/// `dpp run resolve`
///
/// # Errors
/// When there is no such run, it does not wait for a person, or the charge is above its hold.
pub async fn resolve_run(
    settings: &Settings,
    output: Output,
    run_id: RunId,
    charge: UsdMicros,
    reason: &str,
) -> anyhow::Result<bool> {
    if reason.trim().is_empty() || reason.chars().count() > REASON_CHARS_MAX {
        wrong_usage!("--reason is 1 to {REASON_CHARS_MAX} characters; the buyer sees it");
    }
    if !charge.is_whole_grain() {
        wrong_usage!("--charge has at most 4 decimals");
    }
    let cx = context(settings).await?;
    let run = match flow::resolve::resolve(&cx, run_id, charge, reason).await? {
        Resolved::Ended(run) => run,
        Resolved::Absent => bail!("there is no run {run_id}"),
        Resolved::NotWaiting(run) => bail!(
            "run {run_id} does not wait for a person: it is {} and its money {}; nothing changed",
            run.state.status(),
            run.state.money_state()
        ),
        Resolved::AboveHold { reserved } => {
            bail!("--charge is above the run's hold of ${reserved}; nothing changed")
        }
    };
    let document = json!({
        "run_id": run.run_id,
        "tenant_id": run.tenant_id,
        "status": run.state.status(),
        "money_state": run.state.money_state(),
        "actual_cost_usd": run.state.charge(),
    });
    output.show(&document, || {
        format!("run {run_id} is {}, its money {}\n", run.state.status(), run.state.money_state())
    })?;
    Ok(true)
}

/// `dpp audit`: `Ok(true)` balanced, `Ok(false)` not.
///
/// # Errors
/// When something could not be looked at.
pub async fn audit(settings: &Settings, output: Output, receipts: bool) -> anyhow::Result<bool> {
    let cx = context(settings).await?;
    let audit = flow::audit::audit(&cx, receipts).await?;
    let balanced = audit.differences.is_empty();
    if audit.truncated {
        let shown = flow::audit::FINDINGS_MAX;
        eprint_line(&format!("there are more than {shown} differences; these are the first"));
    }
    let document = json!({
        "balanced": balanced,
        "tenants": audit.tenants,
        "runs": audit.runs,
        "differences": audit.differences,
    });
    output.show(&document, || {
        let head = if balanced { "balanced" } else { "NOT balanced" };
        audit.differences.iter().fold(
            format!("{head}: {} tenants, {} runs\n", audit.tenants, audit.runs),
            |text, difference| {
                let run = difference.run_id.map(|run| format!(" run {run}")).unwrap_or_default();
                text + &format!(
                    "{} tenant {}{run}: expected {} micros, found {}: {}\n",
                    difference.kind,
                    difference.tenant_id,
                    difference.expected_usd_micros,
                    difference.found_usd_micros,
                    difference.detail
                )
            },
        )
    })?;
    Ok(balanced)
}

/// `dpp doctor`: `Ok(true)` when all is well. `loaded` is what became of reading the settings.
///
/// # Errors
/// When its own output cannot be written.
pub async fn doctor(loaded: Result<Settings, crate::config::Error>, output: Output) -> anyhow::Result<bool> {
    let mut checks: Vec<(&str, Result<String, String>)> = Vec::new();
    match loaded {
        Err(error) => checks.push(("settings", Err(error.to_string()))),
        Ok(settings) => match settings.complete() {
            Err(error) => checks.push(("settings", Err(error.to_string()))),
            Ok(()) => {
                checks.push(("settings", Ok(format!("environment {}", settings.environment()))));
                examine(&settings, &mut checks).await;
            }
        },
    }
    let well = checks.iter().all(|(_, outcome)| outcome.is_ok());
    let document: Vec<_> = checks
        .iter()
        .map(|(check, outcome)| match outcome {
            Ok(detail) => json!({"check": check, "ok": true, "detail": detail}),
            Err(detail) => json!({"check": check, "ok": false, "detail": detail}),
        })
        .collect();
    output.show(&json!({ "ok": well, "checks": document }), || {
        checks
            .iter()
            .map(|(check, outcome)| match outcome {
                Ok(detail) => format!("ok    {check}: {detail}\n"),
                Err(detail) => format!("WRONG {check}: {detail}\n"),
            })
            .collect()
    })?;
    Ok(well)
}

async fn examine(settings: &Settings, checks: &mut Vec<(&'static str, Result<String, String>)>) {
    let chain = |error: anyhow::Error| format!("{error:#}");
    let database = match settings.database_for_migrations() {
        Err(error) => Err(error.to_string()),
        Ok(url) => match store::schema_state(&url).await {
            Err(error) => Err(format!("{error:#}: check DATABASE_URL and that PostgreSQL runs")),
            Ok(SchemaState::Current) => Ok("reachable, schema current".to_owned()),
            Ok(SchemaState::Pending(names)) => {
                Err(format!("{} migrations are pending: run `dpp migrate`", names.len()))
            }
            Ok(SchemaState::Ahead(_)) => {
                Err("the database is newer than this build: deploy a newer build".to_owned())
            }
            Ok(SchemaState::Drifted(lines)) => {
                Err(format!("the schema was changed by hand: {}", lines.join("; ")))
            }
        },
    };
    checks.push(("database", database));
    match context(settings).await {
        Err(error) => checks.push(("dependencies", Err(chain(error)))),
        Ok(cx) => {
            let word = |answer: Result<(), anyhow::Error>, mend: &str| match answer {
                Ok(()) => Ok("reachable".to_owned()),
                Err(error) => Err(format!("{error:#}: {mend}")),
            };
            let redis = cx.budget.ping().await.map_err(anyhow::Error::from);
            checks.push(("redis", word(redis, "check REDIS_URL and REDIS_PASSWORD, and that Redis runs")));
            if let Ok(Some(policy)) = cx.budget.evicts().await {
                let wrong = format!(
                    "maxmemory-policy is {policy}: Redis would throw holds away; set it to noeviction"
                );
                checks.push(("redis eviction", Err(wrong)));
            }
            let queue = cx.queue.ping().await.map_err(anyhow::Error::from);
            checks.push((
                "sqs",
                word(queue, "check SQS_QUEUE_URL, SQS_ENDPOINT_URL, AWS_REGION and the AWS credentials"),
            ));
            if let Some(dlq) = cx.queue.ping_dlq().await {
                checks.push((
                    "sqs dead-letter queue",
                    word(dlq.map_err(anyhow::Error::from), "check SQS_DLQ_URL"),
                ));
            }
            let results = cx.results.ping().await.map_err(anyhow::Error::from);
            checks.push((
                "s3",
                word(results, "check S3_RESULT_BUCKET, S3_ENDPOINT_URL, AWS_REGION and the AWS credentials"),
            ));
        }
    }
}

/// One line to the operator, beside the answer.
pub fn eprint_line(text: &str) {
    // There is nowhere to report that stderr is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}
