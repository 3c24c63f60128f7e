//! What goes over the wire: the shape of every body, asked and answered.
//!
//! The OpenAPI document is made of these ([`super::openapi`]): a comment here is a description there, and an
//! example is shown as it stands. Answers hold what a domain type may not know: how money and ids are
//! written.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{
    ToSchema,
    openapi::{ArrayBuilder, ObjectBuilder, Type},
};
use uuid::Uuid;

use crate::{
    domain::{
        limit,
        money::UsdMicros,
        plan,
        run::{self, RunState},
        scope::{Scope, Scopes},
    },
    flow::read::Link,
    pack::{FieldError, Terms},
    store::{self, Balance, KeyRecord, TenantRecord},
};

/// An amount of US dollars with 4 decimals.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(value_type = String, pattern = r"^[0-9]{1,10}\.[0-9]{4}$", examples("5.0000"))]
pub struct Usd(pub UsdMicros);

impl From<UsdMicros> for Usd {
    fn from(amount: UsdMicros) -> Self {
        Self(amount)
    }
}

/// One unit of bought work.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "run_id": "019abcde-1234-7000-8000-0123456789ab",
    "pack_type": "decision",
    "status": "COMPLETED",
    "money_state": "SETTLED",
    "created_at": "2028-02-29T12:00:00.123456Z",
    "started_at": "2028-02-29T12:00:00.140212Z",
    "completed_at": "2028-02-29T12:00:00.201003Z",
    "retention_until": "2028-03-30T12:00:00.201003Z",
    "reserved_cost_usd": "1.0000",
    "actual_cost_usd": "0.0120",
    "minimum_fee_usd": "0.0200",
    "result_url": "https://results.example.com/019abcde/pack_envelope.json?X-Amz-Signature=0123",
    "result_url_expires_at": "2028-02-29T12:15:00.300000Z",
    "result_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "error": null,
    "attempts": 1,
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "metadata": {"order": "1234"},
})))]
pub struct Run {
    /// Its id.
    pub run_id: Uuid,
    /// What was bought.
    pub pack_type: String,
    /// Where it stands. The last four are final.
    #[schema(schema_with = statuses)]
    pub status: &'static str,
    /// What became of the hold: RESERVED while it is open, SETTLED once something was charged, REFUNDED once
    /// all of it returned, AUDIT_REQUIRED while a person must decide.
    #[schema(schema_with = money_states)]
    pub money_state: &'static str,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When work on it began.
    #[schema(required)]
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[schema(required)]
    pub completed_at: Option<DateTime<Utc>>,
    /// From this instant on it answers 410.
    #[schema(required)]
    pub retention_until: Option<DateTime<Utc>>,
    /// What is held for it: the most that it may cost.
    pub reserved_cost_usd: Usd,
    /// What it cost; null until it has ended.
    #[schema(required)]
    pub actual_cost_usd: Option<Usd>,
    /// What it pays at least once it was worked on and did not complete.
    pub minimum_fee_usd: Usd,
    /// Where its result can be downloaded, without a key; null unless COMPLETED.
    #[schema(required, format = "uri")]
    pub result_url: Option<String>,
    /// Until when `result_url` works. Ask for the run again for a new one.
    #[schema(required)]
    pub result_url_expires_at: Option<DateTime<Utc>>,
    /// SHA-256 of the result's bytes, in hex.
    #[schema(required, pattern = "^[0-9a-f]{64}$")]
    pub result_sha256: Option<String>,
    /// Why it ended without a result: of FAILED and EXPIRED runs.
    #[schema(required)]
    pub error: Option<RunError>,
    /// How often work on it began.
    #[schema(minimum = 0)]
    pub attempts: i32,
    /// The trace of the request that bought it.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub trace_id: String,
    /// The buyer's own notes.
    #[schema(value_type = BTreeMap<String, String>)]
    pub metadata: Value,
}

/// Why a run ended without a result.
#[derive(Serialize, ToSchema)]
pub struct RunError {
    /// A stable word.
    #[schema(examples("expired_in_queue"))]
    pub reason_code: String,
    /// A sentence.
    pub detail: String,
}

