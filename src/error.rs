//! The one error type of the crate.
//!
//! An error is a [`Kind`] (what a program branches on), a context (what a person reads: image,
//! structure, field, value, offset) and often a cause: an I/O error, or the private cause enum of
//! the parser that refused the input, which tests compare exactly.

mod http;

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;

pub(crate) use http::NoAnswer;

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it was. Exhaustive on purpose: `mount/errno.rs` maps each to one errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The host refused or failed an operation.
    Io,
    /// The image contradicts its format.
    Corrupt,
    /// Valid, but a feature that is not implemented.
    Unsupported,
    /// Encrypted, and no key is at hand.
    Encrypted,
    /// Refused by policy (a file outside the allowed folders, a URL, too deep a chain).
    Refused,
    /// A range outside the object.
    OutOfBounds,
    /// No such file, snapshot or volume.
    NotFound,
    /// A folder was needed.
    NotADirectory,
    /// A folder was found where a file was needed.
    IsADirectory,
    /// Something of that name is there already.
    Exists,
    /// The folder has entries.
    NotEmpty,
    /// A write to something read-only.
    ReadOnly,
    /// Permission denied.
    Denied,
    /// No room left.
    NoSpace,
    /// The command line asked for something that makes no sense.
    Usage,
}

impl Kind {
    /// What the message ends with, for the kinds whose nature the context does not already tell.
    const fn suffix(self) -> Option<&'static str> {
        match self {
            Kind::Corrupt => Some("corrupt image"),
            Kind::Unsupported => Some("not supported"),
            Kind::Encrypted => Some("encrypted"),
            Kind::Refused => Some("refused"),
            Kind::Io
            | Kind::OutOfBounds
            | Kind::NotFound
            | Kind::NotADirectory
            | Kind::IsADirectory
            | Kind::Exists
            | Kind::NotEmpty
            | Kind::ReadOnly
            | Kind::Denied
            | Kind::NoSpace
            | Kind::Usage => None,
        }
    }
}

type Source = Box<dyn StdError + Send + Sync + 'static>;

/// A failure: one line for a person, a [`Kind`] for a program, a cause for a test.
pub struct Error(Box<Repr>);

struct Repr {
    kind: Kind,
    /// Outermost part first; the parts are shown joined by `: `.
    context: Vec<Cow<'static, str>>,
    source: Option<Source>,
    hint: Option<Cow<'static, str>>,
}

impl Error {
    /// An error told by one sentence.
    pub fn new(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Repr { kind, context: vec![message.into()], source: None, hint: None }))
    }

    /// An error told by its cause, which [`Error::cause`] gives back.
    pub fn caused_by(kind: Kind, cause: impl StdError + Send + Sync + 'static) -> Self {
        Self(Box::new(Repr { kind, context: vec![], source: Some(Box::new(cause)), hint: None }))
    }

    /// An I/O error of the host; the kind follows from it.
    ///
    /// An error of ours that went through an [`io::Read`] comes back as it was.
    pub fn io(cause: io::Error) -> Self {
        let cause = match cause.downcast::<Self>() {
            Ok(ours) => return ours,
            Err(cause) => cause,
        };
        let kind = match cause.kind() {
            io::ErrorKind::NotFound => Kind::NotFound,
            io::ErrorKind::PermissionDenied => Kind::Denied,
            io::ErrorKind::AlreadyExists => Kind::Exists,
            io::ErrorKind::NotADirectory => Kind::NotADirectory,
            io::ErrorKind::IsADirectory => Kind::IsADirectory,
            io::ErrorKind::DirectoryNotEmpty => Kind::NotEmpty,
            io::ErrorKind::ReadOnlyFilesystem => Kind::ReadOnly,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
            _ => Kind::Io,
        };
        Self::caused_by(kind, cause)
    }

    /// The same error, told as part of something larger: `context` goes before what is there.
    #[must_use]
    pub fn within(mut self, context: impl Into<Cow<'static, str>>) -> Self {
        self.0.context.insert(0, context.into());
        self
    }

    /// The same error with advice on what to do about it, shown on a line of its own.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The same failure met again: the text and kind, without the cause.
    pub(crate) fn again(&self) -> Self {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.0.write_text(&mut text);
        let hint = self.0.hint.clone();
        Self(Box::new(Repr { kind: self.0.kind, context: vec![text.into()], source: None, hint }))
    }

    /// What sort of failure it was.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Advice for the person, if there is any.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The cause, if it is a `T`.
    pub fn cause<T: StdError + 'static>(&self) -> Option<&T> {
        self.0.source.as_deref().and_then(|source| source.downcast_ref())
    }
}

impl Repr {
    /// The parts joined, on one line, without the suffix that tells the kind.
    fn write_text(&self, f: &mut impl fmt::Write) -> fmt::Result {
        let mut separator = "";
        for part in &self.context {
            write!(f, "{separator}{}", OneLine(part))?;
            separator = ": ";
        }
        match &self.source {
            Some(source) => write!(f, "{separator}{}", OneLine(&source.to_string())),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write_text(f)?;
        match self.0.kind.suffix() {
            Some(suffix) => write!(f, " ({suffix})"),
            None => Ok(()),
        }
    }
}

/// Text out of an image may hold newlines or terminal escapes; a message is one plain line.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(char::is_control) {
            let (clean, tail) = rest.split_at(at);
            let control = tail.chars().next().unwrap_or_default();
            write!(f, "{clean}{}", control.escape_default())?;
            rest = &tail[control.len_utf8()..];
        }
        f.write_str(rest)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("context", &self.0.context)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// Adds context to the error of a result, built only when there is one.
pub trait ResultExt<T> {
    /// Puts `context()` before what the error says; see [`Error::within`].
    fn within<C: Into<Cow<'static, str>>>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn within<C: Into<Cow<'static, str>>>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|error| error.within(context()))
    }
}

impl<T> ResultExt<T> for io::Result<T> {
    fn within<C: Into<Cow<'static, str>>>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|error| Error::io(error).within(context()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_outermost_context_first_and_names_the_kind() {
        let error = Error::new(Kind::Corrupt, "L1 table at 0x7fff lies beyond the end of the file")
            .within("disk.qcow2");
        assert_eq!(
            error.to_string(),
            "disk.qcow2: L1 table at 0x7fff lies beyond the end of the file (corrupt image)"
        );
    }

    #[test]
    fn stays_on_one_line_whatever_the_image_says() {
        let error = Error::new(Kind::NotFound, "no entry \"a\nb\u{1b}[2J\"");
        assert_eq!(error.to_string(), "no entry \"a\\nb\\u{1b}[2J\"");
    }

    #[test]
    fn met_again_it_says_the_same() {
        let error = Error::caused_by(Kind::Corrupt, fmt::Error).within("x").with_hint("do");
        assert_eq!(error.again().to_string(), error.to_string());
        assert_eq!(error.again().hint(), Some("do"));
    }

    #[test]
    fn comes_back_from_a_reader_as_it_was() {
        let ours = Error::new(Kind::Corrupt, "x").with_hint("do");
        let back = Error::io(io::Error::other(ours));
        assert_eq!((back.kind(), back.hint()), (Kind::Corrupt, Some("do")));
    }

    #[test]
    fn keeps_the_cause_for_whoever_asks_by_type() {
        let error: Result<()> = Err(io::Error::from_raw_os_error(libc::ENOSPC)).within(|| "x");
        let error = error.unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace);
        assert_eq!(error.cause::<io::Error>().unwrap().raw_os_error(), Some(libc::ENOSPC));
        assert!(error.cause::<fmt::Error>().is_none());
    }
}
