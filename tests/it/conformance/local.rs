//! What only the embedded servers promise: how they start, stop, come back, and refuse.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use dpp::local::sqs::LocalSqs;
use futures::future::join_all;
use reqwest::{Client, StatusCode};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{local_credentials, loopback, s3, sqs, start_s3};

#[tokio::test(flavor = "multi_thread")]
async fn s3_survives_a_restart() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let server = start_s3(directory.path()).await?;
    let before = s3::Context::new(&server.endpoint(), local_credentials()).await?;
    before.put("kept", "as it was").await?;
    // What a process leaves behind that was killed while it wrote.
    fs::write(directory.path().join(".new/killed"), "half an obj")?;
    let endpoint = server.endpoint();
    server.stop().await;
    ensure!(TcpStream::connect(endpoint.trim_start_matches("http://")).await.is_err(), "still listening");

    let server = start_s3(directory.path()).await?;
    let after = before.elsewhere(&server.endpoint(), local_credentials());
    after.holds("kept", "as it was").await?;
    ensure!(after.keys("").await? == ["kept"], "{:?}", after.keys("").await?);
    ensure!(fs::read_dir(directory.path().join(".new"))?.next().is_none(), "not cleared away");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_refuses_keys_that_leave_the_bucket() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let server = start_s3(&directory.path().join("s3")).await?;
    let context = s3::Context::new(&server.endpoint(), local_credentials()).await?;
    for key in ["..", "../escaped", "../../escaped", "a/../../../escaped", "a/./b"] {
        let put = context.put(key, "out").await;
        ensure!(put.is_err(), "{key:?} was taken");
        ensure!(context.get(key).await.is_err(), "{key:?} was read");
    }
    ensure!(context.keys("../").await?.is_empty(), "listed");
    let found: Vec<_> = fs::read_dir(directory.path())?.collect::<Result<_, _>>()?;
    ensure!(found.len() == 1, "{found:?}");
    Ok(())
}

/// Puts and deletes below one directory take it away from each other, and must not mind.
#[tokio::test(flavor = "multi_thread")]
async fn s3_puts_and_deletes_in_one_place_at_once() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let server = start_s3(directory.path()).await?;
    let context = s3::Context::new(&server.endpoint(), local_credentials()).await?;
    let outcomes = join_all((0..16).map(|worker| {
        let context = context.clone();
        async move {
            for _ in 0..20 {
                let key = format!("deep/er/{worker}");
                context.put(&key, &key).await?;
                context.holds(&key, &key).await?;
                context.delete(&key).await?;
            }
            anyhow::Ok(())
        }
    }));
    outcomes.await.into_iter().collect::<Result<Vec<()>>>()?;
    ensure!(context.keys("").await?.is_empty(), "{:?}", context.keys("").await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sqs_names_what_it_lacks() -> Result<()> {
    rustls::crypto::ring::default_provider().install_default().ok();
    let server = LocalSqs::start(loopback().await?).await?;
    let http = Client::builder().no_proxy().build()?;
    let call = |target: &'static str, body: &'static str| {
        let request = http.post(server.endpoint()).header("x-amz-target", target).body(body).send();
        async {
            let answer = request.await?;
            let header = answer.headers().get("x-amzn-query-error").context("no x-amzn-query-error")?.clone();
            let (status, body) = (answer.status(), serde_json::from_slice::<Value>(&answer.bytes().await?)?);
            anyhow::Ok((status, header.to_str()?.to_owned(), body))
        }
    };
    for (target, body, status, code) in [
        ("AmazonSQS.TagQueue", "{}", StatusCode::BAD_REQUEST, "UnsupportedOperation"),
        (
            "AmazonSQS.CreateQueue",
            r#"{"QueueName":"a.fifo"}"#,
            StatusCode::BAD_REQUEST,
            "UnsupportedOperation",
        ),
        ("AmazonSQS.CreateQueue", r#"{"QueueName":"a b"}"#, StatusCode::BAD_REQUEST, "InvalidParameterValue"),
        ("AmazonSQS.CreateQueue", "no JSON", StatusCode::BAD_REQUEST, "SerializationException"),
        ("AmazonSNS.Publish", "{}", StatusCode::NOT_FOUND, "UnknownOperationException"),
    ] {
        let (found, header, answer) = call(target, body).await.with_context(|| target)?;
        ensure!(found == status, "{target}: {found} {answer}");
        ensure!(answer["__type"] == format!("com.amazonaws.sqs#{code}"), "{target}: {answer}");
        ensure!(answer["message"].as_str().is_some_and(|text| !text.is_empty()), "{target}: {answer}");
        ensure!(header.ends_with(&format!("{code};Sender")), "{target}: {header}");
    }
    Ok(())
}

/// A message goes to somebody who is still there, even if others had waited longer.
#[tokio::test(flavor = "multi_thread")]
async fn sqs_gives_nothing_to_who_hung_up() -> Result<()> {
    let server = LocalSqs::start(loopback().await?).await?;
    let queue = sqs::Context::new(&server.endpoint(), local_credentials()).queue(&[]).await?;
    let body = format!(r#"{{"QueueUrl":"{}","WaitTimeSeconds":20,"VisibilityTimeout":600}}"#, queue.url);
    for _ in 0..8 {
        let mut poll = TcpStream::connect(server.endpoint().trim_start_matches("http://")).await?;
        let length = body.len();
        let request = format!(
            "POST / HTTP/1.1\r\nhost: local\r\nx-amz-target: AmazonSQS.ReceiveMessage\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        poll.write_all(request.as_bytes()).await?;
        poll.shutdown().await?;
        // The server hangs up in turn: it has seen that nobody waits.
        tokio::io::copy(&mut poll, &mut tokio::io::sink()).await.ok();
    }
    queue.send("mine").await?;
    queue.receive_one(30).await?;
    Ok(())
}

/// AWS leaves it open what a stale handle deletes; here it never deletes what is another's by now.
#[tokio::test(flavor = "multi_thread")]
async fn sqs_deletes_nothing_by_a_stale_handle() -> Result<()> {
    let server = LocalSqs::start(loopback().await?).await?;
    let queue = sqs::Context::new(&server.endpoint(), local_credentials()).queue(&[]).await?;
    queue.send("kept").await?;
    let stale = queue.receive_one(0).await?;
    let fresh = queue.receive_one(1).await?;
    queue.delete(&stale).await?;
    let again = queue.receive_one(600).await?;
    ensure!(again.message_id() == fresh.message_id(), "{again:?}");
    Ok(())
}

/// Dropping the handle is enough: a poll in flight ends, the port is free again.
#[tokio::test(flavor = "multi_thread")]
async fn sqs_stops_when_dropped() -> Result<()> {
    let server = LocalSqs::start(loopback().await?).await?;
    let address = server.endpoint().trim_start_matches("http://").to_owned();
    let idle = TcpStream::connect(&address).await?;
    drop(server);
    // The end of the stream: the server hung up.
    let gone = tokio::time::timeout(std::time::Duration::from_secs(5), async {
        idle.readable().await?;
        anyhow::Ok(idle.try_read(&mut [0; 1])?)
    });
    ensure!(gone.await?? == 0, "the connection outlived the server");
    Ok(())
}