impl Run {
    /// As its owner sees it; `link` leads to its result, which is shown with one or not at all.
    pub fn of(run: &run::Run, link: Option<&Link>) -> Self {
        let end = run.state.end();
        let error = match &run.state {
            RunState::Failed { reason, .. } | RunState::Expired { reason, .. } => {
                Some(RunError { reason_code: reason.code.clone(), detail: reason.detail.clone() })
            }
            _ => None,
        };
        Self {
            run_id: run.run_id.0,
            pack_type: run.pack_type.clone(),
            status: run.state.status(),
            money_state: run.state.money_state(),
            created_at: run.created_at,
            started_at: run.started_at,
            completed_at: end.map(|end| end.completed_at),
            retention_until: end.map(|end| end.retention_until),
            reserved_cost_usd: run.reserved.into(),
            actual_cost_usd: run.state.charge().map(Usd),
            minimum_fee_usd: run.minimum_fee.into(),
            result_url: link.map(|link| link.url.clone()),
            result_url_expires_at: link.map(|link| link.expires_at),
            result_sha256: run.result().filter(|_| link.is_some()).map(|result| result.sha256.clone()),
            error,
            attempts: run.attempts,
            trace_id: run.trace_id.to_string(),
            metadata: run.metadata.clone(),
        }
    }
}

/// A page of a list.
#[derive(Serialize, ToSchema)]
pub struct Page<T> {
    /// Newest first.
    pub data: Vec<T>,
    /// Send it back as `cursor` for the page that follows; null on the last one.
    #[schema(required, examples("c0ffee"))]
    pub next_cursor: Option<String>,
}

/// What a tenant has.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "tenant_id": "019abcde-1234-7000-8000-0123456789aa",
    "deposited_usd": "100.0000",
    "available_usd": "98.9880",
    "held_usd": "1.0000",
    "charged_usd": "0.0120",
    "plan": {
        "plan": "growth",
        "allowed_packs": null,
        "run_cost_max_usd": "100.0000",
        "pack_cost_max_usd": {"url": "1.0000"},
        "runs_per_minute": 600,
        "polls_per_minute": 6000,
        "concurrent_runs_max": 100,
        "monthly_spend_max_usd": "10000.0000",
        "timebox_secs_max": 600,
        "retention_days": 30,
    },
    "charged_this_month_usd": "0.0120",
    "key": {
        "limits_key_id": null,
        "runs_per_minute": null,
        "polls_per_minute": null,
        "max_spend_usd": null,
        "spent_usd": null,
    },
})))]
pub struct Budget {
    /// Whose.
    pub tenant_id: Uuid,
    /// All deposits so far.
    pub deposited_usd: Usd,
    /// What new runs can reserve.
    pub available_usd: Usd,
    /// What open runs hold.
    pub held_usd: Usd,
    /// What ended runs were charged.
    pub charged_usd: Usd,
    /// What the runs that ended in this UTC month were charged.
    pub charged_this_month_usd: Usd,
    /// What may be bought.
    pub plan: Plan,
    /// What the key of this request is limited to.
    pub key: KeyLimits,
}

/// What a key is limited to, together with its successors and the keys that were made with it; null where it
/// is not.
#[derive(Serialize, ToSchema)]
pub struct KeyLimits {
    /// The key that the limits were given to: all that share them name it.
    #[schema(required)]
    pub limits_key_id: Option<Uuid>,
    /// New runs in any minute.
    #[schema(required, minimum = 1)]
    pub runs_per_minute: Option<i32>,
    /// Other requests in any minute.
    #[schema(required, minimum = 1)]
    pub polls_per_minute: Option<i32>,
    /// The most that their runs may cost, ever.
    #[schema(required)]
    pub max_spend_usd: Option<Usd>,
    /// What their runs have cost, and open ones hold; null without `max_spend_usd`.
    #[schema(required)]
    pub spent_usd: Option<Usd>,
}

impl KeyLimits {
    /// Of a key.
    pub fn of(limits: Option<&limit::KeyLimits>, spent: Option<UsdMicros>) -> Self {
        let count = |count: i32| Some(count).filter(|count| *count > 0);
        let spend_max = limits.and_then(|limits| limits.spend_max);
        Self {
            limits_key_id: limits.map(|limits| limits.root.0),
            runs_per_minute: limits.and_then(|limits| count(limits.runs_per_minute)),
            polls_per_minute: limits.and_then(|limits| count(limits.polls_per_minute)),
            max_spend_usd: spend_max.map(Usd),
            spent_usd: spend_max.and(spent).map(Usd),
        }
    }
}

