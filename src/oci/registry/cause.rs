//! Everything that goes wrong between us and a registry, exactly.

use std::time::Duration;

use thiserror::Error;

use crate::error::{Error, Kind};

/// Why a registry did not give what it was asked for. No part of it holds a password, a token or
/// the query of a URL, which may be a signature.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(in crate::oci) enum Cause {
    #[error("{host} answers {status}{said}")]
    Status { host: String, status: u16, said: String },
    #[error("{host} {why}")]
    Transport { host: String, why: String, tls: bool },
    #[error("{host} sends less than {least} bytes a second")]
    Slow { host: String, least: u64 },
    #[error("the connection to {host} ended {missing} bytes early")]
    Cut { host: String, missing: u64 },
    #[error("more than {most} redirects, the last one by {host}")]
    Redirects { host: String, most: usize },
    #[error("{host} redirects to nowhere")]
    Location { host: String },
    #[error("{from} leads to {to} without encryption")]
    Plain { from: String, to: String },
    #[error("{host} sends {found} bytes where {wanted} were asked for")]
    Length { host: String, wanted: u64, found: u64 },
    #[error("{host} sends \"{found}\" where bytes {wanted} were asked for")]
    Range { host: String, wanted: String, found: String },
    #[error("{host} serves no part of a blob, only the whole")]
    NoRanges { host: String },
    #[error("{host} wants to know who asks in a way that is not known: {scheme}")]
    Challenge { host: String, scheme: String },
    #[error("{host} gives no token: {why}")]
    Token { host: String, why: String },
    #[error("credential helper {helper}: {why}")]
    Helper { helper: String, why: String },
    #[error("credentials in {file}: {why}")]
    Credentials { file: String, why: String },
    #[error("{host} asks to wait {}, longer than is waited for", seconds(*.wait))]
    Wait { host: String, wait: Duration },
    #[error("{last}; tried {tries} times")]
    Spent { tries: u32, last: Box<Cause> },
}

fn seconds(wait: Duration) -> String {
    format!("{} s", wait.as_secs())
}

impl Cause {
    /// What sort of failure this is to the rest of the program.
    fn kind(&self) -> Kind {
        match self {
            Cause::Status { status: 401 | 403, .. } => Kind::Denied,
            Cause::Status { status: 404 | 410, .. } => Kind::NotFound,
            Cause::NoRanges { .. } | Cause::Challenge { .. } => Kind::Unsupported,
            Cause::Plain { .. } => Kind::Refused,
            Cause::Spent { last, .. } => last.kind(),
            _ => Kind::Io,
        }
    }

    /// What to do about it.
    fn hint(&self) -> Option<String> {
        Some(match self {
            Cause::Status { host, status: 401, .. } => format!("log in: skopeo login {host}"),
            Cause::Status { status: 403, .. } => {
                "the account may not pull it, or it does not exist".into()
            }
            Cause::Status { status: 404, .. } => "is the name right, and the tag?".into(),
            Cause::Status { status: 429, .. } | Cause::Wait { .. } => {
                "ask again later, or log in: many registries give more to who does".into()
            }
            Cause::Transport { host, tls: true, .. } => format!(
                "a certificate of the registry's own goes into /etc/containers/certs.d/{host}/ca.crt"
            ),
            Cause::Spent { last, .. } => return last.hint(),
            _ => return None,
        })
    }
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        let hint = cause.hint();
        let error = Error::caused_by(cause.kind(), cause);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}
