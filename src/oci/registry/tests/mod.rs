//! Registries that fail, each in one way: a clear error, or another try within one budget.

mod server;

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use super::*;

use crate::error::Kind;
use crate::oci::{self, Image, LayerBlob};
use server::{Answer, Asked, Sent, Server};

const TRIES: u32 = 4;

/// An image of one layer, as a registry has it.
struct Stored {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
}

impl Stored {
    fn new() -> Self {
        // Bytes that differ from place to place: xorshift, seeded.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let layer = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        let layer: Vec<u8> = layer.take(700_001).collect();
        let diff_ids = [digest(&layer).to_string()];
        let config =
            json!({ "os": "linux", "architecture": "amd64", "rootfs": { "diff_ids": diff_ids } });
        let config = config.to_string().into_bytes();
        let part = |media_type: &str, bytes: &[u8]| json!({ "mediaType": media_type, "digest": digest(bytes).to_string(), "size": bytes.len() });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": part(media_type::OCI_CONFIG, &config),
            "layers": [part(media_type::OCI_LAYER, &layer)],
        });
        Self { manifest: manifest.to_string().into_bytes(), config, layer }
    }

    /// What a registry in good health answers.
    fn answer(&self, asked: &Asked) -> Answer {
        let path = asked.path.split('?').next().unwrap();
        let last = path.rsplit('/').next().unwrap();
        let blob =
            [&self.config, &self.layer].into_iter().find(|blob| digest(blob).to_string() == last);
        match (path, blob) {
            ("/v2/", _) => Answer::new(200, "{}"),
            (path, _) if path.contains("/manifests/") => Answer::new(200, &*self.manifest)
                .with("Content-Type", media_type::OCI_MANIFEST)
                .with("Docker-Content-Digest", digest(&self.manifest)),
            (_, Some(blob)) => ranged(asked, blob),
            _ => {
                Answer::new(404, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}"#)
            }
        }
    }
}

fn ranged(asked: &Asked, blob: &[u8]) -> Answer {
    match asked.range(blob.len()) {
        Some((start, end)) => Answer::new(206, &blob[start..end])
            .with("Content-Range", format!("bytes {start}-{}/{}", end - 1, blob.len())),
        None => Answer::new(200, blob),
    }
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

fn is_layer(asked: &Asked) -> bool {
    asked.path.contains(digest(&Stored::new().layer).hex())
}

/// A registry where `fault` comes before what is right.
fn registry(fault: impl Fn(&Asked, &Stored) -> Option<Answer> + Send + Sync + 'static) -> Server {
    let stored = Stored::new();
    Server::start(move |asked| fault(asked, &stored).unwrap_or_else(|| stored.answer(asked)))
}

fn options() -> oci::Options {
    let timing = Timing {
        tries: TRIES,
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(500),
        total: Duration::from_secs(60),
        connect: Duration::from_secs(20),
        idle: Duration::from_millis(1500),
        slowest: 10_000,
    };
    let registry = Options { insecure: false, auth_files: vec![], timing };
    oci::Options { platform: None, registry }
}

fn open(server: &Server) -> Result<Image> {
    open_with(server, &options())
}

fn open_with(server: &Server, options: &oci::Options) -> Result<Image> {
    let name = Name::parse(&format!("{}/team/app:v1", server.host)).unwrap();
    oci::open(&oci::Reference::Registry(name), options)
}

fn layer(server: &Server) -> LayerBlob {
    open(server).unwrap().layers.remove(0)
}

/// The layer read from start to end.
fn streamed(layer: &LayerBlob) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    layer.blob.stream()?.read_to_end(&mut bytes).map_err(Error::io)?;
    Ok(bytes)
}

#[track_caller]
fn is_whole(bytes: &[u8]) {
    assert!(bytes == Stored::new().layer, "{} bytes that are not the layer", bytes.len());
}

#[track_caller]
fn cause(error: &Error) -> &Cause {
    error.cause().unwrap_or_else(|| panic!("another cause: {error}"))
}

/// A status that is told after `tries`, with the words of the server behind it.
fn status(server: &Server, status: u16, said: &str, tries: u32) -> Cause {
    let last = Cause::Status { host: server.host.clone(), status, said: said.into() };
    if tries > 1 { Cause::Spent { tries, last: Box::new(last) } } else { last }
}

