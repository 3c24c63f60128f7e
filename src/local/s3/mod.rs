//! An S3 server whose objects are files below one directory and survive a restart.
//!
//! The protocol (SigV4, presigned URLs, chunked uploads, XML) is `s3s`; the store is our own, since
//! `s3s-fs` names an object before it has checked its digest, keeps data and metadata in three files,
//! and lets several conditional puts win.
//!
//! It promises:
//! - one pair of keys; anonymous, tampered and expired requests are refused;
//! - an object appears whole, with its metadata and after its checksums held, or not at all, also
//!   when the process is killed; of many puts with `If-None-Match: *` exactly one wins;
//! - strong consistency: what was answered is what the next read sees.
//!
//! It deliberately lacks, and refuses: multipart uploads, copies, versions, tags, lifecycle rules,
//! `ListObjects` (version 2 it has), `DeleteBucket`, `If-Match` on writes, and keys with `.` or `..`
//! segments or with a segment of more than some 250 bytes. It accepts without effect: ACLs, storage
//! classes and encryption headers. Objects are held in memory while they pass through, which
//! [`OBJECT_BYTES_MAX`] bounds. A file system that ignores case makes keys collide that differ in
//! case alone.

mod store;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::StreamExt;
use hyper::body::Bytes;
use s3s::auth::{S3Auth, SecretKey};
use s3s::crypto::{Checksum, Crc32, Crc32c, Crc64Nvme, Md5, Sha1, Sha256};
use s3s::dto::*;
use s3s::service::S3ServiceBuilder;
use s3s::{Body, S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, TrailingHeaders, s3_error};
use tokio::net::TcpListener;

use self::store::{Error, Head, IfTaken, Object as Stored, Store, Sums};
use super::http::Server;

/// Results are kilobytes to megabytes; AWS itself would take 5 GiB in one put.
pub const OBJECT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The limit of AWS, names and values together.
const METADATA_BYTES_MAX: usize = 2 * 1024;

/// A page of a listing, as on AWS.
const KEYS_PER_PAGE_MAX: i32 = 1_000;

/// A running server. It stops when dropped.
#[derive(Debug)]
pub struct LocalS3 {
    server: Server,
}

impl LocalS3 {
    /// Serves what lies in `data_dir` (made when missing) on `listener`, to whoever signs with this
    /// pair of keys. One server at a time may use a directory.
    pub async fn start(
        listener: TcpListener,
        data_dir: &Path,
        access_key: &str,
        secret_key: &str,
    ) -> anyhow::Result<LocalS3> {
        let mut service = S3ServiceBuilder::new(Disk { store: Arc::new(Store::open(data_dir)?) });
        service.set_auth(OneKey(access_key.to_owned(), secret_key.into()));
        Ok(LocalS3 { server: Server::start(listener, service.build())? })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    /// Stops, and returns once no connection and no task is left.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}

/// The one pair of keys. (`SimpleAuth` of `s3s` does the same, but calls an unknown key
/// `NotSignedUp`.)
struct OneKey(String, SecretKey);

#[async_trait]
impl S3Auth for OneKey {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let OneKey(known, secret) = self;
        if access_key == known { Ok(secret.clone()) } else { Err(s3_error!(InvalidAccessKeyId)) }
    }
}

#[derive(Debug)]
struct Disk {
    store: Arc<Store>,
}

impl Disk {
    /// Disk work blocks, so it leaves the runtime's own threads. It runs to its end even when the
    /// client has gone: an unanswered put may have happened, as on AWS.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> S3Result<T> + Send + 'static,
    ) -> S3Result<T> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || work(&store)).await.map_err(S3Error::internal_error)?
    }
}

