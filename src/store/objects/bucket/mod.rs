//! Objects in a bucket of object storage that speaks S3: AWS, Ceph RGW, Garage and others.
//!
//! Nothing here relies on what a server may lack, such as writes on a condition: an object is written whole under
//! a name that its contents give it.

mod cause;
mod profile;
mod transport;

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig,
    StaticCredentialProvider,
};
use parking_lot::Mutex;
use ureq::http::Uri;

use super::{Listed, Object, Objects, Sort};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::store::id::Id;
use transport::{Transport, is_loopback};

pub use cause::Cause;
pub use transport::Traffic;

/// Bytes up to which an object is sent by one request.
const ONE_PUT: usize = 64 << 20;
/// Bytes of a part of a larger one at least. A server takes 10,000 parts.
const PART: usize = 16 << 20;
/// Parts that are sent at the same time.
const PARTS: usize = 4;
/// How long is waited for a server that does not move, at most.
const MOST_PATIENCE: Duration = Duration::from_secs(20);
/// The pause before something is tried again at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How a bucket is reached. What is not said, the environment says.
#[derive(Debug, Clone)]
pub struct BucketOptions {
    /// The URL of the server; AWS's if nobody says another.
    pub endpoint: Option<String>,
    /// The region it is in.
    pub region: Option<String>,
    /// Which profile of the AWS configuration to take credentials from.
    pub profile: Option<String>,
    /// The file of credentials, if it is not `~/.aws/credentials`.
    pub credentials: Option<PathBuf>,
    /// Whether the bucket is named in the path, not in the name of the host.
    pub path_style: Option<bool>,
    /// Whether plain HTTP is taken elsewhere than on this machine.
    pub allow_http: bool,
    /// How long one operation is tried.
    pub timeout: Duration,
    /// The folder where what was read is kept; nowhere, if `None`.
    pub cache_dir: Option<PathBuf>,
    /// Bytes that may be kept there.
    pub cache_limit: u64,
    /// What was asked for and came.
    pub traffic: Arc<Traffic>,
}

impl BucketOptions {
    /// How long one operation is tried, if nobody says otherwise.
    pub const TIMEOUT: Duration = Duration::from_secs(60);
    /// Bytes that are kept, if nobody says otherwise.
    pub const CACHE_LIMIT: u64 = 8 << 30;
}

impl Default for BucketOptions {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            profile: None,
            credentials: None,
            path_style: None,
            allow_http: false,
            timeout: Self::TIMEOUT,
            cache_dir: None,
            cache_limit: Self::CACHE_LIMIT,
            traffic: Arc::default(),
        }
    }
}

/// The objects of a bucket whose names begin with a prefix.
#[derive(Debug)]
pub struct Bucket {
    s3: AmazonS3,
    name: String,
    prefix: String,
    timeout: Duration,
    traffic: Arc<Traffic>,
    /// The lengths of objects that a listing told of: they never change.
    lens: Mutex<HashMap<Object, u64>>,
    is_told: AtomicBool,
}

