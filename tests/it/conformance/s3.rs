//! The checks on S3. "AWS" says what its documentation promises of a general purpose bucket.

use std::fmt::Debug;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Region};
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::put_object::PutObjectOutput;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumMode, Delete, ObjectIdentifier};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::future::join_all;
use reqwest::StatusCode;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{Check, REGION, checks, http_client, refused, unique};

const RACERS: usize = 24;
const AN_HOUR: Duration = Duration::from_secs(3_600);

checks! { Context:
    create_bucket_twice,
    missing_bucket_has_its_own_code,
    put_keeps_metadata_and_digests,
    wrong_sha256_changes_nothing,
    conditional_put_has_one_winner,
    conditional_put_wins_after_a_delete,
    missing_key_is_not_found,
    range_get_answers_a_part,
    conditional_get_saves_the_transfer,
    overwrite_replaces_bytes_and_metadata,
    delete_is_idempotent,
    delete_objects_deletes_all,
    list_by_prefix_in_pages,
    list_rolls_up_by_delimiter,
    keys_are_opaque,
    empty_and_large_objects,
    put_cut_short_leaves_nothing,
    presigned_get_needs_no_key,
    presigned_get_overrides_headers,
    tampered_presigned_get_is_refused,
    expired_presigned_get_is_refused,
    anonymous_is_refused,
    wrong_keys_are_refused,
}

#[derive(Clone)]
pub(super) struct Context {
    client: Client,
    endpoint: String,
    access_key: String,
    bucket: String,
    /// Speaks to presigned URLs, and knows nothing of AWS.
    http: reqwest::Client,
}

impl Context {
    /// With a bucket of its own for all checks.
    pub(super) async fn new(endpoint: &str, credentials: Credentials) -> Result<Context> {
        let access_key = credentials.access_key_id().to_owned();
        let client = client(endpoint, credentials);
        let bucket = unique("conformance");
        client.create_bucket().bucket(&bucket).send().await?;
        // The provider may be installed already, by another test.
        rustls::crypto::ring::default_provider().install_default().ok();
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Context { client, endpoint: endpoint.to_owned(), access_key, bucket, http })
    }

    /// The same bucket at another endpoint.
    pub(super) fn elsewhere(&self, endpoint: &str, credentials: Credentials) -> Context {
        let client = client(endpoint, credentials);
        Context { client, endpoint: endpoint.to_owned(), ..self.clone() }
    }

    pub(super) async fn put(&self, key: &str, body: &str) -> Result<PutObjectOutput> {
        let put = self.client.put_object().bucket(&self.bucket).key(key);
        Ok(put.body(bytes(body)).send().await?)
    }

    pub(super) async fn get(&self, key: &str) -> Result<Vec<u8>> {
        let got = self.client.get_object().bucket(&self.bucket).key(key).send().await?;
        Ok(got.body.collect().await?.to_vec())
    }

    pub(super) async fn holds(&self, key: &str, body: &str) -> Result<()> {
        let got = self.get(key).await.with_context(|| format!("no {key:?}"))?;
        ensure!(got == body.as_bytes(), "{key:?} holds {:?}", String::from_utf8_lossy(&got));
        Ok(())
    }

    pub(super) async fn delete(&self, key: &str) -> Result<()> {
        self.client.delete_object().bucket(&self.bucket).key(key).send().await?;
        Ok(())
    }

    async fn is_missing(&self, key: &str) -> Result<()> {
        let head = self.client.head_object().bucket(&self.bucket).key(key).send().await;
        answered(head, StatusCode::NOT_FOUND)
    }

    pub(super) async fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let listed = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix).send().await?;
        Ok(listed.contents.unwrap_or_default().into_iter().filter_map(|object| object.key).collect())
    }

    async fn presigned(&self, key: &str, config: PresigningConfig) -> Result<String> {
        let get = self.client.get_object().bucket(&self.bucket).key(key);
        Ok(get.presigned(config).await?.uri().to_owned())
    }

    /// Status and body of a plain GET.
    async fn fetch(&self, url: &str) -> Result<(StatusCode, String)> {
        let answer = self.http.get(url).send().await?;
        Ok((answer.status(), answer.text().await?))
    }
}

fn client(endpoint: &str, credentials: Credentials) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .credentials_provider(credentials)
        .endpoint_url(endpoint)
        .force_path_style(true)
        .http_client(http_client())
        .build();
    Client::from_conf(config)
}

fn bytes(text: &str) -> ByteStream {
    ByteStream::from(text.as_bytes().to_vec())
}

