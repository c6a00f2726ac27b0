//! Requests and answers: what signs and names requests is the `object_store` crate's, what carries them
//! is the crate's one HTTP client. A request is carried out on the thread that asks for it.

use std::future::Future;
use std::io::{Cursor, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use ureq::http::{HeaderMap, Method, Request, Response, Uri, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, SendBody};

use super::cause::Cause;
use super::wait;
use crate::error::NoAnswer;

/// Bytes read of an answer that tells an error.
const MOST_SAID: u64 = 16 << 10;
/// Bytes of an answer at most: a page of a listing, or what is read at once.
const MOST_ANSWER: u64 = 1 << 30;
/// Connections that are kept for the next request.
const MOST_IDLE: usize = 32;
/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;
/// Bytes a second below which an answer is too slow.
const SLOWEST: u64 = 64 << 10;

/// What was asked for and what came, counted.
#[derive(Debug, Default)]
pub struct Traffic {
    /// `GET` of an object, or of a part of one.
    pub gets: AtomicU64,
    /// `GET` of a listing's page.
    pub lists: AtomicU64,
    /// `HEAD` of an object.
    pub heads: AtomicU64,
    /// `PUT` or `POST` of an object, a part of one, or what joins parts.
    pub puts: AtomicU64,
    /// `DELETE` of an object.
    pub deletes: AtomicU64,
    /// Requests that had to be made again, counted above too.
    pub again: AtomicU64,
    /// Bytes of bodies that came.
    pub received: AtomicU64,
    /// Bytes of bodies that were sent.
    pub sent: AtomicU64,
}

impl Traffic {
    /// All requests.
    pub fn requests(&self) -> u64 {
        let all = [&self.gets, &self.lists, &self.heads, &self.puts, &self.deletes];
        all.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn count(&self, request: &Request<impl Sized>) {
        let is_list = request.uri().query().is_some_and(|query| query.contains("list-type="));
        let count = match *request.method() {
            Method::GET if is_list => &self.lists,
            Method::GET => &self.gets,
            Method::HEAD => &self.heads,
            Method::DELETE => &self.deletes,
            _ => &self.puts,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

impl std::fmt::Display for Traffic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        write!(
            f,
            "{} requests: {} get, {} list, {} head, {} put, {} delete; {} made again; \
             {} bytes received, {} sent",
            self.requests(),
            get(&self.gets),
            get(&self.lists),
            get(&self.heads),
            get(&self.puts),
            get(&self.deletes),
            get(&self.again),
            get(&self.received),
            get(&self.sent),
        )
    }
}

/// Carries requests.
#[derive(Debug, Clone)]
pub(super) struct Transport {
    agent: Agent,
    traffic: Arc<Traffic>,
    /// How long is waited for a server that does not move.
    patience: Duration,
}

impl Transport {
    /// Talks to the host of `endpoint`, if one is named, and to whoever gives credentials.
    pub(super) fn new(endpoint: Option<&Uri>, patience: Duration, traffic: Arc<Traffic>) -> Self {
        let tls = TlsConfig::builder()
            .root_certs(roots())
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let connect = patience.min(Duration::from_secs(10));
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("strata/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .max_idle_connections(MOST_IDLE)
            .max_idle_connections_per_host(MOST_IDLE)
            .timeout_resolve(Some(connect))
            .timeout_connect(Some(connect))
            .timeout_send_request(Some(patience))
            .timeout_recv_response(Some(patience))
            .timeout_per_read(Some(patience))
            .timeout_per_write(Some(patience))
            .tls_config(tls);
        if endpoint.and_then(Uri::host).is_some_and(is_loopback) {
            // No proxy of the environment's reaches what is on this machine.
            config = config.proxy(None);
        }
        Self { agent: config.build().into(), traffic, patience }
    }

    fn carry(&self, request: HttpRequest) -> Result<HttpResponse, Cause> {
        let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let is_metadata = request.uri().host().is_some_and(is_link_local);
        self.traffic.count(&request);
        let is_head = request.method() == Method::HEAD;
        let (parts, body) = request.into_parts();
        let len = body.content_length() as u64;
        // They are there already: nothing is waited for.
        let body = wait(body.collect()).map_err(|error| Cause::Other(error.to_string()))?;
        let body = Cursor::new(body.to_bytes());
        let body = match has_body(&parts.method) {
            true => SendBody::from_owned_reader(body),
            // Servers refuse even an empty one.
            false => SendBody::none(),
        };
        let mut request = Request::from_parts(parts, body);
        if has_body(request.method()) {
            // Without it the body would be sent in chunks, which servers refuse, too.
            request.headers_mut().insert(header::CONTENT_LENGTH, len.into());
        }
        let mut config = self.agent.configure_request(request);
        if is_metadata {
            // Where there is none, nobody answers.
            config = config.timeout_global(Some(Duration::from_secs(2)));
        } else if len > 0 {
            let sending = Duration::from_secs(len / SLOWEST);
            config = config.timeout_global(Some(self.patience.saturating_mul(2) + sending));
        }
        let answer = self.agent.run(config.build());
        let none = || Cause::Credentials("none are set, and this machine is given none".into());
        let answer =
            answer.map_err(|error| if is_metadata { none() } else { unreached(&host, &error) })?;
        self.traffic.sent.fetch_add(len, Ordering::Relaxed);
        let (parts, body) = answer.into_parts();
        if !parts.status.is_success() && is_metadata {
            return Err(none());
        }
        if !parts.status.is_success() {
            let mut said = Vec::new();
            // An error of the error is not told.
            let _ = body.into_reader().take(MOST_SAID).read_to_end(&mut said);
            return Err(refused(parts.status.as_u16(), &parts.headers, &said));
        }
        if is_head {
            return Ok(Response::from_parts(parts, Vec::new().into()));
        }
        let said = parts.headers.get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok());
        let said = said.and_then(|len| len.parse::<u64>().ok());
        let bytes = self.read(&host, said, body.into_reader())?;
        Ok(Response::from_parts(parts, bytes.into()))
    }

    /// The whole of an answer, which is of `said` bytes if that is told.
    fn read(&self, host: &str, said: Option<u64>, mut body: impl Read) -> Result<Vec<u8>, Cause> {
        let most = said.unwrap_or(MOST_ANSWER);
        if most > MOST_ANSWER {
            return Err(Cause::TooLong { host: host.to_owned() });
        }
        let began = Instant::now();
        let mut bytes = Vec::with_capacity(said.unwrap_or(0) as usize);
        let mut chunk = vec![0; CHUNK];
        let cut = |came: &Vec<u8>| Cause::Cut { host: host.to_owned(), came: came.len() as u64 };
        loop {
            let read = match body.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => return Err(cut(&bytes)),
            };
            bytes.extend_from_slice(chunk.get(..read).unwrap_or_default());
            self.traffic.received.fetch_add(read as u64, Ordering::Relaxed);
            if bytes.len() as u64 > most {
                return Err(Cause::TooLong { host: host.to_owned() });
            }
            // A server that sends a byte now and then would never time out.
            let due = SLOWEST as f64 * began.elapsed().saturating_sub(self.patience).as_secs_f64();
            if (bytes.len() as f64) < due {
                let why = format!("sends less than {SLOWEST} bytes a second");
                return Err(Cause::Unreached { host: host.to_owned(), why, is_final: false });
            }
        }
        match said {
            Some(said) if (bytes.len() as u64) < said => Err(cut(&bytes)),
            _ => Ok(bytes),
        }
    }
}

impl HttpService for Transport {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let answer = self.carry(request);
        // Of a kind that is not tried again: that is done in one place, by whoever knows the whole operation.
        let answer = answer.map_err(|cause| HttpError::new(HttpErrorKind::Unknown, cause));
        Box::pin(std::future::ready(answer))
    }
}

impl HttpConnector for Transport {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

fn has_body(method: &Method) -> bool {
    matches!(*method, Method::PUT | Method::POST)
}

fn unreached(host: &str, error: &ureq::Error) -> Cause {
    let NoAnswer { why, is_untrusted: is_final } = NoAnswer::of(error);
    Cause::Unreached { host: host.to_owned(), why, is_final }
}

/// An answer that is an error (S3 API, "Error responses").
fn refused(status: u16, headers: &HeaderMap, body: &[u8]) -> Cause {
    let body = String::from_utf8_lossy(body);
    let between = |name: &str| {
        let rest = body.split_once(&format!("<{name}>"))?.1;
        Some(rest.split_once(&format!("</{name}>"))?.0.to_owned())
    };
    let code = between("Code").unwrap_or_default();
    let message = between("Message").unwrap_or_default();
    let said = match (&*code, &*message) {
        ("", "") => String::new(),
        (code, "") => format!(" {code}"),
        (code, message) => format!(" {code}: {}", message.chars().take(300).collect::<String>()),
    };
    let wait = headers.get(header::RETRY_AFTER).and_then(|wait| wait.to_str().ok());
    let wait = wait.and_then(|wait| wait.parse().ok()).map(Duration::from_secs);
    Cause::Status { status, code, said, wait }
}

/// Whether a host is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let address = name.parse::<std::net::IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Whether a host is one that gives this machine its credentials.
fn is_link_local(host: &str) -> bool {
    host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_link_local())
}

/// The certificates that the system trusts.
fn roots() -> RootCerts {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        log::debug!("certificates of the system: {error}");
    }
    let roots: Vec<_> =
        found.certs.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
    RootCerts::new_with_certs(&roots)
}