#[test]
fn a_blob_is_streamed_and_read_in_pieces() {
    let server = registry(|_, _| None);
    let image = open(&server).unwrap();
    let documents = image.transferred();
    assert!(documents < 2_000, "{documents} bytes for a manifest and a config");
    let layer = &image.layers[0];
    is_whole(&streamed(layer).unwrap());
    assert_eq!(image.transferred(), documents + layer.size);
    let source = layer.blob.source().unwrap();
    let mut buf = [0; 5000];
    // Within one piece, over a border, again, and at the end: as few requests as pieces need.
    for (at, requests) in [(1_u64, 1), (30_000, 1), (63_000, 2), (61_000, 2), (695_001, 3)] {
        source.read_at(at, &mut buf).unwrap();
        assert_eq!(buf, Stored::new().layer[at as usize..][..5000], "at {at}");
        let ranges = server.asked_for(digest(&Stored::new().layer).hex());
        assert_eq!(ranges.len(), 1 + requests, "at {at}");
    }
    let mut large = vec![0; 400_000];
    source.read_at(100_000, &mut large).unwrap();
    assert!(large == Stored::new().layer[100_000..500_000]);
    let least = documents + layer.size + 400_000;
    assert!(image.transferred() < least + 4 * 65_536, "{}", image.transferred());
    assert_eq!(source.read_at(700_000, &mut [0; 2]).unwrap_err().kind(), Kind::OutOfBounds);
}

