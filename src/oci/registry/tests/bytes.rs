//! What is sent: the right bytes, or an error.

use super::*;

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

/// Some registries do not answer HEAD as they answer GET: it is not asked for anything.
#[test]
fn nothing_is_asked_for_by_head() {
    let server = registry(|asked, _| (asked.method != "GET").then(|| Answer::new(405, "")));
    let layer = layer(&server);
    is_whole(&streamed(&layer).unwrap());
    layer.blob.source().unwrap().read_at(5, &mut [0; 10]).unwrap();
    assert!(server.asked_for("").iter().all(|asked| asked.method == "GET"));
}
