//! The command line: its grammar, and which role or command each word is. No logic.

#[cfg(feature = "dev")]
use std::path::PathBuf;
use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use clap::{Args, Parser, Subcommand};

use crate::{
    config::Settings,
    domain::{
        id::{KeyId, RunId},
        money::{BadAmount, UsdMicros},
        scope::{Scope, Scopes},
    },
    flow::{plans::Edit, tenants::PLAN_DEFAULT},
    role::{
        self,
        admin::{self, Output},
    },
    store::NewLimits,
};

/// DPP, the Decision Pack Platform: paid units of work for AI agents, each with a hard price cap.
///
/// Settings come from config/default.toml, config/$DPP_ENV.toml and the environment;
/// `dpp doctor` says what is wrong with them.
#[derive(Debug, Parser)]
#[command(name = "dpp", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything on one machine: services, API, worker, reaper, a tenant with $100.00 and a key.
    #[cfg(feature = "dev")]
    Dev(DevArgs),
    /// The API. SIGTERM drains.
    Serve,
    /// A worker. SIGTERM drains, then hands back what is left.
    Work,
    /// A reaper: repairs what the dead left. Several are safe.
    Reap,
    /// Applies pending migrations.
    Migrate {
        /// Only compares: exit 1 when the database and this build differ.
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        form: Form,
    },
    /// Tenants.
    #[command(subcommand)]
    Tenant(Tenant),
    /// API keys.
    #[command(subcommand)]
    Key(Key),
    /// Plans.
    #[command(subcommand)]
    Plan(Plan),
    /// Budgets.
    #[command(subcommand)]
    Budget(Budget),
    /// Runs that wait for a person.
    #[command(subcommand)]
    Run(Run),
    /// Proves the money: ledger against runs, Redis and, where asked, S3. Exit 0 balanced, 1 not, 2
    /// could not look.
    Audit {
        /// Also reads every kept result and compares its receipt and its bytes.
        #[arg(long)]
        receipts: bool,
        #[command(flatten)]
        form: Form,
    },
    /// Says which setting or dependency is wrong, and how to mend it.
    Doctor {
        #[command(flatten)]
        form: Form,
    },
    /// Prints the OpenAPI 3.1 document of the API.
    Openapi,
    /// Prints the catalogue of the migrated database, for src/store/schema.txt.
    #[command(hide = true)]
    Schema,
}

#[cfg(feature = "dev")]
#[derive(Debug, Args)]
struct DevArgs {
    /// The API's port.
    #[arg(long)]
    port: Option<u16>,
    /// Where state lives.
    #[arg(long, default_value = ".dpp")]
    data_dir: PathBuf,
    /// Starts the four services only, prints the settings of roles that use them, and stays up.
    #[arg(long)]
    services_only: bool,
}

#[derive(Clone, Copy, Debug, Args)]
struct Form {
    /// One JSON document on stdout, nothing else.
    #[arg(long)]
    json: bool,
}

impl From<Form> for Output {
    fn from(form: Form) -> Self {
        Self { json: form.json }
    }
}

#[derive(Debug, Subcommand)]
enum Tenant {
    /// Makes a tenant.
    Create {
        /// Its name; need not be unique.
        #[arg(long)]
        name: String,
        /// Its plan.
        #[arg(long, default_value = PLAN_DEFAULT)]
        plan: String,
        /// Its first deposit, in US dollars.
        #[arg(long, value_name = "USD", allow_negative_numbers = true)]
        deposit: Option<UsdMicros>,
        #[command(flatten)]
        form: Form,
    },
    /// Lists all tenants.
    List {
        #[command(flatten)]
        form: Form,
    },
    /// Stops a tenant from buying, and its waiting runs from running.
    Suspend {
        /// Id, or a name that only it has.
        #[arg(value_name = "TENANT", required_unless_present = "tenant_option")]
        tenant: Option<String>,
        #[arg(long = "tenant", value_name = "TENANT", conflicts_with = "tenant", hide = true)]
        tenant_option: Option<String>,
        #[command(flatten)]
        form: Form,
    },
    /// Lets a suspended tenant buy again.
    Resume {
        /// Id, or a name that only it has.
        #[arg(value_name = "TENANT", required_unless_present = "tenant_option")]
        tenant: Option<String>,
        #[arg(long = "tenant", value_name = "TENANT", conflicts_with = "tenant", hide = true)]
        tenant_option: Option<String>,
        #[command(flatten)]
        form: Form,
    },
}

