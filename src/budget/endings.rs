//! Hears that runs have ended: `settle-4.lua` publishes each one that it is told of.
//!
//! Redis keeps what it publishes for nobody, and an end that the gate was not told of is not published at
//! all. So this is a hint: whoever needs to know looks into the books as well.

use std::{convert::Infallible, time::Duration};

use futures::StreamExt as _;
use tokio::time::{interval, sleep, timeout};

use super::{Budget, CALL_MAX, Error, redis};
use crate::domain::id::RunId;

/// Where it is published. The script has it too.
const CHANNEL: &str = "dpp:ended";
/// How often a connection on which nothing is heard is asked whether it is one.
const PULSE_INTERVAL: Duration = Duration::from_secs(5);
/// How long to wait before a connection is made anew: the first time, and at most.
const RECONNECT_AFTER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

impl Budget {
    /// Tells `heard` of runs that have ended, over one connection of its own, which is made anew whenever it
    /// is lost. Never ends.
    pub async fn hear_endings(&self, heard: impl Fn(RunId)) -> Infallible {
        let mut pause = RECONNECT_AFTER.0;
        loop {
            let began = tokio::time::Instant::now();
            let Err(error) = self.listen(&heard).await;
            if began.elapsed() > PULSE_INTERVAL {
                pause = RECONNECT_AFTER.0;
            }
            tracing::warn!(
                error = format!("{:#}", anyhow::Error::from(error)),
                retry_ms = pause.as_millis(),
                "cannot hear of ended runs; those who wait hear of them by looking"
            );
            sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_AFTER.1);
        }
    }

    /// The same, until the connection is lost.
    async fn listen(&self, heard: impl Fn(RunId)) -> Result<Infallible, Error> {
        let connect = async {
            let (mut sink, stream) = self.client.get_async_pubsub().await?.split();
            sink.subscribe(CHANNEL).await?;
            Ok((sink, stream))
        };
        let (mut sink, mut stream) = bounded(connect).await?;
        let mut pulse = interval(PULSE_INTERVAL);
        loop {
            tokio::select! {
                message = stream.next() => {
                    let closed = || Error::Unavailable(anyhow::anyhow!("the connection was closed"));
                    let message = message.ok_or_else(closed)?;
                    if let Ok(run_id) = String::from_utf8_lossy(message.get_payload_bytes()).parse() {
                        heard(run_id);
                    }
                }
                _ = pulse.tick() => drop(bounded(sink.ping::<redis::Value>()).await?),
            }
        }
    }
}

async fn bounded<T>(call: impl Future<Output = redis::RedisResult<T>>) -> Result<T, Error> {
    match timeout(CALL_MAX, call).await {
        Ok(answer) => answer.map_err(|error| Error::Unavailable(error.into())),
        Err(elapsed) => Err(Error::Unavailable(elapsed.into())),
    }
}
