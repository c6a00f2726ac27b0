//! Credentials as podman, skopeo and docker keep them (containers-auth.json(5); Docker's
//! `config.json`, "Credential stores").

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::cause::Cause;
use crate::oci::reference::Name;

/// How the registry without a name is called in files of Docker's.
const DOCKER_HUB: [&str; 3] = ["https://index.docker.io/v1/", "index.docker.io", "docker.io"];

/// Docker's file before it was `config.json`: the entries alone.
const OLD_FILE: &str = ".dockercfg";

/// How long a credential helper may take: it may ask somebody for a passphrase.
const HELPER_TIME: Duration = Duration::from_secs(120);
/// How often it is looked whether it is done.
const HELPER_PACE: Duration = Duration::from_millis(10);
/// Bytes of its answer at most.
const MAX_ANSWER: u64 = 1 << 20;

/// Who asks. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// To be exchanged for tokens.
    Identity(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// The value of an `Authorization` header, for a name and password.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Credentials::Password { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Credentials::Identity(_) => None,
        }
    }
}

/// The files that credentials are looked for in, the first one first: `$REGISTRY_AUTH_FILE` alone,
/// or else podman's, then docker's, then what docker had before 1.7.
pub fn auth_files(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Vec<PathBuf> {
    let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(file) = path("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = path("HOME").unwrap_or_default();
    let runtime = path("XDG_RUNTIME_DIR").unwrap_or_else(|| {
        format!("/run/containers/{}", rustix::process::getuid().as_raw()).into()
    });
    let runtime = match path("XDG_RUNTIME_DIR") {
        Some(runtime) => runtime.join("containers/auth.json"),
        None => runtime.join("auth.json"),
    };
    let config = path("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
    let docker = path("DOCKER_CONFIG").unwrap_or_else(|| home.join(".docker"));
    let old = home.join(OLD_FILE);
    vec![runtime, config.join("containers/auth.json"), docker.join("config.json"), old]
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct AuthFile {
    auths: Option<HashMap<String, Entry>>,
    cred_helpers: Option<HashMap<String, String>>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// The credentials for an image, if any of `files` has some.
pub(super) fn find(name: &Name, files: &[PathBuf]) -> Result<Option<Credentials>, Cause> {
    for file in files {
        let Ok(bytes) = std::fs::read(file) else { continue };
        let told = |why: String| Cause::Credentials { file: file.display().to_string(), why };
        // serde_json's messages quote no values of strings that were of the right type.
        let parsed = if file.ends_with(OLD_FILE) {
            serde_json::from_slice(&bytes)
                .map(|auths| AuthFile { auths: Some(auths), ..AuthFile::default() })
        } else {
            serde_json::from_slice(&bytes)
        };
        let parsed: AuthFile = parsed
            .map_err(|error| told(format!("line {} is no JSON as it should be", error.line())))?;
        if let Some(found) = find_in(name, parsed, file)? {
            log::debug!("credentials for {} are those in {}", name.host, file.display());
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn find_in(name: &Name, file: AuthFile, path: &Path) -> Result<Option<Credentials>, Cause> {
    let hosts: &[&str] = match &*name.host {
        "docker.io" => &DOCKER_HUB,
        host => &[host],
    };
    let helpers = file.cred_helpers.unwrap_or_default();
    for &host in hosts {
        if let Some(helper) = helpers.get(host) {
            return ask(helper, host);
        }
    }
    // The longest name counts: a repository, a folder of it, the host.
    let mut path_keys = vec![];
    let mut rest = Some(&*name.repository);
    while let Some(part) = rest {
        path_keys.push(format!("{}/{part}", name.host));
        rest = part.rsplit_once('/').map(|(folder, _)| folder);
    }
    let auths = file.auths.unwrap_or_default();
    let entry = path_keys.iter().find_map(|key| auths.get(key)).or_else(|| {
        let mut entries = auths.iter().filter(|(key, _)| hosts.contains(&host_of(key)));
        hosts
            .iter()
            .find_map(|&host| auths.get(host))
            .or_else(|| entries.next().map(|(_, entry)| entry))
    });
    if let Some(found) = entry.map(|entry| entry.credentials(path)).transpose()?.flatten() {
        return Ok(Some(found));
    }
    match (file.creds_store, hosts) {
        (Some(store), [host, ..]) if !store.is_empty() => ask(&store, host),
        _ => Ok(None),
    }
}

/// The host of a key, which older programs wrote as a URL.
fn host_of(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or(key.strip_prefix("http://"));
    rest.map_or(key, |rest| rest.split('/').next().unwrap_or_default())
}

impl Entry {
    fn credentials(&self, path: &Path) -> Result<Option<Credentials>, Cause> {
        let filled = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        if let Some(token) = filled(&self.identitytoken) {
            return Ok(Some(Credentials::Identity(token)));
        }
        if let (Some(user), Some(password)) = (filled(&self.username), filled(&self.password)) {
            return Ok(Some(Credentials::Password { user, password }));
        }
        let Some(auth) = filled(&self.auth) else { return Ok(None) };
        let wrong = || Cause::Credentials {
            file: path.display().to_string(),
            why: "an entry is not NAME:PASSWORD in base64".into(),
        };
        let text =
            STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let text = text.ok_or_else(wrong)?;
        let (user, password) = text.split_once(':').ok_or_else(wrong)?;
        // Docker ends some of them in zero bytes.
        let password = password.trim_end_matches('\0').to_owned();
        Ok(Some(Credentials::Password { user: user.into(), password }))
    }
}

/// Asks a credential helper (docker-credential-helpers, "Development"): the host goes in, JSON
/// comes out. A helper that knows nothing says so and fails.
fn ask(helper: &str, host: &str) -> Result<Option<Credentials>, Cause> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(default)]
        username: String,
        secret: String,
    }
    let wrong = |why: String| Cause::Helper { helper: helper.chars().take(100).collect(), why };
    if helper.is_empty()
        || !helper.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        return Err(wrong("is no name of a program".into()));
    }
    let program = format!("docker-credential-{helper}");
    let mut command = Command::new(&program);
    let (status, answer) = talk(command.arg("get"), host, HELPER_TIME)
        .map_err(|error| wrong(format!("{program}: {error}")))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&answer);
        if said.contains("credentials not found") || said.contains("no credentials") {
            return Ok(None);
        }
        // Its words are not told: a helper may say anything, secrets too.
        return Err(wrong(format!("{program} fails ({status})")));
    }
    let answer: Answer = serde_json::from_slice(&answer)
        .map_err(|_| wrong(format!("{program} does not answer in JSON as it should")))?;
    Ok(Some(match &*answer.username {
        "<token>" => Credentials::Identity(answer.secret),
        _ => Credentials::Password { user: answer.username, password: answer.secret },
    }))
}

/// Runs a program that is told `host` and answers, and is ended after `time`.
fn talk(command: &mut Command, host: &str, time: Duration) -> io::Result<(ExitStatus, Vec<u8>)> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read has answered or failed already. The name of a host fits a pipe.
        let _ = stdin.write_all(host.as_bytes());
    }
    let stdout = child.stdout.take();
    // Not waited for in vain: what a helper leaves running may hold its output open.
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut answer = vec![];
        let read = stdout.map(|stdout| stdout.take(MAX_ANSWER).read_to_end(&mut answer));
        let _ = send.send(read.transpose().map(|_| answer));
    });
    let began = Instant::now();
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {time:?}"));
    loop {
        if let Some(status) = child.try_wait()? {
            let answer = receive.recv_timeout(time.saturating_sub(began.elapsed()));
            return Ok((status, answer.map_err(|_| late())??));
        }
        if began.elapsed() >= time {
            child.kill()?;
            child.wait()?;
            return Err(late());
        }
        std::thread::sleep(HELPER_PACE);
    }
}

#[cfg(test)]
mod tests;
