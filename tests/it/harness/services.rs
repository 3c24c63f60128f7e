//! The server set that the whole run shares, and one test's place on it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use aws_config::SdkConfig;
use dpp::{
    local::{
        postgres::Durability,
        services::{Binaries, Services},
    },
    store,
};
use tokio::sync::Mutex;

/// Settings of a test: everything that waits, waits briefly.
const SETTINGS: [(&str, &str); 12] = [
    ("LEASE_SEC", "3"),
    ("HEARTBEAT_SEC", "0.5"),
    ("REAPER_INTERVAL_SEC", "0.2"),
    ("RECONCILE_INTERVAL_SEC", "0.2"),
    ("RECONCILE_THRESHOLD_MIN", "0.05"),
    ("RESERVATION_GRACE_SEC", "0.001"),
    ("SHUTDOWN_GRACE_SEC", "5"),
    ("DATABASE_CONNECTIONS_MAX", "8"),
    ("REDIS_CONNECTIONS_MAX", "8"),
    ("DPP_PORT", "0"),
    ("DPP_JSON_LOGS", "true"),
    ("LOG_LEVEL", "info"),
];

/// The shared servers.
pub struct Shared {
    services: Services,
    places: AtomicU32,
    /// Redis has so many databases and no more; these are free again.
    key_spaces: std::sync::Mutex<Vec<u32>>,
    /// PostgreSQL copies a template for one session at a time.
    copying: Mutex<()>,
}

/// One test's database, key space, queues and bucket.
#[derive(Clone)]
pub struct Place {
    pub environment: BTreeMap<String, String>,
    /// With the credentials, which a process gets from its environment.
    pub process_environment: BTreeMap<String, String>,
    pub aws: SdkConfig,
    pub database_url: String,
    pub redis_url: String,
    /// The shared database and key space, to be given back; servers of a test's own end with it.
    lent: Option<(String, u32)>,
    /// How far the clock has been moved.
    pub clock: Arc<std::sync::Mutex<chrono::TimeDelta>>,
}

/// The servers of this run, started by whoever asks first.
pub fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        prepare();
        let (send, receive) = std::sync::mpsc::channel();
        // The servers' own runtime: each test's ends with the test.
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            send.send(runtime.block_on(start())).unwrap();
            runtime.block_on(std::future::pending::<()>());
        });
        receive.recv().expect("the services start")
    })
}

/// What this process needs once.
pub fn prepare() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // For looking into a test that fails: TEST_LOG=info cargo test …
        if let Ok(filter) = std::env::var("TEST_LOG") {
            dpp::telemetry::init(&filter, false).unwrap();
        }
    });
}

async fn start() -> Shared {
    let directory = own_directory();
    let services = Services::start(&directory, &Binaries::default(), Durability::Scratch).await.unwrap();
    services.postgres.ensure_database("template").await.unwrap();
    store::migrate(&services.postgres.url("template").into()).await.unwrap();
    Shared {
        services,
        places: AtomicU32::new(0),
        key_spaces: std::sync::Mutex::default(),
        copying: Mutex::new(()),
    }
}

