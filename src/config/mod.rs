//! Settings: where they come from, and what each role gets of them.
//!
//! [`Settings`] resolves the layers into texts and refuses what is unknown or malformed; the typed
//! getters hand out one section each. Nothing else reads the environment.

mod table;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::SecretString;

use self::table::{SETTINGS, Setting};

/// The settings' defaults, as built in.
const DEFAULTS: &str = include_str!("../../config/default.toml");
/// What each environment sets beyond the defaults, as built in.
const ENVIRONMENTS: [(&str, &str); 3] = [
    ("dev", include_str!("../../config/dev.toml")),
    ("staging", include_str!("../../config/staging.toml")),
    ("production", include_str!("../../config/production.toml")),
];
/// Without DPP_ENV a process is as strict as in production.
const ENVIRONMENT_DEFAULT: &str = "production";

/// Wrong settings, all of them, each with what would be right.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Error(Vec<String>);

/// All settings as texts that have been judged.
#[derive(Clone)]
pub struct Settings {
    values: BTreeMap<&'static str, String>,
}

/// What a lost run pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostRunPolicy {
    /// Nothing.
    Refund,
    /// The minimum fee.
    MinimumFee,
}

/// How the worker and the reaper keep time.
#[derive(Clone, Debug)]
pub struct Pace {
    /// How long a lease lasts.
    pub lease: Duration,
    /// How often it is renewed.
    pub heartbeat: Duration,
    /// How often a run may be taken.
    pub attempts_max: i32,
    /// How often the reaper looks.
    pub reaper_interval: Duration,
    /// How often it looks for stale claims.
    pub reconcile_interval: Duration,
    /// From which age a claim is stale.
    pub reconcile_threshold: Duration,
    /// How long a run may wait.
    pub queue_ttl: Duration,
    /// How old a reservation without a run may get.
    pub reservation_grace: Duration,
    /// What a lost run pays.
    pub lost_run_policy: LostRunPolicy,
    /// How long a download link works.
    pub result_url_ttl: Duration,
}

/// Whose pages may call the API from a browser.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    /// These, by their exact names.
    pub listed: Vec<String>,
    /// And every page of the machine that the browser runs on.
    pub localhost: bool,
}

impl Origins {
    /// Whether a page of this origin may call.
    pub fn allow(&self, origin: &str) -> bool {
        self.listed.iter().any(|listed| listed == origin) || self.localhost && is_localhost(origin)
    }
}

/// Whether this is the name of an origin on the machine itself.
fn is_localhost(origin: &str) -> bool {
    table::origin(origin).is_some_and(|url| match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    })
}

impl Settings {
    /// The settings of this process: built-in layers, the files of `config/` in the current
    /// directory (or `DPP_CONFIG_DIR`) where there are any, and the environment.
    ///
    /// # Errors
    /// [`Error`] with every wrong setting.
    pub fn load() -> Result<Self, Error> {
        Self::resolve(&environment())
    }

    /// The settings of a process with this environment.
    ///
    /// # Errors
    /// [`Error`] with every wrong setting.
    pub fn resolve(environment: &BTreeMap<String, String>) -> Result<Self, Error> {
        let mut wrong = Vec::new();
        let mut values = BTreeMap::new();
        let env = environment.get("DPP_ENV").map_or(ENVIRONMENT_DEFAULT, String::as_str);
        overlay(&mut values, "the built-in defaults", DEFAULTS, &mut wrong);
        let directory = environment.get("DPP_CONFIG_DIR").map_or(Path::new("config"), Path::new).to_owned();
        overlay_file(&mut values, &directory.join("default.toml"), &mut wrong);
        match ENVIRONMENTS.iter().find(|(name, _)| *name == env) {
            Some((name, text)) => {
                overlay(&mut values, &format!("the built-in {name} settings"), text, &mut wrong);
                overlay_file(&mut values, &directory.join(format!("{name}.toml")), &mut wrong);
            }
            None => wrong.push(format!("DPP_ENV is {env:?}: set it to dev, staging or production")),
        }
        for setting in SETTINGS {
            if let Some(value) = environment.get(setting.name) {
                set(&mut values, setting, value.clone());
            }
        }
        values.insert("DPP_ENV", env.to_owned());
        refuse_unknown(environment, &mut wrong);
        // The wrong environment has been named above.
        for setting in SETTINGS.iter().filter(|setting| setting.name != "DPP_ENV") {
            let value = values.get(setting.name).map_or("", String::as_str);
            if !value.is_empty()
                && let Err(right) = setting.kind.judge(value)
            {
                wrong.push(format!("{} is {}: {right}", setting.name, setting.shown(value)));
            }
        }
        let settings = Self { values };
        if wrong.is_empty() {
            settings.judge_together(&mut wrong);
        }
        if wrong.is_empty() { Ok(settings) } else { Err(Error(wrong)) }
    }

