//! Requests of the crate's HTTP client that got no answer, told alike by all who send some.

/// Why there is none.
#[derive(Debug)]
pub(crate) struct NoAnswer {
    /// What the host does or does not do: `cannot be reached in time`.
    pub(crate) why: String,
    /// Whether it is not the host that was meant, as far as certificates tell: asking again is of no use then.
    pub(crate) is_untrusted: bool,
}

impl NoAnswer {
    pub(crate) fn of(error: &ureq::Error) -> Self {
        let untrusted = |error: &dyn std::error::Error| Self {
            why: format!("has no trusted connection: {error}"),
            is_untrusted: true,
        };
        let why = match error {
            ureq::Error::Io(error) => match error.get_ref() {
                Some(inner) if inner.downcast_ref::<rustls::Error>().is_some() => {
                    return untrusted(inner);
                }
                _ => format!("cannot be reached: {error}"),
            },
            ureq::Error::Rustls(error) => return untrusted(error),
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                "cannot be reached in time".to_owned()
            }
            ureq::Error::Timeout(_) => "does not answer in time".to_owned(),
            ureq::Error::HostNotFound => "is no host that is known".to_owned(),
            other => format!("does not answer as it should: {other}"),
        };
        Self { why, is_untrusted: false }
    }
}
