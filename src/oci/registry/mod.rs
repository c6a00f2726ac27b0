//! Registries: manifests and blobs over HTTP (OCI distribution specification 1.1, "Pull").
//!
//! One [`Registry`] is for one image. Every answer has one budget of tries and time, whatever goes
//! wrong; credentials go only where they belong, are never shown, and travel encrypted unless the
//! registry is on this machine or plain HTTP was asked for.

mod auth;
mod blob;
mod cause;
mod credentials;
mod http;
mod patience;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use ureq::http::Uri;

use super::blob::Blob;
use super::digest::{Algorithm, Digest};
use super::image::Content;
use super::manifest::{Descriptor, MAX_MANIFEST, media_type};
use super::reference::Name;
use crate::error::{Error, Result, ResultExt};
use auth::Challenge;
use blob::RemoteBlob;
use cause::Cause;
use credentials::Credentials;
use http::{Http, Response, host, is_loopback};

pub use credentials::auth_files;
use patience::Patience;
pub use patience::Timing;

/// Redirects that are followed for one answer.
const MAX_REDIRECTS: usize = 5;
/// Times that a redirect is asked for anew because where it led refused.
const MAX_RENEWALS: u32 = 2;

/// How a registry is talked to.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether its certificate may be anyone's, and plain HTTP will do. On this machine plain HTTP
    /// always does.
    pub insecure: bool,
    /// The files that credentials are looked for in.
    pub auth_files: Vec<PathBuf>,
    /// How long and how often is tried.
    pub timing: Timing,
}

impl Default for Options {
    /// As podman and docker are set up here.
    fn default() -> Self {
        let auth_files = auth_files(|name| std::env::var_os(name));
        Self { insecure: false, auth_files, timing: Timing::default() }
    }
}

/// The repository of one image.
#[derive(Debug)]
pub struct Registry {
    name: Name,
    options: Options,
    http: Http,
    /// Plain HTTP or not; known once the registry has answered.
    base: OnceLock<String>,
    credentials: OnceLock<Option<Credentials>>,
    authorization: Mutex<Option<Secret>>,
}

/// The value of an `Authorization` header. Never shown.
#[derive(Clone, PartialEq, Eq)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// What is asked for.
struct Request<'a> {
    url: Uri,
    accept: Option<&'a str>,
    /// As in a `Range` header.
    range: Option<&'a str>,
}

impl Registry {
    pub(super) fn new(name: &Name, options: &Options) -> Result<Arc<Self>> {
        let host = server(&name.host);
        Ok(Arc::new(Self {
            name: name.clone(),
            options: options.clone(),
            http: Http::new(host, options),
            base: OnceLock::new(),
            credentials: OnceLock::new(),
            authorization: Mutex::new(None),
        }))
    }

    /// Bytes of all answers so far, without their headers.
    pub fn transferred(&self) -> u64 {
        self.http.transferred()
    }

    /// The manifest or index that the name means, its type as announced, and its digest.
    pub(super) fn top(&self) -> Result<(Vec<u8>, Option<String>, Digest)> {
        self.document(&self.name.reference(), self.name.digest.as_ref())
    }

    /// What the registry lists as referring to a manifest, of that type of artifact.
    pub(super) fn referrers(&self, manifest: &Digest, artifact_type: &str) -> Result<Vec<u8>> {
        let mut patience = Patience::new(&self.options.timing);
        let kind = artifact_type.replace('+', "%2B");
        loop {
            let path = format!("referrers/{manifest}?artifactType={kind}");
            let url = self.url(&path, &mut patience)?;
            let request = Request { url, accept: Some(media_type::OCI_INDEX), range: None };
            match self.fetch(request, &mut patience)?.read(MAX_MANIFEST) {
                Ok(bytes) => return Ok(bytes),
                Err(cause @ Cause::Length { .. }) => return Err(cause.into()),
                Err(cause) => patience.again(cause, None)?,
            }
        }
    }