    /// What no single setting can tell.
    fn judge_together(&self, wrong: &mut Vec<String>) {
        let pace = self.pace();
        if pace.heartbeat.saturating_mul(3) > pace.lease {
            wrong.push(format!(
                "HEARTBEAT_SEC is {} and LEASE_SEC {}: a lease must outlast two lost beats, so HEARTBEAT_SEC is at most a third of LEASE_SEC",
                self.text("HEARTBEAT_SEC"), self.text("LEASE_SEC")
            ));
        }
        // What SQS lets a message be invisible for, and S3 a link be good for.
        for (name, at_most) in [("LEASE_SEC", 43_200), ("RESULT_URL_TTL_SEC", 604_800)] {
            if self.interval(name) > Duration::from_secs(at_most) {
                wrong.push(format!("{name} is {}: set it to {at_most} or less", self.text(name)));
            }
        }
        if self.is_production() {
            if self.flag("URL_ALLOW_LOOPBACK") {
                wrong.push("URL_ALLOW_LOOPBACK is true: production never fetches loopback addresses; set it to false, or DPP_ENV to dev".to_owned());
            }
            if pace.reconcile_threshold < Duration::from_secs(60) {
                wrong.push("RECONCILE_THRESHOLD_MIN is below 1: an upload may take 30 s, and a claim must not be judged before; set it to 1 or more".to_owned());
            }
        }
        let origins = self.origins();
        if !origins.localhost
            && let Some(origin) = origins.listed.iter().find(|origin| is_localhost(origin))
        {
            wrong.push(format!(
                "CORS_ALLOWED_ORIGINS names {origin}: localhost may call in dev only, where it need not be named; remove it, or set DPP_ENV to dev"
            ));
        }
    }

    fn text(&self, name: &'static str) -> &str {
        debug_assert!(SETTINGS.iter().any(|setting| setting.name == name), "{name} is in the table");
        self.values.get(name).map_or("", String::as_str)
    }

    fn optional(&self, name: &'static str) -> Option<String> {
        Some(self.text(name)).filter(|value| !value.is_empty()).map(str::to_owned)
    }

    /// A setting without which the caller cannot work.
    fn required(&self, name: &'static str) -> Result<String, Error> {
        self.optional(name).ok_or_else(|| {
            let help =
                SETTINGS.iter().find(|setting| setting.name == name).map_or("", |setting| setting.help);
            Error(vec![format!("{name} is not set: {help}")])
        })
    }

    /// Every setting without which no role can work, and is not set.
    ///
    /// # Errors
    /// [`Error`] with all of them.
    pub fn complete(&self) -> Result<(), Error> {
        let names = ["DATABASE_URL", "REDIS_URL", "SQS_QUEUE_URL", "S3_RESULT_BUCKET"];
        let missing: Vec<_> = names
            .into_iter()
            .filter_map(|name| self.required(name).err())
            .flat_map(|error| error.0)
            .collect();
        if missing.is_empty() { Ok(()) } else { Err(Error(missing)) }
    }

    // The getters below parse what `resolve` has judged, so their fallbacks are never taken.

    fn flag(&self, name: &'static str) -> bool {
        self.text(name) == "true"
    }

    fn count(&self, name: &'static str) -> usize {
        self.text(name).parse().unwrap_or(1)
    }

    fn interval(&self, name: &'static str) -> Duration {
        table::duration(self.text(name)).unwrap_or(Duration::MAX)
    }

