use super::*;

fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<Challenge, String> {
    let (service, scope) = (service.map(Into::into), scope.map(Into::into));
    Ok(Challenge::Bearer { realm: realm.into(), service, scope })
}

#[test]
fn challenges_as_registries_write_them() {
    let parse = |header| Challenge::parse(&[header]);
    let full = r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull,push""#;
    let told = bearer("https://auth.example/token", Some("reg"), Some("repository:a/b:pull,push"));
    assert_eq!(parse(full), told);
    assert_eq!(
        parse("bearer realm=https://a.example/t , service=\"x\\\"y\""),
        bearer("https://a.example/t", Some("x\"y"), None)
    );
    assert_eq!(
        parse("Basic realm=\"x\", Bearer realm=\"https://t\""),
        bearer("https://t", None, None)
    );
    assert_eq!(parse("Negotiate abc==, Basic realm=\"x\""), Ok(Challenge::Basic));
    assert_eq!(parse("Negotiate"), Err("Negotiate".into()));
    assert_eq!(parse(""), Err("it does not say how".into()));
    assert_eq!(parse("Bearer service=\"x\""), Err("it does not say how".into()));
    for odd in ["=", "==,=", "\"", "Bearer realm=\"", "Bearer realm=\"\\", ",,,", "Basic ="] {
        let _ = parse(odd);
    }
}

#[test]
fn a_token_is_asked_for_with_its_scope() {
    let url = |realm, service| {
        token_url(realm, service, "repository:a/b:pull", true).map(|url| url.to_string())
    };
    assert_eq!(
        url("https://h.example/t", Some("my reg")),
        Some("https://h.example/t?service=my%20reg&scope=repository:a/b:pull".into())
    );
    assert_eq!(
        url("https://h.example/t?x=1", None),
        Some("https://h.example/t?x=1&scope=repository:a/b:pull".into())
    );
    assert_eq!(url("/t", None), None);
    assert_eq!(url("not a url", None), None);
}

#[test]
fn a_token_that_would_break_a_header_is_none() {
    let of = |bytes: &[u8]| token_in("h.example", bytes);
    assert_eq!(of(br#"{"token":"a.b-c"}"#), Ok("a.b-c".into()));
    assert_eq!(of(br#"{"token":"","access_token":"x"}"#), Ok("x".into()));
    let wrong = |why: &str| Err(Cause::Token { host: "h.example".into(), why: why.into() });
    assert_eq!(of(br#"{"token":"a\r\nHost: x"}"#), wrong("what it gives is none"));
    assert_eq!(of(b"{}"), wrong("the answer has none"));
    assert_eq!(of(b"<html>"), wrong("the answer is not the JSON it should be"));
}
