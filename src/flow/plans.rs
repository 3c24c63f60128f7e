//! Plans: made and edited by operators. Zero means without limit.

use std::collections::BTreeMap;

use super::operator::{Operator, Refused, judged, wrong};
use crate::{
    domain::{
        money::UsdMicros,
        plan::Plan,
        price::{RESERVATION_MAX, RESERVATION_MIN},
    },
    pack::{FieldError, Registry},
    store::Store,
};

const NAME_CHARS_MAX: usize = 64;
const TIMEBOX_SECS_MAX: i64 = 86_400;
const RETENTION_DAYS_MAX: i64 = 3_660;

/// All limits of a plan, as they are asked for: not yet judged.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The packs that it may buy; `None` allows all.
    pub allowed_packs: Option<Vec<String>>,
    /// The most that one run may reserve.
    pub run_cost_max: UsdMicros,
    /// The same by pack; zero is as good as not being named.
    pub pack_cost_max: BTreeMap<String, UsdMicros>,
    /// Submits a minute.
    pub runs_per_minute: i64,
    /// Reads a minute.
    pub polls_per_minute: i64,
    /// Runs open at once.
    pub concurrent_runs_max: i64,
    /// The most that a UTC month may cost.
    pub monthly_spend_max: UsdMicros,
    /// The longest timebox, in seconds; never without limit.
    pub timebox_secs_max: i64,
    /// How long results are kept; never without limit.
    pub retention_days: i64,
}

/// What to change of a plan; what is `None`, or a pack that is not named, stays.
#[derive(Clone, Debug, Default)]
pub struct Edit {
    /// See [`Limits`], also for those that follow.
    pub allowed_packs: Option<Option<Vec<String>>>,
    /// The most that one run may reserve.
    pub run_cost_max: Option<UsdMicros>,
    /// By pack; zero removes the pack's limit.
    pub pack_cost_max: BTreeMap<String, UsdMicros>,
    /// Submits a minute.
    pub runs_per_minute: Option<i64>,
    /// Reads a minute.
    pub polls_per_minute: Option<i64>,
    /// Runs open at once.
    pub concurrent_runs_max: Option<i64>,
    /// The most that a UTC month may cost.
    pub monthly_spend_max: Option<UsdMicros>,
    /// The longest timebox, in seconds.
    pub timebox_secs_max: Option<i64>,
    /// How long results are kept.
    pub retention_days: Option<i64>,
}

/// A plan that was set, and whether it is new.
#[derive(Debug)]
pub struct Set {
    /// The plan as it is now.
    pub plan: Plan,
    /// Whether there was none of this name.
    pub created: bool,
}

/// The plan of this name.
///
/// # Errors
/// [`Refused::Failed`]
pub async fn find(store: &Store, name: &str) -> Result<Option<Plan>, Refused> {
    // PostgreSQL's texts hold no NUL.
    Ok(if name.contains('\0') { None } else { store.find_plan(name).await? })
}

/// Makes the plan of this name, or makes it this.
///
/// # Errors
/// [`Refused`]
pub async fn put(
    store: &Store,
    packs: &Registry,
    by: Operator,
    name: &str,
    limits: Limits,
) -> Result<Set, Refused> {
    let plan = judge(packs, name, limits)?;
    let before = store.find_plan(name).await?;
    let created = before.is_none();
    if before.as_ref() != Some(&plan) {
        store.put_plan(&plan).await?;
        tracing::info!(admin = by.door(), trace_id = by.trace_id(), plan = name, created, "plan set");
    }
    Ok(Set { plan, created })
}

/// Changes a plan, or makes one, of which then every limit must be named: nobody is without limit because a
/// word was forgotten. Of two edits at once the later may undo the earlier.
///
/// # Errors
/// [`Refused`]
pub async fn edit(
    store: &Store,
    packs: &Registry,
    by: Operator,
    name: &str,
    edit: Edit,
) -> Result<Set, Refused> {
    judged(judge_name(name))?;
    let limits = match store.find_plan(name).await? {
        Some(plan) => over(plan, edit),
        None => whole(name, edit)?,
    };
    put(store, packs, by, name, limits).await
}

fn over(plan: Plan, edit: Edit) -> Limits {
    let mut pack_cost_max = plan.pack_cost_max;
    pack_cost_max.extend(edit.pack_cost_max);
    Limits {
        allowed_packs: edit.allowed_packs.unwrap_or(plan.allowed_packs),
        run_cost_max: edit.run_cost_max.unwrap_or(plan.run_cost_max),
        pack_cost_max,
        runs_per_minute: edit.runs_per_minute.unwrap_or(plan.runs_per_minute.into()),
        polls_per_minute: edit.polls_per_minute.unwrap_or(plan.polls_per_minute.into()),
        concurrent_runs_max: edit.concurrent_runs_max.unwrap_or(plan.concurrent_runs_max.into()),
        monthly_spend_max: edit.monthly_spend_max.unwrap_or(plan.monthly_spend_max),
        timebox_secs_max: edit.timebox_secs_max.unwrap_or(plan.timebox_secs_max.into()),
        retention_days: edit.retention_days.unwrap_or(plan.retention_days.into()),
    }
}

