//! Redis: the gate. The only module that knows redis.
//!
//! It holds, for each tenant, what can be spent now and the open holds, so that a submit is admitted
//! or refused in one round trip. It is rebuilt from the ledger whenever it knows nothing, or knew it
//! in another life: a budget carries the run id of the very server process that it was set on, each
//! connection knows the run id of the process that it reached, and a restart, a restore or a failover
//! gives another. No entry ever expires.

mod endings;
mod pool;

use std::{collections::HashMap, sync::LazyLock, time::Duration};

use deadpool_redis::redis::{self, Script};
use secrecy::SecretString;

use self::pool::Pool;
use crate::domain::{
    id::{RunId, TenantId},
    idempotency::PayloadHash,
    money::UsdMicros,
    run::Settled,
};

/// How long one call may take before its outcome counts as unknown.
const CALL_MAX: Duration = Duration::from_millis(1_500);
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

/// What the gate says to a submit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// The amount is set aside.
    Held {
        /// Under this epoch.
        epoch: i64,
        /// For this run: the caller's, or the one under which the same submit is already under way.
        run_id: RunId,
    },
    /// The same key is under way with another payload.
    Mismatch,
    /// Not enough is left.
    Short {
        /// What is left.
        available: UsdMicros,
    },
    /// Redis does not know the budget; it must be rebuilt.
    Unknown,
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
    /// What can be spent.
    pub budget: GateBudget,
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

static RESERVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/reserve-4.lua")));
static SETTLE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/settle-4.lua")));
static REBUILD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/rebuild-4.lua")));
static INSPECT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/inspect-3.lua")));

/// The keys of a tenant: one hash tag, so one slot of a cluster.
struct Keys {
    budget: String,
    holds: String,
    admits: String,
    keys: String,
}

impl Keys {
    fn of(tenant_id: TenantId) -> Self {
        let key = |name: &str| format!("dpp:{{{tenant_id}}}:{name}");
        Self { budget: key("budget"), holds: key("holds"), admits: key("admits"), keys: key("keys") }
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

    /// Asks for `amount` of a tenant's budget, in one round trip.
    ///
    /// # Errors
    /// [`Error`]; on [`Error::Unavailable`] the hold may stand.
    pub async fn reserve(
        &self,
        tenant_id: TenantId,
        run_id: RunId,
        amount: UsdMicros,
        key_fingerprint: &str,
        payload: PayloadHash,
    ) -> Result<Reserve, Error> {
        let keys = Keys::of(tenant_id);
        let connection = self.connection().await?;
        let mut call = keys.all(&RESERVE);
        call.arg(&connection.server)
            .arg(run_id.to_string())
            .arg(amount.get())
            .arg(format!("-{}", amount.get()))
            .arg(key_fingerprint)
            .arg(payload.to_hex());
        let reply: Vec<String> = invoke(connection, &call, CALL_MAX).await?;
        match reply.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["held" | "again", epoch, run_id] => Ok(Reserve::Held {
                epoch: number(epoch)?,
                run_id: run_id.parse().ok().ok_or_else(|| unexpected(&reply))?,
            }),
            ["mismatch"] => Ok(Reserve::Mismatch),
            ["short", available] => {
                let available =
                    UsdMicros::new(number(available)?.max(0)).ok().ok_or_else(|| unexpected(&reply))?;
                Ok(Reserve::Short { available })
            }
            ["unknown"] => Ok(Reserve::Unknown),
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

    /// Sets a tenant's budget to what the ledger says under `epoch`. The caller holds the tenant's
    /// exclusive lock.
    ///
    /// # Errors
    /// [`Error`]; it may have been applied, which is why no epoch is ever used twice.
    pub async fn rebuild(
        &self,
        tenant_id: TenantId,
        epoch: i64,
        available: UsdMicros,
        holds: &[Hold<'_>],
    ) -> Result<Rebuilt, Error> {
        let keys = Keys::of(tenant_id);
        let connection = self.connection().await?;
        let mut call = keys.all(&REBUILD);
        call.arg(epoch).arg(&connection.server).arg(available.get());
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
        type Reply = (String, String, String, u64, Vec<(String, i64)>, Vec<(String, String)>);
        let keys = Keys::of(tenant_id);
        let connection = self.connection().await?;
        let here = connection.server.clone();
        let mut call = INSPECT.prepare_invoke();
        call.key(&keys.budget).key(&keys.holds).key(&keys.admits);
        let (epoch, server, available, now_ms, holds, admits): Reply =
            invoke(connection, &call, CALL_MAX).await?;
        let budget = if epoch.is_empty() || server != here {
            None
        } else {
            Some(GateBudget { epoch: number(&epoch)?, available_usd_micros: number(&available)? })
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
                let budget = GateBudget { epoch: number(&epoch)?, available_usd_micros: number(&available)? };
                let holds = redis::from_redis_value_ref(holds).map_err(odd)?;
                Ok((server == Some(here.clone())).then_some(Glance { budget, holds }))
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

fn number(text: &str) -> Result<i64, Error> {
    text.parse().ok().ok_or_else(|| Error::Unexpected(format!("{text:?} where a number belongs")))
}

fn unexpected(reply: &[String]) -> Error {
    Error::Unexpected(format!("{reply:?}"))
}