fn sha256(text: &str) -> String {
    BASE64.encode(Sha256::digest(text.as_bytes()))
}

/// The outcome must be an error with this status: a HEAD has no body to name a code in.
fn answered<T: Debug, E: Debug>(outcome: Result<T, SdkError<E>>, status: StatusCode) -> Result<()> {
    let error = match outcome {
        Ok(output) => bail!("expected {status}, got {output:?}"),
        Err(error) => error,
    };
    let found = error.raw_response().map(|response| response.status().as_u16());
    ensure!(found == Some(status.as_u16()), "expected {status}, got {error:?}");
    Ok(())
}

/// AWS: the second create of one's own bucket is an error everywhere but in us-east-1.
async fn create_bucket_twice(context: Context) -> Result<()> {
    context.client.head_bucket().bucket(&context.bucket).send().await?;
    match context.client.create_bucket().bucket(&context.bucket).send().await {
        Ok(_) => Ok(()),
        again @ Err(_) => refused(again, &["BucketAlreadyOwnedByYou"]),
    }
}

/// AWS: `NoSuchBucket`.
async fn missing_bucket_has_its_own_code(context: Context) -> Result<()> {
    let name = unique("gone");
    let bucket = &["NoSuchBucket"];
    refused(context.client.get_object().bucket(&name).key("k").send().await, bucket)?;
    let put = context.client.put_object().bucket(&name).key("k").body(bytes("x"));
    refused(put.send().await, bucket)?;
    refused(context.client.list_objects_v2().bucket(&name).send().await, bucket)?;
    answered(context.client.head_bucket().bucket(&name).send().await, StatusCode::NOT_FOUND)
}

/// AWS: metadata (names in lower case), content type, ETag (the MD5) and SHA-256 read back.
async fn put_keeps_metadata_and_digests(context: Context) -> Result<()> {
    let put = context.client.put_object().bucket(&context.bucket).key("metadata/one.json");
    let put = put.content_type("application/json").metadata("Run-Id", "r-1").metadata("sha256", "ab cd");
    let put = put.checksum_sha256(sha256("{}")).body(bytes("{}")).send().await?;
    ensure!(put.e_tag() == Some("\"99914b932bd37a50b983c5e7c90ae93b\""), "{:?}", put.e_tag());
    let head = context.client.head_object().bucket(&context.bucket).key("metadata/one.json");
    let head = head.checksum_mode(ChecksumMode::Enabled).send().await?;
    let got = context.client.get_object().bucket(&context.bucket).key("metadata/one.json").send().await?;
    ensure!(head.checksum_sha256() == Some(&*sha256("{}")), "{head:?}");
    ensure!(head.content_length() == Some(2) && head.last_modified().is_some(), "{head:?}");
    for (metadata, content_type, etag) in [
        (head.metadata(), head.content_type(), head.e_tag()),
        (got.metadata(), got.content_type(), got.e_tag()),
    ] {
        let metadata = metadata.context("no metadata")?;
        ensure!(metadata.len() == 2, "{metadata:?}");
        ensure!(metadata.get("run-id").is_some_and(|id| id == "r-1"), "{metadata:?}");
        ensure!(metadata.get("sha256").is_some_and(|digest| digest == "ab cd"), "{metadata:?}");
        ensure!(content_type == Some("application/json") && etag == put.e_tag(), "{content_type:?} {etag:?}");
    }
    context.holds("metadata/one.json", "{}").await
}

/// AWS: `BadDigest`, and the object that was there stays as it was.
async fn wrong_sha256_changes_nothing(context: Context) -> Result<()> {
    context.put("digest/old", "old").await?;
    for key in ["digest/old", "digest/new"] {
        let put = context.client.put_object().bucket(&context.bucket).key(key);
        let put = put.checksum_sha256(sha256("something else")).body(bytes("new")).send().await;
        refused(put, &["BadDigest"])?;
    }
    context.is_missing("digest/new").await?;
    context.holds("digest/old", "old").await
}

