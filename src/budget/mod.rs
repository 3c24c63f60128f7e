//! Redis: the gate. The only module that knows redis.
//!
//! It holds, for each tenant, what can be spent now and the open holds, so that a submit is admitted
//! or refused in one round trip. It is rebuilt from the ledger whenever it knows nothing, or knew it
//! in another life: a budget carries the run id of the very server process that it was set on, each
//! connection knows the run id of the process that it reached, and a restart, a restore or a failover
//! gives another. Nothing that money depends on ever expires; the windows that requests are counted in do.

mod endings;
mod pool;

use std::{collections::HashMap, sync::LazyLock, time::Duration};

use deadpool_redis::redis::{self, Script};
use secrecy::SecretString;

use self::pool::Pool;
use crate::domain::{
    id::{KeyId, RunId, TenantId},
    idempotency::PayloadHash,
    limit::{Counted, GateLimits, KeyLimits, Month, Of, Quota, WINDOW},
    money::UsdMicros,
    run::Settled,
};

/// How long one call may take before its outcome counts as unknown.
const CALL_MAX: Duration = Duration::from_millis(1_500);
/// The same for counting a request: nobody is kept waiting for it longer.
const POLL_MAX: Duration = Duration::from_millis(300);
/// The same for a rebuild, which may carry very many holds.
const REBUILD_MAX: Duration = Duration::from_secs(5);

/// A failed call to Redis. It may have been applied; every call here can be repeated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis could not be reached or did not answer in time.
    #[error("Redis is unavailable")]
    Unavailable(#[source] anyhow::Error),
    /// Redis answered what no script of ours answers.
    #[error("Redis answered something unexpected: {0}")]
    Unexpected(String),
}

/// What a submit asks the gate for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The buyer.
    pub tenant_id: TenantId,
    /// The run that it would be.
    pub run_id: RunId,
    /// The hold.
    pub amount: UsdMicros,
    /// The fingerprint of its idempotency key.
    pub key_fingerprint: &'a str,
    /// The hash of its request.
    pub payload: PayloadHash,
    /// What else it is held against.
    pub limits: GateLimits,
}

/// What the gate says to a submit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// The amount is set aside.
    Held {
        /// Under this epoch.
        epoch: i64,
        /// For this run: the caller's, or the one under which the same submit is already under way.
        run_id: RunId,
        /// What is left of the limits of runs a minute.
        quotas: Vec<Quota>,
    },
    /// The same key is under way with another payload.
    Mismatch,
    /// A limit of runs a minute is reached.
    Limited(Quota),
    /// As many runs are open as may be.
    Crowded,
    /// What the month may cost does not cover it, by these figures; they may be behind.
    Spent {
        /// What is left of the budget.
        available: UsdMicros,
        /// What could be spent from the start of the month on.
        base: UsdMicros,
    },
    /// Not enough is left.
    Short {
        /// What is left.
        available: UsdMicros,
    },
    /// Redis does not know the budget, or not in this month; it must be rebuilt.
    Unknown,
}

/// What the gate says to a request that is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Poll {
    /// It is one more.
    Taken(Vec<Quota>),
    /// It is one too many.
    Limited(Quota),
}

/// What became of a rebuild.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Rebuilt {
    /// Redis says what the ledger says.
    Set,
    /// Redis holds a budget of a younger epoch, and kept it.
    Older {
        /// That epoch.
        epoch: i64,
    },
}

/// One open hold, for a rebuild.
#[derive(Clone, Copy, Debug)]
pub struct Hold<'a> {
    /// The run.
    pub run_id: RunId,
    /// What is held.
    pub amount: UsdMicros,
    /// The fingerprint of its idempotency key.
    pub key_fingerprint: &'a str,
    /// The hash of its request.
    pub payload: PayloadHash,
}

/// A tenant's budget as Redis has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// `None` when Redis does not know this budget, or knew it in another life.
    pub budget: Option<GateBudget>,
    /// Open holds, whether the budget is known or not.
    pub holds: HashMap<RunId, GateHold>,
}

