//! Objects on disk: one file each. It blocks, and knows nothing of HTTP.
//!
//! A file's first line is the object's [`Head`] as JSON, the rest is its bytes, so that the two can
//! only ever appear together: a put writes a nameless file and then names it, with `rename` (the last
//! put wins) or with `link` (the first wins, and the kernel picks it). A process killed at any point
//! leaves the old object, the new one, or none. Nothing is synced: a power cut may lose what was put
//! last, which a development store can afford.
//!
//! Layout: `ROOT/BUCKET/SEGMENT/…/SEGMENT@`. Segments are percent-encoded, and the `@` keeps the
//! objects `a` and `a/b` apart. `ROOT/.new` holds what is being written; no bucket is named so.

use std::fs::{self, DirEntry, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// S3 allows 8 KiB of request headers, of which 2 KiB are the user's metadata.
const HEAD_BYTES_MAX: u64 = 16 * 1024;

/// A delete elsewhere may take away a directory that a put has just made; each try makes it again.
const PLACE_TRIES_MAX: u32 = 16;

const NEW: &str = ".new";
const OBJECT_SUFFIX: &str = "@";
/// The name of the empty segment in `a//b`, which no other segment encodes to.
const EMPTY_SEGMENT: &str = "%";

#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
}

/// What an object carries besides its bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Head {
    pub(super) etag: String,
    pub(super) metadata: Option<s3s::dto::Metadata>,
    pub(super) content_type: Option<String>,
    pub(super) content_encoding: Option<String>,
    pub(super) content_disposition: Option<String>,
    pub(super) content_language: Option<String>,
    pub(super) cache_control: Option<String>,
    pub(super) sums: Sums,
}

/// The digests that the client named at the put, in base64. They were verified.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Sums {
    pub(super) crc32: Option<String>,
    pub(super) crc32c: Option<String>,
    pub(super) crc64nvme: Option<String>,
    pub(super) sha1: Option<String>,
    pub(super) sha256: Option<String>,
}

/// An object that was opened: what is read from it is of one put, whatever happens to its name.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) head: Head,
    pub(super) modified: SystemTime,
    pub(super) len: u64,
    /// Stands at the first byte of the object.
    reader: BufReader<File>,
}

/// What a put does when the key is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IfTaken {
    Replace,
    Refuse,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no such bucket")]
    NoSuchBucket,
    #[error("no such key")]
    NoSuchKey,
    #[error("the bucket exists")]
    BucketExists,
    #[error("the key is taken")]
    Taken,
    #[error("the key leaves the bucket")]
    KeyEscapes,
    #[error("the key has a part too long for the file system")]
    KeyTooLong,
    #[error("the metadata is too large")]
    HeadTooLarge,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Store {
    /// Opens the store in `root`, and clears away what an earlier process died writing. Only one
    /// process at a time may use a directory; `dpp dev` locks it.
    pub(super) fn open(root: &Path) -> io::Result<Store> {
        let new = root.join(NEW);
        fs::create_dir_all(&new)?;
        for unfinished in fs::read_dir(&new)? {
            fs::remove_file(unfinished?.path())?;
        }
        Ok(Store { root: root.to_owned() })
    }

    pub(super) fn create_bucket(&self, bucket: &str) -> Result<(), Error> {
        fs::create_dir(self.root.join(bucket)).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => Error::BucketExists,
            _ => error.into(),
        })
    }

    /// The names of all buckets, sorted, with the time each was made.
    pub(super) fn buckets(&self) -> Result<Vec<(String, SystemTime)>, Error> {
        let mut buckets = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            match entry.file_name().into_string() {
                Ok(name) if !name.starts_with('.') => buckets.push((name, entry.metadata()?.modified()?)),
                Ok(_) | Err(_) => {}
            }
        }
        buckets.sort_unstable();
        Ok(buckets)
    }

    pub(super) fn require_bucket(&self, bucket: &str) -> Result<(), Error> {
        if self.root.join(bucket).is_dir() { Ok(()) } else { Err(Error::NoSuchBucket) }
    }

    pub(super) fn put(
        &self,
        bucket: &str,
        key: &str,
        head: &Head,
        bytes: &[u8],
        if_taken: IfTaken,
    ) -> Result<(), Error> {
        let path = self.path(bucket, key)?;
        let mut line = serde_json::to_vec(head).map_err(io::Error::from)?;
        line.push(b'\n');
        if HEAD_BYTES_MAX < line.len() as u64 {
            return Err(Error::HeadTooLarge);
        }
        let new = self.root.join(NEW).join(Uuid::new_v4().to_string());
        let placed = write(&new, &line, bytes)
            .map_err(Error::from)
            .and_then(|()| self.place(&new, bucket, &path, if_taken));
        if placed.is_err() || if_taken == IfTaken::Refuse {
            // After a link the file has two names. A leftover harms nobody and goes at the next start.
            fs::remove_file(&new).ok();
        }
        placed
    }

    pub(super) fn get(&self, bucket: &str, key: &str) -> Result<Object, Error> {
        match Object::open(&self.path(bucket, key)?) {
            Err(Error::NoSuchKey) => self.require_bucket(bucket).and(Err(Error::NoSuchKey)),
            other => other,
        }
    }

    /// Deletes the object if there is one, and the directories that it leaves empty.
    pub(super) fn delete(&self, bucket: &str, key: &str) -> Result<(), Error> {
        let path = self.path(bucket, key)?;
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => self.require_bucket(bucket)?,
            Err(error) => return Err(error.into()),
        }
        let bucket = self.root.join(bucket);
        for directory in path.ancestors().skip(1).take_while(|directory| *directory != bucket) {
            if fs::remove_dir(directory).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// All keys that begin with `prefix`, sorted by their bytes.
    pub(super) fn keys(&self, bucket: &str, prefix: &str) -> Result<Vec<String>, Error> {
        self.require_bucket(bucket)?;
        let mut keys = Vec::new();
        let whole = prefix.rfind('/').map_or("", |last| &prefix[..=last]);
        let mut start = self.root.join(bucket);
        for segment in whole.split_terminator('/') {
            match encode(segment) {
                Ok(segment) => start.push(segment),
                // No such key can have been put.
                Err(_) => return Ok(keys),
            }
        }
        let mut pending = vec![(start, whole.to_owned())];
        while let Some((directory, path)) = pending.pop() {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            for entry in entries {
                let Some((name, is_object)) = decode(&entry?) else { continue };
                let path = format!("{path}{name}");
                match is_object {
                    true if path.starts_with(prefix) => keys.push(path),
                    true => {}
                    false => pending.push((directory.join(encode(&name)?), path + "/")),
                }
            }
        }
        keys.sort_unstable();
        Ok(keys)
    }

    /// Gives the finished file its name.
    fn place(&self, new: &Path, bucket: &str, path: &Path, if_taken: IfTaken) -> Result<(), Error> {
        let mut tries = 0;
        loop {
            let placed = match if_taken {
                IfTaken::Replace => fs::rename(new, path),
                IfTaken::Refuse => fs::hard_link(new, path),
            };
            let Err(error) = placed else { return Ok(()) };
            tries += 1;
            match error.kind() {
                ErrorKind::AlreadyExists => return Err(Error::Taken),
                ErrorKind::InvalidFilename => return Err(Error::KeyTooLong),
                ErrorKind::NotFound if tries < PLACE_TRIES_MAX => {
                    self.require_bucket(bucket)?;
                    make_parents(path)?;
                }
                _ => return Err(error.into()),
            }
        }
    }

    fn path(&self, bucket: &str, key: &str) -> Result<PathBuf, Error> {
        let mut path = self.root.join(bucket);
        let (directories, name) = key.rsplit_once('/').map_or((None, key), |(path, name)| (Some(path), name));
        for segment in directories.into_iter().flat_map(|directories| directories.split('/')) {
            path.push(encode(segment)?);
        }
        path.push(encode(name)? + OBJECT_SUFFIX);
        Ok(path)
    }
}