/// A plan's limits; null where it has none.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "plan": "growth",
    "allowed_packs": null,
    "run_cost_max_usd": "100.0000",
    "pack_cost_max_usd": {"url": "1.0000"},
    "runs_per_minute": 600,
    "polls_per_minute": 3000,
    "concurrent_runs_max": 50,
    "monthly_spend_max_usd": "10000.0000",
    "timebox_secs_max": 900,
    "retention_days": 30,
})))]
pub struct Plan {
    /// Its name.
    pub plan: String,
    /// The packs that may be bought; null for all.
    #[schema(required)]
    pub allowed_packs: Option<Vec<String>>,
    /// The most that one run may reserve; null leaves the platform's $10,000.
    #[schema(required)]
    pub run_cost_max_usd: Option<Usd>,
    /// The most that one run of a pack may reserve, beside that; a pack that is not named has no cap of its own.
    pub pack_cost_max_usd: BTreeMap<String, Usd>,
    /// New runs in any minute.
    #[schema(required, minimum = 1)]
    pub runs_per_minute: Option<i32>,
    /// Other requests in any minute.
    #[schema(required, minimum = 1)]
    pub polls_per_minute: Option<i32>,
    /// Runs open at once.
    #[schema(required, minimum = 1)]
    pub concurrent_runs_max: Option<i32>,
    /// The most that a UTC month may cost.
    #[schema(required)]
    pub monthly_spend_max_usd: Option<Usd>,
    /// The longest timebox that a run may ask for, in seconds.
    #[schema(minimum = 1)]
    pub timebox_secs_max: i32,
    /// How long results are kept.
    #[schema(minimum = 1)]
    pub retention_days: i32,
}

impl From<plan::Plan> for Plan {
    fn from(plan: plan::Plan) -> Self {
        let amount = |amount: UsdMicros| Some(amount).filter(|amount| !amount.is_zero()).map(Usd);
        let count = |count| Some(count).filter(|count| *count != 0);
        Self {
            plan: plan.plan,
            allowed_packs: plan.allowed_packs,
            run_cost_max_usd: amount(plan.run_cost_max),
            pack_cost_max_usd: plan.pack_cost_max.into_iter().map(|(pack, max)| (pack, Usd(max))).collect(),
            runs_per_minute: count(plan.runs_per_minute),
            polls_per_minute: count(plan.polls_per_minute),
            concurrent_runs_max: count(plan.concurrent_runs_max),
            monthly_spend_max_usd: amount(plan.monthly_spend_max),
            timebox_secs_max: plan.timebox_secs_max,
            retention_days: plan.retention_days,
        }
    }
}

/// How many runs ended, and what they were charged, over UTC days.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "start_date": "2028-02-01",
    "end_date": "2028-02-29",
    "total": {"runs": 2, "charged_usd": "0.0240"},
    "packs": [{"pack_type": "decision", "runs": 2, "charged_usd": "0.0240"}],
    "days": [{
        "date": "2028-02-29",
        "runs": 2,
        "charged_usd": "0.0240",
        "packs": [{"pack_type": "decision", "runs": 2, "charged_usd": "0.0240"}],
    }],
})))]
pub struct Usage {
    /// The first day.
    pub start_date: NaiveDate,
    /// The last day, included.
    pub end_date: NaiveDate,
    /// All of it.
    pub total: Sum,
    /// By pack.
    pub packs: Vec<PackUsage>,
    /// By day, those alone on which a run ended.
    pub days: Vec<DayUsage>,
}

/// Runs and their charges.
#[derive(Clone, Copy, Serialize, ToSchema)]
pub struct Sum {
    /// How many ended.
    #[schema(minimum = 0)]
    pub runs: u64,
    /// What they were charged.
    pub charged_usd: Usd,
}

/// The runs of one pack.
#[derive(Serialize, ToSchema)]
pub struct PackUsage {
    /// Which.
    pub pack_type: String,
    /// Their sum.
    #[serde(flatten)]
    #[schema(inline)]
    pub sum: Sum,
}

/// The runs of one UTC day.
#[derive(Serialize, ToSchema)]
pub struct DayUsage {
    /// Which.
    pub date: NaiveDate,
    /// Their sum.
    #[serde(flatten)]
    pub sum: Sum,
    /// By pack.
    pub packs: Vec<PackUsage>,
}