/// What can be spent, by the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateBudget {
    /// The epoch of its computation.
    pub epoch: i64,
    /// What can be spent, in micros; below zero only if something is broken.
    pub available_usd_micros: i64,
    /// What could be spent from the start of a month on, and of which.
    pub base: Option<(Month, i64)>,
}

/// A hold, by the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateHold {
    /// What is held, in micros.
    pub amount_usd_micros: i64,
    /// How long it has been there, by Redis' own clock.
    pub age: Duration,
}

/// The least that tells whether a tenant's budget needs a closer look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance {
    /// The epoch of its computation.
    pub epoch: i64,
    /// What can be spent, in micros.
    pub available_usd_micros: i64,
    /// How many holds are open.
    pub holds: u64,
}

/// The gate.
#[derive(Clone)]
pub struct Budget {
    pool: Pool,
    /// For the one connection that is not the pool's: see [`Budget::hear_endings`].
    client: redis::Client,
}

static RESERVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/reserve-6.lua")));
static POLL: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/poll-2.lua")));
static UNCOUNT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/uncount-3.lua")));
static SETTLE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/settle-4.lua")));
static REBUILD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/rebuild-4.lua")));
static INSPECT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/inspect-3.lua")));

/// The keys of a tenant: one hash tag, so one slot of a cluster.
struct Keys {
    tenant_id: TenantId,
    budget: String,
    holds: String,
    admits: String,
    keys: String,
}

impl Keys {
    fn of(tenant_id: TenantId) -> Self {
        let key = |name: &str| format!("dpp:{{{tenant_id}}}:{name}");
        Self {
            tenant_id,
            budget: key("budget"),
            holds: key("holds"),
            admits: key("admits"),
            keys: key("keys"),
        }
    }

    /// Where requests of a kind are counted: all of the tenant's, and those of the family of `root`.
    fn windows(&self, counted: &str, root: Option<KeyId>) -> [String; 2] {
        let all = format!("dpp:{{{}}}:{counted}", self.tenant_id);
        let of_key = root.map_or_else(|| all.clone(), |root| format!("{all}:{root}"));
        [all, of_key]
    }

    fn all<'a>(&self, script: &'a Script) -> redis::ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        call.key(&self.budget).key(&self.holds).key(&self.admits).key(&self.keys);
        call
    }
}