impl Object {
    fn open(path: &Path) -> Result<Object, Error> {
        let file = File::open(path).map_err(|error| match error.kind() {
            // A name too long for the file system was never put.
            ErrorKind::NotFound | ErrorKind::InvalidFilename => Error::NoSuchKey,
            _ => error.into(),
        })?;
        let metadata = file.metadata()?;
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        (&mut reader).take(HEAD_BYTES_MAX).read_until(b'\n', &mut line)?;
        let head = serde_json::from_slice(&line).map_err(io::Error::from)?;
        let len = metadata.len() - line.len() as u64;
        Ok(Object { head, modified: metadata.modified()?, len, reader })
    }

    /// The bytes in `range`, which must lie within the object.
    pub(super) fn read(mut self, range: Range<u64>) -> Result<Vec<u8>, Error> {
        let expected = range.end - range.start;
        let capacity = usize::try_from(expected).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(capacity);
        self.reader.seek_relative(i64::try_from(range.start).map_err(io::Error::other)?)?;
        self.reader.take(expected).read_to_end(&mut bytes)?;
        if bytes.len() < capacity {
            return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
        }
        Ok(bytes)
    }
}

fn write(path: &Path, line: &[u8], bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(line)?;
    file.write_all(bytes)
}

fn make_parents(path: &Path) -> Result<(), Error> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).or_else(|error| match error.kind() {
        // A delete took a directory away half-way; the caller tries again.
        ErrorKind::NotFound => Ok(()),
        ErrorKind::InvalidFilename => Err(Error::KeyTooLong),
        _ => Err(error.into()),
    })
}

fn encode(segment: &str) -> Result<String, Error> {
    match segment {
        "." | ".." => return Err(Error::KeyEscapes),
        "" => return Ok(EMPTY_SEGMENT.to_owned()),
        _ => {}
    }
    let mut encoded = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'=' => encoded.push(byte.into()),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    Ok(encoded)
}

/// The segment that a directory entry stands for, and whether it is an object's last. None for what
/// this store has not put there.
fn decode(entry: &DirEntry) -> Option<(String, bool)> {
    let name = entry.file_name().into_string().ok()?;
    let (encoded, is_object) = match name.strip_suffix(OBJECT_SUFFIX) {
        Some(encoded) => (encoded, true),
        None => (name.as_str(), false),
    };
    if encoded == EMPTY_SEGMENT {
        return Some((String::new(), is_object));
    }
    let mut parts = encoded.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    Some((String::from_utf8(bytes).ok()?, is_object))
}