#[async_trait]
impl S3 for Disk {
    async fn create_bucket(
        &self,
        req: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        let bucket = req.input.bucket;
        let location = Some(format!("/{bucket}"));
        self.blocking(move |store| Ok(store.create_bucket(&bucket)?)).await?;
        Ok(S3Response::new(CreateBucketOutput { location }))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.blocking(move |store| Ok(store.require_bucket(&req.input.bucket)?)).await?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn list_buckets(&self, _: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        let buckets = self.blocking(|store| Ok(store.buckets()?)).await?.into_iter();
        let buckets = buckets.map(|(name, made)| Bucket {
            name: Some(name),
            creation_date: Some(made.into()),
            ..Default::default()
        });
        Ok(S3Response::new(ListBucketsOutput { buckets: Some(buckets.collect()), ..Default::default() }))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let mut input = req.input;
        if input.tagging.is_some() || input.object_lock_mode.is_some() || input.sse_customer_key.is_some() {
            return Err(lacking("tags, object locks and customer keys"));
        }
        let if_taken = match (&input.if_match, &input.if_none_match) {
            (None, None) => IfTaken::Replace,
            (None, Some(ETagCondition::Any)) => IfTaken::Refuse,
            (Some(_), _) | (None, Some(ETagCondition::ETag(_))) => {
                return Err(lacking("conditions on a put other than `If-None-Match: *`"));
            }
        };
        let metadata = input.metadata.take().unwrap_or_default();
        if METADATA_BYTES_MAX < metadata.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() {
            return Err(s3_error!(MetadataTooLarge));
        }
        let bytes = collect(input.body.take(), input.content_length).await?;
        let sums = claimed(&input, req.trailing_headers);
        let md5 = input.content_md5;
        let (bucket, key) = (input.bucket, input.key);
        let head = Head {
            metadata: (!metadata.is_empty()).then_some(metadata),
            content_type: input.content_type,
            content_encoding: input.content_encoding,
            content_disposition: input.content_disposition,
            content_language: input.content_language,
            cache_control: input.cache_control,
            sums,
            etag: super::md5_hex(&bytes),
        };
        let head = self
            .blocking(move |store| {
                verify(&head.sums, md5.as_deref(), &bytes)?;
                store.put(&bucket, &key, &head, &bytes, if_taken)?;
                Ok(head)
            })
            .await?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(ETag::Strong(head.etag)),
            checksum_crc32: head.sums.crc32,
            checksum_crc32c: head.sums.crc32c,
            checksum_crc64nvme: head.sums.crc64nvme,
            checksum_sha1: head.sums.sha1,
            checksum_sha256: head.sums.sha256,
            ..Default::default()
        }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let GetObjectInput { bucket, key, range, if_match, if_none_match, checksum_mode, .. } = req.input;
        if req.input.version_id.is_some() || req.input.part_number.is_some() {
            return Err(lacking("versions and parts"));
        }
        let (head, modified, len, wanted, bytes) = self
            .blocking(move |store| {
                let object = store.get(&bucket, &key)?;
                judge(&object, if_match.as_ref(), if_none_match.as_ref())?;
                let (head, modified, len) = (object.head.clone(), object.modified, object.len);
                let wanted = range.map(|range| range.check(len)).transpose()?;
                let bytes = object.read(wanted.clone().unwrap_or(0..len))?;
                Ok((head, modified, len, wanted, bytes))
            })
            .await?;
        let whole = if wanted.is_none() { checksum_mode } else { None };
        let sums = shown(&head.sums, whole.as_ref());
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(bytes.len().try_into().map_err(S3Error::internal_error)?),
            body: Some(Body::from(bytes).into()),
            accept_ranges: Some("bytes".to_owned()),
            content_range: wanted.map(|range| format!("bytes {}-{}/{len}", range.start, range.end - 1)),
            last_modified: Some(modified.into()),
            e_tag: Some(ETag::Strong(head.etag)),
            metadata: head.metadata,
            content_type: head.content_type,
            content_encoding: head.content_encoding,
            content_disposition: head.content_disposition,
            content_language: head.content_language,
            cache_control: head.cache_control,
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            ..Default::default()
        }))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let HeadObjectInput { bucket, key, range, if_match, if_none_match, checksum_mode, .. } = req.input;
        if req.input.version_id.is_some() || req.input.part_number.is_some() || range.is_some() {
            return Err(lacking("versions, parts, and ranges on HEAD"));
        }
        let object = self
            .blocking(move |store| {
                let object = store.get(&bucket, &key)?;
                judge(&object, if_match.as_ref(), if_none_match.as_ref())?;
                Ok(object)
            })
            .await?;
        let sums = shown(&object.head.sums, checksum_mode.as_ref());
        let head = object.head;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(object.len.try_into().map_err(S3Error::internal_error)?),
            accept_ranges: Some("bytes".to_owned()),
            last_modified: Some(object.modified.into()),
            e_tag: Some(ETag::Strong(head.etag)),
            metadata: head.metadata,
            content_type: head.content_type,
            content_encoding: head.content_encoding,
            content_disposition: head.content_disposition,
            content_language: head.content_language,
            cache_control: head.cache_control,
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            ..Default::default()
        }))
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let DeleteObjectInput { bucket, key, version_id, if_match, .. } = req.input;
        if version_id.is_some() || if_match.is_some() {
            return Err(lacking("versions and conditional deletes"));
        }
        self.blocking(move |store| Ok(store.delete(&bucket, &key)?)).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let DeleteObjectsInput { bucket, delete, .. } = req.input;
        if delete.objects.iter().any(|object| object.version_id.is_some() || object.e_tag.is_some()) {
            return Err(lacking("versions and conditional deletes"));
        }
        let quiet = delete.quiet.unwrap_or_default();
        let (deleted, errors) = self
            .blocking(move |store| {
                store.require_bucket(&bucket)?;
                let (mut deleted, mut errors) = (Vec::new(), Vec::new());
                for ObjectIdentifier { key, .. } in delete.objects {
                    match store.delete(&bucket, &key).map_err(S3Error::from) {
                        Ok(()) => deleted.push(DeletedObject { key: Some(key), ..Default::default() }),
                        Err(error) => errors.push(s3s::dto::Error {
                            key: Some(key),
                            code: Some(error.code().as_str().to_owned()),
                            message: error.message().map(str::to_owned),
                            ..Default::default()
                        }),
                    }
                }
                Ok((deleted, errors))
            })
            .await?;
        let deleted = (!quiet).then_some(deleted);
        Ok(S3Response::new(DeleteObjectsOutput { deleted, errors: Some(errors), ..Default::default() }))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let ListObjectsV2Input {
            bucket, prefix, delimiter, max_keys, start_after, continuation_token, ..
        } = req.input;
        let after = continuation_token.clone().or(start_after.clone()).unwrap_or_default();
        let most = usize::try_from(max_keys.unwrap_or(KEYS_PER_PAGE_MAX).clamp(0, KEYS_PER_PAGE_MAX))
            .map_err(S3Error::internal_error)?;
        let name = bucket.clone();
        let asked = (prefix.clone().unwrap_or_default(), delimiter.clone().filter(|text| !text.is_empty()));
        let (objects, prefixes, next) = self
            .blocking(move |store| {
                let (prefix, delimiter) = asked;
                let keys = store.keys(&bucket, &prefix)?;
                let page = page(&keys, &prefix, delimiter.as_deref(), &after, most);
                let objects = page.keys.iter().filter_map(|key| show(store, &bucket, key).transpose());
                Ok((objects.collect::<S3Result<Vec<_>>>()?, page.prefixes, page.next))
            })
            .await?;
        let prefixes = prefixes.into_iter().map(|prefix| CommonPrefix { prefix: Some(prefix) });
        let prefixes: Vec<_> = prefixes.collect();
        let count = i32::try_from(objects.len() + prefixes.len()).map_err(S3Error::internal_error)?;
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(name),
            key_count: Some(count),
            max_keys: Some(max_keys.unwrap_or(KEYS_PER_PAGE_MAX)),
            is_truncated: Some(next.is_some()),
            next_continuation_token: next,
            contents: Some(objects),
            common_prefixes: Some(prefixes),
            prefix,
            delimiter,
            start_after,
            continuation_token,
            ..Default::default()
        }))
    }
}

