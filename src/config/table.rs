//! The settings, each with its kind and a hint: a screenful that is the answer.

use std::time::Duration;

use crate::domain::api_key::ApiKey;

/// One setting. Its default is in `config/default.toml`.
pub(super) struct Setting {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// What would be right.
    pub(super) help: &'static str,
}

/// What a value may be.
pub(super) enum Kind {
    Text,
    /// Shown masked.
    Secret,
    /// A secret that is long enough to be guessed by nobody, and no API key. Shown masked.
    Token,
    Url(&'static [&'static str]),
    /// A URL that may hold a password: shown masked.
    SecretUrl(&'static [&'static str]),
    Flag,
    Count(u64, u64),
    /// Seconds or minutes, with fractions, above zero.
    Interval,
    Address,
    /// What to log: a level, or `target=level` and levels with commas between.
    LogFilter,
    OneOf(&'static [&'static str]),
    /// Origins of web pages, with commas between.
    Origins,
    Ports,
}

/// Names that begin with DPP_ and are read elsewhere.
pub(super) const OTHERS: &[&str] = &[
    "DPP_CONFIG_DIR",
    "DPP_PG_BIN",
    "DPP_REDIS_BIN",
    #[cfg(debug_assertions)]
    "DPP_CRASH_AT",
];

macro_rules! settings {
    ($($name:literal, $kind:expr, $help:literal;)*) => {
        &[$(Setting { name: $name, kind: $kind, help: $help }),*]
    };
}

pub(super) const SETTINGS: &[Setting] = settings! {
    "DPP_ENV", Kind::OneOf(&["dev", "staging", "production"]), "dev, staging or production";
    "DATABASE_URL", Kind::SecretUrl(&["postgres", "postgresql"]), "set it as postgres://user:password@host:5432/dpp";
    "DATABASE_URL_MIGRATIONS", Kind::SecretUrl(&["postgres", "postgresql"]), "set it as postgres://user:password@host:5432/dpp";
    "DATABASE_CONNECTIONS_MAX", Kind::Count(2, 1_000), "a number of connections";
    "REDIS_URL", Kind::SecretUrl(&["redis", "rediss"]), "set it as redis://host:6379/0";
    "REDIS_PASSWORD", Kind::Secret, "the password of REDIS_URL";
    "REDIS_CONNECTIONS_MAX", Kind::Count(1, 1_000), "a number of connections";
    "SQS_QUEUE_URL", Kind::Url(&["http", "https"]), "set it as https://sqs.REGION.amazonaws.com/ACCOUNT/NAME";
    "SQS_DLQ_URL", Kind::Url(&["http", "https"]), "set it as https://sqs.REGION.amazonaws.com/ACCOUNT/NAME";
    "SQS_ENDPOINT_URL", Kind::Url(&["http", "https"]), "unset on AWS";
    "S3_RESULT_BUCKET", Kind::Text, "set it to the name of a bucket";
    "S3_ENDPOINT_URL", Kind::Url(&["http", "https"]), "unset on AWS";
    "DPP_HOST", Kind::Text, "an address to listen on";
    "DPP_PORT", Kind::Count(0, 65_535), "a port";
    "DPP_PUBLIC_URL", Kind::Url(&["http", "https"]), "how the outside reaches the API";
    "DPP_OPS_ADDR", Kind::Address, "an address and port, such as 127.0.0.1:9464";
    "DPP_ADMIN_TOKEN", Kind::Token, "what `openssl rand -hex 32` prints";
    "CORS_ALLOWED_ORIGINS", Kind::Origins, "comma-separated origins, such as https://app.example.com";
    "RESULT_URL_TTL_SEC", Kind::Interval, "seconds";
    "LOG_LEVEL", Kind::LogFilter, "error, warn, info, debug or trace";
    "DPP_JSON_LOGS", Kind::Flag, "true or false";
    "SHUTDOWN_GRACE_SEC", Kind::Interval, "seconds";
    "WORKER_CONCURRENCY", Kind::Count(1, 1_000), "runs at once";
    "LEASE_SEC", Kind::Interval, "seconds";
    "HEARTBEAT_SEC", Kind::Interval, "seconds";
    "MAX_ATTEMPTS", Kind::Count(1, 100), "attempts";
    "REAPER_INTERVAL_SEC", Kind::Interval, "seconds";
    "REAPER_LEASE_POLICY", Kind::OneOf(&["minimum_fee", "refund"]), "minimum_fee or refund";
    "RECONCILE_INTERVAL_SEC", Kind::Interval, "seconds";
    "RECONCILE_THRESHOLD_MIN", Kind::Interval, "minutes";
    "QUEUE_TTL_SEC", Kind::Interval, "seconds";
    "RESERVATION_GRACE_SEC", Kind::Interval, "seconds";
    "URL_ALLOW_LOOPBACK", Kind::Flag, "true or false";
    "URL_EXTRA_PORTS", Kind::Ports, "comma-separated ports";
};

