//! `Prefer: wait=N` (RFC 7240): how long the caller would like to wait for a run to end.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponseBuilder};

/// The longest wait. Who asks for more gets this, and is told so by `Preference-Applied`.
const WAIT_SECS_MAX: u64 = 60;

/// For how long the request prefers to wait, if at all. Nothing in this header is an error: a preference that
/// cannot be read is none, and of several of one name the first alone counts.
pub fn wait(request: &HttpRequest) -> Option<Duration> {
    let headers = request.headers().get_all("Prefer").filter_map(|value| value.to_str().ok());
    let preferences = headers.flat_map(|header| unquoted(header, ',')).filter_map(|preference| {
        // What comes after the semicolon are its parameters.
        unquoted(preference, ';').next()?.split_once('=')
    });
    let (_, secs) = preferences
        .map(|(name, value)| (name.trim(), value.trim()))
        .find(|(name, _)| name.eq_ignore_ascii_case("wait"))?;
    let secs = secs.strip_prefix('"').and_then(|secs| secs.strip_suffix('"')).unwrap_or(secs);
    if secs.is_empty() || !secs.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // What is too large for a number is above the most as well.
    let secs = secs.parse().unwrap_or(WAIT_SECS_MAX).min(WAIT_SECS_MAX);
    (secs > 0).then(|| Duration::from_secs(secs))
}

/// Says that the preference was followed.
pub fn applied(response: &mut HttpResponseBuilder, wait: Option<Duration>) {
    if let Some(wait) = wait {
        response.insert_header(("Preference-Applied", format!("wait={}", wait.as_secs())));
    }
}

/// The parts of a header's value, as `mark` separates them where it is not quoted.
fn unquoted(value: &str, mark: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    value.split(move |letter| {
        quoted ^= letter == '"' && !escaped;
        escaped = quoted && !escaped && letter == '\\';
        letter == mark && !quoted
    })
}
