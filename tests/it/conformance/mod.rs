//! What the platform relies on in SQS and S3, as checks over the wire.
//!
//! One list of checks runs against the servers of `dpp::local`, always, and against an independent
//! server when its endpoint is given. Where the two agree, the local servers are no fancy of ours;
//! where an independent server is known to be wrong, its table says so, and a deviation that has gone
//! fails the test, so that the table stays true.
//!
//! - `DPP_CONFORMANCE_SQS_ENDPOINT`, `DPP_CONFORMANCE_S3_ENDPOINT`: servers to hold to the checks.
//! - `DPP_CONFORMANCE_SERVER`: whose deviations to expect (`ministack`); none when unset, as for AWS.
//! - `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`: `test` when unset.
//!
//! `.ci/with-ministack cargo test --test it conformance` sets them up.

mod local;
mod s3;
mod sqs;

use std::env;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aws_credential_types::Credentials;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use dpp::local::s3::LocalS3;
use dpp::local::sqs::LocalSqs;
use futures::future::{BoxFuture, join_all};
use tokio::net::TcpListener;

/// The longest check blocks for 20 s; more than this is a hang.
const CHECK_TIME_MAX: Duration = Duration::from_secs(60);

const REGION: &str = "us-east-1";
const LOCAL_ACCESS_KEY: &str = "local";
const LOCAL_SECRET_KEY: &str = "local-secret";

/// One promise. Its doc comment says what AWS does; its name stands in the tables below.
struct Check<C> {
    name: &'static str,
    run: fn(C) -> BoxFuture<'static, Result<()>>,
}

macro_rules! checks {
    ($context:ty: $($name:ident,)*) => {
        pub(super) const CHECKS: &[Check<$context>] =
            &[$(Check { name: stringify!($name), run: |context| Box::pin($name(context)) }),*];
    };
}
use checks;

/// An independent server's known errors: the check that it fails, and what it does instead.
struct Deviations {
    server: &'static str,
    sqs: &'static [(&'static str, &'static str)],
    s3: &'static [(&'static str, &'static str)],
}

const DEVIATIONS: &[Deviations] = &[Deviations {
    server: "ministack",
    sqs: &[
        ("delete_is_idempotent", "calls a handle invalid once it was used"),
        ("receive_refuses_what_is_out_of_range", "takes the nearest value instead"),
        ("redrive_needs_an_existing_target", "says InvalidAttributeValue"),
        ("send_refuses_a_delay_out_of_range", "takes any delay"),
        ("stale_handle_is_no_error_to_delete", "calls a handle invalid once the message was received again"),
    ],
    s3: &[
        ("anonymous_is_refused", "answers whoever asks"),
        ("wrong_keys_are_refused", "verifies presigned URLs, but no signed headers"),
    ],
}];