#[derive(Debug, Subcommand)]
enum Key {
    /// Makes a key; the secret is shown once.
    Create {
        /// Whose: id, or a name that only it has.
        #[arg(long)]
        tenant: String,
        /// Your name for it.
        #[arg(long, default_value = "")]
        label: String,
        /// What it may do: runs:write, runs:read, usage:read, keys:manage; all when left out.
        #[arg(long = "scope", value_parser = scope)]
        scopes: Vec<Scope>,
        /// When it stops working, such as 2028-02-29T12:00:00Z.
        #[arg(long)]
        expires_at: Option<DateTime<Utc>>,
        /// The most that its runs may cost, ever, together with those of keys made with it.
        #[arg(long, value_parser = above_zero)]
        max_spend: Option<UsdMicros>,
        /// New runs in any minute; 0 is without limit.
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..))]
        runs_per_minute: i32,
        /// Other requests in any minute; 0 is without limit.
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..))]
        polls_per_minute: i32,
        #[command(flatten)]
        form: Form,
    },
    /// Lists a tenant's keys, without secrets.
    List {
        /// Whose: id, or a name that only it has.
        #[arg(long)]
        tenant: String,
        #[command(flatten)]
        form: Form,
    },
    /// Makes a successor; the old key works a while longer.
    Rotate {
        /// The old key's id, not the key.
        key_id: String,
        /// How long the old key still works, in seconds.
        #[arg(long, default_value_t = 86_400)]
        grace_sec: u32,
        #[command(flatten)]
        form: Form,
    },
    /// Ends a key, everywhere within seconds.
    Revoke {
        /// The key's id, not the key.
        key_id: String,
        #[command(flatten)]
        form: Form,
    },
}

#[derive(Debug, Subcommand)]
enum Plan {
    /// Lists all plans.
    List {
        #[command(flatten)]
        form: Form,
    },
    /// Makes a plan, or edits one: what is not named stays.
    Set {
        /// The plan.
        #[arg(long, value_name = "NAME")]
        plan: String,
        #[command(flatten)]
        limits: Limits,
        #[command(flatten)]
        form: Form,
    },
    /// Puts a tenant on a plan.
    Assign {
        /// Which: id, or a name that only it has.
        #[arg(long)]
        tenant: String,
        /// The plan.
        #[arg(long)]
        plan: String,
        #[command(flatten)]
        form: Form,
    },
}

/// A new plan needs all of them but --packs (all) and --pack-cost-max (none).
#[derive(Debug, Args)]
struct Limits {
    /// The packs that it may buy, with commas between, or all.
    #[arg(long, value_name = "PACKS")]
    packs: Option<String>,
    /// The most that one run may reserve, in US dollars; 0 leaves the platform's limit.
    #[arg(long, value_name = "USD", allow_negative_numbers = true)]
    run_cost_max: Option<UsdMicros>,
    /// The same for runs of one pack; 0 removes it. May be repeated; packs that are not named stay.
    #[arg(long, value_name = "PACK=USD", value_parser = pack_cap)]
    pack_cost_max: Vec<(String, UsdMicros)>,
    /// Submits a minute; 0 is without limit.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    runs_per_minute: Option<i64>,
    /// Reads a minute; 0 is without limit.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    polls_per_minute: Option<i64>,
    /// Runs open at once; 0 is without limit.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    concurrent_runs_max: Option<i64>,
    /// The most that a UTC month may cost, in US dollars; 0 is without limit.
    #[arg(long, value_name = "USD", allow_negative_numbers = true)]
    monthly_spend_max: Option<UsdMicros>,
    /// The longest timebox, in seconds.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    timebox_sec_max: Option<i64>,
    /// How long results are kept.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    retention_days: Option<i64>,
}

