use std::ffi::OsString;
use std::fs;

use super::*;

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

/// What is found for an image in a file of that text.
fn found(image: &str, text: &str) -> Result<Option<Credentials>, Cause> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("auth.json");
    fs::write(&file, text).unwrap();
    find(&name(image), &[dir.path().join("none"), file])
}

fn password(user: &str, password: &str) -> Result<Option<Credentials>, Cause> {
    Ok(Some(Credentials::Password { user: user.into(), password: password.into() }))
}

#[test]
fn the_longest_name_counts() {
    // "u:p", "u:q", "u:r" in base64.
    let text = r#"{"auths": {
        "h.example": {"auth": "dTpw"},
        "h.example/team": {"auth": "dTpx"},
        "h.example/team/app": {"auth": "dTpyOnM="}
    }}"#;
    assert_eq!(found("h.example/other", text), password("u", "p"));
    assert_eq!(found("h.example/team/other", text), password("u", "q"));
    assert_eq!(found("h.example/teams", text), password("u", "p"));
    assert_eq!(found("h.example/team/app", text), password("u", "r:s"));
    assert_eq!(found("h.example:5000/team", text), Ok(None));
}

#[test]
fn keys_as_docker_writes_them() {
    let hub = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"}}}"#;
    assert_eq!(found("debian", hub), password("u", "p"));
    let url = r#"{"auths": {"https://h.example/v2/": {"username": "u", "password": "p"}}}"#;
    assert_eq!(found("h.example/a", url), password("u", "p"));
    let identity = r#"{"auths": {"h.example": {"auth": "dTpw", "identitytoken": "t"}}}"#;
    assert_eq!(found("h.example/a", identity), Ok(Some(Credentials::Identity("t".into()))));
    let empty = r#"{"auths": {"h.example": {}}, "credsStore": ""}"#;
    assert_eq!(found("h.example/a", empty), Ok(None));
    assert_eq!(found("h.example/a", "{}"), Ok(None));
}

#[test]
fn what_is_wrong_names_the_file_and_no_secret() {
    for text in [
        "{",
        r#"{"auths": "secret"}"#,
        r#"{"auths": {"h.example": {"auth": "c2VjcmV0"}}}"#,
        r#"{"auths": {"h.example": {"auth": "secret!"}}}"#,
        r#"{"credHelpers": {"h.example": "../secret"}}"#,
    ] {
        let cause = found("h.example/a", text).unwrap_err().to_string();
        assert!(cause.contains("auth.json") || cause.contains("credential helper"), "{cause}");
        assert!(!cause.replace("../secret", "").contains("secret"), "{cause}");
    }
    let shown = format!("{:?}", Credentials::Identity("secret".into()));
    assert!(!shown.contains("secret"), "{shown}");
}

#[test]
fn a_helper_that_is_not_there_is_told() {
    let text = r#"{"credsStore": "of-nobody"}"#;
    let cause = found("h.example/a", text).unwrap_err().to_string();
    assert!(
        cause.starts_with("credential helper of-nobody: docker-credential-of-nobody: "),
        "{cause}"
    );
}

#[test]
fn a_helper_has_so_much_time() {
    let shell = |script: &str, time| {
        let mut command = Command::new("sh");
        talk(command.args(["-c", script]), "h.example", time).map(|(_, answer)| answer)
    };
    let long = Duration::from_secs(60);
    assert_eq!(shell("tr a-z A-Z", long).unwrap(), b"H.EXAMPLE");
    // More than a pipe holds, and what does not read at all.
    assert_eq!(shell("head -c 200000 /dev/zero", long).unwrap(), [0; 200_000]);
    let began = Instant::now();
    for script in ["exec sleep 5", "sleep 5 & exec true"] {
        let error = shell(script, Duration::from_millis(200)).unwrap_err();
        assert_eq!(error.to_string(), "no answer in 200ms", "{script}");
    }
    assert!(began.elapsed() < Duration::from_secs(40));
}

#[test]
fn the_file_of_old() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(".dockercfg");
    fs::write(&file, r#"{"https://h.example/v1/": {"auth": "dTpw", "email": "e@h.example"}}"#)
        .unwrap();
    assert_eq!(find(&name("h.example/a"), std::slice::from_ref(&file)), password("u", "p"));
    assert_eq!(find(&name("other.example/a"), &[file]), Ok(None));
}

#[test]
fn files_are_looked_for_where_podman_and_docker_do() {
    let files = |set: &[(&str, &str)]| {
        let get = |name: &str| {
            set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        auth_files(get).iter().map(|file| file.display().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(files(&[("REGISTRY_AUTH_FILE", "/a"), ("HOME", "/h")]), ["/a"]);
    assert_eq!(
        files(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r")]),
        [
            "/r/containers/auth.json",
            "/h/.config/containers/auth.json",
            "/h/.docker/config.json",
            "/h/.dockercfg"
        ]
    );
    let files = files(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "/c"), ("DOCKER_CONFIG", "/d")]);
    assert_eq!(files[1..3], ["/c/containers/auth.json", "/d/config.json"]);
    assert!(files[0].starts_with("/run/containers/"), "{}", files[0]);
}