    /// The manifest or index of that tag or digest, its type as announced, and its digest.
    pub(super) fn document(
        &self,
        reference: &str,
        digest: Option<&Digest>,
    ) -> Result<(Vec<u8>, Option<String>, Digest)> {
        let accept = [
            media_type::OCI_INDEX,
            media_type::OCI_MANIFEST,
            media_type::DOCKER_INDEX,
            media_type::DOCKER_MANIFEST,
        ];
        let accept = accept.join(", ");
        let mut patience = Patience::new(&self.options.timing);
        let (bytes, announced, said) = loop {
            let url = self.url(&format!("manifests/{reference}"), &mut patience)?;
            let request = Request { url, accept: Some(&accept), range: None };
            let response = self.fetch(request, &mut patience)?;
            let text = |name| response.header(name).map(str::to_owned);
            let (announced, said) = (text("content-type"), text("docker-content-digest"));
            match response.read(MAX_MANIFEST) {
                Ok(bytes) => break (bytes, announced, said),
                Err(cause @ Cause::Length { .. }) => return Err(cause.into()),
                Err(cause) => patience.again(cause, None)?,
            }
        };
        // What the registry says about itself must hold too: a digest that does not parse says nothing.
        let said = said.and_then(|said| said.parse::<Digest>().ok());
        for digest in digest.into_iter().chain(&said) {
            digest.check("manifest", &bytes)?;
        }
        let found = digest.cloned().unwrap_or_else(|| Digest::of(Algorithm::Sha256, &bytes));
        Ok((bytes, announced, found))
    }

    /// The URL of something in the repository.
    fn url(&self, path: &str, patience: &mut Patience) -> Result<Uri> {
        let base = self.base(patience)?;
        let url = format!("{base}/v2/{}/{path}", self.name.repository);
        url.parse().map_err(|_| Error::new(crate::error::Kind::Usage, format!("no URL: {url}")))
    }

    /// `https://HOST`, or plain HTTP where that is allowed and the registry speaks nothing else.
    fn base(&self, patience: &mut Patience) -> Result<&str> {
        if let Some(base) = self.base.get() {
            return Ok(base);
        }
        let server = server(&self.name.host);
        let encrypted = format!("https://{server}");
        let base = match self.allows_plain(server) {
            false => encrypted,
            true => loop {
                let url: Uri = format!("{encrypted}/v2/").parse().map_err(|_| {
                    Error::new(crate::error::Kind::Usage, format!("no host: {server}"))
                })?;
                match self.http.get(&url, &[]) {
                    Ok(_) => break encrypted,
                    // A certificate that is not trusted is no reason to go without any.
                    Err(cause @ Cause::Transport { tls: true, .. }) if is_certificate(&cause) => {
                        return Err(cause.into());
                    }
                    Err(_) => {}
                }
                let plain = format!("http://{server}");
                let url: Uri = format!("{plain}/v2/").parse().map_err(|_| {
                    Error::new(crate::error::Kind::Usage, format!("no host: {server}"))
                })?;
                match self.http.get(&url, &[]) {
                    Ok(_) => break plain,
                    Err(cause) if self.is_passing(&cause) => patience.again(cause, None)?,
                    Err(cause) => return Err(cause.into()),
                }
            },
        };
        Ok(self.base.get_or_init(|| base))
    }

    fn allows_plain(&self, host: &str) -> bool {
        self.options.insecure || is_loopback(host)
    }