#[test]
fn refusals_are_told_at_once() {
    let said = r#"{"errors":[{"code":"DENIED","message":"not for\nyou"}]}"#;
    for (code, body, words, kind, hint) in [
        (
            403,
            said,
            " Forbidden: not for\nyou",
            Kind::Denied,
            Some("the account may not pull it, or it does not exist"),
        ),
        (404, "<html>", " Not Found", Kind::NotFound, Some("is the name right, and the tag?")),
        (418, "", " I'm a teapot", Kind::Io, None),
    ] {
        let server = registry(move |asked, _| {
            asked.path.contains("manifests").then(|| Answer::new(code, body))
        });
        let error = open(&server).unwrap_err();
        assert_eq!(cause(&error), &status(&server, code, words, 1));
        assert_eq!((error.kind(), error.hint()), (kind, hint));
        assert_eq!(server.asked_for("manifests").len(), 1);
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[test]
fn what_passes_is_waited_for() {
    for (code, header) in
        [(429, ("Retry-After", "0")), (503, ("X", "y")), (500, ("X", "y")), (408, ("X", "y"))]
    {
        let server = registry(move |asked, _| {
            let early = asked.before < 2 && asked.path != "/v2/";
            early.then(|| Answer::new(code, "").with(header.0, header.1))
        });
        is_whole(&streamed(&layer(&server)).unwrap());
        assert_eq!(server.asked_for("manifests").len(), 3);
    }
}

#[test]
fn what_does_not_pass_ends_with_the_budget() {
    for (code, words) in [(429, " Too Many Requests"), (502, " Bad Gateway")] {
        let server = registry(move |asked, _| is_layer(asked).then(|| Answer::new(code, "")));
        let layer = layer(&server);
        let error = streamed(&layer).unwrap_err();
        assert_eq!(cause(&error), &status(&server, code, words, TRIES));
        assert_eq!(server.asked_for(layer.digest.unwrap().hex()).len(), TRIES as usize);
        assert!(error.to_string().contains("; tried 4 times"), "{error}");
    }
    let server = registry(|asked, _| {
        asked.path.contains("manifests").then(|| Answer::new(429, "").with("Retry-After", 3600))
    });
    let error = open(&server).unwrap_err();
    let wait = Duration::from_secs(3600);
    assert_eq!(cause(&error), &Cause::Wait { host: server.host.clone(), wait });
    assert_eq!(server.asked_for("manifests").len(), 1);
}

#[test]
fn a_cut_stream_goes_on_where_it_ended() {
    let server = registry(|asked, stored| {
        let cuts = is_layer(asked) && asked.before < 8;
        cuts.then(|| stored.answer(asked).sent(Sent::Cut(80_000)))
    });
    is_whole(&streamed(&layer(&server)).unwrap());
    let ranges = server.asked_for(digest(&Stored::new().layer).hex());
    let starts: Vec<_> =
        ranges.iter().map(|asked| asked.range(700_001).map(|range| range.0)).collect();
    let wanted = (0..9).map(|n| (n > 0).then_some(n * 80_000));
    assert_eq!(
        starts,
        wanted.collect::<Vec<_>>(),
        "eight cuts with progress between are no failure"
    );
}

#[test]
fn a_stream_without_progress_ends() {
    let server = registry(|asked, stored| {
        is_layer(asked).then(|| stored.answer(asked).sent(Sent::Cut(100)))
    });
    let error = streamed(&layer(&server)).unwrap_err();
    let Cause::Spent { tries: TRIES, last } = cause(&error) else { panic!("{error}") };
    assert_eq!(**last, Cause::Cut { host: server.host.clone(), missing: 699_601 });
    // Ranges are not taken up where they ended, but asked for again.
    let source = layer(&server).blob.source().unwrap();
    let error = source.read_at(0, &mut [0; 1000]).unwrap_err();
    assert!(matches!(cause(&error), Cause::Spent { tries: TRIES, .. }), "{error}");
}

#[test]
fn a_server_that_goes_silent_or_drips_is_given_up() {
    let server = registry(|asked, stored| {
        (is_layer(asked) && asked.before > 0).then(|| stored.answer(asked).sent(Sent::Stuck(0)))
    });
    let mut options = options();
    options.registry.timing.idle = Duration::from_secs(1);
    options.registry.timing.tries = 2;
    let source = open_with(&server, &options).unwrap().layers[0].blob.source().unwrap();
    source.read_at(0, &mut [0; 10]).unwrap();
    let error = source.read_at(300_000, &mut [0; 10]).unwrap_err();
    let Cause::Spent { tries: 2, last } = cause(&error) else { panic!("{error}") };
    let silent =
        Cause::Transport { host: server.host.clone(), why: "is silent".into(), tls: false };
    assert_eq!(**last, silent);

    for part in ["manifests", "blobs"] {
        let server = registry(move |asked, stored| {
            asked.path.contains(part).then(|| stored.answer(asked).sent(Sent::Drip))
        });
        let error = open_with(&server, &options).unwrap_err();
        let Cause::Spent { tries: 2, last } = cause(&error) else { panic!("{error}") };
        assert_eq!(**last, Cause::Slow { host: server.host.clone(), least: 10_000 });
    }
}

#[test]
fn a_closed_port_is_told_at_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    let name = Name::parse(&format!("{host}/a")).unwrap();
    let error = oci::open(&oci::Reference::Registry(name), &options()).unwrap_err();
    let Cause::Transport { why, tls: false, .. } = cause(&error) else { panic!("{error}") };
    assert!(why.contains("refused"), "{why}");
}

#[test]
fn other_bytes_than_the_digest_says_are_refused() {
    let changed = |stored: &Stored| [b" ".as_slice(), &stored.manifest].concat();
    let server = registry(move |asked, stored| {
        let digest = digest(&stored.manifest);
        let answer = Answer::new(200, changed(stored)).with("Docker-Content-Digest", digest);
        asked.path.contains("manifests").then_some(answer)
    });
    let stored = Stored::new();
    let (named, found) = (digest(&stored.manifest), digest(&changed(&stored)));
    let wanted = oci::cause::Cause::Digest { what: "manifest", named: named.clone(), found };
    let error = open(&server).unwrap_err();
    assert_eq!((error.kind(), error.cause()), (Kind::Corrupt, Some(&wanted)));
    // By digest, with no header that says so.
    let server = registry(move |asked, stored| {
        asked.path.contains("manifests").then(|| Answer::new(200, changed(stored)))
    });
    let name = Name::parse(&format!("{}/a@{named}", server.host)).unwrap();
    let error = oci::open(&oci::Reference::Registry(name), &options()).unwrap_err();
    assert_eq!(error.cause(), Some(&wanted));
    // The config.
    let server = registry(move |asked, stored| {
        let other = vec![b' '; stored.config.len()];
        asked.path.contains(digest(&stored.config).hex()).then(|| Answer::new(200, other))
    });
    let error = open(&server).unwrap_err();
    assert!(
        matches!(error.cause(), Some(oci::cause::Cause::Digest { what: "config", .. })),
        "{error}"
    );
}

#[test]
fn other_lengths_than_were_asked_for_are_errors() {
    // A layer of another length.
    let server =
        registry(|asked, stored| is_layer(asked).then(|| Answer::new(200, &stored.layer[1..])));
    let error = streamed(&layer(&server)).unwrap_err();
    let host = || server.host.clone();
    assert_eq!(cause(&error), &Cause::Length { host: host(), wanted: 700_001, found: 700_000 });
    // One that goes on and on, without a length.
    let server = registry(|asked, stored| {
        let mut long = Answer::new(200, [&*stored.layer, b"more"].concat());
        long.headers.clear();
        is_layer(asked).then_some(long)
    });
    let error = streamed(&layer(&server)).unwrap_err();
    assert!(
        matches!(cause(&error), Cause::Length { wanted: 700_001, found: 700_002, .. }),
        "{error}"
    );
    // A manifest beyond the budget, announced and not.
    for announced in [true, false] {
        let server = registry(move |asked, _| {
            let mut long = Answer::new(200, vec![b' '; (MAX_MANIFEST + 1) as usize]);
            if !announced {
                long.headers.clear();
            }
            asked.path.contains("manifests").then_some(long)
        });
        let error = open(&server).unwrap_err();
        let (wanted, found) = (MAX_MANIFEST, MAX_MANIFEST + 1);
        assert_eq!(cause(&error), &Cause::Length { host: server.host.clone(), wanted, found });
    }
}

#[test]
fn ranges_must_be_those_that_were_asked_for() {
    let wrong = |said: &'static str, bytes: usize| {
        registry(move |asked, stored| {
            let answer = Answer::new(206, &stored.layer[..bytes]).with("Content-Range", said);
            is_layer(asked).then_some(answer)
        })
    };
    for said in [
        "bytes 0-65534/700001",
        "bytes 1-65536/700001",
        "bytes 0-65535/700000",
        "65536",
        "bytes */700001",
    ] {
        let server = wrong(said, 65_536);
        let error = layer(&server).blob.source().unwrap().read_at(0, &mut [0; 9]).unwrap_err();
        let found = said.to_owned();
        let wanted = "0-65535/700001".to_owned();
        assert_eq!(cause(&error), &Cause::Range { host: server.host.clone(), wanted, found });
    }
    let server = wrong("bytes 0-65535/700001", 65_535);
    let error = layer(&server).blob.source().unwrap().read_at(0, &mut [0; 9]).unwrap_err();
    assert!(
        matches!(cause(&error), Cause::Length { wanted: 65_536, found: 65_535, .. }),
        "{error}"
    );
    let server = wrong("bytes 0-65535/*", 65_536);
    layer(&server).blob.source().unwrap().read_at(0, &mut [0; 9]).unwrap();
}