fn whole(name: &str, edit: Edit) -> Result<Limits, Refused> {
    let mut missing = Vec::new();
    let mut need = |pointer: &str, there: bool| {
        if !there {
            missing.push(wrong(pointer, format!("is required: there is no plan {name:?} yet")));
        }
    };
    need("/run_cost_max_usd", edit.run_cost_max.is_some());
    need("/runs_per_minute", edit.runs_per_minute.is_some());
    need("/polls_per_minute", edit.polls_per_minute.is_some());
    need("/concurrent_runs_max", edit.concurrent_runs_max.is_some());
    need("/monthly_spend_max_usd", edit.monthly_spend_max.is_some());
    need("/timebox_secs_max", edit.timebox_secs_max.is_some());
    need("/retention_days", edit.retention_days.is_some());
    judged(missing)?;
    Ok(Limits {
        allowed_packs: edit.allowed_packs.unwrap_or_default(),
        run_cost_max: edit.run_cost_max.unwrap_or_default(),
        pack_cost_max: edit.pack_cost_max,
        runs_per_minute: edit.runs_per_minute.unwrap_or_default(),
        polls_per_minute: edit.polls_per_minute.unwrap_or_default(),
        concurrent_runs_max: edit.concurrent_runs_max.unwrap_or_default(),
        monthly_spend_max: edit.monthly_spend_max.unwrap_or_default(),
        timebox_secs_max: edit.timebox_secs_max.unwrap_or_default(),
        retention_days: edit.retention_days.unwrap_or_default(),
    })
}

/// A name is a part of a path.
fn judge_name(name: &str) -> Option<FieldError> {
    let sound = (1..=NAME_CHARS_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    let right = format!("must be 1 to {NAME_CHARS_MAX} letters, digits, - or _");
    (!sound).then(|| wrong("/plan", right))
}

/// The plan of these limits. The bounds are those of the schema's checks, or narrower.
fn judge(packs: &Registry, name: &str, limits: Limits) -> Result<Plan, Refused> {
    let mut errors: Vec<_> = judge_name(name).into_iter().collect();
    let sold: Vec<_> = packs.iter().map(|pack| pack.terms().pack_type).collect();
    let known = format!("the packs are {}", sold.join(", "));

    let allowed_packs = limits.allowed_packs.map(|mut packs| {
        packs.sort();
        packs.dedup();
        packs
    });
    match &allowed_packs {
        Some(packs) if packs.is_empty() => {
            errors.push(wrong("/allowed_packs", "must name a pack; suspend a tenant that may buy none"));
        }
        Some(packs) => errors.extend(
            packs
                .iter()
                .filter(|pack| !sold.contains(&pack.as_str()))
                .map(|pack| wrong("/allowed_packs", format!("{pack:?} is no pack; {known}"))),
        ),
        None => {}
    }

    let can_be_reserved = format!(
        "must be 0, which is without limit, or from {RESERVATION_MIN} to {RESERVATION_MAX} US dollars"
    );
    let reserves = |cap: UsdMicros| cap.is_zero() || (RESERVATION_MIN..=RESERVATION_MAX).contains(&cap);
    if !reserves(limits.run_cost_max) {
        errors.push(wrong("/run_cost_max_usd", can_be_reserved.as_str()));
    }
    let mut pack_cost_max = limits.pack_cost_max;
    pack_cost_max.retain(|_, cap| !cap.is_zero());
    for (pack, cap) in &pack_cost_max {
        let pointer = format!("/pack_cost_max_usd/{}", pack.replace('~', "~0").replace('/', "~1"));
        if !sold.contains(&pack.as_str()) {
            errors.push(wrong(&pointer, format!("is no pack; {known}")));
        } else if !reserves(*cap) {
            errors.push(wrong(&pointer, can_be_reserved.as_str()));
        }
    }

    let mut count = |pointer: &str, value: i64, least: i64, most: i64| {
        let fits = i32::try_from(value).ok().filter(|_| (least..=most).contains(&value));
        if fits.is_none() {
            let unlimited = if least == 0 { "; 0 is without limit" } else { "" };
            errors.push(wrong(pointer, format!("must be a whole number from {least} to {most}{unlimited}")));
        }
        fits.unwrap_or_default()
    };
    let most = i64::from(i32::MAX);
    let plan = Plan {
        plan: name.to_owned(),
        allowed_packs,
        run_cost_max: limits.run_cost_max,
        pack_cost_max,
        runs_per_minute: count("/runs_per_minute", limits.runs_per_minute, 0, most),
        polls_per_minute: count("/polls_per_minute", limits.polls_per_minute, 0, most),
        concurrent_runs_max: count("/concurrent_runs_max", limits.concurrent_runs_max, 0, most),
        monthly_spend_max: limits.monthly_spend_max,
        timebox_secs_max: count("/timebox_secs_max", limits.timebox_secs_max, 1, TIMEBOX_SECS_MAX),
        retention_days: count("/retention_days", limits.retention_days, 1, RETENTION_DAYS_MAX),
    };
    judged(errors)?;
    Ok(plan)
}
