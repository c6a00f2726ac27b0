//! One HTTP request and its answer, without judgement of the answer: TLS, times, counting.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use ureq::http::{HeaderMap, Uri, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::Options;
use super::cause::Cause;
use super::patience::Timing;
use crate::error::NoAnswer;

/// What is told of an error's text at most.
const SAID: usize = 300;
/// Bytes read of the answer that tells an error.
const MAX_SAID: u64 = 16 << 10;

/// Where registries' own certificates lie, in a folder of the host's name.
const CERTIFICATES: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

/// Sends requests.
#[derive(Debug)]
pub(super) struct Http {
    agent: Agent,
    transferred: Arc<AtomicU64>,
    timing: Timing,
    /// Whether any answer has come yet: from then on a refused connection is a passing one.
    reached: AtomicBool,
}

/// An answer whose body is still to come.
pub(super) struct Response {
    pub(super) url: Uri,
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    /// The length of the body, if it is told.
    pub(super) len: Option<u64>,
    pub(super) body: Box<dyn Read + Send>,
}

impl Http {
    pub(super) fn new(host: &str, options: &Options) -> Self {
        let timing = &options.timing;
        let tls = TlsConfig::builder()
            .root_certs(roots(host))
            .disable_verification(options.insecure)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("strata/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(timing.connect))
            .timeout_connect(Some(timing.connect))
            .timeout_send_request(Some(timing.idle))
            .timeout_recv_response(Some(timing.idle))
            .timeout_per_read(Some(timing.idle))
            .timeout_per_write(Some(timing.idle))
            .tls_config(tls);
        if is_loopback(host) {
            // No proxy of the environment's reaches what is on this machine.
            config = config.proxy(None);
        }
        let agent = config.build().into();
        Self {
            agent,
            transferred: Arc::default(),
            timing: timing.clone(),
            reached: AtomicBool::new(false),
        }
    }

    /// Bytes of bodies received.
    pub(super) fn transferred(&self) -> u64 {
        self.transferred.load(Ordering::Relaxed)
    }

    /// Whether an answer has ever come.
    pub(super) fn has_reached(&self) -> bool {
        self.reached.load(Ordering::Relaxed)
    }

    pub(super) fn get(&self, url: &Uri, headers: &[(&str, &str)]) -> Result<Response, Cause> {
        let mut request = self.agent.get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.answer(url, request.call())
    }

    pub(super) fn post_form(&self, url: &Uri, form: &[(&str, &str)]) -> Result<Response, Cause> {
        let form = form.iter().copied();
        self.answer(url, self.agent.post(url).send_form(form))
    }

    fn answer(
        &self,
        url: &Uri,
        answer: Result<ureq::http::Response<Body>, ureq::Error>,
    ) -> Result<Response, Cause> {
        let answer = answer.map_err(|error| transport(url, &error))?;
        self.reached.store(true, Ordering::Relaxed);
        let (parts, body) = answer.into_parts();
        let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let len = text(header::CONTENT_LENGTH).and_then(|text| text.parse().ok());
        let body = Counted {
            body: body.into_reader(),
            transferred: Arc::clone(&self.transferred),
            timing: self.timing.clone(),
            waited: Duration::ZERO,
            came: 0,
        };
        Ok(Response {
            url: url.clone(),
            status: parts.status.as_u16(),
            headers: parts.headers,
            len,
            body: Box::new(body),
        })
    }
}

impl Response {
    pub(super) fn host(&self) -> String {
        host(&self.url)
    }

    /// A header's text, if it is there and is text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The pause that the server asks for (RFC 9110, "Retry-After"): in seconds, or until a time by its
    /// own clock.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let said = self.header("retry-after")?.trim();
        if let Ok(seconds) = said.parse() {
            return Some(Duration::from_secs(seconds));
        }
        let time = |text| rfc2822::parse(text).ok().map(|time| time.timestamp());
        let until = time(said)?;
        let now = self.header("date").and_then(time).unwrap_or_else(Timestamp::now);
        // What has passed is no pause.
        Some(Duration::try_from(until.duration_since(now)).unwrap_or_default())
    }

    /// The whole body, which may be of `most` bytes.
    pub(super) fn read(self, most: u64) -> Result<Vec<u8>, Cause> {
        let (host, said) = (self.host(), self.len);
        let wanted = said.unwrap_or(most);
        let too_long = |found| Cause::Length { host: host.clone(), wanted: most, found };
        if wanted > most {
            return Err(too_long(wanted));
        }
        let mut bytes = vec![];
        let read = self.body.take(most + 1).read_to_end(&mut bytes);
        let found = bytes.len() as u64;
        if let Err(error) = read {
            return Err(read_failed(
                &host,
                &error,
                said.map_or(0, |said| said.saturating_sub(found)),
            ));
        }
        match said {
            _ if found > most => Err(too_long(found)),
            Some(said) if found < said => Err(Cause::Cut { host, missing: said - found }),
            _ => Ok(bytes),
        }
    }

