//! SQS: the queue. The only module that knows it.
//!
//! A message is a hint that a run may be taken. Losing one, or having it twice, costs time and never
//! money: the database decides, and the reaper sends again.

mod combine;

use std::{sync::Arc, time::Duration};

use anyhow::anyhow;
use aws_config::SdkConfig;
use aws_sdk_sqs::{
    Client,
    config::{retry::RetryConfig, timeout::TimeoutConfig},
    error::ProvideErrorMetadata,
    types::{
        ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, QueueAttributeName,
        SendMessageBatchRequestEntry,
    },
};

use self::combine::{Combine, Turn};
use crate::{telemetry, wire::message::RunMessage};

/// How long one attempt of a call may take.
const ATTEMPT_MAX: Duration = Duration::from_millis(1_500);
/// How long a call may take with its retry.
const CALL_MAX: Duration = Duration::from_secs(4);
/// What a long poll may take beyond its wait.
const POLL_SLACK: Duration = Duration::from_secs(5);
/// How many entries one batch call takes.
const BATCH_MAX: usize = 10;

/// A failed call to SQS. It may have been applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQS could not be reached, did not answer in time, or refused.
    #[error("the queue is unavailable")]
    Unavailable(#[source] anyhow::Error),
}

/// A message as received.
#[derive(Clone, Debug)]
pub struct Received {
    /// What it says, or its raw text where that is not ours.
    pub body: Result<RunMessage, String>,
    /// The right to delete or hide it.
    pub receipt: Receipt,
}

/// The right to delete or hide a received message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt(String);

/// The queue of runs, and its dead-letter queue.
#[derive(Clone)]
pub struct Queue {
    client: Client,
    url: String,
    dlq_url: Option<String>,
    sends: Arc<Combine<String>>,
    deletes: Arc<Combine<Receipt>>,
}

fn failed<E>(error: E) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    Error::Unavailable(anyhow!("{}", telemetry::aws_error(&error, error.code(), error.message())))
}

impl Queue {
    /// The queue at `url`; connects when first used.
    pub fn new(aws: &SdkConfig, endpoint: Option<&str>, url: String, dlq_url: Option<String>) -> Self {
        let mut config = aws_sdk_sqs::config::Builder::from(aws)
            .timeout_config(
                TimeoutConfig::builder()
                    .operation_attempt_timeout(ATTEMPT_MAX)
                    .operation_timeout(CALL_MAX)
                    .build(),
            )
            .retry_config(RetryConfig::standard().with_max_attempts(2));
        if let Some(endpoint) = endpoint {
            config = config.endpoint_url(endpoint);
        }
        Self {
            client: Client::from_conf(config.build()),
            url,
            dlq_url,
            sends: Arc::new(Combine::new()),
            deletes: Arc::new(Combine::new()),
        }
    }

    /// Sends a message, together with others that wait.
    ///
    /// # Errors
    /// [`Error`]; it may have been sent.
    pub async fn send(&self, message: &RunMessage) -> Result<(), Error> {
        let body = serde_json::to_string(message).map_err(|error| Error::Unavailable(error.into()))?;
        let mut ticket = self.sends.enter(body);
        loop {
            match self.sends.turn(&mut ticket).await {
                Turn::Answered(result) => return result,
                Turn::Send(batch) => {
                    let results = self.send_batch(&batch.items).await;
                    batch.answer(results);
                }
            }
        }
    }

    async fn send_batch(&self, bodies: &[String]) -> Vec<Result<(), Error>> {
        let mut call = self.client.send_message_batch().queue_url(&self.url);
        for (index, body) in bodies.iter().enumerate() {
            match SendMessageBatchRequestEntry::builder().id(index.to_string()).message_body(body).build() {
                Ok(entry) => call = call.entries(entry),
                Err(error) => return refuse_all(bodies.len(), &anyhow!(error)),
            }
        }
        match call.send().await {
            Ok(output) => by_id(bodies.len(), output.failed()),
            Err(error) => refuse_all(bodies.len(), &anyhow::Error::from(failed(error))),
        }
    }

    /// Waits up to `wait` for up to `max` messages (10 at most), which nobody else sees for
    /// `hidden`.
    ///
    /// # Errors
    /// [`Error`]; messages may have been hidden.
    pub async fn receive(
        &self,
        max: usize,
        hidden: Duration,
        wait: Duration,
    ) -> Result<Vec<Received>, Error> {
        let limits = TimeoutConfig::builder()
            .operation_attempt_timeout(wait + POLL_SLACK)
            .operation_timeout(wait + POLL_SLACK)
            .build();
        let output = self
            .client
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(i32::try_from(max.min(BATCH_MAX)).unwrap_or(1))
            .visibility_timeout(whole_secs(hidden))
            .wait_time_seconds(whole_secs(wait).min(20))
            .customize()
            .config_override(aws_sdk_sqs::config::Builder::new().timeout_config(limits))
            .send()
            .await
            .map_err(failed)?;
        Ok(output
            .messages
            .unwrap_or_default()
            .into_iter()
            .filter_map(|message| {
                let text = message.body.unwrap_or_default();
                let body = serde_json::from_str(&text).ok().ok_or(text);
                Some(Received { body, receipt: Receipt(message.receipt_handle?) })
            })
            .collect())
    }