impl Bucket {
    /// The store in the bucket `name` below `prefix`, which need not hold one yet. No request is made.
    ///
    /// # Errors
    /// [`Kind::Usage`] for options that cannot be, [`Kind::Refused`] for plain HTTP to another machine.
    pub fn new(name: &str, prefix: &str, options: &BucketOptions) -> Result<Self> {
        let shown = super::Location::Bucket { name: name.to_owned(), prefix: prefix.to_owned() };
        let settings = profile::Settings::find(options)?;
        let endpoint = settings.endpoint.as_deref().map(|url| endpoint(url, options.allow_http));
        let endpoint = endpoint.transpose()?;
        // A tenth of the time for each try, so that several fit.
        let patience = (options.timeout / 10).clamp(Duration::from_millis(500), MOST_PATIENCE);
        let transport = Transport::new(endpoint.as_ref(), patience, Arc::clone(&options.traffic));
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(name)
            .with_http_connector(transport)
            .with_allow_http(true)
            .with_disable_bulk_delete(true)
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() });
        let is_aws = settings.endpoint.is_none();
        // A certificate does not cover a name with more dots in it.
        let path_style = options.path_style.unwrap_or(!is_aws || name.contains('.'));
        builder = builder.with_virtual_hosted_style_request(!path_style);
        if let Some(url) = settings.endpoint {
            let url = match endpoint.as_ref().and_then(Uri::authority) {
                Some(host) if !path_style => {
                    url.replacen(host.as_str(), &format!("{name}.{host}"), 1)
                }
                _ => url,
            };
            // The one of the environment's for S3 alone would come first.
            builder =
                builder.with_endpoint(url.clone()).with_config(AmazonS3ConfigKey::S3Endpoint, url);
        }
        if let Some(region) = settings.region {
            builder = builder.with_region(region);
        }
        if let Some(keys) = settings.keys {
            let profile::Keys { id: key_id, secret: secret_key, token } = keys;
            let keys = AwsCredential { key_id, secret_key, token };
            builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(keys)));
        }
        let s3 = builder.build().map_err(|error| {
            Error::new(Kind::Usage, error.to_string()).within(shown.to_string())
        })?;
        Ok(Self {
            s3,
            name: shown.to_string(),
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            timeout: options.timeout,
            traffic: Arc::clone(&options.traffic),
            lens: Mutex::default(),
            is_told: AtomicBool::new(false),
        })
    }

    /// The same for a new store.
    ///
    /// # Errors
    /// [`Kind::NotEmpty`] if an object lies there, and the server's.
    pub fn make(name: &str, prefix: &str, options: &BucketOptions) -> Result<Self> {
        let bucket = Self::new(name, prefix, options)?;
        let page = bucket.page(&bucket.prefix, None, Some(1));
        let page = page.map_err(Error::from).within(|| bucket.name.clone())?;
        if !page.result.objects.is_empty() {
            let error = Error::new(Kind::NotEmpty, "is not empty").within(bucket.name.clone());
            return Err(error.with_hint("a new store needs a bucket, or a prefix, of its own"));
        }
        Ok(bucket)
    }

    /// The length of an object, and what of it lies in `range`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it is not there, [`Kind::Corrupt`] if it ends before the range, and the server's.
    pub(super) fn read_up_to(&self, object: Object, range: Range<u64>) -> Result<(u64, Bytes)> {
        let end = range.end;
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        let got = self.try_again(object, async |path| {
            let got = self.s3.get_opts(path, options.clone()).await?;
            Ok((got.meta.size, got.bytes().await?))
        });
        let got = got.or_else(|cause| match cause {
            // Nothing of the range is there.
            Cause::Status { status: 416, .. } => Err(Cause::Ends { len: self.head(object)?, end }),
            cause => Err(cause),
        });
        let got = got.map_err(Error::from).within(|| self.told_of(object, "get"))?;
        self.lens.lock().insert(object, got.0);
        Ok(got)
    }

    /// Whether an object was listed, written or read, and not removed here since.
    pub(super) fn knows(&self, object: Object) -> bool {
        self.lens.lock().contains_key(&object)
    }

    /// Says, once and to who wants to know, what was asked for and what came.
    pub(super) fn tell(&self) {
        if !self.is_told.swap(true, Ordering::Relaxed) {
            log::info!("{}: {}", self.name, self.traffic);
        }
    }

    fn told_of(&self, object: Object, what: &str) -> String {
        format!("{}/{object}: {what}", self.name)
    }

    fn path(&self, object: Object) -> Result<Path, object_store::Error> {
        Ok(Path::parse(format!("{}{object}", self.prefix))?)
    }

    /// Runs what asks for an object.
    fn try_again<T>(
        &self,
        object: Object,
        run: impl AsyncFn(&Path) -> Result<T, object_store::Error>,
    ) -> Result<T, Cause> {
        let path = self.path(object).map_err(|error| Cause::Other(error.to_string()))?;
        self.again(async || run(&path).await)
    }

    /// Runs something until it goes well, cannot, or its time is over.
    fn again<T>(&self, run: impl AsyncFn() -> Result<T, object_store::Error>) -> Result<T, Cause> {
        let began = Instant::now();
        let mut tries = 0;
        loop {
            let cause = match wait(run()) {
                Ok(done) => return Ok(done),
                Err(error) => told(&error),
            };
            tries += 1;
            let asked = match &cause {
                Cause::Status { wait, .. } => *wait,
                _ => None,
            };
            let (first, most) = PAUSE;
            let pause = first.saturating_mul(1 << tries.min(16)).min(most);
            // Those who were turned away together shall not come back together.
            let jitter = (RandomState::new().hash_one(tries) % 512) as f64 / 1024.0;
            let pause = asked.unwrap_or_default().max(pause / 2 + pause.mul_f64(jitter));
            if !cause.may_pass() || began.elapsed() + pause > self.timeout {
                return Err(match tries {
                    1 => cause,
                    tries => Cause::Spent { tries, last: Box::new(cause) },
                });
            }
            log::debug!("{}: {cause}; trying again in {pause:?}", self.name);
            thread::sleep(pause);
            self.traffic.again.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A page of a listing.
    fn page(
        &self,
        prefix: &str,
        token: Option<String>,
        most: Option<usize>,
    ) -> Result<object_store::list::PaginatedListResult, Cause> {
        let prefix = Some(prefix).filter(|prefix| !prefix.is_empty());
        self.again(async || {
            let page_token = token.clone();
            let options = PaginatedListOptions { page_token, max_keys: most, ..Default::default() };
            self.s3.list_paginated(prefix, options).await
        })
    }

    /// Sends an object in parts, several at a time.
    fn put_parts(&self, object: Object, bytes: &[u8]) -> Result<(), Cause> {
        let id = self.try_again(object, async |path| self.s3.create_multipart(path).await)?;
        let size = PART.max(bytes.len().div_ceil(9_000));
        let parts: Vec<&[u8]> = bytes.chunks(size).collect();
        let next = AtomicUsize::new(0);
        let sent: Mutex<Vec<Option<PartId>>> = Mutex::new(vec![None; parts.len()]);
        let failed = Mutex::new(None);
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(part) = parts.get(number) else { return };
                let payload = PutPayload::from(part.to_vec());
                let put = self.try_again(object, async |path| {
                    self.s3.put_part(path, &id, number, payload.clone()).await
                });
                match put {
                    Ok(part) => {
                        if let Some(slot) = sent.lock().get_mut(number) {
                            *slot = Some(part);
                        }
                    }
                    Err(cause) => {
                        failed.lock().get_or_insert(cause);
                        next.store(parts.len(), Ordering::Relaxed);
                        return;
                    }
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..PARTS.min(parts.len()) {
                scope.spawn(work);
            }
            work();
        });
        let sent: Option<Vec<PartId>> = sent.into_inner().into_iter().collect();
        let done = match (failed.into_inner(), sent) {
            (None, Some(sent)) => self.try_again(object, async |path| {
                self.s3.complete_multipart(path, &id, sent.clone()).await.map(drop)
            }),
            (failed, _) => Err(failed.unwrap_or_else(|| Cause::Other("a part is missing".into()))),
        };
        if let Err(cause) = done {
            // An answer that was lost may have been a good one: the second time there are no such parts.
            let is_whole =
                matches!(&cause, Cause::Spent { .. } | Cause::Status { status: 404, .. })
                    && self.head(object).is_ok_and(|len| len == bytes.len() as u64);
            if is_whole {
                return Ok(());
            }
            // What is left of it costs room until somebody looks.
            if let Ok(path) = self.path(object) {
                let _ = wait(self.s3.abort_multipart(&path, &id));
            }
            return Err(cause);
        }
        Ok(())
    }

    fn head(&self, object: Object) -> Result<u64, Cause> {
        let found = self.try_again(object, async |path| self.s3.head(path).await)?;
        Ok(found.size)
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.tell();
    }
}