    /// The answer as an error: its status, and what the server says about it (OCI distribution
    /// specification, "Error Codes").
    pub(super) fn into_status(self) -> Cause {
        #[derive(serde::Deserialize)]
        struct Said {
            errors: Vec<One>,
        }
        #[derive(serde::Deserialize)]
        struct One {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let (host, status) = (self.host(), self.status);
        let reason = ureq::http::StatusCode::from_u16(status).ok();
        let reason = reason.and_then(|status| status.canonical_reason()).unwrap_or_default();
        let mut body = vec![];
        // An error of the error is not told.
        let _ = self.body.take(MAX_SAID).read_to_end(&mut body);
        let said = serde_json::from_slice::<Said>(&body)
            .ok()
            .and_then(|said| said.errors.into_iter().next());
        let detail = match said {
            Some(One { code, message }) if message.is_empty() => code,
            Some(One { message, .. }) => message,
            None => String::new(),
        };
        let detail: String = detail.chars().take(SAID).collect();
        let said = match (reason, &*detail) {
            ("", "") => String::new(),
            (reason, "") => format!(" {reason}"),
            ("", detail) => format!(": {detail}"),
            (reason, detail) => format!(" {reason}: {detail}"),
        };
        Cause::Status { host, status, said }
    }
}

/// A body whose bytes are counted, and which fails once they come too slowly. Only the time that is
/// spent waiting for them counts: whoever reads may take its own.
struct Counted<R> {
    body: R,
    transferred: Arc<AtomicU64>,
    timing: Timing,
    waited: Duration,
    /// Bytes that came in that time.
    came: u64,
}

/// Bytes come too slowly.
#[derive(Debug, thiserror::Error)]
#[error("less than {0} bytes a second")]
struct TooSlow(u64);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let began = Instant::now();
        let read = self.body.read(buf)?;
        self.waited += began.elapsed();
        self.came += read as u64;
        self.transferred.fetch_add(read as u64, Ordering::Relaxed);
        if self.waited >= self.timing.idle {
            let least = self.timing.slowest as f64 * self.waited.as_secs_f64();
            if (self.came as f64) < least && read > 0 {
                return Err(std::io::Error::other(TooSlow(self.timing.slowest)));
            }
            (self.waited, self.came) = (Duration::ZERO, 0);
        }
        Ok(read)
    }
}

/// A failure while a body came.
pub(super) fn read_failed(host: &str, error: &std::io::Error, missing: u64) -> Cause {
    let host = host.to_owned();
    if let Some(&TooSlow(least)) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
        return Cause::Slow { host, least };
    }
    match error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
        Some(ureq::Error::Timeout(_)) => {
            Cause::Transport { host, why: "is silent".into(), tls: false }
        }
        Some(ureq::Error::Io(_)) | None => Cause::Cut { host, missing },
        Some(other) => Cause::Transport { host, why: format!("breaks off: {other}"), tls: false },
    }
}

/// A request that got no answer.
fn transport(url: &Uri, error: &ureq::Error) -> Cause {
    let NoAnswer { why, is_untrusted: tls } = NoAnswer::of(error);
    Cause::Transport { host: host(url), why, tls }
}

/// The host of a URL, with its port if it has one.
pub(super) fn host(url: &Uri) -> String {
    let authority = url.authority().map_or("", |authority| authority.as_str());
    // What is before an @ would be a password.
    authority.rsplit('@').next().unwrap_or_default().to_owned()
}

/// Whether a host, with or without a port, is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost"
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The certificates that are trusted: the system's, and those of the registry's own.
fn roots(host: &str) -> RootCerts {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        log::debug!("certificates of the system: {error}");
    }
    let mut roots = found.certs;
    let folders = CERTIFICATES.map(|folder| PathBuf::from(folder).join(host));
    for folder in folders {
        // Most registries have none of their own.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "crt") {
                match CertificateDer::pem_file_iter(entry.path()) {
                    Ok(found) => roots.extend(found.flatten()),
                    Err(error) => log::warn!("{}: {error}", entry.path().display()),
                }
            }
        }
    }
    let roots: Vec<_> = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
    RootCerts::new_with_certs(&roots)
}
