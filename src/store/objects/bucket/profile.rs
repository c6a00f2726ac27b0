//! Who asks, and whom: options, the environment, and a profile of the AWS configuration, in that order.

use std::path::PathBuf;

use super::BucketOptions;
use crate::error::{Error, Kind, Result};

/// Keys that sign requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) token: Option<String>,
}

/// What options, environment and profile say together.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) endpoint: Option<String>,
    pub(super) region: Option<String>,
    /// Those of a profile; those of the environment are found by whoever signs.
    pub(super) keys: Option<Keys>,
}

impl Settings {
    /// # Errors
    /// [`Kind::NotFound`] if a profile is named that is not there.
    pub(super) fn find(options: &BucketOptions) -> Result<Self> {
        Self::of(options, |name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn of(options: &BucketOptions, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let home = variable("HOME").map(|home| PathBuf::from(home).join(".aws"));
        let file = |name: &str, default: &str| {
            let path = variable(name).map(PathBuf::from);
            let path = path.or_else(|| Some(home.as_ref()?.join(default)))?;
            std::fs::read_to_string(path).ok()
        };
        let named = options.profile.clone();
        // Keys of the environment come before a profile that only the environment names.
        let has_keys = ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"]
            .iter()
            .any(|name| variable(name).is_some());
        let profile = named.clone().or_else(|| variable("AWS_PROFILE"));
        let profile = profile.unwrap_or_else(|| "default".to_owned());
        let credentials = match &options.credentials {
            Some(path) => std::fs::read_to_string(path).ok(),
            None => file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
        };
        let credentials = credentials.unwrap_or_default();
        let config = file("AWS_CONFIG_FILE", "config").unwrap_or_default();
        let in_config = match &*profile {
            "default" => "default".to_owned(),
            profile => format!("profile {profile}"),
        };
        let value = |key: &str| {
            value(&credentials, &profile, key).or_else(|| value(&config, &in_config, key))
        };
        if named.is_some()
            && !has_section(&credentials, &profile)
            && !has_section(&config, &in_config)
        {
            let message = format!("no profile \"{profile}\" in the AWS configuration");
            return Err(Error::new(Kind::NotFound, message)
                .with_hint("~/.aws/credentials and ~/.aws/config are looked into"));
        }
        let keys = match (value("aws_access_key_id"), value("aws_secret_access_key")) {
            (Some(id), Some(secret)) if named.is_some() || !has_keys => {
                Some(Keys { id, secret, token: value("aws_session_token") })
            }
            _ => None,
        };
        let first = |names: &[&str]| names.iter().find_map(|name| variable(name));
        let endpoint = options.endpoint.clone();
        let endpoint = endpoint
            .or_else(|| first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]))
            .or_else(|| value("endpoint_url"));
        let region = options.region.clone();
        let region = region
            .or_else(|| first(&["AWS_REGION", "AWS_DEFAULT_REGION"]))
            .or_else(|| value("region"));
        Ok(Self { endpoint, region, keys })
    }
}

/// The lines of a section, each taken apart at its first `=`.
fn section<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let mut inside = false;
    text.lines().filter_map(move |line| {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
            inside = header.split_whitespace().eq(name.split_whitespace());
            return None;
        }
        if !inside || line.starts_with(['#', ';']) {
            return None;
        }
        line.split_once('=').map(|(key, value)| (key.trim(), value.trim()))
    })
}

fn value(text: &str, name: &str, key: &str) -> Option<String> {
    let found = section(text, name).find(|(found, _)| *found == key);
    found.map(|(_, value)| value.to_owned()).filter(|value| !value.is_empty())
}

fn has_section(text: &str, name: &str) -> bool {
    let headers = text.lines().filter_map(|line| line.trim().strip_prefix('['));
    headers
        .filter_map(|line| line.split(']').next())
        .any(|header| header.split_whitespace().eq(name.split_whitespace()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(options: &BucketOptions, variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::of(options, |name| {
            let found = variables.iter().find(|(found, _)| *found == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_profile_gives_what_options_and_environment_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let credentials = "[default]\naws_access_key_id = a\naws_secret_access_key=b=c\n\
                           [ far ]\n# aws_access_key_id = x\naws_access_key_id = d\n\
                           aws_secret_access_key = e\naws_session_token = t\n";
        std::fs::write(path("credentials"), credentials).unwrap();
        let config = "[default]\nregion = here\n[profile far]\nregion = there\n\
                      endpoint_url = https://far.example\n";
        std::fs::write(path("config"), config).unwrap();
        let (credentials, config) = (path("credentials"), path("config"));
        let files = [("AWS_SHARED_CREDENTIALS_FILE", &*credentials), ("AWS_CONFIG_FILE", &*config)];
        let keys = |id: &str, secret: &str, token: Option<&str>| {
            let token = token.map(ToOwned::to_owned);
            Some(Keys { id: id.to_owned(), secret: secret.to_owned(), token })
        };

        let plain = BucketOptions::default();
        let found = find(&plain, &files).unwrap();
        assert_eq!((found.keys, found.region.as_deref()), (keys("a", "b=c", None), Some("here")));
        assert_eq!(found.endpoint, None);

        let far = BucketOptions { profile: Some("far".to_owned()), ..plain.clone() };
        let with_keys =
            [&files[..], &[("AWS_ACCESS_KEY_ID", "env"), ("AWS_REGION", "env")]].concat();
        let found = find(&far, &with_keys).unwrap();
        assert_eq!(found.keys, keys("d", "e", Some("t")));
        assert_eq!(found.endpoint.as_deref(), Some("https://far.example"));
        assert_eq!(found.region.as_deref(), Some("env"));

        // Keys of the environment are taken by whoever signs.
        assert_eq!(find(&plain, &with_keys).unwrap().keys, None);

        let none = BucketOptions { profile: Some("none".to_owned()), ..plain };
        let error = find(&none, &files).unwrap_err();
        assert!(error.to_string().contains("no profile \"none\""), "{error}");
    }
}