impl Objects for Bucket {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn len(&self, object: Object) -> Result<u64> {
        if let Some(&len) = self.lens.lock().get(&object) {
            return Ok(len);
        }
        let len = self.head(object).map_err(Error::from);
        let len = len.within(|| self.told_of(object, "head"))?;
        self.lens.lock().insert(object, len);
        Ok(len)
    }

    fn read_at(&self, object: Object, offset: u64, buf: &mut [u8]) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let end = offset.saturating_add(buf.len() as u64);
        let (len, bytes) = self.read_up_to(object, offset..end)?;
        if bytes.len() != buf.len() {
            return Err(Error::from(Cause::Ends { len, end }).within(self.told_of(object, "get")));
        }
        buf.copy_from_slice(&bytes);
        Ok(())
    }

    fn put(&self, object: Object, parts: &[&[u8]]) -> Result<()> {
        self.put_owned(object, parts.concat())
    }

    fn put_owned(&self, object: Object, bytes: Vec<u8>) -> Result<()> {
        let len = bytes.len();
        let put = if len > ONE_PUT {
            self.put_parts(object, &bytes)
        } else {
            let payload = PutPayload::from(bytes);
            let put = async |path: &Path| self.s3.put(path, payload.clone()).await;
            self.try_again(object, put).map(drop)
        };
        put.map_err(Error::from).within(|| self.told_of(object, "put"))?;
        self.lens.lock().insert(object, len as u64);
        Ok(())
    }

    fn is_far(&self) -> bool {
        true
    }

    fn list(&self, sort: Sort) -> Result<Vec<Listed>> {
        let prefix = format!(
            "{}{}/",
            self.prefix,
            match sort {
                Sort::Packs => "packs",
                Sort::Indexes => "index",
                Sort::Parts => "parts",
                Sort::Snapshots => "snapshots",
                Sort::Leases => "leases",
                Sort::Condemned => "condemned",
                Sort::Keys => "keys",
                Sort::Signatures => "signatures",
                Sort::Drafts => "drafts",
            }
        );
        let mut listed = Vec::new();
        let mut token = None;
        loop {
            let page = self.page(&prefix, token, None);
            let page = page.map_err(Error::from);
            let page = page.within(|| format!("{}: list {prefix}", self.name))?;
            for found in page.result.objects {
                let name = found.location.as_ref().rsplit('/').next().unwrap_or_default();
                let Ok(id) = name.parse::<Id>() else { continue };
                listed.push(Listed { id, len: found.size, written: found.last_modified.into() });
            }
            token = page.page_token;
            if token.is_none() {
                break;
            }
        }
        let mut lens = self.lens.lock();
        // What is not listed any more is not there.
        lens.retain(|object, _| !sort.is_of(*object));
        lens.extend(listed.iter().map(|listed| (sort.object(listed.id), listed.len)));
        Ok(listed)
    }

    fn remove(&self, object: Object) -> Result<()> {
        self.lens.lock().remove(&object);
        let removed = self.try_again(object, async |path| self.s3.delete(path).await);
        match removed {
            Ok(()) | Err(Cause::Status { status: 404, .. }) => Ok(()),
            Err(cause) => Err(Error::from(cause).within(self.told_of(object, "delete"))),
        }
    }

    fn clear_unfinished(&self, _: SystemTime) -> Result<u64> {
        // Parts of what was never ended are no objects; when they go is a rule of the bucket.
        Ok(0)
    }
}

/// The URL of a server.
fn endpoint(url: &str, allow_http: bool) -> Result<Uri> {
    let wrong = || {
        Error::new(Kind::Usage, format!("\"{url}\" is no URL of a server"))
            .with_hint("as https://s3.example.org")
    };
    let parsed: Uri = url.parse().map_err(|_| wrong())?;
    let host = parsed.host().ok_or_else(wrong)?;
    match parsed.scheme_str() {
        Some("https") => Ok(parsed),
        Some("http") if allow_http || is_loopback(host) => Ok(parsed),
        Some("http") => Err(Error::new(
            Kind::Refused,
            "plain HTTP, which anybody on the way can read and change",
        )
        .within(url.to_owned())
        .with_hint("--allow-http takes it all the same")),
        _ => Err(wrong()),
    }
}

/// What an error of the other crate's tells, which is mostly ours.
fn told(error: &object_store::Error) -> Cause {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(cause) = error.downcast_ref::<Cause>() {
            return cause.clone();
        }
        next = error.source();
    }
    Cause::Other(error.to_string())
}

/// Waits on this thread. What runs here is done at once but for those who wait for another thread's
/// credentials.
fn wait<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(done) => return done,
            Poll::Pending => thread::park(),
        }
    }
}