    /// Asks until an answer with contents comes, within the budget: follows redirects, says who
    /// asks, and waits where that helps.
    fn fetch(&self, request: Request<'_>, patience: &mut Patience) -> Result<Response> {
        let origin = host(&request.url);
        let mut url = request.url.clone();
        let (mut redirects, mut renewals, mut refusals) = (0, 0, 0);
        loop {
            let at_home = host(&url) == origin && url.scheme() == request.url.scheme();
            // Only the registry itself is told who asks.
            let authorization = at_home.then(|| self.authorization.lock().clone()).flatten();
            let response = match self.get(&url, &request, authorization.as_ref()) {
                Ok(response) => response,
                Err(cause) if self.is_passing(&cause) => {
                    patience.again(cause, None)?;
                    url = request.url.clone();
                    redirects = 0;
                    continue;
                }
                Err(cause) => return Err(cause.into()),
            };
            match response.status {
                200 | 206 => return Ok(response),
                301 | 302 | 303 | 307 | 308 => {
                    redirects += 1;
                    if redirects > MAX_REDIRECTS {
                        let host = response.host();
                        return Err(Cause::Redirects { host, most: MAX_REDIRECTS }.into());
                    }
                    url = self.redirected(&response)?;
                }
                401 if at_home && refusals < 2 => {
                    refusals += 1;
                    self.authorize(response, authorization.as_ref(), patience)?;
                }
                // A signed URL that has run out.
                400 | 401 | 403 | 404 | 410 if !at_home && renewals < MAX_RENEWALS => {
                    renewals += 1;
                    patience.again(response.into_status(), None)?;
                    url = request.url.clone();
                    redirects = 0;
                }
                408 | 429 | 500 | 502 | 503 | 504 => {
                    let asked = response.retry_after();
                    patience.again(response.into_status(), asked)?;
                    url = request.url.clone();
                    redirects = 0;
                }
                _ => return Err(response.into_status().into()),
            }
        }
    }

    fn get(
        &self,
        url: &Uri,
        request: &Request<'_>,
        authorization: Option<&Secret>,
    ) -> Result<Response, Cause> {
        let mut headers = vec![];
        headers.extend(request.accept.map(|accept| ("accept", accept)));
        headers.extend(request.range.map(|range| ("range", range)));
        headers.extend(authorization.map(|secret| ("authorization", &*secret.0)));
        self.http.get(url, &headers)
    }

    /// Whether a request that got no answer may get one the next time.
    fn is_passing(&self, cause: &Cause) -> bool {
        match cause {
            Cause::Transport { tls: true, .. } => false,
            // A wrong name or a closed port is told at once; what has answered before comes back.
            Cause::Transport { why, .. } => {
                self.http.has_reached()
                    || !["refused", "lookup", "is no host"].iter().any(|word| why.contains(word))
            }
            _ => true,
        }
    }

    /// Where a redirect leads.
    fn redirected(&self, response: &Response) -> Result<Uri, Cause> {
        let from = response.host();
        let nowhere = || Cause::Location { host: from.clone() };
        let location = response.header("location").ok_or_else(nowhere)?;
        let scheme = response.url.scheme_str().unwrap_or("https");
        let absolute = match location {
            rooted if rooted.starts_with("//") => format!("{scheme}:{rooted}"),
            rooted if rooted.starts_with('/') => format!("{scheme}://{from}{rooted}"),
            whole => whole.to_owned(),
        };
        let url: Uri = absolute.parse().map_err(|_| nowhere())?;
        self.check_encryption(&from, &url)?;
        Ok(url)
    }

    /// Whether a URL that the registry sends us to is encrypted, or need not be.
    fn check_encryption(&self, from: &str, url: &Uri) -> Result<(), Cause> {
        let to = host(url);
        match url.scheme_str() {
            Some("https") => Ok(()),
            Some("http") if self.allows_plain(&to) => Ok(()),
            Some("http") => Err(Cause::Plain { from: from.into(), to }),
            _ => Err(Cause::Location { host: from.into() }),
        }
    }

