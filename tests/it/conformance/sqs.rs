//! The checks on SQS. "AWS" says what the documentation promises of a standard queue.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aws_credential_types::Credentials;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Region};
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, Message,
    MessageSystemAttributeName, QueueAttributeName, SendMessageBatchRequestEntry,
};

use super::{Check, REGION, checks, http_client, refused, timed, unique};

/// Time enough for a loaded machine, far less than the 20 s of a poll that was not woken.
const AT_ONCE: Duration = Duration::from_secs(2);

const QUEUE_GONE: &[&str] = &["AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"];
const INVALID_HANDLE: &[&str] = &["ReceiptHandleIsInvalid"];
const INVALID_VALUE: &[&str] = &["InvalidParameterValue"];
/// AWS names any of these, depending on how the message was lost.
const NOT_YOURS: &[&str] = &[
    "InvalidParameterValue",
    "MessageNotInflight",
    "AWS.SimpleQueueService.MessageNotInflight",
    "ReceiptHandleIsInvalid",
];

checks! { Context:
    create_is_idempotent,
    create_with_redrive,
    redrive_needs_an_existing_target,
    unknown_queue_has_its_own_code,
    list_by_prefix,
    send_and_receive_keep_body_and_md5,
    receive_refuses_what_is_out_of_range,
    send_refuses_a_delay_out_of_range,
    send_refuses_what_cannot_be_sent,
    message_may_have_one_mebibyte,
    batch_fails_in_part,
    batch_as_a_whole_has_limits,
    receive_takes_ten_at_most,
    long_poll_blocks_for_twenty_seconds,
    long_poll_wakes_on_a_send,
    long_poll_wakes_when_visibility_runs_out,
    delayed_message_comes_when_due,
    abandoned_poll_loses_nothing,
    visibility_zero_gives_back_at_once,
    visibility_can_be_extended,
    visibility_batch_fails_in_part,
    redrive_after_too_many_receives,
    delete_is_idempotent,
    delete_works_after_visibility_ran_out,
    delete_batch_fails_in_part,
    stale_handle_is_no_error_to_delete,
    stale_handle_cannot_hide,
    deleted_message_cannot_be_hidden,
    malformed_handle_is_refused,
    attributes_count_and_change,
    purge_empties,
}

#[derive(Clone)]
pub(super) struct Context {
    client: Client,
}

/// A queue of a check's own.
pub(super) struct Queue {
    client: Client,
    pub(super) url: String,
}

impl Context {
    pub(super) fn new(endpoint: &str, credentials: Credentials) -> Context {
        let config = aws_sdk_sqs::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .credentials_provider(credentials)
            .endpoint_url(endpoint)
            .http_client(http_client())
            .build();
        Context { client: Client::from_conf(config) }
    }

    pub(super) async fn queue(&self, attributes: &[(QueueAttributeName, &str)]) -> Result<Queue> {
        let url = self.create(&unique("conformance"), attributes).await?;
        Ok(Queue { client: self.client.clone(), url })
    }

    async fn create(&self, name: &str, attributes: &[(QueueAttributeName, &str)]) -> Result<String> {
        let attributes =
            attributes.iter().map(|(attribute, value)| (attribute.clone(), (*value).to_owned())).collect();
        let created = self.client.create_queue().queue_name(name).set_attributes(Some(attributes)).send();
        created.await?.queue_url.context("no URL")
    }

    /// A queue that gives up a message after `receives_max` receives, and where it goes then.
    async fn with_dead_letters(&self, receives_max: u32) -> Result<(Queue, Queue)> {
        let dead = self.queue(&[]).await?;
        let arn = dead.attribute(QueueAttributeName::QueueArn).await?;
        let policy = format!(r#"{{"deadLetterTargetArn":"{arn}","maxReceiveCount":"{receives_max}"}}"#);
        Ok((self.queue(&[(QueueAttributeName::RedrivePolicy, &policy)]).await?, dead))
    }
}

impl Queue {
    pub(super) async fn send(&self, body: &str) -> Result<()> {
        self.client.send_message().queue_url(&self.url).message_body(body).send().await?;
        Ok(())
    }