/// The digests that a client claims its bytes to have. To be called once the body is read: trailers
/// come after it.
fn claimed(input: &PutObjectInput, trailers: Option<TrailingHeaders>) -> Sums {
    let trailers = trailers.and_then(|trailers| trailers.take()).unwrap_or_default();
    let claim = |header: &Option<String>, trailer: &str| {
        let trailer = trailers.get(trailer).and_then(|value| value.to_str().ok());
        trailer.map(str::to_owned).or_else(|| header.clone())
    };
    Sums {
        crc32: claim(&input.checksum_crc32, "x-amz-checksum-crc32"),
        crc32c: claim(&input.checksum_crc32c, "x-amz-checksum-crc32c"),
        crc64nvme: claim(&input.checksum_crc64nvme, "x-amz-checksum-crc64nvme"),
        sha1: claim(&input.checksum_sha1, "x-amz-checksum-sha1"),
        sha256: claim(&input.checksum_sha256, "x-amz-checksum-sha256"),
    }
}

fn verify(sums: &Sums, md5: Option<&str>, bytes: &[u8]) -> S3Result<()> {
    verify_one::<Md5>("MD5", md5, bytes)?;
    verify_one::<Crc32>("CRC32", sums.crc32.as_deref(), bytes)?;
    verify_one::<Crc32c>("CRC32C", sums.crc32c.as_deref(), bytes)?;
    verify_one::<Crc64Nvme>("CRC64NVME", sums.crc64nvme.as_deref(), bytes)?;
    verify_one::<Sha1>("SHA1", sums.sha1.as_deref(), bytes)?;
    verify_one::<Sha256>("SHA256", sums.sha256.as_deref(), bytes)
}