#[test]
fn a_server_without_ranges_is_streamed_from() {
    let server = registry(|asked, stored| {
        let cut = if asked.before == 0 { Sent::Cut(300_000) } else { Sent::Whole };
        is_layer(asked).then(|| Answer::new(200, &*stored.layer).sent(cut))
    });
    let layer = layer(&server);
    is_whole(&streamed(&layer).unwrap());
    let error = layer.blob.source().unwrap().read_at(1, &mut [0; 9]).unwrap_err();
    assert_eq!(cause(&error), &Cause::NoRanges { host: server.host.clone() });
    assert_eq!(error.kind(), Kind::Unsupported);
}

#[test]
fn redirects_end_somewhere() {
    let server = registry(|asked, _| {
        let next = format!("{}x", asked.path);
        asked.path.contains("manifests").then(|| Answer::new(307, "").with("Location", next))
    });
    let error = open(&server).unwrap_err();
    assert_eq!(cause(&error), &Cause::Redirects { host: server.host.clone(), most: MAX_REDIRECTS });
    for location in [
        None,
        Some("nonsense"),
        Some("ftp://host.example/x"),
        Some("http://"),
        Some("file:///etc/passwd"),
    ] {
        let server = registry(move |asked, _| {
            let mut answer = Answer::new(302, "");
            if let Some(location) = location {
                answer = answer.with("Location", location);
            }
            asked.path.contains("manifests").then_some(answer)
        });
        let error = open(&server).unwrap_err();
        assert_eq!(cause(&error), &Cause::Location { host: server.host.clone() }, "{location:?}");
    }
    let server = registry(|asked, _| {
        let answer =
            Answer::new(302, "").with("Location", "http://u:secret@host.example/x?sig=secret");
        asked.path.contains("manifests").then_some(answer)
    });
    let error = open(&server).unwrap_err();
    let to = "host.example".into();
    assert_eq!(cause(&error), &Cause::Plain { from: server.host.clone(), to });
    assert_eq!(error.kind(), Kind::Refused);
    assert!(!format!("{error} {error:?}").contains("secret"));
}