/// One entry of the tenant's account.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "kind": "charge",
    "debit": "held",
    "credit": "revenue",
    "amount_usd": "0.0120",
    "run_id": "019abcde-1234-7000-8000-0123456789ab",
    "reference": null,
    "created_at": "2028-02-29T12:00:00.201003Z",
    "available_usd": "98.9880",
})))]
pub struct Entry {
    /// What it is.
    #[schema(schema_with = kinds)]
    pub kind: String,
    /// The account that it was taken from.
    #[schema(schema_with = accounts)]
    pub debit: String,
    /// The account that it went to.
    #[schema(schema_with = accounts)]
    pub credit: String,
    /// How much.
    pub amount_usd: Usd,
    /// The run that it is of.
    #[schema(required)]
    pub run_id: Option<Uuid>,
    /// The deposit's or the adjustment's name.
    #[schema(required)]
    pub reference: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// What was available after it.
    pub available_usd: Usd,
}

impl From<&store::Entry> for Entry {
    fn from(entry: &store::Entry) -> Self {
        Self {
            kind: entry.kind.clone(),
            debit: entry.debit_account.clone(),
            credit: entry.credit_account.clone(),
            amount_usd: entry.amount.into(),
            run_id: entry.run_id.map(|run_id| run_id.0),
            reference: entry.reference.clone(),
            created_at: entry.created_at,
            available_usd: entry.available.into(),
        }
    }
}

/// Everything of a list that is not paged.
#[derive(Serialize, ToSchema)]
pub struct All<T> {
    /// All of them.
    pub data: Vec<T>,
}

/// A pack's terms: what it takes, what it yields, and what it costs.
#[derive(Serialize, ToSchema)]
pub struct Pack<'a> {
    /// The name by which it is bought.
    pub pack_type: &'a str,
    /// Changes whenever the output may change.
    pub version: &'a str,
    /// What it does.
    pub summary: &'a str,
    /// JSON Schema (2020-12) of `inputs`.
    #[schema(value_type = Object)]
    pub input_schema: &'a Value,
    /// JSON Schema (2020-12) of the result's `data`.
    #[schema(value_type = Object)]
    pub output_schema: &'a Value,
    /// What it costs.
    pub prices: Prices,
    /// Bounds, by name and unit.
    #[schema(value_type = Object)]
    pub limits: &'a Value,
}

/// A price list.
#[derive(Serialize, ToSchema)]
pub struct Prices {
    /// Charged once for every run.
    pub base_usd: Usd,
    /// Charged as used.
    pub units: Vec<UnitPrice>,
}

/// The price of one kind of unit.
#[derive(Serialize, ToSchema)]
pub struct UnitPrice {
    /// What is counted.
    #[schema(examples("score"))]
    pub unit: &'static str,
    /// The price of one.
    pub price_usd: Usd,
}

impl<'a> From<&'a Terms> for Pack<'a> {
    fn from(terms: &'a Terms) -> Self {
        let unit = |unit: &crate::domain::price::UnitPrice| UnitPrice {
            unit: unit.unit,
            price_usd: unit.price.into(),
        };
        Self {
            pack_type: terms.pack_type,
            version: terms.version,
            summary: terms.summary,
            input_schema: &terms.input_schema,
            output_schema: &terms.output_schema,
            prices: Prices {
                base_usd: terms.prices.base.into(),
                units: terms.prices.units.iter().map(unit).collect(),
            },
            limits: &terms.limits,
        }
    }
}

/// An API key, without its secret.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "key_id": "019abcde-1234-7000-8000-0123456789ac",
    "label": "sub-agent",
    "scopes": ["runs:write", "runs:read"],
    "created_at": "2028-02-29T11:00:00.000000Z",
    "last_used_at": "2028-02-29T12:00:00.000000Z",
    "expires_at": "2028-03-01T00:00:00Z",
    "rotated_at": null,
    "revoked_at": null,
    "limits_key_id": "019abcde-1234-7000-8000-0123456789ac",
    "runs_per_minute": null,
    "polls_per_minute": null,
    "max_spend_usd": "2.0000",
    "spent_usd": "0.0120",
})))]
pub struct Key {
    /// Its id.
    pub key_id: Uuid,
    /// Its owner's name for it.
    pub label: String,
    /// What it may do.
    #[schema(schema_with = scopes)]
    pub scopes: Scopes,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last used, to the minute.
    #[schema(required)]
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it stops working.
    #[schema(required)]
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was given a successor.
    #[schema(required)]
    pub rotated_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    #[schema(required)]
    pub revoked_at: Option<DateTime<Utc>>,
    #[serde(flatten)]
    pub limits: KeyLimits,
}