fn above_zero(text: &str) -> Result<UsdMicros, String> {
    let amount: UsdMicros = text.parse().map_err(|bad: BadAmount| bad.to_string())?;
    if amount.is_zero() { Err("must be above 0; leave it out for no limit".to_owned()) } else { Ok(amount) }
}

fn scope(text: &str) -> Result<Scope, String> {
    let names = || Scope::ALL.map(Scope::name).join(", ");
    Scope::named(text).ok_or_else(|| format!("must be one of {}", names()))
}

fn pack_cap(text: &str) -> Result<(String, UsdMicros), String> {
    let (pack, cap) = text.split_once('=').ok_or("must be PACK=USD, such as decision=5.00")?;
    Ok((pack.to_owned(), cap.parse().map_err(|bad| format!("{bad}"))?))
}

impl From<Limits> for Edit {
    fn from(limits: Limits) -> Self {
        let packs = |text: String| match text.as_str() {
            "all" => None,
            names => Some(names.split(',').map(|name| name.trim().to_owned()).collect()),
        };
        Self {
            allowed_packs: limits.packs.map(packs),
            run_cost_max: limits.run_cost_max,
            pack_cost_max: BTreeMap::from_iter(limits.pack_cost_max),
            runs_per_minute: limits.runs_per_minute,
            polls_per_minute: limits.polls_per_minute,
            concurrent_runs_max: limits.concurrent_runs_max,
            monthly_spend_max: limits.monthly_spend_max,
            timebox_secs_max: limits.timebox_sec_max,
            retention_days: limits.retention_days,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Budget {
    /// Shows what a tenant's ledger says.
    Show {
        /// Which: id, or a name that only it has.
        #[arg(long)]
        tenant: String,
        #[command(flatten)]
        form: Form,
    },
    /// Deposits; a repeated reference deposits once.
    Deposit {
        /// Whose: id, or a name that only it has.
        #[arg(long)]
        tenant: String,
        /// US dollars, with at most 4 decimals.
        #[arg(long, value_name = "USD", allow_negative_numbers = true)]
        amount: UsdMicros,
        /// Your name for this deposit, such as a payment's id.
        #[arg(long, value_name = "REF")]
        reference: String,
        #[command(flatten)]
        form: Form,
    },
}

#[derive(Debug, Subcommand)]
enum Run {
    /// Ends a run that waits in AUDIT_REQUIRED: charges some of its hold, or none.
    #[command(group = clap::ArgGroup::new("verdict").required(true))]
    Resolve {
        /// The run.
        run_id: RunId,
        /// Charges this much of the hold, in US dollars, and releases the rest.
        #[arg(long, value_name = "USD", group = "verdict", allow_negative_numbers = true)]
        charge: Option<UsdMicros>,
        /// Releases the whole hold.
        #[arg(long, group = "verdict")]
        release: bool,
        /// Why; the buyer sees it as the run's error.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        form: Form,
    },
}

impl Cli {
    /// Does what was asked; the exit code is 0, 1 (failed), or 2 (could not look).
    pub async fn run(self) -> u8 {
        let could_not = match &self.command {
            Command::Audit { .. } => 2,
            _ => 1,
        };
        match self.command.run().await {
            Ok(true) => 0,
            Ok(false) => 1,
            Err(error) => {
                admin::eprint_line(&format!("dpp: {error:#}"));
                if error.is::<admin::WrongUsage>() { 2 } else { could_not }
            }
        }
    }
}

impl Command {
    async fn run(self) -> anyhow::Result<bool> {
        let settings = Settings::load();
        match self {
            Self::Doctor { form } => admin::doctor(settings, form.into()).await,
            Self::Openapi => admin::print_openapi(),
            #[cfg(feature = "dev")]
            Self::Dev(args) => {
                let wishes = role::dev::Wishes {
                    port: args.port,
                    data_dir: args.data_dir,
                    services_only: args.services_only,
                };
                role::dev::run(crate::config::environment(), &wishes).await
            }
            other => other.run_with(&settings?).await,
        }
    }

    async fn run_with(self, settings: &Settings) -> anyhow::Result<bool> {
        match self {
            Self::Serve => role::serve(settings).await,
            Self::Work => role::work(settings).await,
            Self::Reap => role::reap(settings).await,
            Self::Migrate { check: false, form } => admin::migrate(settings, form.into()).await,
            Self::Migrate { check: true, form } => admin::check_schema(settings, form.into()).await,
            Self::Tenant(command) => command.run(settings).await,
            Self::Key(command) => command.run(settings).await,
            Self::Plan(Plan::List { form }) => admin::list_plans(settings, form.into()).await,
            Self::Plan(Plan::Set { plan, limits, form }) => {
                admin::set_plan(settings, form.into(), &plan, limits.into()).await
            }
            Self::Plan(Plan::Assign { tenant, plan, form }) => {
                admin::assign_plan(settings, form.into(), &tenant, &plan).await
            }
            Self::Budget(Budget::Show { tenant, form }) => {
                admin::show_budget(settings, form.into(), &tenant).await
            }
            Self::Budget(Budget::Deposit { tenant, amount, reference, form }) => {
                admin::deposit(settings, form.into(), &tenant, amount, &reference).await
            }
            Self::Run(Run::Resolve { run_id, charge, release: _, reason, form }) => {
                let charge = charge.unwrap_or(UsdMicros::ZERO);
                admin::resolve_run(settings, form.into(), run_id, charge, &reason).await
            }
            Self::Audit { receipts, form } => admin::audit(settings, form.into(), receipts).await,
            Self::Schema => admin::print_schema(settings).await,
            #[cfg(feature = "dev")]
            Self::Dev(_) => Ok(false),
            Self::Doctor { .. } | Self::Openapi => Ok(false),
        }
    }
}

impl Tenant {
    async fn run(self, settings: &Settings) -> anyhow::Result<bool> {
        match self {
            Self::Create { name, plan, deposit, form } => {
                admin::create_tenant(settings, form.into(), &name, &plan, deposit).await
            }
            Self::List { form } => admin::list_tenants(settings, form.into()).await,
            Self::Suspend { tenant, tenant_option, form } => {
                let tenant = tenant.or(tenant_option).unwrap_or_default();
                admin::suspend_tenant(settings, form.into(), &tenant, true).await
            }
            Self::Resume { tenant, tenant_option, form } => {
                let tenant = tenant.or(tenant_option).unwrap_or_default();
                admin::suspend_tenant(settings, form.into(), &tenant, false).await
            }
        }
    }
}

impl Key {
    async fn run(self, settings: &Settings) -> anyhow::Result<bool> {
        match self {
            Self::Create {
                tenant,
                label,
                scopes,
                expires_at,
                max_spend,
                runs_per_minute,
                polls_per_minute,
                form,
            } => {
                let limited = max_spend.is_some() || runs_per_minute > 0 || polls_per_minute > 0;
                let limits = match limited {
                    true => NewLimits::Own { runs_per_minute, polls_per_minute, spend_max: max_spend },
                    false => NewLimits::Unlimited,
                };
                let scopes = if scopes.is_empty() { Scopes::All } else { Scopes::Only(scopes) };
                let rights = admin::Rights { scopes, expires_at, limits };
                admin::create_key(settings, form.into(), &tenant, &label, rights).await
            }
            Self::List { tenant, form } => admin::list_keys(settings, form.into(), &tenant).await,
            Self::Rotate { key_id, grace_sec, form } => {
                admin::rotate_key(
                    settings,
                    form.into(),
                    read_key_id(&key_id)?,
                    Duration::from_secs(grace_sec.into()),
                )
                .await
            }
            Self::Revoke { key_id, form } => {
                admin::revoke_key(settings, form.into(), read_key_id(&key_id)?).await
            }
        }
    }
}

/// Read here and not by clap, which would repeat what it was given: perhaps the secret.
fn read_key_id(text: &str) -> anyhow::Result<KeyId> {
    let wrong =
        "KEY_ID is the id of a key, a UUID, and not the key itself; `dpp key list --tenant T` has the ids";
    text.parse().ok().ok_or_else(|| admin::WrongUsage(wrong.to_owned()).into())
}