impl Budget {
    /// A gate at `url`; connects when first used.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn new(
        url: &SecretString,
        password: Option<&SecretString>,
        connections_max: usize,
    ) -> anyhow::Result<Self> {
        let server = pool::server(url, password)?;
        let client = redis::Client::open(server.clone())?;
        Ok(Self { pool: pool::build(server, connections_max)?, client })
    }

    /// Asks for a part of a tenant's budget, in one round trip.
    ///
    /// # Errors
    /// [`Error`]; on [`Error::Unavailable`] the hold may stand.
    pub async fn reserve(&self, ask: Ask<'_>) -> Result<Reserve, Error> {
        let Ask { tenant_id, run_id, amount, key_fingerprint, payload, limits } = ask;
        let keys = Keys::of(tenant_id);
        let maxima = [limits.runs_per_minute, limits.key_runs_per_minute.map_or(0, |(_, max)| max)];
        let (month, monthly_max) = limits.monthly_spend_max.unwrap_or((Month(0), UsdMicros::ZERO));
        let connection = self.connection().await?;
        let mut call = keys.all(&RESERVE);
        for window in keys.windows("runs", limits.key_runs_per_minute.map(|(root, _)| root)) {
            call.key(window);
        }
        call.arg(&connection.server)
            .arg(run_id.to_string())
            .arg(amount.get())
            .arg(format!("-{}", amount.get()))
            .arg(key_fingerprint)
            .arg(payload.to_hex())
            .arg(&maxima)
            .arg(window_ms())
            .arg(limits.concurrent_runs_max)
            .arg(monthly_max.get())
            .arg(month.0);
        let reply: Vec<String> = invoke(connection, &call, CALL_MAX).await?;
        let amount_of = |text| UsdMicros::new(number(text)?.max(0)).ok().ok_or_else(|| unexpected(&reply));
        match reply.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["held" | "again", epoch, run_id, ref figures @ ..] => Ok(Reserve::Held {
                epoch: number(epoch)?,
                run_id: run_id.parse().ok().ok_or_else(|| unexpected(&reply))?,
                quotas: quotas(Counted::Runs, maxima, figures)?,
            }),
            ["mismatch"] => Ok(Reserve::Mismatch),
            [which @ ("limited" | "key-limited"), more_ms] => {
                Ok(Reserve::Limited(reached(Counted::Runs, maxima, which, more_ms)?))
            }
            ["crowded"] => Ok(Reserve::Crowded),
            ["spent", available, base] => {
                Ok(Reserve::Spent { available: amount_of(available)?, base: amount_of(base)? })
            }
            ["short", available] => Ok(Reserve::Short { available: amount_of(available)? }),
            ["unknown"] => Ok(Reserve::Unknown),
            _ => Err(unexpected(&reply)),
        }
    }

    /// Has a submit that was admitted within `limits`, and refused since, count in no window of runs, unless a copy
    /// of it holds.
    ///
    /// # Errors
    /// [`Error`]; it may be done.
    pub async fn uncount(
        &self,
        tenant_id: TenantId,
        key_fingerprint: &str,
        limits: GateLimits,
    ) -> Result<(), Error> {
        let keys = Keys::of(tenant_id);
        let connection = self.connection().await?;
        let mut call = UNCOUNT.prepare_invoke();
        call.key(&keys.keys);
        for window in keys.windows("runs", limits.key_runs_per_minute.map(|(root, _)| root)) {
            call.key(window);
        }
        call.arg(key_fingerprint);
        let reply: Vec<String> = invoke(connection, &call, CALL_MAX).await?;
        match reply.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["done" | "held"] => Ok(()),
            _ => Err(unexpected(&reply)),
        }
    }

    /// Counts a request against a tenant's limit (zero for none) and its key's.
    ///
    /// # Errors
    /// [`Error`]; it may be counted.
    pub async fn poll(
        &self,
        tenant_id: TenantId,
        polls_per_minute: i32,
        key: Option<&KeyLimits>,
    ) -> Result<Poll, Error> {
        let maxima = [polls_per_minute, key.map_or(0, |key| key.polls_per_minute)];
        let counting = async {
            let connection = self.connection().await?;
            let mut call = POLL.prepare_invoke();
            for window in Keys::of(tenant_id).windows("polls", key.map(|key| key.root)) {
                call.key(window);
            }
            call.arg(&maxima).arg(window_ms());
            invoke::<Vec<String>>(connection, &call, POLL_MAX).await
        };
        let reply = match tokio::time::timeout(POLL_MAX, counting).await {
            Ok(reply) => reply?,
            Err(elapsed) => return Err(Error::Unavailable(elapsed.into())),
        };
        match reply.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["taken", ref figures @ ..] => Ok(Poll::Taken(quotas(Counted::Polls, maxima, figures)?)),
            [which, more_ms] => Ok(Poll::Limited(reached(Counted::Polls, maxima, which, more_ms)?)),
            _ => Err(unexpected(&reply)),
        }
    }

    /// Follows the ledger after a hold ended there. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`Error`]; it may have been applied, and the reaper repairs it if not.
    pub async fn settle(&self, settled: &Settled) -> Result<(), Error> {
        self.end_hold(settled.tenant_id(), settled.run_id(), settled.charge()).await
    }

    /// Lets go of a hold whose run was never made and can never be: its key belongs to another run.
    ///
    /// # Errors
    /// [`Error`]; it may have been applied, and the reaper repairs it if not.
    pub async fn let_go(&self, tenant_id: TenantId, run_id: RunId) -> Result<(), Error> {
        self.end_hold(tenant_id, run_id, UsdMicros::ZERO).await
    }

    async fn end_hold(&self, tenant_id: TenantId, run_id: RunId, charge: UsdMicros) -> Result<(), Error> {
        let keys = Keys::of(tenant_id);
        let connection = self.connection().await?;
        let mut call = keys.all(&SETTLE);
        // HINCRBY reads "-0" as no number.
        let negated = if charge.is_zero() { "0".to_owned() } else { format!("-{}", charge.get()) };
        call.arg(run_id.to_string()).arg(negated);
        let reply: Vec<String> = invoke(connection, &call, CALL_MAX).await?;
        match reply.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["settled" | "gone"] => Ok(()),
            _ => Err(unexpected(&reply)),
        }
    }

    /// Sets a tenant's budget to what the ledger says under `epoch`; `base` is what could be spent from the
    /// start of its month on. The caller holds the tenant's exclusive lock.
    ///
    /// # Errors
    /// [`Error`]; it may have been applied, which is why no epoch is ever used twice.
    pub async fn rebuild(
        &self,
        tenant_id: TenantId,
        epoch: i64,
        available: UsdMicros,
        (month, base): (Month, UsdMicros),
        holds: &[Hold<'_>],
    ) -> Result<Rebuilt, Error> {
        let keys = Keys::of(tenant_id);
        let connection = self.connection().await?;
        let mut call = keys.all(&REBUILD);
        call.arg(epoch).arg(&connection.server).arg(available.get()).arg(month.0).arg(base.get());
        for hold in holds {
            call.arg(hold.run_id.to_string())
                .arg(hold.amount.get())
                .arg(hold.key_fingerprint)
                .arg(hold.payload.to_hex());
        }
        let reply: Vec<String> = invoke(connection, &call, REBUILD_MAX).await?;
        match reply.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["set"] => Ok(Rebuilt::Set),
            ["older", epoch] => Ok(Rebuilt::Older { epoch: number(epoch)? }),
            _ => Err(unexpected(&reply)),
        }
    }

    /// Shows a tenant's budget.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn inspect(&self, tenant_id: TenantId) -> Result<Inspection, Error> {
        type Reply = (String, String, String, String, String, u64, Vec<(String, i64)>, Vec<(String, String)>);
        let keys = Keys::of(tenant_id);
        let connection = self.connection().await?;
        let here = connection.server.clone();
        let mut call = INSPECT.prepare_invoke();
        call.key(&keys.budget).key(&keys.holds).key(&keys.admits);
        let (epoch, server, available, month, base, now_ms, holds, admits): Reply =
            invoke(connection, &call, CALL_MAX).await?;
        let budget = if epoch.is_empty() || server != here {
            None
        } else {
            let of_month = |month| Ok::<_, Error>((Month(number(month)?), number(&base)?));
            Some(GateBudget {
                epoch: number(&epoch)?,
                available_usd_micros: number(&available)?,
                base: Some(month.as_str()).filter(|month| !month.is_empty()).map(of_month).transpose()?,
            })
        };
        let admits: HashMap<String, String> = admits.into_iter().collect();
        let holds = holds
            .into_iter()
            .map(|(run_id, amount_usd_micros)| {
                let admitted_ms =
                    admits.get(&run_id).and_then(|admit| admit.rsplit(' ').next()?.parse().ok()).unwrap_or(0);
                let age = Duration::from_millis(now_ms.saturating_sub(admitted_ms));
                let run =
                    run_id.parse().ok().ok_or_else(|| Error::Unexpected(format!("a hold of {run_id:?}")))?;
                Ok((run, GateHold { amount_usd_micros, age }))
            })
            .collect::<Result<_, Error>>()?;
        Ok(Inspection { budget, holds })
    }

    /// Shows many tenants' budgets at once, in their order; `None` where Redis does not know one.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn glance(&self, tenants: &[TenantId]) -> Result<Vec<Option<Glance>>, Error> {
        type Reply = (Option<String>, Option<String>, Option<String>);
        if tenants.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.connection().await?;
        let here = connection.server.clone();
        let mut pipe = redis::pipe();
        for tenant_id in tenants {
            let keys = Keys::of(*tenant_id);
            pipe.hmget(&keys.budget, &["epoch", "server", "available"]).hlen(&keys.holds);
        }
        let answer =
            tokio::time::timeout(CALL_MAX, pipe.query_async::<Vec<redis::Value>>(&mut connection.redis))
                .await;
        let replies = conclude(connection, answer)?;
        let odd = |error: redis::ParsingError| Error::Unexpected(error.to_string());
        let (pairs, _) = replies.as_chunks::<2>();
        pairs
            .iter()
            .map(|[budget, holds]| {
                let (epoch, server, available): Reply = redis::from_redis_value_ref(budget).map_err(odd)?;
                let (Some(epoch), Some(available)) = (epoch, available) else { return Ok(None) };
                let (epoch, available_usd_micros) = (number(&epoch)?, number(&available)?);
                let holds = redis::from_redis_value_ref(holds).map_err(odd)?;
                Ok((server == Some(here.clone())).then_some(Glance { epoch, available_usd_micros, holds }))
            })
            .collect()
    }

    /// Whether Redis answers.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn ping(&self) -> Result<(), Error> {
        let mut connection = self.connection().await?;
        let ping = redis::cmd("PING");
        let answer = tokio::time::timeout(CALL_MAX, ping.query_async::<String>(&mut connection.redis)).await;
        conclude(connection, answer).map(drop)
    }

    /// Whether Redis may throw money away when its memory is full; the policy's name if so.
    ///
    /// # Errors
    /// [`Error`], also where CONFIG is not allowed.
    pub async fn evicts(&self) -> Result<Option<String>, Error> {
        let mut connection = self.connection().await?;
        let mut policy = redis::cmd("CONFIG");
        policy.arg("GET").arg("maxmemory-policy");
        let answer =
            tokio::time::timeout(CALL_MAX, policy.query_async::<(String, String)>(&mut connection.redis))
                .await;
        let (_, policy) = conclude(connection, answer)?;
        Ok(Some(policy).filter(|policy| policy != "noeviction"))
    }

    async fn connection(&self) -> Result<Pooled, Error> {
        self.pool.get().await.map_err(|error| Error::Unavailable(error.into()))
    }
}

