//! Every operation of the API, in one screen: who may ask, what it takes, and all that it can answer.
//!
//! [`super::openapi`] makes a document of it. A test holds it against `routes.rs`, and the harness every answer
//! of every test against the document. What all operations share follows from [`Access`].

use super::problem::Kind;
use crate::domain::scope::Scope;

/// One operation.
pub struct Operation {
    /// In lower case.
    pub method: &'static str,
    /// As `routes.rs` has it.
    pub path: &'static str,
    /// Who may ask.
    pub access: Access,
    /// `<verb>_<resource>`
    pub id: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// Names of parameters; those of the path are added.
    pub takes: &'static [&'static str],
    /// The shape of its body, and whether there must be one.
    pub body: Option<(&'static str, bool)>,
    /// What is answered when nothing is wrong.
    pub answers: &'static [Answer],
    /// What can be wrong, beyond what [`Operation::all_problems`] adds.
    pub problems: &'static [Kind],
}

/// Who may ask.
#[derive(Clone, Copy)]
pub enum Access {
    /// Everybody, without a key.
    Everybody,
    /// Whoever has a key with this scope.
    Key(Option<Scope>),
    /// Whoever has the operator's token.
    Admin,
}

/// An answer that is no problem.
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// When it is given, or what it holds.
    pub description: &'static str,
    /// Its body.
    pub form: Form,
    /// Names of headers; those of every answer are added.
    pub headers: &'static [&'static str],
}

/// A body's form.
#[derive(Clone, Copy)]
pub enum Form {
    /// None.
    Nothing,
    /// JSON of this shape.
    Json(&'static str),
    /// A text of one of these media types.
    Texts(&'static [&'static str]),
    /// By `Accept` a page in HTML or Markdown, or JSON of this shape.
    Page(&'static str),
}

const fn get(path: &'static str, access: Access) -> Operation {
    operation("get", path, access)
}

const fn post(path: &'static str, access: Access) -> Operation {
    operation("post", path, access)
}

const fn operation(method: &'static str, path: &'static str, access: Access) -> Operation {
    Operation {
        method,
        path,
        access,
        id: "",
        summary: "",
        takes: &[],
        body: None,
        answers: &[],
        problems: &[],
    }
}

const fn json(shape: &'static str) -> Answer {
    Answer { status: 200, description: "Here it is.", form: Form::Json(shape), headers: &[] }
}

const fn text(types: &'static [&'static str], headers: &'static [&'static str]) -> Answer {
    Answer { status: 200, description: "Here it is.", form: Form::Texts(types), headers }
}

const RUNS_WRITE: Access = Access::Key(Some(Scope::RunsWrite));
const RUNS_READ: Access = Access::Key(Some(Scope::RunsRead));
const USAGE_READ: Access = Access::Key(Some(Scope::UsageRead));
const KEYS_MANAGE: Access = Access::Key(Some(Scope::KeysManage));
const ADMIN: Access = Access::Admin;
const ANY_KEY: Access = Access::Key(None);
const EVERYBODY: Access = Access::Everybody;

const COSTS: &[&str] = &["X-DPP-Cost-Reserved", "X-DPP-Cost-Minimum-Fee", "X-DPP-Cost-Actual"];
const NOT_MODIFIED: Answer =
    Answer { status: 304, description: "It has not changed.", form: Form::Nothing, headers: &["ETag"] };