    fn list(&self, name: &'static str) -> Vec<String> {
        self.text(name).split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }

    /// `dev`, `staging` or `production`.
    pub fn environment(&self) -> &str {
        self.text("DPP_ENV")
    }

    /// Whether this is production.
    pub fn is_production(&self) -> bool {
        self.environment() == "production"
    }

    /// Where the database is, and how many connections this process may hold.
    ///
    /// # Errors
    /// [`Error`] when DATABASE_URL is not set.
    pub fn database(&self) -> Result<(SecretString, usize), Error> {
        Ok((self.required("DATABASE_URL")?.into(), self.count("DATABASE_CONNECTIONS_MAX")))
    }

    /// Where migrations connect.
    ///
    /// # Errors
    /// [`Error`] when neither URL is set.
    pub fn database_for_migrations(&self) -> Result<SecretString, Error> {
        match self.optional("DATABASE_URL_MIGRATIONS") {
            Some(url) => Ok(url.into()),
            None => Ok(self.database()?.0),
        }
    }

    /// Where Redis is, its password, and how many connections this process may hold.
    ///
    /// # Errors
    /// [`Error`] when REDIS_URL is not set.
    pub fn redis(&self) -> Result<(SecretString, Option<SecretString>, usize), Error> {
        let password = self.optional("REDIS_PASSWORD").map(SecretString::from);
        Ok((self.required("REDIS_URL")?.into(), password, self.count("REDIS_CONNECTIONS_MAX")))
    }

    /// The queue's endpoint, its URL and its dead-letter queue's.
    ///
    /// # Errors
    /// [`Error`] when SQS_QUEUE_URL is not set.
    pub fn queue(&self) -> Result<(Option<String>, String, Option<String>), Error> {
        Ok((self.optional("SQS_ENDPOINT_URL"), self.required("SQS_QUEUE_URL")?, self.optional("SQS_DLQ_URL")))
    }

    /// The result store's endpoint and bucket.
    ///
    /// # Errors
    /// [`Error`] when S3_RESULT_BUCKET is not set.
    pub fn results(&self) -> Result<(Option<String>, String), Error> {
        Ok((self.optional("S3_ENDPOINT_URL"), self.required("S3_RESULT_BUCKET")?))
    }

    /// Where the API listens.
    pub fn listen(&self) -> (String, u16) {
        (self.text("DPP_HOST").to_owned(), self.text("DPP_PORT").parse().unwrap_or(8_000))
    }

    /// How the outside reaches the API, without a slash at the end.
    pub fn public_url(&self) -> String {
        self.optional("DPP_PUBLIC_URL").map_or_else(
            || {
                let (host, port) = self.listen();
                format!("http://{host}:{port}")
            },
            |url| url.trim_end_matches('/').to_owned(),
        )
    }

    /// The token that opens the admin API; without one there is none.
    pub fn admin_token(&self) -> Option<SecretString> {
        self.optional("DPP_ADMIN_TOKEN").map(SecretString::from)
    }

    /// Whose pages may call the API from a browser.
    pub fn origins(&self) -> Origins {
        Origins { listed: self.list("CORS_ALLOWED_ORIGINS"), localhost: self.environment() == "dev" }
    }

    /// Where this process shows its metrics and health.
    pub fn ops_addr(&self) -> SocketAddr {
        self.text("DPP_OPS_ADDR").parse().unwrap_or_else(|_| SocketAddr::from(([127, 0, 0, 1], 9_464)))
    }

    /// What to log, and whether as JSON.
    pub fn log(&self) -> (String, bool) {
        (self.text("LOG_LEVEL").to_owned(), self.flag("DPP_JSON_LOGS"))
    }

    /// How long open work may take after SIGTERM.
    pub fn shutdown_grace(&self) -> Duration {
        self.interval("SHUTDOWN_GRACE_SEC")
    }

    /// Runs at once, of one worker.
    pub fn worker_concurrency(&self) -> usize {
        self.count("WORKER_CONCURRENCY")
    }