    /// Answers the challenge in `response`, so that the next request says who asks.
    fn authorize(
        &self,
        response: Response,
        used: Option<&Secret>,
        patience: &mut Patience,
    ) -> Result<()> {
        let challenge = Challenge::of(&response)?;
        if *self.authorization.lock() != used.cloned() {
            // Another thread has been given a new token meanwhile.
            return Ok(());
        }
        let credentials = match self.credentials.get() {
            Some(credentials) => credentials,
            None => {
                let found = credentials::find(&self.name, &self.options.auth_files)?;
                self.credentials.get_or_init(|| found)
            }
        };
        let header = match challenge {
            Challenge::Basic => match credentials.as_ref().and_then(Credentials::basic) {
                // The registry refused just these.
                Some(header) if used.is_some_and(|used| used.0 == header) => None,
                header => header,
            },
            Challenge::Bearer { realm, service, scope } => {
                let scope =
                    scope.unwrap_or_else(|| format!("repository:{}:pull", self.name.repository));
                let token =
                    self.token(&realm, service.as_deref(), &scope, credentials.as_ref(), patience);
                Some(format!("Bearer {}", token?))
            }
        };
        match header {
            Some(header) => {
                *self.authorization.lock() = Some(Secret(header));
                Ok(())
            }
            None => Err(response.into_status().into()),
        }
    }

    fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        credentials: Option<&Credentials>,
        patience: &mut Patience,
    ) -> Result<String> {
        let form = credentials.and_then(|identity| auth::form(identity, service, scope));
        let registry = &self.name.host;
        let url = auth::token_url(realm, service, scope, form.is_none());
        let url = url.ok_or_else(|| Cause::Location { host: registry.clone() })?;
        self.check_encryption(registry, &url)?;
        let basic = credentials.and_then(Credentials::basic);
        loop {
            let answer = match &form {
                Some(form) => self.http.post_form(&url, form),
                None => {
                    let headers: Vec<_> =
                        basic.iter().map(|basic| ("authorization", &**basic)).collect();
                    self.http.get(&url, &headers)
                }
            };
            let (cause, asked) = match answer {
                Ok(response) if response.status == 200 => {
                    let host = response.host();
                    match response.read(auth::MAX_TOKEN) {
                        Ok(bytes) => return Ok(auth::token_in(&host, &bytes)?),
                        Err(cause) => (cause, None),
                    }
                }
                Ok(response) => {
                    let (status, asked) = (response.status, response.retry_after());
                    let cause = response.into_status();
                    if !matches!(status, 408 | 429 | 500 | 502 | 503 | 504) {
                        let told = match credentials {
                            Some(_) => "refuses the credentials that are kept for it",
                            None => "gives a token only to who has logged in",
                        };
                        let error = Error::from(cause).within(format!("{} {told}", self.name.host));
                        return Err(match status {
                            401 | 403 => {
                                error.with_hint(format!("log in: skopeo login {registry}"))
                            }
                            _ => error,
                        });
                    }
                    (cause, asked)
                }
                Err(cause) if self.is_passing(&cause) => (cause, None),
                Err(cause) => return Err(cause.into()),
            };
            patience.again(cause, asked)?;
        }
    }
}

impl Content for Arc<Registry> {
    fn manifest(&self, manifest: &Descriptor) -> Result<Vec<u8>> {
        let digest = &manifest.digest;
        let read = self.document(&digest.to_string(), Some(digest));
        let (bytes, _, _) = read.within(|| format!("manifest {digest}"))?;
        super::blob::check_size("manifest", manifest, bytes.len() as u64)?;
        Ok(bytes)
    }

    fn blob(&self, _: &'static str, part: &Descriptor) -> Result<Arc<dyn Blob>> {
        Ok(Arc::new(RemoteBlob::new(Arc::clone(self), part)))
    }
}

/// Where the registry of that name answers.
fn server(host: &str) -> &str {
    match host {
        "docker.io" => "registry-1.docker.io",
        host => host,
    }
}

/// Whether it is the certificate that is wrong, and not that the other side speaks no TLS at all.
fn is_certificate(cause: &Cause) -> bool {
    matches!(cause, Cause::Transport { why, .. } if why.contains("certificate"))
}

#[cfg(test)]
mod tests;