/// AWS: of concurrent puts with `If-None-Match: *` one succeeds; the others get 412, or 409 while the
/// winner is still being written.
async fn conditional_put_has_one_winner(context: Context) -> Result<()> {
    let outcomes = join_all((0..RACERS).map(|racer| {
        let put = context.client.put_object().bucket(&context.bucket).key("race/key");
        put.if_none_match("*").metadata("racer", racer.to_string()).body(bytes(&racer.to_string())).send()
    }));
    let mut winners = Vec::new();
    for (racer, outcome) in outcomes.await.into_iter().enumerate() {
        match outcome {
            Ok(_) => winners.push(racer.to_string()),
            lost @ Err(_) => refused(lost, &["PreconditionFailed", "ConditionalRequestConflict"])?,
        }
    }
    let [winner] = &winners[..] else { bail!("{} of {RACERS} won", winners.len()) };
    context.holds("race/key", winner).await?;
    let head = context.client.head_object().bucket(&context.bucket).key("race/key").send().await?;
    let racer = head.metadata().and_then(|metadata| metadata.get("racer"));
    ensure!(racer == Some(winner), "the bytes of {winner} with the metadata of {racer:?}");
    Ok(())
}

/// AWS: the condition looks at what is there now.
async fn conditional_put_wins_after_a_delete(context: Context) -> Result<()> {
    let put = |body| {
        let put = context.client.put_object().bucket(&context.bucket).key("race/again");
        put.if_none_match("*").body(bytes(body)).send()
    };
    put("first").await?;
    refused(put("second").await, &["PreconditionFailed"])?;
    context.holds("race/again", "first").await?;
    context.delete("race/again").await?;
    put("third").await?;
    context.holds("race/again", "third").await
}

/// AWS: `NoSuchKey`, or a bare 404 to a HEAD.
async fn missing_key_is_not_found(context: Context) -> Result<()> {
    let got = context.client.get_object().bucket(&context.bucket).key("missing").send().await;
    refused(got, &["NoSuchKey"])?;
    context.is_missing("missing").await
}

/// AWS: 206 with the bytes of the range; a range past the end is `InvalidRange`.
async fn range_get_answers_a_part(context: Context) -> Result<()> {
    context.put("range", "0123456789").await?;
    let get = |range| context.client.get_object().bucket(&context.bucket).key("range").range(range).send();
    for (range, part, content_range) in [
        ("bytes=2-5", "2345", "bytes 2-5/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=8-99", "89", "bytes 8-9/10"),
    ] {
        let got = get(range).await.with_context(|| range)?;
        ensure!(got.content_range() == Some(content_range), "{range}: {:?}", got.content_range());
        let body = got.body.collect().await?.to_vec();
        ensure!(body == part.as_bytes(), "{range}: {:?}", String::from_utf8_lossy(&body));
    }
    refused(get("bytes=10-").await, &["InvalidRange"])
}

/// AWS: 304 to `If-None-Match` with the current ETag, 412 to `If-Match` with another.
async fn conditional_get_saves_the_transfer(context: Context) -> Result<()> {
    let etag = context.put("conditional", "x").await?.e_tag.context("no ETag")?;
    let get = || context.client.get_object().bucket(&context.bucket).key("conditional");
    answered(get().if_none_match(&etag).send().await, StatusCode::NOT_MODIFIED)?;
    get().if_match(&etag).send().await?;
    refused(get().if_match("\"other\"").send().await, &["PreconditionFailed"])
}

/// AWS: the last put wins, whole: nothing of the earlier metadata is left.
async fn overwrite_replaces_bytes_and_metadata(context: Context) -> Result<()> {
    let put = || context.client.put_object().bucket(&context.bucket).key("overwrite");
    put().metadata("old", "1").content_type("text/old").body(bytes("long old text")).send().await?;
    put().metadata("new", "2").body(bytes("new")).send().await?;
    context.holds("overwrite", "new").await?;
    let head = context.client.head_object().bucket(&context.bucket).key("overwrite").send().await?;
    let metadata = head.metadata().context("no metadata")?;
    ensure!(metadata.len() == 1 && metadata.contains_key("new"), "{metadata:?}");
    ensure!(head.content_length() == Some(3) && head.content_type() != Some("text/old"), "{head:?}");
    Ok(())
}

/// AWS: a delete succeeds whether or not there is an object.
async fn delete_is_idempotent(context: Context) -> Result<()> {
    context.put("delete/me", "x").await?;
    context.put("delete/me/not", "y").await?;
    for _ in 0..2 {
        context.delete("delete/me").await?;
        context.is_missing("delete/me").await?;
    }
    context.holds("delete/me/not", "y").await
}

/// AWS: up to 1 000 keys at once, missing ones included.
async fn delete_objects_deletes_all(context: Context) -> Result<()> {
    let keys = ["many/1", "many/2", "many/3"];
    context.put(keys[0], "x").await?;
    context.put(keys[1], "x").await?;
    let objects = keys.map(|key| ObjectIdentifier::builder().key(key).build());
    let objects = objects.into_iter().collect::<Result<_, _>>()?;
    let delete = Delete::builder().set_objects(Some(objects)).build()?;
    let deleted = context.client.delete_objects().bucket(&context.bucket).delete(delete).send().await?;
    ensure!(deleted.deleted().len() == 3 && deleted.errors().is_empty(), "{deleted:?}");
    ensure!(context.keys("many/").await?.is_empty(), "some are left");
    Ok(())
}