fn verify_one<C: Checksum>(name: &str, claimed: Option<&str>, bytes: &[u8]) -> S3Result<()> {
    match claimed {
        Some(claimed) if claimed != BASE64.encode(C::checksum(bytes)) => {
            Err(s3_error!(BadDigest, "The {name} you specified did not match the calculated checksum."))
        }
        Some(_) | None => Ok(()),
    }
}

/// What an answer shows of the checksums: nothing, unless it was asked for.
fn shown(sums: &Sums, mode: Option<&ChecksumMode>) -> Sums {
    match mode {
        Some(mode) if mode.as_str() == ChecksumMode::ENABLED => sums.clone(),
        Some(_) | None => Sums::default(),
    }
}

/// The whole body, or a refusal as soon as it is known to be too long.
async fn collect(body: Option<StreamingBlob>, announced: Option<i64>) -> S3Result<Bytes> {
    let announced = usize::try_from(announced.unwrap_or_default()).unwrap_or_default();
    if OBJECT_BYTES_MAX < announced {
        return Err(s3_error!(EntityTooLarge));
    }
    let mut bytes = Vec::with_capacity(announced);
    let Some(mut body) = body else { return Ok(Bytes::new()) };
    while let Some(chunk) = body.next().await {
        let chunk =
            chunk.map_err(|error| s3_error!(IncompleteBody, "The body could not be read: {error}"))?;
        if OBJECT_BYTES_MAX - bytes.len() < chunk.len() {
            return Err(s3_error!(EntityTooLarge));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// The conditions on a read. Those on dates are ignored, as HTTP allows.
fn judge(
    object: &Stored,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> S3Result<()> {
    let is = |condition: &ETagCondition| match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(etag) => etag.value() == object.head.etag,
    };
    if if_match.is_some_and(|condition| !is(condition)) {
        return Err(s3_error!(PreconditionFailed));
    }
    if if_none_match.is_some_and(is) {
        return Err(s3_error!(NotModified));
    }
    Ok(())
}

#[derive(Default)]
struct Page<'a> {
    keys: Vec<&'a str>,
    prefixes: BTreeSet<String>,
    /// Where the next page goes on: the last key or common prefix of this one.
    next: Option<String>,
}

/// One page of sorted `keys` past `after`, with those that share a part up to `delimiter` rolled up.
fn page<'a>(keys: &'a [String], prefix: &str, delimiter: Option<&str>, after: &str, most: usize) -> Page<'a> {
    let mut page = Page::default();
    let mut last = None;
    for key in keys {
        let rest = key.get(prefix.len()..).unwrap_or_default();
        let rolled_up = delimiter.and_then(|delimiter| {
            let end = rest.find(delimiter)? + delimiter.len();
            Some(&key[..prefix.len() + end])
        });
        let item = rolled_up.unwrap_or(key);
        if item <= after || page.prefixes.contains(item) {
            continue;
        }
        if most <= page.keys.len() + page.prefixes.len() {
            page.next = last.map(str::to_owned);
            break;
        }
        match rolled_up {
            Some(common) => _ = page.prefixes.insert(common.to_owned()),
            None => page.keys.push(key),
        }
        last = Some(item);
    }
    page
}

/// A listed object, unless it was deleted since its name was read.
fn show(store: &Store, bucket: &str, key: &str) -> S3Result<Option<Object>> {
    match store.get(bucket, key) {
        Ok(object) => Ok(Some(Object {
            key: Some(key.to_owned()),
            size: Some(object.len.try_into().map_err(S3Error::internal_error)?),
            last_modified: Some(object.modified.into()),
            e_tag: Some(ETag::Strong(object.head.etag)),
            ..Default::default()
        })),
        Err(Error::NoSuchKey) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn lacking(what: &str) -> S3Error {
    s3_error!(NotImplemented, "This local server has no {what}.")
}

impl From<Error> for S3Error {
    fn from(error: Error) -> S3Error {
        let code = match &error {
            Error::NoSuchBucket => S3ErrorCode::NoSuchBucket,
            Error::NoSuchKey => S3ErrorCode::NoSuchKey,
            Error::BucketExists => S3ErrorCode::BucketAlreadyOwnedByYou,
            Error::Taken => S3ErrorCode::PreconditionFailed,
            Error::KeyEscapes => S3ErrorCode::InvalidURI,
            Error::KeyTooLong => S3ErrorCode::KeyTooLongError,
            Error::HeadTooLarge => S3ErrorCode::MetadataTooLarge,
            Error::Io(_) => S3ErrorCode::InternalError,
        };
        if let Error::Io(error) = &error {
            tracing::error!(%error, "the local S3 could not use its disk");
        }
        S3Error::with_message(code, error.to_string())
    }
}
