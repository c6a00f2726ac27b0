//! A proxy that fails now and then, in the ways networks and servers do.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

/// What is done to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An answer of 503, in the server's place.
    Unavailable,
    /// An answer of 500, in the server's place.
    Internal,
    /// An answer of 429 that asks to wait a second.
    TooMany,
    /// The connection ends before the server hears of it.
    Reset,
    /// The server does what it is asked, and nobody hears of it.
    Lost,
    /// Half of the answer comes, and then the connection ends.
    Short,
    /// The answer comes a little at a time.
    Slow,
    /// Nothing comes for longer than anybody waits.
    Hang,
}

impl Fault {
    pub(crate) const ALL: [Self; 8] = [
        Self::Unavailable,
        Self::Internal,
        Self::TooMany,
        Self::Reset,
        Self::Lost,
        Self::Short,
        Self::Slow,
        Self::Hang,
    ];
}

#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    state: Arc<State>,
}

/// What was asked for since somebody looked.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    /// Requests by what they begin with.
    pub(crate) methods: BTreeMap<String, u64>,
    /// Bytes of the bodies of answers.
    pub(crate) received: u64,
    /// Bytes of the bodies of requests.
    pub(crate) sent: u64,
}

impl Tally {
    pub(crate) fn requests(&self) -> u64 {
        self.methods.values().sum()
    }
}

#[derive(Debug)]
struct State {
    upstream: u16,
    seed: u64,
    requests: AtomicU64,
    faults: AtomicU64,
    /// Milliseconds that each request takes longer.
    delay: AtomicU64,
    tally: Mutex<Tally>,
    /// In a hundred, and of which kinds.
    plan: Mutex<(u64, Vec<Fault>)>,
}

impl Proxy {
    /// Forwards to `upstream` on this machine; faults are drawn from `seed`.
    pub(crate) fn start(upstream: u16, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            upstream,
            seed,
            requests: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            delay: AtomicU64::new(0),
            tally: Mutex::default(),
            plan: Mutex::new((0, Vec::new())),
        });
        let shared = Arc::clone(&state);
        // They end with the process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let state = Arc::clone(&shared);
                thread::spawn(move || client.map(|client| serve(client, &state)));
            }
        });
        Self { port, state }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on so many of a hundred requests fail, in one of these ways.
    pub(crate) fn fail(&self, percent: u64, how: &[Fault]) {
        *self.state.plan.lock() = (percent, how.to_vec());
    }

    /// From now on each request takes so many milliseconds longer.
    pub(crate) fn delay(&self, by: u64) {
        self.state.delay.store(by, Ordering::Relaxed);
    }

    /// What was asked for since this was called before.
    pub(crate) fn take_tally(&self) -> Tally {
        std::mem::take(&mut *self.state.tally.lock())
    }

    /// Requests, and how many of them failed.
    pub(crate) fn counted(&self) -> (u64, u64) {
        let State { requests, faults, .. } = &*self.state;
        (requests.load(Ordering::Relaxed), faults.load(Ordering::Relaxed))
    }
}

impl State {
    fn draw(&self) -> Option<Fault> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes()).update(&number.to_le_bytes());
        let drawn = u64::from_le_bytes(hasher.finalize().as_bytes()[..8].try_into().unwrap());
        let plan = self.plan.lock();
        if drawn % 100 >= plan.0 || plan.1.is_empty() {
            return None;
        }
        self.faults.fetch_add(1, Ordering::Relaxed);
        Some(plan.1[(drawn / 100) as usize % plan.1.len()])
    }
}

impl State {
    fn count(&self, request: &Message, answer: &Message) {
        thread::sleep(Duration::from_millis(self.delay.load(Ordering::Relaxed)));
        let method = request.head.split(|&byte| byte == b' ').next().unwrap_or_default();
        let is_list = request.head.windows(10).take(300).any(|part| part == b"list-type=");
        let method = match is_list {
            true => "list".to_owned(),
            false => String::from_utf8_lossy(method).to_lowercase(),
        };
        let mut tally = self.tally.lock();
        *tally.methods.entry(method).or_default() += 1;
        tally.received += answer.body.len() as u64;
        tally.sent += request.body.len() as u64;
    }
}