/// AWS: in the order of the keys' bytes, in pages that a token continues.
async fn list_by_prefix_in_pages(context: Context) -> Result<()> {
    let mut expected = ["list/B", "list/a", "list/a/b", "list/a0", "list/é", "list/z/z/z"].to_vec();
    for key in &expected {
        context.put(key, key).await?;
    }
    context.put("listed", "no").await?;
    expected.sort_unstable();
    ensure!(context.keys("list/").await? == expected, "{:?}", context.keys("list/").await?);
    ensure!(context.keys("list/a").await? == ["list/a", "list/a/b", "list/a0"], "a part of a name");
    ensure!(context.keys("list/nothing/").await?.is_empty(), "something");
    let mut pages = context.client.list_objects_v2().bucket(&context.bucket).prefix("list/").max_keys(2);
    let mut paged = Vec::new();
    loop {
        let page = pages.clone().send().await?;
        ensure!(page.contents().len() == 2, "{page:?}");
        for object in page.contents() {
            let key = object.key().context("no key")?.to_owned();
            ensure!(object.size() == Some(i64::try_from(key.len())?), "{object:?}");
            ensure!(object.e_tag().is_some() && object.last_modified().is_some(), "{object:?}");
            paged.push(key);
        }
        match page.next_continuation_token {
            Some(token) => pages = pages.continuation_token(token),
            None => break,
        }
    }
    ensure!(paged == expected, "{paged:?}");
    Ok(())
}

/// AWS: keys that share a part up to the delimiter show as one common prefix.
async fn list_rolls_up_by_delimiter(context: Context) -> Result<()> {
    for key in ["roll/a/1", "roll/a/2", "roll/b", "roll/c/3"] {
        context.put(key, "x").await?;
    }
    let listed = context.client.list_objects_v2().bucket(&context.bucket).prefix("roll/").delimiter("/");
    let listed = listed.send().await?;
    let keys: Vec<_> = listed.contents().iter().filter_map(|object| object.key()).collect();
    let prefixes: Vec<_> = listed.common_prefixes().iter().filter_map(|common| common.prefix()).collect();
    ensure!(keys == ["roll/b"] && prefixes == ["roll/a/", "roll/c/"], "{listed:?}");
    Ok(())
}

/// AWS: a key is a string of bytes; slashes make no directories.
async fn keys_are_opaque(context: Context) -> Result<()> {
    let mut keys = [
        "opaque/a",
        "opaque/a/b",
        "opaque/a@",
        "opaque/a b+c&d=e?f#g",
        "opaque/100%25",
        "opaque/grüße 😀",
        "opaque/.hidden",
        "opaque/x//y",
        "opaque/end/",
    ];
    for key in keys {
        context.put(key, key).await.with_context(|| format!("put {key:?}"))?;
    }
    for key in keys {
        context.holds(key, key).await?;
    }
    keys.sort_unstable();
    ensure!(context.keys("opaque/").await? == keys, "{:?}", context.keys("opaque/").await?);
    Ok(())
}

/// AWS: from no byte at all to 5 GiB.
async fn empty_and_large_objects(context: Context) -> Result<()> {
    context.put("size/empty", "").await?;
    context.holds("size/empty", "").await?;
    let large = "0123456789abcdef".repeat(512 * 1024);
    context.put("size/large", &large).await?;
    ensure!(context.get("size/large").await? == large.as_bytes(), "another object");
    Ok(())
}

/// AWS: an upload that breaks off stores nothing and leaves the object that was there.
async fn put_cut_short_leaves_nothing(context: Context) -> Result<()> {
    context.put("cut/old", "old").await?;
    for key in ["cut/old", "cut/new"] {
        let put = context.client.put_object().bucket(&context.bucket).key(key);
        let put = put.presigned(PresigningConfig::expires_in(AN_HOUR)?).await?;
        let url = reqwest::Url::parse(put.uri())?;
        let address = url.socket_addrs(|| None)?;
        let target = &url[url::Position::BeforePath..];
        let host = &url[url::Position::BeforeHost..url::Position::BeforePath];
        let head = format!("PUT {target} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 1000000\r\n\r\n");
        let mut connection = TcpStream::connect(&address[..]).await?;
        connection.write_all(head.as_bytes()).await?;
        connection.write_all(&[b'x'; 500_000]).await?;
        connection.shutdown().await?;
        // The server answers or hangs up; either way it has seen the end.
        tokio::io::copy(&mut connection, &mut tokio::io::sink()).await.ok();
    }
    context.is_missing("cut/new").await?;
    context.holds("cut/old", "old").await
}