/// A token of fewer characters might be guessed.
const TOKEN_CHARS_MIN: usize = 32;
/// No interval is longer than this: ten years.
const INTERVAL_MAX: Duration = Duration::from_secs(10 * 366 * 86_400);

/// Reads `30` or `0.25`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let value = text.parse::<f64>().ok().filter(|_| plain)?;
    Duration::try_from_secs_f64(value).ok().filter(|value| !value.is_zero() && *value <= INTERVAL_MAX)
}

/// Reads the name of an origin as browsers write it: no path, no slash at the end, no default port.
pub(super) fn origin(text: &str) -> Option<url::Url> {
    let url = url::Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    (url.origin().ascii_serialization() == text && !text.contains('*')).then_some(url)
}

impl Setting {
    /// A value as it may be printed.
    pub(super) fn shown(&self, value: &str) -> String {
        match self.kind {
            Kind::Secret | Kind::Token | Kind::SecretUrl(_) if !value.is_empty() => "(hidden)".to_owned(),
            _ => format!("{value:?}"),
        }
    }
}

impl Kind {
    /// Whether a setting of this kind may have no value.
    pub(super) const fn may_be_empty(&self) -> bool {
        !matches!(
            self,
            Self::Count(..) | Self::Interval | Self::Flag | Self::OneOf(_) | Self::Address | Self::LogFilter
        )
    }

    /// Judges a value that is set.
    ///
    /// # Errors
    /// What would be right.
    pub(super) fn judge(&self, value: &str) -> Result<(), String> {
        let right = match self {
            Self::Text | Self::Secret => return Ok(()),
            Self::Token => (
                value.len() >= TOKEN_CHARS_MIN
                    && value.bytes().all(|byte| byte.is_ascii_graphic())
                    && value.parse::<ApiKey>().is_err(),
                format!(
                    "write at least {TOKEN_CHARS_MIN} visible ASCII characters that are no API key, such as \
                     `openssl rand -hex 32` prints; unset, there is no admin API"
                ),
            ),
            Self::Url(schemes) | Self::SecretUrl(schemes) => {
                let sound = url::Url::parse(value).is_ok_and(|url| {
                    schemes.contains(&url.scheme()) && url.host_str().is_some_and(|host| !host.is_empty())
                });
                (sound, format!("write a URL that begins with {}://", schemes.join(":// or ")))
            }
            Self::Flag => (matches!(value, "true" | "false"), "write true or false".to_owned()),
            Self::Count(least, most) => (
                value.parse::<u64>().is_ok_and(|count| (*least..=*most).contains(&count)),
                format!("write a whole number from {least} to {most}"),
            ),
            Self::Interval => {
                (duration(value).is_some(), "write a number above 0, such as 30 or 0.5".to_owned())
            }
            Self::Address => (
                value.parse::<std::net::SocketAddr>().is_ok(),
                "write an address and port, such as 127.0.0.1:9464".to_owned(),
            ),
            Self::LogFilter => (
                value.split(',').all(|part| {
                    let level = part.rsplit('=').next().unwrap_or_default().trim().to_lowercase();
                    ["off", "error", "warn", "info", "debug", "trace"].contains(&level.as_str())
                }),
                "write error, warn, info, debug or trace, or a filter such as info,dpp::flow=debug"
                    .to_owned(),
            ),
            Self::OneOf(names) => (names.contains(&value), format!("write {}", names.join(" or "))),
            Self::Origins => (
                value.split(',').all(|item| origin(item.trim()).is_some()),
                "name each origin exactly as browsers do, such as https://app.example.com or \
                 https://app.example.com:8443, with commas between; * is none"
                    .to_owned(),
            ),
            Self::Ports => (
                value.split(',').all(|port| port.trim().parse::<u16>().is_ok_and(|port| port > 0)),
                "write ports from 1 to 65535, separated by commas".to_owned(),
            ),
        };
        if right.0 { Ok(()) } else { Err(right.1) }
    }
}