impl From<&KeyRecord> for Key {
    fn from(key: &KeyRecord) -> Self {
        Self {
            key_id: key.key_id.0,
            label: key.label.clone(),
            scopes: key.scopes.clone(),
            created_at: key.created_at,
            last_used_at: key.last_used_at,
            expires_at: key.expires_at,
            rotated_at: key.rotated_at,
            revoked_at: key.revoked_at,
            limits: KeyLimits::of(key.limits.as_ref(), key.spent),
        }
    }
}

/// An API key with its secret, which is shown this one time.
#[derive(Serialize, ToSchema)]
pub struct NewKey {
    /// The key itself.
    #[serde(flatten)]
    pub record: Key,
    /// The secret: send it as `Authorization: Bearer …`.
    #[schema(
        pattern = "^dpp_live_[0-9A-Za-z]{32}_[0-9a-f]{8}$",
        examples("dpp_live_0123456789abcdefghijABCDEFGHIJ01_0123abcd")
    )]
    pub key: String,
}

/// A customer, as operators see it.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "tenant_id": "019abcde-1234-7000-8000-0123456789aa",
    "name": "Acme",
    "plan": "growth",
    "status": "ACTIVE",
    "created_at": "2028-02-29T10:00:00.000000Z",
})))]
pub struct Tenant {
    /// Its id.
    pub tenant_id: Uuid,
    /// Its name; need not be unique.
    pub name: String,
    /// Its plan's name.
    pub plan: String,
    /// ACTIVE, or SUSPENDED: it can read, and buys nothing.
    #[schema(examples("ACTIVE"))]
    pub status: String,
    /// Since when.
    pub created_at: DateTime<Utc>,
}

impl From<TenantRecord> for Tenant {
    fn from(record: TenantRecord) -> Self {
        let TenantRecord { tenant_id, name, plan, status, created_at } = record;
        Self { tenant_id: tenant_id.0, name, plan, status, created_at }
    }
}

/// A customer and its money.
#[derive(Serialize, ToSchema)]
pub struct TenantBudget {
    /// The customer.
    #[serde(flatten)]
    pub tenant: Tenant,
    /// All deposits so far.
    pub deposited_usd: Usd,
    /// What new runs can reserve.
    pub available_usd: Usd,
    /// What open runs hold.
    pub held_usd: Usd,
    /// What ended runs were charged.
    pub charged_usd: Usd,
}

impl From<(TenantRecord, Balance)> for TenantBudget {
    fn from((record, balance): (TenantRecord, Balance)) -> Self {
        Self {
            tenant: record.into(),
            deposited_usd: balance.deposited.into(),
            available_usd: balance.available.into(),
            held_usd: balance.held.into(),
            charged_usd: balance.charged.into(),
        }
    }
}

/// Money that came in.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "tenant_id": "019abcde-1234-7000-8000-0123456789aa",
    "reference": "payment-1234",
    "amount_usd": "100.0000",
    "created_at": "2028-02-29T10:00:00.000000Z",
})))]
pub struct Deposit {
    /// Whose.
    pub tenant_id: Uuid,
    /// The Idempotency-Key that it came with.
    pub reference: String,
    /// How much.
    pub amount_usd: Usd,
    /// When.
    pub created_at: DateTime<Utc>,
}

/// A new customer.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "`admin::Fields` reads it, and names every field that is wrong")]
#[schema(examples(json!({"name": "Acme", "plan": "growth"})))]
pub struct CreateTenant {
    /// Its name; need not be unique.
    #[schema(min_length = 1, max_length = 200)]
    pub name: String,
    /// The name of a plan; `starter` when left out.
    #[serde(default)]
    pub plan: String,
}

/// Another plan for a customer.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "`admin::Fields` reads it, and names every field that is wrong")]
#[schema(examples(json!({"plan": "growth"})))]
pub struct AssignPlan {
    /// The name of a plan.
    pub plan: String,
}

