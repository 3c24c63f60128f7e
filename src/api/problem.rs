//! Problems: one table, and the only road to an error body (RFC 9457).
//!
//! A handler returns a [`Problem`]; [`super::context`] adds the instance and the trace and writes the
//! body, and turns every error answer that actix makes by itself into a problem too.

use std::{fmt, time::Duration};

use actix_web::{HttpResponse, ResponseError, http::StatusCode};
use serde_json::{Value, json};

use super::shape::{More, ProblemBody, Usd, WrongField};
use crate::{
    domain::{
        limit::{Counted, Of, Quota},
        plan::PlanRefusal,
    },
    flow::{
        self,
        submit::{NotAccepted, OPEN_RUNS_RETRY_SECS, Refusal, SpendLimit},
    },
    pack::FieldError,
};

macro_rules! problems {
    ($($kind:ident $status:ident $slug:literal $title:literal $advice:literal;)*) => {
        /// Every kind of problem.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $(#[doc = $title] $kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// The HTTP status.
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$kind => StatusCode::$status,)* }
            }

            /// The last part of the problem's `type`.
            pub const fn slug(self) -> &'static str {
                match self { $(Self::$kind => $slug,)* }
            }

            /// What it is.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$kind => $title,)* }
            }

            /// What to do about it.
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$kind => $advice,)* }
            }
        }
    };
}

problems! {
    InvalidRequest         BAD_REQUEST            "invalid-request"           "The request is malformed"                 "Mend the fields that `errors` names and send it again.";
    KeyRequired            BAD_REQUEST            "idempotency-key-required"  "An Idempotency-Key is required"           "Send a header Idempotency-Key with a value of your own for each new run, such as a UUID.";
    KeyInvalid             BAD_REQUEST            "idempotency-key-invalid"   "The Idempotency-Key is malformed"         "Use 1 to 255 visible ASCII characters.";
    InvalidAmount          BAD_REQUEST            "invalid-amount"            "The amount is malformed"                  "Write US dollars as a string with at most 4 decimals, such as \"5.00\".";
    InvalidCursor          BAD_REQUEST            "invalid-cursor"            "The cursor does not belong to this list"  "Send next_cursor as you were given it, with the same key's tenant and the same filters; or begin again without one.";
    Unauthorized           UNAUTHORIZED           "unauthorized"              "A valid API key is required"              "Send a header Authorization: Bearer with your API key. It may be mistyped, revoked or expired.";
    InsufficientScope      FORBIDDEN              "insufficient-scope"        "The API key may not do this"              "Use a key that has the scope that `detail` names, or ask whoever manages the keys for one.";
    TenantSuspended        FORBIDDEN              "tenant-suspended"          "The tenant is suspended"                  "Ask the operator. Runs can still be read.";
    PackNotAllowed         FORBIDDEN              "pack-not-allowed"          "The plan does not include this pack"      "Choose another pack, or another plan.";
    NotFound               NOT_FOUND              "not-found"                 "There is nothing here"                    "Check the path and the id.";
    MethodNotAllowed       METHOD_NOT_ALLOWED     "method-not-allowed"        "The method is not allowed here"           "See the header Allow.";
    RunExpired             GONE                   "run-expired"               "The run is past its retention"            "Its result has been deleted; what it cost is still in the books.";
    PayloadTooLarge        PAYLOAD_TOO_LARGE      "payload-too-large"         "The body is too large"                    "Send at most 256 KiB.";
    UnsupportedMediaType   UNSUPPORTED_MEDIA_TYPE "unsupported-media-type"    "The body is not JSON"                     "Send a header Content-Type: application/json.";
    KeyReused              CONFLICT               "idempotency-key-reused"    "The Idempotency-Key was used for another payload" "Use a new key for a new run, and the same payload for a retry.";
    RunNotCancellable      CONFLICT               "run-not-cancellable"       "The run cannot be cancelled"              "Nothing: it has ended, and what it cost is in the run.";
    RunNotCompleted        CONFLICT               "run-not-completed"         "The run has no result"                    "Wait until its status is COMPLETED; other ends have no result.";
    BudgetExceeded         UNPROCESSABLE_ENTITY   "budget-exceeded"           "The budget does not cover this"           "Lower max_cost_usd, wait for open runs to return their holds, or deposit.";
    MaxCostExceedsPlan     UNPROCESSABLE_ENTITY   "max-cost-exceeds-plan"     "max_cost_usd is above the plan's limit"   "Lower max_cost_usd, or choose another plan.";
    MaxCostTooLow          UNPROCESSABLE_ENTITY   "max-cost-too-low"          "max_cost_usd does not cover the least that this run costs" "Raise max_cost_usd; you pay what the run uses.";
    InvalidInputs          UNPROCESSABLE_ENTITY   "invalid-inputs"            "The pack does not accept these inputs"    "Mend the fields that `errors` names; GET /v1/packs/{pack_type} has the schema.";
    UnknownPack            UNPROCESSABLE_ENTITY   "unknown-pack"              "No pack is sold under this name"          "GET /v1/packs lists what is sold.";
    PackUnavailable        UNPROCESSABLE_ENTITY   "pack-unavailable"          "This deployment cannot serve these inputs" "See `detail`; ask the operator.";
    RateLimited            TOO_MANY_REQUESTS      "rate-limit-exceeded"       "Too many requests"                        "Wait for Retry-After seconds; RateLimit says what is left, and RateLimit-Policy what the limits are.";
    TooManyRuns            TOO_MANY_REQUESTS      "too-many-concurrent-runs"  "Too many runs are open"                   "Wait until one of them has ended, or choose another plan.";
    SpendLimit             TOO_MANY_REQUESTS      "spend-limit-exceeded"      "A spending limit does not cover this"     "Lower max_cost_usd, or wait for Retry-After seconds: open runs return what they do not use, and a month's limit begins anew with the UTC month. A key's own limit is for ever.";
    Internal               INTERNAL_SERVER_ERROR  "internal-error"            "Something went wrong on our side"         "Try again with the same Idempotency-Key; name the trace_id when you ask us.";
    Unavailable            SERVICE_UNAVAILABLE    "service-unavailable"       "The service is unavailable for a moment"  "Nothing was charged. Try again with the same Idempotency-Key after Retry-After seconds.";
}

