//! Who asks: the challenge of a registry, and the token that answers it (OCI distribution
//! specification, "Authorization"; Docker's "Token Authentication Specification"; RFC 9110, 11).

use std::fmt::Write;

use serde::Deserialize;
use ureq::http::Uri;

use super::cause::Cause;
use super::credentials::Credentials;
use super::http::{Response, host};

/// Bytes of the answer that holds a token.
pub(super) const MAX_TOKEN: u64 = 1 << 20;
/// How we call ourselves where tokens are given.
pub(super) const CLIENT: &str = "strata";

/// What a registry wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// The challenge in an answer's headers that is understood: a token rather than a password.
    pub(super) fn of(response: &Response) -> Result<Self, Cause> {
        let headers = response.headers.get_all("www-authenticate");
        let values: Vec<_> = headers.iter().filter_map(|value| value.to_str().ok()).collect();
        Self::parse(&values).map_err(|scheme| Cause::Challenge { host: response.host(), scheme })
    }

    fn parse(headers: &[&str]) -> Result<Self, String> {
        let mut basic = false;
        let mut others = vec![];
        for header in headers {
            for (scheme, parameters) in challenges(header) {
                let get = |name: &str| {
                    parameters
                        .iter()
                        .find(|(key, _)| key.eq_ignore_ascii_case(name))
                        .map(|(_, value)| value.clone())
                };
                if scheme.eq_ignore_ascii_case("bearer") {
                    if let Some(realm) = get("realm") {
                        return Ok(Self::Bearer {
                            realm,
                            service: get("service"),
                            scope: get("scope"),
                        });
                    }
                } else if scheme.eq_ignore_ascii_case("basic") {
                    basic = true;
                } else {
                    others.push(scheme.chars().take(40).collect::<String>());
                }
            }
        }
        match (basic, others.is_empty()) {
            (true, _) => Ok(Self::Basic),
            (false, true) => Err("it does not say how".into()),
            (false, false) => Err(others.join(", ")),
        }
    }
}

/// The challenges of one header: a scheme, then `name="value"` or `name=value` with commas between.
fn challenges(header: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found: Vec<(String, Vec<(String, String)>)> = vec![];
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        if rest.is_empty() || found.len() > 16 {
            return found;
        }
        let end = rest.find(['=', ' ', ',', '\t']).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        let Some(value) = tail.strip_prefix('=') else {
            // A word that no value follows is a scheme.
            found.push((word.to_owned(), vec![]));
            rest = tail;
            continue;
        };
        let (value, tail) = match value.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = value.find([',', ' ', '\t']).unwrap_or(value.len());
                let (value, tail) = value.split_at(end);
                (value.to_owned(), tail)
            }
        };
        if let Some((_, parameters)) = found.last_mut() {
            parameters.push((word.to_owned(), value));
        }
        rest = tail;
        if word.is_empty() && rest.is_empty() {
            return found;
        }
    }
}

/// The text up to the closing quote, and what follows it.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, text.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// The URL that a token is asked for at.
pub(super) fn token_url(
    realm: &str,
    service: Option<&str>,
    scope: &str,
    with_query: bool,
) -> Option<Uri> {
    let mut url = realm.to_owned();
    if with_query {
        for (name, value) in [("service", service), ("scope", Some(scope))] {
            if let Some(value) = value {
                url.push(if url.contains('?') { '&' } else { '?' });
                let _ = write!(url, "{name}={}", encoded(value));
            }
        }
    }
    let url: Uri = url.parse().ok()?;
    (url.scheme().is_some() && !host(&url).is_empty()).then_some(url)
}

/// Text as the value in a query.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// The token in an answer.
pub(super) fn token_in(host: &str, bytes: &[u8]) -> Result<String, Cause> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        token: Option<String>,
        #[serde(default)]
        access_token: Option<String>,
    }
    let wrong = |why: &str| Cause::Token { host: host.into(), why: why.into() };
    let answer: Answer = serde_json::from_slice(bytes)
        .map_err(|_| wrong("the answer is not the JSON it should be"))?;
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token);
    let token =
        token.filter(|token| !token.is_empty()).ok_or_else(|| wrong("the answer has none"))?;
    match token.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(token),
        false => Err(wrong("what it gives is none")),
    }
}

/// The form by which an identity is exchanged for a token.
pub(super) fn form<'a>(
    identity: &'a Credentials,
    service: Option<&'a str>,
    scope: &'a str,
) -> Option<Vec<(&'static str, &'a str)>> {
    match identity {
        Credentials::Identity(token) => Some(vec![
            ("grant_type", "refresh_token"),
            ("service", service.unwrap_or_default()),
            ("scope", scope),
            ("client_id", CLIENT),
            ("refresh_token", token),
        ]),
        Credentials::Password { .. } => None,
    }
}

#[cfg(test)]
mod tests;
