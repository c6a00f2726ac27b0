//! What fails: told at once, or tried again within one budget.

use super::*;

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

/// RFC 9110, "Retry-After": seconds or a date, which is one of the server's clock.
#[test]
fn a_pause_may_be_told_as_a_date() {
    const NOW: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    for (until, wait) in [
        ("Sun, 06 Nov 1994 09:49:37 GMT", 3600),
        ("Mon, 07 Nov 1994 08:49:36 GMT", 86_399),
        ("7200", 7200),
    ] {
        let server = registry(move |asked, _| {
            let busy = Answer::new(503, "").with("Date", NOW).with("Retry-After", until);
            asked.path.contains("manifests").then_some(busy)
        });
        let (error, wait) = (open(&server).unwrap_err(), Duration::from_secs(wait));
        assert_eq!(cause(&error), &Cause::Wait { host: server.host.clone(), wait }, "{until}");
    }
    // One that has passed is none, and nonsense is as nothing.
    for until in ["Sun, 06 Nov 1994 08:49:36 GMT", NOW, "tomorrow", "-1"] {
        let server = registry(move |asked, _| {
            let busy = Answer::new(503, "").with("Date", NOW).with("Retry-After", until);
            (asked.path.contains("manifests") && asked.before == 0).then_some(busy)
        });
        open(&server).unwrap();
    }
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
