//! Logs, and the metrics of a process.
//!
//! One line an event, on stderr. Events carry `trace_id`, `run_id` and `tenant_id` as fields; keys,
//! inputs, results and URLs with passwords are never logged. A cause is logged once, where it is
//! handled.

pub mod metrics;

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Begins to log what `filter` lets through. Once for each process.
///
/// # Errors
/// When `filter` is malformed, or logging has begun already.
pub fn init(filter: &str, json: bool) -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .parse(filter)
        .with_context(|| format!("LOG_LEVEL is {filter:?}: write error, warn, info, debug or trace"))?;
    let registry = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(std::io::stderr);
    if json {
        registry.with(lines.json().flatten_event(true).with_span_list(false)).try_init()
    } else {
        let colours = std::io::stderr().is_terminal();
        registry.with(lines.with_target(false).with_ansi(colours)).try_init()
    }
    .context("logging has begun already")
}

/// What an AWS service said, or why it could not be asked, on one line for people.
pub fn aws_error(error: &dyn std::error::Error, code: Option<&str>, message: Option<&str>) -> String {
    match code {
        Some(code) => format!("{code}: {}", message.unwrap_or("no further word")),
        None => chain(error),
    }
}

/// An error and its causes on one line, without repeating what a cause says again.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}
