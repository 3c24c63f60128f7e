//! What handlers are given: who calls, and the request's parts, with the house's errors.

use std::{future::Future, marker::PhantomData, pin::Pin, time::Duration};

use actix_web::{
    FromRequest, HttpRequest,
    dev::Payload,
    http::header,
    web::{self, Data},
};
use serde_json::{Map, Value};

use super::{
    App,
    context::ids,
    problem::{Kind, Problem},
    quota,
};
use crate::{
    domain::{api_key::ApiKey, idempotency::IdempotencyKey, limit::Counted, plan, scope::Scope},
    pack::FieldError,
    wire::json,
};

/// The largest body.
pub const BODY_BYTES_MAX: usize = 256 * 1024;
/// How long a body may take to arrive.
const BODY_WAIT_MAX: Duration = Duration::from_secs(10);

/// Whoever holds the request's API key, which has the right that `N` names.
pub struct Caller<N>(pub plan::Caller, PhantomData<N>);

/// What a handler needs its caller's key to have.
pub trait Needs: 'static {
    /// The right; `None` where any key will do.
    const SCOPE: Option<Scope>;
    /// As what its request counts.
    const COUNTED: Counted;
}

macro_rules! needs {
    ($($(#[$doc:meta])* $name:ident $scope:expr, $counted:ident;)*) => {$(
        $(#[$doc])*
        pub struct $name;

        impl Needs for $name {
            const SCOPE: Option<Scope> = $scope;
            const COUNTED: Counted = Counted::$counted;
        }
    )*};
}

needs! {
    /// Any key.
    AnyKey None, Polls;
    /// One that may buy runs, and does: the gate counts it.
    RunsBuy Some(Scope::RunsWrite), Runs;
    /// One that may buy runs.
    RunsWrite Some(Scope::RunsWrite), Polls;
    /// One that may see runs.
    RunsRead Some(Scope::RunsRead), Polls;
    /// One that may see the tenant's money.
    UsageRead Some(Scope::UsageRead), Polls;
    /// One that may manage keys.
    KeysManage Some(Scope::KeysManage), Polls;
}

impl<N: Needs> FromRequest for Caller<N> {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            // One text, whatever was wrong with the key.
            let refused = Problem::unauthorized;
            let app = app(&request)?;
            let key: ApiKey = bearer(&request).and_then(|key| key.parse().ok()).ok_or_else(refused)?;
            let found = app.caller(key.digest()).await;
            let found = found.map_err(|error| Problem::of_flow(error, ids(&request).trace_id))?;
            let caller = found.ok_or_else(refused)?;
            match N::COUNTED {
                Counted::Runs => quota::apply(&request, &caller, Counted::Runs),
                Counted::Polls => quota::count(&app, &request, &caller).await?,
            }
            match N::SCOPE.filter(|scope| !caller.scopes.allow(*scope)) {
                None => Ok(Self(caller, PhantomData)),
                Some(scope) => Err(Problem::new(
                    Kind::InsufficientScope,
                    format!("This needs a key with the scope {}.", scope.name()),
                )),
            }
        })
    }
}

/// The token that a request bears.
pub fn bearer(request: &HttpRequest) -> Option<&str> {
    let (scheme, token) = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// A request's body, whole, within its limits of size and time.
pub struct Body(pub web::Bytes);

impl FromRequest for Body {
    type Error = actix_web::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self, actix_web::Error>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let bytes = web::Bytes::from_request(request, payload);
        Box::pin(async move {
            match tokio::time::timeout(BODY_WAIT_MAX, bytes).await {
                Ok(bytes) => Ok(Self(bytes?)),
                Err(_) => {
                    let detail = format!("The body did not arrive within {} s.", BODY_WAIT_MAX.as_secs());
                    Err(Problem::new(Kind::InvalidRequest, detail).into())
                }
            }
        })
    }
}

/// The application's state; it is always there.
pub fn app(request: &HttpRequest) -> Result<Data<App>, Problem> {
    request
        .app_data::<Data<App>>()
        .cloned()
        .ok_or_else(|| Problem::new(Kind::Internal, "The request could not be completed."))
}

/// The request's idempotency key.
///
/// # Errors
/// [`Problem`] when there is none, or more than one, or it is malformed.
pub fn idempotency_key(request: &HttpRequest) -> Result<IdempotencyKey, Problem> {
    let mut values = request.headers().get_all("Idempotency-Key");
    let Some(value) = values.next() else {
        return Err(Problem::new(
            Kind::KeyRequired,
            "Send a header Idempotency-Key with a value of your own for each new run, such as a UUID.",
        ));
    };
    let bad = |detail: String| Problem::new(Kind::KeyInvalid, detail);
    if values.next().is_some() {
        return Err(bad("Send one Idempotency-Key only.".to_owned()));
    }
    let text = value.to_str().ok().ok_or_else(|| bad("An Idempotency-Key is visible ASCII.".to_owned()))?;
    IdempotencyKey::from_header(text).map_err(|error| bad(format!("{error}.")))
}

/// Refuses a body where none is asked for; an object without members is none.
///
/// # Errors
/// [`Problem`]
pub fn no_body(body: &Body) -> Result<(), Problem> {
    let empty =
        body.0.is_empty() || matches!(json::parse(&body.0), Ok(Value::Object(members)) if members.is_empty());
    let detail = "there is nothing to say here: send no body".to_owned();
    let error = FieldError { pointer: String::new(), detail };
    if empty { Ok(()) } else { Err(Problem::fields(Kind::InvalidRequest, vec![error])) }
}

/// The JSON object in a request's body.
///
/// # Errors
/// [`Problem`] when it is no JSON object, or nests too deeply.
pub fn json_object(request: &HttpRequest, body: &web::Bytes) -> Result<Map<String, Value>, Problem> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(Problem::new(
            Kind::UnsupportedMediaType,
            "Send a header Content-Type: application/json.",
        ));
    }
    let coding = request.headers().get(header::CONTENT_ENCODING);
    if coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Problem::new(
            Kind::UnsupportedMediaType,
            "Send the body as it is, without a Content-Encoding.",
        ));
    }
    let bad = |detail: String| {
        Problem::fields(Kind::InvalidRequest, vec![FieldError { pointer: String::new(), detail }])
    };
    if body.is_empty() {
        return Err(bad("the body is empty: send a JSON object".to_owned()));
    }
    match json::parse(body) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(bad("send a JSON object".to_owned())),
        Err(error) => Err(bad(format!("not acceptable as JSON: {error}"))),
    }
}