    /// Up to ten messages within `wait_sec`, hidden for `hidden_sec`.
    async fn receive(&self, wait_sec: i32, hidden_sec: i32) -> Result<Vec<Message>> {
        let received = self.client.receive_message().queue_url(&self.url).max_number_of_messages(10);
        let received = received.wait_time_seconds(wait_sec).visibility_timeout(hidden_sec);
        let received =
            received.message_system_attribute_names(MessageSystemAttributeName::All).send().await?;
        Ok(received.messages.unwrap_or_default())
    }

    /// The one message that must come within 20 s.
    pub(super) async fn receive_one(&self, hidden_sec: i32) -> Result<Message> {
        let mut messages = self.receive(20, hidden_sec).await?;
        ensure!(messages.len() == 1, "expected one message, got {messages:?}");
        messages.pop().context("just counted")
    }

    async fn receives_nothing(&self, wait_sec: i32) -> Result<()> {
        let messages = self.receive(wait_sec, 0).await?;
        ensure!(messages.is_empty(), "expected nothing, got {messages:?}");
        Ok(())
    }

    pub(super) async fn delete(&self, message: &Message) -> Result<()> {
        self.client.delete_message().queue_url(&self.url).receipt_handle(handle(message)?).send().await?;
        Ok(())
    }

    async fn hide(&self, message: &Message, timeout_sec: i32) -> Result<()> {
        let hidden = self.client.change_message_visibility().queue_url(&self.url);
        hidden.receipt_handle(handle(message)?).visibility_timeout(timeout_sec).send().await?;
        Ok(())
    }

    async fn attribute(&self, name: QueueAttributeName) -> Result<String> {
        let got = self.client.get_queue_attributes().queue_url(&self.url).attribute_names(name.clone());
        let mut attributes = got.send().await?.attributes.unwrap_or_default();
        attributes.remove(&name).with_context(|| format!("no attribute {name}"))
    }