/// Money that comes in.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "`admin::Fields` reads it, and names every field that is wrong")]
#[schema(examples(json!({"amount_usd": "100.00"})))]
pub struct CreateDeposit {
    /// US dollars above 0 with at most 4 decimals.
    #[schema(pattern = r"^[0-9]{1,10}(\.[0-9]{1,4})?$")]
    pub amount_usd: String,
}

/// Which dependencies answer.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "status": "ok",
    "version": "0.1.0",
    "services": {"api": "up", "database": "up", "redis": "up", "s3": "up", "sqs": "up"},
})))]
pub struct Health {
    /// `ok`, or `degraded` while a dependency is down.
    #[schema(schema_with = health_statuses)]
    pub status: &'static str,
    /// Of the program.
    pub version: &'static str,
    /// Each `up`, or `down:` and why.
    pub services: Services,
}

/// Each `up`, or `down:` and why.
#[derive(Serialize, ToSchema)]
pub struct Services {
    /// This process.
    #[schema(pattern = "^(up|down: .+)$")]
    pub api: String,
    /// PostgreSQL.
    #[schema(pattern = "^(up|down: .+)$")]
    pub database: String,
    /// Redis.
    #[schema(pattern = "^(up|down: .+)$")]
    pub redis: String,
    /// S3.
    #[schema(pattern = "^(up|down: .+)$")]
    pub s3: String,
    /// SQS.
    #[schema(pattern = "^(up|down: .+)$")]
    pub sqs: String,
}

/// What a kind of problem means.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "type": "https://api.example.com/errors/not-found",
    "slug": "not-found",
    "title": "There is nothing here",
    "status": 404,
    "what_to_do": "Check the path and the id.",
})))]
pub struct ProblemPage {
    /// What an answer's `type` is.
    #[serde(rename = "type")]
    #[schema(format = "uri")]
    pub type_uri: String,
    /// Its last part.
    pub slug: &'static str,
    /// What happened.
    pub title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What to do about it.
    pub what_to_do: &'static str,
}

/// An error answer (RFC 9457). Members that are not named here may come: pass over them.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'a> {
    /// A page that says what to do. Its last part is the problem's stable name.
    #[serde(rename = "type")]
    #[schema(format = "uri")]
    pub type_uri: String,
    /// What happened, of all problems of this type.
    pub title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What happened this time.
    pub detail: &'a str,
    /// The path that was asked for.
    pub instance: &'a str,
    /// The request's trace; name it when you ask us.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub trace_id: String,
    /// Which fields were wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<WrongField<'a>>,
    #[serde(flatten)]
    pub more: &'a More,
}

/// A field that was wrong.
#[derive(Serialize, ToSchema)]
pub struct WrongField<'a> {
    /// Where, as a JSON Pointer; that of a query's field is its name behind a slash.
    #[schema(examples("/inputs/options/0/name"))]
    pub pointer: &'a str,
    /// What is wrong with it, or what would be right.
    pub detail: &'a str,
}

impl<'a> From<&'a FieldError> for WrongField<'a> {
    fn from(error: &'a FieldError) -> Self {
        Self { pointer: &error.pointer, detail: &error.detail }
    }
}

/// Members that only some problems have.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct More {
    /// Of `budget-exceeded`: what the tenant has.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub available_usd: Option<Usd>,
    /// Of `budget-exceeded` and `spend-limit-exceeded`: what the run would have held.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub requested_usd: Option<Usd>,
    /// Of `spend-limit-exceeded`: what has been charged and is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub spent_usd: Option<Usd>,
    /// Of every 429: the limit's name, as in the plan or the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub limit: Option<&'static str>,
    /// Of every 429: `tenant` or `key`, whose limit it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub limit_of: Option<&'static str>,
    /// Of every 429: its size, a number of requests or runs, or US dollars as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_max: Option<Value>,
    /// Of every 429: when to come back, in seconds; as Retry-After.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub retry_after_sec: Option<u32>,
}