/// A request or an answer: head, and body.
struct Message {
    head: Vec<u8>,
    body: Vec<u8>,
}

/// Serves one connection until something ends it.
fn serve(mut client: TcpStream, state: &State) -> Option<()> {
    let _ = client.set_nodelay(true);
    loop {
        let request = read_message(&mut client, true, &[])?;
        let fault = state.draw();
        let said = match fault {
            Some(Fault::Unavailable) => Some(("503 Slow Down", "SlowDown", "")),
            Some(Fault::Internal) => Some(("500 Internal Server Error", "InternalError", "")),
            Some(Fault::TooMany) => Some(("429 Too Many", "TooMany", "Retry-After: 1\r\n")),
            _ => None,
        };
        if let Some((status, code, headers)) = said {
            let body = match request.head.starts_with(b"HEAD") {
                true => String::new(),
                false => format!("<Error><Code>{code}</Code><Message>no</Message></Error>"),
            };
            let len = body.len();
            write!(client, "HTTP/1.1 {status}\r\n{headers}Content-Length: {len}\r\n\r\n{body}")
                .ok()?;
            continue;
        }
        match fault {
            Some(Fault::Reset) => return None,
            Some(Fault::Hang) => {
                thread::sleep(Duration::from_secs(4));
                return None;
            }
            _ => {}
        }
        let mut server = TcpStream::connect(("127.0.0.1", state.upstream)).ok()?;
        let _ = server.set_nodelay(true);
        server.write_all(&request.head).ok()?;
        server.write_all(&request.body).ok()?;
        let answer = read_message(&mut server, false, &request.head)?;
        state.count(&request, &answer);
        match fault {
            Some(Fault::Lost) => return None,
            Some(Fault::Short) => {
                client.write_all(&answer.head).ok()?;
                client.write_all(&answer.body[..answer.body.len() / 2]).ok()?;
                let _ = client.shutdown(Shutdown::Both);
                return None;
            }
            Some(Fault::Slow) => {
                client.write_all(&answer.head).ok()?;
                for part in answer.body.chunks((answer.body.len() / 10).max(100)) {
                    client.write_all(part).ok()?;
                    thread::sleep(Duration::from_millis(15));
                }
            }
            _ => {
                client.write_all(&answer.head).ok()?;
                client.write_all(&answer.body).ok()?;
            }
        }
    }
}

/// A whole message; an answer to `request` may have no body though it tells a length.
fn read_message(stream: &mut TcpStream, is_request: bool, request: &[u8]) -> Option<Message> {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        let read = stream.read(&mut chunk).ok().filter(|&read| read > 0)?;
        bytes.extend_from_slice(&chunk[..read]);
    };
    let body = bytes.split_off(end);
    let mut message = Message { head: bytes, body };
    let head = String::from_utf8_lossy(&message.head).to_lowercase();
    let header = |name: &str| {
        head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    if is_request && header("expect").is_some() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    let is_chunked = header("transfer-encoding").is_some_and(|coding| coding.contains("chunked"));
    let has_none =
        !is_request && (request.starts_with(b"HEAD") || head.starts_with("http/1.1 204"));
    let len = header("content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
    let is_whole = |body: &[u8]| match is_chunked {
        _ if has_none => true,
        true => body.ends_with(b"0\r\n\r\n"),
        false => body.len() >= len,
    };
    while !is_whole(&message.body) {
        let read = stream.read(&mut chunk).ok().filter(|&read| read > 0)?;
        message.body.extend_from_slice(&chunk[..read]);
    }
    Some(message)
}