    /// How the worker and the reaper keep time.
    pub fn pace(&self) -> Pace {
        Pace {
            lease: self.interval("LEASE_SEC"),
            heartbeat: self.interval("HEARTBEAT_SEC"),
            attempts_max: self.text("MAX_ATTEMPTS").parse().unwrap_or(1),
            reaper_interval: self.interval("REAPER_INTERVAL_SEC"),
            reconcile_interval: self.interval("RECONCILE_INTERVAL_SEC"),
            reconcile_threshold: self.interval("RECONCILE_THRESHOLD_MIN").saturating_mul(60),
            queue_ttl: self.interval("QUEUE_TTL_SEC"),
            reservation_grace: self.interval("RESERVATION_GRACE_SEC"),
            lost_run_policy: match self.text("REAPER_LEASE_POLICY") {
                "minimum_fee" => LostRunPolicy::MinimumFee,
                _ => LostRunPolicy::Refund,
            },
            result_url_ttl: self.interval("RESULT_URL_TTL_SEC"),
        }
    }

    /// Whether the url pack may fetch loopback, and its extra ports.
    pub fn url_pack(&self) -> (bool, Vec<u16>) {
        let ports = self.list("URL_EXTRA_PORTS").iter().filter_map(|port| port.parse().ok()).collect();
        (self.flag("URL_ALLOW_LOOPBACK"), ports)
    }
}

/// The environment of this process: the one place that reads it.
#[expect(clippy::disallowed_methods, reason = "this is the door through which the environment comes in")]
pub fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn overlay_file(values: &mut BTreeMap<&'static str, String>, path: &PathBuf, wrong: &mut Vec<String>) {
    match std::fs::read_to_string(path) {
        Ok(text) => overlay(values, &path.display().to_string(), &text, wrong),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => wrong.push(format!("{} cannot be read: {error}", path.display())),
    }
}

fn overlay(values: &mut BTreeMap<&'static str, String>, from: &str, text: &str, wrong: &mut Vec<String>) {
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => return wrong.push(format!("{from} is not TOML: {error}")),
    };
    for (key, value) in table {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.name.eq_ignore_ascii_case(&key)) else {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            wrong.push(format!("{from}: {}", no_setting(&key, &value)));
            continue;
        };
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(flag) => flag.to_string(),
            _ => {
                wrong.push(format!("{from} sets {key} to a list or table: write one value"));
                continue;
            }
        };
        set(values, setting, text);
    }
}

/// An empty text leaves a setting that always has a value as it is: templates that fill nothing in mean that.
fn set(values: &mut BTreeMap<&'static str, String>, setting: &'static Setting, text: String) {
    if !text.is_empty() || setting.kind.may_be_empty() {
        values.insert(setting.name, text);
    }
}

/// Names that begin with DPP_ are ours, so one that is not in the table is a slip.
fn refuse_unknown(environment: &BTreeMap<String, String>, wrong: &mut Vec<String>) {
    for (name, value) in environment.iter().filter(|(name, _)| name.starts_with("DPP_")) {
        let known =
            SETTINGS.iter().any(|setting| setting.name == name) || table::OTHERS.contains(&name.as_str());
        if !known {
            wrong.push(no_setting(name, value));
        }
    }
}

/// What is wrong with what is no setting, and what would be right. Its value may be a secret where its name says so.
fn no_setting(key: &str, value: &str) -> String {
    let name = key.to_uppercase();
    let secret = ["KEY", "TOKEN", "SECRET", "PASS", "URL"].iter().any(|word| name.contains(word));
    let shown: String = value.chars().take(100).collect();
    let value = if secret { "(hidden)".to_owned() } else { format!("{shown:?}") };
    format!("{key} is no setting (its value is {value}); {}", suggestion(&name))
}

fn suggestion(name: &str) -> String {
    let alike = |setting: &&Setting| {
        let common = setting.name.chars().zip(name.chars()).take_while(|(a, b)| a == b).count();
        let same_end = setting.name.chars().rev().zip(name.chars().rev()).take_while(|(a, b)| a == b).count();
        common + same_end
    };
    SETTINGS.iter().max_by_key(alike).filter(|setting| alike(setting) * 3 > name.len() * 2).map_or_else(
        || "docs/config.md lists all that there are".to_owned(),
        |setting| format!("did you mean {}?", setting.name),
    )
}