/// An error answer in the making.
#[derive(Debug)]
pub struct Problem {
    /// Which.
    pub kind: Kind,
    /// What exactly, for the caller.
    pub detail: String,
    /// Which fields were wrong.
    pub errors: Vec<FieldError>,
    /// Further members.
    pub more: Box<More>,
    /// When to come back, in seconds, where it is known.
    pub retry_after_secs: Option<u32>,
}

/// When to come back after a 503, in seconds.
const RETRY_AFTER_SECS: u32 = 1;

impl Problem {
    /// A problem of this kind.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let retry_after_secs = Some(RETRY_AFTER_SECS).filter(|_| matches!(kind, Kind::Unavailable));
        Self { kind, detail: detail.into(), errors: Vec::new(), more: Box::default(), retry_after_secs }
    }

    /// A malformed request, with the fields that are wrong.
    pub fn fields(kind: Kind, errors: Vec<FieldError>) -> Self {
        let detail = errors.first().map_or_else(String::new, |first| {
            let place = if first.pointer.is_empty() { "the body" } else { &first.pointer };
            format!("{place}: {}", first.detail)
        });
        Self { errors, ..Self::new(kind, detail) }
    }

    /// One text whatever was wrong with the key.
    pub fn unauthorized() -> Self {
        Self::new(Kind::Unauthorized, "The API key is missing or not valid.")
    }

    /// What a run that is not there and one that is not the caller's both get: the same value.
    pub fn no_such_run() -> Self {
        Self::new(Kind::NotFound, "There is no such run.")
    }

    /// The problem of a failed flow: logs the cause, once, and keeps it from the caller.
    pub fn of_flow(error: flow::Error, trace_id: impl fmt::Display) -> Self {
        let passes = error.passes();
        let detail = match error {
            flow::Error::OutcomeUnknown(_) => {
                "It is not known whether the run was accepted; the same request with the same Idempotency-Key tells, at no further cost."
            }
            flow::Error::TooSlow => {
                "A dependency of the service does not answer in time. What was asked for may still be done; the same request, with the same Idempotency-Key where it has one, tells at no further cost."
            }
            _ => "A dependency of the service is down or slow; nothing was charged.",
        };
        let cause = format!("{:#}", anyhow::Error::from(error));
        if passes {
            tracing::warn!(%trace_id, error = cause, "a request met a dependency that is down");
            Self::new(Kind::Unavailable, detail)
        } else {
            tracing::error!(%trace_id, error = cause, "a request failed");
            Self::new(Kind::Internal, "The request could not be completed.")
        }
    }

    /// The problem of a submit that was not accepted.
    pub fn of_submit(error: NotAccepted, trace_id: impl fmt::Display) -> Self {
        let refusal = match error {
            NotAccepted::Failed(error) => return Self::of_flow(error, trace_id),
            NotAccepted::Refused(refusal) => refusal,
        };
        metrics::counter!("dpp_submits_total", "outcome" => "refused").increment(1);
        match refusal {
            Refusal::KeyReused => Self::new(
                Kind::KeyReused,
                "This Idempotency-Key belongs to a submit with another payload; use a new key for a new run.",
            ),
            Refusal::RunExpired => Self::new(
                Kind::RunExpired,
                "This Idempotency-Key belongs to a run that is past its retention; use a new key for a new run.",
            ),
            Refusal::Suspended => {
                Self::new(Kind::TenantSuspended, "The tenant is suspended and cannot buy runs.")
            }
            Refusal::UnknownPack(known) => {
                Self::new(Kind::UnknownPack, format!("The packs are: {}.", known.join(", ")))
            }
            Refusal::PackUnavailable(why) => Self::new(Kind::PackUnavailable, why),
            Refusal::InvalidInputs(errors) => {
                let inside =
                    |error: FieldError| FieldError { pointer: format!("/inputs{}", error.pointer), ..error };
                Self::fields(Kind::InvalidInputs, errors.into_iter().map(inside).collect())
            }
            Refusal::Plan(refusal) => Self::of_plan(&refusal),
            Refusal::RateLimited(quota) => Self::rate_limited(&quota),
            Refusal::TooManyRuns { max } => Self::too_many_runs(max),
            Refusal::SpendLimit(limit) => Self::spend_limit(&limit),
            Refusal::BudgetExceeded { available, requested } => {
                let mut problem = Self::new(
                    Kind::BudgetExceeded,
                    format!("${requested} was asked for and ${available} is available."),
                );
                problem.more.available_usd = Some(available.into());
                problem.more.requested_usd = Some(requested.into());
                problem
            }
        }
    }

    /// The problem of a request that is one too many.
    pub fn rate_limited(quota: &Quota) -> Self {
        let (name, what) = match quota.counted {
            Counted::Runs => ("runs_per_minute", "new runs"),
            Counted::Polls => ("polls_per_minute", "requests that are no new run"),
        };
        let of = match quota.of {
            Of::Tenant => "The plan",
            Of::Key => "The API key",
        };
        let (max, secs) = (quota.max, secs_up(quota.more_in));
        let detail = format!("{of} allows {max} {what} in any minute; come back in {secs} s.");
        Self::limit(Kind::RateLimited, detail, secs, name, quota.of, json!(max))
    }

    /// The problem of a run that is one too many at once.
    pub fn too_many_runs(max: i32) -> Self {
        let detail = format!("{max} runs are open, which is as many as the plan allows at once.");
        let name = "concurrent_runs_max";
        Self::limit(Kind::TooManyRuns, detail, OPEN_RUNS_RETRY_SECS, name, Of::Tenant, json!(max))
    }

    /// The problem of a run that a spending limit does not cover.
    pub fn spend_limit(limit: &SpendLimit) -> Self {
        let SpendLimit { of, max, spent, requested, retry_after_secs } = *limit;
        let (name, what) = match of {
            Of::Tenant => ("monthly_spend_max_usd", "The plan allows a UTC month to cost"),
            Of::Key => ("max_spend_usd", "The API key, with those made with it, may spend"),
        };
        let detail = format!(
            "{what} ${max}; ${spent} of it is spent or held for open runs, and ${requested} was asked for."
        );
        let mut problem = Self::limit(Kind::SpendLimit, detail, retry_after_secs, name, of, json!(Usd(max)));
        problem.more.spent_usd = Some(spent.into());
        problem.more.requested_usd = Some(requested.into());
        problem
    }

    /// A limit is reached: which, whose, its size, and when to come back.
    fn limit(kind: Kind, detail: String, secs: u32, limit: &'static str, of: Of, limit_max: Value) -> Self {
        let of = match of {
            Of::Tenant => "tenant",
            Of::Key => "key",
        };
        let more = More {
            limit: Some(limit),
            limit_of: Some(of),
            limit_max: Some(limit_max),
            retry_after_sec: Some(secs),
            ..More::default()
        };
        Self { retry_after_secs: Some(secs), more: Box::new(more), ..Self::new(kind, detail) }
    }

    fn of_plan(refusal: &PlanRefusal) -> Self {
        let field = |kind, pointer: &str, detail: String| {
            Self::fields(kind, vec![FieldError { pointer: pointer.to_owned(), detail }])
        };
        match refusal {
            PlanRefusal::PackNotAllowed => {
                Self::new(Kind::PackNotAllowed, "The tenant's plan does not include this pack.")
            }
            PlanRefusal::MaxCostExceedsPlan { limit } => field(
                Kind::MaxCostExceedsPlan,
                "/max_cost_usd",
                format!("the most that this plan allows is ${limit}"),
            ),
            PlanRefusal::MaxCostTooLow { least } => field(
                Kind::MaxCostTooLow,
                "/max_cost_usd",
                format!("the least that this run can cost is ${least}"),
            ),
            PlanRefusal::TimeboxOutOfRange { secs_max } => field(
                Kind::InvalidRequest,
                "/timebox_sec",
                format!("must be a whole number from 1 to {secs_max}"),
            ),
        }
    }

    /// The body, for one request.
    pub fn body(&self, public_url: &str, instance: &str, trace_id: impl fmt::Display) -> Value {
        json!(ProblemBody {
            type_uri: format!("{public_url}/errors/{}", self.kind.slug()),
            title: self.kind.title(),
            status: self.kind.status().as_u16(),
            detail: &self.detail,
            instance,
            trace_id: trace_id.to_string(),
            errors: self.errors.iter().map(WrongField::from).collect(),
            more: &self.more,
        })
    }

    /// The problem of an answer that actix made by itself.
    pub fn of_status(status: StatusCode) -> Self {
        let kind = match status {
            StatusCode::NOT_FOUND => Kind::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Kind::MethodNotAllowed,
            StatusCode::PAYLOAD_TOO_LARGE => Kind::PayloadTooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Kind::UnsupportedMediaType,
            StatusCode::UNAUTHORIZED => Kind::Unauthorized,
            status if status.is_client_error() => Kind::InvalidRequest,
            _ => Kind::Internal,
        };
        Self::new(kind, format!("{}. {}", kind.title(), kind.advice()))
    }
}

/// Whole seconds, none of which is too early.
pub fn secs_up(duration: Duration) -> u32 {
    let secs = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    u32::try_from(secs).unwrap_or(u32::MAX)
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.slug(), self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.kind.status()
    }

    /// Without a body: [`super::context`] writes it.
    fn error_response(&self) -> HttpResponse {
        HttpResponse::new(self.status_code())
    }
}
