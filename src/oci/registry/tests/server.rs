//! A registry that fails as it is told to.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

/// What a client asks.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: HashMap<String, String>,
    pub(super) body: String,
    /// How many times that path was asked for before, whatever its query.
    pub(super) before: usize,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The start of the range asked for, and its end (the byte behind it).
    pub(super) fn range(&self, len: usize) -> Option<(usize, usize)> {
        let (start, end) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        let end = end.parse().map_or(len, |last: usize| last + 1);
        Some((start.parse().unwrap(), end.min(len)))
    }
}

/// How the body of an answer is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Whole,
    /// The connection ends after so many bytes.
    Cut(usize),
    /// So many bytes come, then nothing more for as long as the client waits.
    Stuck(usize),
    /// One byte every twenty milliseconds.
    Drip,
}

#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) sent: Sent,
}

impl Answer {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let headers = vec![("Content-Length".into(), body.len().to_string())];
        Self { status, headers, body, sent: Sent::Whole }
    }

    /// With a header, in place of one of that name.
    pub(super) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.retain(|(key, _)| key != name);
        self.headers.push((name.into(), value.to_string()));
        self
    }

    pub(super) fn sent(self, sent: Sent) -> Self {
        Self { sent, ..self }
    }
}

type Answers = dyn Fn(&Asked) -> Answer + Send + Sync;

/// A server on a loopback port of its own, which ends with the value.
pub(super) struct Server {
    pub(super) host: String,
    pub(super) asked: Arc<Mutex<Vec<Asked>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(answers: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (asked, ended) = (Arc::<Mutex<Vec<Asked>>>::default(), Arc::<AtomicBool>::default());
        let (log, end, answers) = (Arc::clone(&asked), Arc::clone(&ended), Arc::new(answers));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let (log, answers) = (Arc::clone(&log), Arc::clone(&answers));
                // It ends when its client goes away.
                std::thread::spawn(move || serve(&stream.unwrap(), &log, &*answers));
            }
        });
        Self { host, asked, ended, thread: Some(thread) }
    }

    /// The requests for paths that contain `part`.
    pub(super) fn asked_for(&self, part: &str) -> Vec<Asked> {
        self.asked.lock().iter().filter(|asked| asked.path.contains(part)).cloned().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(&self.host);
        let _ = self.thread.take().unwrap().join();
    }
}

/// Answers one request. What is no HTTP, as a TLS greeting, is hung up on.
fn serve(stream: &TcpStream, log: &Mutex<Vec<Asked>>, answers: &Answers) {
    let mut first = [0];
    if stream.peek(&mut first).is_err() || !first[0].is_ascii_uppercase() {
        return;
    }
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).is_err() {
        return;
    }
    let mut words = line.split(' ').map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return };
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let len = headers.get("content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
    let mut body = String::new();
    let _ = reader.by_ref().take(len).read_to_string(&mut body);
    let plain = |path: &str| path.split('?').next().unwrap().to_owned();
    let asked = {
        let mut log = log.lock();
        let before = log.iter().filter(|other| plain(&other.path) == plain(&path)).count();
        let asked = Asked { method, path, headers, body, before };
        log.push(asked.clone());
        asked
    };
    let answer = answers(&asked);
    let mut head = format!("HTTP/1.1 {} Said\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let mut out = stream;
    // The client may have gone away by any of these.
    let _ = out.write_all(format!("{head}\r\n").as_bytes());
    match answer.sent {
        Sent::Whole => drop(out.write_all(&answer.body)),
        Sent::Cut(at) => drop(out.write_all(&answer.body[..at])),
        Sent::Stuck(at) => {
            let _ = out.write_all(&answer.body[..at]);
            // Until the client hangs up.
            let _ = out.read(&mut [0]);
        }
        Sent::Drip => {
            for byte in &answer.body {
                if out.write_all(&[*byte]).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    let _ = out.shutdown(Shutdown::Both);
}