    /// Messages that may be received, are in flight, and are delayed. AWS lets the figures trail by
    /// up to a minute, so they are awaited.
    async fn comes_to_count(&self, expected: [usize; 3]) -> Result<()> {
        let expected = expected.map(|count| count.to_string());
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        let mut last = expected.clone().map(|_| String::new());
        let settled = tokio::time::timeout(Duration::from_secs(40), async {
            loop {
                tick.tick().await;
                last = [
                    self.attribute(QueueAttributeName::ApproximateNumberOfMessages).await?,
                    self.attribute(QueueAttributeName::ApproximateNumberOfMessagesNotVisible).await?,
                    self.attribute(QueueAttributeName::ApproximateNumberOfMessagesDelayed).await?,
                ];
                if last == expected {
                    return anyhow::Ok(());
                }
            }
        });
        match settled.await {
            Ok(outcome) => outcome,
            Err(elapsed) => Err(elapsed).with_context(|| format!("counts {last:?}, not {expected:?}")),
        }
    }
}

fn handle(message: &Message) -> Result<&str> {
    message.receipt_handle().context("no receipt handle")
}

fn receive_count(message: &Message) -> Result<u32> {
    let attributes = message.attributes().context("no attributes")?;
    let count = attributes.get(&MessageSystemAttributeName::ApproximateReceiveCount).context("no count")?;
    Ok(count.parse()?)
}

fn entry(id: &str, body: &str) -> Result<SendMessageBatchRequestEntry> {
    Ok(SendMessageBatchRequestEntry::builder().id(id).message_body(body).build()?)
}

/// AWS: the same name with the same attributes answers the same queue; with another value, it refuses.
async fn create_is_idempotent(context: Context) -> Result<()> {
    let name = unique("conformance");
    let attributes = [(QueueAttributeName::VisibilityTimeout, "7")];
    let first = context.create(&name, &attributes).await?;
    ensure!(first.ends_with(&format!("/{name}")), "a strange URL: {first}");
    ensure!(first == context.create(&name, &attributes).await?, "another URL");
    let url = context.client.get_queue_url().queue_name(&name).send().await?.queue_url;
    ensure!(url.as_ref() == Some(&first), "GetQueueUrl says {url:?}");
    let changed = context.client.create_queue().queue_name(&name);
    let changed = changed.attributes(QueueAttributeName::VisibilityTimeout, "8").send().await;
    refused(changed, &["QueueNameExists", "QueueAlreadyExists"])
}

/// AWS: the policy reads back, with the target's ARN and the count.
async fn create_with_redrive(context: Context) -> Result<()> {
    let (queue, dead) = context.with_dead_letters(3).await?;
    let policy: serde_json::Value =
        serde_json::from_str(&queue.attribute(QueueAttributeName::RedrivePolicy).await?)?;
    let arn = dead.attribute(QueueAttributeName::QueueArn).await?;
    ensure!(policy["deadLetterTargetArn"] == arn.as_str(), "{policy}");
    ensure!(policy["maxReceiveCount"] == 3 || policy["maxReceiveCount"] == "3", "{policy}");
    let set = context.client.set_queue_attributes().queue_url(&queue.url);
    let as_number = format!(r#"{{"deadLetterTargetArn":"{arn}","maxReceiveCount":4}}"#);
    set.attributes(QueueAttributeName::RedrivePolicy, as_number)
        .send()
        .await
        .context("a count as a number")?;
    Ok(())
}

/// AWS: a policy whose target does not exist is refused.
async fn redrive_needs_an_existing_target(context: Context) -> Result<()> {
    let arn = context.queue(&[]).await?.attribute(QueueAttributeName::QueueArn).await?;
    let policy = format!(r#"{{"deadLetterTargetArn":"{arn}-gone","maxReceiveCount":3}}"#);
    let created = context.client.create_queue().queue_name(unique("conformance"));
    refused(created.attributes(QueueAttributeName::RedrivePolicy, policy).send().await, INVALID_VALUE)
}

/// AWS: `QueueDoesNotExist`, whatever is asked of the queue.
async fn unknown_queue_has_its_own_code(context: Context) -> Result<()> {
    let name = unique("gone");
    refused(context.client.get_queue_url().queue_name(&name).send().await, QUEUE_GONE)?;
    let url = context.queue(&[]).await?.url.replace("conformance", "gone");
    refused(context.client.send_message().queue_url(&url).message_body("x").send().await, QUEUE_GONE)?;
    refused(context.client.receive_message().queue_url(&url).send().await, QUEUE_GONE)
}

/// AWS: lists the queues whose name begins so.
async fn list_by_prefix(context: Context) -> Result<()> {
    let prefix = unique("list");
    let mut expected = BTreeSet::new();
    for suffix in ["a", "b"] {
        expected.insert(context.create(&format!("{prefix}-{suffix}"), &[]).await?);
    }
    let listed = context.client.list_queues().queue_name_prefix(&prefix).send().await?;
    let listed: BTreeSet<String> = listed.queue_urls.unwrap_or_default().into_iter().collect();
    ensure!(listed == expected, "{listed:?}");
    Ok(())
}

/// AWS: the body comes back byte for byte, with its MD5 at both ends and a first receive count of 1.
async fn send_and_receive_keep_body_and_md5(context: Context) -> Result<()> {
    const BODY: &str = "{\"a\":\"ä€😀\",\n\t\"b\":\"\\\"<&>\"}";
    const MD5: &str = "c69110403d6f38af2a7a2671dca8f7ae";
    let queue = context.queue(&[]).await?;
    let sent = context.client.send_message().queue_url(&queue.url).message_body(BODY).send().await?;
    ensure!(sent.md5_of_message_body() == Some(MD5), "{:?}", sent.md5_of_message_body());
    let message = queue.receive_one(30).await?;
    ensure!(message.body() == Some(BODY), "{:?}", message.body());
    ensure!(message.md5_of_body() == Some(MD5), "{:?}", message.md5_of_body());
    ensure!(message.message_id() == sent.message_id(), "another id");
    ensure!(receive_count(&message)? == 1, "{message:?}");
    let attributes = message.attributes().context("no attributes")?;
    let sent_at = attributes.get(&MessageSystemAttributeName::SentTimestamp).context("no time")?;
    ensure!(sent_at.len() == 13 && sent_at.parse::<u64>().is_ok(), "not milliseconds: {sent_at}");
    Ok(())
}

/// AWS: 1 to 10 messages, 0 to 20 s of waiting, 0 to 12 h of hiding; else `InvalidParameterValue`.
async fn receive_refuses_what_is_out_of_range(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    let receive = || context.client.receive_message().queue_url(&queue.url);
    refused(receive().max_number_of_messages(11).send().await, INVALID_VALUE)?;
    refused(receive().max_number_of_messages(0).send().await, INVALID_VALUE)?;
    refused(receive().wait_time_seconds(21).send().await, INVALID_VALUE)?;
    refused(receive().visibility_timeout(43_201).send().await, INVALID_VALUE)
}

/// AWS: a message may be delayed for up to 15 min.
async fn send_refuses_a_delay_out_of_range(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    let sent = context.client.send_message().queue_url(&queue.url).message_body("x").delay_seconds(901);
    refused(sent.send().await, INVALID_VALUE)
}

/// AWS: control characters and more than 1 MiB are refused; nothing is sent.
async fn send_refuses_what_cannot_be_sent(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    let send = || context.client.send_message().queue_url(&queue.url);
    refused(send().message_body("\u{1}").send().await, &["InvalidMessageContents"])?;
    refused(send().message_body("x".repeat(1_048_577)).send().await, INVALID_VALUE)?;
    queue.receives_nothing(0).await
}

/// AWS: up to 1 MiB (since August 2025).
async fn message_may_have_one_mebibyte(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    let body = "x".repeat(1_048_576);
    queue.send(&body).await?;
    ensure!(queue.receive_one(30).await?.body() == Some(&body), "another body");
    Ok(())
}

/// AWS: the entries stand alone; the wrong one fails, the others are sent.
async fn batch_fails_in_part(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    let sent = context.client.send_message_batch().queue_url(&queue.url);
    let sent = sent.entries(entry("a", "1")?).entries(entry("b", "\u{1}")?).entries(entry("c", "3")?);
    let sent = sent.send().await?;
    let successful: Vec<&str> = sent.successful().iter().map(|done| done.id()).collect();
    ensure!(successful == ["a", "c"], "{sent:?}");
    let [failed] = sent.failed() else { anyhow::bail!("{sent:?}") };
    ensure!(failed.id() == "b" && failed.sender_fault(), "{failed:?}");
    ensure!(failed.code() == "InvalidMessageContents", "{failed:?}");
    let mut bodies = BTreeSet::new();
    while bodies.len() < 2 {
        let messages = queue.receive(20, 30).await?;
        ensure!(!messages.is_empty(), "only {bodies:?} came");
        bodies.extend(messages.into_iter().filter_map(|message| message.body));
    }
    ensure!(bodies == BTreeSet::from(["1".to_owned(), "3".to_owned()]), "{bodies:?}");
    Ok(())
}

/// AWS: no entry, more than ten, and the same id twice refuse the batch as a whole.
async fn batch_as_a_whole_has_limits(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    let send = |entries| {
        let batch = context.client.send_message_batch().queue_url(&queue.url);
        batch.set_entries(Some(entries)).send()
    };
    let eleven = (0..11).map(|id| entry(&id.to_string(), "x")).collect::<Result<Vec<_>>>()?;
    let code = |name: &str| [name.to_owned(), format!("AWS.SimpleQueueService.{name}")];
    for (entries, name) in [
        (Vec::new(), "EmptyBatchRequest"),
        (eleven, "TooManyEntriesInBatchRequest"),
        (vec![entry("a", "x")?, entry("a", "y")?], "BatchEntryIdsNotDistinct"),
    ] {
        refused(send(entries).await, &code(name).each_ref().map(String::as_str))?;
    }
    queue.receives_nothing(0).await
}

/// AWS: ten messages at most per receive, each of them once while it is hidden.
async fn receive_takes_ten_at_most(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    for batch in 0..3 {
        let sent = context.client.send_message_batch().queue_url(&queue.url);
        let entries = (0..8).map(|id| entry(&id.to_string(), &format!("{batch}-{id}")));
        sent.set_entries(Some(entries.collect::<Result<_>>()?)).send().await?;
    }
    let mut bodies = BTreeSet::new();
    while bodies.len() < 24 {
        let messages = queue.receive(20, 60).await?;
        ensure!(!messages.is_empty() && messages.len() <= 10, "{} messages at once", messages.len());
        for message in messages {
            let body = message.body.context("no body")?;
            ensure!(bodies.insert(body.clone()), "{body} came twice");
        }
    }
    Ok(())
}

/// AWS: a poll of 20 s on an empty queue answers after 20 s, with nothing.
async fn long_poll_blocks_for_twenty_seconds(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    timed(Duration::from_millis(19_500), Duration::from_secs(25), queue.receives_nothing(20)).await
}

/// AWS: a message that comes while a poll waits is answered at once.
async fn long_poll_wakes_on_a_send(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    let mut poll = std::pin::pin!(queue.receive_one(30));
    let early = tokio::time::timeout(Duration::from_secs(1), &mut poll).await;
    ensure!(early.is_err(), "the poll did not wait: {early:?}");
    let message = timed(Duration::ZERO, AT_ONCE, async {
        queue.send("wake").await?;
        poll.await
    });
    ensure!(message.await?.body() == Some("wake"), "another body");
    Ok(())
}

/// AWS: a waiting poll gets a message whose visibility timeout runs out, with a higher count.
async fn long_poll_wakes_when_visibility_runs_out(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    queue.send("again").await?;
    queue.receive_one(2).await?;
    let again = timed(Duration::from_millis(1_000), Duration::from_secs(5), queue.receive_one(30));
    ensure!(receive_count(&again.await?)? == 2, "not counted");
    Ok(())
}

/// AWS: a delayed message is counted apart and comes when its delay is over.
async fn delayed_message_comes_when_due(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    let come = timed(Duration::from_millis(2_500), Duration::from_secs(8), async {
        let sent = context.client.send_message().queue_url(&queue.url).message_body("late");
        sent.delay_seconds(3).send().await?;
        queue.receives_nothing(0).await?;
        queue.receive_one(30).await
    });
    come.await?;
    let sent = context.client.send_message().queue_url(&queue.url).message_body("later");
    sent.delay_seconds(900).send().await?;
    queue.comes_to_count([0, 1, 1]).await
}

/// AWS: a poll whose client hung up may at worst hide a message for its visibility timeout.
async fn abandoned_poll_loses_nothing(context: Context) -> Result<()> {
    const POLLS: u32 = 4;
    const HIDDEN_SEC: u32 = 2;
    let queue = context.queue(&[]).await?;
    for _ in 0..POLLS {
        let poll = queue.receive(20, i32::try_from(HIDDEN_SEC)?);
        let abandoned = tokio::time::timeout(Duration::from_millis(300), poll).await;
        ensure!(abandoned.is_err(), "the poll did not wait");
    }
    queue.send("kept").await?;
    let worst = Duration::from_secs((POLLS * HIDDEN_SEC).into()) + AT_ONCE;
    let message = timed(Duration::ZERO, worst, queue.receive_one(30)).await?;
    ensure!(message.body() == Some("kept"), "another body");
    Ok(())
}

/// AWS: a timeout of 0 makes the message visible at once.
async fn visibility_zero_gives_back_at_once(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    queue.send("back").await?;
    let first = queue.receive_one(600).await?;
    let mut poll = std::pin::pin!(queue.receive_one(30));
    let early = tokio::time::timeout(Duration::from_millis(500), &mut poll).await;
    ensure!(early.is_err(), "the message was not hidden: {early:?}");
    let again = timed(Duration::ZERO, AT_ONCE, async {
        queue.hide(&first, 0).await?;
        poll.await
    });
    ensure!(receive_count(&again.await?)? == 2, "not counted");
    Ok(())
}

/// AWS: the new timeout counts from the change, and the handle stays good.
async fn visibility_can_be_extended(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    queue.send("mine").await?;
    let message = queue.receive_one(2).await?;
    queue.hide(&message, 600).await?;
    queue.receives_nothing(4).await?;
    queue.comes_to_count([0, 1, 0]).await?;
    queue.hide(&message, 600).await?;
    queue.delete(&message).await
}

/// AWS: entries stand alone.
async fn visibility_batch_fails_in_part(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    queue.send("one").await?;
    let message = queue.receive_one(600).await?;
    let entry = |id: &str, handle: &str| {
        let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(id).receipt_handle(handle);
        entry.visibility_timeout(0).build()
    };
    let changed = context.client.change_message_visibility_batch().queue_url(&queue.url);
    let changed = changed.entries(entry("good", handle(&message)?)?).entries(entry("bad", "nonsense")?);
    let changed = changed.send().await?;
    ensure!(changed.successful().len() == 1 && changed.successful()[0].id() == "good", "{changed:?}");
    ensure!(changed.failed().len() == 1 && changed.failed()[0].id() == "bad", "{changed:?}");
    timed(Duration::ZERO, AT_ONCE, queue.receive_one(30)).await?;
    Ok(())
}

/// AWS: after `maxReceiveCount` receives the next one moves the message, which keeps its id and body.
async fn redrive_after_too_many_receives(context: Context) -> Result<()> {
    let (queue, dead) = context.with_dead_letters(2).await?;
    queue.send("poison").await?;
    let mut poll = std::pin::pin!(dead.receive_one(30));
    let first = queue.receive_one(0).await?;
    let second = queue.receive_one(0).await?;
    ensure!(receive_count(&second)? == 2, "not counted");
    let early = tokio::time::timeout(Duration::from_millis(200), &mut poll).await;
    ensure!(early.is_err(), "given up too early: {early:?}");
    queue.receives_nothing(1).await?;
    let letter = timed(Duration::ZERO, AT_ONCE, poll).await?;
    ensure!(letter.body() == Some("poison") && letter.message_id() == first.message_id(), "{letter:?}");
    queue.comes_to_count([0, 0, 0]).await
}

/// AWS: deleting twice with the same handle succeeds twice.
async fn delete_is_idempotent(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    queue.send("once").await?;
    let message = queue.receive_one(1).await?;
    queue.delete(&message).await?;
    queue.delete(&message).await.context("the second delete")?;
    queue.receives_nothing(2).await
}

/// AWS: while nobody else received the message, its last handle deletes it, visible or not.
async fn delete_works_after_visibility_ran_out(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    queue.send("late").await?;
    let message = queue.receive_one(0).await?;
    queue.comes_to_count([1, 0, 0]).await?;
    queue.delete(&message).await?;
    queue.receives_nothing(1).await
}

/// AWS: entries stand alone; a handle that never was one fails.
async fn delete_batch_fails_in_part(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    queue.send("one").await?;
    let message = queue.receive_one(1).await?;
    let entry = |id: &str, handle: &str| {
        DeleteMessageBatchRequestEntry::builder().id(id).receipt_handle(handle).build()
    };
    let deleted = context.client.delete_message_batch().queue_url(&queue.url);
    let deleted = deleted.entries(entry("good", handle(&message)?)?).entries(entry("bad", "nonsense")?);
    let deleted = deleted.send().await?;
    ensure!(deleted.successful().len() == 1 && deleted.successful()[0].id() == "good", "{deleted:?}");
    let [failed] = deleted.failed() else { anyhow::bail!("{deleted:?}") };
    ensure!(failed.id() == "bad" && failed.code() == "ReceiptHandleIsInvalid", "{failed:?}");
    queue.receives_nothing(2).await
}

/// AWS: the handle of an earlier receive is accepted, but "might not" delete. The last one does.
async fn stale_handle_is_no_error_to_delete(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    queue.send("twice").await?;
    let stale = queue.receive_one(0).await?;
    let fresh = queue.receive_one(1).await?;
    queue.delete(&stale).await.context("the stale handle")?;
    queue.delete(&fresh).await?;
    queue.receives_nothing(2).await
}

/// AWS: a message may only be hidden by its last receive.
async fn stale_handle_cannot_hide(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    queue.send("twice").await?;
    let stale = queue.receive_one(0).await?;
    let fresh = queue.receive_one(600).await?;
    let hidden = context.client.change_message_visibility().queue_url(&queue.url);
    refused(hidden.receipt_handle(handle(&stale)?).visibility_timeout(0).send().await, NOT_YOURS)?;
    queue.receives_nothing(1).await?;
    queue.delete(&fresh).await
}

/// AWS: "Message does not exist or is not available for visibility timeout change."
async fn deleted_message_cannot_be_hidden(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    queue.send("gone").await?;
    let message = queue.receive_one(30).await?;
    queue.delete(&message).await?;
    let hidden = context.client.change_message_visibility().queue_url(&queue.url);
    refused(hidden.receipt_handle(handle(&message)?).visibility_timeout(30).send().await, NOT_YOURS)
}

/// AWS: what never was a handle is `ReceiptHandleIsInvalid`, for both uses of it.
async fn malformed_handle_is_refused(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    let deleted = context.client.delete_message().queue_url(&queue.url).receipt_handle("nonsense");
    refused(deleted.send().await, INVALID_HANDLE)?;
    let hidden = context.client.change_message_visibility().queue_url(&queue.url);
    refused(hidden.receipt_handle("nonsense").visibility_timeout(30).send().await, INVALID_HANDLE)
}

/// AWS: figures follow the messages, and a changed attribute holds from the next receive on.
async fn attributes_count_and_change(context: Context) -> Result<()> {
    let queue = context.queue(&[(QueueAttributeName::VisibilityTimeout, "600")]).await?;
    let arn = queue.attribute(QueueAttributeName::QueueArn).await?;
    ensure!(arn.starts_with("arn:aws:sqs:us-east-1:"), "{arn}");
    ensure!(queue.attribute(QueueAttributeName::VisibilityTimeout).await? == "600", "not as created");
    for body in ["1", "2", "3"] {
        queue.send(body).await?;
    }
    queue.comes_to_count([3, 0, 0]).await?;
    let one = context.client.receive_message().queue_url(&queue.url).wait_time_seconds(20).send().await?;
    ensure!(one.messages().len() == 1, "{one:?}");
    queue.comes_to_count([2, 1, 0]).await?;
    let set = context.client.set_queue_attributes().queue_url(&queue.url);
    set.attributes(QueueAttributeName::VisibilityTimeout, "0").send().await?;
    context.client.receive_message().queue_url(&queue.url).wait_time_seconds(20).send().await?;
    queue.comes_to_count([2, 1, 0]).await?;
    let set = context.client.set_queue_attributes().queue_url(&queue.url);
    let wrong = set.attributes(QueueAttributeName::VisibilityTimeout, "43201").send().await;
    refused(wrong, &["InvalidAttributeValue"])
}

/// AWS: a purge deletes visible messages and those in flight.
async fn purge_empties(context: Context) -> Result<()> {
    let queue = context.queue(&[]).await?;
    queue.send("hidden").await?;
    queue.receive_one(1).await?;
    queue.send("visible").await?;
    context.client.purge_queue().queue_url(&queue.url).send().await?;
    queue.comes_to_count([0, 0, 0]).await?;
    queue.receives_nothing(2).await
}