type Pooled = deadpool::managed::Object<pool::Manager>;

/// Runs a script, with a limit.
async fn invoke<T: redis::FromRedisValue>(
    mut connection: Pooled,
    call: &redis::ScriptInvocation<'_>,
    limit: Duration,
) -> Result<T, Error> {
    let answer = tokio::time::timeout(limit, call.invoke_async(&mut connection.redis)).await;
    conclude(connection, answer)
}

/// A connection that failed or was too slow is closed; another goes back to the pool.
fn conclude<T>(
    connection: Pooled,
    answer: Result<Result<T, redis::RedisError>, tokio::time::error::Elapsed>,
) -> Result<T, Error> {
    let cause = match answer {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => anyhow::Error::from(error),
        Err(elapsed) => elapsed.into(),
    };
    drop(Pooled::take(connection));
    Err(Error::Unavailable(cause))
}

fn window_ms() -> u64 {
    u64::try_from(WINDOW.as_millis()).unwrap_or(u64::MAX)
}

/// What is left of the limits that there are, by a reply's figures: how many and when there is more, of the
/// tenant's and the key's.
fn quotas(counted: Counted, maxima: [i32; 2], figures: &[&str]) -> Result<Vec<Quota>, Error> {
    let (pairs, _) = figures.as_chunks::<2>();
    [Of::Tenant, Of::Key]
        .into_iter()
        .zip(maxima)
        .zip(pairs)
        .filter(|((_, max), _)| *max > 0)
        .map(|((of, max), [left, more_ms])| {
            let left = i32::try_from(number(left)?).unwrap_or(max);
            Ok(Quota { of, counted, max, left, more_in: millis(more_ms)? })
        })
        .collect()
}

/// The limit that a reply says is reached.
fn reached(counted: Counted, maxima: [i32; 2], which: &str, more_ms: &str) -> Result<Quota, Error> {
    let (of, max) = match which {
        "limited" => (Of::Tenant, maxima[0]),
        "key-limited" => (Of::Key, maxima[1]),
        other => return Err(unexpected(&[other.to_owned()])),
    };
    Ok(Quota { of, counted, max, left: 0, more_in: millis(more_ms)? })
}

fn millis(text: &str) -> Result<Duration, Error> {
    Ok(Duration::from_millis(u64::try_from(number(text)?).unwrap_or(0)))
}

fn number(text: &str) -> Result<i64, Error> {
    text.parse().ok().ok_or_else(|| Error::Unexpected(format!("{text:?} where a number belongs")))
}

fn unexpected(reply: &[String]) -> Error {
    Error::Unexpected(format!("{reply:?}"))
}
