//! What surrounds every request: its ids, its log line, its metrics, and the form of its errors.

use actix_web::{
    Error, HttpMessage as _, HttpRequest, HttpResponse,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method, StatusCode,
        header::{self, HeaderName, HeaderValue},
    },
    middleware::Next,
    web::Data,
};

use super::{
    App,
    connections::InHand,
    cors::{self, Browser},
    problem::{Kind, Problem},
    quota,
};
use crate::{config::Origins, domain::id::TraceId};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_CHARS_MAX: usize = 128;
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A request's ids.
#[derive(Clone, Debug)]
pub struct Ids {
    /// The trace that it belongs to: its own, or the caller's.
    pub trace_id: TraceId,
    /// Its own name: a sane one from outside is kept.
    pub request_id: String,
}

impl Ids {
    fn of(request: &ServiceRequest) -> Self {
        let text = |name: &HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
        let sane = |id: &&str| {
            (1..=REQUEST_ID_CHARS_MAX).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
        };
        Self {
            trace_id: text(&TRACEPARENT).and_then(TraceId::from_traceparent).unwrap_or_else(TraceId::new),
            request_id: text(&REQUEST_ID)
                .filter(sane)
                .map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned),
        }
    }
}

/// The ids of a request that came through [`surround`].
pub fn ids(request: &HttpRequest) -> Ids {
    request
        .extensions()
        .get::<Ids>()
        .cloned()
        .unwrap_or_else(|| Ids { trace_id: TraceId::new(), request_id: String::new() })
}

/// Middleware: gives the request its ids, and its answer the house's headers and form.
pub async fn surround(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let started = std::time::Instant::now();
    let _in_hand = InHand::of(request.request());
    let ids = Ids::of(&request);
    let browser = Browser::of(request.method(), request.headers());
    request.extensions_mut().insert(ids.clone());
    // Handlers' and extractors' errors come as answers; there is no middleware below that could fail.
    let mut response = house_form(options(next.call(request).await?.map_into_boxed_body()), &ids);
    let app = response.request().app_data::<Data<App>>().cloned();
    let request = response.request().clone();
    // No page of a browser has business with the admin API, whatever its origin.
    let admin = request.match_pattern().is_some_and(|path| path.starts_with("/v1/admin/"));
    let headers = response.headers_mut();
    quota::tell(&request, headers);
    if let Ok(value) = HeaderValue::from_str(&ids.request_id) {
        headers.insert(REQUEST_ID, value);
    }
    if let Ok(value) = HeaderValue::from_str(&ids.trace_id.to_traceparent()) {
        headers.insert(TRACEPARENT, value);
    }
    if let Some(app) = app {
        let methods = headers.get(header::ALLOW).cloned();
        let nobody = Origins::default();
        browser.tell(if admin { &nobody } else { &app.origins }, methods, headers);
    }
    cors::guard(headers);
    record(&response, &ids, started.elapsed());
    Ok(response)
}

/// Answers OPTIONS, and says of every path that it is one of its methods. No handler knows of it: it is what
/// is left where no route has the method.
fn options(mut response: ServiceResponse<BoxBody>) -> ServiceResponse<BoxBody> {
    if response.status() != StatusCode::METHOD_NOT_ALLOWED {
        return response;
    }
    let allow = response.headers().get(header::ALLOW).and_then(|allow| allow.to_str().ok());
    let Some(allow) = allow.and_then(|allow| HeaderValue::from_str(&format!("{allow}, OPTIONS")).ok()) else {
        return response;
    };
    if response.request().method() == Method::OPTIONS {
        let answer = HttpResponse::NoContent().insert_header((header::ALLOW, allow)).finish();
        return response.into_response(answer);
    }
    response.headers_mut().insert(header::ALLOW, allow);
    response
}

/// Gives an error answer a problem's body.
fn house_form(response: ServiceResponse<BoxBody>, ids: &Ids) -> ServiceResponse<BoxBody> {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    if response.headers().get(header::CONTENT_TYPE).is_some_and(|form| form == "application/json") {
        // A readiness answer is a document of its own.
        return response;
    }
    let by_status;
    let problem = match response.response().error().and_then(|error| error.as_error::<Problem>()) {
        Some(problem) => problem,
        None => {
            by_status = Problem::of_status(status);
            &by_status
        }
    };
    let public_url = response.request().app_data::<Data<App>>().map_or("", |app| app.public_url.as_str());
    let body = problem.body(public_url, response.request().path(), ids.trace_id);
    let mut answer = HttpResponse::build(problem.kind.status());
    answer.content_type("application/problem+json");
    match problem.kind {
        Kind::InsufficientScope => {
            answer.insert_header((header::WWW_AUTHENTICATE, "Bearer error=\"insufficient_scope\""));
        }
        Kind::Unauthorized => drop(answer.insert_header((header::WWW_AUTHENTICATE, "Bearer"))),
        _ => {}
    }
    if let Some(secs) = problem.retry_after_secs {
        answer.insert_header((header::RETRY_AFTER, secs.to_string()));
    }
    if let Some(allow) = response.headers().get(header::ALLOW) {
        answer.insert_header((header::ALLOW, allow.clone()));
    }
    let answer = answer.body(body.to_string());
    response.into_response(answer)
}

fn record(response: &ServiceResponse<BoxBody>, ids: &Ids, elapsed: std::time::Duration) {
    let route = response.request().match_pattern().unwrap_or_else(|| "(none)".to_owned());
    let status = response.status().as_u16();
    metrics::counter!("dpp_http_requests_total", "route" => route.clone(), "status" => status.to_string())
        .increment(1);
    metrics::histogram!("dpp_http_seconds", "route" => route.clone()).record(elapsed);
    tracing::debug!(trace_id = %ids.trace_id, request_id = ids.request_id, method = %response.request().method(),
        route, status, duration_ms = elapsed.as_millis(), "request answered");
}