/// A directory of this process. Those of processes that are gone are removed.
pub fn own_directory() -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("services");
    for entry in fs::read_dir(&all).into_iter().flatten().flatten() {
        let gone = entry.file_name().to_str().is_some_and(|pid| !Path::new("/proc").join(pid).exists());
        if gone {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let own = all.join(std::process::id().to_string());
    fs::create_dir_all(&own).unwrap();
    own
}

impl Shared {
    /// A fresh place.
    pub async fn place(&'static self) -> Place {
        let number = self.places.fetch_add(1, Ordering::Relaxed);
        let name = format!("test{number}");
        {
            let _one = self.copying.lock().await;
            let sql = format!("CREATE DATABASE {name} TEMPLATE template STRATEGY FILE_COPY");
            self.services.postgres.execute(&sql).await.unwrap();
        }
        let key_space = self.key_spaces.lock().unwrap().pop().unwrap_or(number);
        let places = self.services.cloud.places(&format!("dpp-{name}"), 3).await.unwrap();
        let settings = self.services.settings(&name, key_space, &places);
        Place { lent: Some((name, key_space)), ..Place::new(settings, self.services.cloud.aws()) }
    }

    /// Gives a place back: a long simulation uses thousands.
    async fn release(&self, place: &Place, name: &str, key_space: u32) {
        let _: String = place.redis(&["FLUSHDB"]).await;
        self.key_spaces.lock().unwrap().push(key_space);
        let (sqs, _) = place.sqs();
        for queue in ["SQS_QUEUE_URL", "SQS_DLQ_URL"] {
            sqs.delete_queue().queue_url(&place.environment[queue]).send().await.unwrap();
        }
        let _one = self.copying.lock().await;
        self.services.postgres.execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
    }
}

impl Place {
    /// A place of these settings, and of a test's usual ones.
    pub fn new(settings: Vec<(&'static str, String)>, aws: SdkConfig) -> Self {
        let mut process_environment: BTreeMap<String, String> =
            SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        process_environment.extend(settings.into_iter().map(|(name, value)| (name.to_owned(), value)));
        let environment: BTreeMap<_, _> = process_environment
            .iter()
            .filter(|(name, _)| !name.starts_with("AWS_"))
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect();
        Self {
            aws,
            database_url: environment["DATABASE_URL"].clone(),
            redis_url: environment["REDIS_URL"].clone(),
            environment,
            process_environment,
            clock: Arc::default(),
            lent: None,
        }
    }

    /// Changes settings, which a restart keeps.
    pub fn change(&mut self, changes: &[super::Change<'_>]) {
        for (name, value) in changes {
            self.environment.insert((*name).to_owned(), (*value).to_owned());
        }
    }

    /// Ends its use.
    pub async fn release(&self) {
        if let Some((name, key_space)) = &self.lent {
            shared().release(self, name, *key_space).await;
        }
    }

    /// A client of its own for this test's bucket, and the bucket.
    pub fn s3(&self) -> (aws_sdk_s3::Client, &str) {
        let config = aws_sdk_s3::config::Builder::from(&self.aws)
            .endpoint_url(&self.environment["S3_ENDPOINT_URL"])
            .force_path_style(true);
        (aws_sdk_s3::Client::from_conf(config.build()), &self.environment["S3_RESULT_BUCKET"])
    }

    /// A client of its own for this test's queue, and the queue's URL.
    pub fn sqs(&self) -> (aws_sdk_sqs::Client, &str) {
        let config =
            aws_sdk_sqs::config::Builder::from(&self.aws).endpoint_url(&self.environment["SQS_ENDPOINT_URL"]);
        (aws_sdk_sqs::Client::from_conf(config.build()), &self.environment["SQS_QUEUE_URL"])
    }

    /// One SQL statement on this test's database; its rows as text.
    pub async fn sql(&self, statement: &str) -> Vec<Vec<Option<String>>> {
        let (client, connection) =
            tokio_postgres::connect(&self.database_url, tokio_postgres::NoTls).await.unwrap();
        let answer = tokio::select! {
            answer = client.simple_query(statement) => answer.unwrap_or_else(|error| panic!("{statement}: {error:?}")),
            closed = connection => panic!("closed: {closed:?}"),
        };
        answer
            .into_iter()
            .filter_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
                }
                _ => None,
            })
            .collect()
    }

    /// One Redis command in this test's key space.
    pub async fn redis<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(self.redis_url.as_str()).unwrap();
        // A machine at its limits is no failure of the test.
        let patient = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(super::PATIENCE))
            .set_response_timeout(Some(super::PATIENCE));
        let mut connection = client.get_multiplexed_async_connection_with_config(&patient).await.unwrap();
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(word);
        }
        command.query_async(&mut connection).await.unwrap()
    }
}

use deadpool_redis::redis;