#[tokio::test(flavor = "multi_thread")]
async fn sqs_as_embedded() -> Result<()> {
    let server = LocalSqs::start(loopback().await?).await?;
    let context = sqs::Context::new(&server.endpoint(), local_credentials());
    hold("the embedded SQS", sqs::CHECKS, &context, &[]).await?;
    server.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_as_embedded() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let server = start_s3(directory.path()).await?;
    let context = s3::Context::new(&server.endpoint(), local_credentials()).await?;
    hold("the embedded S3", s3::CHECKS, &context, &[]).await?;
    server.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sqs_elsewhere() -> Result<()> {
    let Ok(endpoint) = env::var("DPP_CONFORMANCE_SQS_ENDPOINT") else { return Ok(()) };
    let context = sqs::Context::new(&endpoint, foreign_credentials());
    let expected = deviations()?.map_or(&[][..], |deviations| deviations.sqs);
    hold(&endpoint, sqs::CHECKS, &context, expected).await
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_elsewhere() -> Result<()> {
    let Ok(endpoint) = env::var("DPP_CONFORMANCE_S3_ENDPOINT") else { return Ok(()) };
    let context = s3::Context::new(&endpoint, foreign_credentials()).await?;
    let expected = deviations()?.map_or(&[][..], |deviations| deviations.s3);
    hold(&endpoint, s3::CHECKS, &context, expected).await
}

/// Runs all checks at once and fails with every surprise, a vanished deviation included.
async fn hold<C: Clone>(
    server: &str,
    checks: &[Check<C>],
    context: &C,
    deviations: &[(&str, &str)],
) -> Result<()> {
    let outcomes = join_all(checks.iter().map(|check| async {
        let outcome = tokio::time::timeout(CHECK_TIME_MAX, (check.run)(context.clone())).await;
        (check.name, outcome.map_err(anyhow::Error::from).flatten())
    }))
    .await;
    let mut surprises = Vec::new();
    for (name, outcome) in &outcomes {
        let expected = deviations.iter().find(|(deviating, _)| deviating == name);
        match (outcome, expected) {
            (Ok(()), None) | (Err(_), Some(_)) => {}
            (Err(error), None) => surprises.push(format!("{name}: {error:#}")),
            (Ok(()), Some((_, reason))) => surprises.push(format!("{name}: deviates no longer ({reason})")),
        }
    }
    for (name, _) in deviations {
        if !outcomes.iter().any(|(check, _)| check == name) {
            surprises.push(format!("{name}: stands in the table, but is no check"));
        }
    }
    ensure!(surprises.is_empty(), "{server} against {} checks:\n{}", checks.len(), surprises.join("\n"));
    Ok(())
}

fn deviations() -> Result<Option<&'static Deviations>> {
    let Ok(server) = env::var("DPP_CONFORMANCE_SERVER") else { return Ok(None) };
    let known = DEVIATIONS.iter().find(|deviations| deviations.server == server);
    known.map(Some).with_context(|| format!("no table for the server {server:?}"))
}

async fn loopback() -> Result<TcpListener> {
    Ok(TcpListener::bind(("127.0.0.1", 0)).await?)
}

async fn start_s3(directory: &std::path::Path) -> Result<LocalS3> {
    LocalS3::start(loopback().await?, directory, LOCAL_ACCESS_KEY, LOCAL_SECRET_KEY).await
}

fn local_credentials() -> Credentials {
    Credentials::new(LOCAL_ACCESS_KEY, LOCAL_SECRET_KEY, None, None, "conformance")
}

fn foreign_credentials() -> Credentials {
    let or_test = |name| env::var(name).unwrap_or_else(|_| "test".to_owned());
    let (access_key, secret_key) = (or_test("AWS_ACCESS_KEY_ID"), or_test("AWS_SECRET_ACCESS_KEY"));
    Credentials::new(access_key, secret_key, env::var("AWS_SESSION_TOKEN").ok(), None, "conformance")
}

/// The HTTP client that production uses too.
fn http_client() -> aws_sdk_sqs::config::SharedHttpClient {
    aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https()
}

fn unique(name: &str) -> String {
    format!("{name}-{}", uuid::Uuid::new_v4().simple())
}

/// The outcome must be an error with one of these codes.
fn refused<T: Debug, E>(outcome: Result<T, E>, codes: &[&str]) -> Result<()>
where
    E: aws_sdk_sqs::error::ProvideErrorMetadata + Debug,
{
    match outcome {
        Ok(output) => bail!("expected {codes:?}, got {output:?}"),
        Err(error) if error.code().is_some_and(|code| codes.contains(&code)) => Ok(()),
        Err(error) => bail!("expected {codes:?}, got {error:?}"),
    }
}

/// Measures how long `work` took and holds it between `least` and `most`.
async fn timed<T>(least: Duration, most: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    let start = Instant::now();
    let outcome = work.await?;
    let took = start.elapsed();
    ensure!(least <= took && took <= most, "took {took:?}, expected {least:?} to {most:?}");
    Ok(outcome)
}
