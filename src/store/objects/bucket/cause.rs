//! What can go wrong with a request.

use std::time::Duration;

use thiserror::Error;

use crate::error::{Error, Kind};

/// Why a request, or an operation of several, failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Cause {
    /// The server says no.
    #[error("the server answers {status}{said}")]
    Status {
        /// The status of its answer.
        status: u16,
        /// The code of the error, as `NoSuchKey`.
        code: String,
        /// What of it is told: the code and the text behind it.
        said: String,
        /// How long the server asks to wait.
        wait: Option<Duration>,
    },
    /// No answer came.
    #[error("{host} {why}")]
    Unreached {
        /// The host, with its port.
        host: String,
        /// What it does instead.
        why: String,
        /// Whether trying again is of no use.
        is_final: bool,
    },
    /// An answer broke off.
    #[error("the answer of {host} breaks off after {came} bytes")]
    Cut {
        /// The host, with its port.
        host: String,
        /// Bytes that came.
        came: u64,
    },
    /// An answer is longer than any that was asked for.
    #[error("the answer of {host} is longer than what was asked for")]
    TooLong {
        /// The host, with its port.
        host: String,
    },
    /// The object is shorter than what is read of it.
    #[error("has {len} bytes, and ends before {end:#x}")]
    Ends {
        /// Bytes it has.
        len: u64,
        /// Where what is read would end.
        end: u64,
    },
    /// Nobody says who is asking.
    #[error("no credentials: {0}")]
    Credentials(String),
    /// An answer that is not understood.
    #[error("{0}")]
    Other(String),
    /// The time for it is over.
    #[error("{last} (tried {tries} times)")]
    Spent {
        /// How often it was tried.
        tries: u32,
        /// What was wrong the last time.
        last: Box<Self>,
    },
}

impl Cause {
    /// Whether it may go well the next time.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            // Some servers tell a throttled or lost request so.
            Self::Status { status: 400, code, .. } => code == "RequestTimeout",
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502..=504 | 509),
            Self::Unreached { is_final, .. } => !is_final,
            Self::Cut { .. } | Self::TooLong { .. } | Self::Other(_) => true,
            Self::Ends { .. } | Self::Credentials(_) | Self::Spent { .. } => false,
        }
    }

    fn last(&self) -> &Self {
        match self {
            Self::Spent { last, .. } => last,
            cause => cause,
        }
    }

    fn kind(&self) -> Kind {
        match self.last() {
            Self::Status { status: 404, .. } => Kind::NotFound,
            Self::Status { status: 401 | 403, .. } | Self::Credentials(_) => Kind::Denied,
            Self::Status { status: 507, .. } => Kind::NoSpace,
            Self::Status { code, .. } if code == "QuotaExceeded" => Kind::NoSpace,
            Self::Ends { .. } => Kind::Corrupt,
            _ => Kind::Io,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        const KEYS: &str = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile (--profile), say who is asking";
        Some(match self.last() {
            Self::Status { code, .. } if code == "NoSuchBucket" => {
                "make the bucket first; another server is named with --endpoint URL"
            }
            Self::Status { code, .. } if code == "SignatureDoesNotMatch" => {
                "the secret key, or --region, is not the one that the server knows"
            }
            Self::Status { code, .. } if code == "RequestTimeTooSkewed" => {
                "the clock of this machine, or of the server, is wrong"
            }
            Self::Status { status: 301 | 307 | 400, .. } => {
                "the bucket may lie in another region: --region NAME"
            }
            Self::Status { status: 401 | 403, .. } | Self::Credentials(_) => KEYS,
            Self::Unreached { .. } => "another server is named with --endpoint URL",
            _ => return None,
        })
    }
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        let (kind, hint) = (cause.kind(), cause.hint());
        let error = Self::caused_by(kind, cause);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}
