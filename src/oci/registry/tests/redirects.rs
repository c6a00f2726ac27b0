//! Where registries send us on to.

use super::*;

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