#[test]
fn a_signed_url_that_runs_out_is_asked_for_anew() {
    let signed = Arc::<AtomicUsize>::default();
    // Each signature is good for one request.
    let used = Mutex::new(HashSet::new());
    let storage = registry(move |asked, stored| {
        let fresh = used.lock().insert(asked.path.clone());
        Some(if fresh { ranged(asked, &stored.layer) } else { Answer::new(403, "expired") })
    });
    let given = Arc::clone(&signed);
    let elsewhere = storage.host.clone();
    let server = registry(move |asked, _| {
        let number = if is_layer(asked) { given.fetch_add(1, Ordering::SeqCst) } else { 0 };
        let to = format!("http://{elsewhere}/blob?sig={number}");
        is_layer(asked).then(|| Answer::new(307, "").with("Location", to))
    });
    let layer = layer(&server);
    let source = layer.blob.source().unwrap();
    let stored = Stored::new();
    for at in [0_u64, 300_000, 10_000, 330_000] {
        let mut buf = vec![0; 262_144];
        source.read_at(at, &mut buf).unwrap();
        assert!(buf == stored.layer[at as usize..][..262_144], "at {at}");
    }
    assert_eq!(signed.load(Ordering::SeqCst), 4);
    assert_eq!(storage.asked_for("/blob").len(), 4 + 3, "the last signature is tried first");
    assert!(storage.asked_for("/blob").iter().all(|asked| asked.header("authorization").is_none()));

    // One that never works is an error of the storage's.
    let storage = registry(|_, _| Some(Answer::new(403, "")));
    let elsewhere = storage.host.clone();
    let server = registry(move |asked, _| {
        let to = format!("http://{elsewhere}/blob?sig=secret");
        is_layer(asked).then(|| Answer::new(307, "").with("Location", to))
    });
    let error = self::layer(&server).blob.stream().err().unwrap();
    assert_eq!(cause(&error), &status(&storage, 403, " Forbidden", 1));
    assert!(!error.to_string().contains("secret"), "{error}");
}

/// A registry that gives tokens itself, each good for `uses` requests.
fn with_tokens(uses: usize) -> Server {
    let (given, used) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let host = Arc::new(OnceLock::<String>::new());
    let own = Arc::clone(&host);
    let server = registry(move |asked, _| {
        let name = format!("Bearer token-{}", given.load(Ordering::SeqCst));
        if asked.path.starts_with("/token") {
            if asked.header("authorization").is_some_and(|said| said != "Basic dTpw") {
                return Some(Answer::new(401, ""));
            }
            used.store(0, Ordering::SeqCst);
            let number = given.fetch_add(1, Ordering::SeqCst) + 1;
            return Some(Answer::new(
                200,
                json!({ "token": format!("token-{number}") }).to_string(),
            ));
        }
        let is_good = asked.header("authorization") == Some(&name)
            && used.fetch_add(1, Ordering::SeqCst) < uses;
        let realm = format!("Bearer realm=\"http://{}/token\",service=\"s t\"", own.get().unwrap());
        (!is_good && asked.path != "/v2/")
            .then(|| Answer::new(401, "").with("WWW-Authenticate", realm))
    });
    host.set(server.host.clone()).unwrap();
    server
}

fn with_auth(server: &Server, entry: serde_json::Value) -> (tempfile::TempDir, oci::Options) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("auth.json");
    let host = server.host.clone();
    fs::write(&file, json!({ "auths": { host: entry } }).to_string()).unwrap();
    let mut options = options();
    options.registry.auth_files = vec![file];
    (dir, options)
}