/// What to buy.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "`runs::order` reads it, and names every field that is wrong")]
#[schema(examples(json!({
    "pack_type": "decision",
    "max_cost_usd": "1.00",
    "timebox_sec": 60,
    "metadata": {"order": "1234"},
    "inputs": {
        "question": "Which laptop?",
        "criteria": [{"name": "price", "weight": 2, "direction": "minimize"}, {"name": "battery", "weight": 1}],
        "options": [
            {"name": "Small", "scores": {"price": 900, "battery": 12}},
            {"name": "Large", "scores": {"price": 1400, "battery": 18}},
        ],
    },
})))]
pub struct SubmitRun {
    /// The name of a pack: `GET /v1/packs` lists them.
    #[schema(min_length = 1, max_length = 64)]
    pub pack_type: String,
    /// What the pack is to work on: an object that its `input_schema` describes.
    #[schema(value_type = Object)]
    pub inputs: Value,
    /// The most that the run may cost, and so what is held: US dollars with at most 4 decimals.
    #[schema(pattern = r"^0*[0-9]{1,9}(\.[0-9]{1,4})?$")]
    pub max_cost_usd: String,
    /// How long the work may take, in seconds, within the plan's limit; the plan's default when left out.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 86_400, nullable = false)]
    pub timebox_sec: Option<i64>,
    /// Your own notes, shown with the run: at most 50, with names of 1 to 64 characters.
    #[serde(default)]
    #[schema(schema_with = metadata)]
    pub metadata: Value,
}

/// A key to make. What it does not say it has of the key that asks.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "`keys::new_key` reads it, and names every field that is wrong")]
#[schema(examples(json!({
    "label": "sub-agent",
    "scopes": ["runs:write", "runs:read"],
    "expires_at": "2028-03-01T00:00:00Z",
})))]
pub struct CreateKey {
    /// Your name for it.
    #[serde(default)]
    #[schema(max_length = 200)]
    pub label: String,
    /// What it may do; no more than the key that asks.
    #[serde(default)]
    #[schema(schema_with = scopes)]
    pub scopes: Vec<String>,
    /// When it stops working; no later than the key that asks.
    pub expires_at: Option<DateTime<Utc>>,
    /// The most that its runs may cost, ever, together with those of its successors and of keys made with it.
    #[schema(pattern = r"^[0-9]{1,10}(\.[0-9]{1,4})?$")]
    pub max_spend_usd: Option<String>,
    /// New runs in any minute. A key that has limits shares them with the keys that it makes, which have no
    /// others.
    #[schema(minimum = 1, maximum = 2_147_483_647)]
    pub runs_per_minute: Option<i32>,
    /// Other requests in any minute.
    #[schema(minimum = 1, maximum = 2_147_483_647)]
    pub polls_per_minute: Option<i32>,
}

/// How a key goes over to its successor.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "`keys::rotate` reads it, and names every field that is wrong")]
#[schema(examples(json!({"grace_sec": 3600})))]
pub struct RotateKey {
    /// How long the old key works on, in seconds; a day when left out.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 2_592_000)]
    pub grace_sec: u64,
}

/// One of these words.
fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words))
}

fn statuses() -> ObjectBuilder {
    words(RunState::STATUSES).description(Some("Where it stands. The last four are final."))
}

fn money_states() -> ObjectBuilder {
    words(["RESERVED", "SETTLED", "REFUNDED", "AUDIT_REQUIRED"]).description(Some(
        "What became of the hold: RESERVED while it is open, SETTLED once something was charged, REFUNDED \
         once all of it returned, AUDIT_REQUIRED while a person must decide.",
    ))
}

fn kinds() -> ObjectBuilder {
    words(["deposit", "hold", "charge", "release", "adjust"]).description(Some("What it is."))
}

fn accounts() -> ObjectBuilder {
    words(["funding", "available", "held", "revenue"])
        .description(Some("The account that it was taken from, or went to."))
}

fn health_statuses() -> ObjectBuilder {
    words(["ok", "degraded"]).description(Some("Whether all dependencies answer."))
}

fn scopes() -> ArrayBuilder {
    ArrayBuilder::new()
        .items(words(Scope::ALL.map(Scope::name)))
        .min_items(Some(1))
        .description(Some("What it may do."))
}

fn metadata() -> ObjectBuilder {
    let text = ObjectBuilder::new().schema_type(Type::String).max_length(Some(512));
    let name = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(64));
    ObjectBuilder::new()
        .max_properties(Some(50))
        .property_names(Some(name))
        .additional_properties(Some(text))
        .description(Some("Your own notes, shown with the run."))
}
