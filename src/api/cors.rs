//! Who may call from a browser (CORS), and what every answer tells a browser not to do.
//!
//! A caller proves itself by a bearer key and never by a cookie, so credentials are never allowed, and an
//! origin is allowed by its exact name alone: there is no `*` here to combine with anything.

use actix_web::http::{
    Method,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};

use crate::config::Origins;

/// What a page may send.
const REQUEST_HEADERS: &str =
    "Authorization, Content-Type, Idempotency-Key, Prefer, X-Request-ID, traceparent, tracestate";
/// What a page may read beyond the body.
const RESPONSE_HEADERS: &str = "Idempotent-Replayed, Link, Location, Preference-Applied, RateLimit, RateLimit-Policy, \
     Retry-After, WWW-Authenticate, X-DPP-Cost-Actual, X-DPP-Cost-Minimum-Fee, X-DPP-Cost-Reserved, X-Request-ID, traceparent";
/// How long a browser may remember a preflight's answer, in seconds.
const PREFLIGHT_SECS: &str = "600";

/// What an answer's place in a browser depends on: taken from the request before it is handled.
pub struct Browser {
    origin: Option<HeaderValue>,
    preflight: bool,
}

impl Browser {
    /// Of a request.
    pub fn of(method: &Method, headers: &HeaderMap) -> Self {
        let mut origins = headers.get_all(header::ORIGIN);
        // Two origins are none.
        let origin = origins.next().filter(|_| origins.next().is_none()).cloned();
        let preflight =
            method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        Self { origin, preflight }
    }

    /// Adds to an answer what its browser is to know. `methods` are those of a preflight's path.
    pub fn tell(self, origins: &Origins, methods: Option<HeaderValue>, answer: &mut HeaderMap) {
        answer.append(header::VARY, HeaderValue::from_static("Origin"));
        let allowed = |origin: &HeaderValue| origin.to_str().is_ok_and(|origin| origins.allow(origin));
        let Some(origin) = self.origin.filter(allowed) else { return };
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        match methods.filter(|_| self.preflight) {
            Some(methods) => {
                answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
                say(answer, header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
                say(answer, header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECS);
            }
            None => say(answer, header::ACCESS_CONTROL_EXPOSE_HEADERS, RESPONSE_HEADERS),
        }
    }
}

/// What every answer says, unless its handler has said otherwise.
pub fn guard(answer: &mut HeaderMap) {
    say(answer, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    say(answer, header::REFERRER_POLICY, "no-referrer");
    say(answer, header::X_FRAME_OPTIONS, "DENY");
    // Nothing is loaded by what is shown here, and nothing frames it.
    let nothing = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    say(answer, header::CONTENT_SECURITY_POLICY, nothing);
    // Most of it is a tenant's business, and its money.
    say(answer, header::CACHE_CONTROL, "no-store");
}

fn say(answer: &mut HeaderMap, name: HeaderName, value: &'static str) {
    if !answer.contains_key(&name) {
        answer.insert(name, HeaderValue::from_static(value));
    }
}