/// AWS: the URL alone is enough, until it expires.
async fn presigned_get_needs_no_key(context: Context) -> Result<()> {
    context.put("presigned/a b.json", "{}").await?;
    let url = context.presigned("presigned/a b.json", PresigningConfig::expires_in(AN_HOUR)?).await?;
    let (status, body) = context.fetch(&url).await?;
    ensure!(status == StatusCode::OK && body == "{}", "{status} {body}");
    Ok(())
}

/// AWS: a signed URL may name the type and the file name to answer with.
async fn presigned_get_overrides_headers(context: Context) -> Result<()> {
    context.put("presigned/override", "{}").await?;
    let get = context.client.get_object().bucket(&context.bucket).key("presigned/override");
    let get = get.response_content_type("text/x-other").response_content_disposition("attachment");
    let url = get.presigned(PresigningConfig::expires_in(AN_HOUR)?).await?;
    let answer = context.http.get(url.uri()).send().await?;
    for (name, value) in [("content-type", "text/x-other"), ("content-disposition", "attachment")] {
        let found = answer.headers().get(name).context(name)?;
        ensure!(found == value, "{name}: {found:?}");
    }
    Ok(())
}

/// AWS: 403 `SignatureDoesNotMatch` once anything that was signed is changed.
async fn tampered_presigned_get_is_refused(context: Context) -> Result<()> {
    context.put("presigned/mine", "mine").await?;
    context.put("presigned/their", "their").await?;
    let url = context.presigned("presigned/mine", PresigningConfig::expires_in(AN_HOUR)?).await?;
    let tampered = [
        url.replace("presigned/mine", "presigned/their"),
        url.replace("X-Amz-Expires=3600", "X-Amz-Expires=36000"),
        format!("{url}&response-content-type=text/html"),
    ];
    for tampered in tampered {
        ensure!(tampered != url, "nothing to tamper with in {url}");
        let (status, body) = context.fetch(&tampered).await?;
        ensure!(status == StatusCode::FORBIDDEN, "{tampered}: {status} {body}");
        ensure!(body.contains("<Code>SignatureDoesNotMatch</Code>"), "{tampered}: {body}");
    }
    Ok(())
}

/// AWS: 403 `AccessDenied`, "Request has expired".
async fn expired_presigned_get_is_refused(context: Context) -> Result<()> {
    context.put("presigned/expired", "x").await?;
    let config = PresigningConfig::builder().start_time(SystemTime::now() - AN_HOUR);
    let config = config.expires_in(Duration::from_secs(3_590)).build()?;
    let (status, body) = context.fetch(&context.presigned("presigned/expired", config).await?).await?;
    ensure!(status == StatusCode::FORBIDDEN, "{status} {body}");
    ensure!(body.contains("<Code>AccessDenied</Code>"), "{body}");
    Ok(())
}

/// AWS: 403 `AccessDenied` to whoever shows no key, for reads and writes alike.
async fn anonymous_is_refused(context: Context) -> Result<()> {
    context.put("anonymous", "x").await?;
    let url = format!("{}/{}/anonymous", context.endpoint, context.bucket);
    let (status, body) = context.fetch(&url).await?;
    ensure!(status == StatusCode::FORBIDDEN && body.contains("<Code>AccessDenied</Code>"), "{status} {body}");
    let status = context.http.put(&url).body("y").send().await?.status();
    ensure!(status == StatusCode::FORBIDDEN, "{status}");
    context.holds("anonymous", "x").await
}

/// AWS: 403 `SignatureDoesNotMatch` to a wrong secret, `InvalidAccessKeyId` to an unknown key.
async fn wrong_keys_are_refused(context: Context) -> Result<()> {
    let get = |key: &str, secret: &str| {
        let client = client(&context.endpoint, Credentials::new(key, secret, None, None, "conformance"));
        async move { client.list_objects_v2().bucket("any-bucket").send().await }
    };
    refused(get(&context.access_key, "wrong").await, &["SignatureDoesNotMatch"])?;
    refused(get("AKIAUNKNOWN", "wrong").await, &["InvalidAccessKeyId"])
}