#[test]
fn tokens_are_asked_for_and_renewed() {
    let server = with_tokens(2);
    let layer = layer(&server);
    is_whole(&streamed(&layer).unwrap());
    let tokens = server.asked_for("/token");
    assert_eq!(tokens.len(), 2, "a manifest and a config, then the layer");
    assert_eq!(tokens[0].path, "/token?service=s%20t&scope=repository:team/app:pull");
    assert_eq!(tokens[0].header("authorization"), None, "nobody in particular asks");
    // A token that is never good enough.
    let server = with_tokens(0);
    let error = open(&server).unwrap_err();
    assert_eq!(cause(&error), &status(&server, 401, " Unauthorized", 1));
    assert_eq!(server.asked_for("/token").len(), 2);
    assert_eq!(error.hint(), Some(&*format!("log in: skopeo login {}", server.host)));
}

#[test]
fn credentials_go_to_who_gives_tokens() {
    let server = with_tokens(9);
    let (_dir, options) = with_auth(&server, json!({ "auth": "dTpw" }));
    open_with(&server, &options).unwrap();
    assert_eq!(server.asked_for("/token")[0].header("authorization"), Some("Basic dTpw"));
    let blobs = server.asked_for("blobs");
    assert_eq!(blobs[0].header("authorization"), Some("Bearer token-1"));

    let (_dir, options) = with_auth(&server, json!({ "auth": "dTpx" }));
    let error = open_with(&server, &options).unwrap_err();
    assert_eq!(
        (error.kind(), cause(&error)),
        (Kind::Denied, &status(&server, 401, " Unauthorized", 1))
    );
    assert!(error.to_string().contains("refuses the credentials that are kept for it"), "{error}");

    let (_dir, options) = with_auth(&server, json!({ "identitytoken": "it&is" }));
    open_with(&server, &options).unwrap();
    let form = &server.asked_for("/token").pop().unwrap().body;
    assert!(
        form.contains("grant_type=refresh_token") && form.contains("refresh_token=it%26is"),
        "{form}"
    );
}

#[test]
fn nobody_else_is_told_who_asks() {
    let storage = registry(|asked, stored| Some(ranged(asked, &stored.layer)));
    let elsewhere = storage.host.clone();
    let server = registry(move |asked, _| {
        if asked.path == "/v2/" {
            return None;
        }
        if asked.header("authorization") != Some("Basic dTpw") {
            return Some(Answer::new(401, "").with("WWW-Authenticate", "Basic realm=\"r\""));
        }
        let to = format!("http://{elsewhere}/blob");
        is_layer(asked).then(|| Answer::new(302, "").with("Location", to))
    });
    let (_dir, options) = with_auth(&server, json!({ "auth": "dTpw" }));
    is_whole(&streamed(&open_with(&server, &options).unwrap().layers[0]).unwrap());
    assert_eq!(storage.asked_for("/blob").len(), 1);
    assert_eq!(storage.asked_for("/blob")[0].header("authorization"), None);
    // Without credentials, or with wrong ones, a refusal: asked once, or once more with them.
    for (entry, requests) in [(json!({}), 1), (json!({ "auth": "dTpx" }), 2)] {
        let before = server.asked_for("manifests").len();
        let (_dir, options) = with_auth(&server, entry);
        let error = open_with(&server, &options).unwrap_err();
        assert_eq!(cause(&error), &status(&server, 401, " Unauthorized", 1));
        assert_eq!(server.asked_for("manifests").len() - before, requests);
        assert_eq!(error.kind(), Kind::Denied);
    }
}

#[test]
fn a_realm_without_encryption_or_a_scheme_unknown_is_refused() {
    for (said, cause_of) in [
        (
            "Bearer realm=\"http://host.example/t\"",
            Cause::Plain { from: String::new(), to: "host.example".into() },
        ),
        ("Negotiate", Cause::Challenge { host: String::new(), scheme: "Negotiate".into() }),
    ] {
        let server = registry(move |asked, _| {
            asked
                .path
                .contains("manifests")
                .then(|| Answer::new(401, "").with("WWW-Authenticate", said))
        });
        let error = open(&server).unwrap_err();
        let wanted = match cause_of {
            Cause::Plain { to, .. } => Cause::Plain { from: server.host.clone(), to },
            Cause::Challenge { scheme, .. } => {
                Cause::Challenge { host: server.host.clone(), scheme }
            }
            other => other,
        };
        assert_eq!(cause(&error), &wanted);
    }
}