    /// Deletes a message, together with others that wait.
    ///
    /// # Errors
    /// [`Error`]; it may be gone.
    pub async fn delete(&self, receipt: &Receipt) -> Result<(), Error> {
        let mut ticket = self.deletes.enter(receipt.clone());
        loop {
            match self.deletes.turn(&mut ticket).await {
                Turn::Answered(result) => return result,
                Turn::Send(batch) => {
                    let results = self.delete_batch(&batch.items).await;
                    batch.answer(results);
                }
            }
        }
    }

    async fn delete_batch(&self, receipts: &[Receipt]) -> Vec<Result<(), Error>> {
        let mut call = self.client.delete_message_batch().queue_url(&self.url);
        for (index, receipt) in receipts.iter().enumerate() {
            match DeleteMessageBatchRequestEntry::builder()
                .id(index.to_string())
                .receipt_handle(&receipt.0)
                .build()
            {
                Ok(entry) => call = call.entries(entry),
                Err(error) => return refuse_all(receipts.len(), &anyhow!(error)),
            }
        }
        match call.send().await {
            Ok(output) => by_id(receipts.len(), output.failed()),
            Err(error) => refuse_all(receipts.len(), &anyhow::Error::from(failed(error))),
        }
    }

    /// Keeps messages hidden for `hidden` from now on; zero shows them at once. A message that is
    /// gone is passed over.
    ///
    /// # Errors
    /// [`Error`]; some may have been changed.
    pub async fn hide(&self, receipts: &[Receipt], hidden: Duration) -> Result<(), Error> {
        for batch in receipts.chunks(BATCH_MAX) {
            let mut call = self.client.change_message_visibility_batch().queue_url(&self.url);
            for (index, receipt) in batch.iter().enumerate() {
                let entry = ChangeMessageVisibilityBatchRequestEntry::builder()
                    .id(index.to_string())
                    .receipt_handle(&receipt.0)
                    .visibility_timeout(whole_secs(hidden))
                    .build()
                    .map_err(|error| Error::Unavailable(error.into()))?;
                call = call.entries(entry);
            }
            call.send().await.map_err(failed)?;
        }
        Ok(())
    }

    /// Moves a message that is not ours to the dead-letter queue, where a person can look at it.
    /// Without one it stays, hidden, until SQS itself gives up on it.
    ///
    /// # Errors
    /// [`Error`]; it may lie in both queues.
    pub async fn bury(&self, text: &str, receipt: &Receipt) -> Result<(), Error> {
        let Some(dlq_url) = &self.dlq_url else { return Ok(()) };
        self.client.send_message().queue_url(dlq_url).message_body(text).send().await.map_err(failed)?;
        self.delete(receipt).await
    }

    /// About how many messages wait for a receiver. SQS may lag behind by a minute.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn depth(&self) -> Result<u64, Error> {
        let name = QueueAttributeName::ApproximateNumberOfMessages;
        let ask = self.client.get_queue_attributes().queue_url(&self.url).attribute_names(name.clone());
        let attributes = ask.send().await.map_err(failed)?.attributes.unwrap_or_default();
        let count = attributes.get(&name).and_then(|count| count.parse().ok());
        count.ok_or_else(|| Error::Unavailable(anyhow!("SQS did not say how many messages there are")))
    }

    /// Whether the queue answers.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn ping(&self) -> Result<(), Error> {
        self.answers(&self.url).await
    }

    /// Whether the dead-letter queue answers; `None` when there is none.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn ping_dlq(&self) -> Option<Result<(), Error>> {
        Some(self.answers(self.dlq_url.as_deref()?).await)
    }

    async fn answers(&self, url: &str) -> Result<(), Error> {
        let ask = self.client.get_queue_attributes().queue_url(url);
        ask.attribute_names(QueueAttributeName::QueueArn).send().await.map(drop).map_err(failed)
    }
}

/// SQS counts visibility and waits in whole seconds: rounds up, so that nothing is shown too early.
fn whole_secs(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis().div_ceil(1_000)).unwrap_or(i32::MAX)
}

fn refuse_all(count: usize, error: &anyhow::Error) -> Vec<Result<(), Error>> {
    (0..count).map(|_| Err(Error::Unavailable(anyhow!("{error:#}")))).collect()
}

fn by_id(count: usize, failed: &[aws_sdk_sqs::types::BatchResultErrorEntry]) -> Vec<Result<(), Error>> {
    let mut results: Vec<_> = (0..count).map(|_| Ok(())).collect();
    for entry in failed {
        if let Some(result) = entry.id().parse::<usize>().ok().and_then(|index| results.get_mut(index)) {
            *result =
                Err(Error::Unavailable(anyhow!("{}: {}", entry.code(), entry.message().unwrap_or_default())));
        }
    }
    results
}
