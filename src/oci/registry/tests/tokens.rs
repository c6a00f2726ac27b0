//! Who asks.

use super::*;

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