/// Every operation. Of the problems, those that its access and its parts imply are added.
#[rustfmt::skip]
pub const OPERATIONS: &[Operation] = {
    use Kind::*;
    &[
        Operation { id: "submit_run", summary: "Buys a run", takes: &["Idempotency-Key", "Prefer"],
            body: Some(("SubmitRun", true)),
            answers: &[
                Answer { description: "The run was waited for and has ended.",
                    headers: &["Location", "Preference-Applied", "Idempotent-Replayed", "X-DPP-Cost-Reserved", "X-DPP-Cost-Minimum-Fee", "X-DPP-Cost-Actual"], ..json("Run") },
                Answer { status: 202, description: "The run is accepted, or was under this key before.", form: Form::Json("Run"),
                headers: &["Location", "Retry-After", "Preference-Applied", "Idempotent-Replayed", "X-DPP-Cost-Reserved", "X-DPP-Cost-Minimum-Fee", "X-DPP-Cost-Actual"] }],
            problems: &[KeyRequired, KeyInvalid, InvalidAmount, TenantSuspended, PackNotAllowed, RunExpired, KeyReused, BudgetExceeded,
                MaxCostExceedsPlan, MaxCostTooLow, InvalidInputs, UnknownPack, PackUnavailable, TooManyRuns, SpendLimit],
            ..post("/v1/runs", RUNS_WRITE) },
        Operation { id: "list_runs", summary: "Lists runs, newest first", answers: &[Answer { headers: &["Link"], ..json("RunPage") }], problems: &[InvalidCursor],
            takes: &["status", "pack_type_filter", "created_after", "created_before", "limit", "cursor"], ..get("/v1/runs", RUNS_READ) },
        Operation { id: "get_run", summary: "Shows a run", takes: &["Prefer"], problems: &[NotFound, RunExpired],
            answers: &[Answer { headers: &["Preference-Applied", "X-DPP-Cost-Reserved", "X-DPP-Cost-Minimum-Fee", "X-DPP-Cost-Actual"], ..json("Run") }], ..get("/v1/runs/{run_id}", RUNS_READ) },
        Operation { id: "get_run_result", summary: "Leads to a run's result", problems: &[NotFound, RunExpired, RunNotCompleted],
            answers: &[Answer { status: 303, description: "It can be downloaded there, without a key.", form: Form::Nothing, headers: &["Location"] }],
            ..get("/v1/runs/{run_id}/result", RUNS_READ) },
        Operation { id: "cancel_run", summary: "Cancels a run", problems: &[NotFound, RunExpired, RunNotCancellable],
            answers: &[
                Answer { headers: COSTS, description: "It is cancelled, and nothing is charged.", ..json("Run") },
                Answer { status: 202, description: "It is in work and stops soon. It pays what it used, at least the minimum fee.", form: Form::Json("Run"),
                    headers: &["Retry-After", "X-DPP-Cost-Reserved", "X-DPP-Cost-Minimum-Fee"] },
            ],
            ..post("/v1/runs/{run_id}/cancel", RUNS_WRITE) },
        Operation { id: "list_packs", summary: "Lists what is sold", answers: &[json("PackList")], ..get("/v1/packs", ANY_KEY) },
        Operation { id: "get_pack", summary: "Shows a pack's schemas and prices", answers: &[json("Pack")], problems: &[NotFound],
            ..get("/v1/packs/{pack_type}", ANY_KEY) },
        Operation { id: "get_budget", summary: "Shows what the tenant has", answers: &[json("Budget")], ..get("/v1/budget", USAGE_READ) },
        Operation { id: "get_usage", summary: "Sums up runs and charges by day and pack", answers: &[json("Usage")], takes: &["start_date", "end_date"],
            ..get("/v1/usage", USAGE_READ) },
        Operation { id: "list_ledger", summary: "Lists every entry of the account, newest first", problems: &[InvalidCursor], takes: &["limit", "cursor"],
            answers: &[Answer { headers: &["Link"], ..json("EntryPage") }], ..get("/v1/ledger", USAGE_READ) },
        Operation { id: "create_key", summary: "Makes a key", body: Some(("CreateKey", true)),
            answers: &[Answer { status: 201, description: "The key, and this one time its secret.", ..json("NewKey") }], ..post("/v1/keys", KEYS_MANAGE) },
        Operation { id: "list_keys", summary: "Lists keys, newest first", problems: &[InvalidCursor], takes: &["limit", "cursor"],
            answers: &[Answer { headers: &["Link"], ..json("KeyPage") }], ..get("/v1/keys", KEYS_MANAGE) },
        Operation { id: "rotate_key", summary: "Makes a key's successor", problems: &[NotFound], body: Some(("RotateKey", false)),
            answers: &[Answer { status: 201, description: "The successor, and this one time its secret.", ..json("NewKey") }],
            ..post("/v1/keys/{key_id}/rotate", KEYS_MANAGE) },
        Operation { id: "revoke_key", summary: "Ends a key, everywhere within 5 seconds", problems: &[NotFound],
            answers: &[Answer { status: 204, description: "It is revoked, or was before.", form: Form::Nothing, headers: &[] }],
            ..operation("delete", "/v1/keys/{key_id}", KEYS_MANAGE) },
        Operation { id: "create_tenant", summary: "Makes a customer", body: Some(("CreateTenant", true)), takes: &["Idempotency-Key"],
            answers: &[Answer { status: 201, description: "It is made, or was under this key before.", headers: &["Location", "Idempotent-Replayed"], ..json("Tenant") }],
            problems: &[KeyRequired, KeyInvalid, KeyReused], ..post("/v1/admin/tenants", ADMIN) },
        Operation { id: "list_tenants", summary: "Lists customers, oldest first", problems: &[InvalidCursor], takes: &["limit", "cursor"],
            answers: &[Answer { headers: &["Link"], ..json("TenantPage") }], ..get("/v1/admin/tenants", ADMIN) },
        Operation { id: "get_tenant", summary: "Shows a customer and its money", answers: &[json("TenantBudget")],
            ..get("/v1/admin/tenants/{tenant_id}", ADMIN) },
        Operation { id: "suspend_tenant", summary: "Lets a customer buy nothing more", answers: &[json("Tenant")],
            ..post("/v1/admin/tenants/{tenant_id}/suspend", ADMIN) },
        Operation { id: "resume_tenant", summary: "Lets a customer buy again", answers: &[json("Tenant")],
            ..post("/v1/admin/tenants/{tenant_id}/resume", ADMIN) },
        Operation { id: "assign_plan", summary: "Puts a customer on another plan", answers: &[json("Tenant")], body: Some(("AssignPlan", true)),
            ..operation("put", "/v1/admin/tenants/{tenant_id}/plan", ADMIN) },
        Operation { id: "create_deposit", summary: "Deposits money, once for each reference", body: Some(("CreateDeposit", true)), takes: &["Idempotency-Key"],
            answers: &[Answer { status: 201, description: "It is deposited, or was under this reference before.", headers: &["Idempotent-Replayed"], ..json("Deposit") }],
            problems: &[KeyRequired, KeyInvalid, KeyReused, InvalidAmount], ..post("/v1/admin/tenants/{tenant_id}/deposits", ADMIN) },
        Operation { id: "create_tenant_key", summary: "Makes a key for a customer", body: Some(("CreateKey", false)),
            answers: &[Answer { status: 201, description: "The key, and this one time its secret.", ..json("NewKey") }],
            ..post("/v1/admin/tenants/{tenant_id}/keys", ADMIN) },
        Operation { id: "list_tenant_keys", summary: "Lists a customer's keys, newest first", problems: &[InvalidCursor], takes: &["limit", "cursor"],
            answers: &[Answer { headers: &["Link"], ..json("KeyPage") }], ..get("/v1/admin/tenants/{tenant_id}/keys", ADMIN) },
        Operation { id: "rotate_tenant_key", summary: "Makes a successor of a customer's key", body: Some(("RotateKey", false)),
            answers: &[Answer { status: 201, description: "The successor, and this one time its secret.", ..json("NewKey") }],
            ..post("/v1/admin/keys/{key_id}/rotate", ADMIN) },
        Operation { id: "revoke_tenant_key", summary: "Ends a customer's key, everywhere within 5 seconds",
            answers: &[Answer { status: 204, description: "It is revoked, or was before.", form: Form::Nothing, headers: &[] }],
            ..operation("delete", "/v1/admin/keys/{key_id}", ADMIN) },
        Operation { id: "list_plans", summary: "Lists plans", answers: &[json("PlanList")], ..get("/v1/admin/plans", ADMIN) },
        Operation { id: "get_plan", summary: "Shows a plan", answers: &[json("Plan")], ..get("/v1/admin/plans/{plan}", ADMIN) },
        Operation { id: "put_plan", summary: "Makes a plan, or changes it", body: Some(("PutPlan", true)),
            answers: &[json("Plan"), Answer { status: 201, description: "It is new.", ..json("Plan") }],
            ..operation("put", "/v1/admin/plans/{plan}", ADMIN) },
        Operation { id: "get_openapi", summary: "This document", answers: &[Answer { headers: &["ETag"], ..json("Document") }, NOT_MODIFIED],
            takes: &["If-None-Match"], ..get("/openapi.json", EVERYBODY) },
        Operation { id: "get_docs", summary: "This document as Swagger UI", answers: &[text(&["text/html"], &["ETag"]), NOT_MODIFIED],
            takes: &["If-None-Match"], ..get("/docs", EVERYBODY) },
        Operation { id: "get_redoc", summary: "This document as Redoc", answers: &[text(&["text/html"], &["ETag"]), NOT_MODIFIED],
            takes: &["If-None-Match"], ..get("/redoc", EVERYBODY) },
        Operation { id: "get_asset", summary: "A part of the pages /docs and /redoc", problems: &[NotFound],
            answers: &[text(&["text/css", "text/javascript"], &["ETag"]), NOT_MODIFIED], takes: &["If-None-Match"], ..get("/assets/{asset}", EVERYBODY) },
        Operation { id: "get_llms", summary: "What an agent should know", answers: &[text(&["text/markdown"], &[])], ..get("/llms.txt", EVERYBODY) },
        Operation { id: "list_errors", summary: "Lists all kinds of problems", answers: &[Answer { form: Form::Page("ProblemList"), ..json("") }],
            ..get("/errors", EVERYBODY) },
        Operation { id: "get_error", summary: "Says what a kind of problem means and what to do", problems: &[NotFound],
            answers: &[Answer { form: Form::Page("ProblemPage"), ..json("") }], ..get("/errors/{slug}", EVERYBODY) },
        Operation { id: "get_health", summary: "Says whether the process lives", answers: &[json("Health")], ..get("/health", EVERYBODY) },
        Operation { id: "get_readiness", summary: "Says whether all dependencies answer",
            answers: &[json("Health"), Answer { status: 503, description: "One of them does not.", headers: &["Retry-After"], ..json("Health") }], ..get("/readyz", EVERYBODY) },
    ]
};

impl Operation {
    /// Everything that can be wrong.
    pub fn all_problems(&self) -> impl Iterator<Item = Kind> {
        let implied: &[Kind] = match self.access {
            Access::Everybody => &[],
            // Without a token there is nothing here.
            Access::Admin => {
                &[Kind::InvalidRequest, Kind::Unauthorized, Kind::NotFound, Kind::Internal, Kind::Unavailable]
            }
            // Only known fields of a query are taken; the key is looked up.
            Access::Key(None) => &[
                Kind::InvalidRequest,
                Kind::Unauthorized,
                Kind::RateLimited,
                Kind::Internal,
                Kind::Unavailable,
            ],
            Access::Key(Some(_)) => &[
                Kind::InvalidRequest,
                Kind::Unauthorized,
                Kind::InsufficientScope,
                Kind::RateLimited,
                Kind::Internal,
                Kind::Unavailable,
            ],
        };
        let of_body: &[Kind] = match (self.body, self.method) {
            (Some(_), _) => &[Kind::PayloadTooLarge, Kind::UnsupportedMediaType],
            (None, "post") => &[Kind::PayloadTooLarge],
            (None, _) => &[],
        };
        implied.iter().chain(of_body).chain(self.problems).copied()
    }
}
